"""tools/gdb/fastloop.py, which lists loops and tasks for gdb: of a live process and of its core dump."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import helpers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "gdb" / "fastloop.py"
PROGRAM = """
import asyncio, fastloop

async def worker():
    await asyncio.sleep(1000)

async def parent():
    await asyncio.create_task(worker(), name="inner")

async def main():
    outer = asyncio.create_task(parent(), name="outer")
    await asyncio.sleep(0.01)
    print("ready", flush=True)
    await outer

other = fastloop.new_event_loop()
fastloop.run(main())
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb"),
    pytest.mark.skipif(not SCRIPT.exists(), reason="needs the source tree"),
    pytest.mark.left_out(helpers.SANITIZED, reason="gdb takes minutes to read what a sanitizer maps"),
]


def run_gdb(*arguments):
    command = ["gdb", "-nx", "-batch", *arguments]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=90 * helpers.patience(), stdin=subprocess.DEVNULL
    )
    if "ptrace: Operation not permitted" in run.stderr or "Scripting in the" in run.stderr:
        pytest.skip("gdb may not look at processes here, or has no Python")
    return run.stdout + run.stderr


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def check(said):
    lines = [line.strip() for line in said.splitlines()]
    assert "2 loops, 3 tasks" in lines, said
    states = [line.split(": ")[1] for line in lines if line.startswith("loop 0x")]
    assert sum(state.startswith("running in thread") for state in states) == 1, said
    assert "not running" in states, said
    tasks = {line.split()[2].rstrip(":"): line for line in lines if line.startswith("task 0x")}
    inner = tasks["inner"].split()[1]
    assert "pending, parent, waits for fastloop.Task " + inner in tasks["outer"], said
    assert "pending, worker, waits for fastloop.Future" in tasks["inner"], said


@pytest.mark.timeout(200)
def test_loops_and_tasks_of_a_process_and_of_its_core_dump(process, tmp_path):
    core = tmp_path / "core"
    said = run_gdb("-p", str(process.pid), "-x", SCRIPT, "-ex", "fastloop", "-ex", f"generate-core-file {core}")
    if "there is no fastloop._core with debug information" in said:
        pytest.skip("this build has no debug information")
    check(said)
    python = Path(sys.executable).resolve()
    check(run_gdb("-x", SCRIPT, "-ex", "fastloop", python, core))


def test_a_process_without_fastloop_is_told(tmp_path):
    said = run_gdb("-x", SCRIPT, "-ex", "fastloop", Path(sys.executable).resolve())
    assert "there is no fastloop._core with debug information in this process" in said
