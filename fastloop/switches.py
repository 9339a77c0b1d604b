"""FASTLOOP_DISABLE: switching fast paths off, for a user in trouble.

The environment variable holds names from PARTS, separated by commas, or ``all`` for the standard loop. It is read when
a loop is made; ``python -m fastloop info`` shows what is off.
"""

import os
import warnings

#: What can be switched off, and what serves in its place.
PARTS = {
    "tasks": "asyncio's own Task and Future",
    "contexts": "contexts that the C API enters, made anew for every task and callback",
    "pool": "concurrent.futures.ThreadPoolExecutor",
    "spin": "waits for short jobs, calls of threads and timers that block at once",
    "sockets": "asyncio's own datagram transport and sock_*() coroutines",
    "connect": "connecting to numeric addresses and Unix sockets through a Python socket",
    "servers": "asyncio.Server's own methods that count connections",
    "streams": "asyncio's own StreamReader and StreamReaderProtocol",
    "tls": "asyncio's own SSLProtocol",
}


def disabled() -> set[str]:
    """Return the set of parts that are switched off, ``{"all"}`` for everything; warns of names that mean nothing."""
    text = os.environ.get("FASTLOOP_DISABLE", "")
    names = {name.strip().lower() for name in text.split(",")} - {""}
    unknown = names - PARTS.keys() - {"all"}
    if unknown:
        known = ", ".join([*PARTS, "all"])
        warnings.warn(
            f"FASTLOOP_DISABLE: {', '.join(sorted(unknown))} is none of {known}", RuntimeWarning, stacklevel=2
        )
    return {"all"} if "all" in names else names & PARTS.keys()
