"""Attention over a prompt that its completions share is attention over a copy for each of them."""

import pytest
import torch

from vlm_mhpo.rollout.hf.shared_prefix import FIRST_ROOM, SharedPrefixCache

NUM_PROMPTS, NUM_SAMPLES, NUM_HEADS, NUM_QUERIES, WIDTH, LENGTH = 3, 4, 2, 3, 5, 7


def plain_attention(query_HQD, keys_HND, values_HND):
    """By the definition, one row at a time."""
    output = torch.zeros_like(query_HQD)
    for head in range(query_HQD.shape[0]):
        for query in range(query_HQD.shape[1]):
            scores = torch.stack([query_HQD[head, query].dot(key) for key in keys_HND[head]])
            output[head, query] = scores.softmax(dim=0) @ values_HND[head]
    return output


class Decoding:
    """A cache of one layer beside lists of everything that it was given, row by row."""

    def __init__(self, prompt_lengths) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.prompts = [self.draw(NUM_HEADS, length, WIDTH) for length in prompt_lengths for _ in range(2)]
        width = max(prompt_lengths)
        mask_PS = torch.zeros(len(prompt_lengths), width, dtype=torch.int64)
        padded = self.draw(2, len(prompt_lengths), NUM_HEADS, width, WIDTH) * 100
        for index, length in enumerate(prompt_lengths):
            mask_PS[index, width - length :] = 1
            padded[0, index, :, width - length :] = self.prompts[2 * index]
            padded[1, index, :, width - length :] = self.prompts[2 * index + 1]
        self.cache = SharedPrefixCache([(padded[0], padded[1])], mask_PS, NUM_SAMPLES)
        self.rows = [(index, [], []) for index in range(len(prompt_lengths)) for _ in range(NUM_SAMPLES)]

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def step(self) -> None:
        """One more token for every row, and the outputs are those of plain attention."""
        keys, values = self.draw(len(self.rows), NUM_HEADS, 1, WIDTH), self.draw(len(self.rows), NUM_HEADS, 1, WIDTH)
        query = self.draw(len(self.rows), NUM_HEADS, NUM_QUERIES, WIDTH)
        output = self.cache.attend(0, query, *self.cache.update(keys, values, 0))
        for index, (prompt, own_keys, own_values) in enumerate(self.rows):
            own_keys.append(keys[index])
            own_values.append(values[index])
            all_keys = torch.cat([self.prompts[2 * prompt], *own_keys], dim=1)
            all_values = torch.cat([self.prompts[2 * prompt + 1], *own_values], dim=1)
            # The softmax is taken in float32.
            torch.testing.assert_close(
                output[index], plain_attention(query[index], all_keys, all_values), rtol=1e-5, atol=1e-5
            )

    def keep(self, kept) -> None:
        keep_B = torch.zeros(len(self.rows), dtype=torch.bool)
        keep_B[list(kept)] = True
        self.cache.select(keep_B)
        self.rows = [self.rows[index] for index in kept]


@pytest.mark.parametrize("prompt_lengths", [(LENGTH, LENGTH, LENGTH), (LENGTH, 2, 5)])
@pytest.mark.parametrize(
    "kept",
    [
        range(12),
        [0, 1, 4, 5, 8, 9],  # as many of each prompt
        [0, 4, 5, 6, 7, 11],  # another number of each
        [8, 9, 10, 11],  # one prompt goes on whole
        [3, 5, 7],  # the last prompt leaves
        [6],
    ],
)
def test_rows_see_their_prompt_and_themselves_whoever_leaves(prompt_lengths, kept):
    decoding = Decoding(prompt_lengths)
    decoding.step()
    decoding.step()
    decoding.keep(kept)
    decoding.step()
    # Then all but the first of the rest, if there is another.
    if len(kept) > 1:
        decoding.keep(range(1, len(kept)))
    decoding.step()


def test_completions_outgrow_their_first_room():
    decoding = Decoding((2,))
    for _ in range(2 * FIRST_ROOM + 1):
        decoding.step()


def test_a_cache_is_given_more_by_newer_transformers_and_need_not_know_what():
    """transformers 5.24 hands its layers' keyword arguments on to the cache."""
    cache = Decoding((LENGTH,)).cache
    token = torch.ones(NUM_SAMPLES, NUM_HEADS, 1, WIDTH, dtype=torch.float64)
    keys, values = cache.update(token, 2 * token, 0, kwargs={"anything": None})
    assert torch.equal(keys, token) and torch.equal(values, 2 * token)


def turned(x, positions):
    """Rotary embedding of the last axis, base 1e6, in float64."""
    width = x.shape[-1]
    angles = positions[:, None].double() / 1e6 ** (torch.arange(0, width, 2).double() / width)
    cosine, sine = (torch.cat([each, each], dim=-1) for each in (angles.cos(), angles.sin()))
    first, second = x[..., : width // 2], x[..., width // 2 :]
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


@pytest.mark.parametrize("bias", [0.0, 20.0, 60.0, 150.0])
def test_key_biases_of_real_models_do_not_round_the_scores_away_in_bfloat16(bias):
    """The biases of Qwen2 and Qwen2.5 sit in the slow dimensions of the rotary embedding; the truth is in float64."""
    samples, heads, queries, length, own, width = 4, 4, 7, 256, 32, 128
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    slow = torch.zeros(width, dtype=torch.float64)
    slow[[60, 61, 124, 125]] = 1.0
    keys = turned(draw(1, heads, length, width) + bias * slow, torch.arange(length)).bfloat16()
    own_keys = turned(draw(samples, heads, own, width) + bias * slow, torch.arange(length, length + own)).bfloat16()
    asked = draw(samples, heads * queries, 1, width) + min(bias, 20.0) / 2 * slow
    query = turned(asked, torch.tensor([length + own - 1])).bfloat16()
    values, own_values = draw(1, heads, length, width).bfloat16(), draw(samples, heads, own, width).bfloat16()
    all_keys = torch.cat([keys.expand(samples, -1, -1, -1), own_keys], dim=2).double()
    all_values = torch.cat([values.expand(samples, -1, -1, -1), own_values], dim=2).double()
    scores = query.double().reshape(samples, heads, queries, width) @ all_keys.transpose(-1, -2) * width**-0.5
    truth = (scores.softmax(dim=-1) @ all_values).reshape(samples, heads * queries, 1, width)
    cache = SharedPrefixCache([(keys, values)], torch.ones(1, length, dtype=torch.int64), samples)
    for time in range(own):
        held = cache.update(own_keys[:, :, time : time + 1], own_values[:, :, time : time + 1], 0)
    found = cache.attention(0, query, *held, width**-0.5).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    # Weights, products and the output are rounded to bfloat16, of 2^-9 each at most; the scores are not.
    assert float((found.double() - truth).norm() / truth.norm()) < 3 * 2**-9
