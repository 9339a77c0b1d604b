"""Debug mode: what it checks, what it logs, where it comes from."""

import asyncio
import concurrent.futures
import logging
import os
import sys
import time

import pytest

from helpers import turns


async def coroutine_function():
    pass


def refused(loop, method, callback):
    arguments = {"call_later": (1,), "call_at": (1,), "run_in_executor": (None,), "add_signal_handler": (10,)}
    getattr(loop, method)(*arguments.get(method, ()), callback)


# ---------------------------------------------------------------- the switch


def test_debug_is_off_unless_asked_for_and_can_be_switched(loop):
    assert loop.get_debug() is (sys.flags.dev_mode or bool(os.environ.get("PYTHONASYNCIODEBUG")))
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False


@pytest.mark.parametrize(
    "options, environment, expected",
    [
        ((), None, "False"),
        (("-X", "dev"), None, "True"),
        ((), "1", "True"),
        (("-E",), "1", "False"),
    ],
)
def test_debug_at_creation_follows_dev_mode_and_environment(python, monkeypatch, options, environment, expected):
    monkeypatch.delenv("PYTHONDEVMODE", raising=False)
    monkeypatch.delenv("PYTHONASYNCIODEBUG", raising=False)
    if environment:
        monkeypatch.setenv("PYTHONASYNCIODEBUG", environment)
    assert python("loop = new_event_loop(); print(loop.get_debug()); loop.close()", options).strip() == expected


# ---------------------------------------------------------------- checks of callbacks


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at", "run_in_executor"])
@pytest.mark.parametrize("callback", [None, 5, "text"])
def test_what_cannot_be_called_is_refused(loop, method, callback):
    loop.set_debug(True)
    name = "call_at" if method == "call_later" else method
    with pytest.raises(TypeError, match=f"^a callable object was expected by {name}\\(\\), got {callback!r}$"):
        refused(loop, method, callback)


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at", "run_in_executor"])
def test_coroutines_are_refused(loop, method):
    loop.set_debug(True)
    name = "call_at" if method == "call_later" else method
    with pytest.raises(TypeError, match=f"^coroutines cannot be used with {name}\\(\\)$"):
        refused(loop, method, coroutine_function)
    coroutine = coroutine_function()
    with pytest.raises(TypeError, match=f"^coroutines cannot be used with {name}\\(\\)$"):
        refused(loop, method, coroutine)
    coroutine.close()


@pytest.mark.parametrize("debug", [True, False])
def test_a_coroutine_is_never_a_signal_handler(loop, debug):
    loop.set_debug(debug)
    with pytest.raises(TypeError, match="^coroutines cannot be used with add_signal_handler"):
        loop.add_signal_handler(10, coroutine_function)


def test_without_debug_the_error_is_reported_when_the_callback_should_run(loop, contexts):
    loop.set_debug(False)
    loop.call_soon(None)
    loop.call_soon(loop.stop)
    loop.run_forever()
    report = contexts.take_one()
    assert type(report["exception"]) is TypeError and "not callable" in str(report["exception"])


# ---------------------------------------------------------------- the wrong thread


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_calls_from_the_wrong_thread_are_refused(loop, run, method):
    async def main():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with pytest.raises(
                RuntimeError, match="^Non-thread-safe operation invoked on an event loop other than the current one$"
            ):
                pool.submit(refused, loop, method, print).result()

    loop.set_debug(True)
    run(main())


def test_before_the_run_any_thread_may_call(loop):
    seen = []
    loop.set_debug(True)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(loop.call_soon, seen.append, 1).result()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [1]


# ---------------------------------------------------------------- slow callbacks


def slow(*_):
    time.sleep(0.002)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda loop: loop.call_soon(slow),
        lambda loop: loop.call_later(0, slow),
        lambda loop: loop.call_soon_threadsafe(slow),
    ],
    ids=["call_soon", "call_later", "call_soon_threadsafe"],
)
def test_a_slow_callback_is_logged(loop, guard, schedule):
    loop.set_debug(True)
    loop.slow_callback_duration = 0.002
    schedule(loop)
    loop.run_until_complete(asyncio.sleep(0.001))
    assert any(
        record.levelno == logging.WARNING
        and " seconds" in record.getMessage()
        and record.getMessage().startswith("Executing <")
        and "slow()" in record.getMessage()
        for record in guard.log.records
    )


def test_a_slow_step_is_logged_with_its_task(loop, run, guard):
    async def slow_step():
        slow()

    loop.set_debug(True)
    loop.slow_callback_duration = 0.002
    run(slow_step())
    assert any("Executing <Task " in text and "slow_step" in text for text in guard.log.take())


def test_the_limit_is_a_tenth_of_a_second(loop):
    other = type(loop)()
    assert other.slow_callback_duration == 0.1
    other.close()


def test_nothing_is_logged_below_the_limit_or_without_debug(loop, guard):
    for debug, limit in ((True, 1000), (False, 0)):
        loop.set_debug(debug)
        loop.slow_callback_duration = limit
        loop.call_soon(slow)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert guard.log.take() == []


# ---------------------------------------------------------------- where coroutines come from


def test_the_origin_of_coroutines_is_tracked_during_the_run_only(loop, run):
    async def main():
        return sys.get_coroutine_origin_tracking_depth()

    before = sys.get_coroutine_origin_tracking_depth()
    loop.set_debug(True)
    assert run(main()) > 0
    assert sys.get_coroutine_origin_tracking_depth() == before
    loop.set_debug(False)
    assert run(main()) == before


def test_switching_debug_in_the_run_switches_the_tracking(loop, run):
    async def main():
        loop.set_debug(True)
        await turns(2)
        on = sys.get_coroutine_origin_tracking_depth()
        loop.set_debug(False)
        await turns(2)
        return on, sys.get_coroutine_origin_tracking_depth()

    loop.set_debug(False)
    before = sys.get_coroutine_origin_tracking_depth()
    on, off = run(main())
    assert on > 0 and off == before


def test_whole_programs_run_in_debug_mode(loop, run):
    async def echo(reader, writer):
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        await asyncio.gather(*[asyncio.sleep(0.001) for _ in range(50)])
        await loop.run_in_executor(None, int)
        server.close()
        await server.wait_closed()

    loop.set_debug(True)
    run(main())
