"""websockets: its server and its client over TCP, TLS and Unix sockets."""

import asyncio
import contextlib

import pytest

pytest.importorskip("websockets")
client = pytest.importorskip("websockets.asyncio.client")
server = pytest.importorskip("websockets.asyncio.server")
exceptions = pytest.importorskip("websockets.exceptions")


async def handler(connection):
    """Echoes; closes with a code when asked to, streams a fragmented message when asked to."""
    async for message in connection:
        if message == "close":
            await connection.close(4002, "bye")
        elif message == "fragments":
            await connection.send(part for part in ["one ", "two ", "three"])
        else:
            await connection.send(message)


@contextlib.asynccontextmanager
async def serving(kind, authority, folder):
    """A server of that kind; gives a function that returns a client's connection as a context manager."""
    options = {"compression": "deflate", "ping_interval": None, "max_size": None}
    if kind == "unix":
        path = str(folder / "w.sock")
        async with server.unix_serve(handler, path, **options):
            yield lambda: client.unix_connect(path, uri="ws://localhost/", **options)
    else:
        ours = {"ssl": authority.server} if kind == "tls" else {}
        theirs = {"ssl": authority.client} if kind == "tls" else {}
        async with server.serve(handler, "127.0.0.1", 0, **ours, **options) as listening:
            port = listening.sockets[0].getsockname()[1]
            uri = f"ws{'s' if kind == 'tls' else ''}://localhost:{port}/"
            yield lambda: client.connect(uri, proxy=None, **theirs, **options)


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_messages(same, authority, tmp_path, kind):
    async def talk(connect, number):
        async with connect() as connection:
            answers = []
            for message in ("ü" * number, bytes([number]) * 100_000, "", "fragments"):
                await connection.send(message)
                answers.append(await connection.recv())
            latency = await (await connection.ping(b"here"))
            await connection.send("close")
            with pytest.raises(exceptions.ConnectionClosedError) as caught:
                await connection.recv()
            return answers, latency >= 0, str(caught.value)

    async def program():
        async with serving(kind, authority, tmp_path) as connect:
            return await asyncio.gather(*[talk(connect, number) for number in range(30)])

    for number, (answers, has_latency, error) in enumerate(same(program)):
        assert answers == ["ü" * number, bytes([number]) * 100_000, "", "one two three"]
        assert has_latency and "4002" in error


def test_many_messages_in_flight_and_a_receiver_that_is_cancelled(same, authority, tmp_path):
    async def program():
        async with serving("tcp", authority, tmp_path) as connect, connect() as connection:

            async def send():
                for number in range(2000):
                    await connection.send(f"{number}" * (number % 50))

            sending = asyncio.ensure_future(send())
            received, timeouts = [], 0
            while len(received) < 2000:
                try:
                    received.append(await asyncio.wait_for(connection.recv(), 0.0005))
                except TimeoutError:
                    timeouts += 1
            await sending
            return received

    assert same(program) == [f"{number}" * (number % 50) for number in range(2000)]
