"""Tasks and futures."""

from __future__ import annotations

import asyncio
import types

from fastloop._bench.registry import QUICK, case

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator


async def answer() -> int:
    return 1


@types.coroutine
def bare_yield() -> Generator[None, None, None]:
    yield


@case("create_task/await", group="tasks", unit="task", n=50_000, tier=QUICK)
async def create_and_await(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        await loop.create_task(answer())


@case("create_task/1000", group="tasks", unit="task", n=50_000)
async def create_1000(n: int) -> None:
    """A thousand at once, then the last is awaited."""
    loop = asyncio.get_running_loop()
    for _ in range(max(1, n // 1000)):
        tasks = [loop.create_task(answer()) for _ in range(1000)]
        await tasks[-1]


@case("create_task/eager", group="tasks", unit="task", n=50_000)
async def eager(n: int) -> None:
    """asyncio.eager_task_factory (3.12) with a coroutine that never suspends."""
    loop = asyncio.get_running_loop()
    # By name, as the oldest Python that is checked has none.
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))
    for _ in range(n):
        await loop.create_task(answer())
    loop.set_task_factory(None)


@case("await/coroutine", group="tasks", unit="await", n=500_000)
async def no_task(n: int) -> None:
    """Not the loop's work: what the interpreter needs for a coroutine without a task."""
    for _ in range(n):
        await answer()


async def switching(n: int, tasks: int, pause: Callable[[], Awaitable[None]]) -> None:
    """n switches in all between so many tasks."""

    async def spin() -> None:
        for _ in range(max(1, n // tasks)):
            await pause()

    loop = asyncio.get_running_loop()
    for task in [loop.create_task(spin()) for _ in range(tasks)]:
        await task


@case("sleep(0)/one", group="tasks", unit="switch", n=100_000)
async def sleep_one(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@case("sleep(0)/1000", group="tasks", unit="switch", n=200_000, tier=QUICK)
async def sleep_1000(n: int) -> None:
    await switching(n, 1000, lambda: asyncio.sleep(0))


@case("yield/1000", group="tasks", unit="switch", n=200_000)
async def yield_1000(n: int) -> None:
    """As sleep(0) without its Python: the step of a task alone."""
    await switching(n, 1000, bare_yield)


async def ping_pong(n: int) -> None:
    """Two tasks complete each other's futures, n in all."""
    loop = asyncio.get_running_loop()
    mine, theirs = loop.create_future(), loop.create_future()

    async def ping() -> None:
        nonlocal mine
        for _ in range(n // 2):
            theirs.set_result(None)
            await mine
            mine = loop.create_future()

    async def pong() -> None:
        nonlocal theirs
        for _ in range(n // 2):
            await theirs
            theirs = loop.create_future()
            mine.set_result(None)

    task = loop.create_task(pong())
    await ping()
    await task


@case("future/ping_pong", group="tasks", unit="future", n=100_000, tier=QUICK)
async def ping_pong_one(n: int) -> None:
    await ping_pong(n)


@case("future/ping_pong_100", group="tasks", unit="future", n=200_000)
async def ping_pong_100(n: int) -> None:
    loop = asyncio.get_running_loop()
    for task in [loop.create_task(ping_pong(n // 100)) for _ in range(100)]:
        await task


@case("gather/100", group="tasks", unit="task", n=50_000, tier=QUICK)
async def gather(n: int) -> None:
    for _ in range(max(1, n // 100)):
        await asyncio.gather(*[answer() for _ in range(100)])


@case("TaskGroup/10", group="tasks", unit="task", n=40_000)
async def task_group(n: int) -> None:
    for _ in range(max(1, n // 10)):
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(answer())


@case("wait/10", group="tasks", unit="task", n=40_000)
async def wait(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(max(1, n // 10)):
        await asyncio.wait([loop.create_task(answer()) for _ in range(10)])


@case("as_completed/10", group="tasks", unit="task", n=20_000)
async def as_completed(n: int) -> None:
    for _ in range(max(1, n // 10)):
        for next_one in asyncio.as_completed([answer() for _ in range(10)]):
            await next_one


@case("cancel/task", group="tasks", unit="task", n=30_000)
async def cancel(n: int) -> None:
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
