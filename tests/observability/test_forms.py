"""The metrics as text for Prometheus, for OpenTelemetry, and on a Unix socket with `python -m fastloop top`."""

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref

import pytest

import helpers
from fastloop import observe

pytestmark = pytest.mark.fastloop_only(reason="the standard loop counts nothing")


# ---------------------------------------------------------------- Prometheus


SAMPLE = re.compile(r'fastloop_\w+(\{(\w+="(\\.|[^"\\])*"(,|(?=\})))+\})? \S+')


def parse(text):
    """The samples of an exposition, checked line by line; each family is announced once, before its samples."""
    samples, families = {}, []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            families.append(line.split()[2])
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert line.startswith(families[-1]), line
            name, value = line.rsplit(" ", 1)
            assert name not in samples
            samples[name] = float(value)
    assert len(set(families)) == len(families)
    return samples


def test_prometheus_text(loop, run):
    run(asyncio.sleep(0))
    samples = parse(observe.prometheus_text(loop))
    assert samples["fastloop_turns_total"] == loop.metrics()["turns"]
    assert samples['fastloop_handles{kind="tcp"}'] == 0
    assert not [name for name in samples if "seconds" in name]
    loop.set_metrics(True)
    run(asyncio.sleep(0.001))
    samples = parse(observe.prometheus_text(loop))
    assert samples["fastloop_lag_seconds_count"] == 1
    assert samples['fastloop_lag_seconds{quantile="0.5"}'] == samples["fastloop_lag_seconds_sum"]
    assert samples["fastloop_poll_seconds_total"] > 0


def test_prometheus_text_of_several_loops(loop):
    samples = parse(observe.prometheus_text(loop, loop.metrics(), labels={"job": 'a "b"\\\n'}))
    job = r'job="a \"b\"\\\n"'
    assert f'fastloop_turns_total{{{job},loop="0"}}' in samples
    assert f'fastloop_handles{{{job},loop="1",kind="tcp"}}' in samples
    assert observe.prometheus_text() == ""


# ---------------------------------------------------------------- OpenTelemetry


def test_otel(loop, run):
    pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from fastloop.observe import otel

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def points():
        data = reader.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return {
            (metric.name, *(str(value) for value in point.attributes.values())): point.value
            for metric in metrics
            for point in metric.data.data_points
        }

    otel.instrument(loop, provider, {"name": "main"})
    run(asyncio.sleep(0.001))
    found = points()
    values = loop.metrics()
    assert found["fastloop.eventloop.turns", "main"] == values["turns"]
    assert found["fastloop.eventloop.time", "main", "idle"] == values["poll_seconds"]
    assert found["fastloop.eventloop.delay.p50", "main"] == values["lag"]["p50"]
    assert found["fastloop.network.io", "main", "receive"] == 0
    assert found["fastloop.handles", "main", "tcp"] == 0
    loop.close()
    assert points() == {}
    provider.shutdown()


# ---------------------------------------------------------------- the socket


def top(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "FASTLOOP_METRICS"}
    return subprocess.run(
        [sys.executable, "-m", "fastloop", "top", *map(str, arguments)],
        capture_output=True, text=True, timeout=50, env={**inherited, **environment},
    )  # fmt: skip


def test_socket(loop, run, tmp_path):
    path = tmp_path / "metrics"
    assert observe.serve(loop, path) == str(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    run(asyncio.sleep(0.001))
    before = loop.metrics()
    values = observe.fetch(path)
    assert values.pop("pid") == os.getpid()
    assert values["timed"]
    # The loop takes no part in it.
    assert {**values, "poll_seconds": 0} == {**before, "poll_seconds": 0} == {**loop.metrics(), "poll_seconds": 0}
    with pytest.raises(RuntimeError, match="being served"):
        observe.serve(loop, path)
    loop.close()
    assert not path.exists()
    with pytest.raises(RuntimeError, match="closed"):
        observe.serve(loop, path)


def test_socket_of_a_loop_that_is_stuck(loop, tmp_path):
    path = tmp_path / "metrics"
    observe.serve(loop, path)
    seen = []
    # In a callback, which waits for another thread: the loop itself could not answer.
    loop.call_soon(lambda: seen.append(observe.fetch(path)["turns"]))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [1]


def test_stop_serving(loop, tmp_path):
    path = tmp_path / "metrics"
    observe.serve(loop, path)
    observe.stop_serving(loop)
    observe.stop_serving(loop)
    assert not path.exists()
    observe.serve(loop, path)
    observe.fetch(path)


def test_nobody_is_listened_to(loop, tmp_path):
    path = tmp_path / "metrics"
    observe.serve(loop, path)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for client in clients:
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            client.sendall(b"stop\n" * 1000)
    for client in clients[1:]:
        client.close()
    with clients[0], clients[0].makefile("rb") as stream:
        assert "turns" in json.loads(stream.readline())
    observe.fetch(path)


def test_file_that_is_there_is_left_alone(loop, loop_factory, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        observe.serve(loop, file)
    assert file.read_text() == "precious"
    # Nor is the socket of another loop.
    path = tmp_path / "metrics"
    observe.serve(loop, path)
    other = loop_factory()
    with pytest.raises(OSError, match="in use"):
        observe.serve(other, path)
    other.close()
    observe.fetch(path)


def test_socket_that_nobody_serves_is_replaced(loop, tmp_path):
    path = tmp_path / "metrics"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    observe.serve(loop, path)
    observe.fetch(path)


def test_file_that_took_its_place_stays(loop, tmp_path):
    path = tmp_path / "metrics"
    observe.serve(loop, path)
    path.unlink()
    path.write_text("another's")
    loop.close()
    assert path.read_text() == "another's"


def test_folder(loop, loop_factory, tmp_path):
    other = loop_factory()
    names = {observe.serve(loop, tmp_path), observe.serve(other, tmp_path)}
    assert len(names) == 2 and all(str(os.getpid()) in name for name in names)
    other.close()
    loop.close()
    assert os.listdir(tmp_path) == []


def test_environment(monkeypatch, loop_factory, tmp_path):
    path = tmp_path / "metrics"
    monkeypatch.setenv("FASTLOOP_METRICS", str(path))
    loop = loop_factory()
    assert observe.fetch(path)["timed"]
    # One path serves one loop; the program goes on without.
    with pytest.warns(RuntimeWarning, match="in use"):
        other = loop_factory()
    assert other.metrics()["timed"]
    other.close()
    loop.close()
    assert not path.exists()


def test_out_of_descriptors_with_large_numbers(tmp_path):
    """The socket answers again when there are descriptors again; select() knows only a thousand."""
    program = """
import fastloop, os, resource, socket, sys, time
from fastloop import observe
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
if 0 <= hard < 1200:
    sys.exit()
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
client = socket.socket(socket.AF_UNIX)
hogs = [os.dup(0) for _ in range(1050)]
loop = fastloop.Loop()
observe.serve(loop, sys.argv[1])
try:
    while True:
        hogs.append(os.dup(0))
except OSError:
    pass
client.connect(sys.argv[1])
time.sleep(0.1)
for hog in hogs:
    os.close(hog)
client.settimeout(20)
assert client.recv(10)
observe.fetch(sys.argv[1])
loop.close()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "metrics")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_never_by_default(monkeypatch, loop_factory):
    monkeypatch.delenv("FASTLOOP_METRICS", raising=False)
    before = helpers.open_files()
    threads = threading.active_count()
    loop = loop_factory()
    assert loop._metrics_server is None
    assert threading.active_count() == threads
    loop.close()
    assert helpers.open_files() == before


def test_loop_that_is_forgotten(loop_factory, tmp_path, guard):
    path = tmp_path / "metrics"
    loop = loop_factory()
    observe.serve(loop, path)
    gone = weakref.ref(loop)
    del loop
    helpers.gc.collect()
    assert gone() is None
    assert not path.exists()
    guard.unraisable.take()


def test_loop_that_is_open_at_exit(tmp_path):
    path = tmp_path / "metrics"
    program = "import fastloop, os, sys; loop = fastloop.Loop(); print(os.path.exists(sys.argv[1])); os._loop = loop"
    environment = {**os.environ, "FASTLOOP_METRICS": str(path)}
    command = [sys.executable, "-c", program, str(path)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=50, check=True)
    assert ended.stdout == "True\n"
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_child_leaves_the_socket_to_its_parent(loop, run, tmp_path):
    path = tmp_path / "metrics"
    observe.serve(loop, path)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            loop.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert observe.fetch(path)["pid"] == os.getpid()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_close_does_not_wait_for_a_forked_child(loop, tmp_path):
    """The child has copies of all descriptors, and keeps them."""
    observe.serve(loop, tmp_path / "metrics")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    closing = threading.Thread(target=observe.stop_serving, args=(loop,))
    closing.start()
    closing.join(10)
    waits = closing.is_alive()
    os.close(writer)
    os.waitpid(child, 0)
    closing.join()
    assert not waits


def test_the_folder_may_be_changed(loop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert observe.serve(loop, "metrics") == "metrics"
    monkeypatch.chdir("/")
    loop.close()
    assert os.listdir(tmp_path) == []


def test_a_socket_that_cannot_be_unlinked(loop, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    observe.serve(loop, tmp_path / "metrics")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        loop.close()
    assert loop.is_closed()


@pytest.mark.parametrize("method", ["__init__", "start"])
def test_no_thread_to_serve(loop_factory, tmp_path, monkeypatch, method):
    """As in subinterpreters, which refuse daemon threads, and where there is no memory for one."""

    def refuse(*args, **options):
        raise RuntimeError("no thread")

    monkeypatch.setenv("FASTLOOP_METRICS", str(tmp_path / "metrics"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, method, refuse)
        with pytest.warns(RuntimeWarning, match="no thread"):
            loop = loop_factory()
    assert loop.metrics()["timed"]
    loop.close()
    assert os.listdir(tmp_path) == []


def test_fetch_what_is_no_metrics(tmp_path):
    path = tmp_path / "other"
    for answer in (b"", b"hello\n", b"[1]\n"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()

            def say(text=answer, listener=listener):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(text)

            thread = threading.Thread(target=say)
            thread.start()
            with pytest.raises(OSError, match="no metrics"):
                observe.fetch(path)
            thread.join()
        path.unlink()


# ---------------------------------------------------------------- top


def test_top(loop, run, tmp_path):
    path = observe.serve(loop, tmp_path / "metrics")
    run(asyncio.sleep(0.001))
    shown = top("--once", path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"process {os.getpid()}\b", shown.stdout)
    assert re.search(r"^turns +[1-9]", shown.stdout, re.MULTILINE)
    assert re.search(r"^timers late +\d", shown.stdout, re.MULTILINE)
    by_environment = top("--json", FASTLOOP_METRICS=path)
    assert json.loads(by_environment.stdout)["turns"] == loop.metrics()["turns"]
    by_folder = top("--json", str(tmp_path))
    assert by_folder.returncode == 2 and "none" in by_folder.stderr
    observe.stop_serving(loop)
    observe.serve(loop, tmp_path)
    assert json.loads(top("--json", str(tmp_path)).stdout)["pid"] == os.getpid()


def test_top_without_a_socket(tmp_path):
    nowhere = top(tmp_path / "gone")
    assert nowhere.returncode == 1 and "gone: No such file" in nowhere.stderr
    assert top().returncode == 2
    assert top("--interval", "0", "x").returncode == 2


def test_top_goes_on_until_the_program_ends(tmp_path):
    program = "import asyncio, fastloop, sys; fastloop.run(asyncio.to_thread(sys.stdin.read))"
    path = tmp_path / "metrics"
    environment = {**os.environ, "FASTLOOP_METRICS": str(path)}
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=environment) as watched:
        while not path.exists():
            time.sleep(0.01)
        while True:
            try:
                observe.fetch(path)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        command = [sys.executable, "-m", "fastloop", "top", "--interval", "0.05", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewer:
            for line in viewer.stdout:
                if line.startswith("busy"):
                    break
            watched.stdin.close()
            viewer.stdout.read()
    assert (watched.returncode, viewer.returncode) == (0, 0)
    assert not path.exists()


@pytest.mark.parametrize("accepts", [True, False], ids=["as it is asked", "before it is accepted"])
def test_top_ends_when_the_program_ends(loop, tmp_path, accepts):
    path = tmp_path / "metrics"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-m", "fastloop", "top", "--interval", "0.01", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as viewer:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(json.dumps({"pid": 1, **loop.metrics()}).encode() + b"\n")
            select.select([listener], [], [], 50)
            if accepts:
                listener.accept()[0].close()
            path.unlink()
            listener.close()
            _, errors = viewer.communicate(timeout=50)
    assert (viewer.returncode, errors) == (0, "")


def test_top_ends_with_ctrl_c(loop, tmp_path):
    path = observe.serve(loop, tmp_path / "metrics")
    command = [sys.executable, "-m", "fastloop", "top", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as viewer:
        viewer.stdout.readline()
        viewer.send_signal(signal.SIGINT)
        _, errors = viewer.communicate(timeout=50)
    assert (viewer.returncode, errors) == (0, "")
