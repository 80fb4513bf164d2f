"""Made-up runs: measures, run folders, and a program that stands in for the training command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm_mhpo.commands.study.variants import Variant
from vlm_mhpo.records.study import RunMeasures

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"
MHPO = Variant("mhpo", ("objective.name=mhpo",))
GRPO = Variant("grpo", ("objective.name=grpo",))


def run_with(**changes: object) -> RunMeasures:
    """A plain run with some measures changed."""
    values = {
        "accuracy_before": 0.25,
        "accuracy": 0.5,
        "area": 0.375,
        "norm_ratio": 2.0,
        "norm_median": 0.5,
        "num_spikes": 1.0,
        "clipped_share": 0.125,
        "drift": 0.001,
        "entropy": 1.5,
        "collapsed": 0.0,
        "curve": ((0, 0.25), (4, 0.5)),
    }
    return RunMeasures(**(values | changes))


def write_run(
    folder: Path,
    *,
    norms: Sequence[Sequence[float]],
    drifts: Sequence[Sequence[float]] | None = None,
    accuracies: dict[int, float],
    entropies: Sequence[float] | None = None,
    skipped: Sequence[float] | None = None,
    max_grad_norm: float = 1.0,
) -> Path:
    """The records of a run of `len(norms)` steps, in the format of the recorder."""
    steps = range(1, len(norms) + 1)
    rows = [{"step": 0, "eval/accuracy": accuracies[0]}] if 0 in accuracies else []
    for step in steps:
        row = {"step": step, "reward": 0.5, "num_skipped_updates": skipped[step - 1] if skipped else 0.0}
        if entropies:
            row["entropy"] = entropies[step - 1]
        if step in accuracies:
            row["eval/accuracy"] = accuracies[step]
        rows.append(row)
    drifts = drifts or [[0.0] * len(row) for row in norms]
    updates = [
        {"step": step, "grad_norm": list(norms[step - 1]), "kl_to_sampler": list(drifts[step - 1])} for step in steps
    ]
    (folder / "eval").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": {"train": {"max_grad_norm": max_grad_norm}}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in updates))
    (folder / "eval" / "after.json").write_text(json.dumps({"step": len(norms), "accuracy": rows[-1]["eval/accuracy"]}))
    return folder


# Called as the interpreter would be: STUB -m vlm_mhpo.cli train CONFIG OVERRIDES. Its accuracy is 0.5 + seed / 16 for
# mhpo and 0.25 + seed / 16 otherwise. `trouble` names runs that fail, and runs that wait for another to end.
STUB = """#!{python} -IS
import json, os, sys
here = os.path.dirname(sys.argv[0])
given = dict(text.split("=", 1) for text in sys.argv[5:])
name, seed, out = given["objective.name"], int(given["seed"]), given["output_dir"]
with open(os.path.join(here, "starts"), "a") as stream:
    stream.write(json.dumps([sys.argv[1:4], name, seed, os.environ.get("OMP_NUM_THREADS"), given]) + "\\n")
trouble = json.load(open(os.path.join(here, "trouble")))
key = name + str(seed)
if key in trouble["waits"]:
    open(os.path.join(here, trouble["waits"][key])).read()
if key in trouble["fails"]:
    sys.stderr.buffer.write(b"\\xff\\xfe the GPU is on fire\\n")
    sys.exit(7)
accuracy = (0.5 if name == "mhpo" else 0.25) + seed / 16
os.makedirs(out + "/eval", exist_ok=True)
rows = [{{"step": 0, "eval/accuracy": 0.25}},
        {{"step": 1, "reward": 0.1, "entropy": 1.0, "num_skipped_updates": 0.0, "eval/accuracy": accuracy}}]
open(out + "/metrics.jsonl", "w").write("".join(json.dumps(row) + "\\n" for row in rows))
open(out + "/updates.jsonl", "w").write(json.dumps({{"step": 1, "grad_norm": [1.0, 2.0], "kl_to_sampler": [0.0, 0.5]}}))
open(out + "/run.json", "w").write(json.dumps({{"config": {{"train": {{"max_grad_norm": 1.5}}}}}}))
open(out + "/eval/after.json", "w").write(json.dumps({{"step": 1, "accuracy": accuracy}}))
if key in trouble["releases"]:
    open(os.path.join(here, trouble["releases"][key]), "w").close()
"""


class Trainer:
    """The stand-in for the training command; `starts` is what was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "python"
        self.program.write_text(STUB.format(python=sys.executable))
        self.program.chmod(0o755)
        self.set()

    def set(self, fails: Sequence[str] = (), waits: dict | None = None, releases: dict | None = None) -> None:
        """Runs that fail; runs that wait for a fifo; runs that release one."""
        trouble = {"fails": list(fails), "waits": waits or {}, "releases": releases or {}}
        (self.folder / "trouble").write_text(json.dumps(trouble))

    @property
    def records(self) -> list[list]:
        """[interpreter arguments, objective, seed, threads, overrides] of every start."""
        file = self.folder / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def starts(self) -> list[tuple[str, int]]:
        """(objective, seed) of every start."""
        return [(record[1], record[2]) for record in self.records]
