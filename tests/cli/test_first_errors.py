"""What an import says where fastloop cannot run: the reason, and what to do."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop
from fastloop import _unsupported

MISSING = ImportError("No module named 'fastloop._core'")


def test_not_built(programs):
    """A copy of the package without its extension module."""
    package = programs.folder / "fastloop"
    shutil.copytree(Path(fastloop.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    env = {"PYTHONPATH": str(programs.folder)}
    programs.write("program.py", "import fastloop")
    result = programs.stock("program.py", env=env)
    last = result.err.splitlines()[-1]
    assert last.startswith(f"ImportError: fastloop is not built for this Python {platform.python_version()} (_core.")
    assert last.endswith("nothing has been built); build it in the folder of its source: python -m pip install .")
    (package / "_core.of-another-python.so").touch()
    assert "there is only _core.of-another-python.so" in programs.stock("program.py", env=env).err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("libuv.so.1: cannot open shared object file: No such file or directory", "apt-get install libuv1-dev"),
        ("_core.so: undefined symbol: uv_pipe_bind2", "older than the one that fastloop was built with"),
        ("symbol not found in flat namespace '_uv_pipe_bind2'", "build it again"),
        ("_core.so: file too short", "cannot be loaded: _core.so: file too short"),
    ],
)
def test_a_library_that_does_not_load(error, said):
    assert said in _unsupported.explain(ImportError(error))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_an_older_libuv(programs):
    """A library that has all the functions, and says that it is of a version that nothing was tried with."""
    source = programs.write("old.c", """\
        unsigned uv_version(void) { return 1 << 16 | 43 << 8; }
        const char *uv_version_string(void) { return "1.43.0"; }
        """)  # fmt: skip
    library = source.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    programs.write("program.py", "import fastloop")
    # Behind that of a sanitizer, which must come first.
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    last = programs.stock("program.py", env={"LD_PRELOAD": preload}).err.splitlines()[-1]
    reason = "libuv 1.44 or later is needed, this is 1.43.0"
    assert last.startswith(f"ImportError: the library libuv is too old for fastloop ({reason}): install one")


def test_unsupported_systems(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert "not on Windows" in _unsupported.explain(MISSING)
    with monkeypatch.context() as patch:
        patch.setattr(sys.implementation, "name", "pypy")
        assert "extension of CPython" in _unsupported.explain(MISSING)
    with monkeypatch.context() as patch:
        patch.setattr(platform, "python_version_tuple", lambda: ("3", "10", "4"))
        assert _unsupported.explain(MISSING).startswith("fastloop needs Python 3.11 or later")


MISTAKES = """\
    import asyncio, logging, socket, sys, threading, time, fastloop
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    def told(call):
        coroutine = asyncio.sleep(0)
        try:
            call(coroutine)
        except Exception as error:
            print(error)
        finally:
            coroutine.close()
    async def main():
        loop = asyncio.get_running_loop()
        other = fastloop.new_event_loop()
        told(other.run_until_complete)
        other.close()
        told(loop.run_until_complete)
        told(fastloop.run)
        told(asyncio.run)
        loop.set_debug(True)
        with socket.socket() as sock:
            try:
                await loop.sock_recv(sock, 1)
            except ValueError as error:
                print(error)
        thread = threading.Thread(target=told, args=(lambda coroutine: loop.call_soon(print),))
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        time.sleep(0.2)
        await asyncio.sleep(0)
        return loop
    loop = fastloop.run(main())
    told(asyncio.create_task)
    told(loop.run_until_complete)
    """


def test_the_messages_in_the_document(programs):
    """What docs/debugging.md says of first errors is what programs are told."""
    page = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
    (section,) = re.findall(r"^## First errors$(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    messages = re.findall(r"^\| `([^`]+)`(?! \(with nest_asyncio)", section, re.MULTILINE)
    programs.write("mistakes.py", MISTAKES)
    result = programs.stock("mistakes.py")
    assert (result.status, result.err) == (0, "")
    for message in messages:
        pattern = re.escape(message).replace("<\\.\\.\\.>", "<.*>").replace(r"0\.200", r"[\d.]+")
        assert re.search(pattern, result.out), f"{message}\n{result.out}"
    assert len(messages) == 8
