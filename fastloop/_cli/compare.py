"""``python -m fastloop compare``: the user's own program on the standard loop and on fastloop, in turn.

Each run is a fresh process. One small process stands between it and this one, because a process's peak memory starts at
that of the process it was made by: it imports nothing, and measures.
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    _Sample: TypeAlias = dict[str, float]
    # Exit status, standard output, standard error.
    _Outcome: TypeAlias = tuple[int | bytes, ...]

STOCK, FASTLOOP = "asyncio", "fastloop"
LAUNCHERS: dict[str, list[str]] = {STOCK: [], FASTLOOP: ["-m", "fastloop"]}
SHOWN_LINES = 12
# Spawns the program on the files that it is told of by their descriptors, and prints how it ended.
MEASURER = """\
import posix, sys, time
out, err, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
actions = [(posix.POSIX_SPAWN_DUP2, out, 1), (posix.POSIX_SPAWN_DUP2, err, 2)]
actions += [(posix.POSIX_SPAWN_CLOSE, fd) for fd in (out, err)]
began = time.perf_counter()
pid = posix.posix_spawn(program[0], program, posix.environ, file_actions=actions)
_, status, usage = posix.wait4(pid, 0)
wall = time.perf_counter() - began
print(posix.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
USAGE = "python -m fastloop compare [--rounds N] [--input FILE] [--json FILE] (SCRIPT | -m MODULE) [ARGUMENTS]"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastloop compare",
        usage=USAGE,
        description="Run a program on the standard loop and on fastloop in turn, each time in a fresh process, and "
        "compare wall time, CPU time, peak memory, and what it printed. Exit status 1 if output or exit status differ.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs on each loop (default: 5)")
    parser.add_argument(
        "--input", default=os.devnull, metavar="FILE", help="standard input of each run (default: none)"
    )
    parser.add_argument("--json", metavar="FILE", help="save all samples here")
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="SCRIPT", help="the program and its arguments")
    return parser


def run_once(loop: str, arguments: list[str], stdin: str) -> "tuple[_Sample, _Outcome]":
    """Run the program; returns its wall and CPU seconds and memory in bytes, and its status, output and errors."""
    command = [sys.executable, *subprocess._args_from_interpreter_flags(), *LAUNCHERS[loop], *arguments]  # type: ignore[attr-defined]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(stdin, "rb") as source:
        fds = [out.fileno(), err.fileno()]
        measurer = [sys.executable, "-I", "-S", "-c", MEASURER, *map(str, fds), *command]
        done = subprocess.run(measurer, stdin=source, stdout=subprocess.PIPE, pass_fds=fds, check=True, text=True)
        status, wall, cpu, memory = done.stdout.split()
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    # Kilobytes on Linux, bytes on macOS.
    scale = 1 if sys.platform == "darwin" else 1024
    return {"wall": float(wall), "cpu": float(cpu), "memory": int(memory) * scale}, (int(status), *printed)


def run_all(
    arguments: list[str], rounds: int, stdin: str
) -> "tuple[dict[str, list[_Sample]], dict[str, list[_Outcome]]]":
    """The samples and the outcomes of each loop, which take turns."""
    from fastloop._bench.progress import Progress

    samples: dict[str, list[_Sample]] = {loop: [] for loop in LAUNCHERS}
    outcomes: dict[str, list[_Outcome]] = {loop: [] for loop in LAUNCHERS}
    with Progress(2 * rounds) as progress:
        for number in range(rounds):
            progress.show(f"round {number + 1} of {rounds}")
            for loop in LAUNCHERS:
                sample, outcome = run_once(loop, arguments, stdin)
                samples[loop].append(sample)
                outcomes[loop].append(outcome)
                progress.advance()
    return samples, outcomes


def verdicts(outcomes: "dict[str, list[_Outcome]]") -> "Iterator[tuple[str, str, str]]":
    """For exit status, standard output and standard error: name, verdict, and a comparison where they differ."""
    for i, name in enumerate(("exit status", "standard output", "standard error")):
        stock, ours = ([outcome[i] for outcome in outcomes[loop]] for loop in (STOCK, FASTLOOP))
        if len(set(stock)) > 1:
            yield name, "varies from run to run on the standard loop itself: nothing can be said", ""
        elif set(stock) == set(ours):
            yield name, "the same", ""
        else:
            other = next(value for value in ours if value != stock[0])
            yield name, "DIFFERS", difference(stock[0], other)


def difference(stock: int | bytes, ours: int | bytes) -> str:
    """The first lines in which two outputs differ."""
    if isinstance(stock, int) or isinstance(ours, int):
        return f"{STOCK}: {stock!r}\n{FASTLOOP}: {ours!r}"
    before, after = (value.decode(errors="backslashreplace").splitlines() for value in (stock, ours))
    lines = [*difflib.unified_diff(before, after, STOCK, FASTLOOP, lineterm="", n=1)]
    more = [f"(and {len(lines) - SHOWN_LINES} lines more)"] if len(lines) > SHOWN_LINES else []
    return "\n".join([*lines[:SHOWN_LINES], *more])


def document_of(samples: "dict[str, list[_Sample]]") -> "dict[str, Any]":
    """The samples as fastloop._bench.report shows them."""
    from fastloop._bench import loops, machine

    scaled = {
        loop: {"samples": [{"wall": s["wall"] * 1e9, "cpu": s["cpu"] * 1e9, "bytes": s["memory"]} for s in rounds]}
        for loop, rounds in samples.items()
    }
    result = {"case": "program", "group": "program", "unit": "run", "metrics": ["wall", "cpu", "bytes"], "n": 1}
    versions = {loop: loops.find(loop).version() for loop in samples}
    return {"kind": "program", "machine": machine.describe(versions), "results": [result | {"loops": scaled}]}


def show(document: "dict[str, Any]", outcomes: "dict[str, list[_Outcome]]") -> bool:
    """Print the table and the verdicts; returns whether everything is the same."""
    from fastloop._bench import report

    for name, text in document["machine"].items():
        if name in ("python", "loops", "cpu", "load at start"):
            print(f"{name:14} {text}")
    print()
    loops = [*LAUNCHERS]
    rows = report.terminal_rows(document["results"], loops, STOCK)
    labels = {"wall": "wall time", "cpu": "CPU time", "bytes": "peak memory"}
    titles = report.terminal_titles(loops, STOCK)
    report.print_table(titles[1:2] + titles[3:], [([labels[c[1]], *c[3:]], colours) for c, colours in rows])
    print("\nMedians of the rounds, ± half of their range. Gain: asyncio / fastloop, (smallest..largest).\n")
    is_same = True
    for name, verdict, comparison in verdicts(outcomes):
        print(f"{name:16} {verdict}")
        if comparison:
            print(comparison)
        is_same = is_same and verdict == "the same"
    return is_same


def main(arguments: list[str]) -> None:
    """Compare; exits with status 1 where the program does not do the same on both loops."""
    args = parser().parse_args(arguments)
    if args.rounds < 1:
        parser().error("--rounds must be at least 1")
    if not args.program:
        parser().error("which program?")
    if not args.module and not Path(args.program[0]).exists():
        parser().error(f"there is no file {args.program[0]}")
    program = ["-m", *args.program] if args.module else args.program
    samples, outcomes = run_all(program, args.rounds, args.input)
    document = document_of(samples)
    is_same = show(document, outcomes)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(document, file, indent=1)
    raise SystemExit(0 if is_same else 1)
