#!/usr/bin/env bash
# RL fine-tuning on one host. Usage: [NPROC=8] scripts/train.sh CONFIG [key.sub=value ...]
# NPROC defaults to the number of GPUs, or 1 without any. Run the same command again to continue after an interruption.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: [NPROC=N] $0 CONFIG [key.sub=value ...]" >&2; exit 2; }
bash scripts/setup.sh
. scripts/ranks.sh
exec .venv/bin/torchrun --standalone --nproc_per_node "$nproc" -m vlm_mhpo.cli train "$@"
