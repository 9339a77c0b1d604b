"""Whole HTTP servers under load: aiohttp with 2,000 requests at once, uvicorn under wrk."""

import asyncio
import hashlib
import http.client
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers import free_port


@pytest.fixture
def many_descriptors():
    """Room for 2,000 connections with both ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------- aiohttp


def test_aiohttp_serves_2000_requests_at_once(loop, run, many_descriptors):
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    requests = 2000

    async def answer(request):
        number = int(request.match_info["number"])
        return web.json_response({"number": number, "text": hashlib.sha256(b"%d" % number).hexdigest()})

    async def fetch(session, address, number):
        async with session.get(f"http://{address}/{number}") as response:
            return response.status, await response.json()

    async def main():
        app = web.Application()
        app.router.add_get("/{number}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=requests)
        await site.start()
        host, port = site._server.sockets[0].getsockname()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            answers = await asyncio.gather(*[fetch(session, f"{host}:{port}", i) for i in range(requests)])
            # Again over the connections that were kept open.
            answers += await asyncio.gather(*[fetch(session, f"{host}:{port}", i) for i in range(500)])
        await runner.cleanup()
        await asyncio.sleep(0.05)
        return answers

    expected = [(200, {"number": i, "text": hashlib.sha256(b"%d" % i).hexdigest()}) for i in range(requests)]
    assert run(main()) == expected + expected[:500]


# ---------------------------------------------------------------- uvicorn

APPLICATION = """
import hashlib

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/loop":
        import asyncio
        answer = type(asyncio.get_running_loop()).__module__.encode()
    elif scope["path"] == "/hash":
        answer = hashlib.sha256(body).hexdigest().encode()
    elif scope["path"] == "/big":
        answer = b"0123456789abcdef" * 65536
    else:
        answer = b"hello from " + scope["path"].encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]})
    for start in range(0, len(answer), 100000):
        await send({"type": "http.response.body", "body": answer[start:start + 100000],
                    "more_body": start + 100000 < len(answer)})
"""


@pytest.fixture
def uvicorn_server(python, tmp_path):
    """uvicorn in a process of its own, on the loop under test; gives its port."""
    uvicorn = pytest.importorskip("uvicorn")
    (tmp_path / "served.py").write_text(APPLICATION)
    port = free_port()
    factory = "fastloop:new_event_loop" if python.name == "fastloop" else "asyncio"
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"]
    if tuple(map(int, uvicorn.__version__.split(".")[:2])) >= (0, 36):
        command = [sys.executable, "-m", "uvicorn", "served:app", "--loop", factory, *options]
    else:
        # Older versions know no factories: the server runs on a loop that is made here.
        command = python.command(f"""
            import uvicorn
            server = uvicorn.Server(uvicorn.Config("served:app", host="127.0.0.1", port={port}, log_level="warning",
                                                   access_log=False))
            faulthandler.cancel_dump_traceback_later()
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(server.serve())
            """)
    server = subprocess.Popen(
        command, cwd=tmp_path, env=python.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                get(port, "/ready")
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, server.communicate()[0]
                time.sleep(0.05)
        yield port
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=30)
        assert "Traceback" not in re.sub(r"Traceback[^\0]*KeyboardInterrupt\s*$", "", output), output
        assert server.returncode in (0, -signal.SIGINT), output
    finally:
        server.kill()
        server.communicate()


def get(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST" if body else "GET", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_uvicorn_under_wrk_answers_everything(uvicorn_server, python, long_mode):
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed (Debian package wrk)")
    port = uvicorn_server
    module = get(port, "/loop")[1].decode()
    assert module.startswith("fastloop") if python.name == "fastloop" else module.startswith("asyncio")
    seconds = 10 if long_mode else 2
    report = subprocess.run(
        ["wrk", "-t1", "-c100", f"-d{seconds}s", "--timeout", "30s", f"http://127.0.0.1:{port}/wrk"],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert int(re.search(r"(\d+) requests in", report)[1]) > 100, report
    assert "Socket errors" not in report and "Non-2xx" not in report, report


def test_uvicorn_answers_correctly(uvicorn_server):
    port = uvicorn_server
    assert get(port, "/any/path") == (200, b"hello from /any/path")
    assert get(port, "/big") == (200, b"0123456789abcdef" * 65536)
    for size in (1, 1000, 100_000, 5_000_000):
        body = bytes(i % 251 for i in range(1000)) * (size // 1000) or b"x"
        assert get(port, "/hash", body) == (200, hashlib.sha256(body).hexdigest().encode())
