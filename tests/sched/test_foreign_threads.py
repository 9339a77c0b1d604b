"""Threads that do to a loop what asyncio promises nothing about: it must not crash, and what is promised goes on.

On the stock loop much of this breaks its heap of timers or is lost; the names of the tests say what fastloop keeps.
"""

import asyncio
import os
import random
import threading

import pytest

from helpers import until

# Debug mode refuses what these threads do.
pytestmark = [
    pytest.mark.fastloop_only("the stock loop is not made for this"),
    pytest.mark.usefixtures("debug_off"),
]

#: Makes everything here longer; `make stress` sets it.
SCALE = int(os.environ.get("FASTLOOP_STRESS", "1"))
THREADS = 4


def in_threads(function, count=THREADS):
    """Run function(index) in so many threads at once and return what they raised."""
    problems = []
    start = threading.Barrier(count)

    def work(index):
        try:
            start.wait()
            function(index)
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    return threads, problems


async def ended(threads):
    await until(lambda: not any(thread.is_alive() for thread in threads))
    for thread in threads:
        thread.join()


@pytest.mark.timeout(100 * SCALE)
def test_timers_of_other_threads_fire_once_or_were_cancelled(loop, run):
    timers = 1500 * SCALE
    fired = [[0] * timers for _ in range(THREADS)]
    cancelled = [[False] * timers for _ in range(THREADS)]

    def fire(index, number):
        fired[index][number] += 1

    def schedule(index):
        dice, open_timers = random.Random(index), []
        for number in range(timers):
            delay = dice.choice((-1, 0, 0.001, 0.01))
            open_timers.append((number, loop.call_later(delay, fire, index, number)))
            if dice.random() < 0.5:
                chosen, handle = open_timers.pop(dice.randrange(len(open_timers)))
                handle.cancel()
                cancelled[index][chosen] = True
                assert handle.cancelled()
            elif dice.random() < 0.1:
                assert repr(open_timers[-1][1]) and open_timers[-1][1].when() > 0
                assert len(loop._scheduled) >= 0

    async def main():
        threads, problems = in_threads(schedule)
        # The loop has timers of its own, which look after those that woke nobody.
        await ended(threads)
        await asyncio.sleep(0.05)
        assert problems == []

    run(main())
    assert not loop._scheduled
    for index in range(THREADS):
        for number in range(timers):
            times = fired[index][number]
            assert times <= 1 if cancelled[index][number] else times == 1, (index, number)


@pytest.mark.timeout(100 * SCALE)
def test_what_threads_schedule_on_an_idle_loop_runs_when_it_runs(loop, run):
    for _ in range(5 * SCALE):
        ran = [[] for _ in range(THREADS)]

        def schedule(index, ran=ran):
            for number in range(200):
                loop.call_soon(ran[index].append, number)
                loop.call_later(0, ran[index].append, number)
                assert isinstance(loop._ready, tuple)

        threads, problems = in_threads(schedule)
        for thread in threads:
            thread.join()
        assert problems == []
        assert len(loop._ready) == len(loop._scheduled) == THREADS * 200
        run(until(lambda ran=ran: all(len(part) == 400 for part in ran)))
        assert all(part.count(number) == 2 for part in ran for number in range(200))


@pytest.mark.timeout(100 * SCALE)
def test_handles_cancelled_by_other_threads_run_at_most_once(loop, run):
    count = 3000 * SCALE
    ran = [0] * count
    handles = [None] * count
    posted = threading.Semaphore(0)

    def step(number, *_):
        ran[number] += 1

    def work(index):
        dice = random.Random(index)
        if index == 0:
            for number in range(count):
                # Some with arguments inline, some with a tuple.
                handles[number] = loop.call_soon_threadsafe(step, number, *range(dice.choice((0, 2, 5))))
                posted.release()
            return
        for _ in range(count // (THREADS - 1)):
            posted.acquire()
            handle = handles[dice.randrange(count)]
            if handle is not None:
                handle.cancel()
                assert handle.cancelled() and handle._callback is None
                assert "cancelled" in repr(handle)

    async def main():
        threads, problems = in_threads(work)
        await ended(threads)
        await asyncio.sleep(0)
        assert problems == []

    run(main())
    for number in range(count):
        assert ran[number] == 1 or (ran[number] == 0 and handles[number].cancelled())


@pytest.mark.timeout(100 * SCALE)
def test_futures_completed_by_other_threads_wake_who_awaits_them(loop, run):
    rounds = 400 * SCALE

    async def main():
        for _ in range(rounds):
            futures = [loop.create_future() for _ in range(THREADS)]
            threads, problems = [], []
            if _ % 20 == 0:
                threads, problems = in_threads(lambda index, futures=futures: futures[index].set_result(index))
            else:
                for index, future in enumerate(futures):
                    asyncio.get_running_loop().run_in_executor(None, future.set_result, index)
            assert await asyncio.gather(*futures) == list(range(THREADS))
            await ended(threads)
            assert problems == []

    run(main())
    run(loop.shutdown_default_executor())


@pytest.mark.timeout(100 * SCALE)
def test_futures_and_tasks_made_in_other_threads(loop, run):
    done = []

    async def work(future):
        done.append(await future)

    def make(index):
        for number in range(300 * SCALE):
            future = loop.create_future()
            loop.create_task(work(future))
            loop.call_soon_threadsafe(future.set_result, number)

    async def main():
        threads, problems = in_threads(make)
        await ended(threads)
        await until(lambda: len(done) == THREADS * 300 * SCALE)
        assert problems == []

    run(main())


def test_only_one_thread_runs_the_loop(loop):
    for _ in range(20):
        outcomes = []

        def work(index, outcomes=outcomes):
            try:
                loop.run_forever()
            except RuntimeError as exc:
                outcomes.append(str(exc))
            else:
                outcomes.append("ran")

        threads, problems = in_threads(work)
        for thread in threads:
            while thread.is_alive():
                loop.call_soon_threadsafe(loop.stop)
                thread.join(0.001)
        while loop._ready:
            loop.run_forever()
        assert problems == [] and "ran" in outcomes and len(outcomes) == THREADS
        assert set(outcomes) <= {"ran", "This event loop is already running"}
        assert not loop.is_running()


def test_a_loop_that_runs_is_closed_by_nobody(loop, run):
    def close(index):
        for _ in range(200):
            with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
                loop.close()
            assert isinstance(loop._ready, tuple) and loop.is_running()

    async def main():
        threads, problems = in_threads(close)
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0)
        await ended(threads)
        assert problems == []

    run(main())


def test_threads_that_schedule_while_the_loop_is_closed(loop_factory):
    for _ in range(10 * SCALE):
        loop = loop_factory()

        def schedule(index, loop=loop):
            try:
                while True:
                    loop.call_soon_threadsafe(int)
                    loop.call_soon(int)
                    loop.call_later(1, int).cancel()
                    loop.create_future()
            except RuntimeError as exc:
                assert str(exc) == "Event loop is closed"

        threads, problems = in_threads(schedule)
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        for thread in threads:
            thread.join()
        assert problems == []
