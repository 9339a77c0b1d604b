"""The commands of ``python -m fastloop``, what it says when it is asked for nonsense, and what it costs."""

import platform

import pytest

import fastloop
from fastloop import switches


def test_info(programs):
    result = programs.fast("info", env={"FASTLOOP_DISABLE": ""})
    assert (result.status, result.err) == (0, "")
    facts = dict(line.split(None, 1) for line in result.out.splitlines())
    assert facts["fastloop"] == fastloop.__version__
    assert facts["Python"].startswith(platform.python_version() + " ")
    assert facts["libuv"].startswith(fastloop.libuv_version + " ")
    assert facts["platform"] == platform.platform()
    assert facts["enabled"] == ", ".join(["loop", *switches.PARTS])
    assert "disabled" not in facts


@pytest.mark.parametrize("part", switches.PARTS)
def test_info_tells_what_is_disabled(programs, part):
    lines = programs.fast("info", env={"FASTLOOP_DISABLE": part}).out.splitlines()
    assert f"disabled   {part} (FASTLOOP_DISABLE), instead: {switches.PARTS[part]}" in lines
    enabled = ", ".join(["loop", *switches.PARTS]).replace(f", {part}", "")
    assert f"enabled    {enabled}" in lines


def test_info_when_everything_is_disabled(programs):
    lines = programs.fast("info", env={"FASTLOOP_DISABLE": "all"}).out.splitlines()
    assert "enabled    nothing" in lines
    assert len([line for line in lines if line.startswith("disabled")]) == 1 + len(switches.PARTS)


def test_programs_obey_what_is_disabled(programs):
    programs.write("program.py", "import asyncio; loop = asyncio.new_event_loop(); print(type(loop)); loop.close()")
    assert programs.same("program.py", env={"FASTLOOP_DISABLE": "all"}).status == 0


def test_info_takes_no_arguments(programs):
    result = programs.fast("info", "more")
    assert (result.status, result.out) == (2, "") and "usage" in result.err


@pytest.mark.parametrize("arguments", ["./info x", "-- info x"])
def test_a_script_with_a_command_s_name(programs, arguments):
    programs.write("info", "import sys; print('a script', sys.argv)")
    result = programs.fast(*arguments.split())
    assert result.out == f"a script ['{arguments.split()[-2]}', 'x']\n"


def test_options_after_two_dashes_belong_to_nobody(programs):
    programs.write("-m", "print('a script named -m')")
    assert programs.fast("--", "-m").out == "a script named -m\n"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(programs, option):
    result = programs.fast(option)
    assert (result.status, result.err) == (0, "")
    for word in ("SCRIPT", "-m MODULE", "info", "--version"):
        assert word in result.out


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(programs, option):
    result = programs.fast(option)
    assert (result.status, result.out, result.err) == (0, f"fastloop {fastloop.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "what is to be run?"),
        ("--nonsense", "unknown option --nonsense"),
        ("-c pass", "unknown option -c"),
        ("-m", "-m needs the name of a module"),
        ("--", "-- needs the name of a script"),
    ],
)
def test_nonsense(programs, arguments, message):
    result = programs.fast(*arguments.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("usage: ") and result.err.endswith(f"python -m fastloop: {message}\n")


def test_running_a_program_imports_nothing_but_what_runs_it(programs):
    programs.write("program.py", "import sys; print(*sorted(sys.modules))")
    programs.write("reference.py", "import runpy, fastloop, sys; fastloop.install(); print(*sorted(sys.modules))")
    ours = set(programs.fast("program.py").out.split())
    needed = set(programs.stock("reference.py").out.split())
    assert ours - needed == {"fastloop._cli", "fastloop._cli.run"}


def test_importing_the_command_line_does_nothing(programs):
    programs.write("program.py", "import fastloop.__main__, sys; print(sys.argv)")
    assert programs.stock("program.py", "--help").out == "['program.py', '--help']\n"


def test_children_of_a_program_inherit_no_variable_of_ours(programs):
    programs.write("program.py", "import os; print(sorted(os.environ))")
    programs.same("program.py")
