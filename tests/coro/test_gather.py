"""asyncio.gather(), whose callback for each child runs natively where nobody can tell (src/coro/gather.c)."""

import asyncio
import contextvars
import gc
import random
import sys
import weakref
from asyncio import futures, tasks

import pytest

from helpers import GIL


class Failure(Exception):
    pass


class Odd(asyncio.Future):
    """A future of another type."""


async def child(kind, number):
    for _ in range(number % 3):
        await asyncio.sleep(0)
    if kind == "fails":
        raise Failure(number)
    if kind == "is cancelled":
        raise asyncio.CancelledError(f"cancelled {number}")
    return number


def make(loop, kind, number):
    coroutine = child(kind, number)
    if number % 5 == 0:
        return asyncio.Task(coroutine, loop=loop)
    if number % 5 == 1:
        future = Odd(loop=loop)
        future.set_result(number)
        coroutine.close()
        return future
    return coroutine


async def gather_something(seed, log):
    """Children of all kinds, one twice; sometimes the whole is cancelled, or an inner one is."""
    choose = random.Random(seed)
    loop = asyncio.get_running_loop()
    kinds = ["ends"] * 8 + choose.choice([[], ["fails"], ["is cancelled"], ["fails", "is cancelled"]])
    children = [make(loop, choose.choice(kinds), number) for number in range(choose.randrange(1, 12))]
    future = loop.create_future()
    loop.call_later(0.001, lambda: future.done() or future.set_result("late"))
    for place in range(choose.randrange(len(children)), len(children), 4):
        if asyncio.iscoroutine(children[place]):
            children[place].close()
        children[place] = future
    outer = asyncio.gather(*children, future, return_exceptions=choose.random() < 0.5)
    outer.add_done_callback(lambda outer: log.append(outer.cancelled()))
    if choose.random() < 0.3:
        loop.call_soon(outer.cancel, "from outside")
    try:
        log.append(await outer)
    except (Failure, asyncio.CancelledError) as exc:
        log.append(exc)
    log.append(outer._state)
    await asyncio.sleep(0.002)
    left = [one for one in children if asyncio.iscoroutine(one)]
    log.append([one.cr_running for one in left])
    for one in left:
        one.close()


def history(loop, seed):
    log = []
    loop.set_exception_handler(lambda loop, context: log.append(context["message"]))
    loop.run_until_complete(gather_something(seed, log))
    gc.collect()
    loop.set_exception_handler(None)
    return [repr(entry) for entry in log]


def test_any_children(loop):
    stock = asyncio.new_event_loop()
    try:
        for seed in range(150):
            assert history(loop, seed) == history(stock, seed), seed
    finally:
        stock.close()


def test_a_child_that_fails_late_is_told_of(run):
    """After the first failure the others' are taken for retrieved."""

    async def main():
        results = await asyncio.gather(child("fails", 2), child("fails", 1), child("ends", 3), return_exceptions=True)
        with pytest.raises(Failure):
            await asyncio.gather(child("fails", 3), child("fails", 4), child("ends", 8))
        return results

    results = run(main())
    assert [type(result) for result in results] == [Failure, Failure, int]
    gc.collect()


def test_nobody_waits_any_more(run):
    """Whom a child was awaited by is forgotten as soon as it is done."""

    async def main():
        slow = asyncio.get_running_loop().create_future()
        quick = asyncio.ensure_future(child("ends", 0))
        outer = asyncio.ensure_future(asyncio.wait_for(asyncio.gather(quick, slow), 10))
        waiting = []
        for _ in range(5):
            await asyncio.sleep(0)
            waiting.append([bool(getattr(one, "_asyncio_awaited_by", None)) for one in (quick, slow)])
        slow.set_result(1)
        await outer
        waiting.append([bool(getattr(one, "_asyncio_awaited_by", None)) for one in (quick, slow)])
        return waiting

    waiting = run(main())
    assert waiting[-1] == [False, False]
    assert waiting[-2] == [False, hasattr(futures, "future_add_to_awaited_by")]


# ---------------------------------------------------------------- who looks


NATIVELY = """
    import asyncio, sys

    async def child(number):
        await asyncio.sleep(0)
        return number

    def call_soon(*args, **keywords):
        callers.append(sys._getframe(1).f_code.co_name)
        return type(loop).call_soon(loop, *args, **keywords)

    async def main():
        loop.call_soon = call_soon
        assert await asyncio.gather(*[child(number) for number in range(5)]) == [*range(5)]
        del loop.call_soon

    callers = []
    loop = new_event_loop()
    loop.set_debug(False)
    loop.run_until_complete(main())
    loop.close()
    print("_done_callback" in callers)
"""


@pytest.mark.left_out(not GIL, reason="with a GIL only")
@pytest.mark.fastloop_only("the stock loop calls asyncio's function")
@pytest.mark.parametrize("disabled", ["", "tasks"])
def test_it_is_done_natively(python, monkeypatch, disabled):
    """Who completes what gather() returned?"""
    monkeypatch.setenv("FASTLOOP_DISABLE", disabled)
    assert python(NATIVELY) == f"{disabled == 'tasks'}\n"


WATCHED = """
    import asyncio, sys, types

    async def child(number):
        await asyncio.sleep(0.01)
        return number

    async def gathered():
        assert await asyncio.gather(*[child(number) for number in range(5)]) == [*range(5)]

    called = []
    def start():
        START

    def end():
        END

    code = next(code for code in asyncio.gather.__code__.co_consts if isinstance(code, types.CodeType))
    loop = new_event_loop()
    loop.run_until_complete(gathered())
    loop.call_later(0.001, start)
    loop.run_until_complete(gathered())
    end()
    print(called.count("_done_callback"))
    loop.run_until_complete(gathered())
    loop.close()
"""
START = {
    "setprofile": "sys.setprofile(lambda frame, event, arg: event == 'call' and called.append(frame.f_code.co_name))",
    "settrace": "sys.settrace(lambda frame, event, arg: event == 'call' and called.append(frame.f_code.co_name))",
    "everything": "sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)",
    "its code": "sys.monitoring.set_local_events(tool, code, sys.monitoring.events.PY_START)",
}
TOOL = """tool = sys.monitoring.COVERAGE_ID
        sys.monitoring.use_tool_id(tool, "a test")
        note = lambda code, offset: called.append(code.co_name)
        sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, note)
        """


@pytest.mark.parametrize("how", START)
def test_who_watches_sees_it(python, how):
    """A profiler, a tracer, and a tool of sys.monitoring that begin after gather() was called."""
    start, end = START[how], f"sys.{how}(None)"
    if how not in ("setprofile", "settrace"):
        if sys.version_info < (3, 12):
            pytest.skip("sys.monitoring is new in 3.12")
        if how == "everything" and sys.version_info < (3, 13):
            pytest.skip("nothing tells that there is such a tool, until the code has run under its eyes")
        start, end = TOOL + start, "sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)"
    assert python(WATCHED.replace("START", start).replace("END", end)) == "5\n"


def gathering(loop, count):
    """Futures, what gather() makes of them, its callback, and the cells of that by their names."""
    inner = [loop.create_future() for _ in range(count)]
    outer = asyncio.gather(*inner)
    callback = inner[0]._callbacks[0][0]
    return inner, outer, callback, dict(zip(callback.__code__.co_freevars, callback.__closure__))


async def gathered(count):
    return await asyncio.gather(*[child("ends", number) for number in range(count)])


@pytest.mark.parametrize("name", ["done", "set_result"])
def test_a_method_that_was_replaced_is_called(run, monkeypatch, name):
    assert run(gathered(3)) == [0, 1, 2]
    calls = []
    original = getattr(asyncio.Future, name)

    def replaced(self, *args):
        calls.append(args)
        return original(self, *args)

    monkeypatch.setattr(tasks._GatheringFuture, name, replaced, raising=False)
    assert run(gathered(3)) == [0, 1, 2]
    assert len(calls) >= (3 if name == "done" else 1)
    monkeypatch.undo()
    count = len(calls)
    assert run(gathered(3)) == [0, 1, 2]
    assert len(calls) == count


@pytest.mark.skipif(not hasattr(futures, "future_discard_from_awaited_by"), reason="new in 3.14")
def test_a_function_that_was_replaced_is_called(run, monkeypatch):
    calls = []
    original = futures.future_discard_from_awaited_by
    monkeypatch.setattr(futures, "future_discard_from_awaited_by", lambda *args: (calls.append(args), original(*args)))

    async def main():
        return await gathered(4)

    assert run(main()) == [0, 1, 2, 3]
    assert len(calls) >= 4


@pytest.mark.skipif(not hasattr(futures, "future_discard_from_awaited_by"), reason="new in 3.14")
def test_a_module_that_was_replaced_is_used(run, monkeypatch):
    class Module:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(futures, name)

    calls = []
    monkeypatch.setattr(tasks, "futures", Module())
    assert run(gathered(4)) == [0, 1, 2, 3]
    assert calls.count("future_discard_from_awaited_by") >= 4


def test_attributes_that_hide_methods_are_used(run):
    """Of a child, and of what gather() returns."""

    async def main():
        loop = asyncio.get_running_loop()
        inner = [loop.create_future() for _ in range(3)]
        inner[1].result = lambda: "hidden"
        outer = asyncio.gather(*inner)
        calls = []
        outer.done = lambda: calls.append("done")
        outer.set_result = lambda results: (calls.append(results), type(outer).set_result(outer, results))
        for number, one in enumerate(inner):
            one.set_result(number)
        assert await outer == [0, "hidden", 2]
        return calls

    assert run(main()) == ["done"] * 3 + [[0, "hidden", 2]]


@pytest.mark.parametrize("number", [2**31, 2**63 - 2, 2**63 - 1, 2**70, -1, -(2**70)])
@pytest.mark.parametrize("name", ["nfinished", "nfuts"])
def test_a_number_in_a_cell(run, name, number):
    """Whatever it is, one more is counted."""

    async def main():
        loop = asyncio.get_running_loop()
        inner, outer, _, cells = gathering(loop, 2)
        cells[name].cell_contents = number
        for one in inner:
            one.set_result(1)
        await asyncio.sleep(0.001)
        done, counted = outer.done(), cells["nfinished"].cell_contents
        outer.cancel()
        return done, counted

    assert run(main()) == (False, number + 2 if name == "nfinished" else 2)


def test_cells_that_change_while_they_are_read(run, monkeypatch, contexts):
    """By an attribute of what gather() returns, at the worst moment."""
    emptied = []

    def is_requested(outer):
        for cell in cells.values():
            emptied.append(cell.cell_contents)
            cell.cell_contents = None
        emptied.clear()
        gc.collect()
        return False

    async def main():
        loop = asyncio.get_running_loop()
        inner, outer, callback, found = gathering(loop, 300)
        cells.update(found)
        monkeypatch.setattr(tasks._GatheringFuture, "_cancel_requested", property(is_requested), raising=False)
        for one in inner:
            one.set_result(object())
        del inner, one, callback
        await asyncio.sleep(0.001)
        assert not outer.done()
        monkeypatch.undo()
        outer.cancel()

    cells = {}
    monkeypatch.setattr(tasks._GatheringFuture, "_cancel_requested", False, raising=False)
    run(main())
    assert {type(context["exception"]) for context in contexts.take()} <= {AttributeError, TypeError}


def test_whoever_takes_the_callback_can_call_it(run):
    """With what the loop would not give it, and once more."""

    async def main():
        loop = asyncio.get_running_loop()
        inner, outer, callback, cells = gathering(loop, 3)
        assert isinstance(inner[0]._callbacks[0][1], contextvars.Context)
        for one in inner:
            one.set_result(len(inner))
        with pytest.raises(AttributeError):
            callback(None)
        assert cells["nfinished"].cell_contents == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # One too many has been counted: the second of them was the last one.
        return outer.done() and outer.result()

    assert run(main()) == [3, 3, 3]


def test_a_cell_that_was_emptied(run, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        inner, outer, _, cells = gathering(loop, 2)
        del cells["children"].cell_contents
        for one in inner:
            one.set_result(1)
        await asyncio.sleep(0.001)
        assert not outer.done()
        outer.cancel()

    run(main())
    assert [type(context["exception"]) for context in contexts.take()] == [NameError]


def test_nothing_keeps_the_children(run):
    async def main():
        children = [asyncio.ensure_future(child("ends", number)) for number in range(5)]
        references = [weakref.ref(one) for one in children]
        assert await asyncio.gather(*children) == [*range(5)]
        del children
        await asyncio.sleep(0)
        return [reference() for reference in references]

    assert run(main()) == [None] * 5
