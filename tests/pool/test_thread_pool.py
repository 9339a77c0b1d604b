"""fastloop.ThreadPool: a ThreadPoolExecutor in everything but the way that jobs of loops take."""

import asyncio
import concurrent.futures
import gc
import inspect
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool

import pytest

import fastloop
from fastloop import ThreadPool, switches
from helpers import new_loop, outcome, until

from .pools import idle_workers, occupy, workers

BOTH = pytest.mark.parametrize("executor_type", [ThreadPoolExecutor, ThreadPool])


@pytest.fixture
def loop(guard):
    loop = new_loop("fastloop")
    guard.loops.append(weakref.ref(loop))
    yield loop
    loop.close()


@pytest.fixture
def run(loop):
    return loop.run_until_complete


# ---------------------------------------------------------------- it is a ThreadPoolExecutor


def test_type_and_signature():
    assert issubclass(ThreadPool, ThreadPoolExecutor)
    names = list(inspect.signature(ThreadPool).parameters)
    assert names[:4] == ["max_workers", "thread_name_prefix", "initializer", "initargs"]
    assert "ThreadPool" in fastloop.__all__
    with pytest.raises(AttributeError, match="module 'fastloop' has no attribute 'Thread'"):
        fastloop.Thread


@pytest.mark.parametrize("args", [(0,), (-1,), (1, "", 5), ("one",), (1, "", None, (), "too many")])
def test_wrong_arguments(args):
    def message(executor_type):
        kind, error, text = outcome(executor_type, *args)
        return kind, error, text.replace("ThreadPoolExecutor", "ThreadPool")

    if len(args) > 4:
        # The text counts the parameters.
        assert outcome(ThreadPool, *args)[:2] == outcome(ThreadPoolExecutor, *args)[:2] == ("raised", TypeError)
    else:
        assert message(ThreadPool) == message(ThreadPoolExecutor)


@BOTH
def test_submit_map_and_context_manager(executor_type):
    with executor_type(3, "name") as pool:
        assert pool.submit(pow, 2, 3).result(30) == 8
        assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        assert pool.submit(int, "7", base=8).result(30) == 7
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result(30)
        assert set(workers(pool)) <= {"name_0", "name_1", "name_2"}
    assert outcome(pool.submit, abs, 1) == ("raised", RuntimeError, "cannot schedule new futures after shutdown")


@BOTH
def test_names_without_a_prefix(executor_type):
    with executor_type(1) as pool:
        name = pool.submit(threading.current_thread).result(30).name
    prefix, number, worker = name.replace("_", "-").split("-")
    assert (prefix, worker) == ("ThreadPoolExecutor", "0") and number.isdigit()


def test_items_and_jobs_share_one_queue_in_order(loop, run):
    seen = []
    with ThreadPool(1) as pool:

        async def main():
            release, _ = occupy(loop, pool)
            futures = []
            for i in range(100):
                futures.append(asyncio.wrap_future(pool.submit(seen.append, 2 * i)))
                futures.append(loop.run_in_executor(pool, seen.append, 2 * i + 1))
            release.set()
            await asyncio.gather(*futures)

        run(main())
    assert seen == list(range(200))


@pytest.mark.left_out("pool" in switches.disabled(), reason="it is about what is switched off")
def test_jobs_of_loops_make_no_concurrent_futures(debug_off, loop, run, monkeypatch):
    def refuse(*args):
        raise AssertionError("a concurrent.futures.Future was made")

    monkeypatch.setattr(concurrent.futures.Future, "__init__", refuse)
    with ThreadPool(2) as pool:
        assert run(loop.run_in_executor(pool, abs, -1)) == 1
        assert run(loop.run_in_executor(None, abs, -2)) == 2
        assert run(asyncio.to_thread(abs, -3)) == 3
    assert type(loop._default_executor) is ThreadPool


def test_the_native_way_can_be_switched_off(loop, run):
    loop._use_native_pool = False
    assert run(loop.run_in_executor(None, abs, -1)) == 1
    assert type(loop._default_executor) is ThreadPoolExecutor
    with ThreadPool(2) as pool:
        assert run(loop.run_in_executor(pool, abs, -2)) == 2


# ---------------------------------------------------------------- workers


@pytest.mark.parametrize("way", ["submit", "run_in_executor"])
def test_initializer(loop, run, way):
    local = threading.local()

    def initializer(*args):
        local.args = args

    def job():
        return local.args

    with ThreadPool(2, initializer=initializer, initargs=(1, 2)) as pool:
        future = (
            asyncio.wrap_future(pool.submit(job), loop=loop) if way == "submit" else loop.run_in_executor(pool, job)
        )
        assert run(future) == (1, 2)


def test_a_failing_initializer_breaks_the_pool(loop, run, caplog):
    go = threading.Event()

    def initializer():
        assert go.wait(30)
        raise ValueError("broken on purpose")

    async def main(pool):
        futures = [loop.run_in_executor(pool, abs, i) for i in range(20)]
        futures += [asyncio.wrap_future(pool.submit(abs, i)) for i in range(20)]
        go.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    with ThreadPool(2, initializer=initializer) as pool:
        assert {type(result) for result in run(main(pool))} == {BrokenThreadPool}
        text = "A thread initializer failed, the thread pool is not usable anymore"
        assert outcome(loop.run_in_executor, pool, abs, 1) == ("raised", BrokenThreadPool, text)
        assert outcome(pool.submit, abs, 1) == ("raised", BrokenThreadPool, text)
    assert "broken on purpose" in caplog.text


def test_the_number_of_workers_may_be_raised_later(loop, run):
    async def main(pool):
        release, first = occupy(loop, pool)
        second = loop.run_in_executor(pool, abs, -1)
        assert len(workers(pool)) == 1
        pool._max_workers = 2
        assert await loop.run_in_executor(pool, abs, -2) == 2
        assert len(workers(pool)) == 2
        release.set()
        await asyncio.gather(first, second)

    with ThreadPool(1) as pool:
        run(main(pool))


def test_a_worker_is_started_only_when_none_is_idle(loop, run):
    async def main(pool):
        futures = []
        for number in range(1, 5):
            release, future = occupy(loop, pool)
            futures.append((release, future))
            assert len(workers(pool)) == number
        for release, future in futures:
            release.set()
            await future
        await until(lambda: idle_workers(pool) >= 4)
        await asyncio.gather(*(loop.run_in_executor(pool, abs, 1) for _ in range(4)))
        assert len(workers(pool)) == 4

    with ThreadPool(10) as pool:
        run(main(pool))


# ---------------------------------------------------------------- shutdown


def test_shutdown_runs_what_is_queued(loop, run):
    seen = []

    async def main():
        pool = ThreadPool(1)
        release, _ = occupy(loop, pool)
        futures = [loop.run_in_executor(pool, seen.append, i) for i in range(10)]
        pool.shutdown(wait=False)
        assert outcome(loop.run_in_executor, pool, abs, 1) == (
            "raised", RuntimeError, "cannot schedule new futures after shutdown")  # fmt: skip
        release.set()
        await asyncio.gather(*futures)

    run(main())
    assert seen == list(range(10))


def test_shutdown_can_cancel_what_is_queued(loop, run):
    seen = []

    async def main():
        pool = ThreadPool(1)
        release, first = occupy(loop, pool)
        items, jobs = [pool.submit(seen.append, "first")], []
        for i in range(10):
            jobs.append(loop.run_in_executor(pool, seen.append, i))
            items.append(pool.submit(seen.append, i))
        assert pool._work_queue.qsize() == 21
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(item.cancelled() for item in items)
        release.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        await first

    run(main())
    assert seen == []


def test_cancelling_jobs_of_a_closed_loop_is_silent(guard):
    loop = new_loop("fastloop")
    pool = ThreadPool(1)
    release, _ = occupy(loop, pool)
    loop.run_in_executor(pool, abs, 1)
    loop.close()
    pool.shutdown(wait=False, cancel_futures=True)
    release.set()
    pool.shutdown()
    assert guard.log.take() == []


@BOTH
def test_the_workers_of_a_collected_pool_end(executor_type):
    pool = executor_type(2)
    threads = [pool.submit(threading.current_thread).result(30)]
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    # Only then is it certain: a worker looks at its pool once more after a job, and holds it meanwhile.
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert reference() is None


def test_jobs_of_a_collected_pool_still_run(loop, run):
    seen = []

    async def main():
        pool = ThreadPool(1)
        release, _ = occupy(loop, pool)
        futures = [loop.run_in_executor(pool, seen.append, i) for i in range(5)]
        del pool
        gc.collect()
        release.set()
        await asyncio.gather(*futures)

    run(main())
    assert seen == list(range(5))


# ---------------------------------------------------------------- the queue itself


def test_a_queue_that_is_in_a_cycle_is_collected(loop):
    class Thing:
        pass

    pool = ThreadPool(1)
    thing = Thing()
    reference = weakref.ref(thing)
    # Nobody ever runs it: the pool has no worker yet, and the job refers to the pool.
    pool._work_queue.put_job(print, (pool, thing), loop.create_future(), loop)
    del pool, thing
    gc.collect()
    assert reference() is None


def test_queue_behaves_as_a_simple_queue():
    queue = ThreadPool(1)._work_queue
    import queue as standard

    for i in range(200):
        queue.put(i)
    assert queue.qsize() == 200
    assert [queue.get() for _ in range(100)] == list(range(100))
    for i in range(200, 300):
        queue.put(i)
    assert [queue.get_nowait() for _ in range(200)] == list(range(100, 300))
    for call in (queue.get_nowait, lambda: queue.get(block=False), lambda: queue.get(False)):
        with pytest.raises(standard.Empty):
            call()
    assert queue.acquire(timeout=0) is False
    queue.release()
    assert queue.acquire(timeout=0) is True


@pytest.mark.parametrize("call", [
    lambda queue: queue.put_job(), lambda queue: queue.put_job(1, 2, 3, 4), lambda queue: queue.put(),
    lambda queue: queue.get(nonsense=1), lambda queue: type(queue)(), lambda queue: type(queue)("text"),
])  # fmt: skip
def test_queue_refuses_wrong_arguments(call):
    with pytest.raises(TypeError):
        call(ThreadPool(1)._work_queue)


def test_jobs_that_are_put_by_hand(loop):
    queue = ThreadPool(1)._work_queue
    seen = []
    for wrong in ([1], 5, "text"):
        with pytest.raises(TypeError, match="^args must be a tuple or None$"):
            queue.put_job(seen.append, wrong, loop.create_future(), loop)
    assert queue.put_job(seen.append, (1,), loop.create_future(), loop) is True
    queue.close()
    assert queue.put_job(seen.append, (2,), loop.create_future(), loop) is False
    assert queue.qsize() == 1 and seen == []


def test_getters_wait_for_items(guard):
    queue = ThreadPool(1)._work_queue
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(queue.get())) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    for i in range(20):
        queue.put(i)
    for thread in threads:
        thread.join(30)
    assert sorted(seen) == list(range(20))
