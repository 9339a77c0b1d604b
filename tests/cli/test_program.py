"""A program run by ``python -m fastloop`` finds itself as plain Python runs it: __main__, sys, the way it ends."""

import os
import pty
import py_compile
import signal
import subprocess
import zipapp

import pytest

# Shows all that a program can see of how it was started.
SHOW = """\
    import sys
    started_with = {name: value for name, value in globals().items() if name != "__builtins__"}
    for name, value in started_with.items():
        print(name, "=", value if isinstance(value, (str, type(None), dict)) else type(value).__name__)
    print("builtins", type(__builtins__).__name__)
    print("loader", getattr(__loader__, "name", None), getattr(__loader__, "path", None))
    print("spec", __spec__ and (__spec__.name, __spec__.origin, __spec__.parent, __spec__.cached))
    print("main", sys.modules["__main__"].__dict__ is globals())
    print("argv", sys.argv)
    print("path", sys.path)
    print("flags", sys.flags)
    """


@pytest.fixture
def show(programs):
    """Programs that tell what they see, as a script, in packages, in a folder and in a zip file."""
    programs.write("show.py", SHOW)
    programs.write("deep/er/show.py", SHOW)
    programs.write("pack/__init__.py", "print('package', __name__)")
    programs.write("pack/__main__.py", SHOW)
    programs.write("pack/inner.py", SHOW)
    programs.write("folder/__main__.py", "    import beside\n" + SHOW)
    programs.write("folder/beside.py", "print('imported', __file__)")
    zipapp.create_archive(programs.folder / "folder", programs.folder / "zipped.pyz")
    (programs.folder / "link.py").symlink_to("deep/er/show.py")
    py_compile.compile(programs.folder / "show.py", programs.folder / "compiled.pyc")
    py_compile.compile(programs.folder / "show.py", programs.folder / "compiled.without_suffix")
    return programs


@pytest.mark.parametrize("options", [(), ("-P",)], ids=" ".join)
@pytest.mark.parametrize(
    "arguments",
    [
        "show.py",
        "show.py -m x -- --help",
        "./show.py a",
        "deep/../show.py",
        "deep/er/show.py",
        "link.py",
        "compiled.pyc",
        "compiled.without_suffix",
        "folder x",
        "./folder/",
        "zipped.pyz x",
        "-m show",
        "-m deep.er.show --help",
        "-m pack",
        "-m pack.inner -m",
        "-mpack.inner x",
    ],
)
def test_what_a_program_sees_of_its_start(show, arguments, options):
    result = show.same(*arguments.split(), options=options)
    if "-P" in options and arguments.startswith("-m"):
        assert "No module named" in result.err
    else:
        assert result.status == 0 and "main True" in result.out


def test_absolute_path(show):
    assert show.same(show.folder / "show.py").status == 0


@pytest.mark.parametrize("options", ["-X dev", "-O -B -W error", "-u -s -X utf8"])
def test_options_of_python_come_first(show, options):
    assert show.same("show.py", "-O", options=options.split()).status == 0


@pytest.mark.parametrize("options", [(), ("-P",)], ids=" ".join)
def test_program_on_standard_input(show, options):
    source = (show.folder / "show.py").read_text()
    result = show.same("-", "an argument", input=source, options=options)
    assert "__file__ = <stdin>" in result.out


def test_prompt_at_a_terminal(programs):
    terminal, theirs = pty.openpty()
    try:
        process = programs.start("fastloop", "-", stdin=theirs)
        os.write(terminal, b"import asyncio\nprint(type(asyncio.new_event_loop()).__module__)\nexit(5)\n")
        out, err = process.communicate(timeout=50)
    finally:
        os.close(terminal)
        os.close(theirs)
    assert (process.returncode, out.replace(">>> ", "").strip()) == (5, "fastloop.loop"), err


def test_no_standard_input_at_all(programs):
    """A shell's ``<&-`` closes it."""
    results = [
        subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *programs.command(loop, ["-"])],
            env=programs.environment,
            capture_output=True,
            timeout=50,
        )
        for loop in ("stock", "fastloop")
    ]
    assert (results[1].returncode, results[1].stdout) == (results[0].returncode, results[0].stdout) == (0, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        "missing.py",
        "nowhere/missing.py a b",
        "empty",
        "-m missing",
        "-m empty",
        "-m empty.missing",
        "-m pack",
        "-m .relative",
        "-m broken",
        "-m broken.part",
        "loop-of-links",
    ],
)
def test_what_cannot_be_run(programs, arguments):
    (programs.folder / "empty").mkdir()
    programs.write("pack/__init__.py", "")
    programs.write("broken/__init__.py", "import not_there")
    programs.write("broken/part.py", "")
    (programs.folder / "loop-of-links").symlink_to("loop-of-links")
    assert programs.same(*arguments.split()).status in (1, 2)


ENDINGS = {
    "end": "print('done')",
    "exit": "import sys; sys.exit()",
    "exit-0": "import sys; sys.exit(0)",
    "exit-7": "import sys; sys.exit(7)",
    "exit-minus": "import sys; sys.exit(-1)",
    "exit-text": "import sys; sys.exit('a last word')",
    "exit-tuple": "raise SystemExit(1, 2)",
    "exit-in-asyncio": """\
        import asyncio, sys
        async def main():
            await asyncio.sleep(0)
            sys.exit(9)
        asyncio.run(main())
        """,
    "os-exit": "import os; os._exit(4)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "error": "1 / 0",
    "error-in-function": """\
        def inner():
            raise ValueError("deep")
        def outer():
            inner()
        outer()
        """,
    "chained": """\
        def first():
            raise KeyError("first")
        try:
            first()
        except KeyError as error:
            raise RuntimeError("second") from error
        """,
    "group": "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "own-base-exception": """\
        class Stop(BaseException):
            pass
        raise Stop("here")
        """,
    "syntax-error": "x = (1,\ny = 2\n",
    "indentation-error": "if True:\nx = 1\n",
    "syntax-warning": "x = 1 is 1\n",
    "keyboard-interrupt": "raise KeyboardInterrupt",
    "interrupt-subclass": """\
        class Mine(KeyboardInterrupt):
            pass
        raise Mine
        """,
    "thread-error": """\
        import threading
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
        """,
    "threads-and-atexit": """\
        import atexit, sys, threading
        atexit.register(print, "at exit")
        told = threading.Event()
        threading.Thread(target=lambda: (told.wait(), print("thread", threading.main_thread().name))).start()
        sys.excepthook = lambda kind, error, traceback: (print("hook", kind.__name__, error), told.set())
        print("main ends")
        raise RuntimeError("gone")
        """,
    "own-excepthook": """\
        import sys, traceback
        def hook(kind, error, tb):
            print("hook:", "".join(traceback.format_exception(kind, error, tb)))
            print(sys.last_traceback is tb, error.__traceback__ is tb, sys.excepthook is hook)
        sys.excepthook = hook
        def fails():
            raise LookupError("lost")
        fails()
        """,
    "excepthook-at-exit": """\
        import atexit, sys
        atexit.register(lambda: print(sys.excepthook is sys.__excepthook__))
        sys.exit(1)
        """,
    "failing-excepthook": """\
        import sys
        def hook(kind, error, tb):
            raise OSError("the hook fails")
        sys.excepthook = hook
        1 / 0
        """,
    "last-values": """\
        import atexit, sys, traceback
        @atexit.register
        def tell():
            print(sys.last_type, sys.last_value, [f.name for f in traceback.extract_tb(sys.last_traceback)])
            print(getattr(sys, "last_exc", sys.last_value) is sys.last_value, sys.excepthook is sys.__excepthook__)
        def fails():
            raise LookupError("lost")
        fails()
        """,
    "unprintable": """\
        class Bad(Exception):
            def __str__(self):
                raise ValueError
        raise Bad
        """,
    "forked": """\
        import os, sys
        pid = os.fork()
        if not pid:
            raise ValueError("in the child")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        raise ValueError("in the parent")
        """,
}


@pytest.mark.parametrize("how", ["script", "module", "stdin"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_how_a_program_ends(programs, ending, how):
    source = ENDINGS[ending]
    programs.write("program.py", source)
    if how == "stdin":
        text = (programs.folder / "program.py").read_text()
        programs.same("-", input=text)
    else:
        programs.same(*{"script": ["program.py"], "module": ["-m", "program"]}[how])


def test_frames_beneath_the_program_are_not_in_the_traceback(programs):
    """Through asyncio.run() the frames between differ from loop to loop: those of the command line may not show."""
    programs.write(
        "program.py",
        """\
        import asyncio
        async def fails():
            await asyncio.sleep(0)
            raise ValueError("in a task")
        asyncio.run(fails())
        """,
    )
    ours = programs.fast("program.py")
    assert ours.status == 1
    lines = ours.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('program.py", line 5, in <module>')
    assert lines[-1] == "ValueError: in a task"
    assert "_cli" not in ours.err and "runpy" not in ours.err


def error_of_a_null_byte():
    """What compile() raises: up to some 3.11, as on Debian 12, it is not what Python's reader of files does."""
    try:
        compile("\0", "", "exec")
    except (SyntaxError, ValueError) as error:
        return type(error)


@pytest.mark.left_out(
    lambda source: "\0" in source and error_of_a_null_byte() is ValueError, reason="a ValueError by compile() here"
)
@pytest.mark.parametrize(
    "source",
    [
        "def again():\n    again()\nagain()\n",  # Fewer frames are left for the program.
        "import sys; del sys.excepthook; 1 / 0",
        "x = 'a\0b'\n",  # Python's own reader of files words some errors in another way than compile().
        "x = '\xff'\n",
    ],
    ids=["recursion", "no excepthook", "null byte", "not UTF-8"],
)
def test_endings_that_differ_in_detail(programs, source):
    (programs.folder / "program.py").write_bytes(source.encode("latin-1"))
    expected, ours = programs.stock("program.py"), programs.fast("program.py")
    assert (ours.status, ours.out) == (expected.status, expected.out) == (1, "")
    assert ours.err.splitlines()[-1].split()[0] == expected.err.splitlines()[-1].split()[0]
    assert "_cli" not in ours.err


@pytest.mark.parametrize("end", ["", "1 / 0", "import sys; sys.exit(4)"])
def test_interactive_after_the_program(programs, end):
    programs.write("program.py", f"x = 6\ndef f():\n    return 7\n{end}\n")
    typed = """\
print(x * f(), __name__)
import sys, traceback
traceback.print_tb(getattr(sys, "last_traceback", None))
sys.exit(3)
"""
    result = programs.same("program.py", options=("-i",), input=typed)
    assert result.status == 3 and "42 __main__" in result.out


def test_pickle_dataclass_and_inspect_find_the_program(programs):
    programs.write(
        "program.py",
        """\
        import copyreg, dataclasses, inspect, pickle, sys, typing
        @dataclasses.dataclass
        class Point:
            x: int
            y: "Point | None" = None
        if __name__ == "__main__":
            print(pickle.loads(pickle.dumps(Point(1, Point(2)))), Point.__module__)
            print(typing.get_type_hints(Point))
            print(inspect.getsource(Point))
            print(inspect.getmodule(Point) is sys.modules["__main__"])
            import __main__
            print(__main__.Point is Point, __main__.__file__ == __file__)
        """,
    )
    assert programs.same("program.py").status == 0
    assert programs.same("-m", "program").status == 0


def test_program_that_is_read_once(programs):
    """Such as a shell's ``<(command)``."""
    fifo = programs.folder / "fifo"
    os.mkfifo(fifo)
    for loop in ("stock", "fastloop"):
        process = programs.start(loop, fifo)
        fifo.write_text("print('from a pipe', __file__)")
        out, err = process.communicate(timeout=50)
        assert (process.returncode, out, err) == (0, f"from a pipe {fifo}\n", "")


def test_working_directory_that_is_gone(programs):
    programs.write("show.py", "import sys; print(sys.argv, __file__)")
    programs.write(
        "outer.py",
        "import os, shutil, subprocess, sys; os.mkdir('gone'); os.chdir('gone');"
        "os.rmdir('../gone'); sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)",
    )
    script = programs.folder / "show.py"
    expected = programs.stock("outer.py", script)
    ours = programs.stock("outer.py", "-m", "fastloop", script)
    assert ours == expected and ours.status == 0


# ---------------------------------------------------------------- Ctrl-C

WAITING = {
    "in a sleep": "print('ready', flush=True); time.sleep(40)",
    "busy": "print('ready', flush=True)\nwhile True:\n    pass",
    "in asyncio": """
async def main():
    print('ready', flush=True)
    await asyncio.sleep(40)
asyncio.run(main())
""",
    "busy in asyncio": """
async def main():
    print('ready', flush=True)
    while True:
        await asyncio.sleep(0)
asyncio.run(main())
""",
    "caught in asyncio": """
async def main():
    print('ready', flush=True)
    try:
        await asyncio.sleep(40)
    except asyncio.CancelledError:
        print('cancelled')
        raise
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print('interrupted')
    sys.exit(11)
""",
    "in run_forever": """
loop = asyncio.new_event_loop()
loop.call_soon(lambda: print('ready', flush=True))
try:
    loop.run_forever()
finally:
    loop.close()
    print('closed')
""",
    "own handler": """
signal.signal(signal.SIGINT, lambda *_: sys.exit(12))
print('ready', flush=True)
time.sleep(40)
""",
}


def interrupted(programs, loop, arguments):
    process = programs.start(loop, *arguments)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=50)
    # Where exactly the signal met the program, and how deep in which loop, is no concern of this test.
    lines = err.splitlines()
    return process.returncode, out, lines[:1], lines[-1:], "_cli" in err


@pytest.mark.parametrize("arguments", ["program.py", "-m program"])
@pytest.mark.parametrize("waiting", WAITING)
def test_ctrl_c(programs, waiting, arguments):
    programs.write("program.py", "import asyncio, signal, sys, time\n" + WAITING[waiting])
    expected = interrupted(programs, "stock", arguments.split())
    assert interrupted(programs, "fastloop", arguments.split()) == expected


def test_under_a_profiler(programs):
    """A profiler that runs us has a __main__ of its own, and goes on in it after the program."""
    programs.write("program.py", "import __main__, asyncio; x = 1; print(__name__, __main__.x, __file__[-10:])")
    for arguments in (["program.py"], ["-m", "program"]):
        result = programs.stock("-m", "cProfile", "-m", "fastloop", *arguments)
        assert (result.status, result.err) == (0, "")
        lines = result.out.splitlines()
        assert lines[0] == "__main__ 1 program.py" and any("function calls" in line for line in lines)
