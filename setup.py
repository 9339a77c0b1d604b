"""Build of the extension module fastloop._core; everything else about the package stands in pyproject.toml.

Read from the environment:
    PKG_CONFIG         the pkg-config command (default: pkg-config)
    CC, CFLAGS, ...    as setuptools understands them
    FASTLOOP_DEBUG     1: no optimisation, assertions on, full debug information
    FASTLOOP_SANITIZE  what gcc and clang take after -fsanitize=, for example address,undefined
    FASTLOOP_COVERAGE  1: counts, for gcov, what of the C code runs
    FASTLOOP_WERROR    1: a warning of the compiler ends the build
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LIBUV_MINIMUM = "1.44"

LANGUAGE = ["-std=c11", "-pthread", "-fvisibility=hidden"]

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wvla",
    # A method must take the arguments of its slot, used or not, and is cast to the common type in the method table.
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
]

# What makes a defect stop the process instead of serving an attacker; where compiler and machine have it.
HARDENING = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-fcf-protection",
    "-mbranch-protection=standard",
]
# For the linker alone: of these clang warns where it only compiles.
HARDENING_LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]

INSTALL_HELP = """\
fastloop cannot be built: {problem}.
What the build needs is installed by
    Debian, Ubuntu      apt-get install gcc pkg-config libuv1-dev python3-dev
    Fedora              dnf install gcc pkgconf-pkg-config libuv-devel python3-devel
    Alpine              apk add gcc musl-dev pkgconf libuv-dev python3-dev
    macOS (Homebrew)    xcode-select --install; brew install pkg-config libuv"""


def stop(problem):
    """End the build with one message that says what is missing and how to get it."""
    sys.exit(INSTALL_HELP.format(problem=problem))


def switched_on(name):
    return os.environ.get(name, "0") not in ("", "0")


def pkg_config(*arguments):
    """Output of pkg-config as a list of words, or None where it answers that there is no such thing."""
    command = shlex.split(os.environ.get("PKG_CONFIG", "pkg-config"))
    try:
        run = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        stop(f"{command[0]} was not found (package pkg-config, which finds libuv)")
    return shlex.split(run.stdout) if run.returncode == 0 else None


def libuv_flags():
    """The compiler's and the linker's flags for libuv."""
    found = pkg_config("--modversion", "libuv")
    if found is None:
        stop("pkg-config does not find libuv (package libuv1-dev on Debian)")
    if pkg_config(f"--atleast-version={LIBUV_MINIMUM}", "libuv") is None:
        stop(f"libuv {LIBUV_MINIMUM} or later is needed, this is {found[0]}")
    return pkg_config("--cflags", "libuv"), pkg_config("--libs", "libuv")


def check_compiler(command):
    if shutil.which(command[0]) is None:
        stop(f"the C compiler {command[0]} was not found (package gcc)")
    folders = {sysconfig.get_path(name) for name in ("include", "platinclude")}
    if not any(os.path.exists(os.path.join(folder, "Python.h")) for folder in folders):
        stop(f"Python.h of Python {sys.version.split()[0]} was not found (package python3-dev)")


def accepts(command, flag):
    """Whether the compiler compiles and links a shared library with this flag."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("int probe(void) { return 0; }\n")
        words = [*command, "-Werror", "-fPIC", "-shared", flag, source, "-o", source.with_suffix(".so")]
        return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def code_flags(command):
    """Flags that the compiler and the linker must both be given."""
    sanitizers = os.environ.get("FASTLOOP_SANITIZE", "")
    if sanitizers:
        return ["-O1", "-g3", "-UNDEBUG", "-U_FORTIFY_SOURCE", "-fno-omit-frame-pointer",
                f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]  # fmt: skip
    if switched_on("FASTLOOP_COVERAGE"):
        # An assertion would count as a branch that no test takes.
        return ["-O0", "-g3", "-DNDEBUG", "-U_FORTIFY_SOURCE", "--coverage", "-fprofile-update=atomic"]
    if switched_on("FASTLOOP_DEBUG"):
        return ["-O0", "-g3", "-UNDEBUG", "-U_FORTIFY_SOURCE"]
    # Names of functions and types for perf and gdb; no path of the building machine, so that two builds are equal.
    flags = ["-O3", "-DNDEBUG", "-g"]
    # Who sets a level in CFLAGS, as distributions do, has chosen it.
    if not any("_FORTIFY_SOURCE" in word for word in command):
        flags += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    # gcc writes down $PWD where that is this folder by another name, through a link.
    folders = dict.fromkeys([os.getcwd(), os.environ.get("PWD") or os.getcwd()])
    prefixes = [f"-ffile-prefix-map={folder}=." for folder in folders]
    optional = ["-fno-semantic-interposition", "-fno-plt", *prefixes, *HARDENING]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        flags += [flag for flag, good in zip(optional, pool.map(lambda flag: accepts(command, flag), optional)) if good]
    lto = next((flag for flag in ("-flto=auto", "-flto") if accepts(command, flag)), None)
    return [*flags, lto] if lto else flags


def newest(paths):
    return max(os.path.getmtime(path) for path in paths)


class BuildCore(build_ext):
    """Finds libuv, chooses the flags, and compiles only what changed, several files at a time."""

    def build_extensions(self):
        command = list(self.compiler.compiler)
        check_compiler(command)
        uv_compile, uv_link = libuv_flags()
        code = code_flags(command)
        link = [flag for flag in HARDENING_LINK if "-O3" in code and accepts(command, flag)]
        for extension in self.extensions:
            extension.define_macros.append(("FASTLOOP_VERSION", f'"{self.distribution.get_version()}"'))
            extension.extra_compile_args = [*LANGUAGE, *WARNINGS, *code, *uv_compile]
            if switched_on("FASTLOOP_WERROR"):
                extension.extra_compile_args.append("-Werror")
            extension.extra_link_args = ["-pthread", *code, *link, *uv_link]
            extension.depends.append(self.write_flags(extension))
        self.compile_serially = self.compiler.compile
        self.compiler.compile = self.compile
        super().build_extensions()

    def write_flags(self, extension):
        """Name of a file that is touched when other flags are given than last time: all objects depend on it."""
        text = "\n".join([
            sys.version,
            *self.compiler.compiler_so,
            *map(str, extension.define_macros),
            *extension.extra_compile_args,
            *extension.extra_link_args,
        ])  # fmt: skip
        path = Path(self.build_temp, "flags")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return str(path)

    def compile(self, sources, output_dir=None, depends=(), **options):
        """Stands in for the compiler's own compile(): the same arguments and result."""
        depends_changed = newest(depends)

        def compile_one(source):
            (target,) = self.compiler.object_filenames([source], output_dir=output_dir)
            changed = max(depends_changed, os.path.getmtime(source))
            if self.force or not os.path.exists(target) or os.path.getmtime(target) < changed:
                self.compile_serially([source], output_dir=output_dir, depends=depends, **options)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_one, sources))


setup(
    license="MIT",
    # The second one is for the wheels, which carry libuv.
    license_files=["LICENSE", "tools/LICENSE.libuv"],
    ext_modules=[
        Extension(
            "fastloop._core",
            sources=sorted(glob("src/**/*.c", recursive=True)),
            include_dirs=["src"],
            depends=["setup.py", "pyproject.toml", *sorted(glob("src/**/*.h", recursive=True))],
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
