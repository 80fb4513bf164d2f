"""The judge's verdicts on judged rows: all questions of one stage together, then those that follow from the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.types import JudgeRule, JudgeSteps, Official
from vlm_mhpo.evaluation.judge.answers import Answer
from vlm_mhpo.evaluation.judge.asking import JudgeModel
from vlm_mhpo.evaluation.protocol import digest
from vlm_mhpo.records.evaluation import Item, JudgeProtocol, JudgeVerdict

# Of a judge that thinks aloud.
_THOUGHT_ENDS, _THOUGHT_BEGINS = "</think>", "<think>"


def judge_protocol(rule: JudgeRule, judge: JudgeModel) -> JudgeProtocol:
    """What pins the verdicts of a judge under a benchmark's rule."""
    config = judge.server.config
    return JudgeProtocol(
        model=config.model, served=judge.served, prompts=digest(rule.prompts), max_tokens=config.max_tokens
    )


def judge_items(
    rule: JudgeRule, rows: Sequence[Row], items: Sequence[Item], judge: JudgeModel, *, name: str
) -> list[Item]:
    """The items with the judge's verdict on every completion, on all ranks.

    Args:
        rule: the benchmark's.
        rows: of `items`, in their order.
        items: the same on all ranks.
        judge: asked, where its answers are not kept.
        name: of the progress bar.

    Raises:
        JudgeError: see `JudgeModel.ask`.
    """
    verdicts = iter(_verdicts(_talks(rule, rows, items), partial(judge.ask, name=name)))
    return [
        item.model_copy(
            update={"completions": tuple(one.model_copy(update={"judge": next(verdicts)}) for one in item.completions)}
        )
        for item in items
    ]


def are_kept(rule: JudgeRule, rows: Sequence[Row], items: Sequence[Item], judge: JudgeModel) -> bool:
    """Whether every answer is kept that the verdicts on these items take."""
    try:
        _verdicts(_talks(rule, rows, items), judge.recall)
    except KeyError:
        return False
    return True


def _talks(rule: JudgeRule, rows: Sequence[Row], items: Sequence[Item]) -> list[JudgeSteps]:
    """What is asked about each completion, not begun yet."""
    return [
        rule.steps(row, completion.text) if completion.text.strip() else _nothing_to_judge()
        for row, item in zip(rows, items, strict=True)
        for completion in item.completions
    ]


def _nothing_to_judge() -> JudgeSteps:
    """An empty response is wrong, and no judge is asked to find an answer in it."""
    return Official(False, None)
    yield


def _verdicts(talks: Sequence[JudgeSteps], ask: Callable[[Sequence[str]], Mapping[str, Answer]]) -> list[JudgeVerdict]:
    """Lead all talks to their ends: the open question of each is put together with those of all others."""
    verdicts: dict[int, JudgeVerdict] = {}
    said: Mapping[int, str | None] = dict.fromkeys(range(len(talks)))
    while said:
        questions: dict[int, str] = {}
        for place, text in said.items():
            try:
                questions[place] = talks[place].send(text)
            except StopIteration as end:
                verdicts[place] = _verdict(end.value)
        answers = ask(list(questions.values()))
        refused = {place for place, question in questions.items() if answers[question].text is None}
        verdicts |= {place: JudgeVerdict(verdict="refused", extracted=None) for place in refused}
        said = {place: _spoken(answers[question]) for place, question in questions.items() if place not in refused}
    return [verdicts[place] for place in range(len(talks))]


def _spoken(answer: Answer) -> str:
    """The answer behind a thought; of a thought that never ends nothing."""
    text = answer.text or ""
    return text.rpartition(_THOUGHT_ENDS)[2].partition(_THOUGHT_BEGINS)[0].strip()


def _verdict(found: Official | None) -> JudgeVerdict:
    """How a talk ended, as it is recorded."""
    if found is None:
        return JudgeVerdict(verdict="unreadable", extracted=None)
    return JudgeVerdict(verdict="right" if found.correct else "wrong", extracted=found.extracted)
