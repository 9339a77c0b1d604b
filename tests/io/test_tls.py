"""TLS: clients, servers and start_tls; certificates, ALPN, timeouts, closing, resets, big transfers."""

import asyncio
import contextlib
import contextvars
import gc
import socket
import ssl
import sys
import time
from asyncio import sslproto

import pytest

from helpers import Connector, Peer, Recorder, socket_pair, turns, until, without_clients

MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("path")


class Echo(Recorder):
    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


@pytest.fixture
def served(loop, run, authority):
    """A TLS echo server on 127.0.0.1; .address, .made, .context."""

    class Served:
        context = authority.server_context("localhost", "127.0.0.1")

    state = Served()
    state.made = []
    state.server = run(
        loop.create_server(lambda: state.made.append(Echo()) or state.made[-1], "127.0.0.1", 0, ssl=state.context)
    )
    state.address = state.server.sockets[0].getsockname()
    yield state
    for protocol in state.made:
        if protocol.transport:
            protocol.transport.abort()
    run(without_clients(state.server))
    run(turns(5))


async def secure(loop, address, context, **kwargs):
    kwargs.setdefault("server_hostname", "localhost")
    return await loop.create_connection(Recorder, *address, ssl=context, **kwargs)


async def leave(*protocols):
    """Close the transports and wait until their protocols know."""
    for protocol in protocols:
        protocol.transport.close()
    await until(lambda: all(protocol.lost for protocol in protocols))


# ---------------------------------------------------------------- handshakes


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_both_versions_of_the_protocol(loop, run, served, authority, version):
    async def main():
        context = authority.client_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        transport, protocol = await secure(loop, served.address, context)
        assert transport.get_extra_info("ssl_object").version() == version.replace("_", ".")
        transport.write(b"hello")
        await until(lambda: protocol.data == b"hello")
        await leave(protocol)
        assert protocol.error is None

    run(main())


def test_connection_made_comes_after_the_handshake(loop, run, served, authority):
    async def main():
        seen = []
        transport, protocol = await loop.create_connection(
            lambda: Recorder(connection_made=lambda p: seen.append(p.transport.get_extra_info("cipher"))),
            *served.address,
            ssl=authority.client,
            server_hostname="localhost",
        )
        assert seen and seen[0] is not None
        await leave(protocol)

    run(main())


def test_the_transport_below_is_not_what_a_subclass_makes(loop_factory, authority):
    plain = loop_factory()
    plain.close()

    class Picky(type(plain)):
        def _make_socket_transport(self, sock, protocol, waiter=None, *, extra=None, server=None):
            raise AssertionError("this is no connection of its own")

    async def main(loop):
        left, right = socket_pair("unix")
        accepting = loop.create_task(loop.connect_accepted_socket(Recorder, left, ssl=authority.server))
        _, client = await loop.create_connection(
            Recorder, sock=right, ssl=authority.client, server_hostname="localhost"
        )
        _, server = await accepting
        client.transport.write(b"text")
        await until(lambda: server.data == b"text")
        await leave(client, server)

    loop = Picky()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


def test_what_a_protocol_raises_is_being_handled_when_it_is_reported(loop, run, served, authority):
    handled = []

    class Fails(Recorder):
        def data_received(self, data):
            raise ValueError("on purpose")

    async def main():
        loop.set_exception_handler(lambda loop, context: handled.append((sys.exc_info()[1], context["exception"])))
        _, protocol = await loop.create_connection(
            Fails, *served.address, ssl=authority.client, server_hostname="localhost"
        )
        protocol.transport.write(b"to be sent back")
        await until(lambda: protocol.lost)

    run(main())
    [(current, reported)] = handled
    assert current is reported and str(current) == "on purpose"


def test_the_host_name_is_taken_from_the_address(loop, run, served, authority):
    async def main():
        transport, protocol = await loop.create_connection(
            Recorder, "localhost", served.address[1], ssl=authority.client, family=socket.AF_INET
        )
        assert transport.get_extra_info("ssl_object").server_hostname == "localhost"
        await leave(protocol)

    run(main())


def test_an_unknown_authority_is_a_certificate_error(loop, run, served):
    async def main():
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await secure(loop, served.address, ssl.create_default_context())
        assert caught.value.verify_code in (19, 20, 21) and "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
        await asyncio.sleep(0.01)

    loop.set_debug(False)
    run(main())


def test_the_wrong_host_name_is_a_certificate_error(loop, run, served, authority):
    async def main():
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await secure(loop, served.address, authority.client, server_hostname="elsewhere.invalid")
        await asyncio.sleep(0.01)

    loop.set_debug(False)
    run(main())


def test_without_verification_any_certificate_will_do(loop, run, served):
    async def main():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        _, protocol = await secure(loop, served.address, context)
        await leave(protocol)

    run(main())


def test_no_version_in_common_is_an_error(loop, run, served, authority):
    async def main():
        served.context.minimum_version = ssl.TLSVersion.TLSv1_3
        context = authority.client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        # The stock loop's server closes without sending the alert.
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await secure(loop, served.address, context)
        await asyncio.sleep(0.01)

    loop.set_debug(False)
    run(main())


@pytest.mark.parametrize(
    "offered, accepted, chosen",
    [
        (["h2", "http/1.1"], ["http/1.1"], "http/1.1"),
        (["h2"], ["h2", "http/1.1"], "h2"),
        (["x"], ["y"], None),
        ([], ["h2"], None),
    ],
)
def test_alpn(loop, run, served, authority, offered, accepted, chosen):
    async def main():
        served.context.set_alpn_protocols(accepted)
        context = authority.client_context()
        if offered:
            context.set_alpn_protocols(offered)
        transport, protocol = await secure(loop, served.address, context)
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
        await leave(protocol)

    run(main())


def test_the_name_that_the_client_asks_for_reaches_the_server(loop, run, served, authority):
    names = []
    served.context.sni_callback = lambda obj, name, context: names.append(name)

    async def main():
        _, protocol = await secure(loop, served.address, authority.client)
        await leave(protocol)

    run(main())
    assert names == ["localhost"]


def test_client_certificates(loop, run, served, authority):
    async def main():
        served.context.verify_mode = ssl.CERT_REQUIRED
        served.context.load_verify_locations(authority.certificate)
        context = authority.client_context()
        authority.authority.issue_cert("client@example.invalid").configure_cert(context)
        transport, protocol = await secure(loop, served.address, context)
        transport.write(b"hello")
        await until(lambda: protocol.data == b"hello")
        certificate = served.made[0].transport.get_extra_info("peercert")
        assert ("email", "client@example.invalid") in certificate["subjectAltName"]
        await leave(protocol)

    run(main())


def test_a_handshake_that_takes_too_long(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            with pytest.raises(ConnectionAbortedError, match=r"SSL handshake is taking longer than 0\.05 seconds"):
                await loop.create_connection(
                    Recorder,
                    *silent.getsockname(),
                    ssl=ssl.create_default_context(),
                    server_hostname="localhost",
                    ssl_handshake_timeout=0.05,
                )

    run(main())


def test_a_client_that_never_shakes_hands_is_dropped_by_the_server(loop, run, authority):
    async def main():
        made = []
        server = await loop.create_server(
            lambda: made.append(Recorder()) or made[-1],
            "127.0.0.1",
            0,
            ssl=authority.server,
            ssl_handshake_timeout=0.05,
        )
        sock = socket.create_connection(server.sockets[0].getsockname())
        assert await Peer(sock).recv_all() == b""
        sock.close()
        assert made[0].events == []
        server.close()
        await server.wait_closed()

    loop.set_debug(False)
    run(main())


@pytest.mark.parametrize("way", ["garbage", "close", "reset", "plain http"])
def test_clients_that_speak_no_tls_do_not_harm_the_server(loop, run, served, authority, way):
    async def main():
        for _ in range(5):
            peer = Peer(socket.create_connection(served.address))
            if way in ("garbage", "plain http"):
                await peer.sendall(b"GET / HTTP/1.0\r\n\r\n" if way == "plain http" else bytes(range(256)))
                await peer.recv_all()
            peer.reset() if way == "reset" else peer.close()
        transport, protocol = await secure(loop, served.address, authority.client)
        transport.write(b"alive")
        await until(lambda: protocol.data == b"alive")
        await leave(protocol)
        assert [p.events for p in served.made[:5]] == [[]] * 5

    loop.set_debug(False)
    run(main())


def test_a_server_that_speaks_no_tls(loop, run):
    async def main():
        server = await asyncio.start_server(lambda r, w: (w.write(b"220 plain text\r\n"), w.close()), "127.0.0.1", 0)
        with pytest.raises(ssl.SSLError):
            await loop.create_connection(
                Recorder,
                *server.sockets[0].getsockname(),
                ssl=ssl.create_default_context(),
                server_hostname="localhost",
            )
        await asyncio.sleep(0.01)
        server.close()
        await server.wait_closed()

    run(main())


def test_a_connection_that_ends_in_the_handshake(loop, run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connecting = asyncio.ensure_future(
                loop.create_connection(
                    Recorder, *listener.getsockname(), ssl=ssl.create_default_context(), server_hostname="localhost"
                )
            )
            await asyncio.sleep(0.01)
            peer = Peer(listener.accept()[0])
            await peer.recv(100)
            peer.reset()
            with pytest.raises(ConnectionResetError):
                await connecting

    run(main())


@pytest.mark.parametrize("pause", [0, 1, 2, 4, 8, 16])
def test_a_cancelled_handshake_leaves_nothing(loop, run, served, authority, pause):
    async def main():
        task = asyncio.ensure_future(secure(loop, served.address, authority.client))
        await turns(pause)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            _, protocol = await task
            await leave(protocol)
        await asyncio.sleep(0.02)

    loop.set_debug(False)
    run(main())


CROWD = 50  # more than a server of ours answers in a turn


def hello(context):
    """The first flight of a client."""
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def greeting(server, authority, count):
    """Sockets on which clients have said hello to the server, and say nothing more."""
    socks = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(count)]
    for sock in socks:
        sock.sendall(hello(authority.client))
    return socks


def test_a_crowd_shakes_hands(loop, run, served, authority):
    async def main():
        made = await asyncio.gather(*[secure(loop, served.address, authority.client) for _ in range(CROWD)])
        for number, (transport, protocol) in enumerate(made):
            transport.write(b"%d" % number)
            await until(lambda protocol=protocol, number=number: protocol.data == b"%d" % number)
        await leave(*[protocol for _, protocol in made])

    run(main())


def test_a_crowd_that_stalls_in_the_handshake_does_not_hold_up_others(loop, run, served, authority):
    async def main():
        socks = greeting(served.server, authority, CROWD)
        _, protocol = await secure(loop, served.address, authority.client)
        await leave(protocol)
        # Each was answered.
        for sock in socks:
            assert (await Peer(sock).recv(1)) == b"\x16"
            sock.close()
        _, protocol = await secure(loop, served.address, authority.client)
        await leave(protocol)

    loop.set_debug(False)
    run(main())


def test_clients_of_a_crowd_that_leave_in_the_handshake(loop, run, served, authority):
    async def main():
        for part in (0, 1, 2):
            socks = greeting(served.server, authority, CROWD)
            await turns(part)
            for number, sock in enumerate(socks):
                Peer(sock).reset() if number % 2 else sock.close()
            _, protocol = await secure(loop, served.address, authority.client)
            await leave(protocol)
        server = served.server
        await until(lambda: not (server._clients if hasattr(server, "_clients") else server._active_count))

    loop.set_debug(False)
    run(main())


def test_callbacks_of_a_crowd_run_in_the_context_of_their_server(loop, run, authority):
    name = contextvars.ContextVar("name")
    seen = []

    async def serve(who):
        name.set(who)
        context = authority.server_context("localhost")
        context.sni_callback = lambda *_: seen.append((who, name.get("nobody")))
        return await loop.create_server(Recorder, "127.0.0.1", 0, ssl=context, backlog=CROWD)

    async def main():
        servers = [await asyncio.create_task(serve(who)) for who in ("first", "second")]
        greetings = hello(authority.client)
        with contextlib.ExitStack() as stack:
            for server in servers * CROWD:
                sock = stack.enter_context(socket.create_connection(server.sockets[0].getsockname()))
                sock.sendall(greetings)
            await until(lambda: len(seen) == 2 * CROWD)
        for server in servers:
            await without_clients(server)

    loop.set_debug(False)
    run(main())
    assert sorted(seen) == [("first", "first")] * CROWD + [("second", "second")] * CROWD


def test_a_crowd_that_takes_too_long(loop, run, authority):
    """Also those are dropped whose handshake has not begun by then."""

    async def main():
        made = []
        context = authority.server_context("localhost")
        context.sni_callback = lambda *_: time.sleep(0.005)
        server = await loop.create_server(
            lambda: made.append(Recorder()) or made[-1],
            *("127.0.0.1", 0),
            ssl=context,
            ssl_handshake_timeout=0.05,
            backlog=CROWD,
        )
        for sock in greeting(server, authority, CROWD):
            await Peer(sock).leave()
        await without_clients(server)
        assert [protocol.events for protocol in made] == [[]] * CROWD

    loop.set_debug(False)
    run(main())


def test_clients_of_a_crowd_that_say_more_than_hello(loop, run, served, authority):
    """Nothing is kept of them for later."""

    async def main():
        socks = greeting(served.server, authority, CROWD)
        for sock in socks[CROWD // 2 :]:
            with contextlib.suppress(ConnectionError):
                await Peer(sock).sendall(b"x" * 300_000)
            await Peer(sock).leave()
        _, protocol = await secure(loop, served.address, authority.client)
        await leave(protocol)
        for sock in socks[: CROWD // 2]:
            assert (await Peer(sock).recv(1)) == b"\x16"
            sock.close()

    loop.set_debug(False)
    run(main())


def test_a_name_callback_that_ends_the_crowd(loop, run, authority):
    called = []

    def end(*_):
        called.append(gc.collect())
        server.close()
        if hasattr(server, "abort_clients"):
            server.abort_clients()

    async def main():
        for sock in greeting(server, authority, CROWD):
            stack.callback(sock.close)
        await until(lambda: called)
        await turns(5)
        stack.close()
        await without_clients(server)

    loop.set_debug(False)
    context = authority.server_context("localhost")
    context.sni_callback = end
    server = run(loop.create_server(Recorder, "127.0.0.1", 0, ssl=context, backlog=CROWD))
    with contextlib.ExitStack() as stack:
        run(main())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_handshakes_of_a_crowd(loop, run, served, authority, contexts, guard, monkeypatch, error):
    """It ends the connection, or the run, of which the next goes on with the others."""
    raised = []

    def fail(connection, exc):
        raised.append(exc)
        raise error("in the handshake")

    loop.set_debug(False)
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(sslproto.SSLProtocol, "_on_handshake_complete", fail)
            for _ in range(CROWD):
                sock = stack.enter_context(socket.create_connection(served.address))
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while len(raised) < CROWD:
                stopping = loop.call_soon(loop.stop)
                with contextlib.suppress(KeyboardInterrupt):
                    loop.run_forever()
                stopping.cancel()
        told = [context["message"] for context in contexts.take()]
    # Only one can leave a poll.
    guard.unraisable.take()
    assert told == ["Fatal error: protocol.buffer_updated() call failed."] * (CROWD if error is RuntimeError else 0)
    assert [protocol.events for protocol in served.made] == [[]] * CROWD


def test_a_loop_that_ends_while_a_crowd_shakes_hands(python, authority, tmp_path):
    authority.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "chain"))
    python(
        f"""
        import gc, itertools, os, socket, ssl, warnings, weakref
        warnings.simplefilter("ignore")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain({str(tmp_path / "chain")!r})
        hello = {hello(authority.client)!r}

        class Made(asyncio.Protocol):
            def __init__(self):
                made.add(self)

        async def turns(count):
            for _ in range(count):
                await asyncio.sleep(0)

        async def main(loop, pause):
            server = await loop.create_server(Made, "127.0.0.1", 0, ssl=context)
            socks = [socket.create_connection(server.sockets[0].getsockname()) for _ in range({CROWD})]
            for sock in socks:
                sock.sendall(hello)
            await turns(pause)
            server.close()

        for end, pause in itertools.product(("close", "drop", "fork"), (2, 4, 8)):
            made = weakref.WeakSet()
            loop = new_event_loop()
            loop.run_until_complete(main(loop, pause))
            child = os.fork() if end == "fork" else None
            if child == 0:
                loop.run_until_complete(turns(pause // 2))
            if end != "drop":
                loop.close()
                gc.collect()
                assert not made
            gone = weakref.ref(loop)
            del loop
            gc.collect()
            assert gone() is None and not made
            if child == 0:
                os._exit(0)
            assert child is None or os.waitpid(child, 0) == (child, 0)
        """,
        stderr=None,
    )


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("size", [1, 16 * 1024, 16 * 1024 + 1, MIB, 8 * MIB])
def test_transfers_of_every_size(loop, run, served, authority, size):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]

    async def main():
        transport, protocol = await secure(loop, served.address, authority.client)
        transport.write(data)
        await until(lambda: len(protocol.data) == size)
        assert protocol.data == data
        await leave(protocol)

    run(main())


def test_many_small_writes(loop, run, served, authority):
    expected = b"".join(b"%d," % i for i in range(5000))

    async def main():
        transport, protocol = await secure(loop, served.address, authority.client)
        for i in range(5000):
            transport.write(b"%d," % i)
        transport.writelines([b"end"] * 10)
        await until(lambda: len(protocol.data) == len(expected) + 30)
        assert protocol.data == expected + b"end" * 10
        await leave(protocol)

    run(main())


# ---------------------------------------------------------------- closing


@pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)
def test_close_sends_everything_and_says_good_bye(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.write(b"x" * 2 * MIB)
        transport.close()
        assert len(await peer.recv_exactly(2 * MIB)) == 2 * MIB
        # b"" without an SSLEOFError: the end was announced.
        assert await peer.recv(10) == b""
        peer.close()
        await until(lambda: protocol.lost)
        assert protocol.error is None

    run(main())


@pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)
def test_a_peer_that_leaves_without_good_bye(connect, run):
    async def main():
        _, protocol, peer = await connect()
        await peer.sendall(b"data")
        await until(lambda: protocol.data == b"data")
        socket.socket(fileno=peer.sock.detach()).close()
        await until(lambda: protocol.lost)
        assert protocol.error is None
        assert protocol.events[-2:] == ["eof_received", "connection_lost"]

    run(main())


@pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)
def test_close_while_the_peer_still_sends_ends_soon(connect, run):
    async def main():
        transport, protocol, peer = await connect(small=True)
        sending = asyncio.ensure_future(peer.sendall(b"x" * 4 * MIB))
        await asyncio.sleep(0.005)
        transport.close()
        await until(lambda: protocol.lost)
        with contextlib.suppress(OSError):
            await sending

    run(main())


@pytest.mark.parametrize("option", ["create_connection", "create_server"])
def test_a_peer_that_never_says_good_bye_is_dropped_after_the_timeout(loop, run, authority, option):
    async def main():
        if option == "create_connection":
            connect = Connector(loop, "tls-client", None, authority)
            ours, theirs = socket_pair("tcp")
            shaking = asyncio.ensure_future(connect.shake_hands(theirs, server_side=True))
            _, protocol = await loop.create_connection(
                Recorder, sock=ours, ssl=authority.client, server_hostname="localhost", ssl_shutdown_timeout=0.05
            )
            peer, server = await shaking, None
        else:
            made = []
            server = await loop.create_server(
                lambda: made.append(Recorder()) or made[-1],
                "127.0.0.1",
                0,
                ssl=authority.server,
                ssl_shutdown_timeout=0.05,
            )
            connect = Connector(loop, "tls-server", None, authority)
            peer = await connect.shake_hands(socket.create_connection(server.sockets[0].getsockname()), False)
            await until(lambda: made and made[0].made)
            protocol = made[0]
        protocol.transport.close()
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, TimeoutError) or protocol.error is None
        peer.close()
        if server:
            server.close()
            await server.wait_closed()

    run(main())


@pytest.mark.parametrize("connect", ["tls-client", "tls-server"], indirect=True)
def test_abort_does_not_wait(connect, run):
    async def main():
        transport, protocol, _ = await connect()
        transport.abort()
        await until(lambda: protocol.lost)
        assert protocol.error is None and protocol.events == ["connection_made", "connection_lost"]

    run(main())


def test_closed_connections_are_freed(loop, run, served, authority):
    async def main():
        for _ in range(20):
            transport, protocol = await secure(loop, served.address, authority.client)
            transport.write(b"hello")
            await until(lambda protocol=protocol: protocol.data == b"hello")
            await leave(protocol)
        await until(lambda: all(p.lost for p in served.made))
        served.made.clear()
        del transport, protocol
        await turns(3)
        gc.collect()
        return len([thing for thing in gc.get_objects() if isinstance(thing, asyncio.sslproto.SSLProtocol)])

    # Of forty protocols those of the last connections may still be held by what the loop did last.
    assert run(main()) < 8


# ---------------------------------------------------------------- start_tls


async def upgraded_pair(loop, authority, **options):
    """A client and a server that begin in plain text and upgrade; return (client, server) protocols."""
    made = []
    server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
    transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    await until(lambda: made and made[0].made)
    transport.write(b"STARTTLS\n")
    await until(lambda: made[0].data == b"STARTTLS\n")
    sides = [
        loop.start_tls(made[0].transport, made[0], authority.server, server_side=True),
        loop.start_tls(
            transport, client, options.pop("context", authority.client), server_hostname="localhost", **options
        ),
    ]
    try:
        made[0].transport, client.transport = await asyncio.gather(*sides)
    finally:
        server.close()
    return client, made[0]


def test_both_sides_upgrade_a_connection(loop, run, authority):
    async def main():
        client, server = await upgraded_pair(loop, authority)
        assert client.transport.get_extra_info("cipher") and server.transport.get_extra_info("cipher")
        client.transport.write(b"secret question")
        await until(lambda: server.data.endswith(b"secret question"))
        server.transport.write(b"secret answer" * 100_000)
        await until(lambda: len(client.data) == 13 * 100_000)
        client.transport.close()
        await until(lambda: client.lost and server.lost)
        assert client.events.count("connection_made") == 1
        assert client.error is None and server.error is None

    run(main())


def test_a_crowd_upgrades_its_connections(loop, run, authority):
    async def main():
        pairs = await asyncio.gather(*[upgraded_pair(loop, authority) for _ in range(CROWD)])
        for number, (client, server) in enumerate(pairs):
            client.transport.write(b"%d" % number)
            await until(lambda server=server, number=number: server.data.endswith(b"%d" % number))
        await leave(*[client for client, _ in pairs])
        await until(lambda: all(server.lost for _, server in pairs))

    run(main())


def test_data_sent_right_after_the_upgrade(loop, run, authority):
    async def main():
        for _ in range(10):
            client, server = await upgraded_pair(loop, authority)
            server.transport.write(b"at once")
            client.transport.write(b"at once too")
            await until(lambda c=client, s=server: c.data == b"at once" and s.data.endswith(b"at once too"))
            client.transport.close()
            await until(lambda c=client, s=server: c.lost and s.lost)

    run(main())


def test_an_upgrade_that_fails(loop, run, authority):
    async def main():
        made = []
        server = await loop.create_server(lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        await until(lambda: made and made[0].made)
        results = await asyncio.gather(
            loop.start_tls(made[0].transport, made[0], authority.server, server_side=True),
            loop.start_tls(transport, client, ssl.create_default_context(), server_hostname="localhost"),
            return_exceptions=True,
        )
        assert isinstance(results[1], ssl.SSLCertVerificationError)
        server.close()
        await until(lambda: made[0].transport.is_closing() and transport.is_closing())
        if isinstance(results[0], asyncio.Transport):
            results[0].abort()
        await asyncio.sleep(0.01)

    loop.set_debug(False)
    run(main())


def test_an_upgrade_that_takes_too_long(loop, run, authority):
    async def main():
        ours, theirs = socket_pair("tcp")
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
            await loop.start_tls(
                transport, protocol, authority.client, server_hostname="localhost", ssl_handshake_timeout=0.05
            )
        theirs.close()
        await turns(5)

    run(main())


def test_wrong_arguments_of_start_tls(loop, run, authority):
    async def main():
        ours, theirs = socket_pair("tcp")
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        with pytest.raises(TypeError, match="sslcontext is expected to be an instance of ssl.SSLContext, got None"):
            await loop.start_tls(transport, protocol, None)
        with pytest.raises(TypeError, match="is not supported by start_tls"):
            await loop.start_tls(object(), protocol, authority.client)
        transport.close()
        theirs.close()
        await turns(3)

    run(main())


def test_tls_inside_tls(loop, run, authority):
    async def main():
        client, server = await upgraded_pair(loop, authority)
        inner = await asyncio.gather(
            loop.start_tls(server.transport, server, authority.server, server_side=True),
            loop.start_tls(client.transport, client, authority.client, server_hostname="localhost"),
        )
        inner[1].write(b"doubly secret" * 1000)
        await until(lambda: server.data.endswith(b"doubly secret" * 1000))
        inner[0].write(b"answer")
        await until(lambda: client.data == b"answer")
        inner[1].close()
        await until(lambda: client.lost and server.lost)

    run(main())


@pytest.mark.parametrize("left", [b"", b"left over "], ids=["nothing left", "data left"])
def test_streams_upgrade_by_start_tls(loop, run, authority, left):
    """Data that the reader has from before stays in front."""

    async def serve(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n" + left)
        await writer.drain()
        await writer.start_tls(authority.server)
        writer.write(await reader.readline())
        await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await until(lambda: len(reader._buffer) == len(left))
        await writer.start_tls(authority.client, server_hostname="localhost")
        assert writer.get_extra_info("cipher")
        assert reader._buffer.startswith(left)
        writer.write(b"secret\n")
        assert await reader.readline() == left + b"secret\n"
        writer.close()
        await writer.wait_closed()
        await without_clients(server)

    run(main())


@pytest.mark.parametrize("size", [5, 20_000])
@pytest.mark.parametrize("way", ["close", "close_clients", "abort_clients"])
@pytest.mark.left_out(lambda way, **_: way != "close" and not hasattr(asyncio.Server, way), reason="new in Python 3.13")
def test_written_in_the_turn_in_which_what_is_below_is_closed(loop, run, authority, way, size):
    async def main():
        made = []
        server = await loop.create_server(
            lambda: made.append(Recorder()) or made[-1], "127.0.0.1", 0, ssl=authority.server
        )
        transport, protocol = await secure(loop, server.sockets[0].getsockname(), authority.client)
        await until(lambda: made and made[0].made)
        made[0].transport.write(b"x" * size)
        if way == "close":
            made[0].transport._ssl_protocol._transport.close()
        else:
            getattr(server, way)()
        await until(lambda: protocol.lost and made[0].lost)
        assert protocol.data == b"x" * size
        transport.close()
        await without_clients(server)

    run(main())


@pytest.mark.left_out(not hasattr(asyncio.Server, "close_clients"), reason="new in Python 3.13")
@pytest.mark.parametrize("way", ["close_clients", "abort_clients"])
@pytest.mark.parametrize("sent", [0, 3, None])
def test_clients_that_shake_hands_are_closed(loop, run, authority, way, sent):
    async def main():
        protocol = Recorder()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=authority.server)
        outgoing = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            authority.client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
        client = Peer(socket.create_connection(server.sockets[0].getsockname()))
        await until(lambda: len(server._clients) == 1)
        await client.sendall(outgoing.read()[:sent])
        if sent is None:
            assert await client.recv(1)
        getattr(server, way)()
        await client.recv_all()
        client.close()
        await until(lambda: not server._clients)
        assert server.is_serving() and protocol.events == []
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("wrong", ["text", memoryview(b"gaps")[::2]], ids=["text", "gaps"])
def test_nothing_is_sent_of_lines_of_which_one_is_no_bytes(loop, run, served, authority, guard, wrong):
    async def main():
        transport, protocol = await secure(loop, served.address, authority.client)
        transport.write(b"first")
        transport.writelines([b"before", wrong, b"behind"])
        await until(lambda: protocol.lost and served.made[0].lost)
        assert served.made[0].data == b"first"
        assert isinstance(protocol.error, (TypeError, BufferError))

    run(main())
    assert "Fatal error on SSL protocol" in guard.log.take_one()


def test_tls_over_a_unix_socket(loop, run, authority, tmp_path):
    async def main():
        server = await loop.create_unix_server(Echo, tmp_path / "s", ssl=authority.server)
        transport, protocol = await loop.create_unix_connection(
            Recorder, str(tmp_path / "s"), ssl=authority.client, server_hostname="localhost"
        )
        transport.write(b"hello")
        await until(lambda: protocol.data == b"hello")
        await leave(protocol)
        server.close()
        await server.wait_closed()

    run(main())
