"""Calls a user's reward function in its own convention (TRL, EasyR1 or verl) and checks what it returns."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Real
from types import CodeType, FunctionType, ModuleType
from typing import Any

from rewards.functions.logbook import Logbook
from rewards.types import RewardError, Sample, Score

_ROW_FIELDS = ("kind", "choices", "precision", "unit", "num_tokens", "truncated")
# What data sets call the gold; a column of the row that has such a name goes before it.
_GOLD_NAMES = ("answer", "solution", "ground_truth", "gold", "gt", "target", "label")

Reward = Callable[[Sequence[Sample], Sequence[Score], Mapping[str, Any]], list[float | None]]
_Call = Callable[[Sequence[Sample], Mapping[str, Any]], Any]


def adapt(function: Callable[..., Any], label: str, logbook: Logbook, conversational: bool | None = None) -> Reward:
    """Wrap a user's function; its convention is told by its parameter names.

    `reward_inputs` is EasyR1's batch form and `reward_input` its sequential one; `solution_str` and `ground_truth` are
    verl's form, one sample a call; anything else is TRL's form, called with keyword arguments. Each may be async.

    Args:
        label: name of the function in messages.
        logbook: what it is told of the run, and where it may log; TRL's form only.
        conversational: TRL's form gets prompts and completions as lists of messages, else as texts; None = if the
            function, or one of its folder that it calls, names the key "content" of a message.
    """
    names = inspect.signature(function).parameters
    call: _Call
    if "reward_inputs" in names:
        call = partial(_call_easyr1, function, label)
    elif "reward_input" in names:
        call = partial(_call_each, function, label, _easyr1_sample, "overall")
    elif {"solution_str", "ground_truth"} <= names.keys():
        call = partial(_call_each, function, label, _verl_sample, "score")
    else:
        as_messages = _mentions(function, "content") if conversational is None else conversational
        call = partial(_call_trl, function, label, logbook, as_messages)

    def reward(samples: Sequence[Sample], scores: Sequence[Score], kwargs: Mapping[str, Any]) -> list[float | None]:
        return _checked(call(samples, kwargs), samples, label)

    return reward


def _call_trl(
    function: Callable[..., Any],
    label: str,
    logbook: Logbook,
    as_messages: bool,
    samples: Sequence[Sample],
    kwargs: Mapping[str, Any],
) -> Any:
    columns = {name for sample in samples for name in sample.columns}
    golds = [_gold(sample) for sample in samples]
    arguments: dict[str, Any] = dict.fromkeys(_GOLD_NAMES, golds)
    # A worked solution where the row has one.
    arguments |= {name: [_column(sample, name) for sample in samples] for name in sorted(columns)}
    arguments |= {name: [getattr(sample, name) for sample in samples] for name in _ROW_FIELDS}
    arguments |= {
        "answer": golds,
        "prompts": [_asked(sample, as_messages) for sample in samples],
        "completions": [_spoken("assistant", sample.completion, as_messages) for sample in samples],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
        "trainer_state": logbook.trainer_state,
        "log_metric": logbook.log_metric,
        "log_extra": logbook.log_extra,
        **kwargs,
    }
    arguments |= _opened_images(function, samples)
    given = _accepted(function, arguments, label)
    form = "messages" if as_messages else "texts"
    where = f"a batch of {len(samples)} as {form} (see conversational), first {_shown(samples[0], 0)}"
    return _run(function, lambda: function(**given), label, where)


def _column(sample: Sample, name: str) -> Any:
    """A row's own column; a row without a worked solution has its gold in that place."""
    return sample.columns.get(name, _gold(sample) if name in _GOLD_NAMES else None)


def _gold(sample: Sample) -> Any:
    """The gold as its column has it: the list where that is one, also as text; else the first text that is right."""
    column = sample.columns.get("answer")
    if isinstance(column, list | tuple):
        return list(column)
    if isinstance(column, str) and column.lstrip().startswith(("['", '["')):
        return column
    return sample.gold if isinstance(sample.gold, str) else sample.gold[0]


def _spoken(role: str, text: str, as_message: bool) -> Any:
    """A text, or as the only message of a conversation."""
    return [{"role": role, "content": text}] if as_message else text


def _asked(sample: Sample, as_messages: bool) -> Any:
    """The last question, or as messages all that was said up to it."""
    earlier = [{"role": role, "content": text} for role, text in sample.earlier_turns]
    asked = _spoken("user", sample.prompt, as_messages)
    return [*earlier, *asked] if as_messages else asked


def _opened_images(function: Callable[..., Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """Decoded images, for a function that names them."""
    made: dict[str, Any] = {}
    if _mentions(function, "images"):
        made["images"] = [list(sample.columns.get("images", ())) for sample in samples]
    if _mentions(function, "image"):
        made["image"] = [next(iter(sample.columns.get("images", ())), None) for sample in samples]
    return made


def _accepted(function: Callable[..., Any], arguments: dict[str, Any], label: str = "") -> dict[str, Any]:
    """Those of the arguments that a function has parameters for; all if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    missing = next((name for name in needed if name not in arguments), None)
    if missing:
        raise RewardError(
            f"{label} wants {missing!r}, which is neither a column of these rows nor set in its kwargs; there is "
            f"{', '.join(sorted(arguments))}"
        )
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def _call_easyr1(function: Callable[..., Any], label: str, samples: Sequence[Sample], kwargs: Mapping[str, Any]) -> Any:
    inputs = [_easyr1_sample(sample)["reward_input"] for sample in samples]
    where = f"a batch of {len(samples)}, first {_shown(samples[0], 0)}"
    values = _run(function, lambda: function(inputs, **kwargs), label, where)
    return [_part(value, "overall", label) for value in values] if isinstance(values, list) else values


def _easyr1_sample(sample: Sample) -> dict[str, Any]:
    known = {"response": sample.completion, "response_length": sample.num_tokens, "ground_truth": _gold(sample)}
    known["equivalent_answers"] = list(sample.columns.get("equivalent_answers", ()))
    return {"reward_input": known}


def _verl_sample(sample: Sample) -> dict[str, Any]:
    return {
        "data_source": sample.columns.get("data_source", sample.columns.get("source", "unknown")),
        "solution_str": sample.completion,
        "ground_truth": _gold(sample),
        "extra_info": sample.columns.get("extra_info", dict(sample.columns)),
    }


def _call_each(
    function: Callable[..., Any],
    label: str,
    arguments_of: Callable[[Sample], dict[str, Any]],
    key: str,
    samples: Sequence[Sample],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """One call a sample; a dictionary's `key` is the value."""
    values = []
    for index, sample in enumerate(samples):
        given = _accepted(function, {**arguments_of(sample), **kwargs}, label)
        value = _run(function, lambda given=given: function(**given), label, _shown(sample, index))
        values.append(_part(value, key, label))
    return values


def _part(value: Any, key: str, label: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if key not in value:
        raise RewardError(f"{label} returned a dict without {key!r}; it has {', '.join(map(str, value)) or 'no keys'}")
    return value[key]


def _mentions(function: Any, word: str) -> bool:
    """Whether a function has a parameter of that name or the text as a constant; also those it calls of its folder."""
    seen: set[CodeType] = set()

    def looks(candidate: Any) -> bool:
        while isinstance(candidate, partial) or hasattr(candidate, "__wrapped__"):
            candidate = candidate.func if isinstance(candidate, partial) else candidate.__wrapped__
        if not isinstance(candidate, FunctionType):
            candidate = getattr(candidate, "__func__", None) or type(candidate).__call__
        code = getattr(candidate, "__code__", None)
        if code is None or code in seen:
            return False
        seen.add(code)
        parts = _parts_of(code)
        if word in inspect.signature(candidate).parameters or any(word in part.co_consts for part in parts):
            return True
        held = inspect.getclosurevars(candidate).nonlocals.values()
        names = [name for part in parts for name in part.co_names]
        called = [candidate.__globals__.get(name) for name in names]
        modules = [each for each in called if isinstance(each, ModuleType)]
        called += [vars(module).get(name) for module in modules for name in names]
        called = [each for each in called if isinstance(each, FunctionType)]
        neighbours = [each for each in called if _folder_of(each) == _folder_of(candidate)]
        return any(looks(each) for each in (*held, *neighbours) if callable(each))

    return looks(function)


def _folder_of(function: FunctionType) -> str:
    return os.path.dirname(os.path.abspath(function.__code__.co_filename))


def _parts_of(code: CodeType) -> list[CodeType]:
    """A function's code and that of the functions inside it."""
    inner = [part for each in code.co_consts if isinstance(each, CodeType) for part in _parts_of(each)]
    return [code, *inner]


def _run(function: Callable[..., Any], call: Callable[[], Any], label: str, where: str) -> Any:
    """The function's result; a coroutine is run to its end, in a thread of its own if a loop already runs here."""
    try:
        result = call()
        return _wait_for(result) if inspect.isawaitable(result) else result
    except Exception as error:  # the user's code may raise anything; it must stop the run with its name
        place = _place(error, function)
        raise RewardError(f"{label} raised {type(error).__name__}: {error} at {place} (on {where})") from error


def _place(error: Exception, function: Callable[..., Any]) -> str:
    """Where an exception arose: the last line of the function's own file that led there, else the last line at all."""
    frames = traceback.extract_tb(error.__traceback__)
    file = inspect.unwrap(function).__globals__.get("__file__") if inspect.isfunction(function) else None
    last = [frame for frame in frames if frame.filename == file] or frames
    return f"{last[-1].filename}, line {last[-1].lineno}"


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
