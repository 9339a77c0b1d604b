"""Random calls, right and wrong ones, of loop, handles, timers, futures and tasks have one history on both loops.

Hypothesis makes the programs, and shortens one that fails. Both loops take the same step, and then what they have done
so far must be the same: the order of callbacks and task steps, results, exceptions with their texts, what reached the
exception handler. FASTLOOP_EXAMPLES is the number of programs (`make model` runs thousands).
"""

import asyncio
import contextvars
import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from helpers import new_loop, normalised

EXAMPLES = int(os.environ.get("FASTLOOP_EXAMPLES", "60"))
PHASES = (Phase.generate, Phase.shrink)
#: A clock that stands still until a step moves it, so that timers are due at the same step on both loops.
START = 1000.0
DELAYS = (-1, 0, 0.001, 1, 2, 1e6, float("inf"))

variable = contextvars.ContextVar("variable", default=0)


class Broken(Exception):
    pass


class World:
    """One loop, what was made on it, and its history."""

    def __init__(self, name, debug):
        self.loop = new_loop(name)
        self.loop.set_debug(debug)
        self.loop.set_exception_handler(self.report)
        self.clock = START
        self.loop.time = lambda: self.clock
        self.history = []
        self.handles, self.futures, self.tasks = [], [], []
        self.count = 0

    def note(self, *event):
        self.history.append(event)

    def report(self, loop, context):
        if "never retrieved" in context["message"] or "was destroyed" in context["message"]:
            # Told when the garbage collector finds it.
            return
        exc = context.get("exception")
        # The text of a callback's origin is that of a line here or in asyncio.
        self.note("reported", context["message"].split("(")[0], type(exc).__name__, normalised(exc), sorted(context))

    def number(self):
        self.count += 1
        return self.count

    def apart(self, seconds):
        """Nearly so many seconds: timers of the same time run in no certain order on the standard loop."""
        return seconds + (self.number() - 2000) * 2**-21

    def callback(self, script):
        """A callback that notes that it runs, and then does its part of the script."""
        number = self.number()

        def run(*args):
            self.note("callback", number, len(args), variable.get())
            for action in script:
                self.perform(action)

        return run

    def perform(self, action):
        """Do one action of a script and note its outcome; exits and Broken go on to the caller."""
        name, a, b, script = action
        try:
            result = ACTIONS[name](self, a, b, script)
        except (Broken, SystemExit, KeyboardInterrupt):
            self.note(name, "raises")
            raise
        except (Exception, asyncio.CancelledError) as exc:
            self.note(name, type(exc).__name__, normalised(exc))
        else:
            self.note(name, described(result))

    def task(self, script):
        self.tasks.append(self.loop.create_task(self.body(self.number(), script), name="T"))
        return self.tasks[-1]

    async def body(self, number, script):
        """What a task does: waits and other actions; some of its exceptions end it."""
        for name, a, b, inner in script:
            self.note("step", number, name, asyncio.current_task().cancelling(), variable.get())
            if name not in WAITS:
                self.perform((name, a, b, inner))
                continue
            try:
                self.note("waited", number, described(await WAITS[name](self, a, b, inner)))
            except (Exception, asyncio.CancelledError) as exc:
                self.note("woken by", number, type(exc).__name__, normalised(exc))
                if b % 2:
                    raise
        return number

    def run(self, function, *args):
        """Run the loop and note how the run ends."""
        try:
            self.note("ran", described(function(*args)))
        except BaseException as exc:
            self.note("ended by", type(exc).__name__, normalised(exc))

    def turn(self):
        self.loop.call_soon(self.loop.stop)
        self.run(self.loop.run_forever)

    def finish(self):
        """Bring everything to an end and close the loop."""
        self.loop.set_task_factory(None)
        self.loop.set_exception_handler(lambda loop, context: None)
        for _ in range(100):
            for task in self.tasks:
                task.cancel()
            self.turn()
            if not asyncio.all_tasks(self.loop) and not self.loop._ready:
                break
        for future in self.futures + self.tasks:
            if future.done() and not future.cancelled():
                future.exception()
        self.note("left", len(asyncio.all_tasks(self.loop)))
        self.loop.close()


def described(value):
    """A value in a form that is the same on both loops."""
    if isinstance(value, asyncio.Future):
        return "future" if not isinstance(value, asyncio.Task) else "task"
    if isinstance(value, asyncio.Handle):
        return "timer" if isinstance(value, asyncio.TimerHandle) else "handle"
    if isinstance(value, BaseException):
        return type(value).__name__, normalised(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def chosen(things, index):
    """One of the things, if there are any."""
    if not things:
        raise LookupError("none yet")
    return things[index % len(things)]


# ---------------------------------------------------------------- actions: (world, a, b, script)

NO_CALLBACKS = (None, 5, "text", object)
RESULTS = (None, 5, "text")
EXCEPTIONS = (
    lambda: ValueError("own"),
    lambda: ValueError,
    lambda: StopIteration("own"),
    lambda: StopIteration,
    lambda: asyncio.CancelledError("own"),
    lambda: 5,
    lambda: KeyError("key"),
)


def kept(world, handle):
    world.handles.append(handle)
    return handle


def call_soon(world, a, b, script):
    return kept(world, world.loop.call_soon(world.callback(script), *range(a % 5)))


def call_soon_in_a_context(world, a, b, script):
    context = contextvars.copy_context() if b % 2 else contextvars.Context()
    return kept(world, world.loop.call_soon(world.callback(script), *range(a % 5), context=context))


def call_soon_threadsafe(world, a, b, script):
    return kept(world, world.loop.call_soon_threadsafe(world.callback(script), a))


def call_later(world, a, b, script):
    return kept(world, world.loop.call_later(world.apart(chosen(DELAYS, a)), world.callback(script), *range(b % 4)))


def call_at(world, a, b, script):
    return kept(world, world.loop.call_at(world.apart(START + a - 2), world.callback(script), *range(b % 4)))


def call_what_cannot_be_called(world, a, b, script):
    name = chosen(("call_soon", "call_soon_threadsafe"), b)
    return kept(world, getattr(world.loop, name)(chosen(NO_CALLBACKS, a)))


def call_at_no_time(world, a, b, script):
    if b % 2:
        return kept(world, world.loop.call_later(chosen((None, "1", ()), a), world.callback(script)))
    # Another wrong time is found when the standard loop runs, and a documented difference.
    return kept(world, world.loop.call_at(None, world.callback(script)))


def call_a_coroutine_function(world, a, b, script):
    return kept(world, world.loop.call_later(a, World.body)) if world.loop.get_debug() else None


def cancel_handle(world, a, b, script):
    return chosen(world.handles, a).cancel()


def ask_handle(world, a, b, script):
    handle = chosen(world.handles, a)
    return handle.cancelled() if b % 2 else getattr(handle, "when", int)()


def compare_timers(world, a, b, script):
    timers = [handle for handle in world.handles if isinstance(handle, asyncio.TimerHandle)]
    first, second = chosen(timers, a), chosen(timers, b)
    return str([first < second, first <= second, first == second, first > second, first >= second])


def stop(world, a, b, script):
    return world.loop.stop()


def run_until_complete_again(world, a, b, script):
    if world.loop.is_running():
        # Not run_forever(): in Python 3.13.0, refusing makes the standard loop forget that it runs.
        return world.loop.run_until_complete(chosen(world.futures, a))
    return world.loop.run_until_complete(chosen(NO_CALLBACKS, a))


def close_loop(world, a, b, script):
    return world.loop.close() if world.loop.is_running() else world.loop.is_closed()


def ask_loop(world, a, b, script):
    loop = world.loop
    questions = (loop.is_running, loop.is_closed, loop.get_debug, loop.time, loop.get_task_factory)
    return chosen(questions, a)()


def count_tasks(world, a, b, script):
    return len(asyncio.all_tasks(world.loop))


def ask_current_task(world, a, b, script):
    return asyncio.current_task(world.loop)


def call_exception_handler(world, a, b, script):
    return world.loop.call_exception_handler(
        {"message": "own", "exception": ValueError(a)} if b % 2 else {"message": "own"}
    )


def set_handlers(world, a, b, script):
    if b % 3 == 0:
        return world.loop.set_exception_handler(chosen((5, "text"), a))
    if b % 3 == 1:
        return world.loop.set_task_factory(chosen((5, "text"), a))
    return world.loop.set_exception_handler(world.report)


def set_variable(world, a, b, script):
    variable.set(a)


def create_future(world, a, b, script):
    world.futures.append(world.loop.create_future())
    return world.futures[-1]


def anything(world, a, b):
    return chosen(world.tasks if b % 2 else world.futures, a)


def set_result(world, a, b, script):
    return anything(world, a, b % 4 == 3).set_result(chosen(RESULTS, b))


def set_exception(world, a, b, script):
    return anything(world, a, b % 4 == 3).set_exception(chosen(EXCEPTIONS, b)())


def cancel(world, a, b, script):
    thing = anything(world, a, b)
    return thing.cancel("why") if b % 4 < 2 else thing.cancel()


def ask_future(world, a, b, script):
    thing = anything(world, a, b)
    return chosen((thing.done, thing.cancelled, thing.result, thing.exception), b // 2)()


def ask_task(world, a, b, script):
    task = chosen(world.tasks, a)
    return chosen((task.cancelling, task.uncancel, task.get_name, task.get_coro, task.get_stack), b)()


def show(world, a, b, script):
    things = (world.futures, world.tasks)
    return normalised(repr(chosen(chosen(things, b), a))).split(" created at")[0]


def add_done_callback(world, a, b, script):
    return anything(world, a, b).add_done_callback(world.callback(script))


def add_no_done_callback(world, a, b, script):
    if world.loop.get_debug():
        # Refused when it is called, on the standard loop in the middle of telling the others.
        return None
    return anything(world, a, b).add_done_callback(chosen(NO_CALLBACKS[:3], b))


def remove_done_callback(world, a, b, script):
    thing, callback = anything(world, a, b), world.callback(script)
    for _ in range(b % 3):
        thing.add_done_callback(callback)
    return thing.remove_done_callback(callback)


def create_task(world, a, b, script):
    return world.task(script)


def create_task_of_something_else(world, a, b, script):
    return world.loop.create_task(chosen(NO_CALLBACKS, a))


def gather(world, a, b, script):
    things = world.futures[a % 3 :][:3]
    if not things:
        return None
    world.futures.append(asyncio.gather(*things, return_exceptions=bool(b % 2)))
    return world.futures[-1]


def shield(world, a, b, script):
    world.futures.append(asyncio.shield(chosen(world.futures, a)))
    return world.futures[-1]


def raise_error(world, a, b, script):
    raise Broken("own")


def leave(world, a, b, script):
    raise chosen((SystemExit, KeyboardInterrupt), a)("leaving")


ACTIONS = {
    function.__name__: function
    for function in (
        *(call_soon, call_soon_in_a_context, call_soon_threadsafe, call_later, call_at, call_what_cannot_be_called),
        *(call_at_no_time, call_a_coroutine_function, cancel_handle, ask_handle, compare_timers, stop),
        *(run_until_complete_again, close_loop, ask_loop, count_tasks, ask_current_task, call_exception_handler),
        *(set_handlers, set_variable, create_future, set_result, set_exception, cancel, ask_future, ask_task, show),
        *(add_done_callback, add_no_done_callback, remove_done_callback, create_task, create_task_of_something_else),
        *(gather, shield, raise_error, leave),
    )
}


# ---------------------------------------------------------------- what tasks wait for


class Yields:
    """An awaitable that yields what it was given."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        return (yield self.value)


async def sleep(world, a, b, script):
    await asyncio.sleep(chosen((0, 0, world.apart(1), world.apart(2)), a))


def awaitable(world, a, b):
    """A future, or a task that is younger than the one that waits: waits in a circle cannot be cancelled."""
    younger = world.tasks[world.tasks.index(asyncio.current_task()) + 1 :]
    return chosen(younger if b % 2 else world.futures, a)


async def wait(world, a, b, script):
    return await awaitable(world, a, b)


async def wait_for(world, a, b, script):
    return await asyncio.wait_for(awaitable(world, a, b), chosen((0, world.apart(1), world.apart(2), None), b))


async def wait_with_a_timeout(world, a, b, script):
    async with asyncio.timeout(chosen((0, world.apart(1), world.apart(2), None), a)):
        return await awaitable(world, a, b)


async def wait_for_a_child(world, a, b, script):
    return await world.task(script)


async def wait_in_a_group(world, a, b, script):
    # One child: a group cancels its children in the order of a set, which is that of addresses.
    async with asyncio.TaskGroup() as group:
        world.tasks.append(group.create_task(world.body(world.number(), script), name="T"))


async def wait_for_an_event(world, a, b, script):
    event = asyncio.Event()
    kept(world, world.loop.call_later(world.apart(a), event.set))
    return await event.wait()


async def yield_something_else(world, a, b, script):
    return await Yields(chosen((5, "text", None, asyncio.current_task(), world.loop), a))


WAITS = {
    function.__name__: function
    for function in (
        *(sleep, wait, wait_for, wait_with_a_timeout, wait_for_a_child, wait_in_a_group, wait_for_an_event),
        yield_something_else,
    )
}


# ---------------------------------------------------------------- the machine

small = st.integers(0, 7)
TOP_LEVEL = [name for name in ACTIONS if name not in ("raise_error", "leave")]


def actions(names, scripts):
    return st.tuples(st.sampled_from(names), small, small, scripts)


everything = [*ACTIONS, *WAITS]
no_script = st.just(())
in_callbacks = actions(list(ACTIONS), st.lists(actions(list(ACTIONS), no_script), max_size=2).map(tuple))
in_tasks = actions(everything, st.lists(actions(everything, no_script), max_size=3).map(tuple))
callback_scripts = st.lists(in_callbacks, max_size=3).map(tuple)
task_scripts = st.lists(in_tasks, max_size=4).map(tuple)
# Only what has a script of waits makes tasks.
MAKE_TASKS = ("create_task",)


class Scheduling(RuleBasedStateMachine):
    """Two loops that take the same steps."""

    worlds = ()

    @initialize(debug=st.sampled_from([False, False, False, True]))
    def start(self, debug):
        # A script may set the variable outside a callback: each world has a context of its own.
        self.contexts = [contextvars.Context(), contextvars.Context()]
        self.worlds = [World(name, debug) for name in ("stock", "fastloop")]
        # Once around, for what a first turn brings.
        self.both(World.turn)

    def both(self, function, *args):
        for world, context in zip(self.worlds, self.contexts):
            context.run(function, world, *args)

    @rule(action=actions([name for name in TOP_LEVEL if name not in MAKE_TASKS], callback_scripts))
    def call(self, action):
        self.both(World.perform, action)

    @rule(a=small, script=task_scripts)
    def create_task(self, a, script):
        self.both(World.perform, ("create_task", a, 0, script))

    @rule(count=st.integers(1, 4))
    def turns(self, count):
        for _ in range(count):
            self.both(World.turn)

    @rule()
    def run_until_complete(self):
        self.both(lambda world: world.run(world.loop.run_until_complete, asyncio.sleep(0)))

    @rule(seconds=st.sampled_from([0.001, 1, 1, 2]))
    def time_goes_by(self, seconds):
        for world in self.worlds:
            world.clock += seconds
        self.both(World.turn)

    @invariant()
    def one_history(self):
        if self.worlds:
            stock, ours = (world.history for world in self.worlds)
            if stock != ours:
                where = next((i for i, pair in enumerate(zip(stock, ours)) if pair[0] != pair[1]), None)
                where = min(len(stock), len(ours)) if where is None else where
                before = "\n".join(map(str, stock[max(0, where - 8) : where]))
                pytest.fail(f"after\n{before}\nstock: {stock[where : where + 4]}\nours:  {ours[where : where + 4]}")

    def teardown(self):
        self.both(World.finish)
        self.one_history()
        self.worlds = ()


@pytest.mark.timeout(100 + EXAMPLES // 4, method="signal")
@pytest.mark.fastloop_only(reason="compares with the stock loop")
def test_one_history(loop_name, guard):
    run_state_machine_as_test(
        Scheduling,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=EXAMPLES < 1000,
        ),
    )
    guard.log.take()
