"""Servers of several processes: uvicorn with --workers and --reload, gunicorn with each of its workers for asyncio.

The process that watches over the workers is not ours; the loop has to start, serve, drain and end in the workers.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

# Half a dozen interpreters are started, one after the other.
pytestmark = pytest.mark.timeout(200, method="signal")
SECONDS = 40

APP = """
import asyncio, os

VERSION = 1

def kind():
    return type(asyncio.get_running_loop()).__module__

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        print(f"<started {os.getpid()} {kind()} {VERSION}>", flush=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print(f"<ended {os.getpid()}>", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/slow":
        print("<slow>", flush=True)
        await asyncio.sleep(0.5)
    if scope["path"] == "/child":
        child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        out, _ = await child.communicate(b"through a child")
        body = out + b" %d" % child.returncode
    elif scope["path"] == "/thread":
        body = str(await asyncio.to_thread(sum, range(1000))).encode()
    else:
        body = f"{os.getpid()} {kind()} {VERSION}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

AIOHTTP_APP = """
import asyncio, os
from aiohttp import web

def kind():
    return type(asyncio.get_running_loop()).__module__

async def answer(request):
    return web.Response(text=f"{os.getpid()} {kind()} 1")

async def slow(request):
    print("<slow>", flush=True)
    await asyncio.sleep(0.5)
    return web.Response(text="slow")

async def child(request):
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await process.communicate(b"through a child")
    return web.Response(text=f"{out.decode()} {process.returncode}")

async def thread(request):
    return web.Response(text=str(await asyncio.to_thread(sum, range(1000))))

async def started(app):
    print(f"<started {os.getpid()} {kind()} 1>", flush=True)
    yield
    print(f"<ended {os.getpid()}>", flush=True)

app = web.Application()
app.cleanup_ctx.append(started)
app.add_routes([web.get("/", answer), web.get("/slow", slow), web.get("/child", child), web.get("/thread", thread)])
"""

UVICORN = [sys.executable, "-m", "uvicorn", "service:app", "--uds", "s.sock", "--log-level", "info"]
GUNICORN = [sys.executable, "-m", "gunicorn", "service:app", "--bind", "unix:s.sock", "--graceful-timeout", "20"]


class Service:
    """A server with its processes: what they wrote, and what they answer."""

    def __init__(self, folder, command, environment):
        self.folder = folder
        self.path = folder / "log"
        # A group of its own, so that no worker outlives the test whatever happens.
        with open(self.path, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.client = httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "s.sock")), timeout=SECONDS)

    @property
    def log(self):
        return self.path.read_text(errors="replace")

    def wait_for(self, condition, what):
        """Wait until condition() is true, and return what it is."""
        deadline = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < deadline and self.process.poll() is None, f"no {what}:\n{self.log}"
            time.sleep(0.02)
        return found

    def started(self, version=1):
        """{process id: module of its loop} of the workers that have started."""
        return dict(re.findall(rf"<started (\d+) (\S+) {version}>", self.log))

    def wait_for_workers(self, count, version=1):
        return self.wait_for(lambda: len(found := self.started(version)) >= count and found, f"{count} workers")

    def ask(self, path="/"):
        """The text of an answer; a server that is just starting may have refused before."""

        def attempt():
            with contextlib.suppress(httpx.TransportError):
                return self.client.get(f"http://localhost{path}")

        response = self.wait_for(attempt, "answer")
        assert response.status_code == 200
        return response.text

    def stop(self):
        """End it as an administrator does; return the log."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)
        return self.log

    def finish(self):
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def service(python, tmp_path):
    """Start a server on the application above, given its command line."""
    (tmp_path / "service.py").write_text(APP)
    made = []

    def start(command):
        made.append(Service(tmp_path, command, python.environment))
        return made[-1]

    yield start
    for each in made:
        each.finish()


def module_of(loop_name):
    return "asyncio.unix_events" if loop_name == "stock" else "fastloop.loop"


def uvicorn_loop(loop_name):
    return ["--loop", "asyncio" if loop_name == "stock" else "fastloop:new_event_loop"]


def gunicorn_commands(loop_name):
    """uvicorn's worker, which takes the name of a factory; gunicorn's own and aiohttp's, which ask asyncio."""
    if loop_name == "stock":
        return {
            "uvicorn": [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker"],
            "asgi": [*GUNICORN, "-k", "asgi", "--asgi-loop", "asyncio"],
            "aiohttp": [*GUNICORN, "-k", "aiohttp.GunicornWebWorker"],
        }
    own = [sys.executable, "-m", "fastloop", *GUNICORN[1:]]
    return {
        "uvicorn": [*GUNICORN, "-k", "fastloop.workers.UvicornWorker"],
        "asgi": [*own, "-k", "asgi", "--asgi-loop", "asyncio"],
        "aiohttp": [*own, "-k", "aiohttp.GunicornWebWorker"],
    }


def check_answers(service, loop_name, count=20):
    for _ in range(count):
        pid, kind, _ = service.ask().split()
        assert kind == module_of(loop_name)
        assert pid in service.started()
    assert service.ask("/child") == "through a child 0"
    assert service.ask("/thread") == "499500"


def check_drained(service, request_while_it_stops):
    """A request that is under way when the server is told to end is still answered."""
    client = subprocess.Popen(
        [sys.executable, "-c", request_while_it_stops], cwd=service.folder, stdout=subprocess.PIPE, text=True
    )
    with client:
        service.wait_for(lambda: "<slow>" in service.log, "slow request")
        log = service.stop()
        answer, _ = client.communicate(timeout=SECONDS)
    assert answer.startswith("HTTP/1.1 200"), answer + log
    started = re.findall(r"<started (\d+)", log)
    ended = re.findall(r"<ended (\d+)", log)
    assert set(ended) <= set(started)
    assert "Traceback" not in log, log
    return ended


SLOW_REQUEST = """
import socket
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("s.sock")
    sock.sendall(b"GET /slow HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n")
    print(sock.makefile("rb").read().decode())
"""


def test_uvicorn_workers(service, loop_name):
    running = service([*UVICORN, *uvicorn_loop(loop_name), "--workers", "2"])
    assert set(running.wait_for_workers(2).values()) == {module_of(loop_name)}
    check_answers(running, loop_name)
    # One that dies is replaced.
    victim, other = running.started()
    os.kill(int(victim), signal.SIGKILL)
    running.wait_for_workers(3)
    check_answers(running, loop_name)
    ended = check_drained(running, SLOW_REQUEST)
    assert set(ended) == running.started().keys() - {victim}


def test_uvicorn_reload(service, loop_name, tmp_path):
    running = service([*UVICORN, *uvicorn_loop(loop_name), "--reload", "--reload-dir", str(tmp_path)])
    (first,) = running.wait_for_workers(1)
    assert running.ask().split() == [first, module_of(loop_name), "1"]
    # The watcher remembers what it has seen only from its first look on.
    text = APP.replace("VERSION = 1", "VERSION = 2")
    for moment in range(1, 200):
        (tmp_path / "service.py").write_text(text)
        later = time.time() + moment
        os.utime(tmp_path / "service.py", (later, later))
        time.sleep(0.3)
        if running.started(version=2) or "Reloading" in running.log:
            break
    second, *_ = running.wait_for_workers(1, version=2)
    assert running.started(version=2)[second] == module_of(loop_name)
    running.wait_for(lambda: running.ask().split()[2] == "2", "new version")
    assert f"<ended {first}>" in running.log
    log = running.stop()
    assert "Traceback" not in log, log


@pytest.mark.parametrize("worker", ["uvicorn", "asgi", "aiohttp"])
def test_gunicorn(service, loop_name, worker, tmp_path):
    pytest.importorskip("gunicorn")
    pytest.importorskip({"uvicorn": "uvicorn_worker", "aiohttp": "aiohttp"}.get(worker, "gunicorn"))
    if worker == "aiohttp":
        (tmp_path / "service.py").write_text(AIOHTTP_APP)
    running = service([*gunicorn_commands(loop_name)[worker], "--workers", "2"])
    assert set(running.wait_for_workers(2).values()) == {module_of(loop_name)}
    check_answers(running, loop_name)
    victim, other = running.started()
    os.kill(int(victim), signal.SIGKILL)
    running.wait_for_workers(3)
    check_answers(running, loop_name)
    # HUP replaces every worker, without a request that fails.
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_workers(5)
    check_answers(running, loop_name)
    check_drained(running, SLOW_REQUEST)


@pytest.mark.fastloop_only("the worker class is fastloop's")
def test_the_worker_class_keeps_what_uvicorn_s_has():
    pytest.importorskip("gunicorn")
    theirs = pytest.importorskip("uvicorn_worker").UvicornWorker
    from fastloop.workers import UvicornWorker

    assert issubclass(UvicornWorker, theirs)
    assert UvicornWorker.CONFIG_KWARGS == {**theirs.CONFIG_KWARGS, "loop": "fastloop:new_event_loop"}
