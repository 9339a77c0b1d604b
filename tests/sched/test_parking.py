"""A closed loop leaves its uv_loop to the next one, whatever happened to the process in between."""

import pytest

MAKE = """
async def job(loop):
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    return await loop.run_in_executor(None, int, "5")

def use():
    loop = new_event_loop()
    assert loop.run_until_complete(job(loop)) == 5
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

def count():
    return len(os.listdir("/proc/self/fd"))

"""


@pytest.fixture
def one_after_the_other(python):
    python.watchdog = False
    return lambda source, **kwargs: python(MAKE + source, **kwargs)


def test_loops_one_after_the_other(one_after_the_other):
    assert (
        one_after_the_other("""
use()
before = count()
for _ in range(20):
    use()
loops = [new_event_loop() for _ in range(5)]
for loop in loops:
    loop.run_until_complete(asyncio.sleep(0))
for loop in loops:
    loop.close()
use()
print(count() - before)
""")
        == "0\n"
    )


def test_every_descriptor_closed_in_between(one_after_the_other):
    """What daemons do."""
    assert (
        one_after_the_other("""
for files in (0, 40):
    use()
    os.closerange(3, 200)
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(files)]
    use()
    for fd in kept:
        assert os.read(fd, 1) == b""
        os.close(fd)
print("used")
""")
        == "used\n"
    )


def test_a_fork_in_between(one_after_the_other):
    assert (
        one_after_the_other("""
def fork(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def forget():
    os.closerange(3, 200)
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    use()
    assert all(os.read(fd, 1) == b"" for fd in kept)

use()
print(fork(use), fork(lambda: (use(), use())), fork(forget))
use()
""")
        == "0 0 0\n"
    )


def test_an_exception_left_the_loop(one_after_the_other):
    """uv_stop() was called in a run that an exception ended."""
    assert (
        one_after_the_other(
            """
import socket
loop = new_event_loop()
near, far = socket.socketpair()

class Raising(asyncio.Protocol):
    def data_received(self, data):
        raise SystemExit(3)

async def connect():
    await loop.create_connection(Raising, sock=near)
    far.send(b"x")
    await asyncio.sleep(10)

try:
    loop.run_until_complete(connect())
except SystemExit as exc:
    print(exc)
loop.close()
use()
""",
            stderr=None,
        )
        == "3\n"
    )


def test_threads_with_loops_of_their_own(one_after_the_other):
    assert (
        one_after_the_other("""
import threading
def several():
    for _ in range(20):
        use()
threads = [threading.Thread(target=several) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("joined")
""")
        == "joined\n"
    )
