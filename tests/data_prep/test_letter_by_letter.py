"""Audit and prepare say which golds can only be compared letter by letter, and how many."""

import json

from typer.testing import CliRunner

from data_prep.audit import as_text, audit
from data_prep.prepare.prepare import prepare
from data_prep.schema import make_row
from vlm_mhpo import cli

TRIANGLES = "\\triangle ABC \\sim \\triangle DEF"
# By hand: a name and a statement are no values; of two golds one is a value.
GOLDS = {"a": "1/2", "b": "New York", "c": "B", "d": TRIANGLES, "e": "$x \\ge 3$", "f": "\\sum_{i=1}^{3} i"}
LETTERS = {"b": "New York", "d": TRIANGLES}


def write(folder):
    rows = [{"id": name, "problem": f"Question {name}?", "answer": gold} for name, gold in GOLDS.items()]
    rows += [{"id": "g", "problem": "Question g?", "answer": "half", "equivalent_answers": ["0.5"]}]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_audit_counts_and_names_them(tmp_path):
    found = audit(write(tmp_path))
    (check,) = [defect for defect in found.defects if defect.check == "letters"]
    assert {offence.row.id: offence.note for offence in check.offences} == LETTERS
    assert (check.num_rows, check.num_checked, check.severity) == (2, 7, "look")
    assert found.num_defects == 0  # a name may be meant
    (line,) = [line for line in as_text(found).splitlines() if "letter by letter" in line]
    assert line.split()[:3] == ["look", "2", "7"] and line.endswith("b: New York")


def test_prepare_counts_and_lists_them(tmp_path):
    rows = [make_row(id=name, problem=f"{name}?", answer=gold) for name, gold in GOLDS.items()]
    report = prepare(rows, tmp_path / "out")
    assert dict(report.letters) == LETTERS
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["letter_by_letter"] == {"num_rows": 2, "examples": LETTERS}
    listed = (tmp_path / "out" / "letter_by_letter.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [{"id": name, "gold": gold} for name, gold in LETTERS.items()]


def test_both_commands_say_so(tmp_path):
    source = str(write(tmp_path))
    made = CliRunner().invoke(cli.app, ["prepare", source, "--out", str(tmp_path / "out")])
    assert made.exit_code == 0 and "2 golds can only be compared letter by letter" in made.output
    assert "'New York' of row b" in made.output
    made = CliRunner().invoke(cli.app, ["audit", source, "--out", str(tmp_path / "audit")])
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert made.exit_code == 0 and "it is compared letter by letter" in page and TRIANGLES in page
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())["defects"]
    (check,) = [defect for defect in found if defect["check"] == "letters"]
    assert [offence["row"]["id"] for offence in check["offences"]] == ["b", "d"]


def test_a_set_of_values_says_nothing(tmp_path):
    rows = [make_row(id="a", problem="a?", answer="1/2")]
    report = prepare(rows, tmp_path / "out")
    assert report.letters == () and not (tmp_path / "out" / "letter_by_letter.jsonl").exists()


def test_lists_are_read_as_the_commands_are_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "problem": "Which?", "answer": ["3", "5"]}) + "\n")
    refused = CliRunner().invoke(cli.app, ["prepare", str(path), "--out", str(tmp_path / "out")])
    assert refused.exit_code != 0 and "--answer-lists" in str(refused.output) + str(refused.exception)
    for meaning in ("any", "all"):
        out = str(tmp_path / meaning)
        told = CliRunner().invoke(cli.app, ["prepare", str(path), "--out", out, "--answer-lists", meaning])
        assert told.exit_code == 0 and "1 rows in" in told.output
    audited = CliRunner().invoke(
        cli.app, ["audit", str(path), "--answer-lists", "any", "--strict", "--out", str(tmp_path / "audit")]
    )
    assert audited.exit_code == 0 and "3 or 5" not in audited.output
