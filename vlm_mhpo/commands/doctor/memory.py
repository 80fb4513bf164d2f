"""What a rank needs of its device's memory under each ZeRO stage, by arithmetic on shapes.

Model states are those of DeepSpeed with AdamW: weights in the model's type, gradients in it under ZeRO-0 and 1 and in
float32 under 2 and 3, and in float32 a master copy, two moments and a copy of the gradient while it steps (not under
ZeRO-2, which steps with the sum itself); what a stage partitions is divided by the ranks. (DeepSpeed's own estimator
takes gradients in the model's type, and none under ZeRO-3.) Activations are what autograd keeps of transformers'
layers, counted operation by operation, for a micro-batch of full length.

Not covered: the CUDA context (about 0.5 GiB), fragmentation, gradients of activations in flight, the prefill of a
rollout, NVMe offload, your own DeepSpeed file but for its stage. So leave a tenth free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from vlm_mhpo.commands.doctor.check import GIB, Check, in_gib
from vlm_mhpo.commands.doctor.shapes import Shapes, shapes_of
from vlm_mhpo.config import Config, LoraConfig
from vlm_mhpo.engine.settings import adds_in_float32
from vlm_mhpo.models.families.costs import Stack
from vlm_mhpo.models.quantization import BYTES as QUANTISED

BYTES = {"float32": 4, "bfloat16": 2}
FLOAT32 = 4
ADAM_MOMENTS = 2 * FLOAT32
# In 8 bits; a scale for each 256 of them does not count.
SMALL_MOMENTS = 2
# DeepSpeed's default, elements; one flat buffer, however small the model (a CPU never touches most of it). A bfloat16
# model's ranks add in float32, in a bucket of half as many.
REDUCE_BUCKET = 500_000_000
# DeepSpeed steps ZeRO-3 in groups of this many weights.
SUB_GROUP = 1_000_000_000
FREE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class ModelStates:
    """Bytes of a rank; `gathered`: what ZeRO-3 puts together for one module; `host`: in host memory."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    host: float

    @property
    def device(self) -> float:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.gathered


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of a rank at the peaks of an update and of a rollout."""

    states: ModelStates
    reference: float
    bucket: float
    activations: float
    logits: float
    whole_weights: float
    cache: float

    @property
    def update_parts(self) -> dict[str, float]:
        """In backward of the largest micro-batch."""
        return {
            "weights": self.states.weights + self.states.gathered,
            "gradients": self.states.gradients,
            "optimizer": self.states.optimizer,
            "reference policy": self.reference,
            "communication bucket": self.bucket,
            "activations": self.activations,
            "logits": self.logits,
        }

    @property
    def rollout_parts(self) -> dict[str, float]:
        """At the end of decoding; there are no gradients, and ZeRO-3 has gathered the weights."""
        return {
            "weights": self.states.weights + self.whole_weights,
            "optimizer": self.states.optimizer,
            "reference policy": self.reference,
            "attention cache": self.cache,
        }

    @property
    def update(self) -> float:
        """Sum of the parts."""
        return sum(self.update_parts.values())

    @property
    def rollout(self) -> float:
        """Sum of the parts."""
        return sum(self.rollout_parts.values())

    @property
    def peak(self) -> float:
        """The larger of both."""
        return max(self.update, self.rollout)


def model_states(
    num_parameters: int,
    num_trained: int,
    largest_module: int,
    *,
    stage: int,
    num_ranks: int,
    dtype: str,
    offload_optimizer: bool = False,
    offload_param: bool = False,
    quantised: tuple[int, float] = (0, 0.0),
    moments: int = ADAM_MOMENTS,
) -> ModelStates:
    """Weights, gradients and optimizer state of a rank; see the top of this file.

    Args:
        quantised: how many of the parameters have how many bytes each.
        moments: bytes of Adam's two moments of a weight.
    """
    width = BYTES[dtype]
    # Without ZeRO a float32 model needs neither a master copy nor a copy of its gradients.
    has_master = stage > 0 or dtype == "bfloat16"
    share = 1 / num_ranks if stage else 1.0
    num_small, small_width = quantised
    weights = (width * (num_parameters - num_small) + small_width * num_small) * (share if stage == 3 else 1.0)
    gradients = FLOAT32 * num_trained * share if adds_in_float32(stage) else width * num_trained
    stepping = FLOAT32 * num_trained * share * has_master
    if stage == 2 and dtype == "bfloat16":
        stepping = 0.0
    if stage == 3:
        stepping = min(stepping, FLOAT32 * SUB_GROUP)
    optimizer = (FLOAT32 * has_master + moments) * num_trained * share
    gathered = 2 * width * largest_module if stage == 3 else 0.0
    if num_small:
        # A quantised matrix is widened for its product.
        gathered = float(width * largest_module)
    host = 0.0
    if offload_optimizer:
        host += optimizer + FLOAT32 * num_trained * share
        optimizer, stepping = 0.0, 0.0
        if stage == 3:
            # Sums and all on the host.
            host, gradients = host + gradients, 0.0
        elif stage == 2 and dtype == "float32":
            # Moved to the host as soon as they are reduced; in bfloat16 they are added on the device.
            gradients = 0.0
    if offload_param:
        host, weights = host + weights, 0.0
    return ModelStates(weights, gradients + stepping, optimizer, gathered, host)


def activation_bytes(layers: Stack, num_tokens: int, *, dtype: str, checkpointing: bool) -> float:
    """What a stack of layers keeps for backward: every layer's operations, or its inputs and one layer's operations."""
    width = BYTES[dtype]
    # RMSNorm keeps its input in float32, the normalised states and its output; two a layer.
    norms = 2 * (FLOAT32 + 2 * width) * layers.hidden
    # Query, key and value repeated to all heads, the mixture and its contiguous copy; one float32 a head.
    attention = 5 * width * layers.query + FLOAT32 * layers.num_heads
    # Gate, its activation, up and their product.
    mlp = 4 * width * layers.intermediate
    one_layer = norms + attention + mlp
    if not checkpointing:
        return float(num_tokens * layers.num_layers * one_layer)
    return float(num_tokens * (layers.num_layers * width * layers.hidden + one_layer))


def estimate(config: Config, shapes: Shapes, *, stage: int, num_ranks: int, offload: tuple[bool, bool]) -> Estimate:
    """The estimate of a configuration under some stage; `offload`: optimizer, weights."""
    dtype, width = config.model.dtype, BYTES[config.model.dtype]
    states = model_states(
        shapes.num_parameters,
        shapes.num_trained,
        shapes.largest_module,
        stage=stage,
        num_ranks=num_ranks,
        dtype=dtype,
        offload_optimizer=offload[0],
        offload_param=offload[1],
        quantised=(shapes.num_quantised, QUANTISED[config.model.quantization] if config.model.quantization else 0.0),
        moments=SMALL_MOMENTS if config.train.optimizer == "adamw_8bit" else ADAM_MOMENTS,
    )
    weights = width * shapes.num_parameters
    samples_here = config.rollout.engine == "hf"
    # Servers sample, but features of a frozen tower are made here, with whole weights.
    gathers = samples_here or (shapes.vision is not None and not shapes.vision_trained)
    # The reference of adapters is their base, which is here already.
    holds_reference = config.objective.beta and not config.model.lora
    reference = (weights / num_ranks if stage == 3 else weights) if holds_reference else 0.0
    return Estimate(
        states=states,
        reference=reference,
        bucket=float(width * REDUCE_BUCKET) if stage else 0.0,
        activations=_micro_batch_bytes(config, shapes),
        logits=_chunk_bytes(config, shapes),
        whole_weights=weights if stage == 3 and gathers else 0.0,
        cache=_cache_bytes(config, shapes, num_ranks) if samples_here else 0.0,
    )


def _micro_batch_bytes(config: Config, shapes: Shapes) -> float:
    """Activations of the largest micro-batch: packed groups of full length, prompts as much image as allowed."""
    dtype, width = config.model.dtype, BYTES[config.model.dtype]
    checkpointing = config.model.gradient_checkpointing
    prompt, completion = config.data.max_prompt_length, config.rollout.max_completion_length
    most = config.train.max_tokens_per_micro_batch
    # A group that does not fit is cut; a single completion goes in whole.
    row = min(prompt + config.rollout.num_generations * completion, max(most, prompt + completion))
    num_rows = max(1, most // row)
    total = activation_bytes(shapes.text, num_rows * row, dtype=dtype, checkpointing=checkpointing)
    if shapes.sees_by_masks:
        # Distances in int32, and booleans of all that is seen, of the window, and of both.
        total += num_rows * row**2 * (4 + 3)
    if config.model.attn_implementation == "eager":
        # The mask as booleans, and as the numbers that attention adds; wide rows have none otherwise.
        total += num_rows * row**2 * (1 + width)
        kept = 1 if checkpointing else shapes.text.num_layers
        total += num_rows * row**2 * shapes.text.num_heads * (FLOAT32 + 2 * width) * kept
    if shapes.vision and shapes.vision_trained:
        image = prompt
        if config.model.max_pixels:
            image = min(prompt, config.model.max_pixels // shapes.vision.pixels_per_token)
        patches = num_rows * image * shapes.vision.patches_per_token
        total += activation_bytes(shapes.vision, patches, dtype=dtype, checkpointing=checkpointing)
    return float(total)


def _chunk_bytes(config: Config, shapes: Shapes) -> float:
    """Logits of one chunk in backward: in float32, and their gradient in the weights' type where that is another."""
    size = min(config.train.logits_chunk_size, config.train.max_tokens_per_micro_batch)
    width = BYTES[config.model.dtype]
    return float(size * shapes.vocabulary * (FLOAT32 + (width if width != FLOAT32 else 0)))


def tokens_of_a_step(config: Config, num_ranks: int) -> int:
    """Tokens in the cache of a rank that decodes all its completions of a step at once, each to its full budget."""
    groups = max(1, config.train.num_prompts_per_step // num_ranks)
    return groups * _group_tokens(config)


def _group_tokens(config: Config) -> int:
    return config.data.max_prompt_length + config.rollout.num_generations * config.rollout.max_completion_length


def num_rows_of(config: Config, tokens: int) -> int:
    """Completions that are decoded at a time when the cache may hold so many tokens."""
    return max(1, config.rollout.num_generations * tokens // _group_tokens(config))


def _cache_bytes(config: Config, shapes: Shapes, num_ranks: int) -> float:
    """Keys (float32) and values of what is decoded together, and its logits (float32 thrice, float64 twice).

    A recurrent layer keeps a state of each row, and of its prompt, which has one row at least.

    "auto" takes what is free; here it counts as the prompt and the completions of one group.
    """
    rollout = config.rollout
    most = _group_tokens(config) if rollout.max_batch_tokens == "auto" else rollout.max_batch_tokens
    tokens = min(most, tokens_of_a_step(config, num_ranks))
    tokens = max(tokens, config.data.max_prompt_length + rollout.max_completion_length)
    logits = shapes.vocabulary * (3 * FLOAT32 + 2 * 8)
    return float(tokens * shapes.cache_bytes + num_rows_of(config, tokens) * (logits + 2 * shapes.state_bytes))


def examine_memory(
    config: Config, shapes: Shapes, *, stage: int, num_ranks: int, device_bytes: float | None
) -> Iterator[Check]:
    """The configured setting in detail, whether it fits, and every other setting in a line each.

    Args:
        config, shapes: of the run.
        stage: ZeRO stage that is really used; a user's DeepSpeed file may set it.
        num_ranks: processes, one a device.
        device_bytes: memory of a device; None = unknown, nothing is judged.
    """
    chosen = (stage, (config.deepspeed.offload_optimizer, config.deepspeed.offload_param))
    counted = f"{shapes.num_parameters:,} in {shapes.model_type}, {shapes.num_trained:,} of them trained"
    yield Check("ok", "parameters", counted)
    mine = estimate(config, shapes, stage=chosen[0], num_ranks=num_ranks, offload=chosen[1])
    yield from judge(config, mine, name_of(*chosen), num_ranks, device_bytes)
    for other in settings(quantised=bool(config.model.quantization)):
        if other != chosen:
            found = estimate(config, shapes, stage=other[0], num_ranks=num_ranks, offload=other[1])
            verdict = "" if device_bytes is None else ", fits" if fits(found, device_bytes) else ", does not fit"
            host = f", {in_gib(found.states.host)} of host memory" if found.states.host else ""
            peaks = f"update {in_gib(found.update)}, rollout {in_gib(found.rollout)}"
            yield Check("ok", f"instead: {name_of(*other)}", f"{peaks}{host}{verdict}")


def with_or_without_adapters(config: Config, *, stage: int, num_ranks: int, device_bytes: float | None) -> Check:
    """The same run with all weights in the place of adapters, or the other way round; arguments as above."""
    chosen = (stage, (config.deepspeed.offload_optimizer, config.deepspeed.offload_param))
    given = config.model
    name, changes = "model.lora={r: 16}", {"lora": LoraConfig()}
    if given.lora:
        name, changes = "model.lora=null", {"lora": None, "quantization": None}
    model = given.model_copy(update=changes)
    config = config.model_copy(update={"model": model})
    found = estimate(config, shapes_of(model), stage=chosen[0], num_ranks=num_ranks, offload=chosen[1])
    verdict = "" if device_bytes is None else ", fits" if fits(found, device_bytes) else ", does not fit"
    peaks = f"update {in_gib(found.update)}, rollout {in_gib(found.rollout)}"
    return Check("ok", f"instead: {name}", f"{name_of(*chosen)}, {peaks}{verdict}")


def settings(*, quantised: bool = False) -> list[tuple[int, tuple[bool, bool]]]:
    """Every allowed stage with (optimizer, weights) in host memory or not; quantised weights are never cut."""
    return [
        (stage, (optimizer, weights))
        for stage, optimizer, weights in product(range(3 if quantised else 4), (False, True), (False, True))
        if not (optimizer and stage == 0) and not (weights and stage < 3) and not (weights and not optimizer)
    ]


def name_of(stage: int, offload: tuple[bool, bool]) -> str:
    """ZeRO-3 + offload of optimizer and weights."""
    parts = [name for name, is_on in zip(("optimizer", "weights"), offload, strict=True) if is_on]
    return f"ZeRO-{stage}" + (f", offload of {' and '.join(parts)}" if parts else "")


def usable(device_bytes: float) -> float:
    """Of a device, with a tenth left free."""
    return (1 - FREE_SHARE) * device_bytes


def fits(found: Estimate, device_bytes: float) -> bool:
    """Update and rollout fit in what is usable."""
    return found.peak <= usable(device_bytes)


def judge(config: Config, found: Estimate, name: str, num_ranks: int, device_bytes: float | None) -> Iterator[Check]:
    """The peaks of update and rollout with their parts; an error when more than the device has."""
    for phase, pieces in (("update", found.update_parts), ("rollout", found.rollout_parts)):
        total = sum(pieces.values())
        listed = ", ".join(f"{piece} {in_gib(size)}" for piece, size in pieces.items() if size)
        text = f"{name} on {num_ranks} rank(s): {in_gib(total)} a rank ({listed})"
        state = "ok"
        if device_bytes is not None and total > usable(device_bytes):
            state = "error" if total > device_bytes else "warning"
            text += f", and a device has {in_gib(device_bytes)}: {advice(config, phase, pieces)}"
        yield Check(state, f"memory of {phase}", text)
    if host := found.states.host:
        yield Check("ok", "host memory", f"{in_gib(host)} a rank, {in_gib(num_ranks * host)} in all")


def advice(config: Config, phase: str, pieces: dict[str, float]) -> str:
    """What to lower first, by the largest part that can be lowered."""
    stage = config.deepspeed.zero_stage
    lower_states = (
        f"set deepspeed.zero_stage={min(3, stage + 1)} or use more ranks"
        if stage < 3
        else "use more ranks, or deepspeed.offload_optimizer=true"
    )
    activations = f"lower train.max_tokens_per_micro_batch={config.train.max_tokens_per_micro_batch}"
    if not config.model.gradient_checkpointing:
        activations = "set model.gradient_checkpointing=true"
    cures = {
        "activations": activations,
        "logits": f"lower train.logits_chunk_size={config.train.logits_chunk_size}",
        "attention cache": f"lower rollout.max_batch_tokens={config.rollout.max_batch_tokens}"
        if config.rollout.max_batch_tokens != "auto"
        else f"lower rollout.max_completion_length={config.rollout.max_completion_length}",
        "optimizer": lower_states,
        "gradients": lower_states,
        "weights": lower_states
        if phase == "update"
        else "use a smaller model: sampling needs whole weights on each rank",
        "reference policy": "set objective.beta=0",
    }
    order = sorted((piece for piece in pieces if piece in cures), key=lambda piece: -pieces[piece])
    return ", then ".join(dict.fromkeys(cures[piece] for piece in order[:2]))


def device_memory(gpu_memory_gb: float | None) -> float | None:
    """Bytes of one device: as given, else of the first GPU, else None."""
    import torch

    if gpu_memory_gb is not None:
        return gpu_memory_gb * GIB
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
