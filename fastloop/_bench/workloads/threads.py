"""Hops between the loop and threads."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import threading
import time

from fastloop._bench.measures import percentiles
from fastloop._bench.registry import FULL, QUICK, case


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


# How long the loop waits for the GIL, most of all, where every other thread wants it, too.


@contextlib.contextmanager
def busy_threads(count):
    """So many threads compute meanwhile."""
    stopped = False

    def compute():
        while not stopped:
            pass

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    stopped = True
    for thread in threads:
        thread.join()


BUSY = {"group": "threads", "n": 60, "metrics": ("p50", "p99"), "tier": FULL, "warm": False}


@case("busy_threads/timer", unit="timer", **BUSY)
async def timer_beside_busy_threads(n):
    """How late asyncio.sleep() ends beside 32 threads that compute."""
    loop = asyncio.get_running_loop()
    late = []
    with busy_threads(32):
        for _ in range(n):
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            late.append((loop.time() - due) * 1e9)
    return percentiles(late)


@case("busy_threads/descriptor", unit="event", **BUSY)
async def descriptor_beside_busy_threads(n):
    """How long a readable socket waits for the task that reads it, beside 32 threads that compute."""
    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    waited = []
    with reader, writer, busy_threads(32):
        for _ in range(n):
            read = loop.create_task(loop.sock_recv(reader, 1))
            await asyncio.sleep(0)
            written = time.perf_counter_ns()
            writer.send(b"x")
            await read
            waited.append(time.perf_counter_ns() - written)
    return percentiles(waited)


# What programs hand to threads, each job some tens of microseconds to a millisecond of work of its own.


@case("to_thread/sqlite", group="threads", unit="query", n=3000, tier=FULL)
async def sqlite(n):
    """Ten clients query a database, each through to_thread and a connection of its own."""
    # Not every Python has it.
    import sqlite3

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "database")
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("create table word (number integer primary key, text text)")
            connection.executemany("insert into word values (?, ?)", ((i, f"word {i}") for i in range(1000)))

        def query(connection, number):
            return connection.execute("select text from word where number = ?", (number,)).fetchone()

        async def client(count):
            with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as connection:
                for number in range(count):
                    row = await asyncio.to_thread(query, connection, number % 1000)
                    assert row == (f"word {number % 1000}",)

        await asyncio.gather(*(client(n // 10) for _ in range(10)))


@case("to_thread/copy", group="threads", unit="file", n=1000, tier=FULL)
async def copy(n):
    """Ten tasks copy files of 16 KiB."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "source")
        with open(source, "wb") as file:
            file.write(os.urandom(16384))

        async def copier(name, count):
            for _ in range(count):
                await asyncio.to_thread(shutil.copyfile, source, os.path.join(folder, name))

        await asyncio.gather(*(copier(str(i), n // 10) for i in range(10)))


@case("to_thread/hash", group="threads", unit="digest", n=3000, tier=FULL)
async def digest(n):
    """Ten tasks hash 16 KiB, for which hashlib lets go of the GIL."""
    data = bytes(16384)

    async def hasher(count):
        for _ in range(count):
            await asyncio.to_thread(hashlib.sha256, data)

    await asyncio.gather(*(hasher(n // 10) for _ in range(10)))


@case("to_thread/numpy", group="threads", unit="product", n=3000, tier=FULL)
async def product(n):
    """Ten tasks multiply matrices of 64 by 64, where numpy is installed."""
    import numpy

    matrix = numpy.ones((64, 64))

    async def multiplier(count):
        for _ in range(count):
            await asyncio.to_thread(numpy.dot, matrix, matrix)

    await asyncio.gather(*(multiplier(n // 10) for _ in range(10)))
