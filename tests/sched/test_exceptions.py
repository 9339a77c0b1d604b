"""Exceptions out of callbacks and tasks, and the exception handler."""

import asyncio
import contextvars
import gc
import logging
import socket
import sys

import pytest

from helpers import new_loop, turns


def one_turn(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


class Unusual(BaseException):
    pass


# ---------------------------------------------------------------- out of callbacks


@pytest.mark.parametrize(
    "error",
    [
        ValueError("own"),
        Unusual("own"),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(),
        MemoryError(),
        RecursionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_of_a_callback_is_reported_and_the_loop_goes_on(loop, contexts, error):
    def failing():
        raise error

    seen = []
    loop.set_debug(False)
    handle = loop.call_soon(failing)
    loop.call_soon(seen.append, "next")
    one_turn(loop)
    report = contexts.take_one()
    assert set(report) == {"message", "exception", "handle"}
    assert report["exception"] is error and report["handle"] is handle
    assert report["message"].startswith("Exception in callback ") and "failing() at " in report["message"]
    assert seen == ["next"]


def test_an_exception_of_a_timer_is_reported(loop, contexts):
    loop.set_debug(False)
    timer = loop.call_later(0, lambda: 1 / 0)
    loop.run_until_complete(asyncio.sleep(0.001))
    report = contexts.take_one()
    assert report["handle"] is timer and isinstance(report["exception"], ZeroDivisionError)


def test_in_debug_mode_the_report_has_the_place_of_the_call(loop, contexts):
    loop.set_debug(True)
    loop.call_soon(lambda: 1 / 0)
    one_turn(loop)
    report = contexts.take_one()
    assert set(report) == {"message", "exception", "handle", "source_traceback"}
    assert report["source_traceback"][-1].filename == __file__


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda loop, fn: loop.call_soon(fn),
        lambda loop, fn: loop.call_later(0.001, fn),
        lambda loop, fn: loop.call_soon_threadsafe(fn),
        lambda loop, fn: loop.create_future().add_done_callback(fn) or loop.call_soon(fn),
    ],
    ids=["call_soon", "call_later", "call_soon_threadsafe", "future"],
)
def test_exits_come_out_of_run_forever_and_nothing_waiting_is_lost(loop, error, schedule):
    seen = []

    def leaving(*_):
        loop.call_soon(seen.append, "added before")
        raise error("now")

    schedule(loop, leaving)
    with pytest.raises(error, match="now"):
        loop.run_forever()
    assert not loop.is_running()
    one_turn(loop)
    assert seen == ["added before"]


def test_callbacks_after_the_exit_run_in_the_next_run(loop):
    seen = []

    def leaving():
        raise SystemExit(3)

    loop.call_soon(seen.append, 1)
    loop.call_soon(leaving)
    loop.call_soon(seen.append, 2)
    loop.call_soon(seen.append, 3)
    with pytest.raises(SystemExit):
        loop.run_forever()
    assert seen == [1]
    one_turn(loop)
    assert seen == [1, 2, 3]


# ---------------------------------------------------------------- the handler


def test_setting_and_getting_the_handler(loop):
    assert loop.get_exception_handler() is None
    loop.set_exception_handler(print)
    assert loop.get_exception_handler() is print
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None


@pytest.mark.parametrize("wrong", [5, "text", ()])
def test_a_handler_that_cannot_be_called_is_refused(loop, wrong):
    with pytest.raises(TypeError, match="A callable object or None is expected, got"):
        loop.set_exception_handler(wrong)


def test_the_handler_gets_the_loop_and_the_context_itself(loop):
    seen = []
    loop.set_exception_handler(lambda *args: seen.append(args))
    context = {"message": "own", "anything": 1}
    loop.call_exception_handler(context)
    assert seen == [(loop, context)] and seen[0][1] is context


def test_an_overridden_call_exception_handler_is_honoured(loop_factory):
    base = loop_factory()
    base.close()
    seen = []

    class Own(type(base)):
        def call_exception_handler(self, context):
            seen.append(context["exception"])

    loop = Own()
    error = ValueError()

    def failing():
        raise error

    loop.call_soon(failing)
    one_turn(loop)
    loop.close()
    assert seen == [error]


@pytest.mark.parametrize(
    "context",
    [
        {"message": "own message"},
        {},
        {"message": "with", "exception": ZeroDivisionError("details"), "b": 1, "a": "text"},
        {"message": None, "future": "value"},
    ],
    ids=["message", "empty", "everything", "no message"],
)
def test_the_default_handler_logs_as_the_stock_loop(loop, guard, context):
    def text(loop):
        loop.set_debug(False)
        loop.call_exception_handler(context)
        (record,) = guard.log.records
        assert record.levelno == logging.ERROR
        assert (record.exc_info[1] if record.exc_info else None) is context.get("exception")
        return guard.log.take_one()

    stock = new_loop("stock")
    assert text(loop) == text(stock)
    assert text(loop).startswith(context.get("message") or "Unhandled exception in event loop")
    stock.close()


def test_the_default_handler_names_the_callback(loop, guard):
    def failing():
        raise ValueError("own")

    loop.set_debug(False)
    loop.call_soon(failing)
    one_turn(loop)
    message = guard.log.take_one()
    assert message.startswith("Exception in callback ") and "\nhandle: <Handle " in message and "failing" in message


def test_in_debug_mode_the_default_handler_tells_where_the_current_handle_was_made(loop, guard):
    loop.set_debug(True)
    loop.call_soon(loop.call_exception_handler, {"message": "asked for"})
    one_turn(loop)
    message = guard.log.take_one()
    assert "Handle created at (most recent call last):\n" in message and __file__ in message


@pytest.mark.parametrize("error", [ValueError("in the handler"), Unusual("in the handler")])
def test_a_failing_handler_is_reported_by_the_default_handler(loop, guard, error):
    def failing_handler(_loop, _context):
        raise error

    loop.set_exception_handler(failing_handler)
    context = {"message": "the first"}
    loop.call_exception_handler(context)
    (record,) = guard.log.records
    assert record.exc_info[1] is error
    assert guard.log.take_one() == f"Unhandled error in exception handler\ncontext: {context!r}"


def test_a_failing_default_handler_is_logged(loop_factory, guard):
    base = loop_factory()
    base.close()

    class Failing(type(base)):
        def default_exception_handler(self, context):
            raise ValueError("in the default handler")

    loop = Failing()
    loop.call_exception_handler({"message": "first"})
    assert guard.log.take() == ["Exception in default exception handler"]
    loop.set_exception_handler(lambda *_: 1 / 0)
    loop.call_exception_handler({"message": "second"})
    assert guard.log.take() == [
        "Exception in default exception handler while handling an unexpected error in custom exception handler"
    ]
    loop.close()


def test_the_handler_runs_while_the_exception_is_handled(loop):
    seen = asyncio.Queue()
    loop.set_exception_handler(lambda _loop, _context: seen.put_nowait(sys.exc_info()[1]))
    errors = [ValueError("of a callback"), ValueError("of a timer"), ValueError("of a reader"), ValueError("of data")]
    lost = loop.create_future()

    def failing(number):
        raise errors[number]

    class Failing(asyncio.Protocol):
        def data_received(self, data):
            raise errors[3]

        def connection_lost(self, exc):
            lost.set_result(exc)

    async def main():
        ours, peer = socket.socketpair()
        with peer:
            ours.setblocking(False)
            loop.call_soon(failing, 0)
            assert await seen.get() is errors[0]
            loop.call_later(0, failing, 1)
            assert await seen.get() is errors[1]
            peer.send(b"x")
            loop.add_reader(ours, lambda: (loop.remove_reader(ours), failing(2)))
            assert await seen.get() is errors[2]
            await loop.create_connection(Failing, sock=ours)
            assert await seen.get() is errors[3] and await lost is errors[3]
        assert sys.exc_info()[1] is None

    loop.run_until_complete(main())


def test_what_the_handler_raises_has_the_exception_as_its_context(loop, guard):
    loop.set_exception_handler(lambda _loop, _context: {}["missing"])
    loop.call_soon(lambda: 1 / 0)
    one_turn(loop)
    (record,) = guard.log.records
    assert isinstance(record.exc_info[1], KeyError) and isinstance(record.exc_info[1].__context__, ZeroDivisionError)
    guard.log.take_one()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exits_pass_through_the_handler(loop, error):
    def leaving(_loop, _context):
        raise error("from the handler")

    loop.set_exception_handler(leaving)
    with pytest.raises(error, match="from the handler"):
        loop.call_exception_handler({"message": "any"})
    loop.call_soon(lambda: 1 / 0)
    with pytest.raises(error, match="from the handler"):
        loop.run_forever()


def test_the_handler_runs_in_the_context_of_the_task(loop):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []
    loop.set_exception_handler(lambda _loop, context: seen.append((context["message"], variable.get())))

    async def failing():
        variable.set("of the task")
        raise ValueError

    async def main():
        task = loop.create_task(failing())
        await asyncio.wait([task])

    loop.run_until_complete(main())
    gc.collect()
    # Since 3.12: before, the handler ran in whatever context was current.
    expected = "of the task" if hasattr(asyncio, "eager_task_factory") else "unset"
    assert seen == [("Task exception was never retrieved", expected)]


# ---------------------------------------------------------------- forgotten futures and tasks


def test_an_exception_that_nobody_retrieves_is_reported(loop, run, contexts):
    async def failing():
        raise ValueError("forgotten")

    async def main():
        loop.create_task(failing())
        loop.create_future().set_exception(LookupError("forgotten"))
        await turns(3)
        gc.collect()

    loop.set_debug(False)
    run(main())
    first, second = sorted(contexts.take(), key=lambda context: context["message"])
    assert set(first) == set(second) == {"message", "exception", "future"}
    assert first["message"] == "Future exception was never retrieved" and type(first["exception"]) is LookupError
    assert second["message"] == "Task exception was never retrieved" and type(second["exception"]) is ValueError


def test_a_task_destroyed_while_pending_is_reported(loop, run, contexts):
    async def forever(future):
        await future

    async def main():
        loop.create_task(forever(loop.create_future()))
        await turns(2)
        gc.collect()

    loop.set_debug(False)
    run(main())
    report = contexts.take_one()
    assert report["message"] == "Task was destroyed but it is pending!" and set(report) == {"message", "task"}


def test_nothing_stays_with_a_generator_that_runs_the_loop(loop):
    loop.set_exception_handler(lambda *_: None)

    def runs():
        loop.call_soon(lambda: 1 / 0)
        loop.run_until_complete(asyncio.sleep(0))
        yield
        yield sys.exc_info()[1]

    generator = runs()
    try:
        raise ValueError
    except ValueError:
        next(generator)
    assert next(generator) is None


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["data_received", "eof_received", "pause_writing", "callback"])
def test_an_exception_handler_that_leaves(loop, run, where, leaving):
    """What it raises comes out of run_forever(), and the loop can go on."""

    def handle(loop, context):
        loop.set_exception_handler(None)
        raise leaving("handler")

    class Failing(asyncio.Protocol):
        def data_received(self, data):
            if where == "data_received":
                raise ValueError(where)

        def eof_received(self):
            if where == "eof_received":
                raise ValueError(where)

        def pause_writing(self):
            if where == "pause_writing":
                raise ValueError(where)

    near, far = socket.socketpair()
    transport, _ = run(loop.create_connection(Failing, sock=near))
    loop.set_exception_handler(handle)
    if where == "callback":
        loop.call_soon(int, "no number")
    elif where == "pause_writing":
        transport.set_write_buffer_limits(0)
        loop.call_soon(transport.write, bytes(10_000_000))
    else:
        far.send(b"data")
        far.shutdown(socket.SHUT_WR)
    # Should nothing come.
    timer = loop.call_later(20, loop.stop)
    with pytest.raises(leaving, match="handler"):
        loop.run_forever()
    timer.cancel()
    transport.abort()
    run(turns(5))
    far.close()


@pytest.mark.parametrize("where", ["callback", "timer", "task"])
def test_a_failing_call_exception_handler_ends_the_run(loop, run, where):
    """A logging handler may be the one that fails; the loop can go on."""

    def fail(*args):
        raise ValueError(where)

    def handle(context):
        raise LookupError("handler")

    loop.call_exception_handler = handle
    if where == "callback":
        loop.call_soon(fail)
    elif where == "timer":
        loop.call_later(0, fail)
    else:
        future = loop.create_future()
        future.add_done_callback(fail)
        future.set_result(None)
    # Should nothing come.
    timer = loop.call_later(20, loop.stop)
    with pytest.raises(LookupError, match="handler"):
        loop.run_forever()
    timer.cancel()
    del loop.call_exception_handler
    run(turns(5))
