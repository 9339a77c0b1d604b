"""A hundred thousand tasks that wait take no more memory than on the standard loop."""

import asyncio
import gc
import tracemalloc

import pytest

import fastloop

TASKS = 100_000
#: How much more it may be.
TOLERANCE = 1.05


async def bytes_for_each():
    loop, futures = asyncio.get_running_loop(), []

    async def wait():
        futures.append(loop.create_future())
        await futures[-1]

    before, _ = tracemalloc.get_traced_memory()
    tasks = [loop.create_task(wait()) for _ in range(TASKS)]
    await asyncio.sleep(0)
    after, _ = tracemalloc.get_traced_memory()
    for future in futures:
        future.set_result(None)
    await asyncio.wait(tasks)
    return (after - before) / TASKS


@pytest.mark.timeout(300)
def test_pending_tasks(debug_off):
    measured = []
    for factory in (asyncio.SelectorEventLoop, fastloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            # Measured at the second time: some things are made once.
            runner.run(asyncio.sleep(0))
            gc.collect()
            tracemalloc.start()
            try:
                measured.append(runner.run(bytes_for_each()))
            finally:
                tracemalloc.stop()
    standard, ours = measured
    assert ours <= standard * TOLERANCE
