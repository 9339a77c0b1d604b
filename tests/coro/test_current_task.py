"""asyncio.current_task() wherever a program can look, beside tasks that switch all the time: as on the standard loop.

Our loops leave the entry of a finished step in asyncio's dict until the next step replaces it: nobody may see that.
"""

import _asyncio
import asyncio
import gc
import os
import re
import signal
import socket
import sys
import threading
import time
import weakref

import pytest

import fastloop
import helpers


class Observed:
    """A loop with what was seen on it: `look(where)` notes the name of the current task."""

    def __init__(self, loop):
        self.loop = loop
        self.seen = []

    def look(self, where, *ignored):
        task = asyncio.current_task(self.loop)
        in_dict = self.loop in getattr(_asyncio, "_current_tasks", {self.loop} if task else ())
        assert in_dict == (task is not None)
        self.seen.append((where, task and task.get_name()))

    def task(self, coro, name):
        return self.loop.create_task(coro, name=name)

    def run(self, *coros):
        async def main():
            spinners = [self.task(spin(), f"spinner {number}") for number in range(3)]
            await asyncio.gather(*[self.task(coro, f"body {number}") for number, coro in enumerate(coros)])
            for spinner in spinners:
                spinner.cancel()
            await asyncio.wait(spinners)

        self.loop.run_until_complete(main())
        self.look("after the run")
        assert self.seen[-1] == ("after the run", None)
        return {where for where in self.seen if where[0] != "after the run"}


async def spin():
    while True:
        await asyncio.sleep(0)


@pytest.fixture
def observed(loop_name):
    loop = helpers.new_loop(loop_name)
    yield Observed(loop)
    loop.close()
    gc.collect()


class Dies:
    """Looks when it is freed."""

    def __init__(self, observed, where):
        self.observed = observed
        self.where = where

    def __del__(self):
        self.observed.look(self.where)


async def answer(value):
    return value


def test_in_callbacks(observed):
    loop = observed.loop

    async def body():
        for _ in range(5):
            loop.call_soon(observed.look, "call_soon")
            loop.call_later(0, observed.look, "call_later")
            loop.call_soon_threadsafe(observed.look, "threadsafe")
            future = loop.create_future()
            future.add_done_callback(lambda _: observed.look("done callback"))
            loop.call_soon(future.set_result, None)
            await future
            observed.look("own step")
        await asyncio.sleep(0.002)

    callbacks = {"call_soon", "call_later", "threadsafe", "done callback"}
    assert observed.run(body()) == {(where, None) for where in callbacks} | {("own step", "body 0")}


def test_in_protocols_and_readers(observed):
    loop = observed.loop
    closed = loop.create_future()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            observed.look("connection_made")
            self.transport = transport

        def data_received(self, data):
            observed.look("data_received")
            self.transport.write(b"answer" * 100000)

        def pause_writing(self):
            observed.look("pause_writing")

        def resume_writing(self):
            observed.look("resume_writing")

        def eof_received(self):
            observed.look("eof_received")

        def connection_lost(self, exc):
            observed.look("connection_lost")
            closed.set_result(None)

    async def body():
        ours, theirs = socket.socketpair()
        watched, writer = socket.socketpair()
        for sock in (ours, theirs, watched, writer):
            sock.setblocking(False)
        loop.add_reader(watched.fileno(), lambda: (observed.look("reader"), watched.recv(10)))
        await loop.create_connection(Protocol, sock=ours)
        writer.send(b"x")
        await loop.sock_sendall(theirs, b"question")
        received = 0
        while received < 600000:
            received += len(await loop.sock_recv(theirs, 65536))
        theirs.close()
        await closed
        loop.remove_reader(watched.fileno())
        watched.close()
        writer.close()

    places = {place for place, _ in observed.run(body())}
    assert places >= {"connection_made", "data_received", "connection_lost", "reader", "pause_writing"}
    assert {name for _, name in observed.seen} == {None}


def test_from_other_threads(observed):
    loop = observed.loop
    wrong = []
    end = threading.Event()

    def watch():
        while not end.is_set():
            task = asyncio.current_task(loop)
            # It may have ended between the two looks.
            if task is not None and not task.get_name():
                wrong.append(task)

    async def body():
        for round in range(200):
            await loop.create_task(answer(round))
            if round % 20 == 0:
                sys.setswitchinterval(1e-6)
                await asyncio.sleep(0.001)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        observed.run(body())
    finally:
        sys.setswitchinterval(interval)
        end.set()
        thread.join()
    assert not wrong


def test_while_the_loop_waits(observed):
    """A thread that the loop waits for sees no task."""
    loop = observed.loop
    end = time.monotonic() + 20

    def wait_for_none():
        while asyncio.current_task(loop) is not None and time.monotonic() < end:
            time.sleep(0.001)
        observed.look("executor")

    async def main():
        await loop.create_task(answer(1))
        await loop.run_in_executor(None, wait_for_none)
        await loop.create_task(answer(1))

    loop.run_until_complete(main())
    assert observed.seen == [("executor", None)]


@pytest.mark.parametrize("what", ["result", "exception", "message"])
def test_when_results_die(observed, what):
    """What a future or a task holds, freed together with it, in the step or after it as on the standard loop."""
    loop = observed.loop

    async def fail(value):
        raise LookupError(value)

    async def body():
        for number in range(4):
            value = Dies(observed, number)
            if number % 2:
                awaited = loop.create_future()
                loop.call_soon(awaited.set_result if what == "result" else awaited.cancel, value)
            else:
                awaited = loop.create_task(fail(value) if what == "exception" else answer(value))
            del value
            try:
                await awaited
            except (LookupError, asyncio.CancelledError):
                pass
            del awaited
            await asyncio.sleep(0)

    expected = Observed(asyncio.SelectorEventLoop())
    real, observed_here = observed, expected
    try:
        observed, loop = expected, expected.loop
        wanted = observed_here.run(body())
    finally:
        expected.loop.close()
    observed, loop = real, real.loop
    assert observed.run(body()) == wanted
    assert len(wanted) == 4


def test_in_weak_reference_callbacks(observed):
    loop = observed.loop
    kept = []

    async def body():
        for number in range(3):
            task = loop.create_task(answer(number))
            kept.append(weakref.ref(task, lambda _: observed.look("task gone")))
            kept.append(weakref.ref(task.get_coro(), lambda _: observed.look("coroutine gone")))
            await task
            del task
            await asyncio.sleep(0)

    wanted = {("task gone", None), ("coroutine gone", None)}
    seen = observed.run(body())
    assert seen == wanted


def test_in_the_exception_handler(observed):
    loop = observed.loop
    loop.set_exception_handler(lambda _, context: observed.look(context["message"]))

    async def fail():
        raise LookupError

    async def body():
        loop.create_task(fail())
        loop.call_soon(int, "x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    seen = observed.run(body())
    assert ("Task exception was never retrieved", None) in seen
    assert {name for _, name in seen} == {None} and len(seen) == 2


def test_after_an_exception_leaves_the_run(observed):
    loop = observed.loop

    async def leave():
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    others = [loop.create_task(asyncio.sleep(0)) for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(leave())
    observed.look("after")
    loop.run_until_complete(asyncio.wait(others))
    assert observed.seen == [("after", None)]


def test_after_stop(observed):
    loop = observed.loop

    async def body():
        for _ in range(3):
            await asyncio.sleep(0)
        loop.stop()
        await asyncio.sleep(0)

    task = loop.create_task(body())
    loop.run_forever()
    observed.look("stopped")
    loop.run_until_complete(task)
    assert observed.seen == [("stopped", None)]


def test_in_signal_handlers(observed):
    loop = observed.loop
    loop.add_signal_handler(signal.SIGUSR1, observed.look, "signal")

    async def body():
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(50):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    try:
        assert observed.run(body()) == {("signal", None)}
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


def test_replaced_time(observed):
    loop = observed.loop
    original = loop.time

    def time():
        task = asyncio.current_task(loop)
        if task is None or task.get_name() != "body 0":
            observed.look("time")
        return original()

    loop.time = time

    async def body():
        for _ in range(3):
            await asyncio.sleep(0.0001)

    assert observed.run(body()) == {("time", None)}


@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="needs eager tasks (3.12)")
def test_eager_tasks_inside_a_step(observed):
    loop = observed.loop

    async def inside(where):
        observed.look(where)
        await asyncio.sleep(0)
        observed.look(where + ", later")

    async def body():
        loop.set_task_factory(asyncio.eager_task_factory)
        for _ in range(3):
            task = loop.create_task(inside("eager"), name="eager")
            observed.look("own step")
            await task
            observed.look("own step")
        loop.set_task_factory(None)

    seen = observed.run(body())
    assert {where for where, _ in seen} == {"eager", "eager, later", "own step"}
    assert {name for where, name in seen if where == "own step"} == {"body 0"}
    assert {name for where, name in seen if where == "eager, later"} == {"eager"}


def other_loop_in_a_thread():
    thread = threading.Thread(target=asyncio.run, args=(asyncio.sleep(0),))
    thread.start()
    thread.join()


def dict_with_new_tables():
    registry = getattr(_asyncio, "_current_tasks", {})
    registry.update(dict.fromkeys(range(100)))
    for key in range(100):
        del registry[key]


@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="needs eager tasks (3.12)")
@pytest.mark.parametrize("change", [None, other_loop_in_a_thread, dict_with_new_tables])
@pytest.mark.parametrize("start", ["step", "callback"])
def test_eager_tasks_that_nest(loop, start, change):
    """Each is the current task from its beginning to its end, also around one that it starts."""
    seen = []

    async def nest(depth):
        here = asyncio.current_task()
        if change is not None and depth % 2:
            change()
        if depth < 4:
            seen.append(loop.create_task(nest(depth + 1)))
        assert asyncio.current_task() is here
        return here

    def begin():
        before = asyncio.current_task()
        seen.append(loop.create_task(nest(0)))
        assert asyncio.current_task() is before

    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        for _ in range(3):
            if start == "step":
                begin()
            else:
                loop.call_soon(begin)
            await asyncio.sleep(0)
        assert asyncio.current_task().get_coro().__name__ == "main"

    loop.run_until_complete(main())
    assert len(seen) == 15
    for task in seen:
        assert task.result() is task


@pytest.mark.left_out(not hasattr(_asyncio, "_current_tasks"), reason="no dict of current tasks (3.14)")
@pytest.mark.parametrize("what", ["leave", "other"])
def test_changed_in_a_step(observed, what):
    """Somebody plays with the registry in the middle of a step, which ends with the standard error."""
    loop = observed.loop
    problems = []
    loop.set_exception_handler(lambda _, context: problems.append(type(context["exception"])))

    async def body():
        task = asyncio.current_task()
        asyncio.tasks._leave_task(loop, task)
        if what == "other":
            asyncio.tasks._enter_task(loop, other)
        # A future that was done before: the step goes on to its end with what was left behind.
        await asyncio.sleep(0)

    async def idle():
        await asyncio.sleep(0)

    other = loop.create_task(idle(), name="other")
    loop.run_until_complete(other)
    task = loop.create_task(body())
    loop.call_soon(loop.stop)
    loop.run_forever()
    observed.look("between")
    if what == "other":
        asyncio.tasks._leave_task(loop, other)
    loop.run_until_complete(task)
    assert problems == [RuntimeError]
    assert observed.seen == [("between", "other" if what == "other" else None)]


@pytest.mark.left_out(not hasattr(_asyncio, "_current_tasks"), reason="no dict of current tasks (3.14)")
def test_a_step_beside_another_current_task(observed):
    """Somebody has entered a task and not left it: the steps that come meanwhile are refused, and their tasks wait."""
    loop = observed.loop
    problems = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    entered = loop.create_task(answer(1), name="entered")
    tasks = [loop.create_task(answer(2), name=f"late {number}") for number in range(2)]
    asyncio.tasks._enter_task(loop, entered)
    loop.call_soon(loop.stop)
    loop.run_forever()
    observed.look("entered")
    asyncio.tasks._leave_task(loop, entered)
    for task in (entered, *tasks):
        context = problems.pop(0)
        assert context["message"].startswith("Exception in callback ")
        assert re.fullmatch(
            f"Cannot enter into task <Task pending name='{task.get_name()}' .*> while another task "
            "<Task pending name='entered' .*> is being executed\\.",
            str(context["exception"]),
        )
        assert not task.done()
        # Nothing will resume it.
        task.get_coro().close()
        task._log_destroy_pending = False
    assert not problems
    assert observed.seen == [("entered", "entered")]
    assert loop.run_until_complete(answer(3)) == 3


def test_foreign_task_types_between_ours(observed):
    """Standard tasks and Python ones enter and leave by the standard functions."""
    loop = observed.loop

    async def body(name):
        for _ in range(5):
            observed.look(name)
            await asyncio.sleep(0)

    async def main():
        kinds = [asyncio.Task, fastloop.Task]
        if hasattr(_asyncio, "_current_tasks") and sys.version_info >= (3, 12):
            # Elsewhere they have a registry of their own.
            kinds.append(asyncio.tasks._PyTask)
        tasks = [kind(body(kind.__module__), loop=loop, name=kind.__module__) for kind in kinds for _ in range(2)]
        await asyncio.wait(tasks)
        assert all(task.exception() is None for task in tasks)

    observed.run(main())
    seen = [pair for pair in observed.seen if pair[0] != "after the run"]
    assert len(seen) in (20, 30) and all(where == name for where, name in seen)


def test_in_result_of_a_subclass(observed):
    """A future of a Python class is asked for its result between two steps."""
    base = fastloop.Future if isinstance(observed.loop, fastloop.Loop) else asyncio.Future
    seen = []

    class Future(base):
        def result(self):
            seen.append(asyncio.current_task())
            return super().result()

    async def busy():
        for _ in range(6):
            await asyncio.sleep(0)

    async def main():
        future = Future(loop=observed.loop)
        waiter = observed.loop.create_task(answer_of(future))
        other = observed.loop.create_task(busy())
        await asyncio.sleep(0)
        observed.loop.call_soon(future.set_result, 1)
        assert await waiter == 1
        await other

    async def answer_of(future):
        return await future

    observed.loop.run_until_complete(main())
    assert seen[0] is None


class Noisy:
    """Looks at the current task when it is freed."""

    def __init__(self, loop, seen):
        self.loop, self.seen = loop, seen

    def __del__(self):
        gc.collect()
        self.seen.append(asyncio.current_task(self.loop))


@pytest.mark.parametrize("awaited", ["future", "task", "failed future", "failed task", "named task"])
@pytest.mark.parametrize("holds", ["result", "attribute", "weak reference", "nothing"])
def test_what_was_awaited_is_freed_after_the_step(loop, awaited, holds):
    """It is dropped between two steps, and what runs then sees no task.

    The loop itself is a key of asyncio's, with a hash of the user's, in which the collector runs.
    """
    collects = False

    class Loop(type(loop)):
        def __hash__(self):
            if collects:
                gc.collect()
            return 7

        def __eq__(self, other):
            return self is other

    loop = Loop()
    seen, references = [], []

    def value():
        return Noisy(loop, seen) if holds == "result" else [holds]

    async def give():
        await asyncio.sleep(0)
        if awaited.startswith("failed"):
            raise LookupError(value())
        return value()

    def make():
        if awaited.endswith("task"):
            future = loop.create_task(give(), **({"name": "a name"} if awaited == "named task" else {}))
        else:
            future = loop.create_future()
            if awaited == "failed future":
                loop.call_soon(lambda error: future.set_exception(error), LookupError(value()))
            else:
                loop.call_soon(future.set_result, value())
        if holds == "attribute":
            future.attribute = Noisy(loop, seen)
        elif holds == "weak reference":
            references.append(weakref.ref(future, lambda _: seen.append(asyncio.current_task(loop))))
        return future

    async def main():
        nonlocal collects
        others = [loop.create_task(spin()) for _ in range(2)]
        await asyncio.sleep(0)
        collects = True
        for _ in range(5):
            try:
                # The last one to hold it is the record of the wake-up.
                await make()
            except LookupError:
                pass
        collects = False
        for other in others:
            other.cancel()
        await asyncio.wait(others)

    loop.run_until_complete(main())
    loop.close()
    assert set(seen) == (set() if holds == "nothing" else {None})


@pytest.mark.left_out(not hasattr(_asyncio, "_current_tasks"), reason="the thread has it, not a dict")
@pytest.mark.parametrize("count", [1, 3, 50])
def test_when_the_dict_changes(observed, count):
    """Entries of others come and go in the dict, which grows and shrinks, between steps and within them."""
    entries = _asyncio._current_tasks

    async def body():
        me = asyncio.current_task()
        for _ in range(5):
            others = [object() for _ in range(count)]
            for other in others:
                entries[other] = me
                assert asyncio.current_task() is me
                await asyncio.sleep(0)
                assert asyncio.current_task() is me and entries[observed.loop] is me
            for other in others:
                del entries[other]
                await asyncio.sleep(0)
                assert asyncio.current_task() is me and entries[observed.loop] is me
            # Its own in another place.
            entries[observed.loop] = entries.pop(observed.loop)
            await asyncio.sleep(0)
        observed.look("body")

    assert observed.run(body(), body()) == {("body", "body 0"), ("body", "body 1")}
    assert not entries


@pytest.mark.left_out(not hasattr(_asyncio, "_current_tasks"), reason="the thread has it, not a dict")
def test_when_an_update_of_the_dict_fails(observed):
    """It has grown by then, and has moved its entries."""

    class Equal:
        def __hash__(self):
            return hash(observed.loop)

        def __eq__(self, other):
            raise ZeroDivisionError

    failed = []

    async def step(number):
        for turn in range(20):
            await asyncio.sleep(0)
            observed.look(number)
            if number == 1 and turn == 10:
                try:
                    _asyncio._current_tasks.update(growth)
                except ZeroDivisionError:
                    failed.append(turn)

    async def main():
        await asyncio.wait([observed.task(step(number), f"step {number}") for number in range(4)])

    growth = dict.fromkeys([Equal(), *range(20)])
    deadline = observed.loop.call_later(50, observed.loop.stop)
    observed.loop.run_until_complete(main())
    deadline.cancel()
    assert sorted(observed.seen) == [(number, f"step {number}") for number in range(4) for _ in range(20)]
    assert failed == [10]


def test_loops_in_many_threads(loop_name):
    """More loops than the smallest dict has room for, each with tasks of its own."""
    count = 12
    barrier = threading.Barrier(count)
    wrong = []

    async def body():
        me = asyncio.current_task()
        for _ in range(200):
            await asyncio.sleep(0)
            if asyncio.current_task() is not me:
                wrong.append(me)

    async def main():
        barrier.wait()
        await asyncio.gather(*[body() for _ in range(5)])

    def run():
        loop = helpers.new_loop(loop_name)
        loop.run_until_complete(main())
        loop.close()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=run) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
