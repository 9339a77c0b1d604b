"""aiohttp: its server and its client, over TLS."""

import asyncio
import contextlib
import os

import pytest

web = pytest.importorskip("aiohttp.web")
aiohttp = pytest.importorskip("aiohttp")

BIG = os.urandom(1024) * 1024


async def echo(request):
    return web.Response(body=await request.read(), headers={"x-path": request.path_qs})


async def stream(request):
    answer = web.StreamResponse()
    await answer.prepare(request)
    for start in range(0, len(BIG), 70_000):
        await answer.write(BIG[start : start + 70_000])
    await answer.write_eof()
    return answer


async def send_file(request):
    return web.FileResponse(request.app["file"])


async def chat(request):
    socket = web.WebSocketResponse(compress=True)
    await socket.prepare(request)
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
        elif message.type is aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data[::-1])
    return socket


async def forever(request):
    request.app["started"].set()
    try:
        await asyncio.sleep(3600)
    finally:
        request.app["ended"].set()


@contextlib.asynccontextmanager
async def serving(authority, file=None, **options):
    """A server and a session of the client; gives (session, address, application)."""
    application = web.Application(client_max_size=2 * len(BIG))
    application["file"], application["started"], application["ended"] = file, asyncio.Event(), asyncio.Event()
    application.add_routes(
        [
            web.route("*", "/echo", echo),
            web.get("/stream", stream),
            web.get("/file", send_file),
            web.get("/chat", chat),
            web.get("/forever", forever),
        ]
    )
    runner = web.AppRunner(application, access_log=None, **options)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    # Not the resolver on aiodns, which is the default where that is installed: it keeps a thread for ever.
    connector = aiohttp.TCPConnector(ssl=authority.client, limit=20, resolver=aiohttp.ThreadedResolver())
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            yield session, f"https://localhost:{port}", application
    finally:
        await runner.cleanup()


pytestmark = pytest.mark.filterwarnings("ignore:.*AppKey:Warning")


def test_requests(same, authority, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(BIG[:300_000])

    async def ask(session, method, url, **options):
        async with session.request(method, url, **options) as answer:
            return answer.status, answer.headers.get("x-path"), await answer.read()

    async def pieces():
        for start in range(0, 500_000, 9_999):
            yield BIG[start : start + 9_999]

    async def program():
        async with serving(authority, file) as (session, base, _):
            return [
                await ask(session, "GET", f"{base}/echo?a=b"),
                await ask(session, "POST", f"{base}/echo", data=BIG),
                await ask(session, "POST", f"{base}/echo", data=pieces()),
                await ask(session, "GET", f"{base}/stream"),
                await ask(session, "GET", f"{base}/file"),
                await ask(session, "GET", f"{base}/missing"),
                *await asyncio.gather(
                    *[ask(session, "POST", f"{base}/echo?{i}", data=b"%d" % i * 500) for i in range(100)]
                ),
            ]

    answers = same(program)
    assert answers[:2] == [(200, "/echo?a=b", b""), (200, "/echo", BIG)]
    assert [len(body) for _, _, body in answers[2:5]] == [509_949, len(BIG), 300_000]
    assert answers[5][0] == 404
    assert answers[6:] == [(200, f"/echo?{i}", b"%d" % i * 500) for i in range(100)]


def test_websocket(same, authority):
    async def talk(session, base, number):
        async with session.ws_connect(f"{base}/chat", compress=15) as socket:
            await socket.send_str(f"hello {number}")
            await socket.send_bytes(BIG[:200_000])
            answers = [(await socket.receive()).data, (await socket.receive()).data]
            await socket.close(code=4000, message=b"done")
            return answers, socket.close_code

    async def program():
        async with serving(authority) as (session, base, _):
            return await asyncio.gather(*[talk(session, base, number) for number in range(15)])

    reverse = BIG[:200_000][::-1]
    assert same(program) == [([f"HELLO {number}", reverse], 1000) for number in range(15)]


def test_timeout_of_the_client_cancels_the_handler(same, authority):
    async def program():
        async with serving(authority, handler_cancellation=True) as (session, base, application):
            asking = asyncio.ensure_future(session.get(f"{base}/forever"))
            await application["started"].wait()
            asking.cancel()
            await asyncio.wait([asking])
            await application["ended"].wait()
            try:
                await session.get(f"{base}/forever", timeout=aiohttp.ClientTimeout(total=0.05))
            except TimeoutError:
                return asking.cancelled(), "timed out"

    assert same(program) == (True, "timed out")
