"""Looking at tasks from outside: call graphs and `python -m asyncio ps` of Python 3.14."""

import asyncio
import io
import re
import subprocess
import sys

import pytest

from helpers import until

pytestmark = pytest.mark.left_out(not hasattr(asyncio, "capture_call_graph"), reason="Python 3.14 brings it")


async def innermost(released):
    await released


async def middle(released):
    await innermost(released)


def test_the_call_graph_of_a_task(run):
    async def main():
        released = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(middle(released), name="waits")
            await asyncio.sleep(0)
            graph = asyncio.capture_call_graph(task)
            assert graph.future is task
            names = [entry.frame.f_code.co_name for entry in graph.call_stack]
            assert names == ["innermost", "middle"]
            output = io.StringIO()
            asyncio.print_call_graph(task, file=output)
            text = output.getvalue()
            formatted = asyncio.format_call_graph(task) + "\n"
            assert re.sub(r"line \d+", "", text) == re.sub(r"line \d+", "", formatted)
            assert re.search(r"\* Task\(name='waits', id=0x[0-9a-f]+\)\n  \+ Call stack:\n", text)
            assert "async innermost()" in text and "async middle()" in text
            released.set_result(None)

    run(main())


def test_a_task_is_awaited_by_the_tasks_that_wait_for_it(run):
    async def main():
        released = asyncio.get_running_loop().create_future()
        inner = asyncio.create_task(middle(released), name="inner")

        async def waiting():
            await inner

        outer = [asyncio.create_task(waiting(), name=f"outer {n}") for n in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        graph = asyncio.capture_call_graph(inner)
        assert {waiter.future for waiter in graph.awaited_by} == set(outer)
        assert {waiter.future for waiter in asyncio.capture_call_graph(released).awaited_by} == {inner}
        gathered = asyncio.gather(*outer)
        assert len(asyncio.capture_call_graph(outer[0]).awaited_by) == 1
        released.set_result(None)
        await gathered
        assert not asyncio.capture_call_graph(inner).awaited_by

    run(main())


def test_the_graph_of_the_current_task(run):
    async def main():
        graph = asyncio.capture_call_graph()
        assert graph.future is asyncio.current_task()
        assert [entry.frame.f_code.co_name for entry in graph.call_stack][0] in ("main", "capture_call_graph")

    run(main())


@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_tasks_of_another_process(python, command):
    program = python.start("""
    async def innermost():
        await asyncio.sleep(1000)
    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(innermost(), name="sleeper")
            print("ready", flush=True)
    loop = new_event_loop()
    loop.run_until_complete(main())
    """)
    assert program.stdout.readline() == "ready\n"

    def look():
        return subprocess.run(
            [sys.executable, "-m", "asyncio", command, str(program.pid)], capture_output=True, text=True, timeout=60
        )

    async def found():
        # The program may not sleep yet.
        await until(lambda: "sleeper" in look().stdout)

    result = look()
    if "PermissionError" in result.stderr or "Operation not permitted" in result.stderr:
        pytest.skip("the kernel lets nobody read another process")
    if "sleeper" not in result.stdout:
        asyncio.run(found())
        result = look()
    assert "sleeper" in result.stdout and "innermost" in result.stdout, result.stdout + result.stderr
    program.kill()
