"""Bar charts of results, by matplotlib: the gain of each loop over the baseline, case by case."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from fastloop._bench.report import choose_baseline, loops_of, ratios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastloop._bench.report import Document

FORMATS = (".svg", ".png", ".pdf")
# Told apart by people who see few colours, too; fastloop's is the first.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
BASE_COLOUR = "#444444"
INCHES_A_BAR = 0.16


def check(path: str) -> None:
    """Raise SystemExit where a chart cannot be drawn."""
    if Path(path).suffix not in FORMATS:
        raise SystemExit(f"--plot writes {', '.join(FORMATS)}, not {Path(path).name}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SystemExit("--plot needs matplotlib: python -m pip install matplotlib") from None


def draw(document: Document, baseline: str) -> Figure:
    """The matplotlib figure of a document; see report.py for what that is."""
    from matplotlib.figure import Figure

    results = document["results"]
    loops = loops_of(results)
    base = choose_baseline(loops, baseline)
    others = sorted((loop for loop in loops if loop != base), key=lambda loop: loop != "fastloop")
    figure = Figure(figsize=(9, 1.6 + INCHES_A_BAR * len(results) * (len(others) + 1.2)), layout="constrained")
    axes = figure.subplots()
    thickness = 0.8 / max(1, len(others))
    ends = [0.8, 1.25]
    for i, loop in enumerate(others):
        # The first metric of a case, by rows, and then by their places on the vertical axis.
        bars: dict[float, list[float]] = {
            row: ratios(result, loop, result["metrics"][0], base) for row, result in enumerate(results)
        }
        bars = {row - 0.4 + thickness * (i + 0.5): by for row, by in bars.items() if by and min(by) > 0}
        draw_bars(axes, bars, thickness, loop, COLOURS[i % len(COLOURS)])
        ends += [end for by in bars.values() for end in by]
    axes.axvline(1, color=BASE_COLOUR, linewidth=1, label=f"{base} = 1")
    names = [f"{result['case']}  ({result['metrics'][0]})" for result in results]
    axes.set_yticks(range(len(results)), names, fontsize=8)
    axes.set_ylim(len(results) - 0.4, -0.6)
    # By factors: half as fast is as far to the left as twice as fast is to the right.
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ends) / 1.1, max(ends) * 1.2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel(f"{base} / loop: right of the line is better; whiskers: smallest and largest of the rounds")
    axes.spines[["top", "right"]].set_visible(False)
    machine = document["machine"]
    figure.suptitle(f"{machine['loops']}\n{machine['python'].split(',')[0]}, {machine['cpu']}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(loops), fontsize=8)
    return figure


def draw_bars(axes: Axes, bars: dict[float, list[float]], thickness: float, label: str, colour: str) -> None:
    """Draw one loop's bars; bars maps places on the vertical axis to the ratios of the rounds."""
    middles = [*map(median, bars.values())]
    axes.barh([*bars], [middle - 1 for middle in middles], thickness, left=1, color=colour, label=label)
    for (place, by), middle in zip(bars.items(), middles, strict=True):
        axes.errorbar(middle, place, xerr=[[middle - min(by)], [max(by) - middle]], color="black", linewidth=0.8)
        axes.annotate(f"{middle:.2f}", (max(1, *by), place), (3, 0), textcoords="offset points", va="center", size=7)


def save(path: str, document: Document, baseline: str = "asyncio") -> None:
    """Draw the document into a file, whose name says how."""
    draw(document, baseline).savefig(path, dpi=144, metadata={"Date": None} if str(path).endswith(".svg") else None)
