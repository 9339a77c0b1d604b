"""One run of one case in fresh processes: the measured one and, where the case has one, its other side in C."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading

from benchmarks import native
from benchmarks.loops import LIBUV
from benchmarks.measures import memory_bytes

TIMEOUT_S = 120


class CannotError(Exception):
    """The loop cannot do this case; the text says why."""


def pin(core):
    """Start of a command line that keeps a process on our first (0) or last (-1) core; empty where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        return []
    return ["taskset", "-c", str(cores[core])]


def environment():
    """For the measured process: the tree's packages after what PYTHONPATH has, and hashes that repeat."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(native.ROOT)]))
    return os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def worker(loop, case, *arguments):
    return [sys.executable, "-P", "-m", "benchmarks.worker", loop, case.name, *map(str, arguments)]


def read_line(process):
    """The line of JSON that a worker prints, as a dict. Raises CannotError for what it could not do."""
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise CannotError(f"ended with status {process.returncode}")
    answer = json.loads(line)
    if "cannot" in answer:
        raise CannotError(answer["cannot"])
    return answer


@contextlib.contextmanager
def started(command, timeout_s=TIMEOUT_S, **options):
    """A child process, its standard output a pipe of text, that is gone at the end; killed when it takes too long."""
    # What a loop writes about its own failure would run through the table: the reason comes on standard output.
    options = {"stderr": subprocess.DEVNULL} | options
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), **options) as process:
        guard = threading.Timer(timeout_s, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def listening(kind):
    """A bound socket and its address, for the time of one run."""
    with tempfile.TemporaryDirectory() as folder:
        listener, address = native.bind(kind, folder)
        with listener:
            yield listener, address


@contextlib.contextmanager
def echo_server(mode, listener, prefix, closes=False, **options):
    """The C server, ready, on the listener; closes: it closes each connection as soon as it is made."""
    command = [*prefix, native.ECHO, mode, str(listener.fileno()), native.certificate(), *["close"] * closes]
    with started(command, pass_fds=[listener.fileno()], **options) as process:
        if process.stdout.readline() != "ready\n":
            raise CannotError(f"the C server ended with status {process.wait()}")
        yield process


def run_inside(case, loop, n, prefix, is_warmed, **options):
    arguments = [n, "--warm-up"] if case.warm and is_warmed else [n]
    with contextlib.ExitStack() as stack:
        if case.peer is not None:
            listener, address = stack.enter_context(listening("unix" if case.peer == "unix" else "tcp"))
            stack.enter_context(echo_server(case.peer, listener, pin(-1)))
            prefix = [*pin(0), *prefix]
            arguments += ["--address", json.dumps(address)]
        process = stack.enter_context(started([*prefix, *worker(loop, case, *arguments)], **options))
        metrics = read_line(process)
        process.wait()
        return metrics


@contextlib.contextmanager
def serving(case, loop, listener, prefix, **options):
    """The server of a case, ready: that of the loop, or the one in C."""
    prefix = [*pin(0), *prefix]
    if loop == LIBUV:
        mode = case.load.get("mode")
        serves = "http" if mode == "http" else case.kind
        with echo_server(serves, listener, prefix, closes=mode == "churn", **options) as process:
            yield process
        return
    command = [*prefix, *worker(loop, case, case.n, "--fd", listener.fileno())]
    with started(command, pass_fds=[listener.fileno()], **options) as process:
        read_line(process)
        yield process


def put_under_load(case, address, pid, n, is_warmed):
    """The metrics of a server, from the outside; times are nanoseconds per operation."""
    place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
    settings = {"kind": case.kind, "address": place, "pid": pid, "ops": n} | case.load
    if not is_warmed:
        settings["warmup"] = 0
    command = [*pin(-1), native.LOAD, *(f"{name}={value}" for name, value in settings.items())]
    before = memory_bytes(pid)
    with started(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as load:
        line = load.stdout.readline()
        if not line:
            raise CannotError(load.stderr.read().strip() or "took too long")
        if case.load.get("mode") == "idle":
            return {"bytes": (memory_bytes(pid) - before) / case.load["connections"]}
    answer = json.loads(line)
    return answer | {name: answer[name] / answer["ops"] for name in ("wall", "cpu")}


def run(case, loop, n, prefix=(), is_warmed=True, **options):
    """Run a case once on a loop, by name; returns all its metrics. Raises CannotError.

    prefix is a command that runs the measured process, such as valgrind; options are those of started().
    """
    if case.kind is None:
        return run_inside(case, loop, n, prefix, is_warmed, **options)
    with listening(case.kind) as (listener, address), serving(case, loop, listener, prefix, **options) as process:
        listener.close()
        return put_under_load(case, address, process.pid, n, is_warmed)
