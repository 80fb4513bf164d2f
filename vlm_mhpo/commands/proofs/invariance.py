"""Is the gradient of this configuration's objective the same however a global batch is cut up and shared?

The gradient is read from one optimizer step: AdamW with a huge epsilon moves every weight in proportion to its
gradient, and with a huge learning rate so far that the weight it started from does not round it. So what is compared
has passed packing, micro-batches, reduction over ranks and ZeRO, as in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.commands.proofs.launch import PROGRAM, run_or_fail
from vlm_mhpo.commands.proofs.shrink import shrink, write_config
from vlm_mhpo.config import Config
from vlm_mhpo.models.tiny import SCHEME, build_tiny

LIMIT = 1e-5
EVERYTHING = 1_000_000
PROPORTIONAL = {"learning_rate": 1e10, "adam_epsilon": 1e6, "weight_decay": 0.0, "max_grad_norm": 1e30}
# A weight tensor whose gradient is smaller than this share of the whole is measured by that share: a key's bias has a
# gradient of almost nothing but rounding.
LEAST_SHARE = 0.01
REFERENCE = "one rank, ZeRO-0, one packed micro-batch, whole logits"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to the same gradient.

    Attributes:
        name: in the table.
        num_ranks, zero_stage: how it is shared.
        max_tokens: of a micro-batch; 0 = about two completions.
        chunk_size: tokens whose logits exist at once.
        packed: completions share their prompt.
        checkpointing: activations are computed again; None = as configured.
    """

    name: str
    num_ranks: int = 1
    zero_stage: int = 0
    max_tokens: int = EVERYTHING
    chunk_size: int = EVERYTHING
    packed: bool = True
    checkpointing: bool | None = None


def variants(config: Config, num_ranks: int) -> list[Variant]:
    """What is compared with the reference, which comes first."""
    other = not config.model.gradient_checkpointing
    return [
        Variant(REFERENCE),
        Variant("small micro-batches", max_tokens=0),
        Variant("one completion a row (no packing)", packed=False),
        Variant("logits in chunks of 3 tokens", chunk_size=3),
        Variant(f"gradient checkpointing {'on' if other else 'off'}", checkpointing=other),
        *(Variant(f"ZeRO-{stage} on 1 rank", zero_stage=stage) for stage in (1, 2, 3)),
        *(Variant(f"ZeRO-{stage} on {num_ranks} ranks", num_ranks, stage) for stage in range(4) if num_ranks > 1),
        *(
            Variant(f"ZeRO-{stage} on {num_ranks} ranks, small micro-batches", num_ranks, stage, 0, 3)
            for stage in ({2, 3} if num_ranks > 1 else ())
        ),
    ]


def check_invariance(
    config: Config,
    folder: Path,
    *,
    num_ranks: int = 2,
    family: str | None = None,
    planned: Sequence[Variant] | None = None,
    program: str = PROGRAM,
) -> list[Check]:
    """The gradient of one global batch of a tiny model under every variant, against the reference, in float32.

    Args:
        config: of the run that is asked about.
        folder: empty; for what the runs write.
        num_ranks: processes of the shared variants, on the CPU; 1 = none are shared.
        family: of the tiny model; None = that of the configuration.
        planned: the reference, on one rank, and what is compared with it; None = all of `variants`.
        program: what a rank runs.

    Raises:
        TrainingError: a run failed.
    """
    small, findings = shrink(config, folder, num_ranks=num_ranks, family=family)
    model = build_tiny(folder / "model", small.model.path.removeprefix(SCHEME))
    planned = planned or variants(config, num_ranks)
    for ranks in sorted({variant.num_ranks for variant in planned}):
        jobs = [
            _job_of(variant, f"variant{index}", small, model, folder)
            for index, variant in enumerate(planned)
            if variant.num_ranks == ranks
        ]
        request = folder / f"ranks{ranks}.json"
        request.write_text(json.dumps({"updates": jobs}))
        run_or_fail(request, folder / f"ranks{ranks}.log", num_ranks=ranks, program=program)
    start = load_file(folder / "start.safetensors")
    gradients = [steps_in(folder / f"variant{index}.safetensors", start) for index in range(len(planned))]
    return [*findings, *compare_gradients(planned, gradients)]


def _job_of(variant: Variant, name: str, small: Config, model: Path, folder: Path) -> dict[str, Any]:
    """What a rank is asked to do for a variant; see `checks.updates.run_update`."""
    checkpointing = small.model.gradient_checkpointing if variant.checkpointing is None else variant.checkpointing
    zero = {"zero_stage": variant.zero_stage, "offload_optimizer": False, "offload_param": False}
    settings = json.loads(Path(small.deepspeed.config).read_text())
    settings["zero_optimization"]["stage"] = variant.zero_stage
    own = folder / f"{name}_deepspeed.json"
    own.write_text(json.dumps(settings))
    update = {
        "model": small.model.model_copy(
            update={"path": str(model), "dtype": "float32", "gradient_checkpointing": checkpointing}
        ),
        "deepspeed": small.deepspeed.model_copy(update={**zero, "config": str(own)}),
        "train": small.train.model_copy(update={**PROPORTIONAL, "num_minibatches": 1, "num_iterations": 1}),
    }
    return {
        "config": str(write_config(small.model_copy(update=update), folder / f"{name}.yaml")),
        "completions": str(folder / "completions.json"),
        "start": str(folder / "start.safetensors"),
        "weights": str(folder / f"{name}.safetensors"),
        "max_tokens": variant.max_tokens,
        "chunk_size": variant.chunk_size,
        "packed": variant.packed,
    }


def steps_in(file: Path, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far each weight moved, float64: the gradient times a constant."""
    return {name: value.double() - start[name].double() for name, value in load_file(file).items()}


def compare_gradients(planned: Sequence[Variant], gradients: Sequence[dict[str, Tensor]]) -> list[Check]:
    """One line a variant: the largest relative difference over all weight tensors, and where it is."""
    reference = gradients[0]
    whole = float(torch.cat([value.flatten() for value in reference.values()]).norm())
    if not whole:
        return [Check("error", "reference", "the gradient is zero: nothing can be compared")]
    # The constant of proportion, so that the number is the gradient's.
    scale = PROPORTIONAL["learning_rate"] / PROPORTIONAL["adam_epsilon"]
    findings = [Check("ok", "reference", f"{planned[0].name}: gradient norm {whole / scale:.3e}, limit {LIMIT:g}")]
    for variant, gradient in zip(planned[1:], gradients[1:], strict=True):
        gap, name = _largest_gap(reference, gradient, whole)
        state = "ok" if gap <= LIMIT else "error"
        where = "" if state == "ok" else f" in {name}: the gradient depends on how the batch is cut or shared"
        findings.append(Check(state, variant.name, f"{gap:.1e}{where}"))
    return findings


def _largest_gap(reference: dict[str, Tensor], found: dict[str, Tensor], whole: float) -> tuple[float, str]:
    """The largest relative L2 difference of a weight tensor's gradient, and the tensor's name; inf where one lacks."""
    if reference.keys() != found.keys():
        return float("inf"), min(reference.keys() ^ found.keys())
    gaps = {
        name: float((found[name] - value).norm()) / max(float(value.norm()), LEAST_SHARE * whole)
        for name, value in reference.items()
    }
    name = max(gaps, key=lambda key: gaps[key] if gaps[key] == gaps[key] else float("inf"))
    return gaps[name], name
