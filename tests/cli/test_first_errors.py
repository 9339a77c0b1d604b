"""What an import says where fastloop cannot run: the reason, and what to do."""

import platform
import shutil
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
