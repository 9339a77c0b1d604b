"""Ten thousand connections at once: every one gets back exactly what it sent.

The two ends are processes of their own, with a raised limit of descriptors; the end that is not under test is written
with plain sockets and epoll, so that it shows the faults of the other alone.
"""

import json
import resource

import pytest

CONNECTIONS = 10_000
ROUNDS = 3
#: Descriptors that a process needs besides those of the connections.
SPARE = 100

COMMON = f"""
import json, random, resource, select, socket
COUNT, ROUNDS, SPARE = {CONNECTIONS}, {ROUNDS}, {SPARE}
hard = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], COUNT + SPARE)
resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + SPARE, hard))

def message(number, turn):
    random_bytes = random.Random(number * ROUNDS + turn)
    return b"%d:%d:" % (number, turn) + random_bytes.randbytes(random_bytes.randrange(1, 2000))

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def report(**facts):
    print(json.dumps(facts), flush=True)
"""

SERVER = """
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        opened()

    def data_received(self, data):
        self.transport.write(data)

    def connection_lost(self, error):
        closed(error)

async def handle(reader, writer):
    opened()
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()
    closed(None)

facts = {"open": 0, "peak": 0, "total": 0, "errors": 0}

def opened():
    facts["open"] += 1
    facts["total"] += 1
    facts["peak"] = max(facts["peak"], facts["open"])

def closed(error):
    facts["open"] -= 1
    facts["errors"] += error is not None
    if facts["total"] == COUNT and not facts["open"]:
        done.set()

async def main():
    global done
    done = asyncio.Event()
    before = descriptors()
    if STYLE == "protocol":
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, backlog=1000)
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1000)
    report(port=server.sockets[0].getsockname()[1])
    await done.wait()
    server.close()
    await server.wait_closed()
    while descriptors() > before:
        await asyncio.sleep(0.01)
    report(**facts)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""

PLAIN_CLIENTS = """
def connect_all():
    # No more than half of the backlog at a time: a SYN that is dropped comes again after a second.
    socks = []
    while len(socks) < COUNT:
        batch = []
        for _ in range(min(500, COUNT - len(socks))):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", PORT))
            batch.append(sock)
        for sock in batch:
            select.select([], [sock], []) if sock.fileno() < 1024 else wait_for_one(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        socks += batch
    return socks

def wait_for_one(sock):
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    assert poll.poll(20000)

def exchange(socks, turn):
    expected, received = {}, {}
    epoll = select.epoll()
    numbers = {sock.fileno(): number for number, sock in enumerate(socks)}
    for number, sock in enumerate(socks):
        expected[number], received[number] = message(number, turn), b""
        epoll.register(sock, select.EPOLLIN)
        assert sock.send(expected[number]) == len(expected[number])
    waiting = set(expected)
    while waiting:
        events = epoll.poll(20)
        assert events, f"{len(waiting)} connections wait in vain"
        for fd, _ in events:
            number = numbers[fd]
            data = socks[number].recv(65536)
            assert data, "end of file"
            received[number] += data
            assert expected[number].startswith(received[number]), number
            if expected[number] == received[number]:
                waiting.discard(number)
    epoll.close()

socks = connect_all()
for turn in range(ROUNDS):
    exchange(socks, turn)
for sock in socks:
    sock.close()
report(echoed=len(socks))
"""

PLAIN_SERVER = """
listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
listener.setblocking(False)
report(port=listener.getsockname()[1])
epoll = select.epoll()
epoll.register(listener, select.EPOLLIN)
socks, total, peak = {}, 0, 0
while total < COUNT or socks:
    events = epoll.poll(30)
    assert events, f"nothing happens: {total} {len(socks)}"
    for fd, _ in events:
        if fd == listener.fileno():
            sock, _ = listener.accept()
            epoll.register(sock, select.EPOLLIN)
            socks[sock.fileno()], total = sock, total + 1
            peak = max(peak, len(socks))
        elif data := socks[fd].recv(65536):
            assert socks[fd].send(data) == len(data)
        else:
            socks.pop(fd).close()
report(peak=peak, total=total)
"""

CLIENTS = """
class Client(asyncio.Protocol):
    def __init__(self):
        self.expected, self.received, self.done, self.lost = 0, b"", None, asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        if len(self.received) >= self.expected and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error):
        assert error is None, error
        self.lost.set()

    async def exchange(self, data):
        self.expected, self.received, self.done = len(data), b"", asyncio.get_running_loop().create_future()
        self.transport.write(data)
        await self.done
        return self.received

    async def close(self):
        self.transport.close()
        await self.lost.wait()

class Streams:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def exchange(self, data):
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def close(self):
        self.writer.close()
        await self.writer.wait_closed()

async def connect():
    if STYLE == "streams":
        return Streams(*await asyncio.open_connection("127.0.0.1", PORT))
    return (await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", PORT))[1]

async def use(number):
    async with few:
        client = await connect()
    counts["connected"] += 1
    if counts["connected"] == COUNT:
        all_connected.set()
    await all_connected.wait()
    for turn in range(ROUNDS):
        data = message(number, turn)
        assert await client.exchange(data) == data, number
    counts["finished"] += 1
    if counts["finished"] == COUNT:
        all_finished.set()
    await all_finished.wait()
    await client.close()

async def main():
    global few, all_connected, all_finished, counts
    few, all_connected, all_finished = asyncio.Semaphore(500), asyncio.Event(), asyncio.Event()
    counts = {"connected": 0, "finished": 0}
    before = descriptors()
    await asyncio.gather(*[use(number) for number in range(COUNT)])
    while descriptors() > before:
        await asyncio.sleep(0.01)
    report(echoed=counts["finished"])

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.fixture(autouse=True)
def enough_descriptors():
    """Skip where the two child processes may not open as many descriptors as they need."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + SPARE:
        pytest.skip(f"a process may open {hard} descriptors only, {CONNECTIONS + SPARE} are needed (ulimit -Hn)")


def run_both(python, server, client, **names):
    """Start the server, then the client that is told the server's port; return what each reported at its end."""
    head = COMMON + "".join(f"{name} = {value!r}\n" for name, value in names.items())
    serving = python.start(head + server)
    line = serving.stdout.readline()
    assert line, serving.communicate()
    asking = python.start(f"{head}PORT = {json.loads(line)['port']}\n{client}")
    answers = []
    for child in (asking, serving):
        output, errors = child.communicate(timeout=55)
        assert (child.returncode, errors) == (0, ""), (child.returncode, output, errors[-3000:])
        answers.append(json.loads(output))
    return answers


@pytest.mark.parametrize("style", ["protocol", "streams"])
def test_server(python, style):
    client, server = run_both(python, SERVER, PLAIN_CLIENTS, STYLE=style)
    assert client == {"echoed": CONNECTIONS}
    assert server == {"open": 0, "peak": CONNECTIONS, "total": CONNECTIONS, "errors": 0}


@pytest.mark.parametrize("style", ["protocol", "streams"])
def test_clients(python, style):
    client, server = run_both(python, PLAIN_SERVER, CLIENTS, STYLE=style)
    assert client == {"echoed": CONNECTIONS}
    assert server == {"peak": CONNECTIONS, "total": CONNECTIONS}
