"""The default executor, its shutdown, and the end of a loop, beside jobs: the same on both kinds of loop."""

import asyncio
import concurrent.futures
import gc
import sys
import threading
import time
import warnings
import weakref

import pytest

from helpers import PATIENCE, outcome, until

from .pools import occupy, pool_type, stock_loop

# ---------------------------------------------------------------- the default executor


def test_set_default_executor_while_jobs_are_under_way(loop, loop_name, run):
    async def main():
        release, first = occupy(loop)
        old = loop._default_executor
        with pool_type(loop_name)(2, "other") as new:
            loop.set_default_executor(new)
            assert await loop.run_in_executor(None, lambda: threading.current_thread().name) == "other_0"
            release.set()
            await first
        old.shutdown()

    run(main())


def test_the_default_executor_can_be_shut_down_by_itself(loop, run):
    async def main():
        await loop.run_in_executor(None, abs, 1)
        loop._default_executor.shutdown()
        return outcome(loop.run_in_executor, None, abs, 1)

    assert run(main()) == ("raised", RuntimeError, "cannot schedule new futures after shutdown")


def test_shutdown_default_executor_waits_for_jobs_and_ends_the_bridge(loop, run):
    seen = []

    async def main():
        release, first = occupy(loop)
        rest = [loop.run_in_executor(None, seen.append, i) for i in range(10)]
        timer = threading.Timer(0.02, release.set)
        timer.start()
        await loop.shutdown_default_executor()
        assert sorted(seen) == list(range(10))
        timer.join()
        # Those of other tests may end meanwhile.
        assert set(threading.enumerate()) <= before
        await asyncio.gather(first, *rest)
        return outcome(loop.run_in_executor, None, abs, 1)

    before = set(threading.enumerate())
    assert run(main()) == ("raised", RuntimeError, "Executor shutdown has been called")


def test_shutdown_default_executor_without_one(loop, run):
    run(loop.shutdown_default_executor())
    assert outcome(loop.run_in_executor, None, abs, 1) == (
        "raised", RuntimeError, "Executor shutdown has been called")  # fmt: skip


def test_after_shutdown_another_executor_is_still_good(loop, run):
    async def main():
        await asyncio.to_thread(int)
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="^Executor shutdown has been called$"):
            loop.run_in_executor(None, int)
        # An executor that is named is still good.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, int) == 0
        await loop.shutdown_default_executor()

    run(main())


def test_shutdown_of_a_pool_that_was_set(loop, run):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    loop.set_default_executor(pool)

    async def main():
        await asyncio.to_thread(int)
        await loop.shutdown_default_executor()

    run(main())
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_shutdown_waits_for_to_thread(loop, run):
    async def main():
        results = []
        task = asyncio.ensure_future(asyncio.to_thread(results.append, 1))
        await asyncio.sleep(0)
        await loop.shutdown_default_executor()
        await task
        await until(lambda: results)

    run(main())


@pytest.mark.left_out(
    asyncio.BaseEventLoop.shutdown_default_executor.__code__.co_argcount < 2, reason="this Python's has no time-out"
)
def test_shutdown_default_executor_gives_up_in_time(loop, run):
    async def main(on):
        release, future = occupy(on)
        # For the versions that do wait.
        timer = threading.Timer(2, release.set)
        timer.start()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await on.shutdown_default_executor(0.01)
        given_up = not release.is_set()
        timer.cancel()
        release.set()
        await future
        timer.join()
        return given_up, [(warning.category, str(warning.message)) for warning in caught]

    # Not every patch release keeps the time-out.
    with stock_loop() as other:
        assert run(main(loop)) == other.run_until_complete(main(other))


@pytest.mark.left_out(sys.version_info < (3, 12), reason="the timeout is new in Python 3.12")
def test_shutdown_within_the_timeout_does_not_warn(loop, run):
    async def main():
        await asyncio.to_thread(int)
        await loop.shutdown_default_executor(timeout=20)

    run(main())


# ---------------------------------------------------------------- the end of a loop


def test_closing_the_loop_while_jobs_run_is_silent(loop, run, guard):
    async def main():
        return occupy(loop)[0]

    release = run(main())
    executor = loop._default_executor
    loop.close()
    release.set()
    executor.shutdown()
    assert guard.log.take() == []


def test_jobs_that_wait_in_the_queue_of_a_closed_loop_still_run(loop, loop_name, run):
    seen = []
    with pool_type(loop_name)(1) as pool:

        async def main():
            release, _ = occupy(loop, pool)
            for i in range(3):
                loop.run_in_executor(pool, seen.append, i)
            return release

        release = run(main())
        loop.close()
        release.set()
    assert seen == [0, 1, 2]


def test_a_result_between_two_runs_is_kept(loop, run):
    future = loop.run_in_executor(None, abs, -3)
    time.sleep(0.02)
    run(asyncio.sleep(0))
    assert run(future) == 3


def test_a_closed_loop_takes_no_jobs(loop):
    loop.close()
    assert outcome(loop.run_in_executor, None, abs, 1) == ("raised", RuntimeError, "Event loop is closed")


def test_each_loop_has_its_own_pool(loop_factory):
    loops = [loop_factory() for _ in range(3)]
    threads = set()
    for loop in loops:
        threads.add(loop.run_until_complete(loop.run_in_executor(None, threading.current_thread)))
    assert len(threads) == 3
    for loop in loops:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert not any(thread.is_alive() for thread in threads)


def test_an_unclosed_loop_with_idle_workers_is_collected_and_its_workers_end(loop_factory):
    loop = loop_factory()
    loop.run_until_complete(loop.run_in_executor(None, abs, 1))
    threads = list(loop._default_executor._threads)
    reference = weakref.ref(loop)
    with warnings.catch_warnings():
        # A warning that is kept would keep the loop, which is its source.
        warnings.simplefilter("ignore", ResourceWarning)
        del loop
        gc.collect()
        deadline = time.monotonic() + PATIENCE
        while reference() is not None or any(thread.is_alive() for thread in threads):
            assert time.monotonic() < deadline
            gc.collect()
            time.sleep(0.001)
