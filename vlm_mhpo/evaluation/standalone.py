"""Evaluate a model, checkpoint or run without training it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.config import Config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.evaluation.held_out import evaluate, summarise, write_evaluation
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.prompts.builder import prompt_builder
from vlm_mhpo.prompts.rows import read_rows, usable_rows
from vlm_mhpo.rollout.build import build_sampler, held_out_params
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.scorer import start_verifier


def evaluate_model(
    config: Config, *, model: str | None, out: Path | None, name: str
) -> tuple[dict[str, Any], tuple[Path, Path]]:
    """Judge `data.eval` rows; every rank holds a whole copy of the model and takes its share of the rows.

    Args:
        config: rows, prompt, decoding, pixel limits.
        model: run folder, checkpoint, model folder or hub name; None = `model.path`.
        out: folder of the records; None = `output_dir/eval`.
        name: of the record's files.

    Returns:
        The record and the paths of its JSON and Markdown files.
    """
    if not config.data.eval:
        raise ConfigError("data.eval is not set: name the rows to evaluate on")
    ranks.start(config.num_threads)
    data = config.data
    _, policy, codec = load_for_evaluation(config, model or config.model.path, Path(config.output_dir))
    builder = prompt_builder(data, codec, policy.family)
    rows = usable_rows(
        read_rows(data.eval, data, data.eval_split, data.max_eval_rows), builder, overlong="error", what="held-out"
    )
    params = held_out_params(config.eval, config.rollout)
    folder = out or Path(config.output_dir) / "eval"
    with start_verifier(config.rewards) as verifier:
        items = evaluate(
            rows,
            builder,
            build_sampler(config.rollout, policy, codec),
            verifier,
            params,
            template=data.template,
            seed=config.seed,
            image_dir=folder.parent,
            gallery=config.eval.gallery,
        )
    record = summarise(items, name=name, step=0, params=params)
    files = (folder / f"{name}.json", folder / f"{name}.md")
    if ranks.is_main():
        files = write_evaluation(folder, record)
    ranks.barrier()
    return record, files


def load_for_evaluation(config: Config, model: str, folder: Path) -> tuple[str, Policy, Codec]:
    """A whole copy of a model on this rank's device: (folder or hub name that was loaded, policy, codec).

    Args:
        config: how it is held, and its pixel limits.
        model: run folder, checkpoint, model folder, hub name, or tiny:FAMILY, which is built in `folder`.
        folder: see `model`.
    """
    opened = open_policy(config.model.model_copy(update={"path": model}), folder, "judge")
    return opened.path, opened.policy, opened.codec
