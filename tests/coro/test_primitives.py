"""What asyncio builds on tasks and futures, with the standard types and ours side by side on one loop."""

import asyncio
import contextvars
import inspect

import pytest

import fastloop

TASKS = [asyncio.Task, fastloop.Task]
FUTURES = [asyncio.Future, fastloop.Future]


@pytest.fixture
def mixed(loop):
    """A loop that makes a standard task or future and one of ours, in turn."""
    count = 0

    def factory(loop, coro, **kwargs):
        nonlocal count
        count += 1
        return TASKS[count % 2](coro, loop=loop, **kwargs)

    def create_future():
        nonlocal count
        count += 1
        return FUTURES[count // 2 % 2](loop=loop)

    loop.set_task_factory(factory)
    loop.create_future = create_future
    yield loop
    del loop.create_future


async def tell(log, number, result=None):
    log.append(("begins", number))
    await asyncio.sleep(0)
    log.append(("ends", number))
    return number if result is None else result


async def gathered(log):
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, "future")
    log.append(await asyncio.gather(tell(log, 1), tell(log, 2), future))

    async def fail():
        raise LookupError("first")

    log.append(repr(await asyncio.gather(fail(), tell(log, 3), fail(), return_exceptions=True)))
    outer = asyncio.gather(*(asyncio.sleep(3600) for _ in range(4)))
    await asyncio.sleep(0)
    log.append(outer.cancel("all of them"))
    try:
        await outer
    except asyncio.CancelledError as exc:
        log.append(exc.args)


async def shielded(log):
    inner = asyncio.ensure_future(tell(log, 1))
    outer = asyncio.shield(inner)
    await asyncio.sleep(0)
    outer.cancel()
    log.append((await asyncio.gather(inner, outer, return_exceptions=True))[0])


async def waited_for(log):
    tasks = [asyncio.ensure_future(tell(log, number)) for number in range(6)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    log.append((sorted(task.result() for task in done), len(pending)))
    log.append(len((await asyncio.wait(tasks))[0]))
    never = [asyncio.ensure_future(asyncio.sleep(3600)) for _ in range(3)]
    done, pending = await asyncio.wait(never, timeout=0)
    log.append((len(done), len(pending)))
    for task in never:
        task.cancel()
    await asyncio.wait(never)


async def as_completed(log):
    # They begin in the order of a set, which is that of addresses.
    unsorted = []
    for one in asyncio.as_completed([tell(unsorted, number) for number in range(5)]):
        unsorted.append(("result", await one))
    log += sorted(unsorted)


async def timed(log):
    log.append(await asyncio.wait_for(tell(log, 1), 60))
    for _ in range(4):
        try:
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0)
        except TimeoutError:
            log.append("wait_for")
        try:
            async with asyncio.timeout(0):
                await asyncio.ensure_future(asyncio.sleep(3600))
        except TimeoutError:
            log.append("timeout")


async def grouped(log):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tell(log, number)) for number in range(5)]
    log.append([task.result() for task in tasks])

    async def fail():
        raise KeyError("group")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(fail())
            group.create_task(asyncio.sleep(3600))
    except ExceptionGroup as exc:
        log.append(repr(exc.exceptions))


async def locked(log):
    lock, semaphore, condition = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Condition()

    async def hold(number):
        async with lock:
            await tell(log, ("lock", number))
        async with semaphore:
            await tell(log, ("semaphore", number))
        async with condition:
            log.append(("waits", number))
            await condition.wait()
            log.append(("notified", number))

    tasks = [asyncio.ensure_future(hold(number)) for number in range(6)]
    await asyncio.sleep(0)
    log.append(tasks[1].cancel())
    while sum(event[0] == "waits" for event in log if isinstance(event, tuple)) < 5:
        await asyncio.sleep(0)
    async with condition:
        condition.notify(2)
    await asyncio.sleep(0)
    async with condition:
        condition.notify_all()
    log.append([type(one).__name__ for one in await asyncio.gather(*tasks, return_exceptions=True)])


async def signalled(log):
    event, barrier = asyncio.Event(), asyncio.Barrier(3)

    async def meet(number):
        await event.wait()
        log.append(("meets", number, await barrier.wait()))

    tasks = [asyncio.ensure_future(meet(number)) for number in range(6)]
    await asyncio.sleep(0)
    event.set()
    await asyncio.wait(tasks)


async def queued(log):
    queue = asyncio.Queue(1)

    async def put(first):
        for number in range(first, first + 4):
            await queue.put(number)
            log.append(("put", number))

    async def get():
        while True:
            log.append(("got", await queue.get()))
            queue.task_done()

    getters = [asyncio.ensure_future(get()) for _ in range(2)]
    await asyncio.gather(put(0), put(10), put(20))
    await queue.join()
    for getter in getters:
        getter.cancel()
    await asyncio.wait(getters)


PROGRAMS = [gathered, shielded, waited_for, as_completed, timed, grouped, locked, signalled, queued]


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.__name__ for program in PROGRAMS])
def test_standard_types_and_ours_together(mixed, program):
    """Exactly what the same program does with nothing but the standard loop and types."""
    found, expected = [], []
    mixed.run_until_complete(program(found))
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(program(expected))
    assert found == expected and found


def test_the_callback_of_run_until_complete(loop):
    """anyio finds the task of a run by it."""

    async def main():
        callbacks = [callback for callback, _ in asyncio.current_task()._callbacks]
        return asyncio.base_events._run_until_complete_cb in callbacks

    assert loop.run_until_complete(main()) is True


# ---- task factories, each by the rule of the running version ----


def two_arguments(loop, coro):
    return asyncio.Task(coro, loop=loop)


def with_context(loop, coro, context=None):
    return asyncio.Task(coro, loop=loop, context=context)


def with_keywords(loop, coro, **kwargs):
    task = asyncio.Task(coro, loop=loop, **{name: kwargs[name] for name in ("name", "context") if name in kwargs})
    task.keywords = sorted(kwargs)
    return task


class NoTask(asyncio.Future):
    def __init__(self, loop, coro, **kwargs):
        super().__init__(loop=loop)
        coro.close()
        self.set_result("no task")


def outcomes_of(loop, factory):
    """What create_task() does with each set of keywords."""
    context = contextvars.copy_context()
    outcomes = []

    async def nothing():
        pass

    for keywords in ({}, {"name": "named"}, {"context": context}, {"name": "named", "context": context},
                     {"name": None}, {"eager_start": False}, {"wrong": 1}):  # fmt: skip
        coro = nothing()
        loop.set_task_factory(factory)
        try:
            task = loop.create_task(coro, **keywords)
        except Exception as exc:
            outcomes.append((type(exc), str(exc).replace("_UnixSelectorEventLoop", "Loop")))
            coro.close()
            continue
        finally:
            loop.set_task_factory(None)
        name = getattr(task, "get_name", lambda: None)()
        outcomes.append((type(task), name == "named", getattr(task, "keywords", None)))
        loop.run_until_complete(asyncio.wait([task]))
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    return outcomes


@pytest.mark.parametrize("factory", [two_arguments, with_context, with_keywords, NoTask])
def test_factories_of_every_shape(loop, factory):
    standard = asyncio.SelectorEventLoop()
    try:
        assert outcomes_of(loop, factory) == outcomes_of(standard, factory)
    finally:
        standard.close()
