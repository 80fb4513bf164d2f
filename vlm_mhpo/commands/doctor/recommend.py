"""Which setting to take on a device of some size, how much of a rollout is then decoded at a time, and what cannot be.

The lowest stage that fits gathers least; offload costs more than any stage. In bfloat16 only stages that add gradients
in float32 are recommended.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_mhpo.commands.doctor.check import Check, in_gib
from vlm_mhpo.commands.doctor.memory import (
    BYTES,
    Estimate,
    estimate,
    fits,
    name_of,
    num_rows_of,
    settings,
    tokens_of_a_step,
    usable,
)
from vlm_mhpo.commands.doctor.shapes import Shapes
from vlm_mhpo.config import Config
from vlm_mhpo.engine.settings import adds_in_float32
from vlm_mhpo.models.families import FAMILIES
from vlm_mhpo.models.tiny import tiny_family
from vlm_mhpo.rollout.hf.budget import tokens_that_fit

# Of a device; whole weights that take more leave a rollout little to decode with.
MUCH = 0.5
WAY_OUT = "the way out is sampling by vLLM servers (rollout.engine=vllm, docs/rollouts.md), or a smaller model"


def recommend(
    config: Config, shapes: Shapes, *, stage: int, num_ranks: int, device_bytes: float | None
) -> Iterator[Check]:
    """The setting for this configuration on devices of this size; arguments as in `memory.examine_memory`."""
    yield from _examine_budget(config, shapes)
    if device_bytes is None:
        return
    mine = (stage, (config.deepspeed.offload_optimizer, config.deepspeed.offload_param))
    found = {
        each: estimate(config, shapes, stage=each[0], num_ranks=num_ranks, offload=each[1])
        for each in sorted(
            settings(quantised=bool(config.model.quantization)), key=lambda each: (sum(each[1]), each[0])
        )
        if config.model.dtype == "float32" or adds_in_float32(each[0])
    }
    if config.rollout.engine == "hf":
        yield from _examine_sampling(config, shapes, list(found.values()), device_bytes)
    best = next((each for each in found if fits(found[each], device_bytes)), None)
    if best is None:
        return
    text = name_of(*best)
    if config.rollout.engine == "hf":
        text += f", {_at_a_time(config, shapes, found[best], num_ranks, device_bytes)}"
    needless = mine in found and list(found).index(best) < list(found).index(mine)
    if needless:
        text += f"; {name_of(*mine)}, which is set, gathers or moves more than it must"
    yield Check("warning" if needless else "ok", "recommended", text)


def _at_a_time(config: Config, shapes: Shapes, found: Estimate, num_ranks: int, device_bytes: float) -> str:
    """What rollout.max_batch_tokens=auto comes to."""
    free = usable(device_bytes) - (found.rollout - found.cache)
    tokens = min(tokens_that_fit(free, shapes.cache_bytes), tokens_of_a_step(config, num_ranks))
    completions = config.train.num_prompts_per_step // num_ranks * config.rollout.num_generations
    rows = min(completions, num_rows_of(config, tokens))
    return (
        f"with rollout.max_batch_tokens=auto of about {tokens:,} tokens: {rows} of a rank's {completions} completions "
        "are decoded at a time"
    )


def _examine_budget(config: Config, shapes: Shapes) -> Iterator[Check]:
    """Whether answers of the family's models fit the budget of a completion."""
    family, given = FAMILIES.get(shapes.model_type), config.rollout.max_completion_length
    needed = family.answer_tokens if family else 0
    if given < needed and not tiny_family(config.model.path):
        text = f"{given} tokens, and answers of {shapes.model_type} models need {needed}: many are cut and count as "
        yield Check("warning", "completion budget", f"{text}wrong; raise rollout.max_completion_length")


def _examine_sampling(config: Config, shapes: Shapes, every: list[Estimate], device_bytes: float) -> Iterator[Check]:
    """Whether a rollout, which needs the whole weights on each device, is possible at all."""
    whole = BYTES[config.model.dtype] * shapes.num_parameters
    text = f"a rollout holds the whole weights on each device, {in_gib(whole)} of {in_gib(device_bytes)}"
    if all(found.rollout > usable(device_bytes) for found in every):
        yield Check("error", "sampling", f"{text}, and no setting leaves room for the rest; {WAY_OUT}")
    elif whole > MUCH * device_bytes:
        yield Check("warning", "sampling", f"{text}, which leaves little to decode with; {WAY_OUT}")
