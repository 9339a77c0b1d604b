"""Steps, cancellation, logging, await iterators, factories and re-entrancy: the same on the standard types and ours."""

import asyncio
import contextvars
import gc
import re
import sys
import threading
import traceback
import unittest.mock
import weakref

import pytest

import fastloop
from fastloop import _compat, _core, _coro, switches
from helpers import GIL

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}
HAS_EAGER = hasattr(asyncio, "eager_task_factory")
HAS_AWAITED_BY = hasattr(asyncio, "future_add_to_awaited_by")


@pytest.fixture(params=LOOPS, ids=list(LOOPS))
def loop(request):
    loop = LOOPS[request.param]()
    loop.problems = []
    loop.set_exception_handler(lambda _, context: loop.problems.append(context))
    yield loop
    loop.close()
    gc.collect()


def turn(loop, count=1):
    for _ in range(count):
        loop.call_soon(loop.stop)
        loop.run_forever()


async def nothing():
    pass


async def wait_for(future):
    return await future


# ---- cancellation ----


def test_cancel_forwards_to_the_awaited_future(loop):
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    turn(loop)
    assert task.cancel("why") is True
    assert future.cancelled() and future._cancel_message == "why"
    assert not task._must_cancel and task.cancelling() == 1
    with pytest.raises(asyncio.CancelledError) as caught:
        loop.run_until_complete(task)
    assert caught.value.args == ("why",)
    assert task.cancel() is False


def test_cancel_before_the_first_step(loop):
    ran = []

    async def body():
        ran.append(1)

    task = loop.create_task(body())
    task.cancel("early")
    assert task._must_cancel
    with pytest.raises(asyncio.CancelledError, match="early"):
        loop.run_until_complete(task)
    assert not ran and task.cancelled()


def test_cancel_swallowed_and_counted(loop):
    async def body():
        for _ in range(2):
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                pass
        return asyncio.current_task().cancelling(), asyncio.current_task().uncancel()

    task = loop.create_task(body())
    for _ in range(2):
        turn(loop)
        task.cancel()
        turn(loop, 2)
    assert loop.run_until_complete(task) == (2, 1)
    assert not task.cancelled()


def test_cancelled_just_before_it_stops(loop):
    async def body():
        asyncio.current_task().cancel("late")
        return 5

    task = loop.create_task(body())
    with pytest.raises(asyncio.CancelledError, match="late"):
        loop.run_until_complete(task)
    assert task.cancelled()


def test_must_cancel_goes_to_the_next_await(loop):
    future = loop.create_future()

    async def body():
        asyncio.current_task().cancel("self")
        await future

    task = loop.create_task(body())
    turn(loop)
    assert future.cancelled() and not task._must_cancel
    with pytest.raises(asyncio.CancelledError, match="self"):
        loop.run_until_complete(task)


def test_same_cancelled_error_is_handed_over_once(loop):
    raised = []

    async def inner():
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError as exc:
            raised.append(exc)
            raise

    async def outer(task):
        await task

    inner_task = loop.create_task(inner())
    outer_task = loop.create_task(outer(inner_task))
    turn(loop)
    inner_task.cancel("once")
    with pytest.raises(asyncio.CancelledError) as caught:
        loop.run_until_complete(outer_task)
    assert caught.value is raised[0]
    with pytest.raises(asyncio.CancelledError) as second:
        inner_task.result()
    assert second.value is not raised[0]


@pytest.mark.left_out(sys.version_info < (3, 13), reason="uncancel() resets since 3.13")
def test_uncancel_resets_must_cancel(loop):
    async def body():
        task = asyncio.current_task()
        task.cancel()
        task.uncancel()
        await asyncio.sleep(0)
        return "alive"

    assert loop.run_until_complete(body()) == "alive"


def test_future_freed_inside_cancel(loop):
    """CPython issue 126138 and its like: the awaited object loses its last reference while cancel() runs."""

    class Fragile:
        _asyncio_future_blocking = True

        def __init__(self):
            self._loop = loop

        def get_loop(self):
            return loop

        def add_done_callback(self, callback, *, context):
            self.callback = callback

        def __await__(self):
            yield self

        def cancel(self, msg=None):
            self.__dict__.clear()
            task._cancel_message = "other"
            return False

    async def body():
        asyncio.current_task().cancel("m")
        await Fragile()

    task = loop.create_task(body())
    turn(loop)
    assert task._must_cancel and not task.done()
    task._log_destroy_pending = False
    task.get_coro().close()


# ---- what a coroutine may yield and raise ----


class Yields:
    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield self.value


def message_of(loop, value):
    async def body():
        await Yields(value(asyncio.current_task()))

    with pytest.raises(RuntimeError) as caught:
        loop.run_until_complete(body())
    return str(caught.value)


def test_messages_for_bad_yields(loop):
    assert "Task got bad yield: 42" in message_of(loop, lambda task: 42)
    assert "Task cannot await on itself" in message_of(loop, lambda task: task)
    future = loop.create_future()
    assert "yield was used instead of yield from in task" in message_of(loop, lambda task: future)
    assert "yield was used instead of yield from for generator in task" in message_of(
        loop, lambda task: (i for i in ())
    )
    other = LOOPS["asyncio"]()
    foreign = other.create_future()

    async def body():
        await foreign

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        loop.run_until_complete(body())
    other.close()


def test_errors_in_a_foreign_future(loop):
    class Broken:
        _asyncio_future_blocking = True
        _loop = property(lambda self: loop)

        def add_done_callback(self, callback, *, context):
            raise KeyError("no")

    async def body():
        await Yields(Broken())

    task = loop.create_task(body())
    turn(loop)
    (problem,) = loop.problems
    assert isinstance(problem["exception"], KeyError)
    assert not task.done()
    task._log_destroy_pending = False
    task.get_coro().close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_exit_exceptions_leave_run_forever(loop, kind):
    async def body():
        raise kind("out")

    task = loop.create_task(body())
    with pytest.raises(kind, match="out"):
        loop.run_forever()
    assert isinstance(task.exception(), kind)
    turn(loop)


def test_stop_iteration_in_set_exception(loop):
    future = loop.create_future()
    try:
        future.set_exception(StopIteration)
    except TypeError as exc:
        assert "StopIteration interacts badly" in str(exc)
    else:
        assert isinstance(future.exception(), RuntimeError)


def test_traceback_is_kept(loop):
    async def fails():
        raise ValueError("here")

    async def body():
        try:
            await loop.create_task(fails())
        except ValueError as exc:
            return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]

    assert loop.run_until_complete(body()) == ["body", "fails"]


def call_in_loop(loop, callback, *args, context=None):
    """What the callback does when the loop runs it; what it raises is raised here."""
    raised = []

    def call():
        try:
            callback(*args)
        except Exception as exc:
            raised.append(exc)

    loop.call_soon(call, context=context)
    turn(loop)
    if raised:
        raise raised[0]


def test_step_of_a_done_task(loop):
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    turn(loop)
    ((wakeup, context),) = future._callbacks
    future.set_result(1)
    loop.run_until_complete(task)
    with pytest.raises(asyncio.InvalidStateError, match="already done"):
        call_in_loop(loop, wakeup, future)


class BadYield:
    def __await__(self):
        yield 5


@pytest.mark.parametrize("end", ["set_result", "set_exception", "cancel"])
def test_a_task_that_somebody_has_completed_is_no_task_any_more(loop, end):
    """asyncio's list has only pending tasks: debug builds of Python end where it has others."""
    reports = []
    loop.set_exception_handler(lambda _, report: reports.append(report))
    task = loop.create_task(wait_for(loop.create_future()))
    arguments = {"set_result": [1], "set_exception": [ValueError()], "cancel": []}[end]
    getattr(type(loop.create_future()), end)(task, *arguments)
    assert task.done() and asyncio.all_tasks(loop) == set()
    assert end != "set_exception" or task.exception() is arguments[0]
    turn(loop)
    (report,) = reports
    assert isinstance(report["exception"], asyncio.InvalidStateError)
    task.get_coro().close()


@pytest.mark.parametrize(
    ("record", "debug"),
    [(record, debug) for record in ("step", "step that throws", "wakeup") for debug in (False, True)],
)
def test_errors_of_steps_and_wakeups_are_told_with_their_handle(loop, record, debug):
    """Both are refused for a task that somebody has completed; the handler runs in the task's context since 3.12."""
    variable = contextvars.ContextVar("variable", default="the handler's")
    context = contextvars.copy_context()
    context.run(variable.set, "the task's")
    reports = []
    loop.set_exception_handler(lambda _, report: reports.append((report, variable.get())))
    loop.set_debug(debug)
    future = loop.create_future()
    task = loop.create_task(wait_for(BadYield() if record == "step that throws" else future), context=context)
    if record != "step":
        turn(loop)
        future.set_result(None)
    asyncio.Future.set_result(task, "early")
    turn(loop)
    ((report, seen),) = reports
    assert set(report) == {"message", "exception", "handle"} | ({"source_traceback"} if debug else set())
    assert isinstance(report["exception"], asyncio.InvalidStateError)
    assert seen == ("the task's" if sys.version_info >= (3, 12) else "the handler's")
    handle = report["handle"]
    assert isinstance(handle, asyncio.Handle)
    assert handle._context is context and not handle.cancelled() and handle._loop is loop
    assert handle._args == ((future,) if record == "wakeup" else ())
    source = _compat.format_callback_source(loop, handle._callback, handle._args)
    assert report["message"] == f"Exception in callback {source}"
    assert report.get("source_traceback") == handle._source_traceback
    assert ("task_wakeup" if record == "wakeup" else "step") in report["message"].lower()
    task.get_coro().close()


def test_a_step_called_by_hand(loop):
    """What other loops get to call: it takes no arguments, and goes on with the task."""
    calls = []
    loop.call_soon = lambda callback, *args, context=None: calls.append((callback, args))
    task = loop.create_task(nothing())
    ((step, args),) = calls
    assert args == () and step.__self__ is task
    for wrong in (lambda: step(1), lambda: step(x=1)):
        with pytest.raises(TypeError, match="^function takes no (positional|keyword) arguments$"):
            wrong()
    del loop.call_soon
    assert not task.done()
    seen = []

    def by_hand():
        seen.append((step(), task.done()))
        with pytest.raises(asyncio.InvalidStateError) as refused:
            step()
        seen.append(refused.type)

    loop.call_soon(by_hand)
    turn(loop)
    assert seen == [(None, True), asyncio.InvalidStateError]


@pytest.mark.parametrize("record", ["step", "wakeup"])
def test_a_context_that_is_entered_already(loop, record):
    """The loop itself runs in the task's context: neither can enter it, which is told, and nothing resumes the task."""
    context = contextvars.copy_context()
    reports = []
    loop.call_exception_handler = reports.append
    future = loop.create_future()
    task = loop.create_task(wait_for(future), context=context)
    if record == "wakeup":
        turn(loop)
        future.set_result(None)
    context.run(turn, loop, 2)
    (report,) = reports
    assert set(report) - {"source_traceback"} == {"message", "exception", "handle"}
    assert report["handle"]._context is context
    assert re.fullmatch("cannot enter context: .* is already entered", str(report["exception"]))
    assert type(report["exception"]) is RuntimeError and not task.done()
    task.get_coro().close()
    task._log_destroy_pending = False
    del loop.call_exception_handler


def test_wakeup_by_hand(loop):
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    turn(loop)
    ((wakeup, context),) = future._callbacks
    assert future.remove_done_callback(wakeup) == 1
    future.set_result("by hand")
    turn(loop)
    assert not task.done()
    call_in_loop(loop, wakeup, future, context=context)
    assert task.result() == "by hand"


def test_context_of_steps(loop):
    variable = contextvars.ContextVar("variable", default=0)
    context = contextvars.copy_context()

    async def body():
        for value in range(5):
            variable.set(value)
            await asyncio.sleep(0)
            assert variable.get() == value

    task = loop.create_task(body(), context=context)
    loop.run_until_complete(asyncio.gather(task, *(loop.create_task(body()) for _ in range(5))))
    assert context[variable] == 4 and variable.get() == 0


def test_what_a_cancelled_coroutine_returns_is_freed_when_the_task_has_ended(loop):
    seen = []

    class Noisy:
        def __del__(self):
            seen.append((task.done(), task.cancelled(), task.cancel("late")))

    async def body():
        task.cancel("message")
        return Noisy()

    task = loop.create_task(body())
    with pytest.raises(asyncio.CancelledError) as caught:
        loop.run_until_complete(task)
    assert seen == [(True, True, False)]
    assert caught.value.args == ("message",) and not task._must_cancel


def test_values_pass_through_await(loop):
    """None, tuples, exceptions and StopIteration objects are values like any other."""
    for value in (None, (1, 2), (), ValueError("value"), StopIteration(3), [None], ...):

        async def body(value=value):
            future = loop.create_future()
            loop.call_soon(future.set_result, value)
            return await future

        assert loop.run_until_complete(body()) is value


def test_await_inside_except(loop):
    async def body():
        try:
            raise KeyError("context")
        except KeyError:
            future = loop.create_future()
            loop.call_soon(future.set_result, 7)
            return await future

    assert loop.run_until_complete(body()) == 7


# ---- the await iterator, driven by hand ----


def test_iterator_send(loop):
    future = loop.create_future()
    iterator = future.__await__()
    assert iter(iterator) is iterator
    assert next(iterator) is future and future._asyncio_future_blocking
    with pytest.raises(RuntimeError, match="await wasn't used with future"):
        next(iterator)
    future.set_result((1, 2))
    with pytest.raises(StopIteration) as caught:
        iterator.send(None)
    assert caught.value.value == (1, 2)


def test_iterator_next_keeps_stop_iterations_apart(loop):
    kept = []
    for value in (5, "x", (1,), None):
        future = loop.create_future()
        future.set_result(value)
        try:
            next(future.__await__())
        except StopIteration as exc:
            kept.append(exc)
    assert [exc.value for exc in kept] == [5, "x", (1,), None]


@pytest.mark.left_out(
    lambda loop, how, **_: how == "exhausted" and (loop == "asyncio" or "tasks" in switches.disabled()),
    reason="some versions of asyncio have an error without exception",
)
@pytest.mark.parametrize("method", ["send", "next", "for"])
@pytest.mark.parametrize("how", ["value", "tuple", "none", "exception", "cancelled", "pending", "exhausted"])
def test_how_an_iterator_ends(loop, method, how):
    future = loop.create_future()
    values = {"value": 5, "tuple": (1, 2), "none": None, "exhausted": 6}
    if how in values:
        future.set_result(values[how])
    elif how == "exception":
        future.set_exception(KeyError("key"))
    elif how == "cancelled":
        future.cancel("why")
    iterator = future.__await__()
    if how == "exhausted":
        with pytest.raises(StopIteration) as caught:
            next(iterator)
        assert caught.value.value == 6
    step = {"send": lambda: iterator.send(None), "next": lambda: next(iterator), "for": lambda: [*iterator]}[method]
    if how == "pending":
        waiting = next(iterator)
        assert waiting is future and future._asyncio_future_blocking
        with pytest.raises(RuntimeError, match="^await wasn't used with future$"):
            step()
        future.set_result(7)
        how, values["value"] = "value", 7
    kinds = {"exception": KeyError, "cancelled": asyncio.CancelledError}
    if how in kinds:
        with pytest.raises(kinds[how], match="key" if how == "exception" else "why"):
            step()
    elif method == "for":
        assert step() == []
    else:
        with pytest.raises(StopIteration) as caught:
            step()
        assert caught.value.value == (None if how == "exhausted" else values[how])


def test_iterator_send_ends_with_none(loop):
    ends = []
    for future in (loop.create_future(), asyncio.Future(loop=loop)):
        future.set_result(None)
        with pytest.raises(StopIteration) as caught:
            future.__await__().send(None)
        ends.append(caught.value.args)
    # Whether None is an argument depends on the release.
    assert ends[0] == ends[1]


def exceptions_seen_by_trace(run, code):
    seen = []

    def trace(frame, event, arg):
        if frame.f_code is code:
            if event == "exception":
                seen.append(repr(arg[1]))
            return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return seen


def exceptions_seen_by_monitoring(run, code):
    monitoring = sys.monitoring
    seen = []
    monitoring.use_tool_id(4, "test")
    try:
        monitoring.register_callback(
            4, monitoring.events.RAISE, lambda where, _, exc: seen.append(repr(exc)) if where is code else None
        )
        monitoring.set_events(4, monitoring.events.RAISE)
        run()
    finally:
        monitoring.set_events(4, 0)
        monitoring.register_callback(4, monitoring.events.RAISE, None)
        monitoring.free_tool_id(4)
    return seen


# 3.12 has sys.monitoring, too, but does not let us see that it is in use.
@pytest.mark.parametrize("look", ["trace", *(["monitoring"] if sys.version_info >= (3, 13) else [])])
@pytest.mark.parametrize("value", [None, 5])
def test_tracers_see_how_an_await_ends(loop, look, value):
    async def body(make):
        future = make()
        loop.call_soon(future.set_result, value)
        await future
        await future

    def seen_with(make):
        return exceptions_seen(lambda: loop.run_until_complete(body(make)), body.__code__)

    exceptions_seen = globals()[f"exceptions_seen_by_{look}"]
    # Whether None is an argument depends on the release. Since 3.15 the interpreter needs no exception.
    expected = seen_with(lambda: asyncio.Future(loop=loop))
    assert seen_with(loop.create_future) == expected
    assert len(expected) == (2 if sys.version_info < (3, 15) else 0)


@pytest.mark.filterwarnings("ignore:the .type, exc, tb. signature")
def test_iterator_throw_and_close(loop):
    for arguments in (
        (ValueError,),
        (ValueError, "text"),
        (ValueError("x"), None),
        (ValueError, ValueError("y"), None),
    ):
        iterator = loop.create_future().__await__()
        next(iterator)
        with pytest.raises(ValueError):
            iterator.throw(*arguments)
        # The standard iterator of 3.14 crashes when it is used after throw().
        if isinstance(loop, fastloop.Loop):
            with pytest.raises(StopIteration):
                next(iterator)
            with pytest.raises(ValueError):
                iterator.throw(*arguments)
    iterator = loop.create_future().__await__()
    for wrong in ((), (1,), (ValueError("x"), 1), (ValueError, 1, 1), (ValueError,) * 4):
        with pytest.raises(TypeError):
            iterator.throw(*wrong)
    assert iterator.close() is None
    if isinstance(loop, fastloop.Loop):
        with pytest.raises(StopIteration):
            next(iterator)


def test_coroutine_driven_by_hand(loop):
    future = loop.create_future()
    coro = wait_for(future)
    assert coro.send(None) is future
    future.set_exception(KeyError("k"))
    with pytest.raises(KeyError):
        coro.send(None)
    coro = wait_for(loop.create_future())
    coro.send(None)
    coro.close()


# ---- logging ----


def test_exception_never_retrieved(loop):
    future = loop.create_future()
    future.set_exception(ValueError("lost"))
    del future
    gc.collect()

    async def fails():
        raise KeyError("lost too")

    task = loop.create_task(fails())
    turn(loop)
    del task
    gc.collect()
    messages = [context["message"] for context in loop.problems]
    assert messages == ["Future exception was never retrieved", "Task exception was never retrieved"]
    assert "future" in loop.problems[0] and "future" in loop.problems[1]


def test_retrieved_exceptions_are_quiet(loop):
    for retrieve in ("exception", "result", "await", "cancel", "flag"):
        future = loop.create_future()
        future.set_exception(ValueError())
        if retrieve == "await":
            with pytest.raises(ValueError):
                loop.run_until_complete(wait_for(future))
        elif retrieve == "flag":
            future._log_traceback = False
        else:
            try:
                getattr(future, retrieve)()
            except ValueError:
                pass
        del future
        gc.collect()
    assert loop.problems == []


def test_destroyed_pending(loop):
    task = loop.create_task(wait_for(loop.create_future()))
    turn(loop)
    del task
    gc.collect()
    (problem,) = loop.problems
    assert problem["message"] == "Task was destroyed but it is pending!"
    assert problem["task"].done() is False
    loop.problems.clear()
    del problem
    gc.collect()
    assert asyncio.all_tasks(loop) == set()


@pytest.mark.left_out(HAS_AWAITED_BY, reason="the awaited future knows its waiter: a cycle")
def test_destroyed_at_once_without_the_collector(loop):
    gc.disable()
    try:
        future = loop.create_future()
        task = loop.create_task(wait_for(future))
        turn(loop)
        del task
        assert loop.problems == []
        ((wakeup, context),) = future._callbacks
        future.remove_done_callback(wakeup)
        before = len(loop.problems)
        del wakeup, context
        assert [context["message"] for context in loop.problems[before:]] == ["Task was destroyed but it is pending!"]
    finally:
        gc.enable()


def test_destroyed_quietly(loop):
    task = loop.create_task(wait_for(loop.create_future()))
    turn(loop)
    task._log_destroy_pending = False
    del task
    gc.collect()
    assert loop.problems == []


def test_failing_handler_does_not_leave_finalisation(loop, capsys):
    def handler(_, context):
        raise ZeroDivisionError

    loop.set_exception_handler(handler)
    future = loop.create_future()
    future.set_exception(ValueError())
    with unittest.mock.patch.object(asyncio.base_events.logger, "error") as error:
        del future
        gc.collect()
    assert error.call_count == 1


def test_resurrected_by_the_handler(loop):
    saved = []
    loop.set_exception_handler(lambda _, context: saved.append(context["task"]))
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    turn(loop)
    ((wakeup, _),) = future._callbacks
    future.remove_done_callback(wakeup)
    del task, wakeup, _, future
    gc.collect()
    (task,) = saved
    assert not task.done() and task.get_loop() is loop
    task.get_coro().close()
    saved.clear()
    del task
    gc.collect()
    assert saved == []


def test_source_tracebacks(loop):
    loop.set_debug(True)
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    for obj in (future, task):
        assert any(frame.name == "test_source_tracebacks" for frame in obj._source_traceback)
    assert task._source_traceback[-1].name == "test_source_tracebacks"
    future.set_result(1)
    assert loop.run_until_complete(task) == 1
    loop.set_debug(False)
    assert loop.create_future()._source_traceback is None


# ---- factories, custom types, eager tasks ----


def test_factories(loop):
    made = []

    def factory(loop, coro, **kwargs):
        task = asyncio.Task(coro, loop=loop, **kwargs)
        made.append(kwargs)
        return task

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    context = contextvars.copy_context()
    first = loop.create_task(nothing())
    second = loop.create_task(nothing(), name="named")
    third = loop.create_task(nothing(), name="named too", context=context)
    assert [type(task) for task in (first, second, third)] == [asyncio.Task] * 3
    assert second.get_name() == "named" and third.get_name() == "named too"
    assert made[2]["context"] is context
    loop.run_until_complete(asyncio.wait([first, second, third]))
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None
    assert loop.run_until_complete(loop.create_task(nothing())) is None
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory(3)


def test_custom_task_class(loop):
    base = type(loop.create_task(nothing()))
    turn(loop)

    class Custom(base):
        cancels = 0

        def cancel(self, msg=None):
            type(self).cancels += 1
            return super().cancel(msg)

    loop.set_task_factory(lambda loop, coro, **kwargs: Custom(coro, loop=loop, **kwargs))

    async def body():
        inner = loop.create_task(asyncio.sleep(10))
        outer = loop.create_task(wait_for(inner))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        return inner.cancelled()

    assert loop.run_until_complete(body()) is True
    assert Custom.cancels == 2


def test_overridden_methods_of_a_future_subclass(loop):
    calls = []

    class Custom(type(loop.create_future())):
        def result(self):
            calls.append("result")
            return super().result()

        def add_done_callback(self, callback, *, context=None):
            calls.append("add_done_callback")
            super().add_done_callback(callback, context=context)

    future = Custom(loop=loop)
    task = loop.create_task(wait_for(future))
    turn(loop)
    future.set_result(1)
    assert loop.run_until_complete(task) == 1
    assert "add_done_callback" in calls and "result" in calls


@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
def test_eager_tasks(loop):
    log, me = [], None

    async def quick(value):
        log.append((value, asyncio.current_task() is not me))
        return value

    async def slow(value):
        log.append(value)
        await asyncio.sleep(0)
        log.append(value + 1)
        return value

    async def main():
        nonlocal me
        me = asyncio.current_task()
        loop.set_task_factory(asyncio.eager_task_factory)
        done = loop.create_task(quick(1), name="quick")
        assert done.done() and done.result() == 1 and done._coro is None and done.get_name() == "quick"
        assert asyncio.current_task() is me
        pending = loop.create_task(slow(10))
        assert not pending.done() and log == [(1, True), 10]
        assert pending in asyncio.all_tasks() and done not in asyncio.all_tasks()
        assert await pending == 10
        with pytest.raises(ZeroDivisionError):
            await loop.create_task(fails())
        loop.set_task_factory(None)
        return asyncio.current_task() is me

    async def fails():
        return 1 / 0

    assert loop.run_until_complete(main())


@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
def test_eager_task_outside_a_running_loop(loop):
    loop.set_task_factory(asyncio.eager_task_factory)
    task = loop.create_task(nothing())
    assert not task.done()
    loop.run_until_complete(task)


@pytest.mark.left_out(not GIL, reason="without one, a loop that does not run in this thread is not asked")
@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
def test_eager_task_outside_a_running_loop_with_a_replaced_is_running(loop):
    """What it raises comes out of create_task()."""

    def is_running():
        raise KeyError("unknown")

    loop.set_task_factory(asyncio.eager_task_factory)
    loop.is_running = is_running
    coroutine = nothing()
    with pytest.raises(KeyError, match="unknown"):
        loop.create_task(coroutine)
    del loop.is_running
    coroutine.close()
    gc.collect()
    loop.problems.clear()


class Refusing:
    """Like a future that cannot be cancelled."""

    _asyncio_future_blocking = True

    def __init__(self, loop):
        self._loop = loop

    def add_done_callback(self, callback, *, context):
        self._loop.call_soon(callback, self, context=context)

    def cancel(self, msg=None):
        return False

    def result(self):
        return "refused"


async def cancel_and_return(loop):
    asyncio.current_task().cancel("at the end")
    return 5


async def cancel_and_raise(loop):
    asyncio.current_task().cancel("at the end")
    raise ZeroDivisionError("first")


async def cancel_and_wait(loop):
    asyncio.current_task().cancel("meanwhile")
    await loop.create_future()


async def cancel_and_wait_for_a_subclass(loop):
    asyncio.current_task().cancel("meanwhile")
    await type("Future", (asyncio.Future,), {})(loop=loop)


async def cancel_and_wait_for_what_refuses(loop):
    asyncio.current_task().cancel("refused")
    return await Yields(Refusing(loop))


async def cancel_and_wait_for_what_is_done(loop):
    future = loop.create_future()
    future.set_result("done")
    future._asyncio_future_blocking = True
    asyncio.current_task().cancel("too late")
    await Yields(future)


async def cancel_and_yield(loop):
    asyncio.current_task().cancel("at once")
    await asyncio.sleep(0)


async def wait_for_itself(loop):
    await Yields(asyncio.current_task())


async def wait_without_blocking(loop):
    await Yields(loop.create_future())


async def wait_for_another_loop(loop):
    await OTHER.create_future()


async def wait_for_a_subclass(loop):
    future = type("Future", (asyncio.Future,), {})(loop=loop)
    loop.call_soon(future.set_result, "subclass")
    return await future


OTHER = asyncio.SelectorEventLoop()
OTHER.close()


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.left_out(not HAS_EAGER, reason="3.12"))])
@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (cancel_and_return, (asyncio.CancelledError, "at the end")),
        (cancel_and_raise, (ZeroDivisionError, "first")),
        (cancel_and_wait, (asyncio.CancelledError, "meanwhile")),
        (cancel_and_wait_for_a_subclass, (asyncio.CancelledError, "meanwhile")),
        (cancel_and_wait_for_what_refuses, (asyncio.CancelledError, "refused")),
        (cancel_and_wait_for_what_is_done, (asyncio.CancelledError, "too late")),
        (cancel_and_yield, (asyncio.CancelledError, "at once")),
        (wait_for_itself, (RuntimeError, "Task cannot await on itself: ")),
        (wait_without_blocking, (RuntimeError, "yield was used instead of yield from in task ")),
        (wait_for_another_loop, (RuntimeError, "Task <.*> got Future <.*> attached to a different loop")),
        (wait_for_a_subclass, "subclass"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_how_a_first_step_ends(loop, body, outcome, eager):
    async def main():
        task = loop.create_task(body(loop))
        try:
            return task, await task
        except (Exception, asyncio.CancelledError) as exc:
            return task, exc

    if eager:
        loop.set_task_factory(asyncio.eager_task_factory)
    task, answer = loop.run_until_complete(main())
    if isinstance(outcome, str):
        assert answer == outcome
    else:
        kind, message = outcome
        assert type(answer) is kind and re.match(message, str(answer))
    assert not task._must_cancel or body is cancel_and_raise
    assert loop.problems == []


@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
@pytest.mark.parametrize("end", ["cancel", "set_result"])
def test_eager_task_that_somebody_found_before_its_first_step(loop, end):
    """is_running() is asked in between."""
    coroutine = nothing()

    def is_running():
        for found in gc.get_objects():
            if isinstance(found, asyncio.Task) and found.get_coro() is coroutine:
                asyncio.Future.set_result(found, 1) if end == "set_result" else found.cancel("found")
        return True

    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        loop.is_running = is_running
        try:
            return loop.create_task(coroutine)
        finally:
            del loop.is_running

    if end == "cancel":
        task = loop.run_until_complete(main())
        assert task.cancelled() and coroutine.cr_frame is None
    else:
        with pytest.raises(asyncio.InvalidStateError, match="already done: <.*> None$"):
            loop.run_until_complete(main())
    coroutine.close()
    loop.set_task_factory(None)


def test_names_that_are_no_text(loop):
    class Text(str):
        pass

    for name in (5, Text("text")):
        task = loop.create_task(nothing(), name=name)
        assert task.get_name() == str(name) and type(task.get_name()) in (str, Text)
        loop.run_until_complete(task)


@pytest.mark.parametrize("attribute", ["_asyncio_future_blocking", "get_loop", "_loop"])
def test_attributes_of_a_future_that_raise(loop, attribute):
    """What is no AttributeError comes out of the step, and leaves the task as it is."""

    def fails(self):
        raise KeyError(attribute)

    future = type("Future", (), {"_asyncio_future_blocking": True, attribute: property(fails)})()

    async def body():
        await Yields(future)

    task = loop.create_task(body())
    turn(loop)
    (problem,) = loop.problems
    assert type(problem["exception"]) is KeyError and problem["exception"].args == (attribute,)
    assert not task.done()
    task._log_destroy_pending = False
    task.get_coro().close()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("before", [0, 1])
def test_a_wakeup_for_a_future_of_another_loop(loop, before, early):
    """To that loop it is a callback like any other."""
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    turn(loop)
    ((wakeup, context),) = future._callbacks
    future.remove_done_callback(wakeup)
    other = type(loop)()
    foreign = other.create_future()
    seen, problems = [], []
    other.set_exception_handler(lambda _, context: problems.append(context["exception"]))
    if early:
        foreign.set_result("foreign")
    for _ in range(before):
        foreign.add_done_callback(seen.append)
    foreign.add_done_callback(wakeup, context=context)
    if not early:
        foreign.set_result("foreign")
    turn(loop)
    assert not task.done() and seen == []
    turn(other)
    assert seen == [foreign] * before
    assert not task.done()
    if sys.version_info >= (3, 14):
        # Refused: the loop of the task does not run.
        assert [str(error) for error in problems] == [f"loop {loop!r} is not the running loop"]
        task._log_destroy_pending = False
        task.get_coro().close()
    else:
        # The iterator of its own future has sent it to wait again.
        assert len(future._callbacks) == 1 and problems == []
        future.set_result("own")
        assert loop.run_until_complete(task) == "own"
    other.close()


@pytest.mark.left_out(_coro.task_checks_context(), reason="refused")
@pytest.mark.parametrize("before", [0, 1])
def test_a_context_of_another_make(loop, before):
    """What the loop asks of it is run()."""

    class Context:
        def run(self, callback, *args):
            ran.append(callback)
            return callback(*args)

    ran, seen = [], []
    future = loop.create_future()
    for _ in range(before):
        future.add_done_callback(seen.append)
    task = loop.create_task(wait_for(future), context=Context())
    turn(loop)
    assert len(ran) == 1 and not task.done()
    future.set_result(5)
    turn(loop)
    assert len(ran) == 2 and task.result() == 5 and seen == [future] * before
    # A future that is done already.
    future._asyncio_future_blocking = True
    task = loop.create_task(wait_for(Yields(future)), context=Context())
    turn(loop, 2)
    assert len(ran) == 4 and task.done() and task.result() is None


@pytest.mark.parametrize("value", [None, 1, 1.5, "text", b"bytes", (1,)], ids=repr)
@pytest.mark.parametrize("variable", ["set", "kept", "untouched"])
@pytest.mark.parametrize("named", [False, True])
def test_tasks_that_die_as_their_waiter_goes_on(loop, value, variable, named):
    """With a result, a context and a name, whose end may be noticed or not."""

    class Text(str):
        def __str__(self):
            return self

    here = contextvars.ContextVar("here")
    context = contextvars.copy_context() if variable == "kept" else None

    def name():
        return Text("name") if named else None

    async def child():
        assert not named or type(asyncio.current_task().get_name()) is Text
        if variable != "untouched":
            here.set(1)
        await asyncio.sleep(0)
        return value

    async def main():
        answers = [await loop.create_task(child(), context=context, name=name()) for _ in range(3)]
        return answers, asyncio.current_task(), asyncio.all_tasks()

    task = loop.create_task(main())
    loop.run_until_complete(task)
    assert task.result() == ([value] * 3, task, {task})


@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
def test_a_child_that_waits_for_the_eager_task_that_made_it(loop):
    loop.set_task_factory(asyncio.eager_task_factory)
    parents, children = [], []

    async def wait_for_parent():
        return await parents.pop()

    async def parent():
        parents.append(asyncio.current_task())
        children.append(loop.create_task(wait_for_parent()))
        return "parent"

    async def main():
        loop.create_task(parent())
        return await children[0]

    assert loop.run_until_complete(main()) == "parent"


@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
@pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, fastloop.Loop], ids=list(LOOPS))
@pytest.mark.parametrize("where", ["instance", "dict", "class", "base", "another class", "__getattribute__"])
def test_eager_tasks_ask_a_replaced_is_running(kind, where):
    """Whoever replaces it, at any time."""

    def replacement(*args):
        asked.append(1)

    asked = []
    base = type("Base", (kind,), {})
    cls = type("Derived", (base,), {})
    other = type("Other", (kind,), {"is_running": replacement})
    if where == "__getattribute__":

        def get(self, name):
            return replacement if name == "is_running" else super(cls, self).__getattribute__(name)

        cls = type("Derived", (base,), {"__getattribute__": get})
    loop = cls()

    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        if where != "__getattribute__":
            assert loop.create_task(nothing()).done()
        match where:
            case "instance":
                loop.is_running = replacement
            case "dict":
                vars(loop)["is_running"] = replacement
            case "class" | "base":
                {"class": cls, "base": base}[where].is_running = replacement
            case "another class":
                loop.__class__ = other
        asked.clear()
        task = loop.create_task(nothing())
        assert asked == [1] and not task.done()
        await task

    task = kind.create_task(loop, main())
    task.add_done_callback(lambda task: loop.stop())
    loop.run_forever()
    assert task.result() is None
    loop.__class__ = cls
    vars(loop).pop("is_running", None)
    for changed in (cls, base):
        if "is_running" in vars(changed):
            del changed.is_running
    loop.close()


# ---- all_tasks, current_task ----


def test_all_tasks_and_current_task(loop):
    async def main():
        others = [loop.create_task(asyncio.sleep(0)) for _ in range(10)]
        assert asyncio.all_tasks() == {asyncio.current_task(), *others}
        await asyncio.gather(*others)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert asyncio.current_task(loop) is asyncio.current_task()

    assert asyncio.all_tasks(loop) == set()
    loop.run_until_complete(main())
    assert asyncio.all_tasks(loop) == set()
    assert asyncio.current_task(loop) is None


def test_current_task_where_callbacks_look(loop):
    seen = []

    async def main():
        for _ in range(3):
            loop.call_soon(lambda: seen.append(asyncio.current_task()))
            loop.call_later(0, lambda: seen.append(asyncio.current_task()))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    assert seen == [None] * 6


def test_all_tasks_from_another_thread(loop):
    found = []

    async def main():
        tasks = [loop.create_task(asyncio.sleep(10)) for _ in range(50)]
        thread = threading.Thread(target=lambda: found.append(asyncio.all_tasks(loop)))
        thread.start()
        while not found:
            await asyncio.sleep(0.001)
        thread.join()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {*tasks, asyncio.current_task()}

    assert loop.run_until_complete(main()) == found[0]


def test_two_loops_in_two_threads():
    def work():
        async def child(depth):
            if depth:
                await asyncio.gather(child(depth - 1), child(depth - 1))
            assert asyncio.current_task() in asyncio.all_tasks()
            await asyncio.sleep(0)

        loop = fastloop.new_event_loop()
        try:
            loop.run_until_complete(child(6))
            results.append(len(asyncio.all_tasks(loop)))
        finally:
            loop.close()

    results = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 4


def test_completed_from_a_wrong_thread():
    """In debug mode an error, as standard; otherwise the waiter is woken, and nothing breaks."""
    loop = fastloop.new_event_loop()
    errors = []

    def complete(future):
        try:
            future.set_result(1)
        except RuntimeError as exc:
            errors.append(str(exc))

    async def main(debug):
        loop.set_debug(debug)
        future = loop.create_future()
        waiter = loop.create_task(wait_for(future))
        await asyncio.sleep(0)
        thread = threading.Thread(target=complete, args=(future,))
        thread.start()
        thread.join()
        if debug:
            # The callbacks of the future are gone with the error, as on the standard loop: nothing wakes the waiter.
            waiter._log_destroy_pending = False
            return None
        return await asyncio.gather(waiter, return_exceptions=True)

    try:
        assert loop.run_until_complete(main(False)) == [1]
        loop.run_until_complete(main(True))
        assert len(errors) == 1 and "Non-thread-safe operation" in errors[0]
    finally:
        loop.close()


# ---- re-entrancy ----


def test_callbacks_changed_while_scheduling(loop):
    """CPython issue 125966: the list of callbacks is changed by the call_soon() that it is handed to."""
    future = loop.create_future()
    original, ran = loop.call_soon, []

    def call_soon(callback, *args, context=None):
        future.remove_done_callback(second)
        future.add_done_callback(third) if not future.done() else None
        return original(callback, *args, context=context)

    def first(_):
        ran.append(1)

    def second(_):
        ran.append(2)

    def third(_):
        ran.append(3)

    future.add_done_callback(first)
    future.add_done_callback(second)
    loop.call_soon = call_soon
    future.set_result(None)
    del loop.call_soon
    turn(loop)
    assert ran in ([1], [1, 2])


def test_eq_that_changes_the_future(loop):
    """CPython issue 125984: __eq__ inside remove_done_callback() clears what is being walked."""

    class Evil:
        calls = 0

        def __eq__(self, other):
            Evil.calls += 1
            if Evil.calls > 20:
                return True
            future.remove_done_callback(plain)
            future.cancel()
            return False

        def __call__(self, _):
            pass

        __hash__ = None

    def plain(_):
        pass

    future = loop.create_future()
    for callback in (plain, Evil(), Evil(), plain):
        future.add_done_callback(callback)
    future.remove_done_callback(Evil())
    turn(loop)


def test_patched_call_soon_sees_steps_and_wakeups():
    loop = fastloop.new_event_loop()
    seen = []
    original = loop.call_soon

    def call_soon(callback, *args, context=None):
        seen.append(callback)
        return original(callback, *args, context=context)

    loop.call_soon = call_soon

    async def main():
        future = loop.create_future()
        loop.call_later(0, future.set_result, 3)
        return await future

    try:
        assert loop.run_until_complete(main()) == 3
        assert sum(isinstance(getattr(callback, "__self__", None), asyncio.Task) for callback in seen) >= 2
    finally:
        loop.close()


def test_gc_through_loop_and_back():
    loop = fastloop.new_event_loop()
    future = loop.create_future()
    future.owner = loop
    loop.future = future
    task = loop.create_task(wait_for(future))
    turn(loop)
    task.mark = [task, loop, future]
    task._log_destroy_pending = False
    import weakref

    gone = weakref.ref(future)
    loop.close()
    del loop, future, task
    gc.collect()
    assert gone() is None


def test_objects_outlive_their_loop():
    loop = fastloop.new_event_loop()
    futures = [loop.create_future() for _ in range(10)]
    task = loop.create_task(nothing())
    loop.run_until_complete(task)
    iterator = futures[0].__await__()
    loop.close()
    future = loop.create_future()
    assert not future.done()
    del loop
    gc.collect()
    for future in futures:
        future.set_result(1)
    with pytest.raises(StopIteration):
        next(iterator)
    del futures, future, task, iterator
    gc.collect()


def test_flags():
    assert isinstance(_core.native_tasks, bool)


@pytest.mark.parametrize("result", [7, 10**6, 10**30, "text", None, ()])
def test_what_catches_the_end_of_an_iteration_leaves_no_frame_behind(loop, run, result):
    """The StopIteration that a loop uses again and again gets a traceback then."""

    class Local:
        pass

    def drive(future):
        local = Local()
        try:
            next(iter(future))
        except StopIteration as exc:
            assert exc.value == result
        return weakref.ref(local)

    async def main():
        futures = [loop.create_future() for _ in range(2)]
        for future in futures:
            future.set_result(result)
        # One that is kept from here on.
        await futures[0]
        reference = drive(futures[1])
        gc.collect()
        return reference()

    assert run(main()) is None


def test_kept_iterators_that_somebody_found(loop):
    """What the loop keeps for the next await is not used while the program holds it, and is of no use to that."""

    async def value(number):
        await asyncio.sleep(0)
        return number

    async def body():
        return [await loop.create_task(value(number)) for number in range(1000, 1010)]

    assert loop.run_until_complete(body()) == list(range(1000, 1010))
    found = [obj for obj in gc.get_objects() if type(obj).__name__ == "FutureIter"]
    assert loop.run_until_complete(body()) == list(range(1000, 1010))
    for iterator in found:
        assert next(iterator, "ended") == "ended"
        iterator.close()
    del found
    assert loop.run_until_complete(body()) == list(range(1000, 1010))


def test_awaits_in_garbage(loop):
    """Coroutines that wait in a cycle are collected while others go on waiting."""
    collected = []

    class Cycle:
        def __init__(self):
            self.future = loop.create_future()
            self.coro = self.wait()
            self.coro.send(None)

        async def wait(self):
            try:
                await self.future
            finally:
                collected.append(1)

    async def body():
        for number in range(50):
            Cycle()
            if number % 10 == 0:
                gc.collect()
            await asyncio.sleep(0)
            assert await loop.create_task(answer(number)) == number

    async def answer(number):
        await asyncio.sleep(0)
        return number

    loop.run_until_complete(body())
    gc.collect()
    assert len(collected) == 50


def test_unregistered_task_is_not_listed(loop):
    async def body():
        task = asyncio.create_task(asyncio.sleep(0))
        asyncio._unregister_task(task)
        listed = [task in asyncio.all_tasks()]
        asyncio._unregister_task(task)
        asyncio._register_task(task)
        listed.append(task in asyncio.all_tasks())
        await task
        listed.append(task in asyncio.all_tasks())
        return listed

    assert loop.run_until_complete(body()) == [False, True, False]


@pytest.mark.left_out(not HAS_EAGER, reason="eager tasks came with 3.12")
def test_names_of_eager_tasks():
    """What a name is during the first step and after it, and how many automatic ones are used up."""

    def names(factory):
        loop = factory()
        first = []

        async def body():
            first.append(asyncio.current_task().get_name())

        async def main():
            loop.set_task_factory(asyncio.eager_task_factory)
            tasks = [asyncio.create_task(body()), loop.create_task(body(), name=None)]
            tasks.append(loop.create_task(body(), name="x"))
            context = contextvars.copy_context()
            tasks += [asyncio.create_task(body(), name=7, context=context), loop.create_task(body(), context=context)]
            return [task.get_name() for task in tasks]

        try:
            start = int(loop.run_until_complete(automatic_name()).partition("-")[2])
            found = first + loop.run_until_complete(main())
        finally:
            loop.close()
        return [re.sub(r"^Task-(\d+)$", lambda match: f"Task+{int(match[1]) - start}", name) for name in found]

    async def automatic_name():
        return asyncio.current_task().get_name()

    assert names(fastloop.new_event_loop) == names(asyncio.SelectorEventLoop)
