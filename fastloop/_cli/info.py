"""``python -m fastloop info``: versions, platform, and what is enabled."""

import os
import platform
import sys

import fastloop
from fastloop import _core


def main(arguments):
    """Print the table. arguments must be empty: SystemExit with status 2 if not."""
    if arguments:
        sys.stderr.write("usage: python -m fastloop info\n")
        raise SystemExit(2)
    for name, value in facts():
        print(f"{name:10} {value}")


def facts():
    """Return the table as a list of pairs of strings: what, and its value."""
    found = [
        ("fastloop", fastloop.__version__),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}, {_threading()})"),
        ("libuv", f"{fastloop.libuv_version} (built with {_core.libuv_compiled})"),
        ("platform", platform.platform()),
        ("native", ", ".join(sorted(name for name, value in vars(_core).items() if isinstance(value, type)))),
    ]
    if disabled := os.environ.get("FASTLOOP_DISABLE"):
        found.append(("disabled", f"{disabled} (FASTLOOP_DISABLE)"))
    return found


def _threading():
    """Tell how threads run in this interpreter: builds without the GIL may still have it switched on."""
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    return "with the GIL" if is_enabled is None or is_enabled() else "free-threaded"
