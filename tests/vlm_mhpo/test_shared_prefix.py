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
