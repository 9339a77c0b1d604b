"""What the tests share: the loops, the guard against leftovers, recording protocols, peers, child processes."""

import asyncio
import collections
import contextlib
import gc
import inspect
import logging
import os
import random
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from asyncio import selector_events

# Up to some 3.11, that of Debian 12 among them, the stock loop begins to read in spite of a pause in connection_made().
FORGETS_A_PAUSE = "is_reading" not in selector_events._SelectorTransport._add_reader.__code__.co_names
FAMILIES = {"tcp": socket.AF_INET, "unix": socket.AF_UNIX}

#: From 3.15 on all callbacks of a connection run in one context, a copy of that in which it was made.
KEEPS_CONTEXT = "context" in inspect.signature(asyncio.BaseEventLoop._create_connection_transport).parameters


def new_loop(name):
    """Make a loop: 'stock' for asyncio's selector loop, 'fastloop' for ours."""
    if name == "stock":
        loop = asyncio.SelectorEventLoop()
    else:
        import fastloop

        loop = fastloop.new_event_loop()
    # On a busy machine anything may be slow, which debug mode would tell.
    loop.slow_callback_duration = 1000
    return loop


# ---------------------------------------------------------------- leftovers


class Taken(list):
    """A list of things that must have been taken by the end of the test."""

    def take(self):
        """Return everything found so far, and forget it."""
        found = list(self)
        self.clear()
        return found

    def take_one(self):
        """Return the only thing found so far, and forget it."""
        found = self.take()
        assert len(found) == 1, found
        return found[0]


class LogRecords(logging.Handler):
    """Keeps the records of the 'asyncio' logger from WARNING on."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def take(self):
        """Return the messages so far, and forget them."""
        found = [record.getMessage() for record in self.records]
        self.records.clear()
        return found

    def take_one(self):
        """Return the only message so far, and forget it."""
        found = self.take()
        assert len(found) == 1, found
        return found[0]


def open_files():
    """Count this process's descriptors by what they point to, without the numbers that change."""
    found = collections.Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r"\[\d+\]", "", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return found


def keep_for_the_session():
    """Spare what is alive now the garbage collections after each test."""
    gc.collect()
    gc.freeze()


def has_children():
    """Tell whether a child of this process exists, running or not yet waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class Guard:
    """Watches one test and lists what it left behind.

    .log        records of the asyncio logger: take() those that the test brings about; an ERROR left over fails it
    .unraisable exceptions that Python could not raise (ResourceWarnings in finalisers): take() likewise
    .loops      weak references to every loop made; each must be closed
    """

    def __init__(self, allowed=()):
        self.allowed = set(allowed)
        self.problems = []
        self.loops = []
        self.log = LogRecords()
        self.unraisable = Taken()

    def __enter__(self):
        self.files = open_files()
        self.threads = set(threading.enumerate())
        self.children = has_children()
        self.wakeup_fd = current_wakeup_fd()
        self.signals = signal_handlers()
        self.asyncgen_hooks = sys.get_asyncgen_hooks()
        logging.getLogger("asyncio").addHandler(self.log)
        self.old_hook = sys.unraisablehook
        sys.unraisablehook = self.on_unraisable
        return self

    def __exit__(self, *exc_info):
        gc.collect()
        sys.unraisablehook = self.old_hook
        logging.getLogger("asyncio").removeHandler(self.log)

    def on_unraisable(self, unraisable):
        # The text alone: the exception would keep frames, and so the leaked objects, alive.
        self.unraisable.append(f"{type(unraisable.exc_value).__name__}: {unraisable.exc_value}")

    def leftovers(self):
        """List in words what the test has left behind."""
        problems = list(self.problems)
        problems += [f"loop left open: {loop!r}" for ref in self.loops if (loop := ref()) and not loop.is_closed()]
        problems += [f"unraisable: {text}" for text in self.unraisable]
        for record in self.log.records:
            if record.levelno >= logging.ERROR:
                error = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
                problems.append(f"logged: {record.getMessage()} {error}")
        if asyncio._get_running_loop() is not None:
            problems.append("a loop is still set as running")
        if current_wakeup_fd() != self.wakeup_fd:
            problems.append("signal.set_wakeup_fd() changed")
        if signal_handlers() != self.signals:
            problems.append("signal handlers changed")
        if sys.get_asyncgen_hooks() != self.asyncgen_hooks:
            problems.append("sys.set_asyncgen_hooks() changed")
        # Threads and children may need a moment to end.
        for kind, probe in (("threads", self.new_threads), ("fds", self.new_files), ("children", self.new_children)):
            if kind not in self.allowed and (left := wait_until_empty(probe)):
                problems.append(f"{kind}: {left}")
        return problems

    def new_threads(self):
        return [t for t in threading.enumerate() if t not in self.threads]

    def new_files(self):
        return dict(open_files() - self.files)

    def new_children(self):
        return not self.children and has_children()


def wait_until_empty(probe, seconds=20):
    """Call probe() until its result is false, for some seconds; return the last result."""
    deadline = time.monotonic() + seconds
    while (left := probe()) and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    return left


def current_wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def signal_handlers():
    return {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
    }


def settle(loop):
    """Let what was already set in motion end (connection_lost and such); return in words what still waits."""
    for _ in range(10):
        loop.run_until_complete(asyncio.sleep(0))
        if not loop._ready and not asyncio.all_tasks(loop):
            break
    if asyncio.all_tasks(loop):
        # One that nobody can reach any more has been reported when it was destroyed.
        gc.collect()
    problems = [f"pending task: {task!r}" for task in asyncio.all_tasks(loop)]
    problems += [f"waiting callback: {handle!r}" for handle in loop._ready]
    problems += [f"waiting timer: {timer!r}" for timer in loop._scheduled if not timer.cancelled()]
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    return problems


# ---------------------------------------------------------------- waiting and comparing


#: How long a test waits for what is to come, which it does at once where nobody else needs the processor.
PATIENCE = 50


async def until(predicate, seconds=PATIENCE):
    """Wait until predicate() is true, by polling: it depends on nothing of the loop but sleep()."""
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)
    return value


async def without_clients(server):
    """Close a server, and wait until its connections have ended; wait_closed() does not do so before Python 3.12."""
    server.close()
    await until(lambda: not (server._clients if hasattr(server, "_clients") else server._active_count))
    await server.wait_closed()


def arrived(sock):
    """Wait, without the loop, until the kernel has something to read for a socket; tell whether it has.

    Also over the loopback interface what was sent may come a moment later.
    """
    return bool(select.select([sock], [], [], PATIENCE)[0])


async def turns(count=3):
    """Let some turns of the loop go by."""
    for _ in range(count):
        await asyncio.sleep(0)


def normalised(text):
    """A text without the numbers, addresses and class names that differ from loop to loop."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(text))
    text = re.sub(r"fd=\d+", "fd=N", text)
    return re.sub(r"<(_UnixSelectorEventLoop|Loop)\b", "<LOOP", text)


def outcome(function, *args, **kwargs):
    """Call, and return ('returned', value) or ('raised', type, normalised text), to be compared between loops."""
    try:
        value = function(*args, **kwargs)
    except Exception as exc:
        return "raised", type(exc), normalised(exc)
    if asyncio.iscoroutine(value):
        value.close()
        value = "a coroutine"
    return "returned", value


async def outcome_of(awaitable):
    """('returned', value) or ('raised', type, text) of what is awaited."""
    try:
        return "returned", await awaitable
    except (Exception, asyncio.CancelledError) as exc:
        return "raised", type(exc), str(exc)


def cpu_and_switches():
    """CPU seconds and voluntary context switches of this process so far."""
    import psutil

    process = psutil.Process()
    times = process.cpu_times()
    return times.user + times.system, process.num_ctx_switches().voluntary


def resident_bytes():
    """Resident memory of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- protocols


class Recorder(asyncio.Protocol):
    """Writes down every call of the transport; `on` gives actions by callback name."""

    def __init__(self, **on):
        self.events = []
        self.data = bytearray()
        self.on = on
        self.transport = None
        self.error = None
        self.inside = None

    def note(self, name, *args):
        self.events.append(name)
        outer, self.inside = self.inside, name
        try:
            action = self.on.get(name)
            return action(self, *args) if action else None
        finally:
            self.inside = outer

    def connection_made(self, transport):
        self.transport = transport
        self.note("connection_made")

    def data_received(self, data):
        assert type(data) is bytes and data
        self.data += data
        self.note("data_received")

    def eof_received(self):
        return self.note("eof_received")

    def pause_writing(self):
        self.note("pause_writing")

    def resume_writing(self):
        self.note("resume_writing")

    def connection_lost(self, error):
        self.error = error
        self.note("connection_lost")

    @property
    def made(self):
        return "connection_made" in self.events

    @property
    def lost(self):
        return "connection_lost" in self.events

    @property
    def story(self):
        """The callbacks in order; data_received calls that follow each other count as one."""
        return [
            name
            for i, name in enumerate(self.events)
            if name != "data_received" or self.events[i - 1] != "data_received"
        ]


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same over get_buffer() and buffer_updated(); `size` is the length of its buffer."""

    def __init__(self, size=1000, **on):
        super().__init__(**on)
        self.buffer = bytearray(size)
        self.hints = []

    def get_buffer(self, sizehint):
        self.hints.append(sizehint)
        replaced = self.on.get("get_buffer")
        # A view: over TLS the stock loop reads into a slice, which of a bytearray is a copy.
        return replaced(self) if replaced else memoryview(self.buffer)

    def buffer_updated(self, count):
        self.data += self.buffer[:count]
        self.note("buffer_updated")


class DatagramRecorder(asyncio.DatagramProtocol):
    """Writes down datagrams, errors and flow control."""

    def __init__(self):
        self.received = []
        self.errors = []
        self.events = []
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("connection_made")

    def datagram_received(self, data, address):
        self.received.append((data, address))

    def error_received(self, error):
        self.errors.append(error)

    def pause_writing(self):
        self.events.append("pause_writing")

    def resume_writing(self):
        self.events.append("resume_writing")

    def connection_lost(self, error):
        self.events.append("connection_lost")

    @property
    def lost(self):
        return "connection_lost" in self.events


# ---------------------------------------------------------------- the other end

AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Peer:
    """The other end of a connection: a plain socket that is polled, so that it needs nothing of the loop."""

    def __init__(self, sock):
        sock.setblocking(False)
        self.sock = sock

    async def attempt(self, function, *args):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return function(*args)
            except AGAIN:
                assert time.monotonic() < deadline, "the peer waited in vain"
                await asyncio.sleep(0.001)

    async def recv(self, count=65536):
        return await self.attempt(self.sock.recv, count)

    async def recv_exactly(self, count):
        data = bytearray()
        while len(data) < count:
            chunk = await self.recv(min(count - len(data), 262144))
            assert chunk, f"end of file after {len(data)} of {count} bytes"
            data += chunk
        return bytes(data)

    async def recv_all(self):
        """Read to the end of file, which may be a reset."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while chunk := await self.recv(262144):
                data += chunk
        return bytes(data)

    async def sendall(self, data):
        view = memoryview(data)
        while view:
            view = view[await self.attempt(self.sock.send, view) :]

    def eof(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Close so that the other end sees ECONNRESET (over TCP)."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    async def leave(self):
        """Read what is left, to the end of file, and close: closing over unread data would reset."""
        await self.recv_all()
        self.close()

    def close(self):
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.sock.unwrap()
        self.sock.close()


def socket_pair(kind):
    """Two connected non-blocking sockets, 'tcp' or 'unix'."""
    if kind == "unix":
        pair = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            first = socket.create_connection(listener.getsockname())
            pair = first, listener.accept()[0]
    for sock in pair:
        sock.setblocking(False)
    return pair


def small_buffers(*socks, size=65536):
    """Make the kernel's buffers small, so that flow control begins within a megabyte.

    Not smaller than a segment of the loopback interface: TCP then waits for timers.
    """
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


#: What a netlink socket sends to learn of the network links: the header of a dump request, and any family.
LIST_LINKS = struct.pack("=LHHLLBxxx", 20, 18, 0x301, 1, 0, 0)


def free_port():
    """The number of a port that nobody has.

    None of those that the system hands out by itself: it might give that to a connection of somebody else meanwhile.
    """
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("each of a hundred ports is taken")


class Connector:
    """Connects a protocol under test to a Peer, in one of the ways that `ENDPOINTS` names.

    'tcp', 'unix' and 'tls' say what is below, 'client' and 'server' which side the loop under test has: a client
    is given a socket, a server accepts natively.
    """

    ENDPOINTS = ("tcp-client", "tcp-server", "unix-client", "unix-server", "tls-client", "tls-server")

    def __init__(self, loop, endpoint, directory, authority=None):
        self.loop = loop
        self.kind, self.side = endpoint.split("-")
        self.directory = directory
        self.authority = authority
        self.closing = []
        self.transports = []

    @property
    def tls(self):
        return self.kind == "tls"

    async def __call__(self, factory=Recorder, small=False):
        """Connect; return (transport, protocol, peer). `small` makes the kernel's buffers small."""
        protocols = []

        def remember():
            protocols.append(factory())
            return protocols[-1]

        transport, peer = await getattr(self, "connect_" + self.side)(remember, small)
        await until(lambda: protocols)
        protocol = protocols[0]
        if isinstance(protocol, Recorder):
            await until(lambda: protocol.made)
            transport = transport or protocol.transport
        self.transports.append(transport)
        return transport, protocol, peer

    async def connect_client(self, factory, small):
        ours, theirs = socket_pair("unix" if self.kind == "unix" else "tcp")
        if small:
            small_buffers(ours, theirs)
        if self.kind == "unix":
            transport, _ = await self.loop.create_unix_connection(factory, sock=ours)
            return transport, self.add_peer(theirs)
        if not self.tls:
            transport, _ = await self.loop.create_connection(factory, sock=ours)
            return transport, self.add_peer(theirs)
        shaking = asyncio.ensure_future(self.shake_hands(theirs, server_side=True))
        transport, _ = await self.loop.create_connection(
            factory, sock=ours, ssl=self.authority.client, server_hostname="localhost"
        )
        return transport, await shaking

    async def connect_server(self, factory, small):
        options = {"ssl": self.authority.server} if self.tls else {}
        if self.kind == "unix":
            address = str(self.directory / f"s{len(self.closing)}")
            server = await self.loop.create_unix_server(factory, address, **options)
        else:
            server = await self.loop.create_server(factory, "127.0.0.1", 0, **options)
            address = server.sockets[0].getsockname()
        sock = socket.socket(FAMILIES["unix" if self.kind == "unix" else "tcp"])
        self.closing += [server]
        if small:
            small_buffers(sock, server.sockets[0])
        sock.connect(address)
        if self.tls:
            peer = await self.shake_hands(sock, server_side=False)
        else:
            peer = self.add_peer(sock)
        return None, peer

    async def shake_hands(self, sock, server_side):
        sock.setblocking(False)
        context = self.authority.server if server_side else self.authority.client
        sock = context.wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            server_hostname=None if server_side else "localhost",
        )
        peer = self.add_peer(sock)
        await peer.attempt(sock.do_handshake)
        return peer

    def add_peer(self, sock):
        peer = Peer(sock)
        self.closing.append(peer)
        return peer

    async def finish(self):
        """Close what is still open and wait until the transports are gone."""
        for thing in self.closing:
            thing.close()
        for transport in self.transports:
            # The stock loop's abort() trips over a transport that close() has emptied and closed.
            with contextlib.suppress(AttributeError):
                transport.abort()
        await turns(5)


# ---------------------------------------------------------------- TLS


class Authority:
    """A certificate authority in a folder, and TLS contexts made from it."""

    def __init__(self, folder):
        try:
            from trustme import CA
        except ImportError:
            from certificates import CA

        authority = CA()
        self.certificate = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.certificate))
        self.authority = authority
        self.server = self.server_context("localhost", "127.0.0.1")
        self.client = self.client_context()
        self.untrusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        CA().issue_cert("localhost").configure_cert(self.untrusted)

    def server_context(self, *names):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(context)
        # A ticket that a client does not read before it closes makes the kernel send a reset.
        context.num_tickets = 0
        return context

    def client_context(self):
        return ssl.create_default_context(cafile=str(self.certificate))


# ---------------------------------------------------------------- child processes


#: Is there a global interpreter lock?
GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

#: Does this run under AddressSanitizer and its kin?
SANITIZED = "san.so" in os.environ.get("LD_PRELOAD", "")


def patience():
    """How many times longer than usual a child may take; see tools/checks/patience.py."""
    return float(os.environ.get("FASTLOOP_PATIENCE", "1"))


PRELUDE = """\
import asyncio, faulthandler, logging, os, signal, sys, threading, time, warnings
# In debug mode a slow callback is told, and on a busy machine anything may be slow.
logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))
if {watchdog}:
    faulthandler.dump_traceback_later({seconds}, exit=True)
else:
    # A thread that was joined is there for the system a moment longer.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
LOOP = {name!r}
if LOOP == 'stock':
    new_event_loop = asyncio.SelectorEventLoop
else:
    from fastloop import new_event_loop
"""


class ChildPython:
    """Runs source text in a Python of its own, where `new_event_loop` makes loops of the kind under test."""

    def __init__(self, loop_name, folder):
        self.name = loop_name
        self.folder = folder
        self.children = []
        # A thread that ends a stuck child. CPython warns of a fork beside any thread: tests of fork do without.
        self.watchdog = True
        # How long a child may take; less than the test itself.
        self.seconds = 90

    def finish(self):
        """End and wait for every child."""
        for child in self.children:
            child.kill()
            child.communicate()

    @property
    def environment(self):
        path = []
        if self.name != "stock":
            import fastloop

            path = [os.path.dirname(os.path.dirname(os.path.abspath(fastloop.__file__)))]
        path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def command(self, source, options=()):
        prelude = PRELUDE.format(name=self.name, watchdog=self.watchdog, seconds=80 * patience())
        if "-E" in options:
            # It takes PYTHONPATH away.
            prelude = f"import sys; sys.path[:0] = {self.environment['PYTHONPATH'].split(os.pathsep)}\n{prelude}"
        return [sys.executable, *options, "-c", prelude + textwrap.dedent(source)]

    def start(self, source, options=(), **kwargs):
        """Start it and return the Popen; standard output and error are pipes of text."""
        child = subprocess.Popen(
            self.command(source, options),
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **kwargs,
        )
        self.children.append(child)
        return child

    def __call__(self, source, options=(), status=0, stderr=""):
        """Run it to its end; return its standard output after checking its exit status and standard error.

        `stderr` is a regular expression that the whole standard error must match; None checks nothing.
        """
        child = self.start(source, options)
        output, errors = child.communicate(timeout=self.seconds * patience())
        assert child.returncode == status, f"exit status {child.returncode}\n{output}\n{errors}"
        if stderr is not None:
            assert re.fullmatch(stderr, errors.strip(), re.DOTALL), errors
        return output


class Descriptor:
    """An open file, told from others that get its number later."""

    def __init__(self, fd):
        self.fd = fd
        self.identity = self.current()

    def current(self):
        try:
            status = os.fstat(self.fd)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @property
    def gone(self):
        return self.current() != self.identity
