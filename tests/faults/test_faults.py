"""A system that fails: calls that end in errors while a server is under load, by a library in front of the C library's.

Storms of EAGAIN and EINTR, short reads and writes must not be seen at all; what breaks a connection is told to that
connection's protocol, and the others go on; at the end nothing is left behind.
"""

import json
import shutil

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")

PROGRAM = """
import ctypes, errno, gc, json, socket
shim = ctypes.CDLL(None)
shim.fault_count.restype = ctypes.c_ulong

def fault(name, error, every):
    shim.fault_set(name.encode(), getattr(errno, error, 0), every)

errors, reports = [], []

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)
    def connection_lost(self, error):
        if error is not None:
            errors.append(errno.errorcode.get(error.errno, type(error).__name__))

async def use(address, number):
    '''True when all came back, False when the connection was broken off.'''
    message = b"%d," % number * 200
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return False
    try:
        for _ in range(5):
            writer.write(message)
            got = await reader.readexactly(len(message))
            assert got == message, "bytes of somebody else"
        return True
    except (asyncio.IncompleteReadError, OSError) as exc:
        assert message.startswith(getattr(exc, "partial", b"")), "bytes of somebody else"
        return False
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reports.append(context["message"]))
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=200)
    address = server.sockets[0].getsockname()
    assert await use(address, 0)
    before = len(os.listdir("/proc/self/fd"))
    fault(*FAULT)
    during = await asyncio.wait_for(asyncio.gather(*[use(address, n) for n in range(COUNT)]), 30)
    failed = shim.fault_count(FAULT[0].encode())
    shim.fault_set(FAULT[0].encode(), 0, 0)
    after = await asyncio.wait_for(asyncio.gather(*[use(address, n) for n in range(20)]), 30)
    for _ in range(2000):
        gc.collect()
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        await asyncio.sleep(0.01)
    left = len(os.listdir("/proc/self/fd")) - before
    server.close()
    await server.wait_closed()
    print(json.dumps(dict(failed=failed, good=sum(during), after=sum(after), left=max(left, 0),
        errors=sorted(set(errors)), reports=sorted(set(reports)))))

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.fixture(scope="session")
def shim(built):
    """The library that makes calls fail, built for this run."""
    return built("shim")


@pytest.fixture
def faulty(python, shim, preload):
    """Run a program whose calls fail as fault_set() says."""
    preload(shim)
    return python


def under_load(faulty, name, error, every, count=60):
    head = f"FAULT, COUNT = {(name, error, every)!r}, {count}\n"
    answer = json.loads(faulty(head + PROGRAM, stderr=None))
    assert answer["failed"] > 0, "the fault has not come"
    assert answer["after"] == 20, answer
    assert answer["left"] == 0, answer
    return answer


@pytest.mark.parametrize("every", [1, 2, 3], ids=["always", "every other", "every third"])
@pytest.mark.parametrize("name", ["send", "receive"])
def test_short_reads_and_writes_are_not_seen(faulty, name, every):
    answer = under_load(faulty, name, "short", every, count=10)
    assert (answer["good"], answer["errors"], answer["reports"]) == (10, [], [])


GAP = """
import ctypes, errno, select, socket, ssl, threading
shim = ctypes.CDLL(None)
sender = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
sender.check_hostname, sender.verify_mode = False, ssl.CERT_NONE
receiver = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
receiver.load_cert_chain(CHAIN)
received, reasons = [], []

go_on = threading.Event()

def receive(sock):
    try:
        with receiver.wrap_socket(sock, server_side=True) as peer:
            go_on.wait()
            while data := peer.recv(65536):
                received.append(data)
    except OSError as exc:
        reasons.append(getattr(exc, "reason", None))

class Sender(asyncio.Protocol):
    def connection_made(self, transport):
        self.lost = asyncio.get_running_loop().create_future()
    def connection_lost(self, error):
        self.lost.set_result(error)

async def fail_at_once(transport, protocol):
    go_on.set()
    failed = shim.fault_count(b"send")
    shim.fault_set(b"send", errno.ENETUNREACH, EVERY)
    for _ in range(100):
        transport.write(b"x" * 400_000)
        if shim.fault_count(b"send") > failed:
            break
        await asyncio.sleep(0.01)
    # What comes after it would go through.
    shim.fault_set(b"send", 0, 0)

async def fail_in_flight(transport, protocol):
    # The kernel takes no more; when it does again, the write that waited fails behind a callback that writes.
    while not transport._ssl_protocol._transport.get_write_buffer_size():
        transport.write(b"x" * 20_000)
        await asyncio.sleep(0.005)
    near, far = socket.socketpair()
    far.send(b"x")
    writable = select.poll()
    writable.register(transport.get_extra_info("socket").fileno(), select.POLLOUT)
    def write():
        if not go_on.is_set():
            go_on.set()
            while not writable.poll(1000):
                pass
            shim.fault_set(b"send", errno.ENETUNREACH, -1)
        if not protocol.lost.done():
            transport.write(b"xx")
    asyncio.get_running_loop().add_reader(near, write)
    await asyncio.wait([protocol.lost], timeout=10)
    asyncio.get_running_loop().remove_reader(near)

async def main():
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    thread = threading.Thread(target=receive, args=[theirs])
    thread.start()
    transport, protocol = await loop.create_connection(Sender, sock=ours, ssl=sender, server_hostname="localhost")
    await asyncio.sleep(0.05)
    await (fail_at_once if EVERY else fail_in_flight)(transport, protocol)
    error = await asyncio.wait_for(protocol.lost, 10)
    thread.join(10)
    # What is sent behind a gap is a record that cannot be decrypted.
    garbled = "DECRYPTION_FAILED_OR_BAD_RECORD_MAC" in reasons
    print(errno.errorcode[error.errno], set(b"".join(received)) <= set(b"x"), garbled, thread.is_alive())

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("every", [1, 2, 3, 0], ids=["first", "second", "third", "in flight"])
def test_nothing_is_sent_behind_a_gap(faulty, authority, tmp_path, every):
    """A send of TLS with much to write fails once: the first, second or third call, or behind what the kernel took."""
    authority.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "chain"))
    answer = faulty(f"CHAIN, EVERY = {str(tmp_path / 'chain')!r}, {every}\n" + GAP, stderr=None)
    assert answer == "ENETUNREACH True False False\n"


SENDALL = """
import ctypes, socket
shim = ctypes.CDLL(None)

async def main():
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = loop.create_task(count())
    shim.fault_set(b"send", 0, 1)
    await loop.sock_sendall(near, bytes(range(60)))
    assert far.recv(1000) == bytes(range(60))
    assert turns >= 2, turns
    sending = loop.create_task(loop.sock_sendall(near, bytes(range(60))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait([sending])
    sent = far.recv(1000)
    assert sending.cancelled() and 0 < len(sent) < 60 and sent == bytes(range(60))[:len(sent)], sent
    shim.fault_set(b"send", 0, 0)
    await loop.sock_sendall(near, b"on")
    assert far.recv(1000) == b"on"
    counting.cancel()
    near.close()
    far.close()
    print("fine")

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def test_others_run_between_the_short_writes_of_one_call(faulty):
    assert faulty(SENDALL, stderr=None).strip() == "fine"


@pytest.mark.parametrize("error", ["EAGAIN", "EINTR"])
@pytest.mark.parametrize("name", ["send", "receive"])
def test_storms_are_not_seen(faulty, name, error, loop_name):
    answer = under_load(faulty, name, error, 2)
    assert (answer["good"], answer["errors"], answer["reports"]) == (60, [], [])


DATAGRAMS = """
import ctypes, errno

class Echo(asyncio.DatagramProtocol):
    def __init__(self):
        self.data, self.errors = [], []
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, sender):
        self.data.append(data)
        if len(data) == 4:
            self.transport.sendto(data + b"!", sender)
    def error_received(self, error):
        self.errors.append(error)

async def main():
    loop = asyncio.get_running_loop()
    _, server = await loop.create_datagram_endpoint(Echo, ("127.0.0.1", 0))
    address = server.transport.get_extra_info("sockname")
    _, client = await loop.create_datagram_endpoint(Echo, ("127.0.0.1", 0))
    for name in (b"send", b"receive"):
        ctypes.CDLL(None).fault_set(name, errno.ERROR, 2)
    for number in range(20):
        client.transport.sendto(b"%04d" % number, address)
        while len(client.data) <= number:
            await asyncio.sleep(0.001)
    expected = [b"%04d!" % number for number in range(20)]
    print(client.data == expected, server.errors, client.errors)
    server.transport.abort(), client.transport.abort()

loop = new_event_loop()
loop.run_until_complete(asyncio.wait_for(main(), 40))
loop.close()
"""


@pytest.mark.parametrize("error", ["EAGAIN", "EINTR"])
def test_datagrams_come_through_storms(faulty, error):
    assert faulty(DATAGRAMS.replace("ERROR", error)) == "True [] []\n"


@pytest.mark.parametrize("error", ["EAGAIN", "EINTR", "ECONNABORTED"])
def test_accept_tries_again(faulty, error):
    answer = under_load(faulty, "accept", error, 2)
    assert (answer["good"], answer["errors"], answer["reports"]) == (60, [], [])


@pytest.mark.parametrize("error", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_accept_without_resources_waits_and_goes_on(faulty, error):
    answer = under_load(faulty, "accept", error, 20)
    assert (answer["good"], answer["errors"]) == (60, [])
    assert answer["reports"] == ["socket.accept() out of system resource"]


@pytest.mark.parametrize("error", ["EPERM", "EIO"])
def test_accept_that_fails_for_another_reason_is_reported_and_goes_on(faulty, error):
    answer = under_load(faulty, "accept", error, 20)
    assert (answer["good"], answer["errors"]) == (60, [])
    (report,) = answer["reports"]
    assert report.startswith("Exception in callback") and "_accept_connection(" in report


CLOSED_MEANWHILE = """
import ctypes, errno, socket

shim = ctypes.CDLL(None)
loop = new_event_loop()
reports = []
loop.set_exception_handler(lambda loop, context: (reports.append(context["message"]), loop.stop()))
asyncio.constants.ACCEPT_RETRY_DELAY = 0.01
server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
client = socket.create_connection(server.sockets[0].getsockname())
shim.fault_set(b"accept", errno.EMFILE, 1)
loop.run_forever()
shim.fault_set(b"accept", 0, 0)
MEANWHILE
if not loop.is_closed():
    loop.run_until_complete(asyncio.sleep(0.05))
client.close()
server.close()
loop.close()
print(*reports, sep="\\n")
"""


@pytest.mark.fastloop_only("the stock loop goes on and reports it as often as the backlog is long")
@pytest.mark.parametrize(
    "meanwhile",
    ["server.close()", "loop.close()", "server.close(); other = os.open('/', 0); loop.call_soon(os.close, other)"],
)
def test_a_server_that_is_closed_while_it_waits_for_resources(faulty, meanwhile):
    """It is not woken up again, whoever has its number by then."""
    text = CLOSED_MEANWHILE.replace("MEANWHILE", meanwhile)
    assert faulty(text, ["-W", "ignore::ResourceWarning"]) == "socket.accept() out of system resource\n"


@pytest.mark.parametrize(
    "name, error", [("send", "ENOMEM"), ("send", "EPIPE"), ("receive", "ENOMEM"), ("receive", "ETIMEDOUT")]
)
def test_an_error_ends_that_connection_alone(faulty, name, error):
    answer = under_load(faulty, name, error, 40)
    assert 0 < answer["good"] < 60
    assert set(answer["errors"]) <= {error, "ECONNRESET", "EPIPE"}
    # One connection, and so two ends of it, may go with each fault.
    assert answer["good"] >= 60 - answer["failed"]


@pytest.mark.fastloop_only("the stock loop gives such a connection up")
def test_a_send_for_which_there_is_no_buffer_is_tried_again(faulty):
    """libuv takes ENOBUFS for EAGAIN."""
    answer = under_load(faulty, "send", "ENOBUFS", 40)
    assert (answer["good"], answer["errors"], answer["reports"]) == (60, [], [])


@pytest.mark.parametrize("error", ["EPERM", "ENOSPC", "ENOMEM"])
def test_epoll_that_refuses_a_descriptor(faulty, error):
    """The caller is told, and the next call works."""
    text = f"""
import ctypes, errno, socket
async def main():
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    got = loop.create_future()
    ctypes.CDLL(None).fault_set(b"epoll_ctl", errno.{error}, 1)
    for call in (loop.add_reader, loop.add_writer):
        try:
            call(near, print, "called")
        except OSError as exc:
            print(errno.errorcode[exc.errno])
    ctypes.CDLL(None).fault_set(b"epoll_ctl", 0, 0)
    loop.add_reader(near, lambda: got.done() or got.set_result(near.recv(10)))
    far.send(b"data")
    print(await asyncio.wait_for(got, 20))
    loop.remove_reader(near)
    near.close(), far.close()
loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
"""
    assert faulty(text) == f"{error}\n{error}\nb'data'\n"


@pytest.mark.fastloop_only("the stock loop has no eventfd")
def test_no_wake_up_without_an_eventfd(faulty):
    """libuv has had its own: an OSError, and nothing stays open that the next loop does not use."""
    text = """
import ctypes, os
def count():
    return len(os.listdir("/proc/self/fd"))
new_event_loop().close()
parked = count()
kept = new_event_loop()
for error, every in ((24, 2), (23, 1), (12, 1)):
    ctypes.CDLL(None).fault_set(b"eventfd", error, every)
    try:
        new_event_loop()
    except OSError as exc:
        print(exc.errno)
    ctypes.CDLL(None).fault_set(b"eventfd", 0, 0)
loop = new_event_loop()
loop.run_until_complete(loop.run_in_executor(None, int))
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
kept.close()
print(count() - parked)
"""
    assert faulty(text) == "24\n23\n12\n0\n"


@pytest.mark.fastloop_only("the stock loop has no eventfd")
def test_a_child_without_an_eventfd(faulty):
    """It can neither run nor close the loop of its parent, which is not disturbed; later it can."""
    faulty.watchdog = False
    text = """
import ctypes, os, threading
loop = new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
pid = os.fork()
if pid == 0:
    # The first is libuv's own.
    for _ in range(2):
        ctypes.CDLL(None).fault_set(b"eventfd", 24, 2)
        try:
            loop.run_forever()
        except OSError as exc:
            if exc.errno != 24:
                os._exit(1)
    ctypes.CDLL(None).fault_set(b"eventfd", 0, 0)
    threading.Timer(0.001, loop.call_soon_threadsafe, (loop.stop,)).start()
    loop.run_forever()
    loop.close()
    os._exit(0)
status = os.waitpid(pid, 0)[1]
threading.Timer(0.001, loop.call_soon_threadsafe, (loop.stop,)).start()
loop.run_forever()
loop.close()
print(status)
"""
    assert faulty(text) == "0\n"


@pytest.mark.fastloop_only("the stock loop has no eventfd")
def test_no_loop_without_an_eventfd(faulty):
    """An OSError, and no half-made loop that complains when it goes, nor a descriptor."""
    text = """
import ctypes
new_event_loop().close()
# Closed, the first one's parts are kept for the next.
kept = new_event_loop()
before = os.listdir("/proc/self/fd")
for error in (24, 23, 12):
    ctypes.CDLL(None).fault_set(b"eventfd", error, 1)
    try:
        new_event_loop()
    except OSError as exc:
        print(exc.errno)
    ctypes.CDLL(None).fault_set(b"eventfd", 0, 0)
assert os.listdir("/proc/self/fd") == before
kept.close()
loop = new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
loop.close()
"""
    assert faulty(text) == "24\n23\n12\n"


@pytest.mark.fastloop_only("the stock loop leaves such a connection open and deaf")
@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM", "EPERM"])
def test_epoll_that_refuses_a_connection(faulty, error):
    """It costs that connection, not the process."""
    answer = under_load(faulty, "epoll_ctl", error, 20)
    assert 0 < answer["good"] < 60
    assert set(answer["errors"]) <= {error, "ECONNRESET", "EPIPE"}
    assert answer["good"] >= 60 - answer["failed"]


REFUSED = """
import ctypes, errno, signal, socket

def fault(every):
    for name in (b"epoll_ctl", b"epoll_ctl_any"):
        ctypes.CDLL(None).fault_set(name, errno.ERROR, every)

def attempt(function, *args):
    fault(1)
    try:
        function(*args)
    except OSError as exc:
        print(errno.errorcode[exc.errno], flush=True)
    fault(0)
"""


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM", "EPERM"])
@pytest.mark.fastloop_only("the stock loop reports nothing, or raises somewhere else")
def test_epoll_that_refuses_a_transport(faulty, error):
    """One that only reads, and one that has only something to write."""
    text = """
class Reading(asyncio.Protocol):
    def connection_made(self, transport):
        self.lost = asyncio.get_running_loop().create_future()
    def connection_lost(self, exc):
        self.lost.set_result(errno.errorcode[exc.errno])

class Writing(Reading):
    def connection_made(self, transport):
        super().connection_made(transport)
        transport.pause_reading()
        transport.write(bytes(10_000_000))

async def main():
    loop = asyncio.get_running_loop()
    for factory in (Reading, Writing):
        near, far = socket.socketpair()
        fault(1)
        transport, protocol = await loop.create_connection(factory, sock=near)
        print(await asyncio.wait_for(protocol.lost, 20))
        fault(0)
        assert near.fileno() == -1
        far.close()

loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
"""
    assert faulty(REFUSED.replace("ERROR", error) + text) == f"{error}\n{error}\n"


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM"])
@pytest.mark.fastloop_only("the stock loop has other descriptors of its own")
def test_epoll_that_refuses_the_loop(faulty, error):
    """What the loop opens for itself: when it is made, for signals, for its first timer, and after a fork."""
    text = """
loops = [new_event_loop() for _ in range(2)]
before = os.listdir("/proc/self/fd")
attempt(new_event_loop)
assert os.listdir("/proc/self/fd") == before
attempt(loops[0].add_signal_handler, signal.SIGUSR1, print)
async def main():
    fault(1)
    await asyncio.sleep(0.001)
    fault(0)
for loop in loops:
    loop.run_until_complete(main())
pid = os.fork()
if pid == 0:
    for loop in loops:
        attempt(loop.run_forever)
    attempt(loops[0].close)
    # Freed while the system still refuses.
    fault(1)
    del loop, loops[:]
    gc.collect()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
for loop in loops:
    loop.run_until_complete(main())
    loop.close()
"""
    faulty.watchdog = False
    output = faulty("import gc\n" + REFUSED.replace("ERROR", error) + text, stderr=None)
    assert output == f"{error}\n" * 5 + "0\n"
