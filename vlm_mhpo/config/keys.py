"""Every configuration key with its text, default and range, read off the models; as text, as a page, as a schema.

    python -m vlm_mhpo.config.keys > docs/configuration.md

writes the page anew, with `--schema` docs/configuration_schema.json for editors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from vlm_mhpo.config.run import Config
from vlm_mhpo.errors import ConfigError

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<", "minLength": "length >="}
_TYPES = {"boolean": "true or false", "string": "text", "object": "mapping"}
_REQUIRED = "required"
_TABLE = "| key | range | default | what it does | on resume |\n| --- | --- | --- | --- | --- |"
INTRODUCTION = """\
# The configuration of a run

One YAML file (see `configs/`), any key of which a command line may override: `train.learning_rate=1e-6`. The same
text on the command line: `vlm-mhpo config`, `vlm-mhpo config train`, `vlm-mhpo config train.learning_rate`. With

    # yaml-language-server: $schema=PATH/docs/configuration_schema.json

as the first line of a configuration file, an editor completes and checks its keys.

The last column says whether a run may go on with another value than it began with. *free*: it does not change what is
learnt. *by content*: taken where the rows or the model that it leads to are the same. *never*: the tensors of a
checkpoint follow from it. Of all others the run says what differs and goes on only with
`checkpoint.allow_change=[KEY, ...]`.

`python -m vlm_mhpo.config.keys > docs/configuration.md` prints this page from the sections themselves.
"""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration file.

    Attributes:
        name: dotted; N stands for a place in a list.
        allowed: type and range, in words.
        default: as one writes it in YAML; "required" where there is none, empty for an empty list or mapping.
        text: what it does; of a section, what it is.
        is_section: whether it holds other keys.
        on_resume: the mark of its declaration, see `config.base`; empty without one.
    """

    name: str
    allowed: str
    default: str
    text: str
    is_section: bool = False
    on_resume: str = ""


def all_keys() -> list[Key]:
    """Every key, sections ahead of theirs; those of an objective once for each objective, as objective[NAME].KEY."""
    schema = Config.model_json_schema()
    return list(_visit(schema, schema["$defs"], ""))


def keys_under(name: str) -> list[Key]:
    """The key of that name, or a section with everything in it.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    keys = all_keys()
    found = [key for key in keys if key.name == name or key.name.startswith((f"{name}.", f"{name}["))]
    # An objective's constants go by their plain name in a file.
    found = found or [key for key in keys if key.name.startswith("objective[") and _plain(key.name) == name]
    if not found:
        near = get_close_matches(name, [_plain(key.name) for key in keys], n=1)
        raise ConfigError(f"no key {name!r}" + (f"; did you mean {near[0]}?" if near else ": see vlm-mhpo config"))
    return found


def _plain(name: str) -> str:
    """objective[grpo].epsilon as objective.epsilon."""
    before, _, behind = name.partition("[")
    return before + behind.partition("]")[2]


def _visit(schema: Mapping[str, Any], sections: Mapping[str, Any], prefix: str, mark: str = "") -> Iterator[Key]:
    """The keys of one section, whose mark is `mark`: its own, then those of the sections in it."""
    inner: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []
    for name, field in schema["properties"].items():
        parts = _sections_in(field, sections)
        inner += [(f"{prefix}{name}{place}", field, part) for place, part in parts.items()]
        if not parts:
            default = _REQUIRED if name in schema.get("required", ()) else _written(field)
            text, own = field.get("description", ""), field.get("on_resume", mark)
            yield Key(prefix + name, _allowed(field), default, text, on_resume=own)
    for name, field, part in inner:
        allowed = " or ".join("null" if "null" in each.values() else "section" for each in field.get("anyOf", [{}]))
        yield Key(name, allowed, "", field.get("description") or part["description"], is_section=True)
        yield from _visit(part, sections, f"{name}.", field.get("on_resume", mark))


def _sections_in(field: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections that a field may hold, by what stands behind its name: "", "[objective]" or ".N"."""
    candidates = [("", field), (".N", field.get("items", {})), *(("", each) for each in field.get("anyOf", ()))]
    found = {place: _section(each, sections) for place, each in candidates if "$ref" in each}
    for each in field.get("oneOf", ()):
        part = _section(each, sections)
        found[f"[{part['properties']['name']['const']}]"] = part
    return found


def _section(reference: Mapping[str, str], sections: Mapping[str, Any]) -> Mapping[str, Any]:
    return sections[reference["$ref"].rpartition("/")[2]]


def _allowed(field: Mapping[str, Any]) -> str:
    """A field's type and range in words."""
    if "anyOf" in field:
        return " or ".join(_allowed(each) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        return f"list of {_allowed(field.get('items', {}))}"
    bounds = ", ".join(f"{sign} {field[bound]:g}" for bound, sign in _BOUNDS.items() if bound in field)
    kind = _TYPES.get(field.get("type", ""), field.get("type", "any value"))
    return f"{kind} {bounds}" if bounds else kind


def _written(field: Mapping[str, Any]) -> str:
    """A default as YAML has it; empty where it is an empty list or mapping."""
    value = field.get("default", "")
    return value if isinstance(value, str) and (value or "default" not in field) else json.dumps(value)


def as_text(keys: Sequence[Key]) -> str:
    """Keys for a terminal: name, default and range on a line, what it does below."""
    lines = []
    for key in keys:
        default = f" = {key.default}" if key.default not in ("", _REQUIRED) else ""
        allowed = f"{key.allowed}, {_REQUIRED}" if key.default == _REQUIRED else key.allowed
        lines += [f"{key.name}{default}  ({allowed})", *([f"    {key.text}"] if key.text else [])]
    return "\n".join(lines)


def markdown() -> str:
    """docs/configuration.md."""
    parts = [INTRODUCTION, _TABLE]
    for key in all_keys():
        if key.is_section:
            parts.append(f"\n## {key.name}\n\n{key.text}\n\n{_TABLE}")
            continue
        default = key.default if key.default in ("", _REQUIRED) else f"`{key.default}`"
        cells = (f"`{key.name}`", key.allowed, default, key.text, key.on_resume)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def published_schema() -> dict[str, Any]:
    """docs/configuration_schema.json: what editors complete and check by."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


if __name__ == "__main__":
    print(json.dumps(published_schema(), indent=1) + "\n" if "--schema" in sys.argv else markdown(), end="")
