"""Every difference between Python versions that the Python side of fastloop knows, by the name of a capability."""

import asyncio
import io
import sys
from asyncio import base_events, coroutines, events, format_helpers, unix_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: asyncio.run() takes loop_factory, and Server.wait_closed() waits.
HAS_LOOP_FACTORY = sys.version_info >= (3, 12)

#: asyncio.Server._attach() and _detach() take the transport.
SERVER_ATTACH_TAKES_TRANSPORT = sys.version_info >= (3, 13)

#: Threads run at the same time.
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()

#: All callbacks of a connection that is made run in one copy of the context of that moment (3.15).
CONNECTIONS_KEEP_THEIR_CONTEXT = (
    "context" in base_events.BaseEventLoop._create_connection_transport.__code__.co_varnames  # type: ignore[attr-defined]
)

#: Event loop policies still exist; from 3.14 on their public names warn that they will go.
HAS_POLICIES = hasattr(events, "_BaseDefaultEventLoopPolicy") or hasattr(events, "BaseDefaultEventLoopPolicy")

if HAS_POLICIES:
    DefaultEventLoopPolicy = (
        unix_events.__dict__.get("_DefaultEventLoopPolicy") or unix_events.DefaultEventLoopPolicy  # type: ignore[attr-defined, unused-ignore]
    )
    # The deprecated public functions wrap these.
    get_event_loop_policy = getattr(events, "_get_event_loop_policy", None) or asyncio.get_event_loop_policy
    set_event_loop_policy = getattr(events, "_set_event_loop_policy", None) or asyncio.set_event_loop_policy


_SOURCE_TAKES_DEBUG = "debug" in (format_helpers._format_callback_source.__kwdefaults__ or {})


def format_callback_source(loop: asyncio.AbstractEventLoop, callback: object, args: "Iterable[object]") -> str:
    """How the running asyncio writes a callback in a message: newer ones show the arguments in debug mode only."""
    if _SOURCE_TAKES_DEBUG:
        return format_helpers._format_callback_source(callback, args, debug=loop.get_debug())  # type: ignore[call-arg, unused-ignore]
    return format_helpers._format_callback_source(callback, args)


#: Waits for a child in a thread, where the system has no pidfd; private since 3.14.
ThreadedChildWatcher = (
    unix_events.__dict__.get("_ThreadedChildWatcher") or unix_events.ThreadedChildWatcher  # type: ignore[attr-defined, unused-ignore]
)

_WATCHERS_OF_ASYNCIO = tuple(
    vars(unix_events)[name] for name in ("ThreadedChildWatcher", "PidfdChildWatcher") if name in vars(unix_events)
)

#: What a policy of asyncio itself has as get_child_watcher(), up to 3.13; None for one that has nothing of the kind.
_GETTERS_OF_WATCHERS = (
    (None, events.AbstractEventLoopPolicy.get_child_watcher, DefaultEventLoopPolicy.get_child_watcher)
    if hasattr(events, "AbstractEventLoopPolicy")
    else ()
)


def has_own_child_watcher() -> bool:
    """Whether the program has a child watcher that is none of those which asyncio takes by itself (up to 3.13)."""
    if not _GETTERS_OF_WATCHERS:
        return False
    policy = get_event_loop_policy()
    if getattr(type(policy), "get_child_watcher", None) not in _GETTERS_OF_WATCHERS:
        return True
    watcher = getattr(policy, "_watcher", None)
    return watcher is not None and type(watcher) not in _WATCHERS_OF_ASYNCIO


#: The public one warns since 3.14.
iscoroutinefunction = getattr(coroutines, "_iscoroutinefunction", None) or coroutines.iscoroutinefunction


def format_task(task: "asyncio.Task[Any]") -> str:
    """Where a task stands and, where asyncio keeps account of that, who awaits it; text of several lines."""
    if hasattr(asyncio, "format_call_graph"):
        graph: str = asyncio.format_call_graph(task)
        return graph
    text = io.StringIO()
    task.print_stack(file=text)
    return text.getvalue()
