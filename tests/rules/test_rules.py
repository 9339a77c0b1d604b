"""The rules of this project's own that a program can check, over the sources and over the built extension module.

Each checker returns its findings as a list of lines, empty when all is well, and is shown a planted violation too.
"""

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A file includes its own folder and folders with a smaller number.
LAYERS = {"base": 0, "sched": 1, "coro": 2, "io": 3, "pool": 3}
# What every file may include, and the one file that knows every folder.
COMMON_HEADERS = {"state.h", "compat.h"}
TOP_FILE = "module.c"

# What only some files may use: (pattern, the files that may, as globs below src/).
CONFINED = [
    (r"\bPY_VERSION_HEX\b", ["compat.h"]),
    (r"\bUV_VERSION_HEX\b", ["compat.h"]),
    (r"\b(__linux__|__APPLE__|__FreeBSD__|_WIN32)\b", ["compat.h"]),
    (r"\bPyGILState_\w+", ["sched/loop.*", "pool/*"]),
    # A macro that sets its argument to NULL when there is no memory: what that pointed to is lost.
    (r"\bPyMem_(Resize|RESIZE)\b", []),
    # Without bounds: there is always a call with them.
    (r"\b(strcpy|stpcpy|strcat|sprintf|vsprintf|gets|alloca)(?=\s*\()", []),
    # Without a sign of failure, or with what other threads and the process share.
    (
        r"(?<![\".])\b(atoi|atol|atof|strtok|rand|srand|tmpnam|mktemp|setenv|putenv|system|popen|signal|abort|exit|_exit)(?=\s*\()",
        [],
    ),
    (r"\b(localtime|gmtime|ctime|asctime|gethostbyname|inet_ntoa|inet_addr|readdir)(?=\s*\()", []),
    # Descriptors beyond 1023 lie outside an fd_set.
    (r"\b(select|FD_SET)(?=\s*\()", []),
    # Memory that tracemalloc does not see, and that PYTHONMALLOC=debug does not check.
    (r"(?<![\w.>])(malloc|calloc|realloc|free|strdup)(?=\s*\()", []),
    # Borrowed references that swallow errors, and what a subinterpreter shares with the others.
    (
        r"\b(PyDict_GetItem|PyDict_GetItemString|PyObject_HasAttr|PyObject_HasAttrString|PyModule_AddObject)(?=\s*\()",
        [],
    ),
    (r"\b(uv_default_loop|uv_library_shutdown|uv_queue_work|uv_spawn|uv_signal_start|uv_getaddrinfo)(?=\s*\()", []),
]
# Differences between Python versions, on the Python side.
VERSION_FILE = "_compat.py"

# Writable data that the C API asks for: it takes these tables as pointers to non-const and changes none of ours.
WRITABLE_NAMES = re.compile(r"(^|_)(spec|slots|methods|getset|members|module)$")
# What the compiler's start files bring into every shared library.
TOOLCHAIN_NAMES = re.compile(r"^(__dso_handle|completed|__TMC_END__|__bss_start|_edata|_end|_DYNAMIC|__data_start)$")


def code_of(path):
    """The text of a C file with its comments blanked out, line numbers kept."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)

    def blank(match):
        text = match[0]
        return "\n" * text.count("\n") + " " if text.startswith("/") else text

    return token.sub(blank, path.read_text())


def c_files(src):
    return sorted(path for path in src.rglob("*.[ch]"))


def include_findings(src):
    """Every #include of ours that reaches into a folder of the same or a higher layer."""
    findings = []
    for path in c_files(src):
        place = path.relative_to(src)
        if str(place) == TOP_FILE:
            continue
        own = place.parts[0] if len(place.parts) > 1 else None
        for number, line in enumerate(code_of(path).splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            if not match:
                continue
            beside = path.parent / match[1]
            target = Path(match[1]) if not beside.exists() else beside.relative_to(src)
            if str(target) in COMMON_HEADERS:
                continue
            folder = target.parts[0]
            lower = own in LAYERS and folder in LAYERS and LAYERS[folder] < LAYERS[own]
            if folder != own and not lower:
                findings.append(f"{place}:{number}: includes {match[1]}")
    return findings


def folder_findings(src):
    """Folders that the table of layers does not know, and C files beside module.c."""
    found = {path.relative_to(src) for path in c_files(src)}
    return [
        f"{place}: no layer is known for it"
        for place in sorted(found)
        if (place.parts[0] not in LAYERS if len(place.parts) > 1 else place.name not in COMMON_HEADERS | {TOP_FILE})
    ]


def confined_findings(src):
    """Uses of what CONFINED keeps to a few files."""
    findings = []
    for path in c_files(src):
        place = path.relative_to(src)
        for number, line in enumerate(code_of(path).splitlines(), 1):
            for pattern, allowed in CONFINED:
                match = re.search(pattern, line)
                if match and not any(place.match(glob) for glob in allowed):
                    findings.append(f"{place}:{number}: {match[0]}")
    return findings


def macro_findings(src):
    """Macros that hide a return or a goto. X, which expands a list and is taken back below it, may."""
    findings = []
    for path in c_files(src):
        text = code_of(path)
        for match in re.finditer(r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:\\\n|[^\n])*", text, re.MULTILINE):
            if match[1] != "X" and re.search(r"\b(return|goto)\b", match[0]):
                number = text.count("\n", 0, match.start()) + 1
                findings.append(f"{path.relative_to(src)}:{number}: macro {match[1]} contains return or goto")
    return findings


def version_findings(package):
    """Places in the Python package, besides one file, that look at the version of Python."""
    findings = []
    for path in sorted(package.rglob("*.py")):
        if path.name == VERSION_FILE:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\bsys\s*\.\s*(version_info|hexversion)\b|from sys import .*\bversion_info\b", line):
                findings.append(f"{path.relative_to(package)}:{number}: {line.strip()}")
    return findings


def install_findings(root):
    """Documents that tell to install by name: under this name the public index holds something else."""
    # Folders whose name starts with a dot, and build/, hold what others wrote.
    folders = [folder for folder in root.glob("[!.]*") if folder.is_dir() and folder.name != "build"]
    documents = [*root.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]
    by_name = re.compile(r"pip3? install (?:-\S+ )*['\"]?fastloop(?![\w./-])")
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(documents)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if by_name.search(line)
    ]


def promise_findings(root):
    """Tests and folders that docs/promises.md names and that are not there."""
    findings = []
    for number, line in enumerate((root / "docs" / "promises.md").read_text().splitlines(), 1):
        if not line.startswith("| ") or line.startswith(("| Promise", "| ---")):
            continue
        for part in line.split("|")[2].split(";"):
            place, _, names = part.strip().partition(":")
            path = root / "tests" / place
            if "/" not in place:
                continue
            if not path.exists():
                findings.append(f"{number}: no tests/{place}")
                continue
            known = set(re.findall(r"def test_(\w+)", path.read_text())) if path.is_file() else set()
            findings += [
                f"{number}: no test_{name} in {place}" for name in names.replace(",", " ").split() if name not in known
            ]
    return findings


def symbols(library, *options):
    """(name, binding, section) of each object and function that a shared library defines."""
    listing = subprocess.run(["readelf", "--wide", "--section-headers", library], capture_output=True, text=True)
    sections = dict(re.findall(r"^\s*\[\s*(\d+)\]\s+(\S+)", listing.stdout, re.MULTILINE))
    listing = subprocess.run(["readelf", "--wide", *options, library], capture_output=True, text=True, check=True)
    found = []
    for line in listing.stdout.splitlines():
        columns = line.split()
        if len(columns) == 8 and columns[3] in ("OBJECT", "FUNC", "TLS", "NOTYPE") and columns[6].isdigit():
            found.append((columns[7].split("@")[0], columns[4], sections.get(columns[6], "")))
    return found


def writable_findings(library):
    """Variables in sections that stay writable. Constant tables with addresses in them (.data.rel.ro) do not."""
    findings = []
    for name, _, section in symbols(library, "--symbols"):
        # The compiler numbers what is static in a function or was made local while linking: name.3, name.lto_priv.0.
        plain = name.split(".")[0]
        writable = re.match(r"\.(data|bss|tdata|tbss)(?!\.rel\.ro)", section)
        if writable and not WRITABLE_NAMES.search(plain) and not TOOLCHAIN_NAMES.match(plain):
            findings.append(f"{name} in {section}")
    return findings


def export_findings(library):
    """What the library exports besides its init function."""
    return [
        name
        for name, binding, _ in symbols(library, "--dyn-syms")
        if binding in ("GLOBAL", "WEAK") and not re.match(r"PyInit_\w+$", name)
    ]


def hardening_findings(library):
    """What an optimised build on Linux must have, and has not."""
    listing = subprocess.run(["readelf", "--wide", "-l", "-d", "-n", library], capture_output=True, text=True).stdout
    imported = subprocess.run(["readelf", "--wide", "--dyn-syms", library], capture_output=True, text=True).stdout
    wanted = {
        "constants are not written to": "GNU_RELRO" in listing,
        "addresses of functions are constants": re.search(r"BIND_NOW|Flags:.*\bNOW\b", listing),
        "the stack cannot be run": re.search(r"GNU_STACK .* RW ", listing),
        "the stack is guarded": "__stack_chk_fail" in imported,
        "calls of the C library are bounded": re.search(r"__\w+_chk\b", imported),
    }
    return [name for name, has in wanted.items() if not has]


def compile_library(folder, code):
    """A shared library made from this C code with the visibility that the extension is built with."""
    source, library = folder / "planted.c", folder / "planted.so"
    source.write_text(code)
    compiler = sysconfig.get_config_var("CC").split()
    subprocess.run([*compiler, "-shared", "-fPIC", "-fvisibility=hidden", source, "-o", library], check=True)
    return library


@pytest.fixture
def extension():
    """The built extension module. An instrumented one is full of the variables of a sanitizer, or of gcov."""
    from fastloop import _core

    library = Path(_core.__file__)
    if any(name.startswith(("__asan", "__odr_asan", "__gcov")) for name, _, _ in symbols(library, "--symbols")):
        pytest.skip("the extension is instrumented")
    return library


def is_debug_build(library):
    """Assertions, which are off in an optimised build, call this when they fail."""
    listing = subprocess.run(["readelf", "--wide", "--dyn-syms", library], capture_output=True, text=True)
    return "__assert_fail" in listing.stdout


needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf reads ELF files, on Linux")


@pytest.mark.parametrize("check", [include_findings, folder_findings, confined_findings, macro_findings])
def test_c_sources(check):
    assert len(c_files(ROOT / "src")) > 1
    assert check(ROOT / "src") == []


def test_python_versions_are_told_apart_in_one_file():
    assert version_findings(ROOT / "fastloop") == []


def test_documents_install_from_source_or_wheel():
    assert install_findings(ROOT) == []


def test_the_tests_behind_the_promises_exist():
    assert promise_findings(ROOT) == []


def test_every_explained_difference_is_looked_for():
    surface = ROOT / "tests" / "conformance" / "surface.py"
    asked = subprocess.run([sys.executable, surface, "no question has this text"], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stdout + asked.stderr


@needs_readelf
def test_extension_has_no_mutable_globals(extension):
    assert writable_findings(extension) == []


@needs_readelf
def test_extension_exports_its_init_function_alone(extension):
    assert "PyInit__core" in [name for name, _, _ in symbols(extension, "--dyn-syms")]
    assert export_findings(extension) == []


@needs_readelf
def test_extension_is_hardened(extension):
    names = {name.split(".")[0] for name, _, _ in symbols(extension, "--symbols")}
    if not sys.platform.startswith("linux") or "Loop_call_soon" not in names or is_debug_build(extension):
        pytest.skip("not an optimised build for Linux")
    assert hardening_findings(extension) == []


@needs_readelf
def test_extension_keeps_the_names_of_its_functions(extension):
    names = {name.split(".")[0] for name, _, _ in symbols(extension, "--symbols")}
    assert {"Loop_call_soon", "Loop_dealloc", "Task_dealloc"} <= names


@pytest.fixture
def plant(tmp_path):
    """Writes a file into an empty tree and returns the tree."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("name", "target", "allowed"),
    [
        ("sched/loop.c", "io/stream.h", False),
        ("sched/loop.c", "coro/task.h", False),
        ("io/tcp.c", "pool/workers.h", False),
        ("base/ring.h", "sched/loop.h", False),
        ("state.h", "sched/loop.h", False),
        ("io/tcp.c", "surprise.h", False),
        ("io/tcp.c", "sched/loop.h", True),
        ("io/tcp.c", "io/stream.h", True),
        ("io/tcp.c", "state.h", True),
        ("state.h", "compat.h", True),
        ("module.c", "io/tcp.h", True),
    ],
)
def test_planted_include(plant, name, target, allowed):
    tree = plant(name, f'/* "x */\n#include <uv.h>\n#include "{target}"\n')
    assert include_findings(tree) == ([] if allowed else [f"{name}:3: includes {target}"])


def test_planted_include_of_a_neighbour_without_its_folder(plant):
    plant("io/stream.h", "")
    assert include_findings(plant("io/tcp.c", '#include "stream.h"\n')) == []
    assert include_findings(plant("io/tcp.c", '#include "../pool/workers.h"\n')) != []


def test_planted_folder(plant):
    plant("helper.c", "")
    findings = folder_findings(plant("util/list.c", ""))
    assert findings == ["helper.c: no layer is known for it", "util/list.c: no layer is known for it"]


@pytest.mark.parametrize(
    ("name", "line", "finding"),
    [
        ("io/tcp.c", "#if PY_VERSION_HEX >= 0x030C0000", "PY_VERSION_HEX"),
        ("io/tcp.c", "#if UV_VERSION_HEX > 1", "UV_VERSION_HEX"),
        ("io/tcp.c", "#ifdef __linux__", "__linux__"),
        ("io/tcp.c", "PyGILState_STATE s = PyGILState_Ensure();", "PyGILState_STATE"),
        ("io/tcp.c", "strcpy(a, b);", "strcpy"),
        ("sched/loop.c", "sprintf (a, b);", "sprintf"),
        ("sched/loop.c", "p = malloc(3);", "malloc"),
        ("sched/loop.c", "p = PyMem_Malloc(3); q->free(p); uv_free(p);", None),
        ("io/tcp.c", "FD_SET(fd, &set);", "FD_SET"),
        ("io/tcp.c", "item = PyDict_GetItem(dict, key);", "PyDict_GetItem"),
        ("io/tcp.c", "item = PyDict_GetItemWithError(dict, key); loop_exit(); on_signal(1);", None),
        ("pool/jobs.c", "uv_queue_work(loop, work, f, g);", "uv_queue_work"),
        ("compat.h", "#if PY_VERSION_HEX >= 0x030C0000 && UV_VERSION_HEX", None),
        ("sched/loop.c", "PyGILState_Ensure();", None),
        ("pool/workers.c", "PyGILState_Ensure();", None),
        ("io/tcp.c", "/* strcpy(a, b) */ snprintf(a, 1, b); // gets(a)", None),
    ],
)
def test_planted_word(plant, name, line, finding):
    tree = plant(name, f"\n{line}\n")
    assert confined_findings(tree) == ([f"{name}:2: {finding}"] if finding else [])


def test_planted_macro(plant):
    tree = plant("io/tcp.c", "#define OK(x) ((x) + 1)\n#define CHECK(x) \\\n    if (!(x)) \\\n        return -1\n")
    assert macro_findings(tree) == ["io/tcp.c:2: macro CHECK contains return or goto"]


def test_planted_version_check(plant):
    plant("_compat.py", "import sys\nNEW = sys.version_info >= (3, 12)\n")
    tree = plant("loop.py", "import sys\nif sys.version_info >= (3, 12):\n    pass\n")
    assert version_findings(tree) == ["loop.py:2: if sys.version_info >= (3, 12):"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Run `pip install fastloop`.", True),
        ("pip3 install -U fastloop", True),
        ('python -m pip install "fastloop"', True),
        ("pip install .", False),
        ("pip install fastloop-1.0-cp311-linux.whl", False),
        ("pip install ./fastloop", False),
    ],
)
def test_planted_document(plant, line, found):
    tree = plant("docs/install.md", f"# Install\n{line}\n")
    assert install_findings(tree) == ([f"docs/install.md:2: {line}"] if found else [])


def test_planted_promise(plant):
    plant("tests/io/test_some.py", "def test_kept():\n    pass\n")
    tree = plant(
        "docs/promises.md", "| Promise | Tests |\n| --- | --- |\n| A | io/test_some.py: kept, broken; io/gone.py |\n"
    )
    assert promise_findings(tree) == ["3: no test_broken in io/test_some.py", "3: no tests/io/gone.py"]


def test_checks_find_where_to_plant_their_defects():
    """`make planted` builds and runs; here is only seen that it could."""
    planted = runpy.run_path(str(ROOT / "tools" / "checks" / "planted.py"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for defect in planted["DEFECTS"].values():
        assert defect.new in planted["plant"](defect, (ROOT / defect.file).read_text())
        assert defect.target in targets


@needs_readelf
def test_planted_variable(tmp_path):
    library = compile_library(
        tmp_path,
        """
        static int counter;
        static const int zero = 0;
        static const char *const names[] = {"a", "b"};
        static struct { const char *name; } loop_methods[] = {{"a"}};
        int PyInit_planted(int i);
        int PyInit_planted(int i)
        {
            static int calls = 1;
            return calls++ + counter++ + zero + names[i][0] + loop_methods[i].name[0];
        }
        """,
    )
    assert sorted(finding.split(".")[0] for finding in writable_findings(library)) == ["calls", "counter in "]


@needs_readelf
def test_planted_export(tmp_path):
    exported = '__attribute__((visibility("default"))) '
    library = compile_library(tmp_path, f"{exported}int PyInit_x = 1; {exported}int helper = 1; int hidden = 1;")
    assert export_findings(library) == ["helper"]


@needs_readelf
def test_planted_soft_library(tmp_path):
    findings = hardening_findings(compile_library(tmp_path, "int planted(void) { return 0; }"))
    assert "the stack is guarded" in findings
    assert "calls of the C library are bounded" in findings
