"""Reward functions that people run with TRL, EasyR1 and verl, unchanged; values by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import data_prep
import rewards as ours
from rewards import RewardError, RewardSpec, Sample, build_scorer
from rewards.functions import loading
from rewards.functions.loading import FunctionError, load_function

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"num_workers": 1, "timeout_s": 2.0, "memory_limit_bytes": 1 << 30}


def sample(completion: str, gold: str = "7", **columns) -> Sample:
    return Sample(
        prompt="What is 3 + 4?",
        completion=completion,
        gold=gold,
        template="boxed",
        kind="auto",
        choices=None,
        precision=None,
        unit=None,
        num_tokens=len(completion.split()),
        truncated=False,
        completion_ids=tuple(range(len(completion.split()))),
        columns=columns,
    )


def table_of(path: str, samples, *, kwargs=None, conversational=None, **state):
    spec = RewardSpec("mine", 1.0, path, kwargs or {}, conversational)
    with build_scorer([spec], **LIMITS) as scorer:
        return scorer.score(samples, **state)


def values_of(path: str, samples, **options):
    return table_of(path, samples, **options).by_name["mine"]


@pytest.fixture
def write(tmp_path):
    """Writes a file of functions and returns its path."""

    def write_file(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


# TRL's own


def test_trls_accuracy_reward_reads_messages_and_logs_its_columns():
    samples = [
        sample(r"So it is \boxed{\frac{1}{3}}", r"\frac{1}{3}"),
        sample(r"So it is \boxed{\frac{1}{2}}", r"\frac{1}{3}"),
        # A worked solution goes before the bare gold, as in TRL.
        sample(r"\boxed{5}", "7", solution=r"We add and get \boxed{5}"),
    ]
    found = table_of("trl.rewards:accuracy_reward", samples)
    assert found.by_name["mine"] == (1.0, 0.0, 1.0)
    assert found.columns["solution"] == (r"\frac{1}{3}", r"\frac{1}{3}", r"We add and get \boxed{5}")
    assert len(found.columns["gold_parsed"]) == 3


def test_trls_format_and_length_rewards(write):
    texts = ["<think>\n3 and 4\n</think>\n7", "<think>\n3 and 4\n7", "7"]
    assert values_of("trl.rewards:think_format_reward", list(map(sample, texts))) == (1.0, 0.0, 0.0)
    path = write(
        "from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment\n"
        "overlong = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)\n"
        "repeated = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)\n"
    )
    # 90 of 100 tokens lie half way into the last 20.
    assert values_of(f"{path}:overlong", [sample("a " * 90), sample("a")]) == (-0.5, 0.0)
    assert values_of(f"{path}:repeated", [sample("a b c d")]) == (0.0,)


# written by hand, in the forms that are around

CONVERSATIONAL = """
import re
def text_of(completion):
    return completion[0]["content"]
def plain(completions, **kwargs):
    return [float(completion[0]["content"] == "7") for completion in completions]
def guarded(prompts, completions, solution, **kwargs):
    values = []
    for prompt, completion, gold in zip(prompts, completions, solution):
        try:
            assert prompt[-1]["role"] == "user" and prompt[-1]["content"].startswith("What")
            values.append(1.0 if text_of(completion) == gold else 0.0)
        except Exception:
            values.append(0.0)
    return values
class Reward:
    def __call__(self, completions, **kwargs):
        return [float(len(message["content"])) for completion in completions for message in completion]
reward = Reward()
def texts(completions, **kwargs):
    return [float(re.fullmatch("[0-9]+", completion) is not None) for completion in completions]
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("plain", (1.0, 0.0)), ("guarded", (1.0, 0.0)), ("reward", (1.0, 2.0)), ("texts", (1.0, 1.0))],
)
def test_a_function_gets_messages_if_it_or_its_helper_reads_them(write, name, expected):
    assert values_of(f"{write(CONVERSATIONAL)}:{name}", [sample("7"), sample("12")]) == expected


@pytest.mark.parametrize("use", ["from texts_of_messages import text_of", "import messages_to_texts as module"])
def test_a_helper_in_a_file_beside_it_counts_too(write, use):
    """Such a function that catches what it meets would pay 0 for everything."""
    write("def text_of(completion):\n    return completion[0]['content']\n", f"{use.split()[1]}.py")
    call = "module.text_of" if "module" in use else "text_of"
    path = write(
        f"{use}\ndef f(completions, **kwargs):\n    try:\n"
        f"        return [float({call}(c) == '7') for c in completions]\n"
        "    except TypeError:\n        return [0.0] * len(completions)\n"
    )
    assert values_of(f"{path}:f", [sample("7"), sample("8")]) == (1.0, 0.0)


def test_an_error_says_which_form_was_given(write):
    path = write("def f(completions):\n    return [c[0]['text'] for c in completions]\n")
    with pytest.raises(RewardError, match=r"on a batch of 1 as texts \(see conversational\), first sample 0"):
        values_of(f"{path}:f", [sample("7")])


def test_the_form_can_be_said(write):
    path = write("def f(completions):\n    return [float(isinstance(c, list)) for c in completions]\n") + ":f"
    assert [values_of(path, [sample("7")], conversational=form) for form in (None, True, False)] == [(0,), (1,), (0,)]


def test_easyr1s_sequential_form(write):
    path = write(
        "def compute_score(reward_input: dict, format_weight: float = 0.1) -> dict:\n"
        "    right = float(reward_input['response'] == reward_input['ground_truth'])\n"
        "    return {'overall': (1 - format_weight) * right, 'accuracy': right}\n"
    )
    assert values_of(f"{path}:compute_score", [sample("7"), sample("8")]) == (0.9, 0.0)
    options = {"kwargs": {"format_weight": 0.5}}
    assert values_of(f"{path}:compute_score", [sample("7"), sample("8")], **options) == (0.5, 0.0)


def test_images_are_opened_for_a_function_that_names_them(write):
    class Opened(list):
        touched = False

        def __iter__(self):
            Opened.touched = True
            return super().__iter__()

    pictures = Opened([Image.new("RGB", (30, 20))])
    path = write(
        "def sizes(completions, images, **kwargs):\n    return [float(i[0].size[0]) if i else None for i in images]\n"
        "def first(completions, image):\n    return [float(i.size[1]) if i else None for i in image]\n"
        "def blind(completions, **kwargs):\n    return [1.0 for _ in completions]\n"
    )
    samples = [sample("7", images=pictures), sample("7", images=[])]
    assert values_of(f"{path}:blind", samples) == (1.0, 1.0)
    assert not Opened.touched
    assert values_of(f"{path}:sizes", samples) == (30.0, None)
    assert values_of(f"{path}:first", samples) == (20.0, None)


def test_the_run_is_told_and_what_is_logged_is_kept(write):
    path = write(
        "def f(completions, trainer_state, log_metric, log_extra, **kwargs):\n"
        "    share = trainer_state.global_step / trainer_state.max_steps\n"
        "    log_metric('share', share)\n    log_metric('share', 0.75)\n"
        "    log_extra('first', [c[0] for c in completions])\n"
        "    return [share] * len(completions)\n"
    )
    found = table_of(f"{path}:f", [sample("7"), sample("8")], global_step=5, max_steps=20)
    assert found.by_name["mine"] == (0.25, 0.25)
    assert (found.logged, found.columns) == ({"share": 0.5}, {"first": ("7", "8")})


@pytest.mark.parametrize("name", ["ground_truth", "gt", "target", "answer", "solution"])
def test_the_gold_goes_by_the_names_of_data_sets_and_a_rows_own_column_before_it(write, name):
    path = (
        write(f"def f(completions, {name}):\n    return [float(c == g) for c, g in zip(completions, {name})]\n") + ":f"
    )
    assert values_of(path, [sample("7"), sample("8")]) == (1.0, 0.0)
    if name != "answer":
        assert values_of(path, [sample("7", **{name: "8"}), sample("7")]) == (0.0, 1.0)


def test_a_parameter_that_nobody_can_fill_is_named(write):
    path = write("def f(completions, difficulty):\n    return [0.0]\n") + ":f"
    with pytest.raises(RewardError, match=r"mine\.py:f\) wants 'difficulty', .*there is answer, .*level"):
        values_of(path, [sample("7", level=3)])


def test_an_error_names_file_and_line_and_keeps_its_cause(write):
    path = write(
        "def helper(text):\n    return int(text)\n\n\ndef f(completions):\n    return [helper(completions[0])]\n"
    )
    with pytest.raises(
        RewardError, match=r"ValueError: invalid literal.* at .*mine\.py, line 2 \(on a batch"
    ) as raised:
        values_of(f"{path}:f", [sample("seven")])
    assert isinstance(raised.value.__cause__, ValueError)


# files beside the user's


def test_a_users_file_sees_its_neighbours_also_those_named_like_our_packages(write):
    write("WORTH = 3.0\n", "helper_beside_mine.py")
    write("from helper_beside_mine import WORTH\ndef format_score(text):\n    return WORTH\n", "rewards.py")
    path = write(
        "from rewards import format_score\n"
        "def f(completions):\n    import rewards\n"
        "    return [format_score(c) + rewards.WORTH for c in completions]\n"
    )
    function = load_function(f"{path}:f")
    assert function(["a", "b"]) == [6.0, 6.0]
    assert sys.modules["rewards"] is ours and ours.format_score is not function.__globals__["format_score"]


def test_two_neighbours_do_not_stay_in_the_place_of_our_packages(write):
    write("NAME = 'theirs'\n", "rewards.py")
    write("NAME = 'theirs too'\n", "data_prep.py")
    path = write("import data_prep\nimport rewards\ndef f():\n    import data_prep as again\n    return again.NAME\n")
    function = load_function(f"{path}:f")
    assert function() == "theirs too" and function.__globals__["rewards"].NAME == "theirs"
    assert (sys.modules["rewards"], sys.modules["data_prep"]) == (ours, data_prep)


def test_a_neighbour_that_fails_is_not_found_half_made_the_next_time(write):
    write("DONE = 1\nraise RuntimeError('not yet')\n", "rewards.py")
    path = write("def f():\n    import rewards\n    return rewards.DONE\n")
    function = load_function(f"{path}:f")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not yet"):
            function()
    assert sys.modules["rewards"] is ours


def test_our_own_package_beside_the_file_is_no_neighbour():
    # A file of rewards in the root of a clone.
    folder = str(ROOT)
    assert loading._neighbour("rewards", folder) is None
    assert loading._importer_for(folder)("rewards") is ours


def test_without_a_neighbour_our_package_is_meant(write):
    function = load_function(write("import data_prep\ndef f():\n    return data_prep\n") + ":f")
    assert function() is data_prep


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_at_all:f", "there is no file no_such_module_at_all, and no module: ModuleNotFoundError"),
        ("math:no_such_function", "math has no function no_such_function"),
        ("gone.py:f", r"there is no file gone\.py$"),
    ],
)
def test_what_cannot_be_loaded_is_told(path, message):
    with pytest.raises(FunctionError, match=message):
        load_function(path)


@pytest.mark.parametrize("program", [["-m", "vlm_mhpo.cli"], ["-c", "from vlm_mhpo.cli import main; main()"]])
def test_the_command_runs_in_a_folder_with_modules_named_like_ours(tmp_path, program):
    for name in ("rewards", "data_prep"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    (tmp_path / "rows.jsonl").write_text('{"problem": "What is 3 + 4?", "answer": "7"}\n')
    command = [sys.executable, *program, "audit", "rows.jsonl", "--out", "out"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "audit.json").is_file()


def test_a_stranger_that_was_imported_first_is_refused(tmp_path):
    (tmp_path / "rewards.py").write_text("")
    program = "import rewards\ntry:\n    import vlm_mhpo\nexcept ImportError as error:\n    print(error)"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    assert "rewards.py is loaded as 'rewards', which vlm_mhpo needs: import vlm_mhpo before it" in done.stdout
