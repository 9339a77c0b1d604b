"""The measured process: python -P -m fastloop._bench.worker LOOP CASE N [--warm-up]

Runs one case on one loop once and prints one line of JSON: the metrics, or {"cannot": "Type: message"}.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import resource
import time

from fastloop._bench import loops
from fastloop._bench.registry import load_workloads
from fastloop._bench.workloads import MODULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from fastloop._bench.registry import Case, Metrics


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", type=loops.find)
    parser.add_argument("case")
    parser.add_argument("n", type=int)
    parser.add_argument("--warm-up", action="store_true")
    return parser


def run_once(case: Case, loop: Any, n: int, extra: tuple[object, ...]) -> Any:
    if inspect.iscoroutinefunction(case.run):
        return loop.run_until_complete(case.run(n, *extra))
    return case.run(loop, n, *extra)


def measure(case: Case, kind: loops.Loop, n: int, is_warmed: bool, extra: tuple[object, ...] = ()) -> Metrics:
    """The case's metrics on a loop of this kind; times are nanoseconds per operation."""
    loop = kind if case.fresh else kind.new()
    if is_warmed:
        run_once(case, loop, max(1, n // 10), extra)
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    more: Metrics | None = run_once(case, loop, n, extra)
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    return {"wall": wall / n, "cpu": cpu / n} | (more or {})


@contextlib.contextmanager
def failures_are_told() -> Iterator[None]:
    """Make the worker say what the loop cannot do."""
    try:
        yield
    except Exception as error:
        print(json.dumps({"cannot": f"{type(error).__name__}: {error}"}), flush=True)


def allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names a limit that it does not grant.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    args = parser().parse_args()
    allow_many_files()
    with failures_are_told():
        case = load_workloads(MODULES)[args.case]
        print(json.dumps(measure(case, args.loop, args.n, args.warm_up)))


if __name__ == "__main__":
    main()
