"""Tables of results: python -m benchmarks.report RESULTS.json [--baseline uvloop]

A results file holds {"kind", "machine", "results"}: kind is "benchmarks" or "instructions", machine maps names to text,
and a result has "case", "group", "unit", "metrics", "n" and "loops", which maps a loop's name to {"samples": [those
of round 1, ...]} or {"cannot": reason}.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from statistics import median

from benchmarks.loops import LIBUV

OURS = "fastloop"
TIMES = (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1))
COUNT = (("", 1),)
UNITS = {"bytes": (("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)), "early": COUNT, "instructions": COUNT}


def scale(metric, value):
    """The unit for a value and its size: bytes for "bytes", a time in nanoseconds for what is not in UNITS."""
    units = UNITS.get(metric, TIMES)
    return next(((unit, size) for unit, size in units if abs(value) >= size), units[-1])


def number(value):
    """Three digits, but never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def spread(numbers, form):
    """(smallest..largest), or nothing for a single number."""
    return f" ({form(min(numbers))}..{form(max(numbers))})" if len(numbers) > 1 else ""


def values(result, loop, metric):
    """One number per round; empty where the loop cannot do the case."""
    return [sample[metric] for sample in result["loops"].get(loop, {}).get("samples", []) if metric in sample]


def ratios(result, loop, metric, baseline):
    """How many times better than the baseline, round by round, as both ran one after the other."""
    pairs = zip(values(result, baseline, metric), values(result, loop, metric), strict=False)
    return [theirs / ours for theirs, ours in pairs if ours]


def cell(result, loop, metric, baseline):
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


def verdict(result, metric):
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


def rows(result, loops, baseline):
    """The lines of one case: one for each metric."""
    for i, metric in enumerate(result["metrics"]):
        name = f"{result['case']} ({result['unit']})" if i == 0 else ""
        yield [name, metric, *(cell(result, loop, metric, baseline) for loop in loops), verdict(result, metric)]


def reasons(results):
    """Why loops could not do cases, each reason once."""
    found = {}
    for result in results:
        for loop, outcome in result["loops"].items():
            if "cannot" in outcome:
                found.setdefault((loop, outcome["cannot"]), []).append(result["case"])
    return [
        f"- {loop} cannot do {len(cases)} of these: {reason.rstrip(': ')}" for (loop, reason), cases in found.items()
    ]


def loops_of(results):
    return list(dict.fromkeys(loop for result in results for loop in result["loops"]))


def choose_baseline(loops, wished):
    return wished if wished in loops else loops[0]


def header(loops, baseline):
    return ["case", "metric", *(f"{loop} (= 1)" if loop == baseline else loop for loop in loops), "fastloop loses"]


def markdown(document, baseline="uvloop"):
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


def save(path, document, baseline="uvloop"):
    """Write the tables to a file. One that has the marks "<!-- KIND: begin -->" and "<!-- KIND: end -->", with KIND as
    document["kind"], is kept but for what stands between them."""
    begin, end = (f"<!-- {document['kind']}: {word} -->" for word in ("begin", "end"))
    path, text = Path(path), markdown(document, baseline)
    old = path.read_text() if path.exists() else ""
    if begin in old and end in old:
        before, rest = old.split(begin, 1)
        text = f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}"
    path.write_text(text)


def show(document, baseline="uvloop"):
    """Print the tables: drawn by rich where it is installed and the output is a terminal, otherwise as Markdown."""
    text = markdown(document, baseline)
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text, end="")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="The tables of an earlier run.")
    parser.add_argument("file")
    parser.add_argument("--baseline", default="uvloop", help="loop that ratios are to (default: uvloop)")
    args = parser.parse_args()
    with open(args.file) as file:
        print(markdown(json.load(file), args.baseline), end="")


if __name__ == "__main__":
    main()
