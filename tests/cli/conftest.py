"""Programs that are run by plain Python and by ``python -m fastloop``, to be compared."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fastloop
from helpers import patience

TIMEOUT = 50


@dataclasses.dataclass
class Result:
    """How a process ended: its exit status (negative for a signal) and what it wrote."""

    status: int
    out: str
    err: str


class Programs:
    """Writes programs into a folder of the test's own, and runs them there."""

    def __init__(self, folder):
        self.folder = folder
        # Of the folder that fastloop was imported from, and of no bytecode: the same conditions for both.
        package_parent = str(Path(fastloop.__file__).resolve().parent.parent)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.environment = {**inherited, "PYTHONPATH": package_parent, "PYTHONDONTWRITEBYTECODE": "1"}

    def write(self, name, source):
        """Write source text under a name that may have folders; return the path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def command(self, loop, arguments, options=()):
        """Return the command line that runs arguments by plain Python ("stock") or on fastloop."""
        return [sys.executable, *options, *(["-m", "fastloop"] if loop == "fastloop" else []), *map(str, arguments)]

    def start(self, loop, *arguments, options=(), env=None, **more):
        """Start a process; its output is a pipe of text."""
        more.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(
            self.command(loop, arguments, options),
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, loop, *arguments, input=None, wait=TIMEOUT, **more):
        """Run a process to its end, at most wait seconds, and return its Result; input is the text it reads."""
        if input is not None:
            more["stdin"] = subprocess.PIPE
        with self.start(loop, *arguments, **more) as process:
            try:
                out, err = process.communicate(input, timeout=wait * patience())
            except BaseException:
                process.kill()
                raise
        return Result(process.returncode, out, err)

    def stock(self, *arguments, **more):
        return self.run("stock", *arguments, **more)

    def fast(self, *arguments, **more):
        return self.run("fastloop", *arguments, **more)

    def same(self, *arguments, **more):
        """Run it both ways, check that status and both outputs are equal, and return the Result."""
        expected = self.stock(*arguments, **more)
        assert self.fast(*arguments, **more) == expected
        return expected


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    return Programs(folder)
