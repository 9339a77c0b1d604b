"""I/O and ready tasks take turns: neither waits for more turns than on the standard loop."""

import asyncio

import pytest

from helpers import Recorder, socket_pair, turns


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
