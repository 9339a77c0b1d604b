"""Subinterpreters: whole programs in several at once, how they end, and what is left of them."""

import os
import sys
import sysconfig

import pytest

from helpers import GIL

PROGRAM = """
import asyncio
async def echo(reader, writer):
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()
async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    assert await reader.readline() == b"hello\\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    await asyncio.gather(*[asyncio.sleep(0.001) for _ in range(100)])
    assert await asyncio.to_thread(int, "5") == 5
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    for _ in range(20):
        runner.run(main())
"""


@pytest.mark.left_out(sys.version_info < (3, 12), reason="a GIL of one's own is new in Python 3.12")
@pytest.mark.parametrize("isolated", [True, False], ids=["own GIL", "shared GIL"])
def test_a_program_in_two_subinterpreters_and_the_main_one(python, isolated):
    """On 3.12 the stock loop too crashes beside the main interpreter and at the end of a subinterpreter."""
    assert (
        python(
            f"""
        if sys.version_info >= (3, 13):
            import _interpreters as interpreters
            create = lambda: interpreters.create("isolated" if {isolated} else "legacy")
        else:
            import _xxsubinterpreters as interpreters
            create = lambda: interpreters.create(isolated={isolated})
        head = "import sys; sys.path[:] = " + repr(sys.path) + chr(10)
        if LOOP == "stock":
            head += "import asyncio; new_event_loop = asyncio.SelectorEventLoop" + chr(10)
        else:
            head += "from fastloop import new_event_loop" + chr(10)
        program = head + {PROGRAM!r}
        failures = []
        def run(interpreter):
            try:
                failure = interpreters.run_string(interpreter, program)
            except Exception as exc:
                failure = exc
            if failure is not None:
                failures.append(getattr(failure, "errdisplay", None) or failure)
        ids = [create() for _ in range(2)]
        threads = [threading.Thread(target=run, args=(i,)) for i in ids]
        for thread in threads:
            thread.start()
        if sys.version_info >= (3, 13):
            exec(program, {{}})
        for thread in threads:
            thread.join()
        if sys.version_info >= (3, 13):
            for i in ids:
                interpreters.destroy(i)
        exec(program, {{}})
        print("ended", *failures, flush=True)
        if sys.version_info < (3, 13):
            os._exit(0)
        """,
            options=("-W", "ignore"),
        )
        == "ended\n"
    )


FULL_PROGRAM = """
import asyncio, signal, ssl, sys
certificate, authority = FILES
server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_side.load_cert_chain(certificate)
client_side = ssl.create_default_context(cafile=authority)
async def echo(reader, writer):
    while data := await reader.readline():
        writer.write(data)
    writer.close()
async def talk(**tls):
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_side if tls else None)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), **tls)
    for number in range(20):
        writer.write(b"%d\\n" % number)
        assert await reader.readline() == b"%d\\n" % number
    writer.close()
    await writer.wait_closed()
    server.close()
async def main():
    loop = asyncio.get_running_loop()
    await asyncio.gather(talk(), talk(ssl=client_side, server_hostname="localhost"))
    assert await asyncio.gather(*[asyncio.to_thread(int, str(i)) for i in range(50)]) == list(range(50))
    program = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(3)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=-1, stdout=-1)
    assert await process.communicate(b"shout\\n") == (b"SHOUT\\n", None) and process.returncode == 3
    try:
        loop.add_signal_handler(signal.SIGUSR1, print)
    except RuntimeError as exc:
        assert "main thread" in str(exc), exc
    else:
        raise AssertionError("signals were not refused")
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""

DRIVER = """
import _interpreters as interpreters
head = "import sys; sys.path[:] = " + repr(sys.path) + chr(10)
if LOOP == "stock":
    head += "import asyncio; new_event_loop = asyncio.SelectorEventLoop" + chr(10)
else:
    head += "from fastloop import new_event_loop" + chr(10)
def run(program):
    interpreter = interpreters.create("isolated")
    failure = interpreters.run_string(interpreter, head + program)
    interpreters.destroy(interpreter)
    if failure is not None:
        print(failure.errdisplay, flush=True)
"""


@pytest.mark.left_out(sys.version_info < (3, 13), reason="the interpreters of 3.12 crash with the stock loop too")
def test_a_full_program_in_eight_subinterpreters_at_once(python, tmp_path):
    from helpers import Authority

    authority = Authority(tmp_path)
    with open(tmp_path / "server.pem", "wb") as file:
        leaf = authority.authority.issue_cert("localhost", "127.0.0.1")
        file.write(leaf.private_key_pem.bytes() + b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    program = FULL_PROGRAM.replace("FILES", repr((str(tmp_path / "server.pem"), str(authority.certificate))))
    source = (
        DRIVER
        + f"""
threads = [threading.Thread(target=run, args=({program!r},)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("ended")
"""
    )
    assert python(source, options=("-W", "ignore")) == "ended\n"


#: How many are made and ended in each of the tests below; `make interpreters` asks for a thousand.
COUNT = int(os.environ.get("FASTLOOP_INTERPRETERS", "20"))

GROWTH = """
import gc, resource
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def grown(program):
    for _ in range(5):
        run(program)
    gc.collect()
    # Blocks that an interpreter leaves behind when it ends are counted for good.
    blocks, size = sys.getallocatedblocks(), resident()
    for _ in range(COUNT):
        run(program)
    gc.collect()
    print((sys.getallocatedblocks() - blocks) // COUNT, (resident() - size) // COUNT)
head = "import asyncio, sys; sys.path[:] = " + repr(sys.path) + chr(10) + IMPORT
grown(PROGRAM)
"""

AWAITING = """
async def main():
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_later(0.001, future.set_result, None)
    await future
    await asyncio.wait([asyncio.create_task(asyncio.sleep(0.001)) for _ in range(3)])
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def growth(python, kind, imported):
    """The blocks and bytes that each of COUNT interpreters leaves behind; it may take minutes."""
    python.watchdog = False
    # The memory that is never given back must not be that of both loops in one process.
    source = DRIVER.replace('"isolated"', repr(kind)) + f"COUNT, IMPORT, PROGRAM = {COUNT}, {imported!r}, {AWAITING!r}"
    child = python.start(source + GROWTH, options=("-W", "ignore"))
    output, errors = child.communicate()
    assert child.returncode == 0 and errors == "", f"exit status {child.returncode}\n{output}\n{errors}"
    print(f"{kind}, {COUNT} interpreters, {imported}: blocks and bytes of each: {output}")
    return map(int, output.split())


# A guard against hanging: each takes 0.3 s of a processor that may be busy otherwise.
@pytest.mark.timeout(300 + 10 * COUNT)
@pytest.mark.fastloop_only("it compares the two loops")
@pytest.mark.left_out(sys.version_info < (3, 13), reason="the interpreters of 3.12 crash with the stock loop too")
@pytest.mark.parametrize("kind", ["isolated", "legacy"])
def test_subinterpreters_leave_no_more_behind_than_with_the_stock_loop(python, kind):
    stock_blocks, stock_bytes = growth(python, kind, "from asyncio import SelectorEventLoop as new_event_loop")
    blocks, size = growth(python, kind, "from fastloop import new_event_loop")
    # Up to 3.13 each interned string is left behind, and what asyncio awaited with keeps the whole of asyncio.
    assert blocks <= stock_blocks + 10
    # And one with a GIL of its own, or none, gives no memory back at all, so that fastloop's code counts, too.
    gives_back = sys.version_info >= (3, 14) or (GIL and kind == "legacy")
    assert size <= stock_bytes + (150_000 if gives_back else 1_000_000)


ENDINGS = {
    "a loop that never ran": """
loop = new_event_loop()
""",
    "pending tasks, timers and callbacks": """
loop = new_event_loop()
async def wait(future):
    try:
        await future
    finally:
        await asyncio.sleep(0)
tasks = [loop.create_task(wait(loop.create_future())) for _ in range(10)]
tasks += [loop.create_task(asyncio.sleep(1000)) for _ in range(10)]
loop.run_until_complete(asyncio.sleep(0))
loop.call_soon(print, "never")
loop.call_later(1000, print, "never")
loop.call_soon_threadsafe(print, "never")
lost = loop.create_future()
lost.set_exception(ValueError())
""",
    "idle threads": """
loop = new_event_loop()
jobs = [loop.run_in_executor(None, str, i) for i in range(20)]
loop.run_until_complete(asyncio.gather(*jobs))
""",
    "busy threads": """
import time
loop = new_event_loop()
jobs = [loop.run_in_executor(None, time.sleep, 0.02) for i in range(40)]
loop.run_until_complete(asyncio.sleep(0))
""",
    "connections with data under way": """
loop = new_event_loop()
class Talk(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        transport.write(b"x" * 1000000)
async def main():
    global server, client, readers
    server = await loop.create_server(Talk, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    client = await loop.create_connection(Talk, *address)
    readers = [await asyncio.open_connection(*address) for _ in range(5)]
    readers.append(asyncio.create_task(readers[0][0].readline()))
    datagrams = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
    readers += datagrams
    pair = socket.socketpair()
    loop.add_reader(pair[0], print)
    readers.extend(pair)
    await asyncio.sleep(0)
import socket
loop.run_until_complete(main())
""",
    "a cycle that is garbage": """
loop = new_event_loop()
loop.itself = loop
loop.future = loop.create_future()
loop.future.add_done_callback(loop.call_soon)
task = loop.create_task(asyncio.sleep(1000))
loop.run_until_complete(asyncio.sleep(0))
del loop, task
""",
    "another thread's loop, left open": """
import threading
def work():
    global loop, task
    loop = new_event_loop()
    task = loop.create_task(asyncio.sleep(1000))
    loop.run_until_complete(asyncio.to_thread(int))
thread = threading.Thread(target=work)
thread.start()
thread.join()
""",
    "a running task that raises SystemExit": """
async def main():
    asyncio.create_task(asyncio.sleep(1000))
    await asyncio.to_thread(int)
    raise SystemExit
loop = new_event_loop()
try:
    loop.run_until_complete(main())
except SystemExit:
    pass
""",
}


@pytest.mark.fastloop_only("what the stock loop leaves open is CPython's to end")
@pytest.mark.left_out(sys.version_info < (3, 13), reason="the interpreters of 3.12 crash with the stock loop too")
@pytest.mark.parametrize("kind", ["isolated", "legacy"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_subinterpreter_ends_with_its_loop_open(python, ending, kind):
    """Whatever is said of it, it ends; and the others, which make and end loops meanwhile, go on."""
    program = "import asyncio, logging; logging.disable()\n" + ENDINGS[ending]
    source = (
        DRIVER.replace('"isolated"', repr(kind))
        + f"""
def again(count):
    for _ in range(count):
        run({program!r})
threads = [threading.Thread(target=again, args=(3,)) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    asyncio.run(asyncio.sleep(0.001), loop_factory=new_event_loop)
for thread in threads:
    thread.join()
again(1)
asyncio.run(asyncio.to_thread(int), loop_factory=new_event_loop)
print("ended")
"""
    )
    # "Task was destroyed", "unclosed event loop" and the like.
    assert python(source, options=("-W", "ignore"), stderr=None) == "ended\n"


@pytest.mark.left_out(sys.version_info < (3, 12), reason="its asyncio keeps what it has seen")
@pytest.mark.left_out(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")) and sys.version_info < (3, 14),
    reason="its classes live as long as the process",
)
def test_the_module_is_freed_with_its_interpreter(python):
    """What asyncio keeps, such as its set of tasks, does not keep fastloop's module."""
    source = """
        import gc, weakref
        loop = new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        del loop
        if LOOP != "stock":
            import fastloop._core
            module = weakref.ref(fastloop._core)
            del fastloop, new_event_loop
            for name in [name for name in sys.modules if name.partition(".")[0] == "fastloop"]:
                del sys.modules[name]
            gc.collect()
            gc.collect()
            assert module() is None
    """
    assert python(source) == ""
