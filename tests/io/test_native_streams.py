"""StreamReader in C: it answers as the standard one does, and what somebody replaced is honoured.

Everything runs on the stock loop, on fastloop, and on fastloop with FASTLOOP_DISABLE=streams.
"""

import asyncio
import contextlib
import gc
import inspect
import os
import random
import socket
import subprocess
import sys
import unittest.mock
import warnings
import weakref

import pytest

from fastloop import _core
from helpers import GIL, new_loop, turns

LIMIT = 16


pytestmark = pytest.mark.left_out(
    lambda loop_name, streams, **_: (loop_name, streams) == ("stock", "off"), reason="nothing to switch off"
)


@pytest.fixture(autouse=True, params=["native", "off"])
def streams(request, loop_name, monkeypatch):
    """Whether the native streams are on; the stock loop has none to switch off."""
    if request.param == "off":
        monkeypatch.setenv("FASTLOOP_DISABLE", "streams")
    else:
        monkeypatch.delenv("FASTLOOP_DISABLE", raising=False)
    return request.param


@pytest.fixture
def is_native(loop_name, streams):
    """Are the readers of this test expected to be served in C?"""
    return loop_name == "fastloop" and streams == "native"


class Connection:
    """A stream over one end of a socket pair; the test plays the peer on the other."""

    def __init__(self, reader, writer, peer):
        self.reader = reader
        self.writer = writer
        self.peer = peer

    async def feed(self, data):
        """Send, and give the loop the time to read."""
        self.peer.send(data)
        await turns(40)

    async def end(self):
        self.peer.shutdown(socket.SHUT_WR)
        await turns(40)


@contextlib.asynccontextmanager
async def connected(limit=LIMIT, connect=asyncio.open_unix_connection):
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    reader, writer = await connect(sock=ours, limit=limit)
    try:
        yield Connection(reader, writer, peer)
    finally:
        peer.close()
        writer.close()
        with contextlib.suppress(Exception):
            await writer.wait_closed()


async def open_with(make_reader, make_protocol, sock, limit=LIMIT):
    """What open_connection() does, with other classes."""
    loop = asyncio.get_running_loop()
    reader = make_reader(limit=limit, loop=loop)
    protocol = make_protocol(reader, loop=loop)
    transport, _ = await loop.create_unix_connection(lambda: protocol, sock=sock)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def is_swapped(reader):
    return type(reader) is not asyncio.StreamReader


async def answer(awaitable):
    """The result, or the exception as something to compare."""
    try:
        return await awaitable
    except Exception as exc:
        return type(exc), str(exc), getattr(exc, "partial", None), getattr(exc, "consumed", None)


# ---------------------------------------------------------------- the same answers as the standard loop


class Trace:
    """Random calls, chunks and ends on one stream; `log` is what could be seen."""

    separators = (b"\n", b"ab", b"", b"bbb", "x", bytearray(b"\n"), (b"x", b"\n"), (b"ab", b"bba\n"), ())

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.log = []
        self.pending = []
        self.ended = False

    def note_finished(self):
        for name, task in self.pending:
            if task.done():
                exc = None if task.cancelled() else task.exception()
                self.log.append((name, "cancelled" if task.cancelled() else repr(exc) if exc else task.result()))
        self.pending = [pair for pair in self.pending if not pair[1].done()]

    def note_state(self, reader):
        waits = reader._waiter is not None
        state = bytes(reader._buffer), reader._eof, reader._paused, waits, reader.at_eof(), reader._transport is None
        self.log.append((*state, len(vars(reader)), repr(reader.exception())))

    def call(self, reader):
        pick = self.random.choice
        call = pick(
            [
                lambda: reader.read(pick((0, 1, 5, 100, True, 2**70, -1, -5))),
                lambda: reader.read(pick((3, 7, 20, 40))),
                lambda: reader.readexactly(pick((-1, 0, 2, 9, 50, False))),
                lambda: reader.readline(),
                lambda: reader.readline(),
                lambda: reader.readuntil(pick(self.separators)),
                lambda: reader.readuntil(),
                lambda: anext(reader),
            ]
        )
        self.pending.append((len(self.log), asyncio.ensure_future(call())))

    async def step(self, connection):
        action = self.random.random()
        reader = connection.reader
        if action < 0.5 and not self.ended:
            size = self.random.choice((1, 2, 3, 8, 15, 16, 17, 40, 200))
            await connection.feed(bytes(self.random.choices(b"abx\n", (4, 4, 1, 1), k=size)))
        elif action < 0.85:
            self.call(reader)
        elif action < 0.9 and self.pending:
            self.random.choice(self.pending)[1].cancel()
        elif action < 0.93 and not self.ended:
            self.ended = True
            await connection.end()
        elif action < 0.94:
            reader.set_exception(ValueError("from outside"))
        elif action < 0.95:
            reader._buffer.clear()
        await turns(self.random.choice((0, 1, 40)))

    async def run(self):
        limit = self.random.choice((1, 4, 16, 64, 2**16))
        async with connected(limit=limit) as connection:
            for _ in range(40):
                await self.step(connection)
                self.note_finished()
                await turns(40)
                self.note_state(connection.reader)
            self.log.append((is_swapped(connection.reader), len(self.pending)))
            for _, task in self.pending:
                task.cancel()
            await asyncio.gather(*(task for _, task in self.pending), return_exceptions=True)
            # A cancelled wait leaves no trace.
            self.note_state(connection.reader)


def trace_on(loop, seed):
    trace = Trace(seed)
    loop.run_until_complete(trace.run())
    return trace.log


@pytest.mark.fastloop_only("a direct comparison")
@pytest.mark.parametrize("block", range(10))
@pytest.mark.usefixtures("debug_off")
def test_random_traces_are_those_of_the_standard_loop(loop, is_native, block):
    stock = new_loop("stock")
    try:
        for seed in range(block * 20, block * 20 + 20):
            expected, found = trace_on(stock, seed), trace_on(loop, seed)
            swapped = [entry for entry in found if len(entry) == 2 and isinstance(entry[0], bool)]
            assert [entry[0] for entry in swapped] == [is_native]
            expected = [entry for entry in expected if not (len(entry) == 2 and isinstance(entry[0], bool))]
            assert [entry for entry in found if entry not in swapped] == expected, seed
    finally:
        stock.close()


# ---------------------------------------------------------------- coroutines, as everybody expects them


METHODS = {"read": (1,), "readexactly": (1,), "readline": (), "readuntil": ()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("debug_off")
def test_the_methods_are_coroutine_functions(run, is_native, name):
    async def main():
        async with connected() as connection:
            assert is_swapped(connection.reader) == is_native
            method = getattr(connection.reader, name)
            assert inspect.iscoroutinefunction(method)
            assert inspect.signature(method) == inspect.signature(getattr(asyncio.StreamReader(), name))
            assert method.__doc__ == getattr(asyncio.StreamReader, name).__doc__
            assert method.__qualname__ == f"StreamReader.{name}"
            coroutine = method(*METHODS[name])
            assert inspect.iscoroutine(coroutine)
            assert asyncio.iscoroutine(coroutine)
            assert f"StreamReader.{name}" in repr(coroutine)
            coroutine.close()

    run(main())


@pytest.mark.parametrize("name", METHODS)
def test_nothing_happens_before_it_is_awaited(run, name):
    async def main():
        async with connected() as connection:
            await connection.feed(b"a\n")
            with pytest.warns(RuntimeWarning, match=f"coroutine 'StreamReader.{name}' was never awaited"):
                getattr(connection.reader, name)(*METHODS[name])
                gc.collect()
            assert connection.reader._buffer == b"a\n"
            assert type(connection.reader._buffer) is bytearray

    run(main())


def test_tasks_timeouts_and_gather(run):
    async def main():
        async with connected() as connection, connected() as other:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await connection.reader.read(5)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(connection.reader.readline(), 0.01)
            assert connection.reader._waiter is None
            task = asyncio.create_task(connection.reader.readexactly(3))
            both = asyncio.gather(task, other.reader.readuntil(b"!"))
            await turns()
            assert "readexactly" in repr(task)
            await connection.feed(b"abc")
            await other.feed(b"def!")
            assert await both == [b"abc", b"def!"]

    run(main())


def test_the_class_is_the_standard_one_to_isinstance_and_repr(run):
    async def main():
        async with connected() as connection:
            reader = connection.reader
            assert isinstance(reader, asyncio.StreamReader)
            assert repr(type(reader)) == repr(asyncio.StreamReader)
            assert repr(reader).startswith(f"<StreamReader limit={LIMIT} transport=<")
            assert "_buffer" in vars(reader)

    run(main())


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize("name,told", [("read", "read"), ("readexactly", "readexactly"), ("readline", "readuntil")])
def test_a_second_reader_is_refused(run, name, told):
    async def main():
        async with connected() as connection:
            first = asyncio.ensure_future(connection.reader.read(5))
            await turns()
            with pytest.raises(RuntimeError) as caught:
                await getattr(connection.reader, name)(*METHODS[name])
            text = f"{told}() called while another coroutine is already waiting for incoming data"
            assert str(caught.value) == text
            await connection.feed(b"hello")
            assert await first == b"hello"

    run(main())


def test_cancelled_while_the_data_come(run):
    async def main():
        async with connected() as connection:
            task = asyncio.ensure_future(connection.reader.readexactly(4))
            await turns()
            waiter = connection.reader._waiter
            connection.peer.send(b"data")
            while not waiter.done():
                await turns(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert connection.reader._waiter is None
            assert await connection.reader.readexactly(4) == b"data"

    run(main())


def test_a_cancelled_waiter_does_not_stop_the_data(run):
    async def main():
        async with connected() as connection:
            task = asyncio.ensure_future(connection.reader.read(4))
            await turns()
            connection.reader._waiter.cancel()
            await connection.feed(b"data")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await connection.reader.read(4) == b"data"

    run(main())


def test_what_can_be_read_does_not_suspend(run):
    async def main():
        async with connected() as connection:
            await connection.feed(b"12345678\n")
            ran = []
            asyncio.get_running_loop().call_soon(ran.append, 1)
            read = [await connection.reader.read(2), await connection.reader.readexactly(2)]
            read += [await connection.reader.readuntil(b"6"), await connection.reader.readline()]
            assert read == [b"12", b"34", b"56", b"78\n"]
            assert not ran

    run(main())


def test_the_writer_alone_keeps_the_reader(run):
    async def main():
        async with connected() as connection:
            reader = weakref.ref(connection.reader)
            connection.reader = None
            await connection.feed(b"dropped")
            assert reader()._buffer == b"dropped"
            transport = connection.writer.transport
        del connection
        gc.collect()
        assert reader() is None
        assert transport.is_closing()

    run(main())


def test_data_for_a_reader_that_is_gone(run):
    async def main():
        ours, peer = socket.socketpair()
        with ours, peer:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(loop=loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            transport, _ = await loop.create_unix_connection(lambda: protocol, sock=ours)
            reader._transport = None
            del reader
            gc.collect()
            assert protocol._stream_reader is None
            peer.send(b"nobody reads")
            await turns(40)
            transport.close()
            await turns(10)

    run(main())


# ---------------------------------------------------------------- limits and flow control


def test_paused_at_twice_the_limit(run):
    async def main():
        async with connected() as connection:
            reader, transport = connection.reader, connection.writer.transport
            await connection.feed(b"x" * 2 * LIMIT)
            assert not reader._paused
            await connection.feed(b"y")
            assert reader._paused
            assert not transport.is_reading()
            assert await reader.read(LIMIT) == b"x" * LIMIT
            assert reader._paused
            assert await reader.readexactly(1) == b"x"
            assert not reader._paused
            assert transport.is_reading()

    run(main())


def test_a_transport_that_cannot_pause(run):
    async def main():
        def refuse():
            raise NotImplementedError

        async with connected() as connection:
            connection.writer.transport.pause_reading = refuse
            await connection.feed(b"x" * 50)
            assert connection.reader._transport is None
            assert not connection.reader._paused
            await connection.feed(b"x" * 50)
            assert await connection.reader.readexactly(100) == b"x" * 100

    run(main())


def test_a_pause_that_fails_ends_the_connection(run, contexts):
    async def main():
        def fail():
            raise ValueError("no pause")

        async with connected() as connection:
            connection.writer.transport.pause_reading = fail
            await connection.feed(b"x" * 50)
            (context,) = contexts.take()
            assert context["message"] == "Fatal error: protocol.data_received() call failed."
            with pytest.raises(ValueError, match="no pause"):
                await connection.reader.read(1)

    run(main())


def test_waiting_resumes_a_paused_transport(run):
    async def main():
        async with connected() as connection:
            await connection.feed(b"x" * 40)
            assert connection.reader._paused
            task = asyncio.ensure_future(connection.reader.readexactly(60))
            await turns()
            assert not connection.reader._paused
            await connection.feed(b"y" * 20)
            assert await task == b"x" * 40 + b"y" * 20

    run(main())


def test_a_line_over_the_limit(run):
    async def main():
        async with connected() as connection:
            await connection.feed(b"x" * 20 + b"\nnext\n")
            with pytest.raises(ValueError, match="^Separator is found, but chunk is longer than limit$") as caught:
                await connection.reader.readline()
            assert type(caught.value.__context__) is asyncio.LimitOverrunError
            assert await connection.reader.readline() == b"next\n"
            await connection.feed(b"y" * 20)
            with pytest.raises(ValueError, match="^Separator is not found, and chunk exceed the limit$"):
                await connection.reader.readline()
            assert connection.reader._buffer == b""

    run(main())


def test_megabytes_in_pieces(run):
    async def main():
        data = os.urandom(3_000_000)
        async with connected(limit=2**16) as connection:
            sent = asyncio.ensure_future(asyncio.to_thread(connection.peer.sendall, data))
            found = bytearray()
            choose = random.Random(1)
            while len(found) < len(data):
                wanted = choose.choice((1, 1000, 70_000, 400_000))
                if choose.random() < 0.5:
                    found += await connection.reader.readexactly(min(wanted, len(data) - len(found)))
                else:
                    found += await connection.reader.read(wanted)
            await sent
            assert found == data

    run(main())


def test_large_messages_leave_no_memory_behind(run):
    """Large reads go into memory that the reader takes over, and gives back; each must see its own bytes alone."""

    async def main():
        async with connected(limit=2**17) as first, connected(limit=2**17) as second:
            for turn in range(1, 20):
                sizes = 100_000 - turn * 4000, 20_000 + turn * 4000
                messages = [bytes([turn + i]) * size for i, size in enumerate(sizes)]
                await first.feed(messages[0])
                await second.feed(messages[1])
                assert bytes(first.reader._buffer) == messages[0]
                part = await second.reader.read(1000)
                second.reader._buffer.extend(b"end")
                assert part + await second.reader.readexactly(sizes[1] - 997) == messages[1] + b"end"
                assert await first.reader.read(2**20) == messages[0]
                assert max(sys.getsizeof(each.reader._buffer) for each in (first, second)) < 8192

    run(main())


def test_a_buffer_that_is_shown_elsewhere(run, contexts):
    async def main():
        async with connected() as connection:
            await connection.feed(b"abc")
            with memoryview(connection.reader._buffer):
                kind, text, _, _ = await answer(connection.reader.read(2))
                assert (kind, text) == (BufferError, "Existing exports of data: object cannot be re-sized")
                await connection.feed(b"def")
                (context,) = contexts.take()
                assert type(context["exception"]) is BufferError

    run(main())


# ---------------------------------------------------------------- ends


def test_the_end_wakes_readers(run):
    async def main():
        async with connected() as connection:
            task = asyncio.ensure_future(connection.reader.read())
            await connection.feed(b"last")
            await connection.end()
            assert await task == b"last"
            assert connection.reader.at_eof()
            assert await connection.reader.read(5) == b""
            assert await connection.reader.readline() == b""
            with pytest.raises(asyncio.IncompleteReadError, match="^0 bytes read on a total of 3 expected bytes$"):
                await connection.reader.readexactly(3)
            with pytest.raises(asyncio.IncompleteReadError, match="^0 bytes read on a total of undefined expected"):
                await connection.reader.readuntil(b"xx")

    run(main())


def test_the_exception_of_a_connection(run):
    async def main():
        async with connected() as connection:
            task = asyncio.ensure_future(connection.reader.readline())
            await turns()
            connection.writer.transport._force_close(ConnectionResetError("gone"))
            with pytest.raises(ConnectionResetError, match="gone"):
                await task
            for name, args in METHODS.items():
                with pytest.raises(ConnectionResetError, match="gone"):
                    await getattr(connection.reader, name)(*args)
            with pytest.raises(ConnectionResetError):
                await connection.writer.drain()

    run(main())


# ---------------------------------------------------------------- what was replaced


@pytest.mark.parametrize("owner", ["instance", "class"])
@pytest.mark.parametrize("name", ["feed_data", "_wakeup_waiter", "_wait_for_data", "_maybe_resume_transport", "read"])
def test_a_replaced_method_of_the_reader(run, monkeypatch, owner, name):
    calls = []
    original = getattr(asyncio.StreamReader, name)

    async def main():
        async with connected() as connection:
            await connection.feed(b"before\n")
            assert await connection.reader.readline() == b"before\n"
            if owner == "class":
                monkeypatch.setattr(asyncio.StreamReader, name, lambda *args: calls.append(name) or original(*args))
            else:
                bound = getattr(connection.reader, name)
                monkeypatch.setattr(connection.reader, name, lambda *args: calls.append(name) or bound(*args))
            task = asyncio.ensure_future(connection.reader.read(10))
            await turns()
            await connection.feed(b"after")
            assert await task == b"after"
            assert calls
            calls.clear()
            monkeypatch.undo()
            await connection.feed(b"restored")
            assert await connection.reader.read(10) == b"restored"
            assert calls == []

    run(main())


def test_a_method_replaced_before_the_connection(run, monkeypatch):
    calls = []

    async def read(self, n=-1):
        calls.append(n)
        return await original(self, n)

    original = asyncio.StreamReader.read
    monkeypatch.setattr(asyncio.StreamReader, "read", read)

    async def main():
        async with connected() as connection:
            assert not is_swapped(connection.reader)
            await connection.feed(b"data")
            assert await connection.reader.read(4) == b"data"
            assert calls == [4]

    run(main())


def test_a_mock_in_the_class(run, monkeypatch):
    async def main():
        async with connected() as connection:
            mock = unittest.mock.AsyncMock(return_value=b"mocked")
            for name in METHODS:
                monkeypatch.setattr(asyncio.StreamReader, name, mock)
            assert await connection.reader.read(7) == b"mocked"
            assert mock.await_args == ((7,), {})
            assert await connection.reader.readexactly(8) == b"mocked"
            assert mock.await_args == ((8,), {})
            assert await connection.reader.readuntil(b"x") == b"mocked"
            assert mock.await_args == ((b"x",), {})
            assert await connection.reader.readline() == b"mocked"

    run(main())


@pytest.mark.parametrize("owner", ["instance", "class"])
def test_a_replaced_data_received(run, monkeypatch, owner):
    seen = []
    original = asyncio.StreamReaderProtocol.data_received

    async def main():
        async with connected() as connection:
            protocol = connection.writer.transport.get_protocol()
            if owner == "class":
                replacement = lambda self, data: seen.append(data) or original(self, data)  # noqa: E731
                monkeypatch.setattr(asyncio.StreamReaderProtocol, "data_received", replacement)
            else:
                monkeypatch.setattr(
                    protocol, "data_received", lambda data: seen.append(data) or original(protocol, data), raising=False
                )
            await connection.feed(b"data")
            assert seen == [b"data"]
            assert type(seen[0]) is bytes
            monkeypatch.undo()
            await connection.feed(b"more")
            assert seen == [b"data"]
            assert await connection.reader.read(8) == b"datamore"

    run(main())


def test_replaced_while_waiting(run):
    async def main():
        for name, args in METHODS.items():
            async with connected() as connection:
                task = asyncio.ensure_future(getattr(connection.reader, name)(*args))
                await turns()
                connection.reader.mine = "an attribute more"
                await connection.feed(b"a\n")
                assert await task == (b"a" if args else b"a\n")

    run(main())


@pytest.mark.parametrize("name", ["readuntil", "readline", "readexactly"])
def test_who_waits_goes_on_by_the_methods_it_began_with(run, monkeypatch, name):
    async def main():
        async with connected() as connection:
            task = asyncio.ensure_future(getattr(connection.reader, name)(*[4] * (name == "readexactly")))
            await turns(2)
            for method in ("read", "readline", "readuntil", "readexactly"):
                monkeypatch.setattr(connection.reader, method, None)
                monkeypatch.setattr(asyncio.StreamReader, method, None)
            await connection.feed(b"ab")
            await connection.feed(b"c\nd")
            monkeypatch.undo()
            assert await task == b"abc\n"
            assert await connection.reader.read(9) == b"d"

    run(main())


@pytest.mark.parametrize("separator", [b"\n", b"\r\n"])
def test_what_was_looked_through_is_not_looked_through_again(run, separator):
    async def main():
        async with connected(limit=100) as connection:
            task = asyncio.ensure_future(connection.reader.readuntil(separator))
            await connection.feed(b"12345678")
            # Somebody else took it away.
            connection.reader._buffer.clear()
            await connection.feed(b"a" + separator + b"b")
            await connection.feed(b"cdefghij" + separator + b"k")
            assert await task == b"a" + separator + b"bcdefghij" + separator
            assert await connection.reader.readexactly(1) == b"k"

    run(main())


def test_subclasses_are_left_alone(run):
    fed = []

    class Reader(asyncio.StreamReader):
        def feed_data(self, data):
            fed.append(data)
            super().feed_data(data.upper())

    class Protocol(asyncio.StreamReaderProtocol):
        def data_received(self, data):
            fed.append(data)
            super().data_received(data)

    async def main():
        for make_reader, make_protocol, expected in (
            (Reader, asyncio.StreamReaderProtocol, b"DATA"),
            (asyncio.StreamReader, Protocol, b"data"),
        ):
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            reader, writer = await open_with(make_reader, make_protocol, ours)
            assert type(reader) is make_reader
            peer.send(b"data")
            assert await reader.read(10) == expected
            assert fed == [b"data"]
            fed.clear()
            peer.close()
            writer.close()
            await writer.wait_closed()

    run(main())


@pytest.mark.parametrize(
    "name,value",
    [
        ("_buffer", b"other"),
        ("_limit", 5.5),
        ("_paused", 0),
        ("_eof", ""),
        ("_waiter", None),
        ("_loop", None),
        ("_transport", None),
        ("__dict__", dict),
        ("__dict__", type("Fields", (dict,), {})),
    ],
)
def test_replaced_attributes(run, name, value):
    async def main():
        async with connected() as connection:
            reader = connection.reader
            if name == "__dict__":
                reader.__dict__ = value(reversed(vars(reader).items()))
            elif name == "_loop":
                reader._loop = asyncio.get_running_loop()
            else:
                setattr(reader, name, bytearray(value) if name == "_buffer" else value)
            await connection.feed(b"12\n")
            lead = b"other" if name == "_buffer" else b""
            assert await reader.readline() == lead + b"12\n"
            task = asyncio.ensure_future(reader.read(4))
            await turns()
            await connection.feed(b"more")
            assert await task == b"more"

    run(main())


@pytest.mark.parametrize("another", [False, True], ids=["", "with another in its place"])
def test_missing_attributes(run, contexts, another):
    async def main():
        for name in ("_buffer", "_eof", "_paused", "_limit", "_exception"):
            async with connected() as connection:
                kept = vars(connection.reader).pop(name)
                if another:
                    connection.reader.another = kept
                await connection.feed(b"x" * 40)
                await answer(connection.reader.read(4))
                await answer(connection.reader.readexactly(4))
                setattr(connection.reader, name, kept)
        for context in contexts.take():
            assert type(context["exception"]) is AttributeError

    run(main())


def test_a_limit_that_no_buffer_reaches(run):
    async def main():
        async with connected(limit=sys.maxsize) as connection:
            await connection.feed(b"x" * 1000 + b"\n")
            assert await connection.reader.readline() == b"x" * 1000 + b"\n"
            await connection.feed(b"rest")
            await connection.end()
            assert await connection.reader.read() == b"rest"

    run(main())


def test_an_exception_that_is_none(run):
    async def main():
        async with connected() as connection:
            connection.reader._exception = "no exception"
            for call in (connection.reader.read(1), connection.reader.readexactly(1), connection.reader.readline()):
                with pytest.raises(TypeError, match="^exceptions must derive from BaseException$"):
                    await call
            connection.reader._exception = None

    run(main())


@pytest.mark.parametrize("fed", [b"", b"x" * 20])
def test_a_resume_that_fails(run, fed):
    """Where a reader begins to wait, and where it takes what it has."""

    class Transport:
        def resume_reading(self):
            raise KeyError("resume")

    async def main():
        async with connected() as connection:
            reader = connection.reader
            await connection.feed(fed) if fed else None
            transport, reader._transport, reader._paused = reader._transport, Transport(), True
            with pytest.raises(KeyError, match="resume"):
                await reader.read(10)
            assert reader._paused is False and reader._waiter is None
            reader._transport = transport
            await connection.feed(b"on")
            # What was taken is lost.
            assert await reader.read(20) == fed[10:] + b"on"

    run(main())


def test_data_for_a_reader_that_is_paused(run):
    """Somebody has resumed its transport."""

    async def main():
        async with connected() as connection:
            reader = connection.reader
            await connection.feed(b"x" * 40)
            assert reader._paused
            connection.writer.transport.resume_reading()
            await connection.feed(b"y" * 40)
            assert reader._paused
            assert await reader.readexactly(80) == b"x" * 40 + b"y" * 40
            assert not reader._paused

    run(main())


@pytest.mark.fastloop_only(reason="what the methods are made of")
def test_arguments_of_the_native_functions():
    for function in (_core._stream_read, _core._stream_read_exactly, _core._stream_read_until):
        for arguments in ((), (1, 2), (1, 2, 3, 4)):
            with pytest.raises(TypeError):
                function(*arguments)
        assert function(1, 2, 3) is None


def test_a_foreign_future_as_the_waiter(run):
    async def main():
        async with connected() as connection:
            waiter = asyncio.futures._PyFuture(loop=asyncio.get_running_loop())
            connection.reader._waiter = waiter
            await connection.feed(b"data")
            assert waiter.result() is None
            assert connection.reader._waiter is None

    run(main())


def test_another_protocol_and_back(run):
    async def main():
        class Other(asyncio.Protocol):
            def data_received(self, data):
                seen.append(data)

        seen = []
        async with connected() as connection:
            transport = connection.writer.transport
            protocol = transport.get_protocol()
            transport.set_protocol(Other())
            await connection.feed(b"for the other")
            transport.set_protocol(protocol)
            await connection.feed(b"for the reader")
            assert seen == [b"for the other"]
            assert await connection.reader.read(50) == b"for the reader"

    run(main())


def test_calls_that_come_back_from_a_pause(run):
    """pause_reading() and resume_reading() are called with the reader in the middle of things."""

    async def main():
        async with connected() as connection:
            reader, transport = connection.reader, connection.writer.transport
            pause, resume = transport.pause_reading, transport.resume_reading

            def pause_and_steal():
                pause()
                stolen.append(bytes(reader._buffer))
                reader._buffer.clear()

            def resume_and_replace():
                resume()
                reader._buffer = bytearray(b"new")

            stolen = []
            transport.pause_reading = pause_and_steal
            transport.resume_reading = resume_and_replace
            await connection.feed(b"x" * 40)
            assert stolen == [b"x" * 40]
            task = asyncio.ensure_future(reader.read(10))
            await turns()
            await connection.feed(b"!")
            assert await task == b"new!"

    run(main())


def test_start_tls_keeps_the_reader_working(run, authority):
    async def main():
        async def serve(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            await writer.start_tls(authority.server)
            writer.write((await reader.readline()).upper())
            writer.write(await reader.readexactly(3))
            await writer.drain()
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"plain\n")
        assert await reader.readline() == b"plain\n"
        await writer.start_tls(authority.client, server_hostname="localhost")
        writer.write(b"secret\nend")
        assert await reader.readline() == b"SECRET\n"
        assert await reader.read() == b"end"
        writer.close()
        with contextlib.suppress(Exception):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_debug_mode_is_standard(loop, run):
    async def main():
        async with connected() as connection:
            assert not is_swapped(connection.reader)
            await connection.feed(b"line\n")
            assert await connection.reader.readline() == b"line\n"

    loop.set_debug(True)
    loop.slow_callback_duration = 100
    run(main())


def test_a_reader_without_a_loop_of_ours(run):
    """The class swap concerns the readers of our connections alone."""

    async def main():
        reader = asyncio.StreamReader()
        reader.feed_data(b"abc\n")
        assert type(reader) is asyncio.StreamReader
        assert await reader.readline() == b"abc\n"

    run(main())


@pytest.mark.fastloop_only("about what fastloop leaves alone")
def test_asyncio_is_not_touched():
    code = """
import asyncio, asyncio.streams
before = {cls: dict(vars(cls)) for cls in (asyncio.StreamReader, asyncio.StreamReaderProtocol, asyncio.StreamWriter)}
import fastloop
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await reader.read()
    writer.close()
    server.close()
fastloop.run(main())
assert all(dict(vars(cls)) == old for cls, old in before.items())
assert asyncio.StreamReader is asyncio.streams.StreamReader
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_resumed_transport_may_deliver_at_once(run):
    """What it feeds while it is resumed has not been searched yet."""

    async def main():
        async with connected() as connection:
            reader = connection.reader
            real = reader._transport

            class Foreign:
                def resume_reading(self):
                    reader._buffer.extend(b"line\n")

                def pause_reading(self):
                    pass

            reader._transport = Foreign()
            reader._paused = True
            asyncio.get_running_loop().call_soon(reader.feed_data, b"x")
            assert await reader.readline() == b"line\n"
            reader._transport = real

    run(main())


@pytest.mark.left_out(GIL, reason="with a GIL, nothing is stopped for it")
@pytest.mark.fastloop_only("about what fastloop does with a reader")
def test_threads_are_not_stopped_for_a_reader(python):
    """A child that is forked while some thread is about to stop all others never collects garbage: it hangs."""
    assert (
        python("""
        import sys
        assigned = []
        def audit(event, args):
            if event == "object.__setattr__" and isinstance(args[0], asyncio.StreamReader):
                assigned.append(args[1])
        sys.addaudithook(audit)
        async def main():
            server = await asyncio.start_server(lambda reader, writer: writer.write(b"x"), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            native = asyncio.get_running_loop()._use_native_streams
            assert await reader.readexactly(1) == b"x" and (type(reader) is not asyncio.StreamReader) == native
            attributes = vars(reader)
            reader.more = 1
            assert list(attributes)[0] == "_limit" and list(attributes)[-1] == "more"
            writer.close()
            server.close()
        new_event_loop().run_until_complete(main())
        print(assigned)
        """)
        == "[]\n"
    )


@pytest.mark.parametrize("call", ["read()", "readexactly(9)", "readline()", "readuntil()"])
def test_what_waits_for_data_can_be_collected(loop, call):
    """Task, coroutine, reader and waiter are a cycle once the loop and the connection are gone."""

    class Witness:
        pass

    async def reading(witness):
        near, far = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=near)
        with far:
            loop.call_soon(loop.stop)
            await eval(f"reader.{call}")
        del writer

    witness = Witness()
    seen = weakref.ref(witness)
    task = loop.create_task(reading(witness))
    task._log_destroy_pending = False
    loop.run_forever()
    del task, witness
    with warnings.catch_warnings():
        # Of a socket, a transport and a loop.
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()
        gc.collect()
    assert seen() is None
