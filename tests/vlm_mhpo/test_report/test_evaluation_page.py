"""The evaluation page's source: right numbers, rows and images in one block, hostile text harmless, refusals."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from tests.vlm_mhpo.test_report.evaluation_cases import HOSTILE, LINK, hostile_folders, small_folders
from vlm_mhpo.pages import ReportError, evaluation_rows
from vlm_mhpo.pages.evaluation_page import short_model, write_page


class Reader(HTMLParser):
    """Tags, attributes, visible text, and the content of script and style elements."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.raw = [], [], [], {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = f"{tag}#{dict(attrs).get('id', '')}" if tag in ("script", "style") else None

    def handle_data(self, data):
        if self.inside:
            self.raw[self.inside] = data
        else:
            self.texts.append(data.replace("\N{NO-BREAK SPACE}", " "))

    def handle_endtag(self, tag):
        self.inside = None

    inside = None

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict:
        return json.loads(self.raw["script#data"])


@pytest.fixture
def folders(tmp_path):
    return small_folders(tmp_path)


def read(after, out, before=None) -> Reader:
    return Reader(write_page(after, out, before).read_text(encoding="utf-8"))


def change_results(folder, **changes):
    path = folder / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | changes))


def test_the_table_says_what_the_results_say(folders, tmp_path):
    text = read(folders[0], tmp_path).text
    # shapes: 3 of 5 right with a hand-made interval of 10 points each way; words: 1 of 2.
    assert "Shapes test 60.0 % 50.0 % to 70.0 %" in text
    assert "Words test † 50.0 % 40.0 % to 60.0 %" in text
    assert "+20.0 −30.0 to +60.0 0.620 2 : 1" in text
    assert "protocol 0123456789ab" in text and "† Deviations from the official protocol. Words: no judge." in text
    assert "Shapes: The shapes authors, 2024; Words: The words authors, 2024." in text
    assert "blank 10.0 % 0.0 % to 20.0 % +30.0 +10.0 to +50.0 < 0.001" in text
    assert "worst case 25.0 %" in text


def test_the_headline_is_the_plain_mean_over_benchmarks(folders, tmp_path):
    # (60 + 50) / 2 after; (40 + 50) / 2 before.
    assert "plain mean of 2 benchmarks 55.0 %" in read(folders[0], tmp_path).text
    text = read(*folders[:1], tmp_path, folders[1]).text
    assert "plain mean of 2 benchmarks 45.0 % → 55.0 %" in text and "+10.0 points" in text
    assert "2 wrong → right 1 right → wrong" in text


def test_every_row_is_in_the_block_with_its_outcome_and_both_sides(folders, tmp_path):
    data = read(folders[0], tmp_path, folders[1]).data
    outcomes = {row["id"]: row["outcome"] for row in data["rows"]}
    assert outcomes == {
        **{"s1": "fixed", "s2": "broken", "s3": "wrong", "s4": "right", "s5": "fixed"},
        **{"w1": "right", "w2": "wrong"},
    }
    first = data["rows"][0]
    assert [first["before"][0]["text"], first["after"][0]["text"]] == ["before says 6", "after says 7"]
    assert all(uri.startswith("data:image/webp;base64,") for uri in data["pictures"]) and len(data["pictures"]) == 7
    assert {place for row in data["rows"] for place in row["images"]} == set(range(7))


def test_without_a_baseline_there_is_right_and_wrong_only(folders, tmp_path):
    reader = read(folders[1], tmp_path)
    assert {row["outcome"] for row in reader.data["rows"]} == {"right", "wrong"}
    radios = [value for tag, name, value in reader.attributes if (tag, name) == ("input", "value")]
    assert radios == ["", "wrong", "right", "disputed"]
    assert "against" not in reader.text


def test_several_completions_are_right_when_more_than_half_are(folders, tmp_path):
    path = folders[0] / "results/words.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    halves = [c | {"official": right} for c, right in zip(row["completions"] * 4, (1, 1, 0, 0), strict=True)]
    path.write_text("".join(json.dumps(row | {"id": str(n), "completions": halves[:n]}) + "\n" for n in (2, 3, 4)))
    rows = read(folders[0], tmp_path).data["rows"][5:]
    # 2 of 2, 2 of 3, 2 of 4.
    assert [(row["id"], row["outcome"]) for row in rows] == [("2", "right"), ("3", "right"), ("4", "wrong")]


def test_nothing_is_fetched_and_only_the_pages_own_code_may_run(folders, tmp_path):
    reader = read(folders[0], tmp_path, folders[1])
    html = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", html)
    (policy,) = [v for _, name, v in reader.attributes if name == "content" and "default-src" in v]
    for kind, code in (("script", reader.raw["script#"]), ("style", reader.raw["style#"])):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert not [name for _, name, _ in reader.attributes if name == "style" or name.startswith("on")]


def test_hostile_text_stays_text(folders, tmp_path):
    clean = read(folders[0], tmp_path, folders[1])
    after, before = hostile_folders(tmp_path / "hostile")
    reader = read(after, tmp_path, before)
    html = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert reader.tags.count("script") == clean.tags.count("script") == 2
    assert "img" not in reader.tags and html.count("</script>") == 2 and "<!--" not in html
    assert not [value for _, name, value in reader.attributes if name == "href" and not value.startswith("#")]
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert "\u2028" not in reader.raw["script#data"]
    first, second = reader.data["rows"]
    assert (first["id"], second["id"]) == (HOSTILE, LINK)
    assert first["after"][0]["text"] == first["question"] == first["gold"] == HOSTILE
    assert "{{ 7*7 }}" in reader.text and "document.title='owned'" in reader.text


def test_a_number_that_is_none_is_a_dash(folders, tmp_path):
    results = json.loads((folders[0] / "results.json").read_text())
    for benchmark in results["benchmarks"]:
        benchmark |= {"scores": {"official": {"accuracy": None}}, "mean_tokens": None, "probes": {"blank": {}}}
    change_results(folders[0], benchmarks=results["benchmarks"])
    assert "Shapes test – – " in read(folders[0], tmp_path).text


def test_the_same_folders_give_the_same_bytes(folders, tmp_path):
    first = write_page(folders[0], tmp_path / "one.html", folders[1]).read_bytes()
    assert write_page(folders[0] / "results.json", tmp_path / "two.html", folders[1]).read_bytes() == first


def test_training_curves_are_drawn_when_the_model_is_a_run(folders, run_dir, tmp_path):
    (run_dir / "policy").mkdir()
    for model in (run_dir, run_dir / "policy"):
        change_results(folders[0], model=str(model))
        reader = read(folders[0], tmp_path)
        assert ("figure", "id", "chart-reward") in reader.attributes
        assert str(tmp_path) not in (tmp_path / "evaluation.html").read_text()
    assert short_model(str(run_dir / "policy")) == "a_run/policy" and short_model("org/name-7B") == "org/name-7B"


def test_another_protocol_is_refused_unless_the_comparison_allowed_it(folders, tmp_path):
    change_results(folders[1], protocol_hash="ba9876543210")
    with pytest.raises(ReportError, match="protocol ba9876543210"):
        write_page(folders[0], tmp_path, folders[1])
    allowed = {"baseline": "base", "protocol_differences": ["max_tokens 256, not 512"], "benchmarks": []}
    change_results(folders[0], comparison=allowed)
    assert (
        "Not the same protocol as the baseline's: max_tokens 256, not 512."
        in read(folders[0], tmp_path, folders[1]).text
    )


def test_a_comparison_with_another_model_is_not_shown_as_one_with_the_baseline(folders, tmp_path):
    assert "0.620 2 : 1" in read(folders[0], tmp_path, folders[1]).text
    change_results(folders[1], model="a third model")
    text = read(folders[0], tmp_path, folders[1]).text
    assert "0.620" not in text and "against a third model" in text
    assert "+20.0 – 2 : 1" in text  # the plain difference and the rows that changed are still known


def test_a_doubled_row_and_a_path_outside_are_refused(folders, tmp_path):
    path = folders[0] / "results/words.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(ReportError, match="'w1' is listed twice"):
        write_page(folders[0], tmp_path)
    results = json.loads((folders[0] / "results.json").read_text())
    results["benchmarks"][0]["items"] = "../before/results/shapes.jsonl"
    change_results(folders[0], benchmarks=results["benchmarks"])
    with pytest.raises(ReportError, match="outside"):
        write_page(folders[0], tmp_path)
    with pytest.raises(ReportError, match=r"There is no results\.json at"):
        write_page(tmp_path / "none", tmp_path)


def test_missing_rows_and_pictures_are_said(folders, tmp_path):
    (folders[0] / "results/words.jsonl").unlink()
    (folders[0] / "pictures/s1.png").unlink()
    (folders[1] / "results/shapes.jsonl").write_text("")
    text = read(folders[0], tmp_path, folders[1]).text
    assert "words: results/words.jsonl is missing" in text
    assert "1 images are not on the page" in text
    assert "5 rows are not in the baseline's results" in text
    assert "shapes: the file of its rows holds 0 of 5." in text


def test_pictures_stop_at_the_budget_with_changed_rows_first(folders, tmp_path, monkeypatch):
    one = max(map(len, read(folders[0], tmp_path, folders[1]).data["pictures"]))
    monkeypatch.setattr(evaluation_rows, "MAX_PICTURE_BYTES", 3 * one)
    rows = read(folders[0], tmp_path, folders[1]).data["rows"]
    assert [row["id"] for row in rows if row["images"]] == ["s1", "s2", "s5"]
    assert sum(row["hidden"] for row in rows) == 4


def test_long_completions_are_cut_to_keep_the_pages_size(folders, tmp_path, monkeypatch):
    path = folders[0] / "results/words.jsonl"
    path.write_text(path.read_text().replace("after says", "y" * 1_000))
    assert len(read(folders[0], tmp_path).data["rows"][5]["after"][0]["text"]) > 1_000
    monkeypatch.setattr(evaluation_rows, "MAX_TEXT_BYTES", 1_000)
    reader = read(folders[0], tmp_path)
    assert "cut to 300 characters" in reader.text
    assert reader.data["rows"][5]["after"][0]["text"] == "y" * 300 + " … (702 more characters)"
