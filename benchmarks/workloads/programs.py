"""Libraries of others as their users call them: clients of real servers, and both ends of a WebSocket."""

import asyncio

from benchmarks.registry import FULL, case, client

PROGRAMS = {"group": "programs", "tier": FULL}
AT_ONCE = 50
PIPELINE = 100


@client("aiohttp/client", n=5000, peer="http", unit="request", **PROGRAMS)
async def fetch(n, address):
    """Fifty requests at a time, gathered, by one session. It uses aiofastnet when that is importable."""
    import aiohttp

    url = "http://{}:{}/".format(*address)

    async def one(session):
        async with session.get(url) as response:
            return await response.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:
        for _ in range(-(-n // AT_ONCE)):
            await asyncio.gather(*[one(session) for _ in range(AT_ONCE)])


@client("redis/pipeline", n=200, peer="redis", unit="pipeline", **PROGRAMS)
async def pipelines(n, address):
    """A hundred commands in each pipeline."""
    from redis.asyncio import Redis

    host, port = address
    async with Redis(host=host, port=port) as connection:
        for number in range(n):
            pipeline = connection.pipeline(transaction=False)
            for key in range(PIPELINE):
                pipeline.set(f"key:{key}", number)
            await pipeline.execute()


@client("redis/get", n=5000, peer="redis", unit="command", **PROGRAMS)
async def commands(n, address):
    from redis.asyncio import Redis

    host, port = address
    async with Redis(host=host, port=port) as connection:
        await connection.set("key", "value")
        for _ in range(n):
            await connection.get("key")


async def postgres(address):
    import asyncpg

    host, port = address
    return await asyncpg.connect(host=host, port=port, user="bench", database="postgres", ssl=False)


@client("asyncpg/select", n=5000, peer="postgres", unit="query", **PROGRAMS)
async def select_one(n, address):
    """A prepared statement, one query after the other."""
    connection = await postgres(address)
    for _ in range(n):
        await connection.fetchval("select $1::int", 1)
    await connection.close()


@client("asyncpg/rows", n=300, peer="postgres", unit="query", **PROGRAMS)
async def select_many(n, address):
    """A thousand rows for each query."""
    connection = await postgres(address)
    for _ in range(n):
        await connection.fetch("select i, i::text from generate_series(1, 1000) i")
    await connection.close()


@case("websockets/echo", unit="round trip", n=5000, **PROGRAMS)
async def websocket(n):
    """Server and client in one process, 1 KiB, without compression."""
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    message = b"x" * 1024
    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/", compression=None, proxy=None) as connection:
            for _ in range(n):
                await connection.send(message)
                await connection.recv()
