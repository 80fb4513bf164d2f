"""Model FLOPs of sampling and training: what the mathematics asks for, from shapes and lengths alone.

A matrix of w weights that n things pass through costs 2 w n FLOPs forward (a multiplication and an addition a weight),
as many in backward for the gradient of its weights, and as many for the gradient of its input. Where everything is
trained that is the usual 6 x weights x tokens. Attention is a matrix product too: a query that sees a key costs two
products (scores, mixture) of heads x head width a layer, so it is written as 2 x width "weights" for each pair of a
query and a key that it sees. The whole is

    FLOPs = sum over parts of 2 x weights x things x (1 + backward)
    backward = 0 where no gradient passes, 1 + (trained weights / weights) where one does

with these parts and things: the text layers and their attention (tokens; causal pairs inside the prompt, inside each
completion, and from completion to prompt), the head (predicted tokens: only sampled ones have logits), and in the
vision tower the patch embedding, the blocks, their attention (patches; pairs inside an image or a window) and the
projectors (merged patches).

Padding, prompts that are computed more than once, finished rows that are still decoded and activations that gradient
checkpointing computes again are not asked for, so they count nothing: they lower the utilisation. The vision tower
counts as often as it ran. Not covered: norms, softmax, rotary positions, sampling, the optimizer (all without matrix
products), sliding windows in text attention, and that the first trained layer of a tower under a frozen part needs no
gradient of its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlm_mhpo.models.families.costs import Part, Work, head_shapes, matrices
from vlm_mhpo.models.policy import Policy


def model_flops(parts: Sequence[Part], work: Work, *, backward: bool) -> float:
    """FLOPs of `work`, forward alone or with backward; see the top of this file for the formula."""
    return float(
        sum(2 * part.weights * getattr(work, part.unit) * (1 + (part.backward if backward else 0)) for part in parts)
    )


def sampling_work(prompt_length: int, lengths: Iterable[int]) -> Work:
    """Work of one prompt and its completions when the prompt is run once; the last sampled token is never fed back."""
    total = _causal_prompt(prompt_length)
    for length in lengths:
        fed = length - 1
        total += Work(tokens=fed, pairs=fed * prompt_length + fed * (fed + 1) // 2, predictions=fed)
    return total + Work(predictions=1)


def training_work(prompt_length: int, lengths: Iterable[int]) -> Work:
    """Work of one forward over a prompt and its completions when they share the prompt."""
    total = _causal_prompt(prompt_length)
    for length in lengths:
        total += Work(tokens=length, pairs=length * prompt_length + length * (length + 1) // 2, predictions=length)
    return total


def _causal_prompt(length: int) -> Work:
    """Work of a prompt of which no logits are needed."""
    return Work(tokens=length, pairs=length * (length + 1) // 2)


def parts_of(policy: Policy) -> tuple[Part, ...]:
    """The parts of a policy, with the gradients that its `requires_grad` asks for."""
    model, family = policy.model, policy.family
    body = getattr(model.model, "language_model", None) or getattr(model.model, "text_model", model.model)
    config = model.config.get_text_config()
    attention = 2 * config.num_attention_heads * sum(width for _, width in head_shapes(config))
    # Whatever is trained in the vision tower lies below the language model, so gradients pass all of it.
    text = [
        matrices("text layers", [body], "tokens"),
        Part("text attention", attention, "pairs", 2.0),
        matrices("head", [model.lm_head], "predictions"),
    ]
    return (*text, *(family.vision.parts(model) if family.vision else ()))
