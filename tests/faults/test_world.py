"""A world that fails, beside a server under load: peers that vanish or stall, a full disk, children and signals without
end, clocks that step, a resolver that is slow.

What is wrong is made for real, with the kernel's own means: a full receive buffer, a tmpfs of some pages, a network
namespace with a resolver in it. The error reaches the protocol or future that it belongs to, the other connections go
on, and nothing is left behind.
"""

import errno
import os
import shutil
import subprocess

import pytest

#: A server and its clients, in each program below; `async with load() as count:` runs them beside what it does.
LOAD = """
import contextlib, gc, socket, ssl, subprocess

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)

@contextlib.asynccontextmanager
async def load(clients=10):
    '''Echo clients that go round while the body runs: none of them may fail, and all must get on.'''
    loop = asyncio.get_running_loop()
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    counts = [0] * clients
    stopped = asyncio.Event()

    async def client(number):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not stopped.is_set():
            message = b"%d %d," % (number, counts[number]) * 50
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
            counts[number] += 1
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    async def all_get_on():
        before = list(counts)
        await until(lambda: all(now > then + 2 for now, then in zip(counts, before)))

    running = [asyncio.ensure_future(client(number)) for number in range(clients)]
    await all_get_on()
    open_before, tasks_before = descriptors(), len(asyncio.all_tasks())
    yield all_get_on
    await all_get_on()
    for _ in range(1000):
        gc.collect()
        if descriptors() <= open_before:
            break
        await asyncio.sleep(0.005)
    assert descriptors() <= open_before, "descriptors are left"
    assert len(asyncio.all_tasks()) == tasks_before, asyncio.all_tasks()
    stopped.set()
    await asyncio.gather(*running)
    server.close()
    await server.wait_closed()
    assert reports == [], reports

def run(main):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 70))
"""


def test_a_peer_that_acknowledges_nothing_any_more(python):
    """ETIMEDOUT: it does not read, its buffer is full, and the kernel gives up after TCP_USER_TIMEOUT."""
    output = python(
        LOAD
        + """
class Sender(asyncio.Protocol):
    def connection_made(self, transport):
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        self.paused = False
        transport.write(b"x" * 20_000_000)
        self.lost = asyncio.get_running_loop().create_future()
        made.append(self)
    def pause_writing(self):
        self.paused = True
    def connection_lost(self, error):
        self.lost.set_result(error)

made = []

async def main():
    loop = asyncio.get_running_loop()
    async with load() as all_get_on:
        server = await loop.create_server(Sender, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        deaf = socket.create_connection(address)
        await until(lambda: made)
        await all_get_on()
        print(made[0].paused, repr(await made[0].lost))
        # The same by a stream: drain() ends with it.
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        try:
            while True:
                writer.write(b"x" * 1_000_000)
                await writer.drain()
        except OSError as exc:
            print("drain:", repr(exc))
        try:
            await reader.read()
        except OSError as exc:
            print("read:", repr(exc))
        writer.close()
        try:
            await writer.wait_closed()
        except OSError as exc:
            print("wait_closed:", repr(exc))
        deaf.close()
        made.clear()
        server.close()

listening = socket.create_server(("127.0.0.1", 0))
run(main)
listening.close()
"""
    )
    error = "TimeoutError(110, 'Connection timed out')"
    first, *others = output.splitlines()
    assert first == f"True {error}"
    # Which of them is told first is the kernel's choice.
    assert others[0] in (f"drain: {error}", "drain: ConnectionResetError('Connection lost')")
    assert f"read: {error}" in others


def test_a_connection_that_nobody_accepts(python):
    """ETIMEDOUT while connecting: the queue of the listener is full, and the kernel gives up after one more attempt."""
    output = python(
        LOAD
        + """
async def main():
    loop = asyncio.get_running_loop()
    async with load() as all_get_on:
        with socket.socket() as listener, contextlib.ExitStack() as stack:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            for _ in range(4):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(address)
            await all_get_on()
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
            try:
                await loop.sock_connect(sock, address)
            except OSError as exc:
                print(type(exc).__name__, exc.errno, str(exc).replace(str(address[1]), "PORT"))
            # A time of one's own ends it earlier.
            for make in (
                lambda: asyncio.wait_for(asyncio.open_connection(*address), 0.1),
                lambda: asyncio.wait_for(loop.create_connection(Echo, *address, happy_eyeballs_delay=0.01), 0.1),
            ):
                try:
                    await make()
                except TimeoutError as exc:
                    print(repr(exc))

run(main)
"""
    )
    assert output.splitlines() == [
        "TimeoutError 110 [Errno 110] Connect call failed ('127.0.0.1', PORT)",
        "TimeoutError()",
        "TimeoutError()",
    ]


TLS = """
async def main():
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CHAIN, KEY)
    context.num_tickets = 0
    trusting = ssl.create_default_context(cafile=AUTHORITY)
    made = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport, self.data = transport, b""
            self.lost = loop.create_future()
            made.append(self)
        def data_received(self, data):
            self.data += data
            if data == b"ping":
                self.transport.write(b"pong")
        def connection_lost(self, error):
            self.lost.set_result(error)

    class Peer:
        '''A client by hand: what it encrypts is sent when, and as far as, the test says.'''
        def __init__(self):
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = trusting.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
            self.sock = socket.socket()
            self.sock.setblocking(False)
        async def connect(self):
            await loop.sock_connect(self.sock, address)
        async def flush(self):
            await loop.sock_sendall(self.sock, self.outgoing.read())
        async def send_half_a_record(self):
            self.tls.write(b"x" * 16000)
            await loop.sock_sendall(self.sock, self.outgoing.read()[:8000])
        async def shake(self):
            await self.connect()
            await self.until_done(self.tls.do_handshake)
        async def until_done(self, call):
            while True:
                try:
                    result = call()
                    await self.flush()
                    return result
                except ssl.SSLWantReadError:
                    await self.flush()
                    data = await loop.sock_recv(self.sock, 65536)
                    if not data:
                        return None
                    self.incoming.write(data)

    options = dict(ssl=context, ssl_handshake_timeout=HANDSHAKE, ssl_shutdown_timeout=1)
    async with load() as all_get_on:
        server = await loop.create_server(Server, "127.0.0.1", 0, **options)
        address = server.sockets[0].getsockname()
BODY
        made.clear()
        server.close()

run(main)
"""


@pytest.fixture
def tls_program(python, certificate_files):
    def run(body, stderr="", handshake=30):
        names = "".join(f"{name} = {str(path)!r}\n" for name, path in certificate_files.items())
        names += f"HANDSHAKE = {handshake}\n"
        return python(LOAD + names + TLS.replace("BODY\n", body), stderr=stderr)

    return run


@pytest.fixture
def certificate_files(authority, tmp_path):
    issued = authority.authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return {"CHAIN": chain, "KEY": key, "AUTHORITY": authority.certificate}


def test_a_peer_that_stalls_inside_a_record(tls_program):
    """Of 16,000 bytes a half comes, then nothing: no data yet, no error; with the rest all of it is there."""
    output = tls_program("""
        peers = [Peer() for _ in range(5)]
        for peer in peers:
            await peer.shake()
        await until(lambda: len(made) == 5)
        rests = []
        for number, peer in enumerate(peers):
            peer.tls.write(b"%d" % number * 16000)
            record = peer.outgoing.read()
            # In the header, after it, in the middle, and before the last byte.
            cut = (3, 5, 6, len(record) // 2, len(record) - 1)[number]
            await loop.sock_sendall(peer.sock, record[:cut])
            rests.append(record[cut:])
        await all_get_on()
        print([len(protocol.data) for protocol in made])
        # The server can write to one that stalls.
        for protocol in made:
            protocol.transport.write(b"still there?")
        for peer in peers:
            print(await peer.until_done(lambda: peer.tls.read(100)))
        for peer, rest in zip(peers, rests):
            await loop.sock_sendall(peer.sock, rest)
        await until(lambda: sum(len(protocol.data) for protocol in made) == 80000)
        print(sorted(protocol.data[:1] for protocol in made), {len(set(protocol.data)) for protocol in made})
        for peer in peers:
            peer.sock.close()
        print([await protocol.lost for protocol in made])
""")
    assert output.splitlines() == [
        "[0, 0, 0, 0, 0]",
        *["b'still there?'"] * 5,
        "[b'0', b'1', b'2', b'3', b'4'] {1}",
        "[None, None, None, None, None]",
    ]


def test_a_peer_that_vanishes_inside_a_record(tls_program):
    output = tls_program("""
        for reset in (False, True):
            peer = Peer()
            await peer.shake()
            await until(lambda: made)
            await peer.send_half_a_record()
            await all_get_on()
            if reset:
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
            peer.sock.close()
            print(repr(await made[0].lost), len(made[0].data))
            made.clear()
""")
    assert output.splitlines() == ["None 0", "ConnectionResetError(104, 'Connection reset by peer') 0"]


def test_closing_a_connection_whose_peer_stalls_inside_a_record(tls_program):
    """No close_notify will come: the shutdown's time ends it."""
    output = tls_program("""
        peer = Peer()
        await peer.shake()
        await until(lambda: made)
        await peer.send_half_a_record()
        await all_get_on()
        made[0].transport.close()
        print(repr(await made[0].lost))
        peer.sock.close()
""")
    assert output == "TimeoutError('SSL shutdown timed out')\n"


def test_a_peer_that_stalls_inside_its_handshake(tls_program):
    """It is cut off after the time of the handshake, and never seen by the protocol; others shake hands meanwhile."""
    output = tls_program("""
        stalled = Peer()
        await stalled.connect()
        try:
            stalled.tls.do_handshake()
        except ssl.SSLWantReadError:
            hello = stalled.outgoing.read()
        await loop.sock_sendall(stalled.sock, hello[:100])
        other = Peer()
        await other.shake()
        other.tls.write(b"ping")
        await other.flush()
        print(await other.until_done(lambda: other.tls.read(10)))
        try:
            print(await loop.sock_recv(stalled.sock, 100))
        except ConnectionResetError:
            print(b"")
        print(len(made))
        other.sock.close()
        stalled.sock.close()
        await made[0].lost
""", handshake=2)  # fmt: skip
    assert output.splitlines() == ["b'pong'", "b''", "1"]


def test_a_storm_of_sigchld(python):
    """Children end by the dozen while a thread sends the signal without end: each status is right, none is lost."""
    output = python(
        LOAD
        + """
async def child(number):
    process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number % 50}", stdin=subprocess.DEVNULL)
    return await process.wait()

async def main():
    loop = asyncio.get_running_loop()
    heard = []
    loop.add_signal_handler(signal.SIGCHLD, heard.append, 1)
    over = threading.Event()
    def storm():
        while not over.wait(0.0005):
            os.kill(os.getpid(), signal.SIGCHLD)
    thread = threading.Thread(target=storm)
    async with load() as all_get_on:
        thread.start()
        for _ in range(4):
            print(await asyncio.gather(*map(child, range(25))) == list(range(25)))
        await all_get_on()
        over.set()
        await asyncio.to_thread(thread.join)
    print(len(heard) > 100)
    loop.remove_signal_handler(signal.SIGCHLD)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child is left")

run(main)
"""
    )
    assert output.splitlines() == ["True"] * 5 + ["no child is left"]


# ---------------------------------------------------------------- clocks


@pytest.fixture(scope="session")
def clock(built):
    """The library that makes clocks step, built for this run."""
    return built("clock")


@pytest.fixture
def stepped(python, clock, preload):
    """Run a program in which step(seconds) moves the wall clock, sleep_of_machine(seconds) the monotonic one, and with
    slow_clock(seconds) each look at a clock takes as long."""
    preload(clock)
    # The watchdog takes its time from the clock that steps.
    python.watchdog = False
    head = """
import ctypes
def step(seconds):
    ctypes.CDLL(None).clock_step(0, ctypes.c_longlong(seconds))
def sleep_of_machine(seconds):
    ctypes.CDLL(None).clock_step(1, ctypes.c_longlong(seconds))
def slow_clock(seconds):
    ctypes.CDLL(None).clock_delay(ctypes.c_long(round(seconds * 1e9)))
"""
    return lambda text: python(LOAD + head + text)


def test_the_wall_clock_steps(stepped):
    """Timers, timeouts and executors follow the monotonic clock alone."""
    output = stepped("""
async def main():
    loop = asyncio.get_running_loop()
    fired = []
    async with load() as all_get_on:
        began, wall = loop.time(), time.time()
        timers = [loop.call_later(0.02 * number, fired.append, number) for number in range(20)]
        for seconds in (3600, -7200, 10**8, -10**8, 3600):
            step(seconds)
            assert asyncio.current_task() is not None
            await all_get_on()
            try:
                await asyncio.wait_for(asyncio.sleep(30), 0.05)
            except TimeoutError:
                print("timeout")
            print(await asyncio.wait_for(asyncio.to_thread(len, "job"), 30))
            child = await asyncio.create_subprocess_exec("true")
            print(await child.wait())
        await until(lambda: len(fired) == 20)
        assert loop.time() - began < 30 and abs(time.time() - wall) < 30
        print(fired == list(range(20)))

run(main)
""")
    assert output.splitlines() == ["timeout", "3", "0"] * 5 + ["True"]


def test_the_machine_was_asleep(stepped):
    """The monotonic clock is an hour on: what was due meanwhile runs in the order of its times, the rest as before."""
    output = stepped("""
async def main():
    loop = asyncio.get_running_loop()
    fired, reports = [], []
    async with load() as all_get_on:
        times = [600, 10, 3500, 1200, 30, 3600 + 3000]
        timers = {seconds: loop.call_later(seconds, fired.append, seconds) for seconds in times}
        waiting = asyncio.ensure_future(asyncio.wait_for(loop.create_future(), 1000))
        sleeping = asyncio.ensure_future(asyncio.sleep(2000, "slept"))
        await all_get_on()
        sleep_of_machine(3600)
        await until(lambda: len(fired) == 5)
        print(fired, timers[6600].cancelled())
        try:
            await waiting
        except TimeoutError as exc:
            print(repr(exc))
        print(await sleeping)
        timers[6600].cancel()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
""")
    assert output.splitlines() == ["[10, 30, 600, 1200, 3500] False", "TimeoutError()", "slept"]


def test_the_processor_is_taken_away_before_each_wait(stepped):
    """A timer may be due by then: the wait must end for it, not begin without one."""
    output = stepped("""
async def main():
    loop = asyncio.get_running_loop()
    early = 0
    slow_clock(0.005)
    for milliseconds in range(1, 41):
        when = loop.time() + milliseconds / 1000
        fired = loop.create_future()
        loop.call_at(when, fired.set_result, None)
        await fired
        early += loop.time() < when
    slow_clock(0)
    return early

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    print(runner.run(main()))
""")
    assert output == "0\n"


# ---------------------------------------------------------------- in namespaces of its own


@pytest.fixture
def secluded(python, monkeypatch):
    """Run a program as root of its own mounts and network, which nobody else sees."""
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("the library of a sanitizer is not for unshare")
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("the kernel lets this user have no namespaces")
    command = python.command
    monkeypatch.setattr(python, "command", lambda *args: [*prefix, *command(*args)])
    head = """
import ctypes, errno, fcntl, struct
libc = ctypes.CDLL(None, use_errno=True)

def mount(source, target, kind=None, flags=0, data=None):
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    if libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        raise OSError(ctypes.get_errno(), "mount")

def raise_loopback():
    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))

raise_loopback()
"""
    return lambda text: python(LOAD + head + text)


def test_a_full_disk(secluded):
    """A child that can write no more, a thread that cannot, a Unix socket for which there is no room: each is told."""
    output = secluded("""
async def main():
    loop = asyncio.get_running_loop()
    async with load() as all_get_on:
        # Through the pipe to a child that writes to the disk.
        child = await asyncio.create_subprocess_exec(
            "sh", "-c", "cat > full/data", stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            for _ in range(100):
                child.stdin.write(b"x" * 100_000)
                await child.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as exc:
            print("broken pipe")
        errors = (await child.stderr.read()).decode()
        print("No space left" in errors, await child.wait() != 0, os.path.getsize("full/data") >= 60_000)
        child.stdin.close()
        try:
            await child.stdin.wait_closed()
        except (BrokenPipeError, ConnectionResetError):
            pass
        # communicate() goes on to the exit status.
        child = await asyncio.create_subprocess_exec(
            "sh", "-c", "cat >> full/data", stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, errors = await child.communicate(b"x" * 1_000_000)
        print(b"No space left" in errors, child.returncode != 0)
        await all_get_on()

        def write():
            with open("full/more", "wb", 0) as file:
                file.write(b"x" * 4096)
        try:
            await asyncio.to_thread(write)
        except OSError as exc:
            print(exc)
        # A fifo there is a pipe as any other.
        os.mkfifo("full/fifo")
        reading = open(os.open("full/fifo", os.O_RDONLY | os.O_NONBLOCK), "rb", 0)
        writing = open("full/fifo", "wb", 0)
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, writing)
        reader = asyncio.StreamReader()
        source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), reading)
        transport.write(b"y" * 300_000)
        transport.close()
        print(len(await reader.read()))
        source.close()
        # No file more fits: the socket's own is one.
        try:
            for number in range(100):
                open(f"full/{number}", "w").close()
        except OSError as exc:
            print(errno.errorcode[exc.errno])
        for make in (
            lambda: loop.create_unix_server(Echo, "full/socket"),
            lambda: loop.create_datagram_endpoint(asyncio.DatagramProtocol, "full/dgram", family=socket.AF_UNIX),
        ):
            try:
                await make()
            except OSError as exc:
                print(exc)
        os.unlink("full/0")
        server = await loop.create_unix_server(Echo, "full/socket")
        reader, writer = await asyncio.open_unix_connection("full/socket")
        writer.write(b"works again")
        print(await reader.readexactly(11))
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

os.mkdir("full")
mount("none", "full", "tmpfs", 0, "size=64k,nr_inodes=20")
run(main)
""")
    assert output.splitlines() == [
        "broken pipe",
        "True True True",
        "True True",
        "[Errno 28] No space left on device",
        "300000",
        "ENOSPC",
        "[Errno 28] No space left on device",
        "[Errno 28] No space left on device",
        "b'works again'",
    ]


RESOLVER = '''
"""Answers for slow.test when there is a file named so, for other names of .test at once, and for silent.test never."""
import os, socket, threading, time, sys

with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 53))
    print("listens", flush=True)

    def answer(query, address):
        at, labels = 12, []
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        name, kind = ".".join(labels), question[-4:-2]
        if name == "silent.test":
            return
        while name == "slow.test" and not os.path.exists("answer"):
            time.sleep(0.01)
        found = kind == b"\\0\\1" and name != "missing.test"
        status = b"\\x81\\x83" if name == "missing.test" else b"\\x81\\x80"
        record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\0\\0\\4\\x7f\\0\\0\\1" if found else b""
        counts = b"\\0\\1" + (b"\\0\\1" if found else b"\\0\\0") + bytes(4)
        sock.sendto(query[:2] + status + counts + question + record, address)

    while True:
        threading.Thread(target=answer, args=sock.recvfrom(512), daemon=True).start()
'''


def test_a_resolver_that_is_slow(secluded, tmp_path):
    """Names are looked up in threads: who waits for one waits alone, by whatever call; who cancels does not wait."""
    (tmp_path / "resolver.py").write_text(RESOLVER)
    output = secluded("""
async def main():
    loop = asyncio.get_running_loop()
    async with load() as all_get_on:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connecting = [asyncio.ensure_future(asyncio.open_connection("slow.test", port)) for _ in range(3)]
        endpoint = asyncio.ensure_future(
            loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("slow.test", port))
        )
        lookup = asyncio.ensure_future(loop.getaddrinfo("slow.test", port, type=socket.SOCK_STREAM))
        await all_get_on()
        print("meanwhile", any(task.done() for task in (*connecting, endpoint, lookup)))
        open("answer", "w").close()
        for reader, writer in await asyncio.gather(*connecting):
            writer.write(b"there")
            print(await reader.readexactly(5))
            writer.close()
            await writer.wait_closed()
        transport, _ = await endpoint
        print(transport.get_extra_info("peername") == ("127.0.0.1", port))
        transport.close()
        print([address for *_, address in await lookup] == [("127.0.0.1", port)])

        try:
            await asyncio.open_connection("missing.test", port)
        except socket.gaierror as exc:
            print(exc.errno in (socket.EAI_NONAME, socket.EAI_NODATA))
        try:
            await asyncio.wait_for(asyncio.open_connection("silent.test", port), 0.1)
        except TimeoutError as exc:
            print(repr(exc))
        cancelled = asyncio.ensure_future(loop.create_connection(Echo, "silent.test", port))
        await all_get_on()
        cancelled.cancel()
        try:
            await cancelled
        except asyncio.CancelledError:
            print("cancelled")
        try:
            await loop.getaddrinfo("silent.test", port)
        except socket.gaierror as exc:
            print(exc.errno == socket.EAI_AGAIN)
        server.close()

for name, text in (
    ("resolv.conf", "nameserver 127.0.0.1\\noptions timeout:5 attempts:1\\n"),
    ("nsswitch.conf", "hosts: files dns\\n"),
):
    with open(name, "w") as file:
        file.write(text)
    if os.path.exists("/etc/" + name):
        mount(name, "/etc/" + name, None, 4096)
resolver = subprocess.Popen([sys.executable, "resolver.py"], stdout=subprocess.PIPE)
try:
    resolver.stdout.readline()
    run(main)
finally:
    resolver.kill()
    resolver.communicate()
""")
    assert output.splitlines() == [
        "meanwhile False",
        *["b'there'"] * 3,
        *["True"] * 3,
        "TimeoutError()",
        "cancelled",
        "True",
    ]


def test_a_loop_that_ends_while_names_are_looked_up(secluded, tmp_path):
    """The runner waits for the lookup's thread; nothing that arrives then disturbs a loop that is closed."""
    (tmp_path / "resolver.py").write_text(RESOLVER)
    output = secluded("""
async def main():
    asyncio.ensure_future(asyncio.open_connection("slow.test", 9))
    threading.Timer(0.5, let_answer).start()
    await asyncio.sleep(0.05)

def let_answer():
    open("answer", "w").close()

with open("resolv.conf", "w") as file:
    file.write("nameserver 127.0.0.1\\n")
mount("resolv.conf", "/etc/resolv.conf", None, 4096)
resolver = subprocess.Popen([sys.executable, "resolver.py"], stdout=subprocess.PIPE)
resolver.stdout.readline()
run(main)
os.unlink("answer")
loop = new_event_loop()
task = loop.create_task(asyncio.open_connection("slow.test", 9))
loop.run_until_complete(asyncio.sleep(0.05))
task.cancel()
loop.run_until_complete(asyncio.wait([task]))
loop.close()
print(threading.active_count() <= 3)
let_answer()
resolver.kill()
resolver.communicate()
""")
    assert output == "True\n"


# ---------------------------------------------------------------- an old kernel, or one that forbids

#: Since Linux 5.1 new system calls have the same number everywhere: io_uring_setup() and its two, pidfd_open(),
#: epoll_pwait2().
NEWER = {"an old kernel": (errno.ENOSYS, range(424, 600)), "a container": (errno.EPERM, (425, 426, 427, 434, 441))}

REFUSING = """
import ctypes, struct

def refuse(number, calls):
    # A filter of seccomp: `calls` fail with that number of an error.
    load, jump, back = 0x20, 0x15, 0x06
    program = [struct.pack("HBBI", load, 0, 0, 0)]
    for call in calls:
        program.append(struct.pack("HBBI", jump, 0, 1, call))
        program.append(struct.pack("HBBI", back, 0, 0, 0x00050000 | number))
    program.append(struct.pack("HBBI", back, 0, 0, 0x7fff0000))
    code = b"".join(program)
    memory = ctypes.create_string_buffer(code)
    filtered = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(memory)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    assert prctl(38, 1, None, 0, 0) == 0
    if prctl(22, 2, filtered, 0, 0) != 0:
        print("no seccomp")
        sys.exit()

refuse(NUMBER, CALLS)
try:
    os.close(os.pidfd_open(os.getpid()))
except OSError as exc:
    print(exc.errno)

async def echo(reader, writer):
    writer.write(await reader.read(100))
    writer.close()

async def main():
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"over TCP")
    print(await reader.read())
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print((await child.communicate(b"through a child"))[0], child.returncode)
    failed = await asyncio.create_subprocess_exec("false")
    print(await failed.wait())
    print(await loop.run_in_executor(None, int, "5"))
    timer = loop.create_future()
    loop.call_later(0.001, timer.set_result, "a timer")
    print(await timer)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("kind", NEWER)
def test_a_system_without_the_newer_calls(python, kind):
    number, calls = NEWER[kind]
    answer = python(REFUSING.replace("NUMBER", str(number)).replace("CALLS", repr([*calls])), stderr=None)
    if answer == "no seccomp\n":
        pytest.skip("this system lets nobody set up a filter of seccomp")
    assert answer == f"{number}\nb'over TCP'\nb'through a child' 0\n1\n5\na timer\n"
