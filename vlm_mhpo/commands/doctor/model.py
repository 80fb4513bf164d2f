"""The model without its weights: what a run would refuse it for, and what its chat template does to responses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.commands.doctor.shapes import shapes_of
from vlm_mhpo.config import ModelConfig
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.loading import examine_model
from vlm_mhpo.models.template import opened_response
from vlm_mhpo.models.tiny import tiny_family


def examine_folder(model: ModelConfig) -> Iterator[Check]:
    """Configuration, tensors, processor and template of a model on this machine; headers of files and no values."""
    if tiny_family(model.path):
        try:
            shapes_of(model)
        except ModelError as error:
            yield Check.refusal("model", error)
        return
    names = {"revision", "min_pixels", "max_pixels", "freeze_vision_tower", "freeze_projector", "lora"}
    try:
        _, weights, codec = examine_model(model.path, **model.model_dump(include=names), offline=True)
    except ModelError as error:
        if Path(model.path).exists():
            yield Check.refusal("model", error)
        else:
            yield Check("warning", "weights", f"{model.path} is not on this machine as a whole, so it is not examined")
        return
    ends = " ".join(codec.tokenizer.convert_ids_to_tokens(list(codec.end_ids)))
    yield Check("ok", "weights", f"{len(weights.shapes)} tensors, all that the model needs and no others")
    yield Check("ok", "end of a response", ends)
    if opens := opened_response(codec.processor):
        text = f"opens {opens!r}, which counts as the beginning of every response, for rewards and warm start"
        yield Check("ok", "chat template", text)
    else:
        yield Check("ok", "chat template", "opens nothing: a response is what is sampled")
