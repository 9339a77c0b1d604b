"""call_soon: order, arguments, contexts, and the Handle that it returns."""

import asyncio
import contextvars
import functools
import gc
import sys
import weakref

import pytest

from helpers import turns

variable = contextvars.ContextVar("variable", default="unset")


def context_of(handle):
    # Handle.get_context() is new in Python 3.12.
    return handle.get_context() if hasattr(handle, "get_context") else handle._context


# ---------------------------------------------------------------- order and arguments


def test_callbacks_run_in_the_order_of_the_calls(loop):
    seen = []
    for i in range(1000):
        loop.call_soon(seen.append, i)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == list(range(1000))


def test_a_callback_added_by_a_callback_runs_in_the_next_turn(loop):
    seen = []

    def first():
        loop.call_soon(seen.append, "added")
        seen.append("first")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["first", "second"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["first", "second", "added"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 20])
def test_arguments_arrive_as_given(loop, count):
    seen = []
    arguments = tuple(object() for _ in range(count))
    loop.call_soon(lambda *args: seen.append(args), *arguments)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [arguments]


@pytest.mark.parametrize(
    "make",
    [
        lambda seen: seen.append,
        lambda seen: functools.partial(seen.append),
        lambda seen: type("Callable", (), {"__call__": lambda self, value: seen.append(value)})(),
        lambda seen: lambda value: seen.append(value),
        lambda seen: type("Bound", (), {"method": lambda self, value: seen.append(value)})().method,
    ],
    ids=["builtin", "partial", "object", "lambda", "method"],
)
def test_any_callable_will_do(loop, make):
    seen = []
    loop.call_soon(make(seen), "value")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["value"]


def test_callbacks_and_arguments_are_released_after_the_run(loop):
    class Thing:
        def __call__(self, other):
            pass

    callback, argument = Thing(), Thing()
    references = [weakref.ref(callback), weakref.ref(argument)]
    loop.call_soon(callback, argument)
    del callback, argument
    assert all(ref() is not None for ref in references)
    loop.call_soon(loop.stop)
    loop.run_forever()
    gc.collect()
    assert [ref() for ref in references] == [None, None]


def test_the_result_of_a_callback_is_ignored(loop):
    loop.call_soon(lambda: object())
    loop.call_soon(loop.stop)
    loop.run_forever()


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.call_soon(),
        lambda loop: loop.call_soon(print, wrong=1),
        lambda loop: loop.call_soon(print, context=None, wrong=1),
        lambda loop: loop.call_later(),
        lambda loop: loop.call_later(1),
        lambda loop: loop.call_later(1, print, wrong=1),
        lambda loop: loop.call_at(1),
        lambda loop: loop.call_soon_threadsafe(),
        lambda loop: loop.call_soon_threadsafe(print, wrong=1),
    ],
    ids=range(9),
)
def test_missing_and_unknown_arguments_are_type_errors(loop, call):
    with pytest.raises(TypeError):
        call(loop)


def test_hundreds_of_thousands_of_callbacks_wait_at_once(loop):
    count = [0]

    def step():
        count[0] += 1

    # Debug mode keeps a traceback for each.
    loop.set_debug(False)
    for _ in range(200_000):
        loop.call_soon(step)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert count == [200_000]


def test_the_private_queues_can_be_looked_at(loop):
    handle = loop.call_soon(print, "never")
    timer = loop.call_later(1000, print, "never")
    assert list(loop._ready) == [handle]
    assert list(loop._scheduled) == [timer]
    handle.cancel()
    timer.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert len(loop._ready) == 0


# ---------------------------------------------------------------- contexts


def test_a_callback_runs_in_a_copy_of_the_current_context(loop):
    seen = []

    def callback():
        seen.append(variable.get())
        variable.set("changed in the callback")

    def scenario():
        variable.set("at the call")
        loop.call_soon(callback)
        variable.set("after the call")
        loop.call_soon(callback)
        loop.call_soon(loop.stop)

    contextvars.copy_context().run(scenario)
    loop.run_forever()
    assert seen == ["at the call", "after the call"]
    assert variable.get() == "unset"


@pytest.mark.parametrize(
    "schedule",
    [
        lambda loop, context, fn: loop.call_soon(fn, context=context),
        lambda loop, context, fn: loop.call_later(0, fn, context=context),
        lambda loop, context, fn: loop.call_at(loop.time(), fn, context=context),
        lambda loop, context, fn: loop.call_soon_threadsafe(fn, context=context),
    ],
    ids=["call_soon", "call_later", "call_at", "call_soon_threadsafe"],
)
def test_a_given_context_is_used_itself_and_not_copied(loop, schedule, run):
    context = contextvars.copy_context()
    handle = schedule(loop, context, lambda: variable.set("kept"))
    assert context_of(handle) is context
    run(asyncio.sleep(0.01))
    assert context[variable] == "kept"
    assert variable.get() == "unset"


def test_callbacks_from_the_empty_context_do_not_see_each_other(loop, run):
    seen = []

    def callback():
        seen.append(variable.get())
        variable.set("leaked")

    async def main():
        for _ in range(20):
            loop.call_soon(callback)
            await asyncio.sleep(0)

    contextvars.Context().run(run, main())
    assert seen == ["unset"] * 20


def test_get_context_of_a_handle_is_its_own_copy(loop):
    handles = [loop.call_soon(print), loop.call_soon(print), loop.call_later(9, print)]
    found = [context_of(handle) for handle in handles]
    assert all(isinstance(context, contextvars.Context) for context in found)
    assert len({id(context) for context in found}) == 3
    assert all(context_of(handle) is context for handle, context in zip(handles, found, strict=True))
    for handle in handles:
        handle.cancel()


@pytest.mark.fastloop_only(reason="new in Python 3.12 on the stock loop, promised on each version")
def test_every_handle_has_get_context(loop):
    context = contextvars.copy_context()
    handle, timer = loop.call_soon(print, context=context), loop.call_later(9, print, context=context)
    assert handle.get_context() is timer.get_context() is context
    handle.cancel()
    timer.cancel()


def test_a_context_that_is_entered_already_is_reported(loop, guard):
    context = contextvars.copy_context()

    def inside():
        loop.call_soon(print, context=context)
        loop.call_soon(loop.stop)
        loop.run_forever()

    context.run(inside)
    (record,) = guard.log.records
    assert record.exc_info[0] is RuntimeError and "already entered" in str(record.exc_info[1])
    assert guard.log.take_one().startswith("Exception in callback print(")


def test_a_context_of_the_wrong_type_is_an_error(loop, contexts):
    loop.call_soon(print, context="not a context")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert isinstance(contexts.take_one()["exception"], (AttributeError, TypeError))


def test_a_handle_keeps_its_context_for_the_exception_handler(loop, guard):
    seen = []
    loop.set_exception_handler(lambda *_: seen.append(variable.get()))
    context = contextvars.copy_context()
    context.run(variable.set, "of the handle")
    loop.call_soon(lambda: 1 / 0, context=context)
    loop.call_soon(loop.stop)
    loop.run_forever()
    # Since 3.12 the exception handler runs in the context of the handle.
    assert seen == ["of the handle" if hasattr(asyncio, "eager_task_factory") else "unset"]


# ---------------------------------------------------------------- Handle


def test_handles_are_asyncio_handles(loop):
    handle = loop.call_soon(print)
    timer = loop.call_later(10, print)
    assert isinstance(handle, asyncio.Handle) and not isinstance(handle, asyncio.TimerHandle)
    assert isinstance(timer, asyncio.Handle) and isinstance(timer, asyncio.TimerHandle)
    assert isinstance(loop.call_soon_threadsafe(print), asyncio.Handle)
    timer.cancel()
    for waiting in loop._ready:
        waiting.cancel()


def test_a_cancelled_callback_does_not_run(loop):
    seen = []
    handle = loop.call_soon(seen.append, "cancelled")
    loop.call_soon(seen.append, "kept")
    assert handle.cancelled() is False
    assert handle.cancel() is None
    assert handle.cancelled() is True
    handle.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["kept"]


def test_a_callback_can_cancel_a_later_one_of_the_same_turn(loop):
    seen = []
    handles = []
    loop.call_soon(lambda: handles[0].cancel())
    handles.append(loop.call_soon(seen.append, "cancelled"))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == []


def test_a_callback_can_cancel_its_own_handle(loop):
    handles = []
    seen = []

    def callback(value):
        handles[0].cancel()
        seen.append(value)

    handles.append(loop.call_soon(callback, "value"))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["value"] and handles[0].cancelled()


def test_cancelling_after_the_run_is_harmless(loop):
    handle = loop.call_soon(int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not handle.cancelled()
    handle.cancel()
    assert handle.cancelled()


def test_cancelling_releases_callback_and_arguments_at_once(loop):
    class Thing:
        def __call__(self, *args):
            pass

    callback, argument = Thing(), Thing()
    references = [weakref.ref(callback), weakref.ref(argument)]
    handle = loop.call_soon(callback, argument)
    del callback, argument
    handle.cancel()
    assert [ref() for ref in references] == [None, None]


def test_repr_names_the_callback_and_says_cancelled(loop):
    def some_callback():
        pass

    loop.set_debug(False)
    handle = loop.call_soon(some_callback)
    timer = loop.call_at(loop.time() + 1000, some_callback)
    assert repr(handle).startswith("<Handle ") and "some_callback" in repr(handle) and __file__ in repr(handle)
    assert repr(timer).startswith(f"<TimerHandle when={timer.when()} ") and "some_callback" in repr(timer)
    handle.cancel()
    timer.cancel()
    assert repr(handle) == "<Handle cancelled>"
    assert repr(timer).startswith("<TimerHandle cancelled when=")


def test_in_debug_mode_repr_tells_where_the_handle_was_made(loop):
    loop.set_debug(True)
    handle = loop.call_soon(print, "argument")
    timer = loop.call_later(1000, print)
    for one in (handle, timer):
        assert f"created at {__file__}:" in repr(one)
    handle.cancel()
    timer.cancel()
    assert "cancelled" in repr(handle) and "print" in repr(handle)


def test_handles_can_be_weakly_referenced_and_hashed(loop):
    handles = [loop.call_soon(print), loop.call_later(1000, print)]
    assert all(weakref.ref(handle)() is handle for handle in handles)
    assert len({handle: 1 for handle in handles}) == 2
    for handle in handles:
        handle.cancel()


def test_a_plain_handle_equals_only_itself(loop):
    first, second = loop.call_soon(print), loop.call_soon(print)
    assert first == first and first != second
    with pytest.raises(TypeError):
        first < second
    first.cancel()
    second.cancel()


def test_a_handle_outlives_its_loop(loop_factory):
    loop = loop_factory()
    handle, timer = loop.call_soon(print), loop.call_later(10, print)
    loop.close()
    del loop
    gc.collect()
    repr(handle), repr(timer), timer.when(), context_of(handle)
    handle.cancel()
    timer.cancel()
    assert handle.cancelled() and timer.cancelled()


def test_a_standard_handle_can_be_run_by_hand(loop):
    seen = []
    handle = loop.call_soon(seen.append, "run by hand")
    handle._run()
    handle.cancel()
    assert seen == ["run by hand"]


def test_handles_in_cycles_are_collected(loop):
    class Owner:
        def callback(self):
            pass

    owner = Owner()
    owner.handle = loop.call_soon(owner.callback)
    owner.timer = loop.call_later(1000, owner.callback)
    reference = weakref.ref(owner)
    owner.timer.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    del owner
    gc.collect()
    assert reference() is None


class Owner:
    """Holds a handle that holds it."""

    def __init__(self, loop, schedule="call_soon"):
        self.handle = getattr(loop, schedule)(self.callback)

    def callback(self):
        pass


@pytest.mark.parametrize("schedule", ["call_soon", "call_soon_threadsafe"])
def test_handles_in_cycles_that_are_made_in_a_run_are_collected(loop, run, schedule):
    async def main():
        owner = Owner(loop, schedule)
        reference = weakref.ref(owner)
        gc.collect()
        await turns(2)
        del owner
        gc.collect()
        return reference()

    assert run(main()) is None


def test_a_loop_with_queued_handles_in_cycles_is_collected(loop_factory):
    """They were queued in a run, which ended before their turn; the loop is not closed."""

    def make():
        loop = loop_factory()
        owners = []
        loop.call_soon(lambda: (loop.stop(), owners.append(Owner(loop))))
        loop.run_forever()
        return weakref.ref(loop), weakref.ref(owners[0])

    loop, owner = make()
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        gc.collect()
    assert loop() is None and owner() is None


def test_the_context_of_a_handle_stays_the_same_one(loop, run):
    other = contextvars.ContextVar("other")

    async def main():
        found = []

        def callback():
            found.append(context_of(handle))
            other.set("in the callback")

        before, during = loop.call_soon(callback), None
        handle = before
        found.append(context_of(handle))
        await turns(1)
        found.append(context_of(handle))
        handle = during = loop.call_soon(callback)
        await turns(1)
        found.append(context_of(during))
        return [[context.get(other) for context in found], len({id(context) for context in found})]

    values, contexts = contextvars.Context().run(run, main())
    assert values == ["in the callback"] * 5 and contexts == 2


# ---------------------------------------------------------------- tasks and callbacks share one order


def test_task_steps_and_callbacks_share_one_queue(loop, run):
    seen = []

    async def child(name):
        seen.append(f"{name} 1")
        await asyncio.sleep(0)
        seen.append(f"{name} 2")

    async def main():
        tasks = [loop.create_task(child("a"))]
        loop.call_soon(seen.append, "callback 1")
        tasks.append(loop.create_task(child("b")))
        loop.call_soon(seen.append, "callback 2")
        await asyncio.gather(*tasks)

    run(main())
    assert seen == ["a 1", "callback 1", "b 1", "callback 2", "a 2", "b 2"]


def test_done_callbacks_of_a_future_run_in_order_in_a_later_turn(loop, run):
    seen = []

    async def main():
        future = loop.create_future()
        for i in range(5):
            future.add_done_callback(lambda f, i=i: seen.append((i, f.result())))
        future.set_result("value")
        assert seen == []
        await turns(1)
        future.add_done_callback(lambda f: seen.append("late"))
        assert len(seen) == 5
        await turns(1)

    run(main())
    assert seen == [(i, "value") for i in range(5)] + ["late"]


@pytest.mark.fastloop_only(reason="the standard loop keeps no contexts")
def test_a_kept_context_that_somebody_found_is_not_used(loop):
    """Contexts of handles that have run are kept; gc.get_objects() finds them."""
    variable = contextvars.ContextVar("variable")
    seen = []

    def spoil():
        for found in gc.get_objects():
            if type(found) is contextvars.Context and not found:
                try:
                    found.run(variable.set, "foreign")
                except RuntimeError:
                    pass

    def main():
        for function in [int] * 5 + [spoil, loop.stop]:
            loop.call_soon(function)
        loop.run_forever()
        for _ in range(8):
            loop.call_soon(lambda: seen.append(variable.get(None)))
        loop.call_soon(loop.stop)
        loop.run_forever()

    contextvars.Context().run(main)
    assert seen == [None] * 8


@pytest.mark.parametrize("kind", ["handle", "timer", "task"])
def test_what_the_garbage_collector_took_apart_is_not_used_again(loop, run, kind):
    """It empties a context that only a handle or a task in a cycle held, before or after that is freed."""

    async def leave_a_cycle():
        class Owner:
            def method(self):
                pass

            async def wait(self):
                await asyncio.sleep(0)

        owner = Owner()
        if kind == "handle":
            owner.held = loop.call_soon(owner.method)
        elif kind == "timer":
            owner.held = loop.call_later(0, owner.method)
        else:
            owner.held = loop.create_task(owner.wait())
        await asyncio.sleep(0.001)

    async def main():
        for _ in range(3):
            await leave_a_cycle()
            gc.collect()
            handles = [loop.call_later(1000, int) for _ in range(5)] + [loop.call_soon(int) for _ in range(5)]
            await asyncio.gather(*(loop.create_task(asyncio.sleep(0)) for _ in range(5)))
            for handle in handles:
                handle.cancel()

    run(main())


@pytest.mark.fastloop_only(reason="the standard loop keeps no handles")
@pytest.mark.left_out(sys.getallocatedblocks() == 0, reason="this memory allocator does not count")
@pytest.mark.parametrize("timers", [False, True], ids=["handles", "timers"])
def test_the_memory_of_a_burst_goes_when_it_is_not_used_again(loop, run, timers):
    count = 8000

    async def burst():
        for _ in range(count):
            if timers:
                loop.call_at(0, int)
            else:
                loop.call_soon(int)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def main():
        before = sys.getallocatedblocks()
        await burst()
        kept = sys.getallocatedblocks() - before
        assert kept > count / 2
        # What is used again and again stays.
        for _ in range(3):
            await burst()
            await asyncio.sleep(1e-4)
        assert sys.getallocatedblocks() - before > count / 2
        # What is not goes little by little, in a fifth of a second.
        end = loop.time() + 10
        while sys.getallocatedblocks() - before >= count / 2:
            assert loop.time() < end
            await asyncio.sleep(1e-3)

    run(main())
