"""Time marks around the functions of a training step, in place only while a profile is taken.

Nothing in the trainer knows of them: they replace attributes of modules and classes, and hook the model's forward.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rewards import Verdict
from vlm_mhpo.commands.profiling.flops import Part, Work, parts_of, sampling_work, training_work, vision_work
from vlm_mhpo.models.families.base import vision_tower
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import Clock
from vlm_mhpo.training import loop
from vlm_mhpo.types import ScoredGroup

# The parts of the trainer's own stopwatch as phases; what is marked inside them is taken out.
STEP_PARTS = {
    "prompts": "prompts",
    "sample": "sample/choose",
    "verify": "verify",
    "log_probs": "log_probs",
    "update": "update/loss",
}
# Module, attribute, phase, and the group in which alone the mark counts ("" = anywhere).
MARKS = (
    ("vlm_mhpo.engine.deepspeed", "Engine.__call__", "update/forward", "update"),
    ("vlm_mhpo.engine.deepspeed", "Engine.backward", "update/backward", "update"),
    ("vlm_mhpo.engine.deepspeed", "Engine.update", "update/optimizer", "update"),
    ("vlm_mhpo.training.update", "measure", "update/diagnostics", "update"),
    ("vlm_mhpo.training.update", "summarise_ratio", "update/diagnostics", "update"),
    ("vlm_mhpo.training.update", "quantiles", "update/diagnostics", "update"),
    ("vlm_mhpo.training.update", "named_histograms", "update/diagnostics", "update"),
    ("vlm_mhpo.records.recorder", "Recorder.write", "records", ""),
    ("vlm_mhpo.prompts.builder", "PromptBuilder.__call__", "prompts", ""),
)
# Collectives of ours; those inside DeepSpeed's backward and optimizer stay there.
RANK_MARKS = (
    ("vlm_mhpo.runtime.ranks", "reduce", "ranks", ""),
    ("vlm_mhpo.runtime.ranks", "gather_objects", "ranks", ""),
    ("vlm_mhpo.runtime.ranks", "barrier", "ranks", ""),
)


class Tally:
    """What passed through the model, by stage ("sample", "log_probs", "update").

    Attributes:
        parts: of the policy, for FLOPs; known once the policy is.
        vision_config: of the policy, or None.
        work: of the language model, without padding; that of "log_probs" is one pass.
        grids: (frames, height, width) of each image that went through the vision tower.
        merged: image tokens that went through the projector; with a frozen tower's features kept, without the tower.
        forwards: by place, Counter of calls, rows and tokens.
        tokens: by stage, Counter of prompts, completions, their tokens, and verifications that timed out.
    """

    def __init__(self) -> None:
        self.parts: tuple[Part, ...] = ()
        self.vision_config: object | None = None
        self.clear()

    def clear(self) -> None:
        """Forget what passed."""
        self.work: defaultdict[str, Work] = defaultdict(Work)
        self.grids: defaultdict[str, list[list[int]]] = defaultdict(list)
        self.merged: Counter[str] = Counter()
        self.forwards: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.tokens: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, stage: str, scored: Sequence[ScoredGroup], work_of: Callable[[int, list[int]], Work]) -> None:
        """Groups that a stage has dealt with."""
        for one in scored:
            length = one.group.prompt.num_tokens
            lengths = [len(completion.token_ids) for completion in one.group.completions]
            self.work[stage] += work_of(length, lengths)
            self.tokens[stage].update(
                prompts=1, completions=len(lengths), prompt_tokens=length, completion_tokens=sum(lengths)
            )

    def vision_work(self, stage: str) -> Work:
        """Work of the vision tower and projector in a stage."""
        if self.vision_config is None:
            return Work()
        return replace(vision_work(self.grids[stage], self.vision_config), merged=self.merged[stage])


@contextmanager
def marked(clock: Clock, tally: Tally, end_of_step: Callable[[], None]) -> Iterator[None]:
    """Inside, `trainer.train` is timed by `clock` and counted by `tally`, and saves no checkpoint.

    Args:
        clock: gets a phase for everything in MARKS.
        tally: gets what passes through the model.
        end_of_step: called after every step, where the checkpoint would be saved.
    """
    with ExitStack() as stack:

        def put(module: str, path: str, wrap: Callable[[Callable], Callable]) -> None:
            stack.enter_context(replaced(module, path, wrap))

        put("vlm_mhpo.training.loop", "Stopwatch.__call__", lambda original: as_phases(clock, original))
        for module, path, phase, group in MARKS + (RANK_MARKS if ranks.world_size() > 1 else ()):
            put(module, path, functools.partial(timed, clock, phase, group))
        put("vlm_mhpo.training.loop", "save_if_due", lambda _: lambda *_, **__: end_of_step())
        put("vlm_mhpo.training.loop", "build_setup", lambda original: hooking(stack, clock, tally, original))
        put("vlm_mhpo.training.loop", "sample_and_score", lambda original: counting_samples(tally, original))
        put("vlm_mhpo.training.loop", "make_minibatches", lambda original: counting_log_probs(tally, original))
        put("vlm_mhpo.training.loop", "update_on", lambda original: counting_updates(tally, original))
        yield


@contextmanager
def replaced(module: str, path: str, wrap: Callable[[Callable], Callable]) -> Iterator[None]:
    """Inside, the attribute `path` of `module` is `wrap` of what it was.

    Raises:
        AttributeError: there is no such attribute: the table of marks is behind the code.
    """
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def timed(clock: Clock, phase: str, group: str, original: Callable) -> Callable:
    """`original` as a phase, while a phase of `group` is open or always."""

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        with clock(phase if not group or group_of(clock.current) == group else clock.current):
            return original(*args, **kwargs)

    return run


def as_phases(clock: Clock, original: Callable) -> Callable:
    """The trainer's stopwatch, which also opens phases."""

    @contextmanager
    def run(watch: loop.Stopwatch, name: str) -> Iterator[None]:
        with clock(STEP_PARTS.get(name, "other")), original(watch, name):
            yield

    return run


def hooking(stack: ExitStack, clock: Clock, tally: Tally, original: Callable) -> Callable:
    """`build_setup`, whose model is then hooked until `stack` closes."""

    def run(*args: Any, **kwargs: Any) -> Any:
        setup = original(*args, **kwargs)
        stack.enter_context(hooked(setup.policy, clock, tally))
        return setup

    return run


def counting_samples(tally: Tally, original: Callable) -> Callable:
    """`sample_and_score`, whose groups are counted."""

    def run(*args: Any, **kwargs: Any) -> list[ScoredGroup]:
        scored = original(*args, **kwargs)
        tally.add("sample", scored, sampling_work)
        tally.tokens["sample"]["timeouts"] += sum(one.verdicts.count(Verdict.timeout) for one in scored)
        return scored

    return run


def counting_log_probs(tally: Tally, original: Callable) -> Callable:
    """`make_minibatches`, whose groups are counted once, however many forwards look at them."""

    def run(*args: Any, **kwargs: Any) -> Any:
        batches, metrics = original(*args, **kwargs)
        for batch in batches:
            tally.add("log_probs", batch.groups, training_work)
        return batches, metrics

    return run


def counting_updates(tally: Tally, original: Callable) -> Callable:
    """`update_on`, whose groups are counted in each pass over them."""

    def run(engine: Any, objective: Any, batches: Any, settings: Any, **kwargs: Any) -> Any:
        for batch in list(batches) * settings.num_iterations:
            tally.add("update", batch.groups, training_work)
        return original(engine, objective, batches, settings, **kwargs)

    return run


@contextmanager
def hooked(policy: Policy, clock: Clock, tally: Tally) -> Iterator[None]:
    """Inside, forwards of the language model and of the vision tower are timed and counted."""
    tower = vision_tower(policy.model, policy.family)
    tally.parts = parts_of(policy)
    tally.vision_config = None if tower is None else policy.model.config.vision_config

    def before_model(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if clock.is_own_thread:
            rows, width = first_of(args, kwargs, "input_ids", "inputs_embeds").shape[:2]
            group = group_of(clock.current)
            phase = f"sample/{'decode' if width == 1 else 'prefill'}" if group == "sample" else clock.current
            tally.forwards[phase if group == "sample" else group].update(calls=1, rows=rows, tokens=rows * width)
            clock.enter(phase)

    def before_tower(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if clock.is_own_thread:
            group = group_of(clock.current)
            tally.grids[group] += kwargs.get("grid_thw", args[-1] if args else None).tolist()
            clock.enter(f"{group}/vision" if group in ("sample", "update") else clock.current)

    def after(*_: Any) -> None:
        clock.leave()

    def after_projector(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if clock.is_own_thread:
            tally.merged[group_of(clock.current)] += len(output)

    timed_modules, handles = [(policy.model.model, before_model)], []
    if tower is not None:
        timed_modules.append((tower, before_tower))
        projector = getattr(tower, policy.family.projectors[0])
        handles.append(projector.register_forward_hook(after_projector))
    for module, before in timed_modules:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(args: tuple, kwargs: dict[str, Any], *names: str) -> torch.Tensor:
    """The first keyword argument of these names that is given, else the first positional one."""
    return next((kwargs[name] for name in names if kwargs.get(name) is not None), args[0] if args else None)


def group_of(phase: str) -> str:
    """The part of a phase's name before the slash."""
    return phase.split("/", 1)[0]
