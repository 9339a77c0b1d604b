"""Threads that a library brings."""

from benchmarks.registry import FULL, case


def nothing():
    pass


@case("anyio/to_thread", group="threads", unit="job", n=3000, tier=FULL)
async def anyio_to_thread(n):
    """A hop by anyio.to_thread.run_sync(), which has worker threads of its own."""
    from anyio import to_thread

    for _ in range(n):
        await to_thread.run_sync(nothing)


@case("anyio/to_thread/40", group="threads", unit="job", n=4000, tier=FULL)
async def anyio_to_thread_40(n):
    """Forty at once, which is as many threads as anyio allows by itself."""
    import anyio
    from anyio import to_thread

    for _ in range(max(1, n // 40)):
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(to_thread.run_sync, nothing)
