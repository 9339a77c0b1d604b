"""Asynchronous generators: finalised by the loop, closed by shutdown_asyncgens."""

import asyncio
import gc
import sys

import pytest

from helpers import turns


def generator(log, name="generator"):
    async def values():
        try:
            for i in range(100):
                yield i
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            log.append(f"{name} closed")

    return values()


def test_an_abandoned_generator_is_closed_by_the_loop(run):
    log = []

    async def main():
        async for _ in generator(log):
            break
        gc.collect()
        await turns(5)
        return list(log)

    assert run(main()) == ["generator closed"]


def test_shutdown_closes_what_is_still_open(loop, run):
    log, kept = [], []

    async def main():
        for name in "ab":
            kept.append(generator(log, name))
            await kept[-1].__anext__()
        await loop.shutdown_asyncgens()
        return sorted(log)

    assert run(main()) == ["a closed", "b closed"]


def test_shutdown_between_runs_closes_generators_of_the_last_run(loop, run):
    log, kept = [], []

    async def main():
        kept.append(generator(log))
        await kept[0].__anext__()

    run(main())
    assert log == []
    run(loop.shutdown_asyncgens())
    assert log == ["generator closed"]


def test_an_error_while_closing_is_reported(loop, run, contexts):
    async def failing():
        try:
            yield 1
        finally:
            raise ValueError("in closing")

    kept = failing()

    async def main():
        await kept.__anext__()
        await loop.shutdown_asyncgens()

    run(main())
    report = contexts.take_one()
    assert set(report) == {"message", "exception", "asyncgen"} and report["asyncgen"] is kept
    assert report["message"].startswith("an error occurred during closing of asynchronous generator <")
    assert str(report["exception"]) == "in closing"


def test_a_generator_begun_after_shutdown_warns(loop, run):
    async def main():
        await loop.shutdown_asyncgens()
        late = generator([])
        with pytest.warns(ResourceWarning, match=r"was scheduled after loop\.shutdown_asyncgens\(\) call"):
            await late.__anext__()
        await late.aclose()

    run(main())


def test_the_hooks_of_the_interpreter_are_set_for_the_run_and_restored(loop, run):
    def first(_):
        pass

    def last(_):
        pass

    async def main():
        return sys.get_asyncgen_hooks()

    old = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(first, last)
    try:
        during = run(main())
        after = sys.get_asyncgen_hooks()
        assert (after.firstiter, after.finalizer) == (first, last)
        assert during.firstiter is not first and during.finalizer is not last
    finally:
        sys.set_asyncgen_hooks(*old)


def test_a_generator_dropped_after_close_is_harmless(loop, run):
    log, kept = [], []

    async def main():
        kept.append(generator(log))
        await kept[0].__anext__()

    run(main())
    loop.close()
    kept.clear()
    gc.collect()
    assert log == []
