#!/usr/bin/env bash
# Builds the wheel twice from the source archive, in two folders and at two times: they must be equal, bit by bit.
#
#   tools/check_reproducible.sh PYTHON ARCHIVE      (PYTHON of an environment with setuptools)
set -euo pipefail

python=$(realpath -s "$1")
archive=$(realpath "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# As builders of distributions set it; by default the time of the build stands in the archive.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000}

for place in one another/folder; do
    mkdir -p "$folder/$place/source"
    tar -xzf "$archive" -C "$folder/$place/source" --strip-components=1
    find "$folder/$place/source" -exec touch {} +
    # pip would build both in folders of one name.
    (cd "$folder/$place/source" && "$python" -c 'from setuptools.build_meta import build_wheel; build_wheel("..")' >../log 2>&1) ||
        { cat "$folder/$place/log"; exit 1; }
done
sha256sum "$folder"/one/*.whl "$folder"/another/folder/*.whl
if ! cmp "$folder"/one/*.whl "$folder"/another/folder/*.whl; then
    for place in one another/folder; do (cd "$folder/$place" && unzip -q -o ./*.whl -d whole); done
    diff -rq "$folder/one/whole" "$folder/another/folder/whole"
    exit 1
fi
