"""Some programs of fuzz.py, the same ones each time; `make fuzz` runs others, under the sanitizers."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import SANITIZED

FUZZ = Path(__file__).with_name("fuzz.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and counts on Linux")


def run(tmp_path, *options):
    command = [sys.executable, FUZZ, "--seed", "1", "--keep", tmp_path, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


@pytest.mark.timeout(200)
def test_odd_arguments_crash_nothing(tmp_path):
    ended = run(tmp_path, "--programs", "30", "--seconds", "120")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("seed 1: ")


@pytest.mark.left_out(SANITIZED, reason="a sanitizer has another word for it")
def test_a_crash_is_told_and_kept(tmp_path):
    ended = run(tmp_path, "--programs", "2", "--plant")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "signal 11" in ended.stdout and "2 failed" in ended.stdout
    assert len(list(tmp_path.iterdir())) == 2
