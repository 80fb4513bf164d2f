#!/usr/bin/env bash
# What no CPU can show, on one GPU with 80 GB in at most ten minutes: environment, tests/gpu, speed against TRL, the
# sampler, a learning run. docs/speed.md says what each step measures; report.py makes the table of that page.
#
# Usage: measurements/gpu/run.sh [--trial] [--out FOLDER] [--steps NAME[:SECONDS] ...]
#   --trial   the same steps on any machine, with two layers and a few tokens: it shows that they run, and no figure
#   --out     for the JSON of each step, summary.json and log.txt; default: $OUT, else runs/gpu
#   --steps   of environment tests speed sampling learning; default: all, with their own limits (560 s)
# PYTHON names the interpreter (default python3), which brings PyTorch. The wheels that pack.sh made are installed into
# a folder that is removed at the end; without them what is installed already must do.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3} out=${OUT:-runs/gpu} given=()
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=${2:?--out needs a folder} && shift 2 ;;
        *) given+=("$1") && shift ;;
    esac
done
wheels=(measurements/gpu/wheels/*.whl)
if [ -e "${wheels[0]}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    timeout 40 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        "${wheels[@]}"
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
else
    echo "no wheels in measurements/gpu/wheels (pack.sh makes them): going on with what is installed" >&2
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
"$python" measurements/gpu/steps.py --out "$out" "${given[@]}"
