"""Hops between the loop and threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading

from fastloop._bench.measures import percentiles
from fastloop._bench.registry import FULL, QUICK, case

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

    from fastloop._bench.registry import Metrics


@case("call_soon_threadsafe/burst", group="threads", unit="callback", n=200_000, tier=QUICK)
def burst(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """One thread schedules as fast as it can."""
    left = n

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def post() -> None:
        for _ in range(n):
            loop.call_soon_threadsafe(step)

    thread = threading.Thread(target=post)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


@case("call_soon_threadsafe/single", group="threads", unit="hop", n=10_000)
def single(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """A thread schedules one callback and waits until it ran: a wake-up each time."""
    ran = threading.Semaphore(0)

    def post() -> None:
        for _ in range(n):
            loop.call_soon_threadsafe(ran.release)
            ran.acquire()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=post)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


@case("run_in_executor/one", group="threads", unit="job", n=5000, tier=QUICK)
async def run_in_executor(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        await loop.run_in_executor(None, nothing)


@case("run_in_executor/100", group="threads", unit="job", n=10_000)
async def run_in_executor_100(n: int) -> None:
    """A hundred jobs at once."""
    loop = asyncio.get_running_loop()
    for _ in range(max(1, n // 100)):
        await asyncio.gather(*[loop.run_in_executor(None, nothing) for _ in range(100)])


@functools.cache
def hundred_workers(loop: asyncio.AbstractEventLoop) -> ThreadPoolExecutor:
    """The loop's kind of pool with a hundred threads, all of them started."""
    # Not before: that import takes milliseconds.
    from concurrent.futures import ThreadPoolExecutor

    from fastloop import Loop, ThreadPool

    pool = ThreadPool(100) if isinstance(loop, Loop) else ThreadPoolExecutor(100)
    here = threading.Barrier(100)
    for job in [pool.submit(here.wait) for _ in range(100)]:
        job.result()
    return pool


@case("run_in_executor/100-workers", group="threads", unit="job", n=10_000, tier=FULL)
async def run_in_hundred_workers(n: int) -> None:
    """A hundred jobs at once for a hundred threads."""
    loop = asyncio.get_running_loop()
    pool = hundred_workers(loop)
    for _ in range(max(1, n // 100)):
        await asyncio.gather(*[loop.run_in_executor(pool, nothing) for _ in range(100)])


@case("to_thread/one", group="threads", unit="job", n=5000)
async def to_thread(n: int) -> None:
    for _ in range(n):
        await asyncio.to_thread(nothing)


@case("run_coroutine_threadsafe/one", group="threads", unit="coroutine", n=5000)
def run_coroutine_threadsafe(loop: asyncio.AbstractEventLoop, n: int) -> None:
    async def answer() -> int:
        return 1

    def post() -> None:
        for _ in range(n):
            asyncio.run_coroutine_threadsafe(answer(), loop).result()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=post)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def nothing() -> None:
    pass


# How long the loop waits for the GIL, most of all, where every other thread wants it, too.


@contextlib.contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """So many threads compute meanwhile."""
    stopped = False

    def compute() -> None:
        while not stopped:
            pass

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped = True
        for thread in threads:
            thread.join()


@case("busy_threads/timer", group="threads", unit="timer", n=30, metrics=("p50", "p99"), tier=FULL, warm=False)
async def timer_beside_busy_threads(n: int) -> Metrics:
    """How late asyncio.sleep() ends beside 32 threads that compute."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    with busy_threads(32):
        for _ in range(n):
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            late.append((loop.time() - due) * 1e9)
    return percentiles(late)


# What programs hand to threads, each job some tens of microseconds to a millisecond of work of its own.


@case("to_thread/sqlite", group="threads", unit="query", n=3000, tier=FULL)
async def sqlite(n: int) -> None:
    """Ten clients query a database, each through to_thread and a connection of its own."""
    # Not every Python has it.
    import sqlite3

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "database")
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("create table word (number integer primary key, text text)")
            connection.executemany("insert into word values (?, ?)", ((i, f"word {i}") for i in range(1000)))

        def query(connection: sqlite3.Connection, number: int) -> object:
            return connection.execute("select text from word where number = ?", (number,)).fetchone()

        async def client(count: int) -> None:
            with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as connection:
                for number in range(count):
                    row = await asyncio.to_thread(query, connection, number % 1000)
                    assert row == (f"word {number % 1000}",)

        await asyncio.gather(*(client(n // 10) for _ in range(10)))


@case("to_thread/copy", group="threads", unit="file", n=1000, tier=FULL)
async def copy(n: int) -> None:
    """Ten tasks copy files of 16 KiB."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "source")
        with open(source, "wb") as file:
            file.write(os.urandom(16384))

        async def copier(name: str, count: int) -> None:
            for _ in range(count):
                await asyncio.to_thread(shutil.copyfile, source, os.path.join(folder, name))

        await asyncio.gather(*(copier(str(i), n // 10) for i in range(10)))


@case("to_thread/hash", group="threads", unit="digest", n=3000, tier=FULL)
async def digest(n: int) -> None:
    """Ten tasks hash 16 KiB, for which hashlib lets go of the GIL."""
    data = bytes(16384)

    async def hasher(count: int) -> None:
        for _ in range(count):
            await asyncio.to_thread(hashlib.sha256, data)

    await asyncio.gather(*(hasher(n // 10) for _ in range(10)))


@case("to_thread/numpy", group="threads", unit="product", n=3000, tier=FULL)
async def product(n: int) -> None:
    """Ten tasks multiply matrices of 64 by 64, where numpy is installed."""
    import numpy

    matrix = numpy.ones((64, 64))

    async def multiplier(count: int) -> None:
        for _ in range(count):
            await asyncio.to_thread(numpy.dot, matrix, matrix)

    await asyncio.gather(*(multiplier(n // 10) for _ in range(10)))
