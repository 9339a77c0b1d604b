"""asyncio.run_coroutine_threadsafe(): the task and the concurrent.futures.Future chained to it, from both ends."""

import asyncio
import concurrent.futures
import contextvars
import re
import threading
import weakref
from asyncio import futures, tasks

import pytest

from helpers import until

variable = contextvars.ContextVar("variable", default=None)


async def answer(value=1):
    return value


async def fail(error):
    raise error


def submit(loop, coroutine):
    """run_coroutine_threadsafe() in a thread, while the loop waits for that thread; returns the future."""
    made = []
    thread = threading.Thread(target=lambda: made.append(asyncio.run_coroutine_threadsafe(coroutine, loop)))
    thread.start()
    thread.join()
    return made[0]


async def outcome(future):
    """The exception or the result, once it is there."""
    await until(future.done)
    return future.exception() or future.result()


# ---------------------------------------------------------------- outcomes


def test_results_and_waiters(loop, run):
    async def main():
        def work():
            made = [asyncio.run_coroutine_threadsafe(answer(number), loop) for number in range(5)]
            done, _ = concurrent.futures.wait(made)
            assert done == {*made}
            assert {future.result() for future in concurrent.futures.as_completed(made)} == {*range(5)}
            return [future.result() for future in made]

        assert await asyncio.to_thread(work) == [*range(5)]
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (ValueError("no"), ValueError),
        (concurrent.futures.InvalidStateError("no"), asyncio.InvalidStateError),
        (StopAsyncIteration("no"), StopAsyncIteration),
    ],
    ids=["ValueError", "InvalidStateError", "StopAsyncIteration"],
)
def test_exceptions(loop, run, error, becomes):
    async def main():
        raised = await outcome(submit(loop, fail(error)))
        assert type(raised) is becomes and raised.args == ("no",)

    run(main())


def test_a_task_that_is_cancelled_cancels_the_future(loop, run):
    async def main():
        task = None

        async def wait():
            nonlocal task
            task = asyncio.current_task()
            await asyncio.Event().wait()

        future = submit(loop, wait())
        await until(lambda: task is not None)
        assert future.running() is False
        task.cancel()
        await until(future.done)
        assert future.cancelled()
        assert future._state == "CANCELLED_AND_NOTIFIED"

    run(main())


@pytest.mark.parametrize("started", [True, False])
def test_a_future_that_is_cancelled_cancels_the_task(loop, run, started):
    async def main():
        seen = []

        async def wait():
            seen.append("started")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        coroutine = wait()
        future = submit(loop, coroutine)
        if started:
            await until(lambda: seen)
        assert future.cancel()
        await until(lambda: len(asyncio.all_tasks()) == 1 and coroutine.cr_frame is None)
        assert seen[1:] == ["cancelled"] * bool(seen)
        assert future.cancelled()

    run(main())


def test_a_result_of_somebody_elses_is_reported(loop, run, contexts, caplog):
    async def main():
        event = asyncio.Event()
        future = submit(loop, event.wait())
        future.set_result("mine")
        event.set()
        await until(lambda: contexts)
        assert future.result() == "mine"

    run(main())
    context = contexts.take_one()
    assert re.match(
        r"Exception in callback _chain_future\.<locals>\._call_set_state\(.*\) at .*futures.py",
        context["message"],
    )
    assert type(context["exception"]) is RuntimeError
    assert context["exception"].args == ("Future in unexpected state",)
    assert "in unexpected state: FINISHED" in caplog.text


# ---------------------------------------------------------------- what can be seen


def test_the_task_shows_the_callback(loop, run):
    async def main():
        event = asyncio.Event()
        future = submit(loop, event.wait())
        await until(lambda: len(asyncio.all_tasks()) == 2)
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        # Before its first step, and after.
        assert re.search(r"cb=\[_chain_future\.<locals>\._call_set_state\(\) at .*futures\.py:\d+\]", repr(task))
        (check,) = future._done_callbacks
        assert check.__qualname__ == "_chain_future.<locals>._call_check_cancel"
        assert check.__module__ == "asyncio.futures"
        event.set()
        assert await outcome(future) is True

    run(main())


def test_contexts(loop, run):
    seen, go = [], asyncio.Event()

    async def look():
        await go.wait()
        seen.append(variable.get())
        variable.set("of the task")

    def work():
        variable.set("of the thread")
        future = asyncio.run_coroutine_threadsafe(look(), loop)
        future.add_done_callback(lambda _: seen.append((variable.get(), threading.get_ident())))
        loop.call_soon_threadsafe(go.set)
        future.result()

    async def main():
        variable.set("of the loop")
        await asyncio.to_thread(contextvars.Context().run, work)
        await until(lambda: len(seen) == 2)
        await loop.shutdown_default_executor()

    run(main())
    assert seen == ["of the thread", ("of the thread", threading.get_ident())]


def test_nothing_is_kept(loop, run):
    class Value:
        pass

    async def main():
        future = submit(loop, answer(Value()))
        value = weakref.ref(await outcome(future))
        kept = weakref.ref(future)
        del future
        await until(lambda: kept() is None and value() is None)

    run(main())


# ---------------------------------------------------------------- what is replaced


class Kind(asyncio.Task):
    pass


class NoTask(asyncio.Future):
    def set_name(self, name):
        pass


def make_no_task(loop, coroutine, **options):
    coroutine.close()
    future = NoTask(loop=loop)
    future.set_result("of the factory")
    return future


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (lambda loop, coroutine, **options: Kind(coroutine, loop=loop, **options), 1),
        (lambda loop, coroutine, **options: tasks._PyTask(coroutine, loop=loop, **options), 1),
        (make_no_task, "of the factory"),
    ],
    ids=["subclass", "in Python", "future"],
)
def test_task_factories(loop, run, factory, expected):
    async def main():
        loop.set_task_factory(factory)
        assert await outcome(submit(loop, answer())) == expected
        loop.set_task_factory(None)

    run(main())


def test_a_factory_that_fails(loop, run, contexts):
    async def main():
        def factory(loop, coroutine, **options):
            coroutine.close()
            raise LookupError("no task")

        loop.set_task_factory(factory)
        future = submit(loop, answer())
        await until(lambda: contexts)
        loop.set_task_factory(None)
        assert type(future.exception()) is LookupError

    run(main())
    context = contexts.take_one()
    assert type(context["exception"]) is LookupError
    assert context["message"].startswith("Exception in callback run_coroutine_threadsafe.<locals>.callback() at ")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (futures, "_chain_future"),
        (futures, "_set_concurrent_future_state"),
        (tasks, "ensure_future"),
        (concurrent.futures.Future, "add_done_callback"),
        (concurrent.futures.Future, "set_running_or_notify_cancel"),
        (concurrent.futures.Future, "set_result"),
    ],
)
def test_replaced_functions_are_called(loop, run, monkeypatch, owner, name):
    calls = []
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    async def main():
        monkeypatch.setattr(owner, name, replacement)
        assert await outcome(submit(loop, answer())) == 1
        monkeypatch.undo()

    run(main())
    assert calls == [name]


@pytest.mark.parametrize("kind", ["debug", "subclass"])
def test_the_way_of_asyncio(loop, run, monkeypatch, kind):
    class Future(concurrent.futures.Future):
        pass

    async def main():
        if kind == "debug":
            loop.set_debug(True)
        else:
            monkeypatch.setattr(concurrent.futures, "Future", Future)
        future = submit(loop, answer())
        assert await outcome(future) == 1
        assert (type(future) is Future) is (kind == "subclass")
        monkeypatch.undo()

    run(main())


SUBMIT = """
    import asyncio, sys, threading
    from concurrent.futures import Future

    async def answer():
        return 1

    async def submit():
        made = []
        thread = threading.Thread(target=lambda: made.append(asyncio.run_coroutine_threadsafe(answer(), loop)))
        thread.start()
        thread.join()
        while not made[0].done():
            await asyncio.sleep(0)

"""
NATIVELY = """
    def noting(name):
        original = getattr(Future, name)

        def method(self, *args):
            callers.append((name, sys._getframe(1).f_code.co_name))
            return original(self, *args)

        setattr(Future, name, method)

    callers = []
    noting("add_done_callback")
    noting("set_result")
    loop = new_event_loop()
    loop.set_debug(False)
    loop.run_until_complete(submit())
    loop.close()
    print([name for name, caller in callers], "_chain_future" in dict(callers).values(),
          "_set_concurrent_future_state" in dict(callers).values())
"""


@pytest.mark.fastloop_only("the stock loop calls asyncio's functions")
@pytest.mark.parametrize("disabled", ["", "tasks"])
def test_it_is_done_natively(python, monkeypatch, disabled):
    """Who calls the methods of the concurrent.futures.Future? (A profiler would change what it looks at.)"""
    monkeypatch.setenv("FASTLOOP_DISABLE", disabled)
    called = disabled == "tasks"
    assert python(SUBMIT + NATIVELY) == f"{['add_done_callback', 'set_result']} {called} {called}\n"


PROFILED = """
    async def main():
        sys.setprofile(lambda frame, event, arg: event == "call" and called.append(frame.f_code.co_name))
        await submit()
        sys.setprofile(None)

    called = []
    loop = new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    print({"_chain_future", "_call_set_state", "set_result"} <= {*called})
"""


def test_a_profiler_sees_it(python):
    assert python(SUBMIT + PROFILED) == "True\n"


def test_a_handle_that_is_run_after_the_end_of_its_loop(loop_factory):
    loop = loop_factory()
    loop.set_exception_handler(lambda loop, context: None)
    coroutine = answer()
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    handle = loop._ready[-1]
    loop.close()
    handle._run()
    assert isinstance(future.exception(0), RuntimeError)
    coroutine.close()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_factory_that_ends_the_run(loop, run, error):
    def factory(loop, coroutine, **options):
        coroutine.close()
        raise error

    loop.set_task_factory(factory)
    future = asyncio.run_coroutine_threadsafe(answer(), loop)
    loop.call_soon(loop.stop)
    with pytest.raises(error):
        loop.run_forever()
    loop.set_task_factory(None)
    assert not future.done()
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_a_factory_that_fails_behind_a_cancelled_future(loop, run, contexts):
    def factory(loop, coroutine, **options):
        coroutine.close()
        raise LookupError("no task")

    async def main():
        loop.set_task_factory(factory)
        future = submit(loop, answer())
        assert future.cancel()
        await until(lambda: contexts)
        loop.set_task_factory(None)
        assert future.cancelled()

    run(main())
    assert type(contexts.take_one()["exception"]) is LookupError


def test_a_factory_that_gives_a_task_of_another_loop(loop, run, loop_factory):
    other = loop_factory()

    def factory(loop, coroutine, **options):
        return other.create_task(coroutine)

    async def main():
        loop.set_task_factory(factory)
        future = submit(loop, answer("elsewhere"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        loop.set_task_factory(None)
        assert not future.done()
        return future

    future = run(main())
    other.run_until_complete(asyncio.sleep(0))
    other.close()
    assert future.result(0) == "elsewhere"


def test_a_function_that_is_missing(loop, run, monkeypatch, contexts):
    async def main():
        coroutine = answer()
        future = submit(loop, coroutine)
        monkeypatch.delattr(tasks, "ensure_future")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        monkeypatch.undo()
        assert type(future.exception(0)) is NameError
        coroutine.close()

    run(main())
    assert type(contexts.take_one()["exception"]) is NameError


@pytest.mark.parametrize("name", ["_chain_future", "_set_concurrent_future_state"])
def test_functions_with_other_code(loop, run, monkeypatch, name):
    """As tracers wrap them: the function is the same one."""
    function = getattr(futures, name)

    def replacement(*args, **kwargs):
        raise LookupError("replaced")

    async def main():
        coroutine = answer()
        monkeypatch.setattr(function, "__code__", replacement.__code__)
        future = submit(loop, coroutine)
        await until(lambda: contexts)
        monkeypatch.undo()
        assert future.done() == (name == "_chain_future")
        await asyncio.sleep(0)

    contexts = []
    loop.set_exception_handler(lambda loop, context: contexts.append(context["exception"]))
    run(main())
    assert [type(exception) for exception in contexts] == [LookupError]


def test_callbacks_called_by_hand(loop, run, contexts):
    """With arguments that they do not have, and too early."""

    async def main():
        waiting = loop.create_future()
        future = submit(loop, wait(waiting))
        submitted = loop._ready[-1]._callback
        (task,) = await until(lambda: asyncio.all_tasks() - {asyncio.current_task()})
        (chained,) = [callback for callback, _ in task._callbacks if "_call_set_state" in repr(callback)]
        loop.call_soon(submitted, 1)
        loop.call_soon(chained)
        loop.call_soon(chained, task)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [type(context["exception"]) for context in contexts.take()] == [TypeError, TypeError, AssertionError]
        waiting.set_result(2)
        assert await outcome(future) == 2

    async def wait(future):
        return await future

    run(main())
