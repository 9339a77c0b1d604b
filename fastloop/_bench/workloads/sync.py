"""asyncio's synchronisation, timeouts and sleeps."""

import asyncio

from fastloop._bench.registry import QUICK, case


@case("Queue(1)", group="sync", unit="item", n=50_000, tier=QUICK)
async def queue(n: int) -> None:
    """Each put waits for a get: two switches an item."""
    items: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for i in range(n):
            await items.put(i)

    task = asyncio.get_running_loop().create_task(produce())
    for _ in range(n):
        await items.get()
    await task


@case("Event", group="sync", unit="wake-up", n=50_000)
async def event(n: int) -> None:
    flags = asyncio.Event(), asyncio.Event()

    async def answer(mine: asyncio.Event, other: asyncio.Event) -> None:
        for _ in range(n // 2):
            await mine.wait()
            mine.clear()
            other.set()

    task = asyncio.get_running_loop().create_task(answer(*flags))
    flags[0].set()
    await answer(*reversed(flags))
    await task


async def contend(n: int, lock: asyncio.Lock | asyncio.Semaphore) -> None:
    """Ten tasks take and give the lock n times in all."""

    async def use() -> None:
        for _ in range(max(1, n // 10)):
            async with lock:
                await asyncio.sleep(0)

    for task in [asyncio.get_running_loop().create_task(use()) for _ in range(10)]:
        await task


@case("Lock/contended", group="sync", unit="acquisition", n=30_000)
async def lock(n: int) -> None:
    await contend(n, asyncio.Lock())


@case("Semaphore/contended", group="sync", unit="acquisition", n=30_000)
async def semaphore(n: int) -> None:
    await contend(n, asyncio.Semaphore(2))


@case("timeout", group="sync", unit="block", n=50_000, tier=QUICK)
async def timeout(n: int) -> None:
    """asyncio.timeout around what takes one switch."""
    for _ in range(n):
        async with asyncio.timeout(60):
            await asyncio.sleep(0)


@case("wait_for", group="sync", unit="call", n=30_000)
async def wait_for(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await asyncio.wait_for(future, 60)


@case("sleep/10000", group="sync", unit="sleep", n=30_000, metrics=("cpu", "wall"))
async def sleeps(n: int) -> None:
    """Ten thousand tasks sleep at the same time, for up to 10 ms."""
    for _ in range(max(1, n // 10_000)):
        await asyncio.gather(*[asyncio.sleep(i % 100 / 10_000) for i in range(min(n, 10_000))])
