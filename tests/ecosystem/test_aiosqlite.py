"""aiosqlite: a thread for each connection, that answers by call_soon_threadsafe."""

import asyncio

import pytest

aiosqlite = pytest.importorskip("aiosqlite")


def test_queries(same, tmp_path):
    async def add(path, number):
        async with aiosqlite.connect(path, timeout=30) as connection:
            await connection.execute("insert into t values (?, ?)", (number, "x" * number))
            await connection.commit()

    async def program():
        path = tmp_path / "data.sqlite"
        path.unlink(missing_ok=True)
        async with aiosqlite.connect(path) as connection:
            await connection.execute("create table t (a integer, b text)")
            await asyncio.gather(*[add(path, number) for number in range(10)])
            await connection.executemany("insert into t values (?, ?)", [(i, "y") for i in range(10, 2000)])
            async with connection.execute("select * from t order by a") as cursor:
                rows = [row async for row in cursor]
            try:
                await connection.execute("select * from missing")
            except aiosqlite.OperationalError as exc:
                return rows, str(exc)

    rows, error = same(program)
    assert rows == [(i, "x" * i if i < 10 else "y") for i in range(2000)]
    assert error == "no such table: missing"
