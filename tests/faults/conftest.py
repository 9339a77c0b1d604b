"""Libraries in front of the C library's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """built(name) compiles name.c of this folder and returns the library's path."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")

    def build(name):
        path = tmp_path_factory.mktemp(name) / f"{name}.so"
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(path), str(source), "-ldl"], check=True)
        return path

    return build


@pytest.fixture
def preload(monkeypatch):
    """preload(path) has the processes of the test load a library first."""

    def set_environment(path):
        # Behind that of a sanitizer, which must come first.
        monkeypatch.setenv("LD_PRELOAD", f"{os.environ.get('LD_PRELOAD', '')} {path}".strip())

    return set_environment
