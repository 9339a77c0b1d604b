"""Stream transports: reading, writing, closing, over TCP, Unix sockets and TLS, as client and as server."""

import array
import asyncio
import contextlib
import errno
import gc
import socket
import struct
import weakref

import pytest

from helpers import (
    FAMILIES,
    FORGETS_A_PAUSE,
    Connector,
    Descriptor,
    Recorder,
    normalised,
    outcome,
    socket_pair,
    turns,
    until,
)

PLAIN = [name for name in Connector.ENDPOINTS if not name.startswith("tls")]
plain = pytest.mark.parametrize("connect", PLAIN, indirect=True)
tcp = pytest.mark.parametrize("connect", ["tcp-client", "tcp-server"], indirect=True)
tls = pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)
PATTERN = bytes(range(256)) * 4096


# ---------------------------------------------------------------- reading


def test_data_arrives_complete_and_in_order(connect, run):
    async def main():
        _, protocol, peer = await connect()
        await peer.sendall(PATTERN)
        await until(lambda: len(protocol.data) == len(PATTERN))
        assert protocol.data == PATTERN
        assert protocol.story == ["connection_made", "data_received"]

    run(main())


def test_small_messages_arrive_at_once(connect, run):
    async def main():
        _, protocol, peer = await connect()
        for i in range(100):
            await peer.sendall(b"%d," % i)
            if i % 10 == 0:
                await until(lambda i=i: protocol.data.endswith(b"%d," % i))
        expected = b"".join(b"%d," % i for i in range(100))
        await until(lambda: len(protocol.data) == len(expected))
        assert protocol.data == expected

    run(main())


def test_received_bytes_are_not_reused(connect, run):
    chunks = []

    async def main():
        _, protocol, peer = await connect(
            lambda: type("Keep", (Recorder,), {"data_received": lambda self, data: chunks.append(data)})()
        )
        for i in range(50):
            await peer.sendall(bytes([i]) * 1000)
            await until(lambda i=i: chunks and chunks[-1].endswith(bytes([i])))
        assert b"".join(chunks) == b"".join(bytes([i]) * 1000 for i in range(50))

    run(main())


@plain
def test_large_messages_stay_as_they_came(connect, run):
    """A peer that sends as much again and again, then another size; what is kept, and what is dropped at once."""
    sizes = [100_000] * 5 + [40_000, 100_000] + [65_536] * 4 + [262_144] * 4 + [10] + [100_000] * 3
    kept = []

    class Some(Recorder):
        taken = 0

        def data_received(self, data):
            assert len(set(data)) == 1 and hash(data) == hash(bytes(data[:1]) * len(data))
            self.taken += len(data)
            if data[0] % 3 == 0:
                kept.append(data)

    async def main():
        transport, protocol, peer = await connect(Some)
        for i, size in enumerate(sizes):
            if i == 3:
                transport.set_protocol(other := Some())
                protocol, other.taken = other, protocol.taken
            await peer.sendall(bytes([i]) * size)
            await until(lambda i=i, protocol=protocol: protocol.taken == sum(sizes[: i + 1]))
        assert b"".join(kept) == b"".join(bytes([i]) * size for i, size in enumerate(sizes) if i % 3 == 0)

    run(main())


def test_pausing_stops_the_data_and_resuming_brings_all_of_it(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        assert transport.is_reading() is True
        transport.pause_reading()
        transport.pause_reading()
        assert transport.is_reading() is False
        await peer.sendall(b"while paused")
        await asyncio.sleep(0.02)
        assert protocol.data == b""
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading() is True
        await until(lambda: protocol.data)
        assert protocol.data == b"while paused"

    run(main())


def test_pausing_inside_data_received_delivers_nothing_more(connect, run):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(data_received=lambda p: p.transport.pause_reading()))
        await peer.sendall(b"first")
        await until(lambda: protocol.data)
        await peer.sendall(b"second")
        await asyncio.sleep(0.02)
        assert protocol.data == b"first"
        transport.resume_reading()
        await until(lambda: protocol.data == b"firstsecond")

    run(main())


holds_a_pause = pytest.mark.left_out(
    lambda loop_name, **_: loop_name == "stock" and FORGETS_A_PAUSE, reason="corrected in a later 3.11"
)


@holds_a_pause
@plain
def test_pausing_inside_connection_made_holds_the_first_data_back(connect, run):
    async def main():
        transport, protocol, peer = await connect(
            lambda: Recorder(connection_made=lambda p: p.transport.pause_reading())
        )
        await peer.sendall(b"early")
        await asyncio.sleep(0.02)
        assert protocol.events == ["connection_made"]
        transport.resume_reading()
        await until(lambda: protocol.data == b"early")

    run(main())


@holds_a_pause
def test_pausing_before_connection_made_holds_the_first_data_back(loop, run):
    async def main():
        ours, theirs = socket_pair("tcp")
        protocol = Recorder()
        # The hook through which the base class makes its transports.
        transport = loop._make_socket_transport(ours, protocol)
        transport.pause_reading()
        assert protocol.events == []
        theirs.send(b"early")
        await asyncio.sleep(0.02)
        assert protocol.events == ["connection_made"]
        transport.resume_reading()
        await until(lambda: protocol.data == b"early")
        transport.close()
        await until(lambda: protocol.lost)
        theirs.close()

    run(main())


@plain
def test_the_end_of_file_waits_while_reading_is_paused(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        transport.pause_reading()
        await peer.sendall(b"last words")
        peer.close()
        await asyncio.sleep(0.02)
        assert protocol.events == ["connection_made"]
        transport.resume_reading()
        await until(lambda: protocol.lost)
        assert protocol.data == b"last words"
        assert protocol.story == ["connection_made", "data_received", "eof_received", "connection_lost"]

    run(main())


@plain
def test_pausing_after_close_changes_nothing(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        transport.close()
        assert transport.is_reading() is False
        transport.pause_reading()
        transport.resume_reading()
        assert transport.is_reading() is False
        await peer.leave()
        await until(lambda: protocol.lost)

    run(main())


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(bytearray(b"writable view")),
        memoryview(b"xxslicexx")[2:7],
    ],
    ids=["bytes", "bytearray", "memoryview", "writable memoryview", "slice"],
)
def test_write_takes_bytes_bytearrays_and_memoryviews(connect, run, data):
    async def main():
        transport, _, peer = await connect()
        assert transport.write(data) is None
        assert await peer.recv_exactly(len(data)) == bytes(data)
        transport.writelines([data, b"|", data])
        assert await peer.recv_exactly(2 * len(data) + 1) == bytes(data) + b"|" + bytes(data)

    run(main())


@pytest.mark.parametrize("data", [None, "text", 5, [b"x"], object()], ids=["None", "str", "int", "list", "object"])
def test_write_refuses_anything_else(connect, run, data):
    async def main():
        transport, _, peer = await connect()
        with pytest.raises(TypeError, match="^data(: expecting| argument must be) a bytes") as caught:
            transport.write(data)
        # The text is that of the running Python's own transport, which looks at the data first of all.
        own = (
            asyncio.sslproto._SSLProtocolTransport if connect.tls else asyncio.selector_events._SelectorSocketTransport
        )
        assert outcome(own.write, None, data) == ("raised", TypeError, normalised(caught.value))
        transport.write(b"still alive")
        assert await peer.recv_exactly(11) == b"still alive"

    run(main())


def test_writing_nothing_sends_nothing(connect, run):
    async def main():
        transport, _, peer = await connect()
        for nothing in (b"", bytearray(), memoryview(b"")):
            transport.write(nothing)
        transport.writelines([])
        transport.writelines([b"", b""]) if not connect.tls else None
        assert transport.get_write_buffer_size() == 0
        transport.write(b"something")
        assert await peer.recv_exactly(9) == b"something"

    run(main())


@pytest.mark.parametrize(
    "make",
    [list, tuple, iter, lambda parts: (part for part in parts), dict.fromkeys],
    ids=["list", "tuple", "iterator", "generator", "dict"],
)
def test_writelines_takes_any_iterable(connect, run, make):
    parts = [b"%d," % i for i in range(1500)]

    async def main():
        transport, _, peer = await connect()
        transport.writelines(make(parts))
        assert await peer.recv_exactly(len(b"".join(parts))) == b"".join(parts)

    run(main())


def test_many_writes_of_one_turn_and_of_many_turns_stay_in_order(connect, run):
    expected = b"".join(b"%d;" % i for i in range(3000))

    async def main():
        transport, _, peer = await connect(small=True)
        receiving = asyncio.ensure_future(peer.recv_exactly(len(expected)))
        for i in range(3000):
            transport.write(b"%d;" % i)
            if i % 50 == 0:
                await asyncio.sleep(0)
        assert await receiving == expected

    run(main())


def test_a_huge_write_arrives_whole(connect, run):
    data = PATTERN * 16

    async def main():
        transport, _, peer = await connect()
        transport.write(data)
        assert await peer.recv_exactly(len(data)) == data
        assert transport.get_write_buffer_size() == 0

    run(main())


@pytest.mark.fastloop_only(reason="the stock loop of 3.12 and 3.13 sends what the bytearray holds later")
@pytest.mark.parametrize("use", ["write", "writelines"])
def test_a_bytearray_may_be_changed_after_the_write(connect, run, use):
    async def main():
        transport, _, peer = await connect(small=True)
        backlog = b"x" * 1_000_000
        transport.write(backlog)
        data = bytearray(b"original" * 1000)
        expected = bytes(data)
        getattr(transport, use)(data if use == "write" else [data, memoryview(data)])
        data[:8] = b"changed!"
        data.extend(b"and its size, which a view that is held forbids") if use == "write" else None
        count = len(expected) * (1 if use == "write" else 2)
        received = await peer.recv_exactly(len(backlog) + count)
        assert received[len(backlog) :] == expected * (count // len(expected))

    run(main())


@pytest.mark.fastloop_only(reason="the stock loop counts items where bytes are meant")
@plain
def test_views_of_wider_items_are_sent_as_bytes(connect, run):
    values = array.array("I", range(20_000))

    async def main():
        transport, _, peer = await connect(small=True)
        transport.write(b"x" * 500_000)
        transport.write(memoryview(values))
        received = await peer.recv_exactly(500_000 + len(values) * values.itemsize)
        assert received[500_000:] == values.tobytes()

    run(main())


# ---------------------------------------------------------------- half-close


@plain
def test_write_eof_ends_our_direction_after_the_data_and_leaves_the_other(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        assert transport.can_write_eof() is True
        transport.write(PATTERN)
        transport.write_eof()
        transport.write_eof()
        assert await peer.recv_all() == PATTERN
        await peer.sendall(b"the other direction")
        await until(lambda: protocol.data == b"the other direction")
        assert not transport.is_closing()

    run(main())


@plain
@pytest.mark.parametrize(
    "use, message",
    [("write", "Cannot call write() after write_eof()"), ("writelines", "Cannot call writelines() after write_eof()")],
)
def test_writing_after_write_eof_is_an_error(connect, run, use, message):
    async def main():
        transport, *_ = await connect()
        transport.write_eof()
        with pytest.raises(RuntimeError) as caught:
            getattr(transport, use)(b"late" if use == "write" else [b"late"])
        assert str(caught.value) in (message, "Cannot call write() after write_eof()")

    run(main())


@tls
def test_tls_cannot_be_half_closed(connect, run):
    async def main():
        transport, *_ = await connect()
        assert transport.can_write_eof() is False
        with pytest.raises(NotImplementedError):
            transport.write_eof()

    run(main())


@plain
@pytest.mark.parametrize("keep", [True, 1, "yes"])
def test_eof_received_that_answers_true_keeps_the_other_direction(connect, run, keep):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: keep))
        await peer.sendall(b"question")
        peer.eof()
        await until(lambda: "eof_received" in protocol.events)
        await turns(5)
        assert not transport.is_closing() and not protocol.lost
        transport.write(b"answer")
        transport.close()
        assert await peer.recv_all() == b"answer"
        await until(lambda: protocol.lost)
        assert protocol.error is None
        assert protocol.story == ["connection_made", "data_received", "eof_received", "connection_lost"]

    run(main())


@pytest.mark.parametrize("answer", [None, False, 0])
def test_eof_received_that_answers_false_closes(connect, run, answer):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: answer))
        peer.close()
        await until(lambda: protocol.lost)
        assert transport.is_closing()
        assert protocol.error is None
        assert protocol.story == ["connection_made", "eof_received", "connection_lost"]

    run(main())


@tls
def test_over_tls_eof_received_cannot_keep_the_connection(connect, run, guard):
    async def main():
        _, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: True))
        peer.close()
        await until(lambda: protocol.lost)
        assert "returning true from eof_received() has no effect when using ssl" in guard.log.take()

    run(main())


@plain
def test_both_sides_half_close(connect, run):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: True))
        transport.write(b"ours")
        transport.write_eof()
        await peer.sendall(b"theirs")
        peer.eof()
        assert await peer.recv_all() == b"ours"
        await until(lambda: "eof_received" in protocol.events)
        assert protocol.data == b"theirs"
        transport.close()
        await until(lambda: protocol.lost)

    run(main())


# ---------------------------------------------------------------- close


def test_close_delivers_what_was_written(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.write(PATTERN)
        transport.close()
        assert transport.is_closing() is True
        assert not protocol.lost
        assert await peer.recv_all() == PATTERN
        peer.close()
        await until(lambda: protocol.lost)
        assert protocol.error is None

    run(main())


def test_connection_lost_comes_once_and_never_inside_close(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        assert transport.is_closing() is False
        assert transport.close() is None
        assert transport.is_closing() is True and not protocol.lost
        transport.close()
        await peer.leave()
        await until(lambda: protocol.lost)
        await turns(5)
        transport.close()
        # Up to some 3.11, that of Debian 12 among them, this asks a protocol of TLS that is gone.
        with contextlib.suppress(*[AttributeError] * FORGETS_A_PAUSE):
            transport.abort()
        await turns(5)
        assert protocol.events.count("connection_lost") == 1
        assert protocol.error is None

    run(main())


def test_nothing_is_received_after_close(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.write(PATTERN)
        transport.close()
        await peer.sendall(b"unheard")
        await peer.recv_all()
        await until(lambda: protocol.lost or not peer.close())
        await until(lambda: protocol.lost)
        assert protocol.data == b""

    run(main())


def test_writing_after_close_is_dropped(connect, run, guard):
    async def main():
        transport, protocol, peer = await connect()
        transport.write(b"before")
        await peer.recv_exactly(6)
        transport.close()
        for _ in range(3):
            transport.write(b"after")
        assert await peer.recv_all() == b""
        peer.close()
        await until(lambda: protocol.lost)
        transport.write(b"long after")
        assert guard.log.take() == []

    run(main())


def test_writing_after_close_again_and_again_is_logged(connect, run, guard):
    async def main():
        transport, protocol, peer = await connect()
        transport.abort()
        await until(lambda: protocol.lost)
        for _ in range(10):
            transport.write(b"after")
        messages = set(guard.log.take())
        assert messages == ({"SSL connection is closed"} if connect.tls else {"socket.send() raised exception."})

    run(main())


@pytest.mark.fastloop_only(reason="writelines() after close() is a TypeError on the stock loops of 3.12 and 3.13")
@plain
def test_writelines_after_close_is_dropped(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        transport.close()
        transport.writelines([b"after", b"close"])
        assert await peer.recv_all() == b""
        await until(lambda: protocol.lost)
        transport.writelines([b"long after"])

    run(main())


def test_abort_drops_what_was_not_sent(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.write(PATTERN)
        # Over TLS it counts what is not yet encrypted.
        assert connect.tls or transport.get_write_buffer_size() > 0
        assert transport.abort() is None
        assert transport.is_closing() is True and not protocol.lost
        await until(lambda: protocol.lost)
        assert protocol.error is None
        assert len(await peer.recv_all()) < len(PATTERN)

    run(main())


def test_what_was_written_before_abort_is_sent(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        transport.write(b"good-")
        transport.write(b"bye")
        transport.abort()
        assert await peer.recv_exactly(8) == b"good-bye"
        await until(lambda: protocol.lost)

    run(main())


def test_what_was_written_before_the_protocol_failed_is_sent(connect, run, guard):
    def fail(protocol):
        protocol.transport.write(b"error 400")
        raise LookupError("asked too much")

    async def main():
        _, protocol, peer = await connect(lambda: Recorder(data_received=fail))
        await peer.sendall(b"?")
        assert await peer.recv_exactly(9) == b"error 400"
        await until(lambda: protocol.lost)
        assert any("data_received() call failed" in text for text in guard.log.take()) or connect.tls

    run(main())


def test_abort_after_close_ends_the_wait_for_a_peer_that_does_not_read(connect, run):
    async def main():
        transport, protocol, _ = await connect(small=True)
        transport.write(PATTERN * 4)
        transport.close()
        await asyncio.sleep(0.01)
        assert not protocol.lost
        transport.abort()
        await until(lambda: protocol.lost)

    run(main())


@plain
def test_the_descriptor_is_closed_after_connection_lost(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        descriptor = Descriptor(transport.get_extra_info("socket").fileno())
        seen = []
        protocol.on["connection_lost"] = lambda p: seen.append(descriptor.gone)
        transport.close()
        assert not descriptor.gone
        peer.close()
        await until(lambda: descriptor.gone)
        assert seen == [False]

    run(main())


def test_a_closed_transport_and_its_protocol_are_freed(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        transport.write(b"data")
        transport.close()
        peer.close()
        await until(lambda: protocol.lost)
        references = [weakref.ref(transport), weakref.ref(protocol)]
        connect.transports.clear()
        return references

    references = run(main())
    run(turns(5))
    for closing in connect.closing:
        closing.close()
    connect.closing.clear()
    run(turns(5))
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_transport_whose_loop_was_closed_warns_and_frees_its_descriptor(loop_factory, guard):
    loop = loop_factory()
    ours, theirs = socket_pair("tcp")
    descriptor = Descriptor(ours.fileno())

    loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    loop.close()
    del ours, loop
    gc.collect()
    assert any(text.startswith("ResourceWarning: unclosed transport") for text in guard.unraisable.take())
    assert descriptor.gone
    theirs.close()


@pytest.mark.parametrize("calls", [["pause_reading", "resume_reading"], ["resume_reading", "pause_reading"]])
def test_reading_that_another_thread_pauses_and_resumes(loop, run, calls):
    """The last call counts, though the loop takes both later."""

    async def main():
        ours, theirs = socket_pair("unix")
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        if calls[0] == "resume_reading":
            transport.pause_reading()
        await asyncio.to_thread(lambda: [getattr(transport, name)() for name in calls])
        await turns(3)
        assert transport.is_reading() == (calls[-1] == "resume_reading")
        await loop.sock_sendall(theirs, b"data")
        await turns(5)
        assert protocol.data == (b"data" if transport.is_reading() else b"")
        transport.abort()
        await until(lambda: protocol.lost)
        theirs.close()

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_transport_that_another_thread_drops(loop, run, kind, guard):
    """A paused one belongs to its user alone. The socket is closed, and the loop, which may wait meanwhile, goes on."""

    async def main():
        ours, theirs = socket_pair(kind)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.pause_reading()
        held = [transport]
        del transport, ours
        await turns(3)
        # On the standard loop it is part of a cycle.
        await asyncio.to_thread(lambda: held.clear() or gc.collect())
        assert await loop.sock_recv(theirs, 1) == b""
        theirs.close()

    run(main())
    assert any(text.startswith("ResourceWarning: unclosed transport") for text in guard.unraisable.take())


def test_a_transport_whose_loop_was_closed_takes_a_close_once(loop_factory, guard):
    loop = loop_factory()
    first, second = socket_pair("unix")
    transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=first))
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        transport.close()
    assert transport.is_closing()
    assert transport.close() is None and transport.abort() is None and transport.write(b"x") is None
    del transport, first, loop
    gc.collect()
    assert any(text.startswith("ResourceWarning: unclosed transport") for text in guard.unraisable.take())
    second.close()


# ---------------------------------------------------------------- the peer misbehaves


@tcp
def test_a_reset_is_given_to_connection_lost_and_not_logged(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        peer.reset()
        await until(lambda: protocol.lost)
        assert type(protocol.error) is ConnectionResetError
        assert protocol.events == ["connection_made", "connection_lost"]
        assert transport.is_closing()

    run(main())


@tls
def test_a_reset_under_tls_is_given_to_connection_lost(connect, run):
    async def main():
        _, protocol, peer = await connect()
        peer.reset()
        await until(lambda: protocol.lost)
        assert type(protocol.error) is ConnectionResetError

    run(main())


def test_a_peer_that_goes_while_we_write_ends_the_connection_with_the_error(connect, run):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: not connect.tls), small=True)
        transport.write(PATTERN)
        await asyncio.sleep(0.005)
        peer.reset()
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, (ConnectionResetError, BrokenPipeError))
        assert transport.get_write_buffer_size() == 0

    run(main())


@plain
def test_writing_into_a_closed_peer_never_raises(connect, run):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: True))
        peer.close()
        for _ in range(10):
            transport.write(b"into the void")
            await asyncio.sleep(0.001)
        # The reset may come after these.
        await until(lambda: protocol.lost or transport.write(b"into the void"))
        assert isinstance(protocol.error, (ConnectionResetError, BrokenPipeError))
        assert protocol.events.count("connection_lost") == 1

    run(main())


def test_data_sent_just_before_the_end_is_delivered_before_the_end(connect, run):
    async def main():
        for _ in range(20):
            _, protocol, peer = await connect()
            await peer.sendall(b"data")
            peer.close()
            await until(lambda protocol=protocol: protocol.lost)
            assert protocol.data == b"data"
            assert protocol.story == ["connection_made", "data_received", "eof_received", "connection_lost"]

    run(main())


@pytest.mark.parametrize("connect", ["tcp-client", "tcp-server", "tls-client", "tls-server"], indirect=True)
def test_data_sent_just_before_a_reset_is_not_all_there_is(connect, run):
    async def main():
        for _ in range(5):
            _, protocol, peer = await connect()
            await peer.sendall(b"data")
            peer.reset()
            await until(lambda protocol=protocol: protocol.lost)
            assert type(protocol.error) is ConnectionResetError
            # A TLS server that has something to send itself may meet the reset first.
            if not connect.tls:
                assert protocol.data == b"data"
                assert protocol.story == ["connection_made", "data_received", "connection_lost"]

    run(main())


@pytest.mark.parametrize("pause", [False, True])
def test_a_reset_behind_data_that_pause_the_reading(loop, run, pause):
    async def main():
        near, far = socket_pair("tcp")
        reader, writer = await asyncio.open_connection(sock=near, limit=2 if pause else 2**16)
        far.sendall(b"data")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        assert await reader.readexactly(4) == b"data"
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_answer_to_a_peer_that_is_gone(loop, run, kind):
    """What is written meets the error before anything more is read: a reset of TCP, or a closed Unix socket."""

    async def main():
        near, far = socket_pair(kind)
        _, protocol = await loop.create_connection(
            lambda: Recorder(data_received=lambda self, *_: self.transport.write(b"answer")), sock=near
        )
        far.sendall(b"question")
        if kind == "tcp":
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await until(lambda: protocol.lost)
        assert type(protocol.error) is (ConnectionResetError if kind == "tcp" else BrokenPipeError)
        assert protocol.story == ["connection_made", "data_received", "connection_lost"]

    run(main())


UNCONNECTED = {"tcp": (errno.ENOTCONN, errno.EPIPE), "unix": (errno.EINVAL, errno.ENOTCONN)}


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("kind", UNCONNECTED)
def test_a_socket_that_was_never_connected(loop, run, kind, write):
    """It has no end, only an error: that of the first call, to send or to receive."""

    async def main():
        with socket.socket(FAMILIES[kind]) as sock:
            transport, protocol = await loop.connect_accepted_socket(Recorder, sock)
            if write:
                transport.write(b"to nobody")
            await until(lambda: protocol.lost)
            assert protocol.story == ["connection_made", "connection_lost"]
            assert isinstance(protocol.error, OSError) and protocol.error.errno == UNCONNECTED[kind][write]

    run(main())


# ---------------------------------------------------------------- looking at a transport


def test_the_type_is_asyncio_transport(connect, run):
    async def main():
        transport, *_ = await connect()
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.ReadTransport) and isinstance(transport, asyncio.WriteTransport)

    run(main())


def test_repr_works_in_every_state(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        texts = [repr(transport)]
        transport.write(PATTERN)
        texts.append(repr(transport))
        transport.close()
        texts.append(repr(transport))
        transport.abort()
        await until(lambda: protocol.lost)
        texts.append(repr(transport))
        if not connect.tls:
            assert "closing" in texts[2] and "closed" in texts[3]
            assert all(text.startswith("<") and "fd=" in text for text in texts)

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_nothing_is_polled_for_after_abort(loop, run, kind):
    async def main():
        ours, theirs = socket_pair(kind)
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        transport.write(b"x" * 10_000_000)
        assert "read=polling write=<polling, bufsize=" in repr(transport)
        transport.close()
        assert "closing" in repr(transport) and "read=idle write=<polling, bufsize=" in repr(transport)
        transport.abort()
        assert "closing" in repr(transport) and "read=idle write=<idle, bufsize=0>" in repr(transport)
        await until(lambda: protocol.lost)
        theirs.close()

    run(main())


def test_transports_take_attributes_and_replaced_methods(connect, run):
    async def main():
        transport, _, peer = await connect()
        transport.anything = 5
        written = []
        original = transport.write
        transport.write = lambda data: (written.append(data), original(data))
        transport.write(b"replaced")
        assert await peer.recv_exactly(8) == b"replaced"
        assert written == [b"replaced"] and transport.anything == 5
        transport.write = original

    run(main())


@plain
def test_a_connection_over_sockets_with_small_buffers_echoes(connect, run):
    async def main():
        transport, protocol, peer = await connect(
            lambda: type("Echo", (Recorder,), {"data_received": lambda self, data: self.transport.write(data)})(),
            small=True,
        )
        sending = asyncio.ensure_future(peer.sendall(PATTERN))
        assert await peer.recv_exactly(len(PATTERN)) == PATTERN
        await sending

    run(main())


@tcp
def test_nagle_is_off(connect, run):
    async def main():
        transport, *_ = await connect()
        sock = transport.get_extra_info("socket")
        # The stock loop sees only sockets whose protocol is IPPROTO_TCP.
        if sock.proto == socket.IPPROTO_TCP:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_a_reader_of_the_descriptor_is_replaced_by_the_transport(loop, run):
    async def main():
        ours, theirs = socket_pair("unix")
        called = []
        loop.add_reader(ours, called.append, "?")
        transport, protocol = await loop.create_unix_connection(Recorder, sock=ours)
        transport.pause_reading()
        theirs.send(b"hello")
        await turns(20)
        transport.resume_reading()
        await until(lambda: protocol.data == b"hello")
        assert called == []
        transport.close()
        await until(lambda: protocol.lost)
        theirs.close()

    run(main())
