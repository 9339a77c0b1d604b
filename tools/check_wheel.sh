#!/usr/bin/env bash
# Shows that a wheel needs nothing but Python: runs a program on it in a system root that holds the interpreter with its
# standard library, the libraries that these need, a virtual environment with the wheel alone, and nothing else. There is
# no libuv, compiler, shell or pkg-config in it.
#
#   tools/check_wheel.sh PYTHON WHEEL
#
# For Linux. Needs root or unprivileged user namespaces; no network.
set -euo pipefail

python=$(realpath --no-symlinks "$1")
wheel=$(realpath "$2")
program=$(realpath "$(dirname "$0")")/check_wheel.py
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

ask() { "$python" -c "import sys, sysconfig; $1"; }
interpreter=$(ask 'import os; print(os.path.realpath(sys.executable))')
stdlib=$(ask 'print(sysconfig.get_path("stdlib"))')
platstdlib=$(ask 'print(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}))')

mkdir -p "$root"/{venv,proc,dev,tmp,etc} "$root$(dirname "$interpreter")" "$root$stdlib" "$root$platstdlib"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
cp "$interpreter" "$root$interpreter"
cp "$program" "$root/check_wheel.py"
"$interpreter" -m venv --without-pip "$root/venv"
"$python" -m pip --python "$root/venv/bin/python" install -q --no-index --no-deps --disable-pip-version-check "$wheel"
ln -sfn "$interpreter" "$root/venv/bin/python"
printf 'home = %s\n' "$(dirname "$interpreter")" >"$root/venv/pyvenv.cfg"

# What the interpreter and its own modules are linked with; what the wheel is linked with it must bring itself.
{
    ldd "$interpreter"
    find "$platstdlib/lib-dynload" -name '*.so' -exec ldd {} +
} | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && NF == 2 && $1 !~ /:$/ { print $1 }' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done

unshare=(unshare --mount --net --pid --fork)
if [ "$(id -u)" != 0 ]; then unshare+=(--map-root-user); fi
# shellcheck disable=SC2016
"${unshare[@]}" sh -ec '
    mount --bind -o ro "$2" "$1$2"
    mount --bind -o ro "$3" "$1$3"
    mount -t proc proc "$1/proc"
    mount --bind /dev "$1/dev"
    exec chroot "$1" /venv/bin/python -I /check_wheel.py
' sh "$root" "$stdlib" "$platstdlib"
