"""Datagram endpoints: UDP and Unix, connected and not, errors, options."""

import asyncio
import errno
import gc
import os
import socket
import sys
import threading
import weakref
from asyncio import selector_events, transports
from unittest import mock

import pytest

from helpers import LIST_LINKS, DatagramRecorder, free_port, turns, until

pytestmark = pytest.mark.usefixtures("disabled")


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def endpoint(disabled, loop, run):
    """Open endpoints that are closed at the end: await endpoint(**options) gives (transport, protocol)."""
    opened = []

    async def make(factory=DatagramRecorder, **options):
        transport, protocol = await loop.create_datagram_endpoint(factory, **options)
        opened.append((transport, protocol))
        return transport, protocol

    async def finish():
        for transport, protocol in opened:
            if not protocol.lost:
                transport.abort()
        await until(lambda: all(protocol.lost for _, protocol in opened))

    yield make
    run(finish())


LOCAL = {"local_addr": ("127.0.0.1", 0)}


def address(transport):
    return transport.get_extra_info("sockname")


def test_datagrams_arrive_with_their_address(run, endpoint):
    async def main():
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        # On 3.11 the stock loop's is no DatagramTransport.
        assert isinstance(first, asyncio.DatagramTransport) or sys.version_info < (3, 12)
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), b"x" * 60_000):
            assert first.sendto(data, address(second)) is None
        await until(lambda: len(received.received) == 4)
        assert received.received == [
            (bytes(data), address(first)) for data in (b"bytes", b"bytearray", b"view", b"x" * 60_000)
        ]
        assert received.events == ["connection_made"]

    run(main())


def test_connected_endpoints_talk_without_addresses(run, endpoint):
    async def main():
        server, received = await endpoint(**LOCAL)
        client, answers = await endpoint(remote_addr=address(server))
        assert client.get_extra_info("peername") == address(server)
        client.sendto(b"one")
        client.sendto(b"two", None)
        client.sendto(b"three", address(server))
        await until(lambda: len(received.received) == 3)
        with pytest.raises(ValueError, match="Invalid address: must be None or"):
            client.sendto(b"x", ("127.0.0.1", 1))
        server.sendto(b"answer", address(client))
        await until(lambda: answers.received)
        assert answers.received == [(b"answer", address(server))]

    run(main())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_names_of_hosts_are_resolved_for_the_remote_address(run, endpoint, host):
    async def main():
        server, received = await endpoint(**LOCAL)
        client, _ = await endpoint(remote_addr=(host, address(server)[1]), family=socket.AF_INET)
        client.sendto(b"hello")
        await until(lambda: received.received)

    run(main())


@pytest.mark.left_out(sys.version_info < (3, 13), reason="before 3.13 an empty datagram is not sent")
def test_an_empty_datagram(run, endpoint):
    async def main():
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        first.sendto(b"", address(second))
        await until(lambda: received.received)
        assert received.received == [(b"", address(first))]

    run(main())


def test_a_refused_datagram_is_an_error_and_no_end(run, endpoint):
    async def main():
        client, protocol = await endpoint(remote_addr=("127.0.0.1", free_port()))
        for _ in range(3):
            client.sendto(b"x")
            await asyncio.sleep(0.002)
        await until(lambda: protocol.errors)
        assert all(type(error) is ConnectionRefusedError for error in protocol.errors)
        assert not client.is_closing() and not protocol.lost

    run(main())


def test_a_datagram_that_is_too_large_is_an_error_and_no_end(run, endpoint):
    async def main():
        first, protocol = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        first.sendto(b"x" * 70_000, address(second))
        await until(lambda: protocol.errors)
        assert protocol.errors[0].errno == errno.EMSGSIZE
        first.sendto(b"fits", address(second))
        await until(lambda: received.received)

    run(main())


@pytest.mark.parametrize("data", [None, "text", 5])
def test_what_cannot_be_sent(run, endpoint, data):
    async def main():
        transport, _ = await endpoint(**LOCAL)
        with pytest.raises(TypeError, match=f"data argument must be a bytes-like object, not '{type(data).__name__}'"):
            transport.sendto(data, ("127.0.0.1", 1))

    run(main())


def test_close_and_abort(run, endpoint):
    async def main():
        for method in ("close", "abort"):
            transport, protocol = await endpoint(**LOCAL)
            number = transport.get_extra_info("socket").fileno()
            assert not transport.is_closing()
            getattr(transport, method)()
            assert transport.is_closing() and not protocol.lost
            await until(lambda p=protocol: p.lost)
            assert protocol.events == ["connection_made", "connection_lost"]
            await turns(2)
            assert number != transport.get_extra_info("socket").fileno()

    run(main())


def test_many_datagrams_in_order(run, endpoint):
    async def main():
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        for i in range(2000):
            first.sendto(b"%d" % i, address(second))
            if i % 50 == 0:
                await until(lambda i=i: len(received.received) >= i)
        await until(lambda: len(received.received) == 2000)
        assert [data for data, _ in received.received] == [b"%d" % i for i in range(2000)]

    run(main())


def test_unix_datagrams(loop, run, endpoint, tmp_path):
    async def main():
        first, _ = await endpoint(local_addr=str(tmp_path / "a"), family=socket.AF_UNIX)
        second, received = await endpoint(local_addr=str(tmp_path / "b"), family=socket.AF_UNIX)
        first.sendto(b"hello", str(tmp_path / "b"))
        await until(lambda: received.received)
        assert received.received == [(b"hello", str(tmp_path / "a"))]

    run(main())


def test_unix_datagrams_are_held_back_when_the_queue_is_full(loop, run, endpoint, tmp_path):
    """A Unix socket's queue holds few datagrams: the rest waits, pauses the writer and arrives in order."""

    async def main():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
            slow.bind(str(tmp_path / "slow"))
            slow.setblocking(False)
            sender, protocol = await endpoint(remote_addr=str(tmp_path / "slow"), family=socket.AF_UNIX)
            sender.set_write_buffer_limits(40_000)
            for i in range(500):
                sender.sendto(b"%04d" % i + b"x" * 996)
            assert sender.get_write_buffer_size() > 40_000
            assert protocol.events == ["connection_made", "pause_writing"]
            received = []
            while len(received) < 500:
                try:
                    received.append(slow.recv(2000)[:4])
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            assert received == [b"%04d" % i for i in range(500)]
            await until(lambda: protocol.events[-1] == "resume_writing")

    run(main())


def test_a_socket_of_ones_own(loop, run, endpoint):
    async def main():
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        transport, protocol = await endpoint(sock=sock)
        assert address(transport) == sock.getsockname()
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.sendto(b"hello", sock.getsockname())
            await until(lambda: protocol.received)

    run(main())


def test_broadcast_and_reuse_port(run, endpoint):
    async def main():
        transport, _ = await endpoint(**LOCAL, allow_broadcast=True, reuse_port=True)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1

    run(main())


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "unexpected address family"),
        (
            {"sock": True, "local_addr": ("127.0.0.1", 0)},
            "socket modifier keyword arguments can not be used when sock is",
        ),
        (
            {"sock": "stream"},
            "Socket was expected, got" if sys.version_info < (3, 13) else "datagram socket was expected",
        ),
    ],
)
def test_wrong_arguments(loop, run, options, message):
    kind = socket.SOCK_STREAM if options.get("sock") == "stream" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises(ValueError, match=message):
            run(loop.create_datagram_endpoint(DatagramRecorder, **options))


# ---------------------------------------------------------------- the type and its attributes


def test_the_type_and_what_shows_of_it(loop_name, disabled, loop, run, endpoint):
    async def main():
        transport, protocol = await endpoint(**LOCAL)
        for kind in (transports._FlowControlMixin, asyncio.Transport, selector_events._SelectorDatagramTransport):
            assert isinstance(transport, kind)
        if loop_name == "fastloop" and not disabled:
            assert isinstance(transport, asyncio.DatagramTransport)
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        fd = sock.fileno()
        assert transport.get_extra_info("peername") is None
        assert transport.get_extra_info("nothing", 5) == 5
        assert transport._loop is loop and transport._protocol is protocol and transport.get_protocol() is protocol
        assert transport._sock.fileno() == transport._sock_fd == fd
        assert transport._address is None and not transport._buffer and transport._conn_lost == 0
        assert transport._closing is False and transport.max_size == 256 * 1024
        assert set(transport._extra) == {"socket", "sockname", "peername"}
        await turns(2)
        name = type(transport).__name__
        assert repr(transport) == f"<{name} fd={fd} read=polling write=<idle, bufsize=0>>"
        transport.mark = "attributes may be added"
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(fd, print)
        transport.close()
        assert repr(transport).startswith(f"<{name} closing fd={fd} read=idle")
        await until(lambda: protocol.lost)
        assert repr(transport) == f"<{name} closed fd={fd}>"
        assert transport._sock is None and transport._loop is None and transport._protocol is None
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        assert transport.is_closing() and transport.get_write_buffer_size() == 0

    run(main())


def test_limits_of_the_buffer(run, endpoint):
    async def main():
        transport, _ = await endpoint(**LOCAL)
        assert transport.get_write_buffer_size() == 0
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=100)
        assert transport.get_write_buffer_limits() == (25, 100)
        with pytest.raises(ValueError):
            transport.set_write_buffer_limits(high=1, low=2)

    run(main())


def test_a_transport_without_init_does_nothing_bad(loop, endpoint):
    made = loop._make_datagram_transport
    assert made is not None
    kind = getattr(loop, "_datagram_transport_class", selector_events._SelectorDatagramTransport)
    transport = kind.__new__(kind)
    for call in (
        lambda: transport.sendto(b"x", ("127.0.0.1", 1)),
        lambda: transport.sendto(b"x"),
        transport._read_ready,
    ):
        with pytest.raises(AttributeError):
            call()
    assert transport._sock is None


def test_an_unclosed_transport_warns_and_is_collected(loop_factory, guard, disabled):
    loop = loop_factory()
    transport, protocol = loop.run_until_complete(loop.create_datagram_endpoint(DatagramRecorder, **LOCAL))
    text = repr(transport)
    gone = weakref.ref(transport)
    protocol.transport = None
    loop.run_until_complete(turns(2))
    loop.close()
    text = repr(transport)
    with pytest.warns(ResourceWarning, match="unclosed transport") as found:
        del transport, loop
        gc.collect()
    assert [str(warning.message) for warning in found] == [f"unclosed transport {text}"]
    del found
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- receiving


def test_a_datagram_at_a_time_where_that_shows(loop, run, endpoint):
    """What one datagram sets off runs before the next one arrives: a future for each can be exchanged in time."""

    class OneByOne(DatagramRecorder):
        waiter = None

        def datagram_received(self, data, sender):
            self.waiter.set_result(data)

    async def main():
        receiver, protocol = await endpoint(OneByOne, **LOCAL)
        sender, _ = await endpoint(**LOCAL)
        protocol.waiter = loop.create_future()
        for i in range(50):
            sender.sendto(b"%d" % i, address(receiver))
        for i in range(50):
            assert await protocol.waiter == b"%d" % i
            protocol.waiter = loop.create_future()

    run(main())


def test_what_is_ready_runs_between_two_datagrams(loop, run, endpoint):
    """A callback that was ready before, and one that comes back each turn, have to wait for one datagram at most."""

    async def main():
        transport, protocol = await endpoint(**LOCAL)
        story = []
        protocol.datagram_received = lambda data, sender: story.append("datagram")

        def callback():
            story.append("callback")
            if story.count("datagram") < 20:
                loop.call_soon(callback)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(20):
                sock.sendto(b"x", address(transport))
        callback()
        await until(lambda: story.count("datagram") == 20)
        assert ("datagram", "datagram") not in zip(story, story[1:])

    run(main())


def test_busy_sockets_take_turns(run, endpoint):
    """Each is full all the time: none gets more of the turns than the others."""

    class Full(DatagramRecorder):
        count = 0

        def datagram_received(self, data, sender):
            self.count += 1
            self.transport.sendto(data, address(self.transport))

    async def main():
        made = [await endpoint(Full, **LOCAL) for _ in range(3)]
        for transport, _ in made:
            for _ in range(20):
                transport.sendto(b"x", address(transport))
        counts = [protocol for _, protocol in made]
        await until(lambda: sum(protocol.count for protocol in counts) > 3000)
        least, *_, most = sorted(protocol.count for protocol in counts)
        assert most < 2 * least
        for transport, _ in made:
            transport.abort()

    run(main())


def test_a_burst_after_many_single_datagrams(run, endpoint):
    async def main():
        transport, protocol = await endpoint(**LOCAL)
        with socket.socket(type=socket.SOCK_DGRAM) as far:
            for i in range(40):
                far.sendto(b"%d" % i, address(transport))
                while len(protocol.received) <= i:
                    await asyncio.sleep(0.001)
            for i in range(40, 100):
                far.sendto(b"%d" % i, address(transport))
            await until(lambda: len(protocol.received) == 100)
        assert [int(data) for data, _ in protocol.received] == list(range(100))

    run(main())


def test_each_second_datagram_leaves_something_to_run(loop, run, endpoint):
    class Scheduling(DatagramRecorder):
        def datagram_received(self, data, sender):
            super().datagram_received(data, sender)
            if len(self.received) % 2 == 0:
                loop.call_soon(lambda: seen.append(len(self.received)))

    async def main():
        transport, protocol = await endpoint(Scheduling, **LOCAL)
        with socket.socket(type=socket.SOCK_DGRAM) as far:
            for i in range(20):
                far.sendto(b"%d" % i, address(transport))
            while len(seen) < 10:
                await asyncio.sleep(0.001)
        assert [int(data) for data, _ in protocol.received] == list(range(20))

    seen = []
    run(main())
    assert seen == list(range(2, 22, 2))


def test_callbacks_of_one_datagram_run_before_the_next(loop, run, endpoint):
    seen = []

    class Scheduling(DatagramRecorder):
        def datagram_received(self, data, sender):
            seen.append(data)
            loop.call_soon(seen.append, "after " + data.decode())

    async def main():
        receiver, _ = await endpoint(Scheduling, **LOCAL)
        sender, _ = await endpoint(**LOCAL)
        for data in (b"1", b"2", b"3"):
            sender.sendto(data, address(receiver))
        await until(lambda: len(seen) == 6)
        assert seen == [b"1", "after 1", b"2", "after 2", b"3", "after 3"]

    run(main())


@pytest.mark.parametrize("method", ["close", "abort", "pause_reading"])
def test_no_datagram_follows_the_end_or_a_pause(run, endpoint, method):
    class Ending(DatagramRecorder):
        def datagram_received(self, data, sender):
            super().datagram_received(data, sender)
            if data == b"3":
                getattr(self.transport, method)()

    async def main():
        receiver, protocol = await endpoint(Ending, **LOCAL)
        sender, _ = await endpoint(**LOCAL)
        for i in range(10):
            sender.sendto(b"%d" % i, address(receiver))
        await until(lambda: len(protocol.received) >= 4)
        await turns(10)
        assert [data for data, _ in protocol.received] == [b"0", b"1", b"2", b"3"]
        if method == "pause_reading":
            receiver.resume_reading()
            await until(lambda: len(protocol.received) == 10)
            assert [data for data, _ in protocol.received] == [b"%d" % i for i in range(10)]
        else:
            assert protocol.lost

    if method == "pause_reading" and method not in vars(selector_events._SelectorTransport):
        # Before 3.12 a datagram transport could not do it, though that of Debian 12 has a method of that name.
        return
    run(main())


def test_a_stopped_loop_keeps_what_was_not_delivered(loop, run, endpoint):
    class Stopping(DatagramRecorder):
        def datagram_received(self, data, sender):
            super().datagram_received(data, sender)
            loop.stop()

    async def main():
        receiver, protocol = await endpoint(Stopping, **LOCAL)
        sender, _ = await endpoint(**LOCAL)
        return receiver, protocol, sender

    receiver, protocol, sender = run(main())
    for i in range(3):
        sender.sendto(b"%d" % i, address(receiver))
    for i in range(3):
        loop.run_forever()
        assert [data for data, _ in protocol.received] == [b"%d" % j for j in range(i + 1)]


def test_an_error_in_the_protocol_costs_no_datagram(run, endpoint, contexts):
    class Failing(DatagramRecorder):
        def datagram_received(self, data, sender):
            super().datagram_received(data, sender)
            raise ZeroDivisionError(data)

    async def main():
        receiver, protocol = await endpoint(Failing, **LOCAL)
        sender, _ = await endpoint(**LOCAL)
        for i in range(5):
            sender.sendto(b"%d" % i, address(receiver))
        await until(lambda: len(protocol.received) == 5)
        assert not receiver.is_closing()

    run(main())
    found = contexts.take()
    assert [str(context["exception"]) for context in found] == [str(b"%d" % i) for i in range(5)]
    assert all("Exception in callback" in context["message"] and context["handle"] for context in found)


def test_the_protocol_may_be_exchanged_between_two_datagrams(run, endpoint):
    second = DatagramRecorder()

    class First(DatagramRecorder):
        def datagram_received(self, data, sender):
            super().datagram_received(data, sender)
            self.transport.set_protocol(second)

    async def main():
        receiver, first = await endpoint(First, **LOCAL)
        sender, _ = await endpoint(**LOCAL)
        for data in (b"1", b"2", b"3"):
            sender.sendto(data, address(receiver))
        await until(lambda: len(second.received) == 2)
        assert [data for data, _ in first.received] == [b"1"]
        assert [data for data, _ in second.received] == [b"2", b"3"]
        receiver.set_protocol(first)

    run(main())


def test_answers_from_inside_the_protocol(run, endpoint):
    class Echo(DatagramRecorder):
        def datagram_received(self, data, sender):
            self.transport.sendto(data, sender)

    async def main():
        server, _ = await endpoint(Echo, **LOCAL)
        clients = [await endpoint(remote_addr=address(server)) for _ in range(10)]
        for _ in range(20):
            for i, (client, _) in enumerate(clients):
                client.sendto(b"from %d" % i)
        await until(lambda: all(len(protocol.received) == 20 for _, protocol in clients))
        for i, (_, protocol) in enumerate(clients):
            assert protocol.received == [(b"from %d" % i, address(server))] * 20

    run(main())


def test_many_senders_are_told_apart(run, endpoint):
    """More of them than are remembered."""

    async def main():
        server, protocol = await endpoint(**LOCAL)
        sent = []
        for i in range(1200):
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                sock.sendto(b"%d" % i, address(server))
                sent.append((b"%d" % i, sock.getsockname()))
            if i % 50 == 49:
                await until(lambda n=i + 1: len(protocol.received) == n)
        assert protocol.received == sent

    run(main())


def test_datagrams_that_are_kept_stay_as_they_are(run, endpoint):
    """Memory of one that was let go is used for another."""
    kept = {}

    class Keeper(DatagramRecorder):
        left = 2000

        def datagram_received(self, data, addr):
            self.left -= 1
            number = int.from_bytes(data[:2], "big")
            assert data == number.to_bytes(2, "big") * (len(data) // 2)
            if number % 3 == 0:
                kept[number] = data

    async def main():
        transport, protocol = await endpoint(Keeper, **LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(Keeper.left):
                sock.sendto(number.to_bytes(2, "big") * (250 + number % 1000), address(transport))
                if number % 20 == 19:
                    await until(lambda left=Keeper.left - number - 1: protocol.left == left)

    run(main())
    assert len(kept) == 667
    for number, data in kept.items():
        assert data == number.to_bytes(2, "big") * (250 + number % 1000)


def test_max_size_bounds_what_is_received(run, endpoint):
    async def main():
        server, protocol = await endpoint(**LOCAL)
        server.max_size = 3
        client, _ = await endpoint(remote_addr=address(server))
        client.sendto(b"hello")
        await until(lambda: protocol.received)
        server.max_size = 1_000_000
        client.sendto(b"hello")
        await until(lambda: len(protocol.received) == 2)
        assert [data for data, _ in protocol.received] == [b"hel", b"hello"]

    run(main())


# ---------------------------------------------------------------- addresses


def test_ipv6_addresses(run, endpoint):
    assert has_ipv6() or not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6")
    if not has_ipv6():
        return

    async def main():
        first, answers = await endpoint(local_addr=("::1", 0))
        second, received = await endpoint(local_addr=("::1", 0))
        target = address(second)
        assert len(target) == 4
        for to in (target, target[:2], (*target[:3], 0)):
            first.sendto(b"hello", to)
        await until(lambda: len(received.received) == 3)
        assert received.received == [(b"hello", address(first))] * 3
        connected, _ = await endpoint(remote_addr=target[:2])
        connected.sendto(b"connected", target)
        await until(lambda: len(received.received) == 4)
        with pytest.raises(ValueError, match="Invalid address: must be None or"):
            connected.sendto(b"x", (*target[:2], 1, 0))
        first.sendto(b"x", ("127.0.0.1", 9))
        await until(lambda: answers.errors)

    run(main())


def test_scope_ids_are_passed_on(run, endpoint):
    index = dict((name, number) for number, name in socket.if_nameindex()).get("lo")
    if index is None or not has_ipv6():
        return

    async def main():
        receiver, protocol = await endpoint(local_addr=("::1", 0))
        sender, errors = await endpoint(local_addr=("::1", 0))
        port = address(receiver)[1]
        sender.sendto(b"scoped", ("::1", port, 0, index))
        await until(lambda: protocol.received)
        assert protocol.received == [(b"scoped", address(sender))]
        # There is no such interface.
        sender.sendto(b"scoped", ("fe80::1", port, 0, 9999))
        assert len(errors.errors) == 1

    run(main())


def test_names_of_hosts_and_odd_addresses_are_left_to_the_socket(run, endpoint, contexts):
    async def main():
        receiver, protocol = await endpoint(**LOCAL)
        sender, errors = await endpoint(**LOCAL)
        port = address(receiver)[1]
        for to in (("localhost", port), ["127.0.0.1", port], ("127.1", port), (bytearray(b"127.0.0.1"), port)):
            before = len(protocol.received) + len(errors.errors)
            sender.sendto(b"hello", to)
            if sender.is_closing():
                sender, errors = await endpoint(**LOCAL)
            else:
                await until(lambda n=before: len(protocol.received) + len(errors.errors) > n)
        assert (b"hello", address(sender)[0]) in [(data, sent[0]) for data, sent in protocol.received]

    run(main())
    assert all(isinstance(context["exception"], TypeError) for context in contexts.take())


@pytest.mark.parametrize(
    "to", [None, ("127.0.0.1",), ("127.0.0.1", "x"), ("127.0.0.1", 70_000), 5, ("127.0.0.1", 1, 2)]
)
def test_wrong_addresses_end_the_transport_as_on_the_stock_loop(run, endpoint, contexts, to):
    async def main():
        transport, protocol = await endpoint(**LOCAL)
        transport.sendto(b"x", to)
        assert transport.is_closing() and not protocol.errors
        await until(lambda: protocol.lost)

    run(main())
    (context,) = contexts.take()
    assert context["message"] == "Fatal write error on datagram transport"
    assert isinstance(context["exception"], (TypeError, OverflowError))


def test_the_address_of_a_connected_endpoint(run, endpoint):
    async def main():
        server, protocol = await endpoint(**LOCAL)
        client, _ = await endpoint(remote_addr=address(server))
        client.sendto(b"1")
        client.sendto(b"2", None)
        client.sendto(b"3", addr=address(server))
        client.sendto(data=b"4", addr=tuple(list(address(server))))
        with pytest.raises(ValueError) as caught:
            client.sendto(b"5", ("127.0.0.1", 1))
        assert str(caught.value) == f"Invalid address: must be None or {address(server)}"
        await until(lambda: len(protocol.received) == 4)
        assert [data for data, _ in protocol.received] == [b"1", b"2", b"3", b"4"]

    run(main())


@pytest.mark.left_out(not hasattr(socket, "AF_NETLINK"), reason="Linux only")
def test_another_family(run, endpoint):
    """The kernel tells of its network links."""

    async def main():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)
        sock.setblocking(False)
        transport, protocol = await endpoint(sock=sock)
        for number in (1, 2):
            before = len(protocol.received)
            transport.sendto(LIST_LINKS, (0, 0))
            await until(lambda before=before: len(protocol.received) > before)
        assert {address for _, address in protocol.received} == {(0, 0)}

    run(main())


def test_multicast(run, endpoint):
    async def main():
        receiver, protocol = await endpoint(local_addr=("0.0.0.0", 0))
        group = socket.inet_aton("224.1.1.114") + socket.inet_aton("127.0.0.1")
        receiver.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        sender, _ = await endpoint(**LOCAL)
        sock = sender.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.sendto(b"to all", ("224.1.1.114", address(receiver)[1]))
        await until(lambda: protocol.received)
        assert protocol.received == [(b"to all", address(sender))]

    run(main())


def test_broadcast_is_sent_only_where_it_is_allowed(run, endpoint):
    async def main():
        for allowed in (False, True):
            sender, protocol = await endpoint(**LOCAL, allow_broadcast=allowed)
            sender.sendto(b"x", ("255.255.255.255", 9))
            assert [error.errno for error in protocol.errors if isinstance(error, PermissionError)] == (
                [] if allowed else [errno.EACCES]
            )

    run(main())


def test_unix_senders_without_a_name_and_with_an_abstract_one(run, endpoint, tmp_path):
    async def main():
        path = str(tmp_path / "receiver")
        _, protocol = await endpoint(local_addr=path, family=socket.AF_UNIX)
        name = b"\0fastloop-test-%d" % os.getpid()
        for bound in (None, name):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                if bound:
                    sock.bind(bound)
                sock.sendto(b"hello", path)
        await until(lambda: len(protocol.received) == 2)
        assert protocol.received == [(b"hello", None), (b"hello", name)]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(name)
        abstract, received = await endpoint(sock=sock)
        sender, _ = await endpoint(local_addr=str(tmp_path / "sender"), family=socket.AF_UNIX)
        sender.sendto(b"to nowhere but a name", name)
        await until(lambda: received.received)
        assert received.received == [(b"to nowhere but a name", str(tmp_path / "sender"))]
        assert abstract.get_extra_info("sockname") == name

    run(main())


# ---------------------------------------------------------------- sending and errors


def test_errors_of_sending_go_to_the_protocol_and_what_that_raises_to_the_caller(run, endpoint):
    class Raising(DatagramRecorder):
        def error_received(self, error):
            super().error_received(error)
            raise LookupError("of the protocol")

    async def main():
        transport, protocol = await endpoint(Raising, **LOCAL)
        with pytest.raises(LookupError) as caught:
            transport.sendto(b"x" * 100_000, ("127.0.0.1", 9))
        assert protocol.errors[0].errno == errno.EMSGSIZE and type(protocol.errors[0]) is OSError
        assert caught.value.__context__ is protocol.errors[0]
        assert not transport.is_closing()

    run(main())


def test_sending_after_the_end(run, endpoint, guard):
    async def main():
        server, protocol = await endpoint(**LOCAL)
        client, _ = await endpoint(remote_addr=address(server))
        client.abort()
        for _ in range(10):
            client.sendto(b"dropped")
        await turns(5)
        assert protocol.received == []
        client.sendto(b"dropped")

    run(main())
    assert guard.log.take() == ["socket.send() raised exception."] * 7


def test_closing_sends_what_is_queued_and_abort_does_not(loop, run, endpoint, tmp_path):
    async def main():
        for method, expected in (("close", 300), ("abort", None)):
            path = str(tmp_path / method)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
                slow.bind(path)
                slow.setblocking(False)
                sender, protocol = await endpoint(remote_addr=path, family=socket.AF_UNIX)
                for i in range(300):
                    sender.sendto(b"%03d" % i)
                assert sender.get_write_buffer_size() > 0 and sender._buffer
                getattr(sender, method)()
                assert sender.is_closing()
                received = []
                while not protocol.lost or (expected and len(received) < expected):
                    try:
                        received.append(slow.recv(100))
                    except BlockingIOError:
                        await turns(1)
                assert received == [b"%03d" % i for i in range(len(received))]
                assert len(received) == expected or expected is None

    run(main())


def test_a_bytearray_may_change_after_sendto(loop, run, endpoint, tmp_path):
    async def main():
        path = str(tmp_path / "slow")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
            slow.bind(path)
            slow.setblocking(False)
            sender, _ = await endpoint(remote_addr=path, family=socket.AF_UNIX)
            data = bytearray(b"000")
            for i in range(100):
                data[:] = b"%03d" % i
                sender.sendto(data)
            data[:] = b"bad"
            received = []
            while len(received) < 100:
                try:
                    received.append(slow.recv(100))
                except BlockingIOError:
                    await turns(1)
            assert received == [b"%03d" % i for i in range(100)]

    run(main())


def test_a_descriptor_closed_behind_our_back_is_an_error_for_the_protocol(run, endpoint):
    async def main():
        transport, protocol = await endpoint(**LOCAL)
        os.close(transport._sock.fileno())
        transport.sendto(b"x", ("127.0.0.1", 9))
        assert [error.errno for error in protocol.errors] == [errno.EBADF]
        transport._sock.detach()
        transport.sendto(b"x", ("127.0.0.1", 9))
        assert [error.errno for error in protocol.errors] == [errno.EBADF] * 2
        transport.abort()
        await until(lambda: protocol.lost)

    run(main())


def test_replaced_methods_of_sockets_are_called(run, endpoint):
    async def main():
        transport, protocol = await endpoint(**LOCAL)
        other, _ = await endpoint(**LOCAL)
        for _ in range(2):
            with mock.patch.object(socket.socket, "sendto", return_value=1, create=True) as sendto:
                transport.sendto(b"x", ("127.0.0.1", 9))
            sendto.assert_called_once_with(b"x", ("127.0.0.1", 9))
            with mock.patch.object(socket.socket, "recvfrom", return_value=(b"made up", "here")):
                other.sendto(b"y", address(transport))
                await until(lambda: protocol.received)
            assert protocol.received[0] == (b"made up", "here")
            await until(lambda: (b"y", address(other)) in protocol.received)
            protocol.received.clear()

    run(main())


def test_a_socket_of_another_class(run, endpoint):
    class Counting(socket.socket):
        sent = 0

        def sendto(self, *args):
            Counting.sent += 1
            return super().sendto(*args)

    async def main():
        receiver, protocol = await endpoint(**LOCAL)
        sock = Counting(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sender, _ = await endpoint(sock=sock)
        sender.sendto(b"x", address(receiver))
        await until(lambda: protocol.received)
        assert Counting.sent == 1

    run(main())


def test_a_replaced_sendto_is_honoured(run, endpoint):
    async def main():
        transport, _ = await endpoint(**LOCAL)
        with mock.patch.object(transport, "sendto") as sendto:
            transport.sendto(b"x")
        sendto.assert_called_once_with(b"x")

    run(main())


def test_in_debug_mode(loop, run, endpoint, guard):
    async def main():
        loop.set_debug(True)
        first, _ = await endpoint(**LOCAL)
        second, received = await endpoint(**LOCAL)
        first.sendto(b"hello", address(second))
        await until(lambda: received.received)
        assert received.received == [(b"hello", address(first))]

    run(main())


def test_sending_from_another_thread(run, endpoint):
    """Not promised, but what the standard transport does when it can send at once."""

    async def main():
        receiver, protocol = await endpoint(**LOCAL)
        sender, _ = await endpoint(**LOCAL)
        thread = threading.Thread(target=sender.sendto, args=(b"hello", address(receiver)))
        thread.start()
        thread.join()
        await until(lambda: protocol.received)

    run(main())


def test_max_size_changed_while_datagrams_are_delivered(loop, run):
    class Greedy(asyncio.DatagramProtocol):
        sizes = []

        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            self.sizes.append(len(data))
            self.transport.max_size = 1 << 24

    async def main():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        transport, protocol = await loop.create_datagram_endpoint(Greedy, sock=ours)
        theirs.send(b"x")
        theirs.send(b"y" * 400_000)
        await until(lambda: len(protocol.sizes) == 2)
        assert protocol.sizes == [1, 400_000]
        transport.close()
        theirs.close()
        await turns(3)

    run(main())
