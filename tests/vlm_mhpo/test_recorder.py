"""What a run leaves behind has no gap, no double row and no torn line, and can be read back."""

import importlib
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.builders import completion, mixed_rows, picture, problem_row, prompts_of, scored
from vlm_mhpo.config import LoggingConfig, load_config, parse_config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.records.images import store_images
from vlm_mhpo.records.recorder import Recorder, keep_rows
from vlm_mhpo.records.run_file import versions, write_run_file

QUIET = LoggingConfig(tensorboard=False)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- metrics.jsonl ---------------------------------------------------------------------------------------------


def test_rows_are_written_as_they_come(tmp_path):
    recorder = Recorder(tmp_path / "run", QUIET, start_step=0)
    recorder.write_metrics(1, {"reward": 0.1 + 0.2, "time": 1.5})
    # Readable while the run goes on.
    assert rows_of(tmp_path / "run") == [{"step": 1, "reward": 0.30000000000000004, "time": 1.5}]
    recorder.write_metrics(2, {"reward": 1e-300})
    recorder.close()
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("start", range(6))
def test_continuing_leaves_neither_a_gap_nor_a_double_row(tmp_path, start):
    first = Recorder(tmp_path, QUIET, start_step=0)
    for step in range(5):
        first.write_metrics(step, {"reward": float(step)})
    again = Recorder(tmp_path, QUIET, start_step=start)
    for step in range(start + 1, 8):
        again.write_metrics(step, {"reward": 10.0 + step})
    rows = rows_of(tmp_path)
    kept = min(start, 4)
    # Row 0 is the evaluation before the first step, which a run that starts over makes again.
    first_rows = range(kept + 1) if start else ()
    assert [row["step"] for row in rows] == [*first_rows, *range(start + 1, 8)]
    assert all(row["reward"] == (row["step"] if row["step"] <= kept else 10.0 + row["step"]) for row in rows)


def test_a_missing_metric_is_seen_and_added_to_the_last_row(tmp_path):
    recorder = Recorder(tmp_path, QUIET, start_step=0)
    recorder.write_metrics(1, {"reward": 0.5})
    recorder.write_metrics(2, {"reward": 1.0})
    assert recorder.lacks(2, "eval/accuracy") and not recorder.lacks(2, "reward")
    assert not recorder.lacks(1, "eval/accuracy")  # not the last row
    recorder.amend(2, {"eval/accuracy": 0.25})
    assert rows_of(tmp_path) == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 1.0, "eval/accuracy": 0.25}]
    with pytest.raises(ValueError, match="the last row is of step 2, not 3"):
        recorder.amend(3, {"eval/accuracy": 0.25})


LINES = '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n'


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b"", [1, 2]),
        (b'{"step": 3, "a"', [1, 2]),
        (b'{"step": 3, "a": 3}', [1, 2, 3]),
        (b'{"step": 3, "a": 3}\n{"st', [1, 2, 3]),
        (b"\n", [1, 2]),
        (b"\0\0\0\0\0", [1, 2]),
        (b"null\n", [1, 2]),
        (b"[]\n", [1, 2]),
        (b"{}\n", [1, 2]),
        (b'{"step": null}\n', [1, 2]),
        (b'{"step": "3"}\n', [1, 2]),
        (b"\xff\xfe\x80", [1, 2]),
        (b'{"step": 9, "a": 9}\n{"step": 3, "a": 3}\n', [1, 2]),
    ],
)
def test_a_torn_end_is_cut_off(tmp_path, tail, expected):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINES.encode() + tail)
    keep_rows(file, 5)
    text = file.read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == expected
    assert text.endswith("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_lines_that_stay_keep_their_bytes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "x":   0.1000}\n{"step": 2}\n')
    keep_rows(file, 1)
    assert file.read_text() == '{"step": 1, "x":   0.1000}\n'
    keep_rows(tmp_path / "nothing.jsonl", 1)
    assert not (tmp_path / "nothing.jsonl").exists()


# ---- samples and images --------------------------------------------------------------------------------------


def groups_of(tiny):
    model = tiny("qwen2_5_vl")
    return [
        scored(prompt, [completion([1, 2, 3]), completion([4], truncated=True)], [0.25, 1.1])
        for prompt in prompts_of(model)
    ]


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (25, [1])])
def test_sample_tables_come_at_the_first_step_and_every_so_many(tiny, tmp_path, every, expected):
    recorder = Recorder(tmp_path, LoggingConfig(tensorboard=False, sample_steps=every), start_step=0)
    for step in range(1, 7):
        recorder.write_samples(step, groups_of(tiny))
    found = sorted(path.name for path in (tmp_path / "samples").iterdir()) if expected else []
    assert found == [f"step_{step:06d}.jsonl" for step in expected]
    assert (tmp_path / "samples").exists() == bool(expected)


def test_a_sample_table_holds_prompts_completions_and_verdicts(tiny, tmp_path):
    logging = LoggingConfig(tensorboard=False, sample_steps=1, sample_prompts=2)
    Recorder(tmp_path, logging, start_step=0).write_samples(4, groups_of(tiny))
    lines = (tmp_path / "samples" / "step_000004.jsonl").read_text().splitlines()
    table = [json.loads(line) for line in lines]
    assert [(row["prompt_id"], row["num_tokens"], row["truncated"]) for row in table] == [
        ("two", 3, False),
        ("two", 1, True),
        ("one", 3, False),
        ("one", 1, True),
    ]
    assert [row["reward"] for row in table] == [0.25, 1.1, 0.25, 1.1]
    assert [row["rewards"] for row in table] == [{"accuracy": 0.25}, {"accuracy": 1.1}] * 2
    assert {row["step"] for row in table} == {4}
    assert {row["gold"] for row in table} == {"7"}
    assert table[0]["problem"] == "Compare <image> with <image> and add."
    originals = mixed_rows(tiny("qwen2_5_vl"))[0].images
    assert len(table[0]["images"]) == 2
    for name, encoded in zip(table[0]["images"], originals, strict=True):
        assert not Path(name).is_absolute()
        with Image.open(tmp_path / name) as stored, Image.open(io.BytesIO(encoded)) as original:
            assert stored.convert("RGB").tobytes() == original.convert("RGB").tobytes()


def test_a_picture_is_stored_once_whether_bytes_or_file(tmp_path):
    encoded = picture(56, 28)
    file = tmp_path / "x.png"
    file.write_bytes(encoded)
    run = tmp_path / "run"
    run.mkdir()
    (one,), (two,), (other,) = (store_images(run, [image]) for image in (encoded, file, picture(56, 28, seed=1)))
    assert one == two != other
    assert len(list((run / "images").iterdir())) == 2
    assert store_images(run, []) == []


def test_a_text_only_prompt_leaves_no_picture(tiny, tmp_path):
    prompt = tiny("qwen2").builder()(problem_row("t", "1 + 1 ?"))
    Recorder(tmp_path, QUIET, start_step=0).write_samples(1, [scored(prompt, [completion([1]), completion([2])])])
    assert not (tmp_path / "images").exists()


# ---- run files -------------------------------------------------------------------------------------------------


def config_of(tmp_path: Path, **objective):
    return parse_config(
        {
            "output_dir": str(tmp_path / "run"),
            "seed": 11,
            "model": {"path": "some/model"},
            "data": {
                "train": ["a.jsonl", "b.jsonl"],
                "instruction": " Answer in \\boxed{}: \"yes\" # or 'no'\n",
                "system_prompt": "1e-6",
            },
            "train": {"max_steps": 4, "num_prompts_per_step": 8, "learning_rate": 1e-6},
            "objective": objective,
        }
    )


@pytest.mark.parametrize("name", ["mhpo", "grpo"])
def test_the_written_configuration_is_a_configuration_that_repeats_the_run(tmp_path, name):
    config = config_of(tmp_path, name=name)
    write_run_file(tmp_path / "run", config.model_dump(), {"family": "qwen2_vl", "num_parameters": 3, "trainable": 2})
    assert load_config(tmp_path / "run" / "config.yaml") == config
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert parse_config(record["config"]) == config
    assert record["seed"] == 11
    assert record["model"] == {"family": "qwen2_vl", "num_parameters": 3, "trainable": 2}
    assert record["versions"]["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_versions_are_those_that_are_imported():
    found = versions()
    for package in ("torch", "transformers", "deepspeed", "datasets"):
        assert found[package].split("+")[0] == importlib.import_module(package).__version__.split("+")[0]
    assert found["pillow"] == importlib.import_module("PIL").__version__


def test_secrets_of_the_environment_are_not_recorded(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOMETHING"):
        monkeypatch.setenv(name, "marked-secret-value")
    write_run_file(tmp_path / "run", config_of(tmp_path).model_dump(), {})
    Recorder(tmp_path / "run", QUIET, start_step=0).write_metrics(1, {"reward": 1.0})
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"marked-secret-value" in path.read_bytes()]


# ---- other writers ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_hears_every_metric_and_forgets_what_is_done_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging = LoggingConfig(tensorboard=True)
    first = Recorder(tmp_path, logging, start_step=0)
    for step in (1, 2, 3):
        first.write_metrics(step, {"reward": step / 4, "mhpo/psi_max": 1.0})
    first.close()
    second = Recorder(tmp_path, logging, start_step=1)
    second.write_metrics(2, {"reward": 7.0})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"reward", "mhpo/psi_max"}
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.25), (2, 7.0)]


def test_no_tensorboard_unless_asked_for(tmp_path):
    recorder = Recorder(tmp_path, QUIET, start_step=0)
    recorder.write_metrics(1, {"reward": 1.0})
    recorder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_wandb_without_the_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlm-mhpo\[wandb\]'"):
        Recorder(tmp_path, LoggingConfig(tensorboard=False, wandb=True), start_step=0)
