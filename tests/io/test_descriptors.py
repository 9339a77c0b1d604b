"""Descriptors that the process lacks, or that somebody closes behind the back of their owner."""

import pytest

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


def test_a_forked_child_without_standard_streams(python):
    python.watchdog = False
    assert (
        python(
            WITHOUT_STANDARD_STREAMS
            + """
loop = new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
pid = os.fork()
if pid == 0:
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    os._exit(0)
print(os.waitpid(pid, 0)[1], file=report, flush=True)
loop.close()
"""
        )
        == "0\n"
    )
