"""Allocations that fail, one after the other, while bytes move: a MemoryError, or a report, and the loop goes on.

What is not I/O is in tests/coro/test_no_memory.py. Only paths that are C: the interpreter itself crashes or waits for
ever where memory ends as it starts a thread or makes a function.
"""

import pytest

pytest.importorskip("_testcapi")

PROGRAM = """
import asyncio, gc, socket, ssl, sys
from _testcapi import remove_mem_hooks, set_nomemory

loop = new_event_loop()
reports = []
loop.set_exception_handler(lambda loop, context: reports.append(context.get("exception")))
# What could not be told to anybody; a socket that could not be detached is closed when it goes.
sys.unraisablehook = lambda unraisable: reports.append(unraisable.exc_value)


class Protocol(asyncio.Protocol):
    transport = None
    lost = False
    def __init__(self):
        self.data = bytearray()
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.data += data
    def connection_lost(self, error):
        self.lost = True


async def answer(value):
    return value


def turn():
    loop._run_once()


def settle(awaitable):
    # The outcome of something that memory may have ended.
    try:
        return loop.run_until_complete(asyncio.wait_for(awaitable, 30))
    except MemoryError:
        pass


class Connected:
    def prepare(self):
        near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.near = near.fileno()
        self.transport, self.protocol = settle(loop.create_connection(Protocol, sock=near))
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
        turn()
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
        turn()

class Read(Connected):
    # All of it, or the connection ends.
    size = 1000
    def prepare(self):
        super().prepare()
        settle(asyncio.sleep(0))
        self.far.send(b"z" * self.size)
    def operate(self):
        turn()
    def finish(self):
        for _ in range(10):
            settle(asyncio.sleep(0))
        assert self.protocol.data == b"z" * self.size or reports or self.protocol.lost
        super().finish()

class ReadMuch(Read):
    size = 150000

class Close(Connected):
    def operate(self):
        self.transport.close()
        turn()

class Abort(Connected):
    def operate(self):
        self.transport.abort()
        turn()

class WriteEof(Connected):
    def operate(self):
        self.transport.write_eof()
        turn()

class Pause(Connected):
    def operate(self):
        self.transport.pause_reading()
        self.transport.resume_reading()
        self.transport.set_write_buffer_limits(10, 5)

class ExtraInfo(Connected):
    def operate(self):
        for name in ("socket", "peername", "sockname"):
            self.transport.get_extra_info(name)

class Adopt:
    # A transport for a connected socket, without the Python around it.
    def prepare(self):
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.protocol = Protocol()
        self.transport = None
    def operate(self):
        self.transport = loop._make_socket_transport(self.near, self.protocol)
        turn()
    def finish(self):
        if self.transport is not None:
            self.transport.abort()
            settle(asyncio.sleep(0))
        self.near.close()
        self.far.close()

class Accept:
    def prepare(self):
        self.protocols = []
        self.server = settle(loop.create_server(self.make, "127.0.0.1", 0))
        self.client = socket.create_connection(self.server.sockets[0].getsockname())
    def make(self):
        self.protocols.append(Protocol())
        return self.protocols[-1]
    def operate(self):
        turn()
        turn()
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

class Connect:
    def prepare(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.task = loop.create_task(loop.create_connection(Protocol, *self.listener.getsockname()))
    def operate(self):
        for _ in range(3):
            turn()
    def finish(self):
        settle(asyncio.wait([self.task], timeout=30))
        if self.task.exception() is None:
            self.task.result()[0].abort()
            settle(asyncio.sleep(0))
        self.listener.close()

class StreamRead:
    def prepare(self):
        near, self.far = socket.socketpair()
        self.reader, self.writer = settle(asyncio.open_connection(sock=near))
        self.task = loop.create_task(self.reader.readline())
        settle(asyncio.sleep(0))
        self.far.send(b"line\\n")
    def operate(self):
        turn()
        turn()
    def finish(self):
        self.far.close()
        self.writer.transport.abort()
        settle(asyncio.wait([self.task], timeout=30))
        if self.task.exception() is None:
            assert self.task.result() in (b"line\\n", b"")
        settle(asyncio.sleep(0))

class Datagrams:
    def prepare(self):
        self.transport, _ = settle(loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)))
        self.address = self.transport.get_extra_info("sockname")
    def operate(self):
        self.transport.sendto(b"datagram", self.address)
        turn()
        turn()
    def finish(self):
        self.transport.abort()
        settle(asyncio.sleep(0))

class AddReader:
    def prepare(self):
        self.near, self.far = socket.socketpair()
    def operate(self):
        loop.add_reader(self.near, int)
        loop.add_writer(self.near, int)
        turn()
    def finish(self):
        loop.remove_reader(self.near)
        loop.remove_writer(self.near)
        self.near.close()
        self.far.close()

class Executor:
    # Its thread exists: that another one begins is the interpreter's business.
    def prepare(self):
        settle(loop.run_in_executor(None, int))
        self.future = None
    def operate(self):
        self.future = loop.run_in_executor(None, int)
    def finish(self):
        if self.future is not None:
            settle(self.future)

class RunForever:
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

class CloseLoop:
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




failed = seen = 0
for kind in (KINDS):
    for number in range(COUNT):
        case = kind()
        case.prepare()
        reports.clear()
        asyncio._set_running_loop(loop)
        # No turn blocks for long, on a busy machine neither.
        timers = [loop.call_later(0.001 * n * n, int) for n in range(100)]
        loop.call_soon(int)
        set_nomemory(number, number + 1)
        try:
            case.operate()
            remove_mem_hooks()
        except (MemoryError, OSError):
            remove_mem_hooks()
            failed += 1
        finally:
            remove_mem_hooks()
            asyncio._set_running_loop(None)
        seen += bool(reports)
        for report in reports:
            assert report is None or isinstance(report, (MemoryError, OSError, ResourceWarning)), (kind, number, report)
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
    "reading": "Read, ReadMuch, Pause, ExtraInfo, StreamRead",
    "opening": "Adopt, Accept, Connect",
    "closing": "Close, Abort, CloseLoop",
    "others": "Datagrams, AddReader, Executor, RunForever",
}


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only
@pytest.mark.parametrize("kinds", KINDS)
def test_allocations_fail(python, kinds):
    program = PROGRAM.replace("KINDS", KINDS[kinds]).replace("COUNT", "40")
    assert python(program, stderr=None).strip() == "fine"
