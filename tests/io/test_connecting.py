"""create_connection in all its variants, and names: getaddrinfo and getnameinfo."""

import asyncio
import contextlib
import contextvars
import errno
import gc
import os
import socket
import sys
import threading
import time
import warnings

import pytest

from helpers import (
    KEEPS_CONTEXT,
    Recorder,
    free_port,
    new_loop,
    outcome,
    outcome_of,
    socket_pair,
    turns,
    until,
    without_clients,
)


@pytest.fixture
def listening(loop, run):
    """A server on 127.0.0.1 that keeps its protocols; .address and .made."""

    class Listening:
        made = []

        def factory(self):
            self.made.append(Recorder())
            return self.made[-1]

    state = Listening()
    state.made = []
    server = run(loop.create_server(state.factory, "127.0.0.1", 0))
    state.address = server.sockets[0].getsockname()
    yield state
    server.close()
    for protocol in state.made:
        if protocol.transport:
            protocol.transport.abort()
    run(turns(5))


async def connect_and_close(loop, *args, **kwargs):
    transport, protocol = await loop.create_connection(Recorder, *args, **kwargs)
    assert protocol.made and protocol.transport is transport
    names = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    transport.close()
    await until(lambda: protocol.lost)
    return names


# ---------------------------------------------------------------- ways to say where


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", b"127.0.0.1"])
@pytest.mark.parametrize("as_text", [False, True])
def test_host_and_port(loop, run, listening, host, as_text):
    port = str(listening.address[1]) if as_text else listening.address[1]
    _, peername = run(connect_and_close(loop, host, port))
    assert peername == listening.address


def test_a_connected_socket(loop, run):
    async def main():
        ours, theirs = socket_pair("tcp")
        expected = ours.getsockname(), ours.getpeername()
        assert await connect_and_close(loop, sock=ours) == expected
        assert ours.fileno() == -1
        theirs.close()

    run(main())


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_connected_sockets_of_ipv6(loop, run):
    """At both ends."""

    async def main():
        try:
            server = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 here")
        with server:
            ours = socket.create_connection(server.getsockname()[:2])
            theirs, _ = server.accept()
            for sock in (ours, theirs):
                sock.setblocking(False)
            expected = ours.getsockname(), ours.getpeername()
            transport, protocol = await loop.create_connection(Recorder, sock=ours)
            other, received = await loop.connect_accepted_socket(Recorder, theirs)
            assert (transport.get_extra_info("sockname"), transport.get_extra_info("peername")) == expected
            assert (other.get_extra_info("peername"), other.get_extra_info("sockname")) == expected
            transport.write(b"data")
            await until(lambda: received.data == b"data")
            transport.close()
            await until(lambda: received.lost and protocol.lost)

    run(main())


def test_a_future_of_another_class(loop, run, listening):
    """Whoever replaces create_future() sees it completed by its methods."""

    class Noting(asyncio.Future):
        def set_result(self, result):
            seen.append(result)
            super().set_result(result)

    seen = []

    async def main():
        loop.create_future = lambda: Noting(loop=loop)
        try:
            _, peername = await connect_and_close(loop, *listening.address)
        finally:
            del loop.create_future
        assert peername == listening.address and set(seen) == {None}

    run(main())


def test_a_blocking_socket_is_made_non_blocking(loop, run, listening):
    async def main():
        sock = socket.create_connection(listening.address)
        transport, _ = await loop.create_connection(Recorder, sock=sock)
        assert sock.getblocking() is False
        transport.close()
        await turns(3)

    run(main())


def test_a_local_address(loop, run, listening):
    port = free_port()
    sockname, _ = run(connect_and_close(loop, *listening.address, local_addr=("127.0.0.1", port)))
    assert sockname == ("127.0.0.1", port)
    sockname, _ = run(connect_and_close(loop, *listening.address, local_addr=("127.0.0.2", 0)))
    assert sockname[0] == "127.0.0.2"


@pytest.mark.parametrize(
    "options",
    [
        {"family": socket.AF_INET},
        {"proto": socket.IPPROTO_TCP},
        {"flags": socket.AI_NUMERICHOST},
        {"happy_eyeballs_delay": 0.25},
        {"interleave": 1},
        {"happy_eyeballs_delay": 0.01, "interleave": 2},
    ],
    ids=str,
)
def test_options(loop, run, listening, options):
    run(connect_and_close(loop, *listening.address, **options))


# ---------------------------------------------------------------- several addresses


@pytest.fixture
def names(loop, monkeypatch):
    """Let getaddrinfo answer 'many' with addresses that the test chooses."""
    answers = []
    original = loop.getaddrinfo

    async def getaddrinfo(host, port, **kwargs):
        if host == "many":
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in answers]
        return await original(host, port, **kwargs)

    loop.getaddrinfo = getaddrinfo
    return answers


@pytest.mark.parametrize("options", [{}, {"happy_eyeballs_delay": 0.05}], ids=["in turn", "happy eyeballs"])
def test_the_first_address_that_answers_is_taken(loop, run, listening, names, options):
    names += [("127.0.0.1", free_port()), ("127.0.0.2", free_port()), listening.address]
    _, peername = run(connect_and_close(loop, "many", 0, **options))
    assert peername == listening.address


def test_happy_eyeballs_does_not_wait_for_a_silent_address(loop, run, listening, names):
    # A listener whose queue is full does not answer.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(silent.getsockname())
            names += [silent.getsockname(), listening.address]
            _, peername = run(asyncio.wait_for(connect_and_close(loop, "many", 0, happy_eyeballs_delay=0.02), 20))
    assert peername == listening.address


def test_when_none_answers_the_error_tells_all_addresses(loop, run, names):
    names += [("127.0.0.1", free_port()), ("127.0.0.2", free_port())]
    with pytest.raises(OSError) as caught:
        run(loop.create_connection(Recorder, "many", 0))
    for _, port in names:
        assert str(port) in str(caught.value)
    assert str(caught.value).startswith("Multiple exceptions: ")


@pytest.mark.left_out(sys.version_info < (3, 12), reason="new in Python 3.12")
def test_all_errors_as_a_group(loop, run, names):
    names += [("127.0.0.1", free_port()), ("127.0.0.2", free_port())]
    with pytest.raises(ExceptionGroup) as caught:
        run(loop.create_connection(Recorder, "many", 0, all_errors=True))
    assert [type(error) for error in caught.value.exceptions] == [ConnectionRefusedError] * 2


# ---------------------------------------------------------------- errors


def test_a_refused_connection_names_the_address(loop, run):
    port = free_port()
    with pytest.raises(ConnectionRefusedError) as caught:
        run(loop.create_connection(Recorder, "127.0.0.1", port))
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.strerror == f"Connect call failed ('127.0.0.1', {port})"


def test_an_unknown_host(loop, run):
    with pytest.raises(socket.gaierror):
        run(loop.create_connection(Recorder, "no.such.host.invalid", 80))


@pytest.mark.parametrize(
    "args, kwargs, error, message",
    [
        ((), {}, ValueError, "host and port was not specified and no sock specified"),
        (("127.0.0.1", 80), {"sock": "stream"}, ValueError, "host/port and sock can not be specified at the same time"),
        ((), {"sock": "datagram"}, ValueError, "A Stream Socket was expected, got <socket"),
        (("127.0.0.1", 80), {"server_hostname": "x"}, ValueError, "server_hostname is only meaningful with ssl"),
        ((), {"sock": "stream", "ssl": True}, ValueError, "You must set server_hostname when using ssl without a host"),
        (
            ("127.0.0.1", 80),
            {"ssl_handshake_timeout": 1},
            ValueError,
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            ("127.0.0.1", 80),
            {"ssl_shutdown_timeout": 1},
            ValueError,
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
        (
            ("127.0.0.1", 80),
            {"local_addr": ("203.0.113.1", 0)},
            OSError,
            "error while attempting to bind on address ('203.0.113.1', 0)",
        ),
        (("127.0.0.1", 99999), {}, (OverflowError, OSError), ""),
    ],
    ids=range(9),
)
def test_wrong_arguments(loop, run, args, kwargs, error, message):
    kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
    with socket.socket(type=kinds.get(kwargs.get("sock"), socket.SOCK_STREAM)) as sock:
        if "sock" in kwargs:
            kwargs = {**kwargs, "sock": sock}
        with pytest.raises(error) as caught:
            run(loop.create_connection(Recorder, *args, **kwargs))
    assert message in str(caught.value)


def test_a_socket_that_is_not_connected(loop, run):
    """The stock loop finds out when it reads: the connection is made and lost."""

    async def main():
        sock = socket.socket()
        _, protocol = await loop.create_connection(Recorder, sock=sock)
        await until(lambda: protocol.lost)
        return protocol.story

    assert run(main())[0] == "connection_made"


def test_cancelling_a_connection_attempt_leaves_nothing(loop, run, listening):
    async def main():
        for pause in (0, 1, 2, 3, 5, 8):
            task = asyncio.ensure_future(loop.create_connection(Recorder, *listening.address))
            await turns(pause)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                transport, protocol = await task
                transport.close()
        await asyncio.sleep(0.02)
        await until(lambda: all(not protocol.made or protocol.lost for protocol in listening.made))

    run(main())


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_and_its_scope(loop, run):
    async def main():
        try:
            server = await loop.create_server(Recorder, "::1", 0)
        except OSError:
            pytest.skip("no IPv6 here")
        address = server.sockets[0].getsockname()
        _, peername = await connect_and_close(loop, "::1", address[1])
        assert peername == address
        await without_clients(server)

    run(main())


@pytest.mark.left_out(sys.version_info < (3, 12), reason="3.11 has no eager tasks")
def test_a_connection_that_a_replaced_clock_begins(loop, listening):
    """The poll that follows at once must not wait for something else."""
    tasks = []

    async def connect():
        transport, _ = await loop.create_connection(asyncio.Protocol, *listening.address)
        transport.abort()
        loop.call_soon(loop.stop)

    def clock():
        if not tasks:
            tasks.append(asyncio.Task(connect(), loop=loop, eager_start=True))
        return time.monotonic()

    timer = loop.call_later(1000, loop.stop)
    loop.time = clock
    loop.run_forever()
    del loop.time
    timer.cancel()
    assert tasks[0].done()
    loop.run_until_complete(turns(5))


def test_many_connections_at_once(loop, run, listening):
    async def main():
        names = await asyncio.gather(*[connect_and_close(loop, *listening.address) for _ in range(100)])
        assert len({sockname for sockname, _ in names}) == 100
        await until(lambda: len(listening.made) == 100 and all(protocol.lost for protocol in listening.made))

    run(main())


# ---------------------------------------------------------------- names

ADDRESSES = [
    ("127.0.0.1", 80),
    ("127.0.0.1", "80"),
    ("127.0.0.1", None),
    ("localhost", 80),
    ("::1", 80),
    ("", 80),
    (None, 80),
    (b"127.0.0.1", b"80"),
    ("127.0.0.1", "http"),
    ("127.0.0.1", 0),
    ("0", 80),
    ("127.1", 80),
    ("0x7f.1", 80),
    ("no.such.host.invalid", 80),
    ("127.0.0.1", "no-such-service"),
    ("fe80::1%lo", 80),
    ("bücher.invalid", 80),
    ("x" * 300, 80),
    ("127.0.0.1", 70000),
    ("127.0.0.1", -1),
    (5, 80),
    ("127.0.0.1\0", 80),
    (None, None),
]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"type": socket.SOCK_STREAM},
        {"family": socket.AF_INET},
        {"type": socket.SOCK_DGRAM, "proto": socket.IPPROTO_UDP},
        {"flags": socket.AI_NUMERICHOST | socket.AI_PASSIVE},
        {"family": socket.AF_INET6},
        {"flags": -1},
    ],
    ids=str,
)
def test_getaddrinfo_answers_as_socket_getaddrinfo(loop, run, flags):
    async def main():
        for host, port in ADDRESSES:
            # A name server may be slow once.
            for _ in range(3):
                expected = outcome(socket.getaddrinfo, host, port, **flags)
                found = await outcome_of(loop.getaddrinfo(host, port, **flags))
                if found == expected:
                    break
            assert found == expected, (host, port)

    run(main())


@pytest.mark.usefixtures("debug_off")
def test_a_numeric_address_needs_no_thread(loop, loop_name, run):
    async def main():
        before = threading.active_count()
        for host in ("127.0.0.1", "::1", b"127.0.0.1", "fe80::1%lo"):
            expected = outcome(socket.getaddrinfo, host, 80, type=socket.SOCK_STREAM)
            assert ("returned", await loop.getaddrinfo(host, 80, type=socket.SOCK_STREAM)) == expected
        assert (threading.active_count() == before) == (loop_name == "fastloop")
        # Digits that are a name, and a port that is one: those are looked up, in a thread.
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("1.example.invalid", 80)
        # The system may have no list of services.
        found = await outcome_of(loop.getaddrinfo("127.0.0.1", "http"))
        assert found == outcome(socket.getaddrinfo, "127.0.0.1", "http")
        assert threading.active_count() > before
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            await loop.getaddrinfo("127.0.0.1", 80)

    run(main())


NUMERIC_HOSTS = ["127.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "::", "0:0::0:0001", "fe80::1", "::ffff:1.2.3.4"]
# And what is numeric to some, or looks like it.
NUMERIC_HOSTS += ["1.2.3", "1.2.3.04", "1.2.3.256", "1.2.3.4 ", "::1::", "::1%lo", "fe80::1%no-such-link"]


@pytest.mark.parametrize("family", [0, socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, -1, 2**40], ids=str)
def test_a_numeric_address_has_the_same_answer_each_time(loop, run, family):
    kinds = [(0, 0), (socket.SOCK_STREAM, 0), (0, socket.IPPROTO_UDP), (socket.SOCK_STREAM, socket.IPPROTO_UDP)]
    kinds += [(socket.SOCK_RAW, 0), (99, 0), (True, 0)]
    flags = [0, socket.AI_PASSIVE, socket.AI_CANONNAME, socket.AI_V4MAPPED | socket.AI_ALL, 1 << 20]

    questions = [
        {"family": family, "type": kind, "proto": protocol, "flags": socket.AI_NUMERICHOST | flag}
        for kind, protocol in kinds
        for flag in flags
    ]

    async def main():
        for host in NUMERIC_HOSTS:
            for question in questions:
                expected = outcome(socket.getaddrinfo, host, 7, **question)
                for _ in range(2):
                    found = await outcome_of(loop.getaddrinfo(host, 7, **question))
                    # The text too: enumerations equal numbers.
                    assert repr(found) == repr(expected), (host, question)

    run(main())


def test_an_answer_belongs_to_who_asked(loop, run):
    async def main():
        for _ in range(3):
            answer = await loop.getaddrinfo("127.0.0.1", 80)
            assert answer == socket.getaddrinfo("127.0.0.1", 80)
            answer.clear()

    run(main())


def test_an_audit_hook_sees_each_question_about_a_numeric_address(python):
    assert (
        python("""
        import socket, sys
        seen = []
        refused = set()
        def audit(event, args):
            if event == "socket.getaddrinfo":
                if args[0] in refused:
                    raise PermissionError(args[0])
                seen.append(args[:5])
        sys.addaudithook(audit)
        async def ask(host):
            return await asyncio.get_running_loop().getaddrinfo(host, 80, type=socket.SOCK_STREAM)
        async def main():
            hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
            for host in hosts:
                await ask(host)
            assert seen == [(host, 80, 0, socket.SOCK_STREAM, 0) for host in hosts], seen
            refused.add("127.0.0.1")
            try:
                await ask("127.0.0.1")
            except PermissionError as error:
                print("refused", error)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        """)
        == "refused 127.0.0.1\n"
    )


def test_a_replaced_socket_getaddrinfo_is_called_in_a_thread(loop, run, monkeypatch):
    callers = []

    def replaced(*args):
        callers.append(threading.get_ident())
        return []

    monkeypatch.setattr(socket, "getaddrinfo", replaced)

    async def main():
        assert await loop.getaddrinfo("127.0.0.1", 80) == []
        await loop.shutdown_default_executor()

    run(main())
    assert callers and threading.get_ident() not in callers


@pytest.mark.parametrize(
    "sockaddr, flags",
    [
        (("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
        (("127.0.0.1", 80), 0),
        (("::1", 80, 0, 0), 3),
        (("127.0.0.1", 80), socket.NI_NUMERICSERV),
        (("not an address", 80), 0),
        (("127.0.0.1",), 0),
        ("text", 0),
    ],
    ids=str,
)
def test_getnameinfo_answers_as_socket_getnameinfo(loop, run, sockaddr, flags):
    async def main():
        expected = outcome(socket.getnameinfo, sockaddr, flags)
        assert await outcome_of(loop.getnameinfo(sockaddr, flags)) == expected

    run(main())


def test_a_replaced_socket_getaddrinfo_is_honoured(loop, run, monkeypatch, listening):
    def replaced(host, port, *args, **kwargs):
        assert host == "example.invalid"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", listening.address)]

    monkeypatch.setattr(socket, "getaddrinfo", replaced)
    _, peername = run(connect_and_close(loop, "example.invalid", 80))
    assert peername == listening.address


@pytest.mark.fastloop_only(reason="compares with the stock loop")
def test_errors_of_connecting_are_those_of_the_stock_loop(loop, run):
    port = free_port()
    cases = [
        ("127.0.0.1", port),
        ("::1", port),
        ("255.255.255.255", 80),
        ("127.0.0.1", True),
        ("127.0.0.1", -1),
        ("127.0.0.1", 65536),
        ("127.0.0.1\0", 80),
        ("127.1", port),
        ("fe80::1%lo", port),
        (b"127.0.0.1", port),
        ("127.0.0.1", str(port)),
        ("127.0.0.1 ", port),
        ("\ud800", port),
        ("no.such.host.invalid", 80),
        ("127.0.0.1", "no-such-service"),
        ("", port),
        ("127.0.0.1", None),
        (None, port),
        (5, 80),
    ]

    async def answers(loop):
        found = []
        for host, port in cases:
            try:
                await loop.create_connection(Recorder, host, port)
            except Exception as exc:
                found.append((type(exc), str(exc)))
        return found

    stock = new_loop("stock")
    expected = stock.run_until_complete(answers(stock))
    stock.run_until_complete(stock.shutdown_default_executor())
    stock.close()
    assert run(answers(loop)) == expected


# ---------------------------------------------------------------- numeric addresses, which have a way of their own


def test_the_transport_has_a_socket_with_options_and_addresses(loop, run, listening):
    async def main():
        transport, protocol = await loop.create_connection(Recorder, *listening.address)
        sock = transport.get_extra_info("socket")
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(sock.fileno()) and sock.gettimeout() == 0
        names = sock.getsockname(), sock.getpeername()
        assert names == (transport.get_extra_info("sockname"), transport.get_extra_info("peername"))
        transport.close()
        await until(lambda: protocol.lost)
        assert names == (transport.get_extra_info("sockname"), transport.get_extra_info("peername"))

    run(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_the_peer_is_who_answered(loop, run, host):
    async def main():
        try:
            server = await loop.create_server(Recorder, "::" if host == "::" else "127.0.0.1", 0)
        except OSError:
            pytest.skip("no IPv6 here")
        transport, protocol = await loop.create_connection(Recorder, host, server.sockets[0].getsockname()[1])
        name = transport.get_extra_info("peername")
        assert name == transport.get_extra_info("socket").getpeername() and name[0] != "0.0.0.0"
        transport.close()
        await until(lambda: protocol.lost)
        await without_clients(server)

    run(main())


def test_a_factory_that_raises(loop, run, listening):
    async def main():
        def factory():
            raise LookupError("no protocol")

        with pytest.raises(LookupError, match="no protocol"):
            await loop.create_connection(factory, *listening.address)

    with warnings.catch_warnings():
        # The stock loop leaves the socket to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        run(main())
        gc.collect()


@pytest.mark.parametrize("way", ["address", "name", "sock"])
def test_the_contexts_of_the_factory_and_of_the_callbacks(loop, run, listening, way):
    name = contextvars.ContextVar("name", default="nobody")
    seen = []

    class Protocol(asyncio.Protocol):
        def __init__(self):
            seen.append(name.get())
            name.set("factory")

        def connection_made(self, transport):
            seen.append(name.get())
            name.set("connection_made")

        def data_received(self, data):
            seen.append(name.get())
            name.set("data_received")

        def connection_lost(self, error):
            seen.append(name.get())

    async def main():
        name.set("caller")
        host, port = listening.address
        if way == "sock":
            sock = socket.create_connection((host, port))
            connecting = loop.create_connection(Protocol, sock=sock)
        else:
            connecting = loop.create_connection(Protocol, host if way == "address" else "localhost", port)
        transport, _ = await connecting
        seen.append(name.get())
        await until(lambda: listening.made and listening.made[0].made)
        listening.made[0].transport.write(b"data")
        await until(lambda: len(seen) == 4)
        name.set("closer")
        transport.close()
        await until(lambda: len(seen) == 5)

    run(main())
    if KEEPS_CONTEXT:
        assert seen == ["caller", "caller", "factory", "connection_made", "data_received"]
    else:
        assert seen == ["caller", "factory", "factory", "factory", "closer"]


@pytest.mark.parametrize("hook", ["sock_connect", "_connect_sock", "_ensure_resolved"])
def test_a_replaced_hook_of_the_loop_is_called(loop, run, listening, monkeypatch, hook):
    called = []
    original = getattr(loop, hook)

    def replaced(*args, **kwargs):
        called.append(hook)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, hook, replaced)
    run(connect_and_close(loop, *listening.address))
    monkeypatch.undo()
    assert called


@pytest.mark.parametrize("what", ["class", "method"])
def test_a_replaced_socket_is_used(loop, run, listening, monkeypatch, what):
    made = []

    class Guarded(socket.socket):
        def connect(self, address):
            made.append(address)
            return super().connect(address)

    def connect(self, address):
        made.append(address)
        return super(socket.socket, self).connect(address)

    if what == "class":
        monkeypatch.setattr(socket, "socket", Guarded)
    else:
        monkeypatch.setattr(socket.socket, "connect", connect, raising=False)
    run(connect_and_close(loop, *listening.address))
    monkeypatch.undo()
    assert made == [listening.address]


def test_an_attempt_that_nobody_waits_for_any_more(loop_factory):
    """The loop is closed while the kernel still connects."""
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(0)
    address = silent.getsockname()
    fill = [socket.socket() for _ in range(4)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(address)
    loop = loop_factory()
    task = loop.create_task(loop.create_connection(Recorder, *address))
    loop.run_until_complete(turns(5))
    loop.run_until_complete(cancelled(task))
    task = loop.create_task(loop.create_connection(Recorder, *address))
    loop.run_until_complete(turns(5))
    task._log_destroy_pending = False
    loop.close()
    del task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    for sock in [silent, *fill]:
        sock.close()


async def cancelled(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.fastloop_only("a switch of fastloop's")
def test_the_switch(monkeypatch, listening, loop_factory):
    monkeypatch.setenv("FASTLOOP_DISABLE", "connect")
    other = loop_factory()
    assert not other._connects_natively
    with socket.create_server(("127.0.0.1", 0)) as server:
        other.run_until_complete(connect_and_close(other, *server.getsockname()))
    other.close()


def test_debug_mode_tells_of_the_connection(loop, run, listening, caplog):
    loop.set_debug(True)
    with caplog.at_level("DEBUG", "asyncio"):
        run(connect_and_close(loop, *listening.address))
    loop.set_debug(False)
    assert any("connected to" in record.getMessage() for record in caplog.records)
