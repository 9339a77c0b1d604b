"""call_soon, timers, and what waits beside them."""

from __future__ import annotations

import random
import socket
import time

from fastloop._bench.measures import percentiles
from fastloop._bench.registry import QUICK, case

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from fastloop._bench.registry import Metrics

BATCH = 1000


@case("call_soon/chain", group="scheduling", unit="callback", n=300_000, tier=QUICK)
def chain(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """Each callback schedules the next: one per turn."""
    left = n

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            loop.stop()

    loop.call_soon(step)
    loop.run_forever()


@case("call_soon/batch", group="scheduling", unit="callback", n=400_000, tier=QUICK)
def batch(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """A thousand callbacks per turn."""
    for _ in range(max(1, n // BATCH)):
        for _ in range(BATCH):
            loop.call_soon(nothing)
        loop.call_soon(loop.stop)
        loop.run_forever()


@case("call_later/cancel", group="scheduling", unit="timer", n=200_000, tier=QUICK)
def call_later_cancel(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """Timers that never fire, as timeouts mostly are."""

    def make() -> None:
        for _ in range(n):
            loop.call_later(60, nothing).cancel()
        loop.stop()

    loop.call_soon(make)
    loop.run_forever()


@case("call_later/fire", group="scheduling", unit="timer", n=100_000)
def call_later_fire(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """A thousand timers at a time, due within 1 us in random order."""
    order = random.Random(1)
    delays = [order.random() * 1e-6 for _ in range(BATCH)]
    for _ in range(max(1, n // BATCH)):
        for delay in delays:
            loop.call_later(delay, nothing)
        loop.call_later(2e-6, loop.stop)
        loop.run_forever()


@case("call_later/pending", group="scheduling", unit="timer", n=100_000)
def call_later_pending(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """Timers made and cancelled while 10,000 others are pending."""
    pending = [loop.call_later(1000 + i % 100, nothing) for i in range(10_000)]
    call_later_cancel(loop, n)
    for timer in pending:
        timer.cancel()


LATENESS: dict[str, Any] = {"group": "scheduling", "tier": QUICK, "warm": False}


@case("timers/lateness", unit="timer", n=200, metrics=("p50", "p99", "early"), **LATENESS)
def lateness(loop: asyncio.AbstractEventLoop, n: int) -> Metrics:
    """How late timers of 1 to 20 ms fire, and how many fire too early (must be 0)."""
    order = random.Random(1)
    late: list[float] = []

    def arm() -> None:
        due = loop.time() + order.uniform(0.001, 0.02)
        loop.call_at(due, fired, due)

    def fired(due: float) -> None:
        late.append(loop.time() - due)
        if len(late) < n:
            arm()
        else:
            loop.stop()

    arm()
    loop.run_forever()
    return percentiles([max(0, seconds * 1e9) for seconds in late]) | {"early": sum(seconds < 0 for seconds in late)}


@case("fairness/ready_descriptor", unit="event", n=2000, metrics=("p50", "p99"), **LATENESS)
def ready_descriptor(loop: asyncio.AbstractEventLoop, n: int) -> Metrics:
    """How long a readable descriptor waits beside a chain of callbacks that never pauses."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    waited: list[int] = []
    turns = written = 0

    def spin() -> None:
        nonlocal turns, written
        turns += 1
        # A prime: no loop's own rhythm of polling falls together with it.
        if written == 0 and turns % 97 == 0:
            written = time.perf_counter_ns()
            writer.send(b"x")
        if len(waited) < n:
            loop.call_soon(spin)

    def on_readable() -> None:
        nonlocal written
        waited.append(time.perf_counter_ns() - written)
        reader.recv(1)
        written = 0
        if len(waited) == n:
            loop.stop()

    loop.add_reader(reader.fileno(), on_readable)
    loop.call_soon(spin)
    loop.run_forever()
    loop.remove_reader(reader.fileno())
    reader.close()
    writer.close()
    return percentiles(waited)


@case("add_reader/pipe", group="scheduling", unit="byte", n=20_000)
def add_reader(loop: asyncio.AbstractEventLoop, n: int) -> None:
    """One byte at a time through a socket pair that the loop watches."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    left = n

    def on_readable() -> None:
        nonlocal left
        reader.recv(1)
        left -= 1
        if left:
            writer.send(b"x")
        else:
            loop.stop()

    loop.add_reader(reader.fileno(), on_readable)
    writer.send(b"x")
    loop.run_forever()
    loop.remove_reader(reader.fileno())
    reader.close()
    writer.close()


def nothing() -> None:
    pass
