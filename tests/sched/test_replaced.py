"""Methods that a subclass, a patch or the instance itself replaces, and private names that programs use."""

import asyncio
import contextvars
import socket
import time
from contextlib import nullcontext
from unittest import mock

import pytest

from helpers import Recorder, socket_pair, turns, until, without_clients


def nothing():
    pass


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.call_soon(callback=nothing),
        lambda loop: loop.call_soon(callback=nothing, context=None),
        lambda loop: loop.call_soon_threadsafe(callback=nothing),
        lambda loop: loop.call_later(delay=0, callback=nothing),
        lambda loop: loop.call_later(0, callback=nothing),
        lambda loop: loop.call_at(when=0, callback=nothing),
        lambda loop: loop.call_at(0, callback=nothing, context=None),
        lambda loop: loop.call_soon(nothing, **{"".join(["con", "text"]): None}),
    ],
)
def test_the_scheduling_methods_take_keywords(loop, call):
    handle = call(loop)
    assert isinstance(handle, asyncio.Handle) and handle._callback is nothing and handle._args == ()
    loop.run_until_complete(turns(3))


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda loop: loop.call_soon(), "call_soon() missing 1 required positional argument: 'callback'"),
        (
            lambda loop: loop.call_later(),
            "call_later() missing 2 required positional arguments: 'delay' and 'callback'",
        ),
        (lambda loop: loop.call_at(5), "call_at() missing 1 required positional argument: 'callback'"),
        (lambda loop: loop.call_soon(nothing, callback=1), "call_soon() got multiple values for argument 'callback'"),
        (lambda loop: loop.call_later(1, nothing, delay=1), "call_later() got multiple values for argument 'delay'"),
        (lambda loop: loop.call_at(1, nothing, loop=1), "call_at() got an unexpected keyword argument 'loop'"),
        (
            lambda loop: loop.call_soon_threadsafe(nothing, name=1),
            "call_soon_threadsafe() got an unexpected keyword argument 'name'",
        ),
    ],
)
def test_what_is_missing_twice_or_unknown_has_the_standard_text(loop, call, text):
    with pytest.raises(TypeError) as caught:
        call(loop)
    assert str(caught.value) == "BaseEventLoop." + text


def test_call_later_goes_through_an_overridden_call_at(loop_factory):
    with_defaults = loop_factory()
    with_defaults.close()
    calls = []

    class Noting(type(with_defaults)):
        def call_at(self, when, callback, *args, context=None):
            calls.append((callback, args, context))
            return super().call_at(when, callback, *args, context=context)

    loop = Noting()
    try:
        handle = loop.call_later(0.001, nothing, 1, 2)
        assert isinstance(handle, asyncio.TimerHandle) and calls == [(nothing, (1, 2), None)]
        handle.cancel()
        calls.clear()
        # An int takes another way.
        loop.call_later(1, nothing).cancel()
        assert calls == [(nothing, (), None)]
        assert loop.run_until_complete(asyncio.sleep(0.001, "slept")) == "slept"
        assert len(calls) == 2
    finally:
        loop.close()


def test_call_later_passes_the_context_to_an_overridden_call_at(loop):
    original, seen = loop.call_at, []

    def call_at(when, callback, *args, context=None):
        seen.append(context)
        return original(when, callback, *args, context=context)

    context = contextvars.copy_context()
    loop.call_at = call_at
    for given in ({}, {"context": None}, {"context": context}):
        loop.call_later(1000, nothing, **given).cancel()
    loop.call_at = lambda when, callback, *args, context=None: 1 // 0
    with pytest.raises(ZeroDivisionError):
        loop.call_later(1000, nothing, context=context)
    del loop.call_at
    assert seen == [None, None, context]


@pytest.mark.parametrize("name", ["call_soon", "call_at", "time", "is_running"])
def test_a_method_that_is_another_one_of_the_same_class(loop_factory, name):
    """It is called, not what had the name before."""
    with_defaults = loop_factory()
    with_defaults.close()
    kind = type(with_defaults)
    others = {"call_soon": kind.call_soon_threadsafe, "is_running": kind.is_closed}

    class Mixed(kind):
        locals()[name] = others.get(name, getattr(kind, name))

    loop = Mixed()
    seen = []

    async def main():
        loop.call_soon(seen.append, 1)
        loop.call_later(0, seen.append, 2)
        await asyncio.sleep(0.001)
        return loop.is_running()

    task = kind.create_task(loop, main())
    task.add_done_callback(lambda _: loop.stop())
    loop.run_forever()
    assert seen == [1, 2] and task.result() is (name != "is_running")
    loop.close()


def test_a_timer_that_is_added_to_what_is_ready(loop):
    """By the private method; it runs at once, and once more when it is due."""
    seen = []
    handle = loop.call_later(1000, seen.append, 1)
    loop._add_callback(handle)
    loop.run_until_complete(turns(3))
    assert seen == [1] and not handle.cancelled()
    handle.cancel()


def test_a_closed_loop_cannot_be_woken(loop):
    loop._write_to_self()
    loop.close()
    assert loop._write_to_self() is None


def test_call_at_replaced_on_the_instance_and_put_back(loop):
    with mock.patch.object(loop, "call_at", wraps=loop.call_at) as call_at:
        loop.run_until_complete(asyncio.sleep(0.001))
        assert call_at.call_count == 1
        loop.call_later(5, nothing).cancel()
        assert call_at.call_args[0][1:] == (nothing,) and call_at.call_args[1] == {"context": None}
    loop.call_later(5, nothing).cancel()
    assert call_at.call_count == 2


@pytest.mark.parametrize("name", ["call_soon", "call_later", "call_at", "time", "create_task", "create_future"])
def test_methods_patched_on_the_instance_are_called(loop, name):
    async def main():
        await asyncio.sleep(0.001)
        await asyncio.wait_for(loop.create_task(asyncio.sleep(0)), 10)
        fut = loop.create_future()
        loop.call_soon(fut.set_result, None)
        await fut

    with mock.patch.object(loop, name, wraps=getattr(loop, name)) as patched:
        loop.run_until_complete(main())
    assert patched.call_count >= 1
    loop.run_until_complete(main())


@pytest.mark.parametrize("name", ["call_soon", "call_at", "time"])
def test_methods_patched_on_the_class_are_called_from_the_next_run_on(loop, name):
    cls, count = type(loop), [0]
    original = getattr(cls, name)

    def counting(self, *args, **kwargs):
        count[0] += 1
        return original(self, *args, **kwargs)

    with mock.patch.object(cls, name, counting):
        loop.run_until_complete(asyncio.sleep(0.001))
    assert count[0] >= 1


async def use_a_server(loop):
    """Serve one connection, and use the calls around it of which somebody may have replaced the parts."""
    server = await loop.create_server(Recorder, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    transport, protocol = await loop.create_connection(Recorder, *address)
    await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    transport.close()
    await until(lambda: protocol.lost)
    first, second = socket_pair("unix")
    receiving = asyncio.ensure_future(loop.sock_recv(first, 10))
    await asyncio.sleep(0)
    await loop.sock_sendall(second, b"received later")
    assert await receiving == b"received l"
    first.close()
    second.close()
    await without_clients(server)


def counting(cls, name, calls):
    original = getattr(cls, name)

    def method(self, *args, **kwargs):
        calls.append(name)
        return original(self, *args, **kwargs)

    return method


def calls_while_serving(cls, name):
    """How often a subclass of a loop that overrides `name` is called while it serves."""
    calls = []
    loop = type("Counting", (cls,), {name: counting(cls, name, calls)})()
    try:
        loop.run_until_complete(use_a_server(loop))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    return len(calls)


@pytest.mark.usefixtures("debug_off")
@pytest.mark.parametrize(
    "name", ["_accept_connection2", "_make_socket_transport", "create_task", "remove_reader", "run_in_executor"]
)
def test_what_a_subclass_overrides_is_called_as_often_as_by_the_stock_loop(loop, name):
    expected = calls_while_serving(asyncio.SelectorEventLoop, name)
    assert calls_while_serving(type(loop), name) == expected > 0


@pytest.mark.usefixtures("debug_off")
@pytest.mark.parametrize("name", ["_accept_connection2", "_make_socket_transport", "create_task"])
def test_what_is_replaced_while_a_server_serves_is_called_for_the_next_connection(loop, run, name):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        for replaced in (False, True):
            with mock.patch.object(loop, name, wraps=getattr(loop, name)) if replaced else nullcontext() as patched:
                with socket.create_connection(server.sockets[0].getsockname()) as client:
                    client.setblocking(False)
                    await until(lambda: server._clients if hasattr(server, "_clients") else server._active_count)
            if patched:
                assert patched.call_count == 1
            await until(lambda: not (server._clients if hasattr(server, "_clients") else server._active_count))
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.usefixtures("debug_off")
def test_a_replaced_run_in_executor_is_called_for_a_numeric_address_too(loop, run):
    with mock.patch.object(loop, "run_in_executor", wraps=loop.run_in_executor) as patched:
        assert run(loop.getaddrinfo("127.0.0.1", 80)) == socket.getaddrinfo("127.0.0.1", 80)
    assert patched.call_count == 1


@pytest.mark.usefixtures("debug_off")
def test_a_task_factory_makes_the_task_of_each_connection_that_is_accepted(loop, run):
    made = []

    def factory(loop, coro, **options):
        made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **options)

    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        loop.set_task_factory(factory)
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(3)]
        await until(lambda: len(made) == 3)
        loop.set_task_factory(None)
        for client in clients:
            client.close()
        await without_clients(server)

    run(main())
    assert made == ["BaseSelectorEventLoop._accept_connection2"] * 3


@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="new in Python 3.12")
@pytest.mark.parametrize("debug", [False, True])
def test_connections_are_accepted_with_eager_tasks(loop, run, debug):
    class Greeting(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"hello")
            transport.close()

    async def main():
        loop.set_debug(debug)
        loop.set_task_factory(asyncio.eager_task_factory)
        server = await loop.create_server(Greeting, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        await without_clients(server)
        loop.set_task_factory(None)
        loop.set_debug(False)

    run(main())


@pytest.mark.usefixtures("debug_off")
def test_what_a_task_factory_raises_for_a_connection_is_reported(loop, run, contexts):
    def factory(loop, coro, **options):
        if not contexts and coro.__name__ == "_accept_connection2":
            coro.cr_frame.f_locals["conn"].close()
            coro.close()
            raise LookupError("in the factory")
        return asyncio.Task(coro, loop=loop, **options)

    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        loop.set_task_factory(factory)
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(2)]
        await until(lambda: contexts)
        with clients[0], clients[1]:
            # The other one is served.
            await until(lambda: server._clients if hasattr(server, "_clients") else server._active_count)
        loop.set_task_factory(None)
        await without_clients(server)

    run(main())
    context = contexts.take_one()
    assert "_accept_connection(" in context["message"] and isinstance(context["exception"], LookupError)


def test_a_frozen_clock_holds_the_timers(loop, run):
    now = [1000.0]

    async def main():
        ran = []
        loop.call_later(10, ran.append, "ten")
        loop.call_later(5, ran.append, "five")
        await turns(5)
        assert ran == []
        now[0] = 1005.5
        await turns(5)
        assert ran == ["five"]
        now[0] = 1011.0
        await turns(5)
        assert ran == ["five", "ten"]

    with mock.patch.object(loop, "time", lambda: now[0]):
        run(main())


def test_a_transport_whose_write_is_patched(loop, run):
    async def main():
        ours, theirs = socket_pair("tcp")
        transport, _ = await loop.create_connection(Recorder, sock=ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        with mock.patch.object(transport, "write") as write:
            transport.write(b"kept back")
        write.assert_called_once_with(b"kept back")
        with mock.patch.object(writer.transport, "write", side_effect=OSError("on purpose")):
            with pytest.raises(OSError, match="on purpose"):
                writer.write(b"x")
        with mock.patch.object(transport, "write") as write:
            assert transport.writelines([b"two ", b"lines"]) is None
        if "writelines" in vars(asyncio.selector_events._SelectorSocketTransport):
            assert write.call_args_list == []
            assert await reader.readexactly(9) == b"two lines"
        else:
            # Up to Python 3.11 it is one write().
            write.assert_called_once_with(b"two lines")
        transport.write(b"sent")
        assert await reader.readexactly(4) == b"sent"
        transport.close()
        writer.close()
        await turns(5)

    run(main())


# ---------------------------------------------------------------- private names


def test_private_names_of_timers_servers_and_transports(loop, run, authority):
    async def main():
        timer = loop.call_later(5, nothing)
        assert timer._when == timer.when() and timer._scheduled
        timer.cancel()
        server = await loop.create_server(Recorder, "127.0.0.1", 0, ssl=authority.server)
        assert server._ssl_context is authority.server and server._loop is loop
        transport, _ = await loop.create_connection(
            Recorder, *server.sockets[0].getsockname(), ssl=authority.client, server_hostname="localhost"
        )
        assert transport._ssl_protocol._sslcontext is authority.client
        transport.close()
        server.close()
        await turns(10)

    run(main())


def test_call_soon_of_the_base_class(loop):
    # Subclasses of the standard loop call it.
    ran = []
    handle = loop._call_soon(ran.append, (1,), None)
    assert isinstance(handle, asyncio.Handle) and handle in loop._ready
    loop.run_until_complete(turns(1))
    assert ran == [1]


# ---------------------------------------------------------------- slow callbacks of the I/O


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_slow_protocol_is_logged_in_debug_mode(loop, run, guard, kind):
    async def main():
        ours, theirs = socket_pair(kind)
        connect = loop.create_connection if kind == "tcp" else loop.create_unix_connection
        transport, protocol = await connect(lambda: Recorder(data_received=lambda _: time.sleep(0.02)), sock=ours)
        theirs.send(b"x")
        await until(lambda: protocol.data)
        await turns(3)
        transport.close()
        theirs.close()
        await turns(3)

    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    run(main())
    slow = [text for text in guard.log.take() if text.startswith("Executing <")]
    assert any("SocketTransport" in text for text in slow), slow


def test_what_the_loop_sets_needs_no_dict(loop, loop_name):
    """The interpreter looks methods up quickly then; other attributes go to a dict, as ever."""
    loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80))
    loop.run_until_complete(loop.run_in_executor(None, nothing))
    if loop_name == "fastloop":
        assert vars(loop) == {}
    loop.note = "mine"
    assert vars(loop)["note"] == "mine"
    loop.slow_callback_duration = 7
    assert loop.slow_callback_duration == 7
    del loop.slow_callback_duration
    assert not hasattr(loop, "slow_callback_duration")
    loop.slow_callback_duration = 0.1


def test_a_subclass_may_set_what_the_loop_sets(loop):
    class Loop(type(loop)):
        slow_callback_duration = 9

        def __init__(self):
            super().__init__()
            del self.slow_callback_duration

    other = Loop()
    assert other.slow_callback_duration == 9
    other.close()


class Interrupt(BaseException):
    """Leaves run_forever()."""


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop asks it after it has slept")
@pytest.mark.parametrize("action", ["schedule", "cancel", "stop", "raise", "nothing"])
def test_a_clock_that_uses_the_loop_before_it_sleeps(loop, action):
    """It is asked when there is nothing to do but to wait for a timer."""
    ran = []

    def clock():
        loop.time = time.monotonic
        if action == "schedule":
            loop.call_soon(ran.append, "scheduled")
            loop.call_soon(loop.stop)
        elif action == "cancel":
            timer.cancel()
            loop.call_later(0.001, loop.stop)
        elif action == "stop":
            loop.stop()
        elif action == "raise":
            raise Interrupt
        else:
            loop.call_later(0.001, loop.stop)
        return time.monotonic()

    timer = loop.call_later(3600, ran.append, "too early")
    loop.call_soon(setattr, loop, "time", clock)
    if action == "raise":
        with pytest.raises(Interrupt):
            loop.run_forever()
        loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == (["scheduled"] if action == "schedule" else [])
    timer.cancel()


@pytest.mark.fastloop_only("of the native methods")
def test_native_methods_are_those_of_the_very_type(loop):
    """The interpreter calls a method directly only if it belongs to exactly the type of the object."""
    for name in ("call_soon", "call_soon_threadsafe", "call_later", "call_at", "create_task", "create_future", "time"):
        method = vars(type(loop))[name]
        assert method.__objclass__ is type(loop) and method.__text_signature__.startswith("($self")

    class Derived(type(loop)):
        def call_at(self, when, callback, *args, context=None):
            return super().call_at(when + 1000, callback, *args, context=context)

    derived = Derived()
    assert derived.call_later(0, nothing).when() > derived.time() + 900
    assert derived.run_until_complete(asyncio.sleep(0, 5)) == 5
    derived.close()
