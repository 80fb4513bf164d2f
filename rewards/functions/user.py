"""Calls a user's reward function in its own convention (TRL, EasyR1 or verl) and checks what it returns."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any

from rewards.types import RewardError, Sample, Score

_ROW_FIELDS = ("kind", "choices", "precision", "unit", "num_tokens", "truncated")


def adapt(function: Callable[..., Any], label: str) -> Callable[..., list[float | None]]:
    """Wrap a user's function; its convention is told by its parameter names.

    `reward_inputs`: EasyR1's batch form; `solution_str` and `ground_truth`: verl's form, one sample a call;
    anything else: TRL's form, called with keyword arguments. Each may be async.
    """
    names = inspect.signature(function).parameters
    is_verl = {"solution_str", "ground_truth"} <= names.keys()
    call = _call_easyr1 if "reward_inputs" in names else _call_verl if is_verl else _call_trl

    def reward(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
        return _checked(call(function, samples, kwargs, label), samples, label)

    return reward


def _call_trl(function: Callable[..., Any], samples: Sequence[Sample], kwargs: Mapping[str, Any], label: str) -> Any:
    golds = [sample.gold for sample in samples]
    columns = sorted({name for sample in samples for name in sample.columns})
    arguments = {
        **{name: [sample.columns.get(name) for sample in samples] for name in columns},
        **{name: [getattr(sample, name) for sample in samples] for name in _ROW_FIELDS},
        "solution": golds,
        "answer": golds,
        "prompts": [sample.prompt for sample in samples],
        "completions": [sample.completion for sample in samples],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
        **kwargs,
    }
    given = _accepted(function, arguments)
    return _run(lambda: function(**given), label, f"a batch of {len(samples)}, first {_shown(samples[0], 0)}")


def _accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function has parameters for; all if it takes any."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _call_easyr1(function: Callable[..., Any], samples: Sequence[Sample], kwargs: Mapping[str, Any], label: str) -> Any:
    inputs = [{"response": s.completion, "response_length": s.num_tokens, "ground_truth": s.gold} for s in samples]
    where = f"a batch of {len(samples)}, first {_shown(samples[0], 0)}"
    values = _run(lambda: function(inputs, **kwargs), label, where)
    return [_part(value, "overall", label) for value in values] if isinstance(values, list) else values


def _call_verl(function: Callable[..., Any], samples: Sequence[Sample], kwargs: Mapping[str, Any], label: str) -> Any:
    values = []
    for index, sample in enumerate(samples):
        arguments = {
            "data_source": sample.columns.get("data_source", sample.columns.get("source", "unknown")),
            "solution_str": sample.completion,
            "ground_truth": sample.gold,
            "extra_info": sample.columns.get("extra_info", dict(sample.columns)),
            **kwargs,
        }
        given = _accepted(function, arguments)
        value = _run(lambda given=given: function(**given), label, _shown(sample, index))
        values.append(_part(value, "score", label))
    return values


def _part(value: Any, key: str, label: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if key not in value:
        raise RewardError(f"{label} returned a dict without {key!r}; it has {', '.join(map(str, value)) or 'no keys'}")
    return value[key]


def _run(call: Callable[[], Any], label: str, where: str) -> Any:
    """The function's result; a coroutine is run to its end, in a thread of its own if a loop already runs here."""
    try:
        result = call()
        return _wait_for(result) if inspect.isawaitable(result) else result
    except Exception as error:  # the user's code may raise anything; it must stop the run with its name
        raise RewardError(f"{label} raised {type(error).__name__}: {error} (on {where})") from error


def _wait_for(awaitable: Any) -> Any:
    async def finish() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(finish())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, finish()).result()


def _checked(values: Any, samples: Sequence[Sample], label: str) -> list[float | None]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        if hasattr(values, "tolist"):  # arrays and tensors
            values = values.tolist()
        if not isinstance(values, list):
            raise RewardError(f"{label} returned {type(values).__name__}, it must return a list of one value a sample")
    if len(values) != len(samples):
        raise RewardError(f"{label} returned {len(values)} values for {len(samples)} samples")
    checked: list[float | None] = []
    for index, (value, sample) in enumerate(zip(values, samples, strict=True)):
        if hasattr(value, "item") and not isinstance(value, Real):
            value = value.item()
        if value is not None and (not isinstance(value, Real) or not math.isfinite(value)):
            raise RewardError(f"{label} returned {value!r}, not a finite number, for {_shown(sample, index)}")
        checked.append(None if value is None else float(value))
    return checked


def _shown(sample: Sample, index: int) -> str:
    return f"sample {index} with prompt {sample.prompt[:80]!r} and completion {sample.completion[:80]!r}"
