"""Code that runs where nobody expects any: in the collector, at each call, in what is given to a transport."""

import asyncio
import gc
import socket
import sys

import pytest

# What is done to the loop in between, and does not change what is sent.
ACTIONS = {
    "schedule": "loop.call_soon(int); loop.call_later(0, int); loop.call_later(100, int).cancel()",
    "futures": "loop.create_future().set_result(1); loop.create_future().cancel()",
    "look": "loop._ready; loop._scheduled; repr(transport); asyncio.all_tasks(loop)",
    "transport": "transport.pause_reading(); transport.resume_reading(); transport.write(b'')",
    "another": "new_event_loop().close()",
}

PROGRAM = """
import asyncio, gc, sys

busy = False
loop = new_event_loop()
transport = None


def act(*args):
    global busy
    if busy:
        return
    busy = True
    try:
        ACTION
    except (AttributeError, RuntimeError):
        pass
    finally:
        busy = False


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def ask(address):
    global transport
    reader, writer = await asyncio.open_connection(*address)
    transport = writer.transport
    for size in (1, 300, 5000, 70000):
        line = bytes([size % 250 + 20 & 127 | 64]) * size + b"\\n"
        writer.writelines([line[:10], bytearray(line[10:])])
        assert await reader.readexactly(len(line)) == line
        assert await loop.run_in_executor(None, int) == 0
        await asyncio.sleep(0.0001)
    writer.close()
    await writer.wait_closed()
    return "fine"


async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0, limit=1 << 20)
    answers = await asyncio.gather(*[ask(server.sockets[0].getsockname()) for _ in range(2)])
    server.close()
    await server.wait_closed()
    return answers


START
answers = loop.run_until_complete(main())
END
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print(*answers)
"""

WAYS = {
    "collector": (
        "gc.callbacks.append(act); gc.set_threshold(10, 1, 1)",
        "gc.callbacks.clear(); gc.set_threshold(700, 10, 10)",
    ),
    "calls": ("sys.setprofile(act)", "sys.setprofile(None)"),
}


@pytest.mark.usefixtures("debug_off")
@pytest.mark.fastloop_only("the stock loop schedules for ever, when each of its own calls adds something")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_code_in_between(python, way, action):
    start, end = WAYS[way]
    program = PROGRAM.replace("ACTION", ACTIONS[action]).replace("START", start).replace("END", end)
    assert python(program) == "fine fine\n"


class Lost(asyncio.Protocol):
    count = 0

    def connection_lost(self, error):
        self.count += 1


USES = {
    "close": lambda transport: transport.close(),
    "abort": lambda transport: transport.abort(),
    "write": lambda transport: transport.write(b"written"),
    "write much": lambda transport: transport.write(bytes(3_000_000)),
    "end": lambda transport: transport.write_eof(),
    "protocol": lambda transport: transport.set_protocol(transport.get_protocol()),
    "raise": lambda transport: 1 / 0,
    "collect": lambda transport: gc.collect(),
}


class Buffer:
    """Uses the transport when it is asked for its bytes (Python 3.12 and later), and shrinks them afterwards."""

    def __init__(self, use):
        self.use, self.data = use, bytearray(b"buffer")

    def __buffer__(self, flags):
        self.use()
        return memoryview(self.data)

    def __release_buffer__(self, view):
        view.release()
        self.use()
        self.data.clear()


def lines_that(use):
    """Three lines, and the use of the transport between them."""
    for number in range(3):
        if number:
            use()
        yield b"%d" % number


@pytest.mark.fastloop_only("the stock loop fails in between, or sends a part")
@pytest.mark.left_out(lambda of, **_: of == "buffer" and sys.version_info < (3, 12), reason="new in Python 3.12")
@pytest.mark.parametrize("of", ["iterable", "buffer"])
@pytest.mark.parametrize("use", USES)
def test_what_is_written_uses_the_transport(loop, run, use, of):
    """Nothing crashes, connection_lost() comes once, and what was sent is whole."""

    async def main():
        near, far = socket.socketpair()
        far.setblocking(False)
        transport, protocol = await loop.create_connection(Lost, sock=near)

        def use_it():
            USES[use](transport)

        written = lines_that(use_it) if of == "iterable" else [b"before", Buffer(use_it), b"after"]
        try:
            transport.writelines(written)
        except (ZeroDivisionError, RuntimeError, OSError):
            pass
        await asyncio.sleep(0.001)
        try:
            data = far.recv(1 << 20)
        except BlockingIOError:
            data = b""
        if use not in ("write", "write much"):
            assert data in (b"", b"012", b"beforebufferafter")
        transport.abort()
        await asyncio.sleep(0.001)
        assert protocol.count == 1
        far.close()

    run(main())
