"""asyncio's streams on the loop: StreamReader, StreamWriter, servers and clients over TCP, Unix and TLS."""

import asyncio
import contextlib
import gc
import random

import pytest

from helpers import Connector, socket_pair, turns, until

KINDS = ["tcp", "unix", "tls"]
MIB = 1024 * 1024


@pytest.fixture(params=KINDS)
def streams(request, loop, tmp_path, authority):
    """An asynchronous context manager: serve a handler, connect to it, yield the client's (reader, writer)."""

    @contextlib.asynccontextmanager
    async def opened(handler, **options):
        failures = []

        async def guarded(reader, writer):
            try:
                await handler(reader, writer)
            except BaseException as exc:
                failures.append(exc)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                ended.set()

        ended = asyncio.Event()
        if request.param == "unix":
            server = await asyncio.start_unix_server(guarded, tmp_path / "s", **options)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s", **options)
        else:
            tls = request.param == "tls"
            server = await asyncio.start_server(
                guarded, "127.0.0.1", 0, ssl=authority.server if tls else None, **options
            )
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(), ssl=authority.client if tls else None, **options
            )
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await ended.wait()
            server.close()
            await server.wait_closed()
        if failures:
            raise failures[0]

    opened.kind = request.param
    return opened


def line(i):
    return b"line %d\n" % i


# ---------------------------------------------------------------- reading


def test_echo(streams, run):
    async def echo(reader, writer):
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()

    async def main():
        async with streams(echo) as (reader, writer):
            for size in (1, 10, 1000, 100_000):
                message = random.randbytes(size)
                writer.write(message)
                await writer.drain()
                assert await reader.readexactly(size) == message

    run(main())


def test_the_ways_to_read(streams, run):
    async def send(reader, writer):
        writer.write(b"first line\nsecond|third;exactly tenREST of it")

    async def main():
        async with streams(send) as (reader, _):
            assert await reader.readline() == b"first line\n"
            assert await reader.readuntil(b"|") == b"second|"
            assert await reader.readuntil(b";") == b"third;"
            assert await reader.readexactly(11) == b"exactly ten"
            assert await reader.readexactly(0) == b""
            assert await reader.read(0) == b""
            assert await reader.read(4) == b"REST"
            assert await reader.read() == b" of it"
            assert reader.at_eof()
            assert await reader.read() == await reader.read(5) == await reader.readline() == b""

    run(main())


def test_iteration_gives_lines(streams, run):
    async def send(reader, writer):
        for i in range(500):
            writer.write(line(i))
            if i % 100 == 0:
                await asyncio.sleep(0.001)
        writer.write(b"no newline at the end")

    async def main():
        async with streams(send) as (reader, _):
            lines = [part async for part in reader]
        assert lines == [line(i) for i in range(500)] + [b"no newline at the end"]

    run(main())


def test_lines_that_arrive_in_pieces(streams, run):
    async def send(reader, writer):
        for piece in (b"a", b"b", b"c\nd", b"\n", b"\n", b"e\nf\ng"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)

    async def main():
        async with streams(send) as (reader, _):
            assert [part async for part in reader] == [b"abc\n", b"d\n", b"\n", b"e\n", b"f\n", b"g"]

    run(main())


def test_an_early_end_is_an_incomplete_read(streams, run):
    async def send(reader, writer):
        writer.write(b"short")

    async def main():
        async with streams(send) as (reader, _):
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await reader.readexactly(100)
            assert caught.value.partial == b"short" and caught.value.expected == 100
        async with streams(send) as (reader, _):
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await reader.readuntil(b"\n")
            assert caught.value.partial == b"short" and caught.value.expected is None

    run(main())


def test_lines_over_the_limit(streams, run):
    async def send(reader, writer):
        writer.write(b"x" * 5000 + b"\nshort\n")

    async def main():
        async with streams(send, limit=1000) as (reader, _):
            with pytest.raises(ValueError, match="limit"):
                await reader.readline()
            assert (await reader.read()).endswith(b"short\n")

    run(main())


def test_until_over_the_limit_leaves_the_data(streams, run):
    async def send(reader, writer):
        writer.write(b"x" * 500 + b"|rest")

    async def main():
        async with streams(send, limit=100) as (reader, _):
            await until(lambda: len(reader._buffer) == 505)
            with pytest.raises(asyncio.LimitOverrunError) as caught:
                await reader.readuntil(b"|")
            assert caught.value.consumed == 500
            assert await reader.read(1000) == b"x" * 500 + b"|rest"

    run(main())


def test_wrong_arguments(streams, run):
    async def send(reader, writer):
        writer.write(b"data")

    async def main():
        async with streams(send) as (reader, _):
            with pytest.raises(ValueError, match="readexactly size can not be less than zero"):
                await reader.readexactly(-1)
            with pytest.raises(ValueError, match="Separator should be at least one-byte string"):
                await reader.readuntil(b"")
            assert await reader.read(-1) == b"data"

    run(main())


def test_two_readers_at_once_are_refused(streams, run):
    async def send(reader, writer):
        await reader.read(1)
        writer.write(b"data")

    async def main():
        async with streams(send) as (reader, writer):
            first = asyncio.ensure_future(reader.read(10))
            await turns(2)
            with pytest.raises(RuntimeError, match="called while another coroutine is already waiting for incoming"):
                await reader.read(10)
            writer.write(b"x")
            assert await first == b"data"

    run(main())


def test_a_cancelled_read_loses_nothing(streams, run):
    async def send(reader, writer):
        while await reader.read(1):
            writer.write(b"data")

    async def main():
        async with streams(send) as (reader, writer):
            for attempt in range(20):
                task = asyncio.ensure_future(reader.readexactly(4))
                await turns(attempt % 4)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                writer.write(b"x")
                assert await reader.readexactly(4) == b"data"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.005)
            writer.write(b"x")
            assert await asyncio.wait_for(reader.read(4), 10) == b"data"

    run(main())


def test_feeding_a_reader_by_hand(loop, run):
    async def main():
        reader = asyncio.StreamReader()
        reader.feed_data(b"abc\ndef")
        assert await reader.readline() == b"abc\n"
        waiting = asyncio.ensure_future(reader.readexactly(5))
        await turns(1)
        reader.feed_data(b"gh")
        assert await waiting == b"defgh"
        reader.feed_eof()
        assert await reader.read() == b"" and reader.at_eof()
        reader.set_exception(LookupError("set"))
        with pytest.raises(LookupError, match="set"):
            await reader.read()

    run(main())


# ---------------------------------------------------------------- writing


def test_the_writer(streams, run):
    async def collect(reader, writer):
        received.append(await reader.read())

    received = []

    async def main():
        async with streams(collect) as (_, writer):
            writer.write(b"one ")
            writer.writelines([b"two ", bytearray(b"three "), memoryview(b"four")])
            await writer.drain()
            assert not writer.is_closing()
            assert writer.transport.get_extra_info("socket") is writer.get_extra_info("socket")
            assert writer.can_write_eof() is (streams.kind != "tls")
            if writer.can_write_eof():
                writer.write_eof()
            else:
                writer.close()

    run(main())
    assert received == [b"one two three four"]


def test_the_writer_after_close(streams, run):
    async def serve(reader, writer):
        await reader.read()

    async def main():
        async with streams(serve) as (reader, writer):
            writer.close()
            assert writer.is_closing()
            await writer.wait_closed()
            await writer.wait_closed()
            writer.write(b"dropped")
            with pytest.raises(ConnectionResetError, match="Connection lost"):
                await writer.drain()

    run(main())


@pytest.mark.left_out(not hasattr(asyncio.StreamWriter, "__del__"), reason="newer than this Python")
def test_a_writer_that_is_collected_with_its_transport_warns_too(loop, run):
    async def main():
        ours, theirs = socket_pair("unix")
        reader, writer = await asyncio.open_connection(sock=ours)
        theirs.close()
        assert await reader.read() == b""
        writer.transport.writer = writer

    with pytest.warns(ResourceWarning) as found:
        run(main())
        gc.collect()
    run(turns())
    texts = [str(warning.message) for warning in found if "<socket" not in str(warning.message)]
    # The collector may take them in either order.
    writer, transport = sorted(texts)
    assert writer.startswith("unclosed <StreamWriter ") and "closing fd=" in writer
    assert transport.startswith("unclosed transport <")


def test_drain_ends_with_an_error_when_the_connection_breaks(streams, run):
    async def serve(reader, writer):
        await reader.read(10)
        writer.transport.abort()

    async def main():
        async with streams(serve) as (_, writer):
            with pytest.raises(OSError):
                for _ in range(1000):
                    writer.write(b"x" * MIB)
                    await writer.drain()

    run(main())


@pytest.mark.parametrize("size", [64 * MIB])
def test_64_mebibytes_in_both_directions(streams, run, size):
    chunk = bytes(range(256)) * 1024

    async def echo(reader, writer):
        while data := await reader.read(MIB):
            writer.write(data)
            await writer.drain()

    async def send(writer):
        for _ in range(size // len(chunk)):
            writer.write(chunk)
            await writer.drain()

    async def main():
        async with streams(echo) as (reader, writer):
            sending = asyncio.ensure_future(send(writer))
            for _ in range(size // len(chunk)):
                assert await reader.readexactly(len(chunk)) == chunk
            await sending
            assert writer.transport.get_write_buffer_size() == 0

    run(main())


# ---------------------------------------------------------------- handlers and servers


def test_the_exception_of_a_handler_is_reported(loop, run, contexts):
    async def failing(reader, writer):
        try:
            raise LookupError("in the handler")
        finally:
            writer.close()

    async def main():
        server = await asyncio.start_server(failing, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await until(lambda: contexts)
        server.close()
        await server.wait_closed()

    run(main())
    report = contexts.take_one()
    # Up to some 3.11, that of Debian 12 among them, nobody but the task tells of it.
    told_early = "callback" in str(asyncio.StreamReaderProtocol.connection_made.__code__.co_consts)
    message = "Unhandled exception in client_connected_cb" if told_early else "Task exception was never retrieved"
    assert report["message"] == message
    assert str(report["exception"]) == "in the handler"


def test_a_plain_function_as_handler(loop, run):
    seen = []

    def handler(reader, writer):
        seen.append((isinstance(reader, asyncio.StreamReader), repr(type(reader)), type(writer)))
        writer.write(b"hello")
        writer.close()

    async def main():
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())
    assert seen == [(True, repr(asyncio.StreamReader), asyncio.StreamWriter)]


@pytest.mark.parametrize("clients", [200])
def test_many_clients_at_once(streams, run, loop, tmp_path, authority, clients):
    """A chat-like server: everybody's line is sent to everybody."""
    if streams.kind == "tls":
        clients //= 5
    writers = set()

    async def serve(reader, writer):
        writers.add(writer)
        await reader.readline()
        for other in writers:
            other.write(line(len(writers)))
        async for _ in reader:
            pass
        writers.discard(writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def client(connecting, everybody):
        reader, writer = await connecting
        await everybody.wait()
        writer.write(b"hello\n")
        lines = [await reader.readline() for _ in range(clients)]
        assert all(lines)
        writer.close()
        await writer.wait_closed()

    async def main():
        everybody = asyncio.Event()
        if streams.kind == "unix":
            server = await asyncio.start_unix_server(serve, tmp_path / "many", backlog=500)
            connections = [asyncio.open_unix_connection(tmp_path / "many") for _ in range(clients)]
        else:
            tls = streams.kind == "tls"
            server = await asyncio.start_server(
                serve, "127.0.0.1", 0, ssl=authority.server if tls else None, backlog=500
            )
            connections = [
                asyncio.open_connection(*server.sockets[0].getsockname(), ssl=authority.client if tls else None)
                for _ in range(clients)
            ]
        tasks = [asyncio.ensure_future(client(connecting, everybody)) for connecting in connections]
        await until(lambda: len(writers) == clients, 40)
        everybody.set()
        await asyncio.gather(*tasks)
        server.close()
        await server.wait_closed()
        await until(lambda: not writers)

    run(main())


def test_a_whole_life_through_the_connector(loop, run, tmp_path, authority):
    """Half of the writer's data before, half after the reader begins, over every endpoint."""

    async def main():
        for endpoint in Connector.ENDPOINTS:
            connect = Connector(loop, endpoint, tmp_path, authority)
            reader = asyncio.StreamReader(limit=1000)
            transport, protocol, peer = await connect(lambda reader=reader: asyncio.StreamReaderProtocol(reader))
            # Of a server's side only the protocol knows the transport.
            sending = asyncio.ensure_future(peer.sendall(b"z" * 300_000))
            await asyncio.sleep(0.01)
            assert len(reader._buffer) < 300_000
            assert len(await reader.readexactly(300_000)) == 300_000
            await sending
            peer.close()
            assert await reader.read() == b""
            (transport or protocol._transport).close()
            await connect.finish()

    run(main())
