"""What a step of a benchmark asks for in FLOPs, and the matmul rate of the device; over a time they are utilisation.

FLOPs are those of the mathematics (`commands.profiling.flops`): each prompt once, no padding, nothing computed twice.
Both sides of a benchmark are held to the same number, whatever they compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from side_by_side import CONFIG, Shape


def step_flops(shape: Shape, overrides: Sequence[str], mean_length: float) -> tuple[float, float]:
    """(model FLOPs of a step, FLOPs a second of a large matrix product in the step's dtype); loads the model."""
    from vlm_mhpo.commands.profiling.flops import Work, model_flops, parts_of, sampling_work, training_work
    from vlm_mhpo.commands.profiling.rate import matmul_rate
    from vlm_mhpo.config import load_config
    from vlm_mhpo.models.loading import DTYPES, load_policy
    from vlm_mhpo.prompts.builder import prompt_builder
    from vlm_mhpo.prompts.rows import read_rows
    from vlm_mhpo.runtime import ranks

    config = load_config(CONFIG, list(overrides))
    ranks.start(config.num_threads)
    rate = matmul_rate(ranks.device(), DTYPES[config.model.dtype])
    policy, codec = load_policy(**config.model.model_dump())
    build = prompt_builder(config.data, codec, policy.family)
    rows = read_rows(config.data.train, config.data, config.data.train_split, shape.num_prompts)
    lengths = [round(mean_length)] * shape.num_generations
    sampling = training = Work()
    for prompt in map(build, rows):
        seen = policy.family.vision.work(policy.model, prompt.media)
        sampling += sampling_work(prompt.num_tokens, lengths) + seen
        training += training_work(prompt.num_tokens, lengths) + seen
    parts = parts_of(policy)
    flops = model_flops(parts, sampling, backward=False) + model_flops(parts, training, backward=True)
    if config.rollout.old_log_probs == "trainer":
        flops += model_flops(parts, training, backward=False)
    return flops, rate
