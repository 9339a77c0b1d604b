"""Hello over HTTP/1.1 by frameworks as users start them, with 50 connections kept alive."""

from benchmarks.registry import DEFAULT, FULL, QUICK, server

HELLO = b"Hello, World!"
HTTP = {"group": "http", "kind": "tcp", "mode": "http", "connections": 50, "unit": "request"}
RATE = 1000


async def uvicorn(listener, tls):
    """The ASGI server with httptools; it takes the loop that runs."""
    import uvicorn

    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}

    async def app(scope, receive, send):
        await send(start)
        await send({"type": "http.response.body", "body": HELLO})

    config = uvicorn.Config(app, http="httptools", lifespan="off", access_log=False, log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


async def aiohttp(listener, tls):
    """aiohttp's own server. It uses aiofastnet when that is importable: see the head of the results."""
    from aiohttp import web

    async def hello(request):
        return web.Response(body=HELLO, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


async def fastapi(listener, tls):
    """A `def` endpoint of FastAPI under uvicorn, which anyio runs in a thread."""
    import fastapi
    import uvicorn

    app = fastapi.FastAPI()

    @app.get("/")
    def hello():
        return fastapi.Response(HELLO, media_type="text/plain")

    config = uvicorn.Config(app, http="httptools", lifespan="off", access_log=False, log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


server("fastapi/def", n=2000, tier=FULL, **HTTP)(fastapi)

for name, run, n in (("uvicorn/hello", uvicorn, 20_000), ("aiohttp/hello", aiohttp, 10_000)):
    server(name, n=n, tier=QUICK, **HTTP)(run)
    server(f"{name} at {RATE}/s", n=2 * RATE, rate=RATE, metrics=("p50", "p99", "cpu"), tier=DEFAULT, **HTTP)(run)
