#!/usr/bin/env bash
# What takes too long for every change: all default tests three times in shuffled order, the lines that the fast lane
# covers, and the long lane (random kills, 200,000 hostile texts, every property with new draws). Two hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[soak]"
for seed in ${SEEDS:-1 2 3}; do
    bash scripts/test.sh -q --random-order --random-order-seed="$seed"
done
LANE=fast bash scripts/test.sh -q --cov --cov-report=term
LANE=long bash scripts/test.sh -q
