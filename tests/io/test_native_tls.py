"""The data path of TLS, native and not: the same bytes and the same calls, whatever the peer and the protocol do."""

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import ssl
import stat
import struct
import subprocess
import sys
import termios
import threading

import pytest

from helpers import GIL, BufferedRecorder, Recorder, small_buffers, socket_pair, turns, until, without_clients

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


pytestmark = pytest.mark.usefixtures("path")


def is_native(path):
    from fastloop import tls

    return path == "native" and tls.problem() is None


class RawPeer:
    """The other side of a connection, which decides by itself what is sent when: TLS over memory, then a socket."""

    def __init__(self, loop, sock, context, **options):
        self.loop = loop
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)

    async def send(self, ciphertext=b""):
        await self.loop.sock_sendall(self.sock, ciphertext + self.outgoing.read())

    async def receive(self):
        """Take in what comes next; False at the end of the stream."""
        data = await self.loop.sock_recv(self.sock, 1 << 18)
        self.incoming.write(data)
        return bool(data)

    async def call(self, function, *args):
        """Call a function of the SSLObject until it has all it needs."""
        while True:
            try:
                return function(*args)
            except ssl.SSLWantReadError:
                await self.send()
                if not await self.receive():
                    raise EOFError from None
            finally:
                await self.send()

    def seal(self, *pieces):
        """One record (at least) for each of the pieces."""
        for piece in pieces:
            self.tls.write(piece)
        return self.outgoing.read()

    async def read(self):
        """The plaintext of the next record; b"" after a good-bye, None when the connection ends without."""
        try:
            return await self.call(self.tls.read, 1 << 17)
        except (EOFError, ConnectionError):
            return None
        except ssl.SSLZeroReturnError:
            return b""

    async def read_exactly(self, size):
        data = bytearray()
        while len(data) < size:
            data += await self.read()
        return bytes(data)


class Link:
    """A connection between a protocol on the loop and a RawPeer; either may be the server."""

    def __init__(self, loop, authority):
        self.loop = loop
        self.authority = authority
        self.server = authority.server_context("localhost")
        self.client = authority.client_context()
        self.peers = []
        self.transports = []

    async def __call__(self, factory=Recorder, kind="tcp", server_side=True, version=None, small=False):
        if version:
            self.client.minimum_version = self.client.maximum_version = VERSIONS[version]
        ours, theirs = socket_pair(kind)
        if small:
            small_buffers(ours, theirs)
        if server_side:
            peer = RawPeer(self.loop, theirs, self.client, server_hostname="localhost")
            made = self.loop.connect_accepted_socket(factory, ours, ssl=self.server)
        else:
            peer = RawPeer(self.loop, theirs, self.server, server_side=True)
            made = self.loop.create_connection(factory, sock=ours, ssl=self.client, server_hostname="localhost")
        self.peers.append(peer)
        (transport, protocol), _ = await asyncio.gather(made, peer.call(peer.tls.do_handshake))
        self.transports.append(transport)
        return protocol, peer

    async def finish(self):
        for peer in self.peers:
            peer.sock.close()
        for transport in self.transports:
            with contextlib.suppress(AttributeError):
                transport.abort()
        await turns(5)


@pytest.fixture
def link(loop, run, authority):
    made = Link(loop, authority)
    yield made
    run(made.finish())


class Echo(Recorder):
    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


def pieces_of(data, seed, most):
    chance = random.Random(seed)
    at = 0
    while at < len(data):
        size = chance.randint(1, most)
        yield data[at : at + size]
        at += size


def test_a_good_bye_behind_data_that_makes_the_protocol_pause(link, run):
    """It comes in the same read, and is told although reading is paused."""

    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=lambda p: p.transport.pause_reading()))
        peer.tls.write(b"x" * 1000)
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send()
        await until(lambda: "eof_received" in protocol.events)
        assert protocol.data == b"x" * 1000
        assert await peer.read() == b""

    run(main())


# ---------------------------------------------------------------- which way


@pytest.mark.left_out(not GIL, reason="TLS in C needs a GIL")
@pytest.mark.fastloop_only(reason="what serves which connection")
def test_what_is_served_natively(link, run, path):
    from asyncio import sslproto

    async def main():
        protocol, _ = await link()
        transport = protocol.transport
        assert isinstance(transport, sslproto._SSLProtocolTransport)
        assert isinstance(transport._ssl_protocol, sslproto.SSLProtocol)
        native = type(transport._ssl_protocol) is not sslproto.SSLProtocol
        assert native == is_native(path)
        if native:
            assert transport._ssl_protocol._is_native()

    run(main())


@pytest.mark.left_out(not GIL, reason="TLS in C needs a GIL")
@pytest.mark.fastloop_only(reason="what serves which connection")
def test_a_context_with_python_in_it_is_left_to_python(link, run, authority, tmp_path):
    from asyncio import sslproto

    class Context(ssl.SSLContext):
        pass

    class Object(ssl.SSLObject):
        pass

    derived = Context(ssl.PROTOCOL_TLS_SERVER)
    replaced = authority.server_context("localhost")
    replaced.sslobject_class = Object
    logging = authority.server_context("localhost")
    logging.keylog_filename = str(tmp_path / "keys")
    authority.authority.issue_cert("localhost").configure_cert(derived)

    async def main():
        for context in (derived, replaced, logging):
            link.server = context
            protocol, peer = await link()
            assert type(protocol.transport._ssl_protocol) is sslproto.SSLProtocol
            await peer.send(peer.seal(b"hello"))
            await until(lambda p=protocol: p.data == b"hello")

    run(main())
    logging.keylog_filename = None


def test_methods_of_asyncio_that_were_replaced_are_called(link, run, monkeypatch):
    from asyncio import sslproto

    seen = []
    original = sslproto.SSLProtocol._do_read__copied
    monkeypatch.setattr(sslproto.SSLProtocol, "_do_read__copied", lambda self: (seen.append(self), original(self)))

    async def main():
        protocol, peer = await link(Echo)
        before = len(seen)
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello" and len(seen) > before

    run(main())


@pytest.mark.parametrize("method", ["read", "write"])
def test_methods_of_sslobject_that_were_replaced_are_called(link, run, monkeypatch, method):
    seen = []
    original = getattr(ssl.SSLObject, method)
    monkeypatch.setattr(ssl.SSLObject, method, lambda self, *args: (seen.append(self), original(self, *args))[1])

    async def main():
        protocol, peer = await link(Echo)
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello"
        assert protocol.transport.get_extra_info("ssl_object") in seen

    run(main())
    seen.clear()


@pytest.mark.fastloop_only(reason="how a library is recognised")
def test_another_library_is_not_mistaken_for_the_one_in_use():
    from fastloop import _core

    for library in ("", "/no/such/library", _core.__file__):
        child = f"""
            from fastloop import _core
            try:
                _core.TLSConnection._find_openssl({library!r}, lambda: 1 / 0)
            except RuntimeError as exc:
                print(exc)
        """
        source = "\n".join(line.strip() if line.startswith(" " * 12) else line for line in child.splitlines())
        source = source.replace("try:\n", "try:\n ").replace("exc:\n", "exc:\n ")
        result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
        assert "OpenSSL" in result.stdout or "_ssl" in result.stdout or "free-threaded" in result.stdout, result


ODD_OBJECTS = """
    import _ssl, ssl
    from fastloop import _core

    made = []

    def make(count=1):
        for _ in range(count):
            pair = ssl.MemoryBIO(), ssl.MemoryBIO()
            made.append((*pair, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(*pair, server_side=True)._sslobj))
        return made[-1]

    def turning():
        # The third time around something else.
        return make() if len(made) < 2 else (*make()[:2], bytearray())

    for odd in (
        lambda: (),
        lambda: 1 / 0,
        lambda: None,
        lambda: make(2),
        lambda: made[0],
        lambda: (*make()[:2], object()),
        lambda: (*make()[:2], "text"),
        lambda: (object(), object(), make()[2]),
        lambda: (make()[0], ssl.MemoryBIO(), made[-1][2]),
        lambda: (made[-1], *make()[1:]),
        lambda: make()[::-1],
        turning,
    ):
        try:
            _core.TLSConnection._find_openssl(_ssl.__file__, odd)
        except Exception as exc:
            print(type(exc).__name__, exc)
    _core.TLSConnection._find_openssl(_ssl.__file__, make)
    _core.TLSConnection._find_openssl("anything", None)
    print("found")
"""


@pytest.mark.left_out(not GIL, reason="TLS in C needs a GIL")
@pytest.mark.fastloop_only(reason="what serves which connection")
def test_objects_that_do_not_fit_are_refused(python, path):
    """Nothing is read from what is not the very SSL that OpenSSL has made just then, and the right ones are found."""
    *refused, last = python(ODD_OBJECTS).splitlines()
    if "free-threaded" in refused[0]:
        pytest.skip("Python is free-threaded: TLS is not native there")
    assert last == "found" and len(refused) == 12 and "ZeroDivisionError division by zero" in refused
    assert "RuntimeError an object of _ssl holds its pointer nowhere" in refused
    assert "RuntimeError the library that was found is not the one that _ssl uses" in refused


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 1000, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 300_000])
def test_echo_of_every_size(link, run, version, size):
    async def main():
        protocol, peer = await link(Echo, version=version)
        message = random.Random(size).randbytes(size)
        sending = [peer.seal(piece) for piece in pieces_of(message, size, 20_000)]
        sender = asyncio.ensure_future(peer.send(b"".join(sending)))
        assert await peer.read_exactly(size) == message
        await sender
        assert protocol.data == message

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_ten_megabytes_in_random_pieces_both_ways(loop, run, authority, version):
    message = random.Random(1).randbytes(10 * 1024 * 1024)

    async def main():
        echo = Echo()
        context = authority.client_context()
        context.minimum_version = context.maximum_version = VERSIONS[version]
        server = await loop.create_server(lambda: echo, "127.0.0.1", 0, ssl=authority.server)
        transport, protocol = await loop.create_connection(
            Recorder, *server.sockets[0].getsockname(), ssl=context, server_hostname="localhost"
        )
        for number, piece in enumerate(pieces_of(message, 2, 200_000)):
            if number % 3:
                transport.write(piece)
            else:
                transport.writelines([piece[:5], bytearray(piece[5:100]), memoryview(piece)[100:]])
            if number % 10 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(protocol.data) >= len(message))
        assert echo.data == message and protocol.data == message
        transport.close()
        await until(lambda: protocol.lost and echo.lost)
        server.close()

    run(main())


def test_what_is_changed_after_write_is_sent_as_it_was(link, run):
    async def main():
        protocol, peer = await link()
        data = bytearray(b"first")
        protocol.transport.write(data)
        data[:] = b"other"
        protocol.transport.writelines([memoryview(data), b"", b"!"])
        data[:] = b"third"
        assert await peer.read_exactly(11) == b"firstother!"

    run(main())


@pytest.mark.fastloop_only(reason="the stock loop makes a record of each write")
def test_small_writes_of_a_turn_share_a_record(link, run, path):
    async def main():
        protocol, peer = await link()
        for _ in range(100):
            protocol.transport.write(b"0123456789")
        first = await peer.read()
        assert len(first) == (1000 if is_native(path) else 10)

    run(main())


def test_wrong_arguments_of_write(link, run):
    async def main():
        protocol, _ = await link()
        for wrong in (None, "text", 1, [b"list"]):
            with pytest.raises(TypeError, match="data: expecting a bytes-like instance, got"):
                protocol.transport.write(wrong)
        assert protocol.transport.write(b"") is None
        with pytest.raises(TypeError):
            protocol.transport.writelines(None)
        with pytest.raises(NotImplementedError):
            protocol.transport.write_eof()

    run(main())


def test_a_memoryview_with_gaps_ends_the_connection(link, run, contexts):
    async def main():
        protocol, peer = await link()
        protocol.transport.write(b"before")
        protocol.transport.write(memoryview(b"-a-b-c-")[::2])
        await until(lambda: protocol.lost)
        context = contexts.take_one()
        assert context["message"] == "Fatal error on SSL protocol" and type(context["exception"]) is BufferError

    run(main())


WRONG_LINES = {"None": None, "number": 1, "text": "text", "gaps": memoryview(b"-a-b-c-")[::2]}


@pytest.mark.parametrize("then", ["close", "write", "writelines", "read"])
@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_a_line_that_is_no_bytes(link, run, contexts, wrong, then):
    """It ends the connection: what has no length is refused right here, and the rest when the queue comes to it."""

    async def main():
        protocol, peer = await link()
        raised = None
        try:
            protocol.transport.writelines([b"before", WRONG_LINES[wrong], b"behind"])
        except TypeError as exc:
            raised = exc
        if then == "close":
            protocol.transport.close()
        elif then == "write":
            protocol.transport.write(b"more")
        elif then == "writelines":
            protocol.transport.writelines([b"more"])
        else:
            await peer.send(peer.seal(b"data"))
        await until(lambda: protocol.lost)
        # As it is met, and perhaps when what is left shall go out.
        kinds = {type(context["exception"]) for context in contexts.take()}
        assert kinds == {BufferError if wrong == "gaps" else TypeError}
        assert (raised is not None) == (wrong in ("None", "number"))

    run(main())


def test_lines_beside_one_that_is_no_bytes_are_not_sent(link, run, contexts):
    async def main():
        protocol, peer = await link()
        protocol.transport.write(b"first")
        protocol.transport.writelines([b"before", WRONG_LINES["gaps"], b"behind"])
        assert await peer.read() == b"first"
        assert await peer.read() is None
        await until(lambda: protocol.lost)
        assert type(contexts.take_one()["exception"]) is BufferError

    run(main())


def test_lines_that_fail_on_the_way(link, run):
    """The lines that came before stay written."""

    def lines():
        yield b"before"
        raise LookupError

    async def main():
        protocol, peer = await link()
        with pytest.raises(LookupError):
            protocol.transport.writelines(lines())
        protocol.transport.write(b"behind")
        assert await peer.read_exactly(12) == b"beforebehind"

    run(main())


def test_lines_that_end_the_connection(link, run):
    def lines(transport):
        yield b"before"
        transport.abort()
        yield b"behind"

    async def main():
        protocol, peer = await link()
        protocol.transport.writelines(lines(protocol.transport))
        await until(lambda: protocol.lost)
        assert await peer.read() is None

    run(main())


def test_the_program_writes_by_the_sslobject_too(link, run):
    async def main():
        protocol, peer = await link()
        transport = protocol.transport
        transport.write(b"1")
        sslobject = transport.get_extra_info("ssl_object")
        sslobject.write(b"2")
        transport.write(b"3")
        sslobject.write(b"4")
        transport.writelines([b"5", b"6"])
        assert await peer.read_exactly(6) == b"123456"
        transport.write(b"7")
        with contextlib.suppress(ssl.SSLWantReadError):
            sslobject.unwrap()
        assert await peer.read() == b"7"

    run(main())


@pytest.mark.parametrize("count", [1, 3])
def test_written_when_the_program_has_said_good_bye(link, run, count):
    """By the ssl_object of the transport: OpenSSL refuses what comes then, and the connection ends with its error."""

    async def main():
        protocol, peer = await link()
        with contextlib.suppress(ssl.SSLWantReadError):
            protocol.transport.get_extra_info("ssl_object").unwrap()
        for number in range(count):
            protocol.transport.write(b"line %d" % number)
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, ssl.SSLError) and "shutdown" in str(protocol.error)

    run(main())


def test_ciphertext_that_comes_byte_by_byte(link, run):
    async def main():
        protocol, peer = await link(Echo)
        for byte in peer.seal(b"slowly", b"but surely"):
            await peer.send(bytes([byte]))
            await turns(1)
        assert await peer.read_exactly(16) == b"slowlybut surely"

    run(main())


def test_a_peer_that_stalls_within_a_record(link, run):
    async def main():
        protocol, peer = await link(Echo)
        sealed = peer.seal(b"a" * 1000, b"b" * 1000)
        await peer.send(sealed[:1500])
        await until(lambda: protocol.data == b"a" * 1000)
        protocol.transport.write(b"meanwhile")
        assert await peer.read_exactly(1009) == b"a" * 1000 + b"meanwhile"
        await peer.send(sealed[1500:])
        assert await peer.read_exactly(1000) == b"b" * 1000

    run(main())


# ---------------------------------------------------------------- errors and ends


def test_a_truncated_record(link, run):
    async def main():
        protocol, peer = await link()
        await peer.send(peer.seal(b"whole") + peer.seal(b"half")[:10])
        await until(lambda: protocol.data == b"whole")
        peer.sock.close()
        await until(lambda: protocol.lost)
        assert protocol.data == b"whole"

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_record_that_was_tampered_with(link, run, version):
    async def main():
        protocol, peer = await link(version=version)
        sealed = bytearray(peer.seal(b"attack at dawn"))
        sealed[-1] ^= 1
        await peer.send(bytes(sealed))
        await until(lambda: protocol.lost)
        assert type(protocol.error) is ssl.SSLError
        # The second is all that newer versions of OpenSSL tell last.
        assert protocol.error.reason in ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "RECORD_LAYER_FAILURE")
        assert protocol.data == b""

    run(main())


@pytest.mark.parametrize("factory", [Recorder, BufferedRecorder])
def test_a_record_that_was_tampered_with_behind_a_good_one(link, run, factory):
    """In the same read."""

    async def main():
        protocol, peer = await link(factory)
        good, bad = peer.seal(b"good"), bytearray(peer.seal(b"bad"))
        bad[-1] ^= 1
        await peer.send(good + bytes(bad))
        await until(lambda: protocol.lost)
        assert type(protocol.error) is ssl.SSLError
        assert protocol.data in (b"", b"good")

    run(main())


@pytest.mark.parametrize("action", ["abort", "close"])
def test_get_buffer_may_end_the_connection(link, run, action):
    ending = []

    def get_buffer(protocol):
        if ending:
            getattr(protocol.transport, action)()
        return memoryview(protocol.buffer)

    async def main():
        protocol, peer = await link(lambda: BufferedRecorder(get_buffer=get_buffer))
        ending.append(True)
        await peer.send(peer.seal(b"data"))
        if action == "close":
            assert await peer.read() in (b"", None)
            peer.sock.close()
        await until(lambda: protocol.lost)
        assert protocol.events.count("connection_lost") == 1

    run(main())


LONG_AND_SHORT = {
    "long first": [b"a" * 20_000, b"b" * 10, b"c" * 40_000],
    "many short": [b"%03d" % number * 400 for number in range(60)],
    "short and long": [b"a", b"b" * 16_383, b"c" * 16_385, b"", b"d"],
}


@pytest.mark.parametrize("lines", LONG_AND_SHORT)
def test_lines_of_all_lengths_arrive_in_order(link, run, lines):
    async def main():
        protocol, peer = await link()
        message = b"".join(LONG_AND_SHORT[lines])
        reading = asyncio.ensure_future(peer.read_exactly(len(message)))
        protocol.transport.writelines(LONG_AND_SHORT[lines])
        assert await reading == message

    run(main())


@pytest.mark.parametrize("action", ["abort", "close"])
def test_ended_while_the_socket_is_full(link, run, action):
    """What was written just before goes the way of what was before it."""

    async def main():
        protocol, peer = await link(small=True)
        while "pause_writing" not in protocol.events:
            protocol.transport.write(bytes(100_000))
            await turns(1)
        protocol.transport.write(b"last")
        getattr(protocol.transport, action)()
        if action == "close":
            while await peer.read():
                pass
            peer.sock.close()
        await until(lambda: protocol.lost)
        assert protocol.events.count("connection_lost") == 1

    run(main())


def test_garbage_in_place_of_a_record(link, run):
    async def main():
        protocol, peer = await link()
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        await until(lambda: protocol.lost)
        assert type(protocol.error) is ssl.SSLError and protocol.error.library == "SSL"
        reasons = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
        assert protocol.error.reason in reasons

    run(main())


def test_data_and_good_bye_in_one(link, run):
    async def main():
        protocol, peer = await link()
        sealed = peer.seal(b"the last words")
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send(sealed)
        await until(lambda: protocol.lost)
        assert protocol.data == b"the last words" and protocol.error is None
        assert protocol.story == ["connection_made", "data_received", "eof_received", "connection_lost"]

    run(main())


def test_written_and_closed_in_one_turn(link, run):
    async def main():
        protocol, peer = await link()
        protocol.transport.write(b"last ")
        protocol.transport.write(b"words")
        protocol.transport.close()
        protocol.transport.write(b"too late")
        assert await peer.read_exactly(10) == b"last words"
        assert await peer.read() == b""
        with contextlib.suppress(ssl.SSLError, OSError):
            await peer.call(peer.tls.unwrap)
        await until(lambda: protocol.lost)
        assert protocol.error is None

    run(main())


def test_written_when_the_peer_has_said_good_bye(link, run):
    async def main():
        protocol, peer = await link(lambda: Recorder(eof_received=lambda p: p.transport.write(b"answer")))
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send()
        await until(lambda: protocol.lost)

    run(main())


@pytest.mark.parametrize("when", ["made", "received"])
def test_written_and_aborted_in_one_turn(link, run, when):
    def act(protocol):
        protocol.transport.write(b"x" * 100)
        protocol.transport.abort()
        protocol.transport.write(b"y" * 100)

    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=act if when == "received" else None))
        if when == "made":
            act(protocol)
        await peer.send(peer.seal(b"one", b"two"))
        await until(lambda: protocol.lost)
        assert protocol.error is None and protocol.events.count("data_received") <= 1

    run(main())


def test_closed_in_data_received_with_more_to_come(link, run):
    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=lambda p: p.transport.close()))
        await peer.send(peer.seal(*[b"x" * 10_000] * 20))
        assert await peer.read() in (b"", None)
        peer.sock.close()
        await until(lambda: protocol.lost)

    run(main())


def test_writes_after_close_are_dropped(link, run, caplog):
    async def main():
        protocol, peer = await link()
        transport = protocol.transport
        transport.abort()
        await until(lambda: protocol.lost)
        for _ in range(7):
            transport.write(b"x")
            transport.writelines([b"y"])
        assert "SSL connection is closed" in caplog.text
        transport.close()
        transport.close()
        assert transport.get_protocol is not None

    run(main())


def test_an_exception_in_data_received(link, run, contexts):
    def fail(protocol):
        raise ValueError("deliberate")

    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=fail))
        await peer.send(peer.seal(b"one"))
        await until(lambda: protocol.lost)
        context = contexts.take_one()
        assert context["message"] == "Fatal error on SSL protocol"
        assert str(context["exception"]) == "deliberate" and protocol.error is context["exception"]

    run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_data_received(link, loop, run, error):
    def fail(protocol):
        raise error

    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=fail))
        await peer.send(peer.seal(b"one"))
        await until(lambda: protocol.data)
        await asyncio.sleep(1)

    task = loop.create_task(main())
    with pytest.raises(error):
        run(task)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        run(task)


def test_another_protocol_takes_over_in_data_received(link, run):
    second = Recorder()
    buffered = BufferedRecorder(5)

    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=lambda p: p.transport.set_protocol(second)))
        await peer.send(peer.seal(b"first"))
        await until(lambda: protocol.data == b"first")
        await peer.send(peer.seal(b"second"))
        await until(lambda: second.data == b"second")
        protocol.transport.set_protocol(buffered)
        await peer.send(peer.seal(b"third, in pieces"))
        await until(lambda: buffered.data == b"third, in pieces")
        assert protocol.transport.get_protocol() is buffered
        protocol.transport.abort()
        await until(lambda: buffered.lost)

    run(main())


# ---------------------------------------------------------------- flow control


def test_paused_while_plaintext_waits(link, run):
    async def main():
        protocol, peer = await link(lambda: Recorder(data_received=lambda p: p.transport.pause_reading()))
        message = random.Random(3).randbytes(200_000)
        sending = asyncio.ensure_future(peer.send(peer.seal(*pieces_of(message, 3, 9000))))
        while len(protocol.data) < len(message):
            before = len(protocol.data)
            await until(lambda before=before: len(protocol.data) > before)
            assert not protocol.transport.is_reading()
            seen = len(protocol.data)
            await asyncio.sleep(0.005)
            assert len(protocol.data) == seen
            protocol.transport.resume_reading()
        await sending
        assert protocol.data == message

    run(main())


def test_the_socket_is_not_read_without_end_while_paused(link, run):
    async def main():
        protocol, peer = await link(small=True)
        protocol.transport.pause_reading()
        sealed = peer.seal(b"x" * (4 << 20))
        sending = asyncio.ensure_future(peer.send(sealed))
        await asyncio.sleep(0.05)
        assert not sending.done()
        assert protocol.transport.get_read_buffer_size() < 1 << 20
        protocol.transport.resume_reading()
        await until(lambda: len(protocol.data) == 4 << 20)
        await sending

    run(main())


def test_a_slow_reader_pauses_the_writer(link, run):
    async def main():
        protocol, peer = await link(small=True)
        transport = protocol.transport
        chunk, count = b"0123456789" * 1000, 0
        while "pause_writing" not in protocol.events:
            transport.write(chunk)
            count += 1
            if count % 7 == 0:
                await asyncio.sleep(0)
            assert count < 1000
        assert transport.get_write_buffer_size() >= transport.get_write_buffer_limits()[1]
        data = await peer.read_exactly(count * len(chunk))
        assert data == chunk * count
        await until(lambda: "resume_writing" in protocol.events)
        assert transport.get_write_buffer_size() == 0

    run(main())


@pytest.mark.parametrize("high", [0, 1, 5000])
def test_low_marks(link, run, high):
    async def main():
        protocol, peer = await link(small=True)
        transport = protocol.transport
        transport.set_write_buffer_limits(high=high)
        assert transport.get_write_buffer_limits() == (high // 4, high)
        protocol.events.clear()
        for _ in range(200):
            transport.write(b"x" * 5000)
            if protocol.events[-1:] == ["pause_writing"] and transport.get_write_buffer_size():
                break
        assert protocol.events[-1] == "pause_writing"
        assert len(await peer.read_exactly(5000)) >= 5000

    run(main())


def test_marks_beyond_every_size(link, run):
    async def main():
        protocol, peer = await link(small=True)
        transport = protocol.transport
        transport.set_write_buffer_limits(high=2**2000)
        assert transport.get_write_buffer_limits() == (2**1998, 2**2000)
        for _ in range(200):
            transport.write(b"x" * 5000)
        assert "pause_writing" not in protocol.events
        transport.set_write_buffer_limits(high=2**2000, low=0)
        assert transport.get_write_buffer_limits() == (0, 2**2000)
        assert len(await peer.read_exactly(200 * 5000)) == 200 * 5000
        assert "pause_writing" not in protocol.events

    run(main())


def test_drain_waits_for_a_slow_reader(link, run, loop):
    async def main():
        reader = asyncio.StreamReader()
        protocol, peer = await link(lambda: asyncio.StreamReaderProtocol(reader), small=True)
        writer = asyncio.StreamWriter(link.transports[0], protocol, reader, loop)
        for _ in range(300):
            writer.write(b"x" * 10_000)
        # What the socket does not take soon stays with the transport, above its marks.
        assert writer.transport.get_write_buffer_size() > 1_000_000
        assert protocol._paused
        await asyncio.gather(writer.drain(), peer.read_exactly(3_000_000))
        writer.transport.abort()
        writer.close()

    run(main())


# ---------------------------------------------------------------- BufferedProtocol


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_buffered_protocols(link, run, size):
    async def main():
        protocol, peer = await link(lambda: BufferedRecorder(size))
        message = random.Random(size).randbytes(3000)
        await peer.send(peer.seal(*pieces_of(message, size, 700)))
        await until(lambda: protocol.data == message)
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send(b"")
        await until(lambda: protocol.lost)
        assert protocol.story[-2:] == ["eof_received", "connection_lost"]

    run(main())


def fail(protocol):
    raise ValueError("deliberate")


@pytest.mark.parametrize(
    "action, error",
    [(fail, ValueError), (lambda p: b"read-only", TypeError), (lambda p: 1, TypeError), (lambda p: None, TypeError)],
)
def test_a_bad_buffer_ends_the_connection(link, run, contexts, action, error):
    # The stock loop asks once as soon as the handshake is done.
    state = {"bad": False}

    async def main():
        protocol, peer = await link(
            lambda: BufferedRecorder(get_buffer=lambda p: action(p) if state["bad"] else memoryview(p.buffer))
        )
        state["bad"] = True
        await peer.send(peer.seal(b"one"))
        await until(lambda: protocol.lost)
        assert isinstance(contexts.take_one()["exception"], error)

    run(main())


def test_buffer_updated_may_do_anything(link, run):
    async def main():
        protocol, peer = await link(lambda: BufferedRecorder(buffer_updated=lambda p: p.transport.abort()))
        await peer.send(peer.seal(b"x" * 5000))
        await until(lambda: protocol.lost)
        assert protocol.events.count("buffer_updated") == 1

    run(main())


# ---------------------------------------------------------------- OpenSSL's own matters


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_used_again(link, run, version):
    async def main():
        link.server.num_tickets = 2
        protocol, peer = await link(version=version)
        # The tickets of TLS 1.3 come behind the handshake.
        protocol.transport.write(b"hello")
        assert await peer.read() == b"hello"
        session = peer.tls.session
        ours, theirs = socket_pair("tcp")
        again = RawPeer(link.loop, theirs, link.client, server_hostname="localhost", session=session)
        link.peers.append(again)
        (transport, protocol), _ = await asyncio.gather(
            link.loop.connect_accepted_socket(Echo, ours, ssl=link.server), again.call(again.tls.do_handshake)
        )
        link.transports.append(transport)
        assert again.tls.session_reused and transport.get_extra_info("ssl_object").session_reused
        await again.send(again.seal(b"hello again"))
        assert await again.read() == b"hello again"

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_name_callback_that_switches_the_context(link, run, authority, version):
    other = authority.server_context("localhost")

    def choose(sslobject, name, context):
        assert name == "localhost"
        sslobject.context = other

    async def main():
        link.server.sni_callback = choose
        protocol, peer = await link(Echo, version=version)
        assert protocol.transport.get_extra_info("ssl_object").context is other
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello"

    run(main())
    link.server.sni_callback = None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_certificate(link, run, authority, version):
    async def main():
        link.server.load_verify_locations(str(authority.certificate))
        link.server.verify_mode = ssl.CERT_REQUIRED
        authority.authority.issue_cert("somebody").configure_cert(link.client)
        protocol, peer = await link(Echo, version=version)
        assert protocol.transport.get_extra_info("peercert")["subjectAltName"]
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello"

    run(main())


@pytest.mark.parametrize("server_side", [True, False])
def test_either_side_over_a_unix_socket(link, run, server_side):
    async def main():
        protocol, peer = await link(Echo, kind="unix", server_side=server_side)
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello"
        protocol.transport.close()
        assert await peer.read() in (b"", None)

    run(main())


async def openssl(*arguments):
    return await asyncio.create_subprocess_exec(
        "openssl", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


async def leave(process):
    process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.stdout.read()
    await process.wait()
    process._transport.close()
    await turns(3)


@contextlib.asynccontextmanager
async def s_client(server, version, *arguments):
    """`openssl s_client`, connected to an asyncio server."""
    port = server.sockets[0].getsockname()[1]
    flag = "-tls" + version.replace(".", "_")
    client = await openssl("s_client", "-connect", f"127.0.0.1:{port}", flag, "-servername", "localhost", *arguments)
    try:
        yield client
    finally:
        await leave(client)


@contextlib.asynccontextmanager
async def serving(loop, context):
    """An echo server, and the protocols that it makes."""
    made = []
    server = await loop.create_server(lambda: made.append(Echo()) or made[-1], "127.0.0.1", 0, ssl=context)
    try:
        yield server, made
    finally:
        server.close()
        for echo in made:
            if echo.transport:
                echo.transport.abort()
        await until(lambda: all(echo.lost for echo in made if echo.transport))


def taken(stream):
    """Whether a child has read all that was written to its standard input, which is a pipe or a socket."""
    fd = stream.get_extra_info("pipe").fileno()
    request = termios.TIOCOUTQ if stat.S_ISSOCK(os.fstat(fd).st_mode) else termios.FIONREAD
    return struct.unpack("i", fcntl.ioctl(fd, request, bytes(4))) == (0,)


@pytest.mark.parametrize("version, command", [("1.3", b"K\n"), ("1.3", b"k\n"), ("1.2", b"\n")])
def test_s_client_as_the_peer(loop, run, authority, version, command):
    """K and k are KeyUpdates, with and without an answer."""

    async def main():
        async with serving(loop, authority.server) as (server, made), s_client(server, version) as client:
            client.stdin.write(b"before\n")
            await until(lambda: made and made[0].data == b"before\n")
            client.stdin.write(command)
            # It is a command only where a read begins with it.
            await until(lambda: taken(client.stdin))
            client.stdin.write(b"after\n")
            await until(lambda: made[0].data.endswith(b"after\n"))
            made[0].transport.write(b"X" * 50_000 + b"\nend of it\n")
            await client.stdout.readuntil(b"end of it\n")

    run(main())


def test_s_client_asks_for_a_renegotiation(loop, run, authority):
    """It is refused: the client leaves, everybody else is served."""
    context = authority.server_context("localhost")
    context.options |= ssl.OP_NO_RENEGOTIATION

    async def main():
        async with serving(loop, context) as (server, made):
            async with s_client(server, "1.2") as other, s_client(server, "1.2") as client:
                other.stdin.write(b"other\n")
                await until(lambda: any(echo.data == b"other\n" for echo in made))
                client.stdin.write(b"before\n")
                await until(lambda: any(echo.data == b"before\n" for echo in made))
                client.stdin.write(b"R\n")
                refused = next(echo for echo in made if echo.data == b"before\n")
                await until(lambda: refused.lost)
                assert refused.data == b"before\n"
                other.stdin.write(b"still there\n")
                await until(lambda: any(echo.data == b"other\nstill there\n" for echo in made))

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_s_client_with_a_certificate_a_protocol_and_a_session(loop, run, authority, tmp_path, version):
    context = authority.server_context("localhost")
    context.load_verify_locations(str(authority.certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["other", "echo"])
    context.num_tickets = 2
    chain, session = tmp_path / "client.pem", tmp_path / "session.pem"
    authority.authority.issue_cert("somebody").private_key_and_cert_chain_pem.write_to_path(str(chain))
    identity = ["-cert", str(chain), "-alpn", "echo,more"]

    async def connect(server, made, *arguments):
        count = len(made)
        async with s_client(server, version, *identity, *arguments) as client:
            client.stdin.write(b"hello\n")
            await client.stdout.readuntil(b"hello\n")
            about = made[count].transport.get_extra_info("ssl_object")
            assert about.selected_alpn_protocol() == "echo"
            assert about.getpeercert()["subjectAltName"] == (("DNS", "somebody"),)
            if "-sess_out" in arguments:
                # The client writes it when it goes.
                client.stdin.write(b"Q\n")
                await client.wait()
            return about.session_reused

    async def main():
        async with serving(loop, context) as (server, made):
            assert not await connect(server, made, "-sess_out", str(session))
            assert await connect(server, made, "-sess_in", str(session))

    run(main())


@contextlib.asynccontextmanager
async def s_server(authority, folder, *arguments):
    """`openssl s_server`, and its port."""
    chain = folder / "chain.pem"
    authority.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(chain))
    server = await openssl("s_server", "-accept", "127.0.0.1:0", "-cert", str(chain), *arguments)
    try:
        line = b""
        while not line.startswith(b"ACCEPT"):
            line = await server.stdout.readline()
        yield server, int(line.rsplit(b":", 1)[1])
    finally:
        await leave(server)


@pytest.mark.parametrize("version", VERSIONS)
def test_s_server_as_the_peer(loop, run, authority, tmp_path, version):
    context = authority.client_context()
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.set_alpn_protocols(["other", "reverse"])
    authority.authority.issue_cert("somebody").configure_cert(context)
    demands = ["-Verify", "1", "-verify_return_error", "-CAfile", str(authority.certificate)]
    options = ["-alpn", "reverse", "-rev"]

    async def main():
        async with s_server(authority, tmp_path, *demands, *options) as (_, port):
            transport, protocol = await loop.create_connection(
                Recorder, "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "reverse"
            for word in (b"abc\n", b"x" * 2000 + b"y\n"):
                protocol.data.clear()
                transport.write(word)
                await until(lambda word=word: protocol.data == word[-2::-1] + b"\n")
            transport.close()
            await until(lambda: protocol.lost)

    run(main())


def test_s_server_asks_for_a_renegotiation(loop, run, authority, tmp_path):
    """OpenSSL takes part by itself, and nothing that either side says is lost."""

    async def main():
        async with s_server(authority, tmp_path, "-tls1_2") as (server, port):
            transport, protocol = await loop.create_connection(
                Recorder, "127.0.0.1", port, ssl=authority.client, server_hostname="localhost"
            )
            for round, said in enumerate((b"before", b"during", b"X" * 30_000 + b" after"), 1):
                transport.write(said + b"\n")
                await server.stdout.readuntil(said + b"\n")
                server.stdin.write(b"r\n")
                await server.stdout.readuntil(b"SSL_do_handshake -> 1\n")
                # It is a command only where a read begins with it.
                server.stdin.write(b"answer\n")
                await until(lambda round=round: protocol.data == b"answer\n" * round)
            transport.close()
            await until(lambda: protocol.lost)

    run(main())


def test_s_server_refuses_who_has_no_certificate(loop, run, authority, tmp_path):
    demands = ["-Verify", "1", "-verify_return_error", "-CAfile", str(authority.certificate), "-tls1_2"]

    async def main():
        async with s_server(authority, tmp_path, *demands) as (_, port):
            with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
                await loop.create_connection(
                    Recorder, "127.0.0.1", port, ssl=authority.client, server_hostname="localhost"
                )
            await turns(5)

    loop.set_debug(False)
    run(main())


# ---------------------------------------------------------------- the world around


def test_the_upgrade_of_a_connection_with_data_on_its_way(loop, run, authority):
    """Bytes of the handshake come together with the last plain ones."""

    async def main():
        ours, theirs = socket_pair("tcp")
        transport, plain = await loop.connect_accepted_socket(Recorder, ours)
        peer = RawPeer(loop, theirs, authority.client, server_hostname="localhost")
        transport.pause_reading()
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.send()
        protocol = Echo()
        protocol.transport, _ = await asyncio.gather(
            loop.start_tls(transport, protocol, authority.server, server_side=True), peer.call(peer.tls.do_handshake)
        )
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello"
        protocol.transport.abort()
        await until(lambda: protocol.lost)
        theirs.close()

    run(main())


@pytest.mark.left_out(
    "_incoming" not in asyncio.BaseEventLoop.start_tls.__code__.co_names, reason="of later releases of Python 3.13"
)
def test_the_upgrade_of_streams_whose_reader_has_the_handshake(loop, run, authority):
    async def serve(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        await until(lambda: reader._buffer)
        await writer.start_tls(authority.server)
        writer.write(await reader.readline())
        assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        theirs = socket.create_connection(server.sockets[0].getsockname())
        theirs.setblocking(False)
        peer = RawPeer(loop, theirs, authority.client, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.send(b"STARTTLS\n")
        await peer.call(peer.tls.do_handshake)
        await peer.send(peer.seal(b"hello\n"))
        assert await peer.read() == b"hello\n"
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send()
        assert await peer.read() == b""
        await without_clients(server)
        theirs.close()

    run(main())


def test_an_upgrade_behind_plain_text_that_waits(loop, run, authority):
    """What was written before start_tls() leaves in plain text, also what the kernel does not take at once."""

    async def main():
        ours, theirs = socket_pair("tcp")
        small_buffers(ours, theirs)
        transport, plain = await loop.connect_accepted_socket(Recorder, ours)
        protocol = Echo()
        # Less than what would have the transport pause its protocol, which SSLProtocol knows nothing of.
        transport.write(b"p" * 60_000)
        transport.write(b"go\n")
        upgrade = asyncio.ensure_future(loop.start_tls(transport, protocol, authority.server, server_side=True))
        data = bytearray()
        while not data.endswith(b"go\n"):
            data += await loop.sock_recv(theirs, 100_000)
        assert data == b"p" * 60_000 + b"go\n"
        peer = RawPeer(loop, theirs, authority.client, server_hostname="localhost")
        protocol.transport, _ = await asyncio.gather(upgrade, peer.call(peer.tls.do_handshake))
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"hello"
        protocol.transport.abort()
        await until(lambda: protocol.lost)
        theirs.close()

    run(main())


def test_written_from_another_thread(link, loop, run):
    async def main():
        protocol, peer = await link()
        thread = threading.Thread(target=lambda: [protocol.transport.write(b"%05d" % i) for i in range(2000)])
        thread.start()
        data = await peer.read_exactly(10_000)
        thread.join()
        assert data == b"".join(b"%05d" % i for i in range(2000))

    loop.set_debug(False)
    run(main())


def test_a_reset_that_a_large_write_meets(link, run):
    """Before anything was read: it ends the connection once, with the error of the write, and takes the rest along."""

    async def main():
        protocol, peer = await link()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
        protocol.transport.write(b"x" * 300_000)
        protocol.transport.write(b"y" * 300_000)
        await until(lambda: protocol.lost)
        assert type(protocol.error) is ConnectionResetError
        assert protocol.story == ["connection_made", "connection_lost"]

    run(main())


@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.left_out(not GIL, reason="TLS in C needs a GIL")
@pytest.mark.fastloop_only(reason="the standard loop sends each by itself")
def test_small_writes_of_one_turn_leave_together(link, loop, run, path, exposed):
    """Also those to a connection whose SSLObject the program has, which are encrypted one by one."""

    async def main():
        protocol, peer = await link()
        if exposed:
            protocol.transport.get_extra_info("ssl_object")
        before = loop.metrics()["messages_out"]
        for _ in range(20):
            protocol.transport.write(b"x" * 50)
        assert await peer.read_exactly(1000) == b"x" * 1000
        # The peer of the test sends by the loop, too, but nothing here.
        return loop.metrics()["messages_out"] - before

    sent = run(main())
    assert sent == 1 or not is_native(path)


def test_a_write_method_that_was_replaced(link, run):
    async def main():
        protocol, peer = await link(Echo)
        seen = []
        original = protocol.transport.write
        protocol.transport.write = lambda data: (seen.append(data), original(data.upper()))
        await peer.send(peer.seal(b"hello"))
        assert await peer.read() == b"HELLO" and seen == [b"hello"]

    run(main())


def test_a_loop_that_is_closed_with_connections_open(python, authority, tmp_path):
    """Nothing crashes, and everything is freed."""
    authority.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "chain"))
    python(
        f"""
        import gc, ssl, warnings, weakref
        warnings.simplefilter("ignore")
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain({str(tmp_path / "chain")!r})
        context = ssl.create_default_context(cafile={str(authority.certificate)!r})

        class Echo(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                known.add(self)
            def data_received(self, data):
                self.transport.write(data)

        async def main(loop):
            server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=server_context)
            address = server.sockets[0].getsockname()
            for i in range(3):
                transport, protocol = await loop.create_connection(
                    Echo, *address, ssl=context, server_hostname="localhost"
                )
                transport.write(b"x" * 1000)
                await asyncio.sleep(0.01)
                kept.append(transport)
                transport.write(b"unsent")
            task = loop.create_connection(Echo, *address, ssl=context, server_hostname="localhost")
            tasks = [loop.create_task(task)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tasks[0].cancel()
            server.close()

        for _ in range(5):
            known, kept = weakref.WeakSet(), []
            loop = new_event_loop()
            loop.run_until_complete(main(loop))
            loop.close()
            for transport in kept:
                for act in (lambda: transport.write(b"x"), transport.abort, transport.close):
                    try:
                        act()
                    except RuntimeError:
                        pass
            del act, kept, transport, loop
            gc.collect()
            assert not known, list(known)
        """,
        stderr=None,
    )
