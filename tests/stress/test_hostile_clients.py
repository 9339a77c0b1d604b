"""A hundred clients that do everything wrong beside a hundred good ones: each good one gets exactly its own bytes.

The server echoes. A good client sends b"G", the length of what follows, and that many bytes, in pieces, while it reads;
the server closes when it has echoed all. Reads on both sides are cancelled at random points and tried again. Hostile
clients reset, stall, half-close and send garbage, are cancelled wherever they are, and have their server side
cancelled or aborted. Everything random comes from a seed.
"""

import asyncio
import contextlib
import random
import socket
import ssl

import pytest

import helpers

SEED = 20_240_229
GOOD = 100
HOSTILE = 100
HEAD = 9

# Some on an idle machine, more beside other work or under a sanitizer.
pytestmark = pytest.mark.timeout(200, method="signal")


# ---------------------------------------------------------------- the server


class Wanted:
    """Counts the bytes of a good client, by its head; knows a hostile one by what it sends first."""

    def __init__(self):
        self.head = b""
        self.seen = 0

    def add(self, data):
        self.head += data[: HEAD - len(self.head)]
        self.seen += len(data)

    @property
    def is_good(self):
        return self.head[:1] == b"G"

    @property
    def is_done(self):
        return len(self.head) == HEAD and self.is_good and self.seen == HEAD + int.from_bytes(self.head[1:], "big")


class EchoProtocol(asyncio.Protocol):
    """Echoes, and stops reading while its peer does not read."""

    def __init__(self, side):
        self.side = side
        self.wanted = Wanted()

    def connection_made(self, transport):
        self.transport = transport
        self.side.entered(self)

    def data_received(self, data):
        self.wanted.add(data)
        self.transport.write(data)
        if self.wanted.is_done:
            self.transport.close()

    def pause_writing(self):
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self):
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, error):
        self.side.left(self)

    def disturb(self):
        self.transport.abort()


class EchoHandler:
    """The same by streams; its reads are given up at random points, and tried again."""

    def __init__(self, side, number):
        self.side = side
        self.random = random.Random(f"{SEED} server {number}")
        self.wanted = Wanted()

    async def run(self, reader, writer):
        self.task = asyncio.current_task()
        self.side.entered(self)
        try:
            while not self.wanted.is_done and (data := await read_patiently(reader, self.random)):
                self.wanted.add(data)
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            # Up to Python 3.12 a handler that ends cancelled is logged as an error.
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self.side.left(self)

    def disturb(self):
        self.task.cancel()


class ServerSide:
    """A server of that kind and style, and the connections that it has."""

    def __init__(self, kind, style, folder, authority):
        self.kind, self.style = kind, style
        self.path = str(folder / "s.sock")
        self.authority = authority
        self.connections = set()
        self.total = 0

    def entered(self, connection):
        self.connections.add(connection)
        self.total += 1

    def left(self, connection):
        self.connections.remove(connection)

    async def handle(self, reader, writer):
        await EchoHandler(self, self.total).run(reader, writer)

    async def start(self):
        options = {"backlog": 500}
        if self.kind == "tls":
            options["ssl"] = self.authority.server
        if self.style == "streams":
            if self.kind == "unix":
                self.server = await asyncio.start_unix_server(self.handle, self.path, **options)
            else:
                self.server = await asyncio.start_server(self.handle, "127.0.0.1", 0, **options)
        else:
            loop = asyncio.get_running_loop()
            if self.kind == "unix":
                self.server = await loop.create_unix_server(lambda: EchoProtocol(self), self.path, **options)
            else:
                self.server = await loop.create_server(lambda: EchoProtocol(self), "127.0.0.1", 0, **options)
        self.address = self.server.sockets[0].getsockname()

    async def disturb_hostile_connections(self):
        """Cancel or abort, at random points, what serves a hostile client."""
        dice = random.Random(f"{SEED} disturb")
        while True:
            await asyncio.sleep(dice.random() * 0.004)
            hostile = [each for each in self.connections if each.wanted.head and not each.wanted.is_good]
            if hostile:
                dice.choice(sorted(hostile, key=id)).disturb()

    async def stop(self):
        """Stop serving; every connection must end, since all clients have left."""
        self.server.close()
        await helpers.until(lambda: not self.connections)
        await self.server.wait_closed()


# ---------------------------------------------------------------- clients on the loop


async def read_patiently(reader, dice):
    """Read some bytes, giving up and trying again after random times that are often no time at all."""
    while True:
        try:
            async with asyncio.timeout(dice.choice([0, 0.0001, 0.001, 0.01, None])):
                return await reader.read(dice.choice([1, 100, 5000, 65536]))
        except TimeoutError:
            await asyncio.sleep(0)


def payload(dice):
    data = dice.randbytes(dice.choice([1, 500, 20_000, 150_000]))
    return b"G" + len(data).to_bytes(HEAD - 1, "big") + data


def pieces(data, dice):
    while data:
        size = dice.choice([1, 7, 1000, 30_000])
        yield data[:size]
        data = data[size:]


class StreamClient:
    """A client by streams."""

    @classmethod
    async def connect(cls, side):
        self = cls()
        if side.kind == "unix":
            self.reader, self.writer = await asyncio.open_unix_connection(side.path)
        elif side.kind == "tls":
            self.reader, self.writer = await asyncio.open_connection(
                *side.address, ssl=side.authority.client, server_hostname="localhost"
            )
        else:
            self.reader, self.writer = await asyncio.open_connection(*side.address)
        self.transport = self.writer.transport
        return self

    async def send(self, data, dice):
        for piece in pieces(data, dice):
            self.writer.write(piece)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(dice.choice([0, 0.001, None])):
                    await self.writer.drain()
            await asyncio.sleep(0)

    async def receive(self, dice):
        received = bytearray()
        while data := await read_patiently(self.reader, dice):
            received += data
        return bytes(received)

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class ProtocolClient(asyncio.Protocol):
    """A client by protocol, which pauses and resumes at random."""

    def __init__(self):
        self.received = bytearray()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.lost = asyncio.Event()
        self.error = None

    @classmethod
    async def connect(cls, side):
        loop = asyncio.get_running_loop()
        if side.kind == "unix":
            _, self = await loop.create_unix_connection(cls, side.path)
        elif side.kind == "tls":
            options = {"ssl": side.authority.client, "server_hostname": "localhost"}
            _, self = await loop.create_connection(cls, *side.address, **options)
        else:
            _, self = await loop.create_connection(cls, *side.address)
        return self

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data

    def pause_writing(self):
        self.may_write.clear()

    def resume_writing(self):
        self.may_write.set()

    def connection_lost(self, error):
        self.error = error
        self.may_write.set()
        self.lost.set()

    async def send(self, data, dice):
        for piece in pieces(data, dice):
            await self.may_write.wait()
            self.transport.write(piece)
            await asyncio.sleep(0)

    async def receive(self, dice):
        while not self.lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(dice.random() * 0.01):
                    await self.lost.wait()
            if not self.transport.is_closing():
                self.transport.pause_reading()
                await asyncio.sleep(dice.random() * 0.002)
                if not self.transport.is_closing():
                    self.transport.resume_reading()
        if self.error is not None:
            raise self.error
        return bytes(self.received)

    async def close(self):
        self.transport.close()
        await self.lost.wait()


CLIENTS = {"streams": StreamClient, "protocol": ProtocolClient}


async def be_good(side, number):
    """Be a good client: connect, send, receive at the same time; return (what was sent, what came back)."""
    dice = random.Random(f"{SEED} good {number}")
    await asyncio.sleep(dice.random() * 0.3)
    client = await CLIENTS[side.style].connect(side)
    try:
        data = payload(dice)
        _, received = await asyncio.gather(client.send(data, dice), client.receive(dice))
        return data, received
    finally:
        await client.close()


async def be_cancelled(side, dice):
    """Be a client of the loop that is cancelled somewhere between connecting and the end of file."""
    async with asyncio.timeout(dice.random() * 0.03):
        client = await CLIENTS[side.style].connect(side)
        try:
            await asyncio.gather(client.send(b"B" + dice.randbytes(100_000), dice), client.receive(dice))
        finally:
            # close() would wait for a server that waits for us to read.
            client.transport.abort()
            await client.close()


# ---------------------------------------------------------------- clients by plain sockets


class Peer(helpers.Peer):
    """A plain socket that is polled less often, for there are many."""

    async def attempt(self, function, *args):
        while True:
            try:
                return function(*args)
            except helpers.AGAIN:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def plain_socket(side, with_tls=True):
    """A connected plain socket, polled; a TLS socket where the server speaks TLS, unless told otherwise."""
    sock = socket.socket(helpers.FAMILIES["unix" if side.kind == "unix" else "tcp"])
    peer = Peer(sock)
    try:
        await peer.attempt(sock.connect, side.address)
        if side.kind == "tls" and with_tls:
            sock = side.authority.client.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
            peer = Peer(sock)
            await peer.attempt(sock.do_handshake)
        yield peer
    finally:
        peer.sock.close()


async def send_some(peer, dice, most):
    """Send up to `most` bytes that no good client sends, as far as the kernel takes them at once."""
    data = memoryview(b"B" + dice.randbytes(most))
    with contextlib.suppress(*helpers.AGAIN):
        while data:
            data = data[peer.sock.send(data) :]
            await asyncio.sleep(0)


async def reset(side, dice):
    async with plain_socket(side) as peer:
        await send_some(peer, dice, dice.choice([1, 1000, 50_000]))
        await asyncio.sleep(dice.random() * 0.01)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def stall(side, dice):
    """Fill the connection both ways without ever reading, then do nothing."""
    async with plain_socket(side) as peer:
        await send_some(peer, dice, 3_000_000)
        await asyncio.sleep(0.1 + dice.random() * 0.3)


async def stall_before_the_handshake(side, dice):
    async with plain_socket(side, with_tls=False):
        await asyncio.sleep(0.1 + dice.random() * 0.3)


async def half_close(side, dice):
    async with plain_socket(side) as peer:
        await send_some(peer, dice, dice.choice([1, 1000, 50_000]))
        socket.socket.shutdown(peer.sock, socket.SHUT_WR)
        with contextlib.suppress(ssl.SSLError):
            async with asyncio.timeout(dice.random() * 0.1):
                await peer.recv_all()


async def send_garbage(side, dice):
    """Where the server speaks TLS this is no handshake, or garbage in the middle of one's records."""
    async with plain_socket(side, with_tls=dice.random() < 0.5) as peer:
        for _ in range(5):
            socket.socket.send(peer.sock, b"\xff" + dice.randbytes(dice.randrange(2000)))
            await asyncio.sleep(dice.random() * 0.01)


HOSTILITIES = [reset, stall, stall_before_the_handshake, half_close, send_garbage, be_cancelled]


async def be_hostile(side, number):
    """Do one hostile thing after the other, until cancelled."""
    dice = random.Random(f"{SEED} hostile {number}")
    counts = side.hostilities
    while True:
        act = dice.choice(HOSTILITIES)
        with contextlib.suppress(OSError, TimeoutError):
            await act(side, dice)
        counts[act.__name__] = counts.get(act.__name__, 0) + 1
        await asyncio.sleep(dice.random() * 0.1)


# ---------------------------------------------------------------- the test


async def cancel_all(tasks):
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            raise AssertionError(f"a hostile client has ended with {result!r}")


@pytest.mark.parametrize("style", ["streams", "protocol"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_every_good_client_gets_its_own_bytes(run, tmp_path, authority, kind, style):
    async def program():
        side = ServerSide(kind, style, tmp_path, authority)
        side.hostilities = {}
        await side.start()
        hostile = [asyncio.ensure_future(be_hostile(side, number)) for number in range(HOSTILE)]
        hostile.append(asyncio.ensure_future(side.disturb_hostile_connections()))
        good = await asyncio.gather(*[be_good(side, number) for number in range(GOOD)])
        await cancel_all(hostile)
        await side.stop()
        return good, side.hostilities

    good, hostilities = run(program())
    assert len(good) == GOOD and sum(len(sent) for sent, _ in good) > 1_000_000
    wrong = [number for number, (sent, received) in enumerate(good) if sent != received]
    assert wrong == []
    assert set(hostilities) == {act.__name__ for act in HOSTILITIES}
