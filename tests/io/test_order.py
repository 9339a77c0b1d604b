"""I/O and ready tasks take turns: neither waits for more turns than on the standard loop."""

import asyncio
import functools
import os
import select
import signal
import socket
import threading
import time

import pytest

from helpers import Recorder, socket_pair, turns, until, without_clients


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_answer_over_two_transports_of_one_loop_takes_two_turns_at_most(loop, run, kind):
    async def main():
        connect = loop.create_connection if kind == "tcp" else loop.create_unix_connection
        ours, theirs = socket_pair(kind)
        first, _ = await connect(Recorder, sock=ours)
        second, received = await connect(Recorder, sock=theirs)
        for count in range(1, 200):
            first.write(b"x")
            await turns(2)
            assert len(received.data) == count
        first.close()
        second.close()
        await turns(5)

    run(main())


def test_a_future_that_a_protocol_completes_wakes_its_task_in_the_next_turn_at_the_latest(loop, run):
    async def main():
        ours, theirs = socket_pair("unix")
        found = loop.create_future()
        transport, _ = await loop.create_unix_connection(
            lambda: Recorder(data_received=lambda _: (order.append("data"), found.set_result(None))), sock=ours
        )
        order = []

        async def waiting():
            await found
            order.append("task")

        task = loop.create_task(waiting())
        await asyncio.sleep(0)
        theirs.send(b"x")
        while not order:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["data", "task"]
        await task
        transport.close()
        theirs.close()
        await turns(3)

    run(main())


def test_readers_and_tasks_alternate(loop, run):
    async def main():
        ours, theirs = socket_pair("unix")
        theirs.send(b"x")
        order = []
        loop.add_reader(ours, order.append, "reader")
        for _ in range(2000):
            order.append("task")
            await asyncio.sleep(0)
        loop.remove_reader(ours)
        # Beside a chain of tasks the poll comes at least every 16 turns.
        assert order.count("reader") >= 2000 // 17 - 1
        ours.close()
        theirs.close()

    run(main())


class Starter(Recorder):
    """Starts a task in connection_made(), in a turn that is long enough that the next poll is not left out."""

    def __init__(self, loop):
        super().__init__(connection_made=self.start, connection_lost=lambda _: self.over.set_result(None))
        self.over = loop.create_future()

    def start(self, _):
        # Who pauses and goes on does not have the data sooner for it.
        self.transport.pause_reading()
        self.transport.resume_reading()
        asyncio.get_running_loop().create_task(self.work())
        time.sleep(0.001)

    async def work(self):
        self.events.append("task")


STARTED = ["connection_made", "task"]
ENDED = ["data_received", "eof_received", "connection_lost"]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_who_waits_for_a_connection_has_it_before_the_first_data(loop, run, kind):
    async def main():
        connect = loop.create_connection if kind == "tcp" else loop.create_unix_connection
        ours, theirs = socket_pair(kind)
        theirs.send(b"greeting")
        theirs.close()
        _, protocol = await connect(lambda: Starter(loop), sock=ours)
        protocol.events.append("connected")
        await protocol.over
        assert protocol.story == [*STARTED, "connected", *ENDED]

    run(main())


def test_a_task_that_a_server_starts_for_a_connection_runs_before_the_first_data(loop, run):
    async def main():
        protocols = []

        def factory():
            protocols.append(Starter(loop))
            return protocols[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(3):
            with socket.create_connection(address) as client:
                client.send(b"hello")
        while len(protocols) < 3:
            await asyncio.sleep(0)
        for protocol in protocols:
            await protocol.over
            assert protocol.story == [*STARTED, *ENDED]
        server.close()
        await server.wait_closed()

    run(main())


# ---------------------------------------------------------------- data and what is ready to run

KINDS = pytest.mark.parametrize("kind", ["tcp", "unix"])


async def pair(loop, kind, factory):
    """A transport with a protocol of the factory, and the plain socket of its peer."""
    ours, theirs = socket_pair(kind)
    connect = loop.create_connection if kind == "tcp" else loop.create_unix_connection
    transport, protocol = await connect(factory, sock=ours)
    await turns(3)
    return transport, protocol, theirs


async def end(transport, theirs):
    transport.abort()
    theirs.close()
    await turns(3)


def late():
    """Makes the turn so long that the next poll is not left out."""
    time.sleep(0.001)


def wait_for(transport, event):
    """Block until the next poll will find it."""
    poller = select.poll()
    poller.register(transport.get_extra_info("socket").fileno(), event)
    assert poller.poll(30_000)
    late()


@KINDS
def test_data_comes_behind_what_is_queued(loop, run, kind):
    async def main():
        order = []
        transport, _, theirs = await pair(
            loop, kind, lambda: Recorder(data_received=lambda _: (order.append("data"), loop.call_soon(soon)))
        )

        def soon():
            order.append("soon")

        for _ in range(3):
            theirs.send(b"x")
            wait_for(transport, select.POLLIN)
            loop.call_soon(order.append, "queued")
            await asyncio.sleep(0)
            await turns(3)
        assert order == ["queued", "data", "soon"] * 3
        await end(transport, theirs)

    run(main())


@KINDS
@pytest.mark.parametrize("first", ["reader", "data"])
def test_what_a_wait_finds_of_readers_and_transports_comes_in_the_order_of_the_system(loop, run, kind, first):
    async def main():
        order = []

        def log(name):
            order.append(name)
            loop.call_soon(order.append, "after " + name)
            if len(order) == 2:
                loop.call_soon(loop.call_soon, found.set_result, None)

        transport, _, theirs = await pair(loop, kind, lambda: Recorder(data_received=lambda _: log("data")))
        watched, other = socket_pair("unix")
        loop.add_reader(watched, lambda: (watched.recv(1), log("reader")))
        senders = {"reader": other, "data": theirs}
        await turns(3)

        second = "data" if first == "reader" else "reader"
        senders[first].send(b"x")
        senders[second].send(b"x")
        wait_for(transport, select.POLLIN)
        found = loop.create_future()
        await found  # nothing is ready to run now, so the loop waits
        assert order == [first, second, "after " + first, "after " + second]
        loop.remove_reader(watched)
        watched.close()
        other.close()
        await end(transport, theirs)

    run(main())


@KINDS
def test_a_timer_that_is_due_runs_before_what_the_data_has_started(loop, run, kind):
    """It ends the wait of a task that data has come for, if both are there at once."""

    async def main():
        order = []
        transport, _, theirs = await pair(
            loop,
            kind,
            lambda: Recorder(data_received=lambda _: (order.append("data"), loop.call_soon(order.append, "soon"))),
        )

        loop.call_later(0.001, order.append, "timer")
        theirs.send(b"x")
        wait_for(transport, select.POLLIN)
        time.sleep(0.01)
        while len(order) < 3:
            await asyncio.sleep(0)
        assert order == ["data", "timer", "soon"]
        await end(transport, theirs)

    run(main())


@KINDS
@pytest.mark.parametrize("stop", ["pause_reading", "close", "abort"])
def test_what_is_queued_may_still_stop_the_reading(loop, run, kind, stop):
    async def main():
        transport, protocol, theirs = await pair(loop, kind, Recorder)
        theirs.send(b"x")
        wait_for(transport, select.POLLIN)
        loop.call_soon(getattr(transport, stop))
        await turns(4)
        assert protocol.data == b""
        if stop == "pause_reading":
            transport.resume_reading()
            loop.call_soon(protocol.events.append, "queued")
            while not protocol.data:
                await asyncio.sleep(0)
            assert protocol.story == ["connection_made", "queued", "data_received"]
        await end(transport, theirs)

    run(main())


@KINDS
def test_pausing_and_going_on_puts_the_data_behind_what_was_queued_meanwhile(loop, run, kind):
    async def main():
        transport, protocol, theirs = await pair(loop, kind, Recorder)

        def again():
            transport.pause_reading()
            transport.resume_reading()
            loop.call_soon(protocol.events.append, "queued")

        theirs.send(b"x")
        wait_for(transport, select.POLLIN)
        loop.call_soon(again)
        while not protocol.data:
            await asyncio.sleep(0)
        assert protocol.story == ["connection_made", "queued", "data_received"]
        await end(transport, theirs)

    run(main())


class Slices(Recorder, asyncio.BufferedProtocol):
    """Takes four bytes at a time, and has a callback follow each."""

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.buffer = bytearray(4)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.events.append(bytes(self.buffer[:nbytes]))
        self.loop.call_soon(self.events.append, "soon")


@KINDS
@pytest.mark.parametrize("busy", [False, True])
def test_one_read_in_a_turn(loop, run, kind, busy):
    async def main():
        transport, protocol, theirs = await pair(loop, kind, lambda: Slices(loop))
        theirs.send(b"abcdefghijkl")
        theirs.shutdown(socket.SHUT_WR)
        late()
        while not protocol.lost:
            await asyncio.sleep(0 if busy else 0.01)
        assert protocol.events[1:] == [
            *[b"abcd", "soon", b"efgh", "soon", b"ijkl", "soon"],
            *["eof_received", "connection_lost"],
        ]
        await end(transport, theirs)

    run(main())


@KINDS
def test_much_data_leaves_room_for_callbacks(loop, run, kind):
    """Between two calls of data_received() runs what the first has queued."""

    async def main():
        order = []
        transport, protocol, theirs = await pair(
            loop,
            kind,
            lambda: Recorder(data_received=lambda _: (order.append("data"), loop.call_soon(order.append, "soon"))),
        )
        theirs.setblocking(False)
        left = 3_000_000
        while left or len(protocol.data) < 3_000_000:
            if left:
                left -= await loop.run_in_executor(None, send_some, theirs, left)
            await asyncio.sleep(0)
        await turns(2)
        assert order == ["data", "soon"] * (len(order) // 2)
        await end(transport, theirs)
        await loop.shutdown_default_executor()

    def send_some(sock, left):
        try:
            return sock.send(bytes(min(left, 1_000_000)))
        except BlockingIOError:
            return 0

    run(main())


@KINDS
def test_resume_writing_comes_behind_what_is_queued(loop, run, kind):
    async def main():
        order = []
        transport, _, theirs = await pair(
            loop, kind, lambda: Recorder(resume_writing=lambda _: (order.append("resumed"), loop.call_soon(soon)))
        )

        def soon():
            order.append("soon")

        # The rest is so little that it leaves in one go.
        transport.set_write_buffer_limits(0)
        while transport.get_write_buffer_size() == 0:
            transport.write(bytes(1000))
            await turns(2)
        theirs.setblocking(False)

        def drain():
            try:
                while theirs.recv(1_000_000):
                    pass
            except BlockingIOError:
                pass
            wait_for(transport, select.POLLOUT)
            loop.call_soon(order.append, "queued")

        loop.call_soon(drain)
        while "soon" not in order:
            await asyncio.sleep(0)
        assert order == ["queued", "resumed", "soon"]
        await end(transport, theirs)

    run(main())


# ---------------------------------------------------------------- both ends in one loop


class End(asyncio.Protocol):
    """Writes its own name as soon as it is connected, and has a callback follow."""

    def __init__(self, name, order):
        self.name = name
        self.order = order
        order.append(f"{name} factory")

    def connection_made(self, transport):
        self.order.append(f"{self.name} made")
        asyncio.get_running_loop().call_soon(self.order.append, f"{self.name} soon")
        transport.write(self.name.encode())

    def data_received(self, data):
        self.order.append(f"{self.name} got {data.decode()}")


# asyncio makes an accepted connection in a task of its own, while the one that a Unix socket asks for is made at once.
CLIENT = ["C factory", "C made", "C soon", "C connected", "C got S"]
SERVER = ["S factory", "S made", "S soon", "S got C"]
BOTH_UNIX = [*CLIENT[:-1], *SERVER[:-1], "C got S", "S got C"]


async def serve(loop, kind, factory, tmp_path):
    """A server, and the coroutine function that connects to it."""
    if kind == "tcp":
        server = await loop.create_server(factory, "127.0.0.1", 0)
        return server, functools.partial(
            loop.create_connection, host="127.0.0.1", port=server.sockets[0].getsockname()[1]
        )
    path = str(tmp_path / "socket")
    return await loop.create_unix_server(factory, path), functools.partial(loop.create_unix_connection, path=path)


@KINDS
def test_the_story_of_a_connection_with_both_ends_here(loop, run, kind, tmp_path):
    async def main():
        order = []
        ends = []

        def server_end():
            ends.append(End("S", order))
            return ends[-1]

        server, connect = await serve(loop, kind, server_end, tmp_path)
        transport, _ = await connect(lambda: End("C", order))
        order.append("C connected")
        while len(order) < 9:
            await asyncio.sleep(0.001)
        assert [event for event in order if event.startswith("C")] == CLIENT
        assert [event for event in order if event.startswith("S")] == SERVER
        # When the ends of a TCP connection learn of it is the kernel's affair.
        assert kind == "tcp" or order == BOTH_UNIX
        transport.abort()
        await without_clients(server)

    run(main())


def test_clients_that_connect_together_are_accepted_together(loop, run, tmp_path):
    async def main():
        order = []
        server, connect = await serve(loop, "unix", lambda: End("S", order), tmp_path)
        connections = await asyncio.gather(*[connect(lambda: End("C", order)) for _ in range(3)])
        while len(order) < 24:
            await asyncio.sleep(0.001)
        assert [event for event in order if event.startswith("S")][:6] == ["S factory"] * 3 + ["S made"] * 3
        for transport, _ in connections:
            transport.abort()
        await without_clients(server)

    run(main())


def test_a_signal_handler_runs_a_turn_after_the_signal_was_found(loop, run):
    async def main():
        order = []
        loop.add_signal_handler(signal.SIGUSR1, order.append, "signal")
        os.kill(os.getpid(), signal.SIGUSR1)
        late()
        for count in range(4):
            order.append(count)
            await asyncio.sleep(0)
            late()
        loop.remove_signal_handler(signal.SIGUSR1)
        assert order == [0, 1, 2, "signal", 3]

    run(main())


def test_a_connection_gets_its_protocol_in_the_turn_after_it_was_accepted(loop, run, tmp_path):
    async def main():
        path = str(tmp_path / "socket")
        order = []

        def connect():
            order.append("factory")
            return Recorder(connection_made=lambda _: order.append("made"))

        def count(turn):
            order.append(turn)
            if turn < 4:
                loop.call_soon(count, turn + 1)

        def on_ready():
            loop.remove_reader(ours)
            count(0)

        server = await loop.create_unix_server(connect, path)
        ours, theirs = socket_pair("unix")
        loop.add_reader(ours, on_ready)
        # Both become readable between two polls, in this order.
        theirs.send(b"x")
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        while not {"made", 4} <= set(order):
            await asyncio.sleep(0)
        assert order == [0, 1, "factory", 2, "made", 3, 4]
        for sock in (client, ours, theirs):
            sock.close()
        await without_clients(server)

    run(main())


# ---------------------------------------------------------------- what happens between the poll and the read


@KINDS
def test_what_a_thread_has_queued_comes_before_the_data_that_it_sent(loop, run, kind):
    async def main():
        order = []
        transport, _, theirs = await pair(loop, kind, lambda: Recorder(data_received=lambda _: order.append("data")))

        def work():
            loop.call_soon_threadsafe(order.append, "queued")
            theirs.send(b"x")

        for _ in range(30):
            order.clear()
            thread = threading.Thread(target=work)
            thread.start()
            await until(lambda: len(order) == 2)
            thread.join()
            assert order == ["queued", "data"]
        await end(transport, theirs)

    run(main())


def test_an_exit_from_get_buffer_leaves_what_is_ready_for_the_next_run(loop, run):
    order = []

    class Leaving(Slices):
        def get_buffer(self, sizehint):
            if "left" not in self.events:
                self.events.append("left")
                raise SystemExit("get_buffer")
            return super().get_buffer(sizehint)

    async def main():
        transport, _, theirs = await pair(loop, "unix", lambda: Leaving(loop))
        theirs.send(b"x")
        wait_for(transport, select.POLLIN)
        # A timer that is due stands behind the read.
        loop.call_later(0, order.append, "timer")
        time.sleep(0.01)
        loop.call_soon(order.append, "queued")
        await asyncio.sleep(0.001)
        return transport, theirs

    task = loop.create_task(main())
    with pytest.raises(SystemExit):
        loop.run_until_complete(task)
    assert order == ["queued"]
    run(end(*loop.run_until_complete(task)))
    assert order == ["queued", "timer"]


@pytest.mark.fastloop_only("the standard loop reads from whatever has the number")
def test_a_descriptor_that_was_replaced_before_the_read(loop, run):
    """What has the number now keeps its bytes."""

    async def main():
        transport, protocol, theirs = await pair(loop, "unix", Recorder)
        others = []

        def replace():
            fd = transport.get_extra_info("socket").fileno()
            others.extend(socket.socketpair())
            others[1].send(b"for the other")
            os.dup2(others[0].fileno(), fd)
            return fd

        theirs.send(b"x")
        wait_for(transport, select.POLLIN)
        fds = []
        loop.call_soon(lambda: fds.append(replace()))
        await until(lambda: protocol.lost)
        assert protocol.data == b""
        assert others[0].recv(100) == b"for the other"
        os.close(fds[0])
        for sock in (*others, theirs):
            sock.close()
        await turns(3)

    run(main())
