"""How far a long command is."""

from __future__ import annotations

import contextlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """A bar by rich where that is installed, otherwise a line for each step; both on standard error."""

    def __init__(self, total: int) -> None:
        self.bar: Bar | None = None
        with contextlib.suppress(ImportError):
            from rich import progress
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_terminal:
                self.bar = progress.Progress(*progress.Progress.get_default_columns(), console=console)
                self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, text: str) -> None:
        """Tell what is being done now."""
        if self.bar:
            self.bar.update(self.task, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def advance(self) -> None:
        """Count one of the steps as done."""
        if self.bar:
            self.bar.advance(self.task)
