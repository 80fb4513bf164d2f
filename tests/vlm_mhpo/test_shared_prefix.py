"""Attention over a prompt that its completions share is attention over a copy for each of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlm_mhpo.rollout.hf.own_tokens import FIRST_ROOM
from vlm_mhpo.rollout.hf.shared_prefix import SharedPrefixCache

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

    def __init__(self, prompt_lengths, num_samples=NUM_SAMPLES) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.cache = SharedPrefixCache(max_tokens=3 * FIRST_ROOM)
        self.prompts, self.rows = [], []
        self.enter(prompt_lengths)
        self.seat([], [index for index in range(len(prompt_lengths)) for _ in range(num_samples)])

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def enter(self, prompt_lengths) -> None:
        """Prompts of these lengths, with large numbers where they are padded."""
        width = max(prompt_lengths)
        mask_PS = torch.zeros(len(prompt_lengths), width, dtype=torch.int64)
        padded = self.draw(2, len(prompt_lengths), NUM_HEADS, width, WIDTH) * 100
        for index, length in enumerate(prompt_lengths):
            keys, values = self.draw(2, NUM_HEADS, length, WIDTH)
            mask_PS[index, width - length :] = 1
            padded[:, index, :, width - length :] = torch.stack([keys, values])
            self.prompts.append((keys, values))
        layer = SimpleNamespace(keys=padded[0], values=padded[1])
        self.cache.enter(SimpleNamespace(layers=[layer]), mask_PS)

    def leave(self, kept) -> None:
        """Only these prompts stay."""
        self.cache.leave(kept)
        self.prompts = [self.prompts[index] for index in kept]

    def seat(self, kept, prompts, fresh=()) -> None:
        """These rows stay and new ones follow; all go on with `prompts`, and those of `fresh` begin anew."""
        self.rows = [self.rows[index] for index in kept]
        self.rows += [([], []) for _ in range(len(prompts) - len(kept))]
        self.rows = [([], []) if index in fresh else row for index, row in enumerate(self.rows)]
        self.prompt_B = list(prompts)
        self.cache.seat(kept, np.array(prompts))

    def step(self) -> None:
        """One more token for every row, and the outputs are those of plain attention."""
        keys, values = self.draw(2, len(self.rows), NUM_HEADS, 1, WIDTH)
        query = self.draw(len(self.rows), NUM_HEADS, NUM_QUERIES, WIDTH)
        self.cache.inputs(np.array([len(own_keys) for own_keys, _ in self.rows]))
        output = self.cache.add_and_attend(0, query, keys, values, scaling=1.0)
        for index, (own_keys, own_values) in enumerate(self.rows):
            own_keys.append(keys[index])
            own_values.append(values[index])
            prompt_keys, prompt_values = self.prompts[self.prompt_B[index]]
            all_keys = torch.cat([prompt_keys, *own_keys], dim=1)
            all_values = torch.cat([prompt_values, *own_values], dim=1)
            # The softmax is taken in float32.
            torch.testing.assert_close(
                output[index], plain_attention(query[index], all_keys, all_values), rtol=1e-5, atol=1e-5
            )

    def keep(self, kept) -> None:
        """Only these rows go on, and with them their prompts."""
        prompts = sorted({self.prompt_B[index] for index in kept})
        of_kept = [prompts.index(self.prompt_B[index]) for index in kept]
        self.leave(prompts)
        self.seat(list(kept), of_kept)


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


def test_a_slot_is_taken_over_by_another_completion_of_the_same_prompt():
    decoding = Decoding((LENGTH, 3), num_samples=2)
    for _ in range(3):
        decoding.step()
    decoding.seat(range(4), [0, 0, 1, 1], fresh={1})
    for _ in range(4):
        # First shorter than what is left of the old completion, then longer.
        decoding.step()


@pytest.mark.parametrize("length", [2, LENGTH, LENGTH + 4])
def test_a_slot_is_taken_over_by_a_completion_of_a_prompt_that_comes_later_while_another_leaves(length):
    decoding = Decoding((LENGTH, 3), num_samples=2)
    decoding.step()
    decoding.step()
    decoding.leave([1])
    decoding.enter([length])
    # The rows of the second prompt go on; those of the first are taken over, and a row is added.
    decoding.seat(range(4), [1, 1, 0, 0, 1], fresh={0, 1})
    for _ in range(3):
        decoding.step()
    decoding.enter([length + 1, 1])
    decoding.seat([1, 2, 4], [1, 0, 1, 2, 3, 2])
    decoding.step()


def test_what_is_left_of_an_old_completion_is_nothing_even_if_it_is_not_finite():
    decoding = Decoding((3,), num_samples=2)
    decoding.step()
    decoding.step()
    # A place that no row has reached holds zeros, not whatever was in memory.
    decoding.seat([0, 1], [0, 0, 0])
    keys, values = decoding.cache._own[0]._buffers
    assert float(keys[:, 2].abs().sum()) == float(values[:, :, 2:].abs().sum()) == 0
    decoding.step()


def test_completions_outgrow_their_first_room_and_no_room_is_larger_than_a_completion():
    decoding = Decoding((2,))
    for _ in range(2 * FIRST_ROOM + 1):
        decoding.step()
    assert decoding.cache._own[0]._buffers[0].shape[2] == 3 * FIRST_ROOM


def test_a_cache_is_given_more_by_newer_transformers_and_need_not_know_what():
    """transformers 5.24 hands its layers' keyword arguments on to the cache."""
    cache = Decoding((LENGTH,)).cache
    cache.inputs(np.zeros(NUM_SAMPLES, dtype=np.int64))
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
    cache = SharedPrefixCache(max_tokens=own)
    layer = SimpleNamespace(keys=keys, values=values)
    cache.enter(SimpleNamespace(layers=[layer]), torch.ones(1, length, dtype=torch.int64))
    cache.seat([], np.zeros(samples, dtype=np.int64))
    for time in range(own):
        cache.inputs(np.full(samples, time))
        held = cache.update(own_keys[:, :, time : time + 1], own_values[:, :, time : time + 1], 0)
    found = cache.attention(0, query, *held, width**-0.5).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    # Weights, products and the output are rounded to bfloat16, of 2^-9 each at most; the scores are not.
    assert float((found.double() - truth).norm() / truth.norm()) < 3 * 2**-9
