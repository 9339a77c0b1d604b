"""Calls everything of fastloop._core with odd arguments: no crash, no hang, no SystemError, whatever the answer is.

    python tests/fuzz/fuzz.py --seconds 60          programs of random calls, each in a process of its own
    python tests/fuzz/fuzz.py --replay FILE         one program again, the calls written to standard error

A program is a string of bytes that makes the choices: which object, which method, which arguments. Where guide.c is
preloaded into an instrumented build (`make fuzz`), those that reach something new are kept, and others are made from
them. What fails is kept in --keep, and its last calls are shown.
"""

import argparse
import asyncio
import contextvars
import ctypes
import faulthandler
import functools
import gc
import os
import random
import signal
import socket
import sys
import tempfile
import time
import types
import warnings
import weakref
from pathlib import Path

import fastloop
from fastloop import _core

WAYS = 1 << 16
CALL_SECONDS = 1.0
PROGRAM_SECONDS = 60


class Interrupted(BaseException):
    """A call that waits was given up."""


class Choices:
    """Bytes as the source of every choice. At their end every choice is the first one."""

    def __init__(self, data):
        self.data = data
        self.place = 0

    @property
    def over(self):
        return self.place >= len(self.data)

    def below(self, limit):
        number = 0
        for _ in range(1 if limit <= 256 else 2):
            number = number << 8 | (self.data[self.place] if not self.over else 0)
            self.place += 1
        return number % limit

    def one_of(self, values):
        return values[self.below(len(values))]


class Liar:
    """Answers every protocol with an error, or with what does not fit."""

    def __init__(self, world, answer):
        self.world = world
        self.answer = answer

    def give(self, *args, **kwargs):
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer == "reenter":
            return self.world.call_something()
        return self.answer

    __call__ = __index__ = __int__ = __float__ = __bool__ = __len__ = __hash__ = __repr__ = __str__ = give
    __eq__ = __lt__ = __iter__ = __next__ = __await__ = __enter__ = __fspath__ = fileno = give
    send = throw = close = cancel = cancelled = result = _run = add_done_callback = get_loop = run = give
    data_received = connection_made = connection_lost = eof_received = get_buffer = buffer_updated = give
    pause_writing = resume_writing = datagram_received = error_received = give

    def __exit__(self, *args):
        return False


class Text(str):
    pass


class Number(int):
    pass


class SubFuture(fastloop.Future):
    pass


class SubTask(fastloop.Task):
    pass


class Reader(asyncio.Protocol):
    """A right protocol, whose callbacks call something."""

    def __init__(self, world):
        self.world = world

    def connection_made(self, transport):
        self.world.keep(transport)

    def data_received(self, data):
        self.world.call_something()

    def connection_lost(self, exc):
        self.world.call_something()


async def wait_for(awaitable):
    return await awaitable


def count_up():
    yield 1
    yield None


KEYWORDS = (
    "context name loop value fd callback key eager_start args protocol n sock coro msg exc timeout wait sizehint data "
    "max_workers thread_name_prefix initializer initargs handle when high low delay future transport limit func"
).split()
# What ends or blocks the process by its very nature, or belongs to the interpreter.
COMMON = {*dir(object), *dir(type)}
LEFT_OUT = {
    "__class__",
    "__subclasshook__",
    "__init_subclass__",
    "__subclasses__",
    "mro",
    "__reduce__",
    "__reduce_ex__",
    # run_forever() wraps it, so that a signal ends it.
    "_run_turns",
}


def own_types():
    """Every type of the C module, those that it does not show too."""
    found = {kind for kind in vars(_core).values() if isinstance(kind, type)}
    pending = [object]
    seen = set()
    while pending:
        for kind in type.__subclasses__(pending.pop()):
            if kind not in seen:
                seen.add(kind)
                pending.append(kind)
                if (kind.__module__ or "").startswith("fastloop"):
                    found.add(kind)
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


class World:
    """The objects of one program, and its choices."""

    def __init__(self, data, log):
        self.choices = Choices(data)
        self.log = log
        self.depth = 0
        self.running = False
        self.objects = []
        self.loops = [fastloop.new_event_loop()]
        for loop in self.loops:
            loop.set_exception_handler(lambda loop, context: None)
        self.closed = fastloop.new_event_loop()
        self.closed.close()
        self.types = own_types()
        self.own = tuple(self.types)
        self.fill()

    def keep(self, value):
        if len(self.objects) < 400:
            self.objects.append(value)

    def fill(self):
        loop = self.loops[0]
        done, failed, cancelled = loop.create_future(), loop.create_future(), loop.create_future()
        done.set_result(1)
        failed.set_exception(ValueError("x"))
        cancelled.cancel()
        pending = loop.create_future()
        self.socks = [*socket.socketpair(), *socket.socketpair(), *socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
        listener = socket.create_server(("127.0.0.1", 0))
        gone = socket.socket()
        gone.close()
        self.socks += [listener, gone]
        for sock in self.socks:
            if sock.fileno() >= 0:
                sock.setblocking(False)
        pipe = os.pipe()
        self.keep(loop)
        self.keep(self.closed)
        for value in (done, failed, cancelled, pending, SubFuture(loop=loop)):
            self.keep(value)
        self.keep(loop.create_task(wait_for(pending)))
        self.keep(loop.create_task(asyncio.sleep(0)))
        self.keep(SubTask(asyncio.sleep(0), loop=loop))
        self.keep(loop.call_soon(int))
        self.keep(loop.call_later(0.001, int))
        self.keep(loop.call_later(1000, print))
        self.keep(pending.__await__())
        self.keep(fastloop.ThreadPool(1) if hasattr(fastloop, "ThreadPool") else None)
        for kind in self.types:
            self.keep(kind)
            try:
                self.keep(kind.__new__(kind))
            except Exception:
                pass
        protocol = Reader(self)
        for make in (
            lambda: loop._make_socket_transport(self.socks[0], protocol),
            lambda: loop._make_datagram_transport(self.socks[4], asyncio.DatagramProtocol()),
            lambda: loop._make_read_pipe_transport(open(pipe[0], "rb", 0), asyncio.Protocol()),
            lambda: loop._make_write_pipe_transport(open(pipe[1], "wb", 0), asyncio.BaseProtocol()),
            lambda: loop._make_socket_transport(
                self.socks[2], asyncio.StreamReaderProtocol(self.reader(loop), loop=loop)
            ),
        ):
            self.keep(make())
        self.run_turn()
        self.socks[1].send(b"hello")
        context = contextvars.copy_context()
        fd = self.socks[3].fileno()
        self.odd = [
            None, True, False, 0, 1, -1, 2, 7, 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 2**100, 10**9,
            0.0, 1.5, -1.5, float("nan"), float("inf"), float("-inf"), 1e300,
            "", "a", "a\ud800", "x" * 3000, Text("context"), Number(3), b"", b"abc", b"x" * 70000,
            bytearray(b"abc"), memoryview(b"abcdef")[::2], memoryview(bytearray(8)), memoryview(b"")[0:0],
            (), (1,), (1, 2), ("127.0.0.1", 0), ("127.0.0.1", 1), ("::1", 1, 0, 0), ("\0", -1), [], [b"a", b"b"], [1],
            {}, {1: 2}, {"a": 1}, object(), object, int, print, len, abs, max, asyncio.sleep, loop.stop, fd, pipe[0],
            lambda *a: None, lambda *a: 1 / 0, lambda *a: self.call_something(), lambda *a: gc.collect(),
            ValueError("x"), ValueError, StopIteration(), StopIteration, KeyError("k"), SystemExit,
            asyncio.CancelledError(), context, contextvars.Context(), contextvars.ContextVar("v"),
            protocol, asyncio.BufferedProtocol(),
            asyncio.Protocol(), asyncio.DatagramProtocol(), asyncio.StreamReader(loop=loop), types.SimpleNamespace(),
            weakref.ref(protocol), signal.SIGUSR1, signal.SIGKILL, 65, "SIGTERM", socket.SHUT_WR, loop, self.closed,
            asyncio.Future, _core, type("Empty", (), {})(), Ellipsis, slice(None), range(3), *self.socks,
            *(Liar(self, answer) for answer in (
                None, 1, -1, 2**70, "x", b"", (), ValueError("liar"), StopIteration(), GeneratorExit(), "reenter", fd,
            )),
        ]  # fmt: skip
        self.makers = [
            lambda: asyncio.sleep(0), lambda: wait_for(pending), count_up, loop.create_future, lambda: iter(()),
            lambda: bytearray(5), lambda: Reader(self),
            lambda: asyncio.StreamReaderProtocol(self.reader(loop), loop=loop),
            lambda: loop.call_soon(self.call_something), lambda: loop.create_task(asyncio.sleep(0)),
            lambda: os.dup(fd), lambda: socket.socketpair()[0], contextvars.copy_context,
        ]  # fmt: skip

    @staticmethod
    def reader(loop):
        return asyncio.StreamReader(loop=loop)

    def argument(self):
        kind = self.choices.below(8)
        if kind < 4:
            return self.choices.one_of(self.odd)
        if kind < 6:
            return self.choices.one_of(self.objects)
        return self.choices.one_of(self.makers)()

    def call_something(self):
        """One call; its answer, or None."""
        if self.depth > 3 or self.choices.over:
            return None
        self.depth += 1
        try:
            return self.make_call()
        finally:
            self.depth -= 1

    def make_call(self):
        choices = self.choices
        targets = [_core, *self.types] if choices.below(4) == 0 else self.objects
        target = choices.one_of(targets)
        names = [name for name in dir(target) if name not in LEFT_OUT]
        # What every object has is tried now and then.
        if choices.below(16):
            names = [name for name in names if name not in COMMON] or names
        name = names[choices.below(len(names))]
        action = choices.below(10)
        signal.setitimer(signal.ITIMER_REAL, CALL_SECONDS)
        try:
            args = [self.argument() for _ in range(choices.one_of((0, 0, 1, 1, 1, 2, 2, 3, 4, 6)))]
            kwargs = {choices.one_of(KEYWORDS): self.argument() for _ in range(choices.one_of((0, 0, 0, 0, 1, 2)))}
            kinds = [type(value).__name__ for value in args]
            self.log(f"{'  ' * self.depth}{action} {type(target).__name__} {name} {kinds} {[*kwargs]}\n")
            if action == 0 and args and not isinstance(target, (type, types.ModuleType)):
                setattr(target, name, args[0])
                return None
            if action == 1 and not isinstance(target, (type, types.ModuleType)):
                delattr(target, name)
                return None
            value = getattr(target, name)
            if callable(value):
                value = value(*args, **kwargs)
            if isinstance(value, types.CoroutineType):
                value = self.loops[0].create_task(value)
            if isinstance(value, self.own):
                self.keep(value)
            return value
        except SystemError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, Interrupted):
            return None
        finally:
            # What called this one waits on.
            signal.setitimer(signal.ITIMER_REAL, CALL_SECONDS if self.depth > 1 or self.running else 0)

    def run_turn(self):
        loop = self.loops[0]
        signal.setitimer(signal.ITIMER_REAL, CALL_SECONDS)
        try:
            self.running = True
            _core.Loop.call_soon(loop, functools.partial(_core.Loop.stop, loop))
            fastloop.Loop.run_forever(loop)
        except SystemError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, Interrupted):
            pass
        finally:
            self.running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def run(self):
        while not self.choices.over:
            for _ in range(4):
                self.call_something()
            self.run_turn()
        self.objects.clear()
        gc.collect()
        self.run_turn()


def on_alarm(number, frame):
    signal.setitimer(signal.ITIMER_REAL, CALL_SECONDS)
    raise Interrupted


FOUND = []


def on_unraisable(unraisable):
    if isinstance(unraisable.exc_value, SystemError):
        FOUND.append(unraisable.exc_value)


def run_program(data, log_fd):
    """In a process of its own; the exit status is 0 if all went well."""
    sys.setrecursionlimit(400)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, on_alarm)
    faulthandler.enable(log_fd)
    faulthandler.dump_traceback_later(PROGRAM_SECONDS, exit=True, file=log_fd)
    sys.unraisablehook = on_unraisable
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.dup2(log_fd, 2)

    def log(text):
        os.write(log_fd, text.encode("utf-8", "backslashreplace"))

    try:
        World(data, log).run()
        gc.collect()
        if FOUND:
            raise FOUND[0]
    except SystemError as error:
        log(f"SystemError: {error!r}\n")
        return 3
    return 0


def run_forked(data):
    """(how it ended or None, the end of its log)."""
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if pid == 0:
            status = 4
            try:
                status = run_program(data, file.fileno())
            except BaseException:  # of the program that fuzzes: not what is looked for
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        deadline = time.monotonic() + PROGRAM_SECONDS + 5
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        file.seek(max(0, file.seek(0, 2) - 6000))
        log = file.read().decode(errors="replace")
    if status == 0:
        return None, log
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}", log


class Guide:
    """Which ways through the C code the programs so far have taken; None where the build does not tell."""

    def __init__(self):
        try:
            address = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "fuzz_ways").value
            self.ways = (ctypes.c_ubyte * WAYS).from_address(address)
        except (ValueError, AttributeError):
            self.ways = None
        self.seen = 0

    def found_new(self):
        if self.ways is None:
            return False
        # Never set back: a way counts once for the whole run.
        count = sum(bytes(self.ways))
        new, self.seen = count > self.seen, count
        return new


def mutate(rng, kept):
    size = rng.randrange(100, 1500)
    if not kept or rng.random() < 0.3:
        return rng.randbytes(size)
    data = bytearray(rng.choice(kept))
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(data))
        change = rng.randrange(4)
        if change == 0:
            data[place] = rng.randrange(256)
        elif change == 1:
            data[place:] = rng.randbytes(size)
        elif change == 2:
            data[place:place] = rng.randbytes(rng.randrange(1, 30))
        else:
            other = rng.choice(kept)
            data[place:] = other[rng.randrange(len(other)) :]
    return bytes(data[:4000]) or b"x"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--programs", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--seed", type=int, default=None, help="of the choices; a new one each time by default")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), metavar="FOLDER")
    parser.add_argument("--plant", action="store_true", help="have every program end with a crash, to see it told")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.plant:
        World.run = lambda self: ctypes.string_at(0)
    if options.replay:
        return run_program(options.replay.read_bytes(), 2)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    guide, kept, failures, count = Guide(), [], 0, 0
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline and count < options.programs and failures < 5:
        data = mutate(rng, kept)
        ended, log = run_forked(data)
        count += 1
        if guide.found_new():
            kept.append(data)
        if ended:
            failures += 1
            options.keep.mkdir(parents=True, exist_ok=True)
            path = options.keep / f"failed-{seed}-{count}"
            path.write_bytes(data)
            print(f"{path}: {ended}\n{log[-4000:]}", flush=True)
    ways = f", {guide.seen} ways through the code, {len(kept)} programs kept" if guide.ways is not None else ""
    print(f"seed {seed}: {count} programs, {failures} failed{ways}")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
