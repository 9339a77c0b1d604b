"""Blocking work in three pools: the loop's own threads, a thread pool of one's own, and processes."""

import asyncio
import hashlib
import multiprocessing
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor


def derive_key(password: str) -> str:
    """Keep a processor busy for a while; return where, and the key."""
    key = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 20_000)
    if multiprocessing.parent_process() is not None:
        place = "a worker process"
    elif threading.current_thread() is not threading.main_thread():
        place = "another thread"
    else:
        place = "the main thread"
    return f"{password}: {key.hex()[:8]} in {place}"


async def derive_all(pool: Executor | None) -> None:
    loop = asyncio.get_running_loop()
    passwords = ["apple", "pear", "plum"]
    for line in await asyncio.gather(*(loop.run_in_executor(pool, derive_key, each) for each in passwords)):
        print(" ", line)


async def main() -> None:
    print("default pool")
    await derive_all(None)
    print("a thread pool of one's own")
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="keys") as threads:
        await derive_all(threads)
    print("a process pool")
    # Threads are running by now: a forked worker could inherit a lock that nobody will release.
    with ProcessPoolExecutor(max_workers=2, mp_context=multiprocessing.get_context("spawn")) as processes:
        await derive_all(processes)


if __name__ == "__main__":
    asyncio.run(main())
