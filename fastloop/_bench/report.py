"""Tables of results: python -m fastloop._bench.report RESULTS.json [--baseline asyncio]

A results file holds {"kind", "machine", "results"}: kind is "benchmarks" or "instructions", machine maps names to text,
and a result has "case", "group", "unit", "metrics", "n" and "loops", which maps a loop's name to {"samples": [those
of round 1, ...]} or {"cannot": reason}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from statistics import geometric_mean, median

from fastloop._bench.loops import LIBUV

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypedDict

    from fastloop._bench.registry import Metrics

    class Outcome(TypedDict, total=False):
        samples: list[Metrics]
        cannot: str

    class Result(TypedDict):
        case: str
        group: str
        unit: str
        metrics: list[str]
        n: int
        loops: dict[str, Outcome]

    class Document(TypedDict):
        kind: str
        machine: dict[str, str]
        results: list[Result]

    # Units by their sizes, the largest first.
    Units = tuple[tuple[str, float], ...]
    # Cells, and the colours of the last ones.
    Row = tuple[list[str], list[str]]

OURS = "fastloop"
TIMES: Units = (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1))
COUNT: Units = (("", 1),)
UNITS: dict[str, Units] = {
    "bytes": (("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)),
    "early": COUNT,
    "instructions": COUNT,
}


def scale(metric: str, value: float) -> tuple[str, float]:
    """The unit for a value and its size: bytes for "bytes", a time in nanoseconds for what is not in UNITS."""
    units = UNITS.get(metric, TIMES)
    return next(((unit, size) for unit, size in units if abs(value) >= size), units[-1])


def number(value: float) -> str:
    """Three digits, but never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def spread(numbers: Sequence[float], form: Callable[[float], str]) -> str:
    """(smallest..largest), or nothing for a single number."""
    return f" ({form(min(numbers))}..{form(max(numbers))})" if len(numbers) > 1 else ""


def values(result: Result, loop: str, metric: str) -> list[float]:
    """One number per round; empty where the loop cannot do the case."""
    return [sample[metric] for sample in result["loops"].get(loop, {}).get("samples", []) if metric in sample]


def ratios(result: Result, loop: str, metric: str, baseline: str) -> list[float]:
    """How many times better than the baseline, round by round, as both ran one after the other."""
    pairs = zip(values(result, baseline, metric), values(result, loop, metric), strict=False)
    return [theirs / ours for theirs, ours in pairs if ours]


def cell(result: Result, loop: str, metric: str, baseline: str) -> str:
    """The median with the smallest and largest value, then the same of the ratio."""
    numbers = values(result, loop, metric)
    if not numbers:
        return result["loops"].get(loop, {}).get("cannot", "-").split(": ")[0]
    unit, size = scale(metric, median(numbers))
    text = number(median(numbers) / size) + spread(numbers, lambda value: number(value / size)) + f" {unit}"
    against = ratios(result, loop, metric, baseline) if loop != baseline else []
    if against:
        text += f" **{median(against):.2f}x**" + spread(against, "{:.2f}".format)
    return text.replace("  ", " ").rstrip()


def verdict(result: Result, metric: str) -> str:
    """Who is ahead of fastloop, such as "**rloop 1.20x**"; "about" before it where the rounds differ about it."""
    if not values(result, OURS, metric):
        return "" if OURS not in result["loops"] else "**cannot**"
    rivals = [loop for loop in result["loops"] if loop not in (OURS, LIBUV)]
    ahead = []
    for rival in rivals:
        by = ratios(result, rival, metric, OURS)
        if by and median(by) > 1:
            ahead.append(f"{'about ' if min(by) <= 1 else ''}{rival} {median(by):.2f}x")
    return f"**{', '.join(ahead)}**" if ahead else ""


def rows(result: Result, loops: list[str], baseline: str) -> Iterator[list[str]]:
    """The lines of one case: one for each metric."""
    for i, metric in enumerate(result["metrics"]):
        name = f"{result['case']} ({result['unit']})" if i == 0 else ""
        yield [name, metric, *(cell(result, loop, metric, baseline) for loop in loops), verdict(result, metric)]


def reasons(results: list[Result]) -> list[str]:
    """Why loops could not do cases, each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for loop, outcome in result["loops"].items():
            if "cannot" in outcome:
                found.setdefault((loop, outcome["cannot"]), []).append(result["case"])
    return [
        f"- {loop} cannot do {len(cases)} of these: {reason.rstrip(': ')}" for (loop, reason), cases in found.items()
    ]


def loops_of(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(loop for result in results for loop in result["loops"]))


def choose_baseline(loops: list[str], wished: str) -> str:
    return wished if wished in loops else loops[0]


def header(loops: list[str], baseline: str) -> list[str]:
    return ["case", "metric", *(f"{loop} (= 1)" if loop == baseline else loop for loop in loops), "fastloop loses"]


def markdown(document: Document, baseline: str = "asyncio") -> str:
    """The whole document as Markdown text."""
    results = document["results"]
    lines = [f"- {name}: {text}" for name, text in document["machine"].items()]
    for group in dict.fromkeys(result["group"] for result in results):
        members = [result for result in results if result["group"] == group]
        loops = loops_of(members)
        base = choose_baseline(loops, baseline)
        titles = header(loops, base)
        lines += ["", f"### {group}", "", "| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
        lines += ["| " + " | ".join(row) + " |" for result in members for row in rows(result, loops, base)]
        lines += ["", *reasons(members)] if reasons(members) else []
    return "\n".join(lines) + "\n"


def save(path: str | Path, document: Document, baseline: str = "asyncio") -> None:
    """Write the tables to a file. One that has the marks "<!-- KIND: begin -->" and "<!-- KIND: end -->", with KIND as
    document["kind"], is kept but for what stands between them."""
    begin, end = (f"<!-- {document['kind']}: {word} -->" for word in ("begin", "end"))
    path, text = Path(path), markdown(document, baseline)
    old = path.read_text() if path.exists() else ""
    if begin in old and end in old:
        before, rest = old.split(begin, 1)
        text = f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}"
    path.write_text(text)


def short(result: Result, loop: str, metric: str) -> str:
    """The median and half the distance from the smallest to the largest value, for the terminal: "2.06 us ±8%"."""
    numbers = values(result, loop, metric)
    if not numbers:
        return result["loops"].get(loop, {}).get("cannot", "-").split(": ")[0]
    middle = median(numbers)
    unit, size = scale(metric, middle)
    text = f"{number(middle / size)} {unit}".rstrip()
    if len(numbers) > 1 and middle:
        text += f" ±{(max(numbers) - min(numbers)) / 2 / middle:.0%}"
    return text


def gain(result: Result, loop: str, metric: str, baseline: str) -> str:
    """How many times better than the baseline, and the smallest and largest of the rounds: "2.41x (2.20..2.50)"."""
    against = ratios(result, loop, metric, baseline)
    return f"{median(against):.2f}x" + spread(against, "{:.2f}".format) if against else ""


def judgement(result: Result, loop: str, metric: str, baseline: str) -> str:
    """The colour of a gain: green or red where all rounds agree, otherwise none."""
    against = ratios(result, loop, metric, baseline) or [1]
    return "green" if min(against) > 1 else "red" if max(against) < 1 else ""


def terminal_rows(results: list[Result], loops: list[str], baseline: str) -> Iterator[Row]:
    """The lines of the terminal's table, one for each metric: the cells, and the colours of the last ones."""
    others = [loop for loop in loops if loop != baseline]
    for result in results:
        for i, metric in enumerate(result["metrics"]):
            cells = [result["case"] if i == 0 else "", metric, result["unit"] if i == 0 else ""]
            cells += [short(result, loop, metric) for loop in loops]
            cells += [gain(result, loop, metric, baseline) for loop in others]
            yield cells, [judgement(result, loop, metric, baseline) for loop in others]


def terminal_titles(loops: list[str], baseline: str) -> list[str]:
    others = [loop for loop in loops if loop != baseline]
    gains = ["gain"] if len(others) == 1 else [f"gain of {loop}" for loop in others]
    return ["case", "metric", "for one", *loops, *gains]


def text_table(titles: list[str], rows: list[Row]) -> str:
    """Columns of plain text."""
    lines = [titles, *(cells for cells, _ in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def print_table(titles: list[str], rows: list[Row]) -> None:
    """Print a table: drawn by rich where that is installed and the output is a terminal, otherwise as plain text."""
    if not (sys.stdout.isatty() and importlib.util.find_spec("rich")):
        print(text_table(titles, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles)
    for cells, colours in rows:
        plain = [*map(Text, cells[: len(cells) - len(colours)])]
        table.add_row(*plain, *map(Text, cells[len(plain) :], colours))
    Console().print(table)


def summary(results: list[Result], baseline: str) -> Iterator[str]:
    """How often each loop was better and worse than the baseline, by the main metric, and the mean of the ratios."""
    for loop in loops_of(results):
        found = [ratios(result, loop, result["metrics"][0], baseline) for result in results]
        found = [by for by in found if by]
        # A ratio to nothing, such as to a timer that was not late at all, has no place in a mean of this kind.
        middles = [median(by) for by in found if median(by) > 0]
        if loop == baseline or not middles:
            continue
        better, worse = sum(min(by) > 1 for by in found), sum(max(by) < 1 for by in found)
        yield (
            f"{loop} against {baseline}, first metric of {len(found)} cases: better in every round of {better}, "
            f"worse in every round of {worse}, undecided in {len(found) - better - worse}; geometric mean "
            f"{geometric_mean(middles):.2f}x"
        )


def show(document: Document, baseline: str = "asyncio") -> None:
    """Print the results for the terminal."""
    results = document["results"]
    for name, text in document["machine"].items():
        print(f"{name:14} {text}")
    if not loops_of(results):
        return
    loops = loops_of(results)
    base = choose_baseline(loops, baseline)
    for group in dict.fromkeys(result["group"] for result in results):
        members = [result for result in results if result["group"] == group]
        print(f"\n{group}")
        print_table(terminal_titles(loops, base), [*terminal_rows(members, loops, base)])
    print(f"\nMedians of the rounds, ± half of their range; less is better. Gain: {base} / loop, (smallest..largest).")
    for line in [*reasons(results), *summary(results, base)]:
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastloop._bench.report", description="Tables of an earlier run.")
    parser.add_argument("file")
    parser.add_argument("--baseline", default="asyncio", help="loop that ratios are to (default: asyncio)")
    args = parser.parse_args()
    with open(args.file) as file:
        print(markdown(json.load(file), args.baseline), end="")


if __name__ == "__main__":
    main()
