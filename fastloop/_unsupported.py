"""Why fastloop cannot be imported here, and what to do about it.

Imported only when the import of the extension module has failed, perhaps by a Python that is too old for the rest of
this package.
"""

import platform
import sys
import sysconfig
from pathlib import Path

_LIBUV = (
    "install one (Debian, Ubuntu: apt-get install libuv1-dev; Fedora: dnf install libuv; Alpine: apk add libuv; "
    "macOS: brew install libuv), or install a wheel of fastloop, which carries its own"
)
_BUILD = "in the folder of its source: python -m pip install ."


def explain(error: ImportError) -> str:
    """Return what to tell the user of the ImportError of fastloop._core."""
    reason = str(error)
    version = platform.python_version()
    if sys.platform == "win32":
        return "fastloop runs on Linux and macOS, not on Windows: use asyncio's own loop there, or WSL"
    if sys.implementation.name != "cpython":
        name = platform.python_implementation()
        return f"fastloop is an extension of CPython, and this is {name}: use asyncio's own loop"
    if tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11):
        return f"fastloop needs Python 3.11 or later, and this is {version}"
    if "libuv.so" in reason or "libuv.1.dylib" in reason:
        return f"fastloop does not find the library libuv ({reason}): {_LIBUV}"
    if reason.startswith("libuv "):
        return f"the library libuv is too old for fastloop ({reason}): {_LIBUV}"
    if "symbol" in reason and "uv_" in reason:
        return (
            f"the library libuv is older than the one that fastloop was built with ({reason}): build it again, {_BUILD}"
        )
    built = sorted(path.name for path in Path(__file__).parent.glob("_core.*.so"))
    if "fastloop._core" in reason:
        wanted = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
        found = f"there is only {', '.join(built)}" if built else "nothing has been built"
        return f"fastloop is not built for this Python {version} ({wanted} is missing, {found}); build it {_BUILD}"
    return f"fastloop's extension module cannot be loaded: {reason}"
