"""How many tokens the prompt of a row has for a model, counted with its own processor and without its weights."""

from __future__ import annotations

from collections.abc import Callable

from data_prep import DataError, Row
from vlm_mhpo.errors import ModelError, PromptError
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.folder import base_of, read_config, read_processor
from vlm_mhpo.models.loading import NO_LIMIT, counting_codec
from vlm_mhpo.prompts.builder import PromptBuilder


def token_counter(model: str) -> Callable[[Row], int]:
    """A function that gives the tokens of a row's prompt: question, choices, image tokens and chat template.

    The system prompt and the instruction of a configuration come on top. A row that cannot become a prompt raises
    DataError, as unusable rows do in `data_prep`.

    Args:
        model: folder or hub name with config.json and the processor's files.
    Raises:
        ModelError: they cannot be loaded, or the architecture is not supported.
    """
    try:
        family = family_for(read_config(model))
        codec = counting_codec(read_processor(base_of(model).path, family), family, path=model)
    except ModelError as error:
        raise ModelError(f"no processor at {model!r}: {error}") from error
    builder = PromptBuilder(codec, family, max_prompt_length=NO_LIMIT)

    def count(row: Row) -> int:
        try:
            return builder(row).num_tokens
        except PromptError as error:
            raise DataError(str(error)) from error

    return count
