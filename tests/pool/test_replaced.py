"""What tracers and tests replace keeps its effect, on both kinds of loop."""

import asyncio
import concurrent.futures
import functools
import threading
from asyncio import base_events
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import until

from .pools import idle_workers, occupy, pool_type


def replace(monkeypatch, owner, name, seen):
    """Wrap a method of a class as tracers do, and write down each call."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        seen.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize(("owner", "name", "count"), [
    (ThreadPoolExecutor, "submit", 3),
    (base_events.BaseEventLoop, "run_in_executor", 3),
    (threading.Thread, "start", 1),
    (threading.Thread, "run", 1),
])  # fmt: skip
@pytest.mark.parametrize("warm", [False, True])
def test_a_replaced_method_is_called(loop, run, monkeypatch, owner, name, count, warm):
    async def main():
        for i in range(3):
            await loop.run_in_executor(None, abs, i)
            # The worker has to be idle again.
            await until(lambda: idle_workers(loop._default_executor))

    if warm:
        run(main())
    seen = []
    replace(monkeypatch, owner, name, seen)
    run(main())
    started = owner is threading.Thread
    assert seen == [name] * (0 if started and warm else count)
    monkeypatch.undo()
    run(main())
    assert len(seen) == (0 if started and warm else count)


def test_a_wrapped_job_carries_the_context_of_a_tracer(loop, run, monkeypatch):
    # What the instrumentations of threads do: submit() is given a function that restores the trace's context.
    original = ThreadPoolExecutor.submit
    span = threading.local()
    span.name = "request"

    def submit(self, fn, /, *args, **kwargs):
        name = span.name

        def job():
            span.name = name
            return fn(*args, **kwargs)

        return original(self, job)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    assert run(asyncio.to_thread(lambda: span.name)) == "request"


def test_submit_replaced_on_an_instance(loop, loop_name, run):
    with pool_type(loop_name)(1) as pool:
        original, seen = pool.submit, []
        pool.submit = lambda *args: (seen.append(args), original(*args))[1]
        assert run(loop.run_in_executor(pool, abs, -1)) == 1
        assert seen == [(abs, -1)]
        del pool.submit
        assert run(loop.run_in_executor(pool, abs, -2)) == 2
        assert len(seen) == 1


def test_call_soon_threadsafe_replaced_on_the_loop(loop, run):
    original, seen = loop.call_soon_threadsafe, []

    def call_soon_threadsafe(*args, **kwargs):
        seen.append(threading.current_thread().name)
        return original(*args, **kwargs)

    async def main():
        loop.call_soon_threadsafe = call_soon_threadsafe
        release, future = occupy(loop)
        release.set()
        await future

    run(main())
    assert seen == ["asyncio_0"]


def test_the_executor_class_replaced_in_its_module(loop, run, monkeypatch):
    made = []

    class Mine(ThreadPoolExecutor):
        def __init__(self, *args, **kwargs):
            made.append(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", Mine)
    assert run(loop.run_in_executor(None, abs, -1)) == 1
    assert made == [{"thread_name_prefix": "asyncio"}] and type(loop._default_executor) is Mine


def test_the_thread_class_replaced_in_its_module(loop, run, monkeypatch):
    seen = []

    class Mine(threading.Thread):
        def run(self):
            seen.append("begun")
            super().run()
            seen.append("ended")

    monkeypatch.setattr(threading, "Thread", Mine)
    assert type(run(loop.run_in_executor(None, threading.current_thread))) is Mine
    run(loop.shutdown_default_executor())
    # Where that starts a thread to wait in, it is one more.
    assert seen.count("begun") == seen.count("ended") >= 1


def test_a_future_factory_of_the_loops_own(loop, run):
    class Mine(asyncio.Future):
        pass

    loop.create_future = lambda: Mine(loop=loop)
    future = loop.run_in_executor(None, abs, -1)
    assert type(future) is Mine
    assert run(future) == 1
    del loop.create_future
