"""What is Unix's own: signals, child processes, Unix sockets, sock_*(), sendfile, TLS and datagram transports.

Much of it is the running Python's: functions of the standard selector loop that work on any loop with add_reader() and
its private kin, which the native core provides. Each line that borrows one is deliberate, so a name that a new Python
drops shows at import.
"""

import contextvars
import errno
import functools
import os
import selectors
import signal
import socket
import sys
import threading
import types
import warnings
from asyncio import base_events, constants, coroutines, selector_events, tasks, transports, unix_events
from asyncio.log import logger

from fastloop import _compat, _core, tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    import ssl
    from asyncio.base_subprocess import BaseSubprocessTransport
    from asyncio.sslproto import _SSLProtocolTransport
    from collections.abc import Callable, Mapping
    from typing import IO, Any, NoReturn, TypeVar, TypeVarTuple, Unpack

    from _typeshed import FileDescriptorLike, StrPath

    from fastloop.loop import Loop

    _P = TypeVar("_P", bound=asyncio.BaseProtocol)
    _Ts = TypeVarTuple("_Ts")
    _LoopBase = Loop
else:
    _LoopBase = object

# Any: most of what is borrowed is private, and has no stubs.
_Selector: "Any" = selector_events.BaseSelectorEventLoop
_Unix: "Any" = unix_events._UnixSelectorEventLoop
_Native: "Any" = _core.Loop
_Socket = socket.socket

# What the standard create_connection() and create_unix_connection() call: replaced on a loop, each must go on being
# called.
_CONNECT_HOOKS = frozenset(
    {
        "_connect_sock",
        "_create_connection_transport",
        "_ensure_resolved",
        "_make_socket_transport",
        "_sock_connect",
        "getaddrinfo",
        "sock_connect",
    }
)


def _ignore_signal(signum: int, frame: types.FrameType | None) -> None:
    """Stand in as Python's handler of a signal that the loop handles."""


@functools.cache
def _pidfd_works() -> bool:
    """Whether the kernel has pidfds, and no security policy forbids them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class SelectorView:
    """What `loop._selector` is here: shows what is watched, for the standard library's own transports.

    There is no selector to call select() on: the native core polls.
    """

    __slots__ = ("_loop",)

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop

    def get_key(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        """Return the selectors.SelectorKey of a watched descriptor. Raises KeyError when it is not watched."""
        state = self._loop._poll_state(fileobj)
        if state is None:
            raise KeyError(f"{fileobj!r} is not registered")
        events, reader, writer = state
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return selectors.SelectorKey(fileobj, fd, events, (reader, writer))

    def __getattr__(self, name: str) -> "NoReturn":
        raise AttributeError(f"fastloop polls with libuv and has no selector: loop._selector.{name} does not exist")


class DatagramTransport(
    _core.Datagram,
    selector_events._SelectorDatagramTransport,  # type: ignore[misc, name-defined]
    transports.DatagramTransport,
):
    """A transport of datagrams: the standard library's, with native sending and receiving.

    See asyncio.DatagramTransport for the methods.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            loop: Loop,
            sock: socket.socket,
            protocol: asyncio.DatagramProtocol,
            address: object = None,
            waiter: asyncio.Future[Any] | None = None,
            extra: dict[str, Any] | None = None,
        ) -> None: ...


class _Listening(_LoopBase):
    """What the running Python's _stop_serving() finds behind it."""

    def _stop_serving(self, sock: socket.socket) -> None:
        self._remove_reader(sock.fileno())
        sock.close()


def _with_super_of(owner: type, function: types.FunctionType) -> types.FunctionType:
    """Return a method of another class as one of `owner`, behind which its super() then begins."""
    closure = function.__closure__ and (types.CellType(owner),)
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)


class UnixMixin(_Listening):
    """The part of Loop that only Unix systems have."""

    def __init__(self) -> None:
        self._signal_handlers: dict[int, asyncio.Handle] = {}
        self._unix_server_sockets: dict[socket.socket, int] = {}
        self._child_watcher: Any = None
        self._children: dict[int, BaseSubprocessTransport] = {}
        super().__init__()

    # -- what borrowed functions read ------------------------------------------------------------------------------

    @property
    def _selector(self) -> SelectorView | None:
        # close() takes it away when what it watched is gone, whose repr() may ask it.
        return SelectorView(self) if self._internal_fds else None

    @property
    def _transports(self) -> "Mapping[int, Any]":
        """The standard library's own transports (datagram, pipes) by descriptor; ours are known to the core."""
        return self._foreign_transports()

    # -- sockets: the core has the methods; where it does not know how, the standard ones serve, which call these ------

    _sock_recv = _Selector._sock_recv
    _sock_recv_into = _Selector._sock_recv_into
    _sock_recvfrom = _Selector._sock_recvfrom
    _sock_recvfrom_into = _Selector._sock_recvfrom_into
    _sock_read_done = _Selector._sock_read_done
    _sock_sendall = _Selector._sock_sendall
    _sock_sendto = _Selector._sock_sendto
    _sock_connect = _Selector._sock_connect
    _sock_connect_cb = _Selector._sock_connect_cb
    _sock_write_done = _Selector._sock_write_done
    _sock_accept = _Selector._sock_accept

    # sock_sendfile() of the base class ends up in these.
    _sock_sendfile_native_impl = _Unix._sock_sendfile_native_impl
    _sock_sendfile_update_filepos = _Unix._sock_sendfile_update_filepos
    _sock_add_cancellation_callback = _Unix._sock_add_cancellation_callback

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: "IO[bytes]", offset: int, count: int | None
    ) -> int:
        sent: int = await _Unix._sock_sendfile_native(self, sock, file, offset, count)
        if sent:
            self._count_sent(sent)
        return sent

    # -- connections -----------------------------------------------------------------------------------------------

    async def create_connection(
        self, protocol_factory: "Callable[[], _P]", host: "Any" = None, port: "Any" = None, **options: "Any"
    ) -> "tuple[asyncio.Transport, _P]":
        """Connect to a TCP server; return (transport, protocol).

        Raises OSError, or ExceptionGroup with all_errors. See asyncio.loop.create_connection().
        """
        waiter: asyncio.Future[Any] | None
        connector: _core.Connector | None
        waiter = connector = None
        if not options and self._may_connect_natively():
            waiter = self.create_future()
            connector = self._start_connecting(waiter, host, port)
        if connector is None or waiter is None:
            return await super().create_connection(protocol_factory, host, port, **options)
        try:
            return await self._finish_connecting(protocol_factory, waiter, connector)
        finally:
            # An exception in the future refers to this frame.
            connector = waiter = None

    # inspect.signature() shows that of the running Python.
    create_connection.__wrapped__ = base_events.BaseEventLoop.create_connection  # type: ignore[attr-defined]

    async def create_unix_connection(
        self, protocol_factory: "Callable[[], _P]", path: "StrPath | None" = None, **options: "Any"
    ) -> "tuple[asyncio.Transport, _P]":
        """Connect to a Unix socket; return (transport, protocol).

        Raises OSError. See asyncio.loop.create_unix_connection().
        """
        waiter: asyncio.Future[Any] | None
        connector: _core.Connector | None
        waiter = connector = None
        if path is not None and not options and not self.is_closed() and self._may_connect_natively():
            path = os.fspath(path)
            waiter = self.create_future()
            connector = self._start_connecting(waiter, path)
        if connector is None or waiter is None:
            made: tuple[asyncio.Transport, _P]
            made = await _Unix.create_unix_connection(self, protocol_factory, path, **options)
            return made
        try:
            return await self._finish_connecting(protocol_factory, waiter, connector)
        finally:
            connector = waiter = None

    create_unix_connection.__wrapped__ = _Unix.create_unix_connection  # type: ignore[attr-defined]

    async def _finish_connecting(
        self, protocol_factory: "Callable[[], _P]", waiter: "asyncio.Future[Any]", connector: _core.Connector
    ) -> "tuple[asyncio.Transport, _P]":
        try:
            await waiter
            context = contextvars.copy_context() if _compat.CONNECTIONS_KEEP_THEIR_CONTEXT else None
            protocol = protocol_factory()
            made = self.create_future()
            transport = connector.make_transport(protocol, made, context)
        except BaseException:
            connector.close()
            raise
        finally:
            connector = waiter = None  # type: ignore[assignment]
        try:
            await made
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    def _may_connect_natively(self) -> bool:
        """Whether nobody wants to see how a connection is made: in debug mode, on this loop, in the socket module."""
        return (
            self._connects_natively
            and not self._debug
            and _CONNECT_HOOKS.isdisjoint(self.__dict__)
            and socket.socket is _Socket
            and "connect" not in _Socket.__dict__
            and "setblocking" not in _Socket.__dict__
        )

    create_unix_server = _Unix.create_unix_server

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: "asyncio.DatagramProtocol",
        address: object = None,
        waiter: "asyncio.Future[Any] | None" = None,
        extra: "dict[str, Any] | None" = None,
    ) -> transports.DatagramTransport:
        self._ensure_fd_no_transport(sock)
        return self._datagram_transport_class(self, sock, protocol, address, waiter, extra)

    _datagram_transport_class = DatagramTransport

    # Pipes are the standard library's transports, on the poller.
    _make_read_pipe_transport = _Unix._make_read_pipe_transport
    _make_write_pipe_transport = _Unix._make_write_pipe_transport

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: "asyncio.BaseProtocol",
        sslcontext: "ssl.SSLContext | None",
        waiter: "asyncio.Future[Any] | None" = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: "dict[str, Any] | None" = None,
        server: "asyncio.AbstractServer | None" = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: "contextvars.Context | None" = None,
    ) -> "_SSLProtocolTransport":
        self._ensure_fd_no_transport(rawsock)
        ssl_protocol = tls.make_protocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        # Not what a subclass has made of it: the standard one makes the transport below TLS itself.
        _Native._make_socket_transport(self, rawsock, ssl_protocol, extra=extra, server=server, context=context)
        return ssl_protocol._app_transport

    start_tls = tls.with_our_protocol(base_events.BaseEventLoop.start_tls)

    async def _sendfile_native(
        self, transport: _core.SocketTransport, file: "IO[bytes]", offset: int, count: int | None
    ) -> int:
        if not isinstance(transport, _core.SocketTransport):
            # The standard library's, for a wrong thread.
            standard_sent: int = await _Selector._sendfile_native(self, transport, file, offset, count)
            return standard_sent
        # Raises when another sendfile() is under way, which must keep its waiter.
        waiter = transport._make_empty_waiter()
        # Lent to sock_sendfile(), the descriptor may be given to add_writer().
        transport._lend_fd(True)
        resume_reading = transport.is_reading()
        transport.pause_reading()
        try:
            await waiter
            return await self.sock_sendfile(transport._sock, file, offset, count, fallback=False)
        finally:
            transport._reset_empty_waiter()
            transport._lend_fd(False)
            if resume_reading:
                transport.resume_reading()

    # -- servers ---------------------------------------------------------------------------------------------------

    _accept_connection2 = _Selector._accept_connection2

    def _accept_by_task(
        self,
        conn: socket.socket,
        peername: object,
        protocol_factory: "Callable[[], asyncio.BaseProtocol]",
        sslcontext: "ssl.SSLContext | None",
        server: "asyncio.AbstractServer",
        timeouts: tuple[float | None, ...],
        context: "contextvars.Context | None",
    ) -> None:
        """Make a connection as the standard loop does; the core calls this where it has no way of its own."""
        conn.setblocking(False)
        if self._debug:
            logger.debug("%r got a new connection from %r: %r", server, peername, conn)
        # Only Pythons whose servers have a context pass one, and their coroutine takes it.
        # The given one is entered right now, and an eager task enters its own at once.
        keywords: dict[str, Any] = {} if context is None else {"context": context.copy()}
        accept = self._accept_connection2(
            protocol_factory, conn, {"peername": peername}, sslcontext, server, *timeouts, **keywords
        )
        self.create_task(accept, **keywords)

    # -- child processes -------------------------------------------------------------------------------------------

    _child_watcher_callback = _Unix._child_watcher_callback

    async def _make_subprocess_transport(
        self,
        protocol: "asyncio.SubprocessProtocol",
        args: "Any",
        shell: bool,
        stdin: "int | IO[Any] | None",
        stdout: "int | IO[Any] | None",
        stderr: "int | IO[Any] | None",
        bufsize: int,
        extra: "dict[str, Any] | None" = None,
        **kwargs: "Any",
    ) -> "BaseSubprocessTransport":
        transport: BaseSubprocessTransport
        if _compat.has_own_child_watcher():
            # It has asked for each child, and may wait for all of them itself.
            transport = await _Unix._make_subprocess_transport(
                self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
            )
            return transport
        waiter = self.create_future()
        transport = unix_events._UnixSubprocessTransport(  # type: ignore[attr-defined]
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        self._watch_child(transport)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await tasks.shield(transport._wait())
            raise
        return transport

    def _watch_child(self, transport: "BaseSubprocessTransport") -> None:
        """Have the end of a child reported to its transport: by a pidfd, or a thread where there are none."""
        pid: Any = transport.get_pid()
        if _pidfd_works():
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = transport
            self._add_reader(pidfd, self._reap_child, pidfd, pid)
        else:
            if self._child_watcher is None:
                self._child_watcher = _compat.ThreadedChildWatcher()
            self._child_watcher.add_child_handler(pid, self._child_watcher_callback, transport)

    def _reap_child(self, pidfd: int, pid: int) -> None:
        transport = self._children.pop(pidfd)
        self._remove_reader(pidfd)
        os.close(pidfd)
        try:
            _, status = os.waitpid(pid, 0)
            returncode: int | None = unix_events.waitstatus_to_exitcode(status)  # type: ignore[attr-defined]
        except ChildProcessError:
            # Popen.poll() may have been quicker, and then it knows.
            returncode = transport._proc.returncode if transport._proc is not None else None
            if returncode is None:
                returncode = 255
                logger.warning("child process pid %d exit status already read:  will report returncode 255", pid)
        self._child_watcher_callback(pid, returncode, transport)

    def _forget_children(self) -> None:
        """Close what watches children that outlive the loop."""
        for pidfd in self._children:
            self._remove_reader(pidfd)
            os.close(pidfd)
        self._children.clear()

    # -- signals ---------------------------------------------------------------------------------------------------

    def _start_signal_wakeup(self) -> None:
        """Have signals end a poll, for one run of the loop; only the main thread is told of signals."""
        if threading.get_ident() == threading.main_thread().ident:
            try:
                self._install_wakeup_fd()
            except ValueError:
                # The main thread of a subinterpreter: Python tells it of no signals.
                pass

    def _stop_signal_wakeup(self) -> None:
        self._uninstall_wakeup_fd()

    def add_signal_handler(self, sig: int, callback: "Callable[[Unpack[_Ts]], object]", *args: "Unpack[_Ts]") -> None:
        """Call callback(*args) in the loop when the signal `sig` arrives.

        Raises TypeError for a coroutine function, ValueError for a number that is no signal, RuntimeError for a signal
        that cannot be caught and outside the main thread. See asyncio.loop.add_signal_handler().
        """
        if coroutines.iscoroutine(callback) or _compat.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        handle = self._make_handle(callback, args)
        try:
            self._install_wakeup_fd()
        except ValueError as exc:
            # Not the main thread, which alone handles signals.
            raise RuntimeError(str(exc))  # noqa: B904 (the standard one chains it the same way)
        self._keep_wakeup_fd(True)
        self._signal_handlers[sig] = handle
        try:
            # Python then writes the number of the signal to the wake-up descriptor.
            signal.signal(sig, _ignore_signal)
            # Fewer system calls are interrupted.
            signal.siginterrupt(sig, False)
        except OSError as exc:
            del self._signal_handlers[sig]
            self._keep_wakeup_fd(bool(self._signal_handlers))
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught")  # noqa: B904 (likewise)
            raise

    def _handle_signal(self, sig: int) -> None:
        """Queue the handler of a signal; the core calls this."""
        handle = self._signal_handlers.get(sig)
        if handle is None:
            return
        if handle._cancelled:
            self.remove_signal_handler(sig)
        else:
            self._add_callback_signalsafe(handle)

    def remove_signal_handler(self, sig: int) -> bool:
        """Handle a signal no longer; True if there was a handler.

        Raises as add_signal_handler() does. See asyncio.loop.remove_signal_handler().
        """
        self._check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        try:
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught")  # noqa: B904 (likewise)
            raise
        if not self._signal_handlers:
            self._keep_wakeup_fd(False)
        return True

    # The standard ones have no types that inspect.signature() would show.
    add_signal_handler.__wrapped__ = _Unix.add_signal_handler  # type: ignore[attr-defined]
    remove_signal_handler.__wrapped__ = _Unix.remove_signal_handler  # type: ignore[attr-defined]

    _check_signal = _Unix._check_signal

    def _remove_all_signal_handlers(self) -> None:
        """For close(): give every signal back, and watch children no longer."""
        self._forget_children()
        # A loop may outlive the names of this module when the interpreter ends (seen without a GIL).
        if sys is not None and not sys.is_finalizing():
            for sig in list(self._signal_handlers):
                self.remove_signal_handler(sig)
        elif self._signal_handlers:
            if warnings is not None:
                warnings.warn(
                    f"Closing the loop {self!r} on interpreter shutdown stage, skipping signal handlers removal",
                    ResourceWarning,
                    source=self,
                )
            self._signal_handlers.clear()


# The file of a Unix socket is removed by that code itself: tools that look for blocking calls know it by its place.
UnixMixin._stop_serving = _with_super_of(UnixMixin, _Unix._stop_serving)  # type: ignore[method-assign]
