"""What passes through a training step, counted while a profile is taken: stages of the loop, forwards of the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlm_mhpo.commands.profiling.flops import parts_of, sampling_work, training_work
from vlm_mhpo.models.families.costs import Part, Work
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime.clock import Clock
from vlm_mhpo.scoring import Verdict
from vlm_mhpo.scoring.scorer import Scoring
from vlm_mhpo.training.loop import Loop
from vlm_mhpo.types import Group, Minibatch, ScoredGroup


class Tally:
    """What passed through the model, by stage ("sample", "log_probs", "update").

    Attributes:
        parts: of the policy, for FLOPs; known once the policy is.
        work: of the language model, without padding.
        seen: of the images that went through the vision tower.
        merged: image tokens that went through the projector; with a frozen tower's features kept, without the tower.
        forwards: by place, Counter of calls, rows and tokens.
        tokens: by stage, Counter of prompts, completions, their tokens, verifications that timed out, and prompts whose
            forward carries no marks, so that its images are not among those seen.
    """

    def __init__(self) -> None:
        self.parts: tuple[Part, ...] = ()
        self.clear()

    def clear(self) -> None:
        """Forget what passed."""
        self.work: defaultdict[str, Work] = defaultdict(Work)
        self.seen: defaultdict[str, Work] = defaultdict(Work)
        self.merged: Counter[str] = Counter()
        self.forwards: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.tokens: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, stage: str, scored: Sequence[ScoredGroup], work_of: Callable[[int, list[int]], Work]) -> None:
        """Groups that a stage has dealt with."""
        for one in scored:
            length = one.group.prompt.num_tokens
            lengths = [len(completion.token_ids) for completion in one.group.completions]
            self._count(stage, length, lengths, work_of)

    def add_packed(self, stage: str, batch: Minibatch, *, marked: bool = True) -> None:
        """A forward of what a minibatch is packed into; completions that teach nothing are not in it."""
        for micro_batch in batch.packed or ():
            for length, *lengths in () if micro_batch.is_padding else micro_batch.packed.lengths:
                self._count(stage, length, lengths, training_work)
                self.tokens[stage].update(unmarked=not marked)

    def _count(self, stage: str, length: int, lengths: list[int], work_of: Callable[[int, list[int]], Work]) -> None:
        self.work[stage] += work_of(length, lengths)
        self.tokens[stage].update(
            prompts=1, completions=len(lengths), prompt_tokens=length, completion_tokens=sum(lengths)
        )

    def vision_work(self, stage: str) -> Work:
        """Work of the vision tower and projector in a stage."""
        return replace(self.seen[stage], merged=self.merged[stage])


@dataclass(frozen=True, slots=True)
class CountedScoring:
    """The scoring of a run, whose groups are counted."""

    scoring: Scoring
    tally: Tally

    def begin(self, groups: Sequence[Group]) -> None:
        """See `Scoring.begin`."""
        self.scoring.begin(groups)

    def __call__(self, groups: Sequence[Group], step: int) -> list[ScoredGroup]:
        """See `Scoring.__call__`."""
        scored = self.scoring(groups, step)
        self.tally.add("sample", scored, sampling_work)
        self.tally.tokens["sample"]["timeouts"] += sum(one.verdicts.count(Verdict.timeout) for one in scored)
        return scored


@dataclass(frozen=True, slots=True)
class EndOfStep:
    """In the place of a run's checkpoints: nothing is saved, and somebody hears that a step is over."""

    heard: Callable[[], None]

    def is_due(self, step: int) -> bool:
        """Never."""
        return False

    def if_due(self, *_: Any, **__: Any) -> None:
        """A step is over."""
        self.heard()

    def finish(self, **_: Any) -> None:
        """There is nothing to finish."""


def counted(loop: Loop, tally: Tally, end_of_step: Callable[[], None]) -> Loop:
    """A loop whose groups are counted by `tally` in every stage, and that calls `end_of_step` instead of saving."""

    def minibatches(scored: Sequence[ScoredGroup]) -> list[Minibatch]:
        made = loop.minibatches(scored)
        settings = loop.update.settings
        for one in made:
            # The first minibatch has its old log-probs from its update's own forward.
            if settings.recompute and not one.fresh:
                tally.add_packed("log_probs", one)
            if settings.beta:
                # The reference carries no marks.
                tally.add_packed("log_probs", one, marked=False)
        return made

    def update(made: Sequence[Minibatch], step: int) -> Any:
        for one in list(made) * loop.update.settings.num_iterations:
            tally.add_packed("update", one)
        return loop.update(made, step)

    return replace(
        loop,
        scoring=CountedScoring(loop.scoring, tally),
        minibatches=minibatches,
        update=update,
        watch=replace(loop.watch, saving=EndOfStep(end_of_step)),
    )


@contextmanager
def hooked(policy: Policy, clock: Clock, tally: Tally) -> Iterator[None]:
    """Inside, forwards of the language model and of the vision tower are timed and counted."""
    vision = policy.family.vision
    tally.parts = parts_of(policy)

    def before_model(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if clock.is_own_thread:
            rows, width = _first_of(args, kwargs, "input_ids", "inputs_embeds").shape[:2]
            # The phases of sampling are apart: prefill and decode are different work.
            place = clock.current if group_of(clock.current) == "sample" else group_of(clock.current)
            tally.forwards[place].update(calls=1, rows=rows, tokens=rows * width)

    def before_tower(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if clock.is_own_thread:
            group = group_of(clock.current)
            tally.seen[group] += vision.work_of_call(policy.model, args, kwargs)
            clock.enter(f"{group}/vision" if group in ("sample", "update") else clock.current)

    def after(*_: Any) -> None:
        clock.leave()

    def after_projector(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if clock.is_own_thread:
            tally.merged[group_of(clock.current)] += len(output)

    handles = [policy.model.model.register_forward_pre_hook(before_model, with_kwargs=True)]
    if vision:
        tower = vision.tower(policy.model)
        handles.append(vision.projectors(policy.model)[0].register_forward_hook(after_projector))
        handles.append(tower.register_forward_pre_hook(before_tower, with_kwargs=True))
        handles.append(tower.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_of(args: tuple, kwargs: dict[str, Any], *names: str) -> torch.Tensor:
    """The first keyword argument of these names that is given, else the first positional one."""
    return next((kwargs[name] for name in names if kwargs.get(name) is not None), args[0] if args else None)


def group_of(phase: str) -> str:
    """The part of a phase's name before the slash."""
    return phase.split("/", 1)[0]
