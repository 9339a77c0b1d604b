"""The example programs print what they say, the same on every loop, however fastloop is chosen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

EXPECTED = {
    "fetch_titles.py": """\
A loop is a queue with a clock
Waiting is cheap, threads are not
Grüße aus der Ereignisschleife
""",
    "two_sleepers.py": """\
short starts
long starts
short ends
long ends
slept for 1 and 2 seconds
2 seconds in all
""",
    "executors.py": """\
default pool
  apple: a9c0d0d1 in another thread
  pear: 6b22c929 in another thread
  plum: 4255fb38 in another thread
a thread pool of one's own
  apple: a9c0d0d1 in another thread
  pear: 6b22c929 in another thread
  plum: 4255fb38 in another thread
a process pool
  apple: a9c0d0d1 in a worker process
  pear: 6b22c929 in a worker process
  plum: 4255fb38 in a worker process
""",
    "to_thread.py": """\
ada finds 12 apples (still ada)
bob finds 0 pears (still bob)
eve finds no 'gold' (still eve)
nobody finds 12 apples
nobody
""",
    "chat.py": """\
welcome, 200 are here
39800 lines heard, none of one's own
""",
}

SET_THE_POLICY = """\
import os, runpy, sys, fastloop
fastloop.install()
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LAUNCHERS = {
    "plain Python": [],
    "python -m fastloop": ["-m", "fastloop"],
    "policy": ["-c", SET_THE_POLICY],
}


def run(name, launcher, options=()):
    # Also the environment that the fastloop under test was imported from.
    path = [str(Path(fastloop.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *options, *launcher, str(EXAMPLES / name)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )


def needed(name):
    for package in ("aiohttp", "trustme"):
        if package in (EXAMPLES / name).read_text():
            pytest.importorskip(package)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, launcher):
    needed(name)
    done = run(name, LAUNCHERS[launcher], ["-W", "always::ResourceWarning", "-W", "always::RuntimeWarning"])
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED[name], "")


@pytest.mark.parametrize("name", EXPECTED)
def test_example_in_debug_mode(name):
    """Of what debug mode writes, only that a callback was slow may be there, which depends on the machine."""
    needed(name)
    done = run(name, LAUNCHERS["python -m fastloop"], ["-X", "dev"])
    assert (done.returncode, done.stdout) == (0, EXPECTED[name])
    others = [line for line in done.stderr.splitlines() if not re.match(r"Executing <.* took \d+\.\d+ seconds$", line)]
    assert others == []


def test_every_example_is_tested():
    programs = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert programs == set(EXPECTED)


def test_examples_know_nothing_of_the_loop_they_run_on():
    for path in EXAMPLES.glob("*.py"):
        assert not re.search(r"fastloop|uvloop|event_loop_policy|loop_factory", path.read_text()), path
