"""run_in_executor and to_thread: default pool, pools of one's own, process pools, contexts, cancellation, errors."""

import asyncio
import concurrent.futures
import contextvars
import functools
import os
import sys
import threading
import time

import pytest

from helpers import turns, until

variable = contextvars.ContextVar("variable", default="unset")


class Broken(Exception):
    pass


def fail():
    raise Broken("own")


# ---------------------------------------------------------------- the default pool


def test_results_and_arguments(loop, run):
    async def main():
        assert await loop.run_in_executor(None, lambda *args: args, 1, "two", None) == (1, "two", None)
        assert await loop.run_in_executor(None, int) == 0
        assert await loop.run_in_executor(None, functools.partial(int, base=16), "ff") == 255
        marker = object()
        assert await loop.run_in_executor(None, lambda: marker) is marker

    run(main())


def test_it_returns_an_asyncio_future_of_the_loop(loop, run):
    async def main():
        future = loop.run_in_executor(None, int)
        assert asyncio.isfuture(future) and isinstance(future, asyncio.Future) and future.get_loop() is loop
        assert await future == 0

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        Broken("own"),
        ValueError("x"),
        KeyError("k"),
        SystemExit(3),
        KeyboardInterrupt(),
        StopAsyncIteration(),
        GeneratorExit(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_exceptions_are_raised_where_the_future_is_awaited(loop, run, error):
    def failing():
        raise error

    async def main():
        with pytest.raises(type(error)) as caught:
            await loop.run_in_executor(None, failing)
        return caught.value

    assert run(main()) is error


@pytest.mark.left_out(sys.version_info < (3, 13), reason="such a future never ends on early 3.12 and before")
def test_stop_iteration_becomes_a_runtime_error(loop, run):
    async def main():
        with pytest.raises(RuntimeError, match="StopIteration interacts badly with generators"):
            await loop.run_in_executor(None, next, iter(()))

    run(main())


def test_the_traceback_leads_to_the_function(loop, run):
    async def main():
        try:
            await loop.run_in_executor(None, fail)
        except Broken as exc:
            frames = []
            tb = exc.__traceback__
            while tb:
                frames.append(tb.tb_frame.f_code.co_name)
                tb = tb.tb_next
            return frames

    assert run(main())[-1] == "fail"


def test_it_may_be_called_before_the_run(loop):
    future = loop.run_in_executor(None, threading.get_ident)
    assert loop.run_until_complete(future) != threading.get_ident()


def test_the_work_begins_without_waiting_for_a_turn(loop):
    started = threading.Event()
    future = loop.run_in_executor(None, started.set)
    assert started.wait(20)
    loop.run_until_complete(future)


def test_threads_of_the_default_pool(loop, run):
    async def main():
        names = await asyncio.gather(
            *[loop.run_in_executor(None, lambda: threading.current_thread().name) for _ in range(20)]
        )
        assert all(name.startswith("asyncio_") for name in names)
        thread = await loop.run_in_executor(None, threading.current_thread)
        assert isinstance(thread, threading.Thread) and not thread.daemon
        assert thread is not threading.main_thread()

    run(main())


def test_as_many_threads_as_jobs_wait_up_to_the_limit(loop, run):
    limit = min(32, (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) + 4)
    barrier = threading.Barrier(limit, timeout=20)
    running = []
    release = threading.Event()

    def overload():
        running.append(1)
        release.wait(20)

    async def main():
        # All of these must run at the same time, or the barrier breaks.
        await asyncio.gather(*[loop.run_in_executor(None, barrier.wait) for _ in range(limit)])
        jobs = [loop.run_in_executor(None, overload) for _ in range(limit + 5)]
        await until(lambda: len(running) == limit)
        await asyncio.sleep(0.02)
        assert len(running) == limit
        release.set()
        await asyncio.gather(*jobs)

    run(main())


def test_an_idle_thread_is_used_again(loop, run):
    async def main():
        threads = set()
        for _ in range(50):
            threads.add(await loop.run_in_executor(None, threading.get_ident))
            # A worker waits a moment after its result has arrived; acquire() and release() of the executor's own count.
            await until(lambda: loop._default_executor._idle_semaphore.acquire(timeout=0))
            loop._default_executor._idle_semaphore.release()
        return threads

    assert len(run(main())) == 1


def test_jobs_of_one_thread_run_in_order(loop, run):
    seen = []

    async def main():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            await asyncio.gather(*[loop.run_in_executor(pool, seen.append, i) for i in range(1000)])

    run(main())
    assert seen == list(range(1000))


def test_thousands_of_jobs(loop, run):
    async def main():
        results = await asyncio.gather(*[loop.run_in_executor(None, int, str(i)) for i in range(3000)])
        assert results == list(range(3000))
        for i in range(500):
            assert await loop.run_in_executor(None, int, str(i)) == i

    run(main())


def test_the_loop_goes_on_meanwhile(loop, run):
    async def main():
        release = threading.Event()
        future = loop.run_in_executor(None, release.wait, 20)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not future.done()
        release.set()
        assert await future is True

    run(main())


def test_the_result_wakes_an_idle_loop(loop, run):
    async def main():
        for _ in range(20):
            await loop.run_in_executor(None, time.sleep, 0.002)

    run(main())


def test_a_job_may_talk_back_to_the_loop(loop, run):
    async def double(value):
        await asyncio.sleep(0)
        return value * 2

    def job(value):
        loop.call_soon_threadsafe(seen.append, value)
        return asyncio.run_coroutine_threadsafe(double(value), loop).result(20)

    seen = []

    async def main():
        assert await asyncio.gather(*[loop.run_in_executor(None, job, i) for i in range(5)]) == [0, 2, 4, 6, 8]
        assert sorted(seen) == [0, 1, 2, 3, 4]

    run(main())


# ---------------------------------------------------------------- to_thread


def test_to_thread_passes_arguments_and_results(run):
    async def main():
        def job(*args, **kwargs):
            return args, kwargs, threading.current_thread() is threading.main_thread()

        assert await asyncio.to_thread(job, 1, 2, key="value") == ((1, 2), {"key": "value"}, False)
        with pytest.raises(Broken):
            await asyncio.to_thread(fail)

    run(main())


def test_to_thread_carries_the_context_and_run_in_executor_does_not(loop, run):
    def job():
        before = variable.get()
        variable.set("set in the thread")
        return before

    async def main():
        variable.set("of the task")
        assert await asyncio.to_thread(job) == "of the task"
        assert variable.get() == "of the task"
        assert await loop.run_in_executor(None, job) == "unset"
        # The context of a thread is its own and kept by it.
        assert variable.get() == "of the task"

    run(main())


# ---------------------------------------------------------------- cancelling


def test_a_cancelled_wait_leaves_the_running_job_alone(loop, run):
    async def main():
        started, release, ended = threading.Event(), threading.Event(), threading.Event()

        def job():
            started.set()
            release.wait(20)
            ended.set()

        task = asyncio.ensure_future(asyncio.to_thread(job))
        await until(started.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended.is_set()
        release.set()
        await until(ended.is_set)
        await turns(3)

    run(main())


def test_a_job_cancelled_before_it_began_never_runs(loop, run):
    async def main():
        seen = []
        release = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = loop.run_in_executor(pool, release.wait, 20)
            second = loop.run_in_executor(pool, seen.append, 1)
            assert second.cancel() is True
            # The executor hears of it in the next turn.
            await turns(2)
            release.set()
            await first
            await turns(3)
        assert second.cancelled() and seen == []

    run(main())


def test_of_the_default_pool_too_a_job_cancelled_in_the_queue_never_runs(loop, run):
    async def main():
        seen = []
        release = threading.Event()
        limit = min(32, (os.cpu_count() or 1) + 4)
        blockers = [loop.run_in_executor(None, release.wait, 20) for _ in range(limit)]
        waiting = [loop.run_in_executor(None, seen.append, i) for i in range(10)]
        for future in waiting[::2]:
            future.cancel()
        await turns(3)
        release.set()
        await asyncio.gather(*blockers)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert sorted(seen) == [1, 3, 5, 7, 9]

    run(main())


def test_a_timeout_around_a_job(run):
    async def main():
        release = threading.Event()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(release.wait, 20), 0.005)
        release.set()

    run(main())


# ---------------------------------------------------------------- executors of one's own


def test_a_thread_pool_of_ones_own(loop, run):
    async def main():
        with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
            name = await loop.run_in_executor(pool, lambda: threading.current_thread().name)
            assert name.startswith("mine")
            with pytest.raises(Broken):
                await loop.run_in_executor(pool, fail)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            loop.run_in_executor(pool, int)

    run(main())


def test_anything_with_submit_is_an_executor(loop, run):
    calls = []

    class Own(concurrent.futures.Executor):
        def submit(self, function, *args, **kwargs):
            calls.append((function, args))
            future = concurrent.futures.Future()
            future.set_result(function(*args))
            return future

    async def main():
        assert await loop.run_in_executor(Own(), int, "5") == 5

    run(main())
    assert calls == [(int, ("5",))]


@pytest.mark.parametrize("wrong", [5, "text", object()])
def test_what_is_no_executor(loop, wrong):
    loop.set_debug(False)
    with pytest.raises(AttributeError, match="has no attribute 'submit'"):
        loop.run_in_executor(wrong, int)


def test_the_default_executor_can_be_set(loop, run):
    async def main():
        names = [await asyncio.to_thread(lambda: threading.current_thread().name) for _ in range(3)]
        assert all(name.startswith("chosen") for name in names)

    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="chosen"))
    run(main())


@pytest.mark.parametrize("wrong", [None, 5, object(), concurrent.futures.Executor()], ids=lambda w: type(w).__name__)
def test_a_default_executor_of_the_wrong_type(loop, wrong):
    with pytest.raises(TypeError, match="^executor must be ThreadPoolExecutor instance$"):
        loop.set_default_executor(wrong)


def test_a_replaced_submit_is_honoured(loop, run, monkeypatch):
    """Tracers replace ThreadPoolExecutor.submit to carry their context into threads."""
    seen = []
    original = concurrent.futures.ThreadPoolExecutor.submit

    def submit(self, function, /, *args, **kwargs):
        seen.append(function)
        return original(self, function, *args, **kwargs)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", submit)

    async def main():
        await loop.run_in_executor(None, int)

    run(main())
    assert seen == [int]


def test_a_process_pool(python, tmp_path):
    """By fork, spawn and forkserver, with functions of a module and of the program itself."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import asyncio, concurrent.futures, multiprocessing, os, sys
def new_event_loop():
    if {python.name!r} == "stock":
        return asyncio.SelectorEventLoop()
    import fastloop
    return fastloop.new_event_loop()
def power(base, exponent):
    return base ** exponent, os.getpid()
def fail():
    raise LookupError("in the process")
async def main(method):
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        results = await asyncio.gather(*[loop.run_in_executor(pool, power, 2, i) for i in range(10)])
        assert [value for value, _ in results] == [2 ** i for i in range(10)]
        assert os.getpid() not in [pid for _, pid in results]
        try:
            await loop.run_in_executor(pool, fail)
        except LookupError as exc:
            print(method, exc)
        assert await loop.run_in_executor(pool, os.path.basename, "a/b") == "b"
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main(method))
""")
    command = f"os.execv(sys.executable, [sys.executable, '-W', 'ignore::DeprecationWarning', {str(program)!r}])"
    # Starting processes is slow, which debug mode says.
    assert python(command, stderr=None) == "fork in the process\nspawn in the process\nforkserver in the process\n"
