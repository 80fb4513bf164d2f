"""The work that the speed benchmarks measure: shapes of a step, and the model and rows that they are made of."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
RUNS = ROOT / "runs" / "speed"
# Pixels that become one image token in both directions: patches of 14, merged by 2.
TOKEN_SIDE = 28
# The policy hardly moves, so that the last step meets completions as long as the first.
LEARNING_RATE = 1e-6
# Neither side may sample it, so a model that ends with it never ends and every completion has the full length.
NEVER_SAMPLED = "<|video_pad|>"
# How a GPU trains: the sampler's arithmetic is not the trainer's, and one rank steps as a rank among many would.
IN_BFLOAT16 = (
    "model.dtype=bfloat16",
    "model.gradient_checkpointing=true",
    "rollout.old_log_probs=trainer",
    "rollout.max_batch_tokens=131072",
    "deepspeed.zero_stage=2",
)
QUESTION = "What is the total of all bars? What is the difference between bar A and bar B? What is the value of bar A?"


@dataclass(frozen=True, slots=True)
class Shape:
    """The work of one step.

    Attributes:
        num_prompts, num_generations: prompts, and completions of each.
        max_completion_length: token budget; with `picture` every completion uses it up, unless `mean_length` is given.
        num_updates: optimizer updates of a rollout batch.
        image: width and height in pixels, multiples of 28; None = the quickstart's images and warm-started model.
        text_tokens: of a prompt beside its image, at least (with `picture`).
        model: "tiny", float32; or a size of `large_models`, in bfloat16 with gradient checkpointing, for a GPU.
        layers: of text and vision that are left of a large model, for a trial; text layers of a tiny one. None = all.
        width: hidden size of a tiny model.
        mean_length: completions end by themselves, after about so many tokens, some much sooner or later, so that their
            lengths are ragged; None = with `picture` they never end.
        one_at_a_time: the machine cannot hold both sides, so that they come and go in turns.
        warmup: first steps that are left out; a step of minutes needs none.
    """

    name: str
    num_prompts: int
    num_generations: int
    max_completion_length: int
    num_updates: int = 4
    picture: tuple[int, int] | None = None
    text_tokens: int = 64
    model: str = "tiny"
    layers: int | None = None
    width: int = 128
    mean_length: int | None = None
    one_at_a_time: bool = False
    warmup: int = 2

    @property
    def num_samples(self) -> int:
        """Completions of a step."""
        return self.num_prompts * self.num_generations

    @property
    def image_tokens(self) -> int:
        """Of one prompt; 112 x 112 pixels in the quickstart."""
        width, height = self.picture or (112, 112)
        return width * height // TOKEN_SIDE**2


QUICKSTART = Shape("quickstart", num_prompts=16, num_generations=8, max_completion_length=16)
REALISTIC = Shape("realistic", num_prompts=8, num_generations=8, max_completion_length=128, picture=(504, 476))
LARGE = replace(REALISTIC, name="realistic_0.5b", model="0.5b", max_completion_length=256, warmup=1)
LARGER = replace(LARGE, name="realistic_3b", model="3b", one_at_a_time=True)
LONG, LONGER = (
    replace(shape, name=f"{shape.name}_1024", max_completion_length=1024, warmup=0) for shape in (LARGE, LARGER)
)
SHORT, SHORTER = (
    replace(shape, name=f"{shape.name}_128", max_completion_length=128, warmup=0) for shape in (LARGE, LARGER)
)
SHAPES = {shape.name: shape for shape in (QUICKSTART, REALISTIC, LARGE, LARGER, LONG, LONGER, SHORT, SHORTER)}
# Those that a laptop can measure.
SMALL_SHAPES = (QUICKSTART.name, REALISTIC.name)


def trial(shape: Shape) -> Shape:
    """The same shape cut down to what any machine gets through: it shows that the code runs, and no figure."""
    small = dict(num_prompts=2, num_generations=2, num_updates=2, warmup=0)
    length = max(4, shape.max_completion_length // 32)
    return replace(shape, **small, max_completion_length=length, layers=None if shape.model == "tiny" else 2)


def prepare(shape: Shape, folder: Path, start: Path | None = None) -> list[str]:
    """Make model and rows of a shape; returns the overrides of configs/quickstart.yaml that describe its run.

    Args:
        shape: the work.
        folder: for what is made; a model that is there already stays. The quickstart's images and warm start are kept
            in runs/speed instead.
        start: a warm-started model for the quickstart's shape (default: made as the quickstart makes it).
    """
    if shape.picture:
        reward = ROOT / "measurements" / "variety_reward.py"
        model = folder / f"model_{shape.model}_{shape.width}_{shape.layers}_{shape.mean_length}"
        if not model.exists():
            write_model(model, shape.model, shape.layers, shape.width, endless=shape.mean_length is None)
            if shape.mean_length:
                end_after(model, shape.mean_length)
        sources = [
            f"model.path={model}",
            f"data.train={draw_rows(shape, model, folder / shape.name)}",
            f"rewards.functions=[{{name: accuracy}}, {{name: variety, path: '{reward}:variety'}}]",
        ]
    else:
        from compare_objectives import start_overrides

        sources = [each for each in start_overrides(start, RUNS) if not each.startswith("data.eval")]
    return [
        *sources,
        *(IN_BFLOAT16 if shape.model != "tiny" else ()),
        f"output_dir={folder / shape.name / 'run'}",
        "data.eval=null",
        "data.max_rows=256",
        f"data.max_prompt_length={4096 - shape.max_completion_length}",
        f"rollout.num_generations={shape.num_generations}",
        f"rollout.max_completion_length={shape.max_completion_length}",
        f"train.num_prompts_per_step={shape.num_prompts}",
        f"train.num_minibatches={shape.num_updates}",
        f"train.learning_rate={LEARNING_RATE}",
        "train.lr_scheduler_type=constant",
        "train.warmup_steps=0",
        "train.max_steps=1000000",
        "eval.every=0",
        "checkpoint.save_steps=0",
        "logging.tensorboard=false",
        "logging.report=false",
        "logging.sample_steps=0",
    ]


def write_model(folder: Path, size: str, layers: int | None = None, width: int = 128, *, endless: bool) -> Path:
    """A Qwen2.5-VL that takes images of any size, as `from_pretrained` reads it.

    Args:
        folder: created.
        size: "tiny" or a size of `large_models`.
        layers: that are left of a large one, or text layers of a tiny one; None = all.
        width: hidden size of a tiny one.
        endless: its end token is one that is never sampled.
    """
    from large_models import build_large, full_tokenizer

    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.tiny import build_processor, build_tokenizer

    tokenizer = build_tokenizer()
    if size == "tiny":
        model = build_small(tokenizer, width, layers)
    else:
        tokenizer = full_tokenizer(tokenizer, folder / "tokenizer", layers)
        model = build_large(size, tokenizer, layers)
    if endless:
        tokenizer.eos_token = NEVER_SAMPLED
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = build_processor("qwen2_5_vl", tokenizer)
    family_of("qwen2_5_vl").vision.set_pixel_limits(processor, None, 2**24)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_small(tokenizer: Any, width: int, layers: int | None) -> Any:
    """A tiny Qwen2.5-VL of any width and number of text layers."""
    import torch

    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.tiny import build_model, draw_weights, model_config

    if layers is None:
        return build_model("qwen2_5_vl", tokenizer, hidden_size=width)
    config = model_config("qwen2_5_vl", tokenizer, width)
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = layers, ["full_attention"] * layers
    torch.manual_seed(0)
    model = family_of("qwen2_5_vl").auto_classes[0].from_config(config, dtype=torch.float32)
    draw_weights(model)
    return model


def end_after(folder: Path, mean_length: int) -> None:
    """Scale the head's row of the end token so that completions have about this mean length.

    Logits of a tiny model are normal with standard deviation 1, over V tokens. With s for the end token its probability
    is exp((s^2 - 1) / 2) / V on average, and differs much from place to place, which spreads the lengths and makes them
    about twice as long on average.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    head, end = model.lm_head.weight, model.generation_config.eos_token_id
    scale = math.sqrt(1 + 2 * math.log(max(1.0, 2 * len(head) / mean_length)))
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(head.clone())
        model.lm_head.weight[end] *= scale
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    model.save_pretrained(folder)


def random_shape(seed: int, index: int) -> Shape:
    """A shape that nobody tuned for: every size is drawn, and drawn again until its work suits a laptop."""
    rng = random.Random(f"{seed}/{index}")
    while True:
        num_prompts = rng.randint(2, 8)
        mean_length = rng.randint(16, 160)
        shape = Shape(
            f"seed_{seed}_{index}",
            num_prompts=num_prompts,
            num_generations=rng.randint(4, 16),
            max_completion_length=mean_length * rng.randint(2, 4),
            num_updates=rng.choice([count for count in range(1, num_prompts + 1) if num_prompts % count == 0]),
            picture=(TOKEN_SIDE * rng.randint(4, 24), TOKEN_SIDE * rng.randint(4, 24)),
            text_tokens=rng.randint(40, 400),
            layers=rng.randint(2, 8),
            width=rng.choice((128, 192, 256, 384, 512, 768, 896)),
            mean_length=mean_length,
            warmup=1,
        )
        prompt = shape.image_tokens + shape.text_tokens
        tokens = num_prompts * prompt + shape.num_samples * mean_length
        # About 9 squared widths of weights in a layer; sampling is a third of what an update adds.
        tflops = 8 * tokens * shape.layers * 9 * shape.width**2 / 1e12
        if 0.01 < tflops < 0.15 and shape.num_samples <= 64 and prompt < 900:
            return shape


def draw_rows(shape: Shape, model: Path, folder: Path) -> Path:
    """Rows enough for eight steps without a repeat: coloured bars, and a question of the wanted length."""
    from data_prep.prepare.prepare import prepare as write
    from data_prep.schema import make_row
    from vlm_mhpo.prompts.token_counts import token_counter

    def row(index: int) -> Any:
        return make_row(
            id=str(index), problem=problem, answer="7", images=[draw_bars(shape.picture, index)], kind="number"
        )

    problem = QUESTION
    count = token_counter(str(model))
    while count(row(0)) < shape.image_tokens + shape.text_tokens:
        problem += " How many?"
    write([row(index) for index in range(8 * shape.num_prompts)], folder / "rows")
    return folder / "rows"


def draw_bars(size: tuple[int, int], seed: int) -> bytes:
    """A PNG of coloured bars."""
    from PIL import Image, ImageDraw

    from data_prep.synthetic.canvas import png_bytes

    rng = random.Random(seed)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for left in range(10, size[0] - 30, 40):
        pen.rectangle((left, rng.randrange(size[1]), left + 25, size[1]), fill=tuple(rng.randbytes(3)))
    return png_bytes(image)
