"""Echo servers by every interface that asyncio offers, put under load from outside.

The main figure is the CPU time of the server for a message; wall time says how fast messages came and went, with the
server on one core and the load on another.
"""

import asyncio
import socket

from benchmarks import native
from benchmarks.registry import DEFAULT, FULL, QUICK, server

KIB = 1024
SIZES = {"1k": KIB, "10k": 10 * KIB, "100k": 100 * KIB}


class Echo(asyncio.Protocol):
    __slots__ = ("transport",)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    __slots__ = ("buffer", "transport")

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = memoryview(bytearray(64 * KIB))

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count):
        # What the transport may still hold must not change under it.
        self.transport.write(bytes(self.buffer[:count]))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


def options(listener, tls):
    return {"sock": listener, "backlog": native.BACKLOG} | ({"ssl": tls} if tls else {})


def serve_protocol(protocol):
    async def serve(listener, tls):
        loop = asyncio.get_running_loop()
        if listener.family == socket.AF_UNIX:
            return await loop.create_unix_server(protocol, **options(listener, tls))
        return await loop.create_server(protocol, **options(listener, tls))

    return serve


def serve_streams(talk):
    async def handle(reader, writer):
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()

    async def serve(listener, tls):
        if listener.family == socket.AF_UNIX:
            return await asyncio.start_unix_server(handle, **options(listener, tls))
        return await asyncio.start_server(handle, **options(listener, tls))

    return serve


async def echo_chunks(reader, writer):
    while data := await reader.read(64 * KIB):
        writer.write(data)
        await writer.drain()


async def echo_lines(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def echo_exactly(reader, writer):
    while True:
        writer.write(await reader.readexactly(KIB))
        await writer.drain()


async def sock_recv(loop, connection):
    while data := await loop.sock_recv(connection, 64 * KIB):
        await loop.sock_sendall(connection, data)


async def sock_recv_into(loop, connection):
    buffer = memoryview(bytearray(64 * KIB))
    while count := await loop.sock_recv_into(connection, buffer):
        await loop.sock_sendall(connection, buffer[:count])


def serve_sockets(talk):
    async def handle(loop, connection):
        with connection:
            await talk(loop, connection)

    async def serve(listener, tls):
        loop = asyncio.get_running_loop()
        tasks = set()
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            task = loop.create_task(handle(loop, connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    return serve


async def serve_datagrams(listener, tls):
    return await asyncio.get_running_loop().create_datagram_endpoint(DatagramEcho, sock=listener)


# (kind, interface) to the server, the tier of its usual case (1 KiB, 50 connections) and that of the others.
SERVERS = {
    ("tcp", "protocol"): (serve_protocol(Echo), QUICK, DEFAULT),
    ("tcp", "buffered"): (serve_protocol(BufferedEcho), DEFAULT, FULL),
    ("tcp", "streams"): (serve_streams(echo_chunks), QUICK, DEFAULT),
    ("tcp", "sock_recv"): (serve_sockets(sock_recv), DEFAULT, FULL),
    ("tcp", "sock_recv_into"): (serve_sockets(sock_recv_into), FULL, FULL),
    ("unix", "protocol"): (serve_protocol(Echo), QUICK, FULL),
    ("unix", "buffered"): (serve_protocol(BufferedEcho), FULL, FULL),
    ("unix", "streams"): (serve_streams(echo_chunks), DEFAULT, FULL),
    ("tls", "protocol"): (serve_protocol(Echo), QUICK, DEFAULT),
    ("tls", "buffered"): (serve_protocol(BufferedEcho), FULL, FULL),
    ("tls", "streams"): (serve_streams(echo_chunks), DEFAULT, FULL),
}
# Size and connections of each case, and messages in one run.
LOADS = {("1k", 50): 50_000, ("1k", 1): 10_000, ("1k", 1000): 50_000, ("10k", 50): 30_000, ("100k", 50): 5000}
# Everything below a kind and interface; the rest of the product is in the full selection.
REST = {("10k", 1): 10_000, ("10k", 1000): 20_000, ("100k", 1): 3000, ("100k", 1000): 3000}

for (kind, interface), (run, first_tier, other_tier) in SERVERS.items():
    for (size, connections), n in (LOADS | REST).items():
        tier = FULL if (size, connections) in REST else first_tier if (size, connections) == ("1k", 50) else other_tier
        name = f"{kind}/{interface}/{size}/{connections}"
        group = "echo " + kind
        server(name, group=group, kind=kind, n=n, tier=tier, size=SIZES[size], connections=connections)(run)

for kind in ("tcp", "unix", "tls"):
    common = {"group": f"echo {kind}", "kind": kind, "connections": 50, "tier": DEFAULT if kind == "tcp" else FULL}
    server(f"{kind}/readline/1k/50", n=30_000, size=KIB, **common)(serve_streams(echo_lines))
    server(f"{kind}/readexactly/1k/50", n=30_000, size=KIB, **common)(serve_streams(echo_exactly))
    lines = {"n": 200_000, "size": 64, "batch": 100, "unit": "line"}
    server(f"{kind}/readline/64 x 100/50", **lines, **common)(serve_streams(echo_lines))

server("udp/protocol/1k/50", group="echo udp", kind="udp", n=50_000, connections=50, tier=QUICK)(serve_datagrams)
server("udp/protocol/1k/1", group="echo udp", kind="udp", n=10_000, connections=1)(serve_datagrams)
server("udp/protocol/64/50", group="echo udp", kind="udp", n=50_000, size=64, connections=50)(serve_datagrams)

LATENCY = {"metrics": ("p50", "p99", "cpu"), "kind": "tcp", "group": "latency", "unit": "message at a fixed rate"}
for rate, tier in ((5000, DEFAULT), (15_000, FULL)):
    load = {"rate": rate, "n": rate * 2, "connections": 50, "tier": tier}
    server(f"tcp/protocol/1k/50 at {rate}/s", **LATENCY, **load)(serve_protocol(Echo))
    server(f"tcp/streams/1k/50 at {rate}/s", **LATENCY, **load)(serve_streams(echo_chunks))
