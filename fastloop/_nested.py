"""Runs inside runs, for programs that use nest_asyncio: it asks for them by marking the asyncio module."""

import asyncio
import contextlib
from asyncio import events, tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from typing import TypeVar

    from fastloop.loop import Loop

    _T = TypeVar("_T")


#: Asked in place of hasattr(): since 3.14 asyncio has a __getattr__(), which costs more than a short run does.
_NAMES = vars(asyncio)


def allowed() -> bool:
    """Whether nest_asyncio.apply() was called; without it a run inside a run is an error, as on the standard loop."""
    return "_nest_patched" in _NAMES


@contextlib.contextmanager
def _aside(loop: "Loop") -> "Iterator[None]":
    """Put the running loop of this thread and its current task aside, so that tasks of `loop` may step."""
    running = events._get_running_loop()
    task = None if running is None else tasks.current_task(running)
    if running is not None and task is not None:
        tasks._leave_task(running, task)
    events._set_running_loop(loop)
    try:
        yield
    finally:
        events._set_running_loop(running)
        if running is not None and task is not None:
            tasks._enter_task(running, task)


@contextlib.contextmanager
def run_of(loop: "Loop") -> "Iterator[None]":
    """What surrounds a run of `loop`, which may be running already, as may another one in this thread."""
    with _aside(loop):
        if loop.is_running():
            yield
            return
        loop._run_forever_setup()
        try:
            yield
        finally:
            loop._run_forever_cleanup()


def run_forever(loop: "Loop") -> None:
    """loop.run_forever() where nested runs are allowed."""
    with run_of(loop):
        try:
            loop._run_turns()
        finally:
            loop._stopping = False


def run_until_complete(loop: "Loop", future: "Awaitable[_T]") -> "_T":
    """loop.run_until_complete() likewise: it must not use stop(), which would end the outer runs instead."""
    loop._check_closed()
    made_here = not asyncio.isfuture(future)
    future = asyncio.ensure_future(future, loop=loop)
    if made_here:
        # The caller gets the exception, and need not see a message that nobody retrieved it.
        future._log_destroy_pending = False  # type: ignore[attr-defined]
    with run_of(loop):
        while not future.done():
            loop._run_once()
            if loop._stopping:
                loop._stopping = False
                break
    if not future.done():
        raise RuntimeError("Event loop stopped before Future completed.")
    return future.result()
