"""uvicorn: HTTP/1.1 by both of its parsers, websockets by each of its implementations, and the command line."""

import asyncio
import re
import signal
import subprocess
import sys

import pytest

import helpers

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets.asyncio.client")
pytest.importorskip("websockets")
pytest.importorskip("httptools")
pytest.importorskip("h11")
pytest.importorskip("wsproto")

BIG = bytes(range(256)) * 4096


async def app(scope, receive, send):
    """Answers /echo with the request's body, /stream in pieces, /fail with an exception; echoes over websockets."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo_messages(scope, receive, send)
    elif scope["path"] == "/fail":
        raise ValueError("on purpose")
    else:
        await answer(scope, receive, send)


async def lifespan(receive, send):
    for kind in ("startup", "shutdown"):
        assert await receive() == {"type": f"lifespan.{kind}"}
        await send({"type": f"lifespan.{kind}.complete"})


async def echo_messages(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4001, "reason": "asked to"})
            return
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def answer(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body")
    known = scope["path"] in ("/echo", "/stream")
    headers = [(b"content-type", b"application/octet-stream"), (b"x-method", scope["method"].encode())]
    await send({"type": "http.response.start", "status": 200 if known else 404, "headers": headers})
    if scope["path"] == "/stream":
        for start in range(0, len(BIG), 100_000):
            await send({"type": "http.response.body", "body": BIG[start : start + 100_000], "more_body": True})
            await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": body})


def without_date(response):
    headers = [(name, value) for name, value in response.headers.items() if name != "date"]
    return response.status_code, headers, response.content


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_requests(same, uvicorn_server, http):
    async def program():
        async with uvicorn_server(app, http=http, lifespan="on") as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                answers = [
                    await client.get("/echo"),
                    await client.head("/echo"),
                    await client.post("/echo", content=BIG),
                    await client.get("/stream"),
                    await client.put("/missing", content=b"x", headers={"connection": "close"}),
                    await client.post("/echo", content=pieces()),
                    await client.get("/fail"),
                ]
                answers += await asyncio.gather(*[client.post("/echo", content=b"%d" % i * i) for i in range(100)])
                return [without_date(response) for response in answers]

    async def pieces():
        for i in range(20):
            yield b"%d" % i * 1000

    answers = same(program)
    assert [status for status, _, _ in answers[:7]] == [200, 200, 200, 200, 404, 200, 500]
    assert answers[2][2] == answers[3][2] == BIG
    assert [body for _, _, body in answers[7:]] == [b"%d" % i * i for i in range(100)]


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_pipelined_and_broken_requests(same, uvicorn_server, http):
    async def exchange(port, data, eof=True):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if eof:
            writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return re.sub(rb"date: [^\r]*", b"date:", answer)

    async def program():
        request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
        last = b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        async with uvicorn_server(app, http=http, lifespan="off") as port:
            return [
                await exchange(port, request * 3 + last, eof=False),
                await exchange(port, b"nonsense\r\n\r\n"),
                await exchange(port, b"GET /echo HTTP/1.1\r\nhost"),
            ]

    pipelined, broken, unfinished = same(program)
    assert pipelined.count(b"HTTP/1.1 200 OK") == 4 and pipelined.count(b"hello") == 3
    assert broken.startswith(b"HTTP/1.1 400")
    assert b"200 OK" not in unfinished


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
def test_websockets(same, uvicorn_server, implementation):
    async def talk(port, number):
        async with websockets.connect(f"ws://127.0.0.1:{port}/", subprotocols=["chat"], proxy=None) as client:
            answers = [client.subprotocol]
            for message in ("héllo", b"\0\1", "x" * 300_000, str(number)):
                await client.send(message)
                answers.append(await client.recv())
            await client.send("close")
            await client.wait_closed()
            return answers, client.close_code, client.close_reason

    async def program():
        async with uvicorn_server(app, ws=implementation, lifespan="off") as port:
            return await asyncio.gather(*[talk(port, number) for number in range(20)])

    for number, (answers, code, reason) in enumerate(same(program)):
        assert answers == ["chat", "héllo", b"\0\1", "x" * 300_000, str(number)]
        assert (code, reason) == (4001, "asked to")


def test_server_stops_while_clients_are_connected(same, uvicorn_server):
    async def program():
        async with uvicorn_server(app, lifespan="on", timeout_graceful_shutdown=5) as port:
            idle = await asyncio.open_connection("127.0.0.1", port)
            client = await websockets.connect(f"ws://127.0.0.1:{port}/", subprotocols=["chat"], proxy=None)
        await client.wait_closed()
        at_end = await idle[0].read()
        idle[1].close()
        await idle[1].wait_closed()
        return at_end, client.close_code

    assert same(program) == (b"", 1012)


COMMAND_APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            print(kind, flush=True)
            await send({"type": f"lifespan.{kind}.complete"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": type(asyncio.get_running_loop()).__module__.encode()})

import asyncio
"""


def test_command_line(python, loop_name, tmp_path):
    """`uvicorn --loop fastloop:new_event_loop`, asked over a Unix socket and ended by SIGTERM."""
    (tmp_path / "service.py").write_text(COMMAND_APP)
    socket_path = tmp_path / "u.sock"
    chosen = "asyncio" if loop_name == "stock" else "fastloop:new_event_loop"
    with subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "service:app", "--loop", chosen, "--uds", str(socket_path)],
        cwd=tmp_path,
        env=python.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        python.children.append(server)
        assert helpers.wait_until_empty(lambda: not socket_path.exists(), 30) is False
        # The path is there a moment before the server listens.
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path), retries=5)) as client:
            answer = client.get("http://localhost/")
        server.send_signal(signal.SIGTERM)
        output, errors = server.communicate(timeout=20)
    assert answer.text == ("asyncio.unix_events" if loop_name == "stock" else "fastloop.loop")
    assert output.split()[0] == "startup" and output.split()[-1] == "shutdown"
    assert "Application shutdown complete." in errors and "Traceback" not in errors
    assert server.returncode in (0, -signal.SIGTERM)
