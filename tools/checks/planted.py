"""Shows that each check sees a defect of its kind: plants one in a copy of the source and runs the check there.

    make planted [CHECKS="asan gc"]      exit status 1 when a check has not reported its defect

A check that its tools or this Python do not allow is said, and passes. tests/rules sees to it that every place to plant
a defect in is still there.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "planted"
COPIED = (
    "Makefile",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "fastloop",
    "src",
    "tests",
    "tools",
)


@dataclass(frozen=True)
class Defect:
    """What stands in a file, what is put in its place, the tests that meet it, and what the check then says."""

    target: str
    file: str
    old: str
    new: str
    tests: str
    report: str
    #: What else this needs, and whether it is there.
    needs: str = ""
    is_there: bool = True


OVERFLOW = {
    "file": "src/sched/timers.c",
    "old": "if (timers->count < timers->capacity) {",
    "new": "if (timers->count <= timers->capacity && timers->capacity > 0) {",
    "tests": "tests/sched/test_timers.py -k thousands_of_timers",
}

DEFECTS = {
    "asan": Defect(target="asan", **OVERFLOW, report="heap-buffer-overflow"),
    "ubsan": Defect(
        "asan",
        "src/base/histogram.c",
        "(ns >> (power - 3))",
        "(ns >> (power + 60))",
        "tests/observability/test_metrics.py",
        "runtime error: shift exponent",
    ),
    "valgrind": Defect(
        target="valgrind",
        **OVERFLOW,
        report="Invalid write of size",
        needs="valgrind",
        is_there=shutil.which("valgrind") is not None,
    ),
    # Development mode: the memory of one allocator given to another.
    "dev-mode": Defect(
        "test-debug",
        "src/sched/inbox.c",
        "PyMem_RawFree(entries);",
        "PyMem_RawFree(entries);\n    PyMem_Free(PyMem_RawMalloc(1));",
        "tests/sched/test_lifecycle.py -k a_closed_loop_refuses",
        "Allocated using API 'r', verified using API 'm'",
    ),
    # asyncio's debug mode: a handle that forgets where it was made.
    "asyncio-debug": Defect(
        "test-debug",
        "src/sched/handle.c",
        "Py_XSETREF(*source_traceback_of(handle, loop->state), stack);",
        "Py_DECREF(stack);",
        "tests/sched/test_exceptions.py",
        "[1-9][0-9]* failed",
    ),
    # An assertion of CPython's headers: a type that is not what it is taken for.
    "assertion": Defect(
        "test-debug",
        "src/pool/executor.c",
        "(kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames))",
        "(kwnames == NULL ? 0 : PyTuple_GET_SIZE(method))",
        "tests/pool/test_run_in_executor.py -k keywords",
        "Assertion `PyTuple_Check",
    ),
    # A timer that the collector knows before all of it is there.
    "gc": Defect(
        "gc",
        "src/sched/handle.c",
        "PyObject_GC_Track(handle);\n    handle->when = when;",
        "handle->when_object = (PyObject *)1;\n    PyObject_GC_Track(handle);\n    Py_XDECREF(PySet_New(NULL));\n"
        "    handle->when = when;",
        "tests/sched/test_timers.py -k when_is",
        "Segmentation fault",
        needs="Python 3.11",
        is_there=sys.version_info < (3, 12),
    ),
    "leaks": Defect(
        "leaks",
        "src/io/stream.c",
        "chunks_clear(&request->chunks);\n    PyMem_RawFree(request);\n    LoopObject *loop",
        "chunks_clear(&request->chunks);\n    LoopObject *loop",
        "tests/io/test_flow_control.py",
        "leak of [0-9]+ byte",
    ),
    # The lock of what other threads hand over.
    "tsan": Defect(
        "tsan",
        "src/sched/inbox.h",
        "    if (HAVE_FREE_THREADING) {\n        uv_mutex_lock(&inbox->lock);",
        "    if (0) {\n        uv_mutex_lock(&inbox->lock);",
        "tests/sched/test_wakeups.py -k four_threads",
        "WARNING: ThreadSanitizer",
        needs="a Python with ThreadSanitizer",
        is_there="--with-thread-sanitizer" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
    ),
}


def plant(defect, text):
    """The text of the file with the defect; ValueError when there is no such place, or more than one."""
    if text.count(defect.old) != 1:
        raise ValueError(f"{defect.file}: {text.count(defect.old)} places to plant in: {defect.old!r}")
    return text.replace(defect.old, defect.new)


def copy(environment):
    """The source, and the environment of this Python, which knows nothing of the copy."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, COPY / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif source.exists():
            shutil.copy(source, COPY)
    (COPY / environment.name).symlink_to(environment)


def check(name, environment):
    """Plant and run; what went wrong, or None."""
    defect = DEFECTS[name]
    if not defect.is_there:
        return print(f"{name}: left out, it needs {defect.needs}")
    copy(environment)
    path = COPY / defect.file
    path.write_text(plant(defect, path.read_text()))
    # SETUP: everything is there, and must not be installed anew for the copy.
    command = ["make", defect.target, f"PYTHON={sys.executable}", f"VENV={environment.name}", "SETUP=true"]
    done = subprocess.run(
        [*command, f"TESTS={defect.tests}"], cwd=COPY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found = re.search(f".*{defect.report}.*", done.stdout)
    if done.returncode == 0 or found is None:
        return f"{name}: {defect.target} has not reported its defect\n{done.stdout[-3000:]}"
    return print(f"{name}: {found.group().strip()}", flush=True)


def main(names):
    problems = [problem for name in names or DEFECTS if (problem := check(name, Path(sys.prefix)))]
    print(*problems, sep="\n\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
