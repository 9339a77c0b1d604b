"""The interpreter ends while everything is open: as with the standard loop, and no crash."""

import os

import pytest


@pytest.fixture(autouse=True)
def freed_memory_is_spoilt(monkeypatch):
    """What is used after it was freed, as the module's state might be, then shows (a sanitizer shows it anyway)."""
    if "PYTHONMALLOC" not in os.environ:
        monkeypatch.setenv("PYTHONMALLOC", "debug")


OPEN = """
import asyncio, gc, socket, ssl, sys, threading, time

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        transport.write(b"x" * 100)
    def data_received(self, data):
        pass

async def waits():
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        kept.append("finally")

async def numbers():
    for number in range(10):
        yield number

async def open_everything():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Protocol, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    kept.append([await loop.create_connection(Protocol, *address) for _ in range(3)])
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    kept.append([loop.create_task(waits()), loop.create_task(reader.readline()), writer, far])
    writer.write(bytes(3_000_000))
    kept.append(await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)))
    # TLS, half-way: nobody answers.
    quiet, silent = socket.socketpair()
    context = ssl.create_default_context()
    shaking = loop.create_connection(Protocol, sock=quiet, ssl=context, server_hostname="x")
    kept.append([silent, loop.create_task(shaking)])
    loop.add_reader(far, print)
    loop.call_later(1000, print)
    loop.call_at(loop.time() + 1000, print)
    kept.append([loop.run_in_executor(None, time.sleep, 0.2) for _ in range(3)])
    generator = numbers()
    await generator.__anext__()
    kept.append(generator)
    await asyncio.sleep(0.01)
    return server

kept = []
loop = new_event_loop()
kept.append(loop.run_until_complete(open_everything()))
"""

ENDS = {
    "kept": "",
    "in a cycle": "loop.cycle = kept\nkept.append(loop)\ndel loop, kept",
    "collected": "del loop, kept, Protocol\ngc.collect()",
    "closed": "loop.close()",
    "running": "loop.call_soon(sys.exit, 3)\nloop.run_forever()",
    "an exception": "raise SystemExit(4)",
    "in a module that goes late": "sys.modules['late'] = type(sys)('late')\nsys.modules['late'].kept = kept, loop",
    "used by a finalizer": """
class Late:
    def __init__(self, *things):
        self.things = things
    def __del__(self):
        loop, kept = self.things
        transport, task = kept[0][0][0], kept[1][0]
        for call in (loop.stop, lambda: loop.call_soon(print), loop.time, loop.create_future, lambda: repr(loop),
                     loop.close, lambda: transport.write(b"late"), transport.abort, task.cancel):
            try:
                call()
            except Exception:
                pass
late = Late(loop, kept)
late.cycle = late
""",
    "a thread": "threading.Thread(target=lambda: (time.sleep(0.1), loop.call_soon_threadsafe(print))).start()",
    "a daemon": """
def forever():
    while True:
        try:
            loop.call_soon_threadsafe(int)
        except RuntimeError:
            return
threading.Thread(target=forever, daemon=True).start()
""",
}
STATUS = {"running": 3, "an exception": 4}


@pytest.mark.parametrize("end", ENDS)
def test_everything_is_open(python, end):
    """Nothing but the status counts: what is reported on the way differs from version to version."""
    python(OPEN + ENDS[end], status=STATUS.get(end, 0), stderr=None)


NEW_WITHOUT_INIT = """
import gc, warnings
import fastloop
from fastloop import _core
warnings.simplefilter("ignore")
sys.unraisablehook = lambda unraisable: None
SKIPPED = {"run_forever", "_run_turns", "_run_once", "__reduce__", "__reduce_ex__"}

def touch(thing):
    # Every attribute; every method without an argument, and with wrong ones.
    for name in sorted(set(dir(thing)) - SKIPPED):
        for args in ((), (thing,), (thing, None)):
            try:
                value = getattr(thing, name)
                if not callable(value) or isinstance(value, type):
                    break
                value(*args)
            except (Exception, asyncio.CancelledError):
                pass

saved = []
class Saver:
    # Comes back to life, with what it refers to.
    def __del__(self):
        saved.append(self.thing)

made = 0
kinds = {kind for module in (_core, fastloop) for kind in vars(module).values() if isinstance(kind, type)}
for kind in sorted(kinds, key=str):
    if not kind.__module__.startswith("fastloop") or issubclass(kind, BaseException):
        continue
    for attempt in range(3):
        try:
            thing = kind.__new__(kind)
        except TypeError:
            break
        made += 1
        gc.collect()
        if attempt == 1:
            touch(thing)
        if attempt == 2:
            saver = Saver()
            saver.thing = thing
            try:
                # A deep cycle through it.
                chain = thing.attribute = []
                for _ in range(10_000):
                    chain.append([])
                    chain = chain[0]
                chain += [saver, thing]
            except AttributeError:
                saver.cycle = saver
            del saver, chain
        del thing
        gc.collect()
        while saved:
            touch(saved.pop())
        gc.collect()
assert made > 10, made
print("fine")
"""


@pytest.mark.fastloop_only
def test_types_without_init_in_cycles_and_resurrected(python):
    assert python(NEW_WITHOUT_INIT, stderr=None).strip().endswith("fine")
