"""``python -m fastloop info``: versions, platform, and what is enabled."""

import platform
import sys

import fastloop
from fastloop import _core, switches, tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Set


def main(arguments: list[str]) -> None:
    """Print the table. arguments must be empty: SystemExit with status 2 if not."""
    if arguments:
        sys.stderr.write("usage: python -m fastloop info\n")
        raise SystemExit(2)
    for name, value in facts():
        print(f"{name:10} {value}")


def facts() -> list[tuple[str, str]]:
    """Return the table as a list of pairs of strings: what, and its value. FASTLOOP_DISABLE is read."""
    return [
        ("fastloop", fastloop.__version__),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}, {_threading()})"),
        ("libuv", f"{fastloop.libuv_version} (built with {_core.libuv_compiled})"),
        ("platform", platform.platform()),
        ("TLS", _tls()),
        *_parts(switches.disabled()),
    ]


def _parts(disabled: "Set[str]") -> "Iterator[tuple[str, str]]":
    """Tell what is enabled, and of what is not, what serves in its place."""
    instead = {"loop": "asyncio's own loop", **switches.PARTS}
    if "all" in disabled:
        disabled = instead.keys()
    yield "enabled", ", ".join(part for part in instead if part not in disabled) or "nothing"
    for part in instead:
        if part in disabled:
            yield "disabled", f"{part} (FASTLOOP_DISABLE), instead: {instead[part]}"


def _tls() -> str:
    """Tell which OpenSSL there is, and why not if TLS cannot be native with it."""
    reason = tls.problem()
    version = "none" if tls.ssl is None else tls.ssl.OPENSSL_VERSION
    return version if reason is None else f"{version} (not native: {reason})"


def _threading() -> str:
    """Tell how threads run in this interpreter: builds without the GIL may still have it switched on."""
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    return "with the GIL" if is_enabled is None or is_enabled() else "free-threaded"
