"""Spinning between short jobs: with and without, on one CPU and on all, and never when there is nothing to wait for."""

import asyncio
import os
import threading

import pytest

from helpers import cpu_and_switches

pytestmark = pytest.mark.fastloop_only("the stock loop blocks at once")


async def hop(count):
    loop = asyncio.get_running_loop()
    for number in range(count):
        assert await loop.run_in_executor(None, int, number) == number


@pytest.mark.parametrize("disabled", ["", "spin"])
def test_hops_with_and_without(loop_factory, monkeypatch, disabled):
    monkeypatch.setenv("FASTLOOP_DISABLE", disabled)
    loop = loop_factory()
    assert loop._may_spin is (disabled == "")
    loop.run_until_complete(hop(3000))
    loop._may_spin = not loop._may_spin
    loop.run_until_complete(hop(500))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity of threads")
def test_hops_on_one_cpu_do_not_wait_for_each_other(loop, run):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        run(hop(2000))
    finally:
        os.sched_setaffinity(0, allowed)
    run(loop.shutdown_default_executor())


def post_and_wait(loop, count):
    """In a thread: calls of the loop, of which each waits for what comes of the one before; then many at once."""

    async def answer(number):
        if number % 50 == 0:
            await asyncio.sleep(0)
        return number

    for number in range(count):
        assert asyncio.run_coroutine_threadsafe(answer(number), loop).result() == number
    ran, seen = threading.Semaphore(0), []
    for number in range(count):
        loop.call_soon_threadsafe(ran.release)
        ran.acquire()
        if number % 50 == 0:
            for each in range(100):
                loop.call_soon_threadsafe(seen.append, each)
    loop.call_soon_threadsafe(ran.release)
    ran.acquire()
    assert seen == [*range(100)] * (count // 50)


@pytest.mark.parametrize("disabled", ["", "spin"])
@pytest.mark.parametrize("threads", [1, 3])
def test_calls_of_threads_with_and_without(loop_factory, monkeypatch, disabled, threads):
    monkeypatch.setenv("FASTLOOP_DISABLE", disabled)
    loop = loop_factory()

    async def main():
        await asyncio.gather(*(asyncio.to_thread(post_and_wait, loop, 1000) for _ in range(threads)))
        await loop.shutdown_default_executor()

    loop.run_until_complete(main())
    loop.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity of threads")
def test_calls_of_a_thread_on_one_cpu(loop, run):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        run(asyncio.to_thread(post_and_wait, loop, 500))
    finally:
        os.sched_setaffinity(0, allowed)
    run(loop.shutdown_default_executor())


def test_a_call_that_ends_the_run(loop):
    """The loop does not come back to wait for more."""
    ran = threading.Semaphore(0)

    def post():
        for _ in range(300):
            for _ in range(3):
                loop.call_soon_threadsafe(ran.release)
                ran.acquire()
            loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=post)
    thread.start()
    for _ in range(300):
        loop.run_forever()
    thread.join()


def test_timers_io_and_other_threads_go_on_beside_short_jobs(loop, run):
    async def main():
        fired, sent = [], []
        loop.call_later(0.001, fired.append, 1)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        loop.add_reader(reader, lambda: sent.append(os.read(reader, 10)))
        os.write(writer, b"x")
        loop.run_in_executor(None, loop.call_soon_threadsafe, fired.append, 2)
        while len(fired) < 2 or not sent:
            await loop.run_in_executor(None, int)
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)
        await loop.shutdown_default_executor()

    run(main())


def test_after_the_jobs_nobody_spins(loop, run):
    async def main():
        await hop(500)
        await asyncio.sleep(0.05)
        before, _ = cpu_and_switches()
        await asyncio.sleep(0.5)
        used = cpu_and_switches()[0] - before
        # A thread that spins would use all of the half second, also on a machine that is busy.
        assert used < 0.1
        await loop.shutdown_default_executor()

    run(main())
