#!/usr/bin/env bash
# Builds the libuv that wheels carry, from its released source, as a shared library.
#
#   [LIBUV_ARCHIVE=FILE] tools/build_libuv.sh PREFIX
#
# Needs cmake, a C compiler, and curl unless LIBUV_ARCHIVE names the archive. Give PREFIX/lib/pkgconfig to the build of
# fastloop as PKG_CONFIG_PATH, and PREFIX/lib to auditwheel as LD_LIBRARY_PATH.
#
# This is the one place where the version stands. When libuv fixes a security hole in what fastloop uses (everything but
# its own name resolution, processes, files and thread pool), a release of fastloop with the new version follows at once;
# otherwise the newest is taken with each release.
set -euo pipefail
VERSION=1.53.0
SHA256=cb0d6dd2128d5a95bd242c6cc982a24fe608fa93da57b6b4ec763b0018c53e64

prefix=${1:?the folder to install into}
url=https://dist.libuv.org/dist/v$VERSION/libuv-v$VERSION.tar.gz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "${LIBUV_ARCHIVE:-}" ]; then
    cp "$LIBUV_ARCHIVE" "$work/libuv.tar.gz"
else
    curl --fail --location --silent --show-error --retry 3 --output "$work/libuv.tar.gz" "$url"
fi
if command -v sha256sum >/dev/null; then sum=$(sha256sum "$work/libuv.tar.gz"); else sum=$(shasum -a 256 "$work/libuv.tar.gz"); fi
if [ "${sum%% *}" != "$SHA256" ]; then
    echo "build_libuv: the archive is not that of libuv $VERSION: its SHA-256 is ${sum%% *}" >&2
    exit 1
fi
mkdir "$work/source"
tar -xzf "$work/libuv.tar.gz" -C "$work/source" --strip-components=1
cmake -S "$work/source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" \
    -DCMAKE_INSTALL_LIBDIR=lib -DLIBUV_BUILD_SHARED=ON -DLIBUV_BUILD_TESTS=OFF -DLIBUV_BUILD_BENCH=OFF
cmake --build "$work/build" --target install --parallel 2
PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --exact-version="$VERSION" libuv
