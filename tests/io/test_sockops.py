"""The sock_* family: plain non-blocking sockets driven by the loop."""

import asyncio
import os
import socket
import ssl

import pytest

from helpers import Descriptor, free_port, small_buffers, socket_pair, turns, until

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
        await asyncio.sleep(0.001)
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
