"""redis.asyncio against a Redis of the test's own: commands, pipelines, publish and subscribe."""

import asyncio

import pytest

redis = pytest.importorskip("redis.asyncio")


@pytest.fixture
def client(redis_server, authority):
    """Make a client; `kind` is tcp, tls or unix."""

    def make(kind="tcp", **options):
        options = {"protocol": 2, **options}
        if kind == "unix":
            return redis.Redis(unix_socket_path=redis_server.socket, **options)
        if kind == "tls":
            options.update(ssl=True, ssl_ca_certs=str(authority.certificate), port=redis_server.tls_port)
        else:
            options.update(port=redis_server.port)
        return redis.Redis(host="localhost", **options)

    return make


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_commands_and_pipelines(same, client, kind):
    async def program():
        async with client(kind) as connection:
            await connection.flushall()
            results = [
                await connection.set("a", b"\r\n\0" * 100_000),
                await connection.get("a"),
                await connection.get("missing"),
                await connection.rpush("list", *range(1000)),
                await connection.lrange("list", 0, -1),
                await connection.eval("return {KEYS[1], ARGV[1], redis.call('GET', 'missing')}", 1, "k", "v"),
            ]
            try:
                await connection.lpop("a")
            except redis.ResponseError as exc:
                results.append(str(exc))
            async with connection.pipeline(transaction=True) as pipe:
                for i in range(2000):
                    pipe.incr("counter").set(f"key{i}", "x" * (i % 300))
                results.append(await pipe.execute())
            results.append(sorted([key async for key in connection.scan_iter("key*")]))
            return results

    results = same(program)
    assert results[:4] == [True, b"\r\n\0" * 100_000, None, 1000]
    assert results[4] == [b"%d" % i for i in range(1000)] and results[5] == [b"k", b"v", None]
    assert results[6].startswith("WRONGTYPE")
    assert results[7] == [value for i in range(2000) for value in (i + 1, True)]
    assert results[8] == sorted(b"key%d" % i for i in range(2000))


@pytest.mark.parametrize("protocol", [2, 3])
def test_publish_and_subscribe(same, client, protocol):
    async def program():
        async with client(protocol=protocol) as publisher, client("unix", protocol=protocol) as subscriber:
            async with subscriber.pubsub() as channel:
                await channel.subscribe("news")
                await channel.psubscribe("chat.*")
                got = [await channel.get_message(timeout=5) for _ in range(2)]
                for i in range(200):
                    await publisher.publish("chat.a" if i % 2 else "news", str(i))
                got += [await channel.get_message(timeout=5) for _ in range(200)]
                got.append(await channel.get_message(timeout=0.01))
                return [message and (message["type"], message["channel"], message["data"]) for message in got]

    got = same(program)
    assert got[0][:2] == ("subscribe", b"news") and got[-1] is None
    assert got[2:4] == [("message", b"news", b"0"), ("pmessage", b"chat.a", b"1")]
    assert [data for _, _, data in got[2:-1]] == [b"%d" % i for i in range(200)]


def test_many_tasks_share_a_pool_and_some_are_cancelled(same, client):
    async def use(connection, number):
        await connection.set(f"n{number}", number)
        return await connection.get(f"n{number}")

    async def blocked(connection, count):
        # Not earlier: while it connects, redis-py itself can lose a cancellation, on any loop.
        while (await connection.info("clients"))["blocked_clients"] != count:
            await asyncio.sleep(0.005)

    async def program():
        async with client(max_connections=50) as connection:
            waiting = [asyncio.ensure_future(connection.blpop(f"queue{n}", timeout=30)) for n in range(12)]
            results = await asyncio.gather(*[use(connection, number) for number in range(30)])
            await blocked(connection, 12)
            for task in waiting[1:]:
                task.cancel()
            await asyncio.wait(waiting[1:])
            await blocked(connection, 1)
            results += await asyncio.gather(*[use(connection, number) for number in range(30)])
            await connection.rpush("queue0", "job")
            return results, await waiting[0], [task.cancelled() for task in waiting]

    results, job, cancelled = same(program)
    assert results == [b"%d" % number for number in range(30)] * 2
    assert job == (b"queue0", b"job") and cancelled == [False] + [True] * 11
