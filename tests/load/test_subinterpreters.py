"""Subinterpreters: importing and running a small program in two of them, each with its own GIL."""

import sys

import pytest

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


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a GIL of one's own is new in Python 3.12")
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
import asyncio, signal, ssl
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


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the interpreters of 3.12 crash with the stock loop too")
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


@pytest.mark.fastloop_only("it is about the state of fastloop's module")
@pytest.mark.skipif(sys.version_info < (3, 14), reason="earlier interpreters never give their memory back")
def test_subinterpreters_leave_nothing_behind(python):
    output = python(
        DRIVER
        + """
import resource
program = "import asyncio; asyncio.run(asyncio.sleep(0), loop_factory=new_event_loop)"
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
for _ in range(10):
    run(program)
before = resident()
for _ in range(30):
    run(program)
print((resident() - before) // 30)
""",
        options=("-W", "ignore"),
    )
    # One that keeps its module loses half a megabyte.
    assert int(output) < 200_000


def test_the_module_is_freed_with_its_interpreter(python):
    """What asyncio keeps, such as its set of tasks, does not keep fastloop's module."""
    if sys.version_info < (3, 12):
        pytest.skip("its asyncio keeps what it has seen")
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
