"""Echo by each interface of asyncio, server and clients in one process and one loop.

So it shows what a program spends that is on both ends; servers alone, under a load that is no bottleneck, are what the
benchmarks of the repository measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
from pathlib import Path

from fastloop._bench.registry import DEFAULT, QUICK, case

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from ssl import SSLContext
    from typing import Any, TypedDict

    # Answers one message, or sends one and takes the answer.
    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]
    Ask = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

    Address = tuple[str | Any, int]

    class Contexts(TypedDict):
        server_ssl: SSLContext
        ssl: SSLContext


KIB = 1024
CLIENTS = 10
ECHO: dict[str, Any] = {"group": "echo", "unit": "round trip"}


def payload(size: int) -> bytes:
    """What is sent: no two neighbouring bytes are the same."""
    return bytes(range(251)) * (size // 251 + 1)


class Server(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Client(asyncio.Protocol):
    """Sends its message again as soon as it is back, so many times."""

    def __init__(self, message: bytes, left: int, done: asyncio.Future[None]) -> None:
        self.message, self.left, self.done = message, left, done
        self.missing = len(message)

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.missing -= len(data)
        if self.missing:
            return
        self.left -= 1
        if self.left:
            self.missing = len(self.message)
            self.transport.write(self.message)
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def share(n: int) -> int:
    """How many of the n round trips each client makes."""
    return max(1, n // CLIENTS)


async def by_protocols(n: int, size: int, **options: Any) -> None:
    """options: ssl contexts of the server and the client, and the TLS name."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, ssl=options.pop("server_ssl", None))
    async with server:
        address = server.sockets[0].getsockname()
        message = payload(size)[:size]
        ends = [loop.create_future() for _ in range(CLIENTS)]
        for end in ends:
            await loop.create_connection(
                lambda end=end: Client(message, share(n), end),  # type: ignore[misc]
                *address,
                **options,
            )
        for end in ends:
            await end


async def by_streams(
    n: int, talk: Talk, ask: Ask, server_ssl: SSLContext | None = None, path: str | None = None, **options: Any
) -> None:
    """talk(reader, writer) answers one message, ask(reader, writer) sends one and takes the answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, EOFError):
            while await talk(reader, writer):
                pass
        writer.close()

    async def client() -> None:
        if path is None:
            reader, writer = await asyncio.open_connection(*address, **options)
        else:
            reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(share(n)):
            await ask(reader, writer)
        writer.close()
        await writer.wait_closed()

    if path is None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=server_ssl)
        address = server.sockets[0].getsockname()
    else:
        server = await asyncio.start_unix_server(handle, path)
    async with server:
        await asyncio.gather(*[client() for _ in range(CLIENTS)])


async def echo_chunk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    data = await reader.read(64 * KIB)
    writer.write(data)
    await writer.drain()
    return data


async def echo_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    line = await reader.readline()
    writer.write(line)
    await writer.drain()
    return line


def exactly(size: int) -> Ask:
    message = payload(size)[:size]

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(message)
        await writer.drain()
        await reader.readexactly(size)

    return ask


async def ask_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"a line of some length, as a protocol of lines may have it\n")
    await reader.readline()


def contexts() -> Contexts:
    """TLS without certificates, which need not be made then: TLS 1.2 with an anonymous key exchange."""
    made = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH:@SECLEVEL=0")
        made.append(context)
    return {"server_ssl": made[0], "ssl": made[1]}


@case("echo/tcp/protocol/1k", n=20_000, tier=QUICK, **ECHO)
async def protocol_1k(n: int) -> None:
    """Ten clients, 1 KiB each way."""
    await by_protocols(n, KIB)


@case("echo/tcp/protocol/100k", n=5000, **ECHO)
async def protocol_100k(n: int) -> None:
    await by_protocols(n, 100 * KIB)


@case("echo/tcp/streams/1k", n=10_000, tier=QUICK, **ECHO)
async def streams_1k(n: int) -> None:
    await by_streams(n, echo_chunk, exactly(KIB))


@case("echo/tcp/streams/100k", n=4000, **ECHO)
async def streams_100k(n: int) -> None:
    await by_streams(n, echo_chunk, exactly(100 * KIB))


@case("echo/tcp/readline", n=10_000, tier=QUICK, **ECHO)
async def readline(n: int) -> None:
    await by_streams(n, echo_line, ask_line)


@case("echo/unix/streams/1k", n=10_000, **ECHO)
async def unix_streams_1k(n: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await by_streams(n, echo_chunk, exactly(KIB), path=str(Path(folder, "socket")))


@case("echo/tls/protocol/1k", n=10_000, tier=QUICK, **ECHO)
async def tls_1k(n: int) -> None:
    await by_protocols(n, KIB, **contexts())


@case("echo/tls/streams/1k", n=8000, **ECHO)
async def tls_streams_1k(n: int) -> None:
    await by_streams(n, echo_chunk, exactly(KIB), **contexts())


class DatagramServer(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.DatagramTransport = transport

    def datagram_received(self, data: bytes, address: Address) -> None:
        self.transport.sendto(data, address)


class DatagramClient(asyncio.DatagramProtocol):
    def __init__(self, message: bytes, left: int, done: asyncio.Future[None]) -> None:
        self.message, self.left, self.done = message, left, done

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.DatagramTransport = transport
        transport.sendto(self.message)

    def datagram_received(self, data: bytes, address: Address) -> None:
        self.left -= 1
        if self.left:
            self.transport.sendto(self.message)
        elif not self.done.done():
            self.done.set_result(None)


@case("echo/udp/1k", n=20_000, tier=QUICK, **ECHO)
async def udp(n: int) -> None:
    """Ten clients with one datagram each under way, so that none is dropped."""
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(DatagramServer, ("127.0.0.1", 0))
    address = server.get_extra_info("sockname")
    ends, transports = [loop.create_future() for _ in range(CLIENTS)], [server]
    for end in ends:
        transport, _ = await loop.create_datagram_endpoint(
            lambda end=end: DatagramClient(payload(KIB)[:KIB], share(n), end),  # type: ignore[misc]
            remote_addr=address,
        )
        transports.append(transport)
    for end in ends:
        await end
    for transport in transports:
        transport.close()


@case("echo/sock_recv/1k", n=20_000, tier=DEFAULT, **ECHO)
async def sock_recv(n: int) -> None:
    """Two tasks and a pair of sockets, by loop.sock_sendall() and loop.sock_recv()."""
    loop = asyncio.get_running_loop()
    pair = socket.socketpair()
    message = payload(KIB)[:KIB]

    async def answer() -> None:
        while data := await loop.sock_recv(pair[1], 64 * KIB):
            await loop.sock_sendall(pair[1], data)

    with pair[0], pair[1]:
        for end in pair:
            end.setblocking(False)
        task = loop.create_task(answer())
        for _ in range(n):
            await loop.sock_sendall(pair[0], message)
            await loop.sock_recv(pair[0], 64 * KIB)
        pair[0].shutdown(socket.SHUT_WR)
        await task


@case("echo/connect", group="echo", unit="connection", n=2000, tier=QUICK)
async def connect(n: int) -> None:
    """Connect and close, one after the other, both ends here."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        address = server.sockets[0].getsockname()
        for _ in range(n):
            transport, _ = await loop.create_connection(asyncio.Protocol, *address)
            transport.close()
