"""Names of the built-in rewards, and a spec to its function: a built-in one or a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.functions.loading import FunctionError, load_function
from rewards.functions.logbook import Logbook
from rewards.functions.user import adapt
from rewards.response.response import FORMATS, format_score
from rewards.types import RewardError, RewardSpec, Sample, Score

# (samples, their scores (empty unless the reward needs them), keyword arguments) -> one value a sample
RewardFunction = Callable[[Sequence[Sample], Sequence[Score], Mapping[str, Any]], list[float | None]]


def accuracy(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
    """1.0 for a correct answer, else 0.0; the verdicts tell why."""
    return [1.0 if score.correct else 0.0 for score in scores]


def format_reward(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
    """1.0 where the response keeps the form of its template (or of `template` in the arguments), else 0.0."""
    values: list[float | None] = []
    for index, sample in enumerate(samples):
        template = kwargs.get("template", sample.template)
        if template not in FORMATS:
            raise RewardError(
                f"reward 'format': sample {index} has the template {template!r}, which has no form to keep; "
                f"use one of {', '.join(FORMATS)}, or set the reward's weight to 0"
            )
        values.append(1.0 if format_score(sample.response, template) else 0.0)
    return values


def overlong(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
    """Soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13), between -1 and 0.

    Arguments: `max_completion_length` (tokens; default: the trainer's), `soft_punish_cache` (tokens before it over
    which the punishment grows; default a fifth of it). A truncated completion counts as too long.
    """
    limit = _token_limit("overlong", kwargs)
    cache = kwargs.get("soft_punish_cache", max(1, limit // 5))
    if not 0 < cache <= limit:
        raise RewardError(f"reward 'overlong': soft_punish_cache must lie between 1 and {limit}, got {cache}")
    return [_punishment(limit + 1 if s.truncated else s.num_tokens, limit, cache) for s in samples]


def _token_limit(name: str, kwargs: Mapping[str, Any]) -> int:
    limit = kwargs.get("max_completion_length")
    if not isinstance(limit, int) or limit < 1:
        raise RewardError(f"reward {name!r} needs max_completion_length, a positive number of tokens")
    return limit


def _punishment(length: int, limit: int, cache: int) -> float:
    if length <= limit - cache:
        return 0.0
    return -1.0 if length > limit else (limit - cache - length) / cache


def length(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
    """Length shaping by a cosine (arXiv:2502.03373): right answers earn more when short, wrong ones when long.

    Arguments: `max_completion_length` (tokens; default: the trainer's), and the values at lengths 0 and that limit,
    `correct_short` (1.0), `correct_long` (0.5), `wrong_short` (-0.5), `wrong_long` (0.0). A truncated completion is as
    long as the limit.
    """
    limit = _token_limit("length", kwargs)
    ends = {
        correct: (float(kwargs.get(f"{name}_short", short)), float(kwargs.get(f"{name}_long", long)))
        for correct, name, short, long in ((True, "correct", 1.0, 0.5), (False, "wrong", -0.5, 0.0))
    }
    values: list[float | None] = []
    for sample, score in zip(samples, scores, strict=True):
        short, long = ends[score.correct]
        share = 1.0 if sample.truncated else min(sample.num_tokens / limit, 1.0)
        values.append(long + (short - long) * (1.0 + math.cos(math.pi * share)) / 2.0)
    return values


def repetition(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
    """Minus the share of repeated word n-grams; `ngram_size` (default 4) words."""
    size = kwargs.get("ngram_size", 4)
    if not isinstance(size, int) or size < 1:
        raise RewardError(f"reward 'repetition': ngram_size must be a positive integer, got {size!r}")
    return [_repeated_share(sample.completion.split(), size) for sample in samples]


def _repeated_share(words: list[str], size: int) -> float:
    total = len(words) - size + 1
    if total < 1:
        return 0.0
    return len({tuple(words[i : i + size]) for i in range(total)}) / total - 1.0


BUILT_IN: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "format": format_reward,
    "overlong": overlong,
    "repetition": repetition,
    "length": length,
}
NEEDS_SCORES = frozenset(("accuracy", "length"))


def resolve(spec: RewardSpec, logbook: Logbook) -> RewardFunction:
    """The function a spec names; a user's own shares the logbook.

    Raises:
        RewardError: no such name, file or function, or the file does not load.
    """
    if spec.path:
        try:
            function = load_function(spec.path)
        except FunctionError as error:
            raise RewardError(f"reward {spec.name!r}: {error}") from error
        return adapt(function, f"reward {spec.name!r} ({spec.path})", logbook, spec.conversational)
    if spec.name not in BUILT_IN:
        raise RewardError(
            f"unknown reward {spec.name!r}; built in are {', '.join(BUILT_IN)}; "
            f"for your own give path='file.py:function'"
        )
    return BUILT_IN[spec.name]
