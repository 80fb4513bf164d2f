"""A minibatch whose every log-prob is known, and a plain stand-in for the engine."""

import math

import numpy as np
import torch

from tests.builders import Tiny, completion, plain_log_probs, prompts_of, random_completions, scored
from vlm_mhpo.engine.deepspeed import UpdateResult
from vlm_mhpo.training.forwards import UpdateSettings
from vlm_mhpo.types import Minibatch

LENGTHS = ((5, 1, 7, 3), (2, 6, 6, 4), (8, 3, 1, 5))
NUM_COMPLETIONS, NUM_TOKENS = 12, sum(sum(lengths) for lengths in LENGTHS)


class PlainEngine:
    """Gradients add up in the policy's weights; an update reports them and takes them away, unless told to step."""

    def __init__(self, policy, *, step: bool = False) -> None:
        self.policy = policy
        self.step = step
        self.learning_rates: list[float] = []

    def __call__(self, *args, **kwargs):
        return self.policy(*args, **kwargs)

    def backward(self, loss) -> None:
        loss.backward()

    def update(self, learning_rate: float) -> UpdateResult:
        self.learning_rates.append(learning_rate)
        grads = [weight.grad for weight in self.policy.parameters() if weight.grad is not None]
        norm = float(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt())
        applied = math.isfinite(norm)
        with torch.no_grad():
            for weight in self.policy.parameters():
                if self.step and applied and weight.grad is not None:
                    weight -= learning_rate * weight.grad
                weight.grad = None
        return UpdateResult(applied, norm if applied else math.nan)


def settings_of(**changes) -> UpdateSettings:
    values = dict(
        beta=0.05,
        temperature=0.9,
        max_tokens=100_000,
        chunk_size=4096,
        num_minibatches=1,
        num_iterations=1,
        recompute=True,
        pad_id=0,
        on_nonfinite="stop",
    )
    return UpdateSettings(**(values | changes))


def batch_of(model: Tiny, *, reference: bool = True) -> Minibatch:
    """Random completions with old and reference log-probs some tenths of a nat away from the policy's."""
    groups, old, frozen = [], [], []
    random = np.random.default_rng(0)
    # The shortest prompt first: rows are packed longest first, so the order of completions changes on the way.
    for index, (prompt, lengths) in enumerate(zip(prompts_of(model)[::-1], LENGTHS, strict=True)):
        ids = random_completions(model, lengths, seed=index)
        groups.append(scored(prompt, [completion(one) for one in ids]))
        for one in ids:
            with torch.no_grad():
                current = plain_log_probs(model, prompt, one, 0.9).numpy()
            old.append(torch.from_numpy(current + random.normal(0, 0.4, len(one))))
            frozen.append(torch.from_numpy(current + random.normal(0, 0.4, len(one))))
    advantages = tuple(random.normal(0, 1, sum(len(lengths) for lengths in LENGTHS)).tolist())
    return Minibatch(groups, advantages, tuple(old), tuple(frozen) if reference else None)
