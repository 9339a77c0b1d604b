"""Connections as such: opening, accepting, holding them, and sending files through them."""

import asyncio
import socket
import ssl
import tempfile

from benchmarks.registry import DEFAULT, FULL, QUICK, case, client, server
from benchmarks.workloads.echo import Echo, echo_chunks, serve_protocol, serve_streams

CONNECT = {"group": "connections", "unit": "connection"}
FILE_BYTES = 1 << 20


class Farewell(asyncio.Protocol):
    """Closes the connection as soon as it is made."""

    def connection_made(self, transport):
        transport.close()


async def farewell(reader, writer):
    pass


for kind, n, tier in (("tcp", 10_000, QUICK), ("unix", 10_000, DEFAULT), ("tls", 2000, DEFAULT)):
    churn = {"mode": "churn", "connections": 50, "kind": kind, "n": n, **CONNECT}
    server(f"accept/{kind}/protocol", tier=tier, **churn)(serve_protocol(Farewell))
    server(f"accept/{kind}/streams", tier=FULL, **churn)(serve_streams(farewell))

for kind, n, tier in (("tcp", 9000, DEFAULT), ("tls", 2000, DEFAULT)):
    idle = {"mode": "idle", "connections": n, "size": 64, "kind": kind, "n": n, "metrics": ("bytes",), **CONNECT}
    server(f"idle/{kind}/protocol", tier=tier, **idle)(serve_protocol(Echo))
    server(f"idle/{kind}/streams", tier=FULL, **idle)(serve_streams(echo_chunks))
    # Idle after a larger message, of which a transport may keep the buffers.
    server(f"idle/{kind}/protocol/16k", tier=tier, **(idle | {"size": 16384}))(serve_protocol(Echo))


@client("connect/tcp/protocol", n=3000, peer="tcp", tier=QUICK, **CONNECT)
async def connect(n, address):
    """Connect and close, one after the other."""
    loop = asyncio.get_running_loop()
    for _ in range(n):
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        transport.close()


@client("connect/unix/protocol", n=3000, peer="unix", **CONNECT)
async def connect_unix(n, path):
    loop = asyncio.get_running_loop()
    for _ in range(n):
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, path)
        transport.close()


@client("connect/tcp/streams", n=3000, peer="tcp", **CONNECT)
async def open_connection(n, address):
    for _ in range(n):
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        await writer.wait_closed()


@client("connect/tls/protocol", n=500, peer="tls", **CONNECT)
async def connect_tls(n, address):
    """A whole handshake each time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    loop = asyncio.get_running_loop()
    for _ in range(n):
        transport, _ = await loop.create_connection(asyncio.Protocol, *address, ssl=context)
        transport.close()


@client("connect/tcp/sock_connect", n=3000, peer="tcp", **CONNECT)
async def sock_connect(n, address):
    loop = asyncio.get_running_loop()
    for _ in range(n):
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, tuple(address))


@case("getaddrinfo/numeric", group="connections", unit="call", n=5000)
async def getaddrinfo(n):
    loop = asyncio.get_running_loop()
    for _ in range(n):
        await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)


@client("sendfile/1m", group="connections", unit="file", n=100, peer="discard")
async def sendfile(n, address):
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, *address)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(FILE_BYTES))
        for _ in range(n):
            await loop.sendfile(transport, file, 0, FILE_BYTES)
    transport.close()


@client("sock_sendfile/1m", group="connections", unit="file", n=100, peer="discard")
async def sock_sendfile(n, address):
    loop = asyncio.get_running_loop()
    with socket.create_connection(address) as connection, tempfile.TemporaryFile() as file:
        connection.setblocking(False)
        file.write(bytes(FILE_BYTES))
        for _ in range(n):
            await loop.sock_sendfile(connection, file, 0, FILE_BYTES)
