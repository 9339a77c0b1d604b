"""Future.add_done_callback(): in which context a callback runs.

It is made late where nobody can tell (src/coro/callbacks.c).
"""

import asyncio
import contextvars
import gc
import sys

import pytest

import fastloop

VARIABLE = contextvars.ContextVar("VARIABLE", default="nothing")


async def end():
    return 1


class Mine(fastloop.Future):
    def add_done_callback(self, fn, **keywords):
        super().add_done_callback(fn, **keywords)


def make_future(loop):
    return loop.create_future()


def make_task(loop):
    return loop.create_task(end())


def make_other(loop):
    return Mine(loop=loop)


def complete(future):
    if not isinstance(future, asyncio.Task):
        future.set_result(1)


MAKERS = [make_future, make_task, make_other]


@pytest.mark.parametrize("make", MAKERS)
def test_each_has_its_own(loop, run, make):
    """What one sets another does not see: neither of the same future, nor of the next one, nor who added it."""
    seen = []

    def callback(number):
        def note(future):
            seen.append((number, VARIABLE.get()))
            VARIABLE.set(number)

        return note

    async def main():
        for start in range(0, 9, 3):
            future = make(loop)
            for number in range(start, start + 3):
                future.add_done_callback(callback(number))
            complete(future)
            await asyncio.sleep(0.001)
        return VARIABLE.get()

    assert run(main()) == "nothing"
    assert seen == [(number, "nothing") for number in range(9)]


@pytest.mark.parametrize("make", MAKERS)
def test_it_is_a_copy_of_what_was_there(loop, run, make):
    """Of the context in which it was added, as it was then."""
    seen = []

    async def main():
        VARIABLE.set("before")
        futures = [make(loop) for _ in range(2)]
        for future in futures:
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()))
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()))
        VARIABLE.set("after")
        contextvars.Context().run(complete, futures[0])
        complete(futures[1])
        await asyncio.sleep(0.001)
        futures[0].add_done_callback(lambda future: seen.append(VARIABLE.get()))
        await asyncio.sleep(0.001)

    run(main())
    assert seen == ["before"] * 4 + ["after"]


@pytest.mark.parametrize("make", MAKERS)
def test_it_can_be_looked_at(loop, run, make):
    """`_callbacks` shows one for each, the same each time, and what is set there is there when the callback runs."""
    seen = []

    async def main():
        futures = [make(loop) for _ in range(3)]
        for future in futures:
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()))
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()))
        contexts = [context for future in futures for _, context in future._callbacks]
        assert [context for future in futures for _, context in future._callbacks] == contexts
        assert len({id(context) for context in contexts}) == 6
        assert all(type(context) is contextvars.Context and not context for context in contexts)
        for number, context in enumerate(contexts):
            context.run(VARIABLE.set, number)
        for future in futures:
            complete(future)
        await asyncio.sleep(0.001)

    run(main())
    assert seen == [*range(6)]


def test_a_context_that_is_given(loop, run):
    seen = []
    context = contextvars.Context()
    context.run(VARIABLE.set, "given")

    async def main():
        futures = [make_future(loop), make_task(loop)]
        for future in futures:
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()), context=context)
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()), context=None)
            assert [own is context for _, own in future._callbacks] == [True, False]
            complete(future)
        await asyncio.sleep(0.001)

    run(main())
    assert seen == ["given", "nothing"] * 2


@pytest.mark.parametrize("how", ["set_result", "cancel"])
def test_completed_by_the_method_of_asyncio(loop, run, how):
    """Which hands on the context that it finds."""
    seen = []

    def note(future):
        seen.append(VARIABLE.get())
        VARIABLE.set("mine")

    async def main():
        futures = [make_future(loop) for _ in range(3)]
        for future in futures:
            future.add_done_callback(note)
        for future in futures:
            getattr(asyncio.Future, how)(future, *([1] if how == "set_result" else []))
        await asyncio.sleep(0.001)

    run(main())
    assert seen == ["nothing"] * 3


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("outcome", [1, KeyError, "cancel"])
def test_call_soon_that_was_replaced_gets_a_context(loop, run, when, outcome):
    """One that is nobody else's, to run in it what it likes."""
    contexts = []

    def call_soon(callback, *args, context=None):
        if context is not None:
            assert context.run(VARIABLE.get) == "nothing"
            context.run(VARIABLE.set, len(contexts))
            contexts.append(context)
        return type(loop).call_soon(loop, callback, *args, context=context)

    async def main():
        seen = []
        futures = [make_future(loop) for _ in range(3)]
        if when == "before":
            loop.call_soon = call_soon
        for future in futures:
            future.add_done_callback(lambda future: seen.append(VARIABLE.get()))
        loop.call_soon = call_soon
        for future in futures:
            if outcome == "cancel":
                future.cancel(msg="cancelled")
            elif outcome == 1:
                future.set_result(1)
            else:
                future.set_exception(outcome)
                future.exception()
        del loop.call_soon
        await asyncio.sleep(0.001)
        return seen

    assert run(main()) == [0, 1, 2]
    assert len({id(context) for context in contexts}) == 3


def test_added_within_the_context_of_another(loop, run):
    """While one callback runs, the next is added, in the same context or in none."""
    seen = []

    async def main():
        futures = [make_future(loop) for _ in range(4)]

        def note(future):
            seen.append(VARIABLE.get())
            if futures:
                after = futures.pop()
                after.add_done_callback(note)
                VARIABLE.set(len(futures))
                complete(after)

        first = futures.pop()
        first.add_done_callback(note)
        complete(first)
        await asyncio.sleep(0.01)

    run(main())
    assert seen == ["nothing"] * 4


def test_a_wake_up_that_is_added_by_hand(loop, run):
    """By something that behaves like a future, and does not pass the context on: the step runs in a copy of another."""

    class Proxy:
        _asyncio_future_blocking = False

        def __init__(self):
            self.future = loop.create_future()

        def get_loop(self):
            return loop

        def add_done_callback(self, fn, *, context=None):
            self.future.set_result(1)
            self.future.add_done_callback(fn)

        def result(self):
            return self.future.result()

        def __await__(self):
            self._asyncio_future_blocking = True
            yield self
            return self.result()

    async def main():
        VARIABLE.set("before")
        assert await Proxy() == 1
        VARIABLE.set("in the copy")
        await asyncio.sleep(0)
        return VARIABLE.get()

    assert run(main()) == "before"


def test_wrong_arguments(loop):
    """The exceptions of asyncio's own method, and its signature."""
    own, original = loop.create_future(), asyncio.Future(loop=loop)
    given = [((), {}), ((print, print), {}), ((print,), {"other": 1}), ((), {"context": None}), ((), {"fn": print})]
    for args, keywords in given:
        messages = []
        for future in (own, original):
            with pytest.raises(TypeError) as caught:
                future.add_done_callback(*args, **keywords)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    assert own._callbacks is None
    assert type(own).add_done_callback.__text_signature__ == asyncio.Future.add_done_callback.__text_signature__
    with pytest.raises(AttributeError) as caught:
        own._callbacks = []
    with pytest.raises(AttributeError) as expected:
        original._callbacks = []
    assert str(caught.value).replace("fastloop.Future", "_asyncio.Future") == str(expected.value)


def test_removed_and_cleared(loop, run):
    async def main():
        seen = []
        future = make_future(loop)
        for _ in range(2):
            future.add_done_callback(seen.append)
            future.add_done_callback(print)
            assert future.remove_done_callback(seen.append) == 1
            assert future.remove_done_callback(print) == 1
            assert not future._callbacks
        future.add_done_callback(seen.append)
        gc.collect()
        if sys.version_info < (3, 15):
            # It may be initialised again.
            future.__init__(loop=loop)
            future.add_done_callback(seen.append)
        complete(future)
        await asyncio.sleep(0)
        return len(seen)

    assert run(main()) == 1


def test_not_initialised():
    messages = []
    for kind in (fastloop.Future, asyncio.Future):
        with pytest.raises(RuntimeError) as caught:
            kind.__new__(kind).add_done_callback(print)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
