"""A Jupyter kernel, started as Jupyter starts it: cells that await, tasks between cells, nest_asyncio, an interrupt."""

import pytest

pytest.importorskip("ipykernel")
pytest.importorskip("jupyter_client")

DRIVER = """
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec

before = [] if LOOP == "stock" else ["-m", "fastloop"]
command = [sys.executable, *before, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
manager = KernelManager()
manager._kernel_spec = KernelSpec(argv=command, display_name="x", language="python")
manager.start_kernel(cwd=os.getcwd())
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=40)

def cell(code, interrupt_after=None):
    '''Run a cell as a notebook does; print what it writes and how it ends.'''
    def show(message):
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            print(content["text"], end="", flush=True)
            if interrupt_after is not None and interrupt_after in content["text"]:
                manager.interrupt_kernel()
        elif kind == "execute_result":
            print("=", content["data"]["text/plain"])
        elif kind == "error":
            print("!", content["ename"], content["evalue"])
    reply = client.execute_interactive(code, allow_stdin=False, timeout=40, output_hook=show)
    print(reply["content"]["status"])

CELLS
client.stop_channels()
manager.shutdown_kernel()
print("alive", manager.is_alive())
"""


def kernel(python, cells):
    """What the cells write, on a kernel that runs on the loop under test."""
    return python(DRIVER.replace("CELLS", cells), stderr=None)


def test_cells(python, loop_name):
    output = kernel(
        python,
        '''
cell("import asyncio; print(type(asyncio.get_running_loop()).__module__)")
cell("await asyncio.sleep(0.01); 6 * 7")
cell("""
heard = []
async def ticks():
    while len(heard) < 3:
        await asyncio.sleep(0.01)
        heard.append(len(heard))
task = asyncio.create_task(ticks())
""")
cell("await task; heard")
cell("""
async def echo(reader, writer):
    writer.write((await reader.readline()).upper())
    writer.close()
server = await asyncio.start_server(echo, "127.0.0.1", 0)
""")
cell("""
reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
writer.write(b"through a server of another cell\\\\n")
print(await reader.read())
writer.close(); server.close()
""")
cell("""
child = await asyncio.create_subprocess_exec("echo", "child", stdout=-1)
(await child.communicate())[0], child.returncode, await asyncio.to_thread(sum, range(1000))
""")
cell("await asyncio.wait_for(asyncio.sleep(100), 0.01)")
cell("1 / 0")
cell("asyncio.run(asyncio.sleep(0))")
''',
    )
    assert output.splitlines() == [
        "asyncio.unix_events" if loop_name == "stock" else "fastloop.loop",
        "ok",
        "= 42",
        "ok",
        "ok",
        "= [0, 1, 2]",
        "ok",
        "ok",
        "b'THROUGH A SERVER OF ANOTHER CELL\\n'",
        "ok",
        "= (b'child\\n', 0, 499500)",
        "ok",
        "! TimeoutError ",
        "error",
        "! ZeroDivisionError division by zero",
        "error",
        "! RuntimeError asyncio.run() cannot be called from a running event loop",
        "error",
        "alive False",
    ]


@pytest.mark.parametrize("module", ["nest_asyncio", "nest_asyncio2"])
def test_nested_runs(python, module):
    pytest.importorskip(module)
    output = kernel(
        python,
        f'''
cell("import asyncio, {module}; {module}.apply()")
cell("""
async def value(x):
    await asyncio.sleep(0.01)
    return x
asyncio.run(value(1)), asyncio.get_event_loop().run_until_complete(value(2))
""")
cell("""
async def outer():
    ticking = asyncio.create_task(value("a task beside"))
    return asyncio.run(value("inner")), await ticking
await outer()
""")
cell("""
async def fails():
    raise KeyError("inside")
asyncio.run(fails())
""")
cell("await value(3)")
''',
    )
    assert output.splitlines() == [
        "ok",
        "= (1, 2)",
        "ok",
        "= ('inner', 'a task beside')",
        "ok",
        "! KeyError 'inside'",
        "error",
        "= 3",
        "ok",
        "alive False",
    ]


@pytest.mark.fastloop_only("on the standard loop ipykernel's handler cannot wake the loop from its poll")
def test_an_interrupt_ends_a_cell_that_waits(python):
    output = kernel(
        python,
        '''
cell("""
import asyncio
print("waiting")
await asyncio.sleep(1000)
""", interrupt_after="waiting")
cell("await asyncio.sleep(0.01); 'goes on'")
''',
    )
    first, ending, *others = output.splitlines()
    assert (first, others) == ("waiting", ["error", "= 'goes on'", "ok", "alive False"])
    assert ending.split()[1] in ("CancelledError", "KeyboardInterrupt")


def test_an_interrupt_ends_a_cell_that_is_busy(python):
    output = kernel(
        python,
        '''
cell("""
import asyncio, time
print("busy")
time.sleep(1000)
""", interrupt_after="busy")
cell("await asyncio.sleep(0.01); 'goes on'")
''',
    )
    assert output.splitlines() == ["busy", "! KeyboardInterrupt ", "error", "= 'goes on'", "ok", "alive False"]
