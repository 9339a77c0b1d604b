"""Calls that programs rarely make, right and wrong ones: the standard loop's answers."""

import asyncio
import contextvars
import gc
import re
import signal
import socket
import sys
import weakref

import pytest


class FakeContext:
    """What call_soon() takes for a context as long as nobody calls it."""

    def __init__(self):
        self.calls = []

    def run(self, callback, *args):
        self.calls.append((callback, args))
        return callback(*args)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_context_of_another_kind_is_used_by_its_run(loop, run, count):
    context, seen = FakeContext(), []

    def callback(*args):
        seen.append(args)

    async def main():
        loop.call_soon(callback, *range(count), context=context)
        await asyncio.sleep(0)

    run(main())
    assert seen == [tuple(range(count))]
    assert context.calls == [(callback, tuple(range(count)))]


def test_a_context_without_run_is_reported(loop, run):
    problems = []
    loop.set_exception_handler(lambda loop, context: problems.append(type(context["exception"])))

    async def main():
        loop.call_soon(int, context=object())
        await asyncio.sleep(0)

    run(main())
    assert problems == [AttributeError]


@pytest.mark.parametrize("kind", ["runs", "is cancelled", "fails"])
def test_a_handle_of_asyncio_is_run_by_the_loop(loop, run, kind):
    problems, seen = [], []
    loop.set_exception_handler(lambda loop, context: problems.append(context.get("exception")))

    def callback(value):
        seen.append(value)
        if kind == "fails":
            raise ValueError(value)

    async def main():
        handle = asyncio.Handle(callback, (7,), loop)
        if kind == "is cancelled":
            handle.cancel()
        loop._add_callback(handle)
        await asyncio.sleep(0)

    run(main())
    assert seen == ([] if kind == "is cancelled" else [7])
    assert [type(problem) for problem in problems] == ([ValueError] if kind == "fails" else [])


def test_what_debuggers_read_and_write_on_a_handle(loop):
    handle = loop.call_soon(int, 1, 2, 3, 4)
    timer = loop.call_later(1000, print, 1)
    for one in (handle, timer):
        assert one._callback in (int, print) and one._cancelled is False and one._loop is loop
        assert isinstance(one._context, contextvars.Context)
        if sys.version_info >= (3, 12):
            assert one.get_context() is one._context
        assert one._args is one._args
        one._repr = "<of mine>"
        one._source_traceback = None
        assert one._repr == "<of mine>" and one._source_traceback is None
        one._repr = None
        one.cancel()
        assert one._callback is None and one._args is None and one.cancelled()


@pytest.mark.fastloop_only(reason="the standard loop of 3.13 takes itself for stopped after the refusal")
def test_a_running_loop_is_neither_run_nor_closed(loop, run):
    async def main():
        with pytest.raises(RuntimeError, match="already running"):
            type(loop).run_forever(loop)
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    run(main())


def test_a_closed_loop_takes_nothing(loop_factory):
    loop = loop_factory()
    loop.close()
    loop.close()
    future = asyncio.Future(loop=loop)
    for call in (
        lambda: loop.call_soon(int),
        lambda: loop.call_later(1, int),
        lambda: loop.call_at(1, int),
        lambda: loop.call_soon_threadsafe(int),
        loop.run_forever,
        lambda: future.add_done_callback(print) or future.set_result(1),
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call()
    assert loop.is_closed() and not loop.is_running()


class Yields:
    """An awaitable that yields what no task takes."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield self.value


@pytest.mark.parametrize("kind", ["number", "other loop", "plain yield", "itself"])
def test_a_task_is_told_what_it_may_not_yield(loop, run, loop_factory, kind):
    async def main():
        task = asyncio.current_task()
        other = loop_factory() if kind == "other loop" else None
        future = (other or loop).create_future()
        future._asyncio_future_blocking = kind != "plain yield"
        value = {"number": 1, "itself": task}.get(kind, future)
        try:
            if kind == "itself":
                await task
            else:
                await Yields(value)
        finally:
            if other is not None:
                other.close()

    texts = {
        "number": "Task got bad yield: 1",
        "other loop": "attached to a different loop",
        "plain yield": "yield was used instead of yield from",
        "itself": "Task cannot await on itself",
    }
    with pytest.raises(RuntimeError, match=texts[kind]):
        run(main())


def test_names_of_tasks_count_up(loop, run):
    async def nothing():
        pass

    async def main():
        tasks = [asyncio.create_task(nothing()) for _ in range(12)]
        numbers = [int(task.get_name().removeprefix("Task-")) for task in tasks]
        assert numbers == list(range(numbers[0], numbers[0] + 12))
        tasks[0].set_name(12)
        assert tasks[0].get_name() == "12"
        await asyncio.gather(*tasks)

    run(main())


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_arguments_of_add_reader(loop, method):
    left, right = socket.socketpair()
    with left, right:
        add = getattr(loop, method)
        add(fd=left, callback=print)
        add(callback=print, fd=left.fileno())
        for args, kwargs in (
            ((), {}),
            ((left,), {}),
            ((), {"fd": left}),
            ((), {"callback": print}),
            ((left, print), {"fd": left}),
            ((left, print), {"nonsense": 1}),
        ):
            with pytest.raises(TypeError):
                add(*args, **kwargs)
        remove = getattr(loop, method.replace("add", "remove"))
        for args, kwargs in (((), {}), ((left, left), {}), ((left,), {"fd": left}), ((), {"nonsense": left})):
            with pytest.raises(TypeError):
                remove(*args, **kwargs)
        assert remove(fd=left) is True
        assert remove(left) is False
        assert remove(right) is False


def test_a_closed_socket_has_nothing_to_remove(loop):
    gone = socket.socket()
    gone.close()
    with pytest.raises(ValueError):
        loop.add_reader(gone, print)
    with pytest.raises(ValueError):
        loop.remove_reader(-1)
    with pytest.raises(ValueError):
        loop.add_reader("text", print)


def test_the_wake_up_of_a_task_is_shown_as_one(loop, run):
    async def wait(future):
        await future

    async def main():
        future = loop.create_future()
        task = asyncio.create_task(wait(future))
        await asyncio.sleep(0)
        [(callback, _)] = future._callbacks
        assert re.fullmatch(r"<built-in method task_wakeup of .*Task object at 0x[0-9a-f]+>", repr(callback))
        for args in ((), (1, 2)):
            with pytest.raises(TypeError):
                callback(*args)
        future.set_result(1)
        await task

    run(main())


def test_a_foreign_timer_may_say_that_it_was_cancelled(loop):
    loop._timer_handle_cancelled(asyncio.TimerHandle(loop.time() + 1000, print, (), loop))


def test_a_signal_ends_a_turn_outside_a_run(loop):
    class Alarm(Exception):
        pass

    def on_alarm(*args):
        raise Alarm

    left, right = socket.socketpair()
    old = signal.signal(signal.SIGALRM, on_alarm)
    with left, right:
        loop.add_reader(left, print)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            with pytest.raises(Alarm):
                while True:
                    loop._run_once()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
            loop.remove_reader(left)


def test_a_turn_of_a_closed_loop(loop_factory):
    loop = loop_factory()
    loop.close()
    with pytest.raises((RuntimeError, AttributeError)):
        loop._run_once()


class Number(float):
    """A time that is not exactly a float."""


@pytest.mark.parametrize("when", [float("nan"), Number("nan"), -5, Number(-5.0), -5.0], ids=repr)
def test_times_that_are_odd_numbers(loop, run, when):
    seen = []

    async def main():
        timer = loop.call_at(when, seen.append, 1)
        assert timer.when() is when or type(when) is float
        assert repr(timer.when()) == repr(when)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    assert seen == [1]


def test_a_clock_that_stands_before_zero(loop):
    """-1.0 is a time as any other."""
    loop.time = lambda: -1.0
    seen = []
    loop.call_at(-1.5, seen.append, "past")
    loop.call_later(0, seen.append, "now")
    later = loop.call_later(5, seen.append, "later")
    loop.call_later(0, loop.stop)
    loop.run_forever()
    assert seen == ["past", "now"] and later.when() == 4.0
    later.cancel()
    del loop.time


def test_weak_references_to_handles(loop):
    gone = []
    handles = [loop.call_soon(int), loop.call_later(100, int)]
    refs = [weakref.ref(handle, gone.append) for handle in handles]
    assert [ref() for ref in refs] == handles
    for handle in handles:
        handle.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    del handle, handles
    # A loop may keep a cancelled timer for a while.
    assert refs[0]() is None and refs[0] in gone


@pytest.mark.fastloop_only(reason="the standard handles use these slots themselves")
def test_slots_of_the_base_die_with_the_handle(loop):
    class Value:
        pass

    for handle in (loop.call_soon(int), loop.call_later(0, int)):
        value = Value()
        value.handle = handle
        asyncio.Handle._args.__set__(handle, value)
        assert asyncio.Handle._args.__get__(handle) is value and handle._args == ()
        gone = weakref.ref(value)
        del value, handle
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_handler_may_end_the_run(loop, error):
    def end(loop, context):
        raise error(str(context["exception"]))

    loop.set_exception_handler(end)

    def fail():
        raise ValueError("the first one")

    loop.call_soon(fail)
    loop.call_soon(loop.stop)
    with pytest.raises(error, match="the first one"):
        loop.run_forever()
    loop.run_forever()


def test_the_thread_that_runs_a_loop_as_an_attribute(loop, run):
    loop._thread_id = 5
    assert loop.is_running()
    loop._thread_id = None
    assert not loop.is_running()
    run(asyncio.sleep(0))


@pytest.mark.fastloop_only(reason="methods that only fastloop has")
def test_another_thread_neither_turns_nor_closes_a_running_loop(loop, run):
    def attempt():
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            loop._run_once()
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop._close_core()
        # It stays its thread's.
        loop._thread_id = None
        return loop.is_running()

    async def main():
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop._close_core()
        assert await loop.run_in_executor(None, attempt)
        await loop.shutdown_default_executor()

    run(main())
    with pytest.raises(OverflowError):
        loop._thread_id = -1


@pytest.mark.fastloop_only(reason="bytes are delivered inside its poll")
def test_no_turn_inside_data_received(loop, run):
    left, right = socket.socketpair()
    seen = []

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            try:
                loop._run_once()
            except RuntimeError as error:
                seen.append(str(error))
            done.set_result(data)

    async def main():
        nonlocal done
        done = loop.create_future()
        transport, _ = await loop.create_connection(Protocol, sock=left)
        right.send(b"x")
        assert await done == b"x"
        transport.abort()
        await asyncio.sleep(0)

    done = None
    with right:
        run(main())
    assert len(seen) == 1 and "cannot run inside data_received()" in seen[0]


@pytest.mark.fastloop_only(reason="metrics")
def test_metrics_of_timers_beside_a_replaced_clock(loop):
    loop.set_metrics(True)
    loop.time = lambda: 100.0
    seen = []
    loop.call_at(50.0, seen.append, 1)
    loop.call_at(60.0, loop.stop)
    loop.run_forever()
    del loop.time
    loop.call_later(0, loop.stop)
    loop.run_forever()
    assert seen == [1]
