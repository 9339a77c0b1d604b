"""FastAPI under uvicorn: endpoints by `async def` and by `def` (which run in threads), websockets, dependencies."""

import asyncio
import threading
import time

import pytest

fastapi = pytest.importorskip("fastapi")
responses = pytest.importorskip("fastapi.responses")
httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets.asyncio.client")


def make_app(events):
    app = fastapi.FastAPI()

    async def resource():
        events.append("opened")
        yield "resource"
        events.append("closed")

    @app.get("/async/{number}")
    async def by_async_def(number: int):
        await asyncio.sleep(0)
        return {"number": number, "main": threading.current_thread() is threading.main_thread()}

    @app.get("/def/{number}")
    def by_def(number: int):
        time.sleep(0.001)
        return {"number": number, "main": threading.current_thread() is threading.main_thread()}

    @app.get("/depends")
    def with_dependency(background: fastapi.BackgroundTasks, value: str = fastapi.Depends(resource)):
        background.add_task(events.append, "background")
        return value

    @app.get("/lines")
    def in_pieces():
        return responses.StreamingResponse(f"line {i}\n" for i in range(100))

    @app.post("/upload")
    async def upload(file: bytes = fastapi.Body()):
        return len(file)

    @app.websocket("/ws")
    async def chat(socket: fastapi.WebSocket):
        await socket.accept()
        await socket.send_json({"got": await socket.receive_json()})
        await socket.close()

    return app


def test_endpoints(same, uvicorn_server):
    async def program():
        events = []
        async with uvicorn_server(make_app(events)) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                urls = [f"/{kind}/{i}" for i in range(60) for kind in ("async", "def")]
                answers = [answer.json() for answer in await asyncio.gather(*[client.get(url) for url in urls])]
                others = [
                    (await client.get("/depends")).json(),
                    (await client.get("/lines")).text,
                    (await client.get("/def/x")).json(),
                    (await client.get("/openapi.json")).json(),
                    (await client.post("/upload", content=b"1" * 99_999)).status_code,
                ]
            async with websockets.connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
                await socket.send('{"a": 1}')
                others.append(await socket.recv())
        return answers, others, sorted(events)

    answers, others, events = same(program)
    assert answers == [{"number": i, "main": kind} for i in range(60) for kind in (True, False)]
    assert others[0] == "resource" and others[1].count("line") == 100 and others[-1] == '{"got":{"a":1}}'
    assert events == ["background", "closed", "opened"]
