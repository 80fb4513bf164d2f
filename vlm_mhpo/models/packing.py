"""Packed rows: one prompt followed by several of its completions, exact and without repeating the prompt.

A row is [prompt, completion 1, ..., completion k]. A completion sees the prompt and itself, and its positions start
again after the prompt, so its log-probs are those of the separate row [prompt, completion]. A prompt of four tokens, of
which two stand for an image, with completions of two and three tokens, beside padding:

    place       0   1   2   3 | 4   5 | 6   7   8 | 9
    input_ids   p0  im  im  p3| a0  a1| b0  b1  b2| pad
    segments    0   0   0   0 | 1   1 | 2   2   2 | -1
    positions   0   1   1   3 | 4   5 | 4   5   6 | 0       time axis, the image 1 x 2 tokens; its columns count 1 2
    time                      | 0   1 | 0   1   2 |         place of a token in its completion
    predictor                 | 3   4 | 3   6   7 |         the state before it; of a first token the prompt's last one

Only what stands under `predictor` goes through the head, one value per completion token: the N of the suffixes.

Shape suffixes: R rows, S row tokens, B completions, T completion tokens, N valid completion tokens, A position axes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_mhpo.types import Media, Prompt


@dataclass(frozen=True, slots=True)
class PackedItem:
    """A prompt and those of its completions that share a row.

    Attributes:
        prompt_index: which prompt, in the caller's order.
        completion_indices: which completions, as rows of the caller's [B, T] tensors.
    """

    prompt_index: int
    completion_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The tensors of one forward.

    Attributes:
        input_ids_RS: [R, S] int64, right-padded.
        positions_ARS: [A, R, S] int64; A = 3 (time, height, width) for vision-language models, 1 for text.
        segments_RS: [R, S] int64: 0 prompt, 1.. completions, -1 padding.
        lengths: of each row, tokens of the prompt and of each completion.
        predictor_N: [N] int64 into the flattened [R * S] states: the state that predicts each completion token.
        target_N: [N] int64 token ids.
        completion_N, time_N: [N] int64, where each value belongs in the caller's [B, T].
        media: the images of all rows, in row order, or None.
    """

    input_ids_RS: Tensor
    positions_ARS: Tensor
    segments_RS: Tensor
    lengths: tuple[tuple[int, ...], ...]
    predictor_N: Tensor
    target_N: Tensor
    completion_N: Tensor
    time_N: Tensor
    media: Media | None

    def to(self, device: torch.device) -> PackedRows:
        """The same rows on `device`."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        moved = {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor | Media)}
        return PackedRows(**fields | moved)

    @property
    def allowed_R1SS(self) -> Tensor:
        """[R, 1, S, S] bool, True where a query (third axis) may see a key (fourth)."""
        return segment_mask(self.segments_RS)


def plan_micro_batches(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    shares_prompt: bool = True,
    skipped: Collection[int] = (),
) -> list[list[PackedItem]]:
    """Cut the groups into rows and the rows into micro-batches of at most `max_tokens` padded tokens.

    Args:
        prompt_lengths: tokens of each prompt.
        completion_lengths: for each prompt, the tokens of its completions; completion j of prompt i has the flat index
            of reading this list in order.
        max_tokens: bound on rows times longest row; a single row of one completion may exceed it.
        shares_prompt: False = every completion has a row of its own.
        skipped: flat indices of completions that are left out.

    Returns:
        Micro-batches, longest rows first. Every other completion is in exactly one item.
    """
    rows: list[tuple[int, PackedItem]] = []
    first = 0
    for prompt_index, lengths in enumerate(completion_lengths):
        chosen: list[int] = []
        total = prompt_lengths[prompt_index]
        for flat, length in enumerate(lengths, start=first):
            if flat in skipped:
                continue
            if chosen and (not shares_prompt or total + length > max_tokens):
                rows.append((total, PackedItem(prompt_index, tuple(chosen))))
                chosen, total = [], prompt_lengths[prompt_index]
            chosen.append(flat)
            total += length
        if chosen:
            rows.append((total, PackedItem(prompt_index, tuple(chosen))))
        first += len(lengths)
    # Rows of similar length share a micro-batch, so little of it is padding; the sort is stable, hence deterministic.
    rows.sort(key=lambda row: -row[0])
    micro_batches: list[list[PackedItem]] = []
    longest = 0
    for length, item in rows:
        if not micro_batches or (len(micro_batches[-1]) + 1) * longest > max_tokens:
            micro_batches.append([])
            longest = length
        micro_batches[-1].append(item)
    return micro_batches


def pack_rows(
    items: Sequence[PackedItem],
    prompts: Sequence[Prompt],
    prompt_positions: Sequence[Tensor],
    completion_ids: Sequence[Sequence[int]],
    *,
    join: Callable[[Sequence[Media | None]], Media | None],
    pad_id: int,
) -> PackedRows:
    """Build the tensors of one micro-batch.

    Args:
        items: the rows.
        prompts: all of the caller's, S_p tokens each.
        prompt_positions: [A, S_p] int64 of each prompt; a completion goes on at their maximum plus one.
        completion_ids: token ids of all completions, by flat index.
        join: `Family.join`, for the images of the rows.
        pad_id: fills the ends of shorter rows; masked.
    """
    rows = [
        _one_row(item, prompts[item.prompt_index].input_ids_S, prompt_positions[item.prompt_index], completion_ids)
        for item in items
    ]
    input_ids_RS = pad_sequence([row.ids for row in rows], batch_first=True, padding_value=pad_id)
    positions_SRA = pad_sequence([row.positions.T for row in rows])
    offsets = [index * input_ids_RS.shape[1] for index in range(len(rows))]
    return PackedRows(
        input_ids_RS=input_ids_RS,
        positions_ARS=positions_SRA.permute(2, 1, 0).contiguous(),
        segments_RS=pad_sequence([row.segments for row in rows], batch_first=True, padding_value=-1),
        lengths=tuple((row.prompt_length, *row.completion_lengths) for row in rows),
        predictor_N=torch.cat([row.predictors + offset for row, offset in zip(rows, offsets, strict=True)]),
        target_N=torch.cat([row.ids[row.prompt_length :] for row in rows]),
        completion_N=torch.cat([row.completions for row in rows]),
        time_N=torch.cat([row.times for row in rows]),
        # A prompt that is cut into two rows shows its images in both.
        media=join([prompts[item.prompt_index].media for item in items]),
    )


def segment_mask(segments_RS: Tensor) -> Tensor:
    """[R, 1, S, S] bool: causal, and a token sees segment 0 (the prompt) and its own segment; -1 is padding."""
    #              key   p  p  a  a  b  pad
    #   query   p        x  .  .  .  .  .       x: may look
    #           p        x  x  .  .  .  .
    #           a        x  x  x  .  .  .       completion a: the prompt, and itself up to its own place
    #           a        x  x  x  x  .  .
    #           b        x  x  .  .  x  .       completion b: not its neighbour a, although a stands before it
    #           pad      x  x  .  .  .  x       read by nobody
    query_RS1, key_R1S = segments_RS[:, :, None], segments_RS[:, None, :]
    width, device = segments_RS.shape[1], segments_RS.device
    causal_SS = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    allowed_RSS = causal_SS & ((key_R1S == 0) | (key_R1S == query_RS1)) & (key_R1S >= 0)
    # A padded query that sees nothing would make softmax divide 0 by 0; it may see itself, and nobody sees it.
    allowed_RSS |= torch.eye(width, dtype=torch.bool, device=device)
    return allowed_RSS[:, None]


@dataclass(frozen=True, slots=True)
class _Row:
    ids: Tensor  # [s] int64, prompt then completions
    positions: Tensor  # [A, s]
    segments: Tensor  # [s], 0 prompt, 1.. completions
    prompt_length: int
    completion_lengths: tuple[int, ...]
    predictors: Tensor  # [n] index inside the row of the state that predicts each completion token
    completions: Tensor  # [n] flat completion index
    times: Tensor  # [n] index inside the completion


def _one_row(
    item: PackedItem, prompt: Tensor, prompt_positions: Tensor, completion_ids: Sequence[Sequence[int]]
) -> _Row:
    prompt_length = prompt.shape[0]
    pieces = [torch.tensor(completion_ids[index], dtype=torch.int64) for index in item.completion_indices]
    lengths = torch.tensor([piece.shape[0] for piece in pieces])
    times = torch.cat([torch.arange(piece.shape[0]) for piece in pieces])
    own = torch.arange(int(lengths.sum())) + prompt_length
    first_position = prompt_positions.max() + 1
    return _Row(
        ids=torch.cat([prompt, *pieces]),
        positions=torch.cat([prompt_positions, (first_position + times).expand(prompt_positions.shape[0], -1)], dim=1),
        segments=torch.cat(
            [torch.zeros(prompt_length, dtype=torch.int64), torch.arange(1, len(pieces) + 1).repeat_interleave(lengths)]
        ),
        prompt_length=prompt_length,
        completion_lengths=tuple(lengths.tolist()),
        # place         P-1  | P    P+1 | P+2  P+3        with P = prompt_length
        # token         p    | a0   a1  | b0   b1
        # predictor          | P-1  P   | P-1  P+2        first tokens look over what lies between, back to the prompt
        predictors=torch.where(times == 0, prompt_length - 1, own - 1),
        completions=torch.tensor(item.completion_indices).repeat_interleave(lengths),
        times=times,
    )
