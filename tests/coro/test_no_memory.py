"""Allocations that fail, one after the other: errors come out as MemoryError, nothing crashes, and the loop goes on.

Only what is C: the interpreter itself crashes (3.13) when memory ends where it makes functions.
"""

import pytest

pytest.importorskip("_testcapi")

PROGRAM = """
import asyncio, gc, sys
from _testcapi import remove_mem_hooks, set_nomemory

loop = new_event_loop()
problems = []
loop.set_exception_handler(lambda loop, context: problems.append(context.get("exception")))


async def answer(value):
    return value


async def wait_for(future):
    return await future


def call_soon():
    return loop.call_soon(int, 1, 2, 3, 4)


def call_later():
    return loop.call_later(1000, int)


def create_task():
    coroutine = coroutines.pop()
    return loop.create_task(coroutine)


def create_future():
    return loop.create_future()


def set_result():
    future.set_result(object)


def cancel():
    task.cancel("why")


def step():
    # A turn, without the Python around it: the task's first step, its wait, or its end.
    loop._run_once()


# What is kept does not come back from a free list.
hoard = []
failed = succeeded = lost = 0
for operation in (call_soon, call_later, create_task, create_future, set_result, cancel, step):
    for prepared in (False, True):
        for number in range(10):
            coroutines = [answer(1)]
            future = loop.create_future()
            task = loop.create_task(wait_for(future))
            asyncio._set_running_loop(loop)
            if prepared:
                loop._run_once()
                if operation is step:
                    future.set_result(None)
            loop.call_soon(int)
            result = None
            set_nomemory(number, number + 1)
            try:
                result = operation()
                remove_mem_hooks()
                succeeded += 1
            except MemoryError:
                remove_mem_hooks()
                failed += 1
            finally:
                remove_mem_hooks()
                asyncio._set_running_loop(None)
            if result is not None and hasattr(result, "cancel"):
                result.cancel()
            for coroutine in coroutines:
                coroutine.close()
            future.cancel()
            task.cancel()
            assert loop.run_until_complete(answer(number)) == number
            # A task whose step could not even begin, since its context could not be entered, stays as it is, as on the
            # standard loop; how often that is depends on the version.
            lost += not task.done()
            task._log_destroy_pending = False
            hoard += [result, task, future]
del hoard, result, task, future, coroutines, coroutine
gc.collect()
leftover = asyncio.all_tasks(loop)
assert not leftover, leftover
assert loop.run_until_complete(answer(5)) == 5
loop.close()
assert failed > 8 and succeeded > 20 and lost < 15, (failed, succeeded, lost)
print("fine")
"""


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only
def test_allocations_fail(python):
    assert python(PROGRAM, stderr=None).strip() == "fine"
