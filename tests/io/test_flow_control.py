"""Flow control: the limits, pause_writing and resume_writing, buffer sizes."""

import asyncio

import pytest

from helpers import Connector, Recorder, turns, until

PLAIN = [name for name in Connector.ENDPOINTS if not name.startswith("tls")]
plain = pytest.mark.parametrize("connect", PLAIN, indirect=True)
MIB = 1024 * 1024


# ---------------------------------------------------------------- the limits


def test_the_default_limits(connect, run):
    async def main():
        transport, *_ = await connect()
        expected = (128 * 1024, 512 * 1024) if connect.tls else (16 * 1024, 64 * 1024)
        assert transport.get_write_buffer_limits() == expected

    run(main())


@pytest.mark.parametrize(
    "arguments, low, high",
    [
        ({"high": 1000}, 250, 1000),
        ({"low": 1000}, 1000, 4000),
        ({"high": 500, "low": 100}, 100, 500),
        ({"high": 0}, 0, 0),
        ({"high": 5, "low": 5}, 5, 5),
        ({"high": 3}, 0, 3),
    ],
    ids=str,
)
def test_setting_the_limits(connect, run, arguments, low, high):
    async def main():
        transport, *_ = await connect()
        assert transport.set_write_buffer_limits(**arguments) is None
        assert transport.get_write_buffer_limits() == (low, high)
        transport.set_write_buffer_limits()
        default = 512 * 1024 if connect.tls else 64 * 1024
        assert transport.get_write_buffer_limits() == (default // 4, default)

    run(main())


@pytest.mark.parametrize(
    "arguments",
    [
        {"high": 5, "low": 6},
        {"high": -1},
        {"low": -1},
        {"high": 5, "low": -5},
    ],
    ids=str,
)
def test_limits_that_make_no_sense_are_refused(connect, run, arguments):
    async def main():
        transport, *_ = await connect()
        before = transport.get_write_buffer_limits()
        with pytest.raises(ValueError, match=r"must be >= low .* must be >= 0"):
            transport.set_write_buffer_limits(**arguments)
        assert transport.get_write_buffer_limits() == before

    run(main())


# ---------------------------------------------------------------- pausing and resuming the writer


def test_a_full_buffer_pauses_the_protocol_and_an_empty_one_resumes_it(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        # Over TLS the first write goes down as a whole; what comes after it is held.
        for _ in range(4):
            transport.write(b"x" * MIB)
        await turns(2)
        assert protocol.story == ["connection_made", "pause_writing"]
        await peer.recv_exactly(4 * MIB)
        await until(lambda: "resume_writing" in protocol.events)
        assert protocol.events == ["connection_made", "pause_writing", "resume_writing"]
        assert transport.get_write_buffer_size() == 0

    run(main())


@plain
def test_the_protocol_is_paused_before_write_returns(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.write(b"x" * 4 * MIB)
        assert protocol.events[-1] == "pause_writing"
        assert 64 * 1024 < transport.get_write_buffer_size() < 4 * MIB
        transport.write(b"more")
        assert protocol.events.count("pause_writing") == 1
        transport.abort()

    run(main())


@plain
def test_the_protocol_resumes_at_the_low_limit_and_not_before(connect, run):
    sizes = []

    async def main():
        transport, protocol, peer = await connect(
            lambda: Recorder(resume_writing=lambda p: sizes.append(p.transport.get_write_buffer_size())), small=True
        )
        transport.set_write_buffer_limits(high=2 * MIB, low=MIB)
        transport.write(b"x" * 6 * MIB)
        assert protocol.events[-1] == "pause_writing"
        while not sizes:
            await peer.recv_exactly(MIB // 4)
            await asyncio.sleep(0.001)
        assert sizes[0] <= MIB
        transport.abort()

    run(main())
    assert len(sizes) == 1


@plain
def test_below_the_high_limit_nobody_is_paused(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.set_write_buffer_limits(high=8 * MIB)
        transport.write(b"x" * 4 * MIB)
        await turns(3)
        assert protocol.events == ["connection_made"]
        assert transport.get_write_buffer_size() > 0
        await peer.recv_exactly(4 * MIB)
        await turns(3)
        assert protocol.events == ["connection_made"]

    run(main())


@plain
def test_with_a_limit_of_zero_any_backlog_pauses(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.set_write_buffer_limits(0)
        transport.write(b"small")
        assert await peer.recv_exactly(5) == b"small"
        assert protocol.events == ["connection_made"]
        transport.write(b"x" * MIB)
        await turns(2)
        assert protocol.events[-1] == "pause_writing"
        await peer.recv_exactly(MIB)
        await until(lambda: protocol.events[-1] == "resume_writing")
        assert transport.get_write_buffer_size() == 0

    run(main())


@plain
def test_writing_from_resume_writing_keeps_the_order_and_may_pause_again(connect, run):
    rounds = 5

    def more(protocol):
        number = protocol.events.count("resume_writing")
        if number < rounds:
            protocol.transport.write(bytes([number]) * 2 * MIB)

    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(resume_writing=more), small=True)
        transport.write(bytes([0]) * 2 * MIB)
        received = await peer.recv_exactly(rounds * 2 * MIB)
        assert received == b"".join(bytes([i]) * 2 * MIB for i in range(rounds))
        await until(lambda: protocol.events.count("resume_writing") == rounds)
        assert protocol.events == ["connection_made"] + ["pause_writing", "resume_writing"] * rounds

    run(main())


@pytest.mark.parametrize("writes", [1, 1000])
@plain
def test_the_buffer_size_counts_what_the_kernel_did_not_take(connect, run, writes):
    async def main():
        transport, _, peer = await connect(small=True)
        assert transport.get_write_buffer_size() == 0
        transport.write(b"x" * MIB)
        await asyncio.sleep(0.005)
        before = transport.get_write_buffer_size()
        assert 0 < before < MIB
        for _ in range(writes):
            transport.write(b"y" * 1000)
        assert transport.get_write_buffer_size() == before + writes * 1000
        received = len(await peer.recv_exactly(MIB + writes * 1000))
        await until(lambda: transport.get_write_buffer_size() == 0)
        assert received == MIB + writes * 1000

    run(main())


def test_a_connection_that_breaks_while_paused_ends_without_resume(connect, run):
    async def main():
        transport, protocol, _ = await connect(small=True)
        for _ in range(4):
            transport.write(b"x" * MIB)
        await turns(2)
        transport.abort()
        await until(lambda: protocol.lost)
        assert protocol.events == ["connection_made", "pause_writing", "connection_lost"]

    run(main())


# ---------------------------------------------------------------- a fast sender and a slow receiver


@pytest.mark.parametrize("chunk", [1000, 100_000])
def test_drain_keeps_the_memory_of_the_sender_bounded(loop, run, chunk):
    largest = []
    total = 16 * MIB

    async def serve(reader, writer):
        while data := await reader.read(65536):
            received.append(len(data))
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    received = []

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(total // chunk):
            writer.write(b"x" * chunk)
            await writer.drain()
            largest.append(writer.transport.get_write_buffer_size())
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())
    assert sum(received) == total // chunk * chunk
    assert max(largest) <= 64 * 1024 + chunk


def test_a_reader_that_does_not_read_stops_the_sender(loop, run):
    """The limit of the StreamReader, 64 KiB, pauses the transport; the kernel's buffers fill; the sender waits."""

    async def serve(reader, writer):
        connected.set_result(reader)
        await release
        while await reader.read(MIB):
            pass
        writer.close()
        await writer.wait_closed()

    async def main():
        global connected, release
        connected, release = loop.create_future(), loop.create_future()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        sending = asyncio.ensure_future(send(writer))
        stream = await connected
        await asyncio.sleep(0.1)
        assert not sending.done()
        assert len(stream._buffer) <= 2 * 65536 + 256 * 1024
        release.set_result(None)
        await sending
        await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    async def send(writer):
        for _ in range(64):
            writer.write(b"x" * MIB)
            await writer.drain()
        writer.write_eof()

    run(main())
