"""Draws docs/results.svg, the picture of README.md, from the tables of the last run in benchmarks/README.md.

    python tools/draw_results.py            # write it, and into README.md in which cases fastloop is behind
    python tools/draw_results.py --check    # exit status 1 when one of them is not that of the tables

Each bar is asyncio's time divided by the loop's, for one operation: the longer, the faster. Needs nothing but Python.
"""

import math
import re
import sys
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "benchmarks" / "README.md"
PICTURE = ROOT / "docs" / "results.svg"
FRONT = ROOT / "README.md"
#: Between these lines of README.md.
MARKS = "<!-- behind -->\n", "<!-- /behind -->\n"

#: What is shown of the tables, and what it is called.
CASES = {
    "call_soon/chain": "a callback",
    "call_later/cancel": "a timer, set and cancelled",
    "create_task/await": "a task, created and awaited",
    "gather/100": "a task of gather()",
    "run_in_executor/one": "a hop to a thread and back",
    "tcp/protocol/1k/50": "server, protocol: message",
    "tcp/streams/1k/50": "server, streams: message",
    "tls/protocol/1k/50": "server, TLS: message",
    "udp/protocol/1k/50": "server, UDP: message",
    "accept/tcp/protocol": "server: connection",
    "uvicorn/hello": "uvicorn: request",
    "aiohttp/hello": "aiohttp: request",
    "echo/connect": "client and server: connection",
    "subprocess/spawn": "a child process",
}
LOOPS = {"fastloop": "#0072b2", "uvloop": "#e69f00"}
BASE = "asyncio"

UNITS = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}
WIDTH, LEFT, RIGHT = 820, 240, 60
ROW, BAR, TOP = 34, 13, 78
INK, PALE = "#222222", "#dddddd"


def nanoseconds(cell):
    """The median of a cell of the tables, or None where there is none."""
    found = re.match(r"([\d.,]+) \(.*?\) (ns|us|ms|s)\b", cell)
    return float(found[1].replace(",", "")) * UNITS[found[2]] if found else None


def rows(text):
    """(case, metric, {column: cell}) of each row, where a row without a case goes on with that before it."""
    columns, case = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["case", "metric"]:
            columns = [cell.removesuffix(" (= 1)") for cell in cells]
        elif line.startswith("| ") and len(cells) == len(columns):
            case = cells[0].rpartition(" (")[0] or case
            yield case, cells[1], dict(zip(columns, cells, strict=True))


def gains(text):
    """{case: (metric, {loop: gain over asyncio})} by the first metric of each case that is shown."""
    found = {}
    for case, metric, cells in rows(text):
        if case in CASES and case not in found:
            base = nanoseconds(cells[BASE])
            found[case] = metric, {loop: base / nanoseconds(cells[loop]) for loop in LOOPS}
    missing = CASES.keys() - found.keys()
    assert not missing, f"not in {TABLES.name}: {', '.join(sorted(missing))}"
    return {case: found[case] for case in CASES}


def behind(text):
    """The cases in which a loop was ahead of fastloop in every round, with the one that was most, the worst first."""
    worst = {}
    for case, _, cells in rows(text):
        for loop, factor in re.findall(r"(?<!about )\b([\w+-]+) ([\d.]+)x", cells.get("fastloop loses", "")):
            worst[case] = max(worst.get(case, (0.0, "")), (float(factor), loop))
    if not worst:
        return "fastloop was behind in no case.\n"
    cases = [f"{case} ({loop} {by:.2f}x)" for case, (by, loop) in sorted(worst.items(), key=lambda each: -each[1][0])]
    return textwrap.fill(f"Where fastloop was behind, in every round of that run: {', '.join(cases)}.", 118) + "\n"


def renewed(front, text):
    """README.md with the cases in which fastloop is behind."""
    begin, end = MARKS
    before, _, rest = front.partition(begin)
    return before + begin + behind(text) + end + rest.partition(end)[2]


def caption(text):
    facts = dict(re.findall(r"^- (when|python|loops|cpu|kernel): (.*)$", text, re.MULTILINE))
    loops = [each for each in facts["loops"].split(", ") if each.split()[0] in (*LOOPS, BASE)]
    return f"{', '.join(loops)}; {facts['python'].split(',')[0]}; {facts['cpu']}; {facts['when'][:10]}"


def drawn(text):
    """The picture as SVG."""
    found = gains(text)
    widest = max(gain for _, by in found.values() for gain in by.values())
    narrowest = min(1, *(gain for _, by in found.values() for gain in by.values()))
    low, high = math.log2(narrowest) - 0.1, math.log2(widest) + 0.2
    height = TOP + ROW * len(found) + 46

    def x(gain):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(gain) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        "<title>How many times faster than asyncio: fastloop and uvloop</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold" fill="{INK}">Times faster than asyncio</text>',
    ]
    for number, (loop, colour) in enumerate(LOOPS.items()):
        at = LEFT + 110 * number
        parts.append(f'<rect x="{at}" y="38" width="{BAR}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{at + BAR + 6}" y="49" fill="{INK}">{loop}</text>')
    bottom = TOP + ROW * len(found)
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = f"{x(2**power):.1f}"
        colour = INK if power == 0 else PALE
        parts.append(f'<line x1="{at}" y1="{TOP - 8}" x2="{at}" y2="{bottom}" stroke="{colour}"/>')
        label = "asyncio" if power == 0 else f"{2**power:g}x"
        parts.append(
            f'<text x="{at}" y="{bottom + 16}" text-anchor="middle" font-size="11" fill="{INK}">{label}</text>'
        )
    for row, (case, (metric, by)) in enumerate(found.items()):
        y = TOP + ROW * row
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + BAR + 4}" text-anchor="end" fill="{INK}">{escape(CASES[case])}</text>'
        )
        for number, (loop, colour) in enumerate(LOOPS.items()):
            start, end = sorted((x(1), x(by[loop])))
            top = y + BAR * number
            parts.append(
                f'<rect x="{start:.1f}" y="{top}" width="{max(end - start, 0.5):.1f}" height="{BAR - 1}"'
                f' fill="{colour}"><title>{escape(case)}, {metric}: {by[loop]:.2f}x</title></rect>'
            )
            parts.append(
                f'<text x="{max(end, x(1)) + 4:.1f}" y="{top + BAR - 3}" font-size="11" fill="{INK}">'
                f"{by[loop]:.3g}</text>"
            )
    parts.append(f'<text x="16" y="{height - 10}" font-size="11" fill="{INK}">{escape(caption(text))}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    tables = TABLES.read_text()
    made = {PICTURE: drawn(tables), FRONT: renewed(FRONT.read_text(), tables)}
    if "--check" in sys.argv[1:]:
        old = [path.name for path, content in made.items() if path.read_text() != content]
        sys.exit(f"not that of {TABLES}: {', '.join(old)}; run {sys.argv[0]}" if old else 0)
    for path, content in made.items():
        path.write_text(content)
