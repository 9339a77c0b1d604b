"""asyncpg against a PostgreSQL of the test's own, over TCP, TLS (by start_tls) and a Unix socket."""

import asyncio
import datetime
import decimal
import io

import pytest

asyncpg = pytest.importorskip("asyncpg")


@pytest.fixture
def connect(postgres, authority):
    """A function that returns the options of a connection of that kind."""

    def options(kind):
        place = {"host": postgres.folder if kind == "unix" else "localhost", "port": postgres.port}
        return {**place, "user": "tester", "database": "postgres", "ssl": authority.client if kind == "tls" else False}

    return options


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_queries(same, connect, kind):
    async def program():
        connection = await asyncpg.connect(**connect(kind))
        try:
            statement = await connection.prepare("select $1::int * 2, $2::text, $3::jsonb, $4::numeric, $5::date")
            day = datetime.date(2024, 2, 29)
            results = [
                tuple(await statement.fetchrow(21, "ä" * 1000, '{"a": [1]}', decimal.Decimal("1.25"), day)),
                await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()"),
                await connection.fetchval("select repeat('x', 3000000)"),
                [tuple(row) for row in await connection.fetch("select i, i::text from generate_series(1, 5000) i")],
            ]
            try:
                await connection.fetch("select 1 / 0")
            except asyncpg.DivisionByZeroError as exc:
                results.append(str(exc))
            async with connection.transaction():
                cursor = await connection.cursor("select generate_series(1, 100)")
                results += [await cursor.forward(10), [row[0] for row in await cursor.fetch(5)]]
            return results
        finally:
            await connection.close()

    row, is_tls, big, rows, error, _, after_forward = same(program)
    assert row == (42, "ä" * 1000, '{"a": [1]}', decimal.Decimal("1.25"), datetime.date(2024, 2, 29))
    assert is_tls == (kind == "tls") and len(big) == 3_000_000
    assert rows == [(i, str(i)) for i in range(1, 5001)]
    assert error == "division by zero" and after_forward == [11, 12, 13, 14, 15]


def test_copy_and_transactions(same, connect):
    async def program():
        connection = await asyncpg.connect(**connect("tcp"))
        try:
            await connection.execute("create temporary table t (a int, b text)")
            await connection.copy_records_to_table("t", records=[(i, "b" * (i % 100)) for i in range(20_000)])
            out = io.BytesIO()
            await connection.copy_from_query("select * from t order by a", output=out, format="csv")
            with pytest.raises(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute("delete from t")
                    1 / 0
            await connection.executemany("insert into t values ($1, $2)", [(-i, "x") for i in range(500)])
            return out.getvalue(), await connection.fetchval("select count(*) from t")
        finally:
            await connection.close()

    text, count = same(program)
    assert text.decode().splitlines() == [f"{i}," + ("b" * (i % 100) or '""') for i in range(20_000)]
    assert count == 20_500


def test_notifications(same, connect):
    async def program():
        listener, notifier = [await asyncpg.connect(**connect(kind)) for kind in ("unix", "tls")]
        received = asyncio.Queue()
        await listener.add_listener("channel", lambda *args: received.put_nowait(args[2:]))
        for i in range(100):
            await notifier.execute("select pg_notify('channel', $1)", str(i))
        got = [await received.get() for _ in range(100)]
        await listener.close()
        await notifier.close()
        return got

    assert same(program) == [("channel", str(i)) for i in range(100)]


def test_pool_with_queries_that_are_cancelled(same, connect):
    async def query(pool, number):
        try:
            async with pool.acquire() as connection:
                if number % 5 == 0:
                    return await asyncio.wait_for(connection.fetchval("select pg_sleep(30)"), 0.02)
                return await connection.fetchval("select $1::int", number)
        except TimeoutError:
            return "timeout"

    async def program():
        async with asyncpg.create_pool(min_size=2, max_size=6, **connect("tcp")) as pool:
            return await asyncio.gather(*[query(pool, number) for number in range(60)])

    assert same(program) == ["timeout" if number % 5 == 0 else number for number in range(60)]
