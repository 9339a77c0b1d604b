"""Child processes."""

import asyncio
from asyncio.subprocess import PIPE

from fastloop._bench.registry import QUICK, case


async def spawn() -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


@case("subprocess/spawn", group="subprocess", unit="process", n=100, tier=QUICK)
async def spawn_one(n: int) -> None:
    for _ in range(n):
        await spawn()


@case("subprocess/spawn_50", group="subprocess", unit="process", n=200)
async def spawn_50(n: int) -> None:
    """Fifty at once."""
    for _ in range(max(1, n // 50)):
        await asyncio.gather(*[spawn() for _ in range(50)])


@case("subprocess/communicate", group="subprocess", unit="process", n=100)
async def communicate(n: int) -> None:
    """64 KiB through cat and back."""
    data = bytes(64 * 1024)
    for _ in range(n):
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        output, _ = await process.communicate(data)
        if output != data:
            raise RuntimeError("cat gave something else back")
