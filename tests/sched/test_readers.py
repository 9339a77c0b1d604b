"""add_reader, add_writer and their counterparts, on every kind of descriptor."""

import asyncio
import contextlib
import contextvars
import os
import signal
import socket
import tempfile
import threading
import time

import pytest

from helpers import new_loop, outcome, socket_pair, turns, until


@pytest.fixture
def pair():
    first, second = socket_pair("unix")
    yield first, second
    first.close()
    second.close()


# ---------------------------------------------------------------- the basics


def test_a_reader_is_called_with_its_arguments_when_there_is_data(loop, run, pair):
    seen = []

    async def main():
        first, second = pair
        assert loop.add_reader(first, lambda *args: seen.append((args, first.recv(10))), 1, "two") is None
        await turns(5)
        assert seen == []
        second.send(b"data")
        await until(lambda: seen)
        assert loop.remove_reader(first) is True

    run(main())
    assert seen == [((1, "two"), b"data")]


def test_a_writer_is_called_while_there_is_room(loop, run, pair):
    first, second = pair
    sent = [0]

    def write():
        with contextlib.suppress(BlockingIOError):
            sent[0] += first.send(b"x" * 65536)

    async def main():
        assert loop.add_writer(first, write) is None
        before = -1
        while sent[0] != before:
            before = sent[0]
            await asyncio.sleep(0.01)
        received = 0
        while received < before:
            received += len(second.recv(before - received))
        await until(lambda: sent[0] > before)
        assert loop.remove_writer(first) is True

    run(main())


def test_a_reader_that_leaves_data_is_called_again(loop, run, pair):
    first, second = pair
    seen = []
    second.send(b"abc")
    loop.add_reader(first, lambda: seen.append(first.recv(1)))
    run(until(lambda: len(seen) == 3))
    assert seen == [b"a", b"b", b"c"]
    loop.remove_reader(first)


@pytest.mark.parametrize("busy, limit", [(0, 20), (0.0001, 3)], ids=["short callbacks", "long callbacks"])
@pytest.mark.parametrize("chain", ["callbacks", "task"])
def test_a_ready_descriptor_is_served_beside_a_chain_that_never_pauses(loop, run, pair, chain, busy, limit):
    """The poll is left out for at most 16 turns, and for 10 us."""
    first, second = pair
    waited, sent_at, turn = [], None, 0

    def step():
        nonlocal sent_at, turn
        turn += 1
        if sent_at is None and turn % 37 == 0:
            second.send(b"x")
            sent_at = turn
        end = time.perf_counter() + busy
        while busy and time.perf_counter() < end:
            pass

    def on_readable():
        nonlocal sent_at
        first.recv(10)
        waited.append(turn - sent_at)
        sent_at = None

    def chain_of_callbacks(done):
        step()
        if len(waited) < 50:
            loop.call_soon(chain_of_callbacks, done)
        else:
            done.set_result(None)

    async def main():
        loop.add_reader(first, on_readable)
        if chain == "callbacks":
            done = loop.create_future()
            loop.call_soon(chain_of_callbacks, done)
            await done
        else:
            while len(waited) < 50:
                step()
                await asyncio.sleep(0)
        loop.remove_reader(first)

    run(main())
    assert max(waited) <= limit


def test_whatever_happens_beside_a_descriptor_that_is_always_ready_is_seen(loop, run, pair):
    """Nothing but its callback runs: each turn finds it ready."""
    first, second = pair
    calls = []

    def pass_on():
        calls.append(first.recv(1))
        second.send(b"x")

    async def calls_later(count=100):
        before = len(calls)
        done = loop.create_future()

        def look():
            if len(calls) < before + count:
                loop.call_later(0.001, look)
            else:
                done.set_result(None)

        look()
        await done

    async def main():
        second.send(b"x")
        loop.add_reader(first, pass_on)
        await calls_later()
        done = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(done.set_result, "by a thread"))
        thread.start()
        assert await done == "by a thread"
        thread.join()
        await calls_later()
        done = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, done.set_result, "by a signal")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await done == "by a signal"
        loop.remove_signal_handler(signal.SIGUSR1)
        await calls_later()
        other, peer = socket_pair("unix")
        reader, writer = await asyncio.open_unix_connection(sock=other)
        peer.send(b"by a transport")
        assert await reader.read(100) == b"by a transport"
        writer.close()
        await writer.wait_closed()
        peer.close()
        await calls_later()
        loop.remove_reader(first)
        count = len(calls)
        await asyncio.sleep(0.001)
        assert len(calls) == count

    run(main())


def test_reader_and_writer_of_one_descriptor_are_independent(loop, run, pair):
    first, second = pair
    read, written = [], []

    async def main():
        loop.add_reader(first, lambda: read.append(first.recv(10)))
        loop.add_writer(first, written.append, 1)
        second.send(b"x")
        await until(lambda: read and written)
        assert loop.remove_writer(first) is True
        await turns(2)
        count = len(written)
        second.send(b"y")
        await until(lambda: len(read) == 2)
        assert len(written) == count
        loop.add_writer(first, written.append, 1)
        assert loop.remove_reader(first) is True
        second.send(b"z")
        await until(lambda: len(written) > count)
        assert len(read) == 2
        assert loop.remove_writer(first) is True

    run(main())


def test_adding_again_replaces_the_callback(loop, run, pair):
    first, second = pair
    seen = []

    async def main():
        loop.add_reader(first, seen.append, "old")
        loop.add_reader(first, lambda: seen.append(first.recv(10)))
        loop.add_writer(first, seen.append, "old")
        loop.add_writer(first, lambda: (seen.append("new"), loop.remove_writer(first)))
        second.send(b"x")
        await until(lambda: len(seen) == 2)
        assert loop.remove_reader(first) is True and loop.remove_reader(first) is False

    run(main())
    assert sorted(map(str, seen)) == ["b'x'", "new"]


def test_removing_what_is_not_there_is_false(loop, pair):
    first, _ = pair
    assert loop.remove_reader(first) is False
    assert loop.remove_writer(first) is False
    loop.add_reader(first, print)
    assert loop.remove_writer(first) is False
    assert loop.remove_reader(first) is True
    assert loop.remove_reader(12345) is False


def test_numbers_and_objects_with_fileno_mean_the_same_descriptor(loop, pair):
    first, _ = pair

    class Thing:
        def fileno(self):
            return first.fileno()

    for add, remove in ((first, first.fileno()), (first.fileno(), Thing()), (Thing(), first)):
        loop.add_reader(add, print)
        assert loop.remove_reader(remove) is True
        loop.add_writer(add, print)
        assert loop.remove_writer(remove) is True


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
@pytest.mark.parametrize(
    "wrong, message",
    [
        ("text", "Invalid file object: 'text'"),
        (None, "Invalid file object: None"),
        (1.5, "Invalid file object: 1.5"),
        (-1, "Invalid file descriptor: -1"),
    ],
)
def test_what_is_no_descriptor_is_a_value_error(loop, method, wrong, message):
    with pytest.raises(ValueError) as caught:
        getattr(loop, method)(wrong, print)
    assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        getattr(loop, method.replace("add", "remove"))(wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_closed_number_is_an_os_error_and_a_regular_file_a_permission_error(loop, run, method):
    with pytest.raises(OSError) as caught:
        getattr(loop, method)(1000, print)
    assert type(caught.value) is OSError and caught.value.errno == 9
    with tempfile.TemporaryFile() as file:
        with pytest.raises(PermissionError):
            getattr(loop, method)(file, print)
        # Nothing is registered after the failure.
        assert getattr(loop, method.replace("add", "remove"))(file) is False
    run(asyncio.sleep(0.001))


def test_descriptors_of_transports_are_refused(loop, run, pair):
    async def main():
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0])
        fd = transport.get_extra_info("socket").fileno()
        for call in (
            lambda: loop.add_reader(fd, print),
            lambda: loop.add_writer(fd, print),
            lambda: loop.remove_reader(fd),
            lambda: loop.remove_writer(pair[0]),
        ):
            with pytest.raises(RuntimeError, match="^File descriptor .* is used by transport <"):
                call()
        transport.close()
        await turns(3)

    run(main())


# ---------------------------------------------------------------- changes in the midst of things


def test_a_callback_may_remove_itself(loop, run, pair):
    first, second = pair
    seen = []
    second.send(b"abc")
    loop.add_reader(first, lambda: (seen.append(first.recv(1)), seen.append(loop.remove_reader(first))))
    run(until(lambda: seen))
    run(asyncio.sleep(0.01))
    assert seen == [b"a", True]


def test_of_two_ready_readers_the_first_may_remove_the_second(loop, run):
    pairs = [socket_pair("unix") for _ in range(2)]
    seen = []

    def read(mine, other):
        seen.append(1)
        loop.remove_reader(mine)
        loop.remove_reader(other)

    (a, a_peer), (b, b_peer) = pairs
    loop.add_reader(a, read, a, b)
    loop.add_reader(b, read, b, a)
    a_peer.send(b"x")
    b_peer.send(b"x")
    run(until(lambda: seen))
    run(asyncio.sleep(0.01))
    assert seen == [1]
    for sock in (a, a_peer, b, b_peer):
        sock.close()


def test_a_callback_may_replace_itself_and_close_its_descriptor(loop, run, pair):
    first, second = pair
    seen = []

    def second_callback():
        seen.append("second")
        loop.remove_reader(first)
        first.close()

    def first_callback():
        seen.append("first")
        loop.add_reader(first, second_callback)

    second.send(b"x")
    loop.add_reader(first, first_callback)
    run(until(lambda: len(seen) == 2))
    run(turns(3))
    assert seen == ["first", "second"]


@pytest.mark.parametrize("by", ["number", "object"])
def test_a_descriptor_closed_by_its_owner_can_still_be_removed(loop, run, by):
    first, second = socket_pair("unix")
    number = first.fileno()
    loop.add_reader(number if by == "number" else first, pytest.fail)
    run(turns(2))
    first.close()
    second.close()
    run(asyncio.sleep(0.005))
    assert loop.remove_reader(number if by == "number" else first) is True
    run(turns(2))


@pytest.mark.parametrize("first", ["number", "object"])
def test_a_closed_descriptor_is_found_by_what_was_registered_first(loop, first):
    sock, other = socket_pair("unix")
    number = sock.fileno()
    loop.add_reader(number if first == "number" else sock, print)
    loop.add_writer(sock if first == "number" else number, print)
    assert loop.remove_reader(number) is True
    sock.close()
    if first == "object":
        assert loop.remove_writer(sock) is True
    else:
        with pytest.raises(ValueError, match="^Invalid file descriptor: -1$"):
            loop.remove_writer(sock)
        assert loop.remove_writer(number) is True
    other.close()


def test_a_number_that_comes_back_can_be_registered_again(loop, run):
    """The owner closes a watched descriptor, and the kernel gives its number to another file."""
    first, second = socket_pair("unix")
    number = first.fileno()
    loop.add_reader(number, pytest.fail)
    run(turns(2))
    first.close()
    second.close()
    loop.remove_reader(number)
    third, fourth = socket_pair("unix")
    assert number in (third.fileno(), fourth.fileno())
    ours, theirs = (third, fourth) if third.fileno() == number else (fourth, third)
    seen = []
    theirs.send(b"new")
    loop.add_reader(number, lambda: seen.append(ours.recv(10)))
    run(until(lambda: seen))
    assert seen == [b"new"]
    loop.remove_reader(number)
    third.close()
    fourth.close()


def test_a_number_that_comes_back_as_a_regular_file_ends_in_an_error_only(loop, run):
    first, second = socket_pair("unix")
    number = first.fileno()
    loop.add_reader(number, pytest.fail)
    run(turns(2))
    first.close()
    second.close()
    fd = os.open(os.devnull, os.O_RDONLY)
    regular = os.open(tempfile.gettempdir(), os.O_RDONLY)
    os.dup2(regular, number)
    try:
        with pytest.raises(OSError):
            loop.add_writer(number, print)
        run(asyncio.sleep(0.005))
        loop.remove_reader(number)
        run(asyncio.sleep(0.001))
    finally:
        for open_fd in {fd, regular, number}:
            os.close(open_fd)


def test_a_duplicate_is_a_descriptor_of_its_own(loop, run, pair):
    first, second = pair
    copy = os.dup(first.fileno())
    seen = []
    loop.add_reader(first, lambda: (seen.append("first"), loop.remove_reader(first)))
    loop.add_reader(copy, lambda: (seen.append("copy"), loop.remove_reader(copy)))
    second.send(b"x")
    run(until(lambda: len(seen) == 2))
    assert sorted(seen) == ["copy", "first"]
    os.close(copy)


def test_closing_the_loop_forgets_the_descriptors_and_leaves_them_open(loop_factory, pair):
    loop = loop_factory()
    loop.add_reader(pair[0], print)
    loop.add_writer(pair[0], print)
    loop.run_until_complete(turns(2))
    loop.close()
    pair[1].send(b"still open")
    assert pair[0].recv(100) == b"still open"
    assert loop.remove_reader(pair[0]) is False


def test_many_descriptors_at_once(loop, run):
    pairs = [socket_pair("unix") for _ in range(500)]
    seen = set()

    def read(i):
        seen.add((i, pairs[i][0].recv(10)))

    for i, (mine, theirs) in enumerate(pairs):
        loop.add_reader(mine, read, i)
        theirs.send(b"%d" % i)
    run(until(lambda: len(seen) == len(pairs)))
    assert seen == {(i, b"%d" % i) for i in range(len(pairs))}
    for mine, theirs in pairs:
        loop.remove_reader(mine)
        mine.close()
        theirs.close()


# ---------------------------------------------------------------- errors and contexts


def test_the_exception_of_a_reader_is_reported_and_the_reader_stays(loop, run, pair, contexts):
    first, second = pair

    def read():
        raise ValueError(first.recv(1))

    async def main():
        loop.add_reader(first, read)
        second.send(b"ab")
        await until(lambda: len(contexts) == 2)
        loop.remove_reader(first)

    run(main())
    reports = contexts.take()
    assert [report["exception"].args[0] for report in reports] == [b"a", b"b"]
    assert all({"message", "exception", "handle"} <= set(report) for report in reports)


def test_all_calls_of_a_reader_share_the_context_of_its_registration(loop, run, pair):
    variable = contextvars.ContextVar("variable", default=0)
    first, second = pair
    seen = []

    def read():
        first.recv(1)
        seen.append(variable.get())
        variable.set(variable.get() + 1)

    async def main():
        variable.set(10)
        loop.add_reader(first, read)
        variable.set(99)
        second.send(b"abc")
        await until(lambda: len(seen) == 3)
        loop.remove_reader(first)

    run(main())
    assert seen == [10, 11, 12]


# ---------------------------------------------------------------- kinds of descriptors


@contextlib.contextmanager
def descriptors(kind, folder):
    """Two descriptors, where what is written to the second can be read from the first."""
    if kind == "pipe":
        fds = os.pipe()
    elif kind == "fifo":
        path = str(folder / "fifo")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fds = reader, os.open(path, os.O_WRONLY)
    elif kind == "pty":
        fds = os.openpty()
    elif kind == "eventfd":
        fd = os.eventfd(0)
        fds = fd, os.dup(fd)
    elif kind == "udp":
        socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        socks[1].connect(socks[0].getsockname())
        fds = [sock.detach() for sock in socks]
    else:
        fds = [sock.detach() for sock in socket_pair(kind)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp", "pipe", "fifo", "pty", "eventfd"])
def test_every_kind_of_descriptor_can_be_watched_and_keeps_its_flags(loop, run, kind, tmp_path):
    async def main():
        with descriptors(kind, tmp_path) as (reading, writing):
            seen = []
            flags = [os.get_blocking(reading), os.get_blocking(writing)]
            loop.add_reader(reading, lambda: seen.append(os.read(reading, 8)))
            await turns(3)
            assert seen == []
            loop.add_writer(writing, lambda: (os.write(writing, b"\1\0\0\0\0\0\0\n"), loop.remove_writer(writing)))
            await until(lambda: seen)
            assert [os.get_blocking(reading), os.get_blocking(writing)] == flags
            assert loop.remove_reader(reading) is True
            assert loop.remove_writer(writing) is False

    run(main())


def test_the_end_of_a_pipe_wakes_its_reader_and_a_broken_pipe_its_writer(loop, run):
    async def main():
        seen = []
        reading, writing = os.pipe()
        loop.add_reader(reading, lambda: (seen.append(os.read(reading, 10)), loop.remove_reader(reading)))
        await turns(2)
        os.close(writing)
        await until(lambda: seen)
        assert seen == [b""]
        os.close(reading)

        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 65536)
        loop.add_writer(writing, lambda: (seen.append("broken"), loop.remove_writer(writing)))
        await turns(2)
        assert seen == [b""]
        os.close(reading)
        await until(lambda: len(seen) == 2)
        os.close(writing)

    run(main())


class Numbered:
    """A file object with any number, or an error in its place."""

    def __init__(self, number):
        self.number = number

    def __repr__(self):
        return "<Numbered>"

    def fileno(self):
        if isinstance(self.number, Exception):
            raise self.number
        return self.number


ODD_NUMBERS = [
    -1,
    -5,
    2**31,
    2**40,
    2**80,
    -(2**80),
    "text",
    "7",
    None,
    1e9,
    float("inf"),
    float("nan"),
    TypeError("a"),
    ValueError("b"),
    OSError("c"),
]


@pytest.mark.fastloop_only("a direct comparison")
@pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
@pytest.mark.parametrize("number", ODD_NUMBERS, ids=repr)
def test_file_objects_with_odd_numbers(loop, number, method):
    stock = new_loop("stock")
    try:
        for thing in (Numbered(number), number):
            arguments = [thing] if method.startswith("remove") else [thing, int]
            assert outcome(getattr(loop, method), *arguments) == outcome(getattr(stock, method), *arguments)
    finally:
        stock.close()


@pytest.mark.fastloop_only("a direct comparison")
@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize("first", ["bool", "number"])
def test_a_bool_for_a_descriptor_warns_as_often_as_on_the_stock_loop(python, method, number, first):
    """Newer versions of Python warn wherever epoll is told of a descriptor that was registered as a bool."""
    answers = [
        python(
            f"""
            import warnings
            warnings.simplefilter("always")
            output = os.fdopen(os.dup(1), "w", 1)
            near, far = os.pipe()
            os.dup2(near, {int(number)})
            warned = []
            warnings.showwarning = lambda message, category, *place: warned.append((category.__name__, str(message)))
            def ask(method, *args):
                answer = getattr(loop, method)(*args)
                print(method, args[0], answer, warned, file=output)
                warned.clear()
            loop = {make}
            other = "add_writer" if "{method}" == "add_reader" else "add_reader"
            told, again = ({number}, {int(number)}) if "{first}" == "bool" else ({int(number)}, {number})
            for fd in (told, again):
                ask("{method}", fd, int)
                ask(other, fd, int)
            for fd in (again, told):
                ask("{method}".replace("add", "remove"), fd)
                ask(other.replace("add", "remove"), fd)
            warnings.simplefilter("error")
            try:
                ask("{method}", told, int)
            except RuntimeWarning as exc:
                print("raised", exc, file=output)
            loop.close()
            output.close()
            """
        )
        for make in ("asyncio.SelectorEventLoop()", "new_event_loop()")
    ]
    assert answers[0] == answers[1] != ""


def test_a_ready_descriptor_waits_for_no_more_than_the_turn_under_way(loop, run):
    """However short, and however many, the turns before it were."""

    async def turns_until_read(light):
        ours, theirs = socket.socketpair()
        turns = 0
        read = loop.create_future()

        def work():
            nonlocal turns
            if turns == 0:
                theirs.send(b"x")
            # Longer than the loop may go without a poll.
            time.sleep(0.001)
            turns += 1
            if not read.done():
                loop.call_soon(work)

        def count_down(left):
            loop.call_soon(*(count_down, left - 1) if left else (work,))

        with ours, theirs:
            loop.add_reader(ours, lambda: (loop.remove_reader(ours), read.set_result(turns)))
            await asyncio.sleep(0.001)
            count_down(light)
            return await read

    async def main():
        return [await turns_until_read(light) for light in [*range(12)] * 5]

    # The callback of the reader stands behind the one that was queued first.
    assert max(run(main())) <= 2
