"""The family equals TRL's own `_compute_loss` on the same tensors, once its denominators are accounted for.

How TRL 1.16 normalises, and what that makes of our global counts:
- grpo, sapo, gspo (grpo with a sequence ratio), gmpo: the mean over the completions of the micro-batch, divided by the
  number of micro-batches. With micro-batches of B completions that is num_completions = B * micro-batches.
- dr_grpo: likewise, over B * max_completion_length.
- dapo, cispo, vespo: over the tokens of the generation batch times micro-batches / (micro-batches of the generation
  batch): the average of an optimizer step, not what it holds. Ours is the exact count of the step, so the two differ by
  a factor as soon as a rollout batch takes several steps of unequal length.
- A row without tokens counts as a completion in both. TRL's gmpo gives it the weight exp(0) = 1, hence a loss of -A
  (and no gradient); ours adds nothing.
"""

import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.reference import objectives as reference
from tests.vlm_mhpo.test_objectives.cases import Case, Objective, call, loss_and_gradient, random_case
from vlm_mhpo.objectives.aggregation import completion_mean, fixed_length, token_mean
from vlm_mhpo.objectives.cispo import cispo_loss
from vlm_mhpo.objectives.gmpo import gmpo_loss
from vlm_mhpo.objectives.grpo import grpo_loss
from vlm_mhpo.objectives.gspo import gspo_loss
from vlm_mhpo.objectives.sapo import sapo_loss
from vlm_mhpo.objectives.vespo import vespo_loss

WRITTEN_FOR = "1.16.0"
MAX_LENGTH = 50


@dataclass(frozen=True)
class Peer:
    """One objective here, and the settings of TRL's trainer that make the same of it."""

    name: str
    loss: Objective
    aggregate: Callable[..., torch.Tensor]
    trl: dict[str, Any]
    knobs: dict[str, float] = field(default_factory=dict)
    kinks: tuple[float, ...] = ()
    sequence_kinks: tuple[float, ...] = ()
    span: float = 1.5
    # sapo's temperatures pass through a float32 tensor in TRL.
    tolerance: float = 1e-12

    def case(self, seed: int, num_rows: int = 6) -> Case:
        """A case that is a whole global batch."""
        kinks = {"kinks": self.kinks, "sequence_kinks": self.sequence_kinks}
        case = random_case(seed, num_rows, num_tokens=20, span=self.span, **kinks)
        return replace(case, num_completions=num_rows, num_tokens=max(int(case.mask.sum()), 1))


def _logs(*ratios: float) -> tuple[float, ...]:
    return tuple(math.log(ratio) for ratio in ratios)


PEERS = [
    Peer(
        "grpo",
        grpo_loss,
        completion_mean,
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        kinks=_logs(0.8, 1.2),
    ),
    Peer(
        "dr_grpo",
        grpo_loss,
        fixed_length(MAX_LENGTH),
        {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        kinks=_logs(0.8, 1.2),
    ),
    Peer(
        "dapo",
        grpo_loss,
        token_mean,
        {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
        {"epsilon_high": 0.28},
        kinks=_logs(0.8, 1.28),
    ),
    Peer(
        "gspo",
        gspo_loss,
        completion_mean,
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
        sequence_kinks=_logs(1 - 3e-4, 1 + 4e-4),
        span=2e-3,
    ),
    # TRL's epsilon_high is the bound of the weight itself, ours its distance from 1.
    Peer("cispo", cispo_loss, token_mean, {"loss_type": "cispo", "epsilon_high": 5.0}, span=4.0),
    Peer("sapo", sapo_loss, completion_mean, {"loss_type": "sapo"}, tolerance=1e-6),
    # Its constants pass through a float32 tensor in TRL.
    Peer("vespo", vespo_loss, token_mean, {"loss_type": "vespo"}, span=0.3, tolerance=1e-6),
    Peer("gmpo", gmpo_loss, completion_mean, {"epsilon_low": 0.4, "epsilon_high": 0.4}, kinks=(0.4, -0.4)),
]
each_peer = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)


@pytest.fixture(autouse=True)
def _known_trl() -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    if importlib.metadata.version("trl") != WRITTEN_FOR:
        pytest.skip(f"the stand-in trainer is written for trl {WRITTEN_FOR}")


def trl_loss(
    peer: Peer,
    case: Case,
    log_probs: torch.Tensor,
    *,
    beta: float = 0.0,
    reference_log_probs: torch.Tensor | None = None,
    accumulation: int = 1,
    steps_per_generation: int = 1,
    tokens_of_generation: int | None = None,
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """TRL's loss and metrics on given log-probs, by standing in for the trainer and its model; no loss of empty rows.

    accumulation: micro-batches of an optimizer step; steps_per_generation: micro-batches of a rollout batch.
    """
    if peer.name == "gmpo":
        from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer as Trainer
    else:
        from trl.trainer.grpo_trainer import GRPOTrainer as Trainer
    metrics = {"train": defaultdict(list)}
    settings = {"loss_type": "grpo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
            steps_per_generation=steps_per_generation,
        ),
        get_gamma_weights=Trainer.get_gamma_weights,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda values: values, reduce=lambda values, reduction: values
        ),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=beta,
        use_vllm=False,
        max_completion_length=MAX_LENGTH,
        current_gradient_accumulation_steps=accumulation,
        _entropy_bonus_enabled=False,
        _metrics=metrics,
        **{**settings, **peer.trl},
    )
    ids = torch.zeros(case.mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": case.mask.long(),
        "advantages": case.advantages,
        "old_per_token_logps": case.old_log_probs,
        "ref_per_token_logps": reference_log_probs,
        "num_items_in_batch": torch.tensor(tokens_of_generation or case.num_tokens),
    }
    loss = Trainer._compute_loss(trainer, None, inputs)
    if peer.name == "gmpo":
        empty_B = ~case.mask.any(dim=1)
        loss = loss + case.advantages[empty_B].sum() / len(empty_B) / accumulation
    return loss, metrics["train"]


def assert_same(peer: Peer, case: Case, expected: torch.Tensor, log_probs: torch.Tensor) -> None:
    loss, gradient = loss_and_gradient(peer.loss, case, aggregate=peer.aggregate, **peer.knobs)
    (expected_gradient,) = torch.autograd.grad(expected, log_probs)
    torch.testing.assert_close(loss, expected.detach(), rtol=peer.tolerance, atol=peer.tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=peer.tolerance, atol=peer.tolerance / 100)


@each_peer
def test_a_whole_batch_has_the_loss_and_gradient_of_trl(peer: Peer) -> None:
    for seed in range(20):
        case = peer.case(seed)
        log_probs = case.log_probs.clone().requires_grad_()
        expected, _ = trl_loss(peer, case, log_probs)
        assert_same(peer, case, expected, log_probs)


@each_peer
def test_float32_has_the_loss_and_gradient_of_trl(peer: Peer) -> None:
    for seed in range(20):
        case = peer.case(seed).to(torch.float32)
        log_probs = case.log_probs.clone().requires_grad_()
        expected, _ = trl_loss(peer, case, log_probs)
        assert_same(replace(peer, tolerance=1e-5), case, expected, log_probs)


@each_peer
def test_micro_batches_of_an_optimizer_step_add_up_as_in_trl(peer: Peer) -> None:
    """Four micro-batches sampled at once and trained in two steps of two; `case` is one of the two steps."""
    for seed in range(5):
        case, tokens_of_other_step = peer.case(seed, num_rows=8), 37
        tokens_of_generation = case.num_tokens + tokens_of_other_step
        for index in (slice(0, 4), slice(4, 8)):
            part = case.rows(index)
            log_probs = part.log_probs.clone().requires_grad_()
            expected, _ = trl_loss(
                peer,
                part,
                log_probs,
                accumulation=2,
                steps_per_generation=4,
                tokens_of_generation=tokens_of_generation,
            )
            if peer.aggregate is token_mean:
                # TRL divided by the tokens of half a generation batch, not by those of this step.
                expected = expected * (tokens_of_generation * 2 / 4) / case.num_tokens
            assert_same(peer, part, expected, log_probs)


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.loss is grpo_loss], ids=lambda peer: peer.name)
def test_clip_counts_over_tokens_are_the_shares_of_trl(peer: Peer) -> None:
    for seed in range(20):
        case = peer.case(seed)
        _, expected = trl_loss(peer, case, case.log_probs)
        _, metrics = call(peer.loss, case, aggregate=peer.aggregate, **peer.knobs)
        for name in ("low_mean", "high_mean", "region_mean"):
            share = metrics[f"sum/clip_ratio/{name}"] / case.num_tokens
            assert share.item() == pytest.approx(expected[f"clip_ratio/{name}"][0], abs=1e-6), name


def test_k3_reference_equals_the_kl_term_of_trl() -> None:
    case = random_case(8, num_rows=3, num_tokens=10, span=1.0, keep=1.0)
    case = replace(case, mask=torch.ones_like(case.mask))
    other = case.log_probs.roll(1, dims=1)
    with_kl, _ = trl_loss(PEERS[0], case, case.log_probs, beta=0.25, reference_log_probs=other)
    without, _ = trl_loss(PEERS[0], case, case.log_probs, beta=0.0, reference_log_probs=other)
    pairs = zip(case.log_probs.flatten().tolist(), other.flatten().tolist(), strict=True)
    tokens = [reference.k3_kl(log_prob, reference_log_prob) for log_prob, reference_log_prob in pairs]
    assert (with_kl - without).item() == pytest.approx(0.25 * sum(tokens) / len(tokens), rel=1e-10)
