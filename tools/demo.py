"""Run the example programs on asyncio's own loop, on fastloop and on uvloop (where installed), and compare.

    python tools/demo.py [--rounds N] [--markdown]

Every program runs in a fresh process, the loops in turn, so that a busy machine disturbs all of them alike;
the times are medians. Three small workloads follow in which the loop itself does the work. The exit status is
1 when a program fails, or prints something else than on asyncio's own loop.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import fastloop

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
STOCK, FASTLOOP, UVLOOP = "asyncio", "fastloop", "uvloop"
TIMEOUT_SECONDS = 120
SHOWN_LINES = 6
PIPE_COLUMNS = 120

# uvloop has no command of its own that runs a program.
RUN_ON_UVLOOP = """\
import asyncio, os, runpy, sys, uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LAUNCHERS = {
    STOCK: [sys.executable],
    FASTLOOP: [sys.executable, "-m", "fastloop"],
    UVLOOP: [sys.executable, "-W", "ignore", "-c", RUN_ON_UVLOOP],
}


@dataclasses.dataclass
class Row:
    """One row of the table: what ran, and for each loop its times in seconds, its outputs and its failure."""

    name: str
    remark: str
    rounds: int
    arguments: list
    seconds: dict = dataclasses.field(default_factory=dict)
    printed: dict = dataclasses.field(default_factory=dict)
    failed: dict = dataclasses.field(default_factory=dict)

    def run(self, loop):
        """Run it once on a loop, and keep what came of it."""
        began = time.perf_counter()
        done = subprocess.run(
            [*LAUNCHERS[loop], *self.arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            timeout=TIMEOUT_SECONDS,
        )
        elapsed = time.perf_counter() - began
        if done.returncode:
            self.failed[loop] = f"exit status {done.returncode}\n{done.stderr}"
            self.keep(loop, elapsed, done.stdout)
        else:
            self.keep(loop, *self.result(elapsed, done.stdout))

    def keep(self, loop, seconds, output):
        self.seconds.setdefault(loop, []).append(seconds)
        self.printed.setdefault(loop, set()).add(output)

    def result(self, elapsed, output):
        """Return the seconds and the output that count, of those that a run had."""
        return elapsed, output

    def differing(self):
        """Return the loops that failed, or printed something else than asyncio's own loop did."""
        expected = self.printed[STOCK]
        return [
            loop for loop in self.printed if loop in self.failed or self.printed[loop] != expected or len(expected) > 1
        ]


class Measurement(Row):
    """A workload that measures itself: it prints its seconds, without the start of Python."""

    def result(self, elapsed, output):
        return float(output), ""


def programs(rounds):
    """The example programs: their times are those of whole processes, the start of Python included."""
    return [
        example("fetch_titles.py", "hardly faster: mostly imports", rounds),
        example("two_sleepers.py", "cannot be faster: it sleeps", 1),
        example("executors.py", "hardly faster: the pools work", rounds),
        example("to_thread.py", "hardly faster: mostly Python's start", rounds),
        example("chat.py", "the loop matters", rounds),
    ]


def example(name, remark, rounds):
    return Row(name, remark, rounds, [str(EXAMPLES / name)])


def measurements(rounds):
    """The workloads in which the loop itself does the work: their times leave out the start of Python."""
    return [
        Measurement(what, "the loop matters", rounds, [__file__, "--measure", name])
        for name, (what, _, _) in WORKLOADS.items()
    ]


# ---------------------------------------------------------------- workloads


async def ten_thousand_tasks():
    async def nothing():
        pass

    for task in [asyncio.create_task(nothing()) for _ in range(10_000)]:
        await task


async def thousand_hops():
    loop = asyncio.get_running_loop()
    for number in range(1_000):
        await loop.run_in_executor(None, abs, number)


async def chat():
    spec = importlib.util.spec_from_file_location("chat", EXAMPLES / "chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        await module.main()


WORKLOADS = {
    "tasks": ("10,000 tasks created and awaited", ten_thousand_tasks, 10),
    "chat": ("the chat with 200 clients", chat, 2),
    "hops": ("1,000 hops to a thread and back", thousand_hops, 10),
}


async def measure(name):
    """Run a workload once to warm up, then several times, and print the median of its seconds."""
    _, workload, repeats = WORKLOADS[name]
    await workload()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        await workload()
        seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds))


# ---------------------------------------------------------------- running


def installed_loops():
    return [loop for loop in LAUNCHERS if loop == STOCK or importlib.util.find_spec(loop)]


def run_all(rows, loops, say):
    """Run every row on every loop: rounds outermost, so that the loops take turns."""
    for row in rows:
        for number in range(row.rounds):
            for loop in loops:
                say(f"{row.name} on {loop}, round {number + 1} of {row.rounds}")
                row.run(loop)
    say("")


def progress(text):
    """Show what runs on one line of the terminal; elsewhere say nothing."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


# ---------------------------------------------------------------- showing


def conditions(loops):
    """Say in one line what ran where: versions and machine, and nothing that names the machine."""
    versions = [f"{platform.python_implementation()} {platform.python_version()}"]
    versions.append(f"fastloop {fastloop.__version__} (libuv {fastloop.libuv_version})")
    if UVLOOP in loops:
        versions.append(f"uvloop {importlib.metadata.version('uvloop')}")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions.append(f"{processor_model()}, {processors} cores")
    versions.append(f"{platform.system()} {platform.release()}")
    versions.append(f"load {os.getloadavg()[0]:.1f}")
    return ", ".join(versions)


def processor_model():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def show_time(row, loop):
    if loop in row.failed:
        return "failed"
    seconds = statistics.median(row.seconds[loop])
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def show_gain(row):
    """How many times as fast as on asyncio's own loop."""
    if row.failed:
        return ""
    stock, ours = (statistics.median(row.seconds[loop]) for loop in (STOCK, FASTLOOP))
    return f"{stock / ours:.2f} x"


def show_printed(row):
    """What the program printed, shortened; when the loops differ, all that each of them printed."""
    differing = row.differing()
    if not differing:
        lines = "".join(row.printed[STOCK]).splitlines()
        if len(lines) > SHOWN_LINES:
            lines[SHOWN_LINES - 1 :] = [f"(and {len(lines) - SHOWN_LINES + 1} lines more)"]
        return "\n".join(lines)
    blocks = []
    for loop in dict.fromkeys([STOCK, *differing]):
        outputs = [output.rstrip() for output in sorted(row.printed[loop])]
        blocks += [f"[{loop}]", *outputs, row.failed.get(loop, "").rstrip()]
    return "\n".join(filter(None, blocks))


def table(rows, loops):
    """Return the header and the lines of the table, all strings; a cell may have several lines."""
    header = ["", "printed on every loop", *loops, "gain"]
    lines = [
        [f"{row.name}\n({row.remark})", show_printed(row), *(show_time(row, loop) for loop in loops), show_gain(row)]
        for row in rows
    ]
    return header, lines


def as_markdown(header, lines):
    def row(cells):
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    return "\n".join([row(header), row(["---"] * len(header)), *map(row, lines)])


def as_text(header, lines):
    """Lay the table out in columns for a terminal that knows no more than text."""
    cells = [[cell.splitlines() or [""] for cell in line] for line in [header, *lines]]
    widths = [max(len(text) for line in cells for text in line[column]) for column in range(len(header))]
    shown = []
    for line in cells:
        for height in range(max(map(len, line))):
            texts = (cell[height] if height < len(cell) else "" for cell in line)
            shown.append("  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip())
        shown.append("")
    return "\n".join(shown)


def print_table(header, lines, markdown):
    if markdown:
        print(as_markdown(header, lines), end="\n\n")
        return
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(as_text(header, lines))
        return
    shown = Table(*header, show_lines=True)
    for line in lines:
        shown.add_row(*map(Text, line))
    console = Console()
    # A pipe or a file has no width of its own.
    console.width = console.width if console.is_terminal else PIPE_COLUMNS
    console.print(shown)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each program runs on each loop")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--measure", choices=WORKLOADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return asyncio.run(measure(arguments.measure))
    return demonstrate([*programs(arguments.rounds), *measurements(arguments.rounds)], arguments.markdown)


def demonstrate(rows, markdown):
    """Run and show everything; return the exit status, 1 when a loop failed or printed something else."""
    loops = installed_loops()
    before = conditions(loops)
    run_all(rows, loops, progress)
    print(before, end="\n\n")
    print_table(*table(rows, loops), markdown)
    print("Medians of whole processes; in the last rows, of the workload alone. Gain: asyncio / fastloop.")
    wrong = [f"{row.name} on {loop}" for row in rows for loop in row.differing()]
    if wrong:
        print("NOT as on asyncio's own loop:", ", ".join(wrong))
        return 1
    print(f"Every program printed the same on {', '.join(loops)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
