"""How a record of each training framework or data set becomes the plain columns of `data_prep.formats.table`.

A dialect is known by its column names, row by row, whatever file or hub table holds the row. Layouts that are plain
columns already need none: EasyR1, R1-V, open-r1, ViRL39K, MAYE, Geometry3K with choices, MATH, AIME, AMC, HMMT, GSM8K.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.formats.chat import is_chat, read_chat
from data_prep.formats.golds import gold_cells, read_gold
from data_prep.schema import IMAGE_PLACEHOLDER, RowError, Turn

_Record = Mapping[str, Any]

# Python's notation of a flat list of texts and numbers, as str() of a list writes it; never evaluated.
_MAX_LIST_CHARACTERS = 20_000
_LIST_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([0-9.eE+-]+))\s*(,|$)""")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_NUMBERED_TAG = re.compile(r"<image ([1-9])>")


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to name columns.

    Attributes:
        marks: columns that every such row has.
        to_plain: the same row in plain columns.
        yields_to: with one of these columns a row is plain unless the dialect is asked for by name.
    """

    marks: frozenset[str]
    to_plain: Callable[[_Record], _Record]
    yields_to: frozenset[str] = frozenset()


def as_plain(record: _Record, dialect: str | None = None) -> _Record:
    """`record` in plain columns, by the dialect of that name, or by the first whose marks it has.

    Raises:
        RowError: naming the field; or the record lacks a column of the dialect that was asked for.
    """
    present = {name for name, value in record.items() if value is not None}
    if dialect is not None:
        if missing := sorted(DIALECTS[dialect].marks - present):
            raise RowError(f"is missing, which every {dialect} row has", field=missing[0])
        return DIALECTS[dialect].to_plain(record)
    for known in DIALECTS.values():
        if known.marks <= present and not known.yields_to & present:
            return known.to_plain(record)
    for column in _CHATS & present:
        _refuse_hidden_turns(record, column)
    return record


def _refuse_hidden_turns(record: _Record, column: str) -> None:
    """RowError for a chat beside a question that stands for it, where it says more than the question."""
    try:
        chat = read_chat(record[column], column) if is_chat(record[column]) else None
    except RowError:
        return  # no chat that could be read
    if chat and chat.earlier_turns:
        raise RowError(
            "holds a system message or earlier turns beside a column with the question, which alone would be asked: "
            f"leave one of both out with data.ignore_columns (prepare and audit: --ignore-columns {column})",
            field=column,
        )


def python_list(text: str, field: str) -> list[str]:
    """The items of a flat list in Python's or JSON's notation, as text.

    Raises:
        RowError: too long, or no such list.
    """
    body = text.strip()
    if len(body) > _MAX_LIST_CHARACTERS or body[:1] != "[" or body[-1:] != "]":
        raise RowError(f"is no list in [...] of at most {_MAX_LIST_CHARACTERS:,} characters", field=field)
    body, items, at = body[1:-1].rstrip(), [], 0
    while at < len(body):
        item = _LIST_ITEM.match(body, at)
        if item is None:
            raise RowError(f"is no flat list of quoted texts: {body[at : at + 40]!r} cannot be read", field=field)
        quoted = item[1] if item[1] is not None else item[2]
        items.append(item[3] if quoted is None else _ESCAPE.sub(_unescaped, quoted))
        at = item.end()
    return items


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1]
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number <= 0x10FFFF else escape[0]
    # An unknown escape is LaTeX that was not doubled, such as \frac: it stays.
    return _ESCAPED.get(code, escape[0])


def _without(record: _Record, *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def of_chat(record: _Record, column: str) -> dict[str, Any]:
    """The record with the messages of a column replaced by the problem, the turns before it, images and the gold."""
    chat = read_chat(record[column], column)
    plain = _without(record, column, "problem", "question", "query")
    plain |= {"problem": chat.problem, "earlier_turns": chat.earlier_turns}
    if chat.images:
        if any(record.get(name) not in (None, [], "") for name in ("images", "image")):
            raise RowError("holds images, and so do the messages; keep one of them", field="images")
        plain = _without(plain, "image") | {"images": list(chat.images)}
    if chat.videos:
        if any(record.get(name) not in (None, [], "") for name in ("videos", "video")):
            raise RowError("holds videos, and so do the messages; keep one of them", field="videos")
        plain = _without(plain, "video") | {"videos": list(chat.videos)}
    answer, solution = gold_cells(record)
    # The reply is the worked solution where no column is; the gold is its only where no column has one.
    where = "the reply of the chat" if solution is None else "'solution'"
    plain["answer"], plain["solution"] = read_gold(answer, solution or chat.reply, bare=True, where=where)
    return plain


def _from_history(record: _Record) -> _Record:
    """ms-swift's and LLaMA-Factory's older form: `history` holds [question, answer] pairs before `query`."""
    history = [] if record.get("history") is None else record["history"]
    pairs = history if isinstance(history, list | tuple) else [None]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise RowError("is no list of [question, answer] pairs", field="history")
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns.append(Turn("user", record["query"]))
    turns += [Turn("assistant", record["response"])] if record.get("response") else []
    return of_chat(_without(record, "history", "response") | {"messages": turns}, "messages")


def _from_trl(record: _Record) -> _Record:
    if is_chat(record["prompt"]):
        return of_chat(record, "prompt")
    answer, solution = read_gold(*gold_cells(record), bare=True)
    return dict(record) | {"answer": answer, "solution": solution}


def _from_verl(record: _Record) -> _Record:
    reward, extra = record["reward_model"], record.get("extra_info") or {}
    if not isinstance(reward, Mapping) or not isinstance(extra, Mapping):
        raise RowError("is not an object with columns of its own", field="reward_model")
    if reward.get("ground_truth") in (None, []):
        raise RowError("has no ground_truth", field="reward_model")
    plain = _without(record, "reward_model", "extra_info", "data_source", "solution")
    plain |= {"answer": reward["ground_truth"], "equivalent_answers": reward.get("equivalent_answers")}
    plain |= {"metadata": _without(extra, "split", "index", "question", "answer")}
    plain = of_chat(plain, "prompt") if is_chat(record["prompt"]) else plain | {"problem": record["prompt"]}
    plain["problem"] = _without_instruction(plain["problem"], extra.get("question"))
    source, split, index = record.get("data_source"), extra.get("split"), extra.get("index")
    plain.setdefault("source", source)
    plain.setdefault("split", split)
    if plain.get("id") is None and index is not None:
        plain["id"] = "/".join(str(part) for part in (source, split, index) if part is not None)
    return plain


def _without_instruction(prompt: Any, question: Any) -> Any:
    """The question alone where the prompt is the question and how to answer it: the template says that here."""
    if not isinstance(prompt, str) or not isinstance(question, str):
        return prompt
    asked, words = (text.replace(IMAGE_PLACEHOLDER, "").strip() for text in (prompt, question))
    num_shown = prompt.count(IMAGE_PLACEHOLDER)
    if not words or not asked.startswith(words) or question.count(IMAGE_PLACEHOLDER) not in (0, num_shown):
        return prompt
    return question if IMAGE_PLACEHOLDER in question else IMAGE_PLACEHOLDER * num_shown + question


def _from_clevr_math(record: _Record) -> _Record:
    return _without(record, "label", "template") | {"answer": record["label"]}


def _from_mmmu(record: _Record) -> _Record:
    """MMMU: images are named where the question or an option speaks of them, as `<image 2>`."""
    options = record["options"]
    options = python_list(options, "options") if isinstance(options, str) else options
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise RowError("is no list of texts, nor Python's text of one", field="options")
    question = record["question"]
    if not isinstance(question, str):
        raise RowError(f"holds a {type(question).__name__}, not text", field="question")
    numbers = [str(number) for number in range(1, 8) if record.get(f"image_{number}") is not None]
    for tag in _NUMBERED_TAG.finditer("\n".join((question, *options))):
        if tag[1] not in numbers:
            raise RowError(f"is named in the question as {tag[0]}, and is empty", field=f"image_{tag[1]}")
    # Images are counted as they are there; the marks are read as those of any table.
    question, *options = (
        _NUMBERED_TAG.sub(lambda tag: f"<image {numbers.index(tag[1]) + 1}>", text) for text in (question, *options)
    )
    answer = record.get("answer")
    if isinstance(answer, str) and answer.strip() in ("?", ""):
        raise RowError("is hidden, as in the test split of MMMU; use validation or dev", field="answer")
    others: list[str] = []
    if not options and isinstance(answer, str) and answer.startswith(("['", '["')):
        # An open question may list several spellings of its answer, each of which is right.
        answer, *others = python_list(answer, "answer")
    plain = _without(record, "question", "options", "solution", *(f"image_{number}" for number in range(1, 8)))
    return plain | {
        "problem": question,
        "images": [record[f"image_{number}"] for number in numbers],
        "answer": answer,
        "equivalent_answers": others,
        "choices": options,
        "kind": "choice" if options else "auto",
    }


def _from_mmmu_pro_vision(record: _Record) -> _Record:
    """MMMU-Pro, vision: the image shows the question and the options, which are listed as in MMMU."""
    options = record["options"]
    return dict(record) | {
        "problem": "",
        "options": python_list(options, "options") if isinstance(options, str) else options,
    }


_PLAIN = frozenset({"problem", "question"})
_CHATS = frozenset({"message", "conversations", "messages", "prompt"})

# In the order of recognition: the dialects with the most marks first.
DIALECTS: dict[str, Dialect] = {
    "clevr_math": Dialect(frozenset({"template", "question", "image", "label"}), _from_clevr_math),
    "mmmu": Dialect(frozenset({"question", "options", "image_1"}), _from_mmmu),
    "mmmu_pro_vision": Dialect(frozenset({"image", "options", "subject"}), _from_mmmu_pro_vision, _PLAIN),
    "verl": Dialect(frozenset({"prompt", "reward_model"}), _from_verl),
    "mm_eureka": Dialect(frozenset({"message", "answer"}), lambda record: of_chat(record, "message"), _PLAIN),
    "vlm_r1": Dialect(frozenset({"conversations"}), lambda record: of_chat(record, "conversations"), _PLAIN),
    "ms_swift": Dialect(frozenset({"messages"}), lambda record: of_chat(record, "messages"), _PLAIN),
    "query_history": Dialect(frozenset({"query", "history"}), _from_history, _PLAIN),
    "query_response": Dialect(frozenset({"query", "response"}), _from_history, _PLAIN),
    "trl": Dialect(frozenset({"prompt"}), _from_trl, _PLAIN),
}
