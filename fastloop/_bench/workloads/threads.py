"""Hops between the loop and threads."""

import asyncio
import threading

from fastloop._bench.registry import QUICK, case


@case("call_soon_threadsafe/burst", group="threads", unit="callback", n=200_000, tier=QUICK)
def burst(loop, n):
    """One thread schedules as fast as it can."""
    left = n

    def step():
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def post():
        for _ in range(n):
            loop.call_soon_threadsafe(step)

    thread = threading.Thread(target=post)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


@case("call_soon_threadsafe/single", group="threads", unit="hop", n=10_000)
def single(loop, n):
    """A thread schedules one callback and waits until it ran: a wake-up each time."""
    ran = threading.Semaphore(0)

    def post():
        for _ in range(n):
            loop.call_soon_threadsafe(ran.release)
            ran.acquire()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=post)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


@case("run_in_executor/one", group="threads", unit="job", n=5000, tier=QUICK)
async def run_in_executor(n):
    loop = asyncio.get_running_loop()
    for _ in range(n):
        await loop.run_in_executor(None, nothing)


@case("run_in_executor/100", group="threads", unit="job", n=10_000)
async def run_in_executor_100(n):
    """A hundred jobs at once."""
    loop = asyncio.get_running_loop()
    for _ in range(max(1, n // 100)):
        await asyncio.gather(*[loop.run_in_executor(None, nothing) for _ in range(100)])


@case("to_thread/one", group="threads", unit="job", n=5000)
async def to_thread(n):
    for _ in range(n):
        await asyncio.to_thread(nothing)


@case("run_coroutine_threadsafe/one", group="threads", unit="coroutine", n=5000)
def run_coroutine_threadsafe(loop, n):
    async def answer():
        return 1

    def post():
        for _ in range(n):
            asyncio.run_coroutine_threadsafe(answer(), loop).result()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=post)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def nothing():
    pass
