#!/usr/bin/env bash
# Makes everything ready that a target of the Makefile needs, and builds fastloop in place.
#
#   [PYTHON=python3.12] tools/setup_env.sh VENV PURPOSE
#
# PURPOSE: test, demo, conformance, lint, valgrind, wheel, ecosystem, docs, coverage, analyze, tsan or bench
#
# System packages come from apt-get where root or sudo without a password is there; otherwise the line to run is
# printed and the script stops. VENV is a virtual environment of PYTHON, made anew when it belongs to another Python.
# What is there already is left alone: the second run takes about a second.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

venv=$1
purpose=$2
base_python=${PYTHON:-python3}
python=$venv/bin/python

say() { echo "setup: $*" >&2; }

ask() { # ask PYTHON CODE: what the code prints
    "$1" -c "import os, sys, sysconfig; $2"
}

# Names of the Debian packages that are missing, one a line.
missing_packages() {
    local version compiler
    version=$(ask "$base_python" 'print("python%d.%d" % sys.version_info[:2])')
    compiler=${CC:-$(ask "$base_python" 'print(sysconfig.get_config_var("CC") or "gcc")')}
    command -v "${compiler%% *}" >/dev/null || echo gcc
    command -v "${PKG_CONFIG:-pkg-config}" >/dev/null || echo pkg-config
    "${PKG_CONFIG:-pkg-config}" --exists libuv 2>/dev/null || echo libuv1-dev
    case $purpose in
    valgrind) command -v valgrind >/dev/null || echo valgrind ;;
    bench) "${PKG_CONFIG:-pkg-config}" --exists openssl 2>/dev/null || echo libssl-dev ;;
    esac
    # A Python that is not the distribution's brings its own headers, venv and test-suite.
    [ "$(ask "$base_python" 'print(sys.base_prefix)')" = /usr ] || return 0
    ask "$base_python" 'sys.exit(not os.path.exists(sysconfig.get_config_var("INCLUDEPY") + "/Python.h"))' || echo "$version-dev"
    ask "$base_python" 'import ensurepip, venv' 2>/dev/null || echo "$version-venv"
    if [ "$purpose" = conformance ]; then
        ask "$base_python" 'import test.test_asyncio' 2>/dev/null || echo "lib$version-testsuite"
    fi
}

install_packages() { # install_packages PACKAGE...
    local as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        say "the system lacks what the build needs. On Debian and Ubuntu run"
        say "    sudo apt-get install $*"
        say "and then the same command again. On other systems install what docs/install.md lists."
        exit 1
    fi
    say "installing $*"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
    "${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get update -qq && "${install[@]}" >/dev/null; }
}

make_venv() {
    local identity='print(sys.version, sys.base_prefix)'
    if [ -x "$python" ] && [ "$(ask "$python" "$identity" 2>/dev/null)" = "$(ask "$base_python" "$identity")" ]; then
        return
    fi
    say "making $venv"
    "$base_python" -m venv --clear "$venv"
    "$python" -m pip install -q --upgrade pip setuptools
}

is_done() { # is_done STAMP: it was made in this folder, for this pyproject.toml
    [ "$(cat "$venv/$1" 2>/dev/null)" = "$(state)" ]
}

state() {
    echo "$PWD $(cksum <pyproject.toml)"
}

# An editable install: the venv looks into this folder, where the extension is built in place.
install_fastloop() {
    if is_done .fastloop; then return; fi
    say "installing fastloop into $venv"
    "$python" -m pip install -q --no-deps --no-build-isolation -e .
    state >"$venv/.fastloop"
}

install_extra() { # install_extra NAME: the packages of this extra of pyproject.toml
    local requirements
    if is_done ".extra-$1"; then return; fi
    say "installing the packages of the extra '$1' into $venv"
    mapfile -t requirements < <(ask "$python" "import tomllib
print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$1'], sep='\n')")
    "$python" -m pip install -q "${requirements[@]}"
    state >"$venv/.extra-$1"
}

# The demo and the benchmarks compare with uvloop where there is a wheel for this Python, and does without it elsewhere.
try_uvloop() {
    local stamp=$venv/.tried-uvloop
    [ -e "$stamp" ] && return
    "$python" -m pip install -q --only-binary :all: uvloop 2>/dev/null || say "there is no uvloop for this Python"
    touch "$stamp"
}

ask "$base_python" 'sys.exit(sys.version_info < (3, 11))' || { say "$base_python is not Python 3.11 or later"; exit 1; }
mapfile -t packages < <(missing_packages)
if [ ${#packages[@]} -gt 0 ]; then install_packages "${packages[@]}"; fi
make_venv
case $purpose in
lint | wheel | ecosystem | docs | coverage | analyze) install_extra "$purpose" ;;
tsan)
    # What it runs is built elsewhere, and many a library has no wheel for such a Python.
    install_extra "$purpose"
    exit
    ;;
esac
if [ "$purpose" = ecosystem ]; then tools/setup_servers.sh; fi
"$python" setup.py -q build_ext --inplace
install_fastloop
# As pip does for what it copies: an import that has to compile takes ten milliseconds more.
"$python" -m compileall -q fastloop
# Not every library can be built for the first free-threaded Python.
if [ "$(ask "$python" 'print(sysconfig.get_config_var("Py_GIL_DISABLED") == 1 and sys.version_info < (3, 14))')" = True ]; then
    install_extra test-free-threaded
else
    install_extra test
fi
case $purpose in
demo | bench) try_uvloop ;;
esac
