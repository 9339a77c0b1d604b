"""The event loops that can be compared, by name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

# How many times slower than usual the process runs (under valgrind). fastloop may leave out polls for some
# microseconds, in which it would get nothing done there.
SLOWDOWN = "BENCHMARKS_SLOWDOWN"
# Bare libuv in C in place of a loop: the limit for servers, only in the benchmarks of the repository.
LIBUV = "libuv-c"


@dataclass(frozen=True)
class Loop:
    """An event loop: the module and the function that make it, and whether aiofastnet replaces its network methods."""

    name: str
    module: str
    factory: str = "new_event_loop"
    is_patched: bool = False

    def new(self) -> asyncio.AbstractEventLoop:
        """A new event loop. Raises ImportError where a package is not installed."""
        loop: asyncio.AbstractEventLoop = getattr(importlib.import_module(self.module), self.factory)()
        if hasattr(loop, "_poll_interval_ns"):
            loop._poll_interval_ns *= int(os.environ.get(SLOWDOWN, "1"))
        return importlib.import_module("aiofastnet").patch_loop(loop) if self.is_patched else loop

    def version(self) -> str | None:
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


def find(name: str) -> Loop:
    """The loop of this name: one of LOOPS, or MODULE:FUNCTION, or a module that has new_event_loop().

    Raises KeyError for a name that means nothing.
    """
    if name in LOOPS:
        return LOOPS[name]
    module, _, factory = name.partition(":")
    if not factory and importlib.util.find_spec(module.partition(".")[0]) is None:
        raise KeyError(name)
    return Loop(name, module, factory or "new_event_loop")


def installed() -> list[str]:
    """Names of the known loops that can be imported, without those that aiofastnet patches."""
    return [name for name, loop in LOOPS.items() if not loop.is_patched and loop.version() is not None]
