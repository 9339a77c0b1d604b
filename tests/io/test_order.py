"""I/O and ready tasks take turns: neither waits for more turns than on the standard loop."""

import asyncio
import socket
import time

import pytest

from helpers import Recorder, socket_pair, turns, until


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_answer_over_two_transports_of_one_loop_takes_two_turns_at_most(loop, run, kind):
    async def main():
        connect = loop.create_connection if kind == "tcp" else loop.create_unix_connection
        ours, theirs = socket_pair(kind)
        first, _ = await connect(Recorder, sock=ours)
        second, received = await connect(Recorder, sock=theirs)
        late = 0
        for count in range(1, 200):
            first.write(b"x")
            await turns(2)
            late += len(received.data) < count
            await until(lambda count=count: len(received.data) == count)
        # On a busy machine the loopback interface itself may bring it a moment later.
        assert late <= (20 if kind == "tcp" else 0)
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
