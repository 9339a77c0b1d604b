"""Run, stop and close: what runs, what is refused, with which message."""

import asyncio
import gc
import inspect
import socket
import sys
import weakref

import pytest

import fastloop
from helpers import new_loop, outcome, turns

# ---------------------------------------------------------------- run_forever and stop


def test_stop_before_the_run_makes_one_turn(loop):
    seen = []
    loop.call_soon(lambda: (seen.append("first turn"), loop.call_soon(seen.append, "second turn")))
    loop.stop()
    loop.run_forever()
    assert seen == ["first turn"]
    loop.stop()
    loop.run_forever()
    assert seen == ["first turn", "second turn"]


def test_stop_lets_the_current_turn_end(loop):
    seen = []

    def stopping():
        seen.append("stopping")
        loop.stop()
        loop.call_soon(seen.append, "added after stop")

    loop.call_soon(seen.append, "before")
    loop.call_soon(stopping)
    loop.call_soon(seen.append, "same turn")
    loop.run_forever()
    assert seen == ["before", "stopping", "same turn"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen[-1] == "added after stop"


def test_stopping_twice_is_stopping_once(loop):
    seen = []
    loop.call_soon(loop.stop)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.call_soon(seen.append, 1)
    loop.call_soon(lambda: (loop.call_soon(seen.append, 2), loop.call_soon(loop.stop)))
    loop.run_forever()
    assert seen == [1, 2]


def test_a_due_timer_joins_the_turn_that_stops(loop):
    seen = []
    loop.call_later(0, seen.append, "timer")
    loop.call_soon(loop.stop)
    loop.run_forever()
    # The timers that are due are collected before the turn runs.
    assert seen == ["timer"]


def test_a_ready_descriptor_is_served_in_the_last_turn(loop):
    import socket

    first, second = socket.socketpair()
    seen = []
    second.send(b"x")
    loop.add_reader(first, lambda: seen.append(first.recv(10)))
    loop.stop()
    loop.run_forever()
    assert seen == [b"x"]
    loop.remove_reader(first)
    first.close()
    second.close()


def test_run_forever_can_be_called_again_and_again(loop):
    count = []
    for _ in range(100):
        loop.call_soon(count.append, 1)
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert len(count) == 100


def test_the_states(loop_factory):
    loop = loop_factory()
    assert (loop.is_running(), loop.is_closed()) == (False, False)
    states = []
    loop.call_soon(lambda: states.append((loop.is_running(), loop.is_closed(), asyncio.get_running_loop() is loop)))
    loop.call_soon(loop.stop)
    assert loop.run_forever() is None
    assert states == [(True, False, True)]
    assert (loop.is_running(), loop.is_closed()) == (False, False)
    loop.close()
    assert (loop.is_running(), loop.is_closed()) == (False, True)


def test_repr_tells_the_state(loop_factory):
    loop = loop_factory()
    loop.set_debug(False)
    name = type(loop).__name__
    seen = []
    loop.call_soon(lambda: seen.append(repr(loop)))
    loop.call_soon(loop.stop)
    assert repr(loop) == f"<{name} running=False closed=False debug=False>"
    loop.run_forever()
    assert seen == [f"<{name} running=True closed=False debug=False>"]
    loop.close()
    assert repr(loop) == f"<{name} running=False closed=True debug=False>"


# ---------------------------------------------------------------- run_until_complete


@pytest.mark.parametrize("kind", ["coroutine", "task", "future", "awaitable"])
def test_run_until_complete_takes_any_awaitable(loop, kind):
    async def work():
        await asyncio.sleep(0)
        return "result"

    class Awaitable:
        def __await__(self):
            return work().__await__()

    if kind == "coroutine":
        awaitable = work()
    elif kind == "task":
        awaitable = loop.create_task(work())
    elif kind == "future":
        awaitable = loop.create_future()
        loop.call_soon(awaitable.set_result, "result")
    else:
        awaitable = Awaitable()
    assert loop.run_until_complete(awaitable) == "result"


def test_a_future_that_is_done_already_needs_one_turn(loop):
    future = loop.create_future()
    future.set_result("done")
    seen = []
    loop.call_soon(seen.append, "ran")
    assert loop.run_until_complete(future) == "done"
    assert seen == ["ran"]


@pytest.mark.parametrize("wrong", [None, 1, "text", print, asyncio.sleep])
def test_run_until_complete_of_something_else_is_a_type_error(loop, wrong):
    with pytest.raises(TypeError, match="An asyncio.Future, a coroutine or an awaitable is required"):
        loop.run_until_complete(wrong)


@pytest.mark.parametrize("error", [ValueError("own"), asyncio.CancelledError(), KeyError(1), StopAsyncIteration()])
def test_exceptions_come_out_of_run_until_complete(loop, error):
    async def work():
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)) as caught:
        loop.run_until_complete(work())
    assert isinstance(error, asyncio.CancelledError) or caught.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exits_in_a_task_end_the_run_and_the_loop_can_go_on(loop, error):
    async def work():
        raise error("now")

    with pytest.raises(error, match="now"):
        loop.run_until_complete(work())
    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(0, "on")) == "on"


def test_stop_before_the_future_is_done_is_an_error(loop):
    async def work():
        loop.stop()
        await asyncio.sleep(1000)

    task = loop.create_task(work())
    with pytest.raises(RuntimeError, match=r"^Event loop stopped before Future completed\.$"):
        loop.run_until_complete(task)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_the_run_ends_with_the_turn_in_which_the_future_is_done(loop):
    seen = []

    def endless():
        seen.append(1)
        loop.call_soon(endless)

    async def work():
        await asyncio.sleep(0)

    loop.call_soon(endless)
    loop.run_until_complete(work())
    count = len(seen)
    # One turn for each of: the first step, the second step, the done-callback that stops.
    assert count == 3
    for handle in list(loop._ready):
        handle.cancel()


def test_a_future_of_another_loop_is_refused(loop, loop_factory):
    other = loop_factory()
    with pytest.raises(ValueError, match="The future belongs to a different loop"):
        loop.run_until_complete(other.create_future())
    other.close()


def test_a_future_that_is_left_pending_lets_the_loop_run_later(loop):
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="Event loop stopped"):
        loop.run_until_complete(future)
    future.set_result(None)
    # The callback that would stop the loop was taken away from the future.
    loop.call_later(0.001, loop.stop)
    loop.run_forever()


# ---------------------------------------------------------------- nested and parallel runs


@pytest.fixture
def stock_forgets_running(loop_name):
    """CPython 3.13.0 alone: a refused run_forever() of the stock loop forgets that a loop is running."""
    return loop_name == "stock" and sys.version_info[:3] == (3, 13, 0)


def test_a_running_loop_cannot_be_run_again(loop, run, stock_forgets_running):
    async def main():
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="^This event loop is already running$"):
            loop.run_until_complete(coroutine)
        coroutine.close()
        if not stock_forgets_running:
            with pytest.raises(RuntimeError, match="^This event loop is already running$"):
                loop.run_forever()
        assert asyncio.get_running_loop() is loop

    run(main())


def test_another_loop_cannot_be_run_inside(loop, loop_factory, run, stock_forgets_running):
    other = loop_factory()

    async def main():
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="^Cannot run the event loop while another loop is running$"):
            other.run_until_complete(coroutine)
        coroutine.close()
        if not stock_forgets_running:
            with pytest.raises(RuntimeError, match="^Cannot run the event loop while another loop is running$"):
                other.run_forever()
        assert asyncio.get_running_loop() is loop

    run(main())
    assert other.run_until_complete(asyncio.sleep(0, "still fine")) == "still fine"
    other.close()


def test_a_running_loop_cannot_be_closed(loop, run):
    async def main():
        with pytest.raises(RuntimeError, match="^Cannot close a running event loop$"):
            loop.close()
        await asyncio.sleep(0)

    run(main())


def test_another_loop_may_be_made_and_closed_inside(loop_factory, run):
    async def main():
        for _ in range(5):
            loop_factory().close()
        await asyncio.sleep(0)

    run(main())


# ---------------------------------------------------------------- close


def test_close_drops_what_waits(loop):
    class Callback:
        def __call__(self):
            pytest.fail("ran")

    callbacks = [Callback(), Callback()]
    references = [weakref.ref(callback) for callback in callbacks]
    loop.call_soon(callbacks[0])
    loop.call_later(0, callbacks[1])
    del callbacks
    loop.close()
    gc.collect()
    assert [ref() for ref in references] == [None, None]


def test_what_close_drops_finds_a_closed_loop(loop):
    found = []

    class Dropped:
        def __init__(self, name):
            self.name = name

        def __call__(self):
            pass

        def __del__(self):
            found.append((self.name, loop.is_closed()))
            with pytest.raises(RuntimeError, match="^Event loop is closed$"):
                loop.call_soon(print)
            with pytest.raises(RuntimeError, match="^Event loop is closed$"):
                loop.run_forever()
            loop.close()

    left, right = socket.socketpair()
    loop.add_reader(left, Dropped("reader"))
    loop.call_later(100, Dropped("timer"))
    loop.call_soon(Dropped("callback"))
    loop.close()
    assert sorted(found) == [("callback", True), ("reader", True), ("timer", True)]
    left.close()
    right.close()


def test_close_may_be_called_again(loop):
    loop.close()
    loop.close()
    assert loop.is_closed()


def test_time_and_debug_still_work_after_close(loop):
    loop.close()
    assert isinstance(loop.time(), float)
    loop.set_debug(True)
    assert loop.get_debug() is True
    assert loop.stop() is None
    repr(loop)


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("call_soon", (print,)),
        ("call_soon_threadsafe", (print,)),
        ("call_later", (1, print)),
        ("call_at", (1, print)),
        ("run_forever", ()),
        ("run_in_executor", (None, print)),
        ("add_reader", (0, print)),
        ("add_writer", (0, print)),
        ("add_signal_handler", (10, print)),
    ],
)
def test_a_closed_loop_refuses(loop, method, arguments):
    loop.close()
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        getattr(loop, method)(*arguments)


def test_a_closed_loop_refuses_coroutines(loop):
    loop.close()
    for method in (loop.run_until_complete, loop.create_task):
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="^Event loop is closed$"):
            method(coroutine)
        coroutine.close()


ARGUMENTS = {
    "call_soon": (print,),
    "call_soon_threadsafe": (print,),
    "call_later": (1, print),
    "call_at": (1, print),
    "add_reader": (0, print),
    "add_writer": (0, print),
    "remove_reader": (0,),
    "remove_writer": (0,),
    "add_signal_handler": (10, print),
    "remove_signal_handler": (10,),
    "run_in_executor": (None, print),
    "set_default_executor": (None,),
    "call_exception_handler": ({"message": "asked for"},),
    "default_exception_handler": ({"message": "asked for"},),
    "set_exception_handler": (None,),
    "set_debug": (False,),
    "set_task_factory": (None,),
    "create_server": (asyncio.Protocol,),
    "create_connection": (asyncio.Protocol,),
    "create_unix_server": (asyncio.Protocol,),
    "create_unix_connection": (asyncio.Protocol,),
    "create_datagram_endpoint": (asyncio.DatagramProtocol,),
    "connect_read_pipe": (asyncio.Protocol, 0),
    "connect_write_pipe": (asyncio.Protocol, 1),
    "subprocess_exec": (asyncio.SubprocessProtocol, "true"),
    "subprocess_shell": (asyncio.SubprocessProtocol, "true"),
    "sock_recv": (None, 1),
    "sock_recv_into": (None, b""),
    "sock_recvfrom": (None, 1),
    "sock_recvfrom_into": (None, b""),
    "sock_sendall": (None, b""),
    "sock_sendto": (None, b"", None),
    "sock_connect": (None, None),
    "sock_accept": (None,),
    "sock_sendfile": (None, None),
    "sendfile": (None, None),
    "start_tls": (None, None, None),
    "connect_accepted_socket": (asyncio.Protocol, None),
    "getaddrinfo": (None, 0),
    "getnameinfo": (None,),
    "run_until_complete": (None,),
}
METHODS = sorted(
    name
    for name, value in vars(asyncio.AbstractEventLoop).items()
    if not name.startswith("_") and callable(value) and name != "time"
)


@pytest.mark.fastloop_only(reason="compares with the stock loop")
@pytest.mark.left_out(
    lambda method, state, **_: state == "open" and method in ("run_forever", "run_in_executor", "close"),
    reason="it would run; tested elsewhere",
)
@pytest.mark.parametrize("state", ["open", "closed"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_answers_as_on_the_stock_loop(loop_factory, guard, method, state):
    """Every public method, with simple arguments, on an open idle loop and on a closed one."""

    def answer(loop):
        loop.set_debug(False)
        if state == "closed":
            loop.close()
        kind, *details = outcome(getattr(loop, method), *ARGUMENTS.get(method, ()))
        for undo, argument in ((loop.remove_reader, 0), (loop.remove_writer, 0), (loop.remove_signal_handler, 10)):
            undo(argument)
        loop.close()
        if isinstance(details[0], (asyncio.Handle, asyncio.Future)):
            details = [
                base.__name__
                for base in (asyncio.TimerHandle, asyncio.Handle, asyncio.Future)
                if isinstance(details[0], base)
            ]
        return kind, details, guard.log.take()

    assert answer(loop_factory()) == answer(new_loop("stock"))


@pytest.mark.fastloop_only(reason="compares with the stock loop")
@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_the_arguments_of_the_stock_loop(loop, method):
    def shape(cls):
        parameters = list(inspect.signature(getattr(cls, method)).parameters.values())
        return (
            sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters),
            any(p.kind is p.VAR_POSITIONAL for p in parameters),
            {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY},
        )

    assert shape(type(loop)) == shape(asyncio.SelectorEventLoop)


# ---------------------------------------------------------------- forgotten loops


def warned_of_loop(guard):
    # As an error the warning ends the finaliser of the stock loop before it closes its sockets, which warn too.
    first, *rest = guard.unraisable.take()
    assert first.startswith("ResourceWarning: unclosed event loop <")
    assert all("socket" in text for text in rest)


def test_a_forgotten_loop_warns_and_is_freed(loop_factory, guard):
    loop = loop_factory()
    loop.run_until_complete(asyncio.sleep(0))
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None
    warned_of_loop(guard)


def test_a_forgotten_loop_with_a_cycle_warns_and_is_freed(loop_factory, guard):
    loop = loop_factory()
    loop.own = loop
    loop.call_later(1000, loop.call_soon, loop)
    loop.set_exception_handler(lambda *_, kept=loop: kept)
    loop.set_task_factory(lambda *_, kept=loop: kept)
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None
    warned_of_loop(guard)


@pytest.mark.fastloop_only(reason="the standard loop has no switches")
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_a_loop_whose_constructor_fails_is_closed(loop_name, guard, monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(fastloop.switches, "disabled", fail)
    with pytest.raises(ZeroDivisionError):
        fastloop.Loop()
    gc.collect()
    assert guard.unraisable.take() == []


def test_a_closed_loop_is_freed_without_a_warning(loop_factory):
    loop = loop_factory()
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.call_soon(loop.stop)
    loop.close()
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None


def test_making_and_closing_many_loops(loop_factory):
    for _ in range(300):
        loop = loop_factory()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_many_loops_open_at_once(loop_factory):
    loops = [loop_factory() for _ in range(50)]
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(0))
    for loop in loops:
        loop.close()


# ---------------------------------------------------------------- the class


def test_it_is_an_asyncio_loop(loop):
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert isinstance(loop, asyncio.BaseEventLoop)


def test_it_can_be_subclassed_in_python(loop_factory):
    base = loop_factory()
    base.close()

    class Counting(type(base)):
        def __init__(self):
            self.calls = []
            super().__init__()

        def call_soon(self, callback, *args, context=None):
            self.calls.append(callback)
            return super().call_soon(callback, *args, context=context)

        def extra(self):
            return "extra"

    loop = Counting()
    try:
        assert loop.extra() == "extra" and isinstance(loop, type(base))
        loop.call_soon(int)
        assert loop.run_until_complete(asyncio.sleep(0.001, "slept")) == "slept"
        assert int in loop.calls
    finally:
        loop.close()


def test_an_overridden_create_task_is_honoured(loop_factory):
    base = loop_factory()
    base.close()
    made = []

    class Noting(type(base)):
        def create_task(self, coro, **kwargs):
            made.append(coro.__name__)
            return super().create_task(coro, **kwargs)

    async def child():
        return 1

    async def main():
        return await asyncio.create_task(child())

    loop = Noting()
    try:
        assert loop.run_until_complete(main()) == 1
        assert made == ["main", "child"]
    finally:
        loop.close()


def test_instances_take_attributes_and_replaced_methods(loop):
    loop.anything = 5
    assert loop.anything == 5 and vars(loop)["anything"] == 5
    original, calls = loop.call_later, []

    def counting(*args, **kwargs):
        calls.append(args[0])
        return original(*args, **kwargs)

    loop.call_later = counting
    loop.run_until_complete(asyncio.sleep(0.001))
    assert calls == [0.001]
    del loop.call_later, loop.anything
    assert not hasattr(loop, "anything")


@pytest.mark.fastloop_only(reason="asyncio keeps the dict")
def test_no_dict_makes_the_methods_slow(loop, run):
    """What asyncio's constructor sets must be in Loop.__slots__: see there."""

    async def main():
        await loop.run_in_executor(None, int)
        async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()

    run(main())
    # What a switch sets does not count.
    assert vars(loop).keys() <= {"_datagram_transport_class"}


# ---------------------------------------------------------------- task and future factories


def test_create_task_names_and_contexts(loop, run):
    import contextvars

    variable = contextvars.ContextVar("variable", default=None)
    context = contextvars.copy_context()
    context.run(variable.set, "given")

    async def read():
        return variable.get()

    async def main():
        named = loop.create_task(read(), name="the name")
        assert named.get_name() == "the name" and loop.create_task(turns(0)).get_name().startswith("Task-")
        return await loop.create_task(read(), context=context), await named

    assert run(main()) == ("given", None)


def test_create_future_and_create_task_make_asyncio_types(loop, run):
    future = loop.create_future()
    assert isinstance(future, asyncio.Future) and asyncio.isfuture(future) and future.get_loop() is loop
    task = loop.create_task(turns(1))
    assert isinstance(task, asyncio.Task) and task.get_loop() is loop
    run(task)


@pytest.mark.parametrize(
    "factory",
    [
        lambda loop, coro: asyncio.Task(coro, loop=loop),
        lambda loop, coro, context=None: asyncio.Task(coro, loop=loop, context=context),
        lambda loop, coro, **kwargs: asyncio.Task(coro, loop=loop, **kwargs),
        type("Task", (asyncio.Task,), {}),
    ],
    ids=["loop and coro", "context", "kwargs", "class"],
)
def test_task_factories_of_each_shape(loop, run, factory):
    calls = []

    def noting(loop, coro, *args, **kwargs):
        calls.append(coro.__name__)
        return (
            factory(loop, coro, *args, **kwargs)
            if not isinstance(factory, type)
            else factory(coro, *args, loop=loop, **kwargs)
        )

    async def child():
        await asyncio.sleep(0)
        return 7

    async def main():
        return await asyncio.create_task(child())

    assert loop.get_task_factory() is None
    loop.set_task_factory(noting)
    assert loop.get_task_factory() is noting
    assert run(main()) == 7
    assert calls == ["main", "child"]
    loop.set_task_factory(None)
    assert run(main()) == 7
    assert calls == ["main", "child"]


def test_a_task_factory_that_cannot_be_called_is_refused(loop):
    with pytest.raises(TypeError, match="^task factory must be a callable or None$"):
        loop.set_task_factory(5)


@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="new in Python 3.12")
def test_the_eager_task_factory_runs_the_first_step_at_once(loop, run):
    seen = []

    async def child(pause):
        seen.append("child")
        if pause:
            await asyncio.sleep(0)
        return "result"

    async def main():
        tasks = [loop.create_task(child(False)), loop.create_task(child(True))]
        seen.append("main")
        assert [task.done() for task in tasks] == [True, False]
        return await asyncio.gather(*tasks)

    loop.set_task_factory(asyncio.eager_task_factory)
    assert run(main()) == ["result", "result"]
    assert seen == ["child", "child", "main"]
