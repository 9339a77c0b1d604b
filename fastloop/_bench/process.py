"""One run of one case in a fresh process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from fastloop._bench.registry import Case

TIMEOUT_S = 120
# Where the package lies that runs now: the measured process is to run the same one.
PACKAGES = Path(__file__).resolve().parents[2]


class CannotError(Exception):
    """The loop cannot do this case; the text says why."""


def environment(folder: Path = PACKAGES) -> dict[str, str]:
    """For the measured process: the folder's packages after what PYTHONPATH has, and hashes that repeat."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))
    return os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def command(module: str, loop: str, case: Case, *arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", module, loop, case.name, *map(str, arguments)]


def read_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The line of JSON that a worker prints, as a dict. Raises CannotError for what it could not do."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise CannotError(f"ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(line)
    if "cannot" in answer:
        raise CannotError(answer["cannot"])
    return answer


@contextlib.contextmanager
def started(
    words: Sequence[str | Path], timeout_s: float = TIMEOUT_S, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A child process, its standard output a pipe of text, that is gone at the end; killed when it takes too long."""
    # What a loop writes about its own failure would run through the table: the reason comes on standard output.
    defaults: dict[str, Any] = {"stderr": subprocess.DEVNULL, "env": environment()}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **defaults | options) as process:
        guard = threading.Timer(timeout_s, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def run_worker(words: Sequence[str | Path], **options: Any) -> dict[str, Any]:
    """Run a worker to its end; returns its metrics. Raises CannotError; options are those of started()."""
    with started(words, **options) as process:
        metrics = read_line(process)
        process.wait()
        return metrics


def run(case: Case, loop: str, n: int) -> dict[str, Any]:
    """Run a case once on a loop, by name; returns all its metrics. Raises CannotError."""
    return run_worker(command("fastloop._bench.worker", loop, case, n, *["--warm-up"] * case.warm))
