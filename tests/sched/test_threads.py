"""Other threads: call_soon_threadsafe, the idle loop, loops in threads."""

import asyncio
import concurrent.futures
import contextvars
import os
import queue
import threading
import time

import pytest

from helpers import cpu_and_switches, until


def in_thread(function):
    """Run a function in a thread of its own and return its result or raise its exception."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


# ---------------------------------------------------------------- call_soon_threadsafe


def test_calls_from_many_threads_all_arrive_and_each_thread_keeps_its_order(loop, run):
    threads, calls = 8, 5000
    seen = [[] for _ in range(threads)]

    def work(number):
        for i in range(calls):
            loop.call_soon_threadsafe(seen[number].append, i)

    async def main():
        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        await until(lambda: all(len(part) == calls for part in seen))
        for worker in workers:
            worker.join()

    run(main())
    assert seen == [list(range(calls))] * threads


def test_no_wake_up_is_lost_between_an_idle_loop_and_a_thread(loop, run):
    # Each round trip finds the loop falling asleep: a lost wake-up hangs the test.
    rounds = 3000
    requests = queue.SimpleQueue()

    def answer():
        while (future := requests.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    async def main():
        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(rounds):
            future = loop.create_future()
            requests.put(future)
            await future
        requests.put(None)
        thread.join()

    run(main())


def test_a_call_before_the_run_is_kept(loop):
    seen = []
    in_thread(lambda: loop.call_soon_threadsafe(seen.append, 1))
    loop.call_soon_threadsafe(seen.append, 2)
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert seen == [1, 2]


def test_a_call_between_two_runs_is_kept(loop, run):
    seen = []
    run(asyncio.sleep(0))
    in_thread(lambda: loop.call_soon_threadsafe(seen.append, "between"))
    run(asyncio.sleep(0))
    run(asyncio.sleep(0))
    assert seen == ["between"]


def test_from_the_loop_itself_the_order_is_that_of_call_soon(loop, run):
    seen = []

    async def main():
        for i in range(0, 10, 2):
            loop.call_soon(seen.append, i)
            loop.call_soon_threadsafe(seen.append, i + 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    assert seen == list(range(10))


def test_stop_from_another_thread_ends_an_idle_run(loop):
    timer = threading.Timer(0.02, loop.call_soon_threadsafe, (loop.stop,))
    timer.start()
    loop.run_forever()
    timer.join()


def test_the_context_of_the_calling_thread_is_copied(loop, run):
    variable = contextvars.ContextVar("variable", default="main")
    seen = []

    def work():
        variable.set("thread")
        loop.call_soon_threadsafe(lambda: seen.append(variable.get()))

    async def main():
        thread = threading.Thread(target=work)
        thread.start()
        await until(lambda: seen)
        thread.join()

    run(main())
    assert seen == ["thread"]


def test_a_handle_cancelled_in_the_calling_thread_does_not_run(loop, run):
    seen = []

    def work():
        kept = loop.call_soon_threadsafe(seen.append, "kept")
        assert not kept.cancelled()

    async def main():
        # The loop cannot run the callback while the loop's own thread waits here.
        in_thread(lambda: loop.call_soon_threadsafe(seen.append, "cancelled").cancel())
        in_thread(work)
        await until(lambda: seen)

    run(main())
    assert seen == ["kept"]


def test_exceptions_of_thread_safe_callbacks_are_reported(loop, run, contexts):
    async def main():
        in_thread(lambda: loop.call_soon_threadsafe(lambda: 1 / 0))
        await until(lambda: contexts)

    run(main())
    report = contexts.take_one()
    assert set(report) - {"source_traceback"} == {"message", "exception", "handle"}


def test_calling_a_closed_loop_is_an_error_for_a_thread(loop):
    loop.close()
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        in_thread(lambda: loop.call_soon_threadsafe(print))


@pytest.mark.timeout(180)
def test_closing_while_threads_call_fails_the_calls_and_nothing_else(loop_factory):
    # The threads hold on to the GIL: each takes a second on a busy machine.
    for _ in range(8):
        loop = loop_factory()
        ended = []

        def work(loop=loop, ended=ended):
            try:
                while True:
                    loop.call_soon_threadsafe(int)
            except RuntimeError as exc:
                ended.append(str(exc))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        for thread in threads:
            thread.join()
        assert ended == ["Event loop is closed"] * 3


def test_run_coroutine_threadsafe(loop, run):
    async def double(value):
        await asyncio.sleep(0.001)
        if value is None:
            raise LookupError("asked for")
        return value * 2

    def work():
        futures = [asyncio.run_coroutine_threadsafe(double(i), loop) for i in range(100)]
        failing = asyncio.run_coroutine_threadsafe(double(None), loop)
        with pytest.raises(LookupError, match="asked for"):
            failing.result(20)
        return [future.result(20) for future in futures]

    async def main():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return await asyncio.wrap_future(pool.submit(work))

    assert run(main()) == [i * 2 for i in range(100)]


def test_cancelling_the_future_of_a_thread_cancels_the_task(loop, run):
    cancelled = []

    async def sleeper():
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main():
        future = await asyncio.to_thread(asyncio.run_coroutine_threadsafe, sleeper(), loop)
        await asyncio.sleep(0)
        await asyncio.to_thread(future.cancel)
        await until(lambda: cancelled)

    run(main())


# ---------------------------------------------------------------- the idle loop


@pytest.mark.parametrize(
    "idle",
    [
        "nothing",
        "timer far away",
        "infinite timer",
        "reader",
        "server",
    ],
)
def test_an_idle_loop_uses_no_cpu(loop, run, idle):
    """Half a second of sleep may cost a few switches, where a busy loop makes thousands of turns."""
    import socket

    async def main():
        undo = []
        if idle == "timer far away":
            undo.append(loop.call_later(1000, print).cancel)
        elif idle == "infinite timer":
            undo.append(loop.call_later(float("inf"), print).cancel)
        elif idle == "reader":
            first, second = socket.socketpair()
            loop.add_reader(first, print)
            undo += [lambda: loop.remove_reader(first), first.close, second.close]
        elif idle == "server":
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            undo.append(server.close)
        await asyncio.sleep(0.01)
        cpu, switches = cpu_and_switches()
        await asyncio.sleep(0.5)
        cpu_after, switches_after = cpu_and_switches()
        for action in undo:
            action()
        return cpu_after - cpu, switches_after - switches

    cpu, switches = run(main())
    assert switches < 50
    assert cpu < 0.4, "the loop was busy while it had nothing to do"


def test_an_idle_loop_makes_no_turns(loop, run):
    async def main():
        turns = []
        original = type(loop).time
        loop.time = lambda: turns.append(1) or original(loop)
        await asyncio.sleep(0.2)
        del loop.time
        return len(turns)

    assert run(main()) < 20


# ---------------------------------------------------------------- loops in threads


def test_loops_in_many_threads_run_side_by_side(loop_factory):
    variable = contextvars.ContextVar("variable")
    barrier = threading.Barrier(8)

    def work(number):
        loop = loop_factory()

        async def main():
            assert asyncio.get_running_loop() is loop
            variable.set(number)
            barrier.wait(20)
            for _ in range(50):
                await asyncio.sleep(0.0001)
                assert variable.get() == number
            return number

        try:
            return loop.run_until_complete(main())
        finally:
            loop.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_a_loop_may_be_made_here_run_there_and_closed_here(loop_factory):
    loop = loop_factory()
    assert in_thread(lambda: loop.run_until_complete(asyncio.sleep(0.001, "there"))) == "there"
    assert loop.run_until_complete(asyncio.sleep(0.001, "here")) == "here"
    in_thread(loop.close)
    assert loop.is_closed()


def test_two_loops_in_two_threads_talk_to_each_other(loop, loop_factory, run):
    other = loop_factory()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    async def there(value):
        await asyncio.sleep(0)
        return value + 1

    async def main():
        value = 0
        for _ in range(200):
            value = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(value), other))
        return value

    assert run(main()) == 200
    other.call_soon_threadsafe(other.stop)
    thread.join()
    other.close()


def test_is_running_is_seen_from_other_threads(loop):
    seen = []
    started = threading.Event()

    def watch():
        started.wait(20)
        seen.append((loop.is_running(), loop.is_closed()))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=watch)
    thread.start()
    loop.call_soon(started.set)
    loop.run_forever()
    thread.join()
    assert seen == [(True, False)] and not loop.is_running()


def test_running_in_a_second_thread_at_the_same_time_is_refused(loop, run):
    async def main():
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="^This event loop is already running$"):
            in_thread(lambda: loop.run_until_complete(coroutine))
        coroutine.close()
        with pytest.raises(RuntimeError, match="^Cannot close a running event loop$"):
            in_thread(loop.close)

    run(main())


def test_other_threads_run_while_the_loop_waits_or_spins(loop):
    progress = [0]
    stop = threading.Event()

    def count():
        while not stop.is_set():
            progress[0] += 1
            time.sleep(0)

    def spin(rounds):
        if rounds:
            loop.call_soon(spin, rounds - 1)
        elif progress[0] < 5:
            loop.call_soon(spin, 1000)
        else:
            loop.stop()

    thread = threading.Thread(target=count)
    thread.start()
    loop.call_soon(spin, 1000)
    loop.run_forever()
    stop.set()
    thread.join()
    assert progress[0] >= 5


@pytest.mark.parametrize("chain", ["callbacks", "tasks"])
def test_a_thread_gets_the_interpreter_beside_a_busy_chain(loop, run, chain):
    """Each write lets go of the interpreter, and takes it back from a loop that always has work."""

    async def main():
        writing = True

        def write():
            nonlocal writing
            try:
                with open(os.devnull, "wb", buffering=0) as file:
                    for _ in range(1000):
                        file.write(b"x")
            finally:
                writing = False

        def tick():
            if writing:
                loop.call_soon(tick)

        job = loop.run_in_executor(None, write)
        if chain == "callbacks":
            tick()
        while writing and chain == "tasks":
            await asyncio.sleep(0)
        await job
        await loop.shutdown_default_executor()
        await asyncio.sleep(0)

    run(main())
