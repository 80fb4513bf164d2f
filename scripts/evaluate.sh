#!/usr/bin/env bash
# Accuracy on data.eval, or on benchmarks: [NPROC=8] scripts/evaluate.sh --model RUN_OR_MODEL --benchmarks NAMES --out DIR
# Usage on data.eval: [NPROC=8] scripts/evaluate.sh CONFIG [--model RUN_OR_MODEL] [--out DIR] [key.sub=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: [NPROC=N] $0 CONFIG [--model RUN_OR_MODEL] [--out DIR] [key.sub=value ...]" >&2; exit 2; }
bash scripts/setup.sh
. scripts/ranks.sh
exec .venv/bin/torchrun --standalone --nproc_per_node "$nproc" -m vlm_mhpo.cli evaluate "$@"
