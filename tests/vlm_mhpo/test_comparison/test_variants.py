"""What --objectives and --seeds accept, and that every name makes the objective it says."""

from __future__ import annotations

import pytest

from tests.vlm_mhpo.test_comparison.cases import QUICKSTART
from vlm_mhpo.commands.study.variants import ABLATIONS, parse_seeds, parse_variants
from vlm_mhpo.config import OBJECTIVES, GrpoConfig, load_config
from vlm_mhpo.errors import ConfigError

NAMES = ["mhpo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "gmpo", "vespo", "dppo_tv", "reinforce"]


def config_of(text: str):
    (variant,) = parse_variants(text)
    return load_config(QUICKSTART, variant.overrides)


@pytest.mark.parametrize("name", NAMES)
def test_an_objectives_name_makes_it_with_its_papers_constants(name: str):
    section = next(objective for objective in OBJECTIVES if objective.model_fields["name"].default == name)
    assert config_of(name).objective == section()


def test_the_own_objective_of_the_file_is_compared_as_custom(tmp_path):
    file = tmp_path / "own.yaml"
    own = "objective:\n  name: custom\n  path: mine.py:loss\n  kwargs: {strength: 2}\n  beta: 0.02\n"
    file.write_text(QUICKSTART.read_text().replace("objective:\n  name: mhpo\n", own))
    custom, grpo = (load_config(file, variant.overrides).objective for variant in parse_variants("custom,grpo"))
    assert (custom.path, custom.kwargs, custom.beta) == ("mine.py:loss", {"strength": 2}, 0.02)
    # What both have stays; what only the file's objective has is gone.
    assert grpo.model_dump() == GrpoConfig(beta=0.02).model_dump()
    with pytest.raises(ConfigError, match=r"objective\.path is required"):
        config_of("custom")


def test_a_file_that_spells_out_mhpos_constants_can_be_compared_with_grpo(tmp_path):
    file = tmp_path / "constants.yaml"
    file.write_text(QUICKSTART.read_text().replace("  name: mhpo\n", "  name: mhpo\n  c: 1.2\n  k_neg: 3\n"))
    mhpo, grpo = (load_config(file, variant.overrides).objective for variant in parse_variants("mhpo,grpo"))
    assert (mhpo.c, mhpo.k_neg) == (1.2, 3.0)
    assert grpo == GrpoConfig()
    # An override of a constant that the objective does not have is still a mistake.
    with pytest.raises(ConfigError, match=r"unknown key objective\.c"):
        load_config(file, ["objective.name=grpo", "objective.c=1"])
    # So is a key of the file that no objective has.
    file.write_text(file.read_text().replace("  c: 1.2", "  sea: 1.2"))
    with pytest.raises(ConfigError, match=r"unknown key objective\.sea"):
        load_config(file, ["objective.name=grpo"])


def test_dr_grpo_does_not_divide_advantages():
    assert config_of("dr_grpo").train.scale_rewards == "none"
    assert config_of("grpo").train.scale_rewards != "none"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("mhpo_modulator_only", {"use_hazard": False}),
        ("mhpo_hazard_only", {"use_modulator": False}),
        ("mhpo_symmetric", {"k_neg": 1.5, "lambda_neg": 1.0}),
        ("mhpo_normalized", {"normalize_hazard": True}),
    ],
)
def test_an_ablation_changes_what_it_names_and_nothing_else(name: str, changed: dict):
    whole = config_of("mhpo").objective.model_dump()
    assert config_of(name).objective.model_dump() == whole | changed


def test_symmetric_hazards_are_symmetric():
    objective = config_of("mhpo_symmetric").objective
    assert (objective.k_pos, objective.lambda_pos) == (objective.k_neg, objective.lambda_neg)


def test_constants_go_to_the_objective_and_dotted_keys_anywhere():
    config = config_of("mhpo:c=0.5:k_pos=3:train.learning_rate=1e-5")
    assert (config.objective.c, config.objective.k_pos, config.train.learning_rate) == (0.5, 3.0, 1e-5)
    assert config_of("mhpo_symmetric:c=2").objective.model_dump()["c"] == 2.0


def test_names_keep_the_order_of_the_list_and_are_names_of_folders():
    text = " sapo , mhpo:c=0.5:train.learning_rate=1e-5,,mhpo_symmetric,"
    assert [v.name for v in parse_variants(text)] == ["sapo", "mhpo_c=0.5_train.learning_rate=1e-5", "mhpo_symmetric"]


@pytest.mark.parametrize("value", ["../../../etc", "a/b", "$(reboot)", "<script>", "a b", "a&b", "a|b", "{x}"])
def test_no_constant_leads_out_of_the_folder_or_into_the_markup(value: str):
    (variant,) = parse_variants(f"mhpo:c={value}")
    assert variant.name.startswith("mhpo_c=") and not set(variant.name) & set("/\\$<>&|{}() \n")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "nothing"),
        (" , ,", "nothing"),
        ("mhpo,ppo", "'ppo'"),
        ("MHPO", "'MHPO'"),
        ("Custom", "'Custom'"),
        ("mhpo,grpo,mhpo", "mhpo twice"),
        # Different texts, one folder.
        ("mhpo:c=a/b,mhpo:c=a|b", "twice"),
        ("mhpo:c", "'c' is not of the form key=value"),
        ("mhpo:", "key=value"),
        (":c=1", "''"),
    ],
)
def test_a_bad_list_is_one_sentence_that_names_the_culprit(text: str, named: str):
    with pytest.raises(ConfigError) as caught:
        parse_variants(text)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_all_known_ones():
    with pytest.raises(ConfigError) as caught:
        parse_variants("ppo")
    assert all(name in str(caught.value) for name in [*NAMES, *ABLATIONS])


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0..3", [0, 1, 2, 3]), ("5..5", [5]), ("7", [7]), ("3,1,2", [3, 1, 2]), (" 8..10 ", [8, 9, 10])],
)
def test_seeds(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3..1", "-1..3", "0...3", "1,,2", "1,", "a", "0.5", "1e3", "0..", "..4", "1;2"])
def test_bad_seeds_are_refused(text: str):
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def test_a_seed_given_twice_is_refused():
    # Two runs at a time would write to one folder.
    with pytest.raises(ConfigError, match="different"):
        parse_seeds("0,1,0")
