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
failed = succeeded = 0
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
            # Those that could not even be resumed, or wait, ended with the error.
            assert task.done(), (operation, prepared, number)
            hoard += [result, task, future]
del hoard, result, task, future, coroutines, coroutine
gc.collect()
leftover = asyncio.all_tasks(loop)
assert not leftover, leftover
assert loop.run_until_complete(answer(5)) == 5
loop.close()
assert failed > 8 and succeeded > 20, (failed, succeeded)
print("fine")
"""


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only
def test_allocations_fail(python):
    assert python(PROGRAM, stderr=None).strip() == "fine"


FULL = """
import asyncio, gc, sys
from _testcapi import remove_mem_hooks, set_nomemory

loop = new_event_loop()
loop.set_debug(DEBUG)
problems = []
loop.set_exception_handler(lambda loop, context: problems.append(context.get("exception")))
loop.run_until_complete(asyncio.sleep(0))


async def wait_for(future):
    return await future


def fill():
    # The ready queue doubles when it is full.
    ran = []
    for _ in range(64 - len(loop._ready)):
        loop.call_soon(ran.append, 1)
    return ran


def turn():
    loop.call_soon(int)
    run_once(loop._run_once)


def starving_turn():
    # It may block: only what the test has brought about wakes it up. The Python around it needs memory, and has it.
    run_once(without_memory, loop._run_once)


def run_once(function, *args):
    asyncio._set_running_loop(loop)
    try:
        function(*args)
    finally:
        asyncio._set_running_loop(None)


def without_memory(function, *args):
    # Keyword arguments would be a dict that the call itself has to make.
    set_nomemory(0, 0)
    try:
        function(*args)
        remove_mem_hooks()
    except MemoryError:
        remove_mem_hooks()
        return True
    finally:
        remove_mem_hooks()
    return False


def test_set_result():
    # The tasks that wait for it, in their order, with another callback in between.
    future = loop.create_future()
    order = []
    async def note(number):
        order.append((number, await future))
    first = loop.create_task(note(1))
    turn()
    future.add_done_callback(lambda future: order.append("callback"))
    tasks = [first, loop.create_task(note(2)), loop.create_task(note(3))]
    turn()
    ran = fill()
    without_memory(future.set_result, 7)
    assert future.done()
    loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks), 60))
    assert [entry for entry in order if entry != "callback"] == [(1, 7), (2, 7), (3, 7)], order
    assert len(ran) == 64


def test_exceptions():
    class Future(type(loop.create_future())):
        pass

    future = Future(loop=loop)
    tasks = [loop.create_task(wait_for(future)) for _ in range(3)]
    turn()
    fill()
    without_memory(future.set_exception, ValueError("why"))
    results = loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    assert [type(result) for result in results] == [ValueError] * 3


def test_cancel():
    future = loop.create_future()
    task = loop.create_task(wait_for(future))
    turn()
    fill()
    without_memory(task.cancel)
    if not task.cancelling():
        task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    assert task.cancelled()


def test_tasks_that_end():
    inner = loop.create_future()
    one = loop.create_task(wait_for(inner))
    others = [loop.create_task(wait_for(one)) for _ in range(3)]
    turn()
    def starve():
        loop.call_soon(remove_mem_hooks)
        fill()
        set_nomemory(0, 0)
    loop.call_soon(starve)
    inner.set_result(None)
    assert loop.run_until_complete(asyncio.gather(*others)) == [None] * 3


def test_timers():
    fired = []
    for number in range(5):
        loop.call_later(0, fired.append, number)
    fill()
    starving_turn()
    for _ in range(3):
        turn()
    assert fired == [0, 1, 2, 3, 4], fired


def test_bare_yields():
    count = 0
    async def spin():
        nonlocal count
        for _ in range(3):
            await asyncio.sleep(0)
            count += 1
    tasks = [loop.create_task(spin()) for _ in range(64)]
    for _ in range(3):
        starving_turn()
    loop.run_until_complete(asyncio.wait(tasks))
    assert all(task.done() for task in tasks)


def test_sockets():
    import socket
    near, far = socket.socketpair()
    near.setblocking(False)
    async def receive():
        return [await loop.sock_recv(near, 1), await loop.sock_recv(near, 1)]
    task = loop.create_task(receive())
    turn()
    far.send(b"1")
    fill()
    starving_turn()
    far.send(b"2")
    assert loop.run_until_complete(asyncio.wait_for(task, 60)) == [b"1", b"2"]
    near.close()
    far.close()


for name, test in list(globals().items()):
    if name.startswith("test_"):
        loop.close()
        # Its ready queue is as small as a queue can be.
        loop = new_event_loop()
        loop.set_debug(DEBUG)
        loop.set_exception_handler(lambda loop, context: problems.append(context.get("exception")))
        test()
assert not asyncio.all_tasks(loop)
assert all(isinstance(problem, MemoryError) for problem in problems), problems
loop.close()
print("fine")
"""


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop loses them")
@pytest.mark.parametrize("debug", [False, True])
def test_a_queue_that_cannot_grow_loses_nothing(python, debug):
    assert python(FULL.replace("DEBUG", str(debug)), stderr=None).strip() == "fine"
