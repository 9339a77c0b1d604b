"""Starting and ending: what short programs and test-suites pay."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from statistics import median

from fastloop._bench.registry import QUICK, case

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastloop._bench.loops import Loop
    from fastloop._bench.registry import Metrics

FRESH: dict[str, Any] = {"group": "start-up", "fresh": True}
IMPORT = "import time; t = time.perf_counter_ns(); import asyncio, {}; print(time.perf_counter_ns() - t)"


async def nothing() -> None:
    pass


@case("import", unit="import", n=5, metrics=("wall",), warm=False, **FRESH)
def import_module(kind: Loop, n: int) -> Metrics:
    """asyncio and the loop's package, in a fresh interpreter each time."""
    command = [sys.executable, "-P", "-c", IMPORT.format(kind.module)]
    # Bytecode that is missing is written by the first of them: with what pip installs, it is there.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = [subprocess.run(command, capture_output=True, check=True, env=environment).stdout for _ in range(n)]
    return {"wall": median(map(int, times))}


@case("new_event_loop/close", unit="loop", n=500, tier=QUICK, **FRESH)
def new_and_close(kind: Loop, n: int) -> None:
    for _ in range(n):
        kind.new().close()


@case("Runner/noop", unit="run", n=300, **FRESH)
def run_noop(kind: Loop, n: int) -> None:
    """What asyncio.run does: a loop of its own for one coroutine."""
    for _ in range(n):
        with asyncio.Runner(loop_factory=kind.new) as runner:
            runner.run(nothing())


@case("run_until_complete/noop", group="start-up", unit="run", n=5000, tier=QUICK)
def run_until_complete(loop: asyncio.AbstractEventLoop, n: int) -> None:
    for _ in range(n):
        loop.run_until_complete(nothing())
