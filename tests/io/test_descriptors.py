"""Descriptors that the process lacks, or that somebody closes behind the back of their owner."""

import contextlib
import os
import signal
import socket

import pytest

from helpers import Recorder, turns, until

# Runs without standard input, output and error; what is printed goes to a descriptor far above.
WITHOUT_STANDARD_STREAMS = """
import fcntl, socket
far = fcntl.fcntl(1, fcntl.F_DUPFD, 100)
report = os.fdopen(far, "w")
for fd in range(3):
    os.close(fd)
"""


def test_a_loop_without_standard_streams(python):
    assert (
        python(
            WITHOUT_STANDARD_STREAMS
            + """
for _ in range(3):
    loop = new_event_loop()
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
first, second = new_event_loop(), new_event_loop()
first.close()
second.close()
print("closed", file=report, flush=True)
"""
        )
        == "closed\n"
    )


def test_connections_without_standard_streams(python):
    assert (
        python(
            WITHOUT_STANDARD_STREAMS
            + """
async def serve(reader, writer):
    writer.write((await reader.read(100)).upper())
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    for _ in range(10):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        assert await reader.read() == b"HELLO"
        writer.close()
        await writer.wait_closed()
    server.close()
    read_end, write_end = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=read_end)
    write_end.send(b"pair")
    assert await reader.read(100) == b"pair"
    writer.close()
    write_end.close()
    await asyncio.sleep(0)

loop = new_event_loop()
loop.run_until_complete(main())
loop.run_until_complete(asyncio.sleep(0.002))
loop.close()
print("served", file=report, flush=True)
"""
        )
        == "served\n"
    )


def test_standard_streams_opened_beside_a_loop(python):
    """What daemons do: the three numbers are filled again while a loop exists that was made without them."""
    assert (
        python(
            WITHOUT_STANDARD_STREAMS
            + """
loop = new_event_loop()
loop.call_later(0.001, int)
loop.add_reader(socket.socketpair()[0].detach(), int)
null = os.open(os.devnull, os.O_RDWR)
for fd in range(3):
    if type(loop).__module__.startswith("fastloop"):
        os.dup2(null, fd)
loop.run_until_complete(asyncio.sleep(0.002))
loop.close()
print("closed", file=report, flush=True)
"""
        )
        == "closed\n"
    )


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_without_standard_streams(python, end):
    python.watchdog = False
    assert (
        python(
            WITHOUT_STANDARD_STREAMS
            + """
import sys
loop = new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
pid = os.fork()
if pid == 0:
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    END
print(os.waitpid(pid, 0)[1], file=report, flush=True)
loop.close()
""".replace("END", end)
        )
        == "0\n"
    )


# ---------------------------------------------------------------- closed behind the transport's back


ours = pytest.mark.fastloop_only("the stock loop reports nothing, or raises somewhere else")


def descriptor(transport):
    return transport.get_extra_info("socket").fileno()


async def pair(loop, protocol_factory=Recorder):
    """A transport on one end of a socket pair; the other end is a plain socket."""
    near, far = socket.socketpair()
    far.setblocking(False)
    transport, protocol = await loop.create_connection(protocol_factory, sock=near)
    return transport, protocol, far


class Closer(Recorder):
    """Closes the descriptor of its transport as soon as there is one."""

    def connection_made(self, transport):
        super().connection_made(transport)
        os.close(descriptor(transport))


@ours
def test_closed_before_reading_starts(loop, run):
    async def main():
        _, bystander, peer = await pair(loop)
        _, protocol, far = await pair(loop, Closer)
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, OSError)
        peer.send(b"still here")
        await until(lambda: bystander.data)
        bystander.transport.close()
        await turns(3)
        peer.close()
        far.close()

    run(main())


@ours
@pytest.mark.parametrize("replacement", ["nothing", "file", "pipe", "socket"])
@pytest.mark.parametrize("action", ["write", "write-much", "pause-and-resume", "wait", "close", "abort", "eof"])
def test_closed_or_replaced_at_once(loop, run, tmp_path, replacement, action):
    """Whatever the number becomes, the transport ends with an error, and what has the number is left alone."""

    def replace(fd):
        if replacement == "nothing":
            os.close(fd)
            return lambda: None
        if replacement == "file":
            other = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
            beside = os.dup(other)
        elif replacement == "pipe":
            beside, other = os.pipe()
        else:
            beside, other = (end.detach() for end in socket.socketpair())
        os.dup2(other, fd)
        os.close(other)

        def check():
            if replacement == "file":
                assert os.fstat(beside).st_size == 0
            os.close(beside)

        return check

    async def main():
        transport, protocol, far = await pair(loop)
        await turns(2)
        if action == "write-much":
            transport.write(bytes(10_000_000))
            await turns(2)
        fd = descriptor(transport)
        check = replace(fd)
        if action == "pause-and-resume":
            transport.pause_reading()
            transport.resume_reading()
        elif action.startswith("write"):
            transport.write(b"lost")
            if replacement == "socket":
                transport.pause_reading()
                transport.resume_reading()
        elif action == "close":
            transport.close()
        elif action == "abort":
            transport.abort()
        elif action == "eof":
            far.close()
        await turns(4)
        transport.abort()
        await until(lambda: protocol.lost)
        check()
        far.close()
        return fd

    fd = run(main())
    with contextlib.suppress(OSError):
        os.close(fd)


@ours
def test_the_number_goes_to_a_new_connection(loop, run):
    """The new connection works; the transport that had the number ends."""

    async def main():
        accepted = []

        def factory():
            accepted.append(Recorder())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        first = socket.create_connection(address)
        await until(lambda: accepted and accepted[0].made)
        old = accepted[0]
        fd = descriptor(old.transport)
        os.close(fd)
        # The lowest free number is kept for the accepted connection.
        second = socket.socket(fileno=move_from(socket.create_connection(address), fd))
        await until(lambda: len(accepted) == 2)
        assert descriptor(accepted[1].transport) == fd
        second.send(b"for the second")
        await until(lambda: accepted[1].data)
        assert old.data == b"" and accepted[1].data == b"for the second"
        await until(lambda: old.lost)
        old.transport.close()
        accepted[1].transport.write(b"answer")
        await turns(3)
        assert second.recv(100) == b"answer"
        second.close()
        await until(lambda: accepted[1].lost)
        first.close()
        server.close()

    run(main())


def move_from(sock, fd):
    """The socket's descriptor, which is not `fd`."""
    number = sock.detach()
    if number != fd:
        return number
    moved = os.dup(number)
    os.close(number)
    return moved


FUZZ = """
import contextlib, random, socket, tempfile
choice = random.Random(SEED)
moves = 0

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

class Client(asyncio.Protocol):
    # Sends numbered messages; each must come back.
    def __init__(self):
        self.sent = self.received = b""
        self.count = 0
        self.lost = False
    def connection_made(self, transport):
        self.transport = transport
        self.send()
    def send(self):
        self.count += 1
        self.sent += b"%d," % self.count * choice.randrange(1, 3000)
        self.transport.write(self.sent[-100000:] if self.bulk else b"%d," % self.count)
    bulk = False
    def data_received(self, data):
        self.received += data
        if len(self.received) > 1000000:
            self.received = b""
        self.send()
    def connection_lost(self, exc):
        self.lost = True

class Bystander(Client):
    def send(self):
        self.count += 1
        self.message = b"%d," % self.count * choice.randrange(1, 5000)
        self.received = b""
        self.transport.write(self.message)
    def data_received(self, data):
        self.received += data
        assert self.message.startswith(self.received), "foreign bytes"
        if self.received == self.message:
            self.send()

class Victim(Client):
    bulk = True

def other_file():
    kind = choice.randrange(4)
    if kind == 0:
        return os.open(os.devnull, os.O_RDWR)
    if kind == 1:
        return os.dup(scratch.fileno())
    first, second = (os.pipe() if kind == 2 else (end.detach() for end in socket.socketpair()))
    os.close(first)
    return second

def harm(transport):
    global moves
    moves += 1
    fd = transport._sock_fd
    kind = choice.randrange(8)
    if kind == 0:
        transport.pause_reading()
    elif kind == 1:
        transport.resume_reading()
    elif kind == 2:
        transport.write(bytes(choice.randrange(1, 3000000)))
    elif kind == 3 and choice.randrange(4) == 0:
        transport.abort()
    elif kind == 4 and choice.randrange(4) == 0:
        transport.close()
    elif fd in untouchable:
        return
    elif kind == 5:
        try:
            os.close(fd)
        except OSError:
            pass
    else:
        other = other_file()
        if kind == 6:
            try:
                os.close(fd)
                numbers.append(os.dup(other))
            except OSError:
                pass
        else:
            os.dup2(other, fd)
        if other not in untouchable:
            os.close(other)
    if choice.randrange(2):
        transport.resume_reading()

async def main():
    global scratch, untouchable, numbers
    numbers = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    scratch = tempfile.TemporaryFile()
    servers = [await loop.create_server(Echo, "127.0.0.1", 0), await loop.create_unix_server(Echo, "socket")]
    async def connect(factory):
        if choice.randrange(2):
            return await loop.create_unix_connection(factory, "socket")
        return await loop.create_connection(factory, *servers[0].sockets[0].getsockname())
    await asyncio.sleep(0.001)
    bystanders = [(await connect(Bystander))[1] for _ in range(6)]
    await asyncio.sleep(0.01)
    untouchable = {int(name) for name in os.listdir("/proc/self/fd")}
    victims = []
    end = loop.time() + SECONDS
    while loop.time() < end:
        victims = [transport for transport in victims if not transport.is_closing()][-20:]
        try:
            victims.append((await asyncio.wait_for(connect(Victim), 1))[0])
        except (OSError, TimeoutError, RuntimeError):
            # Its socket was hit while it was connecting.
            pass
        for _ in range(choice.randrange(4)):
            with contextlib.suppress(OSError):
                harm(choice.choice(victims)) if victims else None
            if choice.randrange(2):
                await asyncio.sleep(0)
    before = [one.count for one in bystanders]
    end = loop.time() + 30
    await asyncio.sleep(0.2)
    while not all(one.count > count for one, count in zip(bystanders, before)):
        assert loop.time() < end, "stuck"
        await asyncio.sleep(0.01)
    assert not any(one.lost for one in bystanders)

loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
"""


@ours
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("debug_off")
def test_descriptors_closed_at_random(python, seed):
    """Never does the process end, nor is a connection harmed whose descriptor was left alone."""
    python(FUZZ.replace("SEED", str(seed)).replace("SECONDS", "1.5"))


# ---------------------------------------------------------------- the only one


@pytest.fixture
def pipes():
    """Two pipes, as (reading end, writing end); what a test closes is its own business."""
    pairs = [os.pipe(), os.pipe()]
    yield pairs
    for fd in {fd for pair in pairs for fd in pair}:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_the_only_reader_is_called_for_its_own_data_alone(loop, run, pipes):
    (first, to_first), (second, to_second) = pipes
    calls = []

    def read_first():
        calls.append(os.read(first, 10))
        loop.remove_reader(first)
        loop.add_reader(second, read_second)

    def read_second():
        calls.append(os.read(second, 10))
        loop.remove_reader(second)
        loop.add_reader(first, read_first)

    async def main():
        loop.add_reader(first, read_first)
        for _ in range(5):
            os.write(to_first, b"1")
            await until(lambda: calls == [b"1"])
            await turns(3)
            os.write(to_second, b"2")
            await until(lambda: calls == [b"1", b"2"])
            await turns(3)
            calls.clear()
        loop.remove_reader(first)

    run(main())


def test_a_forgotten_descriptor_does_not_pass_for_the_only_reader(loop, run, pipes):
    (first, to_first), (second, to_second) = pipes
    calls = []

    async def main():
        duplicate = os.dup(first)
        loop.add_reader(first, calls.append, "first")
        loop.add_reader(second, lambda: calls.append(os.read(second, 10)))
        await turns(3)
        os.close(first)
        loop.remove_reader(first)
        await turns(3)
        os.write(to_first, b"x")
        await turns(5)
        assert calls == []
        os.write(to_second, b"2")
        await until(lambda: calls == [b"2"])
        loop.remove_reader(second)
        os.close(duplicate)

    run(main())


def test_the_only_reader_beside_signals(loop, run, pipes):
    (first, to_first), _ = pipes
    calls = []

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, calls.append, "signal")
        loop.add_reader(first, lambda: calls.append(os.read(first, 10)))
        await turns(3)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: calls == ["signal"])
            os.write(to_first, b"1")
            await until(lambda: calls == ["signal", b"1"])
            calls.clear()
        loop.remove_reader(first)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())
