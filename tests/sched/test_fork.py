"""fork: a child starts anew and never disturbs its parent."""

import textwrap

import pytest

CHILD = """
def in_child(function):
    '''Run function in a forked child; return its exit status.'''
    # What waits in the buffers, the child would write once more.
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""


@pytest.fixture
def forking(python):
    python.watchdog = False
    return lambda source: python(CHILD + textwrap.dedent(source))


def test_a_child_runs_a_new_loop(forking):
    assert (
        forking("""
        loop = new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        def child():
            own = new_event_loop()
            assert own.run_until_complete(asyncio.sleep(0.01, 5)) == 5
            own.close()
        print(in_child(child), loop.run_until_complete(asyncio.sleep(0.01, "parent")))
        loop.close()
        """)
        == "0 parent\n"
    )


def test_a_fork_inside_a_coroutine(forking):
    assert (
        forking("""
        def child():
            try:
                asyncio.get_running_loop()
            except RuntimeError as exc:
                print(exc)
            own = new_event_loop()
            assert own.run_until_complete(asyncio.sleep(0.01, 5)) == 5
            own.close()
        async def main():
            print(in_child(child))
            await asyncio.sleep(0.01)
            return "parent"
        loop = new_event_loop()
        print(loop.run_until_complete(main()))
        loop.close()
        """)
        == "no running event loop\n0\nparent\n"
    )


def test_a_child_that_closes_the_loop_of_its_parent_does_not_disturb_it(forking):
    assert (
        forking("""
        import socket
        loop = new_event_loop()
        first, second = socket.socketpair()
        got = []
        class Protocol(asyncio.Protocol):
            def data_received(self, data):
                got.append(data)
        async def connect():
            return (await loop.create_connection(Protocol, sock=first))[0]
        transport = loop.run_until_complete(connect())
        seen = []
        other, its_peer = socket.socketpair()
        loop.add_reader(other, lambda: seen.append(other.recv(100)))
        def child():
            loop.close()
        print(in_child(child))
        second.send(b"to the transport")
        its_peer.send(b"to the reader")
        threading.Timer(0.01, loop.call_soon_threadsafe, (seen.append, "from a thread")).start()
        async def main():
            while len(got) < 1 or len(seen) < 2:
                await asyncio.sleep(0.001)
            transport.close()
            await asyncio.sleep(0.01)
        loop.run_until_complete(main())
        print(got, sorted(map(str, seen)))
        loop.remove_reader(other)
        for sock in (second, other, its_peer):
            sock.close()
        loop.close()
        """)
        == "0\n[b'to the transport'] [\"b'to the reader'\", 'from a thread']\n"
    )


def test_a_child_that_just_ends_does_not_disturb_its_parent(forking):
    assert (
        forking("""
        async def main():
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            statuses = [in_child(lambda: None) for _ in range(3)]
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
            return statuses
        loop = new_event_loop()
        print(loop.run_until_complete(main()))
        loop.close()
        """)
        == "[0, 0, 0]\n"
    )


def test_a_fork_in_each_callback_of_a_protocol(forking):
    assert (
        forking("""
        import gc, socket
        SIZE = 1_000_000
        statuses, story = [], []

        def anew():
            gc.collect()
            own = new_event_loop()
            assert own.run_until_complete(asyncio.sleep(0, 5)) == 5
            own.close()

        def use(transport):
            # The standard loop would take the descriptor out of the set of its parent.
            if LOOP == "fastloop":
                transport.pause_reading()
                transport.abort()
                gc.collect()

        def forks(name):
            def method(self, *args):
                if name == "connection_made":
                    self.transport, self.buffer = args[0], bytearray(10)
                statuses.extend((in_child(anew), in_child(lambda: use(self.transport))))
                story.append(name)
                return self.buffer if name == "get_buffer" else None
            return method

        PLAIN = "connection_made", "data_received", "eof_received", "connection_lost", "pause_writing", "resume_writing"
        BUFFERED = "connection_made", "get_buffer", "buffer_updated", "eof_received", "connection_lost"

        class Plain(asyncio.Protocol):
            connection_made, data_received, eof_received, connection_lost = map(forks, PLAIN[:4])
            pause_writing, resume_writing = map(forks, PLAIN[4:])

        class Buffered(asyncio.BufferedProtocol):
            connection_made, get_buffer, buffer_updated, eof_received, connection_lost = map(forks, BUFFERED)

        async def until(wanted):
            while wanted not in story:
                await asyncio.sleep(0.001)

        async def main(kind):
            story.clear()
            near, far = socket.socketpair()
            far.setblocking(False)
            transport, _ = await asyncio.get_running_loop().create_connection(kind, sock=near)
            far.send(b"x")
            await until("data_received" if kind is Plain else "buffer_updated")
            got = 0
            if kind is Plain:
                transport.write(bytes(SIZE))
                while got < SIZE:
                    try:
                        data = far.recv(SIZE)
                        assert data == bytes(len(data))
                        got += len(data)
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                await until("resume_writing")
            far.shutdown(socket.SHUT_WR)
            await until("connection_lost")
            assert far.recv(100) == b""
            far.close()
            return got

        loop = new_event_loop()
        for kind in (Plain, Buffered):
            print(loop.run_until_complete(main(kind)), *dict.fromkeys(story))
        print(set(statuses))
        loop.close()
        """)
        == "1000000 connection_made data_received pause_writing resume_writing eof_received connection_lost\n"
        "0 connection_made get_buffer buffer_updated eof_received connection_lost\n{0}\n"
    )


def test_a_child_may_go_on_with_an_idle_loop_of_its_parent(forking):
    assert (
        forking("""
        loop = new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        def child():
            assert loop.run_until_complete(asyncio.sleep(0.01, "child")) == "child"
            loop.close()
        print(in_child(child), loop.run_until_complete(asyncio.sleep(0.01, "parent")))
        loop.close()
        """)
        == "0 parent\n"
    )


@pytest.mark.fastloop_only("the stock loop's child watches by the epoll of its parent")
def test_a_child_that_closes_what_is_watched_goes_on_with_the_rest(forking):
    """A number that is closed, and one that names a file which cannot be polled."""
    assert (
        forking("""
        import fcntl, socket
        loop = new_event_loop()
        pairs = [socket.socketpair() for _ in range(3)]
        # A number that nothing else gets when the child has closed it.
        near, far = pairs[0]
        pairs[0] = socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, 200)), far
        near.close()
        seen = []
        for number, (near, _) in enumerate(pairs):
            loop.add_reader(near, lambda number=number, near=near: seen.append((number, near.recv(1))))
        loop.run_until_complete(asyncio.sleep(0))
        async def hear(count):
            while len(seen) < count:
                await asyncio.sleep(0)
        def child():
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, pairs[1][0].fileno())
            pairs[0][0].close()
            pairs[2][1].send(b"c")
            loop.run_until_complete(hear(1))
            assert seen == [(2, b"c")], seen
            new, other = socket.socketpair()
            loop.add_reader(new, lambda: seen.append(new.recv(1)))
            other.send(b"n")
            loop.run_until_complete(hear(2))
            assert seen[1] == b"n", seen
            loop.remove_reader(new)
            new.close()
            other.close()
        # What the child reads is gone from the socket that both have.
        print(in_child(child))
        for _, far in pairs:
            far.send(b"p")
        loop.run_until_complete(hear(3))
        print(*(number for number, _ in sorted(seen)))
        for near, far in pairs:
            loop.remove_reader(near)
            near.close()
            far.close()
        loop.close()
        """)
        == "0\n0 1 2\n"
    )


def test_a_child_may_go_on_with_the_loop_in_another_thread(forking):
    """The descriptor for signals, which was in use, can be set by the main thread alone."""
    assert (
        forking("""
        loop = new_event_loop()
        loop.add_signal_handler(signal.SIGUSR1, loop.stop)
        loop.run_until_complete(asyncio.sleep(0))
        def child():
            thread = threading.Thread(target=loop.run_until_complete, args=[asyncio.to_thread(print, "child")])
            thread.start()
            thread.join()
        print(in_child(child))
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        loop.run_forever()
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """)
        == "child\n0\n"
    )


@pytest.mark.fastloop_only("the stock loop's child reads from the socket of its parent")
def test_neither_takes_a_wake_up_of_the_other(forking):
    """One that is lost hangs the test. Threads of both wake the loop that both go on with."""
    assert (
        forking("""
        loop = new_event_loop()
        def hop(rounds):
            def post():
                for _ in range(rounds):
                    loop.call_soon_threadsafe(ran.release)
                    ran.acquire()
                loop.call_soon_threadsafe(loop.stop)
            ran = threading.Semaphore(0)
            thread = threading.Thread(target=post)
            thread.start()
            loop.run_forever()
            thread.join()
        hop(100)
        pid = os.fork()
        if pid == 0:
            hop(1000)
            loop.close()
            loop = new_event_loop()
            hop(100)
            loop.close()
            os._exit(0)
        hop(1000)
        print(os.waitpid(pid, 0)[1])
        hop(100)
        loop.close()
        """)
        == "0\n"
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_from_a_coroutine(python, tmp_path, method):
    script = tmp_path / "program.py"
    name = python.name
    script.write_text(f"""
import asyncio, multiprocessing
def new_event_loop():
    if {name!r} == "stock":
        return asyncio.SelectorEventLoop()
    import fastloop
    return fastloop.new_event_loop()
async def work(queue):
    queue.put(await asyncio.sleep(0.01, "from the child"))
def child(queue):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work(queue))
async def main():
    context = multiprocessing.get_context({method!r})
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(queue.get())
    process.join()
    print(process.exitcode)
    await asyncio.sleep(0.01)
if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
""")
    assert (
        python(
            f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
            if method == "fork"
            else f"os.execv(sys.executable, [sys.executable, {str(script)!r}])",
            stderr=None,
        )
        == "from the child\n0\n"
    )


@pytest.mark.parametrize("child", ["new_event_loop().close(); os._exit(0)", "sys.exit()"], ids=["a loop", "an exit"])
def test_a_child_after_the_loops_end_leaves_the_parents_next_one_alone(forking, child):
    """Both begin with what the closed loop has left, and only one may have it."""
    assert (
        forking(f"""
        def run(main):
            loop = new_event_loop()
            # What is left in the buffer, an exit of the child would write once more.
            print(loop.run_until_complete(main(loop)), flush=True)
            loop.close()
        async def nothing(loop):
            return "nothing"
        run(nothing)
        go, going = os.pipe()
        ended, ending = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(ended)
            os.read(go, 1)
            {child}
        os.close(ending)
        def let_it_end():
            os.write(going, b"x")
            os.read(ended, 1)
        async def main(loop):
            for job in let_it_end, int, int:
                await asyncio.wait_for(loop.run_in_executor(None, job), 20)
            return "woken"
        run(main)
        print(os.waitpid(pid, 0)[1])
        """)
        == "nothing\nwoken\n0\n"
    )


def test_children_between_loops_cost_the_parent_no_descriptors(forking):
    assert (
        forking("""
        def run():
            loop = new_event_loop()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        run()
        counts = set()
        for _ in range(4):
            assert in_child(run) == 0
            run()
            counts.add(len(os.listdir("/dev/fd")))
        print(len(counts))
        """)
        == "1\n"
    )


def test_the_terminal_of_a_child_whose_parent_has_no_standard_input(forking):
    assert (
        forking("""
        new_event_loop().close()
        answer, told = os.pipe()
        os.close(0)
        pid, terminal = os.forkpty()
        if pid == 0:
            os.write(told, repr([os.isatty(number) for number in range(3)]).encode())
            os._exit(0)
        print(os.read(answer, 100).decode(), os.waitpid(pid, 0)[1])
        """)
        == "[True, True, True] 0\n"
    )


@pytest.mark.fastloop_only("the stock loop's child takes what it closes out of the set of its parent")
@pytest.mark.parametrize(
    "child",
    [
        "pass",
        "loop.close()",
        # Not even a descriptor for an epoll set of its own.
        "limit(0)",
        "limit(0); close(); close()",
        # One, but a number that libuv must not have.
        "os.close(0); limit(1)",
        "os.close(0); limit(1); close()",
        "limit(0); run()",
    ],
)
def test_a_child_that_frees_everything_does_not_disturb_its_parent(forking, child):
    assert (
        forking(f"""
        import gc, resource, socket, warnings
        loop = new_event_loop()
        near, far = socket.socketpair()
        got, seen = [], []
        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
            def data_received(self, data):
                got.append(data)
        async def connect():
            await loop.create_connection(Protocol, sock=near)
            await asyncio.sleep(0.001)
        loop.run_until_complete(connect())
        other, its_peer = socket.socketpair()
        loop.add_reader(other, lambda: seen.append(other.recv(100)))
        def limit(number):
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        def failing(function, *args):
            try:
                function(*args)
            except OSError:
                pass
            else:
                raise AssertionError
        def close():
            failing(loop.close)
        def run():
            loop.call_soon(loop.stop)
            failing(loop.run_forever)
        def child():
            global loop, near, connect
            {child}
            # Of __del__(), which calls close(), and in development mode tells that nobody did.
            sys.unraisablehook = lambda unraisable: None
            warnings.simplefilter("ignore", ResourceWarning)
            del loop, near, connect, globals()["Protocol"]
            gc.collect()
        print(in_child(child))
        far.send(b"to the transport")
        its_peer.send(b"to the reader")
        threading.Timer(0.01, loop.call_soon_threadsafe, (seen.append, "from a thread")).start()
        async def main():
            while len(got) < 1 or len(seen) < 2:
                await asyncio.sleep(0.001)
        loop.run_until_complete(main())
        print(got, sorted(map(str, seen)))
        loop.remove_reader(other)
        for sock in (far, other, its_peer):
            sock.close()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        """)
        == "0\n[b'to the transport'] [\"b'to the reader'\", 'from a thread']\n"
    )


def test_a_child_closes_a_loop_that_threads_of_its_parent_were_waking(python):
    # They are not there any more, to be done with what they were in the middle of.
    python.watchdog = False
    output = python(
        textwrap.dedent("""
        import signal, threading, time

        loop = new_event_loop()
        left = 10
        statuses = set()

        def wake():
            while left:
                loop.call_soon_threadsafe(int)
                time.sleep(0)

        def fork():
            global left
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                loop.stop()
                return
            statuses.add(os.waitpid(pid, 0)[1])
            left -= 1
            if left:
                loop.call_later(0.0005, fork)
            else:
                loop.stop()

        parent = os.getpid()
        threads = [threading.Thread(target=wake) for _ in range(2)]
        for thread in threads:
            thread.start()
        loop.call_soon(fork)
        loop.run_forever()
        if os.getpid() != parent:
            loop.close()
            os._exit(0)
        for thread in threads:
            thread.join()
        loop.close()
        print(statuses)
        """),
        stderr=None,
    )
    assert output == "{0}\n"


def test_a_child_uses_the_loop_that_another_thread_of_its_parent_was_running(python, monkeypatch):
    """What belonged to that thread is freed in the child; one of its own may get its number."""
    monkeypatch.setenv("PYTHONMALLOC", "debug")
    python.watchdog = False
    output = python(
        CHILD
        + textwrap.dedent("""
        import contextvars, threading, time

        variable = contextvars.ContextVar("variable", default=0)
        loop = new_event_loop()
        running = threading.Event()

        def schedule(values):
            variable.set(1)
            for _ in range(100):
                handle = loop.call_soon_threadsafe(int)
                values.add(handle._context[variable])

        def child():
            values = set()
            for _ in range(3):
                thread = threading.Thread(target=schedule, args=(values,))
                thread.start()
                thread.join()
            assert values == {1}, values

        thread = threading.Thread(target=loop.run_forever)
        loop.call_soon(running.set)
        thread.start()
        running.wait()
        print(in_child(child))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        """),
        stderr=None,
    )
    assert output == "0\n"
