"""hypercorn: HTTP/2 and HTTP/1.1 over TLS, asked by httpx."""

import asyncio
import contextlib
import os
import socket

import pytest

hypercorn = pytest.importorskip("hypercorn.asyncio")
hypercorn_config = pytest.importorskip("hypercorn.config")
httpx = pytest.importorskip("httpx")
pytest.importorskip("h2")

BIG = bytes(range(256)) * 4096


async def app(scope, receive, send):
    """Answers with the version of HTTP and the body; to /stream with a megabyte in pieces."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    headers = [(b"x-version", scope["http_version"].encode()), (b"x-scheme", scope["scheme"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/stream":
        for start in range(0, len(BIG), 50_000):
            await send({"type": "http.response.body", "body": BIG[start : start + 50_000], "more_body": True})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(certificate):
    """hypercorn in the running loop; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = hypercorn_config.Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]
    config.certfile, config.keyfile = certificate.chain, certificate.key
    config.alpn_protocols = ["h2", "http/1.1"]
    config.accesslog = config.errorlog = None
    done = asyncio.Event()
    task = asyncio.ensure_future(hypercorn.serve(app, config, shutdown_trigger=done.wait))
    try:
        yield listener.getsockname()[1]
    finally:
        done.set()
        await task
        listener.close()


@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/1.1"])
def test_requests_over_tls(same, authority, certificate, version):
    async def program():
        async with serving(certificate) as port:
            async with httpx.AsyncClient(
                base_url=f"https://localhost:{port}",
                http2=version == "HTTP/2",
                verify=authority.client_context(),
                trust_env=False,
            ) as client:
                answers = [
                    await client.get("/"),
                    await client.post("/", content=BIG),
                    await client.get("/stream"),
                    *await asyncio.gather(*[client.post(f"/{i}", content=b"%d" % i * 100) for i in range(60)]),
                ]
                kept = [
                    (name, value) for answer in answers for name, value in answer.headers.items() if name[:2] == "x-"
                ]
                return [(answer.http_version, answer.status_code, answer.content) for answer in answers], kept

    answers, headers = same(program)
    assert {answer[:2] for answer in answers} == {(version, 200)}
    assert [answer[2] for answer in answers[:3]] == [b"", BIG, BIG]
    assert [answer[2] for answer in answers[3:]] == [b"%d" % i * 100 for i in range(60)]
    assert set(headers) == {("x-version", version[5:].removesuffix(".0")), ("x-scheme", "https")}


def test_client_leaves_in_the_middle_of_a_stream(same, authority, certificate):
    async def program():
        async with serving(certificate) as port:
            async with httpx.AsyncClient(
                base_url=f"https://localhost:{port}", http2=True, verify=authority.client_context(), trust_env=False
            ) as client:
                async with client.stream("GET", "/stream") as answer:
                    async for piece in answer.aiter_raw():
                        first = piece[:10]
                        break
                again = await client.get("/stream")
                return first, again.content == BIG

    assert same(program) == (BIG[:10], True)
