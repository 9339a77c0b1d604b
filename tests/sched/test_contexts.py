"""Which context is the current one, entered by the C API or without it (FASTLOOP_DISABLE=contexts)."""

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import os
import sysconfig
import threading
import weakref

import pytest

import fastloop

VARIABLE = contextvars.ContextVar("VARIABLE", default="nothing")


@pytest.fixture(params=["", "contexts"], ids=["known", "by the C API"], autouse=True)
def way(request, monkeypatch):
    """What FASTLOOP_DISABLE switches off; `loop` is made after this."""
    others = set(os.environ.get("FASTLOOP_DISABLE", "").split(",")) - {"", "contexts"}
    monkeypatch.setenv("FASTLOOP_DISABLE", ",".join(sorted(others | {request.param} - {""})))
    return request.param


def context_with(value):
    context = contextvars.Context()
    context.run(VARIABLE.set, value)
    return context


@pytest.mark.fastloop_only(reason="there is no other way on the stock loop")
def test_the_switch(loop, way):
    has_gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
    assert loop._knows_contexts is (has_gil and way == "")


def test_each_callback_sees_its_own(loop):
    """One after the other, so that a value which the variable itself remembers would be a wrong one."""
    contexts = [context_with(number) for number in range(3)]
    seen = []
    for turn in range(20):
        loop.call_soon(lambda: seen.append(VARIABLE.get()), context=contexts[turn % 3])
        loop.call_soon(lambda: seen.append(VARIABLE.get()))
        loop.call_later(0, lambda: seen.append(VARIABLE.get()), context=contexts[turn % 3])
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert sorted(map(str, seen)) == sorted(["nothing"] * 20 + [str(turn % 3) for turn in range(20)] * 2)
    assert seen[:4] == [0, "nothing", 1, "nothing"]


def test_each_task_sees_its_own(run):
    async def count(number, seen):
        for step in range(10):
            VARIABLE.set((number, step))
            await asyncio.sleep(0)
            seen.append(VARIABLE.get() == (number, step))

    async def main():
        seen = []
        await asyncio.gather(*(count(number, seen) for number in range(20)))
        # Those that come later are made of what these have left behind.
        await asyncio.gather(*(count(number, seen) for number in range(20)))
        return seen, VARIABLE.get()

    assert run(main()) == ([True] * 400, "nothing")


def test_after_an_exception_the_context_is_left(loop, contexts):
    seen = []

    def fail():
        VARIABLE.set("failed")
        raise ZeroDivisionError

    async def fail_in_a_task():
        VARIABLE.set("failed")
        raise ZeroDivisionError

    loop.call_soon(fail)
    loop.call_soon(lambda: seen.append(VARIABLE.get()))
    task = loop.create_task(fail_in_a_task())
    loop.call_soon(lambda: seen.append(VARIABLE.get()))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == ["nothing"] * 2 and VARIABLE.get() == "nothing"
    assert isinstance(task.exception(), ZeroDivisionError)
    assert isinstance(contexts.take_one()["exception"], ZeroDivisionError)


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_run(loop, how):
    def fail():
        VARIABLE.set("failed")
        raise how

    loop.call_soon(fail)
    with pytest.raises(how):
        loop.run_forever()
    assert VARIABLE.get() == "nothing"


def test_the_current_one_is_copied(loop, run):
    async def child():
        return VARIABLE.get()

    async def main():
        before = await asyncio.create_task(child())
        VARIABLE.set("set")
        return before, await asyncio.create_task(child()), await asyncio.create_task(child())

    assert run(main()) == ("nothing", "set", "set")


def test_one_that_was_emptied_again(run):
    """It has no variables, as those that were never set."""

    async def child():
        return VARIABLE.get(), len(contextvars.copy_context())

    async def main():
        token = VARIABLE.set("set")
        inside = await asyncio.create_task(child())
        VARIABLE.reset(token)
        return inside[0], await asyncio.create_task(child())

    assert contextvars.Context().run(run, main()) == ("set", ("nothing", 0))


@pytest.mark.skipif(not hasattr(asyncio.Task, "get_context"), reason="Python 3.12 and later")
def test_one_that_somebody_has_seen_is_not_used_again(run):
    kept, references = [], []

    async def look():
        return VARIABLE.get()

    async def main():
        for number in range(20):
            task = asyncio.create_task(look())
            await task
            if number % 2:
                kept.append(task.get_context())
            else:
                references.append(weakref.ref(task.get_context()))
            del task
            await asyncio.create_task(look())
        for number, context in enumerate(kept):
            context.run(VARIABLE.set, number)
        return await asyncio.gather(*(look() for _ in range(50)))

    assert set(contextvars.Context().run(run, main())) == {"nothing"}
    assert [context.get(VARIABLE) for context in kept] == list(range(10))
    gc.collect()
    assert {reference() for reference in references} == {None}


def test_a_task_made_by_another_thread(loop, run):
    """asyncio does not allow it, and copies the context of that thread."""
    made = []

    async def child():
        return VARIABLE.get()

    def make():
        VARIABLE.set("thread")
        made.append(loop.create_task(child()))

    async def main():
        VARIABLE.set("loop")
        thread = threading.Thread(target=make)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.001)
        # The loop may not have been woken: it is not asked to by this call.
        await asyncio.sleep(0)
        return await made[0]

    if loop.get_debug() or sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("debug mode refuses the call, and without a GIL nothing orders it")
    assert run(main()) == "thread"


def test_a_handle_that_another_thread_runs(loop):
    """While a callback of the loop runs: each sees its own context, before and after."""
    seen = {}
    handle = loop.call_later(1000, lambda: seen.update(thread=VARIABLE.get()), context=context_with("handle"))
    entered, left = threading.Event(), threading.Event()

    def run_it():
        VARIABLE.set("thread")
        entered.wait()
        handle._run()
        seen.update(after=VARIABLE.get())
        left.set()

    def callback():
        VARIABLE.set("callback")
        entered.set()
        left.wait()
        seen.update(callback=VARIABLE.get())
        loop.stop()

    thread = threading.Thread(target=run_it)
    thread.start()
    loop.call_soon(callback)
    loop.run_forever()
    thread.join()
    handle.cancel()
    assert seen == {"thread": "handle", "after": "thread", "callback": "callback"}
    assert VARIABLE.get() == "nothing"


def test_a_run_inside_a_callback(loop, guard):
    """Another loop in another thread, and one in the same thread while this one waits in a callback."""
    seen = []

    async def child(value):
        VARIABLE.set(value)
        await asyncio.sleep(0)
        return VARIABLE.get()

    def elsewhere(value):
        inner = type(loop)() if isinstance(loop, fastloop.Loop) else asyncio.new_event_loop()
        try:
            seen.append(inner.run_until_complete(child(value)))
        finally:
            inner.close()

    def here():
        VARIABLE.set("outer")
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            elsewhere("inner")
        finally:
            asyncio._set_running_loop(running)
        seen.append(VARIABLE.get())

    threads = [threading.Thread(target=elsewhere, args=(f"thread {number}",)) for number in range(2)]
    for thread in threads:
        loop.call_soon(thread.start)
    loop.call_soon(here)
    loop.call_soon(lambda: seen.append(VARIABLE.get()))
    for thread in threads:
        loop.call_soon(thread.join)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["inner", "nothing", "outer", "thread 0", "thread 1"]


def test_greenlets(loop):
    """What a greenlet has set is its own, also when it is switched to in the middle of a callback."""
    greenlet = pytest.importorskip("greenlet")
    seen = []

    def inside():
        VARIABLE.set("greenlet")
        for _ in range(3):
            greenlet.getcurrent().parent.switch()
            seen.append(VARIABLE.get())

    other = greenlet.greenlet(inside)

    def callback(value):
        VARIABLE.set(value)
        other.switch()
        seen.append(VARIABLE.get())

    for value in range(4):
        loop.call_soon(callback, value)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert [value for value in seen if value != "greenlet"] == [0, 1, 2, 3]
    assert seen.count("greenlet") == 3
    assert VARIABLE.get() == "nothing"


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 and later")
def test_eager_tasks(loop, run):
    seen = []

    async def child(value):
        VARIABLE.set(value)
        seen.append(VARIABLE.get())

    async def main():
        VARIABLE.set("parent")
        await asyncio.gather(*(child(value) for value in range(5)))
        return VARIABLE.get()

    loop.set_task_factory(asyncio.eager_task_factory)
    assert run(main()) == "parent" and seen == [0, 1, 2, 3, 4]


NEW_WATCHERS = pytest.mark.skipif(not hasattr(ctypes.pythonapi, "PyContext_AddWatcher"), reason="new in 3.14")
WATCHER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


@contextlib.contextmanager
def watched(told):
    """Has a watcher of contexts, which only C code can be, note what it is told of.

    It must not be there when an exception leaves a context: it runs Python code.
    """
    callback = WATCHER(lambda event, context: told.append(event) or 0)
    number = ctypes.pythonapi.PyContext_AddWatcher(callback)
    assert number >= 0
    yield
    ctypes.pythonapi.PyContext_ClearWatcher(number)


async def sleep_soon(own):
    await asyncio.sleep(0)


async def sleep(own):
    await asyncio.sleep(0.001)


async def call(own):
    own.call_soon(int)
    await asyncio.sleep(0)


async def start_task(own):
    await own.create_task(asyncio.sleep(0))


async def start_eager_task(own):
    await asyncio.Task(asyncio.sleep(0), loop=own, eager_start=True)


@NEW_WATCHERS
def test_who_watches_contexts_is_told_of_each_change(loop):
    """Of as many as asyncio's own loop makes of the same callbacks, from the first one on."""

    def switches(own):
        counts = []
        for body in (sleep_soon, sleep, call, start_task, start_eager_task):
            told = []
            own.run_until_complete(body(own))
            with watched(told):
                own.run_until_complete(body(own))
            counts.append(len(told))
        return counts

    stock = asyncio.SelectorEventLoop()
    try:
        assert switches(loop) == switches(stock)
    finally:
        stock.close()


@NEW_WATCHERS
def test_who_begins_to_watch_within_a_callback_is_told_of_its_end(loop):
    told, numbers = [], []
    callback = WATCHER(lambda event, context: told.append(event) or 0)
    loop.call_soon(lambda: numbers.append(ctypes.pythonapi.PyContext_AddWatcher(callback)))
    loop.call_soon(lambda: told.append("inside"))
    loop.call_soon(lambda: ctypes.pythonapi.PyContext_ClearWatcher(numbers[0]))
    loop.call_soon(loop.stop)
    loop.run_forever()
    switched = 1
    # The end of the first, then begin and end of the second, and the begin of the third.
    assert told == [switched, switched, "inside", switched, switched]
