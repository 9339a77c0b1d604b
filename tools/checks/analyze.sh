#!/usr/bin/env bash
# gcc -fanalyzer and clang-tidy over all C files, several at a time; what they find is an error.
#
#   tools/checks/analyze.sh VENV FILE.c...
#
# .clang-tidy lists what is looked for. Assertions are on: they tell the analysers what the code relies on.
set -euo pipefail

venv=$1
shift
include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
# The quotes around the version are for the compiler.
# shellcheck disable=SC2089
flags="-std=c11 -UNDEBUG -Isrc -I$include $(pkg-config --cflags libuv) -DFASTLOOP_VERSION=\"0\""
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
# shellcheck disable=SC2090
export venv flags objects

in_parallel() { # in_parallel COMMAND FILE...: the command sees the file as $1
    local command=$1
    shift
    printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 bash -c "$command" bash
}

status=0
# Wrong about us: a handle has as many arguments in Call.stack as Call.nargs says, and that is compared before they are read.
# shellcheck disable=SC2016
in_parallel 'gcc $flags -fanalyzer -Werror -Wno-analyzer-use-of-uninitialized-value -c "$1" -o "$objects/${1//\//_}.o"' "$@" || status=1
# What it says of the headers of others is a number on standard error.
# shellcheck disable=SC2016
in_parallel 'said=$("$venv/bin/clang-tidy" --quiet "$1" -- $flags 2>&1) || { echo "$said"; exit 1; }' "$@" || status=1
exit $status
