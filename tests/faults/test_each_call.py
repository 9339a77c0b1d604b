"""Each system call that fastloop makes fails once, one after the other: the caller, the protocol or the exception
handler is told, or nobody needs to know; the loop goes on, and no descriptor is left.

What stands here for each call is what becomes of its failure. tests/faults/test_faults.py has failures under load.
"""

import json
import shutil
import sys

import pytest

import helpers

pytestmark = [
    pytest.mark.fastloop_only("the calls are its own"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc"),
    pytest.mark.left_out(helpers.SANITIZED, reason="a sanitizer makes the calls itself"),
    pytest.mark.usefixtures("debug_off"),
]

PROGRAM = """
import asyncio, ctypes, errno, gc, json, socket, sys

shim = ctypes.CDLL(None)
shim.fault_struck.restype = ctypes.c_char_p
loop = new_event_loop()
told = []


def tell(where, error):
    told.append(f"{where} {errno.errorcode[error.errno] if isinstance(error, OSError) else repr(error)}")


loop.set_exception_handler(lambda loop, context: tell("reported", context.get("exception")))
sys.unraisablehook = lambda unraisable: tell("unraisable", unraisable.exc_value)


class Protocol(asyncio.Protocol):
    transport = None
    lost = False
    def __init__(self):
        self.data = b""
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.data += data
    datagram_received = lambda self, data, sender: self.data_received(data)
    def connection_lost(self, error):
        self.lost = True
        if error is not None:
            tell("lost", error)
    def error_received(self, error):
        tell("received", error)


def settle(awaitable):
    return loop.run_until_complete(asyncio.wait_for(awaitable, 30))


def pair():
    near, far = socket.socketpair()
    near.setblocking(False), far.setblocking(False)
    return near, far


def turns():
    # Those that wait are sure to poll.
    for _ in range(3):
        settle(asyncio.sleep(0.0001))


async def until(predicate):
    while not predicate():
        await asyncio.sleep(0.001)


class _Opened:
    # A connection; operate() does something with it.
    def __init__(self):
        near, self.far = pair()
        self.transport, self.protocol = settle(loop.create_connection(Protocol, sock=near))
        # It reads.
        turns()
    def finish(self):
        self.transport.abort()
        settle(until(lambda: self.protocol.lost))
        self.far.close()

SCENARIOS

def count():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def outcome(kind, nth):
    # What becomes of the nth call of this kind; None when there is no such call.
    del told[:]
    case = kind()
    shim.fault_nth(nth)
    try:
        case.operate()
    except OSError as error:
        tell("raised", error)
    finally:
        struck = shim.fault_struck().decode()
        shim.fault_nth(0)
    struck = getattr(case, "struck", struck)
    case.finish()
    del case
    assert settle(asyncio.sleep(0, nth)) == nth
    return struck and f"{struck}: {', '.join(told) or 'unnoticed'}"


kinds = [kind for name, kind in list(globals().items()) if hasattr(kind, "operate") and name[0] != "_"]
outcomes = {}
# The loop opens its timer and its set of descriptors now.
near, far = pair()
loop.add_reader(near, int)
settle(asyncio.sleep(0.001))
loop.remove_reader(near)
near.close(), far.close()
for kind in kinds:
    # What stays open for the next one is open now.
    outcome(kind, 0), outcome(kind, 0)
    before = count()
    nth = 1
    found = outcomes[kind.__name__] = []
    while what := outcome(kind, nth):
        found.append(what)
        assert count() <= before, (kind, what, count(), before)
        nth += 1
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print(json.dumps(outcomes))
"""

LIFE = """
class Loop:
    # Another one has the parts that are kept of a closed loop.
    def __init__(self):
        self.keeper = new_event_loop()
    def operate(self):
        new_event_loop().close()
    def finish(self):
        self.keeper.close()

class Parked:
    def operate(self):
        new_event_loop().close()
    def finish(self):
        pass

class Timer:
    def __init__(self):
        self.loop = new_event_loop()
    def operate(self):
        self.loop.call_later(0.001, self.loop.stop)
        self.loop.run_forever()
    def finish(self):
        self.loop.close()

class Signal:
    def __init__(self):
        self.loop = new_event_loop()
    def operate(self):
        self.loop.add_signal_handler(signal.SIGUSR1, int)
        os.kill(os.getpid(), signal.SIGUSR1)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
    def finish(self):
        self.loop.remove_signal_handler(signal.SIGUSR1)
        self.loop.close()

class Reader:
    def __init__(self):
        self.loop = new_event_loop()
        self.near, self.far = pair()
        self.far.send(b"data")
    def receive(self):
        self.near.recv(9)
        self.loop.stop()
    def operate(self):
        self.loop.add_reader(self.near, self.receive)
        self.loop.run_forever()
    def finish(self):
        self.loop.remove_reader(self.near)
        self.loop.close()
        self.near.close(), self.far.close()

class Forked:
    # The loop of a child, which runs when the system has recovered, and at the end is closed.
    def __init__(self):
        self.loop = new_event_loop()
        self.near, self.far = pair()
        self.got = []
        self.loop.add_reader(self.near, lambda: self.got.append(self.near.recv(9)))
        self.loop.add_signal_handler(signal.SIGUSR1, int)
        self.loop.run_until_complete(asyncio.sleep(0.001))
        self.answer, self.answers = os.pipe()
    def operate(self):
        pid = os.fork()
        if pid == 0:
            try:
                self.run_child()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        shim.fault_nth(0)
        assert os.waitpid(pid, 0)[1] == 0
        self.struck, *told[:] = json.loads(os.read(self.answer, 10000))
    def run_child(self):
        async def receive():
            self.far.send(b"data")
            while not self.got:
                await asyncio.sleep(0.001)
        self.loop.call_soon(self.loop.stop)
        try:
            self.loop.run_forever()
        except OSError as error:
            tell("raised", error)
            self.loop.run_forever()
        struck = shim.fault_struck().decode()
        shim.fault_nth(0)
        self.loop.run_until_complete(receive())
        self.loop.close()
        os.write(self.answers, json.dumps([struck, *told]).encode())
    def finish(self):
        # The parent is not disturbed.
        self.far.send(b"data")
        self.loop.run_until_complete(until(lambda: self.got))
        self.loop.remove_signal_handler(signal.SIGUSR1)
        self.loop.close()
        self.near.close(), self.far.close()
        os.close(self.answer), os.close(self.answers)

class Close:
    # The sockets of its transports are given back.
    def __init__(self):
        self.loop = new_event_loop()
        near, self.far = pair()
        self.near = near
        self.transport, _ = self.loop.run_until_complete(self.loop.create_connection(Protocol, sock=near))
    def operate(self):
        self.loop.close()
    def finish(self):
        self.near.close(), self.far.close()
"""

STREAMS = """
class Adopt:
    def __init__(self):
        self.near, self.far = pair()
        self.made = None
    def operate(self):
        self.made = settle(loop.create_connection(Protocol, sock=self.near))
        turns()
    def finish(self):
        if self.made is not None:
            self.made[0].abort()
        turns()
        self.near.close(), self.far.close()

class AdoptSubclass(Adopt):
    # It gets a descriptor of its own.
    def __init__(self):
        super().__init__()
        self.near = type("Socket", (socket.socket,), {})(fileno=self.near.detach())

class Connect:
    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.made = None
    def connect(self):
        return loop.create_connection(Protocol, *self.address)
    def operate(self):
        self.made = settle(self.connect())
        turns()
        self.made[0].get_extra_info("peername"), self.made[0].get_extra_info("sockname")
    def finish(self):
        if self.made is not None:
            self.made[0].abort()
        turns()
        self.listener.close()

class ConnectAnywhere(Connect):
    # The kernel knows the address of the peer.
    def __init__(self):
        super().__init__()
        self.address = "0.0.0.0", self.address[1]

class ConnectUnix(Connect):
    def __init__(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(b"\\0fastloop-each-call-%d" % os.getpid())
        self.listener.listen()
        self.made = None
    def connect(self):
        return loop.create_unix_connection(Protocol, self.listener.getsockname())

class Accept:
    def __init__(self):
        self.protocols = []
        self.server = settle(loop.create_server(self.make, "127.0.0.1", 0))
        self.client = socket.create_connection(self.server.sockets[0].getsockname())
        constants = sys.modules["asyncio.constants"]
        constants.ACCEPT_RETRY_DELAY = 0.001
    def make(self):
        self.protocols.append(Protocol())
        return self.protocols[-1]
    def operate(self):
        turns()
    def finish(self):
        # It serves the next one, whatever became of the first.
        made = sum(protocol.transport is not None for protocol in self.protocols)
        second = socket.create_connection(self.server.sockets[0].getsockname())
        settle(until(lambda: sum(protocol.transport is not None for protocol in self.protocols) > made))
        self.client.close(), second.close()
        self.server.close()
        for protocol in self.protocols:
            if protocol.transport is not None:
                protocol.transport.abort()
        turns()

class Write(_Opened):
    def operate(self):
        self.transport.write(b"data")
        turns()

class WriteLines(_Opened):
    def operate(self):
        self.transport.writelines([b"one", b"two"])
        turns()

class End(_Opened):
    def operate(self):
        self.transport.write_eof()

class Show(_Opened):
    def operate(self):
        self.transport.get_extra_info("socket")
        self.transport.get_extra_info("sockname")

class Lost(_Opened):
    # The number was closed, and is somebody else's.
    def operate(self):
        fd = self.transport._sock_fd
        os.close(fd)
        self.other = os.dup(0)
        assert self.other == fd
        self.transport.pause_reading(), self.transport.resume_reading()
        turns()
    def finish(self):
        super().finish()
        # Whatever fails: this is what befalls it.
        told.remove("lost EBADF")
        try:
            os.close(self.other)
        except OSError as error:
            tell("closed", error)
"""

SOCKETS = """
class _Call:
    def __init__(self):
        self.near, self.far = pair()
        self.buffer = bytearray(9)
    def operate(self):
        settle(self.call())
    def finish(self):
        self.near.close(), self.far.close()

class Receive(_Call):
    async def call(self):
        self.far.send(b"data")
        await loop.sock_recv(self.near, 9)

class ReceiveInto(_Call):
    async def call(self):
        self.far.send(b"data")
        await loop.sock_recv_into(self.near, self.buffer)

class ReceiveFrom(_Call):
    async def call(self):
        self.far.send(b"data")
        await loop.sock_recvfrom(self.near, 9)

class ReceiveFromInto(_Call):
    async def call(self):
        self.far.send(b"data")
        await loop.sock_recvfrom_into(self.near, self.buffer)

class Send(_Call):
    async def call(self):
        await loop.sock_sendall(self.near, b"data")

class SendTo(_Call):
    async def call(self):
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await loop.sock_sendto(sock, b"data", ("127.0.0.1", 9))

class ConnectSocket(_Call):
    async def call(self):
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())

class Datagram:
    def __init__(self):
        self.transport, self.protocol = settle(loop.create_datagram_endpoint(Protocol, ("127.0.0.1", 0)))
        self.address = self.transport.get_extra_info("sockname")
    def operate(self):
        self.transport.sendto(b"data", self.address)
        settle(until(lambda: self.protocol.data or told))
    def finish(self):
        self.transport.abort()
        settle(until(lambda: self.protocol.lost))

class Connected(Datagram):
    def __init__(self):
        super().__init__()
        self.first = self.transport
        self.first_protocol = self.protocol
        self.transport, _ = settle(loop.create_datagram_endpoint(Protocol, remote_addr=self.address))
        self.protocol = self.first_protocol
        self.address = None
    def finish(self):
        self.transport.abort()
        self.first.abort()
        settle(until(lambda: self.protocol.lost))
"""

#: The scenarios of a group, and what is told of a call that fails in each. Of other calls nobody needs to know.
GROUPS = {
    "life": (
        LIFE,
        {
            "Loop": ["epoll_ctl: raised ENOSPC", "eventfd: raised ENFILE"],
            "Parked": [],
            "Timer": ["socketpair: raised EMFILE", "epoll_ctl: raised ENOSPC"],
            "Signal": ["socketpair: raised EMFILE", "epoll_ctl: raised ENOSPC"],
            "Reader": ["epoll_create1: raised EMFILE", "epoll_ctl: raised ENOSPC", "socketpair: raised EMFILE"],
            "Forked": [
                "epoll_create1: raised EMFILE",
                "epoll_ctl: raised ENOSPC",
                "eventfd: raised ENFILE",
                "socketpair: raised EMFILE",
                "dup2: raised EMFILE",
            ],
            "Close": ["fcntl: unraisable EMFILE"],
        },
    ),
    "streams": (
        STREAMS,
        {
            "Adopt": ["getsockname: raised ENOBUFS", "getsockopt: raised ENOBUFS", "epoll_ctl: lost ENOSPC"],
            "AdoptSubclass": [
                "fcntl: raised EMFILE",
                "getsockname: raised ENOBUFS",
                "getsockopt: raised ENOBUFS",
                "epoll_ctl: lost ENOSPC",
            ],
            "Connect": [
                "socket: raised EMFILE",
                "connect: raised ENETUNREACH",
                "getsockopt: raised ENOBUFS",
                "setsockopt: raised EINVAL",
                "epoll_ctl: lost ENOSPC",
            ],
            "ConnectAnywhere": [
                "socket: raised EMFILE",
                "connect: raised ENETUNREACH",
                "getsockopt: raised ENOBUFS",
                "setsockopt: raised EINVAL",
                "epoll_ctl: lost ENOSPC",
            ],
            "ConnectUnix": ["socket: raised EMFILE", "connect: raised ENETUNREACH", "epoll_ctl: lost ENOSPC"],
            # As with the standard loop, nobody hears of a connection that is reset before it is made.
            "Accept": ["accept4: reported EMFILE", "epoll_ctl: lost ENOSPC"],
            "Write": ["send: lost EPIPE"],
            "WriteLines": [f"{'sendmsg' if sys.version_info >= (3, 12) else 'send'}: lost EPIPE"],
            "End": ["shutdown: raised ENOTCONN"],
            "Show": [],
            # Without a number for a copy, what has the number now is closed with the connection.
            "Lost": ["fcntl: closed EBADF", "dup2: closed EBADF"],
        },
    ),
    "sockets": (
        SOCKETS,
        {
            "Receive": ["recv: raised ETIMEDOUT"],
            "ReceiveInto": ["recv: raised ETIMEDOUT"],
            "ReceiveFrom": ["recvfrom: raised ECONNREFUSED"],
            "ReceiveFromInto": ["recvfrom: raised ECONNREFUSED"],
            "Send": ["send: raised EPIPE"],
            "SendTo": ["sendto: raised EPERM"],
            "ConnectSocket": ["epoll_ctl: raised ENOSPC", "getsockopt: raised ENOBUFS"],
            "Datagram": ["sendto: received EPERM", "recvfrom: received ECONNREFUSED"],
            "Connected": ["send: received EPIPE", "recvfrom: received ECONNREFUSED"],
        },
    ),
}


@pytest.fixture(scope="session")
def shim(built):
    return built("shim")


@pytest.mark.parametrize("group", GROUPS)
def test_each_call_fails_once(python, shim, preload, group):
    preload(shim)
    python.watchdog = False
    scenarios, expected = GROUPS[group]
    outcomes = json.loads(python(PROGRAM.replace("SCENARIOS", scenarios)))
    told = {name: {what for what in found if "unnoticed" not in what} for name, found in outcomes.items()}
    assert told == {name: set(found) for name, found in expected.items()}
