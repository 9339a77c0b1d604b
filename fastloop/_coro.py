"""Cold paths of the native tasks and futures: the check of private structs, and what all_tasks() sees.

Used by src/coro/ only; nothing here runs per task.
"""

import _asyncio
import contextvars
import gc
import types
import weakref
from asyncio import base_events, events, futures, tasks
from inspect import CO_VARKEYWORDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
    from typing import Any, TypeVar

    _E = TypeVar("_E", bound=BaseException)
    # Nothing less is declared to do for the loop of a future or task.
    _LoopBase = asyncio.BaseEventLoop
else:
    _LoopBase = object


class ProbeLoop(_LoopBase):
    """As much of a loop as a standard future or task needs; it keeps, or drops, what is scheduled."""

    def __init__(self, debug: bool = False, keep: bool = True) -> None:
        self.debug = debug
        self.keep = keep
        self.scheduled: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def get_debug(self) -> bool:
        return self.debug

    def call_soon(self, callback: "Callable[..., object]", *args: object, context: object = None) -> "Any":
        if self.keep:
            self.scheduled.append((callback, args))

    def call_exception_handler(self, context: object) -> None:
        pass


@types.coroutine
def suspend_until(future: "asyncio.Future[Any]") -> "Generator[asyncio.Future[Any]]":
    future._asyncio_future_blocking = True
    yield future


async def wait_for(future: "asyncio.Future[Any]") -> None:
    """What `await future` does, without an iterator of _asyncio: one of those, parked in its free list for the next
    await, keeps the module for good where interpreters end (3.12 and 3.13)."""
    await suspend_until(future)


async def nothing() -> None:
    pass


def make_task() -> "asyncio.Task[None]":
    """A standard task with an automatic name, to find out where such names come from."""
    coroutine = nothing()
    task = _asyncio.Task(coroutine, loop=ProbeLoop(keep=False))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    return task


def fresh_generator() -> "Generator[None]":
    """An iterator that raises whatever is thrown into it."""
    yield


def create_task_takes_any_keyword() -> bool:
    """Whether BaseEventLoop.create_task() passes keywords on that it does not know."""
    return bool(base_events.BaseEventLoop.create_task.__code__.co_flags & CO_VARKEYWORDS)


def create_task_names_later() -> bool:
    """Whether BaseEventLoop.create_task() names what a task factory has made, in place of the factory."""
    return create_task_names_none() or "_set_task_name" in base_events.BaseEventLoop.create_task.__code__.co_names


def create_task_names_none() -> bool:
    """Whether it does so when no name is given, too: "None" is the name then (3.13)."""
    return "set_name" in base_events.BaseEventLoop.create_task.__code__.co_names


def all_tasks(loop: "asyncio.AbstractEventLoop") -> "set[asyncio.Task[Any]]":
    """Tell which tasks of the loop are not done."""
    return tasks.all_tasks(loop)


def task_checks_context() -> bool:
    """Whether a standard task refuses a context that is no contextvars.Context (later versions)."""
    coroutine = nothing()
    try:
        task = _asyncio.Task(coroutine, loop=ProbeLoop(keep=False), name="probe", context=())  # type: ignore[arg-type]
    except TypeError:
        return True
    finally:
        coroutine.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return False


# ---- the private structs of _asyncio ----


class Mismatch(Exception):
    """Our description of a struct reads something else than the object's attributes say."""


EMPTY_FUTURE = dict.fromkeys(
    ["callback0", "context0", "callbacks", "exception", "exception_tb", "result", "source_tb", "cancel_msg"]
    + ["cancelled_exc", "state", "log_tb", "blocking"],
    0,
)
EMPTY_TASK = dict.fromkeys(["fut_waiter", "num_cancels_requested", "must_cancel"], 0)
PENDING, CANCELLED, FINISHED = range(3)


class Verifier:
    """Compares words_of(object), which reads memory by our description, with objects in known states."""

    def __init__(self, words_of: "Callable[[asyncio.Future[Any]], Mapping[str, int]]") -> None:
        self.words_of = words_of
        self.coroutines: list[Coroutine[Any, Any, None]] = []

    def close(self) -> None:
        """After a mismatch there are coroutines that nobody awaits."""
        for coroutine in self.coroutines:
            coroutine.close()

    def expect(self, obj: "asyncio.Future[Any]", empty: "Mapping[str, int]", **known: object) -> None:
        """Every word must be the one given here (an object stands for its address), or else that of `empty`."""
        words = self.words_of(obj)
        expected = dict(empty)
        for name, value in known.items():
            expected[name] = value if isinstance(value, int) else id(value)
        for name, value in expected.items():
            if words[name] != value:
                raise Mismatch(f"{type(obj).__name__}.{name}: {words[name]:#x} instead of {value:#x}")

    def futures(self) -> None:
        empty = dict(EMPTY_FUTURE)
        if hasattr(_asyncio, "future_add_to_awaited_by"):
            empty.update(awaited_by=0, awaited_by_is_set=0, is_task=0)
        self.empty_future = empty
        loop = ProbeLoop()

        def make(**kwargs: "Any") -> "asyncio.Future[Any]":
            return _asyncio.Future(loop=loop, **kwargs)

        future = make()
        self.expect(future, empty, loop=loop)
        future._asyncio_future_blocking = True
        self.expect(future, empty, loop=loop, blocking=1)

        future = make()
        callback, second, context = (lambda _: None), (lambda _: None), contextvars.copy_context()
        future.add_done_callback(callback, context=context)
        self.expect(future, empty, loop=loop, callback0=callback, context0=context)
        future.add_done_callback(second, context=context)
        words = self.words_of(future)
        self.expect(future, empty, loop=loop, callback0=callback, context0=context, callbacks=words["callbacks"])
        if not any(id(held) == words["callbacks"] and type(held) is list for held in gc.get_referents(future)):
            raise Mismatch("Future.callbacks")

        future, result = make(), object()
        future.set_result(result)
        self.expect(future, empty, loop=loop, state=FINISHED, result=result)

        future, error = make(), _raised(ValueError())
        future.set_exception(error)
        traceback = error.__traceback__
        self.expect(future, empty, loop=loop, state=FINISHED, exception=error, exception_tb=traceback, log_tb=1)
        future.exception()

        future, message = make(), object()
        future.cancel(message)
        self.expect(future, empty, loop=loop, state=CANCELLED, cancel_msg=message)

        future = _asyncio.Future(loop=ProbeLoop(debug=True))
        self.expect(future, empty, loop=future._loop, source_tb=future._source_traceback)  # type: ignore[attr-defined]

        if "awaited_by" in empty:
            future, waiter, other = make(), make(), make()
            _asyncio.future_add_to_awaited_by(future, waiter)  # type: ignore[attr-defined, unused-ignore]
            self.expect(future, empty, loop=loop, awaited_by=waiter)
            _asyncio.future_add_to_awaited_by(future, other)  # type: ignore[attr-defined, unused-ignore]
            words = self.words_of(future)
            self.expect(future, empty, loop=loop, awaited_by=words["awaited_by"], awaited_by_is_set=1)

    def tasks(self) -> None:
        empty = {**self.empty_future, **EMPTY_TASK, "log_destroy_pending": 1}
        if "is_task" in empty:
            empty["is_task"] = 1
        loop, context, name = ProbeLoop(), contextvars.copy_context(), "probe-" + "name"
        future: asyncio.Future[Any]
        future, message = _asyncio.Future(loop=loop), object()
        coroutine = wait_for(future)
        self.coroutines.append(coroutine)
        task = _asyncio.Task(coroutine, loop=loop, name=name, context=context)
        known = {"loop": loop, "coro": coroutine, "name": name, "context": context}
        self.expect(task, empty, **known)
        if "own_thread" in self.words_of(task):
            self.expect(task, empty, own_thread=1, **known)
        self.list_node(task, linked=True)

        self.step(loop)
        self.expect(task, empty, fut_waiter=future, **known)
        task.cancel(message)
        self.expect(task, empty, fut_waiter=future, num_cancels_requested=1, **known)
        self.step(loop)
        words = self.words_of(task)
        known_after = {**known, "num_cancels_requested": 1, "cancelled_exc": words["cancelled_exc"]}
        self.expect(task, empty, state=CANCELLED, **known_after)
        if not any(id(held) == words["cancelled_exc"] for held in gc.get_referents(task)):
            raise Mismatch("Task.cancelled_exc")
        self.list_node(task, linked=False)

        coroutine = nothing()
        self.coroutines.append(coroutine)
        task = _asyncio.Task(coroutine, loop=loop, name=name, context=context)
        known["coro"] = coroutine
        task.cancel(message)
        self.expect(task, empty, must_cancel=1, num_cancels_requested=1, cancel_msg=message, **known)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.expect(
            task,
            {**empty, "log_destroy_pending": 0},
            must_cancel=1,
            num_cancels_requested=1,
            cancel_msg=message,
            **known,
        )
        # What is scheduled holds the task, which holds the loop, and a CancelledError's traceback may hold this frame:
        # nothing may be left for the collector.
        loop.scheduled.clear()
        task = known = known_after = None  # type: ignore[assignment]

    def list_node(self, task: "asyncio.Task[Any]", linked: bool) -> None:
        words = self.words_of(task)
        for field in ("node.next", "node.prev"):
            if field in words and bool(words[field]) != linked:
                raise Mismatch(f"Task.{field}")

    def step(self, loop: ProbeLoop) -> None:
        events._set_running_loop(loop)
        scheduled, loop.scheduled = loop.scheduled, []
        for callback, args in scheduled:
            callback(*args)
        # The traceback of a CancelledError may hold this frame.
        scheduled = callback = args = None  # type: ignore[assignment]


def _raised(error: "_E") -> "_E":
    try:
        raise error
    except type(error) as caught:
        return caught


def layout_is_known(words_of: "Callable[[asyncio.Future[Any]], Mapping[str, int]]") -> bool:
    """Whether words_of(), which reads a future or task by our description of its struct, reads what is there.

    Runs a few standard tasks on a stand-in for a loop, whatever the thread is doing otherwise.
    """
    loop = events._get_running_loop()
    task = tasks.current_task(loop) if loop is not None else None
    if loop is not None and task is not None:
        tasks._leave_task(loop, task)
    verifier = Verifier(words_of)
    try:
        verifier.futures()
        verifier.tasks()
        return True
    except Exception:
        # Whatever is different from what we know: the standard types serve.
        return False
    finally:
        verifier.close()
        events._set_running_loop(loop)
        if loop is not None and task is not None:
            tasks._enter_task(loop, task)


# ---- asyncio.all_tasks(), up to 3.13 ----


def show_tasks(
    lister: "Callable[[], Iterable[asyncio.Task[Any]]]", forget: "Callable[[asyncio.Task[Any]], None]"
) -> bool:
    """Have asyncio's set of all tasks show those of lister() too, of which forget() takes one away.

    False where that set is none that we know.
    """
    known = getattr(tasks, "_scheduled_tasks", None)
    if known is None:
        known = tasks._all_tasks  # type: ignore[attr-defined]
    if not isinstance(known, weakref.WeakSet):
        return False
    from fastloop._task_set import TaskSet

    known.__class__ = TaskSet
    known.__dict__.setdefault("_fastloop_listers", []).append(lister)
    known.__dict__.setdefault("_fastloop_forgetters", []).append(forget)
    return True


# What the functions inside asyncio.futures._chain_future() share; chain.c numbers them so, too.
CHAIN_CELLS = ("_set_state", "dest_loop", "destination", "source", "source_loop")
CHAIN_NAMES = {
    "callback": "futures _chain_future ensure_future SystemExit KeyboardInterrupt BaseException"
    " set_running_or_notify_cancel set_exception",
    "_chain_future": "isfuture isinstance concurrent futures Future TypeError _get_loop add_done_callback",
    "_set_concurrent_future_state": "done cancelled cancel set_running_or_notify_cancel exception set_exception"
    " _convert_future_exc result set_result",
    "_set_state": "isfuture _copy_future_state _set_concurrent_future_state",
}


def chain_codes() -> "tuple[object, ...] | None":
    """The code of asyncio's functions that src/coro/chain.c stands in for, and the numbers of the cells that they use;
    None when something has been replaced or is not as it is known from any version."""
    outer: Any = (
        tasks.run_coroutine_threadsafe,
        getattr(futures, "_chain_future", None),
        getattr(futures, "_set_concurrent_future_state", None),
    )
    if not all(isinstance(function, types.FunctionType) for function in outer):
        return None
    codes = {
        code.co_name: code
        for function in outer
        for code in (function.__code__, *function.__code__.co_consts)
        if isinstance(code, types.CodeType)
    }
    try:
        for name, names in CHAIN_NAMES.items():
            if codes[name].co_names != tuple(names.split()):
                return None
        callback, check, call = codes["callback"], codes["_call_check_cancel"], codes["_call_set_state"]
        cells = [bytes(map(CHAIN_CELLS.index, code.co_freevars)) for code in (check, call)]
    except (KeyError, ValueError):
        return None
    if callback.co_freevars != ("coro", "future", "loop") or cells[1][:3] != bytes(range(3)):
        return None
    if not {"cancelled", "is_closed", "events", "_get_running_loop", "call_soon_threadsafe"}.issuperset(call.co_names):
        return None
    chain, copy, set_state = codes["_chain_future"], codes["_set_concurrent_future_state"], codes["_set_state"]
    return callback, chain, copy, set_state, check, cells[0], call, cells[1], ("loop",)


GATHER_CELLS = ("children", "nfinished", "nfuts", "outer", "return_exceptions")
GATHER_NAMES = (
    "done cancelled exception _make_cancelled_error set_exception exceptions CancelledError _cancel_message result"
    " append _cancel_requested set_result"
)


def gather_codes() -> "tuple[types.CodeType, types.CodeType] | None":
    """The code of the callback inside asyncio.gather() that src/coro/gather.c stands in for, and of gather() itself;
    None when it has been replaced or is not as it is known from any version."""
    if not isinstance(tasks.gather, types.FunctionType):
        return None
    outer = tasks.gather.__code__
    inner = [code for code in outer.co_consts if isinstance(code, types.CodeType)]
    if [code.co_name for code in inner] != ["_done_callback"] or inner[0].co_freevars != GATHER_CELLS:
        return None
    awaited_by = hasattr(futures, "future_discard_from_awaited_by")
    arguments = ("fut", "cur_task") if awaited_by else ("fut",)
    names = ("futures future_discard_from_awaited_by " if awaited_by else "") + GATHER_NAMES
    code = inner[0]
    if code.co_varnames[: code.co_argcount] != arguments or code.co_names != tuple(names.split()):
        return None
    return code, outer
