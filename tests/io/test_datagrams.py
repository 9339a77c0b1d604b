"""Datagram endpoints: UDP and Unix, connected and not, errors, options."""

import asyncio
import errno
import socket
import sys

import pytest

from helpers import DatagramRecorder, free_port, turns, until


@pytest.fixture
def endpoint(loop, run):
    """Open endpoints that are closed at the end: await endpoint(**options) gives (transport, protocol)."""
    opened = []

    async def make(**options):
        transport, protocol = await loop.create_datagram_endpoint(DatagramRecorder, **options)
        opened.append((transport, protocol))
        return transport, protocol

    async def finish():
        for transport, _ in opened:
            transport.abort()
        await until(lambda: all(protocol.lost for _, protocol in opened))

    yield make
    run(finish())


LOCAL = {"local_addr": ("127.0.0.1", 0)}


def address(transport):
    return transport.get_extra_info("sockname")


def test_datagrams_arrive_with_their_address(run, endpoint):
    async def main():
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        # On 3.11 the stock loop's is no DatagramTransport.
        assert isinstance(first, asyncio.DatagramTransport) or sys.version_info < (3, 12)
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), b"x" * 60_000):
            assert first.sendto(data, address(second)) is None
        await until(lambda: len(received.received) == 4)
        assert received.received == [
            (bytes(data), address(first)) for data in (b"bytes", b"bytearray", b"view", b"x" * 60_000)
        ]
        assert received.events == ["connection_made"]

    run(main())


def test_connected_endpoints_talk_without_addresses(run, endpoint):
    async def main():
        server, received = await endpoint(**LOCAL)
        client, answers = await endpoint(remote_addr=address(server))
        assert client.get_extra_info("peername") == address(server)
        client.sendto(b"one")
        client.sendto(b"two", None)
        client.sendto(b"three", address(server))
        await until(lambda: len(received.received) == 3)
        with pytest.raises(ValueError, match="Invalid address: must be None or"):
            client.sendto(b"x", ("127.0.0.1", 1))
        server.sendto(b"answer", address(client))
        await until(lambda: answers.received)
        assert answers.received == [(b"answer", address(server))]

    run(main())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_names_of_hosts_are_resolved_for_the_remote_address(run, endpoint, host):
    async def main():
        server, received = await endpoint(**LOCAL)
        client, _ = await endpoint(remote_addr=(host, address(server)[1]), family=socket.AF_INET)
        client.sendto(b"hello")
        await until(lambda: received.received)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before 3.13 an empty datagram is not sent")
def test_an_empty_datagram(run, endpoint):
    async def main():
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        first.sendto(b"", address(second))
        await until(lambda: received.received)
        assert received.received == [(b"", address(first))]

    run(main())


def test_a_refused_datagram_is_an_error_and_no_end(run, endpoint):
    async def main():
        client, protocol = await endpoint(remote_addr=("127.0.0.1", free_port()))
        for _ in range(3):
            client.sendto(b"x")
            await asyncio.sleep(0.002)
        await until(lambda: protocol.errors)
        assert all(type(error) is ConnectionRefusedError for error in protocol.errors)
        assert not client.is_closing() and not protocol.lost

    run(main())


def test_a_datagram_that_is_too_large_is_an_error_and_no_end(run, endpoint):
    async def main():
        first, protocol = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        first.sendto(b"x" * 70_000, address(second))
        await until(lambda: protocol.errors)
        assert protocol.errors[0].errno == errno.EMSGSIZE
        first.sendto(b"fits", address(second))
        await until(lambda: received.received)

    run(main())


@pytest.mark.parametrize("data", [None, "text", 5])
def test_what_cannot_be_sent(run, endpoint, data):
    async def main():
        transport, _ = await endpoint(**LOCAL)
        with pytest.raises(TypeError, match=f"data argument must be a bytes-like object, not '{type(data).__name__}'"):
            transport.sendto(data, ("127.0.0.1", 1))

    run(main())


def test_close_and_abort(run, endpoint):
    async def main():
        for method in ("close", "abort"):
            transport, protocol = await endpoint(**LOCAL)
            number = transport.get_extra_info("socket").fileno()
            assert not transport.is_closing()
            getattr(transport, method)()
            assert transport.is_closing() and not protocol.lost
            await until(lambda p=protocol: p.lost)
            assert protocol.events == ["connection_made", "connection_lost"]
            await turns(2)
            assert number != transport.get_extra_info("socket").fileno()

    run(main())


def test_many_datagrams_in_order(run, endpoint):
    async def main():
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        for i in range(2000):
            first.sendto(b"%d" % i, address(second))
            if i % 50 == 0:
                await until(lambda i=i: len(received.received) >= i)
        await until(lambda: len(received.received) == 2000)
        assert [data for data, _ in received.received] == [b"%d" % i for i in range(2000)]

    run(main())


def test_unix_datagrams(loop, run, endpoint, tmp_path):
    async def main():
        first, _ = await endpoint(local_addr=str(tmp_path / "a"), family=socket.AF_UNIX)
        second, received = await endpoint(local_addr=str(tmp_path / "b"), family=socket.AF_UNIX)
        first.sendto(b"hello", str(tmp_path / "b"))
        await until(lambda: received.received)
        assert received.received == [(b"hello", str(tmp_path / "a"))]

    run(main())


def test_unix_datagrams_are_held_back_when_the_queue_is_full(loop, run, endpoint, tmp_path):
    """A Unix socket's queue holds few datagrams: the rest waits, pauses the writer and arrives in order."""

    async def main():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
            slow.bind(str(tmp_path / "slow"))
            slow.setblocking(False)
            sender, protocol = await endpoint(remote_addr=str(tmp_path / "slow"), family=socket.AF_UNIX)
            sender.set_write_buffer_limits(40_000)
            for i in range(500):
                sender.sendto(b"%04d" % i + b"x" * 996)
            assert sender.get_write_buffer_size() > 40_000
            assert protocol.events == ["connection_made", "pause_writing"]
            received = []
            while len(received) < 500:
                try:
                    received.append(slow.recv(2000)[:4])
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            assert received == [b"%04d" % i for i in range(500)]
            await until(lambda: protocol.events[-1] == "resume_writing")

    run(main())


def test_a_socket_of_ones_own(loop, run, endpoint):
    async def main():
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        transport, protocol = await endpoint(sock=sock)
        assert address(transport) == sock.getsockname()
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.sendto(b"hello", sock.getsockname())
            await until(lambda: protocol.received)

    run(main())


def test_broadcast_and_reuse_port(run, endpoint):
    async def main():
        transport, _ = await endpoint(**LOCAL, allow_broadcast=True, reuse_port=True)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1

    run(main())


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "unexpected address family"),
        (
            {"sock": True, "local_addr": ("127.0.0.1", 0)},
            "socket modifier keyword arguments can not be used when sock is",
        ),
        (
            {"sock": "stream"},
            "Socket was expected, got" if sys.version_info < (3, 13) else "datagram socket was expected",
        ),
    ],
)
def test_wrong_arguments(loop, run, options, message):
    kind = socket.SOCK_STREAM if options.get("sock") == "stream" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises(ValueError, match=message):
            run(loop.create_datagram_endpoint(DatagramRecorder, **options))
