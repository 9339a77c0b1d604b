"""The event loops that can be compared, by name."""

import importlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass

# How many times slower than usual the process runs (under valgrind). fastloop may leave out polls for some
# microseconds, in which it would get nothing done there.
SLOWDOWN = "BENCHMARKS_SLOWDOWN"
# Bare libuv (native/echo) in place of a loop: the limit for servers. It takes part in no other case.
LIBUV = "libuv-c"


@dataclass(frozen=True)
class Loop:
    """An event loop: the module that makes it, and whether aiofastnet replaces its network methods."""

    name: str
    module: str
    is_patched: bool = False

    def new(self):
        """A new event loop. Raises ImportError where a package is not installed."""
        loop = importlib.import_module(self.module).new_event_loop()
        if hasattr(loop, "_poll_interval_ns"):
            loop._poll_interval_ns *= int(os.environ.get(SLOWDOWN, "1"))
        return importlib.import_module("aiofastnet").patch_loop(loop) if self.is_patched else loop

    def version(self):
        """Its version, or None where it cannot be imported."""
        if self.module == "asyncio":
            return sys.version.split()[0]
        try:
            version = getattr(importlib.import_module(self.module), "__version__", None)
            return version or importlib.metadata.version(self.module)
        except ImportError:
            return None


MODULES = ("fastloop", "asyncio", "uvloop", "rloop", "zuvloop", "rsloop")
LOOPS = {name: Loop(name, name) for name in MODULES}
LOOPS |= {f"{name}+aiofastnet": Loop(f"{name}+aiofastnet", name, is_patched=True) for name in MODULES}
