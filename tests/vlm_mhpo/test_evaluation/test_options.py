"""Which benchmarks, which configuration, which folder: what is named is found, and what is wrong is said."""

import pytest

from tests.vlm_mhpo.test_evaluation.cases import protocol
from tests.vlm_mhpo.test_evaluation.planted import plant_mathvista
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import ConfigError, EvaluationError
from vlm_mhpo.evaluation.benchmark_run import keep_state
from vlm_mhpo.evaluation.chosen import choose
from vlm_mhpo.evaluation.command import config_of, evaluate_command
from vlm_mhpo.records.evaluation import State
from vlm_mhpo.training.held_out import no_longer_improves


def test_rows_come_from_the_entry_the_places_or_the_folder(tmp_path):
    place = plant_mathvista(tmp_path, num_rows=3)
    for entries, options in (
        ([f"mathvista={place}"], {}),
        ([f"mathvista@testmini={place}"], {}),
        (["mathvista"], {"places": {"mathvista": str(place)}}),
        (["mathvista"], {"folder": tmp_path}),
    ):
        (one,) = choose(entries, **{"folder": tmp_path / "none"} | options)
        assert (one.name, one.split, len(one.rows)) == ("mathvista", "testmini", 3)
    (one,) = choose([f"mathvista={place}"], folder=tmp_path, limit=2)
    assert len(one.rows) == len(one.asked) == 2


def test_the_official_question_is_asked_as_it_is_or_the_runs_own(tmp_path):
    place = plant_mathvista(tmp_path, num_rows=1)
    (official,) = choose([f"mathvista={place}"], folder=tmp_path)
    asked = official.asked[0]
    assert asked.problem.startswith("<image>Hint: Please answer the question and provide the correct option letter")
    assert asked.problem.count("<image>") == len(asked.images) == 1
    # So that nothing is added to it.
    assert (asked.kind, asked.choices) == ("auto", None)
    assert official.rows[0].choices == ("97", "102")
    (run,) = choose([f"mathvista={place}"], folder=tmp_path, prompt="run")
    assert run.asked == run.rows == official.rows
    assert run.protocol.prompts != official.protocol.prompts
    assert run.protocol.data == official.protocol.data


@pytest.mark.parametrize(
    ("entries", "places", "sentence"),
    [
        (["mathvist"], {}, "did you mean mathvista"),
        (["mathvista", "mathvista@testmini"], {}, "mathvista is named twice"),
        (["mathvista"], {"mathverse": "x"}, "--data mathverse=...: that benchmark is not among those named"),
        (["mathvista@nosuch"], {}, "no split 'nosuch'"),
    ],
)
def test_wrong_names_end_in_a_sentence(tmp_path, entries, places, sentence):
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        choose(entries, folder=tmp_path, places=places)


def test_wrong_options_end_in_a_sentence(tmp_path):
    common = {"model": "m", "benchmarks": ["mathvista"], "out": tmp_path}
    with pytest.raises(ConfigError, match="not of the form name=PATH"):
        evaluate_command(**common, data=["mathvista"])
    with pytest.raises(ConfigError, match="use blank or shuffled"):
        evaluate_command(**common, probes=["grey"])


def test_a_model_of_a_run_is_asked_as_its_run_was(tmp_path):
    shipped = config_of("org/model")
    assert shipped.name == "evaluation.yaml"
    assert load_config(shipped).eval.temperature == 0
    policy = tmp_path / "run" / "checkpoints" / "step_000004" / "policy"
    policy.mkdir(parents=True)
    assert config_of(str(policy)) == shipped
    for name in ("run.json", "config.yaml"):
        (tmp_path / "run" / name).write_text("{}")
    for place in (policy, policy.parent, tmp_path / "run"):
        assert config_of(str(place)) == tmp_path / "run" / "config.yaml"


def state(model="m", digest="aa", **change) -> State:
    return State(model=model, model_digest=digest, protocol=protocol(**change))


def test_a_folder_goes_on_only_with_what_it_began_with(tmp_path):
    keep_state(tmp_path, state())
    keep_state(tmp_path, state())
    # The same weights under another name are the same model.
    keep_state(tmp_path, state(model="elsewhere/m"))
    with pytest.raises(EvaluationError, match=r"seed: 0 and 1\nchoose another --out"):
        keep_state(tmp_path, state(seed=1))
    with pytest.raises(EvaluationError, match=r"holds an evaluation of .*weights aa.*not of m .*weights bb"):
        keep_state(tmp_path, state(digest="bb"))
    # A benchmark more is no difference, and what was pinned before stays pinned.
    other = state().protocol.model_copy(update={"benchmarks": {"other": state().protocol.benchmarks["made"]}})
    keep_state(tmp_path, State(model="m", model_digest="aa", protocol=other))
    with pytest.raises(EvaluationError, match=r"benchmarks\.made\.data"):
        keep_state(tmp_path, state(data="cd"))


def test_judged_rows_of_nobody_knows_what_are_not_taken_over(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "made.jsonl").write_text("")
    with pytest.raises(EvaluationError, match=r"judged rows but no evaluation\.json"):
        keep_state(tmp_path, state())


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.6, 0.6, 0.55], 2, True),
        ([0.5, 0.6, 0.6, 0.55], 3, False),
        ([0.5, 0.4, 0.3, 0.6], 2, False),
        ([0.6, 0.4, 0.5, 0.55], 3, True),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_a_new_best(values, patience, stops):
    assert no_longer_improves(values, patience) is stops
