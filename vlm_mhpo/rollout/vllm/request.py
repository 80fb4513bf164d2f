"""From a prompt to what a vLLM server is asked, and from its answer, which is checked through and through, to a group.

The server expands image placeholders itself: it gets ONE a image, and its prompt must come out as ours. It takes wrong
prompts without a word (placeholders that are expanded already, images that are missing), and says success where caches
or weights are old, so nothing that it says is taken on trust.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_prep import open_image
from vlm_mhpo.errors import RolloutError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.runtime.seeding import derive_seed
from vlm_mhpo.types import Completion, Group, Prompt

MODEL_NAME = "policy"
# A banned token's logit; large enough for any model, and processed log-probs are normalised over the others.
BANNED_LOGIT = -1e9
# A seed and what is added to it for each completion stay an int64.
SEED_LIMIT = 2**62


class WrongAnswer(Exception):
    """Something that cannot be an answer to what was asked; the same request may be put to another server."""


class StaleAnswer(WrongAnswer):
    """Sampled with other weights, or broken off: the server needs the current weights before it is asked again."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Makes requests and reads answers for one model.

    Attributes:
        codec: tokenizer and end tokens.
        banned_V: [V] bool, tokens that are never sampled.
        family: of the model.
    """

    codec: Codec
    banned_V: Tensor
    family: Family

    def body(self, prompt: Prompt, params: SamplingParams, seed_parts: tuple[int | str, ...]) -> dict[str, Any]:
        """The request for all completions of a prompt; completion j is drawn with the request's seed + j."""
        # The text has one placeholder an image, whatever the family puts around or in the place of it.
        ids = self.codec.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        body = {
            "model": MODEL_NAME,
            "token_ids": list(ids),
            "return_token_ids": True,
            "sampling_params": {
                # Of greedy completions the server makes one.
                "n": params.num_samples if params.temperature else 1,
                "max_tokens": params.max_tokens,
                "temperature": params.temperature,
                "top_p": params.top_p,
                "top_k": params.top_k,
                "seed": derive_seed(*seed_parts, prompt.id) % SEED_LIMIT,
                "logprobs": 0,
                "detokenize": False,
                "stop_token_ids": list(self.codec.end_ids),
                "logit_bias": {str(index): BANNED_LOGIT for index in self.banned_V.nonzero().flatten().tolist()},
            },
        }
        if prompt.row.videos:
            raise RolloutError(f"row {prompt.id}: rollout.engine=vllm takes no videos; use rollout.engine=hf")
        if prompt.row.images:
            seen = [self.family.fit(self.codec.processor, open_image(image)) for image in prompt.row.images]
            body["content_parts"] = [{"type": "image_url", "url": _png(image)} for image in seen]
        return body

    def group(self, answer: Any, prompt: Prompt, params: SamplingParams, version: str | None) -> Group:
        """The completions of an answer.

        Args:
            answer: JSON of the server.
            prompt, params: what was asked.
            version: of the weights that it must have been sampled with; None = any.

        Raises:
            RolloutError: the server's prompt is another one than the trainer's; no server would do better.
            WrongAnswer, StaleAnswer: see there.
        """
        try:
            echoed, choices = answer["prompt_token_ids"], answer["choices"]
            if echoed != prompt.input_ids_S.tolist():
                raise RolloutError(_other_prompt(prompt, echoed))
            wanted = params.num_samples if params.temperature else 1
            if len(choices) != wanted:
                raise WrongAnswer(f"gives {len(choices)} completions for {wanted}")
            drawn = [self._drawn(choice, params, version) for choice in sorted(choices, key=lambda one: one["index"])]
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise WrongAnswer(f"answers in another form than expected ({type(error).__name__}: {error})") from error
        texts = self.codec.texts_of([ids for ids, _ in drawn])
        ends = self.codec.end_ids
        completions = [
            Completion(ids, log_probs, text, truncated=ids[-1] not in ends)
            for (ids, log_probs), text in zip(drawn, texts, strict=True)
        ]
        return Group(prompt, tuple(completions if params.temperature else completions * params.num_samples))

    def _drawn(
        self, choice: dict[str, Any], params: SamplingParams, version: str | None
    ) -> tuple[tuple[int, ...], Tensor]:
        """Ids and [T] log-probs of one choice, checked."""
        reason, ids, entries = choice["finish_reason"], choice["token_ids"], choice["logprobs"]["content"]
        if reason not in ("stop", "length"):
            raise StaleAnswer(f"broke a completion off ({reason})")
        spans = choice.get("weight_versions") or []
        if version is not None and [span["version"] for span in spans] != [version]:
            found = ", ".join(str(span["version"]) for span in spans) or "no version"
            raise StaleAnswer(f"sampled with weights of {found}, not {version}")
        log_probs = [float(entry["logprob"]) for entry in entries]
        if not ids or [entry["token_id"] for entry in entries] != ids:
            raise WrongAnswer("gives log-probs of other tokens than it sampled")
        if not all(isinstance(index, int) and 0 <= index < len(self.banned_V) for index in ids):
            raise WrongAnswer("sampled a token that the model does not have")
        if self.banned_V[list(ids)].any():
            raise WrongAnswer("sampled a token that is banned")
        # A little above 0 by rounding alone.
        if not all(math.isfinite(value) and value < 1e-2 for value in log_probs):
            raise WrongAnswer("gives log-probs that are not finite, or above 0")
        if (reason == "stop") != (ids[-1] in self.codec.end_ids):
            raise WrongAnswer(f"says {reason} for a completion that ends with token {ids[-1]}")
        if reason == "length" and len(ids) != params.max_tokens:
            raise RolloutError(
                f"a rollout server cuts completions at {len(ids)} tokens, and {params.max_tokens} were asked for: "
                "start it with a larger --max-len"
            )
        return tuple(ids), torch.tensor(log_probs)


def _other_prompt(prompt: Prompt, echoed: Any) -> str:
    """That a server reads another prompt than the trainer."""
    length = len(echoed) if isinstance(echoed, list) else "no"
    return (
        f"row {prompt.id}: the rollout server reads {length} prompt tokens and the trainer {prompt.num_tokens}, or "
        "others: start it with the trainer's model folder, and --min-pixels and --max-pixels as model.min_pixels and "
        "model.max_pixels"
    )


def _png(image: Any) -> str:
    """The pixels that the trainer saw, as a data URI: a server may decode palettes or orientation otherwise."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
