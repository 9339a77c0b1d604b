"""The sock_* family: plain non-blocking sockets driven by the loop."""

import array
import asyncio
import collections.abc
import contextlib
import errno
import gc
import inspect
import os
import select
import socket
import ssl
import warnings
from unittest import mock

import pytest

from helpers import LIST_LINKS, Descriptor, arrived, free_port, normalised, small_buffers, socket_pair, turns, until

pytestmark = pytest.mark.usefixtures("disabled")
MIB = 1024 * 1024


@pytest.fixture(params=["tcp", "unix"])
def pair(request):
    first, second = socket_pair(request.param)
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def datagrams():
    socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    yield socks
    for sock in socks:
        sock.close()


# ---------------------------------------------------------------- receiving


@pytest.mark.parametrize("early", [True, False], ids=["data is there", "data comes later"])
def test_sock_recv(loop, run, pair, early):
    async def main():
        first, second = pair
        if early:
            second.send(b"hello")
            await asyncio.sleep(0.001)
            assert await loop.sock_recv(first, 3) == b"hel"
            assert await loop.sock_recv(first, 100) == b"lo"
        else:
            task = asyncio.ensure_future(loop.sock_recv(first, 100))
            await turns(3)
            assert not task.done()
            second.send(b"hello")
            assert await task == b"hello"
        second.close()
        assert await loop.sock_recv(first, 100) == b""

    run(main())


@pytest.mark.parametrize(
    "make",
    [
        bytearray,
        lambda n: memoryview(bytearray(n)),
        lambda n: memoryview(bytearray(n + 5))[5:],
    ],
    ids=["bytearray", "memoryview", "slice"],
)
def test_sock_recv_into(loop, run, pair, make):
    async def main():
        first, second = pair
        buffer = make(10)
        task = asyncio.ensure_future(loop.sock_recv_into(first, buffer))
        await turns(2)
        second.send(b"hello world")
        assert await task == 10 and bytes(buffer) == b"hello worl"
        assert await loop.sock_recv_into(first, buffer) == 1 and bytes(buffer) == b"dello worl"

    run(main())


def test_sock_recvfrom_and_recvfrom_into(loop, run, datagrams):
    async def main():
        first, second = datagrams
        task = asyncio.ensure_future(loop.sock_recvfrom(first, 100))
        await turns(2)
        assert await loop.sock_sendto(second, b"hello", first.getsockname()) == 5
        assert await task == (b"hello", second.getsockname())
        buffer = bytearray(10)
        task = asyncio.ensure_future(loop.sock_recvfrom_into(first, buffer))
        await turns(2)
        await loop.sock_sendto(second, b"again", first.getsockname())
        assert await task == (5, second.getsockname()) and buffer[:5] == b"again"
        await loop.sock_sendto(second, b"a part of it", first.getsockname())
        assert await loop.sock_recvfrom_into(first, buffer, 6) == (6, second.getsockname())
        await loop.sock_sendto(second, b"", first.getsockname())
        assert await loop.sock_recvfrom(first, 10) == (b"", second.getsockname())

    run(main())


@pytest.mark.parametrize(
    "buffer,size",
    [(lambda: array.array("b", bytes(10)), 5), (lambda: bytearray(10), 5), (lambda: bytes(10), 5)]
    + [(lambda: memoryview(bytes(10)), 5), (lambda: bytearray(10), 11), (lambda: bytearray(10), -1), (list, 0)],
    ids=["array", "bytearray", "bytes", "read-only", "too long", "negative", "no buffer"],
)
def test_buffers_of_sock_recvfrom_into(loop, run, datagrams, buffer, size):
    """What the socket's own method would say."""
    receiver, sender = datagrams
    sender.sendto(b"data", receiver.getsockname())
    sender.sendto(b"data", receiver.getsockname())
    space, expected_space = buffer(), buffer()

    async def main():
        while not select.select([receiver], [], [], 1)[0]:
            pass
        try:
            expected = receiver.recvfrom_into(expected_space, size)
        except Exception as exc:
            with pytest.raises(type(exc)) as caught:
                await loop.sock_recvfrom_into(receiver, space, size)
            assert str(caught.value) == str(exc)
        else:
            assert await loop.sock_recvfrom_into(receiver, space, size) == expected
        assert space == expected_space

    run(main())


def test_datagrams_over_ipv6(loop, run):
    async def main():
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as first,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as second,
        ):
            for sock in (first, second):
                sock.setblocking(False)
                sock.bind(("::1", 0))
            waiting = asyncio.ensure_future(loop.sock_recvfrom(first, 100))
            await turns(2)
            assert await loop.sock_sendto(second, b"one", first.getsockname()) == 3
            assert await waiting == (b"one", second.getsockname())
            await loop.sock_sendto(first, b"two", second.getsockname())
            space = bytearray(5)
            assert await loop.sock_recvfrom_into(second, space) == (3, first.getsockname())
            assert space == b"two\0\0"

    run(main())


@pytest.mark.left_out(not hasattr(socket, "AF_NETLINK"), reason="Linux only")
def test_addresses_of_another_family(loop, run):
    """The kernel tells the first of its network links."""

    async def main():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            waiting = asyncio.ensure_future(loop.sock_recvfrom(sock, 100_000))
            await turns(2)
            assert await loop.sock_sendto(sock, LIST_LINKS, (0, 0)) == len(LIST_LINKS)
            data, address = await waiting
            assert len(data) > len(LIST_LINKS) and address == (0, 0)
            await loop.sock_sendto(sock, LIST_LINKS, (0, 0))
            size, address = await loop.sock_recvfrom_into(sock, bytearray(100_000))
            assert size > 0 and address == (0, 0)

    run(main())


def test_two_receivers_in_turn_get_consecutive_data(loop, run, pair):
    async def main():
        first, second = pair
        for i in range(100):
            second.send(b"%03d" % i)
        data = b""
        while len(data) < 300:
            data += await loop.sock_recv(first, 7)
        assert data == b"".join(b"%03d" % i for i in range(100))

    run(main())


# ---------------------------------------------------------------- sending


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_sock_sendall_sends_everything(loop, run, pair, wrap):
    async def main():
        first, second = pair
        small_buffers(first, second)
        data = os.urandom(4 * MIB)
        task = asyncio.ensure_future(loop.sock_sendall(first, wrap(data)))
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(second, MIB)
        assert await task is None
        assert received == data
        assert await loop.sock_sendall(first, b"") is None

    run(main())


def test_both_directions_at_once(loop, run, pair):
    async def receive(sock, count):
        total = 0
        while total < count:
            total += len(await loop.sock_recv(sock, MIB))
        return total

    async def main():
        first, second = pair
        small_buffers(first, second)
        results = await asyncio.gather(
            loop.sock_sendall(first, b"x" * 2 * MIB),
            loop.sock_sendall(second, b"y" * 3 * MIB),
            receive(first, 3 * MIB),
            receive(second, 2 * MIB),
        )
        assert results == [None, None, 3 * MIB, 2 * MIB]

    run(main())


# ---------------------------------------------------------------- connecting and accepting


def test_sock_connect_and_sock_accept(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            await turns(2)
            assert await loop.sock_connect(client, listener.getsockname()) is None
            accepted, address = await accepting
            assert address == client.getsockname() and accepted.gettimeout() == 0
            await loop.sock_sendall(client, b"hello")
            assert await loop.sock_recv(accepted, 10) == b"hello"
            accepted.close()

    run(main())


def test_sock_connect_resolves_names(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("localhost", listener.getsockname()[1]))
            assert client.getpeername() == listener.getsockname()

    run(main())


def test_sock_connect_to_a_unix_socket(loop, run, tmp_path):
    async def main():
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            client.setblocking(False)
            await loop.sock_connect(client, str(tmp_path / "s"))
            with pytest.raises(FileNotFoundError):
                await loop.sock_connect(client, str(tmp_path / "nothing"))

    run(main())


def test_a_refused_connection(loop, run):
    async def main():
        address = "127.0.0.1", free_port()
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError) as caught:
                await loop.sock_connect(client, address)
            assert str(caught.value) == f"[Errno 111] Connect call failed {address}"

    run(main())


def test_many_connections_are_accepted_one_by_one(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            listener.setblocking(False)
            clients = [socket.create_connection(listener.getsockname()) for _ in range(50)]
            accepted = [await loop.sock_accept(listener) for _ in range(50)]
            assert [address for _, address in accepted] == [client.getsockname() for client in clients]
            for sock in clients + [sock for sock, _ in accepted]:
                sock.close()

    run(main())


# ---------------------------------------------------------------- cancelling, closing, errors


@pytest.mark.parametrize("attempt", range(4))
def test_a_cancelled_receive_loses_nothing_and_may_be_followed_at_once(loop, run, pair, attempt):
    async def main():
        first, second = pair
        task = asyncio.ensure_future(loop.sock_recv(first, 10))
        await turns(attempt)
        task.cancel()
        again = asyncio.ensure_future(loop.sock_recv(first, 10))
        second.send(b"hello")
        assert await again == b"hello"
        assert task.cancelled() or task.done()
        # Nothing of the cancelled call is left on the descriptor.
        assert loop.remove_reader(first) is False

    run(main())


def test_a_cancelled_send_and_connect_leave_nothing_behind(loop, run, pair):
    async def main():
        first, _ = pair
        task = asyncio.ensure_future(loop.sock_sendall(first, b"x" * 8 * MIB))
        await asyncio.sleep(0.005)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await turns(2)
        assert loop.remove_writer(first) is False

    run(main())


def test_errors_of_the_socket_are_raised(loop, run):
    async def main():
        first, second = socket_pair("tcp")
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        task = asyncio.ensure_future(loop.sock_recv(first, 10))
        await turns(2)
        second.close()
        with pytest.raises(ConnectionResetError):
            await task
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(first, b"x")
        first.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await loop.sock_recv(first, 10)

    run(main())


def test_blocking_sockets_are_refused_in_debug_mode(loop, run):
    async def main():
        first, second = socket.socketpair()
        for call in (
            loop.sock_recv(first, 1),
            loop.sock_recv_into(first, bytearray(1)),
            loop.sock_recvfrom(first, 1),
            loop.sock_recvfrom_into(first, bytearray(1)),
            loop.sock_sendall(first, b"x"),
            loop.sock_sendto(first, b"x", ""),
            loop.sock_connect(first, ""),
            loop.sock_accept(first),
        ):
            with pytest.raises(ValueError, match="^the socket must be non-blocking$"):
                await call
        first.close()
        second.close()

    loop.set_debug(True)
    run(main())


def test_tls_sockets_are_refused(loop, run):
    async def main():
        first, second = socket.socketpair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        wrapped = context.wrap_socket(first, do_handshake_on_connect=False)
        wrapped.setblocking(False)
        for call in (
            loop.sock_recv(wrapped, 1),
            loop.sock_sendall(wrapped, b"x"),
            loop.sock_accept(wrapped),
            loop.sock_connect(wrapped, ("127.0.0.1", 1)),
        ):
            with pytest.raises(TypeError, match="^Socket cannot be of type SSLSocket$"):
                await call
        wrapped.close()
        second.close()

    run(main())


def test_sockets_of_transports_are_refused(loop, run, pair):
    async def main():
        first, _ = pair
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=first)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(first, 1)
        transport.close()
        await turns(3)

    run(main())


def test_the_calls_are_coroutines_that_try_at_once(loop, run, pair):
    """What can be done without waiting takes no turn of the loop."""

    async def main():
        first, second = pair
        second.send(b"hello")
        assert arrived(first)
        seen = []
        loop.call_soon(seen.append, "a turn went by")
        assert await loop.sock_recv(first, 10) == b"hello"
        await loop.sock_sendall(first, b"small")
        assert seen == []

    run(main())


def test_a_waiting_receive_keeps_an_idle_loop_alive_only_as_long_as_it_lasts(loop, run):
    first, second = socket_pair("unix")

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(first, 10), 0.01)

    run(main())
    descriptor = Descriptor(first.fileno())
    first.close()
    second.close()
    assert descriptor.gone
    run(turns(2))


def test_descriptors_reused_for_new_connections_do_not_mix_data(loop, run):
    """The numbers of closed sockets come back; each receive sees its own connection's data."""

    async def main():
        for i in range(100):
            first, second = socket_pair("unix")
            task = asyncio.ensure_future(loop.sock_recv(first, 10))
            await turns(1)
            if i % 3 == 0:
                task.cancel()
                await asyncio.wait([task])
            else:
                second.send(b"%d" % i)
                assert await task == b"%d" % i
            first.close()
            second.close()

    run(main())


def test_a_thousand_round_trips(loop, run, pair):
    async def echo(sock):
        while data := await loop.sock_recv(sock, 100):
            await loop.sock_sendall(sock, data)

    async def main():
        first, second = pair
        echoing = asyncio.ensure_future(echo(second))
        for i in range(1000):
            await loop.sock_sendall(first, b"%d" % i)
            assert await loop.sock_recv(first, 100) == b"%d" % i
        first.shutdown(socket.SHUT_WR)
        await until(echoing.done)

    run(main())


# ---------------------------------------------------------------- they are coroutines


def test_what_is_returned_behaves_as_a_coroutine(loop, run, pair):
    first, second = pair

    async def main():
        call = loop.sock_recv(first, 10)
        assert asyncio.iscoroutine(call) and inspect.isawaitable(call)
        assert isinstance(call, collections.abc.Coroutine)
        assert call.__name__ == "sock_recv" and call.__qualname__ == "BaseSelectorEventLoop.sock_recv"
        second.send(b"1234567")
        assert await call == b"1234567"
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await call
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            call.send(None)
        call.close()
        with pytest.raises(TypeError, match="can't send non-None value to a just-started coroutine"):
            (started := loop.sock_recv(first, 10)).send(1)
        started.close()
        with pytest.raises(ZeroDivisionError):
            loop.sock_recv(first, 10).throw(ZeroDivisionError())
        for wrong in (5, int):
            with pytest.raises(TypeError, match="^exceptions must be classes or instances deriving from BaseException"):
                (started := loop.sock_recv(first, 10)).throw(wrong)
            started.close()
        with pytest.raises(ZeroDivisionError, match="text"):
            with (
                warnings.catch_warnings(action="ignore")
                if hasattr(warnings, "deprecated")
                else contextlib.nullcontext()
            ):
                loop.sock_recv(first, 10).throw(ZeroDivisionError, ZeroDivisionError("text"))
        second.send(b"ab")
        one = loop.sock_recv(first, 1)
        with pytest.raises(StopIteration) as caught:
            one.send(None)
        assert caught.value.value == b"a"
        task = loop.create_task(loop.sock_recv(first, 1))
        assert "BaseSelectorEventLoop.sock_recv" in repr(task)
        assert await asyncio.gather(task, asyncio.sleep(0, 5)) == [b"b", 5]
        waiting = loop.create_task(loop.sock_recv(first, 1))
        await turns(2)
        assert waiting.get_stack() is not None and "sock_recv" in repr(waiting)
        second.send(b"c")
        assert await asyncio.wait_for(waiting, 10) == b"c"
        call = loop.sock_recv(first, 1)
        task = loop.create_task(call)
        await turns(2)
        with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
            await call
        task.cancel()
        await asyncio.wait([task])

    run(main())


def test_nothing_happens_before_it_is_awaited(loop, run, pair):
    async def main():
        first, second = pair
        second.send(b"hello")
        assert arrived(first)
        call = loop.sock_recv(first, 2)
        assert first.recv(3) == b"hel"
        assert await call == b"lo"

    run(main())


def test_a_call_that_is_never_awaited_warns(loop, run, pair):
    with pytest.warns(RuntimeWarning) as found:
        loop.sock_recv(pair[0], 10)
        gc.collect()
    assert [str(warning.message) for warning in found] == [
        "coroutine 'BaseSelectorEventLoop.sock_recv' was never awaited"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.sock_recv(pair[0], 10).close()


def test_close_while_it_waits(loop, run, pair):
    """What comes afterwards is for the next call."""

    async def main():
        first, second = pair
        call = loop.sock_recv(first, 10)
        waited_for = call.send(None)
        assert isinstance(waited_for, asyncio.Future)
        call.close()
        waited_for.cancel()
        await turns(2)
        second.send(b"hello")
        assert await loop.sock_recv(first, 10) == b"hello"

    run(main())


# ---------------------------------------------------------------- arguments and errors

CALLS = {
    "sock_recv": (10,),
    "sock_recv_into": (bytearray(10),),
    "sock_recvfrom": (10,),
    "sock_recvfrom_into": (bytearray(10),),
    "sock_sendall": (b"x",),
    "sock_sendto": (b"x", ("127.0.0.1", 9)),
    "sock_connect": (("127.0.0.1", 9),),
    "sock_accept": (),
}


async def ended(call):
    """How a call ends: the type and text of its exception, or its result."""
    try:
        return await call()
    except Exception as exc:
        return type(exc), normalised(str(exc))


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("when", ["before the call", "before it is awaited"])
def test_closed_sockets(loop, run, method, when):
    async def main():
        sock = socket.socket()
        sock.setblocking(False)
        if when == "before the call":
            sock.close()
            await getattr(loop, method)(sock, *CALLS[method])
        else:
            call = getattr(loop, method)(sock, *CALLS[method])
            sock.close()
            await call

    with pytest.raises(OSError) as caught:
        run(main())
    assert caught.value.errno == errno.EBADF


@pytest.mark.fastloop_only(reason="compares with the stock loop")
@pytest.mark.parametrize(
    "method, arguments",
    [
        ("sock_recv", (-1,)),
        ("sock_recv", ("x",)),
        ("sock_recv", (2**70,)),
        ("sock_recv", (2**31,)),
        ("sock_recv", (0,)),
        ("sock_recv", (True,)),
        ("sock_recv", ()),
        ("sock_recv", (1, 2)),
        ("sock_recv_into", (b"read-only",)),
        ("sock_recv_into", (memoryview(b"read-only"),)),
        ("sock_recv_into", (bytearray(),)),
        ("sock_recv_into", (array.array("I", [0] * 10),)),
        ("sock_recv_into", (memoryview(array.array("I", [0] * 10)),)),
        ("sock_recv_into", (memoryview(bytearray(10))[::2],)),
        ("sock_recv_into", (5,)),
        ("sock_recvfrom", (-1,)),
        ("sock_recvfrom", (None,)),
        ("sock_recvfrom_into", (bytearray(5), 6)),
        ("sock_recvfrom_into", (bytearray(5), -1)),
        ("sock_recvfrom_into", (bytearray(5), 0)),
        ("sock_recvfrom_into", (bytearray(5), "x")),
        ("sock_recvfrom_into", (bytearray(5), 3)),
        ("sock_sendall", ("text",)),
        ("sock_sendall", (None,)),
        ("sock_sendall", (memoryview(array.array("I", [1, 2])),)),
        ("sock_sendall", (memoryview(b"123456")[::2],)),
        ("sock_sendall", (b"",)),
        ("sock_sendto", ("text", ("127.0.0.1", 9))),
        ("sock_sendto", (b"x", None)),
        ("sock_sendto", (b"x", ("127.0.0.1", 70_000))),
        ("sock_sendto", (b"x", ("127.0.0.1",))),
        ("sock_sendto", (b"x", ("127.0.0.1", 9, 0, 0))),
        ("sock_sendto", (b"x" * 100_000, ("127.0.0.1", 9))),
        ("sock_sendto", (b"", ("127.0.0.1", 9))),
        ("sock_connect", (None,)),
        ("sock_connect", (("127.0.0.1",),)),
        ("sock_connect", (("127.0.0.1", 70_000),)),
        ("sock_connect", (("127.0.0.1", "x"),)),
        ("sock_connect", (("::1", 9, 0, 0),)),
        ("sock_accept", ()),
        ("sock_accept", (1,)),
    ],
)
def test_arguments_as_on_the_stock_loop(loop_factory, method, arguments):
    def outcome(loop):
        async def main():
            with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as other:
                for each in (sock, other):
                    each.bind(("127.0.0.1", 0))
                    each.setblocking(False)
                other.sendto(b"datagram", sock.getsockname())
                await asyncio.sleep(0.001)
                result = await ended(lambda: getattr(loop, method)(sock, *arguments))
                return normalised(repr(result).replace(repr(other.getsockname()), "other"))

        with contextlib.closing(loop):
            return loop.run_until_complete(main())

    assert outcome(loop_factory()) == outcome(asyncio.SelectorEventLoop())


def test_keywords(loop, run, pair):
    async def main():
        first, second = pair
        await loop.sock_sendall(sock=second, data=b"hello")
        assert await loop.sock_recv(sock=first, n=3) == b"hel"
        buffer = bytearray(5)
        assert await loop.sock_recv_into(first, buf=buffer) == 2

    run(main())


@pytest.mark.usefixtures("debug_off")
def test_a_socket_with_a_timeout_blocks_as_on_the_stock_loop(loop, run, pair):
    first, second = pair
    first.settimeout(0.01)

    async def main():
        with pytest.raises(TimeoutError):
            await loop.sock_recv(first, 10)
        second.send(b"hello")
        assert await loop.sock_recv(first, 10) == b"hello"

    run(main())


def test_the_end_of_the_other_side_ends_the_waits(loop, run, pair):
    async def main():
        first, second = pair
        small_buffers(first, second)
        reading = loop.create_task(loop.sock_recv(first, 10))
        writing = loop.create_task(loop.sock_sendall(first, b"x" * 8 * MIB))
        await turns(5)
        assert not reading.done() and not writing.done()
        second.close()
        with pytest.raises(ConnectionError):
            await writing
        with contextlib.suppress(ConnectionError):
            assert await reading == b""

    run(main())


# ---------------------------------------------------------------- one descriptor, many users


def test_reading_and_writing_wait_at_once_many_times(loop, run, pair):
    async def main():
        first, second = pair
        small_buffers(first, second)

        async def read(sock, size):
            data = bytearray()
            while len(data) < size:
                data += await loop.sock_recv(sock, 30_000)
            return bytes(data)

        sent = [bytes([i]) * MIB for i in range(4)]
        for data in sent:
            results = await asyncio.gather(
                loop.sock_sendall(first, data),
                loop.sock_sendall(second, data),
                read(first, MIB),
                read(second, MIB),
            )
            assert results == [None, None, data, data]

    run(main())


def test_add_reader_after_a_call_is_level_triggered(loop, run, pair):
    async def main():
        first, second = pair
        task = loop.create_task(loop.sock_recv(first, 10))
        await turns(2)
        second.send(b"1")
        assert await task == b"1"
        seen = []
        loop.add_reader(first, seen.append, "readable")
        loop.add_writer(first, seen.append, "writable")
        await until(lambda: "writable" in seen)
        assert "readable" not in seen
        assert loop.remove_writer(first)
        second.send(b"2")
        await until(lambda: seen.count("readable") > 5)
        assert loop.remove_reader(first) and not loop.remove_reader(first)
        count = len(seen)
        await turns(5)
        assert len(seen) == count
        assert await loop.sock_recv(first, 10) == b"2"

    run(main())


def test_a_writer_of_the_user_and_a_call_that_reads(loop, run, pair):
    async def main():
        first, second = pair
        seen = []
        loop.add_writer(first, seen.append, 1)
        for data in (b"1", b"2", b"3"):
            task = loop.create_task(loop.sock_recv(first, 10))
            await turns(3)
            assert not task.done()
            second.send(data)
            assert await task == data
        assert seen
        assert loop.remove_writer(first) is True
        task = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        second.send(b"4")
        assert await task == b"4"

    run(main())


def test_a_call_takes_the_place_of_a_reader_and_a_reader_that_of_a_call(loop, run, pair):
    async def main():
        first, second = pair
        seen = []
        loop.add_reader(first, seen.append, "first reader")
        task = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        second.send(b"1")
        assert await task == b"1" and seen == []
        await turns(2)
        assert loop.remove_reader(first) is False
        task = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        loop.add_reader(first, seen.append, "second reader")
        second.send(b"2")
        await until(lambda: "second reader" in seen)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await turns(2)
        assert loop.remove_reader(first) is True
        assert await loop.sock_recv(first, 10) == b"2"

    run(main())


def test_remove_reader_ends_no_call_but_its_wait(loop, run, pair):
    async def main():
        first, second = pair
        task = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        assert loop.remove_reader(first) is True
        second.send(b"1")
        await turns(5)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        assert await loop.sock_recv(first, 10) == b"1"
        again = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        second.send(b"2")
        assert await again == b"2"

    run(main())


def test_the_later_one_of_two_readers_gets_the_data(loop, run, pair):
    async def main():
        first, second = pair
        tasks = [loop.create_task(loop.sock_recv(first, 10)) for _ in range(2)]
        await turns(3)
        second.send(b"1")
        assert await tasks[1] == b"1"
        second.send(b"2")
        await turns(5)
        assert not tasks[0].done()
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert await loop.sock_recv(first, 10) == b"2"

    run(main())


def test_a_number_that_is_used_again(loop, run):
    """By a socket, a pipe with add_reader(), a transport: each is watched, and no data is mixed up."""

    async def wait_once(sock, other):
        task = loop.create_task(loop.sock_recv(sock, 10))
        await turns(3)
        other.send(b"hello")
        assert await task == b"hello"

    async def main():
        first, second = socket_pair("unix")
        number = first.fileno()
        await wait_once(first, second)
        first.close()
        second.close()
        for kind in ("tcp", "unix"):
            pair = socket_pair(kind)
            await wait_once(*pair)
            await wait_once(*reversed(pair))
            for sock in pair:
                sock.close()
        reading, writing = os.pipe()
        try:
            seen = []
            loop.add_reader(reading, seen.append, 1)
            await turns(3)
            assert not seen
            os.write(writing, b"x")
            await until(lambda: len(seen) > 3)
            loop.remove_reader(reading)
        finally:
            os.close(reading)
            os.close(writing)
        first, second = socket_pair("unix")
        assert number in (first.fileno(), second.fileno(), reading, writing)
        await wait_once(first, second)
        reader, writer = await asyncio.open_unix_connection(sock=first)
        second.send(b"for the stream")
        assert await reader.read(100) == b"for the stream"
        writer.close()
        await writer.wait_closed()
        second.close()

    run(main())


def test_a_duplicate_that_stays_open(loop, run, pair):
    """The kernel goes on watching it for the number that was closed."""

    async def main():
        first, second = pair
        task = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        second.send(b"1")
        assert await task == b"1"
        with first.dup() as copy:
            first.close()
            others = socket_pair("unix")
            second.send(b"2")
            for _ in range(3):
                task = loop.create_task(loop.sock_recv(others[0], 10))
                await turns(3)
                assert not task.done()
                others[1].send(b"hello")
                assert await task == b"hello"
            assert await loop.sock_recv(copy, 10) == b"2"
            for sock in others:
                sock.close()

    run(main())


def test_another_object_for_the_same_descriptor(loop, run, pair):
    async def main():
        first, second = pair
        for data in (b"1", b"2", b"3"):
            task = loop.create_task(loop.sock_recv(first, 10))
            await turns(3)
            second.send(data)
            assert await task == data
            first = socket.socket(fileno=first.detach())
            first.setblocking(False)
        first.close()

    run(main())


@pytest.mark.fastloop_only(reason="the stock loop never ends such a wait")
@pytest.mark.usefixtures("debug_off")
def test_a_wait_on_a_closed_socket_ends_when_its_number_is_waited_for_again(loop, run, disabled):
    if disabled == "sockets":
        return

    async def main():
        first, second = socket_pair("unix")
        stale = loop.create_task(loop.sock_recv(first, 10))
        await turns(3)
        number = first.fileno()
        first.close()
        second.close()
        first, second = socket_pair("unix")
        waiting = [loop.create_task(loop.sock_recv(sock, 10)) for sock in (first, second)]
        assert number in (first.fileno(), second.fileno())
        with pytest.raises(OSError) as caught:
            await stale
        assert caught.value.errno == errno.EBADF
        first.send(b"1")
        second.send(b"2")
        assert await asyncio.gather(*waiting) == [b"2", b"1"]
        first.close()
        second.close()

    run(main())


def test_a_socket_that_connected_becomes_a_transport(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
            other = listener.accept()[0]
            task = loop.create_task(loop.sock_recv(sock, 10))
            await turns(3)
            other.send(b"1")
            assert await task == b"1"
            reader, writer = await asyncio.open_connection(sock=sock)
            for i in range(10):
                other.send(b"%d" % i)
                assert await reader.read(10) == b"%d" % i
            with pytest.raises(RuntimeError, match="is used by transport"):
                await loop.sock_recv(sock, 10)
            writer.close()
            await writer.wait_closed()
            other.close()

    run(main())


# ---------------------------------------------------------------- what is not plain


def test_replaced_methods_of_sockets_are_called(loop, run, pair):
    async def main():
        first, second = pair
        for _ in range(2):
            with mock.patch.object(socket.socket, "recv", return_value=b"made up"):
                assert await loop.sock_recv(first, 10) == b"made up"
            second.send(b"real")
            assert await loop.sock_recv(first, 10) == b"real"
            with mock.patch.object(socket.socket, "send", return_value=1):
                await loop.sock_sendall(first, b"x")
            await loop.sock_sendall(first, b"y")
            assert await loop.sock_recv(second, 10) == b"y"

    run(main())


def test_a_socket_of_another_class(loop, run, pair):
    class Shouting(socket.socket):
        def recv(self, size):
            return super().recv(size).upper()

    async def main():
        first, second = pair
        sock = Shouting(fileno=first.detach())
        sock.setblocking(False)
        task = loop.create_task(loop.sock_recv(sock, 10))
        await turns(3)
        second.send(b"hello")
        assert await task == b"HELLO"
        sock.close()

    run(main())


def test_a_replaced_create_future_is_honoured(loop, run, pair):
    async def main():
        first, second = pair
        made = []

        def create_future():
            made.append(asyncio.Future(loop=loop))
            return made[-1]

        with mock.patch.object(loop, "create_future", create_future):
            task = loop.create_task(loop.sock_recv(first, 10))
            await turns(3)
        assert len(made) == 1
        second.send(b"hello")
        assert await task == b"hello"

    run(main())


def test_a_create_future_that_resumes_the_call(loop, run, pair):
    first, second = pair

    async def main():
        call = loop.sock_recv(first, 10)
        original = loop.create_future

        def create_future():
            for resume in (lambda: call.send(None), lambda: call.throw(KeyError()), call.close):
                with pytest.raises(ValueError, match="^coroutine already executing$"):
                    resume()
            asked.append(1)
            return original()

        asked = []
        with mock.patch.object(loop, "create_future", create_future):
            loop.call_soon(second.send, b"data")
            assert await call == b"data"
        assert asked == [1]

    run(main())


@pytest.mark.parametrize("error", [InterruptedError, BlockingIOError, ConnectionAbortedError])
def test_errors_of_a_replaced_accept(loop, run, monkeypatch, error):
    """Two of them mean: not yet."""
    accept = socket.socket.accept

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            server.setblocking(False)

            def fails_once(sock):
                monkeypatch.setattr(socket.socket, "accept", accept)
                raise error("once")

            monkeypatch.setattr(socket.socket, "accept", fails_once)
            waiting = asyncio.ensure_future(loop.sock_accept(server))
            await turns(3)
            client.connect(server.getsockname())
            if error is ConnectionAbortedError:
                with pytest.raises(ConnectionAbortedError, match="once"):
                    await waiting
            else:
                accepted, _ = await waiting
                accepted.close()

    run(main())


# ---------------------------------------------------------------- sizes and buffers


@pytest.mark.parametrize("size", [1, 1000, 256 * 1024, 256 * 1024 + 1, 3 * MIB])
def test_sizes_of_receives(loop, run, pair, size):
    async def main():
        first, second = pair
        data = bytes(range(256)) * 4096
        sending = loop.create_task(loop.sock_sendall(second, data))
        received = bytearray()
        while len(received) < len(data):
            part = await loop.sock_recv(first, size)
            assert 0 < len(part) <= size
            received += part if size > 1 else part + await loop.sock_recv(first, 65536)
        assert received == data
        await sending

    run(main())


def test_a_bytearray_cannot_change_its_size_while_it_is_sent(loop, run, pair):
    async def main():
        first, second = pair
        small_buffers(first, second)
        data = bytearray(b"x" * 4 * MIB)
        task = loop.create_task(loop.sock_sendall(first, data))
        await turns(3)
        assert not task.done()
        with pytest.raises(BufferError):
            data.append(1)
        count = 0
        while count < 4 * MIB:
            count += len(await loop.sock_recv(second, MIB))
        await task
        task = None
        data.append(1)

    run(main())


def test_other_callbacks_run_while_a_quick_reader_takes_everything(loop, run, pair):
    async def main():
        first, second = pair
        second.setblocking(True)
        received = 0
        ticks = 0

        def read():
            nonlocal received
            while received < 16 * MIB:
                received += len(second.recv(MIB))

        def tick():
            nonlocal ticks
            ticks += 1
            if received < 16 * MIB:
                loop.call_soon(tick)

        reading = loop.run_in_executor(None, read)
        tick()
        await loop.sock_sendall(first, b"x" * 16 * MIB)
        await reading
        assert received == 16 * MIB and ticks > 1
        await loop.shutdown_default_executor()
        await turns(2)

    run(main())


def test_datagrams_between_unconnected_sockets(loop, run, datagrams):
    async def main():
        first, second = datagrams
        name = ("localhost", first.getsockname()[1])
        assert await loop.sock_sendto(second, b"by name", name) == 7
        assert await loop.sock_recvfrom(first, 3) == (b"by ", second.getsockname())
        assert await loop.sock_sendto(second, memoryview(b"a view"), first.getsockname()) == 6
        assert await loop.sock_recv(first, 100) == b"a view"
        assert await loop.sock_sendto(second, b"", first.getsockname()) == 0
        buffer = bytearray(10)
        assert await loop.sock_recvfrom_into(first, buffer) == (0, second.getsockname())
        await loop.sock_connect(first, ("127.0.0.1", free_port()))
        await loop.sock_sendall(first, b"refused")
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_recv(first, 10)

    run(main())


def test_accepted_sockets_do_not_block_and_a_cancelled_accept_loses_none(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            task = loop.create_task(loop.sock_accept(listener))
            await turns(3)
            with socket.create_connection(listener.getsockname()) as client:
                task.cancel()
                await asyncio.wait([task])
                sock, sender = await loop.sock_accept(listener)
                assert sender == client.getsockname() and sock.gettimeout() == 0
                sock.close()

    run(main())


def test_a_loop_closed_while_calls_wait(loop_factory, pair, guard):
    loop = loop_factory()
    first, second = pair
    call = loop.sock_recv(first, 10)
    future = loop.run_until_complete(started(call))
    loop.close()
    second.send(b"hello")
    assert not future.done()
    call.close()
    assert first.recv(10) == b"hello"


async def started(call):
    return call.send(None)


def test_a_call_that_has_ended_takes_nothing_more(loop, run, pair):
    async def main():
        first, second = pair
        second.send(b"hello")
        call = loop.sock_recv(first, 10)
        assert await call == b"hello"
        assert call.close() is None
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            call.send(None)
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            call.throw(ValueError("too late"))
        assert call.close() is None

    run(main())


# ---------------------------------------------------------------- what happens between the call and the wait


def test_a_call_of_a_loop_that_was_closed(loop_factory):
    """What is there is received, by whoever awaits it."""
    first, second = socket_pair("unix")
    second.send(b"x")
    old, new = loop_factory(), loop_factory()
    call = old.sock_recv(first, 10)
    old.close()

    async def main():
        return await call

    assert new.run_until_complete(main()) == b"x"
    new.close()
    first.close()
    second.close()


@pytest.mark.fastloop_only(reason="the standard loop blocks")
@pytest.mark.left_out(lambda disabled, **_: disabled == "sockets", reason="the standard code blocks")
@pytest.mark.usefixtures("debug_off")
def test_a_socket_made_blocking_after_the_call(loop, run, pair, disabled):
    async def main():
        first, second = pair
        call = loop.sock_recv(first, 10)
        first.setblocking(True)
        task = asyncio.ensure_future(call)
        # A call that blocks would let nobody send.
        loop.call_later(0.01, second.send, b"x")
        assert await task == b"x"
        first.setblocking(False)

    run(main())


def test_another_socket_under_the_same_number(loop, run, pair):
    """dup2() puts another connection under the very object that was waited for."""

    async def main():
        first, second = pair
        loop.call_later(0.001, second.send, b"x")
        assert await loop.sock_recv(first, 10) == b"x"
        third, fourth = socket_pair("unix")
        os.dup2(third.fileno(), first.fileno())
        third.close()
        loop.call_later(0.001, fourth.send, b"y")
        assert await loop.sock_recv(first, 10) == b"y"
        fourth.close()

    run(main())


def test_a_duplicate_that_stays_open_tells_nobody(loop, run):
    """As in a child of a fork: the kernel goes on reporting the closed socket under its number."""

    async def main():
        first, second = socket_pair("unix")
        loop.call_later(0.001, second.send, b"x")
        assert await loop.sock_recv(first, 10) == b"x"
        duplicate = first.dup()
        number = first.fileno()
        first.close()
        quiet, silent = socket_pair("unix")
        assert quiet.fileno() == number
        called = []
        loop.add_reader(quiet, called.append, "?")
        for _ in range(5):
            second.send(b"y")
            await asyncio.sleep(0.001)
        loop.remove_reader(quiet)
        assert called == []
        for sock in (duplicate, second, quiet, silent):
            sock.close()

    run(main())
