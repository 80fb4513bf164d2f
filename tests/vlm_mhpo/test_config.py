"""Every bad value ends in the sentence that helps; every accepted key is read somewhere; loading is light."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import vlm_mhpo
from tests.vlm_mhpo.config_cases import BAD_VALUES, MINIMAL, MISTYPED, minimal, with_values
from vlm_mhpo.config import (
    OBJECTIVES,
    BaseObjective,
    Config,
    GrpoConfig,
    MhpoConfig,
    ModelConfig,
    RewardConfig,
    check_world_size,
    known_keys,
    load_config,
    nearest_multiple,
    parse_config,
)
from vlm_mhpo.errors import ConfigError

ROOT = Path(vlm_mhpo.__file__).parent


@pytest.mark.parametrize(
    ("changes", "sentence"), BAD_VALUES, ids=[f"{i}-{'+'.join(c)}" for i, (c, _) in enumerate(BAD_VALUES)]
)
def test_a_bad_value_ends_in_its_sentence(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_config(with_values(minimal(), changes), where="my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    assert sentence in text
    # No traceback talk and no address of pydantic's documentation.
    assert "pydantic" not in text
    assert "http" not in text


@pytest.mark.parametrize(
    "key",
    [
        "output_dir",
        "model",
        "model.path",
        "data",
        "data.train",
        "train",
        "train.max_steps",
        "train.num_prompts_per_step",
    ],
)
def test_a_missing_key_is_named(key):
    values = minimal()
    node = values
    *sections, leaf = key.split(".")
    for section in sections:
        node = node[section]
    del node[leaf]
    with pytest.raises(ConfigError, match=f"{key} is required"):
        parse_config(values)


@pytest.mark.parametrize(("key", "hint"), MISTYPED)
def test_an_unknown_key_names_the_nearest(key, hint):
    with pytest.raises(ConfigError) as caught:
        parse_config(with_values(minimal(), {key: 1}))
    assert f"unknown key {key}. Did you mean {hint}" in str(caught.value)


def test_an_unknown_key_of_a_reward_names_the_nearest():
    values = minimal(rewards__functions=[{"name": "accuracy", "wieght": 2}])
    with pytest.raises(ConfigError, match=r"unknown key rewards\.functions\.0\.wieght\. Did you mean \S*weight\?"):
        parse_config(values)


@pytest.mark.parametrize(
    "key",
    [
        "train.per_device_train_batch_size",
        "gradient_accumulation_steps",
        "train.steps_per_generation",
        "train.num_train_epochs",
    ],
)
def test_a_key_of_trl_that_we_do_not_have_says_what_to_use(key):
    with pytest.raises(ConfigError) as caught:
        parse_config(with_values(minimal(), {key: 1}))
    advice = str(caught.value).split(f"unknown key {key}. ", 1)[1]
    named = [name for name in known_keys() if "." in name and name in advice]
    assert named, advice


@pytest.mark.parametrize(("name", "key"), [("mhpo", "epsilon"), ("grpo", "c"), ("grpo", "normalize_hazard")])
def test_a_key_of_the_other_objective_says_so(name, key):
    with pytest.raises(
        ConfigError, match=rf"unknown key objective\.{key}\. It belongs to another objective: set objective.name"
    ):
        parse_config(minimal(objective__name=name, **{f"objective__{key}": 1}))


@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.model_fields["name"].default)
def test_errors_name_the_key_and_not_the_branch_of_the_union(kind):
    name = kind.model_fields["name"].default
    with pytest.raises(ConfigError) as caught:
        parse_config(minimal(objective__name=name, objective__beta=-1, objective__betta=1))
    assert "configuration: objective.beta: Input should be greater than or equal to 0" in str(caught.value)
    assert "unknown key objective.betta. Did you mean objective.beta?" in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_config(minimal(train__learning_rate=-1, rollout__top_p=2, sead=1))
    text = str(caught.value)
    assert all(part in text for part in ("train.learning_rate", "rollout.top_p", "sead"))
    assert len(text.splitlines()) == 3


def test_an_objective_without_a_name_is_mhpo():
    assert parse_config(minimal(objective__c=2.0)).objective == MhpoConfig(c=2.0)
    assert parse_config(minimal(objective__name="grpo", objective__epsilon=0.3)).objective == GrpoConfig(epsilon=0.3)


def test_a_validated_configuration_cannot_change():
    config = parse_config(minimal())
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.train.max_steps = 3


def test_the_resolved_configuration_is_read_back_as_it_was():
    config = parse_config(minimal(objective__name="grpo", seed=7, data__eval=["a", "b"]))
    assert parse_config(config.model_dump()) == config


# ---- files and overrides ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_set_values_of_every_type(file):
    config = load_config(
        file,
        [
            "train.learning_rate=1e-6",
            "model.freeze_vision_tower=true",
            "data.eval=null",
            "data.train=[a.jsonl,b.jsonl]",
            "objective.name=grpo",
            "objective.epsilon_high=0.28",
            "data.system_prompt=Think = well",
            "seed=3",
        ],
    )
    assert config.train.learning_rate == 1e-6
    assert config.model.freeze_vision_tower is True
    assert config.data.eval is None
    assert config.data.train == ["a.jsonl", "b.jsonl"]
    assert config.objective == GrpoConfig(epsilon_high=0.28)
    assert config.data.system_prompt == "Think = well"
    assert config.seed == 3
    # What no override names stays.
    assert config.model.path == "some/model"


def test_the_last_override_wins(file):
    assert load_config(file, ["seed=1", "seed=2"]).seed == 2


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL + "  learning_rate: 1e-6\n")
    assert load_config(path).train.learning_rate == 1e-6


@pytest.mark.parametrize("override", ["train.max_steps", "--seed", ""])
def test_an_override_without_an_equals_sign_is_refused(file, override):
    with pytest.raises(ConfigError, match=r"not of the form key\.sub=value"):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trian.max_steps=3", "unknown key trian. Did you mean train?"),
        ("train.max_steps=many", "train.max_steps: Input should be a valid integer"),
        ("seed.sub=3", "seed"),
        ("=3", "my.yaml"),
        ("train=3", "train: Input should be a valid dictionary"),
        ("data.train=[a", "my.yaml"),
        ("model.path=${nothing.here}", "my.yaml"),
    ],
)
def test_a_bad_override_ends_in_one_sentence(file, override, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"a: [1, 2",
        b"- 1\n- 2\n",
        b"",
        b"just words",
        b"\xff\xfe\x00",
        b"a: 1\na: 2\n",
        b"\ta: 1",
        b"!!python/object:os.system {}",
    ],
)
def test_a_file_that_is_no_mapping_ends_in_one_sentence(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path)


def test_a_yaml_error_keeps_its_line_and_reason(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("model:\n  path: x\n   dtype: y\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: .* line 3, column 9: mapping values are not allowed in this"):
        load_config(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"no configuration file at {path}"):
            load_config(path)


def test_loading_does_not_import_torch(file):
    program = (
        "import sys; from vlm_mhpo.config import load_config, known_keys; import vlm_mhpo.runtime.seeding;"
        f"load_config({str(file)!r}, ['seed=1']); known_keys();"
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


# ---- ranks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_that_divide_the_minibatch_are_accepted(world_size):
    check_world_size(parse_config(minimal()), world_size)


@pytest.mark.parametrize(
    ("world_size", "changes", "sentence"),
    [
        (4, {}, "each minibatch has 2 prompts .* 4 ranks cannot share evenly: set train.num_prompts_per_step=16"),
        (3, {}, "3 ranks cannot share evenly: set train.num_prompts_per_step=12"),
        (2, {"sft.num_prompts_per_step": 63}, "sft.num_prompts_per_step=63 cannot be shared by 2 ranks: set 6[24]"),
    ],
)
def test_ranks_that_do_not_divide_the_batch_are_refused_with_a_number_that_works(world_size, changes, sentence):
    values = with_values(minimal(), {"sft.num_prompts_per_step": 12, **changes})
    with pytest.raises(ConfigError, match=sentence):
        check_world_size(parse_config(values), world_size)


@pytest.mark.parametrize("prompts", range(1, 40))
def test_the_advised_number_is_always_accepted(prompts):
    for minibatches in (1, 3, 4):
        for world_size in (1, 2, 5):
            advised = nearest_multiple(prompts, minibatches * world_size)
            values = minimal(train__num_prompts_per_step=advised, train__num_minibatches=minibatches)
            check_world_size(parse_config(with_values(values, {"sft.num_prompts_per_step": 10})), world_size)


def test_updates_per_step():
    assert parse_config(minimal(train__num_minibatches=2, train__num_iterations=3)).updates_per_step == 6


# ---- the schema ------------------------------------------------------------------------------------------------

SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if isinstance(field.annotation, type)}
SECTIONS = {name: kind for name, kind in SECTIONS.items() if issubclass(kind, BaseModel)}
SECTIONS |= {
    f"{name}.{key}": field.annotation
    for name, kind in SECTIONS.items()
    for key, field in kind.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


def leaves() -> list[tuple[str, str]]:
    """(section, key) of every value, worked out from the classes and not from known_keys."""
    found = [
        (section, key)
        for section, kind in SECTIONS.items()
        for key in kind.model_fields
        if f"{section}.{key}" not in SECTIONS
    ]
    found += [("objective", key) for kind in OBJECTIVES for key in kind.model_fields]
    return sorted(set(found) | {("", key) for key in Config.model_fields if key not in SECTIONS and key != "objective"})


def test_known_keys_are_the_whole_schema():
    expected = {f"{section}.{key}" if section else key for section, key in leaves()} | set(SECTIONS) | {"objective"}
    assert len(SECTIONS) == 14
    keys = set(known_keys())
    assert expected <= keys
    assert len(known_keys()) == len(keys)
    # Beyond that, the keys of the rewards in the list, in whatever way it writes them.
    assert {key.rpartition(".")[2] for key in keys - expected} <= set(RewardConfig.model_fields)


def test_every_key_has_a_description():
    kinds = [Config, *SECTIONS.values(), *OBJECTIVES, RewardConfig]
    missing = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if not field.description and name not in (*SECTIONS, "objective", "name")
    ]
    assert missing == []


def test_every_default_is_a_value_that_the_schema_accepts():
    # pydantic does not check defaults by itself.
    values = parse_config(minimal()).model_dump()
    assert parse_config(values).model_dump() == values


def attribute_reads() -> set[tuple[str, str]]:
    """(owner, attribute) of every attribute read outside the schema; owner is the last name before it."""
    found = set()
    for source in ROOT.rglob("*.py"):
        if source.relative_to(ROOT).parts[0].startswith("config"):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                found.add((getattr(owner, "attr", getattr(owner, "id", "")), node.attr))
    return found


# Names under which the package holds a section outside `config.SECTION.key`.
HOLDERS = {
    "": ("config", "parsed"),
    "data": ("data", "config"),
    "data.video": ("config",),
    "train": ("train", "config", "optimizer"),
    "sft": ("sft", "config", "optimizer"),
    "rewards": ("rewards", "config"),
    "deepspeed": ("deepspeed", "config"),
    "logging": ("logging",),
    "faults": ("faults", "config"),
    "checkpoint": ("checkpoint", "_config"),
    "eval": ("eval", "evaluation", "_config"),
    "rollout.vllm": ("vllm", "config"),
    "rollout.mismatch": ("mismatch", "config"),
}


def test_no_accepted_key_without_a_reader():
    from vlm_mhpo.models.loading import load_policy

    reads = attribute_reads()
    unread = []
    for section, key in leaves():
        if section == "model":
            # Handed over whole: load_policy(**config.model.model_dump()).
            is_read = key in inspect.signature(load_policy).parameters
        elif section == "objective":
            # The constants of a loss have the test below.
            is_read = key not in BaseObjective.model_fields or ("config", key) in reads or ("objective", key) in reads
        else:
            # What counts of the two bounds is said in one word.
            key_read = "bounds" if section == "rollout.mismatch" and key in ("min", "max") else key
            is_read = any((holder, key_read) in reads for holder in HOLDERS.get(section, (section,)))
        if not is_read:
            unread.append(f"{section}.{key}".lstrip("."))
    assert unread == []


def other_value(value):
    """A valid value that differs."""
    return not value if isinstance(value, bool) else 0.5 if value is None else value * 0.5


@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.model_fields["name"].default)
def test_every_constant_of_an_objective_reaches_its_loss(kind):
    from vlm_mhpo.objectives import LOSSES

    default = kind()
    parameters = inspect.signature(LOSSES[default.name]).parameters
    assert set(default.constants()) <= set(parameters)
    for key in set(kind.model_fields) - set(BaseObjective.model_fields):
        changed = kind(**{key: other_value(getattr(default, key))})
        assert changed.constants() != default.constants(), key


def test_load_policy_takes_no_setting_that_the_schema_hides():
    from vlm_mhpo.models.loading import load_policy

    assert set(inspect.signature(load_policy).parameters) - {"zero3_settings", "merges_adapter"} == set(
        ModelConfig.model_fields
    )


# ---- the gate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted((ROOT.parent / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(recipe):
    assert load_config(recipe).output_dir


def test_at_least_forty_bad_configurations_have_their_sentence():
    assert len(BAD_VALUES) + len(MISTYPED) >= 40


def test_importing_and_loading_take_half_a_second_of_cpu(file):
    program = (
        "import resource; from vlm_mhpo.config import load_config;"
        f"load_config({str(file)!r}); own = resource.getrusage(resource.RUSAGE_SELF);"
        "print(own.ru_utime + own.ru_stime)"
    )
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
        )
        times.append(float(done.stdout))
    # The least of three: a busy machine makes a process slower, never faster. The interpreter's own start is included.
    assert min(times) < 0.5, times
