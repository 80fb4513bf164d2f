#!/usr/bin/env bash
# Every default test: the fast lane and the full lane (ranks, DeepSpeed, whole runs). Usage: scripts/test.sh [pytest args]
# LANE=fast runs the fast lane alone, LANE=long the soak tests and every property with new draws (an hour or so).
# TEST_WORKERS (default: the cores, at most 4) processes share the test files.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
lane="not gpu and not long"
[ "${LANE:-}" = fast ] && lane="not full and not gpu and not long"
[ "${LANE:-}" = long ] && lane="(long or hypothesis) and not gpu"
cores="$(.venv/bin/python -c 'import os; print(min(4, os.cpu_count() or 1))')"
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-$cores}" --dist loadfile -m "$lane" "$@"
