"""Runs cases on several loops, interleaved, each run in a fresh process: python -m benchmarks --help"""

import argparse
import contextlib
import json
import sys

from benchmarks import machine, native, process, report
from benchmarks.loops import LIBUV, LOOPS
from benchmarks.registry import DEFAULT, FULL, QUICK, select

# Rounds, and the part of each case's n.
SELECTIONS = {"quick": (QUICK, 3, 0.2), "default": (DEFAULT, 5, 1.0), "full": (FULL, 5, 1.0)}


def parser_of(prog, description):
    """The options that choose cases, loops and outputs, the same for each command."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    names = [*LOOPS, LIBUV]
    parser.add_argument("--loops", default="", help=f"comma-separated, in the order of running: {', '.join(names)} "
                        "(default: those that are installed, without aiofastnet)")  # fmt: skip
    parser.add_argument("--case", action="append", default=[], metavar="PATTERN", help="names, such as 'tcp/*'")
    parser.add_argument("--group", action="append", default=[], metavar="PATTERN", help="groups, such as 'echo *'")
    parser.add_argument("--quick", dest="selection", action="store_const", const="quick", help="few, short cases")
    parser.add_argument("--full", dest="selection", action="store_const", const="full", help="every case")
    parser.add_argument("--part", type=float, help="run this part of each case's number of operations, such as 0.1")
    parser.add_argument("--json", metavar="FILE", help="save all samples here")
    parser.add_argument("--markdown", metavar="FILE", help="save the tables here; between its marks, if it has any")
    parser.add_argument("--baseline", default="uvloop", help="loop that ratios are to (default: uvloop)")
    parser.add_argument("--list", action="store_true", help="list the chosen cases and stop")
    parser.set_defaults(selection="default")
    return parser


def chosen_loops(text):
    """Names of the loops to run; raises SystemExit for one that is unknown."""
    if not text:
        return [name for name, loop in LOOPS.items() if not loop.is_patched and loop.version() is not None] + [LIBUV]
    names = text.split(",")
    unknown = [name for name in names if name not in LOOPS and name != LIBUV]
    if unknown:
        raise SystemExit(f"unknown loop {unknown[0]}; known are {', '.join([*LOOPS, LIBUV])}")
    return names


def chosen_cases(args):
    """The cases to run; lists them and raises SystemExit where that is asked or there are none."""
    cases = select(args.case, args.group, SELECTIONS[args.selection][0])
    if args.list:
        for case in cases:
            print(f"{case.group:12} {case.name:34} {case.n:>9,} x {case.unit}")
    if args.list or not cases:
        raise SystemExit(0 if args.list else "no case matches")
    return cases


class Progress:
    """A bar by rich where it is installed, otherwise a line for each case; both on standard error."""

    def __init__(self, total):
        self.bar = None
        with contextlib.suppress(ImportError):
            from rich import progress
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_terminal:
                self.bar = progress.Progress(*progress.Progress.get_default_columns(), console=console)
                self.task = self.bar.add_task("", total=total)
                self.bar.start()

    def case(self, name):
        if self.bar:
            self.bar.update(self.task, description=name)
        else:
            print(name, file=sys.stderr, flush=True)

    def advance(self):
        if self.bar:
            self.bar.advance(self.task)

    def stop(self):
        if self.bar:
            self.bar.stop()


def entry(case, n, loops, metrics):
    """The empty record of a case in the results, for those of the loops that can be asked: bare libuv serves only."""
    about = {"case": case.name, "group": case.group, "unit": case.unit, "metrics": list(metrics), "n": n}
    return about | {"loops": {loop: {"samples": []} for loop in loops if loop != LIBUV or case.kind}}


def measure(case, n, loops, rounds, progress):
    """The record of a case: loop A, B, C, then A, B, C again. What a loop cannot do it is asked once."""
    record = entry(case, n, loops, case.metrics)
    progress.case(case.name)
    for _ in range(rounds):
        for loop, outcome in record["loops"].items():
            if "cannot" not in outcome:
                try:
                    outcome["samples"].append(process.run(case, loop, n))
                except process.CannotError as error:
                    outcome["cannot"] = str(error)
            progress.advance()
    return record


def finish(document, args):
    """Print the tables and save what is to be saved."""
    report.show(document, args.baseline)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(document, file, indent=1)
    if args.markdown:
        report.save(args.markdown, document, args.baseline)


def main(arguments=None):
    parser = parser_of("python -m benchmarks", "Compare event loops: interleaved rounds, a fresh process for each run.")
    parser.add_argument("--rounds", type=int, help="runs of each case on each loop (default: 5, with --quick 3)")
    args = parser.parse_args(arguments)
    cases, loops = chosen_cases(args), chosen_loops(args.loops)
    _, rounds, part = SELECTIONS[args.selection]
    rounds, part = args.rounds or rounds, args.part or part
    native.build()
    document = {"kind": "benchmarks", "machine": machine.describe(loops), "results": []}
    progress = Progress(len(cases) * len(loops) * rounds)
    try:
        for case in cases:
            document["results"].append(measure(case, max(1, int(case.n * part)), loops, rounds, progress))
    except KeyboardInterrupt:
        print("stopped: the tables hold what was measured", file=sys.stderr)
    finally:
        progress.stop()
    finish(document, args)
