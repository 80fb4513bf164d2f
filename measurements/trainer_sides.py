"""The two trainers of the step benchmarks as sides that take turns: ours, and TRL's GRPOTrainer."""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from shapes import CONFIG
from side_by_side import Turnstile, wait_for_device

# Steps whose rows TRL is given; then it starts over.
NUM_STEPS = 160


def our_side(overrides: Sequence[str], turnstile: Turnstile) -> None:
    """Train as `vlm-mhpo train` does; the progress bar, which hears of every finished step, is the turnstile."""
    from vlm_mhpo.config import load_config
    from vlm_mhpo.training import loop
    from vlm_mhpo.training.run import train

    with mock.patch.object(loop, "ProgressBar", partial(Gate, turnstile)):
        train(load_config(CONFIG, list(overrides)))


class Gate:
    """Stands where the trainer's progress bar stands."""

    def __init__(self, turnstile: Turnstile, *_: Any) -> None:
        self._turnstile = turnstile

    def __enter__(self) -> Gate:
        self._turnstile.arrive()
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, metrics: dict[str, float]) -> None:
        """A step is over, its records included."""
        self._turnstile.arrive(mean_length=metrics["completions/mean_length"], reward=metrics["reward"])


def read_phases(run: Path, skipped: int) -> dict[str, float]:
    """Median wall seconds of the parts of our steps without the first ones, as the folder of the run recorded them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][skipped:]
    names = [key for key in rows[-1] if key.startswith("time/")]
    return {name.removeprefix("time/"): statistics.median(row.get(name, 0.0) for row in rows) for name in names}


def trl_side(overrides: Sequence[str], turnstile: Turnstile) -> None:
    """GRPOTrainer with settings that mean the same as ours and cost least; `trl_settings` gives the reasons.

    It also reports `rollout_s`, the part of a step before its updates: sampling, rewards, old log-probs.
    """
    import torch
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from vlm_mhpo.config import load_config
    from vlm_mhpo.prompts.rows import read_rows
    from vlm_mhpo.scoring.scorer import start_scorer

    torch.set_num_threads(1)
    # generate() warns at every call of settings that it then handles.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    config = load_config(CONFIG, list(overrides))
    rows = read_rows(config.data.train, config.data, config.data.train_split, config.data.max_rows)

    class Waits(TrainerCallback):
        """Arrives at the turnstile after the last update of each rollout batch."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turnstile.arrive()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % config.updates_per_step == 0:
                seen = trainer._metrics["train"]
                turnstile.arrive(
                    mean_length=seen["completions/mean_length"][-1],
                    reward=seen["reward"][-1],
                    rollout_s=trainer.rollout_s,
                )

    class Timed(GRPOTrainer):
        """Remembers how long its last rollout took."""

        rollout_s = 0.0

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            begun = time.perf_counter()
            found = super()._generate_and_score_completions(inputs)
            wait_for_device()
            self.rollout_s = time.perf_counter() - begun
            return found

    with start_scorer(config.rewards, max_completion_length=config.rollout.max_completion_length) as scorer:
        trainer = Timed(
            model=config.model.path,
            reward_funcs=reward_of(scorer, rows, config.data.template),
            args=trl_settings(config),
            train_dataset=trl_dataset(rows, config),
            callbacks=[Waits()],
        )
        check_prompt(trainer, rows, config)
        trainer.train()


def trl_settings(config: Any) -> Any:
    """The GRPOConfig that does what our configuration does, at the least cost.

    Weights and arithmetic in our dtype: float32 (TRL's default is bfloat16 autocast, which a CPU only emulates), or for
    large models bfloat16 throughout, optimizer included, which is the fastest and smallest that TRL can do, although
    small updates are then lost (ours keeps float32 masters). Gradient checkpointing as ours (the default recomputes
    every forward), no reference model (beta 0, the default), no logs, no files,
    no progress bar, no images kept for logging. One optimizer update is one forward and backward of its whole share
    of the completions, the rollout batch is generated at once, and prompts come in the order in which we take them.
    With more than one update TRL computes the old log-probs in one more forward; it has no way to keep the sampler's.
    Loss (dapo), fused AdamW, chunked log-probs and SDPA attention are its defaults. Its vision placeholders are
    suppressed, as ours are banned: one that is sampled would break the next forward.
    """
    import torch
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    from vlm_mhpo.models.families.base import VISION_TOKENS

    placeholders = AutoTokenizer.from_pretrained(config.model.path).convert_tokens_to_ids(list(VISION_TOKENS))
    completions = config.train.num_prompts_per_step * config.rollout.num_generations
    return GRPOConfig(
        output_dir=str(Path(config.output_dir).with_name("trl")),
        use_cpu=not torch.cuda.is_available(),
        bf16=config.model.dtype == "bfloat16",
        model_init_kwargs={"dtype": config.model.dtype, "attn_implementation": config.model.attn_implementation},
        gradient_checkpointing=config.model.gradient_checkpointing,
        num_generations=config.rollout.num_generations,
        max_completion_length=config.rollout.max_completion_length,
        per_device_train_batch_size=completions // config.train.num_minibatches,
        gradient_accumulation_steps=1,
        steps_per_generation=config.train.num_minibatches,
        num_iterations=config.train.num_iterations,
        generation_kwargs={"suppress_tokens": placeholders},
        learning_rate=config.train.learning_rate,
        lr_scheduler_type=config.train.lr_scheduler_type,
        warmup_steps=config.train.warmup_steps * config.updates_per_step,
        max_steps=config.train.max_steps * config.updates_per_step,
        adam_beta1=config.train.adam_beta1,
        adam_beta2=config.train.adam_beta2,
        adam_epsilon=config.train.adam_epsilon,
        weight_decay=config.train.weight_decay,
        max_grad_norm=config.train.max_grad_norm,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        seed=config.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_multimodal=False,
    )


def trl_dataset(rows: Sequence[Any], config: Any) -> Any:
    """The rows in the order of our steps; images are handed over decoded, which costs TRL nothing."""
    from datasets import Dataset

    from data_prep import open_image
    from vlm_mhpo.prompts.stream import PromptStream

    stream = PromptStream(rows, None, seed=config.seed, num_prompts=config.train.num_prompts_per_step)
    order = [index for step in range(min(NUM_STEPS, config.train.max_steps)) for index in stream.indices(step)]
    pictures = {index: [open_image(image) for image in rows[index].images] for index in set(order)}

    def columns(batch: dict[str, list]) -> dict[str, list]:
        texts = [rows[index].problem.removeprefix("<image>") for index in batch["index"]]
        return {
            "index": batch["index"],
            "prompt": [[{"role": "user", "content": text}] for text in texts],
            "images": [pictures[index] for index in batch["index"]],
        }

    dataset = Dataset.from_dict({"index": order})
    dataset.set_transform(columns)
    return dataset


def reward_of(scorer: Any, rows: Sequence[Any], template: str) -> Callable[..., list[float]]:
    """Our weighted rewards, from the same verifier processes, as a reward function of TRL."""
    import torch

    from vlm_mhpo.scoring.samples import to_sample
    from vlm_mhpo.types import Completion, Prompt

    def reward(
        completions: Sequence, completion_ids: Sequence[Sequence[int]], index: Sequence[int], **_: Any
    ) -> list[float]:
        samples = []
        for messages, ids, row in zip(completions, completion_ids, index, strict=True):
            prompt = Prompt(rows[row], "", torch.zeros(0), torch.zeros(0))
            completion = Completion(tuple(ids), torch.empty(0), messages[0]["content"], truncated=False)
            samples.append(to_sample(prompt, completion, template))
        return list(scorer.score(samples).totals)

    return reward


def check_prompt(trainer: Any, rows: Sequence[Any], config: Any) -> None:
    """Both sides must read the same tokens; SystemExit otherwise."""
    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.loading import load_codec
    from vlm_mhpo.prompts.builder import prompt_builder

    family = family_of(trainer.model.config.model_type)
    codec = load_codec(config.model.path, trainer.model, family, revision=None, min_pixels=None, max_pixels=None)
    example = trainer.train_dataset[0]
    ours = prompt_builder(config.data, codec, family)(rows[example["index"]])
    content = [{"type": "image", "image": image} for image in example["images"]]
    message = {"role": "user", "content": [*content, {"type": "text", "text": example["prompt"][0]["content"]}]}
    theirs = trainer.processing_class.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    if ours.input_ids_S.tolist() != list(theirs["input_ids"][0]):
        raise SystemExit("TRL's prompt has other tokens than ours, so the two cannot be compared")
