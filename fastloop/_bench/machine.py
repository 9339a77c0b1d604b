"""What a result must be read with: the machine, the versions, and what would change the result silently."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path

from fastloop._bench.registry import WORKLOADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Variables that change the allocator.
MALLOC_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONMALLOC")


def cores() -> list[int]:
    """The numbers of the processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def python_build() -> str:
    """The interpreter, and what of its build changes its speed."""
    threaded = " free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    debug = " debug" if sysconfig.get_config_var("Py_DEBUG") else ""
    version = f"{platform.python_implementation()} {platform.python_version()}{threaded}{debug}"
    if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""):
        return f"{version}, configured with --enable-optimizations"
    # Debian profiles its interpreters by a way of its own, which configure does not know of.
    if sys.base_prefix == "/usr":
        return f"{version}, of the distribution"
    return f"{version}, configured without --enable-optimizations"


def describe(versions: Mapping[str, str | None]) -> dict[str, str]:
    """Everything that is printed above the tables and saved with them, name to text.

    versions maps the names of the loops to their versions, None where there is none.
    """
    malloc = [name for name in os.environ if name.startswith(MALLOC_SETTINGS)]
    return {
        "workloads": f"version {WORKLOADS}",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": python_build(),
        "loops": ", ".join(f"{name} {version}" if version else name for name, version in versions.items()),
        "aiofastnet": "importable" if importlib.util.find_spec("aiofastnet") else "not importable",
        "malloc": f"changed by {', '.join(malloc)}" if malloc else f"default ({' '.join(platform.libc_ver())})",
        "cpu": f"{len(cores())} x {cpu_name()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "load at start": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }
