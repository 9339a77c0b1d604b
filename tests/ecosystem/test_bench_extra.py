"""What the extra `bench` brings to `python -m fastloop bench`: charts by matplotlib, a bar and a table by rich."""

import os
import pty
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fastloop_only("a command of fastloop")
SHORT = ["--rounds", "1", "--part", "0.001", "--case", "call_soon/chain"]


def bench(python, *options, **more):
    command = [sys.executable, "-m", "fastloop", "bench", *SHORT, *map(str, options)]
    return subprocess.Popen(command, cwd=python.folder, env={**python.environment, **more.pop("env", {})}, **more)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_chart(python, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"chart.{suffix}"
    with bench(python, "--plot", path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _, errors = process.communicate(timeout=50)
    assert process.returncode == 0, errors
    assert path.read_bytes().startswith(b"<?xml" if suffix == "svg" else b"\x89PNG")


def at_a_terminal(python, **env):
    """What is shown on a terminal."""
    master, slave = pty.openpty()
    shown = b""
    try:
        env = {"TERM": "xterm", "COLUMNS": "160", "LINES": "50", **env}
        with bench(python, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
            os.close(slave)
            try:
                while data := os.read(master, 65536):
                    shown += data
            except OSError:
                # Linux tells the end of a terminal so.
                pass
            assert process.wait(50) == 0, shown.decode()
    finally:
        os.close(master)
    # Colours and movements of the cursor are of no concern.
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())


def test_a_bar_and_a_table_at_a_terminal(python):
    pytest.importorskip("rich")
    shown = at_a_terminal(python)
    assert "━" in shown and "100%" in shown
    assert "┃ case" in shown and "call_soon/chain" in shown and "fastloop against asyncio" in shown


def test_without_rich_a_plain_table(python, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None\n")
    shown = at_a_terminal(python, PYTHONPATH=f"{tmp_path}:{python.environment['PYTHONPATH']}")
    assert "━" not in shown and "┃" not in shown
    assert "call_soon/chain\r\n" in shown and "fastloop against asyncio" in shown
