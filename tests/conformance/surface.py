"""Compares the public surface of fastloop with that of the standard loop of the running Python.

    python tests/conformance/surface.py             # every difference, and which of them are explained
    python tests/conformance/surface.py -v socket   # every answer to the questions whose text contains "socket"

Three kinds of questions are asked of both loops: what a class or a live object offers (names, kinds, signatures,
docstrings, public base classes, extra info), and what a call does that is wrong in its arguments or its time (the value
returned, or the type and text of the exception; what reached the exception handler, the log and the warnings). A
difference must match a line of EXPLAINED, which names the section of docs/compatibility.md that tells why. The exit
status is 1 when one does not, or when that page and EXPLAINED do not have the same sections.
"""

import argparse
import asyncio
import contextlib
import contextvars  # noqa: F401 (for the questions)
import functools
import inspect
import io  # noqa: F401 (for the questions)
import logging
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time  # noqa: F401 (for the questions)
import types
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import questions  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPATIBILITY = ROOT / "docs" / "compatibility.md"

#: (regular expression over "question: difference", heading in docs/compatibility.md)
EXPLAINED = [
    (r"^UDP transport: bases: stock (?!.*DatagramTransport.*fastloop)", "Bases of datagram transports"),
    (
        r"^TLS transport: (write: stock method|write (docstring|signature): .*missing|del t.write)",
        "write() of a TLS transport",
    ),
    (r"^loop: sock_\w+: stock coroutine function, fastloop method$", "The sock_ methods"),
    (r"^loop: only fastloop has (metrics|set_metrics|set_slow_callback_hook)\b", "Methods for observability"),
    (r"max_size: stock attribute, fastloop missing$", "Size of a read"),
    (r"call_later\(1j, f\)|sleep\(float\(\"nan\"\)\)", "Times that are no numbers"),
    (r"set_debug\(5\)", "Debug flag"),
    (r"andle: only fastloop has get_context|handle\.get_context\(\): stock .*no attribute", "Context of a handle"),
    (r"^Handle: repr\(threadsafe\): stock .*<_ThreadSafeHandle", "Names of classes"),
    (r"t\.writelines\(\[b\"x\", None\]\): .*fastloop \(\('raised', 'TypeError'", "None in writelines"),
    (r"context=5\).*TaskStepMethWrapper.*fastloop\.TaskStepMethWrapper", "Names of classes"),
    (r"has no attribute '\w+'\"\).*fastloop \(\('raised', 'AttributeError', \"'fastloop\.", "Names of classes"),
    (r"not supported between.*fastloop \(\('raised', 'TypeError', .*not supported between", "Names of classes"),
    (r"dumps\(loop\)|: iter\(future\)", "Names of classes"),
    (
        r"stock \(\('raised', 'TypeError', .*(missing|takes|unexpected|invalid keyword).*"
        r"fastloop \(\('raised', 'TypeError', .*(missing|takes|unexpected|invalid keyword)",
        "Wrong number of arguments",
    ),
    (r"loop\.__class__\(", "The selector"),
    (r"(_ready|_scheduled|t\._buffer|loop\._run_once|loop\._add_callback): stock", "Views of the queues"),
    (r"loop\.add_reader\(a, seen\.append, 1\)", "Polls beside ready callbacks"),
    (r"type\(handle\)\(\)", "Handles are made by the loop"),
    (r"copy\(t\)", "Objects that cannot be copied"),
    (r"in debug mode: .*(_source_traceback|create_future|created at)", "Messages of debug mode"),
    (r"t\.writelines\(\[b\"x\"\]\): stock .*'NoneType' object is not callable", "Writing to a closed transport"),
]

#: How long an awaitable may take before it counts as one that waits, and how long a question may take. What differs is
#: asked again with more time, since the machine may be busy with something else.
SECONDS = 0.5
PATIENCE = 10
MORE_TIME = (1, 4, 8)
time_factor = MORE_TIME[0]


# ---------------------------------------------------------------- what a class or an object offers


def kind_of(owner, name):
    """What sort of attribute it is, for somebody who uses it."""
    value = inspect.getattr_static(owner, name)
    if isinstance(value, (staticmethod, classmethod)):
        return type(value).__name__
    if isinstance(value, property) or inspect.isdatadescriptor(value):
        return "attribute"
    if callable(value):
        return "coroutine function" if inspect.iscoroutinefunction(value) else "method"
    return "attribute"


def signature_of(value):
    """The parameters, each with its name, kind and default; annotations are left out."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "unknown"
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def public_names(thing):
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def public_bases(cls):
    """The classes of asyncio and the standard library that isinstance() may be asked for."""
    return [
        f"{base.__module__}.{base.__qualname__}"
        for base in cls.__mro__
        if base.__module__.partition(".")[0] in ("asyncio", "_asyncio") and not base.__name__.startswith("_")
    ]


def is_slot(cls, name):
    """Is it an attribute of the instances that a class in Python keeps in __slots__?"""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    return "__slots__" in vars(owner) and isinstance(vars(owner)[name], types.MemberDescriptorType)


def surface_of(thing):
    """What a live object offers, as {aspect: answer}."""
    cls = type(thing)
    found = {"bases": [base for base in public_bases(cls) if not re.search(r"\.(Base)?SelectorEventLoop$", base)]}
    for name in (
        "__iter__",
        "__await__",
        "__enter__",
        "__aenter__",
        "__del__",
        "__eq__",
        "__hash__",
        "__lt__",
        "__call__",
    ):
        found[name] = getattr(cls, name, None) is not None
    found["weak references"] = bool(cls.__weakrefoffset__)
    for name in public_names(thing):
        kind = found[name] = kind_of(cls, name) if hasattr(cls, name) else "instance attribute"
        if kind == "attribute" and is_slot(cls, name):
            kind = found[name] = "instance attribute"
        if kind in ("method", "coroutine function"):
            found[name + " signature"] = signature_of(getattr(thing, name))
            found[name + " docstring"] = bool(getattr(cls, name).__doc__)
    return found


# ---------------------------------------------------------------- the two sides


def certificates(folder):
    """A key and a self-signed certificate for localhost, made once."""
    path = pathlib.Path(folder) / "certificate.pem"
    if not path.exists():
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        )
        name = ["-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", str(path) + ".crt"]
        subprocess.run([*command.split(), *name], check=True, capture_output=True)
        path.write_bytes(path.read_bytes() + pathlib.Path(str(path) + ".crt").read_bytes())
    return str(path)


class Quiet(asyncio.Protocol):
    """A protocol that says nothing."""

    transport = None

    def connection_made(self, transport):
        self.transport = transport


class Buffered(asyncio.BufferedProtocol):
    def get_buffer(self, sizehint):
        return bytearray(100)


class Datagrams(asyncio.DatagramProtocol):
    pass


class Children(asyncio.SubprocessProtocol):
    pass


async def coroutine(*args):
    return args


def fail(*args):
    raise ValueError("on purpose")


class Side:
    """One of the two loops, with what the questions use as names."""

    def __init__(self, factory, folder):
        self.factory = factory
        self.folder = folder
        self.names = {}

    def make_names(self, loop):
        certificate = certificates(self.folder)

        def server_context():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            return context

        def client_context():
            return ssl.create_default_context(cafile=certificate)

        opened = contextlib.ExitStack()

        def keep(sock):
            sock.setblocking(False)
            return opened.enter_context(contextlib.closing(sock))

        def pair():
            return [keep(sock) for sock in socket.socketpair()]

        def tcp():
            return keep(socket.socket())

        def udp():
            return keep(socket.socket(type=socket.SOCK_DGRAM))

        def blocking():
            return opened.enter_context(contextlib.closing(socket.socket()))

        def closed_socket():
            sock = socket.socket()
            sock.close()
            return sock

        def bound_udp():
            sock = udp()
            sock.bind(("127.0.0.1", 0))
            return sock

        def pipe_ends():
            reading, writing = os.pipe()
            return opened.enter_context(open(reading, "rb", 0)), opened.enter_context(open(writing, "wb", 0))

        def regular():
            return opened.enter_context(open(os.path.join(self.folder, "regular"), "w+b"))

        def text_file():
            return opened.enter_context(open(os.path.join(self.folder, "text"), "w+"))

        def tls_socket():
            context = ssl.create_default_context()
            sock = context.wrap_socket(socket.socket(), do_handshake_on_connect=False, server_hostname="localhost")
            sock.setblocking(False)
            return opened.enter_context(contextlib.closing(sock))

        def free_port():
            with socket.create_server(("127.0.0.1", 0)) as sock:
                return sock.getsockname()[1]

        async def server(**options):
            made = await loop.create_server(options.pop("factory", Quiet), "127.0.0.1", 0, **options)
            opened.callback(made.close)
            return made

        names = {name: value for name, value in globals().items() if not name.startswith("_")}
        names.update({name: value for name, value in locals().items() if name not in ("self", "names")})
        names["side"] = self.factory
        names["path"] = os.path.join(self.folder, "socket")
        names["f"] = lambda *args: None
        return names, opened

    def loop(self):
        return self.factory()


def normalised(text):
    """A text without what must differ: addresses, numbers of descriptors, ports and processes, names of classes."""
    for pattern, replacement in (
        (r"0x[0-9a-f]+", "0x"),
        (r"\('(127\.0\.0\.1|::1)', \d+(, 0, 0)?\)", "ADDRESS"),
        (r"127\.0\.0\.1:\d+|\('127\.0\.0\.1', \d+\)", "ADDRESS"),
        (r"/tmp/tmp\w+", "FOLDER"),
        (r"_add_reader\(\d+, .*", "_add_reader(...)"),
        (r"took \d\.\d+ seconds", "took N seconds"),
        (r"\b(fd=|fd |pid |pid=|File descriptor |Task-|when=)[\d.]+", r"\1N"),
        (r"\b(_core|_asyncio|fastloop|asyncio)\.(?=[A-Z])", ""),
        (r"\b(fastloop\.)?_core\.", ""),
        (r"<(_UnixSelectorEventLoop|Loop) ", "<LOOP "),
        (r"'(_UnixSelectorEventLoop|Loop)'", "'LOOP'"),
        (r"\b(_Selector|_Unix)?(Socket|Datagram|ReadPipe|WritePipe|Subprocess)Transport\b", r"\2Transport"),
    ):
        text = re.sub(pattern, replacement, str(text))
    return text


def described(value):
    """A value as it can be compared: plain ones as they are, others by their public class."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return normalised(repr(value))
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(described, value))})"
    if inspect.iscoroutine(value):
        return "a coroutine"
    bases = public_bases(type(value))
    return bases[0] if bases else type(value).__qualname__


# ---------------------------------------------------------------- what a call does


class Heard:
    """What the exception handler, the log and the warnings were told during one question."""

    def __init__(self, loop):
        self.loop = loop
        self.contexts = []
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = self.on_record

    def on_record(self, record):
        text = normalised(record.getMessage().split("\n")[0])
        # Threads that wait for children say so, when they come too late: how late is the machine's choice.
        if not re.search("^Unknown child process pid|that handles pid N is closed$", text):
            self.contexts.append(("logged", text))

    def on_exception(self, loop, context):
        keys = sorted(key for key in context if key != "source_traceback")
        self.contexts.append(
            ("handler", keys, normalised(context.get("message")), normalised(repr(context.get("exception"))))
        )

    def __enter__(self):
        logging.getLogger("asyncio").addHandler(self.handler)
        logging.getLogger("asyncio").propagate = False
        self.loop.set_exception_handler(self.on_exception)
        self.catcher = warnings.catch_warnings(record=True)
        self.warnings = self.catcher.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *exc_info):
        self.catcher.__exit__(*exc_info)
        logging.getLogger("asyncio").removeHandler(self.handler)
        self.contexts += [
            ("warned", warning.category.__name__, normalised(warning.message))
            for warning in self.warnings
            # These come when the garbage collector finds something, maybe of another question.
            if not re.search(
                "^unclosed|was never awaited|is still running$|no current event loop|^loop is closed",
                str(warning.message),
            )
        ]


def step(value):
    """Start a coroutine where no loop can run it; what it raises at once is its answer."""
    try:
        value.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        value.close()
    return "waits"


async def settled(value):
    if inspect.isawaitable(value) and not isinstance(value, asyncio.Server):
        # Not wait_for(), which waits for the end of what it cancels.
        future = asyncio.ensure_future(value)
        done, _ = await asyncio.wait([future], timeout=SECONDS * time_factor)
        return future.result() if done else "waits"
    return value


def answer(function):
    try:
        return "returned", described(function())
    except Hangs:
        raise
    except BaseException as exc:
        cause = f" from {type(exc.__cause__).__name__}" if exc.__cause__ else ""
        return "raised", type(exc).__name__, normalised(exc) + cause


def evaluate(text, names):
    """The value of an expression, or of a function body in which await is allowed: `first; second; expression`."""
    *statements, last = [part.strip() for part in text.split(";;")]
    body = "".join(f"\n    {statement}" for statement in statements) + f"\n    return {last}"
    is_async = re.search(r"\bawait\b", text)
    scope = dict(names)
    exec(f"{'async ' if is_async else ''}def question():{body}\n", scope)
    return scope["question"]()


def ask_idle(side, text, debug=False):
    """On an open loop that does not run; coroutines and futures are run to their end."""
    loop = side.loop()
    loop.set_debug(debug)
    names, opened = side.make_names(loop)
    with Heard(loop) as heard, opened:

        def question():
            value = evaluate(text, names)
            return loop.run_until_complete(settled(value)) if inspect.isawaitable(value) else value

        result = answer(question)
        finish(loop)
    return result, heard.contexts


def finish(loop):
    """Let the loop settle, and close it."""
    if loop.is_closed() or loop.is_running():
        return

    async def rest():
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.002)

    loop.set_task_factory(None)
    try:
        # A stop() that is still to be obeyed is used up.
        loop.stop()
        loop.run_forever()
        loop.run_until_complete(rest())
    except (TypeError, OSError):
        # A timer whose time is no number brings the standard loop down, now and at each further turn.
        pass
    loop.close()


def ask_running(side, text, debug=False):
    """Inside a coroutine of the loop; an awaitable result is awaited."""
    loop = side.loop()
    loop.set_debug(debug)
    loop.slow_callback_duration = 60
    names, opened = side.make_names(loop)

    async def main():
        try:
            return "returned", described(await settled(evaluate(text, names)))
        except BaseException as exc:
            return answer(functools.partial(reraise, exc))

    def reraise(exc):
        raise exc

    with Heard(loop) as heard, opened:
        result = loop.run_until_complete(main())
        finish(loop)
    return result, heard.contexts


def ask_closed(side, text):
    """On a closed loop."""
    loop = side.loop()
    loop.close()
    names, opened = side.make_names(loop)
    with Heard(loop) as heard, opened:

        def question():
            value = evaluate(text, names)
            return step(value) if inspect.iscoroutine(value) else value

        result = answer(question)
    return result, heard.contexts


def ask_thread(side, text):
    """From another thread than the one that runs the loop, in debug mode."""
    loop = side.loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60
    names, opened = side.make_names(loop)
    found = []

    def question():
        value = evaluate(text, names)
        return step(value) if inspect.iscoroutine(value) else value

    async def main():
        thread = threading.Thread(target=lambda: found.append(answer(question)))
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.001)
        thread.join()

    with Heard(loop) as heard, opened:
        with contextlib.suppress(RuntimeError):
            # The question may have been stop().
            loop.run_until_complete(main())
        finish(loop)
    return found[0], heard.contexts


# ---------------------------------------------------------------- live objects


@contextlib.asynccontextmanager
async def tcp_transports(names):
    loop = asyncio.get_running_loop()
    accepted = []
    server = await loop.create_server(lambda: accepted.append(Quiet()) or accepted[-1], "127.0.0.1", 0)
    transport, _ = await loop.create_connection(Quiet, *server.sockets[0].getsockname())
    while not accepted or accepted[0].transport is None:
        await asyncio.sleep(0.001)
    yield {"t": transport, "other": accepted[0].transport, "server": server}
    for end in (transport, accepted[0].transport):
        end.abort() if not end.is_closing() else None
    server.close()


@contextlib.asynccontextmanager
async def unix_transports(names):
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, _ = await loop.create_unix_connection(Quiet, sock=ours)
    with theirs:
        yield {"t": transport, "other": theirs}
        transport.abort() if not transport.is_closing() else None


@contextlib.asynccontextmanager
async def tls_transports(names):
    loop = asyncio.get_running_loop()
    accepted = []
    server = await loop.create_server(
        lambda: accepted.append(Quiet()) or accepted[-1], "127.0.0.1", 0, ssl=names["server_context"]()
    )
    transport, _ = await loop.create_connection(
        Quiet, *server.sockets[0].getsockname(), ssl=names["client_context"](), server_hostname="localhost"
    )
    while not accepted or accepted[0].transport is None:
        await asyncio.sleep(0.001)
    yield {"t": transport, "other": accepted[0].transport, "server": server}
    with contextlib.suppress(AttributeError):
        transport.abort()
        accepted[0].transport.abort()
    server.close()
    await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def udp_transports(names):
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
    other, _ = await loop.create_datagram_endpoint(Datagrams, remote_addr=transport.get_extra_info("sockname"))
    yield {"t": transport, "other": other}
    with contextlib.suppress(AttributeError):
        transport.abort()
        other.abort()


@contextlib.asynccontextmanager
async def read_pipes(names):
    loop = asyncio.get_running_loop()
    reading, writing = names["pipe_ends"]()
    transport, _ = await loop.connect_read_pipe(Quiet, reading)
    yield {"t": transport, "other": writing}
    transport.close()


@contextlib.asynccontextmanager
async def write_pipes(names):
    loop = asyncio.get_running_loop()
    reading, writing = names["pipe_ends"]()
    transport, _ = await loop.connect_write_pipe(Quiet, writing)
    yield {"t": transport, "other": reading}
    with contextlib.suppress(AttributeError):
        # The standard one forgets its loop when it is closed.
        transport.abort()


@contextlib.asynccontextmanager
async def children(names):
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(Children, "cat")
    yield {"t": transport, "other": transport.get_pipe_transport(0)}
    with contextlib.suppress(ProcessLookupError):
        transport.kill()
    await transport._wait()
    transport.close()


@contextlib.asynccontextmanager
async def servers(names):
    server = await names["server"](start_serving=False)
    yield {"t": server}
    server.close()


@contextlib.asynccontextmanager
async def small_things(names):
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    task = loop.create_task(asyncio.sleep(1000))
    timer = loop.call_later(1000, names["f"])
    yield {
        "handle": loop.call_soon(names["f"], 1),
        "threadsafe": loop.call_soon_threadsafe(names["f"]),
        "timer": timer,
        "future": future,
        "task": task,
    }
    future.cancel()
    task.cancel()
    timer.cancel()


OBJECTS = {
    "TCP transport": (tcp_transports, "t"),
    "accepted TCP transport": (tcp_transports, "other"),
    "Unix transport": (unix_transports, "t"),
    "TLS transport": (tls_transports, "t"),
    "UDP transport": (udp_transports, "t"),
    "read pipe": (read_pipes, "t"),
    "write pipe": (write_pipes, "t"),
    "subprocess": (children, "t"),
    "pipe to a subprocess": (children, "other"),
    "server": (servers, "t"),
    "Handle": (small_things, "handle"),
    "thread-safe Handle": (small_things, "threadsafe"),
    "TimerHandle": (small_things, "timer"),
    "Future": (small_things, "future"),
    "Task": (small_things, "task"),
}

EXTRA_INFO = [
    "socket", "sockname", "peername", "ssl_object", "sslcontext", "peercert", "cipher", "compression", "pipe",
    "subprocess", "nonsense",
]  # fmt: skip


def extra_info(transport):
    """What get_extra_info() gives for every name that any transport knows."""
    return {
        f"get_extra_info({name!r})": normalised(described(transport.get_extra_info(name, "default"))).replace(
            "asyncio.trsock.", ""
        )
        for name in EXTRA_INFO
    }


def examine(side, kind):
    """The surface of one kind of live object: while it is in use, and its extra info after its close."""
    opener, key = OBJECTS[kind]
    loop = side.loop()
    names, opened = side.make_names(loop)

    async def main():
        async with opener(names) as made:
            thing = made[key]
            found = surface_of(thing)
            if hasattr(thing, "get_extra_info"):
                found.update(extra_info(thing))
                found["repr"] = re.sub(r"[\d:.,]+", "N", normalised(repr(thing)))
                thing.close()
                await asyncio.sleep(0.005)
                found.update({f"closed: {name}": value for name, value in extra_info(thing).items()})
        return found

    with opened:
        try:
            return loop.run_until_complete(main())
        finally:
            finish(loop)


def ask_object(side, kind, text):
    """A call on a live object, inside its loop."""
    opener, _ = OBJECTS[kind]
    loop = side.loop()
    loop.slow_callback_duration = 60
    names, opened = side.make_names(loop)

    async def main():
        async with opener(names) as made:
            try:
                return "returned", described(await settled(evaluate(text, {**names, **made})))
            except BaseException as exc:
                error = exc

                def reraise():
                    raise error

                return answer(reraise)
            finally:
                await asyncio.sleep(0.002)

    with Heard(loop) as heard, opened:
        result = loop.run_until_complete(main())
        finish(loop)
    return result, heard.contexts


# ---------------------------------------------------------------- the comparison

STATES = {
    "idle": (ask_idle, questions.IDLE),
    "idle, in debug mode": (functools.partial(ask_idle, debug=True), questions.IDLE),
    "running": (ask_running, questions.RUNNING),
    "running, in debug mode": (functools.partial(ask_running, debug=True), questions.DEBUG),
    "closed": (ask_closed, questions.CLOSED),
    "from another thread": (ask_thread, questions.THREAD),
}


def every_question():
    """(text of the question, function of a side that answers it) for everything that is asked."""

    def of_class(side):
        loop = side.loop()
        try:
            return surface_of(loop)
        finally:
            loop.close()

    yield "loop", of_class
    for kind in OBJECTS:
        yield kind, functools.partial(flipped, examine, kind)
    for state, (ask, texts) in STATES.items():
        for text in texts:
            yield f"{state}: {text}", functools.partial(flipped, ask, text)
    for kind, texts in questions.OBJECT_QUESTIONS.items():
        for text in texts:
            yield f"{kind}: {text}", functools.partial(flipped, ask_object, kind, text)


def flipped(ask, *args):
    """ask(side, *args), with the side as the last argument."""
    *args, side = args
    return ask(side, *args)


def differences(question, stock, ours):
    """The differences between two answers, one text each."""
    if isinstance(stock, dict) and isinstance(ours, dict):
        for name in sorted(stock.keys() | ours.keys()):
            if name not in stock:
                yield f"{question}: only fastloop has {name} ({ours[name]})"
            elif stock[name] != ours.get(name, "missing") and not (name.endswith(" docstring") and ours.get(name)):
                yield f"{question}: {name}: stock {stock[name]}, fastloop {ours.get(name, 'missing')}"
    elif stock != ours:
        yield f"{question}: stock {stock}, fastloop {ours}"


def explained_by(difference):
    return {heading for pattern, heading in EXPLAINED if re.search(pattern, difference, re.DOTALL)}


class Hangs(BaseException):
    """A question found no answer in its time."""


def on_alarm(signum, frame):
    raise Hangs


def asked(ask, side):
    """The answer of one side, or that there is none."""
    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(PATIENCE * time_factor)
    try:
        return ask(side)
    except Hangs:
        return "hangs"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def compared(question, ask, sides, show):
    """The differences that are left when both have had time enough."""
    global time_factor
    for time_factor in MORE_TIME:
        stock, ours = (asked(ask, side) for side in sides)
        found = [*differences(question, stock, ours)]
        if all(map(explained_by, found)):
            break
    time_factor = MORE_TIME[0]
    show(question, stock, ours)
    return found


def stale_explanations():
    """What EXPLAINED names and the page does not, and what the page explains and EXPLAINED does not name."""
    named = {heading for _, heading in EXPLAINED}
    known = set(re.findall(r"^### (.+)$", COMPATIBILITY.read_text(), re.MULTILINE))
    return [f"docs/compatibility.md has no heading {heading!r}" for heading in sorted(named - known)] + [
        f"docs/compatibility.md explains what is no difference: {heading}" for heading in sorted(known - named)
    ]


def run(only="", show=lambda question, stock, ours: None):
    """Ask everything whose text contains `only`; return the list of the differences."""
    import fastloop

    found = []
    with tempfile.TemporaryDirectory() as folder:
        sides = Side(asyncio.SelectorEventLoop, folder), Side(fastloop.Loop, folder)
        for question, ask in every_question():
            if only in question:
                found += compared(question, ask, sides, show)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", default="", help="ask only the questions that contain this text")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every answer of the standard loop")
    options = parser.parse_args()

    def show(question, stock, ours):
        if options.verbose:
            print(f"{question}\n    {stock}")

    found = run(options.only, show)
    unexplained = [difference for difference in found if not explained_by(difference)]
    for difference in unexplained:
        print(difference)
    print(f"{len(found)} differences, {len(unexplained)} of them unexplained")
    stale = stale_explanations()
    for line in stale:
        print(line)
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
