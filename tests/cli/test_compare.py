"""``python -m fastloop compare``: what it finds equal and different, and what it measures."""

import json

import pytest

import helpers

KIND = "import asyncio\nkind = type(asyncio.new_event_loop()).__module__\n"


def compare(programs, *arguments, **more):
    return programs.fast("compare", "--rounds", "2", *arguments, **more)


def test_the_same(programs):
    programs.write("program.py", "import sys; print('out', *sys.argv); print('err', file=sys.stderr); sys.exit(3)")
    result = compare(programs, "program.py", "--rounds", "x")
    assert result.status == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines() if " ±" in line][:3] == ["wall", "CPU", "peak"]
    assert result.out.count("the same") == 3


def test_a_module(programs):
    programs.write("package/__main__.py", "import sys; print(sys.argv[1:])")
    assert compare(programs, "-m", "package", "-m", "x").status == 0


@pytest.mark.parametrize(
    ("source", "named", "shown"),
    [
        ("print(kind)", "standard output", "+fastloop.loop"),
        ("import sys; print(kind, file=sys.stderr)", "standard error", "+fastloop.loop"),
        ("import sys; sys.exit(kind == 'fastloop.loop')", "exit status", "fastloop: 1"),
        ("import os\nif kind == 'fastloop.loop': os.kill(os.getpid(), 9)", "exit status", "fastloop: -9"),
    ],
)
def test_a_difference(programs, source, named, shown):
    programs.write("program.py", KIND + source)
    result = compare(programs, "program.py")
    assert result.status == 1
    differing = [line for line in result.out.splitlines() if line.endswith("DIFFERS")]
    assert [line.removesuffix("DIFFERS").strip() for line in differing] == [named]
    assert shown in result.out.splitlines()


def test_what_varies_by_itself(programs):
    programs.write("program.py", "import time; print(time.time_ns())")
    result = compare(programs, "program.py")
    assert result.status == 1
    assert "varies from run to run on the standard loop itself: nothing can be said" in result.out


def test_input_and_samples(programs, tmp_path):
    programs.write("program.py", "import sys; print(sys.stdin.read().upper())")
    path = programs.write("input", "text")
    samples = tmp_path / "samples.json"
    assert compare(programs, "--input", path, "--json", samples, "program.py").status == 0
    (result,) = json.loads(samples.read_text())["results"]
    assert {loop: len(outcome["samples"]) for loop, outcome in result["loops"].items()} == {"asyncio": 2, "fastloop": 2}


def peak_memory(programs, source):
    """The peak memory of a program, by loop."""
    programs.write("program.py", source)
    samples = programs.folder / "samples.json"
    assert compare(programs, "--json", samples, "program.py").status == 0
    (result,) = json.loads(samples.read_text())["results"]
    return {loop: min(sample["bytes"] for sample in outcome["samples"]) for loop, outcome in result["loops"].items()}


@pytest.mark.left_out(helpers.SANITIZED, reason="a sanitizer has memory of its own")
def test_memory_is_the_program_s(programs):
    """Neither that of the command nor that of the process between."""
    small, big = peak_memory(programs, ""), peak_memory(programs, "data = b'x' * 300_000_000")
    for loop in small:
        assert big[loop] - small[loop] == pytest.approx(300e6, rel=0.05)
    # The command has imported all that fastloop has, and more; a program that imports nothing stays below that.
    assert small["asyncio"] < small["fastloop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "which program?"), (["no.py"], "there is no file no.py"), (["--rounds", "0", "x"], "must be at least 1")],
)
def test_nonsense(programs, arguments, message):
    result = programs.fast("compare", *arguments)
    assert result.status == 2 and message in result.err
