"""psycopg's asynchronous connections, which wait for libpq's descriptor by add_reader and add_writer."""

import asyncio

import pytest

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def connect(postgres):
    """Open a connection; `kind` is tcp, tls or unix."""

    def connect(kind="tcp", **options):
        host = postgres.folder if kind == "unix" else "127.0.0.1"
        mode = "require" if kind == "tls" else "disable"
        return psycopg.AsyncConnection.connect(
            host=host, port=postgres.port, user="tester", dbname="postgres", sslmode=mode, autocommit=True, **options
        )

    return connect


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_queries(same, connect, kind):
    async def program():
        async with await connect(kind) as connection, connection.cursor() as cursor:
            await cursor.execute("select i, repeat('é', i) from generate_series(0, 1000) i")
            results = [await cursor.fetchall()]
            await cursor.execute("select repeat('x', 3000000)")
            results.append(await cursor.fetchone())
            try:
                await cursor.execute("select nothing")
            except psycopg.errors.UndefinedColumn as exc:
                results.append(exc.diag.message_primary)
            results.append([row async for row in cursor.stream("select generate_series(1, 300)")])
            await cursor.execute("create temporary table t (a int, b text)")
            async with cursor.copy("copy t from stdin") as copy:
                for i in range(10_000):
                    await copy.write_row((i, "b" * (i % 50)))
            async with cursor.copy("copy (select * from t order by a) to stdout") as copy:
                results.append([row async for row in copy.rows()])
            return results

    rows, big, error, streamed, copied = same(program)
    assert rows == [(i, "é" * i) for i in range(1001)]
    assert big == ("x" * 3_000_000,) and error == 'column "nothing" does not exist'
    assert streamed == [(i,) for i in range(1, 301)]
    assert copied == [(str(i), "b" * (i % 50)) for i in range(10_000)]


def test_pipeline(same, connect):
    async def program():
        async with await connect() as connection:
            async with connection.pipeline():
                cursors = [await connection.execute("select %s::int", [i]) for i in range(300)]
            return [(await cursor.fetchone())[0] for cursor in cursors]

    assert same(program) == list(range(300))


def test_notifications_and_transactions(same, connect):
    async def program():
        async with await connect() as listener, await connect() as notifier:
            await listener.execute("listen channel")
            async with notifier.transaction():
                for i in range(50):
                    await notifier.execute("select pg_notify('channel', %s)", [str(i)])
            got = []
            async for notice in listener.notifies(stop_after=50):
                got.append(notice.payload)
            return got[:50]

    assert same(program) == [str(i) for i in range(50)]


def test_queries_that_are_cancelled(same, connect):
    async def query(number):
        async with await connect() as connection:
            sleeping = asyncio.ensure_future(connection.execute("select pg_sleep(30)"))
            await asyncio.sleep(0.01)
            sleeping.cancel()
            await asyncio.wait([sleeping])
            cursor = await connection.execute("select %s::int", [number])
            return sleeping.cancelled(), (await cursor.fetchone())[0]

    async def program():
        return await asyncio.gather(*[query(number) for number in range(10)])

    assert same(program) == [(True, number) for number in range(10)]
