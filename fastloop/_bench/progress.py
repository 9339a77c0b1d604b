"""How far a long command is."""

import contextlib
import sys


class Progress:
    """A bar by rich where that is installed, otherwise a line for each step; both on standard error."""

    def __init__(self, total):
        self.bar = None
        with contextlib.suppress(ImportError):
            from rich import progress
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_terminal:
                self.bar = progress.Progress(*progress.Progress.get_default_columns(), console=console)
                self.task = self.bar.add_task("", total=total)

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc_info):
        if self.bar:
            self.bar.stop()

    def show(self, text):
        """Tell what is being done now."""
        if self.bar:
            self.bar.update(self.task, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def advance(self):
        """Count one of the steps as done."""
        if self.bar:
            self.bar.advance(self.task)
