"""httpx: its client against uvicorn, with limits, timeouts and streams."""

import asyncio

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

PIECE = b"0123456789" * 1000


async def app(scope, receive, send):
    """Answers /slow never, /redirect with a redirection to /, everything else in ten pieces."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3600)
    headers = [(b"location", b"/"), (b"content-length", b"0")] if scope["path"] == "/redirect" else []
    await send({"type": "http.response.start", "status": 302 if headers else 200, "headers": headers})
    for _ in range(0 if headers else 10):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def test_client(same, uvicorn_server):
    async def read_in_pieces(client):
        total = b""
        async with client.stream("GET", "/") as answer:
            async for piece in answer.aiter_bytes(7777):
                total += piece
        return total

    async def timed_out(client, **timeouts):
        try:
            await client.get("/slow", timeout=httpx.Timeout(5, **timeouts))
        except httpx.TimeoutException as exc:
            return type(exc).__name__

    async def program():
        async with uvicorn_server(app, lifespan="off", timeout_graceful_shutdown=0) as port:
            limits = httpx.Limits(max_connections=5, max_keepalive_connections=2)
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", limits=limits, follow_redirects=True, trust_env=False
            ) as client:
                results = [await read_in_pieces(client), await timed_out(client, read=0.05)]
                results.append((await client.get("/")).content)
                many = await asyncio.gather(*[client.get("/redirect" if i % 2 else "/") for i in range(50)])
                results.append([(len(answer.history), len(answer.content)) for answer in many])
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                await client.get(f"http://127.0.0.1:{port}")
            except httpx.ConnectError as exc:
                results.append(type(exc.__cause__.__cause__).__name__)
        return results

    results = same(program)
    assert results[:3] == [PIECE * 10, "ReadTimeout", PIECE * 10]
    assert results[3] == [(i % 2, 100_000) for i in range(50)]


def test_cancelled_requests_leave_the_pool_usable(same, uvicorn_server):
    async def program():
        async with uvicorn_server(app, lifespan="off", timeout_graceful_shutdown=0) as port:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", limits=httpx.Limits(max_connections=3), trust_env=False
            ) as client:
                slow = [asyncio.ensure_future(client.get("/slow")) for _ in range(9)]
                await asyncio.sleep(0.05)
                for task in slow:
                    task.cancel()
                await asyncio.wait(slow)
                answers = await asyncio.gather(*[client.get("/") for _ in range(9)])
                return [task.cancelled() for task in slow], [len(answer.content) for answer in answers]

    assert same(program) == ([True] * 9, [100_000] * 9)
