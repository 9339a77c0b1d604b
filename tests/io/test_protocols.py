"""What protocols may do: raise, re-enter the transport, be replaced, bring their own buffers, see contexts."""

import asyncio
import contextvars
import gc

import pytest

from helpers import (
    KEEPS_CONTEXT,
    BufferedRecorder,
    Connector,
    Descriptor,
    Recorder,
    new_loop,
    settle,
    turns,
    until,
    without_clients,
)

PLAIN = [name for name in Connector.ENDPOINTS if not name.startswith("tls")]
plain = pytest.mark.parametrize("connect", PLAIN, indirect=True)
MIB = 1024 * 1024


class Broken(Exception):
    pass


def broken(*_):
    raise Broken("own")


async def provoke(callback, transport, protocol, peer):
    """Bring about a callback, by name."""
    if callback in ("data_received", "buffer_updated", "get_buffer"):
        await peer.sendall(b"data")
    elif callback == "eof_received":
        peer.eof()
    elif callback in ("pause_writing", "resume_writing"):
        transport.write(b"x" * 4 * MIB)
        if callback == "resume_writing":
            await peer.recv_exactly(4 * MIB)
    elif callback == "connection_lost":
        transport.close()
    await until(lambda: callback in protocol.events or callback == "get_buffer")


# ---------------------------------------------------------------- callbacks that raise


@plain
@pytest.mark.parametrize(
    "callback, message",
    [
        ("data_received", "Fatal error: protocol.data_received() call failed."),
        ("eof_received", "Fatal error: protocol.eof_received() call failed."),
        ("buffer_updated", "Fatal error: protocol.buffer_updated() call failed."),
        ("get_buffer", "Fatal error: protocol.get_buffer() call failed."),
    ],
)
def test_an_exception_in_a_reading_callback_ends_that_connection(connect, run, contexts, callback, message):
    async def main():
        make = BufferedRecorder if callback in ("buffer_updated", "get_buffer") else Recorder
        transport, protocol, peer = await connect(lambda: make(**{callback: broken}))
        await provoke(callback, transport, protocol, peer)
        await until(lambda: protocol.lost)
        report = contexts.take_one()
        assert set(report) == {"message", "exception", "transport", "protocol"}
        assert report["message"] == message
        assert report["transport"] is transport and report["protocol"] is protocol
        assert type(report["exception"]) is Broken and protocol.error is report["exception"]

    run(main())


@plain
@pytest.mark.parametrize("callback", ["pause_writing", "resume_writing"])
def test_an_exception_in_a_flow_callback_is_reported_and_the_connection_lives(connect, run, contexts, callback):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(**{callback: broken}), small=True)
        await provoke(callback, transport, protocol, peer)
        await turns(3)
        report = contexts.take_one()
        assert set(report) == {"message", "exception", "transport", "protocol"}
        assert report["message"] == f"protocol.{callback}() failed"
        assert not transport.is_closing() and not protocol.lost
        await peer.sendall(b"alive")
        await until(lambda: protocol.data == b"alive")

    run(main())


@plain
def test_an_exception_in_connection_made_is_reported_and_the_connection_lives(connect, run, contexts):
    async def main():
        _, protocol, peer = await connect(lambda: Recorder(connection_made=broken))
        await until(lambda: contexts)
        report = contexts.take_one()
        assert set(report) == {"message", "exception", "handle"}
        assert report["message"].startswith("Exception in callback Recorder.connection_made(")
        await peer.sendall(b"alive")
        await until(lambda: protocol.data == b"alive")

    connect.loop.set_debug(False)
    run(main())


@plain
def test_an_exception_in_connection_lost_is_reported_and_the_descriptor_closed(connect, run, contexts):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(connection_lost=broken))
        descriptor = Descriptor(transport.get_extra_info("socket").fileno())
        transport.close()
        await until(lambda: contexts)
        report = contexts.take_one()
        assert {"message", "exception"} <= set(report)
        assert report["message"].startswith("Exception in callback ") and type(report["exception"]) is Broken
        assert await peer.recv_all() == b""
        await until(lambda: descriptor.gone)

    connect.loop.set_debug(False)
    run(main())


@pytest.mark.parametrize("callback", ["data_received", "eof_received", "connection_lost", "connection_made"])
def test_under_tls_exceptions_are_reported_and_end_the_connection(loop, run, contexts, authority, tmp_path, callback):
    async def main():
        for endpoint in ("tls-client", "tls-server"):
            connect = Connector(loop, endpoint, tmp_path, authority)
            try:
                transport, protocol, peer = await connect(lambda: Recorder(**{callback: broken}))
            except Broken:
                # A client is told by create_connection() that its connection_made() failed.
                assert (endpoint, callback) == ("tls-client", "connection_made")
                contexts.take()
                await connect.finish()
                continue
            if callback == "connection_lost":
                transport.close()
                await peer.leave()
            elif callback == "data_received":
                await peer.sendall(b"data")
            elif callback == "eof_received":
                peer.close()
            await until(lambda: contexts or protocol.lost)
            await connect.finish()
            await until(lambda protocol=protocol: protocol.lost or callback == "connection_made")
            assert any(type(report["exception"]) is Broken for report in contexts.take())

    run(main())


@plain
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("callback", ["data_received", "eof_received", "connection_lost", "buffer_updated"])
def test_exits_in_a_callback_come_out_of_the_run(connect, loop, run, error, callback):
    def leave(*_):
        raise error("now")

    make = BufferedRecorder if callback == "buffer_updated" else Recorder
    transport, protocol, peer = run(connect(lambda: make(**{callback: leave})))
    if callback == "connection_lost":
        transport.close()
    elif callback == "eof_received":
        peer.eof()
    else:
        peer.sock.send(b"data")
    with pytest.raises(error, match="now"):
        run(asyncio.sleep(20))
    assert not loop.is_running()
    # The end of file is still there and may be told again.
    protocol.on.clear()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    run(turns(3))


def test_other_connections_do_not_notice(loop, run, contexts):
    """Of twenty connections to one server every second protocol fails."""
    made = []

    def factory():
        failing = len(made) % 2
        made.append(Recorder(data_received=broken if failing else None))
        return made[-1]

    async def main():
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [await asyncio.open_connection(*address) for _ in range(20)]
        await until(lambda: len(made) == 20)
        for _, writer in clients:
            writer.write(b"data")
        await until(lambda: sum(protocol.lost for protocol in made) == 10)
        assert [protocol.lost for protocol in made] == [False, True] * 10
        assert all(protocol.data == b"data" for protocol in made)
        for _, writer in clients:
            writer.close()
        await until(lambda: all(protocol.lost for protocol in made))
        server.close()
        await server.wait_closed()

    run(main())
    assert len(contexts.take()) == 10


# ---------------------------------------------------------------- factories that raise


@pytest.mark.parametrize("debug", [True, False])
def test_a_failing_factory_costs_a_server_that_connection_only(loop, run, guard, debug):
    calls, reports = [], []

    def factory():
        calls.append(1)
        if len(calls) % 2:
            raise Broken("factory")
        return Recorder(connection_made=lambda p: p.transport.write(b"served"))

    async def main():
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        answers = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection(*address)
            answers.append(await reader.read(100))
            writer.close()
            await writer.wait_closed()
        assert answers == [b"", b"served"] * 3
        await without_clients(server)
        await asyncio.sleep(0.01)

    def report(_, context):
        # The frames of the exception, in a cycle with it, keep the stock loop's accepted socket open.
        reports.append((context["message"], sorted(context), type(context["exception"])))
        loop.call_later(0.001, gc.collect)

    loop.set_exception_handler(report)
    loop.set_debug(debug)
    run(main())
    gc.collect()
    # Only debug mode tells of it.
    assert (
        reports
        == [("Error on transport creation for incoming connection", ["exception", "message"], Broken)] * 3 * debug
    )
    # The stock loop leaves the accepted socket to the garbage collector.
    assert all("unclosed <socket" in text for text in guard.unraisable.take())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_failing_factory_of_a_client_is_raised(loop, run, tmp_path, kind, guard):
    async def main():
        if kind == "unix":
            server = await asyncio.start_unix_server(lambda r, w: w.close(), tmp_path / "s")
            connecting = loop.create_unix_connection(broken, str(tmp_path / "s"))
        else:
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            connecting = loop.create_connection(broken, *server.sockets[0].getsockname())
        with pytest.raises(Broken, match="own"):
            await connecting
        await asyncio.sleep(0.01)
        await without_clients(server)

    run(main())
    gc.collect()
    # The stock loop leaves the connected socket to the garbage collector.
    assert all("unclosed <socket" in text for text in guard.unraisable.take())


# ---------------------------------------------------------------- re-entrancy

ACTIONS = {
    "write": lambda p: p.transport.write(b"re-entered"),
    "big write": lambda p: p.transport.write(b"r" * MIB),
    "writelines": lambda p: None if p.transport.is_closing() else p.transport.writelines([b"re-", b"entered"]),
    "close": lambda p: p.transport.close(),
    "abort": lambda p: p.transport.abort(),
    "write and close": lambda p: (p.transport.write(b"re-entered"), p.transport.close()),
    "write_eof": lambda p: p.transport.can_write_eof() and p.transport.write_eof(),
    "pause_reading": lambda p: p.transport.pause_reading(),
    "resume_reading": lambda p: p.transport.resume_reading(),
    "set_protocol": lambda p: p.transport.set_protocol(p),
    "set_write_buffer_limits": lambda p: p.transport.set_write_buffer_limits(0),
    "everything": lambda p: (
        p.transport.pause_reading(),
        p.transport.write(b"re-entered"),
        p.transport.resume_reading(),
        p.transport.get_write_buffer_size(),
        p.transport.close(),
        p.transport.abort(),
        p.transport.pause_reading(),
        p.transport.write(b"late"),
    ),
}
CALLBACKS = ["connection_made", "data_received", "eof_received", "pause_writing", "resume_writing", "connection_lost"]


async def story(loop, endpoint, directory, authority, callback, action):
    """One life of a connection whose `callback` does `action`; tell what happened, in a comparable form."""
    lost_inside = []
    running = []

    def act(protocol, *_):
        if running:
            return
        running.append(1)
        try:
            ACTIONS[action](protocol)
        finally:
            lost_inside.append("connection_lost" in protocol.events and callback != "connection_lost")
            running.clear()

    connect = Connector(loop, endpoint, directory, authority)
    transport, protocol, peer = await connect(lambda: Recorder(**{callback: act}), small=True)
    await peer.attempt(lambda: None)
    reading = asyncio.ensure_future(peer.recv_all())
    try:
        if not transport.is_closing():
            try:
                transport.write(b"w" * MIB)
            except RuntimeError as exc:
                assert "after write_eof" in str(exc)
        await peer.sendall(b"data")
        await asyncio.sleep(0.01)
        transport.resume_reading()
        peer.eof()
    except OSError:
        pass
    for _ in range(200):
        if protocol.lost:
            break
        transport.resume_reading()
        await asyncio.sleep(0.001)
    else:
        transport.abort()
        await until(lambda: protocol.lost)
    peer_got = await reading
    await connect.finish()
    assert not any(lost_inside), "connection_lost was called inside the action"
    assert protocol.events.count("connection_lost") == 1
    assert protocol.events.count("connection_made") == 1
    assert protocol.events.count("eof_received") <= 1
    assert protocol.events[0] == "connection_made" and protocol.events[-1] == "connection_lost"
    paused = [name for name in protocol.events if name in ("pause_writing", "resume_writing")]
    assert paused[::2] == ["pause_writing"] * len(paused[::2]), paused
    return len(peer_got) > 0, peer_got.replace(b"re-entered", b"").strip(b"w").strip(b"r") == b""


@plain
@pytest.mark.left_out(
    lambda loop_name, callback, action, **_: (loop_name, callback, action) == ("stock", "connection_lost", "big write"),
    reason="the stock loop still writes, and pauses the protocol, after connection_lost()",
)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_every_callback_may_do_anything_to_the_transport(
    connect, loop, run, tmp_path, authority, callback, action, loop_name, guard
):
    run(story(loop, f"{connect.kind}-{connect.side}", tmp_path, authority, callback, action))
    if loop_name == "stock" and callback in ("resume_writing", "connection_lost"):
        # Closing there makes the stock loop call its own _call_connection_lost() twice, or wait with callback None.
        assert all("_call_connection_lost(" in text or "callback None(" in text for text in guard.log.take())


@plain
def test_closing_from_data_received_stops_the_data(connect, run):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(data_received=lambda p: p.transport.close()))
        await peer.sendall(b"x" * 100_000)
        await until(lambda: protocol.lost)
        assert protocol.events == ["connection_made", "data_received", "connection_lost"]

    run(main())


def test_a_write_from_connection_made_is_the_first_thing_the_peer_sees(connect, run):
    async def main():
        _, _, peer = await connect(lambda: Recorder(connection_made=lambda p: p.transport.write(b"welcome")))
        assert await peer.recv_exactly(7) == b"welcome"

    run(main())


@plain
def test_closing_from_connection_made(connect, run):
    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(connection_made=lambda p: p.transport.close()))
        assert transport.is_closing()
        assert await peer.recv_all() == b""
        await until(lambda: protocol.lost)
        assert protocol.events == ["connection_made", "connection_lost"]

    run(main())


@plain
def test_a_write_that_breaks_the_connection_reports_later(connect, run):
    """The protocol of a broken connection is told in a later turn, not inside its own write()."""

    async def main():
        transport, protocol, peer = await connect(lambda: Recorder(eof_received=lambda p: True))
        peer.close()
        await until(lambda: "eof_received" in protocol.events)
        for _ in range(3):
            transport.write(b"x" * 100_000)
            assert not protocol.lost or protocol.inside is None
        await until(lambda: protocol.lost)

    run(main())


# ---------------------------------------------------------------- replacing the protocol


def test_get_and_set_protocol(connect, run):
    async def main():
        transport, protocol, peer = await connect()
        assert transport.get_protocol() is protocol
        await peer.sendall(b"first")
        await until(lambda: protocol.data == b"first")
        second = Recorder()
        assert transport.set_protocol(second) is None
        assert transport.get_protocol() is second
        await peer.sendall(b"second")
        await until(lambda: second.data == b"second")
        third = BufferedRecorder()
        transport.set_protocol(third)
        await peer.sendall(b"third")
        await until(lambda: third.data == b"third")
        transport.set_protocol(protocol)
        await peer.sendall(b"fourth")
        await until(lambda: protocol.data == b"firstfourth")
        peer.close()
        await until(lambda: protocol.lost)
        assert second.events == ["data_received"] and third.events == ["buffer_updated"]

    run(main())


def test_replacing_the_protocol_inside_its_own_callback(connect, run):
    async def main():
        second = BufferedRecorder()
        transport, protocol, peer = await connect(
            lambda: Recorder(data_received=lambda p: p.transport.set_protocol(second))
        )
        await peer.sendall(b"first")
        await until(lambda: protocol.data)
        await peer.sendall(b"second")
        await until(lambda: second.data)
        assert (protocol.data, second.data) == (b"first", b"second")
        transport.close()
        await peer.leave()
        await until(lambda: second.lost)
        assert not protocol.lost

    run(main())


@plain
def test_replacing_the_protocol_after_close_sends_it_connection_lost(connect, run):
    async def main():
        transport, protocol, _ = await connect()
        second = Recorder()
        transport.close()
        transport.set_protocol(second)
        await until(lambda: second.lost)
        assert protocol.events == ["connection_made"] and second.events == ["connection_lost"]

    run(main())


# ---------------------------------------------------------------- BufferedProtocol


def test_a_buffered_protocol_receives_everything(connect, run):
    data = bytes(range(256)) * 2048

    async def main():
        transport, protocol, peer = await connect(lambda: BufferedRecorder(size=5000))
        await peer.sendall(data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data
        assert all(isinstance(hint, int) for hint in protocol.hints)
        peer.close()
        await until(lambda: protocol.lost)
        assert protocol.events[-2:] == ["eof_received", "connection_lost"]

    run(main())


@pytest.mark.parametrize("connect", ["tcp-client", "unix-client"], indirect=True)
@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "part"])
def test_a_buffered_protocol_may_give_any_writable_buffer(connect, run, kind):
    async def main():
        store = bytearray(100)
        buffer = {"bytearray": store, "memoryview": memoryview(store), "part": memoryview(store)[10:13]}[kind]
        got = bytearray()

        class Own(asyncio.BufferedProtocol):
            def get_buffer(self, hint):
                return buffer

            def buffer_updated(self, count):
                got.extend(buffer[:count])

        transport, _, peer = await connect(Own)
        await peer.sendall(b"some data here")
        await until(lambda: len(got) == 14)
        assert got == b"some data here"
        peer.close()
        await turns(3)
        await asyncio.sleep(0.01)

    run(main())


@plain
@pytest.mark.parametrize(
    "buffer, error",
    [
        (lambda p: bytearray(), "get_buffer() returned an empty buffer"),
        (lambda p: None, "object of type 'NoneType' has no len()"),
        (lambda p: b"read-only", None),
        (lambda p: 5, "object of type 'int' has no len()"),
    ],
    ids=["empty", "None", "read-only", "int"],
)
def test_a_buffer_that_cannot_be_filled_ends_the_connection(connect, run, contexts, buffer, error):
    async def main():
        _, protocol, peer = await connect(lambda: BufferedRecorder(get_buffer=buffer))
        await peer.sendall(b"data")
        await until(lambda: protocol.lost)
        report = contexts.take_one()
        assert set(report) == {"message", "exception", "transport", "protocol"}
        expected = (
            "Fatal read error on socket transport"
            if error is None
            else "Fatal error: protocol.get_buffer() call failed."
        )
        assert report["message"] == expected
        assert type(report["exception"]) in (RuntimeError, TypeError, BufferError)
        assert error is None or str(report["exception"]) == error

    run(main())


@plain
def test_a_buffer_of_no_bytes_is_the_end_of_the_stream(connect, run):
    class Empty(bytearray):
        def __len__(self):
            return 5

    async def main():
        _, protocol, peer = await connect(lambda: BufferedRecorder(get_buffer=lambda p: Empty()))
        await peer.sendall(b"data")
        await until(lambda: protocol.lost)
        assert protocol.events[-2:] == ["eof_received", "connection_lost"]

    run(main())


# ---------------------------------------------------------------- contexts

variable = contextvars.ContextVar("variable", default=0)


class Counting(Recorder):
    """Sets the variable in each callback to see what the next callback sees."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def note(self, name, *args):
        self.seen.setdefault(name, []).append(variable.get())
        variable.set(variable.get() + 1)
        return super().note(name, *args)


@plain
def test_callbacks_see_the_context_in_which_the_connection_was_made(connect, run):
    async def main():
        variable.set(100)
        transport, protocol, peer = await connect(Counting)
        variable.set(-1)
        for i in range(3):
            await peer.sendall(b"data")
            await until(lambda i=i: len(protocol.seen.get("data_received", ())) == i + 1)
        peer.close()
        await until(lambda: protocol.lost)
        assert variable.get() == -1
        assert protocol.seen == {
            "connection_made": [100],
            # All reading callbacks share one context, with the others from 3.15 on.
            "data_received": [101, 102, 103] if KEEPS_CONTEXT else [100, 101, 102],
            "eof_received": [104 if KEEPS_CONTEXT else 103],
            "connection_lost": [105 if KEEPS_CONTEXT else 104],
        }

    run(main())


@plain
def test_connection_lost_sees_the_context_of_the_one_who_closes_or_of_its_connection(connect, run):
    async def main():
        variable.set(100)
        transport, protocol, _ = await connect(Counting)
        variable.set(500)
        transport.close()
        variable.set(600)
        await until(lambda: protocol.lost)
        assert protocol.seen["connection_lost"] == [101 if KEEPS_CONTEXT else 500]

    run(main())


@plain
def test_flow_callbacks_see_the_context_of_the_writer(connect, run):
    async def main():
        variable.set(100)
        transport, protocol, peer = await connect(Counting, small=True)
        variable.set(700)
        transport.write(b"x" * 4 * MIB)
        assert protocol.seen["pause_writing"] == [700]
        variable.set(800)
        await peer.recv_exactly(4 * MIB)
        await until(lambda: "resume_writing" in protocol.seen)
        assert protocol.seen["resume_writing"] == [101 if KEEPS_CONTEXT else 700]
        transport.close()

    run(main())


@pytest.mark.fastloop_only(reason="compares with the stock loop")
@pytest.mark.parametrize("endpoint", Connector.ENDPOINTS)
def test_the_contexts_are_those_of_the_stock_loop(loop, run, tmp_path, authority, endpoint):
    async def scenario(loop, folder):
        variable.set(100)
        folder.mkdir()
        connect = Connector(loop, endpoint, folder, authority)
        transport, protocol, peer = await connect(Counting, small=True)
        variable.set(1000)
        await peer.sendall(b"data")
        await until(lambda: protocol.data)
        variable.set(2000)
        # Over TLS the first write goes down as a whole; what comes after it is held.
        for _ in range(4):
            transport.write(b"x" * MIB)
        variable.set(3000)
        await peer.recv_exactly(4 * MIB)
        await until(lambda: "resume_writing" in protocol.seen)
        variable.set(4000)
        transport.close()
        await peer.leave()
        await until(lambda: protocol.lost)
        await connect.finish()
        return protocol.seen

    stock = new_loop("stock")
    expected = contextvars.copy_context().run(stock.run_until_complete, scenario(stock, tmp_path / "stock"))
    settle(stock)
    stock.close()
    assert contextvars.copy_context().run(run, scenario(loop, tmp_path / "ours")) == expected


# ---------------------------------------------------------------- what is delivered


class Collector(asyncio.Protocol):
    """Echoes each delivery, and keeps the object itself of every third one."""

    def __init__(self):
        self.kept = []
        self.copies = []
        self.hashes = []

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert type(data) is bytes
        if len(self.copies) % 3 == 0:
            self.kept.append((len(self.copies), data))
        self.copies.append(bytes(bytearray(data)))
        self.hashes.append(hash(data))
        self.transport.write(data)


@plain
def test_each_delivery_is_an_object_of_its_own(connect, run):
    async def main():
        transport, protocol, peer = await connect(Collector)
        # Larger and smaller ones by turns: memory may be used again, and not for what is kept.
        sizes = [512, 513, 514, 1024, 1025, 600, 1500, 1537, 1100, 2047, 4096, 16 * 1024, 16 * 1024 + 1] * 3
        sent = b""
        for number, size in enumerate(sizes + sizes[::-1]):
            message = bytes([number]) * size
            sent += message
            await peer.sendall(message)
            assert await peer.recv_exactly(size) == message
        assert b"".join(protocol.copies) == sent
        assert protocol.hashes == [hash(copy) for copy in protocol.copies]
        for index, data in protocol.kept:
            assert data == protocol.copies[index] and hash(data) == protocol.hashes[index]

    run(main())
