"""One update on two or four gloo ranks under ZeRO 0 to 3 is the update of one process, and of plain torch."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.own_models import build_own
from tests.reference import advantages as reference
from tests.reference import objectives
from tests.system.batches import ADAM, CUT, LENGTHS, REWARDS, REWARDS_OF, load_tiny, plain_step, scored_groups
from tests.system.launches import NO_CLIPPING, Launch, assert_same_weights, launch
from vlm_mhpo.models.tiny import build_tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(240)]

STAGES = (0, 1, 2, 3)
FOUR_RANK_STAGES = (0, 2)
KINDS = ("mixed", "lopsided", "batch", "idle", "idle_dapo", "flat", "still")
# 3 micro-batches on one rank and 5 (mixed) or 4 (lopsided) on the other; lm_head in different numbers of pieces.
UNEVEN = ("train.max_tokens_per_micro_batch=30", "train.logits_chunk_size=6")
# Mistral 3 goes as any other image-text model: a row for each completion, by its own inputs.
OWN = "mistral3"
FAMILY_STAGES = (
    *(("glm4v", 3), ("internvl", 2), ("internvl", 3), ("smolvlm", 3)),
    *(("gemma3", 3), ("gemma4", 3), (OWN, 2), (OWN, 3)),
)
CLIPPING = 0.2
IDLE_TOKENS = sum(sum(lengths) for lengths, cut in zip(LENGTHS, CUT["idle"], strict=True) if not cut)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("model") / "tiny", "qwen2_5_vl", hidden_size=64)


def equality_jobs() -> list[dict[str, Any]]:
    """Jobs that run on one and on two ranks."""
    jobs: list[dict[str, Any]] = []
    for stage in STAGES:
        jobs.append({"name": f"mixed{stage}", "case": "mixed", "stage": stage})
        lopsided = {"name": f"lopsided{stage}", "case": "lopsided", "stage": stage}
        jobs.append(lopsided | {"overrides": [*UNEVEN, f"train.max_grad_norm={CLIPPING}"]})
        jobs.append({"name": f"batch{stage}", "case": "mixed", "stage": stage})
        jobs[-1]["overrides"] = [*UNEVEN, "train.scale_rewards=batch"]
        jobs.append({"name": f"idle{stage}", "case": "idle", "stage": stage, "overrides": [*UNEVEN]})
        # A mean over tokens: its denominator is a count to which an idle rank brings nothing.
        jobs.append({"name": f"idle_dapo{stage}", "case": "idle", "stage": stage})
        jobs[-1]["overrides"] = [*UNEVEN, "objective.name=dapo"]
        # Rows of one completion, which are the same whether others are left out or not.
        flat = {"case": "flat", "stage": stage, "overrides": ["train.max_tokens_per_micro_batch=1"]}
        jobs += [flat | {"name": f"flat{stage}"}, flat | {"name": f"flat_read{stage}", "reads_all": True}]
        jobs.append({"name": f"still{stage}", "case": "still", "stage": stage})
    return jobs


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, model_folder) -> Launch:
    return launch(tmp_path_factory.mktemp("one"), model_folder, equality_jobs(), 1)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, model_folder) -> Launch:
    return launch(tmp_path_factory.mktemp("two"), model_folder, equality_jobs(), 2)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory, model_folder) -> Launch:
    # One prompt a rank: of the uneven jobs one to three micro-batches, and of the idle ones two ranks without a token.
    jobs = [job for job in equality_jobs() if job["stage"] in FOUR_RANK_STAGES]
    return launch(tmp_path_factory.mktemp("four"), model_folder, jobs, 4)


@pytest.fixture(scope="module")
def plain(model_folder) -> dict[str, tuple[dict[str, Tensor], float]]:
    """Weights and gradient norm of each kind of job by torch alone."""
    model = load_tiny(model_folder)
    by_group = reference.group_advantages(REWARDS, "group")
    mixed, lopsided, idle = (scored_groups(model, case) for case in ("mixed", "lopsided", "idle"))
    dapo = partial(objectives.grpo, epsilon_high=0.28, share=objectives.token_mean(IDLE_TOKENS))
    return {
        "mixed": plain_step(model, mixed, by_group, NO_CLIPPING),
        "lopsided": plain_step(model, lopsided, by_group, CLIPPING),
        "batch": plain_step(model, mixed, reference.group_advantages(REWARDS, "batch"), NO_CLIPPING),
        "idle": plain_step(model, idle, by_group, NO_CLIPPING),
        "idle_dapo": plain_step(model, idle, by_group, NO_CLIPPING, dapo),
        **{
            case: plain_step(
                model, scored_groups(model, case), reference.group_advantages(rewards, "group"), NO_CLIPPING
            )
            for case, rewards in REWARDS_OF.items()
        },
    }


SEVERAL = [*(("two_ranks", stage) for stage in STAGES), *(("four_ranks", stage) for stage in FOUR_RANK_STAGES)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "stage"), [*(("one_rank", stage) for stage in STAGES), *SEVERAL])
def test_an_update_under_zero_is_the_update_of_plain_torch(ranks, kind, stage, plain, model_folder, request):
    launched = request.getfixturevalue(ranks)
    expected, norm = plain[kind]
    start = load_tiny(model_folder).policy.model.state_dict()
    assert_same_weights(launched.weights(f"{kind}{stage}"), expected, start)
    assert launched.result(f"{kind}{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-4)


# The budget of the uneven jobs gives several ranks nearly the products of one. In "mixed" one rank has all in a single
# product, and float32 products of other shapes alone move the step by 1.0e-6; float64 is out, see below.
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("ranks", "stage"), SEVERAL)
def test_several_ranks_take_the_step_of_one_to_a_millionth(ranks, kind, stage, one_rank, model_folder, request):
    alone, shared = one_rank.weights(f"{kind}{stage}"), request.getfixturevalue(ranks).weights(f"{kind}{stage}")
    start = load_tiny(model_folder).policy.model.state_dict()
    moved = math.fsum(float((alone[name] - start[name]).double().square().sum()) for name in alone) ** 0.5
    gap = math.fsum(float((shared[name] - alone[name]).double().square().sum()) for name in alone) ** 0.5
    assert gap <= 1e-6 * moved


@pytest.mark.parametrize(("ranks", "stage"), [*(("one_rank", stage) for stage in STAGES), *SEVERAL])
def test_leaving_flat_groups_out_changes_not_a_bit_of_the_weights(ranks, stage, request):
    launched = request.getfixturevalue(ranks)
    found, expected = launched.weights(f"flat{stage}"), launched.weights(f"flat_read{stage}")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    shares = [launched.result(f"{name}{stage}")["metrics"]["idle_tokens"] for name in ("flat", "flat_read", "still")]
    flat = sum(map(sum, LENGTHS[:2])) / sum(map(sum, LENGTHS))
    assert shares == [pytest.approx(flat), 0.0, 1.0]


def test_clipping_was_active_where_it_is_claimed(plain):
    assert plain["lopsided"][1] > 1.5 * CLIPPING


def assert_same_metrics(shared: dict[str, float], alone: dict[str, float]) -> None:
    """Equal to a millionth, but for what hangs on a single token.

    A log-prob near -6 is itself a float32 with steps of 5e-7, and its last digit follows the shape of the product that
    it came from; DeepSpeed takes no float64 weights (ZeRO 0 refuses them, 1 to 3 keep float32 ones of its own). A
    quantile may fall into the next bin, which is 6 % further.
    """
    assert shared.keys() == alone.keys()
    quantiles = {name for name in alone if re.search(r"_p\d\d$", name)}
    extremes = {name for name in alone if re.search("[_/](min|max)$", name)} - {"grad_norm/max"}
    assert quantiles and extremes and len(alone) - len(quantiles | extremes) > 10
    for name, value in alone.items():
        rel = 0.065 if name in quantiles else 1e-5 if name in extremes else 1e-6
        assert shared[name] == pytest.approx(value, rel=rel, abs=min(rel, 1e-5)), name


@pytest.mark.parametrize("kind", ["lopsided", "batch", "idle", "idle_dapo"])
@pytest.mark.parametrize(("ranks", "stage"), SEVERAL)
def test_metrics_of_several_uneven_ranks_are_those_of_one(ranks, kind, stage, one_rank, request):
    launched = request.getfixturevalue(ranks)
    shared = launched.result(f"{kind}{stage}")["metrics"]
    assert_same_metrics(shared, one_rank.result(f"{kind}{stage}")["metrics"])
    assert launched.result(f"{kind}{stage}", rank=len(launched.ended) - 1)["metrics"] == shared


def test_advantages_scaled_by_the_batch_see_the_rewards_of_all_ranks(two_ranks):
    found = two_ranks.result("batch0", rank=0)["advantages"] + two_ranks.result("batch0", rank=1)["advantages"]
    expected = reference.group_advantages(REWARDS, "batch")
    assert [value for row in found for value in row] == pytest.approx([value for row in expected for value in row])


def fault_jobs() -> list[dict[str, Any]]:
    """NaN on the second rank, under every stage."""
    return [
        {
            "name": f"{action}_{where}{stage}",
            "case": "mixed",
            "stage": stage,
            "nan": where,
            "num_updates": 2 if action == "skip" else 1,
            "overrides": [f"train.on_nonfinite={action}"],
        }
        for stage in STAGES
        for where in ("loss", "gradient")
        for action in ("stop", "skip")
    ]


def uneven_jobs() -> list[dict[str, Any]]:
    """What may make ranks run different numbers of modules, and so hang under ZeRO-3."""
    return [
        {"name": "sample", "case": "mixed", "stage": 3, "sample": True},
        {"name": "log_probs", "case": "lopsided", "stage": 3, "log_probs": True, "overrides": list(UNEVEN)},
        {"name": "text", "case": "text", "stage": 3, "overrides": list(UNEVEN)},
        *(
            {"name": f"bfloat16_{stage}", "case": "mixed", "stage": stage, "overrides": ["model.dtype=bfloat16"]}
            for stage in STAGES
        ),
    ]


@pytest.fixture(scope="module")
def family_folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    known = {family: build_tiny(root / family, family, hidden_size=64) for family, _ in FAMILY_STAGES if family != OWN}
    return known | {OWN: build_own(root / OWN, OWN)}


@pytest.fixture(scope="module")
def odd_jobs(tmp_path_factory, model_folder, family_folders) -> Launch:
    # The second rank has no image and has to make one up, or the first would wait for it.
    lopsided = [
        {"name": f"{family}{stage}", "model": str(family_folders[family]), "case": "lopsided", "stage": stage}
        for family, stage in FAMILY_STAGES
    ]
    return launch(tmp_path_factory.mktemp("odd"), model_folder, [*fault_jobs(), *uneven_jobs(), *lopsided], 2)


@pytest.mark.parametrize(("family", "stage"), FAMILY_STAGES)
def test_families_with_other_towers_take_the_step_of_plain_torch(family, stage, odd_jobs, family_folders):
    model = load_tiny(family_folders[family])
    by_group = reference.group_advantages(REWARDS, "group")
    expected, norm = plain_step(model, scored_groups(model, "lopsided"), by_group, NO_CLIPPING)
    assert_same_weights(odd_jobs.weights(f"{family}{stage}"), expected, model.policy.model.state_dict())
    assert odd_jobs.result(f"{family}{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_on_one_rank_stops_both_and_leaves_every_weight(where, stage, odd_jobs, model_folder):
    records = [odd_jobs.result(f"stop_{where}{stage}", rank) for rank in (0, 1)]
    assert [record["error"] for record in records] == ["NonFiniteError"] * 2
    for record in records:
        assert "step 7" in record["message"]
        # Only the prompts of the second rank are named.
        assert "rank 1: prompts" in record["message"] and "rank 0" not in record["message"]
        assert "row2" in record["message"] or "row3" in record["message"]
    assert_untouched(odd_jobs.weights(f"stop_{where}{stage}"), model_folder)


def assert_untouched(weights: dict[str, Tensor], model_folder: Path) -> None:
    """Bit for bit the weights of the model that the job started from."""
    for name, value in load_tiny(model_folder).policy.model.state_dict().items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_skipped_update_counts_and_leaves_no_trace_in_the_next(where, stage, odd_jobs, plain, model_folder):
    name = f"skip_{where}{stage}"
    for rank in (0, 1):
        assert odd_jobs.result(name, rank)["metrics"]["num_skipped_updates"] == 1
    # The second of the two updates is a first step of AdamW only if the skipped one left weights and moments alone.
    expected, norm = plain["mixed"]
    assert odd_jobs.result(name)["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert_same_weights(odd_jobs.weights(name), expected, load_tiny(model_folder).policy.model.state_dict())


def test_ranks_whose_completions_end_at_different_times_sample_under_zero3(odd_jobs):
    lengths = [{len(ids) for ids in odd_jobs.result("sample", rank)["completions"]} for rank in (0, 1)]
    assert max(lengths[0]) <= 3 and max(lengths[1]) > 3
    # What the rank with the least free memory can hold.
    assert [odd_jobs.result("sample", rank)["budget"] for rank in (0, 1)] == [{"sampling/max_batch_tokens": 30.0}] * 2


def test_log_probs_without_gradients_under_zero3_are_the_models_own(odd_jobs, model_folder):
    from tests.builders import plain_log_probs

    model = load_tiny(model_folder)
    for rank, groups in enumerate((scored_groups(model, "lopsided")[:2], scored_groups(model, "lopsided")[2:])):
        found = odd_jobs.result("log_probs", rank)["log_probs"]
        completions = [(group.group.prompt, each) for group in groups for each in group.group.completions]
        for (prompt, completion), values in zip(completions, found, strict=True):
            with torch.no_grad():
                expected = plain_log_probs(model, prompt, completion.token_ids)
            assert values == pytest.approx(expected.tolist(), abs=1e-4)


def test_text_alone_trains_a_vision_model_under_zero3_and_leaves_its_vision_tower(odd_jobs, model_folder):
    weights = odd_jobs.weights("text")
    decay = 1.0 - ADAM["learning_rate"] * ADAM["weight_decay"]
    for name, value in load_tiny(model_folder).policy.model.state_dict().items():
        if ".visual." in name:
            # A gradient of exactly zero: weight decay alone moves it.
            torch.testing.assert_close(weights[name], value * decay, rtol=1e-6, atol=0.0)
        elif "self_attn.q_proj.weight" in name:
            assert not torch.allclose(weights[name], value * decay, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_trains_under_every_stage_to_its_own_precision(stage, odd_jobs, plain, model_folder):
    expected, norm = plain["mixed"]
    assert odd_jobs.result(f"bfloat16_{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=0.1)
    found = odd_jobs.weights(f"bfloat16_{stage}")
    start = load_tiny(model_folder).policy.model.state_dict()
    moved = torch.cat([(expected[name] - start[name]).flatten() for name in expected])
    real = torch.cat([(found[name].float() - start[name]).flatten() for name in expected])
    # Eight bits of a weight hide most of a small step, not its direction.
    assert float(torch.nn.functional.cosine_similarity(moved, real, dim=0)) > 0.5
