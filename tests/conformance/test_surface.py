"""fastloop's public surface is the standard loop's, but for what docs/compatibility.md explains."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("surface.py")


@pytest.mark.timeout(600)
@pytest.mark.fastloop_only("a direct comparison")
def test_no_difference_is_unexplained():
    # Garbage of the one loop must not be reported while the other answers.
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout + result.stderr
