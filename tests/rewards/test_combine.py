"""Weighted rewards: sums by hand, users' functions in three conventions, and errors that name the culprit."""

import psutil
import pytest

from rewards import RewardError, RewardSpec, Sample, Verdict, build_scorer

LIMITS = {"num_workers": 1, "timeout_s": 1.0, "memory_limit_bytes": 2**30}


def sample(answer="7", gold="7", template="think_answer", **changes):
    fields = {
        "prompt": "What is 3 + 4?", "completion": f"<think>x</think><answer>{answer}</answer>", "gold": gold,
        "template": template, "kind": "auto", "choices": None, "precision": None, "unit": None,
        "num_tokens": 10, "truncated": False,
    }  # fmt: skip
    return Sample(**(fields | changes))


def score(specs, samples, **options):
    with build_scorer(specs, **LIMITS, **options) as scorer:
        return scorer.score(samples)


def user_file(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    return str(file)


def test_totals_are_the_weighted_sum_and_each_reward_is_kept_apart():
    samples = [sample("7"), sample("8"), sample(completion="the answer is 7"), sample(completion="<answer>7</answer>")]
    table = score([RewardSpec("accuracy", 1.0), RewardSpec("format", 0.25)], samples)
    assert table.by_name == {"accuracy": (1.0, 0.0, 0.0, 1.0), "format": (1.0, 1.0, 0.0, 0.0)}
    assert table.totals == (1.25, 0.25, 0.0, 1.0)
    assert table.verdicts == (Verdict.correct, Verdict.wrong, Verdict.no_answer, Verdict.correct)
    assert [s.extracted for s in table.scores] == ["7", "8", None, "7"]


def test_overlong_follows_the_line_of_the_paper():
    spec = RewardSpec("overlong", kwargs={"soft_punish_cache": 20})
    samples = [sample(num_tokens=n) for n in (80, 85, 90, 100, 101)] + [sample(num_tokens=100, truncated=True)]
    assert score([spec], samples, max_completion_length=100).totals == (0.0, -0.25, -0.5, -1.0, -1.0, -1.0)
    with pytest.raises(RewardError, match="max_completion_length"):
        score([spec], samples)


def test_length_pays_short_right_answers_and_long_wrong_ones():
    lengths = (0, 25, 50, 100, 130)
    # cos(pi / 4) = 0.7071 at a quarter of the limit.
    right = (1.0, 0.5 + 0.5 * (1 + 0.70710678) / 2, 0.75, 0.5, 0.5)
    wrong = (-0.5, -0.5 * (1 + 0.70710678) / 2, -0.25, 0.0, 0.0)
    spec = RewardSpec("length")
    for answer, expected in (("7", right), ("8", wrong)):
        samples = [sample(answer, num_tokens=n) for n in lengths]
        assert score([spec], samples, max_completion_length=100).totals == pytest.approx(expected)
    cut = [sample(num_tokens=10, truncated=True)]
    assert score([spec], cut, max_completion_length=100).totals == (0.5,)
    own = RewardSpec("length", kwargs={"correct_short": 2, "correct_long": 0, "max_completion_length": 20})
    assert score([own], [sample(num_tokens=10)], max_completion_length=100).totals == pytest.approx((1.0,))
    with pytest.raises(RewardError, match="'length' needs max_completion_length"):
        score([spec], [sample()])


def test_repetition_counts_repeated_ngrams():
    samples = [sample(completion="a b c d"), sample(completion="a b a b a b"), sample(completion="a")]
    assert score([RewardSpec("repetition", kwargs={"ngram_size": 2})], samples).totals == (0.0, 2 / 5 - 1, 0.0)


def test_a_weight_of_zero_removes_the_reward_and_its_cost(tmp_path):
    path = user_file(tmp_path, "raise SystemExit('loaded')") + ":f"
    table = score([RewardSpec("accuracy"), RewardSpec("mine", 0.0, path)], [sample()])
    assert set(table.by_name) == {"accuracy"}
    table = score([RewardSpec("accuracy", 0.0), RewardSpec("format")], [sample()])
    assert set(table.by_name) == {"format"} and table.verdicts == ()


def test_an_empty_batch_gives_an_empty_table():
    table = score([RewardSpec("accuracy"), RewardSpec("format")], [])
    assert table.totals == () and table.by_name == {"accuracy": (), "format": ()}


TRL = """
def f(prompts, completions, completion_ids, solution, answer, level, bonus=0.0, **columns):
    assert solution == answer and columns["num_tokens"] == [10] * len(prompts)
    return [None if l == 2 else len(c) + bonus + i[0] for c, l, i in zip(completions, level, completion_ids)]
async def g(completions):
    return [float(c == "ab") for c in completions]
"""
EASYR1 = """
def compute_score(reward_inputs, format_weight=0.5):
    return [{"overall": format_weight * r["response_length"], "accuracy": float(r["response"] == r["ground_truth"])}
            for r in reward_inputs]
"""
VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source == "bad":
        raise KeyError("nothing here")
    return {"score": float(ground_truth in solution_str), "level": extra_info["level"]}
"""


def test_trl_functions_get_keywords_and_none_does_not_apply(tmp_path):
    path = user_file(tmp_path, TRL)
    samples = [sample(completion="ab", completion_ids=(5,), columns={"level": 1}), sample(columns={"level": 2})]
    table = score(
        [RewardSpec("mine", 2.0, f"{path}:f", {"bonus": 0.5}), RewardSpec("async", 1.0, f"{path}:g")], samples
    )
    assert table.by_name == {"mine": (7.5, None), "async": (1.0, 0.0)}
    assert table.totals == (16.0, 0.0)


def test_async_functions_run_inside_a_running_loop(tmp_path):
    import asyncio

    path = user_file(tmp_path, TRL)

    async def main():
        return score([RewardSpec("async", 1.0, f"{path}:g")], [sample(completion="ab")]).totals

    assert asyncio.run(main()) == (1.0,)


def test_easyr1_and_verl_functions_are_adapted(tmp_path):
    table = score([RewardSpec("easy", 1.0, user_file(tmp_path, EASYR1) + ":compute_score")], [sample(), sample()])
    assert table.totals == (5.0, 5.0)
    path = user_file(tmp_path, VERL) + ":compute_score"
    samples = [sample("7", columns={"level": 3}), sample("8", columns={"level": 3})]
    assert score([RewardSpec("verl", 1.0, path)], samples).totals == (1.0, 0.0)
    with pytest.raises(RewardError, match=r"mine\.py:compute_score.*KeyError.*nothing here.*sample 1"):
        score([RewardSpec("verl", 1.0, path)], [samples[0], sample(columns={"data_source": "bad"})])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", r"'mine'.*mine\.py:f.*returned 1 values for 2 samples"),
        ("return [1.0, float('nan')]", r"nan, not a finite number, for sample 1 with prompt 'What is"),
        ("return [1.0, 'x']", "'x', not a finite number, for sample 1"),
        ("return 1.0", "returned float"),
        ("return '12'", "returned str"),
        ("raise RuntimeError('boom')", r"mine\.py:f.*RuntimeError: boom.*batch of 2"),
    ],
)
def test_a_users_bad_function_is_named(tmp_path, body, message):
    path = user_file(tmp_path, f"def f(completions, **columns):\n    {body}\n") + ":f"
    with pytest.raises(RewardError, match=message):
        score([RewardSpec("mine", 1.0, path)], [sample(), sample()])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([RewardSpec("acuracy")], "unknown reward 'acuracy'; built in are accuracy, format"),
        ([RewardSpec("accuracy"), RewardSpec("accuracy")], "accuracy is given more than once"),
        ([RewardSpec("accuracy", 0.0)], "no reward has a weight"),
        ([], "no reward has a weight"),
        ([RewardSpec("accuracy", float("nan"))], "finite"),
        ([RewardSpec("mine", 1.0, "nowhere.py:f")], "there is no file nowhere.py"),
        ([RewardSpec("mine", 1.0, "nowhere.py")], "is not of the form file.py:function"),
    ],
)
def test_bad_specs_are_refused_in_one_sentence(specs, message):
    with pytest.raises(RewardError, match=message):
        build_scorer(specs, **LIMITS)


def test_a_file_that_does_not_load_or_lacks_the_function_is_named(tmp_path):
    with pytest.raises(RewardError, match=r"mine\.py does not load: ZeroDivisionError"):
        build_scorer([RewardSpec("mine", 1.0, user_file(tmp_path, "1/0") + ":f")], **LIMITS)
    with pytest.raises(RewardError, match=r"mine\.py has no function f"):
        build_scorer([RewardSpec("mine", 1.0, user_file(tmp_path, "x = 1") + ":f")], **LIMITS)


def test_format_of_a_template_without_form_says_what_to_do():
    with pytest.raises(RewardError, match="sample 0 has the template 'bare'"):
        score([RewardSpec("format")], [sample(template="bare")])


def test_short_answers_never_leave_this_process():
    with build_scorer([RewardSpec("accuracy"), RewardSpec("format", 0.1)], **LIMITS) as scorer:
        before = set(psutil.Process().children(recursive=True))
        for step in range(3):
            samples = [sample(str(1000 * step + i), str(1000 * step + i - i % 2)) for i in range(128)]
            assert sum(scorer.score(samples).by_name["accuracy"]) == 64
        # A worker costs a quarter of a millisecond a call, and a start.
        assert set(psutil.Process().children(recursive=True)) <= before
