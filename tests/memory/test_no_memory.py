"""Allocations that fail, one after the other, while bytes move: a MemoryError, or a report, and the loop goes on.

What is not I/O is in tests/coro/test_no_memory.py. Only paths that are C: the interpreter itself crashes or waits for
ever where memory ends as it starts a thread or makes a function.
"""

import sys
import sysconfig

import pytest

pytest.importorskip("_testcapi")

NO_GIL = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

PROGRAM = """
import asyncio, gc, os, signal, socket, ssl, sys
from _testcapi import remove_mem_hooks, set_nomemory

loop = new_event_loop()
reports = []
loop.set_exception_handler(lambda loop, context: reports.append(context.get("exception")))
# What could not be told to anybody; a socket that could not be detached is closed when it goes.
sys.unraisablehook = lambda unraisable: reports.append(unraisable.exc_value)


class Protocol(asyncio.Protocol):
    transport = None
    lost = False
    error = None
    def __init__(self):
        self.data = bytearray()
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.data += data
    def connection_lost(self, error):
        self.lost = True
        self.error = error


async def answer(value):
    return value


def turns(count=4):
    for _ in range(count):
        loop._run_once()


def settle(awaitable):
    # The outcome of something that memory may have ended.
    try:
        return loop.run_until_complete(asyncio.wait_for(awaitable, 30))
    except MemoryError:
        pass


class Case:
    idle = False
    make = Protocol

class Connected(Case):
    def prepare(self):
        near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.near = near.fileno()
        self.transport, self.protocol = settle(loop.create_connection(self.make, sock=near))
    def finish(self):
        self.transport.abort()
        settle(asyncio.sleep(0))
        settle(asyncio.sleep(0))
        assert self.protocol.lost
        self.far.close()

class Write(Connected):
    data = b"x" * 100
    def operate(self):
        self.transport.write(self.data)
        turns()
    def finish(self):
        # All or nothing.
        try:
            got = self.far.recv(len(self.data))
        except BlockingIOError:
            got = b""
        assert bytes(self.data).startswith(got)
        super().finish()

class WriteMuch(Write):
    data = bytes(3_000_000)

class WriteMutable(Write):
    data = bytearray(1000)

class WriteLines(Write):
    data = b"a" * 1000 + b"b" + bytes(10) + b"c"
    # Made beforehand: without a GIL, 3.13 frees memory twice when it has none for the items of a new list.
    lines = [b"a" * 1000, b"b", bytearray(10), b"c"]
    def operate(self):
        self.transport.writelines(self.lines)
        turns()

class Read(Connected):
    # All of it, or the connection ends.
    size = 1000
    def prepare(self):
        super().prepare()
        settle(asyncio.sleep(0))
        self.far.send(b"z" * self.size)
    def operate(self):
        turns()
    def finish(self):
        for _ in range(10):
            settle(asyncio.sleep(0))
        assert self.protocol.data == b"z" * self.size or reports or self.protocol.lost
        super().finish()

class ReadMuch(Read):
    size = 150000

class ReadIdle(Read):
    # With nothing else to do the poll itself delivers it, and does not queue it.
    idle = True

class ReadBesideReader(Read):
    # The poll queues it, whether there is something to do or not.
    idle = True
    def prepare(self):
        super().prepare()
        self.others = socket.socketpair()
        self.others[1].send(b"x")
        self.calls = 0
        loop.add_reader(self.others[0], self.count)
    def count(self):
        self.calls += 1
    def finish(self):
        while not self.calls:
            settle(asyncio.sleep(0))
        loop.remove_reader(self.others[0])
        for other in self.others:
            other.close()
        super().finish()

class Buffered(Protocol, asyncio.BufferedProtocol):
    def __init__(self):
        super().__init__()
        self.buffer = memoryview(bytearray(1000))
    def get_buffer(self, hint):
        return self.buffer
    def buffer_updated(self, count):
        self.data += self.buffer[:count]

class ReadBuffered(Read):
    make = Buffered

class ReadIdleBuffered(ReadIdle):
    make = Buffered

class Drain(Connected):
    # The peer takes what has waited for it: the rest leaves, and writing is resumed.
    size = 2_000_000
    def prepare(self):
        super().prepare()
        self.transport.write(bytes(self.size))
        settle(asyncio.sleep(0))
        self.got = len(self.far.recv(self.size))
    def operate(self):
        turns()
    def finish(self):
        while self.got < self.size and not self.protocol.lost:
            try:
                self.got += len(self.far.recv(self.size))
            except BlockingIOError:
                settle(asyncio.sleep(0.001))
        assert self.got == self.size or reports
        super().finish()

class DrainIdle(Drain):
    idle = True

class Close(Connected):
    def operate(self):
        self.transport.close()
        turns()

class Abort(Connected):
    def operate(self):
        self.transport.abort()
        turns()

class WriteEof(Connected):
    def operate(self):
        self.transport.write_eof()
        turns()

class Pause(Connected):
    def operate(self):
        self.transport.pause_reading()
        self.transport.resume_reading()
        self.transport.set_write_buffer_limits(10, 5)

class ExtraInfo(Connected):
    def operate(self):
        for name in ("socket", "peername", "sockname"):
            self.transport.get_extra_info(name)

class Adopt(Case):
    # A transport for a connected socket, without the Python around it.
    def prepare(self):
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.protocol = Protocol()
        self.transport = None
    def operate(self):
        self.transport = loop._make_socket_transport(self.near, self.protocol)
        turns()
    def finish(self):
        if self.transport is not None:
            self.transport.abort()
            settle(asyncio.sleep(0))
        self.near.close()
        self.far.close()

class Accept(Case):
    def prepare(self):
        self.protocols = []
        self.server = settle(loop.create_server(self.make, "127.0.0.1", 0))
        self.client = socket.create_connection(self.server.sockets[0].getsockname())
    def make(self):
        self.protocols.append(Protocol())
        return self.protocols[-1]
    def operate(self):
        # A connection begins a turn after it was accepted.
        turns()
    def finish(self):
        # It serves the next one, whatever became of the first.
        made = len(self.protocols)
        second = socket.create_connection(self.server.sockets[0].getsockname())
        for _ in range(100):
            if self.protocols[made:] and self.protocols[-1].transport is not None:
                break
            settle(asyncio.sleep(0.001))
        else:
            raise AssertionError("deaf")
        for client in (self.client, second):
            client.close()
        self.server.close()
        for protocol in self.protocols:
            if protocol.transport is not None:
                protocol.transport.abort()
        settle(asyncio.sleep(0))

class AcceptStream(Accept):
    # Each gets a reader, which changes its class.
    def make(self):
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
        self.protocols.append(protocol)
        protocol.transport = None
        made = protocol.connection_made
        def connection_made(transport):
            protocol.transport = transport
            made(transport)
        protocol.connection_made = connection_made
        return protocol

class Connect(Case):
    def prepare(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.task = loop.create_task(loop.create_connection(Protocol, *self.listener.getsockname()))
    def operate(self):
        turns(8)
    def finish(self):
        settle(asyncio.wait([self.task], timeout=30))
        if self.task.exception() is None:
            self.task.result()[0].abort()
            settle(asyncio.sleep(0))
        self.listener.close()

class StreamRead(Case):
    line = b"line\\n"
    def prepare(self):
        near, self.far = socket.socketpair()
        self.reader, self.writer = settle(asyncio.open_connection(sock=near, limit=200_000))
        self.warm_up()
        self.task = loop.create_task(self.reader.readline())
        settle(asyncio.sleep(0))
        self.far.send(self.line)
    def warm_up(self):
        pass
    def operate(self):
        turns()
    def finish(self):
        for _ in range(10):
            settle(asyncio.sleep(0))
        self.far.close()
        self.writer.transport.abort()
        settle(asyncio.wait([self.task], timeout=30))
        if self.task.exception() is None:
            assert self.task.result() in (self.line, b"") or reports and self.line.startswith(self.task.result())
        settle(asyncio.sleep(0))

class StreamReadMuch(StreamRead):
    # Into memory that the reader then gets, after a large read.
    line = b"y" * 150_000 + b"\\n"
    def warm_up(self):
        self.far.send(self.line)
        settle(self.reader.readline())

class StreamAdopt(Adopt):
    # The reader gets another class when the transport is made.
    def prepare(self):
        super().prepare()
        self.reader = asyncio.StreamReader(loop=loop)
        self.protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
    def finish(self):
        if self.transport is not None and not reports:
            self.far.send(b"x")
            assert settle(self.reader.read(1)) == b"x"
        super().finish()

class SocketCalls(Case):
    # Without memory what is sent may stay away: something else comes then.
    family = socket.SOCK_STREAM
    def prepare(self):
        self.near, self.far = socket.socketpair(socket.AF_UNIX, self.family)
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.open = [self.near, self.far]
        self.begin(self.receive(), self.send())
    def begin(self, receiving, sending):
        self.receiving = loop.create_task(receiving)
        self.sending = loop.create_task(sending)
    async def receive(self):
        return await loop.sock_recv(self.far, 10)
    async def send(self):
        await loop.sock_sendall(self.near, b"x")
    def operate(self):
        turns()
    def instead(self):
        self.near.send(b"y")
    def finish(self):
        settle(asyncio.wait([self.sending], timeout=30))
        if self.sending.exception() is not None:
            self.instead()
        settle(asyncio.wait([self.receiving], timeout=30))
        self.check(None if self.receiving.exception() else self.receiving.result())
        for sock in self.open:
            sock.close()
    def check(self, result):
        assert result in (b"x", b"y") or result is None and isinstance(self.receiving.exception(), MemoryError)

class SocketDatagrams(SocketCalls):
    family = socket.SOCK_DGRAM
    async def receive(self):
        return (await loop.sock_recvfrom(self.far, 10))[0]

class SocketReceiveInto(SocketCalls):
    async def receive(self):
        buffer = bytearray(10)
        return bytes(buffer[:await loop.sock_recv_into(self.far, buffer)])

class SocketAccept(SocketCalls):
    def prepare(self):
        self.far = socket.create_server(("127.0.0.1", 0))
        self.near = socket.socket()
        self.far.setblocking(False)
        self.near.setblocking(False)
        self.address = self.far.getsockname()
        self.open = [self.near, self.far]
        self.begin(self.accept(), self.connect())
    async def accept(self):
        return (await loop.sock_accept(self.far))[0]
    async def connect(self):
        await loop.sock_connect(self.near, self.address)
    def instead(self):
        self.open.append(socket.create_connection(self.address))
    def check(self, result):
        if result is not None:
            self.open.append(result)

class Signal(Case):
    # The handler is called, or it is reported that it was not.
    def prepare(self):
        self.calls = 0
        loop.add_signal_handler(signal.SIGUSR1, self.count)
        os.kill(os.getpid(), signal.SIGUSR1)
    def count(self):
        self.calls += 1
    def operate(self):
        turns()
    def finish(self):
        for _ in range(10):
            settle(asyncio.sleep(0))
        assert self.calls == 1 or reports, (self.calls, reports)
        loop.remove_signal_handler(signal.SIGUSR1)

class Datagrams(Case):
    def prepare(self):
        self.transport, _ = settle(loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)))
        self.address = self.transport.get_extra_info("sockname")
    def operate(self):
        self.transport.sendto(b"datagram", self.address)
        turns()
    def finish(self):
        self.transport.abort()
        settle(asyncio.sleep(0))

class AddReader(Case):
    def prepare(self):
        self.near, self.far = socket.socketpair()
    def operate(self):
        loop.add_reader(self.near, int)
        loop.add_writer(self.near, int)
        turns()
    def finish(self):
        loop.remove_reader(self.near)
        loop.remove_writer(self.near)
        self.near.close()
        self.far.close()

class Executor(Case):
    # Its thread exists: that another one begins is the interpreter's business.
    def prepare(self):
        settle(loop.run_in_executor(None, int))
        self.future = None
    def operate(self):
        self.future = loop.run_in_executor(None, int)
    def finish(self):
        if self.future is not None:
            settle(self.future)

class RunForever(Case):
    def prepare(self):
        self.loop = new_event_loop()
    def operate(self):
        asyncio._set_running_loop(None)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
    def finish(self):
        # stop() may be waiting still.
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

class CloseLoop(Case):
    def prepare(self):
        self.loop = new_event_loop()
        near, self.far = socket.socketpair()
        self.loop.run_until_complete(self.loop.create_connection(Protocol, sock=near))
        self.loop.call_soon(int)
        self.loop.call_later(10, int)
    def operate(self):
        self.loop.close()
    def finish(self):
        self.loop.close()
        self.far.close()

class Secured(Case):
    # A TLS connection to another transport of the loop.
    def prepare(self):
        near, far = socket.socketpair()
        accepted = loop.create_task(loop.connect_accepted_socket(Protocol, far, ssl=SERVER))
        connected = loop.create_connection(self.make, sock=near, ssl=CLIENT, server_hostname="localhost")
        self.transport, self.protocol = settle(connected)
        self.peer, self.received = settle(accepted)
    def operate(self):
        turns()
    def finish(self):
        for _ in range(10):
            settle(asyncio.sleep(0))
        for transport in (self.transport, self.peer):
            transport.abort()
        for protocol in (self.protocol, self.received):
            for _ in range(100):
                if protocol.lost:
                    break
                settle(asyncio.sleep(0.001))
            else:
                raise AssertionError("not lost")

class TlsWrite(Secured):
    data = b"x" * 100
    def operate(self):
        self.transport.write(self.data)
        super().operate()
    def finish(self):
        super().finish()
        got = bytes(self.received.data)
        told = reports or self.protocol.error or self.received.error
        assert got in (b"", self.data) or told and self.data.startswith(got), len(got)

class TlsWriteMuch(TlsWrite):
    data = bytes(100_000)

class TlsWriteLines(TlsWrite):
    data = b"a" * 1000 + b"b" + bytes(10) + b"c"
    lines = [b"a" * 1000, b"b", bytearray(10), b"c"]
    def operate(self):
        self.transport.writelines(self.lines)
        Secured.operate(self)

class TlsRead(Secured):
    def prepare(self):
        super().prepare()
        self.peer.write(b"z" * 1000)
        settle(asyncio.sleep(0))
    def finish(self):
        super().finish()
        assert self.protocol.data in (b"", b"z" * 1000)

class TlsReadBuffered(TlsRead):
    make = Buffered

class TlsStream(Case):
    # Its reader is fed without a call of its protocol.
    def prepare(self):
        near, far = socket.socketpair()
        accepted = loop.create_task(loop.connect_accepted_socket(Protocol, far, ssl=SERVER))
        opened = asyncio.open_connection(sock=near, ssl=CLIENT, server_hostname="localhost")
        self.reader, self.writer = settle(opened)
        self.peer, self.received = settle(accepted)
        self.peer.write(b"first ")
        assert settle(self.reader.readexactly(6)) == b"first "
        self.task = loop.create_task(self.reader.readline())
        settle(asyncio.sleep(0))
        self.peer.write(b"line\\n")
        settle(asyncio.sleep(0))
    def operate(self):
        turns()
    def finish(self):
        settle(asyncio.sleep(0))
        if not reports:
            settle(asyncio.wait([self.task], timeout=30))
        self.writer.transport.abort()
        self.peer.abort()
        settle(asyncio.wait([self.task], timeout=30))
        assert self.task.exception() is not None or self.task.result() in (b"line\\n", b"")
        settle(asyncio.sleep(0))
        settle(asyncio.sleep(0))

class TlsWriteBlocked(TlsWrite):
    # The peer does not read: what is encrypted waits in the transport.
    data = bytes(300_000)
    def prepare(self):
        super().prepare()
        self.peer.pause_reading()
    def finish(self):
        self.peer.resume_reading()
        for _ in range(1000):
            if len(self.received.data) == len(self.data) or self.received.lost or self.protocol.lost:
                break
            settle(asyncio.sleep(0.001))
        super().finish()

class StartTls(Case):
    # Much of it is Python code.
    def prepare(self):
        near, far = socket.socketpair()
        self.transport, self.protocol = settle(loop.create_connection(Protocol, sock=near))
        self.peer = loop.create_task(loop.connect_accepted_socket(Protocol, far, ssl=SERVER))
        starting = loop.start_tls(self.transport, self.protocol, CLIENT, server_hostname="localhost")
        self.starting = loop.create_task(starting)
    def operate(self):
        turns(8)
    def finish(self):
        # Where one end failed the other would wait for the time-out of the handshake.
        both = [self.starting, self.peer]
        if not reports:
            settle(asyncio.wait(both, timeout=5, return_when=asyncio.FIRST_EXCEPTION))
        self.transport.abort()
        for task in both:
            task.cancel()
        settle(asyncio.wait(both))
        for task in both:
            assert task.done()
            if not task.cancelled() and task.exception() is None and task.result() is not None:
                made = task.result()
                (made[0] if isinstance(made, tuple) else made).abort()
        settle(asyncio.sleep(0))
        settle(asyncio.sleep(0))

failed = seen = 0
for kind in (KINDS):
    last = 0
    for number in range(COUNT):
        # There are not so many allocations.
        if number - last > 20:
            break
        case = kind()
        case.prepare()
        reports.clear()
        asyncio._set_running_loop(loop)
        # No turn blocks for long, on a busy machine neither.
        timers = [loop.call_later(0.001 * n * n, int) for n in range(100)]
        if not case.idle:
            loop.call_soon(int)
        set_nomemory(number, number + 1)
        try:
            case.operate()
            remove_mem_hooks()
        except (MemoryError, OSError):
            remove_mem_hooks()
            failed += 1
            last = number
        finally:
            remove_mem_hooks()
            asyncio._set_running_loop(None)
        if reports:
            seen += 1
            last = number
        for report in reports:
            # The handshake of Python's own SSLObject forgets to raise where it has no memory, and what asyncio has only
            # half made lacks what its __del__() looks at.
            of_python = [SystemError, AttributeError] if kind.__name__ == "StartTls" else []
            expected = MemoryError, OSError, ResourceWarning, *of_python
            assert report is None or isinstance(report, expected), (kind, number, report)
        case.finish()
        for timer in timers:
            timer.cancel()
        assert loop.run_until_complete(answer(number)) == number, (kind, number)
        del case
gc.collect()
loop.close()
assert failed + seen > 0, (failed, seen)
print("fine")
"""

KINDS = {
    "writing": "Write, WriteMuch, WriteMutable, WriteLines, WriteEof",
    "draining": "Drain, DrainIdle",
    "reading": "Read, ReadMuch, ReadIdle, ReadBesideReader, ReadBuffered, ReadIdleBuffered, Pause, ExtraInfo",
    "streams": "StreamRead, StreamReadMuch, StreamAdopt",
    "opening": "Adopt, Accept, AcceptStream, Connect",
    "closing": "Close, Abort, CloseLoop",
    "others": "Datagrams, AddReader, Executor, RunForever, Signal",
    "sockets": "SocketCalls, SocketReceiveInto, SocketDatagrams, SocketAccept",
    "secured writing": "TlsWrite, TlsWriteMuch, TlsWriteLines",
    "secured and blocked": "TlsWriteBlocked,",
    "secured reading": "TlsRead, TlsReadBuffered, TlsStream",
    "securing": "StartTls,",
}
#: Allocations of each operation that fail, one after the other.
COUNT = {"secured and blocked": 60, "securing": 120}
TLS = """
import ssl
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
SERVER.load_cert_chain({chain!r})
CLIENT = ssl.create_default_context(cafile={certificate!r})
"""


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only
@pytest.mark.left_out(
    lambda kinds, **_: (
        (NO_GIL and kinds.startswith("secur")) or (kinds == "securing" and sys.version_info[:2] != (3, 13))
    ),
    reason="much of it is Python code, of which the interpreter may crash without memory; this one does not",
)
@pytest.mark.parametrize("kinds", KINDS)
def test_allocations_fail(python, authority, tmp_path, kinds):
    chain = tmp_path / "chain"
    authority.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(chain))
    program = PROGRAM.replace("KINDS", KINDS[kinds]).replace("COUNT", str(COUNT.get(kinds, 40)))
    contexts = TLS.format(chain=str(chain), certificate=str(authority.certificate))
    assert python(contexts + program, stderr=None).strip() == "fine"
