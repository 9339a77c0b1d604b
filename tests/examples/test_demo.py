"""tools/demo.py runs programs on every loop, shows what came of it, and fails when it is not the same."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


@pytest.fixture
def demo(monkeypatch):
    """The module, comparing asyncio's own loop with fastloop alone, whatever else is installed."""
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    path = [str(Path(fastloop.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setattr(module, "installed_loops", lambda: [module.STOCK, module.FASTLOOP])
    return module


@pytest.fixture
def row(demo, tmp_path):
    """Makes a row of the table from source text."""

    def make(source, kind=demo.Row, rounds=1):
        program = tmp_path / f"program{len(list(tmp_path.iterdir()))}.py"
        program.write_text(source)
        return kind(program.name, "a remark", rounds, [str(program)])

    return make


SAME = "import asyncio\nasync def main():\n    print('one | two')\n    print('three')\nasyncio.run(main())\n"
DIFFERENT = "import asyncio\nloop = asyncio.new_event_loop()\nprint(type(loop).__module__)\nloop.close()\n"
FAILING = DIFFERENT + "if 'fastloop' in type(loop).__module__:\n    raise SystemExit('cannot go on')\nprint('end')\n"
RANDOM = "import os\nprint(os.getpid())\n"
MEASURED = "print(0.5)\n"


@pytest.mark.parametrize("markdown", [False, True])
def test_same_output(demo, row, capsys, markdown):
    assert demo.demonstrate([row(SAME, rounds=2), row(MEASURED, demo.Measurement, rounds=2)], markdown) == 0
    shown = capsys.readouterr().out
    assert "Every program printed the same on asyncio, fastloop." in shown
    for text in ("one", "three", "500 ms", "1.00 x", "a remark", "program0.py", "program1.py"):
        assert text in shown
    if markdown:
        table = [line.replace("\\|", "") for line in shown.splitlines() if line.startswith("|")]
        assert len(table) == 4 and {line.count("|") for line in table} == {6}


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize(
    ("source", "texts"),
    [
        (DIFFERENT, ["asyncio.unix_events", "fastloop.loop"]),
        (FAILING, ["exit status 1", "cannot go on", "failed"]),
        (RANDOM, []),
    ],
    ids=["different", "failing", "random"],
)
def test_another_output(demo, row, capsys, monkeypatch, source, texts, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    assert demo.demonstrate([row(SAME), row(source, rounds=2)], False) == 1
    shown = capsys.readouterr().out
    assert "NOT as on asyncio's own loop: " in shown and "program1.py on fastloop" in shown
    for text in texts:
        assert text in shown


def test_conditions_name_versions_and_not_the_machine(demo):
    shown = demo.conditions([demo.STOCK, demo.FASTLOOP])
    for text in (platform.python_version(), fastloop.__version__, fastloop.libuv_version, platform.release()):
        assert text in shown
    assert platform.node() not in shown.split(", ")
    assert "/" not in shown.replace(platform.release(), "").replace(demo.processor_model(), "")


def test_long_outputs_are_shortened(demo, row):
    long = row("for number in range(20): print(number)")
    for loop in (demo.STOCK, demo.FASTLOOP):
        long.run(loop)
    assert demo.show_printed(long) == "0\n1\n2\n3\n4\n(and 15 lines more)"


def test_plain_text_table(demo):
    shown = demo.as_text(["", "printed", "asyncio"], [["name\n(remark)", "a\nb\nc", "1 s"]])
    assert shown == "          printed  asyncio\n\nname      a        1 s\n(remark)  b\n          c\n"


@pytest.mark.parametrize("name", ["tasks", "chat", "hops"])
@pytest.mark.parametrize("launcher", [[], ["-m", "fastloop"]], ids=["asyncio", "fastloop"])
def test_workloads_measure_themselves(demo, name, launcher):
    command = [sys.executable, *launcher, str(DEMO), "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) > 0


def test_every_example_and_workload_has_its_row(demo):
    programs = {path.name for path in demo.EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert {row.name for row in demo.programs(1)} == programs
    assert {row.arguments[-1] for row in demo.measurements(1)} == set(demo.WORKLOADS)
