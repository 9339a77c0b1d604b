"""Run a program on fastloop as Python itself would run it.

The program becomes the real ``__main__`` module: it is executed in the namespace of the one that
Python made at start, so pickling, multiprocessing, ``python -i`` and ``inspect`` find what they look
for. The only trace of fastloop are the frames beneath the program's first one, and those are taken off
a traceback before it is printed.
"""

import importlib.machinery
import importlib.util
import io
import os
import runpy
import sys
import types

import fastloop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import SourceFileLoader, SourcelessFileLoader
    from typing import Any, TypeVar

    _T = TypeVar("_T")

# What Python itself puts into __main__ before it runs anything, in its order.
_INITIAL_NAMES = (
    "__name__",
    "__doc__",
    "__package__",
    "__loader__",
    "__spec__",
    "__annotations__",
    "__builtins__",
)


def run_script(path: str, arguments: list[str]) -> None:
    """Run a file, or a folder or zip file that holds a ``__main__.py``, as ``python PATH`` does.

    path is the file's name as the user gave it, arguments the list that follows it in ``sys.argv``.
    Raises SystemExit with status 2 when the file cannot be opened, else whatever the program raises.
    """
    program = _absolute(path)
    sys.argv[:] = [path, *arguments]
    if _can_be_imported_from(program):
        _start(program, even_if_safe=True)
        _outermost(runpy._run_module_as_main, "__main__", False)  # type: ignore[attr-defined]
        return
    content = _read(program)
    namespace = _start(os.path.dirname(os.path.realpath(program)), program)
    # Compiled code is recognised as Python does it: by its name, or by how it begins.
    if program.endswith(".pyc") or content.startswith(importlib.util.MAGIC_NUMBER):
        loader: SourcelessFileLoader | SourceFileLoader = importlib.machinery.SourcelessFileLoader("__main__", program)
        code = _outermost(loader.get_code, "__main__")
    else:
        loader = importlib.machinery.SourceFileLoader("__main__", program)
        code = _outermost(compile, content, program, "exec", 0, True)
    namespace["__loader__"] = loader
    _outermost(exec, code, namespace)


def run_module(name: str, arguments: list[str]) -> None:
    """Run a module, or a package's ``__main__``, as ``python -m NAME`` does.

    name is the module's dotted name, arguments the list that follows it in ``sys.argv``. Raises
    SystemExit when there is no such module, else whatever the program raises.
    """
    sys.argv[:] = ["-m", *arguments]
    # Our own -m has put the working directory in front of sys.path: it stays there.
    _start(sys.path[0])
    _outermost(runpy._run_module_as_main, name)  # type: ignore[attr-defined]


def run_stdin(arguments: list[str]) -> None:
    """Run the program on standard input as ``python -`` does; at a terminal, prompt for it.

    arguments is the list that follows ``"-"`` in ``sys.argv``. Raises whatever the program raises.
    """
    sys.argv[:] = ["-", *arguments]
    if sys.stdin is not None and sys.stdin.isatty():
        import code

        code.interact(local=_start(""), exitmsg="")
        return
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    namespace = _start("", "<stdin>")
    compiled = _outermost(compile, content, "<stdin>", "exec", 0, True)
    _outermost(exec, compiled, namespace)


def _absolute(path: str) -> str:
    """Give the path from the root, not otherwise simplified: so Python sets ``__file__``."""
    try:
        return os.path.join(os.getcwd(), path)
    except OSError:  # The working directory has been removed.
        return path


def _can_be_imported_from(program: str) -> bool:
    """Tell a folder or a zip file from a file, as Python does it: by the path hooks, of which there may be more."""
    for hook in sys.path_hooks:
        try:
            hook(program)
        except ImportError:
            continue
        return True
    return False


def _read(program: str) -> bytes:
    try:
        with io.open_code(program) as file:
            return file.read()
    except OSError as error:
        message = f"can't open file {program!r}: [Errno {error.errno}] {error.strerror}"
        sys.stderr.write(f"{sys.orig_argv[0]}: {message}\n")
        raise SystemExit(2) from None


def _start(path_entry: str, file: str | None = None, even_if_safe: bool = False) -> "dict[str, Any]":
    """Install fastloop, and make ``sys.path`` and ``__main__`` what they are when a program starts.

    path_entry is where the program's imports are looked for first. ``python -P`` leaves it out, except
    (even_if_safe) for a folder or a zip file, which is itself imported from there. file is the program's
    ``__file__``. Returns the namespace to run the program in.
    """
    fastloop.install()
    if not sys.flags.safe_path:
        sys.path[0] = path_entry
    elif even_if_safe:
        sys.path.insert(0, path_entry)
    namespace = vars(_main_module())
    initial = {name: namespace[name] for name in _INITIAL_NAMES if name in namespace}
    has_cached = "__cached__" in namespace  # Not since Python 3.15.
    namespace.clear()
    namespace.update(initial, __doc__=None, __package__=None, __spec__=None)
    namespace["__loader__"] = importlib.machinery.BuiltinImporter
    if file is not None:
        namespace["__file__"] = file
        if has_cached:
            namespace["__cached__"] = None
    return namespace


def _main_module() -> types.ModuleType:
    """The module that becomes the program's: ours, or a new one where a profiler ran us, which goes on in its own."""
    main = sys.modules["__main__"]
    if getattr(main.__spec__, "name", None) != "fastloop.__main__":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
    return main


def _outermost(function: "Callable[..., _T]", *arguments: object) -> "_T":
    """Call a function; an error that leaves it is printed as if nobody had called it."""
    try:
        return function(*arguments)
    except BaseException as error:
        # Python prints SystemExit only when it stays, for "python -i".
        if not isinstance(error, SystemExit) or sys.flags.inspect:
            _print_from(error.__traceback__ and error.__traceback__.tb_next)
        raise


def _print_from(visible: types.TracebackType | None) -> None:
    """Make the uncaught error that is on its way be printed with the traceback visible (or none).

    Python adds a frame to the traceback for every caller that the error passes, and it is Python that
    has to meet it (exit status, death by SIGINT, ``python -i``), so the frames are taken off in between.
    """
    hook = getattr(sys, "excepthook", sys.__excepthook__)

    def excepthook(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        sys.excepthook = hook
        sys.last_traceback = visible
        try:
            hook(kind, error.with_traceback(visible), visible)
        except BaseException as failure:
            # A bare raise takes the traceback from here and does not add this frame to it again.
            failure.__traceback__ = failure.__traceback__ and failure.__traceback__.tb_next
            raise

    sys.excepthook = excepthook
