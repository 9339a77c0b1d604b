"""No wake-up is lost: one that is hangs the test. Each hop finds the loop falling asleep, or asleep."""

import asyncio
import functools
import os
import random
import threading

import pytest

#: Makes everything here longer; `make stress` sets it.
SCALE = int(os.environ.get("FASTLOOP_STRESS", "1"))

pytestmark = pytest.mark.timeout(100 * SCALE)


def play(loop, *players):
    """Run the loop until functions in threads of their own have ended."""
    left = len(players)

    def work(player):
        nonlocal left
        player()
        loop.call_soon_threadsafe(over)

    def over():
        nonlocal left
        left -= 1
        if left == 0:
            loop.stop()

    threads = [threading.Thread(target=work, args=(player,)) for player in players]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("threads", [1, 3])
def test_call_soon_threadsafe_and_back(loop, threads):
    def player():
        ran = threading.Semaphore(0)
        for _ in range(5000 * SCALE // threads):
            loop.call_soon_threadsafe(ran.release)
            ran.acquire()

    play(loop, *[player] * threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_run_coroutine_threadsafe_and_back(loop, threads):
    async def answer(number):
        return number

    def player():
        for number in range(2000 * SCALE // threads):
            assert asyncio.run_coroutine_threadsafe(answer(number), loop).result() == number

    play(loop, *[player] * threads)


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "with turns between"])
def test_a_job_and_back(loop, run, pause):
    async def main():
        for number in range(5000 * SCALE):
            if pause:
                await asyncio.sleep(0)
            assert await loop.run_in_executor(None, int, number) == number
        await loop.shutdown_default_executor()

    run(main())


def test_bursts_with_silence_between(loop):
    def player():
        for number in range(500 * SCALE):
            seen = []
            ran = threading.Event()
            for value in range(number % 20):
                loop.call_soon_threadsafe(seen.append, value)
            loop.call_soon_threadsafe(ran.set)
            ran.wait()
            assert seen == list(range(number % 20))

    play(loop, player, player)


def test_bursts_of_four_threads_at_once(loop):
    """Ten million with FASTLOOP_STRESS=100: each arrives, whether it finds the loop at work, asleep, or in between."""
    calls = 25_000 * SCALE
    arrived = [0] * 4

    def arrive(index):
        arrived[index] += 1

    def arrive_last(index, ended):
        arrived[index] += 1
        ended.set()

    def player(index):
        dice, left = random.Random(index), calls
        while left > 0:
            burst = min(left, dice.choice((1, 2, 16, 256, 4096)))
            ended = threading.Event()
            for _ in range(burst - 1):
                loop.call_soon_threadsafe(arrive, index)
            loop.call_soon_threadsafe(arrive_last, index, ended)
            ended.wait()
            left -= burst

    play(loop, *(functools.partial(player, index) for index in range(4)))
    assert arrived == [calls] * 4


def test_stop_wakes_an_idle_loop(loop):
    for _ in range(300 * SCALE):
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
        thread.start()
        loop.run_forever()
        thread.join()


@pytest.mark.fastloop_only("the stock loop's select() may have begun before stop()")
def test_write_to_self_wakes_an_idle_loop(loop):
    """What old programs do instead of call_soon_threadsafe(loop.stop)."""

    def stop():
        loop.stop()
        loop._write_to_self()

    for _ in range(300 * SCALE):
        thread = threading.Thread(target=stop)
        thread.start()
        loop.run_forever()
        thread.join()
