"""What a build says where something is missing: one message that names it and tells how to get it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).parents[2]
SYSTEMS = ("Debian, Ubuntu", "Fedora", "Alpine", "macOS")

NO_LIBUV = "exit 1"
OLD_LIBUV = 'case "$1" in --modversion) echo 1.40.0;; *) exit 1;; esac'

ELSEWHERE = """\
import sysconfig
get_path = sysconfig.get_path
def moved(name, *rest, **more):
    return "/nowhere" if "include" in name else get_path(name, *rest, **more)
sysconfig.get_path = moved
"""


def build(folder, **environment):
    """The last words of a build that must not get as far as to compile; it writes into the folder alone."""
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", folder, "--build-lib", folder / "lib"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, text=True, capture_output=True
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (NO_LIBUV, "pkg-config does not find libuv (package libuv1-dev on Debian)"),
        (OLD_LIBUV, "libuv 1.44 or later is needed, this is 1.40.0"),
    ],
    ids=["no libuv", "old libuv"],
)
def test_libuv(tmp_path, answer, said):
    program = tmp_path / "pkg-config"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    errors = build(tmp_path, PKG_CONFIG=str(program))
    assert f"fastloop cannot be built: {said}." in errors
    assert [system for system in SYSTEMS if system not in errors] == []


def test_no_pkg_config(tmp_path):
    assert "no-such-pkg-config was not found (package pkg-config" in build(tmp_path, PKG_CONFIG="no-such-pkg-config")


def test_no_compiler(tmp_path):
    assert "the C compiler no-such-cc was not found (package gcc)" in build(tmp_path, CC="no-such-cc")


def test_no_headers(tmp_path):
    """A Python whose Python.h is elsewhere."""
    (tmp_path / "sitecustomize.py").write_text(ELSEWHERE)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert "was not found (package python3-dev)" in build(tmp_path, PYTHONPATH=path)
