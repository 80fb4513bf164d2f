"""How many tokens the prompt of a row has for a model, counted with its own processor and without its weights."""

from __future__ import annotations

from collections.abc import Callable

from data_prep import DataError, Row
from vlm_mhpo.errors import ModelError, PromptError
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.loading import NO_LIMIT, counting_codec
from vlm_mhpo.models.weights import first_line
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
    import transformers

    try:
        family = family_for(transformers.AutoConfig.from_pretrained(model, trust_remote_code=False))
        processor = family.auto_classes[1].from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"no processor at {model!r}: {first_line(error)}") from error
    builder = PromptBuilder(counting_codec(processor, family), family, max_prompt_length=NO_LIMIT)

    def count(row: Row) -> int:
        try:
            return builder(row).num_tokens
        except PromptError as error:
            raise DataError(str(error)) from error

    return count
