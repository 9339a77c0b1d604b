"""Calls of transports and socket operations that programs rarely make: the standard loop's answers."""

import asyncio
import logging
import socket
import sys

import pytest


@pytest.fixture
def connected(loop, run):
    """(transport, protocol, peer): a transport on one end of a socket pair."""
    opened = []

    class Protocol(asyncio.Protocol):
        def __init__(self):
            self.lost = []

        def connection_lost(self, exc):
            self.lost.append(exc)

    async def main():
        left, right = socket.socketpair()
        transport, protocol = await loop.create_connection(Protocol, sock=left)
        opened.append((transport, right))
        return transport, protocol, right

    yield run(main())
    for transport, peer in opened:
        transport.abort()
        peer.close()
    run(asyncio.sleep(0))


def test_arguments_of_get_extra_info(connected):
    transport, _, _ = connected
    assert transport.get_extra_info(name="nothing", default=5) == 5
    assert transport.get_extra_info("nothing") is None
    for args, kwargs in (((), {}), (("a", "b", "c"), {}), (("a",), {"nonsense": 1}), (("a",), {"name": "b"})):
        with pytest.raises(TypeError):
            transport.get_extra_info(*args, **kwargs)


def test_arguments_of_the_methods(connected):
    transport, _, _ = connected
    for call in (
        lambda: transport.write(),
        lambda: transport.write(b"a", b"b"),
        lambda: transport.write(nonsense=b"a"),
        lambda: transport.write("text"),
        lambda: transport.write(None),
        lambda: transport.write(b"a", data=b"b"),
        lambda: transport.writelines([1]),
        lambda: transport.writelines(["text"]),
        lambda: transport.set_protocol(),
        lambda: transport.close(1),
        lambda: transport.set_write_buffer_limits("x"),
        lambda: transport.set_write_buffer_limits(1, 2, 3),
    ):
        with pytest.raises(TypeError):
            call()
    for call in (
        lambda: transport.set_write_buffer_limits(high=-1),
        lambda: transport.set_write_buffer_limits(low=2, high=1),
    ):
        with pytest.raises(ValueError):
            call()
    transport.write(data=b"")
    transport.writelines(list_of_data=[])


def test_what_libraries_read_of_a_transport(loop, connected):
    transport, protocol, _ = connected
    assert transport._loop is loop
    assert transport._protocol is protocol
    assert transport._server is None
    assert transport._extra["socket"] is transport.get_extra_info("socket")
    transport._extra = {**transport._extra, "mine": 1}
    assert transport.get_extra_info("mine") == 1
    assert not transport._buffer
    transport.set_write_buffer_limits(high=100, low=10)
    assert (transport._high_water, transport._low_water) == (100, 10)
    assert transport.get_write_buffer_limits() == (10, 100)


def test_what_is_not_sent_stands_in_the_buffer(connected):
    transport, _, _ = connected
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    transport.write(b"x" * 4_000_000)
    size = transport.get_write_buffer_size()
    if sys.version_info >= (3, 12):
        # Without what libuv is sending.
        assert 0 < sum(len(chunk) for chunk in transport._buffer) <= size
    assert size > 0


@pytest.mark.parametrize("error", [ValueError("x"), ConnectionResetError("y"), OSError("z")])
def test_a_fatal_error_closes_the_connection(loop, run, connected, error, caplog):
    transport, protocol, _ = connected
    problems = []
    loop.set_exception_handler(lambda loop, context: problems.append(context))
    loop.set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        transport._fatal_error(error, "of mine")
        transport._fatal_error(error)
        run(asyncio.sleep(0))
    assert protocol.lost == [error]
    if isinstance(error, OSError):
        assert problems == []
        assert any("of mine" in record.getMessage() for record in caplog.records)
    else:
        assert problems[0]["message"] == "of mine" and problems[0]["exception"] is error
        assert problems[0]["transport"] is transport and problems[0]["protocol"] is protocol
    loop.set_debug(False)


class Subclass(socket.socket):
    """What a library may replace is called."""

    def recvfrom_into(self, *args):
        self.called = True
        return super().recvfrom_into(*args)


def test_recvfrom_into_of_a_subclass_is_called(loop, run):
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    mine = Subclass(left.family, left.type, fileno=left.detach())
    with mine, right:
        mine.setblocking(False)

        async def main():
            buffer = bytearray(10)
            right.send(b"hello")
            size, _ = await loop.sock_recvfrom_into(mine, buffer)
            waiting = asyncio.ensure_future(loop.sock_recvfrom_into(mine, buffer, 3))
            await asyncio.sleep(0)
            right.send(b"again")
            small, _ = await waiting
            assert (size, small, buffer) == (5, 3, b"agalo" + bytes(5))

        run(main())
    assert mine.called


@pytest.mark.parametrize("finish", ["close", "throw"])
def test_an_operation_by_hand(loop, run, finish):
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            operation = loop.sock_recv(left, 10)
            with pytest.raises(TypeError):
                operation.send("early")
            future = operation.send(None)
            assert asyncio.isfuture(future)
            if finish == "throw":
                with pytest.raises(KeyError):
                    operation.throw(KeyError("k"))
            else:
                operation.close()
            operation.close()
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                operation.send(None)
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await operation
            fresh = loop.sock_recv(left, 10)
            with pytest.raises(TypeError):
                fresh.throw(1)
            fresh.close()
            await asyncio.sleep(0)

        run(main())


def test_arguments_of_the_socket_operations(loop, run):
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            for call in (
                lambda: loop.sock_recv(left),
                lambda: loop.sock_recv(left, 1, 2),
                lambda: loop.sock_recv(nonsense=1),
                lambda: loop.sock_sendall(left),
                lambda: loop.sock_accept(),
                lambda: loop.sock_connect(left),
                lambda: loop.sock_recv_into(left),
            ):
                with pytest.raises(TypeError):
                    await call()
            for call in (
                lambda: loop.sock_recv(left, "x"),
                lambda: loop.sock_sendall(left, "text"),
                lambda: loop.sock_recv_into(left, b"constant"),
            ):
                with pytest.raises((TypeError, BufferError)):
                    await call()
            with pytest.raises(ValueError):
                await loop.sock_recv(left, -1)

        run(main())


def test_the_water_marks_as_attributes(connected):
    transport, protocol, _ = connected
    calls = []
    protocol.pause_writing = lambda: calls.append("pause")
    protocol.resume_writing = lambda: calls.append("resume")
    transport._high_water = 7
    transport._low_water = 3
    assert transport.get_write_buffer_limits() == (3, 7)
    transport._maybe_pause_protocol()
    transport._maybe_resume_protocol()
    assert calls == []
    transport._high_water = transport._low_water = -1
    transport._maybe_pause_protocol()
    transport._maybe_pause_protocol()
    assert calls == ["pause"] and transport._protocol_paused is True
    transport._low_water = 0
    transport._maybe_resume_protocol()
    transport._maybe_resume_protocol()
    assert calls == ["pause", "resume"] and transport._protocol_paused is False


@pytest.mark.fastloop_only(reason="what fastloop shows of itself")
def test_what_a_loop_has_open(loop, connected):
    transport, _, _ = connected
    assert [number for _, number in loop._open_handles()] == [transport.get_extra_info("socket").fileno()]
    assert loop._use_native_tasks is True
    loop._use_native_tasks = False
    assert loop._use_native_tasks is False


@pytest.mark.fastloop_only(reason="the standard loop's descriptors belong to its thread alone")
@pytest.mark.parametrize("kind", ["reader", "signal"])
def test_watching_begins_in_another_thread(loop, run, kind):
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            done = loop.create_future()

            def add():
                loop.add_reader(left, lambda: done.done() or done.set_result(None))
                loop.call_soon_threadsafe(right.send, b"x")

            # None of the loop's own descriptors is watched so far.
            await loop.run_in_executor(None, add)
            await asyncio.wait_for(done, 20)
            loop.remove_reader(left)
            await loop.shutdown_default_executor()

        if kind == "reader":
            run(main())
        else:
            loop.add_signal_handler(10, print)
            try:
                run(main())
            finally:
                loop.remove_signal_handler(10)
