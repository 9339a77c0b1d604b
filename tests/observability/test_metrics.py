"""loop.metrics(): what it counts, with real connections, exactly."""

import asyncio
import gc
import math
import os
import socket
import threading
import time
import weakref

import pytest

import helpers

pytestmark = [
    pytest.mark.fastloop_only(reason="the standard loop counts nothing"),
    # Where asyncio's own methods serve, nothing is counted.
    pytest.mark.usefixtures("debug_off"),
]


@pytest.fixture
def grown(loop):
    """How much the counts have grown since the test began, or since the last question."""
    before = loop.metrics()

    def growth(*names):
        nonlocal before
        now, old = loop.metrics(), before
        before = now
        found = tuple(now[name] - old[name] for name in names)
        return found if len(found) > 1 else found[0]

    return growth


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def closed(writer):
    writer.close()
    await writer.wait_closed()


def test_turns_and_callbacks(loop, grown):
    for _ in range(10):
        loop.call_soon(int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert grown("turns", "callbacks") == (1, 11)
    loop.stop()
    loop.run_forever()
    assert grown("turns", "callbacks") == (1, 0)


def test_task_steps_are_callbacks(loop, run, grown):
    async def steps():
        for _ in range(100):
            await asyncio.sleep(0)

    run(steps())
    # The first one, one after each sleep, and that of run_until_complete().
    assert grown("callbacks") == 102


def test_callbacks_up_to_one_that_ends_the_run(loop, grown):
    def leave():
        raise KeyboardInterrupt

    loop.call_soon(int)
    loop.call_soon(leave)
    loop.call_soon(loop.stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert grown("callbacks") == 2
    loop.run_forever()
    assert grown("callbacks") == 1


def test_ready_timers_and_tasks(loop, run):
    async def look():
        tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
        await asyncio.sleep(0)
        values = loop.metrics()
        for task in tasks:
            loop.call_soon(task.cancel)
        assert loop.metrics()["ready"] == 3
        await asyncio.wait(tasks)
        return values

    values = run(look())
    assert values["tasks"] == 4
    assert values["timers"] == 3
    assert loop.metrics()["tasks"] == loop.metrics()["timers"] == loop.metrics()["ready"] == 0


@pytest.mark.parametrize("switch", ["", "streams", "tasks"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_streams(monkeypatch, loop_factory, tmp_path, kind, switch):
    monkeypatch.setenv("FASTLOOP_DISABLE", switch)
    loop = loop_factory()

    async def talk():
        if kind == "tcp":
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        else:
            server = await asyncio.start_unix_server(echo, str(tmp_path / "s"))
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        for _ in range(20):
            writer.write(b"x" * 30)
            writer.write(b"y" * 70)
            await reader.readexactly(100)
        handles = loop.metrics()["handles"]
        await closed(writer)
        await helpers.without_clients(server)
        return handles

    handles = loop.run_until_complete(talk())
    values = loop.metrics()
    assert (values["bytes_in"], values["bytes_out"]) == (4000, 4000)
    # What was written in one turn was sent at once.
    assert (values["messages_in"], values["messages_out"]) == (40, 40)
    assert (handles[kind], handles["listeners"]) == (2, 1)
    assert set(loop.metrics()["handles"].values()) == {0}
    loop.close()


def test_a_write_that_the_kernel_does_not_take_at_once(loop, run, grown):
    size = 8 << 20

    async def talk():
        left, right = helpers.socket_pair("tcp")
        helpers.small_buffers(left, right)
        _, writer = await asyncio.open_connection(sock=left)
        reader, other = await asyncio.open_connection(sock=right)
        writer.write(bytes(size))
        assert writer.transport.get_write_buffer_size() > 0
        await reader.readexactly(size)
        await writer.drain()
        await closed(writer)
        await closed(other)

    run(talk())
    assert grown("bytes_in", "bytes_out") == (size, size)


def test_buffered_protocol(loop, run, grown):
    async def talk():
        left, right = helpers.socket_pair("unix")
        with right:
            transport, protocol = await loop.create_connection(helpers.BufferedRecorder, sock=left)
            for _ in range(5):
                await loop.sock_sendall(right, b"12345")
                await asyncio.sleep(0)
            right.shutdown(socket.SHUT_WR)
            while not transport.is_closing():
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(talk())
    assert grown("bytes_in", "bytes_out", "messages_out") == (25, 25, 5)


@pytest.mark.parametrize("switch", ["", "tls"])
def test_tls_counts_what_is_on_the_wire(monkeypatch, loop_factory, authority, switch):
    monkeypatch.setenv("FASTLOOP_DISABLE", switch)
    loop = loop_factory()

    async def talk():
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=authority.server)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address, ssl=authority.client, server_hostname="localhost")
        writer.write(b"x")
        await reader.readexactly(1)
        before = loop.metrics()
        for _ in range(20):
            writer.write(b"x" * 1000)
            await reader.readexactly(1000)
        after = loop.metrics()
        await closed(writer)
        await helpers.without_clients(server)
        return before, after

    before, after = loop.run_until_complete(talk())
    # Everything that was sent before an answer came has been read.
    assert before["bytes_in"] == before["bytes_out"] > 1000
    assert after["bytes_in"] == after["bytes_out"]
    moved = after["bytes_in"] - before["bytes_in"]
    assert 40_000 + 40 * 16 < moved < 40_000 + 40 * 100 and moved % 40 == 0
    assert after["messages_in"] - before["messages_in"] == after["messages_out"] - before["messages_out"] == 40
    loop.close()


def test_datagrams(loop, run, grown):
    async def talk():
        server, received = await loop.create_datagram_endpoint(helpers.DatagramRecorder, local_addr=("127.0.0.1", 0))
        client, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.get_extra_info("sockname")
        )
        for _ in range(10):
            client.sendto(b"0123456789")
        values = loop.metrics()
        while loop.metrics()["messages_in"] - values["messages_in"] < 10:
            await asyncio.sleep(0)
        client.close()
        server.close()
        await asyncio.sleep(0)

    run(talk())
    assert grown("bytes_in", "bytes_out", "messages_in", "messages_out") == (100, 100, 10, 10)


def test_datagrams_that_wait_for_the_kernel(loop, run, grown, tmp_path):
    async def talk():
        path = str(tmp_path / "s")
        server, _ = await loop.create_datagram_endpoint(
            helpers.DatagramRecorder, local_addr=path, family=socket.AF_UNIX
        )
        client, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=path, family=socket.AF_UNIX
        )
        before = loop.metrics()
        for _ in range(2000):
            client.sendto(b"0123456789")
        assert client.get_write_buffer_size() > 0
        while loop.metrics()["messages_in"] - before["messages_in"] < 2000:
            await asyncio.sleep(0)
        client.close()
        server.close()
        await asyncio.sleep(0)

    run(talk())
    assert grown("bytes_in", "bytes_out", "messages_in", "messages_out") == (20_000, 20_000, 2000, 2000)


def test_sock_calls(loop, run, grown):
    async def talk():
        left, right = helpers.socket_pair("tcp")
        with left, right:
            await loop.sock_sendall(left, b"0123456789")
            assert await loop.sock_recv(right, 100) == b"0123456789"
            await loop.sock_sendall(left, b"01234")
            assert await loop.sock_recv_into(right, bytearray(100)) == 5
            left.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(right, 100) == b""
        with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
            one.setblocking(False)
            two.setblocking(False)
            one.bind(("127.0.0.1", 0))
            await loop.sock_sendto(two, b"012", one.getsockname())
            assert (await loop.sock_recvfrom(one, 100))[0] == b"012"
            await loop.sock_sendto(two, b"01", one.getsockname())
            assert (await loop.sock_recvfrom_into(one, bytearray(100)))[0] == 2

    run(talk())
    assert grown("bytes_in", "bytes_out", "messages_in", "messages_out") == (20, 20, 4, 4)


def test_sendfile(loop, run, grown, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 5000)

    async def talk():
        left, right = helpers.socket_pair("tcp")
        with left, right, open(tmp_path / "file", "rb") as file:
            assert await loop.sock_sendfile(left, file) == 5000
            received = b""
            while len(received) < 5000:
                received += await loop.sock_recv(right, 5000)

    run(talk())
    assert grown("bytes_in", "bytes_out") == (5000, 5000)


def test_readers_writers_signals_and_children(loop, run):
    async def look():
        left, right = helpers.socket_pair("unix")
        with left, right:
            loop.add_reader(left, int)
            loop.add_writer(right, int)
            loop.add_signal_handler(10, int)
            values = loop.metrics()["handles"]
            loop.remove_reader(left)
            loop.remove_writer(right)
            loop.remove_signal_handler(10)
        return values

    values = run(look())
    assert (values["readers"], values["writers"], values["signals"]) == (1, 1, 1)
    assert set(loop.metrics()["handles"].values()) == {0}


def test_jobs(loop, run):
    begun, may_end = threading.Event(), threading.Event()

    def work():
        begun.set()
        may_end.wait()

    async def look():
        import fastloop

        loop.set_metrics(True)
        with fastloop.ThreadPool(1) as pool:
            jobs = [loop.run_in_executor(pool, work) for _ in range(3)]
            begun.wait()
            values = loop.metrics()["executor"]
            may_end.set()
            await asyncio.gather(*jobs)
        return values

    values = run(look())
    assert (values["jobs"], values["queued"], values["running"]) == (3, 2, 1)
    values = loop.metrics()["executor"]
    assert (values["jobs"], values["queued"], values["running"]) == (3, 0, 0)
    assert values["wait"]["count"] == 3


def test_jobs_that_were_never_run(loop, run):
    import fastloop

    begun, may_end = threading.Event(), threading.Event()

    async def look():
        pool = fastloop.ThreadPool(1)
        first = loop.run_in_executor(pool, lambda: (begun.set(), may_end.wait()))
        second = loop.run_in_executor(pool, int)
        begun.wait()
        pool.shutdown(wait=False, cancel_futures=True)
        values = loop.metrics()["executor"]
        may_end.set()
        await asyncio.wait([first, second])
        pool.shutdown()
        return values

    values = run(look())
    assert (values["jobs"], values["queued"], values["running"]) == (2, 0, 1)


# ---------------------------------------------------------------- time


def test_without_timing_there_are_no_times(loop, run):
    run(asyncio.sleep(0.001))
    values = loop.metrics()
    assert not values["timed"]
    assert {values[name] for name in ("poll_seconds", "gil_seconds", "run_seconds", "lag", "turn")} == {None}
    assert values["executor"]["wait"] is None


def test_time(loop, run):
    loop.set_metrics(True)
    start, sleeps = time.monotonic(), 0
    # On a busy machine a part of each sleep may be over before the loop waits.
    while loop.metrics()["poll_seconds"] < 0.049:
        run(asyncio.sleep(0.05))
        sleeps += 1
    loop.call_soon(time.sleep, 0.05)
    run(asyncio.sleep(0))
    total = time.monotonic() - start
    values = loop.metrics()
    assert values["timed"]
    assert values["poll_seconds"] >= 0.049
    assert values["run_seconds"] >= 0.05
    assert values["poll_seconds"] + values["gil_seconds"] + values["run_seconds"] <= total
    assert values["turn"]["count"] == values["turns"]
    assert values["turn"]["max"] >= 0.05
    assert math.isclose(values["turn"]["sum"], values["run_seconds"])
    assert values["lag"]["count"] == sleeps


def test_lag(loop, run):
    loop.set_metrics(True)

    async def block():
        done = loop.create_future()
        loop.call_later(0.01, done.set_result, None)
        time.sleep(0.05)
        await done

    run(block())
    lag = loop.metrics()["lag"]
    assert lag["count"] == 1
    assert 0.039 < lag["p50"] == lag["p99"] == lag["max"] == lag["sum"]


def test_percentiles(loop):
    loop.set_metrics(True)
    now = loop.time()
    for lateness in range(1, 101):
        loop.call_at(now - lateness, int)
    loop.call_at(now - 1e9, int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    lag = loop.metrics()["lag"]
    # One that was due years ago is none of the loop's.
    assert lag["count"] == 100
    for name, exact in [("p50", 50), ("p90", 90), ("p99", 99)]:
        assert exact <= lag[name] < exact * 1.13 + 60
    assert lag["p50"] <= lag["p90"] <= lag["p99"] <= lag["max"]


def test_timing_is_switched_off(loop, run):
    loop.set_metrics(True)
    run(asyncio.sleep(0))
    before = loop.metrics()
    loop.set_metrics(False)
    run(asyncio.sleep(0.001))
    after = loop.metrics()
    assert not after["timed"]
    assert after["turn"] == before["turn"] and after["poll_seconds"] == before["poll_seconds"]
    loop.set_metrics(True)
    run(asyncio.sleep(0))
    assert loop.metrics()["turn"]["count"] > before["turn"]["count"]


def test_the_wait_under_way_counts(loop):
    loop.set_metrics(True)
    seen = []

    def watch():
        deadline = time.monotonic() + helpers.PATIENCE
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            value = loop.metrics()["poll_seconds"]
            # The loop may not wait yet.
            if value > (seen[-1] if seen else 0):
                seen.append(value)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=watch)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert seen[0] < seen[1] < seen[2] <= loop.metrics()["poll_seconds"]


def test_the_environment_switches_it_on(monkeypatch, loop_factory):
    for text, timed in [("1", True), ("on", True), ("0", False), ("", False), ("off", False)]:
        monkeypatch.setenv("FASTLOOP_METRICS", text)
        loop = loop_factory()
        assert loop.metrics()["timed"] == timed
        loop.close()


def test_bad_flag(loop):
    class Bad:
        def __bool__(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop.set_metrics(Bad())
    assert not loop.metrics()["timed"]


# ---------------------------------------------------------------- from anywhere


def test_from_other_threads_while_it_runs(loop, run):
    loop.set_metrics(True)
    stop, failures, turns = threading.Event(), [], []

    def watch():
        try:
            while not stop.is_set():
                turns.append(loop.metrics()["turns"])
                loop.set_metrics(len(turns) % 10 != 0)
        except BaseException as error:
            failures.append(error)

    async def work():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for _ in range(5):
                writer.write(b"x" * 100)
                await reader.readexactly(100)
                await asyncio.to_thread(int)
            await closed(writer)
        await helpers.without_clients(server)
        await loop.shutdown_default_executor()

    threads = [threading.Thread(target=watch) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        run(work())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    values = loop.metrics()
    assert (values["bytes_in"], values["bytes_out"]) == (20_000, 20_000)
    assert max(turns) <= values["turns"]


def test_closed_loop(loop, run):
    loop.set_metrics(True)
    run(asyncio.sleep(0))
    before = loop.metrics()
    loop.call_later(60, int)
    loop.close()
    after = loop.metrics()
    assert after["turns"] == before["turns"]
    assert (after["timers"], after["ready"], after["tasks"]) == (0, 0, 0)
    assert set(after["handles"].values()) == {0}
    loop.set_metrics(False)


def test_loop_without_init(guard):
    import fastloop

    loop = fastloop.Loop.__new__(fastloop.Loop)
    assert loop._read_metrics()["turns"] == 0
    loop._close_core()
    guard.unraisable.clear()
    loop.__init__()
    loop.close()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_child_goes_on_counting(loop, run, grown):
    run(asyncio.sleep(0))
    loop.set_metrics(True)
    parents = loop.metrics()["turns"]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(asyncio.sleep(0.001))
            status = 0 if loop.metrics()["turns"] > parents else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert loop.metrics()["turns"] == parents


# ---------------------------------------------------------------- slow callbacks


@pytest.fixture
def slow(loop):
    """What the hook for callbacks of 10 ms and more was given."""
    found = []
    loop.set_slow_callback_hook(found.append, 0.01)
    return found


def test_slow_callback(loop, run, slow):
    handle = loop.call_soon(time.sleep, 0.01)
    run(asyncio.sleep(0))
    # On a busy machine anything may be slow.
    (call,) = [call for call in slow if call.source is handle]
    assert call.seconds >= 0.01
    assert call.handle is call.source and isinstance(call.handle, asyncio.Handle)
    assert call.task is None and call.call_graph() == ""
    assert f"{call.seconds:.3f} s" in repr(call)


@pytest.mark.parametrize("switch", ["", "tasks"])
def test_slow_task(monkeypatch, loop_factory, switch):
    monkeypatch.setenv("FASTLOOP_DISABLE", switch)
    loop = loop_factory()
    found = []

    async def inner():
        time.sleep(0.01)
        await asyncio.sleep(0)

    async def outer():
        await inner()

    def hook(call):
        found.append((call.task, call.call_graph()))

    loop.set_slow_callback_hook(hook, 0.01)
    task = loop.create_task(outer())
    loop.run_until_complete(task)
    loop.close()
    graph = next(graph for seen, graph in found if seen is task)
    assert "in inner" in graph or "inner()" in graph


def test_slow_protocol(loop, run, slow):
    class Slow(asyncio.Protocol):
        def data_received(self, data):
            time.sleep(0.01)

    async def talk():
        left, right = helpers.socket_pair("unix")
        with right:
            transport, _ = await loop.create_connection(Slow, sock=left)
            right.send(b"x")
            while not any(isinstance(call.source, asyncio.Transport) for call in slow):
                await asyncio.sleep(0)
            transport.close()
            await asyncio.sleep(0)
        return transport

    transport = run(talk())
    assert transport in [call.source for call in slow]


def test_quick_callbacks_are_not_reported(loop, run):
    loop.set_slow_callback_hook(pytest.fail, 50)
    run(asyncio.sleep(0.02))


def test_hook_is_taken_away(loop, run, slow):
    loop.set_slow_callback_hook(None)
    loop.call_soon(time.sleep, 0.01)
    run(asyncio.sleep(0))
    assert slow == []


def test_hook_of_zero_seconds_sees_everything(loop):
    found = []
    loop.set_slow_callback_hook(found.append, 0)
    loop.call_soon(int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert len(found) == 2


@pytest.mark.parametrize("schedule", ["call_soon", "call_soon_threadsafe"])
def test_hook_that_keeps_handles_in_cycles(loop, schedule):
    """The garbage collector knows of them from then on."""

    class Owner:
        def callback(self):
            loop.stop()

    def hook(call):
        if call.handle is not None and isinstance(owner := getattr(call.handle._callback, "__self__", None), Owner):
            owner.handle = call.handle

    def main():
        owner = Owner()
        getattr(loop, schedule)(owner.callback)
        return weakref.ref(owner)

    references = []
    loop.set_slow_callback_hook(hook, 0)
    # Handles that are made in a run.
    loop.call_soon(lambda: references.append(main()))
    gc.disable()
    try:
        loop.run_forever()
        assert references[0]() is not None
    finally:
        gc.enable()
    gc.collect()
    assert references[0]() is None


def test_hook_that_fails(loop, run, contexts):
    def hook(call):
        raise ZeroDivisionError

    loop.set_slow_callback_hook(hook, 0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    context = contexts.take_one()
    assert context["message"] == "Exception in the slow-callback hook"
    assert isinstance(context["exception"], ZeroDivisionError)


def test_hook_that_leaves(loop):
    def hook(call):
        loop.set_slow_callback_hook(None)
        raise KeyboardInterrupt

    loop.set_slow_callback_hook(hook, 0)
    loop.call_soon(int)
    loop.call_soon(loop.stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_forever()


def test_hook_and_debug_mode(loop, run, slow, guard):
    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    loop.call_soon(time.sleep, 0.01)
    run(asyncio.sleep(0))
    assert len(slow) >= 1
    assert [text for text in guard.log.take() if "Executing <Handle sleep" in text]
    loop.set_debug(False)
    handle = loop.call_soon(time.sleep, 0.01)
    run(asyncio.sleep(0))
    assert handle in [call.source for call in slow]
    assert guard.log.take() == []


def test_bad_hooks(loop):
    with pytest.raises(TypeError, match="callable"):
        loop.set_slow_callback_hook(1)
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="negative"):
            loop.set_slow_callback_hook(print, seconds)
    with pytest.raises(TypeError):
        loop.set_slow_callback_hook(print, "1")
    loop.set_slow_callback_hook(print, float("inf"))
    loop.call_soon(loop.stop)
    loop.run_forever()
