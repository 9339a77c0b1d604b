"""One run of one case in fresh processes: the measured one and, where the case has one, its other side in C."""

import contextlib
import json
import shutil
import subprocess
import tempfile

from benchmarks import native, peers
from benchmarks.registry import ClientCase, ServerCase
from fastloop._bench import process
from fastloop._bench.loops import LIBUV
from fastloop._bench.machine import cores
from fastloop._bench.measures import memory_bytes
from fastloop._bench.process import CannotError, read_line


def pin(core):
    """Start of a command line that keeps a process on our first (0) or last (-1) core; empty where there is one."""
    if len(cores()) < 2 or shutil.which("taskset") is None:
        return []
    return ["taskset", "-c", str(cores()[core])]


def worker(loop, case, *arguments):
    return process.command("benchmarks.worker", loop, case, *arguments)


def started(words, **options):
    return process.started(words, **{"env": process.environment(native.ROOT)} | options)


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
    with started(command, pass_fds=[listener.fileno()], **options) as server:
        if server.stdout.readline() != "ready\n":
            raise CannotError(f"the C server ended with status {server.wait()}")
        yield server


@contextlib.contextmanager
def peer_of(case):
    """The address of the other side of a client, for the time of one run."""
    if case.peer in peers.KINDS:
        with peers.serving(case.peer, pin(-1)) as address:
            yield address
        return
    with listening("unix" if case.peer == "unix" else "tcp") as (listener, address):
        with echo_server(case.peer, listener, pin(-1)):
            yield address


def run_inside(case, loop, n, prefix, is_warmed, **options):
    arguments = [n, "--warm-up"] if case.warm and is_warmed else [n]
    with contextlib.ExitStack() as stack:
        if isinstance(case, ClientCase):
            address = stack.enter_context(peer_of(case))
            prefix = [*pin(0), *prefix]
            arguments += ["--address", json.dumps(address)]
        environment = {"env": process.environment(native.ROOT)}
        return process.run_worker([*prefix, *worker(loop, case, *arguments)], **environment | options)


@contextlib.contextmanager
def serving(case, loop, listener, prefix, **options):
    """The server of a case, ready: that of the loop, or the one in C."""
    prefix = [*pin(0), *prefix]
    if loop == LIBUV:
        mode = case.load.get("mode")
        serves = "http" if mode == "http" else case.kind
        with echo_server(serves, listener, prefix, closes=mode == "churn", **options) as server:
            yield server
        return
    command = [*prefix, *worker(loop, case, case.n, "--fd", listener.fileno())]
    with started(command, pass_fds=[listener.fileno()], **options) as server:
        read_line(server)
        yield server


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
    if not isinstance(case, ServerCase):
        return run_inside(case, loop, n, prefix, is_warmed, **options)
    with listening(case.kind) as (listener, address), serving(case, loop, listener, prefix, **options) as server:
        listener.close()
        return put_under_load(case, address, server.pid, n, is_warmed)
