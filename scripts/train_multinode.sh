#!/usr/bin/env bash
# RL fine-tuning on several hosts; started on each of them with the same arguments. docs/nodes.md says what they must share.
# Usage: NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST_OF_RANK_0 [MASTER_PORT=29500] [NPROC=8] scripts/train_multinode.sh CONFIG [key.sub=value ...]
# As a task of Slurm, one a node, it reads the first four from Slurm's variables. COMMAND=sft or evaluate runs those.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: NNODES=N NODE_RANK=R MASTER_ADDR=HOST $0 CONFIG [key.sub=value ...]" >&2; exit 2; }
NNODES="${NNODES:-${SLURM_JOB_NUM_NODES:-}}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-}}"
if [ -z "${MASTER_ADDR:-}" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
fi
# Another one for each job: two may share a host.
[ -z "${SLURM_JOB_ID:-}" ] || MASTER_PORT="${MASTER_PORT:-$(( 20000 + SLURM_JOB_ID % 9000 ))}"
MASTER_PORT="${MASTER_PORT:-29500}"
for name in NNODES NODE_RANK MASTER_ADDR; do
    [ -n "${!name:-}" ] || { echo "error: $name is not set: set NNODES, NODE_RANK and MASTER_ADDR, or run this under srun" >&2; exit 2; }
done
# On a shared folder one host installs, and the others find it done.
mkdir -p .venv
( if command -v flock > /dev/null; then flock 9 || true; fi; bash scripts/setup.sh ) 9> .venv/.lock
. scripts/ranks.sh
exec .venv/bin/torchrun --nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
    --nproc_per_node "$nproc" -m vlm_mhpo.cli "${COMMAND:-train}" "$@"
