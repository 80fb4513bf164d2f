#!/usr/bin/env bash
# Wheels for measurements/gpu/run.sh: what packages.txt names, for Python 3.12 on x86-64 Linux, in ./wheels.
# Usage: measurements/gpu/pack.sh      (needs a package index; PYTHON=... names another interpreter)
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3} constraints=../../constraints.txt
# More than a lent machine may be sent with a copy of this repository.
most_mib=55

rm -rf wheels
mkdir wheels
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
for old in 2014 2010 1; do platforms+=(--platform "manylinux${old}_x86_64"); done
grep -v '^#\|^deepspeed$' packages.txt > wheels/names.txt
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" -c "$constraints" -r wheels/names.txt -d wheels
DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-build-isolation -c "$constraints" -w wheels deepspeed
rm wheels/names.txt

names=$(grep -vc '^#' packages.txt)
files=$(find wheels -name '*.whl' | wc -l)
if [ "$files" != "$names" ]; then
    echo "packages.txt names $names packages and wheels/ holds $files" >&2
    exit 1
fi
size=$(du -sm wheels | cut -f1)
if [ "$size" -gt "$most_mib" ]; then
    echo "wheels/ holds $size MiB, and at most $most_mib travel: take something out of packages.txt" >&2
    exit 1
fi
echo "$files wheels, $size MiB in $PWD/wheels"
