"""Calls of transports and socket operations that programs rarely make: the standard loop's answers."""

import asyncio
import collections
import contextvars
import fcntl
import logging
import socket
import sys
import termios
import threading
import warnings
import weakref

import pytest

from helpers import until


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


def test_names_of_extra_info_that_are_made_as_they_are_asked_for(connected):
    transport, _, peer = connected
    for name in ("peername", "sockname"):
        assert transport.get_extra_info("".join(list(name))) == transport.get_extra_info(name) == ""
    assert transport.get_extra_info("".join(list("socket"))).fileno() == transport.get_extra_info("socket").fileno()
    assert transport.get_extra_info(type("Name", (str,), {})("peername")) == ""
    assert transport.get_extra_info("".join(list("nothing")), "default") == "default"


@pytest.mark.parametrize(
    "marks,expected",
    [
        ({"high": 10.5}, (2.0, 10.5)),
        ({"low": 2.5}, (2.5, 10.0)),
        ({"high": 2**70}, (2**68, 2**70)),
        ({"low": 2**70}, (2**70, 2**72)),
        ({"high": 2**70, "low": 1.5}, (1.5, 2**70)),
        ({"high": True}, (0, True)),
    ],
    ids=str,
)
def test_marks_that_are_no_usual_numbers(connected, marks, expected):
    transport, _, _ = connected
    transport.set_write_buffer_limits(**marks)
    assert transport.get_write_buffer_limits() == expected


def test_bytes_of_another_class(connected, run):
    class Bytes(bytes):
        pass

    class Never(bytes):
        def __bool__(self):
            return False

    transport, _, peer = connected

    async def main():
        transport.write(Bytes(b"one "))
        transport.write(Bytes())
        transport.write(Never(b"not sent "))
        transport.writelines([Bytes(b"two "), bytearray(b"three "), memoryview(b"four")])
        await until(lambda: transport.get_write_buffer_size() == 0)

    run(main())
    assert peer.recv(100) == b"one two three four"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_of_three_that_write_in_a_turn_is_aborted(loop, run, which):
    """Before that turn has ended; the others send."""

    async def main():
        pairs = [socket.socketpair() for _ in range(3)]
        transports = [(await loop.create_connection(asyncio.Protocol, sock=left))[0] for left, _ in pairs]
        for number, transport in enumerate(transports):
            transport.write(b"%d" % number)
        transports[which].abort()
        for transport in transports:
            transport.write(b"more")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number, (_, peer) in enumerate(pairs):
            if number != which:
                assert peer.recv(100) == b"%dmore" % number
            peer.close()
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)

    run(main())


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


def test_more_arguments_than_any_socket_operation_has(loop, run):
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            for method in (
                loop.sock_recv,
                loop.sock_recv_into,
                loop.sock_recvfrom,
                loop.sock_sendall,
                loop.sock_sendto,
            ):
                with pytest.raises(TypeError):
                    await method(left, *range(9))

        run(main())


def test_throwing_what_cannot_be_thrown(loop, run):
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            for args in ((), (KeyError, KeyError(), 5), (5, None, None)):
                operation = loop.sock_recv(left, 10)
                with warnings.catch_warnings():
                    # The standard coroutine's throw() warns of three arguments.
                    warnings.simplefilter("ignore")
                    with pytest.raises(TypeError):
                        operation.throw(*args)
                operation.close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                operation = loop.sock_recv(left, 10)
                with pytest.raises(KeyError, match="value"):
                    operation.throw(KeyError, "value", None)

        run(main())


def test_a_buffer_that_shrinks_while_it_is_waited_for(loop, run):
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.setblocking(False)

        async def main():
            buffer = bytearray(10)
            waiting = asyncio.ensure_future(loop.sock_recvfrom_into(left, buffer, 8))
            await asyncio.sleep(0)
            del buffer[4:]
            right.send(b"hello")
            with pytest.raises(ValueError, match="nbytes is greater than the length of the buffer"):
                await waiting
            assert bytes(buffer) == bytes(4)

        run(main())


@pytest.mark.parametrize("end", ["data", "cancel"])
def test_futures_of_another_class_wait_for_a_socket(loop, run, end):
    class Future(asyncio.Future):
        pass

    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            loop.create_future = lambda: Future(loop=loop)
            waiting = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            del loop.create_future
            if end == "cancel":
                waiting.cancel()
                right.send(b"hello")
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert await loop.sock_recv(left, 10) == b"hello"
            else:
                right.send(b"hello")
                assert await waiting == b"hello"

        run(main())


def test_what_libraries_write_to_a_transport(loop, run, connected):
    transport, protocol, peer = connected
    assert transport._empty_waiter is None
    transport._protocol_paused = True
    assert transport._protocol_paused is True
    transport._protocol_paused = False

    class Other(asyncio.Protocol):
        data = b""

        def data_received(self, data):
            self.data += data

    other = Other()
    transport._protocol = other
    assert transport.get_protocol() is other

    async def main():
        peer.send(b"hello")
        while not other.data:
            await asyncio.sleep(0)

    run(main())
    assert other.data == b"hello"
    transport._protocol = protocol


def test_arguments_of_sendto(loop, run, tmp_path):
    path = str(tmp_path / "receiver")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(20)

        async def main():
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, family=socket.AF_UNIX)
            for args, kwargs in (
                ((), {}),
                ((b"x", path, 3), {}),
                ((b"x",), {"nonsense": 1}),
                ((b"x",), {"data": b"y"}),
                (("text", path), {}),
            ):
                with pytest.raises(TypeError):
                    transport.sendto(*args, **kwargs)
            for address in (path, path.encode()):
                transport.sendto(b"to " + type(address).__name__.encode(), address)
            transport.sendto(data=b"named", addr=path)
            transport.close()
            await asyncio.sleep(0)

        run(main())
        assert [receiver.recv(100) for _ in range(3)] == [b"to str", b"to bytes", b"named"]


@pytest.mark.parametrize(
    "odd",
    [{"_limit": 10**100}, {"_limit": True}, {"_eof": 0}, {"_paused": 0}, {"_buffer": None}, {"mine": 1}],
    ids=str,
)
def test_attributes_of_a_reader_that_are_odd(loop, run, odd):
    class Buffer(bytearray):
        pass

    left, right = socket.socketpair()

    async def main():
        reader, writer = await asyncio.open_connection(sock=left)
        for name, value in odd.items():
            setattr(reader, name, Buffer() if name == "_buffer" else value)
        right.send(b"l\nexact")
        line = reader.readline() if odd != {"_limit": True} else reader.readexactly(2)
        assert await line == b"l\n"
        assert await reader.readexactly(3) == b"exa"
        assert await reader.read(10) == b"ct"
        waiting = asyncio.ensure_future(reader.read(10))
        await asyncio.sleep(0)
        right.send(b"more")
        assert await waiting == b"more"
        reader._exception = "no exception"
        for call in (reader.read(1), reader.readexactly(1), reader.readuntil(b"x")):
            with pytest.raises(TypeError, match="exceptions must derive from BaseException"):
                await call
        reader._exception = None
        writer.close()

    with right:
        run(main())


@pytest.mark.fastloop_only(reason="how a connection is begun")
def test_a_connector_by_hand(loop, run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        async def main():
            for args in ((), (None,), (None, "127.0.0.1", 1, 2)):
                with pytest.raises(TypeError):
                    loop._start_connecting(*args)
            for host, port in (("localhost", 1), ("127.0.0.1", "1"), ("127.0.0.1", 2**70), ("127.0.0.1", -1),
                               (b"127.0.0.1", 1), ("127.0.0.1\0", 1), ("\udc80", 1)):  # fmt: skip
                assert loop._start_connecting(loop.create_future(), host, port) is None
            assert await asyncio.to_thread(loop._start_connecting, loop.create_future(), *address) is None
            await loop.shutdown_default_executor()
            completed = type("Future", (asyncio.Future,), {})(loop=loop)
            connector = loop._start_connecting(completed, *address)
            completed.set_result("by somebody else")
            await asyncio.sleep(0.001)
            assert completed.result() == "by somebody else"
            connector.close()
            future = loop.create_future()
            connector = loop._start_connecting(future, *address)
            assert connector.fileno() > 2 and connector.family == socket.AF_INET
            with pytest.raises(TypeError):
                connector.make_transport()
            if not future.done():
                with pytest.raises(RuntimeError, match="not connected"):
                    connector.make_transport(asyncio.Protocol(), None)
            await future
            for args in ((1,), (1, 2, 3, 4)):
                with pytest.raises(TypeError):
                    connector.make_transport(*args)
            with pytest.raises(TypeError, match="a contextvars.Context was expected, not 5"):
                connector.make_transport(asyncio.Protocol(), None, 5)
            connector.close()
            connector.close()
            assert connector.fileno() == -1
            with pytest.raises(RuntimeError, match="not connected"):
                connector.make_transport(asyncio.Protocol(), None)

        run(main())


@pytest.mark.fastloop_only(reason="how a connection is begun")
@pytest.mark.parametrize("own", [False, True], ids=["current context", "own context"])
def test_a_transport_of_a_connector(loop, run, own):
    """In which context its protocol is called."""
    variable = contextvars.ContextVar("variable", default="current")
    context = contextvars.copy_context()
    context.run(variable.set, "own")
    seen = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            seen.append(variable.get())

        def connection_lost(self, exc):
            seen.append(variable.get())

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            future, made = loop.create_future(), loop.create_future()
            connector = loop._start_connecting(future, *server.getsockname())
            await future
            transport = connector.make_transport(Protocol(), made, *([context] if own else []))
            await made
            transport.abort()
            await asyncio.sleep(0)
        assert seen == ["own" if own else "current"] * 2

    run(main())


@pytest.mark.fastloop_only(reason="what is remembered of numeric addresses")
@pytest.mark.parametrize(
    "entry",
    [
        [socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", 80)],
        (socket.AF_INET, socket.SOCK_STREAM, 6, ""),
        (socket.AF_INET, socket.SOCK_STREAM, 6, b"", ("127.0.0.9", 80)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "name", ("127.0.0.9", 80)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.8", 80)),
    ],
    ids=["list", "four items", "bytes", "name", "another address"],
)
def test_answers_about_an_address_that_are_not_kept(loop, run, entry):
    question = ("127.0.0.9", 80, 0, socket.SOCK_STREAM, 0, 0)
    usual = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", 80))

    async def main():
        for answer in ([entry], [usual, entry], []):
            loop._keep_answer(answer, *question)
            assert loop._answer_numeric(*question) is None
        for wrong in (((usual,), *question), ([usual], *question[1:])):
            with pytest.raises(TypeError, match="_keep_answer"):
                loop._keep_answer(*wrong)
        loop._keep_answer([usual], "127.0.0.9", 80, "family", 0, 0, 0)
        assert loop._answer_numeric(*question) is None
        loop._keep_answer([usual], *question)
        assert loop._answer_numeric(*question) == [usual]

    run(main())


@pytest.mark.fastloop_only(reason="what the server's own methods take")
def test_arguments_of_what_serves(loop, run):
    async def main():
        with pytest.raises(TypeError):
            loop._start_serving()
        with pytest.raises(TypeError):
            loop._make_socket_transport()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            with pytest.raises(TypeError, match="context must be a contextvars.Context, not 5"):
                loop._start_serving(asyncio.Protocol, server, context=5)

    run(main())


@pytest.mark.parametrize("method", ["send", "throw", "close"])
def test_an_operation_that_resumes_itself(loop, run, method):
    """Out of a method of its socket, which runs inside of it."""
    raised = []

    class Reentrant(socket.socket):
        def recv(self, size):
            try:
                getattr(operation, method)(*{"send": [None], "throw": [KeyError()], "close": []}[method])
            except ValueError as error:
                raised.append(str(error))
            return super().recv(size)

    left, right = socket.socketpair()
    with right, Reentrant(fileno=left.detach()) as mine:
        mine.setblocking(False)
        right.send(b"data")

        async def main():
            assert await operation == b"data"

        operation = loop.sock_recv(mine, 10)
        run(main())
    assert raised == ["coroutine already executing"]


def test_a_future_that_cannot_be_awaited(loop, run):
    class Thing:
        def add_done_callback(self, callback, **options):
            pass

    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)

        async def main():
            loop.create_future = Thing
            with pytest.raises(TypeError, match="Thing"):
                await loop.sock_recv(left, 10)
            del loop.create_future
            loop.remove_reader(left)
            right.send(b"data")
            assert await loop.sock_recv(left, 10) == b"data"

        run(main())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_pause_writing_may_end_the_run(loop, run, connected, error):
    transport, protocol, peer = connected
    calls = []

    def leave():
        calls.append("pause")
        raise error

    protocol.pause_writing = leave
    protocol.resume_writing = lambda: calls.append("resume")
    transport._high_water = transport._low_water = -1
    with pytest.raises(error):
        transport._maybe_pause_protocol()
    transport._low_water = 0
    transport._maybe_resume_protocol()
    assert calls == ["pause", "resume"] and not transport.is_closing()
    small = transport.get_extra_info("socket")
    small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    transport.set_write_buffer_limits(high=0)

    async def main():
        transport.write(bytes(4_000_000))

    # From write(), or as the turn ends.
    with pytest.raises(error):
        run(main())
        run(asyncio.sleep(0))
    assert calls == ["pause", "resume", "pause"]
    del protocol.pause_writing
    del protocol.resume_writing


@pytest.mark.fastloop_only("the stock loop goes on watching for room, with nothing to write")
def test_resume_writing_may_end_the_run(loop, run, connected):
    transport, protocol, peer = connected
    calls = []
    peer.setblocking(False)

    def leave():
        calls.append("resume")
        raise KeyboardInterrupt

    protocol.pause_writing = lambda: calls.append("pause")
    protocol.resume_writing = leave
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def main():
        transport.write(bytes(1_000_000))
        count = 0
        while count < 1_000_000:
            try:
                count += len(peer.recv(100_000))
            except BlockingIOError:
                await asyncio.sleep(0)
        while True:
            await asyncio.sleep(0.001)

    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        run(task)
    assert calls == ["pause", "resume"] and transport.get_write_buffer_size() == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        run(task)


def test_extra_information_of_another_mapping(loop, run):
    left, right = socket.socketpair()
    with right:
        left.setblocking(False)
        extra = collections.UserDict(mine=7)
        transport = loop._make_socket_transport(left, asyncio.Protocol(), extra=extra)
        assert transport.get_extra_info("mine") == 7
        assert transport.get_extra_info("socket").fileno() == left.fileno()
        run(asyncio.sleep(0))
        transport.abort()
        run(asyncio.sleep(0))


def test_a_transport_over_another_family(loop, run):
    """Addresses that only the socket module can show, and show they do when the socket is closed."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    except (AttributeError, OSError):
        pytest.skip("no AF_NETLINK here")
    sock.setblocking(False)
    try:
        sock.bind((0, 0))
    except OSError:
        sock.close()
        pytest.skip("AF_NETLINK is not for us here")
    name = sock.getsockname()
    transport = loop._make_socket_transport(sock, asyncio.Protocol())
    assert transport.get_extra_info("sockname") == name
    run(asyncio.sleep(0))
    transport.abort()
    run(asyncio.sleep(0))
    assert transport.get_extra_info("sockname") == name


@pytest.mark.fastloop_only("the stock loop refuses a transport that is half closed by then")
@pytest.mark.parametrize("method", ["close", "abort"])
def test_a_wrong_thread_is_told_in_debug_mode(loop, run, connected, method):
    transport, protocol, _ = connected
    raised = []

    def call():
        try:
            getattr(transport, method)()
        except RuntimeError as error:
            raised.append(str(error))

    loop.set_debug(True)

    async def main():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    run(main())
    loop.set_debug(False)
    assert len(raised) == 1 and raised[0].startswith("Non-thread-safe operation")


def test_arguments_that_no_datagram_method_has(loop, run):
    async def main():
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        with pytest.raises(TypeError):
            transport.sendto(b"data", *range(9))
        with pytest.raises(TypeError):
            transport.sendto(b"data", **{f"name{number}": number for number in range(9)})
        transport.close()
        await asyncio.sleep(0)

    run(main())


@pytest.mark.fastloop_only("private to it")
def test_arguments_of_private_methods(loop, connected):
    transport, protocol, _ = connected
    for call in (
        lambda: transport._fatal_error(),
        lambda: transport._fatal_error("text"),
        lambda: loop._make_handle(int),
        lambda: loop._make_handle(int, []),
        lambda: loop._make_socket_transport(),
    ):
        with pytest.raises(TypeError):
            call()
    for name in ("_high_water", "_low_water"):
        with pytest.raises(AttributeError):
            delattr(transport, name)
    assert not transport.is_closing()


def test_a_protocol_of_streams_without_a_reader(loop, run):
    """What comes is for nobody."""
    left, right = socket.socketpair()

    async def main():
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
        protocol._stream_reader_wr = None
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"data")
        await until(lambda: fcntl.ioctl(left, termios.FIONREAD, bytes(4)) == bytes(4))
        assert not transport.is_closing()
        transport.abort()
        await protocol._closed

    with right:
        run(asyncio.wait_for(main(), 50))


@pytest.mark.parametrize("kind", ["subclass", "function"])
def test_a_reader_behind_another_reference(loop, run, kind):
    class Reference(weakref.ref):
        pass

    left, right = socket.socketpair()

    async def main():
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        protocol._stream_reader_wr = Reference(reader) if kind == "subclass" else lambda: reader
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"data")
        assert await reader.readexactly(4) == b"data"
        transport.abort()
        await asyncio.sleep(0)

    with right:
        run(asyncio.wait_for(main(), 50))


def test_data_behind_an_end_that_somebody_made(loop, run):
    left, right = socket.socketpair()
    problems = []
    loop.set_exception_handler(lambda loop, context: problems.append(type(context["exception"])))

    async def main():
        reader, writer = await asyncio.open_connection(sock=left)
        reader.feed_eof()
        right.send(b"data")
        with pytest.raises(AssertionError, match="feed_data after feed_eof"):
            await writer.wait_closed()
        with pytest.raises(AssertionError, match="feed_data after feed_eof"):
            await reader.read()

    with right:
        run(asyncio.wait_for(main(), 50))
    assert problems == [AssertionError]


def test_an_exception_of_a_reader_that_is_none(loop, run):
    left, right = socket.socketpair()

    async def main():
        reader, writer = await asyncio.open_connection(sock=left)
        reader._exception = "text"
        with pytest.raises(TypeError, match="exceptions must derive from BaseException"):
            await reader.read()
        reader._exception = None
        writer.close()
        await writer.wait_closed()

    with right:
        run(main())


class Scripted(socket.socket):
    """recv() raises what stands in `script` first, one after the other."""

    script = ()

    def recv(self, size):
        if self.script:
            raise self.script.pop(0)
        return super().recv(size)


@pytest.fixture
def scripted():
    left, right = socket.socketpair()
    with right, Scripted(fileno=left.detach()) as mine:
        mine.setblocking(False)
        yield mine, right


def test_an_interrupted_call_waits(loop, run, scripted):
    mine, right = scripted
    mine.script = [InterruptedError(), BlockingIOError()]
    right.send(b"data")
    assert run(asyncio.wait_for(loop.sock_recv(mine, 10), 50)) == b"data"
    assert mine.script == []


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_call_that_waited_may_end_the_run(loop, run, scripted, error):
    mine, right = scripted
    mine.script = [BlockingIOError(), error()]
    right.send(b"data")
    task = loop.create_task(loop.sock_recv(mine, 10))
    with pytest.raises(error):
        run(task)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        run(task)
    assert run(loop.sock_recv(mine, 10)) == b"data"


def test_a_future_that_refuses_the_outcome(loop, run, scripted, contexts):
    class Future(asyncio.Future):
        def set_result(self, result):
            raise LookupError(result)

    mine, right = scripted

    async def main():
        loop.create_future = lambda: Future(loop=loop)
        waiting = loop.create_task(loop.sock_recv(mine, 10))
        await asyncio.sleep(0)
        del loop.create_future
        right.send(b"data")
        await until(lambda: contexts)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(main())
    assert repr(contexts.take_one()["exception"]) == "LookupError(b'data')"


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_a_waiter_that_fails(loop, run, contexts, error):
    class Waiter:
        def cancelled(self):
            raise error

    left, right = socket.socketpair()
    left.setblocking(False)
    with right:
        transport = loop._make_socket_transport(left, asyncio.Protocol(), waiter=Waiter())
        if error is SystemExit:
            with pytest.raises(SystemExit):
                run(asyncio.sleep(0.001))
        else:
            run(asyncio.sleep(0.001))
            assert type(contexts.take_one()["exception"]) is LookupError
        # The one that was interrupted.
        run(asyncio.sleep(0.001))
        transport.abort()
        run(asyncio.sleep(0.001))


class Buffered(asyncio.BufferedProtocol):
    """What it is asked for a buffer calls asked(); `data` has what came."""

    def __init__(self):
        self.buffer = bytearray(10)
        self.data = b""
        self.asked = lambda: None
        self.lost = []

    def get_buffer(self, size):
        self.asked()
        return self.buffer

    def buffer_updated(self, count):
        self.data += self.buffer[:count]

    def connection_lost(self, error):
        self.lost.append(error)


@pytest.fixture
def buffered(loop, run):
    left, right = socket.socketpair()

    async def main():
        return await loop.create_connection(Buffered, sock=left)

    with right:
        transport, protocol = run(main())
        yield transport, protocol, right
        transport.abort()
        run(asyncio.sleep(0.001))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_get_buffer_may_end_the_run(loop, run, buffered, error):
    transport, protocol, peer = buffered

    def leave():
        del protocol.asked
        protocol.asked = lambda: None
        raise error

    async def received():
        await until(lambda: protocol.data)

    protocol.asked = leave
    peer.send(b"data")
    task = loop.create_task(received())
    with pytest.raises(error):
        run(task)
    run(task)
    assert protocol.data == b"data" and not transport.is_closing()


def test_get_buffer_may_pause_and_resume(loop, run, buffered):
    transport, protocol, peer = buffered

    def pause():
        transport.pause_reading()
        transport.resume_reading()

    async def main():
        for number in range(1, 4):
            peer.send(b"data")
            await until(lambda: protocol.data == b"data" * number)

    protocol.asked = pause
    run(main())
    assert not transport.is_closing()


@pytest.mark.fastloop_only("private to it")
def test_get_buffer_may_not_end_the_connection_at_once(loop, run, buffered, contexts):
    transport, protocol, peer = buffered
    protocol.asked = lambda: transport._call_connection_lost(None)
    peer.send(b"data")

    async def main():
        await until(lambda: protocol.lost)

    run(main())
    assert [type(error) for error in protocol.lost] == [RuntimeError]
    transport._call_connection_lost(None)
    assert len(protocol.lost) == 1
    assert type(contexts.take_one()["exception"]) is RuntimeError


@pytest.mark.fastloop_only("the stock loop leaves the accepted socket to the collector")
def test_a_factory_that_switches_debug_mode_on_and_fails(loop, run, contexts):
    def factory():
        loop.set_debug(True)
        raise LookupError("no protocol")

    async def main():
        server = await loop.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await until(lambda: contexts)
        server.close()
        await server.wait_closed()

    loop.set_debug(False)
    run(main())
    loop.set_debug(False)
    assert contexts.take_one()["message"] == "Error on transport creation for incoming connection"


@pytest.mark.left_out(sys.version_info < (3, 12), reason="lines are joined, by a join() that refuses")
def test_a_line_with_gaps_ends_the_connection(loop, run, connected, contexts):
    transport, protocol, _ = connected
    transport.writelines([b"data", memoryview(b"abcd")[::2]])
    run(asyncio.sleep(0.001))
    assert [type(error) for error in protocol.lost] == [BufferError]
    assert type(contexts.take_one()["exception"]) is BufferError


def test_a_reader_whose_handle_is_cancelled(loop, run):
    left, right = socket.socketpair()
    calls = []
    with left, right:
        left.setblocking(False)
        for add, remove in ((loop._add_reader, loop.remove_reader), (loop._add_writer, loop.remove_writer)):
            handle = add(left, calls.append, 1)
            handle.cancel()
            right.send(b"data")
            run(asyncio.sleep(0.001))
            assert remove(left) is False
    assert calls == []


@pytest.mark.fastloop_only(reason="what the standard loop takes in later versions only")
def test_the_context_of_a_private_reader_and_writer(loop, run):
    left, right = socket.socketpair()
    variable = contextvars.ContextVar("variable", default="the loop's")
    context = contextvars.copy_context()
    context.run(variable.set, "its own")
    with left, right:
        left.setblocking(False)
        for add in (loop._add_reader, loop._add_writer):
            with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
                add(left, print, nonsense=1)
            with pytest.raises(TypeError, match="unexpected keyword argument 'fd'"):
                add(left, print, fd=left)
        for given, expected in (
            ({"context": context}, "its own"),
            ({"context": None}, "the loop's"),
            ({}, "the loop's"),
        ):
            seen = []
            loop._add_writer(left, lambda seen=seen: (seen.append(variable.get()), loop.remove_writer(left)), **given)
            loop._add_reader(left, lambda seen=seen: seen.append((variable.get(), left.recv(10))), **given)
            right.send(b"data")
            run(until(lambda seen=seen: len(seen) == 2))
            assert set(seen) == {expected, (expected, b"data")}
            loop.remove_reader(left)


@pytest.mark.parametrize("peername", [[], b"", ""], ids=repr)
def test_an_odd_name_of_the_peer(loop, run, peername):
    """Only whether there is one counts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(50)

        async def main():
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
            transport._extra["peername"] = peername
            transport.sendto(b"data", receiver.getsockname())
            transport.close()
            await asyncio.sleep(0)

        run(main())
        assert receiver.recv(100) == b"data"


def test_the_address_of_a_connected_endpoint(loop, run):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(50)

        async def main():
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=receiver.getsockname()
            )
            transport.sendto(b"1", transport._address)
            transport.sendto(b"2", receiver.getsockname())
            with pytest.raises(ValueError, match="Invalid address"):
                transport.sendto(b"3", ("127.0.0.1", 9))
            transport.close()
            await asyncio.sleep(0)

        run(main())
        assert [receiver.recv(100) for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    "family,address,errors",
    [
        (socket.AF_INET, ("127.0.0.1", 2**100), OverflowError),
        (socket.AF_INET, ("127.0.0.1", -1), OverflowError),
        (socket.AF_INET, ("127.0.0.1\0x", 9), (TypeError, ValueError)),
        (socket.AF_INET, ("\u00fc" * 70, 9), TypeError),
        (socket.AF_INET, (b"127.0.0.1\0x", 9), (TypeError, ValueError)),
        (socket.AF_INET, ("127.0.0.1", 9.0), TypeError),
        (socket.AF_INET6, ("::1\0", 9, 0, 0), (TypeError, ValueError)),
        (socket.AF_INET6, ("::1", 9, 2**21, 0), OverflowError),
    ],
    ids=ascii,
)
def test_addresses_that_cannot_be(loop, run, family, address, errors):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(errors):
            run(loop.sock_sendto(sock, b"data", address))
