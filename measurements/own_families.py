"""Which image-text classes of transformers pass the check that a run makes at its start; a table for docs/families.md.

Usage: python measurements/own_families.py [NAME ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.builders import mixed_rows
from tests.own_models import MODELS, build_own, load_own
from vlm_mhpo.errors import ModelError, PromptError
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.own_check import check_own_path

# Whose attention transformers has in no other way; in bfloat16 they are refused (model.attn_implementation).
EAGER = ("got_ocr2",)


def main() -> None:
    """A line for each class."""
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| `{name}` | {told(Path(folder), name)} |", flush=True)


def told(folder: Path, name: str) -> str:
    """The gaps of prompts with two images, one and none, or why one is refused."""
    try:
        options = {"attn_implementation": "eager"} if name in EAGER else {}
        model = load_own(build_own(folder, name), name, **options)
        said = []
        for kind, row in zip(("two images", "one image", "no image"), mixed_rows(model), strict=True):
            try:
                prompt = model.builder()(row)
                sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10_000)
                said.append(f"{kind} {check_own_path(model.policy, sampler, [prompt]):.1e}")
            except (ModelError, PromptError) as error:
                said.append(f"{kind} refused: {error}")
        return "; ".join(said)
    except ModelError as error:
        return f"refused: {error}"


if __name__ == "__main__":
    main()
