"""TLS: asyncio's SSLProtocol of the running Python, with a native data path.

Handshake, time-outs, errors, shutdown and what a transport tells about its connection are the standard library's. Once
the handshake is done, `_core.TLSConnection` moves the bytes between the socket transport, OpenSSL and the protocol.
"""

import functools
import operator
import threading
import types
from asyncio import sslproto

from fastloop import _compat, _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import events, protocols
    from collections.abc import Callable, Iterable
    from typing import Any, ParamSpec, TypeVar

    from fastloop.loop import Loop

    _P = ParamSpec("_P")
    _R = TypeVar("_R")

try:
    import _ssl
    import ssl as ssl
except ImportError:  # pragma: no cover
    # A Python without it; asyncio says so when TLS is asked for.
    _ssl = ssl = None  # type: ignore[assignment]


def _write_after_close(data: "bytes | bytearray | memoryview[Any]") -> None:
    """Do what write() of asyncio's transport does when it has let go of its connection."""
    sslproto._SSLProtocolTransport.write(types.SimpleNamespace(_ssl_protocol=None), data)  # type: ignore[arg-type]


class _SSLProtocolTransport(sslproto._SSLProtocolTransport):
    # In place of a method: each transport has the bound one of its connection.
    __slots__ = ("write",)
    __module__ = sslproto._SSLProtocolTransport.__module__

    if TYPE_CHECKING:
        write: Callable[[bytes | bytearray | memoryview[Any]], None]  # type: ignore[assignment]

    def __init__(self, loop: "events.AbstractEventLoop", ssl_protocol: "SSLProtocol") -> None:
        super().__init__(loop, ssl_protocol)
        self.write = ssl_protocol._write

    def close(self) -> None:
        """Close the connection when what was written is sent. See asyncio.BaseTransport.close()."""
        super().close()
        if self._ssl_protocol is None:
            # Closed for the second time.
            self.write = _write_after_close


class SSLProtocol(_core.TLSConnection, sslproto.SSLProtocol):
    """asyncio's SSLProtocol of one connection, on the native data path as long as nothing unusual happens."""

    if TYPE_CHECKING:
        _incoming: ssl.MemoryBIO
        _outgoing: ssl.MemoryBIO
        _app_transport_created: bool

    def __init__(self, *args: "Any", **kwargs: "Any") -> None:
        """Take what asyncio's SSLProtocol takes."""
        # A socket transport of ours reads into a buffer of the loop. For another one, get_buffer() makes one.
        self.max_size = 0  # type: ignore[misc]
        super().__init__(*args, **kwargs)
        del self.max_size
        if type(self._sslobj) is ssl.SSLObject:
            self._bind(self._sslobj._sslobj, self._incoming, self._outgoing)  # type: ignore[attr-defined]

    def _get_app_transport(self) -> sslproto._SSLProtocolTransport:
        if self._app_transport is None:
            if self._app_transport_created:
                raise RuntimeError("Creating _SSLProtocolTransport twice")
            self._app_transport = _SSLProtocolTransport(self._loop, self)
            self._app_transport_created = True
        return self._app_transport

    def _get_extra_info(self, name: str, default: "Any" = None) -> "Any":
        if name == "ssl_object":
            self._expose()
        return super()._get_extra_info(name, default)


def _is_home(home: "Any") -> bool:
    """Whether this thread may do what is done for a connection of the loop; with None, any may."""
    return getattr(home, "_thread_id", None) in (None, threading.get_ident())


def _home_of(connection: sslproto.SSLProtocol) -> "Any":
    return getattr(connection._transport, "_loop", None) or connection._loop


def _in_home_thread(name: str) -> "Callable[..., None]":
    """Return a method of SSLProtocol that a wrong thread leaves to the one that runs the loop of its transport."""
    method = getattr(sslproto.SSLProtocol, name)

    @functools.wraps(method)
    def call(self: sslproto.SSLProtocol, *args: "Any") -> None:
        home = _home_of(self)
        if _is_home(home):
            method(self, *args)
        else:
            home.call_soon_threadsafe(call, self, *args)

    return call


class _GuardedSSLProtocol(sslproto.SSLProtocol):
    """asyncio's SSLProtocol for a Python without a GIL, where _ssl crashes when two threads are in one connection."""

    __qualname__ = "SSLProtocol"
    __module__ = sslproto.SSLProtocol.__module__

    _start_handshake = _in_home_thread("_start_handshake")
    _do_handshake = _in_home_thread("_do_handshake")
    _start_shutdown = _in_home_thread("_start_shutdown")
    _do_flush = _in_home_thread("_do_flush")
    _do_shutdown = _in_home_thread("_do_shutdown")
    _do_read = _in_home_thread("_do_read")
    _do_write = _in_home_thread("_do_write")
    _write_pieces = _in_home_thread("_write_appdata")

    def _write_appdata(self, list_of_data: "Iterable[bytes | bytearray | memoryview[Any]]") -> None:
        if not _is_home(_home_of(self)):
            # Whose iterable it is, runs it, and may change what is in it as soon as this returns.
            list_of_data = [bytes(data) if isinstance(data, bytearray | memoryview) else data for data in list_of_data]
        self._write_pieces(list_of_data)


@functools.cache
def problem() -> str | None:
    """Return why TLS cannot be native in this Python, None if it can."""
    if ssl is None:
        return "this Python has no ssl"
    # Others answer to the same names, with "OpenSSL 1.1.1 (compatible; ...)" among them, but not in the same way.
    if not ssl.OPENSSL_VERSION.startswith("OpenSSL ") or "compatible" in ssl.OPENSSL_VERSION:
        return f"it is made for OpenSSL, not for {ssl.OPENSSL_VERSION}"

    def make() -> "tuple[ssl.MemoryBIO, ssl.MemoryBIO, object]":
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(incoming, outgoing, server_side=True)
        return incoming, outgoing, sslobject._sslobj  # type: ignore[attr-defined]

    try:
        _core.TLSConnection._find_openssl(getattr(_ssl, "__file__", ""), make)
    except Exception as exc:
        return str(exc) or repr(exc)
    return None


def _finder(kind: object, *names: str) -> "Callable[[], Any]":
    """Return a function without arguments that looks up those of the names that there are; it is called often."""
    return functools.partial(operator.attrgetter(*(name for name in names if hasattr(kind, name))), kind)


#: What the native data path stands in for. A program that has replaced any of it has its own called.
_ORIGINALS = [
    (find, find())
    for find in (
        _finder(sslproto, "SSLProtocol", "_SSLProtocolTransport"),
        _finder(sslproto._SSLProtocolTransport, "write", "writelines"),
        _finder(
            sslproto.SSLProtocol,
            *("buffer_updated", "_do_read", "_do_read__copied", "_do_read__buffered", "_write_appdata", "_do_write"),
            *("_process_outgoing", "_control_app_writing", "_control_ssl_reading", "_do_handshake"),
        ),
    )
]
if ssl is not None:
    _find_sslobject = _finder(ssl.SSLObject, "read", "write", "do_handshake")
    _ORIGINALS.append((_find_sslobject, _find_sslobject()))


def _is_original() -> bool:
    """Whether asyncio's own classes are as they were when this module was imported."""
    for find, original in _ORIGINALS:
        if find() != original:
            return False
    return True


def _is_plain(context: "ssl.SSLContext | None") -> bool:
    """Whether Python has no part in what a context does to the bytes of a connection."""
    return not context or (
        type(context) is ssl.SSLContext
        and context.sslobject_class is ssl.SSLObject
        and getattr(context, "keylog_filename", None) is None
        and context._msg_callback is None  # type: ignore[attr-defined]
    )


def make_protocol(
    loop: "Loop",
    app_protocol: "protocols.BaseProtocol",
    sslcontext: "ssl.SSLContext | None",
    *args: "Any",
    **kwargs: "Any",
) -> sslproto.SSLProtocol:
    """Return an SSLProtocol, native where that is possible and not switched off."""
    kind = sslproto.SSLProtocol
    if _compat.FREE_THREADED:
        if _is_original():
            kind = _GuardedSSLProtocol
    elif loop._use_native_tls and problem() is None and _is_plain(sslcontext) and _is_original():
        kind = SSLProtocol
    return kind(loop, app_protocol, sslcontext, *args, **kwargs)  # type: ignore[arg-type]


def with_our_protocol(function: "Callable[_P, _R]") -> "Callable[_P, _R]":
    """Return a function of asyncio's that finds make_protocol() where it looks for sslproto.SSLProtocol."""
    names = dict(function.__globals__, sslproto=types.SimpleNamespace(SSLProtocol=make_protocol))
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(made, function)
