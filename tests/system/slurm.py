"""What stands in for Slurm: `srun` starts a task a node and hands signals on, `scontrol` takes notes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.system.nodes import DEVICE, node_environment
from tests.system.ranks import free_port

SRUN = f"""#!{sys.executable}
import json, os, pathlib, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    del command[0]
logs, nodes = pathlib.Path(os.environ["LOGS"]), []
signal.signal(signal.SIGUSR1, lambda *_: [node.send_signal(signal.SIGUSR1) for node in nodes])
for number, prefix in enumerate(json.loads(os.environ["PREFIXES"])):
    out, err = ((logs / f"node{{number}}.{{name}}").open("a") for name in ("out", "err"))
    env = os.environ | {{"SLURM_NODEID": str(number)}}
    nodes.append(subprocess.Popen([*prefix, *command], env=env, stdout=out, stderr=err))
sys.exit(max(abs(node.wait()) for node in nodes))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$LOGS/scontrol"
[ "$1" != show ] || printf '%s\\nnode1\\n' "$FIRST_NODE"
"""


def submit(
    folder: Path, source: Path, nodes: Sequence[tuple[list[str], str]], arguments: Sequence[str], **env: str
) -> subprocess.Popen:
    """Start the batch script as Slurm does: a copy of it, elsewhere, with the folder where it was submitted.

    Args:
        folder: of the logs: batch.log, nodeN.out, nodeN.err, scontrol.
        source: see `nodes.source_at`.
        nodes: see `nodes.own_networks`.
        arguments: of the script.
        env: more environment variables.
    """
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    # The launcher takes its port from the number of the job.
    port = next(port for port in iter(free_port, None) if port < 29_000)
    job = {"SLURM_JOB_ID": str(port - 20_000), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    stand_in = {"PREFIXES": json.dumps([prefix for prefix, _ in nodes]), "FIRST_NODE": nodes[0][1], "LOGS": str(folder)}
    if nodes[0][0]:
        # gloo would look for the address of the machine's name.
        stand_in["GLOO_SOCKET_IFNAME"] = DEVICE
    surroundings = node_environment(**job, **stand_in, SLURM_SUBMIT_DIR=str(source), **env)
    surroundings["PATH"] = f"{folder / 'bin'}:{surroundings['PATH']}"
    script = folder / "slurm_script"
    script.write_text((source / "scripts" / "train.slurm").read_text())
    with (folder / "batch.log").open("a") as log:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def logs_of(folder: Path) -> str:
    """The ends of all logs."""
    return "\n".join(file.read_text()[-3000:] for file in (folder / "batch.log", *sorted(folder.glob("node*"))))
