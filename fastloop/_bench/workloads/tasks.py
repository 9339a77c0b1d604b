"""Tasks and futures."""

import asyncio
import types

from fastloop._bench.registry import QUICK, case


async def answer():
    return 1


@types.coroutine
def bare_yield():
    yield


@case("create_task/await", group="tasks", unit="task", n=50_000, tier=QUICK)
async def create_and_await(n):
    loop = asyncio.get_running_loop()
    for _ in range(n):
        await loop.create_task(answer())


@case("create_task/1000", group="tasks", unit="task", n=50_000)
async def create_1000(n):
    """A thousand at once, then the last is awaited."""
    loop = asyncio.get_running_loop()
    for _ in range(max(1, n // 1000)):
        tasks = [loop.create_task(answer()) for _ in range(1000)]
        await tasks[-1]


@case("create_task/eager", group="tasks", unit="task", n=50_000)
async def eager(n):
    """asyncio.eager_task_factory (3.12) with a coroutine that never suspends."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    for _ in range(n):
        await loop.create_task(answer())
    loop.set_task_factory(None)


@case("await/coroutine", group="tasks", unit="await", n=500_000)
async def no_task(n):
    """Not the loop's work: what the interpreter needs for a coroutine without a task."""
    for _ in range(n):
        await answer()


async def switching(n, tasks, pause):
    """n switches in all between so many tasks."""

    async def spin():
        for _ in range(max(1, n // tasks)):
            await pause()

    loop = asyncio.get_running_loop()
    for task in [loop.create_task(spin()) for _ in range(tasks)]:
        await task


@case("sleep(0)/one", group="tasks", unit="switch", n=100_000)
async def sleep_one(n):
    for _ in range(n):
        await asyncio.sleep(0)


@case("sleep(0)/1000", group="tasks", unit="switch", n=200_000, tier=QUICK)
async def sleep_1000(n):
    await switching(n, 1000, lambda: asyncio.sleep(0))


@case("yield/1000", group="tasks", unit="switch", n=200_000)
async def yield_1000(n):
    """As sleep(0) without its Python: the step of a task alone."""
    await switching(n, 1000, bare_yield)


async def ping_pong(n):
    """Two tasks complete each other's futures, n in all."""
    loop = asyncio.get_running_loop()
    mine, theirs = loop.create_future(), loop.create_future()

    async def ping():
        nonlocal mine
        for _ in range(n // 2):
            theirs.set_result(None)
            await mine
            mine = loop.create_future()

    async def pong():
        nonlocal theirs
        for _ in range(n // 2):
            await theirs
            theirs = loop.create_future()
            mine.set_result(None)

    task = loop.create_task(pong())
    await ping()
    await task


@case("future/ping_pong", group="tasks", unit="future", n=100_000, tier=QUICK)
async def ping_pong_one(n):
    await ping_pong(n)


@case("future/ping_pong_100", group="tasks", unit="future", n=200_000)
async def ping_pong_100(n):
    loop = asyncio.get_running_loop()
    for task in [loop.create_task(ping_pong(n // 100)) for _ in range(100)]:
        await task


@case("gather/100", group="tasks", unit="task", n=50_000, tier=QUICK)
async def gather(n):
    for _ in range(max(1, n // 100)):
        await asyncio.gather(*[answer() for _ in range(100)])


@case("TaskGroup/10", group="tasks", unit="task", n=40_000)
async def task_group(n):
    for _ in range(max(1, n // 10)):
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(answer())


@case("wait/10", group="tasks", unit="task", n=40_000)
async def wait(n):
    loop = asyncio.get_running_loop()
    for _ in range(max(1, n // 10)):
        await asyncio.wait([loop.create_task(answer()) for _ in range(10)])


@case("as_completed/10", group="tasks", unit="task", n=20_000)
async def as_completed(n):
    for _ in range(max(1, n // 10)):
        for next_one in asyncio.as_completed([answer() for _ in range(10)]):
            await next_one


@case("cancel/task", group="tasks", unit="task", n=30_000)
async def cancel(n):
    """A task that waits is cancelled, and awaited."""
    loop = asyncio.get_running_loop()
    for _ in range(n):
        task = loop.create_task(asyncio.sleep(60))
        await bare_yield()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
