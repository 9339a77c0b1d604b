"""The end of the default executor: shutdown_default_executor, close, exit of the interpreter."""

import asyncio
import concurrent.futures
import gc
import sys
import threading

import pytest

from helpers import until

# ---------------------------------------------------------------- shutdown_default_executor


def test_shutdown_joins_the_threads(loop, run):
    before = set(threading.enumerate())

    async def main():
        await asyncio.gather(*[asyncio.to_thread(int) for _ in range(10)])
        assert set(threading.enumerate()) - before
        assert await loop.shutdown_default_executor() is None
        assert set(threading.enumerate()) <= before

    run(main())


def test_shutdown_waits_for_running_jobs(loop, run):
    async def main():
        ended = []
        release = threading.Event()

        def job():
            release.wait(20)
            ended.append(1)

        future = loop.run_in_executor(None, job)
        shutting = asyncio.ensure_future(loop.shutdown_default_executor())
        await asyncio.sleep(0.01)
        assert not shutting.done()
        release.set()
        await shutting
        assert ended == [1]
        await future

    run(main())


def test_after_shutdown_nothing_more_is_taken(loop, run):
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


def test_shutdown_without_use(loop, run):
    run(loop.shutdown_default_executor())
    with pytest.raises(RuntimeError, match="^Executor shutdown has been called$"):
        loop.run_in_executor(None, int)


def test_shutdown_of_a_pool_that_was_set(loop, run):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    loop.set_default_executor(pool)

    async def main():
        await asyncio.to_thread(int)
        await loop.shutdown_default_executor()

    run(main())
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


@pytest.mark.left_out(sys.version_info < (3, 13), reason="3.12 has the timeout and waits for the jobs all the same")
def test_shutdown_with_a_timeout_warns_and_goes_on(loop, run):
    release = threading.Event()

    async def main():
        future = loop.run_in_executor(None, release.wait, 20)
        with pytest.warns(RuntimeWarning, match=r"The executor did not finishing joining its threads within 0\.01"):
            await loop.shutdown_default_executor(0.01)
        release.set()
        await future

    run(main())


@pytest.mark.left_out(sys.version_info < (3, 12), reason="the timeout is new in Python 3.12")
def test_shutdown_within_the_timeout_does_not_warn(loop, run):
    async def main():
        await asyncio.to_thread(int)
        await loop.shutdown_default_executor(timeout=20)

    run(main())


# ---------------------------------------------------------------- close and forgetting


def test_close_ends_the_threads_without_waiting(loop):
    started, release = threading.Event(), threading.Event()
    future = loop.run_in_executor(None, lambda: (started.set(), release.wait(20)))
    started.wait(20)
    loop.close()
    assert not future.done()
    release.set()


def test_a_result_that_comes_after_close_is_dropped_quietly(loop_factory):
    for _ in range(10):
        loop = loop_factory()
        release, ended = threading.Event(), threading.Event()

        def job(release=release, ended=ended):
            release.wait(20)
            ended.set()

        future = loop.run_in_executor(None, job)
        loop.close()
        release.set()
        ended.wait(20)
        del future
    gc.collect()


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


# ---------------------------------------------------------------- the end of the interpreter


def test_the_interpreter_waits_for_running_jobs_at_exit(python):
    assert (
        python("""
        def job():
            ended.wait()
            time.sleep(0.01)
            print("job ended")
        async def main():
            asyncio.get_running_loop().run_in_executor(None, job)
        ended = threading.Event()
        loop = new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        print("main ended", flush=True)
        ended.set()
        """)
        == "main ended\njob ended\n"
    )


def test_a_runner_waits_for_running_jobs(python):
    assert (
        python("""
        def job():
            time.sleep(0.1)
            print("job ended")
        async def main():
            asyncio.get_running_loop().run_in_executor(None, job)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        print("main ended", flush=True)
        """)
        == "job ended\nmain ended\n"
    )


def test_an_exit_with_work_in_the_queue_does_not_hang(python):
    # Queued jobs are run at exit, as concurrent.futures does.
    assert (
        python("""
        done = []
        loop = new_event_loop()
        for i in range(100):
            loop.run_in_executor(None, done.append, i)
        import atexit
        loop.close()
        print("closed")
        """)
        == "closed\n"
    )


def test_an_unclosed_loop_with_threads_at_exit(python):
    assert (
        python(
            """
        loop = new_event_loop()
        loop.run_until_complete(asyncio.wait_for(loop.run_in_executor(None, int), 10))
        print("end")
        """,
            stderr=None,
        )
        == "end\n"
    )


def test_to_thread_during_shutdown_of_the_loop(loop, run):
    async def main():
        results = []
        task = asyncio.ensure_future(asyncio.to_thread(results.append, 1))
        await asyncio.sleep(0)
        await loop.shutdown_default_executor()
        await task
        await until(lambda: results)

    run(main())
