"""Instructions per operation in user space, by callgrind: python -m benchmarks.instructions --help

Each case runs with n and with 5 n operations under valgrind, and the difference is divided by 4 n: start-up drops out,
and what remains repeats to about 1 % on any machine, however busy it is. System calls count nothing but their entry.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from benchmarks import process, suite
from fastloop._bench import compare
from fastloop._bench import loops as loops_module
from fastloop._bench.progress import Progress

GROUPS = ["scheduling", "tasks", "sync"]
# Callgrind runs a program fifty times slower.
SLOWDOWN = "50"
DEFAULT_PART = 0.02
TIMEOUT_S = 1800


class Suite(suite.Suite):
    prog = "python -m benchmarks.instructions"
    about = __doc__
    kind = "instructions"


def count(case, loop, n):
    """Instructions of one whole run with n operations. Raises process.CannotError."""
    with tempfile.TemporaryDirectory() as folder:
        log, profile = Path(folder, "log"), Path(folder, "profile")
        callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", f"--log-file={log}"]
        process.run(case, loop, n, callgrind, is_warmed=False, timeout_s=TIMEOUT_S)
        collected = re.search(r"Collected : (\d+)", log.read_text())
    if collected is None:
        raise process.CannotError("callgrind gave no count")
    return int(collected[1])


def per_operation(case, loop, n):
    return {"instructions": (count(case, loop, 5 * n) - count(case, loop, n)) / (4 * n)}


def measure(case, n, names, progress):
    record = compare.entry(Suite(), case, n, names, ["instructions"])
    progress.show(case.name)
    for loop, outcome in record["loops"].items():
        try:
            outcome["samples"].append(per_operation(case, loop, n))
        except process.CannotError as error:
            outcome["cannot"] = str(error)
        progress.advance()
    return record


def main(arguments=None):
    chosen = Suite()
    args = compare.parser_of(chosen).parse_args(arguments)
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is needed (Debian: apt-get install valgrind)")
    if not args.case and not args.group:
        args.group = GROUPS
    # Only what all of its operations make alike can be differenced.
    cases = [case for case in compare.chosen_cases(chosen, args) if "cpu" in case.metrics and not case.fresh]
    names = compare.chosen_loops(chosen, args)
    document = compare.document_of(chosen, names, [])
    compare.check_outputs(args)
    chosen.prepare()
    os.environ[loops_module.SLOWDOWN] = SLOWDOWN
    with Progress(len(cases) * len(names)) as progress:
        for case in cases:
            n = max(100, int(case.n * (args.part or DEFAULT_PART)))
            document["results"].append(measure(case, n, names, progress))
    compare.finish(document, args)


if __name__ == "__main__":
    main()
