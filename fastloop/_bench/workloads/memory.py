"""Memory of what waits."""

from __future__ import annotations

import asyncio
import gc

from fastloop._bench.measures import memory_bytes
from fastloop._bench.registry import case

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastloop._bench.registry import Metrics

MEMORY: dict[str, Any] = {"group": "memory", "metrics": ("bytes",), "warm": False}


def used_bytes() -> int:
    gc.collect()
    return memory_bytes()


@case("pending/tasks", unit="task", n=100_000, **MEMORY)
async def pending_tasks(n: int) -> Metrics:
    """Tasks that wait for one event each, with the coroutine and the future."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = []

    async def wait() -> None:
        futures.append(loop.create_future())
        await futures[-1]

    before = used_bytes()
    tasks = [loop.create_task(wait()) for _ in range(n)]
    await asyncio.sleep(0)
    after = used_bytes()
    for future in futures:
        future.set_result(None)
    await asyncio.wait(tasks)
    return {"bytes": (after - before) / n}


@case("pending/timers", unit="timer", n=100_000, **MEMORY)
def pending_timers(loop: asyncio.AbstractEventLoop, n: int) -> Metrics:
    before = used_bytes()
    timers = [loop.call_later(1000 + i, print) for i in range(n)]
    after = used_bytes()
    for timer in timers:
        timer.cancel()
    return {"bytes": (after - before) / n}


@case("pending/callbacks", unit="callback", n=100_000, **MEMORY)
def pending_callbacks(loop: asyncio.AbstractEventLoop, n: int) -> Metrics:
    before = used_bytes()
    for _ in range(n):
        loop.call_soon(len, ())
    after = used_bytes()
    loop.call_soon(loop.stop)
    loop.run_forever()
    return {"bytes": (after - before) / n}
