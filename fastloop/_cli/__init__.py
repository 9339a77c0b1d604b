"""The command line: which command or program the arguments of ``python -m fastloop`` ask for.

A program starts as soon as Python would start it, so this package imports what a command needs only
when that command is asked for. A new command is a module of this package with ``main(arguments)``,
and a line in ``_COMMANDS`` and in ``_HELP``.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import NoReturn

_COMMANDS = {
    "bench": "fastloop._cli.bench",
    "compare": "fastloop._cli.compare",
    "info": "fastloop._cli.info",
    "top": "fastloop._cli.top",
}

_USAGE = """\
usage: python -m fastloop SCRIPT [ARGUMENTS]      run a file, or a folder or zip file with a __main__.py
       python -m fastloop -m MODULE [ARGUMENTS]   run a module, as python -m does
       python -m fastloop - [ARGUMENTS]           run the program that is read from standard input
       python -m fastloop bench [OPTIONS]         compare it with the standard loop, on this machine
       python -m fastloop compare SCRIPT [...]    compare a program's runs on the standard loop and on fastloop
       python -m fastloop info                    print versions and what is enabled
       python -m fastloop top [PATH]              show what a running loop does (FASTLOOP_METRICS=PATH)
       python -m fastloop --help | --version
"""

_HELP = (
    _USAGE
    + """
The program runs unchanged: asyncio.run(), asyncio.Runner(), asyncio.get_event_loop() and
asyncio.new_event_loop() give it a fastloop. sys.argv, sys.path, __main__, the exit status, tracebacks
and Ctrl-C are as Python itself gives them. Options of Python come first: python -X dev -m fastloop ...

A script whose name is that of a command is run by "./info" or "-- info".
Processes that multiprocessing starts by "spawn" or "forkserver" are new interpreters: they run the
program's own functions, and have the event loop that those functions choose.

FASTLOOP_DISABLE in the environment switches parts of fastloop off; "info" shows which.
"""
)


def main() -> None:
    """Do what ``sys.argv`` asks for.

    Raises SystemExit with status 2 for arguments that make no sense; otherwise whatever the command or
    the program raises.
    """
    arguments = sys.argv[1:]
    if not arguments:
        _fail("what is to be run?")
    first, rest = arguments[0], arguments[1:]
    if first in _COMMANDS:
        _load(_COMMANDS[first]).main(rest)
    elif first in ("-h", "--help"):
        sys.stdout.write(_HELP)
    elif first in ("-V", "--version"):
        import fastloop

        print("fastloop", fastloop.__version__)
    else:
        _run_program(first, rest)


def _run_program(first: str, rest: list[str]) -> None:
    from fastloop._cli import run

    if first == "--":
        first, rest = _take("--", "a script", rest)
    elif first == "-m":
        return run.run_module(*_take("-m", "a module", rest))
    elif first.startswith("-m"):
        return run.run_module(first[2:], rest)
    elif first == "-":
        return run.run_stdin(rest)
    elif first.startswith("-"):
        _fail(f"unknown option {first}")
    run.run_script(first, rest)


def _take(option: str, what: str, arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments:
        _fail(f"{option} needs the name of {what}")
    return arguments[0], arguments[1:]


def _load(name: str) -> "types.ModuleType":
    import importlib

    return importlib.import_module(name)


def _fail(message: str) -> "NoReturn":
    sys.stderr.write(f"{_USAGE}python -m fastloop: {message}\n")
    raise SystemExit(2)
