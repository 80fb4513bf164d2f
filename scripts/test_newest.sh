#!/usr/bin/env bash
# Do the newest releases of all dependencies work? They are installed without constraints into an environment of their
# own; the fast lane and a quickstart of 5 steps run there. Usage: scripts/test_newest.sh [pytest args]
# What .venv holds in its newest release already (torch takes 6 GB) is used from there.
# NEWEST_ENV (default: .venv/newest) is where they are installed, PINS ("transformers==5.20.0") what is not the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || bash scripts/setup.sh dev
base="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
env="${NEWEST_ENV:-.venv/newest}"
[ -x "$env/bin/python" ] || .venv/bin/python -m venv "$env"
own="$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# Last on the path, so that what is installed here comes first.
echo "$base" > "$own/zz_base.pth"
read -ra pins <<< "${PINS:-}"
"$env/bin/python" -m pip install --quiet --upgrade pip
"$env/bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[dev]" ${pins[@]+"${pins[@]}"}
echo "other than in constraints.txt:"
"$env/bin/python" - << 'EOF'
import importlib.metadata
from pathlib import Path

lines = [line.split("==") for line in Path("constraints.txt").read_text().split() if "==" in line]
for name, pinned in lines:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    if found != pinned:
        print(f"  {name} {found} (constraints: {pinned})")
EOF
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
workers="${TEST_WORKERS:-$("$env/bin/python" -c 'import os; print(min(4, os.cpu_count() or 1))')}"
status=0
"$env/bin/python" -m pytest -q -n "$workers" --dist loadfile -m "not full and not gpu and not long" "$@" || status=$?
out="$(mktemp -d)"
"$env/bin/python" -m vlm_mhpo.cli quickstart "train.max_steps=5" "output_dir=$out" || status=$?
rm -r "$out"
exit "$status"
