"""Rows are asked, judged by both rules and kept in order; what is there is not judged again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
import torch

from rewards import Score, Verdict
from tests.builders import picture
from tests.vlm_mhpo.test_evaluation.cases import BENCHMARK, row
from vlm_mhpo.errors import EvaluationError, PromptError
from vlm_mhpo.evaluation.tasks import Judge, Task, judge_in_memory, run_task
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.types import Completion, Group, Prompt

ROWS = tuple(row(f"p{index}", source="odd" if index % 2 else "", images=[picture(28, 28, seed=index)])
             for index in range(7))  # fmt: skip


@dataclass
class Reciter:
    """Answers every prompt with the next of two texts; remembers the batches."""

    batches: list[list[str]] = field(default_factory=list)

    def sample(self, prompts, params, seed_parts, on_groups=None):
        self.batches.append([prompt.id for prompt in prompts])
        texts = ("It is 7", "It is 8")
        return [
            Group(prompt, tuple(
                Completion((1, 2, 3), torch.zeros(3), texts[(int(prompt.id[1:]) + sample) % 2], truncated=sample == 1)
                for sample in range(params.num_samples)
            ))
            for prompt in prompts
        ]  # fmt: skip


class Grader:
    """Finds nothing right."""

    def score(self, items):
        return [Score(Verdict.no_answer, False, None, "") for _ in items]


def plain(row) -> Prompt:
    """A prompt of no tokens."""
    return Prompt(row, row.problem, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


def judge(sampler, builder=plain) -> Judge:
    return Judge(builder, sampler, Grader(), "auto", seed=0)


def task(num_samples: int = 1) -> Task:
    return Task("made", BENCHMARK, ROWS, ROWS, SamplingParams(num_samples, 8, temperature=0.0))


def test_both_verdicts_of_every_row_are_kept_in_order(tmp_path):
    sampler = Reciter()
    found = run_task(task(2), judge(sampler), tmp_path, gallery=2, chunk_size=3)
    assert sampler.batches == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6"]]
    assert [one.id for one in found] == [one.id for one in ROWS]
    # Even rows say 7 first, and the gold is 7.
    assert [[c.official for c in one.completions] for one in found[:2]] == [[True, False], [False, True]]
    assert {(c.verdict, c.correct) for one in found for c in one.completions} == {("no_answer", False)}
    assert [c.truncated for c in found[0].completions] == [False, True]
    assert found[0].completions[0].num_tokens == 3
    assert [one.categories for one in found[:2]] == [{}, {"shape": "odd"}]
    assert [len(one.images) for one in found] == [1, 1, 0, 0, 0, 0, 0]
    assert all((tmp_path / name).is_file() for one in found for name in one.images)
    lines = (tmp_path / "results" / "made.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [one.id for one in ROWS]


def test_finished_chunks_are_not_judged_again(tmp_path):
    class Dies(Reciter):
        def sample(self, prompts, *arguments):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().sample(prompts, *arguments)

    with pytest.raises(KeyboardInterrupt):
        run_task(task(), judge(Dies()), tmp_path, chunk_size=3)
    again = Reciter()
    found = run_task(task(), judge(again), tmp_path, chunk_size=3)
    assert again.batches == [["p6"]]
    assert found == judge_in_memory(task(), judge(Reciter()), chunk_size=3)
    third = Reciter()
    assert run_task(task(), judge(third), tmp_path, chunk_size=3) == found
    assert third.batches == []


def test_records_of_other_rows_are_refused(tmp_path):
    run_task(task(), judge(Reciter()), tmp_path)
    other = Task("made", BENCHMARK, ROWS[:5], ROWS[:5], task().params)
    with pytest.raises(EvaluationError, match="not those of the data"):
        run_task(other, judge(Reciter()), tmp_path)


def test_a_row_that_cannot_be_asked_ends_in_its_sentence(tmp_path):
    def refuse(asked):
        raise PromptError(f"row {asked.id}: too long")

    with pytest.raises(PromptError, match="row p0: too long"):
        run_task(task(), judge(Reciter(), refuse), tmp_path)


def test_whoever_must_stop_sampling_gets_hold_of_every_call():
    calls = []

    def together(sample):
        calls.append(1)
        return sample()

    found = judge_in_memory(task(), replace(judge(Reciter()), together=together), chunk_size=3)
    assert len(calls) == 3
    assert found == judge_in_memory(task(), judge(Reciter()), chunk_size=7)
