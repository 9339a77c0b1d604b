"""Random programs of tasks and futures have the same history on the standard loop and on ours, seed by seed."""

import asyncio
import gc
import random
import sys
import sysconfig

import pytest

import fastloop
from fastloop import switches

try:
    import _testcapi
except ImportError:
    _testcapi = None

SEEDS = 50
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class Program:
    """A seeded random program; `trace` is what it did, in order."""

    def __init__(self, loop, seed, base_class=None):
        self.loop = loop
        self.random = random.Random(seed)
        self.trace = []
        self.futures = []
        self.tasks = []
        self.count = 0
        self.make_future = loop.create_future
        self.make_task = loop.create_task
        if base_class == "mixed":
            self.make_future = lambda: self.random.choice([asyncio.Future, fastloop.Future])(loop=loop)
            self.make_task = lambda coro: self.random.choice([asyncio.Task, fastloop.Task])(coro, loop=loop)

    def note(self, *event):
        self.trace.append(event)

    def spawn(self, depth):
        number = self.count = self.count + 1
        task = self.make_task(self.body(number, depth))
        task.add_done_callback(lambda done, number=number: self.note(number, "done", outcome(done)))
        self.tasks.append(task)
        return task

    async def body(self, number, depth):
        for _ in range(self.random.randrange(1, 6)):
            action = self.random.choice(ACTIONS)
            self.note(number, action.__name__, asyncio.current_task() is not None)
            try:
                result = await action(self, depth)
            except asyncio.CancelledError as exc:
                self.note(number, "cancelled", exc.args, asyncio.current_task().cancelling())
                if self.random.random() < 0.6:
                    raise
                asyncio.current_task().uncancel()
            except (TimeoutError, ValueError, asyncio.InvalidStateError, ExceptionGroup) as exc:
                self.note(number, type(exc).__name__)
                if self.random.random() < 0.2:
                    raise
            else:
                self.note(number, "result", repr(result) if isinstance(result, (int, list, str)) else None)
        return number

    async def yield_once(self, depth):
        await asyncio.sleep(0)

    async def wait_future(self, depth):
        future = self.make_future()
        self.futures.append(future)
        for _ in range(self.random.randrange(3)):
            future.add_done_callback(lambda done: self.note("callback", done.cancelled()))
        self.loop.call_soon(self.touch)
        return await asyncio.wait_for(future, 5)

    async def touch_futures(self, depth):
        for _ in range(3):
            self.touch()
        return 1

    def touch(self):
        pending = [future for future in self.futures if not future.done()]
        if not pending:
            return
        future = self.random.choice(pending)
        kind = self.random.randrange(4)
        if kind == 0:
            self.complete(future, "cancel", "touched")
        elif kind == 1:
            self.complete(future, "set_exception", ValueError("touched"))
        else:
            self.complete(future, "set_result", self.random.choice([None, 5, (1, 2)]))

    def complete(self, future, method, *args):
        getattr(future, method)(*args)

    async def cancel_somebody(self, depth):
        self.random.choice(self.tasks).cancel("by chance")
        return 2

    async def cancel_self(self, depth):
        asyncio.current_task().cancel("self")
        await asyncio.sleep(0)

    async def gather_children(self, depth):
        if depth == 0:
            return 0
        children = [self.spawn(depth - 1) for _ in range(self.random.randrange(1, 4))]
        return await asyncio.gather(*children, return_exceptions=self.random.random() < 0.5)

    async def group_with_a_child(self, depth):
        if depth == 0:
            return 0
        # One child: a group cancels its children in the order of a set, which is that of addresses.
        async with asyncio.TaskGroup() as group:
            number = self.count = self.count + 1
            group.create_task(self.body(number, depth - 1))

    async def shielded_child(self, depth):
        if depth == 0:
            return 0
        return await asyncio.shield(self.spawn(depth - 1))

    async def timed_out(self, depth):
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    async def await_twice(self, depth):
        if depth == 0:
            return 0
        child = self.spawn(depth - 1)
        await asyncio.wait([child])
        return await child

    async def raise_error(self, depth):
        raise ValueError("raised")

    async def run(self):
        for _ in range(4):
            self.spawn(3)
        for _ in range(300):
            await asyncio.sleep(0)
            if all(task.done() for task in self.tasks):
                break
            if self.random.random() < 0.3:
                self.touch()
        for task in self.tasks:
            task.cancel("the end")
        await asyncio.wait(self.tasks)
        self.note("left", len(asyncio.all_tasks()))


ACTIONS = [
    Program.yield_once,
    Program.yield_once,
    Program.wait_future,
    Program.wait_future,
    Program.touch_futures,
    Program.cancel_somebody,
    Program.cancel_self,
    Program.gather_children,
    Program.group_with_a_child,
    Program.shielded_child,
    Program.timed_out,
    Program.await_twice,
    Program.raise_error,
]


def outcome(task):
    if task.cancelled():
        return "cancelled"
    if task.exception() is not None:
        return type(task.exception()).__name__
    return task.result()


class StarvedProgram(Program):
    """The same, but some of the calls into C find no memory first, and are made again."""

    def __init__(self, loop, seed):
        super().__init__(loop, seed)
        # What fails is chosen apart from what the program does.
        self.dice = random.Random(seed)
        self.failed = 0
        self.make_future = self.starving(self.make_future)
        self.make_task = self.starving(self.make_task)

    def starving(self, function):
        def call(*args):
            number = self.dice.randrange(6)
            if number == 0:
                return function(*args)
            _testcapi.set_nomemory(number, number + 1)
            try:
                return function(*args)
            except MemoryError:
                pass
            finally:
                _testcapi.remove_mem_hooks()
            self.failed += 1
            return function(*args)

        return call

    def complete(self, future, method, *args):
        """Completing may have happened although it reports a failure: who waits is woken, a callback may be lost."""
        number = self.dice.randrange(6)
        method = getattr(future, method)
        _testcapi.set_nomemory(number, number + 1)
        try:
            method(*args)
            return
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
        self.failed += 1
        if not future.done():
            method(*args)


def run_program(make_loop, seed, program_type=Program, **kwargs):
    loop = make_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        program = program_type(loop, seed, **kwargs)
        loop.run_until_complete(program.run())
        return program.trace
    finally:
        loop.close()


@pytest.mark.parametrize("debug", [False, True], ids=["release", "debug"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_same_history(seed, debug):
    def make(factory):
        loop = factory()
        loop.set_debug(debug)
        return loop

    expected = run_program(lambda: make(asyncio.SelectorEventLoop), seed)
    assert run_program(lambda: make(fastloop.new_event_loop), seed) == expected
    assert len(expected) > 10


@pytest.mark.parametrize("seed", range(SEEDS))
def test_same_history_of_native_types_on_the_standard_loop(seed):
    expected = run_program(asyncio.SelectorEventLoop, seed)

    def with_native_factory():
        loop = asyncio.SelectorEventLoop()
        loop.set_task_factory(lambda loop, coro, **kwargs: fastloop.Task(coro, loop=loop, **kwargs))
        loop.create_future = lambda: fastloop.Future(loop=loop)
        return loop

    assert run_program(with_native_factory, seed) == expected


@pytest.mark.parametrize("seed", range(SEEDS))
def test_same_history_of_mixed_types(seed):
    expected = run_program(asyncio.SelectorEventLoop, seed, base_class="mixed")
    assert run_program(fastloop.new_event_loop, seed, base_class="mixed") == expected


@pytest.mark.parametrize("seed", range(SEEDS))
def test_same_history_with_the_collector_always_at_work(seed):
    expected = run_program(asyncio.SelectorEventLoop, seed)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        assert run_program(fastloop.new_event_loop, seed) == expected
    finally:
        gc.set_threshold(*thresholds)


def without_callbacks(trace):
    return [event for event in trace if event[0] != "callback"]


@pytest.mark.skipif(_testcapi is None, reason="the module that makes allocations fail is not there")
@pytest.mark.left_out(sys.version_info < (3, 12), reason="wait_for() of 3.11 waits for a callback, which may be lost")
@pytest.mark.left_out(FREE_THREADED and sys.version_info < (3, 14), reason="there cancel() is the base's, with a lock")
@pytest.mark.left_out("tasks" in switches.disabled(), reason="asyncio's own tasks lose wake-ups")
def test_same_history_where_allocations_fail(debug_off):
    """Each MemoryError comes out of the call that had none, and costs at most one callback: no task sleeps for ever."""
    failed = 0
    for seed in range(SEEDS):
        expected = run_program(asyncio.SelectorEventLoop, seed)
        programs = []

        def starved(*args):
            programs.append(StarvedProgram(*args))
            return programs[-1]

        found = run_program(fastloop.new_event_loop, seed, starved)
        assert without_callbacks(found) == without_callbacks(expected), seed
        assert len(expected) - len(found) <= programs[0].failed
        failed += programs[0].failed
    assert failed > SEEDS / 5
