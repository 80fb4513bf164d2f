"""Reading a run folder: what is kept, what becomes a note, what is refused."""

import json
import shutil

import pytest

from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.reading import clean_text
from vlm_mhpo.records.run_folder import load_run


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_run_has_no_notes(run_dir):
    assert load_run(run_dir).notes == ()


def test_a_metric_keeps_only_the_steps_that_have_it(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "eval/accuracy": 0.5}\n')
    run = load_run(run_dir)
    assert run.metrics["reward"].steps == tuple(range(1, 13))
    assert (run.metrics["eval/accuracy"].steps, run.metrics["eval/accuracy"].values) == ((20,), (0.5,))


def test_a_step_written_again_after_a_resume_keeps_its_last_value(run_dir):
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 0.1}\n{"step": 2, "reward": 9}\n{"step": 2, "reward": 0.2}\n'
    )
    assert load_run(run_dir).metrics["reward"].values == (0.1, 0.2)


def test_a_last_line_that_was_cut_off_is_left_out_and_noted(run_dir):
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 13, "rew')
    run = load_run(run_dir)
    assert run.metrics["reward"].steps[-1] == 12
    assert any("cut off" in note for note in run.notes)


def test_a_damaged_line_in_the_middle_is_named(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "reward": 0.1}\n{"step": 2,\n{"step": 3, "reward": 0.2}\n')
    with pytest.raises(ReportError, match=r"metrics\.jsonl, line 2: not JSON"):
        load_run(run_dir)


@pytest.mark.parametrize("row", ['{"reward": 1}', '{"step": "1"}', '{"step": true}', "[1]"])
def test_a_row_without_an_integer_step_is_refused(run_dir, row):
    (run_dir / "metrics.jsonl").write_text(row + "\n")
    with pytest.raises(ReportError, match="line 1"):
        load_run(run_dir)


def test_values_that_are_not_finite_are_left_out_and_counted(run_dir):
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "kl": NaN}\n{"step": 2, "kl": 0.5}\n{"step": 3, "kl": Infinity}\n'
    )
    run = load_run(run_dir)
    assert run.metrics["kl"].values == (0.5,)
    assert any(note.startswith("2 values") for note in run.notes)


def test_a_folder_with_nothing_to_show_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"neither metrics\.jsonl"):
        load_run(tmp_path)
    with pytest.raises(ReportError, match="no run folder"):
        load_run(tmp_path / "absent")


@pytest.mark.parametrize(
    ("absent", "word"),
    [
        ("run.json", "No run.json"),
        ("metrics.jsonl", "No metrics"),
        ("eval", "No evaluation"),
        ("samples", "No samples"),
    ],
)
def test_each_absent_part_is_a_note(run_dir, absent, word):
    path = run_dir / absent
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [note for note in load_run(run_dir).notes if note.startswith(word)]


def test_a_problem_that_is_listed_twice_is_refused(run_dir):
    path = run_dir / "eval/after.json"
    items = json.loads(path.read_text())["items"]
    edit_json(path, items=[*items, items[0]])
    with pytest.raises(ReportError, match="problem 'a' is listed 2 times"):
        load_run(run_dir)


def test_an_accuracy_that_the_problems_contradict_is_noted(run_dir):
    edit_json(run_dir / "eval/after.json", accuracy=0.9)
    assert "eval/after.json says accuracy 0.9000, but its problems give 0.6000." in load_run(run_dir).notes


def test_a_gallery_that_is_part_of_the_evaluation_is_no_contradiction(run_dir):
    edit_json(run_dir / "eval/after.json", num_rows=500, accuracy=0.9)
    assert load_run(run_dir).notes == ()


def test_a_damaged_evaluation_names_file_and_field(run_dir):
    edit_json(run_dir / "eval/after.json", num_rows="many")
    with pytest.raises(ReportError, match=r"after\.json: num_rows: "):
        load_run(run_dir)
    (run_dir / "eval/after.json").write_text("{")
    with pytest.raises(ReportError, match=r"after\.json: not JSON"):
        load_run(run_dir)


def test_the_samples_are_those_of_the_newest_step(run_dir):
    row = json.loads((run_dir / "samples/step_000010.jsonl").read_text())
    (run_dir / "samples/step_000002.jsonl").write_text(json.dumps(row | {"step": 2}) + "\n")
    assert [sample.step for sample in load_run(run_dir).samples] == [10]


def test_text_that_no_page_can_hold_is_replaced():
    assert clean_text("a\ud800b\x00c\td\n") == "a?b\N{REPLACEMENT CHARACTER}c\td\n"
    assert clean_text(None) == ""
