"""loop.sendfile and loop.sock_sendfile: natively, by fallback, over TLS; offsets, counts, errors."""

import asyncio
import io
import socket

import pytest

from helpers import Connector, Peer, Recorder, socket_pair, turns, until

PLAIN = [name for name in Connector.ENDPOINTS if not name.startswith("tls")]
plain = pytest.mark.parametrize("connect", PLAIN, indirect=True)
tls = pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)
DATA = bytes(range(256)) * 4096 * 2


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with open(path, "rb") as opened:
        yield opened


@pytest.mark.parametrize(
    "offset, count",
    [
        (0, None),
        (0, 1000),
        (1000, None),
        (1000, 5000),
        (len(DATA) - 10, 1000),
        (len(DATA), None),
        (len(DATA) + 5, 10),
        (0, len(DATA) * 2),
    ],
)
def test_a_part_of_a_file_is_sent(connect, loop, run, file, offset, count):
    expected = DATA[offset:] if count is None else DATA[offset : offset + count]

    async def main():
        transport, protocol, peer = await connect()
        transport.write(b"before")
        receiving = asyncio.ensure_future(peer.recv_exactly(6 + len(expected) + 5))
        assert await loop.sendfile(transport, file, offset, count) == len(expected)
        assert not expected or file.tell() == offset + len(expected)
        transport.write(b"after")
        assert await receiving == b"before" + expected + b"after"
        # Reading was paused meanwhile and goes on.
        assert transport.is_reading()
        await peer.sendall(b"answer")
        await until(lambda: protocol.data == b"answer")

    run(main())


def test_the_backlog_goes_first(connect, loop, run, file):
    async def main():
        transport, _, peer = await connect(small=True)
        backlog = b"b" * 1_000_000
        transport.write(backlog)
        receiving = asyncio.ensure_future(peer.recv_exactly(len(backlog) + len(DATA)))
        assert await loop.sendfile(transport, file) == len(DATA)
        assert await receiving == backlog + DATA

    run(main())


@plain
def test_a_file_without_descriptor_takes_the_fallback(connect, loop, run):
    async def main():
        transport, _, peer = await connect()
        receiving = asyncio.ensure_future(peer.recv_exactly(len(DATA)))
        assert await loop.sendfile(transport, io.BytesIO(DATA)) == len(DATA)
        assert await receiving == DATA
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sendfile(transport, io.BytesIO(DATA), fallback=False)

    run(main())


@tls
def test_without_fallback_tls_refuses(connect, loop, run, file):
    async def main():
        transport, *_ = await connect()
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(transport, file, fallback=False)

    run(main())


@plain
def test_writing_meanwhile_is_refused(connect, loop, run, file):
    async def main():
        transport, _, peer = await connect(small=True)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(3)
        assert not sending.done()
        with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
            transport.write(b"in between")
        assert await peer.recv_exactly(len(DATA)) == DATA
        assert await sending == len(DATA)
        transport.write(b"after")
        assert await peer.recv_exactly(5) == b"after"

    run(main())


@plain
def test_wrong_arguments(connect, loop, run, file):
    async def main():
        transport, *_ = await connect()
        with open(file.name) as text:
            with pytest.raises(ValueError, match="file should be opened in binary mode"):
                await loop.sendfile(transport, text)
        for offset, count, error in (
            (-1, None, ValueError),
            (0.5, None, TypeError),
            (0, -5, ValueError),
            (0, 0.5, TypeError),
        ):
            with pytest.raises(error):
                await loop.sendfile(transport, file, offset, count)

    run(main())


def test_a_closing_transport_is_refused(connect, loop, run, file):
    async def main():
        transport, protocol, peer = await connect()
        transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(transport, file)
        await peer.leave()
        await until(lambda: protocol.lost)

    run(main())


@plain
def test_a_peer_that_goes_in_the_middle_is_an_error(connect, loop, run, file, guard):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: True), small=True)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(3)
        peer.reset()
        with pytest.raises(OSError):
            await sending
        transport.abort()
        await until(lambda: protocol.lost)

    run(main())


@plain
def test_closing_in_the_middle_ends_the_wait(connect, loop, run, file, guard):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.write(b"b" * 2_000_000)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(3)
        transport.abort()
        with pytest.raises(ConnectionError, match="Connection is closed by peer"):
            await sending
        await until(lambda: protocol.lost)

    run(main())


@plain
def test_a_cancelled_sendfile_lets_the_transport_live(connect, loop, run, file):
    async def main():
        transport, _, peer = await connect(small=True)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await asyncio.sleep(0.005)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not transport.is_closing()
        transport.write(b"the end")
        transport.close()
        received = await peer.recv_all()
        assert received.endswith(b"the end") and DATA.startswith(received[:-7])

    run(main())


# ---------------------------------------------------------------- sock_sendfile


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("opened", [True, False], ids=["native", "fallback"])
@pytest.mark.parametrize("offset, count", [(0, None), (1000, 50_000)])
def test_over_a_plain_socket(loop, run, file, kind, opened, offset, count):
    async def main():
        ours, theirs = socket_pair(kind)
        peer = Peer(theirs)
        expected = DATA[offset:] if count is None else DATA[offset : offset + count]
        receiving = asyncio.ensure_future(peer.recv_exactly(len(expected)))
        source = file if opened else io.BytesIO(DATA)
        assert await loop.sock_sendfile(ours, source, offset, count) == len(expected)
        assert await receiving == expected
        assert source.tell() == offset + len(expected)
        if not opened:
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await loop.sock_sendfile(ours, source, fallback=False)
        ours.close()
        peer.close()

    run(main())


def test_wrong_arguments_for_a_plain_socket(loop, run, file):
    async def main():
        ours, theirs = socket_pair("tcp")
        for offset, count, error in (
            (-1, None, ValueError),
            ("0", None, TypeError),
            (0, 0, ValueError),
            (0, "5", TypeError),
        ):
            with pytest.raises(error):
                await loop.sock_sendfile(ours, file, offset, count)
        with socket.socket(type=socket.SOCK_DGRAM) as datagram:
            datagram.setblocking(False)
            with pytest.raises(ValueError, match="only SOCK_STREAM type sockets are supported"):
                await loop.sock_sendfile(datagram, file)
        ours.close()
        theirs.close()

    run(main())


@pytest.mark.fastloop_only(reason="a KeyError, and the first one hangs, on the standard loop")
@plain
def test_a_second_sendfile_does_not_disturb_the_first(connect, loop, run, file, tmp_path):
    async def main():
        transport, protocol, peer = await connect(small=True)
        first = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(20)
        assert not first.done()
        other = tmp_path / "other"
        other.write_bytes(b"other")
        with open(other, "rb") as opened, pytest.raises(RuntimeError, match="Empty waiter is already set"):
            await loop.sendfile(transport, opened)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"intruder")
        assert await peer.recv_exactly(len(DATA)) == DATA
        assert await first == len(DATA)

    run(main())
