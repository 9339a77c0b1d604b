"""The event loop: the native core, joined with what asyncio.BaseEventLoop does once per connection or per loop."""

import _socket
import asyncio
import os
import socket
import sys
import threading
from asyncio import base_events, events, format_helpers, selector_events
from asyncio.log import logger

from fastloop import _compat, _core, _fork, _nested, switches
from fastloop.unix import UnixMixin


class Loop(_core.Loop, UnixMixin, base_events.BaseEventLoop):
    """An asyncio event loop on libuv.

    Scheduling, timers, polling and transports are native. What runs once per connection or once per loop comes from
    asyncio.BaseEventLoop of the running Python, so that it behaves as that version does.

    See asyncio.AbstractEventLoop for the methods, https://docs.python.org/3/library/asyncio-eventloop.html.
    """

    # What the constructors set, of all versions. While the instance has no dict, the interpreter remembers where it
    # found a method of the loop; with one, each `loop.call_soon` is a search through the classes.
    __slots__ = (
        "_asyncgens",
        "_asyncgens_shutdown_called",
        "_child_watcher",
        "_children",
        "_connects_natively",
        "_coroutine_origin_tracking_enabled",
        "_coroutine_origin_tracking_saved_depth",
        "_default_executor",
        "_exception_handler",
        "_executor_shutdown_called",
        "_internal_fds",
        "_metrics_server",
        "_old_agen_hooks",
        "_signal_handlers",
        "_slow_hook",
        "_timer_cancelled_count",
        "_unix_server_sockets",
        "_use_native_tls",
        "slow_callback_duration",
    )

    def __init__(self):
        """Make a loop, which close() must end. FASTLOOP_DISABLE is read now, see fastloop.switches."""
        # Before anything that may fail: __del__() closes the loop then.
        self._slow_hook = self._metrics_server = None
        super().__init__()
        # As many as the standard loop says to have, for those that count its descriptors.
        self._internal_fds = 1
        _fork.keep_standard_streams_free()
        disabled = switches.disabled()
        if "tasks" in disabled:
            self._use_native_tasks = False
        if "pool" in disabled:
            self._use_native_pool = False
        if "spin" in disabled:
            self._may_spin = False
        if "sockets" in disabled:
            self._set_native_sockets(False)
            self._datagram_transport_class = selector_events._SelectorDatagramTransport
        self._connects_natively = type(self) is Loop and "connect" not in disabled
        if type(self) is not Loop and not self._keeps(_SOCKETS):
            self._set_native_sockets(False)
        if "contexts" in disabled:
            self._knows_contexts = False
        if "servers" in disabled:
            self._set_native_servers(False)
        if "streams" in disabled:
            self._use_native_streams = False
        self._use_native_tls = "tls" not in disabled
        wish = os.environ.get("FASTLOOP_METRICS")
        if wish:
            from fastloop import observe

            observe.start(self, wish)

    def _keeps(self, names):
        """Whether it has these methods as they are here: neither a subclass, a patch nor the instance has its own."""
        return all(getattr(self, name) == _METHODS[name].__get__(self) for name in names)

    def _accepts_natively(self):
        """Whether connections are left to the core, which asks when a server starts."""
        return self._keeps(_ACCEPTING)

    def run_forever(self):
        """Run until stop() is called.

        Raises RuntimeError when the loop is closed, when it runs already, or when another loop runs in this thread.
        See asyncio.loop.run_forever().
        """
        if _nested.allowed():
            self._check_closed()
            _nested.run_forever(self)
            return
        hooks = sys.get_asyncgen_hooks()
        self._run_forever_setup()
        try:
            self._run_turns()
        finally:
            # A signal handler may raise where a function of Python begins, and so in place of the clean-up: first what
            # the next run does not mend.
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            self._run_forever_cleanup()

    def run_until_complete(self, future):
        """Run until the future, or the task that is made of a coroutine, is done; return its result.

        Raises as run_forever() does. See asyncio.loop.run_until_complete().
        """
        if _nested.allowed():
            return _nested.run_until_complete(self, future)
        return super().run_until_complete(future)

    def _run_once(self):
        """Run one turn, for those that drive the loop themselves: a signal ends its wait outside a run, too."""
        if self.is_running():
            super()._run_once()
            return
        self._check_closed()
        self._start_signal_wakeup()
        try:
            super()._run_once()
        finally:
            self._stop_signal_wakeup()

    #: nest_asyncio then leaves the methods of this class alone, and nested runs are ours.
    _nest_patched = True

    def _check_running(self):
        if not _nested.allowed():
            super()._check_running()

    def _run_forever_setup(self):
        self._check_closed()
        self._check_running()
        self._old_agen_hooks = None
        try:
            self._set_coroutine_origin_tracking(self._debug)
            self._old_agen_hooks = sys.get_asyncgen_hooks()
            self._note_replaced_methods()
            self._start_signal_wakeup()
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook)
            events._set_running_loop(self)
        except BaseException:
            # No memory, or Ctrl-C: it must not pass for running for ever.
            self._run_forever_cleanup()
            raise

    def _run_forever_cleanup(self):
        self._stopping = False
        self._thread_id = None
        events._set_running_loop(None)
        self._stop_signal_wakeup()
        self._set_coroutine_origin_tracking(False)
        if self._old_agen_hooks is not None:
            sys.set_asyncgen_hooks(*self._old_agen_hooks)
            self._old_agen_hooks = None

    def close(self):
        """Close the loop: drop what is scheduled, close its handles, shut the default executor down without waiting.

        Raises RuntimeError while the loop runs; closing twice does nothing. See asyncio.loop.close().
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._debug:
            logger.debug("Close %r", self)
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._remove_all_signal_handlers()
        try:
            self._close_core()
        finally:
            self._internal_fds = 0
            self._executor_shutdown_called = True
            executor = self._default_executor
            if executor is not None:
                self._default_executor = None
                executor.shutdown(wait=False)

    # -- observability ---------------------------------------------------------------------------------------------

    def metrics(self):
        """Return what the loop does and has done, as a dict of numbers; docs/observability.md explains each.

        Any thread may call it, also after close(). What needs a look at the clock is None until set_metrics(True).
        """
        from fastloop import observe

        return observe.read(self)

    def set_slow_callback_hook(self, hook, seconds=0.1):
        """Have hook(fastloop.observe.SlowCallback) called after each callback or task step that took that long.

        hook None takes it away. Raises TypeError for what cannot be called, ValueError for a negative time or a NaN.
        What the hook raises goes to the exception handler.
        """
        if hook is not None and not callable(hook):
            raise TypeError(f"a callable or None is required, not {hook!r}")
        if not seconds >= 0:
            raise ValueError(f"seconds must not be negative: {seconds!r}")
        self._slow_hook = hook
        self._set_slow_seconds(None if hook is None else seconds)

    # -- names -----------------------------------------------------------------------------------------------------

    async def getaddrinfo(self, host, port, *, family=0, type=0, proto=0, flags=0):
        """socket.getaddrinfo() in a thread of the default executor; a numeric address needs none.

        See asyncio.loop.getaddrinfo().
        """
        if self._resolves_by_default():
            question = host, port, family, type, proto, flags
            answer = self._answer_numeric(*question)
            if answer is None and _looks_numeric(host, port, flags):
                answer = self._ask_numeric(*question)
            if answer is not None:
                return answer
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)

    def _ask_numeric(self, host, port, family, type, proto, flags):
        """Return the system's own answer to the same question, so that it never asks anybody; None for a name."""
        try:
            answer = socket.getaddrinfo(host, port, family, type, proto, flags | int(socket.AI_NUMERICHOST))
        except socket.gaierror:
            # Not numeric, or an error of whose text only the question itself can be sure.
            return None
        self._keep_answer(answer, host, port, family, type, proto, flags)
        return answer

    def _resolves_by_default(self):
        """Whether getaddrinfo() would come to socket.getaddrinfo(), and nobody could tell in which thread."""
        return (
            self._use_native_pool
            and not self._debug
            and not self.is_closed()
            and not self._executor_shutdown_called
            and self.run_in_executor == _RUN_IN_EXECUTOR.__get__(self)
            and self.call_soon_threadsafe == _CALL_SOON_THREADSAFE.__get__(self)
            and getattr(socket.getaddrinfo, "__globals__", None) is vars(socket)
            and _socket.getaddrinfo is _GETADDRINFO
        )

    # -- called by the native core ---------------------------------------------------------------------------------

    def _extract_stack(self):
        """Where the Python code stands that called into the core: the source traceback of debug mode."""
        return format_helpers.extract_stack(sys._getframe(1))

    def _call_soon(self, callback, args, context):
        """Queue a handle without the checks of call_soon(); for subclasses that call it."""
        handle = self._make_handle(callback, args, context)
        self._add_callback(handle)
        return handle

    def _call_replaced_call_at(self, when, callback_and_args, context):
        """call_later() where call_at() is no longer the native one: what the standard call_later() does."""
        timer = self.call_at(when, *callback_and_args, context=context)
        if timer._source_traceback:
            del timer._source_traceback[-1]
        return timer

    def _report_handle_error(self, handle, exc):
        """Report what a callback raised, with the context that asyncio.Handle gives."""
        callback = _compat.format_callback_source(self, handle._callback, handle._args)
        context = {
            "message": f"Exception in callback {callback}",
            "exception": exc,
            "handle": handle,
        }
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def _report_slow_callback(self, ran, seconds):
        """Debug mode: log a handle or a task step that took `seconds`, if that is slow."""
        if seconds >= self.slow_callback_duration:
            text = base_events._format_handle(ran) if isinstance(ran, events.Handle) else repr(ran)
            logger.warning("Executing %s took %.3f seconds", text, seconds)

    def _call_slow_hook(self, ran, seconds):
        """Tell the hook of set_slow_callback_hook() about a handle, a task's step or a transport."""
        hook = self._slow_hook
        if hook is None:
            return
        from fastloop import observe

        try:
            hook(observe.SlowCallback(ran, seconds))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.call_exception_handler({"message": "Exception in the slow-callback hook", "exception": exc})


Loop._own_methods()

# What the standard loop calls for a connection that it accepts, in sock_*() and, at the end, in getaddrinfo(), and the
# fast paths do not.
_ACCEPTING = ("_accept_connection2", "_make_socket_transport", "create_task")
_SOCKETS = (
    "_add_reader",
    "_add_writer",
    "_ensure_fd_no_transport",
    "_ensure_resolved",
    "_sock_accept",
    "_sock_connect",
    "_sock_connect_cb",
    "_sock_read_done",
    "_sock_recv",
    "_sock_recv_into",
    "_sock_recvfrom",
    "_sock_recvfrom_into",
    "_sock_sendall",
    "_sock_sendto",
    "_sock_write_done",
    "remove_reader",
    "remove_writer",
)
_GETADDRINFO = _socket.getaddrinfo
_METHODS = {name: getattr(Loop, name) for name in (*_ACCEPTING, *_SOCKETS)}
_CALL_SOON_THREADSAFE, _RUN_IN_EXECUTOR = Loop.call_soon_threadsafe, Loop.run_in_executor


def _looks_numeric(host, port, flags):
    """Whether getaddrinfo() may find that the host is an address, and need not look the port up."""
    if not (port is None or isinstance(port, int)) or not isinstance(flags, int):
        return False
    if isinstance(host, str):
        return host[:1].isdigit() or ":" in host
    return isinstance(host, bytes) and (host[:1].isdigit() or b":" in host)


def new_event_loop():
    """Return a new fastloop.Loop; the loop_factory for asyncio.run() and asyncio.Runner.

    With FASTLOOP_DISABLE=all in the environment it is the standard loop.
    """
    return asyncio.SelectorEventLoop() if "all" in switches.disabled() else Loop()
