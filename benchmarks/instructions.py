"""Instructions per operation in user space, by callgrind: python -m benchmarks.instructions --help

Each case runs with n and with 5 n operations under valgrind, and the difference is divided by 4 n: start-up drops out,
and what remains repeats to about 1 % on any machine, however busy it is. System calls count nothing but their entry.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from benchmarks import loops as loops_module
from benchmarks import machine, native, process
from benchmarks.compare import Progress, chosen_cases, chosen_loops, entry, finish, parser_of

GROUPS = ["scheduling", "tasks", "sync"]
# Callgrind runs a program fifty times slower.
SLOWDOWN = "50"
DEFAULT_PART = 0.02
TIMEOUT_S = 1800


def count(case, loop, n):
    """Instructions of one whole run with n operations. Raises process.CannotError."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}"]
        process.run(case, loop, n, callgrind, is_warmed=False, timeout_s=TIMEOUT_S)
        collected = re.search(r"Collected : (\d+)", log.read_text())
    if collected is None:
        raise process.CannotError("callgrind gave no count")
    return int(collected[1])


def per_operation(case, loop, n):
    return {"instructions": (count(case, loop, 5 * n) - count(case, loop, n)) / (4 * n)}


def measure(case, n, loops, progress):
    record = entry(case, n, loops, ["instructions"])
    progress.case(case.name)
    for loop, outcome in record["loops"].items():
        try:
            outcome["samples"].append(per_operation(case, loop, n))
        except process.CannotError as error:
            outcome["cannot"] = str(error)
        progress.advance()
    return record


def main(arguments=None):
    args = parser_of("python -m benchmarks.instructions", __doc__).parse_args(arguments)
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is needed (Debian: apt-get install valgrind)")
    if not args.case and not args.group:
        args.group = GROUPS
    # Only what all of its operations make alike can be differenced.
    cases = [case for case in chosen_cases(args) if "cpu" in case.metrics and not case.fresh]
    loops = chosen_loops(args.loops)
    native.build()
    os.environ[loops_module.SLOWDOWN] = SLOWDOWN
    document = {"kind": "instructions", "machine": machine.describe(loops), "results": []}
    progress = Progress(len(cases) * len(loops))
    try:
        for case in cases:
            n = max(100, int(case.n * (args.part or DEFAULT_PART)))
            document["results"].append(measure(case, n, loops, progress))
    finally:
        progress.stop()
    finish(document, args)


if __name__ == "__main__":
    main()
