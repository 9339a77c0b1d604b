"""Random programs until so many tasks have run: the same history on both loops, seed by seed.

    PYTHONPATH=. python tests/coro/trace_many.py [TASKS, by default a million] [FIRST SEED]

test_traces.py has the programs (cancellation, exceptions, timeouts, shields) and runs some of them each time.
"""

import asyncio
import sys

from test_traces import run_program

import fastloop

DEFAULT_TASKS = 1_000_000


def main():
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_TASKS
    seed = first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    tasks = 0
    while tasks < wanted:
        expected = run_program(asyncio.SelectorEventLoop, seed)
        found = run_program(fastloop.new_event_loop, seed)
        if found != expected:
            where = next((i for i, pair in enumerate(zip(expected, found)) if pair[0] != pair[1]), None)
            sys.exit(f"seed {seed}: event {where} differs, of {len(expected)} and {len(found)}")
        tasks += sum(event[1] == "done" for event in expected if len(event) > 1)
        seed += 1
    print(f"{tasks} tasks of {seed - first} programs: equal")


if __name__ == "__main__":
    main()
