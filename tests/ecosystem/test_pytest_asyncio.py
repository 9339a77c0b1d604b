"""pytest-asyncio: a suite of somebody's, whose conftest.py chooses the loop by each way that the plugin offers."""

import re
import subprocess
import sys

import pytest

plugin = pytest.importorskip("pytest_asyncio.plugin")

SUITE = """
import asyncio, pytest, pytest_asyncio

@pytest_asyncio.fixture
async def server():
    async def echo(reader, writer):
        writer.write(await reader.read(100))
        writer.close()
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    yield asyncio.get_running_loop()

@pytest.mark.asyncio
async def test_kind():
    assert type(asyncio.get_running_loop()).__module__ == KIND

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(5))
async def test_server(server, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", server)
    writer.write(b"%d" % number)
    assert await reader.read() == b"%d" % number
    writer.close()
    await writer.wait_closed()

@pytest.mark.asyncio(loop_scope="module")
async def test_shared(shared):
    assert asyncio.get_running_loop() is shared

@pytest.mark.asyncio
async def test_thread():
    assert await asyncio.to_thread(sum, [1, 2]) == 3

@pytest.mark.asyncio
async def test_fails():
    await asyncio.sleep(0)
    assert False

@pytest.mark.asyncio
@pytest.mark.xfail(raises=TimeoutError, strict=True)
async def test_times_out():
    async with asyncio.timeout(0.01):
        await asyncio.Event().wait()
"""

BY_FACTORY = """
def pytest_asyncio_loop_factories(config, item):
    return {"chosen": FACTORY}
"""
BY_POLICY = """
@pytest.fixture(scope="session")
def event_loop_policy():
    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self):
            return FACTORY()
    return Policy()
"""
HEAD = """
import asyncio, pytest
try:
    from fastloop import new_event_loop as fastloop
except ImportError:
    fastloop = None
"""
HAS_FACTORIES = hasattr(getattr(plugin, "PytestAsyncioSpecs", None), "pytest_asyncio_loop_factories")
WAYS = {"policy": BY_POLICY} | ({"factory": BY_FACTORY} if HAS_FACTORIES else {})


@pytest.mark.parametrize("way", WAYS)
def test_suite(python, loop_name, tmp_path, stock_answers, way):
    factory = "asyncio.SelectorEventLoop" if loop_name == "stock" else "fastloop"
    kind = "asyncio.unix_events" if loop_name == "stock" else "fastloop.loop"
    (tmp_path / "conftest.py").write_text(HEAD + WAYS[way].replace("FACTORY", factory))
    (tmp_path / "test_suite.py").write_text(f"KIND = {kind!r}\n" + SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    # Policies are deprecated in newer versions of Python and of the plugin.
    command += ["-W", "error", "-W", "ignore::DeprecationWarning"]
    done = subprocess.run(command, cwd=tmp_path, env=python.environment, capture_output=True, text=True, timeout=50)
    outcomes = re.findall(r"::(test_\w+)\S* (PASSED|FAILED|ERROR|XFAIL)", done.stdout)
    assert outcomes == stock_answers.setdefault(("pytest-asyncio", way), outcomes), done.stdout
    assert [outcome for name, outcome in outcomes if name not in ("test_fails", "test_times_out")] == ["PASSED"] * 8
    assert ("test_fails", "FAILED") in outcomes and ("test_times_out", "XFAIL") in outcomes, done.stdout
    assert done.returncode == 1 and "Error" not in done.stderr
