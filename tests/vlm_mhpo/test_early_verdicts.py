"""Verdicts made while others are still sampled are those made afterwards; rewards see the whole batch once."""

import threading
from types import SimpleNamespace

import pytest
import torch

from rewards import RewardSpec, Score, Scorer, Verdict, VerifierError, build_scorer
from tests.builders import problem_row
from vlm_mhpo.scoring.scorer import Scoring, score_groups
from vlm_mhpo.types import Completion, Group

TEMPLATE = "think_answer"
ANSWERS = ("7", "8", "$\\frac{14}{2}$", "seven", "", "7.0", "$1+6$", "$x^2+1$")


def group_of(name: str, count: int) -> Group:
    """A group whose completions answer differently from its neighbours'."""
    shift = sum(name.encode())
    texts = [f"<think>so</think><answer>{ANSWERS[(shift + n) % len(ANSWERS)]}</answer>" for n in range(count)]
    prompt = SimpleNamespace(id=name, row=problem_row(name, "What is 3 + 4 ?"), opens="")
    return Group(prompt, tuple(Completion((1, 2), torch.zeros(2), text, False) for text in texts))


GROUPS = [group_of(name, count) for name, count in (("a", 4), ("b", 1), ("c", 3), ("d", 4), ("e", 2))]


def scorer_of(*names: str) -> Scorer:
    return build_scorer(
        [RewardSpec(name=name) for name in names], num_workers=2, timeout_s=5.0, memory_limit_bytes=2**30
    )


@pytest.mark.parametrize("batches", [[[3], [0, 4], [2, 1]], [[0, 1, 2, 3, 4]], [[4], [3], [2], [1], [0]]])
@pytest.mark.parametrize("names", [("accuracy", "format"), ("format",)])
def test_the_order_of_the_report_changes_nothing(names, batches):
    with scorer_of(*names) as scorer:
        expected = score_groups(scorer, GROUPS, TEMPLATE)
        with Scoring(scorer, TEMPLATE) as scoring:
            for batch in batches:
                scoring.begin([GROUPS[index] for index in batch])
            assert scoring(GROUPS) == expected
    if "accuracy" in names:
        assert len({verdict for group in expected for verdict in group.verdicts}) >= 3


def test_a_reward_function_is_called_once_with_every_sample_and_verdict():
    calls = []

    def reward(samples, scores, kwargs):
        calls.append((len(samples), [score.correct for score in scores]))
        return [float(score.correct) for score in scores]

    scorer = Scorer([(RewardSpec(name="mine"), reward, {})], Always(Verdict.correct))
    with Scoring(scorer, TEMPLATE) as scoring:
        for group in GROUPS:
            scoring.begin([group])
        scoring(GROUPS)
    assert calls == [(14, [True] * 14)]


class Always:
    """A verifier that is asked from one thread at a time and gives one verdict."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = threading.Event()

    def score(self, items) -> list[Score]:
        self.asked.set()
        return [Score(self.verdict, self.verdict is Verdict.correct, "7", "") for _ in items]

    def close(self) -> None:
        pass


def test_verification_begins_while_the_caller_goes_on():
    verifier = Always(Verdict.wrong)
    scorer = Scorer([(RewardSpec(name="mine"), lambda samples, *_: [0.0] * len(samples), {})], verifier)
    with Scoring(scorer, TEMPLATE) as scoring:
        scoring.begin(GROUPS[:1])
        # The caller waits for nothing but the event: only the thread can have asked.
        assert verifier.asked.wait(timeout=5)


def test_an_error_of_the_verifier_is_raised_where_the_verdicts_are_needed():
    class Broken(Always):
        def score(self, items):
            raise VerifierError("no workers")

    scorer = Scorer([], Broken(Verdict.wrong))
    with Scoring(scorer, TEMPLATE) as scoring:
        scoring.begin(GROUPS[:2])
        scoring.begin(GROUPS[2:])
        with pytest.raises(VerifierError, match="no workers"):
            scoring(GROUPS)


def test_the_thread_ends_with_the_run_also_when_sampling_fails():
    with pytest.raises(ZeroDivisionError), Scoring(scorer_of("format"), TEMPLATE) as scoring:
        scoring.begin(GROUPS)
        1 / 0  # noqa: B018
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify")]
