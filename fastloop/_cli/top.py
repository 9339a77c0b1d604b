"""``python -m fastloop top [PATH]``: the metrics that a loop serves on its Unix socket, again and again."""

import argparse
import json
import os
import sys
import time

from fastloop import observe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_TIMES = ("p50", "p90", "p99", "max")


def main(arguments: list[str]) -> None:
    """Show the metrics until the program or Ctrl-C ends it. SystemExit with status 1 if there is no socket."""
    options = _parse(arguments)
    try:
        values = observe.fetch(options.path)
        if options.json:
            print(json.dumps(values, indent=2))
        elif options.once:
            print(as_text(values))
        else:
            _show(options, values)
    except OSError as error:
        raise SystemExit(f"python -m fastloop top: {options.path}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        pass


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m fastloop top", description="Show what a loop does.")
    wish = os.environ.get("FASTLOOP_METRICS", "")
    default = wish if "/" in wish else None
    parser.add_argument(
        "path", nargs="?", default=default, metavar="PATH", help="the socket, or a folder with one (FASTLOOP_METRICS)"
    )
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (1)")
    parser.add_argument("--once", action="store_true", help="show the numbers once")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.parse_args(arguments)
    if options.path is None:
        parser.error("give PATH, the socket of a program that was started with FASTLOOP_METRICS=PATH")
    if not options.interval > 0:
        parser.error("--interval must be more than 0")
    if os.path.isdir(options.path):
        options.path = _only_socket(parser, options.path)
    return options


def _only_socket(parser: argparse.ArgumentParser, folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if name.startswith("fastloop-") and name.endswith(".sock"))
    if len(names) != 1:
        parser.error(f"there is not one socket in {folder}, but {', '.join(names) or 'none'}")
    return os.path.join(folder, names[0])


def _show(options: argparse.Namespace, values: "dict[str, Any]") -> None:
    show = _shower()
    before, then = None, None
    while True:
        now = time.monotonic()
        show(as_text(values, before, 0.0 if then is None else now - then))
        before, then = values, now
        time.sleep(options.interval)
        try:
            values = observe.fetch(options.path)
        except (FileNotFoundError, ConnectionError):
            # It has ended, perhaps just as it was asked.
            return


def _shower() -> "Callable[[str], None]":
    """Return a function that shows a text in place of the last one, on a terminal; else below it."""
    if not sys.stdout.isatty():
        return lambda text: print(text + "\n", flush=True)
    try:
        import rich.console
    except ImportError:
        return lambda text: print(f"\x1b[H\x1b[2J{text}", flush=True)
    console = rich.console.Console()

    def show(text: str) -> None:
        console.clear()
        console.print(text, markup=False)

    return show


def as_text(values: "dict[str, Any]", before: "dict[str, Any] | None" = None, seconds: float = 0.0) -> str:
    """Return a table of the metrics; with those of some seconds before, also what happens in a second."""

    def rate(*path: str) -> "Any":
        if before is None or seconds <= 0:
            return None
        new, old = observe.find(values, path), observe.find(before, path)
        return None if new is None or old is None else (new - old) / seconds

    lines = [f"fastloop, process {values['pid']}", ""]
    busy = [rate(key) for key in ("run_seconds", "gil_seconds", "poll_seconds")]
    if None not in busy and sum(busy) > 0:
        shares = [f"{100 * part / sum(busy):.1f} %" for part in busy]
        lines += [f"busy {shares[0]}, waiting for the interpreter {shares[1]}, idle {shares[2]}", ""]
    for name, path in _COUNTS:
        number = observe.find(values, path)
        per_second = rate(*path) if path[-1] in _GROWING else None
        end = "" if per_second is None else f"{per_second:16,.0f}/s"
        lines.append(f"{name:22}{'-' if number is None else format(number, ','):>18}{end}")
    handles = ", ".join(f"{count} {kind}" for kind, count in (values["handles"] or {}).items() if count)
    lines += [f"{'handles':22}{handles or 'none':>18}", ""]
    lines.append(f"{'milliseconds':22}" + "".join(f"{name:>10}" for name in _TIMES))
    for name, path in _DURATIONS:
        summary = observe.find(values, path)
        if summary is not None and summary["count"]:
            lines.append(f"{name:22}" + "".join(f"{summary[key] * 1000:10.3f}" for key in _TIMES))
    return "\n".join(lines)


_COUNTS = [
    ("turns", ("turns",)),
    ("callbacks", ("callbacks",)),
    ("bytes in", ("bytes_in",)),
    ("bytes out", ("bytes_out",)),
    ("messages in", ("messages_in",)),
    ("messages out", ("messages_out",)),
    ("jobs in threads", ("executor", "jobs")),
    ("  queued", ("executor", "queued")),
    ("  running", ("executor", "running")),
    ("tasks", ("tasks",)),
    ("ready", ("ready",)),
    ("timers", ("timers",)),
]
_GROWING = {"turns", "callbacks", "bytes_in", "bytes_out", "messages_in", "messages_out", "jobs"}
_DURATIONS = [("timers late", ("lag",)), ("turns", ("turn",)), ("jobs queued", ("executor", "wait"))]
