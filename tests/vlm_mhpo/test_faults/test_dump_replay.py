"""A dumped batch comes back as it was, and its replay names the completion and token that are not finite."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from data_prep import Turn
from tests.builders import tensors_of
from tests.vlm_mhpo.config_cases import minimal, with_values
from tests.vlm_mhpo.update_cases import LENGTHS, PlainEngine, batch_of, settings_of
from vlm_mhpo.commands import replay as replaying
from vlm_mhpo.config import parse_config
from vlm_mhpo.errors import ConfigError, ModelError
from vlm_mhpo.faults.dump import read_dump, unscored, whole_step, write_dump
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.training.forwards import log_probs_of
from vlm_mhpo.training.update import update_on


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("qwen2_5_vl")


def config_of(model, **changes):
    values = {"model.path": str(model.folder), "model.dtype": "float32", "rollout.temperature": 0.9}
    return parse_config(with_values(minimal(), values | {"objective.beta": 0.05} | changes))


def replayed(run_dir: Path, batch, config):
    """Dump as rank 0 of a run, replay with the configured model."""
    folder = write_dump(run_dir, 3, batch, config.model_dump(), "because")
    return replaying.replay(folder, config.model.path)[1]


def test_a_dump_comes_back_as_it_was(model, tmp_path):
    batch = replace(batch_of(model), masked=frozenset({2}))
    # A template that opens the thought: without it a replay would score half a response.
    prompt = batch.groups[0].group.prompt
    metadata = MappingProxyType({"level": 2, "answer": ("7", "7.0"), "source": "made"})
    row = replace(prompt.row, earlier_turns=(Turn("user", "1 + 1?"), Turn("assistant", "2")), metadata=metadata)
    opened = replace(batch.groups[0].group, prompt=replace(prompt, row=row, opens="<think>\n"))
    batch = replace(batch, groups=[replace(batch.groups[0], group=opened), *batch.groups[1:]])
    config = config_of(model)
    write_dump(tmp_path, 3, batch, config.model_dump(), "because")
    (dump,) = read_dump(tmp_path / "dumps" / "step_3")
    assert (dump.step, dump.rank, dump.world_size, dump.reason, dump.checkpoint) == (3, 0, 1, "because", "")
    assert parse_config(dump.values) == config
    for name in ("advantages", "masked", "completion_ids"):
        assert getattr(dump.batch, name) == getattr(batch, name), name
    for name in ("old_log_probs", "reference_log_probs"):
        pairs = zip(getattr(dump.batch, name), getattr(batch, name), strict=True)
        assert all(torch.equal(found, kept) for found, kept in pairs), name
    for found, kept in zip(dump.batch.groups, batch.groups, strict=True):
        assert found.group.prompt.row == kept.group.prompt.row
        assert isinstance(found.group.prompt.row.metadata, MappingProxyType)
        assert found.group.prompt.opens == kept.group.prompt.opens
        assert found.group.completions == kept.group.completions
        for name in ("rewards", "rewards_by_name", "verdicts", "extracted"):
            assert getattr(found, name) == getattr(kept, name), name
        one, other = tensors_of(found.group.prompt), tensors_of(kept.group.prompt)
        assert one.keys() == other.keys()
        for name in other:
            assert torch.equal(one[name], other[name]), name


def test_a_dump_of_another_format_is_refused(model, tmp_path):
    folder = write_dump(tmp_path, 3, batch_of(model), config_of(model).model_dump(), "because")
    file = folder / "rank_0.json"
    record = json.loads(file.read_text())
    # Of the first format the images would be lost without a word.
    file.write_text(json.dumps(record | {"format_version": 1}))
    with pytest.raises(ConfigError, match=r"not a readable dump .*format 1, this program reads 3"):
        read_dump(folder)


def test_the_losses_of_a_healthy_dump_add_up_to_that_of_the_update(model, tmp_path):
    batch, config = batch_of(model, reference=False), config_of(model)
    found = replayed(tmp_path, batch, config)
    objective = build_objective(config.objective, config.rollout.max_completion_length)
    engine = PlainEngine(model.copy().policy)
    done = update_on(engine, objective, [batch], settings_of(), learning_rate=0.0, step=3).metrics
    assert sum(one.loss for one in found) == pytest.approx(done["policy_loss"], rel=1e-5)
    assert [one.num_tokens for one in found] == [length for lengths in LENGTHS for length in lengths]
    assert all(one.is_finite and one.grad_norm > 0 for one in found)


def test_a_bad_old_log_prob_is_traced_to_its_token(model, tmp_path):
    batch = batch_of(model)
    rows = [row.clone() for row in batch.old_log_probs]
    rows[6][4] = math.nan  # the third completion of the second prompt, its fifth token
    found = replayed(tmp_path, replace(batch, old_log_probs=tuple(rows)), config_of(model))
    (bad,) = [one for one in found if not one.is_finite]
    assert (bad.prompt_id, bad.completion, bad.token) == (batch.groups[1].group.prompt.id, 2, 4)
    assert math.isnan(bad.log_ratio) and bad.refusal.startswith("NonFiniteInput")


SQRT_LOSS = """
import torch

def loss(log_probs, old, advantages, mask, *, num_completions, num_tokens, aggregate):
    # Finite everywhere, and its slope at equal log-probs is not.
    size = torch.where(mask, (log_probs - old).abs(), 1.0).sqrt()
    return aggregate(size, mask, num_completions=num_completions, num_tokens=num_tokens), {}
"""


def test_a_gradient_that_alone_is_bad_is_traced_to_its_prompt(model, tmp_path):
    (tmp_path / "mine.py").write_text(SQRT_LOSS)
    path = f"{tmp_path}/mine.py:loss"
    config = config_of(model, objective={"name": "custom", "path": path})
    batch = batch_of(model, reference=False)
    alone = replace(batch.groups[2].group, completions=batch.groups[2].group.completions[1:2])
    current = log_probs_of(model.policy, model.policy, [replace(batch.groups[2], group=alone)], settings_of())
    rows = [*batch.old_log_probs]
    rows[9] = torch.cat([rows[9][:-1], current[0][-1:]])
    found = replayed(tmp_path, replace(batch, old_log_probs=tuple(rows)), config)
    (bad,) = [one for one in found if not one.is_finite]
    assert (bad.prompt_id, bad.completion) == (batch.groups[2].group.prompt.id, 1)
    assert math.isfinite(bad.loss) and not math.isfinite(bad.grad_norm) and not bad.refusal


def test_a_completion_that_the_model_cannot_read_is_named(model, tmp_path):
    batch = batch_of(model)
    groups = list(batch.groups)
    broken = replace(groups[0].group.completions[3], token_ids=(10**6,) * 3)
    completions = (*groups[0].group.completions[:3], broken)
    groups[0] = replace(groups[0], group=replace(groups[0].group, completions=completions))
    found = replayed(tmp_path, replace(batch, groups=groups), config_of(model))
    (bad,) = [one for one in found if not one.is_finite]
    assert (bad.completion, bad.prompt_id) == (3, groups[0].group.prompt.id)
    assert "IndexError" in str(bad)


def test_the_report_shows_what_is_bad_or_the_largest_gradients(model, tmp_path):
    batch, config = batch_of(model), config_of(model)
    folder = write_dump(tmp_path, 3, batch, config.model_dump(), "because")
    text, is_finite = replaying.report(folder, config.model.path)
    assert is_finite
    lines = text.splitlines()
    assert lines[:2] == ["step 3: because", "all finite; the largest gradients:"]
    assert len([line for line in lines if "gradient norm" in line]) == 5
    # The made-up rewards of these random tokens are not what the verifier gives.
    assert "reward 1.0 (correct), now 0.0" in text
    write_dump(
        tmp_path, 3, replace(batch, advantages=(math.inf, *batch.advantages[1:])), config.model_dump(), "because"
    )
    text, is_finite = replaying.report(folder, config.model.path)
    assert not is_finite
    assert text.splitlines()[1:3] == ["1 of 12 completions are not finite:", text.splitlines()[2]]
    assert "completion 0 (5 tokens): advantage inf" in text


def test_whole_steps_and_unscored_groups_are_batches_too(model):
    batch = replace(batch_of(model), masked=frozenset({1}))
    whole = whole_step([batch, batch])
    assert len(whole.groups) == 6 and whole.masked == frozenset({1, 13})
    assert whole.advantages == batch.advantages * 2
    assert whole.old_log_probs == batch.old_log_probs * 2 and whole.reference_log_probs == batch.reference_log_probs * 2
    bare = unscored([scored.group for scored in batch.groups])
    assert bare.advantages == (0.0,) * 12 and len(bare.old_log_probs) == 12
    assert {verdict for scored in bare.groups for verdict in scored.verdicts} == {"not_verified"}


def test_a_folder_without_a_dump_or_without_weights_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="no rank_N"):
        read_dump(tmp_path)
    folder = write_dump(tmp_path, 3, batch_of(model), config_of(model).model_dump(), "because")
    with pytest.raises(ModelError, match="give the weights with --model"):
        replaying.replay(folder)
    (folder / "rank_0.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a readable dump"):
        read_dump(folder)


def test_a_dump_that_cannot_be_written_does_not_hide_the_error(model, tmp_path, capsys):
    (tmp_path / "dumps").write_text("a file where a folder should be")
    write_dump(tmp_path, 3, batch_of(model), config_of(model).model_dump(), "because")
    assert "WARNING: the batch of step 3 could not be written" in capsys.readouterr().out
