"""Tasks that wait, by the ten thousand, take no more memory than on the standard loop."""

import asyncio
import gc
import subprocess
import sys
import sysconfig
import time
import tracemalloc

import pytest

import fastloop

TASKS = 20_000
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


def measure():
    """Bytes for each task, on the standard loop and on ours."""
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
    return measured


@pytest.mark.timeout(300)
def test_pending_tasks(debug_off):
    # In a process of its own: an attribute that some test has given to a future makes all later ones larger.
    child = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    standard, ours = map(float, child.stdout.split())
    assert ours <= standard * TOLERANCE


@pytest.mark.fastloop_only(reason="asyncio's own are not recycled")
@pytest.mark.left_out(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a thread may hold what was dropped")
def test_futures_and_tasks_are_recycled(loop_factory, debug_off):
    """Made when others have been dropped, they take no new memory, and nothing of the others is seen."""
    count, smallest = 50, 100

    async def nothing():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(count + 1)]
        tasks = [loop.create_task(nothing()) for _ in range(count + 1)]
        futures[0].name_of_mine = tasks[0].name_of_mine = 1
        await asyncio.wait(tasks)
        del futures, tasks
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            futures = [loop.create_future() for _ in range(count)]
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < count * smallest
        assert not any(hasattr(future, "name_of_mine") for future in futures)
        tasks = [loop.create_task(nothing()) for _ in range(count)]
        assert not any(hasattr(task, "name_of_mine") for task in tasks)
        await asyncio.wait(tasks)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.fastloop_only(reason="asyncio's own are not recycled")
@pytest.mark.left_out(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="there each is freed at once")
@pytest.mark.parametrize("pause", [0, 0.0005], ids=["busy", "idle"])
def test_what_a_burst_leaves_behind_goes_back(loop_factory, debug_off, pause):
    """The next burst finds what the first one had; without another, it goes back."""

    async def burst():
        loop = asyncio.get_running_loop()
        futures = []

        async def wait():
            futures.append(loop.create_future())
            await futures[-1]

        tasks = [loop.create_task(wait()) for _ in range(TASKS)]
        await asyncio.sleep(0)
        loop.call_later(0, lambda: [future.set_result(None) for future in futures])
        await tasks[-1]

    def traced():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async def main():
        tracemalloc.start()
        try:
            before = traced()
            await burst()
            kept = traced() - before
            await burst()
            again = traced() - before
            deadline = time.monotonic() + 20
            while traced() - before >= kept / 4:
                assert time.monotonic() < deadline
                for _ in range(100):
                    await asyncio.sleep(pause)
            return kept, again
        finally:
            tracemalloc.stop()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        kept, again = runner.run(main())
    # A task with what it waits for takes some 700 bytes, the coroutine not counted, and most of them are kept.
    assert kept > TASKS * 400
    assert again < kept * 1.05


if __name__ == "__main__":
    print(*measure())
