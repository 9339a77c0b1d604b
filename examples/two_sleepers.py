"""Two coroutines that sleep for one and for two seconds, side by side: two seconds in all, not three."""

import asyncio
import time


async def sleeper(name: str, seconds: float) -> float:
    print(f"{name} starts")
    await asyncio.sleep(seconds)
    print(f"{name} ends")
    return seconds


async def main() -> None:
    began = time.monotonic()
    short = asyncio.create_task(sleeper("short", 1))
    long = asyncio.create_task(sleeper("long", 2))
    slept = await asyncio.gather(short, long)
    print(f"slept for {slept[0]} and {slept[1]} seconds")
    print(f"{time.monotonic() - began:.0f} seconds in all")


if __name__ == "__main__":
    asyncio.run(main())
