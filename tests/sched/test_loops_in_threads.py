"""Loops in many threads: at work at once, looked at and cancelled from elsewhere, and left behind by their thread."""

import asyncio
import contextlib
import ctypes
import io
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time

import pytest

from helpers import GIL, socket_pair, turns, until

SCALE = int(os.environ.get("FASTLOOP_STRESS", "1"))
LOOPS = 4


def each_in_a_thread(count, function):
    """Run function(index) in so many threads at once; the first exception is raised here."""
    problems = []

    def work(index):
        try:
            function(index)
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


# ---------------------------------------------------------------- at work at once


def test_loops_of_many_threads_spawn_and_resolve_while_the_main_one_has_signals(loop, run, loop_factory):
    seen = []
    # None that may be asked of the network.
    names = ["localhost", "127.0.0.1", "::1", "localhost"]

    async def work(index):
        inner = asyncio.get_running_loop()
        for number in range(4):
            process, *_ = await asyncio.gather(
                asyncio.create_subprocess_exec(
                    sys.executable, "-S", "-c", f"print({index * 10 + number})", stdout=asyncio.subprocess.PIPE
                ),
                *(inner.getaddrinfo(name, 80, type=socket.SOCK_STREAM) for name in names),
                inner.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST),
                return_exceptions=True,
            )
            output, _ = await process.communicate()
            assert (output, process.returncode) == (b"%d\n" % (index * 10 + number), 0)

    def in_a_loop(index):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(work(index))

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        done = asyncio.Event()
        threads = loop.run_in_executor(None, each_in_a_thread, LOOPS, in_a_loop)
        threads.add_done_callback(lambda _: done.set())
        sent = 0
        while not done.is_set():
            # One at a time: the kernel makes one of two that wait.
            os.kill(os.getpid(), signal.SIGUSR1)
            sent += 1
            await until(lambda sent=sent: len(seen) == sent)
            await work(LOOPS)
        await threads
        loop.remove_signal_handler(signal.SIGUSR1)
        await loop.shutdown_default_executor()

    run(main())
    assert seen


@pytest.mark.timeout(60 * SCALE)
def test_all_tasks_is_asked_by_threads_while_loops_make_and_end_tasks(loop_name, loop_factory):
    """Each answer holds tasks of that loop, and among them the one that is alive all the time."""
    open_loops, looking = {}, [1, 1]

    async def short(dice):
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(0)

    async def main(index):
        dice = random.Random(index)
        open_loops[index] = asyncio.get_running_loop(), asyncio.current_task()
        for _ in range(100 * SCALE):
            tasks = [asyncio.create_task(short(dice)) for _ in range(20)]
            tasks[dice.randrange(20)].cancel()
            await asyncio.wait(tasks)
        await until(lambda: not any(looking))

    def in_a_loop(index):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(index))

    def look(index):
        try:
            while len(open_loops) < 2:
                time.sleep(0.001)
            for _ in range(50 * SCALE):
                for looked_at, task in list(open_loops.values()):
                    found = asyncio.all_tasks(looked_at)
                    assert task in found
                    for other in found:
                        assert other.get_loop() is looked_at and other.get_name()
                        # Without a GIL, 3.13's own asyncio crashes when another thread asks for these.
                        if GIL or loop_name != "stock":
                            assert "Task" in repr(other)
                            other.get_stack(limit=1)
        finally:
            looking[index] = 0

    each_in_a_thread(4, lambda index: in_a_loop(index) if index < 2 else look(index - 2))
    open_loops.clear()


def look_at_task(task, dice):
    """Ask a task for one of the things that change as it runs, or change one."""
    dice.choice(
        [
            lambda: repr(task),
            lambda: task.get_stack(limit=2),
            lambda: task.print_stack(file=io.StringIO()),
            lambda: task.set_name(f"number {dice.random()}"),
            lambda: task.get_name(),
            lambda: (task.get_coro(), task.get_context(), task._coro),
            lambda: (task._fut_waiter, task._callbacks, task._state),
            lambda: (task.done(), task.cancelled(), task.cancelling(), task.uncancel()),
            lambda: (task._result, task._exception, task._cancel_message, task._source_traceback),
            lambda: setattr(task, "_cancel_message", str(dice.random())),
            lambda: (task.add_done_callback(id), task.remove_done_callback(id)),
        ]
    )()


@pytest.mark.left_out(GIL, reason="with a GIL three threads that never wait leave the loop hardly any of it")
@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("without a GIL, 3.13's own asyncio crashes")
@pytest.mark.timeout(100 * SCALE)
def test_tasks_are_looked_at_by_other_threads_while_they_run(loop, run):
    async def leaf(count):
        for _ in range(count):
            await asyncio.sleep(0)

    async def work(number):
        task = asyncio.current_task()
        task.set_name(f"task {number}")
        for count in range(4):
            await leaf(count)
        future = loop.create_future()
        loop.call_soon(future.set_result, object())
        await future
        assert not task.done() and repr(task) and task.get_stack() and task.get_name()

    async def main():
        tasks, over = [], threading.Event()

        def look(index):
            dice = random.Random(index)
            while not over.is_set():
                for task in list(tasks):
                    # linecache, by which a stack is printed, is not made for threads.
                    with contextlib.suppress(KeyError):
                        look_at_task(task, dice)
                time.sleep(0.0001)

        threads = loop.run_in_executor(None, each_in_a_thread, 3, look)
        for first in range(0, 200 * SCALE, 20):
            tasks[:] = [loop.create_task(work(first + number)) for number in range(20)]
            await asyncio.gather(*tasks)
        over.set()
        await threads
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.left_out(GIL, reason="with a GIL such a task starts in the wrong thread, as the standard loop's does")
@pytest.mark.left_out(not hasattr(asyncio, "eager_task_factory"), reason="new in 3.12")
@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(60 * SCALE)
def test_eager_tasks_made_by_other_threads_start_in_the_thread_of_their_loop(loop, run):
    started = []

    async def short():
        started.append(threading.get_ident())
        await asyncio.sleep(0)

    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        made = []
        threads = loop.run_in_executor(
            None, each_in_a_thread, 3, lambda _: made.extend(loop.create_task(short()) for _ in range(100 * SCALE))
        )
        while not threads.done():
            await asyncio.gather(*(short() for _ in range(10)))
        await threads
        await asyncio.gather(*made)
        assert len(made) == 300 * SCALE
        await loop.shutdown_default_executor()

    run(main())
    assert set(started) == {threading.get_ident()}


@pytest.mark.left_out(not hasattr(asyncio, "format_call_graph"), reason="new in 3.14")
@pytest.mark.left_out(not GIL, reason="without a GIL, the frames of a coroutine that runs elsewhere cannot be walked")
@pytest.mark.timeout(100 * SCALE)
def test_call_graphs_are_printed_by_threads_while_the_loop_runs(loop, run):
    async def leaf():
        for _ in range(3):
            await asyncio.sleep(0)

    async def branch():
        await asyncio.gather(leaf(), leaf())

    async def trunk(over):
        while not over.is_set():
            await asyncio.gather(branch(), branch())

    async def main():
        over = threading.Event()
        task = loop.create_task(trunk(over))

        def look(index):
            try:
                for _ in range(100 * SCALE):
                    assert "Task" in asyncio.format_call_graph(task)
                    for other in asyncio.all_tasks(loop):
                        asyncio.capture_call_graph(other)
            finally:
                over.set()

        await loop.run_in_executor(None, each_in_a_thread, 2, look)
        await task
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
@pytest.mark.parametrize("wait", ["sleep", "future", "queue", "job", "task"])
def test_tasks_cancelled_by_other_threads_end(loop, run, wait):
    """Whatever a task is about to do when a wrong thread cancels it."""
    ended = [0] * (1000 * SCALE)

    async def inner():
        await asyncio.sleep(3600)

    async def body(number, queue):
        try:
            if wait == "sleep":
                while True:
                    await asyncio.sleep(0)
            elif wait == "future":
                await loop.create_future()
            elif wait == "queue":
                await queue.get()
            elif wait == "job":
                while True:
                    await loop.run_in_executor(None, abs, -1)
            else:
                await loop.create_task(inner())
        finally:
            ended[number] += 1

    async def main():
        queue = asyncio.Queue()
        for first in range(0, len(ended), 100):
            tasks = [loop.create_task(body(first + number, queue)) for number in range(100)]
            await asyncio.sleep(0)

            def cancel(index, tasks=tasks):
                dice = random.Random(index)
                for _ in range(100):
                    tasks[dice.randrange(100)].cancel("from elsewhere")
                for task in tasks[index::LOOPS]:
                    task.cancel()

            threads = loop.run_in_executor(None, each_in_a_thread, LOOPS, cancel)
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, asyncio.CancelledError)
            await threads
        await loop.shutdown_default_executor()

    run(main())
    assert ended == [1] * len(ended)


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
@pytest.mark.parametrize("through", ["nothing", "task"])
def test_a_task_cancelled_by_another_thread_as_it_goes_on_to_wait_for_something_else(loop, run, through):
    """Completing what it awaits takes a while, and that is when the other thread cancels."""

    async def inner(future):
        await future

    async def waits(first, second):
        await (first if through == "nothing" else loop.create_task(inner(first)))
        await second

    async def main():
        for _ in range(100 * SCALE):
            first, second = loop.create_future(), loop.create_future()
            task = loop.create_task(waits(first, second))
            await turns(3)
            for _ in range(3000):
                first.add_done_callback(bool)
            begun = []

            def cancel(begun=begun, task=task):
                # An Event would take too long to wake it.
                while len(begun) < 2:
                    begun or begun.append("thread")
                task.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            await until(lambda begun=begun: begun)
            begun.append("loop")
            # It may be quicker, and has cancelled what the task awaits.
            with contextlib.suppress(asyncio.InvalidStateError):
                first.set_result(None)
            # The loop is not woken for it.
            await until(lambda task=task: task.done())
            assert task.cancelled()
            thread.join()

    run(main())


# ---------------------------------------------------------------- what is not made for other threads


class Answers(asyncio.Protocol):
    """Sends back what it is sent, and is in `live` as long as its connection."""

    def __init__(self, live):
        self.live = live

    def connection_made(self, transport):
        self.transport = transport
        self.live[transport] = True

    def data_received(self, data):
        self.transport.write(data)

    def connection_lost(self, error):
        del self.live[self.transport]


def meddle(transport, dice):
    """Do one of the things to a transport that only its loop's thread should do."""
    seldom = dice.random() < 0.05
    dice.choice(
        [
            lambda: transport.write(b"x" * dice.choice((1, 100, 100_000))),
            lambda: transport.writelines([b"a", bytearray(1000)]),
            lambda: seldom and transport.write_eof(),
            lambda: seldom and transport.close(),
            lambda: seldom and transport.abort(),
            lambda: seldom and transport._force_close(None),
            lambda: seldom and transport._fatal_error(OSError()),
            lambda: (transport.pause_reading(), transport.resume_reading()),
            lambda: (transport.is_closing(), transport.is_reading(), transport.get_write_buffer_size()),
            lambda: transport.get_extra_info(dice.choice(("socket", "peername", "sockname", "compression"))),
            lambda: transport.set_write_buffer_limits(high=dice.randrange(1, 1000)),
            lambda: (transport.get_write_buffer_limits(), transport._buffer, transport._extra, transport._sock),
            lambda: transport.set_protocol(transport.get_protocol()),
            lambda: (transport._protocol, transport._loop, transport._server),
            lambda: repr(transport),
            lambda: setattr(transport, "label", dice.random()),
        ]
    )()


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
def test_transports_used_by_wrong_threads(loop, run, contexts, caplog):
    """What becomes of the bytes is another matter: nothing crashes, and the loop goes on."""
    live, ended = {}, threading.Event()
    caplog.set_level("CRITICAL")

    def meddle_until_the_end(index):
        dice = random.Random(index)
        while not ended.is_set():
            transports = list(live)
            if not transports:
                time.sleep(0.001)
                continue
            try:
                meddle(dice.choice(transports), dice)
            except (AttributeError, RuntimeError, TypeError):
                pass  # Closed, or closed for writing.

    async def use(address):
        reader, writer = await asyncio.open_connection(*address)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            for _ in range(200):
                writer.write(b"y" * 1000)
                if not await asyncio.wait_for(reader.read(100_000), 0.05):
                    break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def main():
        server = await loop.create_server(lambda: Answers(live), "127.0.0.1", 0)
        threads = loop.run_in_executor(None, each_in_a_thread, LOOPS - 1, meddle_until_the_end)
        for _ in range(10 * SCALE):
            await asyncio.gather(*(use(server.sockets[0].getsockname()) for _ in range(4)))
        ended.set()
        await threads
        server.close()
        for transport in list(live):
            transport.abort()
        await until(lambda: not live)
        await loop.shutdown_default_executor()

    run(main())
    contexts.take()


@pytest.mark.left_out(not GIL, reason="its thread keeps the GIL")
@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.parametrize("end", ["abort", "_force_close", "_fatal_error"])
def test_a_wrong_thread_ends_a_connection_that_is_about_to_be_read(loop, run, end):
    """What TLS does when a wrong thread aborts it. The poll has found the data, and waits for the GIL to read them."""
    ours, theirs = socket_pair("tcp")
    send = ctypes.PyDLL(None).send  # It keeps the GIL.

    def meddle_at_once(transport):
        interval = sys.getswitchinterval()
        time.sleep(0.05)  # Until the loop sleeps.
        sys.setswitchinterval(1000)
        try:
            send(theirs.fileno(), b"x", 1, 0)
            start = time.perf_counter()
            while time.perf_counter() - start < 0.05:
                pass
            getattr(transport, end)(*{"abort": (), "_force_close": (None,), "_fatal_error": (OSError(),)}[end])
        finally:
            sys.setswitchinterval(interval)

    async def main():
        lost = loop.create_future()

        class Protocol(asyncio.Protocol):
            def connection_lost(self, error):
                lost.set_result(error)

        transport, _ = await loop.create_connection(Protocol, sock=ours)
        thread = threading.Thread(target=meddle_at_once, args=(transport,))
        thread.start()
        assert isinstance(await lost, OSError if end == "_fatal_error" else type(None))
        thread.join()

    with theirs:
        run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
def test_wrong_threads_make_connections(loop, run):
    """They get asyncio's own transport, which does not touch what is the loop's."""
    lines = []

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            lines.append(data)

    async def main():
        pairs = [socket_pair("tcp") for _ in range(LOOPS)]
        made = []

        def connect(index):
            made.append(loop._make_socket_transport(pairs[index][0], Protocol()))
            pairs[index][1].sendall(b"x\n")

        await loop.run_in_executor(None, each_in_a_thread, LOOPS, connect)
        await until(lambda: len(lines) == LOOPS)
        for transport in made:
            assert type(transport) is asyncio.selector_events._SelectorSocketTransport
            assert await loop.sendfile(transport, file) == 2
            transport.write(b"y\n")
            transport.close()
        for ours, theirs in pairs:
            await until(lambda ours=ours: ours.fileno() == -1)
            assert theirs.makefile("rb").read() == b"f\ny\n"
            theirs.close()
        await loop.shutdown_default_executor()

    with tempfile.TemporaryFile() as file:
        file.write(b"f\n")
        file.flush()
        run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
def test_a_wrong_thread_that_wrote_begins_to_send_a_file(loop, run):
    """Its writes are sent by the loop's thread, whatever it does next."""
    size = 5_000_000

    async def main():
        ours, theirs = socket_pair("tcp")
        theirs.setblocking(True)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        sending = loop.sendfile(transport, file)

        def write_and_begin():
            transport.write(bytes(size))
            return sending.send(None)

        await loop.run_in_executor(None, write_and_begin)
        with theirs.makefile("rb") as stream:
            assert await loop.run_in_executor(None, stream.read, size) == bytes(size)
        sending.close()
        transport.abort()
        theirs.close()
        await loop.shutdown_default_executor()

    with tempfile.TemporaryFile() as file:
        run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
def test_a_connection_begun_before_the_run_is_not_finished_by_a_wrong_thread(loop, run):
    async def main():
        await until(waiter.done)
        with pytest.raises(RuntimeError, match="runs in another thread"):
            await loop.run_in_executor(None, connecting.send, None)
        await loop.shutdown_default_executor()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = loop.create_connection(asyncio.Protocol, *listener.getsockname())
        waiter = connecting.send(None)
        run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_what_wrong_threads_write_arrives(loop, run, authority, secure):
    """Each thread's lines are complete and in order."""
    lines = 500 * SCALE

    async def main():
        ours, theirs = socket_pair("tcp")
        protocol = asyncio.StreamReaderProtocol(reader := asyncio.StreamReader())
        (transport, _), (peer, _) = await asyncio.gather(
            loop.connect_accepted_socket(asyncio.Protocol, ours, ssl=authority.server if secure else None),
            loop.create_connection(
                lambda: protocol,
                sock=theirs,
                ssl=authority.client if secure else None,
                server_hostname="localhost" if secure else None,
            ),
        )

        def write(index):
            line = bytearray()
            for number in range(lines):
                # The buffer is the thread's again as soon as write() returns.
                line[:] = b"%d %d\n" % (index, number)
                transport.write(line)

        threads = loop.run_in_executor(None, each_in_a_thread, LOOPS, write)
        counts = [0] * LOOPS
        for _ in range(LOOPS * lines):
            index, number = map(int, (await reader.readline()).split())
            assert number == counts[index]
            counts[index] += 1
        await threads
        transport.close()
        assert await reader.read() == b""
        peer.close()
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
def test_a_stream_is_read_by_wrong_threads(loop, run):
    """Each byte goes to one of them."""
    size, taken, over = 2_000_000 * SCALE, [0] * LOOPS, threading.Event()

    def read(reader, index):
        dice = random.Random(index)
        while not over.is_set():
            size = dice.choice((1, 100, 100_000))
            coroutine = dice.choice((reader.read, reader.readexactly))(size)
            try:
                coroutine.send(None)
            except StopIteration as end:
                taken[index] += len(end.value)
            except RuntimeError as exc:
                assert "another coroutine is already waiting" in str(exc)
            else:
                # It would wait, for the loop that is another thread's.
                coroutine.close()

    async def main():
        ours, theirs = socket_pair("tcp")
        reader, writer = await asyncio.open_connection(sock=theirs)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        threads = loop.run_in_executor(None, each_in_a_thread, LOOPS, lambda index: read(reader, index))
        for _ in range(size // 10_000):
            transport.write(bytes(10_000))
            await asyncio.sleep(0)
        await until(lambda: sum(taken) >= size)
        over.set()
        await threads
        assert sum(taken) == size
        transport.close()
        writer.close()
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
def test_descriptors_watched_by_wrong_threads(loop, run):
    def work(index):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(20 * SCALE):
                arrived = threading.Event()
                loop.add_reader(ours, arrived.set)
                loop.add_writer(theirs, int)
                theirs.send(b"x")
                assert arrived.wait(30)
                assert loop.remove_reader(ours) and loop.remove_writer(theirs)
                ours.recv(1)

    async def main():
        await loop.run_in_executor(None, each_in_a_thread, LOOPS, work)
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
@pytest.mark.timeout(100 * SCALE)
def test_sockets_of_one_loop_awaited_on_another(loop, run, loop_factory):
    """What needs no wait is done; what needs one ends as every future of another loop does."""

    async def use(index):
        ours, theirs = socket_pair("unix")
        with ours, theirs:
            for _ in range(100 * SCALE):
                await loop.sock_sendall(ours, b"x")
                assert await loop.sock_recv(theirs, 10) == b"x"
                with pytest.raises(RuntimeError, match="attached to a different loop"):
                    await loop.sock_recv(theirs, 10)
                # Nobody takes it away; it would read what comes next.
                loop.remove_reader(theirs)

    def in_a_loop(index):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(use(index))

    async def main():
        ours, theirs = socket_pair("unix")
        with ours, theirs:
            threads = loop.run_in_executor(None, each_in_a_thread, LOOPS, in_a_loop)
            while not threads.done():
                waiting = loop.create_task(loop.sock_recv(theirs, 10))
                await asyncio.sleep(0)
                await loop.sock_sendall(ours, b"y")
                assert await waiting == b"y"
        await threads
        await loop.shutdown_default_executor()

    run(main())


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop is not made for this")
def test_datagrams_sent_by_wrong_threads(loop, run):
    class Counts(asyncio.DatagramProtocol):
        received = 0

        def datagram_received(self, data, address):
            Counts.received += 1

    async def main():
        receiver, _ = await loop.create_datagram_endpoint(Counts, ("127.0.0.1", 0))
        address = receiver.get_extra_info("sockname")
        sender, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=address)

        def send(index):
            for _ in range(200 * SCALE):
                sender.sendto(b"x")
                if index == 0:
                    sender.get_write_buffer_size()
                    repr(sender)

        await loop.run_in_executor(None, each_in_a_thread, LOOPS, send)
        await until(lambda: Counts.received > 0)
        sender.close()
        receiver.close()
        await loop.shutdown_default_executor()

    run(main())


# ---------------------------------------------------------------- left behind


def leave(loop, tasks):
    """Run a loop in this thread and go away from it, with something of each kind open."""

    async def main():
        async def echo(reader, writer):
            writer.write(await reader.read(100))
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        assert await reader.read(100) == b"x"
        tasks.append(loop.create_task(asyncio.sleep(3600)))
        tasks.append(loop.create_task(asyncio.to_thread(int, "5")))
        loop.call_later(3600, print, "never")
        await asyncio.sleep(0)
        return server, writer

    return loop.run_until_complete(main())


@pytest.mark.parametrize("then", ["run on", "run on in a third thread"])
def test_a_loop_whose_thread_has_died_lives_on(loop_factory, then):
    loop, tasks, opened = loop_factory(), [], []
    each_in_a_thread(1, lambda _: opened.extend(leave(loop, tasks)))

    async def end():
        server, writer = opened
        # The standard loop of 3.14 does not find the tasks that a thread left behind.
        assert asyncio.all_tasks(loop) >= ({tasks[0]} if sys.version_info < (3, 14) else {asyncio.current_task()})
        assert await tasks[1] == 5
        tasks[0].cancel()
        await asyncio.wait(tasks)
        writer.close()
        server.close()
        await asyncio.sleep(0.01)
        await loop.shutdown_default_executor()

    if then == "run on":
        loop.run_until_complete(end())
    else:
        each_in_a_thread(1, lambda _: loop.run_until_complete(end()))
    loop.close()
    opened.clear()


@pytest.mark.fastloop_only("what the stock loop leaves open depends on the version")
def test_a_loop_that_died_with_its_thread_is_freed(python):
    source = """
        import gc, logging, warnings, weakref
        logging.disable()
        warnings.simplefilter("ignore")

        async def main(loop):
            async def echo(reader, writer):
                writer.write(await reader.read(100))
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"x")
            assert await reader.read(100) == b"x"
            loop.create_task(asyncio.sleep(3600))
            loop.create_task(asyncio.to_thread(time.sleep, 0.01))
            loop.call_later(3600, print, "never")
            await asyncio.sleep(0)

        def work():
            loop = new_event_loop()
            loops.append(weakref.ref(loop))
            loop.run_until_complete(main(loop))

        loops = []
        for _ in range(3):
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        # Each has a job under way yet, whose worker ends in its own time.
        deadline = time.monotonic() + 60
        while any(loop() is not None for loop in loops) and time.monotonic() < deadline:
            time.sleep(0.01)
            gc.collect()
        print(len(loops), sum(loop() is not None for loop in loops))
    """
    assert python(source, stderr=None) == "12 0\n"


DAEMONS = {
    "callbacks": """
        def again():
            loop.call_soon(again)
        again()
        started.set()
        await asyncio.sleep(3600)
    """,
    "sleeps": """
        started.set()
        while True:
            await asyncio.gather(*(asyncio.sleep(0.0001) for _ in range(10)))
    """,
    "an idle loop": """
        loop.call_soon(started.set)
        await asyncio.sleep(3600)
    """,
    "streams": """
        async def echo(reader, writer):
            while data := await reader.read(100):
                writer.write(data)
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while True:
            writer.write(b"x")
            await reader.read(100)
            started.set()
    """,
    "readers": """
        one, other = socket.socketpair()
        one.setblocking(False)
        other.setblocking(False)
        while True:
            await loop.sock_sendall(one, b"x")
            await loop.sock_recv(other, 100)
            started.set()
    """,
    "calls from other threads": """
        def call():
            while True:
                loop.call_soon_threadsafe(started.set)
        threading.Thread(target=call, daemon=True).start()
        await asyncio.sleep(3600)
    """,
}


@pytest.mark.parametrize("busy", DAEMONS)
def test_daemon_threads_run_loops_when_the_interpreter_ends(python, busy, monkeypatch):
    # A thread that the end of the interpreter stops inside a call takes with it what that call has made: lost for good.
    monkeypatch.setenv("ASAN_OPTIONS", f"{os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0".lstrip(":"))
    source = f"""
    import socket
    async def main(loop, started):
    {DAEMONS[busy]}
    def work(started):
        loop = new_event_loop()
        loop.run_until_complete(main(loop, started))
    for _ in range(3):
        started = threading.Event()
        threading.Thread(target=work, args=(started,), daemon=True).start()
        assert started.wait(30)
    print("end of main", flush=True)
    """
    for _ in range(3):
        assert python("\n".join(line[4:] for line in source.splitlines()), stderr=None) == "end of main\n"


# ---------------------------------------------------------------- without a GIL


@pytest.mark.left_out(GIL, reason="needs a free-threaded Python")
def test_loops_of_two_threads_run_at_the_same_time(loop_factory):
    """Two callbacks that wait for each other in turn, each without ever letting go of its thread's state."""
    turns = [0, 0]
    # Where others keep the processors busy, each costs a slice of their time.
    rounds = 100

    async def main(index):
        for number in range(1, rounds + 1):
            turns[index] = number
            await asyncio.sleep(0)
            while turns[1 - index] < number:
                pass

    def in_a_loop(index):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(index))

    each_in_a_thread(2, in_a_loop)
    assert turns == [rounds, rounds]
