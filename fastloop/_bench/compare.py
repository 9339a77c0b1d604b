"""Runs cases on several loops, interleaved, each run in a fresh process; what ``python -m fastloop bench`` does."""

from __future__ import annotations

import argparse
import json
import sys

from fastloop._bench import loops, machine, process, report, workloads
from fastloop._bench.progress import Progress
from fastloop._bench.registry import FULL, QUICK, load_workloads, select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastloop._bench.registry import Case, Metrics
    from fastloop._bench.report import Document, Result


class Suite:
    """What a command compares, and how: the cases, the loops, and what is chosen where nothing is said.

    selections maps the options of the command line to (tier, rounds, part of each case's n).
    """

    prog = "python -m fastloop bench"
    about = "Compare event loops on this machine: interleaved rounds, a fresh process for each run."
    modules = workloads.MODULES
    selections: dict[str, tuple[int, int, float]] = {"default": (QUICK, 5, 0.2), "full": (FULL, 5, 1.0)}
    baseline = "asyncio"
    kind = "benchmarks"

    def known_loops(self) -> list[str]:
        return [*loops.LOOPS]

    def default_loops(self) -> list[str]:
        return ["asyncio", "fastloop"]

    def versions(self, names: Iterable[str]) -> dict[str, str | None]:
        """Names of loops to their versions. Raises SystemExit for a loop that is unknown or not installed."""
        versions: dict[str, str | None] = {}
        for name in names:
            try:
                versions[name] = loops.find(name).version()
            except KeyError:
                raise SystemExit(f"unknown loop {name}; known are {', '.join(self.known_loops())}") from None
            if versions[name] is None and ":" not in name:
                raise SystemExit(f"the loop {name} is not installed for this Python: python -m pip install {name}")
        return versions

    def is_asked(self, case: Case, loop: str) -> bool:
        """Whether a case concerns a loop at all."""
        return True

    def prepare(self) -> None:
        """Make ready what the cases need."""

    def run(self, case: Case, loop: str, n: int) -> Metrics:
        """All metrics of one run. Raises process.CannotError."""
        return process.run(case, loop, n)


def parser_of(suite: Suite) -> argparse.ArgumentParser:
    """The options that choose cases, loops and outputs, the same for each command."""
    parser = argparse.ArgumentParser(prog=suite.prog, description=suite.about)
    parser.add_argument("--loops", default="", metavar="NAMES",
                        help="comma-separated, in the order of running; installed ones of "
                        f"{', '.join(suite.known_loops())}, or MODULE:FUNCTION that makes a loop "
                        f"(default: {','.join(suite.default_loops())})")  # fmt: skip
    parser.add_argument("--case", action="append", default=[], metavar="PATTERN", help="names, such as 'call_*'")
    parser.add_argument("--group", action="append", default=[], metavar="PATTERN", help="groups, such as 'echo *'")
    if "quick" in suite.selections:
        parser.add_argument("--quick", dest="selection", action="store_const", const="quick", help="few, short cases")
    parser.add_argument("--full", dest="selection", action="store_const", const="full", help="every case, longer")
    parser.add_argument("--rounds", type=count, help="runs of each case on each loop")
    parser.add_argument("--part", type=float, help="run this part of each case's number of operations, such as 0.1")
    parser.add_argument("--json", metavar="FILE", help="save all samples here")
    parser.add_argument("--markdown", metavar="FILE", help="save the tables here; between its marks, if it has any")
    parser.add_argument("--plot", metavar="FILE", help="draw bar charts into this .svg or .png file (needs matplotlib)")
    parser.add_argument(
        "--baseline", default=suite.baseline, help=f"ratios are to this loop (default: {suite.baseline})"
    )
    parser.add_argument("--list", action="store_true", help="list the chosen cases and stop")
    parser.set_defaults(selection="default")
    return parser


def count(text: str) -> int:
    """A number of rounds, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def chosen_cases(suite: Suite, args: argparse.Namespace) -> list[Case]:
    """The cases to run; lists them and raises SystemExit where that is asked or there are none."""
    known = load_workloads(suite.modules).values()
    cases = select(known, args.case, args.group, suite.selections[args.selection][0])
    if args.list:
        for case in cases:
            print(f"{case.group:12} {case.name:34} {case.n:>9,} x {case.unit}")
    if args.list or not cases:
        raise SystemExit(0 if args.list else "no case matches; --list --full shows them all")
    return cases


def chosen_loops(suite: Suite, args: argparse.Namespace) -> list[str]:
    return args.loops.split(",") if args.loops else suite.default_loops()


def entry(suite: Suite, case: Case, n: int, names: Iterable[str], metrics: Iterable[str]) -> Result:
    """The empty record of a case in the results, for the loops that it concerns."""
    return {
        "case": case.name,
        "group": case.group,
        "unit": case.unit,
        "metrics": list(metrics),
        "n": n,
        "loops": {name: {"samples": []} for name in names if suite.is_asked(case, name)},
    }


def measure(suite: Suite, case: Case, n: int, names: Iterable[str], rounds: int, progress: Progress) -> Result:
    """The record of a case: loop A, B, C, then A, B, C again. What a loop cannot do it is asked once."""
    record = entry(suite, case, n, names, case.metrics)
    progress.show(case.name)
    for _ in range(rounds):
        for loop, outcome in record["loops"].items():
            if "cannot" not in outcome:
                try:
                    outcome["samples"].append(suite.run(case, loop, n))
                except process.CannotError as error:
                    outcome["cannot"] = str(error)
            progress.advance()
    return record


def document_of(suite: Suite, names: Iterable[str], results: list[Result]) -> Document:
    return {"kind": suite.kind, "machine": machine.describe(suite.versions(names)), "results": results}


def finish(document: Document, args: argparse.Namespace) -> None:
    """Print the tables and save what is to be saved."""
    report.show(document, args.baseline)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(document, file, indent=1)
    if args.markdown:
        report.save(args.markdown, document, args.baseline)
    if args.plot:
        from fastloop._bench import chart

        chart.save(args.plot, document, args.baseline)


def check_outputs(args: argparse.Namespace) -> None:
    """Fail before the measurement where its results could not be saved."""
    if args.plot:
        from fastloop._bench import chart

        chart.check(args.plot)
    for path in filter(None, (args.json, args.markdown, args.plot)):
        with open(path, "a"):
            pass


def main(arguments: Sequence[str] | None = None, suite: Suite | None = None) -> None:
    suite = suite or Suite()
    args = parser_of(suite).parse_args(arguments)
    cases, names = chosen_cases(suite, args), chosen_loops(suite, args)
    _, rounds, part = suite.selections[args.selection]
    rounds, part = args.rounds or rounds, args.part or part
    document = document_of(suite, names, [])
    check_outputs(args)
    suite.prepare()
    with Progress(len(cases) * len(names) * rounds) as progress:
        try:
            for case in cases:
                n = max(1, int(case.n * part))
                document["results"].append(measure(suite, case, n, names, rounds, progress))
        except KeyboardInterrupt:
            print("stopped: the tables hold what was measured", file=sys.stderr)
    finish(document, args)
