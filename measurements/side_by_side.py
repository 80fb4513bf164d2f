"""What the speed benchmarks share: shapes of work, processes that take turns, figures with their spread.

A side is a trainer in a process of its own. It takes one step when asked and waits otherwise, so two sides can
alternate step by step on one machine and share nothing but the files of the model and the rows. Everything runs on
one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from quickstart_seeds import environment

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
RUNS = ROOT / "runs" / "speed"
RESULTS = ROOT / "measurements" / "results"
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
        max_completion_length: token budget; with `picture` every completion uses it up.
        num_updates: optimizer updates of a rollout batch.
        image: width and height in pixels, multiples of 28; None = the quickstart's images and warm-started model.
        text_tokens: of a prompt beside its image, at least (with `picture`).
        model: "tiny", float32; or a size of `large_models`, in bfloat16 with gradient checkpointing, for a GPU.
        one_at_a_time: the machine cannot hold both sides, so that they come and go in turns.
    """

    name: str
    num_prompts: int
    num_generations: int
    max_completion_length: int
    num_updates: int = 4
    picture: tuple[int, int] | None = None
    text_tokens: int = 64
    model: str = "tiny"
    one_at_a_time: bool = False

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
LARGE = replace(REALISTIC, name="realistic_0.5b", model="0.5b", max_completion_length=256)
LARGER = replace(LARGE, name="realistic_3b", model="3b", one_at_a_time=True)
SHAPES = {shape.name: shape for shape in (QUICKSTART, REALISTIC, LARGE, LARGER)}
# Those that a laptop can measure.
SMALL_SHAPES = (QUICKSTART.name, REALISTIC.name)


def use_one_thread() -> None:
    """Before torch is loaded; processes started later inherit it."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


def apart(call: Callable, *arguments: Any) -> Any:
    """The result of a call in a process of its own, which leaves no process group and no environment behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def prepare(shape: Shape, folder: Path, start: Path | None = None) -> list[str]:
    """Make model and rows of a shape; returns the overrides of configs/quickstart.yaml that describe its run.

    Args:
        shape: the work.
        folder: for what is made; the quickstart's images and warm start are kept in runs/speed instead.
        start: a warm-started model for the quickstart's shape (default: made as the quickstart makes it).
    """
    if shape.picture:
        reward = ROOT / "measurements" / "variety_reward.py"
        sources = [
            f"model.path={build_endless_model(folder / 'model', shape.model)}",
            f"data.train={draw_rows(shape, folder)}",
            f"rewards.functions=[{{name: accuracy}}, {{name: variety, path: '{reward}:variety'}}]",
        ]
    else:
        from compare_objectives import start_overrides

        sources = [each for each in start_overrides(start, RUNS) if not each.startswith("data.eval")]
    return [
        *sources,
        *(IN_BFLOAT16 if shape.model != "tiny" else ()),
        f"output_dir={folder / 'run'}",
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


def build_endless_model(folder: Path, size: str = "tiny") -> Path:
    """A Qwen2.5-VL that takes images of any size and whose end token is never sampled."""
    from large_models import build_large, full_tokenizer

    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.tiny import build_model, build_processor, build_tokenizer

    tokenizer = build_tokenizer()
    if size != "tiny":
        tokenizer = full_tokenizer(tokenizer, folder / "tokenizer")
    model = build_model("qwen2_5_vl", tokenizer) if size == "tiny" else build_large(size, tokenizer)
    tokenizer.eos_token = NEVER_SAMPLED
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = build_processor("qwen2_5_vl", tokenizer)
    family_of("qwen2_5_vl").vision.set_pixel_limits(processor, None, 2**24)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def draw_rows(shape: Shape, folder: Path) -> Path:
    """Rows enough for eight steps without a repeat: coloured bars, and a question of the wanted length."""
    from data_prep.prepare.prepare import prepare as write
    from data_prep.schema import make_row
    from vlm_mhpo.prompts.token_counts import token_counter

    def row(index: int) -> Any:
        return make_row(
            id=str(index), problem=problem, answer="7", images=[draw_bars(shape.picture, index)], kind="number"
        )

    problem = QUESTION
    count = token_counter(str(folder / "model"))
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


class Stopped(Exception):
    """The parent has seen enough."""


class Turnstile:
    """The child's end: it reports a finished step and waits until it may take the next one."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._begun = 0.0
        self._cpu = 0.0

    def arrive(self, **facts: float) -> None:
        """Report `facts` with the times since the last report, then wait.

        `wall_s` starts when the parent said go; `cpu_s` counts this process and those that it started, also what they
        did while it waited.

        Raises:
            Stopped: there is no next step.
        """
        wait_for_device()
        wall, cpu = time.perf_counter() - self._begun, cpu_seconds()
        self._pipe.send({"wall_s": wall, "cpu_s": cpu - self._cpu, **memory_held(), **facts})
        self._cpu = cpu
        if self._pipe.recv() != "go":
            raise Stopped
        self._begun = time.perf_counter()


def wait_for_device() -> None:
    """Until a GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_held() -> dict[str, float]:
    """Bytes that this process holds now and held at most: of the GPU where there is one, else of the host."""
    import torch

    if torch.cuda.is_available():
        return {"held_bytes": torch.cuda.memory_allocated(), "peak_bytes": torch.cuda.max_memory_allocated()}
    return {"held_bytes": psutil.Process().memory_info().rss, "peak_bytes": peak_rss_bytes()}


def cpu_seconds() -> float:
    """Processor seconds of this process, of its ended children and of those that live."""
    living = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            living += sum(child.cpu_times()[:2])
    return living + sum(psutil.Process().cpu_times()[:4])


def peak_rss_bytes() -> int:
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Side:
    """A trainer in a process of its own; a context manager.

    Args:
        run: called there with the overrides and a `Turnstile`; arrives once when it is ready and after every step.
        overrides: of configs/quickstart.yaml.
    """

    def __init__(self, run: Callable[[Sequence[str], Turnstile], None], overrides: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=serve, args=(run, overrides, far))
        self._process.start()
        far.close()
        self.ready = self._answer()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._pipe.send("stop")
        self._process.join(60)
        if self._process.is_alive():
            self._process.terminate()

    def step(self) -> dict[str, float]:
        """Take one step; what the turnstile reported of it."""
        self._pipe.send("go")
        return self._answer()

    def _answer(self) -> dict[str, float]:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("one of the two sides ended: its error is above") from None


def serve(run: Callable[[Sequence[str], Turnstile], None], overrides: Sequence[str], pipe: Connection) -> None:
    """The child: run until told to stop."""
    with suppress(Stopped):
        run(overrides, Turnstile(pipe))


def alternate(
    calls: Mapping[str, Callable[[], dict[str, float]]], rounds: int, warmup: int
) -> dict[str, list[dict[str, float]]]:
    """What each call reported, by round without the first `warmup`; who comes first goes round."""
    names = list(calls)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        turn = index % len(names)
        for name in (*names[turn:], *names[:turn]):
            facts = calls[name]()
            print(f"{index - warmup + 1:3d} {name:24} {facts['wall_s']:8.3f} s", file=sys.stderr, flush=True)
            if index >= warmup:
                steps[name].append(facts)
    return steps


def timed(call: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    """A call in this process that reports its own wall and processor seconds, for `alternate`."""

    def report() -> dict[str, float]:
        begun, cpu = time.perf_counter(), time.process_time()
        call()
        wait_for_device()
        return {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}

    return report


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * [values[0]]
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def compare(steps: Mapping[str, Sequence[Mapping[str, float]]], ours: str, peer: str) -> dict[str, Any]:
    """Times of both, and how many times faster `ours` is, round by round."""
    record: dict[str, Any] = {}
    for clock in ("wall_s", "cpu_s"):
        record[clock] = {name: spread([step[clock] for step in each]) for name, each in steps.items()}
        ratios = [b[clock] / a[clock] for a, b in zip(steps[ours], steps[peer], strict=True)]
        record[f"{clock.removesuffix('_s')}_ratio"] = spread(ratios)
    record["rounds"] = len(steps[ours])
    return record


def measure_shapes(name: str, description: str | None, measure: Callable[..., Any], default: Sequence[str]) -> None:
    """Command line of a benchmark that measures shapes, each in a process of its own, and writes the JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(default))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--start", type=Path, help="warm-started model of the quickstart's shape; default: made")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    results = {}
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            overrides = apart(prepare, SHAPES[shape], Path(folder), arguments.start)
            results[shape] = apart(measure, SHAPES[shape], overrides, arguments.rounds)
    write_record(name, results, arguments.out)


def write_record(name: str, results: Mapping[str, Any], out: Path | None = None) -> None:
    """Write measurements/results/NAME.json (or `out`) with command, load and environment, and print the results."""
    import torch

    record = {
        "command": " ".join(["python", f"measurements/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        **results,
        "threads": 1,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load_average_at_end": os.getloadavg(),
        "environment": environment(),
    }
    file = out or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results, indent=1))
