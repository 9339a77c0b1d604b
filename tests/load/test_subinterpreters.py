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
