"""Server objects: life, sockets, closing per version, bad clients, running out of descriptors."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import struct
import sys
import threading
import time
import weakref

import pytest

from helpers import Recorder, free_port, turns, until, without_clients

WAITS_FOR_CLIENTS = sys.version_info >= (3, 12)


def connected(server):
    """A plain client socket connected to a server's first socket."""
    return socket.create_connection(server.sockets[0].getsockname())


# ---------------------------------------------------------------- life


def test_the_server_is_an_asyncio_server(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        assert isinstance(server, asyncio.Server) and isinstance(server, asyncio.AbstractServer)
        assert server.get_loop() is loop and server.is_serving()
        assert repr(server).startswith("<Server sockets=")
        (sock,) = server.sockets
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock.getsockname()[0] == "127.0.0.1" and sock.getsockname()[1] > 0
        server.close()
        assert not server.is_serving() and server.sockets == ()
        server.close()
        await server.wait_closed()
        assert repr(server) == "<Server sockets=()>"

    run(main())


def test_it_does_not_serve_before_it_is_told_to(loop, run):
    async def main():
        made = []
        server = await loop.create_server(
            lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0, start_serving=False
        )
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            connected(server)
        await server.start_serving()
        await server.start_serving()
        assert server.is_serving()
        sock = connected(server)
        await until(lambda: made)
        sock.close()
        await until(lambda: made[0].lost)
        server.close()
        await server.wait_closed()

    run(main())


def test_as_a_context_manager_it_is_closed_at_the_end(loop, run):
    async def main():
        async with await loop.create_server(Recorder, "127.0.0.1", 0) as server:
            assert server.is_serving()
        assert not server.is_serving() and server.sockets == ()

    run(main())


def test_serve_forever_ends_when_cancelled_and_closes_the_server(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
        task = asyncio.ensure_future(server.serve_forever())
        await turns(3)
        assert server.is_serving()
        with pytest.raises(RuntimeError, match="is already being awaited on serve_forever"):
            await server.serve_forever()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.is_serving() and server.sockets == ()
        with pytest.raises(RuntimeError, match="is closed$"):
            await server.serve_forever()

    run(main())


def test_serve_forever_ends_when_the_server_is_closed(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve_forever())
        await turns(2)
        server.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.wait_closed()

    run(main())


def test_a_server_that_nobody_references_goes_on_serving(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        reference, address = weakref.ref(server), server.sockets[0].getsockname()
        del server
        gc.collect()
        client = socket.create_connection(address)
        await until(lambda: made)
        client.close()
        await until(lambda: made[0].lost)
        reference().close()
        await turns(2)

    run(main())


def test_closing_stops_accepting_at_once_and_frees_the_port(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        server.close()
        await turns(2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        again = await loop.create_server(Recorder, *address)
        again.close()
        await again.wait_closed()

    run(main())


def test_closing_in_the_turn_of_a_pending_connection(loop, run):
    async def main():
        for _ in range(20):
            made = []
            server = await loop.create_server(lambda made=made: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
            client = socket.create_connection(server.sockets[0].getsockname())
            server.close()
            client.close()
            await turns(5)
            await until(lambda made=made: all(protocol.lost for protocol in made))
            await server.wait_closed()

    run(main())


# ---------------------------------------------------------------- close and the clients


def test_connections_outlive_the_server(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        client = connected(server)
        await until(lambda: made)
        server.close()
        client.send(b"still here")
        await until(lambda: made[0].data == b"still here")
        client.close()
        await until(lambda: made[0].lost)
        await server.wait_closed()

    run(main())


def test_wait_closed_waits_for_clients_as_this_version_does(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        client = connected(server)
        await until(lambda: made)
        server.close()
        waiting = asyncio.ensure_future(server.wait_closed())
        await asyncio.sleep(0.01)
        assert waiting.done() is not WAITS_FOR_CLIENTS
        client.close()
        await waiting
        await until(lambda: made[0].lost)

    run(main())


@pytest.mark.left_out(not WAITS_FOR_CLIENTS, reason="3.11 returns at once")
def test_wait_closed_before_close_waits_for_it(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        waiting = [asyncio.ensure_future(server.wait_closed()) for _ in range(3)]
        await asyncio.sleep(0.005)
        assert not any(task.done() for task in waiting)
        server.close()
        await asyncio.gather(*waiting)

    run(main())


@pytest.mark.left_out(not hasattr(asyncio.Server, "close_clients"), reason="new in Python 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_closing_and_aborting_all_clients(loop, run, method):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        clients = [connected(server) for _ in range(10)]
        await until(lambda: len(made) == 10 and all(protocol.made for protocol in made))
        for protocol in made:
            protocol.transport.write(b"x" * 1_000_000)
        server.close()
        getattr(server, method)()
        for client in clients:
            client.setblocking(False)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await loop.sock_recv(client, 1_000_000):
                    received += len(data)
            assert method == "abort_clients" or received == 1_000_000
            client.close()
        await server.wait_closed()
        assert all(protocol.lost for protocol in made)

    run(main())


@pytest.mark.left_out(not hasattr(asyncio.Server, "close_clients"), reason="new in Python 3.13")
def test_a_closed_client_is_no_client_any_more(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        for _ in range(5):
            client = connected(server)
            await until(lambda: len(server._clients) == 1)
            client.close()
            await until(lambda: len(server._clients) == 0)
        server.close()
        await server.wait_closed()

    run(main())


class Counted:
    """Clients that come and go, one after the other, and what the server counted meanwhile."""

    def __init__(self, server):
        self.server = server
        self.counts = []

    def count(self):
        return len(self.server._clients) if hasattr(self.server, "_clients") else self.server._active_count

    async def one(self):
        client = connected(self.server)
        await until(lambda: self.count() == 1)
        self.counts.append(self.count())
        client.close()
        await until(lambda: self.count() == 0)


@pytest.fixture(params=["", "servers"], ids=["everything on", "without servers"])
def servers_off(request, monkeypatch):
    monkeypatch.setenv("FASTLOOP_DISABLE", request.param)


def test_connections_are_counted(servers_off, loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        counted = Counted(server)
        for _ in range(3):
            await counted.one()
        assert counted.counts == [1, 1, 1]
        server.close()
        await server.wait_closed()

    run(main())


def tell(calls, name, method, owner=None):
    """A method in place of `method` that notes its calls, or those of `owner`."""

    def told(self, *args):
        if owner is None or self is owner:
            calls.append((name, len(args)))
        return method(self, *args)

    return told


@pytest.mark.parametrize("owner", ["class", "instance"])
def test_replaced_methods_of_the_server_are_called(loop, run, monkeypatch, owner):
    async def main():
        calls = []
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        counted = Counted(server)
        await counted.one()
        for name in ("_attach", "_detach"):
            told = tell(calls, name, getattr(asyncio.Server, name))
            if owner == "class":
                monkeypatch.setattr(asyncio.Server, name, told)
            else:
                monkeypatch.setattr(server, name, told.__get__(server))
        await counted.one()
        takes = hasattr(server, "_clients")
        assert calls == [("_attach", takes), ("_detach", takes)]
        monkeypatch.undo()
        await counted.one()
        assert len(calls) == 2
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.left_out(not hasattr(asyncio.Server, "close_clients"), reason="new in Python 3.13")
def test_replaced_methods_of_the_set_of_clients_are_called(loop, run, monkeypatch):
    async def main():
        calls = []
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        counted = Counted(server)
        for name in ("add", "discard"):
            told = tell(calls, name, getattr(weakref.WeakSet, name), server._clients)
            monkeypatch.setattr(weakref.WeakSet, name, told)
        await counted.one()
        assert calls == [("add", 1), ("discard", 1)]
        monkeypatch.undo()
        server._clients = kept = set()
        client = connected(server)
        await until(lambda: len(kept) == 1)
        client.close()
        await until(lambda: len(kept) == 0)
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.left_out(not hasattr(asyncio.Server, "close_clients"), reason="new in Python 3.13")
def test_clients_come_and_go_while_they_are_iterated_over(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        clients = [connected(server) for _ in range(3)]
        await until(lambda: len(server._clients) == 3)
        iterator = iter(server._clients.copy())
        transport = next(iterator)
        transport.abort()
        del transport
        await until(lambda: len(server._clients) == 2)
        del iterator
        clients.append(connected(server))
        await until(lambda: len(server._clients) == 3)
        for client in clients:
            client.close()
        await until(lambda: len(server._clients) == 0)
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.left_out(hasattr(asyncio.Server, "close_clients"), reason="counted by a number up to Python 3.12")
@pytest.mark.parametrize("count", [True, 2.0, 1 << 70])
def test_a_count_that_is_no_small_int(loop, run, count):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        server._active_count = count
        client = connected(server)
        await until(lambda: server._active_count == count + 1 or server._active_count != count)
        assert server._active_count == count + 1
        client.close()
        await until(lambda: server._active_count == count)
        server._active_count = 0
        server.close()
        await server.wait_closed()

    run(main())


# ---------------------------------------------------------------- arguments


def test_several_hosts_make_several_sockets(loop, run):
    async def main():
        port = free_port()
        server = await loop.create_server(Recorder, ["127.0.0.1", "127.0.0.2"], port)
        assert sorted(sock.getsockname()[0] for sock in server.sockets) == ["127.0.0.1", "127.0.0.2"]
        for host in ("127.0.0.1", "127.0.0.2"):
            socket.create_connection((host, port)).close()
        await turns(5)
        await without_clients(server)

    run(main())


@pytest.mark.parametrize("host", [None, ""])
def test_no_host_means_every_interface(loop, run, host):
    async def main():
        server = await loop.create_server(Recorder, host, 0)
        families = {sock.family for sock in server.sockets}
        assert socket.AF_INET in families
        server.close()
        await server.wait_closed()

    run(main())


def test_a_socket_of_ones_own(loop, run):
    async def main():
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = await loop.create_server(Recorder, sock=sock)
        assert server.sockets[0].fileno() == sock.fileno()
        assert sock.getblocking() is False
        client = connected(server)
        client.close()
        server.close()
        await server.wait_closed()
        await turns(3)
        assert sock.fileno() == -1

    run(main())


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "Neither host/port nor sock were specified"),
        (
            {"host": "127.0.0.1", "port": 0, "sock": True},
            ValueError,
            "host/port and sock can not be specified at the same time",
        ),
        ({"sock": "datagram"}, ValueError, "A Stream Socket was expected, got <socket"),
        ({"host": "127.0.0.1", "port": 0, "ssl": True}, TypeError, "ssl argument must be an SSLContext or None"),
        (
            {"host": "127.0.0.1", "port": 0, "ssl_handshake_timeout": 5},
            ValueError,
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            {"host": "127.0.0.1", "port": 0, "ssl_shutdown_timeout": 5},
            ValueError,
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
        ({"host": "127.0.0.1", "port": 99999}, OverflowError, "port must be 0-65535"),
        ({"host": "256.256.256.256.invalid", "port": 0}, socket.gaierror, ""),
    ],
    ids=range(8),
)
def test_wrong_arguments(loop, run, options, error, message):
    async def main():
        kind = options.get("sock")
        with socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as sock:
            with pytest.raises(error) as caught:
                await loop.create_server(Recorder, **{**options, "sock": sock} if kind else options)
        assert message in str(caught.value)

    run(main())


def test_a_port_in_use_is_an_os_error_that_names_the_address(loop, run):
    async def main():
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            with pytest.raises(OSError) as caught:
                await loop.create_server(Recorder, *sock.getsockname())
            assert caught.value.errno == errno.EADDRINUSE
            assert "error while attempting to bind on address" in str(caught.value)
            assert f"'127.0.0.1', {sock.getsockname()[1]}" in str(caught.value)

    run(main())


def test_two_servers_share_a_port_with_reuse_port(loop, run):
    async def main():
        first = await loop.create_server(Recorder, "127.0.0.1", 0, reuse_port=True)
        second = await loop.create_server(Recorder, *first.sockets[0].getsockname(), reuse_port=True)
        for server in (first, second):
            assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            server.close()
            await server.wait_closed()

    run(main())


@pytest.mark.left_out(sys.version_info < (3, 13), reason="new in Python 3.13")
def test_keep_alive(loop, run):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0, keep_alive=True)
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        server.close()
        await server.wait_closed()

    run(main())


# ---------------------------------------------------------------- connect_accepted_socket


def test_a_connection_that_was_accepted_elsewhere(loop, run, authority):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for tls in (None, authority.server):
                client = asyncio.ensure_future(
                    asyncio.open_connection(*listener.getsockname(), ssl=tls and authority.client)
                )
                await turns(5)
                await asyncio.sleep(0.01)
                accepted, _ = listener.accept()
                transport, protocol = await loop.connect_accepted_socket(Recorder, accepted, ssl=tls)
                reader, writer = await client
                transport.write(b"accepted elsewhere")
                assert await reader.readexactly(18) == b"accepted elsewhere"
                writer.write(b"answer")
                await until(lambda protocol=protocol: protocol.data == b"answer")
                writer.close()
                await writer.wait_closed()
                await until(lambda protocol=protocol: protocol.lost)

    run(main())


def test_only_stream_sockets_are_accepted(loop, run):
    async def main():
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError, match="A Stream Socket was expected"):
                await loop.connect_accepted_socket(Recorder, sock)

    run(main())


# ---------------------------------------------------------------- clients that misbehave


def test_a_hundred_bad_clients_beside_good_ones(loop, run):
    """Resets, garbage, half-closed and silent clients: the good ones are all answered."""

    serving = set()

    async def serve(reader, writer):
        serving.add(writer)
        try:
            async for line in reader:
                writer.write(line.upper())
                await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            serving.remove(writer)

    async def bad(address, kind):
        sock = socket.create_connection(address)
        sock.setblocking(False)
        if kind == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif kind == "garbage":
            with contextlib.suppress(BlockingIOError):
                sock.send(os.urandom(200_000))
        elif kind == "half":
            sock.send(b"half a line")
            sock.shutdown(socket.SHUT_WR)
        elif kind == "slow":
            for byte in b"slow\n":
                sock.send(bytes([byte]))
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        sock.close()

    async def good(address, number):
        reader, writer = await asyncio.open_connection(*address)
        for i in range(10):
            writer.write(b"good %d %d\n" % (number, i))
            assert await reader.readline() == b"GOOD %d %d\n" % (number, i)
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        kinds = ["reset", "garbage", "half", "slow", "silent"]
        await asyncio.gather(*[bad(address, kinds[i % 5]) for i in range(100)], *[good(address, i) for i in range(50)])
        await without_clients(server)
        await until(lambda: not serving)
        await turns(3)

    run(main())


def test_a_client_that_is_gone_before_it_is_accepted(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        for _ in range(20):
            with socket.create_connection(server.sockets[0].getsockname()) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.sleep(0.02)
        with socket.create_connection(server.sockets[0].getsockname()) as sock:
            sock.send(b"alive")
            await until(lambda: made and made[-1].data == b"alive")
        await until(lambda: all(protocol.lost for protocol in made))
        server.close()
        await server.wait_closed()

    run(main())


def test_a_burst_of_connections_is_accepted_whole(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0, backlog=300)
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(250)]
        for client in clients:
            client.send(b"x")
        await until(lambda: len(made) == 250 and all(protocol.data for protocol in made))
        for client in clients:
            client.close()
        await until(lambda: all(protocol.lost for protocol in made))
        server.close()
        await server.wait_closed()

    run(main())


def test_crowds_and_single_connections_take_turns(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        for size in [1] * 20 + [30, 1, 2, 1, 1, 1, 40, 3] + [1] * 70 + [50]:
            clients = [connected(server) for _ in range(size)]
            await until(lambda size=size: len(made) == size and all(protocol.made for protocol in made))
            for client in clients:
                client.close()
            await until(lambda: all(protocol.lost for protocol in made))
            made.clear()
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_a_server_that_is_closed_by_the_first_of_two_connections(servers_off, loop, run, before):
    """Both have come by then, and both are served, however few the calls that accept."""

    async def main():
        made, ending = [], []
        server = await loop.create_server(
            lambda: made.append(Recorder(connection_made=lambda protocol: ending and server.close())) or made[-1],
            "127.0.0.1",
            0,
        )
        for _ in range(before):
            with connected(server):
                await until(lambda: made and made[-1].made)
            await until(lambda: made[-1].lost)
            made.clear()
        ending.append(True)
        clients = [connected(server) for _ in range(2)]
        for client in clients:
            client.send(b"x")
        await until(lambda: len(made) == 2 and all(protocol.data == b"x" for protocol in made))
        assert server.sockets == ()
        closed = asyncio.ensure_future(server.wait_closed())
        await turns(3)
        assert closed.done() is not WAITS_FOR_CLIENTS
        for client in clients:
            client.close()
        await until(lambda: all(protocol.lost for protocol in made))
        await closed

    run(main())


def test_servers_that_are_closed_while_another_one_closes(loop, run):
    """Each connection that had come is served, whoever's factory closes which server."""

    async def main():
        made, names, ending = [], [], []
        servers = {}

        def factory(name):
            if ending:
                names.append(name)
                if name == "A":
                    servers["B"].close()
                elif names.count("B") == 2:
                    servers["C"].close()
            made.append(Recorder())
            return made[-1]

        for name in "ABC":
            servers[name] = await loop.create_server(lambda name=name: factory(name), "127.0.0.1", 0)
        addresses = {name: server.sockets[0].getsockname() for name, server in servers.items()}
        clients = []
        for name in "ABC" * 16:
            clients.append(socket.create_connection(addresses[name]))
            await until(lambda: len(made) == len(clients) and made[-1].made)
        ending.append(True)
        clients += [socket.create_connection(addresses[name]) for name in "CCCBBBBA"]
        await until(lambda: len(made) == len(clients) and all(protocol.made for protocol in made))
        assert sorted(names) == sorted("CCCBBBBA")
        servers["A"].close()
        for client in clients:
            client.close()
        await until(lambda: all(protocol.lost for protocol in made))

    run(main())


@pytest.mark.usefixtures("debug_off")
def test_a_server_that_is_closed_in_another_thread_makes_no_protocol_there(loop, run):
    async def main():
        threads, made = [], []

        def factory():
            threads.append(threading.get_ident())
            made.append(Recorder())
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        clients = []
        for count in range(1, 13):
            clients.append(connected(server))
            await until(lambda count=count: len(made) == count and made[-1].made)
        clients.append(connected(server))
        other = threading.Thread(target=server.close)
        other.start()
        other.join()
        await turns(20)
        assert set(threads) == {threading.get_ident()}
        for client in clients:
            client.close()
        await until(lambda: all(protocol.lost for protocol in made))

    run(main())


def test_a_crowd_after_single_connections_does_not_take_a_turn_each(loop, run):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0, backlog=200)
        clients = []
        for size in [1] * 130 + [60]:
            clients += [connected(server) for _ in range(size)]
            turns = 0
            while len(made) < len(clients):
                turns += 1
                # Of quick turns fastloop polls in some only.
                time.sleep(0.0002)
                await asyncio.sleep(0)
        assert turns < 40
        for client in clients:
            client.close()
        await until(lambda: all(protocol.lost for protocol in made))
        server.close()
        await server.wait_closed()

    run(main())


def test_running_out_of_descriptors_is_reported_and_serving_resumes(python):
    assert (
        python("""
        import resource, socket
        reports = []
        def report(loop, context):
            if LOOP == "stock" and "_start_serving" in context["message"]:
                # It tries again, a second later, on a server that was closed meanwhile.
                return
            reports.append((context["message"], type(context["exception"]).__name__, context["exception"].errno,
                            tuple(sorted(context)), type(context["socket"]).__name__))
        async def serve(reader, writer):
            writer.write(b"served")
            writer.close()
            await writer.wait_closed()
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(report)
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            clients = [socket.socket() for _ in range(3)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 1, 4096))
            hogs = []
            try:
                while True:
                    hogs.append(os.dup(0))
            except OSError:
                pass
            for client in clients:
                client.connect(address)
            while not reports:
                await asyncio.sleep(0.01)
            first = len(reports)
            for hog in hogs:
                os.close(hog)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 4096))
            for client in clients:
                client.setblocking(False)
                data = b""
                while chunk := await loop.sock_recv(client, 100):
                    data += chunk
                assert data == b"served"
                client.close()
            print(first >= 1, set(reports))
            server.close()
            await server.wait_closed()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        """)
        == "True {('socket.accept() out of system resource', 'OSError', 24, "
        "('exception', 'message', 'socket'), 'TransportSocket')}\n"
    )
