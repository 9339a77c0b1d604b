"""tornado on asyncio's loop: HTTP server and client, websockets, raw streams, its own timers."""

import asyncio
import contextlib
import datetime

import pytest

gen = pytest.importorskip("tornado.gen")
httpclient = pytest.importorskip("tornado.httpclient")
httpserver = pytest.importorskip("tornado.httpserver")
ioloop = pytest.importorskip("tornado.ioloop")
iostream = pytest.importorskip("tornado.iostream")
netutil = pytest.importorskip("tornado.netutil")
tcpserver = pytest.importorskip("tornado.tcpserver")
tcpclient = pytest.importorskip("tornado.tcpclient")
web = pytest.importorskip("tornado.web")
websocket = pytest.importorskip("tornado.websocket")

BIG = bytes(range(256)) * 4096


class Echo(web.RequestHandler):
    async def get(self):
        await asyncio.sleep(0)
        for start in range(0, len(BIG), 100_000):
            self.write(BIG[start : start + 100_000])
            await self.flush()

    def post(self):
        self.write(self.request.body)


class Chat(websocket.WebSocketHandler):
    async def on_message(self, message):
        await self.write_message(message, binary=isinstance(message, bytes))


class Lines(tcpserver.TCPServer):
    async def handle_stream(self, stream, address):
        with contextlib.suppress(iostream.StreamClosedError):
            while True:
                await stream.write((await stream.read_until(b"\n")).upper())


@contextlib.asynccontextmanager
async def serving(server):
    """Starts a tornado server on a free port, which it gives."""
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        if isinstance(server, httpserver.HTTPServer):
            await server.close_all_connections()


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_requests(same, authority, kind):
    async def program():
        application = web.Application([("/", Echo), ("/chat", Chat)])
        options = {"ssl_options": authority.server} if kind == "tls" else {}
        client = httpclient.AsyncHTTPClient(force_instance=True, max_clients=20, max_body_size=10_000_000)
        async with serving(httpserver.HTTPServer(application, **options)) as port:
            base = f"http{'s' if kind == 'tls' else ''}://localhost:{port}"
            ours = {"headers": {"content-type": "application/octet-stream"}}
            if kind == "tls":
                ours["ssl_options"] = authority.client
            answers = await asyncio.gather(
                client.fetch(f"{base}/", **ours),
                client.fetch(f"{base}/", method="POST", body=BIG, **ours),
                client.fetch(f"{base}/missing", raise_error=False, **ours),
                *[client.fetch(f"{base}/", method="POST", body=b"%d" % i * 100, **ours) for i in range(50)],
            )
            client.close()
            return [(answer.code, answer.body) for answer in answers]

    answers = same(program)
    assert answers[:2] == [(200, BIG)] * 2 and answers[2][0] == 404
    assert answers[3:] == [(200, b"%d" % i * 100) for i in range(50)]


def test_websocket(same):
    async def talk(port, number):
        connection = await websocket.websocket_connect(f"ws://127.0.0.1:{port}/chat")
        answers = []
        for message in (f"text {number}", bytes([number]) * 70_000):
            await connection.write_message(message, binary=isinstance(message, bytes))
            answers.append(await connection.read_message())
        connection.close(4000, "done")
        answers.append(await connection.read_message())
        return answers

    async def program():
        async with serving(httpserver.HTTPServer(web.Application([("/chat", Chat)]))) as port:
            return await asyncio.gather(*[talk(port, number) for number in range(20)])

    assert same(program) == [[f"text {number}", bytes([number]) * 70_000, None] for number in range(20)]


def test_streams_and_timers(same):
    async def program():
        async with serving(Lines()) as port:
            stream = await tcpclient.TCPClient().connect("127.0.0.1", port)
            await stream.write(b"".join(b"line %d\n" % i for i in range(3000)))
            lines = [await stream.read_until(b"\n") for _ in range(3000)]
            stream.close()
        ticks, done = [], asyncio.Event()
        ticker = ioloop.PeriodicCallback(lambda: ticks.append(1) or (len(ticks) == 3 and done.set()), 2)
        ticker.start()
        await done.wait()
        ticker.stop()
        never = asyncio.get_running_loop().create_future()
        try:
            await gen.with_timeout(datetime.timedelta(milliseconds=5), never)
        except gen.TimeoutError:
            ticks.append("timeout")
        ran = await ioloop.IOLoop.current().run_in_executor(None, sum, [1, 2])
        return lines, ticks, ran

    lines, ticks, ran = same(program)
    assert lines == [b"LINE %d\n" % i for i in range(3000)]
    assert ticks == [1, 1, 1, "timeout"] and ran == 3
