"""Recurrent layers in rows that share a prompt: every completion goes on from the state that the prompt ended in.

A gated delta net remembers what it has read in a matrix of constant size, and its convolution the last few inputs. Run
over a packed row it would take one completion for the past of the next. So the row is cut: the prompts run first, as a
batch, and each completion begins with the states of its prompt and of no other token. A row of P prompt tokens and
completions a, b beside one of a prompt Q and a completion c:

    row 0   P P P a a b b b      prompts  . . P P P  ->  state 0       left-padded, so that all end together;
    row 1   Q Q Q Q Q c - -               Q Q Q Q Q  ->  state 1       padding is zeros, which change no state

    begin   state 0  ->  a a .   right-padded: what comes behind a token does not reach it
            state 0  ->  b b b
            state 1  ->  c . .

The layer's own forward does all of it, kernels included: it is handed small caches, one that keeps the states of the
prompts, with gradient, and one that gives them out. transformers' own would copy them in place. Padding and the columns
of a blank image go into no state; they get zeros.

Shape suffixes: R rows, S row tokens, P prompt tokens, K completions, T completion tokens, H hidden, C channels, W width
of the convolution.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

# A layer takes one token for a step of decoding, whose kernels have no backward.
LEAST_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Continued:
    """Completions of similar lengths that are run together.

    Attributes:
        column_KT: [K, T] int64 into the flattened [R * S] states.
        is_own_KT: [K, T] bool, False on padding.
        row_K: [K] int64, whose prompt each goes on from.
    """

    column_KT: Tensor
    is_own_KT: Tensor
    row_K: Tensor


@dataclass(frozen=True, slots=True)
class Forks:
    """How packed rows are cut for recurrent layers.

    Attributes:
        column_RP: [R, P] int64 into the flattened [R * S] states, the prompts.
        mask_RP: [R, P] int64, 0 on padding; None without padding.
        completions: all of them, the longest first.
        place_RS: [R, S] int64, where the output of a column lies: in the outputs of prompts and completions one behind
            the other, and one row of zeros behind them for columns that belong to neither.
    """

    column_RP: Tensor
    mask_RP: Tensor | None
    completions: Sequence[Continued]
    place_RS: Tensor


def forks_of(lengths: Sequence[Sequence[int]], width: int, device: torch.device) -> Forks:
    """Where to cut rows of `width` columns that begin with a prompt and completions of these `lengths`."""
    prompts, completions = [], []
    for row, (prompt, *others) in enumerate(lengths):
        columns_S = torch.arange(width) + row * width
        prompts.append(columns_S[:prompt])
        own = columns_S[prompt : prompt + sum(others)].split(others)
        completions += [(row, columns_T) for columns_T in own]
    column_RP, is_prompt_RP = _padded(prompts, "left")
    batches = [_continued(batch) for batch in _of_similar_length(completions)]
    used = [is_prompt_RP, *(batch.is_own_KT for batch in batches)]
    read = [column_RP, *(batch.column_KT for batch in batches)]
    places = torch.cat([mask.flatten() for mask in used]).nonzero()[:, 0]
    place_RS = torch.full((len(lengths) * width,), sum(mask.numel() for mask in used))
    place_RS[torch.cat([columns[mask] for columns, mask in zip(read, used, strict=True)])] = places
    return Forks(
        column_RP.to(device),
        None if bool(is_prompt_RP.all()) else is_prompt_RP.long().to(device),
        [Continued(each.column_KT.to(device), each.is_own_KT.to(device), each.row_K.to(device)) for each in batches],
        place_RS.view(len(lengths), width).to(device),
    )


def _of_similar_length(completions: list[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Cut them so that none is padded to more than twice its length, bar the shortest."""
    batch: list[tuple[int, Tensor]] = []
    for each in sorted(completions, key=lambda completion: -len(completion[1])):
        if batch and 2 * max(LEAST_TOKENS, len(each[1])) < len(batch[0][1]):
            yield batch
            batch = []
        batch.append(each)
    yield batch


def _continued(completions: list[tuple[int, Tensor]]) -> Continued:
    column_KT, is_own_KT = _padded([columns_T for _, columns_T in completions], "right", LEAST_TOKENS)
    return Continued(column_KT, is_own_KT, torch.tensor([row for row, _ in completions]))


def _padded(pieces: Sequence[Tensor], side: str, least: int = 0) -> tuple[Tensor, Tensor]:
    """[N, L] columns, L >= `least`, and True where they are not padding (whose column is 0)."""
    mask_NL = pad_sequence([torch.ones_like(piece) for piece in pieces], batch_first=True, padding_side=side)
    column_NL = pad_sequence(list(pieces), batch_first=True, padding_side=side)
    more = (0, max(0, least - column_NL.shape[1]))
    return nn.functional.pad(column_NL, more), nn.functional.pad(mask_NL, more).bool()


def install(model: nn.Module, names: Collection[str]) -> None:
    """Let the recurrent layers of a transformers model, of classes with these names, take `forks` where it has some."""
    for module in model.modules():
        if type(module).__name__ in names:
            # On the instance, because hooks (ZeRO-3 gathers weights in one) go on around `forward`.
            module.forward = MethodType(_forward, module)
            module.register_forward_pre_hook(_by_position, with_kwargs=True)


def _by_position(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The layer's input as a positional argument, since backward hooks see no others.

    transformers gives it by name, and ZeRO-3, whose hook then runs as soon as the output has its gradient, would take
    the weights away before backward has used them.
    """
    return ((kwargs.pop("hidden_states"), *args), kwargs) if "hidden_states" in kwargs else (args, kwargs)


def _forward(self: nn.Module, hidden_states: Tensor, *args: Any, forks: Forks | None = None, **options: Any) -> Tensor:
    """A recurrent layer as transformers calls it: [R, S, H] in and out."""
    if forks is not None:
        return forked(self, hidden_states, forks)
    for name in ("segments", "shared_prefix"):
        # They are for attention; kernels would be handed them on.
        options.pop(name, None)
    return type(self).forward(self, hidden_states, *args, **options)


def forked(layer: nn.Module, hidden_RSH: Tensor, forks: Forks) -> Tensor:
    """[R, S, H]: a recurrent layer over prompts, and over each completion from where its prompt ended."""
    usual = type(layer).forward
    columns_XH = hidden_RSH.flatten(0, 1)
    ends = _Ends()
    # By position: transformers 5.24 renames the cache.
    outputs = [usual(layer, columns_XH[forks.column_RP], ends, forks.mask_RP)]
    for batch in forks.completions:
        own_KTH = columns_XH[batch.column_KT] * batch.is_own_KT[..., None]
        outputs.append(usual(layer, own_KTH, _Beginnings(ends, batch.row_K), None))
    zeros_1H = outputs[0].new_zeros(1, outputs[0].shape[-1])
    return torch.cat([*(output.flatten(0, 1) for output in outputs), zeros_1H])[forks.place_RS]


class _Ends:
    """Stands where a layer expects its cache, has nothing, and keeps the states that prompts end in."""

    conv_RCW: Tensor
    recurrent: Tensor

    def get_conv_state(self, layer: int, **_: Any) -> None:
        """There is none yet."""

    get_recurrent_state = get_conv_state

    def is_recording_past(self, layer: int) -> bool:
        """Never one step in place."""
        return True

    def update_conv_state(self, inputs_RCP: Tensor, layer: int, conv_kernel_size: int, **_: Any) -> Tensor:
        """Keep the inputs that the next tokens see, zeros before a short prompt; what to convolve."""
        most = conv_kernel_size - 1
        self.conv_RCW = nn.functional.pad(inputs_RCP, (most, 0))[..., -most:] if most else inputs_RCP[..., :0]
        return inputs_RCP

    def update_recurrent_state(self, state: Tensor, layer: int, **_: Any) -> None:
        """Keep it."""
        self.recurrent = state


class _Beginnings(_Ends):
    """The same, and has the states of prompts for their completions.

    Args:
        ends: what the prompts left behind.
        row_K: [K] the prompt of each completion.
    """

    def __init__(self, ends: _Ends, row_K: Tensor) -> None:
        self._ends, self._row_K = ends, row_K

    def get_conv_state(self, layer: int, **_: Any) -> Tensor:
        """[K, C, W - 1]."""
        return self._ends.conv_RCW[self._row_K]

    def get_recurrent_state(self, layer: int, **_: Any) -> Tensor:
        """[K, heads, key width, value width] float32."""
        return self._ends.recurrent[self._row_K]

    def update_conv_state(self, inputs_KCT: Tensor, layer: int, conv_kernel_size: int, **_: Any) -> Tensor:
        """[K, C, W - 1 + T]: the prompt's last inputs in front; the layer drops what comes out for them."""
        return torch.cat([self.get_conv_state(layer), inputs_KCT], dim=-1)

    def update_recurrent_state(self, state: Tensor, layer: int, **_: Any) -> None:
        """Nothing goes on from here."""
