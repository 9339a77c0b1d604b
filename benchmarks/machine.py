"""What a result must be read with: the machine, the versions, and what would change the result silently."""

import datetime
import importlib.util
import os
import platform
import sysconfig
from pathlib import Path

from benchmarks.loops import LIBUV, LOOPS
from benchmarks.registry import WORKLOADS

# Variables that change the allocator.
MALLOC_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONMALLOC")


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def python_build():
    """The interpreter, and what of its build changes its speed."""
    threaded = " free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    debug = " debug" if sysconfig.get_config_var("Py_DEBUG") else ""
    # Debian profiles its interpreters by a way of its own, which configure does not know of.
    optimised = "with" if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "") else "without"
    version = f"{platform.python_implementation()} {platform.python_version()}{threaded}{debug}"
    return f"{version}, configured {optimised} --enable-optimizations"


def describe(loops):
    """Everything that is printed above the tables and saved with them, name to text."""
    malloc = [name for name in os.environ if name.startswith(MALLOC_SETTINGS)]
    versions = [name if name == LIBUV else f"{name} {LOOPS[name].version()}" for name in loops]
    return {
        "workloads": f"version {WORKLOADS}",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": python_build(),
        "loops": ", ".join(versions),
        "aiofastnet": "importable" if importlib.util.find_spec("aiofastnet") else "not importable",
        "malloc": f"changed by {', '.join(malloc)}" if malloc else f"default ({' '.join(platform.libc_ver())})",
        "cpu": f"{len(os.sched_getaffinity(0))} x {cpu_name()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "load at start": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }
