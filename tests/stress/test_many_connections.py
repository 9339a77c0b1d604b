"""Ten thousand connections at once: every one gets back exactly what it sent.

The two ends are processes of their own, with a raised limit of descriptors; the end that is not under test is written
with plain sockets and epoll, so that it shows the faults of the other alone.
"""

import json
import resource

import pytest

CONNECTIONS = 10_000
ROUNDS = 3
#: Connections that are made at once and used before the next ones: a connection that does not fit into the backlog of
#: a listening socket tries again after a second.
BATCH = 500
#: Descriptors that a process needs besides those of the connections.
SPARE = 100
#: Seconds for a test: some on an idle machine, more beside other work or under a sanitizer.
SECONDS = 200

pytestmark = pytest.mark.timeout(SECONDS, method="signal")

COMMON = f"""
import json, resource, select, socket
faulthandler.dump_traceback_later({SECONDS} - 20, exit=True)
COUNT, ROUNDS, BATCH, SPARE = {CONNECTIONS}, {ROUNDS}, {BATCH}, {SPARE}
hard = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], COUNT + SPARE)
resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + SPARE, hard))

def message(number, turn):
    return b"%d:%d:" % (number, turn) * (1 + number % 150)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

async def until_closed(before):
    # A loop opens a few for itself when it first needs them.
    while descriptors() > before + 10:
        await asyncio.sleep(0.01)

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
    await until_closed(before)
    report(**facts)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""

PLAIN_CLIENTS = """
def connect(count):
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", PORT))
    for sock in socks:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(20000)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return socks

def exchange(socks, turn, first=0):
    numbers = {sock.fileno(): number for number, sock in enumerate(socks, first)}
    by_number = dict(enumerate(socks, first))
    expected = {number: message(number, turn) for number in by_number}
    received = dict.fromkeys(expected, b"")
    epoll = select.epoll()
    for number, sock in by_number.items():
        epoll.register(sock, select.EPOLLIN)
        assert sock.send(expected[number]) == len(expected[number])
    waiting = set(expected)
    while waiting:
        events = epoll.poll(20)
        assert events, f"{len(waiting)} connections wait in vain"
        for fd, _ in events:
            number = numbers[fd]
            data = by_number[number].recv(65536)
            assert data, "end of file"
            received[number] += data
            assert expected[number].startswith(received[number]), number
            if expected[number] == received[number]:
                waiting.discard(number)
    epoll.close()

socks = []
while len(socks) < COUNT:
    batch = connect(BATCH)
    exchange(batch, 0, len(socks))
    socks += batch
for turn in range(1, ROUNDS):
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
async def exchange(reader, writer, data):
    writer.write(data)
    return await reader.readexactly(len(data))

async def use(number):
    async with few:
        client = await asyncio.open_connection("127.0.0.1", PORT)
        assert await exchange(*client, message(number, 0)) == message(number, 0), number
    counts["connected"] += 1
    if counts["connected"] == COUNT:
        all_connected.set()
    await all_connected.wait()
    for turn in range(1, ROUNDS):
        data = message(number, turn)
        assert await exchange(*client, data) == data, number
    counts["finished"] += 1
    if counts["finished"] == COUNT:
        all_finished.set()
    await all_finished.wait()
    client[1].close()
    await client[1].wait_closed()

async def main():
    global few, all_connected, all_finished, counts
    few, all_connected, all_finished = asyncio.Semaphore(BATCH), asyncio.Event(), asyncio.Event()
    counts = {"connected": 0, "finished": 0}
    before = descriptors()
    await asyncio.gather(*[use(number) for number in range(COUNT)])
    await until_closed(before)
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
        output, errors = child.communicate(timeout=SECONDS - 10)
        assert (child.returncode, errors) == (0, ""), (child.returncode, output, errors[-3000:])
        answers.append(json.loads(output))
    return answers


@pytest.mark.parametrize("style", ["protocol", "streams"])
def test_server(python, style):
    client, server = run_both(python, SERVER, PLAIN_CLIENTS, STYLE=style)
    assert client == {"echoed": CONNECTIONS}
    assert server == {"open": 0, "peak": CONNECTIONS, "total": CONNECTIONS, "errors": 0}


def test_clients(python):
    client, server = run_both(python, PLAIN_SERVER, CLIENTS)
    assert client == {"echoed": CONNECTIONS}
    assert server == {"peak": CONNECTIONS, "total": CONNECTIONS}
