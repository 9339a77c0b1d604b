"""Reference counts on a debug interpreter: each public call, made again and again, leaves the total where it was.

    python tests/memory/references.py [NAME ...]        with a Python configured --with-pydebug; `make refs`

A call leaks when each of the last rounds keeps a reference for each call of it. (Caches fill, ever slower.)
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import ctypes
import gc
import io
import os
import pathlib
import signal
import socket
import ssl
import sys
import tempfile
import threading
import warnings

import fastloop

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from certificates import CA

ROUNDS, CALLS = 6, 100
warnings.simplefilter("ignore")

AUTHORITY = CA()
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
AUTHORITY.issue_cert("localhost").configure_cert(SERVER)
CLIENT = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())


# What makes a folder takes references away, on the standard loop, too.
FOLDER = tempfile.TemporaryDirectory()
# A loop remembers who sent it datagrams: these are always the same.
DATAGRAMS = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
for each in DATAGRAMS:
    each.bind(("127.0.0.1", 0))


class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.lost = transport._loop.create_future()

    def connection_lost(self, error):
        if not self.lost.done():
            self.lost.set_result(error)


async def connected(factory=Protocol):
    near, far = socket.socketpair()
    transport, protocol = await asyncio.get_running_loop().create_connection(factory, sock=near)
    far.setblocking(False)
    return transport, protocol, far


async def failing():
    raise ValueError


# ---------------------------------------------------------------- what is called: async functions of the running loop


async def scheduling(loop):
    # Immortal objects, such as int, are not counted.
    def called(*args):
        pass

    loop.call_soon(called).cancel()
    loop.call_soon(called, object(), context=contextvars.copy_context())
    loop.call_soon_threadsafe(called, object())
    timer = loop.call_later(10, called, object())
    (timer.when(), timer.cancelled(), timer.get_context() if hasattr(timer, "get_context") else None)
    (repr(timer), hash(timer), timer == loop.call_at(loop.time() + 10, called), timer.cancel())
    for handle in list(loop._scheduled):
        handle.cancel()
    (loop.time(), loop.get_debug(), loop.is_running(), loop.is_closed(), repr(loop), loop.metrics())
    loop.call_later(0, called)
    await asyncio.sleep(0)


async def wrong_calls(loop):
    for call in (
        lambda: loop.call_soon(),
        lambda: loop.call_soon(int, nonsense=1),
        lambda: loop.call_later("soon", int),
        lambda: loop.call_at(None, int),
        lambda: loop.add_reader(-1, int),
        lambda: loop.add_reader("nothing", int),
        lambda: loop.create_task(1),
        lambda: loop.run_forever(),
        lambda: loop.close(),
        lambda: fastloop.ThreadPool(-1),
    ):
        with contextlib.suppress(Exception):
            call()


async def reports(loop):
    loop.set_exception_handler(lambda loop, context: None)
    loop.call_soon(int, "no number")
    loop.call_exception_handler({"message": "text"})
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    loop.get_exception_handler()


async def futures(loop):
    future = loop.create_future()
    future.add_done_callback(print)
    future.remove_done_callback(print)
    future.add_done_callback(lambda future: None)
    (repr(future), future.done(), future.cancelled(), future.get_loop())
    loop.call_soon(future.set_result, object())
    await future
    (future.result(), future.exception())
    failed = loop.create_future()
    failed.set_exception(ValueError())
    with contextlib.suppress(ValueError):
        await failed
    cancelled = loop.create_future()
    cancelled.cancel("why")
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    for wrong in (lambda: future.set_result(1), lambda: loop.create_future().result(), lambda: failed.set_exception(1)):
        with contextlib.suppress(Exception):
            wrong()


async def tasks(loop):
    task = loop.create_task(asyncio.sleep(0, "result"), name="name")
    (repr(task), task.get_name(), task.get_coro(), task.get_stack(), task.cancelling(), asyncio.all_tasks())
    task.set_name("other")
    task.add_done_callback(lambda task: None)
    await task
    task = loop.create_task(asyncio.sleep(10))
    await asyncio.sleep(0)
    task.cancel("why")
    task.uncancel()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    with contextlib.suppress(ValueError):
        await loop.create_task(failing())
    await asyncio.gather(asyncio.sleep(0), failing(), return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(10), 0.001)
    asyncio.current_task()


async def streams(loop):
    near, far = socket.socketpair()
    far.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=near)
    far.send(b"line\nexactly-until|rest")
    await reader.readline()
    await reader.readexactly(8)
    await reader.readuntil(b"|")
    await reader.read(4)
    waiting = loop.create_task(reader.read(1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    writer.write(b"data")
    writer.writelines([b"more", bytearray(b"and")])
    await writer.drain()
    far.close()
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def transports(loop):
    transport, protocol, far = await connected()
    (repr(transport), transport.is_reading(), transport.is_closing(), transport.get_protocol())
    for name in ("socket", "peername", "sockname", "nothing"):
        transport.get_extra_info(name)
    transport.set_write_buffer_limits(100, 10)
    (transport.get_write_buffer_limits(), transport.get_write_buffer_size(), transport.can_write_eof())
    transport.pause_reading()
    transport.resume_reading()
    transport.set_protocol(protocol)
    transport.write(b"data")
    transport.write(bytearray(b"data"))
    transport.write(bytes(1_000_000))
    for wrong in (1, None, "text"):
        with contextlib.suppress(TypeError):
            transport.write(wrong)
    far.send(b"data")
    await asyncio.sleep(0)
    transport.write_eof()
    transport.close()
    transport.abort()
    far.close()
    await protocol.lost


async def secured(loop):
    near, far = socket.socketpair()
    accepted = loop.create_task(loop.connect_accepted_socket(Protocol, far, ssl=SERVER))
    transport, protocol = await loop.create_connection(Protocol, sock=near, ssl=CLIENT, server_hostname="localhost")
    peer, received = await accepted
    for name in ("cipher", "peercert", "ssl_object", "socket"):
        transport.get_extra_info(name)
    transport.write(b"data")
    transport.writelines([b"more", bytearray(b"data")])
    peer.write(bytes(100_000))
    with contextlib.suppress(TypeError):
        transport.write(None)
    transport.pause_reading()
    transport.resume_reading()
    await asyncio.sleep(0)
    transport.close()
    await protocol.lost
    peer.abort()
    await received.lost


async def upgraded(loop):
    transport, protocol, far = await connected()
    accepted = loop.create_task(loop.connect_accepted_socket(Protocol, far, ssl=SERVER))
    secure = await loop.start_tls(transport, protocol, CLIENT, server_hostname="localhost")
    peer, received = await accepted
    secure.write(b"data")
    peer.abort()
    await received.lost
    secure.abort()
    await protocol.lost


async def servers(loop):
    protocols = []

    def factory():
        protocols.append(Protocol())
        return protocols[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    (server.is_serving(), repr(server), server.get_loop())
    for _ in range(2):
        transport, protocol = await loop.create_connection(Protocol, *address)
        transport.write(b"data")
        await asyncio.sleep(0.001)
        transport.close()
        await protocol.lost
    server.close()
    for protocol in protocols:
        await protocol.lost
    await server.wait_closed()
    with contextlib.suppress(OSError):
        await loop.create_connection(Protocol, *address)


async def unix_servers(loop):
    path = FOLDER.name + "/s"
    made = loop.create_future()
    server = await asyncio.start_unix_server(lambda reader, writer: made.set_result(writer), path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"data")
    other = await made
    for one in (writer, other):
        one.close()
    await asyncio.sleep(0.001)
    server.close()
    await server.wait_closed()


async def datagrams(loop):
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=DATAGRAMS[0].dup())
    transport.sendto(b"data", transport.get_extra_info("sockname"))
    (repr(transport), transport.is_closing(), transport.get_write_buffer_size())
    await asyncio.sleep(0.001)
    transport.close()
    await asyncio.sleep(0)


async def descriptors(loop):
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
    called = loop.create_future()
    loop.add_writer(near, lambda: called.done() or called.set_result(None))
    loop.add_reader(near, lambda: None)
    loop.add_reader(near, lambda *args: None, object())
    await called
    (loop.remove_reader(near), loop.remove_writer(near), loop.remove_writer(near))
    waiting = loop.create_task(loop.sock_recv(near, 10))
    await asyncio.sleep(0)
    await loop.sock_sendall(far, b"data")
    await waiting
    await loop.sock_sendall(far, b"data")
    await loop.sock_recv_into(near, bytearray(10))
    for sock in (near, far):
        sock.close()


async def socket_calls(loop):
    listener, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
    one, other = (sock.dup() for sock in DATAGRAMS)
    for sock in (listener, client, one, other):
        sock.setblocking(False)
    accepting = loop.create_task(loop.sock_accept(listener))
    await loop.sock_connect(client, listener.getsockname())
    peer, _ = await accepting
    with contextlib.suppress(TypeError):
        await loop.sock_sendall(client, None)
    receiving = loop.create_task(loop.sock_recvfrom(one, 10))
    await asyncio.sleep(0)
    await loop.sock_sendto(other, b"data", one.getsockname())
    await receiving
    await loop.sock_sendto(other, b"data", one.getsockname())
    await loop.sock_recvfrom_into(one, bytearray(10))
    waiting = loop.create_task(loop.sock_recv(client, 10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    for sock in (listener, client, peer, one, other):
        sock.close()


async def files(loop):
    transport, protocol, far = await connected()
    near, peer = socket.socketpair()
    near.setblocking(False)
    with tempfile.TemporaryFile() as file:
        file.write(b"data")
        await loop.sendfile(transport, file)
        await loop.sock_sendfile(near, file)
    transport.abort()
    await protocol.lost
    for sock in (far, near, peer):
        sock.close()


async def signals(loop):
    called = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, called.set_result, None)
    os.kill(os.getpid(), signal.SIGUSR1)
    await called
    (loop.remove_signal_handler(signal.SIGUSR1), loop.remove_signal_handler(signal.SIGUSR1))


async def children(loop):
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
    await child.communicate(b"data")
    (child.pid, child.returncode, repr(child))
    with contextlib.suppress(OSError):
        await asyncio.create_subprocess_exec("/no such program")


async def settings(loop):
    loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
    task = loop.create_task(asyncio.sleep(0))
    await asyncio.sleep(0)
    task.print_stack(file=io.StringIO())
    await task
    loop.set_task_factory(loop.get_task_factory() and None)
    loop.set_metrics(True)
    loop.set_slow_callback_hook(lambda *args: None)
    await asyncio.sleep(0)
    loop.metrics()
    loop.set_slow_callback_hook(None)
    loop.set_metrics(False)
    await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)


class BufferedProtocol(Protocol, asyncio.BufferedProtocol):
    def get_buffer(self, hint):
        return bytearray(100)

    def buffer_updated(self, count):
        pass


async def buffered(loop):
    transport, protocol, far = await connected(BufferedProtocol)
    for _ in range(2):
        far.send(bytes(150))
        # The poll queues it beside what is ready, or delivers it.
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    transport.close()
    await protocol.lost
    far.close()


async def secured_streams(loop):
    near, far = socket.socketpair()
    accepted = loop.create_task(loop.connect_accepted_socket(BufferedProtocol, far, ssl=SERVER))
    reader, writer = await asyncio.open_connection(sock=near, ssl=CLIENT, server_hostname="localhost")
    peer, protocol = await accepted
    waiting = loop.create_task(reader.readline())
    await asyncio.sleep(0)
    peer.write(b"line\nand\n")
    await waiting
    await reader.readline()
    writer.write(b"data")
    writer.writelines([b"more", b"data"])
    await writer.drain()
    writer.close()
    await protocol.lost
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def executors(loop):
    await loop.run_in_executor(None, int)
    await asyncio.gather(*[loop.run_in_executor(None, len, "text") for _ in range(5)])
    with contextlib.suppress(ValueError):
        await loop.run_in_executor(None, int, "no number")
    await asyncio.to_thread(int)
    await loop.getaddrinfo("127.0.0.1", 80)


async def pools(loop):
    with fastloop.ThreadPool(2, thread_name_prefix="name") as pool:
        (repr(pool), pool.submit(int).result(), list(pool.map(int, "12")))
        await loop.run_in_executor(pool, int)
        with contextlib.suppress(ValueError):
            pool.submit(int, "no number").result()
        pool.submit(int).add_done_callback(lambda future: None)


async def wake_ups(loop):
    future = loop.create_future()
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(future.set_result, None))
    thread.start()
    await future
    thread.join()
    waiting = concurrent.futures.Future()
    loop.call_soon(waiting.set_result, None)
    await asyncio.wrap_future(waiting)


async def pipes(loop):
    read_end, write_end = os.pipe()
    reading, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(read_end, "rb", 0))
    writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(write_end, "wb", 0))
    writing.write(b"data")
    await asyncio.sleep(0)
    writing.close()
    reading.close()
    await asyncio.sleep(0)


async def generators(loop):
    async def numbers():
        for number in range(3):
            yield number

    async for _ in numbers():
        break
    await asyncio.sleep(0)


def loops():
    """The whole life of one."""
    loop = fastloop.new_event_loop()
    loop.call_later(10, int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.run_until_complete(transports(loop))
    near, far = socket.socketpair()
    loop.run_until_complete(loop.create_connection(Protocol, sock=near))
    loop.set_debug(True)
    loop.slow_callback_duration = 1000
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    far.close()


def runs():
    fastloop.run(asyncio.sleep(0))
    fastloop.install()
    asyncio.run(asyncio.sleep(0))
    fastloop.uninstall()


def unclosed_loops():
    loop = fastloop.new_event_loop()
    loop.call_soon(int)
    loop.cycle = loop


def planted():
    """Shows that a leak would be seen."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(object()))


CALLED = [
    planted,
    *(scheduling, wrong_calls, reports, futures, tasks, streams, transports, secured, upgraded),
    *(servers, unix_servers, datagrams),
    *(descriptors, socket_calls, files, signals, children, settings, buffered, secured_streams),
    *(executors, pools, wake_ups, pipes, generators, loops, runs, unclosed_loops),
]


def settled():
    for _ in range(3):
        gc.collect()
    return sys.gettotalrefcount()


def totals(function):
    """The total number of references after each round."""
    results = []
    loop = fastloop.new_event_loop()
    try:
        for _ in range(ROUNDS):
            for _ in range(CALLS):
                if asyncio.iscoroutinefunction(function):
                    loop.run_until_complete(function(loop))
                else:
                    function()
            loop.run_until_complete(asyncio.sleep(0))
            results.append(settled())
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    return results


def main():
    if not hasattr(sys, "gettotalrefcount"):
        sys.exit("references.py needs a debug interpreter")
    leaks = 0
    for function in CALLED:
        if sys.argv[1:] and function.__name__ not in sys.argv[1:]:
            continue
        results = totals(function)
        changes = [later - earlier for earlier, later in zip(results, results[1:])]
        leaking = min(changes[-3:]) > 0.9 * CALLS
        leaks += leaking != (function is planted)
        verdict = "" if not leaking else "  LEAK (as it must)" if function is planted else "  LEAK"
        print(f"{function.__name__:16} {changes}{verdict}", flush=True)
    sys.exit(bool(leaks))


if __name__ == "__main__":
    main()
