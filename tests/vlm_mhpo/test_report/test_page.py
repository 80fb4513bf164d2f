"""The page: right numbers, nothing from outside, untrusted text escaped, parts may be absent."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from vlm_mhpo.pages import ReportError, run_page, write_report
from vlm_mhpo.pages.html import MAX_TEXT, seconds

HOSTILE = (
    "</pre></script><script>document.title='owned'</script><img src=x onerror=\"alert(1)\">{{ 7*7 }} $x$ &amp; '\""
)


class Reader(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.cards, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "article":
            self.cards.append(dict(attrs).get("data-outcome"))

    def handle_data(self, data):
        self.texts.append(data.replace("\N{NO-BREAK SPACE}", " "))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(run_dir) -> Reader:
    return Reader(write_report(run_dir).read_text(encoding="utf-8"))


def poison(value):
    """Every string of a JSON value replaced by hostile markup."""
    if isinstance(value, dict):
        return {key: poison(inner) if key not in ("id", "name", "images") else inner for key, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_the_head_names_the_best_checkpoint(run_dir):
    assert "best checkpoint" not in read(run_dir).text
    (run_dir / "checkpoints").mkdir()
    best = {"metric": "eval/accuracy", "value": 0.8125, "step": 40, "folder": "step_000040"}
    (run_dir / "checkpoints" / "best.json").write_text(json.dumps(best))
    assert "best checkpoint step 40, eval/accuracy 0.8125 (checkpoints/step_000040)" in read(run_dir).text


def test_configurations_are_shown_as_they_are_written(run_dir):
    record = json.loads((run_dir / "run.json").read_text())
    functions = [{"name": "accuracy", "weight": 0.1 + 0.2}, {"name": "format", "kwargs": {"tag": "answer"}}]
    record["config"]["rewards"] = {"functions": functions}
    record["config"]["train"] = {"learning_rate": 1e-6}
    (run_dir / "run.json").write_text(json.dumps(record))
    text = read(run_dir).text
    for line in ("rewards.functions.0.name accuracy", "rewards.functions.0.weight 0.3 ", "train.learning_rate 1e-06"):
        assert line in text
    assert "rewards.functions.1.kwargs.tag answer" in text and '{"' not in text


def test_the_headline_is_the_accuracy_that_the_problems_give(run_dir):
    # 2 of 5 right before, 3 of 5 after (conftest).
    text = read(run_dir).text
    assert "Held-out accuracy 40.0 % 12.0 % to 88.0 % → 60.0 % 12.0 % to 88.0 %" in text
    assert "+20.0 points on 5 held-out problems, greedy" in text
    assert "Sampled reward 0.10 → 0.65" in text


def test_the_run_is_described(run_dir):
    text = read(run_dir).text
    for words in (
        "qwen2_5_vl, 1.1 M parameters, 1 M trained",
        "MHPO",
        "rows.jsonl",
        "x, y",
        "0123456789ab",
        "12 steps",
    ):
        assert words in text
    assert "objective.c 1.5" in text and "torch (version) 2.15.0" in text
    assert "fine-tune 3 min 31 s" in text and "all 3 min 34 s" in text  # 2.5 + 211 = 213.5, rounded to even


def test_tables_compare_sources_and_verdicts(run_dir):
    text = read(run_dir).text
    assert "drawn 4 50.0 % 50.0 % +0.0 text 1 0.0 % 100.0 % +100.0" in text
    assert "correct 2 3 wrong 3 2" in text


def test_changed_problems_come_first_and_are_counted(run_dir):
    reader = read(run_dir)
    assert reader.cards[:5] == ["fixed", "fixed", "broken", "wrong", "right"]
    assert "all 5 wrong → right 2 right → wrong 1 still wrong 1 right 1" in reader.text


def test_pictures_are_embedded_and_nothing_is_fetched(run_dir):
    reader = read(run_dir)
    sources = [
        value for _, name, value in reader.attributes if name in ("src", "href", "xlink:href", "srcset", "action")
    ]
    assert sum(value.startswith("data:image/png;base64,") for value in sources) == 4
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    assert "link" not in reader.tags and "iframe" not in reader.tags
    html = (run_dir / "report.html").read_text()
    assert not re.search(r"https?://|url\((?!#)|@import", html)


def test_hostile_text_stays_text(run_dir):
    clean_tags = read(run_dir).tags
    for path in [run_dir / "run.json", *run_dir.glob("eval/*.json")]:
        path.write_text(json.dumps(poison(json.loads(path.read_text()))))
    samples = run_dir / "samples/step_000010.jsonl"
    samples.write_text(json.dumps(poison(json.loads(samples.read_text()))) + "\n")
    reader = read(run_dir)
    assert reader.tags.count("script") == 1
    assert reader.tags.count("img") == clean_tags.count("img")
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in reader.text and "document.title='owned'" in reader.text
    html = (run_dir / "report.html").read_text()
    assert "&lt;script&gt;document.title" in html and "<script>document" not in html


def test_only_the_pages_own_script_may_run(run_dir):
    html = write_report(run_dir).read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [v for _, name, v in Reader(html).attributes if name == "content" and "default-src" in v]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_same_folder_gives_the_same_bytes(run_dir, tmp_path):
    first = write_report(run_dir, tmp_path / "one.html").read_bytes()
    assert write_report(run_dir, tmp_path / "two.html").read_bytes() == first


def test_out_may_be_a_file_or_a_folder(run_dir, tmp_path):
    assert write_report(run_dir) == run_dir / "report.html"
    assert write_report(run_dir, tmp_path) == tmp_path / "report.html"
    assert write_report(run_dir, tmp_path / "new" / "page.html").is_file()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("keep", "said", "absent"),
    [
        (["metrics.jsonl"], "No evaluation (eval/*.json)", "gallery"),
        (["eval"], "No metrics.jsonl", "Every metric"),
        (["eval", "metrics.jsonl"], "No run.json", "Configuration"),
        (["metrics.jsonl", "samples"], "Training samples of step 10", "gallery"),
    ],
)
def test_a_page_is_made_from_what_is_there(run_dir, keep, said, absent):
    for path in run_dir.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    reader = read(run_dir)
    assert said in reader.text
    assert absent not in (reader.text if absent != "gallery" else str(reader.attributes))


def test_an_evaluation_alone_is_shown_without_a_comparison(run_dir):
    (run_dir / "eval/before.json").unlink()
    reader = read(run_dir)
    assert "Held-out accuracy 60.0 %" in reader.text
    assert "all 5 wrong 2 right 3" in reader.text


def test_nothing_to_show_is_a_report_error(tmp_path):
    with pytest.raises(ReportError, match="nothing to report"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_picture_outside_the_run_folder_is_not_embedded(run_dir):
    Image.new("RGB", (8, 8)).save(run_dir.parent / "secret.png")
    (run_dir / "pictures/link.png").symlink_to(run_dir.parent / "secret.png")
    path = run_dir / "eval/after.json"
    content = json.loads(path.read_text())
    broken = [
        "../secret.png",
        str(run_dir.parent / "secret.png"),
        "pictures/link.png",
        "no.png",
        "run.json",
        "a\0b",
        "x" * 999,
    ]
    content["items"][0]["images"] = broken
    path.write_text(json.dumps(content))
    reader = read(run_dir)
    assert f"{len(broken)} images not shown" in reader.text
    assert reader.tags.count("img") == 3


def test_pictures_stop_at_the_budget(run_dir, monkeypatch):
    one = len(next(v for tag, name, v in read(run_dir).attributes if (tag, name) == ("img", "src")))
    monkeypatch.setattr(run_page, "MAX_PICTURE_BYTES", 2 * one + 10)
    reader = read(run_dir)
    assert reader.tags.count("img") == 2
    assert reader.text.count("1 image not shown") == 2


def test_a_large_evaluation_shows_some_problems_and_says_so(run_dir, monkeypatch):
    monkeypatch.setattr(run_page, "MAX_ITEMS", 3)
    reader = read(run_dir)
    assert [outcome for outcome in reader.cards if outcome] == ["fixed", "fixed", "broken"]
    assert "The page holds 3 of them." in reader.text


def test_a_very_long_completion_is_cut_and_says_so(run_dir):
    path = run_dir / "eval/after.json"
    content = json.loads(path.read_text())
    content["items"][0]["completions"][0]["text"] = "z" * (MAX_TEXT + 123)
    path.write_text(json.dumps(content))
    html = write_report(run_dir).read_text()
    assert "… (123 more characters)" in html
    assert "z" * (MAX_TEXT + 1) not in html


def test_several_completions_are_scored_and_choices_are_lettered(run_dir):
    path = run_dir / "eval/after.json"
    content = json.loads(path.read_text()) | {"num_samples": 3, "temperature": 1.0}
    right, wrong = ({"text": "t", "verdict": v, "correct": v == "correct"} for v in ("correct", "wrong"))
    content["items"][0] |= {"completions": [right, wrong, right], "choices": ["3 cm", "7 cm"]}
    path.write_text(json.dumps(content))
    reader = read(run_dir)
    assert "2 of 3 right" in reader.text
    assert ("ol", "type", "A") in reader.attributes and "3 cm 7 cm" in reader.text
    assert "Avg@3, temperature 1" in reader.text


def test_half_a_character_in_a_completion_does_not_stop_the_page(run_dir):
    path = run_dir / "eval/after.json"
    content = json.loads(path.read_text())
    content["items"][0]["completions"][0]["text"] = "half \ud83d of a face \x00 图"
    path.write_text(json.dumps(content))
    assert "half ? of a face" in read(run_dir).text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4, "0.4 s"), (48.2, "48 s"), (59.7, "1 min 00 s"), (211.0, "3 min 31 s"), (7500, "2 h 05 min")],
)
def test_durations_read_like_durations(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(812, "812"), (94_300, "94.3 K"), (1_103_488, "1.1 M"), (7_615_616_512, "7.62 B")]
)
def test_parameters_are_counted_in_words(value, text):
    assert run_page._count(value) == text
