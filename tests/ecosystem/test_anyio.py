"""anyio programs: task groups, cancel scopes, threads, sockets, processes and signals, started by anyio.run()."""

import asyncio
import math
import os
import signal
import sys

import pytest

anyio = pytest.importorskip("anyio")
from_thread = pytest.importorskip("anyio.from_thread")
to_thread = pytest.importorskip("anyio.to_thread")
tls = pytest.importorskip("anyio.streams.tls")
buffered = pytest.importorskip("anyio.streams.buffered")


@pytest.fixture
def run_anyio(loop_name, loop_factory):
    """Run a program by anyio.run() on a loop of the kind under test; the answer must be the stock loop's."""

    def run(program, *args):
        answer = anyio.run(program, *args, backend="asyncio", backend_options={"loop_factory": loop_factory})
        if loop_name != "stock":
            factory = asyncio.SelectorEventLoop
            assert answer == anyio.run(program, *args, backend="asyncio", backend_options={"loop_factory": factory})
        return answer

    return run


def test_task_groups_and_cancel_scopes(run_anyio):
    async def fail(delay):
        await anyio.sleep(delay)
        raise ValueError("on purpose")

    async def note_the_end(events, name):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
                events.append(name)

    async def start(*, task_status):
        task_status.started("started")
        await anyio.sleep_forever()

    async def program():
        events = []
        try:
            async with anyio.create_task_group() as group:
                events.append(await group.start(start))
                for name in ("a", "b"):
                    group.start_soon(note_the_end, events, name)
                group.start_soon(fail, 0.01)
        except BaseExceptionGroup as exc:
            # The tasks of a group are a set: which of them is cancelled first is chance.
            events[1:] = [*sorted(events[1:]), [str(each) for each in exc.exceptions]]
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        events.append((scope.cancelled_caught, anyio.current_effective_deadline() == math.inf))
        try:
            with anyio.fail_after(0.01):
                await anyio.Event().wait()
        except TimeoutError:
            events.append("timeout")
        send, receive = anyio.create_memory_object_stream(5)
        async with anyio.create_task_group() as group, send, receive:
            for i in range(100):
                group.start_soon(send.send, i)
            events.append(sorted([await receive.receive() for _ in range(100)]))
        return events

    events = run_anyio(program)
    assert events[:3] == ["started", "a", "b"]
    assert events[3:] == [["on purpose"], (True, True), "timeout", list(range(100))]


def test_threads(run_anyio):
    def work(number):
        return from_thread.run(double, number) + from_thread.run_sync(abs, -1)

    async def double(number):
        await anyio.sleep(0)
        return number * 2

    async def program():
        results = {}

        async def call(number):
            results[number] = await to_thread.run_sync(work, number, limiter=limiter)

        limiter = anyio.CapacityLimiter(8)
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(call, number)
        return sorted(results.items())

    assert run_anyio(program) == [(number, number * 2 + 1) for number in range(200)]


def test_blocking_portal(loop_name, loop_factory, loop):
    async def where():
        await anyio.sleep(0)
        return type(asyncio.get_running_loop())

    with from_thread.start_blocking_portal("asyncio", {"loop_factory": loop_factory}) as portal:
        assert portal.call(where) is type(loop)
        assert [portal.start_task_soon(where).result(20) for _ in range(20)] == [type(loop)] * 20


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_streams(run_anyio, authority, tmp_path, kind):
    async def echo(stream):
        async with stream:
            async for data in stream:
                await stream.send(data)

    async def connect(listener):
        if kind == "unix":
            return await anyio.connect_unix(tmp_path / "a.sock")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        stream = await anyio.connect_tcp("127.0.0.1", port)
        if kind == "tls":
            return await tls.TLSStream.wrap(stream, hostname="localhost", ssl_context=authority.client)
        return stream

    async def talk(listener, number, results):
        async with await connect(listener) as stream:
            data = bytes([number]) * 200_000
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, data)
                results[number] = await buffered.BufferedByteReceiveStream(stream).receive_exactly(len(data)) == data

    async def program():
        results = {}
        if kind == "unix":
            listener = await anyio.create_unix_listener(tmp_path / "a.sock")
        else:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        serving = tls.TLSListener(listener, authority.server) if kind == "tls" else listener
        async with serving, anyio.create_task_group() as group:
            group.start_soon(serving.serve, echo)
            async with anyio.create_task_group() as talking:
                for number in range(20):
                    talking.start_soon(talk, listener, number, results)
            group.cancel_scope.cancel()
        return sorted(results.items())

    assert run_anyio(program) == [(number, True) for number in range(20)]


def test_datagrams(run_anyio):
    async def program():
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as server:
            port = server.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.create_connected_udp_socket("127.0.0.1", port) as client:
                answers = []
                for i in range(200):
                    await client.send(b"%d" % i)
                    data, address = await server.receive()
                    await server.sendto(data * 2, *address)
                    answers.append(await client.receive())
                return answers

    assert run_anyio(program) == [b"%d" % i * 2 for i in range(200)]


def test_processes_and_signals(run_anyio):
    async def program():
        code = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(3)"
        done = await anyio.run_process([sys.executable, "-c", code], input=b"text" * 50_000, check=False)
        async with await anyio.open_process([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
            process.terminate()
            ended = await process.wait()
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            received = []
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                received.append(await anext(signals))
        return done.returncode, done.stdout, ended, received

    code, output, ended, received = run_anyio(program)
    assert (code, output, ended) == (3, b"TEXT" * 50_000, -signal.SIGTERM)
    assert received == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]
