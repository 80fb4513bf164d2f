"""Log-probs and entropy of chosen tokens, without the logits of the whole batch in memory.

One buffer holds the logits of a chunk of tokens; everything is computed in it, in backward once more. In float32 the
gradient of the head's weight is added up over the chunks in place; in lower precision every addition would round it, so
there backward goes over blocks of the vocabulary instead, each with all tokens, and writes every entry once. Either way
the extra memory is that buffer, whatever the number of tokens; over words also the states' gradient in float32.

    by tokens (forward, and backward in float32)     by words (backward in lower precision)

         +----- V -----+                                  +----- V -----+
         |#############|  `chunk_size` tokens,            |####.........|  all tokens, as many words as fill
       N |.............|  all words                     N |####.........|  the same buffer
         |.............|                                  |####.........|
         +-------------+                                  +-------------+
    a block adds to the gradient of the weight [V, H]    a block adds to the gradient of the states [N, H] and
    and writes its rows of that of the states [N, H]     writes its rows of that of the weight [V, H]

Every product of the head has float32 results (`product`): a logit of 22 that is rounded to bfloat16 is off by 0.03 on
average, ten times what an update of an RL run changes it by.

State n is the last hidden state at `PackedRows.predictor_N[n]` and target n the token after it in its completion.

Shape suffixes: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.models.logit_rule import LogitRule, rule_of

# Rows of a chunk whose exponentials exist beside their logits.
SLICE = 32
# Rows and columns of a matrix in lower precision that are widened at a time where no device does that inside.
BLOCK = 256


def product(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """left @ right, [M, N] in float32 at least: operands may be in lower precision, results are never rounded to it.

    No gradient of its own.
    """
    if torch.finfo(left_MK.dtype).bits >= 32:
        return left_MK @ right_KN
    if left_MK.is_cuda:
        return torch.mm(left_MK, right_KN, out_dtype=torch.float32)
    result_MN = left_MK.new_empty((left_MK.shape[0], right_KN.shape[1]), dtype=torch.float32)
    # Float32 copies of a block at a time: the head of a large model is gigabytes.
    for rows in chunks(result_MN.shape[0], 2 * BLOCK):
        wide_RK = left_MK[rows].float()
        for columns in chunks(result_MN.shape[1], BLOCK):
            torch.mm(wide_RK, right_KN[:, columns].float(), out=result_MN[rows, columns])
    return result_MN


@torch.no_grad()
def head_logits(hidden_NH: Tensor, lm_head: nn.Linear) -> Tensor:
    """[N, V] logits of some states for the sampler, float32 as the trainer's are; without gradient."""
    rule = rule_of(lm_head)
    return _in_place_of(
        lm_head, hidden_NH, lambda hidden: rule.apply_(_raw_logits(hidden, lm_head.weight, lm_head.bias))
    )


def scaled_logits(logits_NV: Tensor, banned_V: Tensor, temperature: float) -> Tensor:
    """[N, V] float32 logits over the allowed vocabulary at `temperature`; -inf where `banned_V` (bool) is True.

    Sampler and trainer both come through here, so they normalise over the same vocabulary.
    """
    return (logits_NV.float() / temperature).masked_fill(banned_V, -torch.inf)


def entropy(logits_NV: Tensor) -> Tensor:
    """[N] entropy in nats of float logits that may hold -inf."""
    log_probs_NV = logits_NV.log_softmax(dim=-1)
    # 0 * -inf is NaN; a banned token contributes nothing.
    return -torch.where(torch.isinf(log_probs_NV), 0.0, log_probs_NV.exp() * log_probs_NV).sum(dim=-1)


def token_log_probs(
    hidden_NH: Tensor,
    targets_N: Tensor,
    lm_head: nn.Linear,
    banned_V: Tensor,
    *,
    temperature: float,
    chunk_size: int,
    with_entropy: bool = True,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of `targets_N` and entropies of their distributions.

    Args:
        hidden_NH: [N, H] states that predict the targets.
        targets_N: [N] int64.
        lm_head: maps [n, H] to [n, V]. Called once, as a module, so hooks (ZeRO-3) and tied weights work.
        banned_V: [V] bool, True for tokens that can never be sampled.
        temperature: softmax temperature, > 0.
        chunk_size: rows whose logits exist at the same time; they are computed again in backward.
        with_entropy: False = nobody reads the entropies, so they are not computed.
        entropy_learns: entropies have a gradient, too.

    Returns:
        log_probs_N: [N] float32, nats, with gradient. entropy_N: [N] float32, nats, constant unless it learns; or None.
    """
    learns = with_entropy and entropy_learns

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        return TokenLogProbs.apply(
            hidden,
            lm_head.weight,
            lm_head.bias,
            targets_N,
            banned_V,
            float(temperature),
            chunk_size,
            with_entropy,
            learns,
            rule_of(lm_head),
        )

    return _in_place_of(lm_head, hidden_NH, forward)


def _in_place_of(lm_head: nn.Linear, hidden_NH: Tensor, forward: Callable[[Tensor], Any]) -> Any:
    """Call the head as a module, with its hooks, and with `forward` in the place of its own product this once."""
    lm_head.forward = forward
    try:
        return lm_head(hidden_NH)
    finally:
        del lm_head.forward


class TokenLogProbs(torch.autograd.Function):
    """log softmax(z / temperature) at the targets, and the entropy H of that distribution.

    Logits z are hidden weight^T, or what a `LogitRule` makes of it. Gradients of a logit: of the former
    (1[target] - p) / T, of the latter -p (log p + H) / T; those of the product are these times dz / dx.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        banned_V: Tensor,
        temperature: float,
        chunk_size: int,
        with_entropy: bool,
        entropy_learns: bool,
        rule: LogitRule,
    ) -> tuple[Tensor, Tensor | None]:
        log_probs_N = hidden_NH.new_empty(len(targets_N), dtype=torch.float32)
        total_N = torch.empty_like(log_probs_N)
        entropy_N = torch.empty_like(log_probs_N) if with_entropy else None
        ctx.settings = temperature, chunk_size, rule
        for chunk in chunks(len(targets_N), chunk_size):
            logits_NV = _chunk_logits(hidden_NH[chunk], weight_VH, bias_V, banned_V, temperature, rule)
            for rows in chunks(len(logits_NV), SLICE):
                here = slice(chunk.start + rows.start, chunk.start + rows.stop)
                total_N[here] = logits_NV[rows].logsumexp(dim=-1)
                if entropy_N is not None:
                    entropy_N[here] = entropy(logits_NV[rows])
            chosen_N = logits_NV.gather(-1, targets_N[chunk, None]).squeeze(-1)
            log_probs_N[chunk] = chosen_N - total_N[chunk]
            # Or the next chunk would be made beside this one.
            del logits_NV
        kept_N = entropy_N if entropy_learns else None
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, banned_V, total_N, kept_N)
        if entropy_N is not None and not entropy_learns:
            ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx, gradient_N: Tensor, entropy_gradient_N: Tensor | None) -> tuple[Tensor | None, ...]:
        call = HeadCall(*ctx.saved_tensors, *ctx.settings, gradient_N, entropy_gradient_N)
        gradients = _gradients_by_words if rounds(call.weight_VH) else _gradients_by_tokens
        return (*gradients(call, ctx.needs_input_grad[:3]), None, None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class HeadCall:
    """What backward knows: the arguments of `TokenLogProbs`, [N] log-sums of the logits' exp, entropies if they learn,
    and the gradients of both results."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    targets_N: Tensor
    banned_V: Tensor
    total_N: Tensor
    entropy_N: Tensor | None
    temperature: float
    chunk_size: int
    rule: LogitRule
    gradient_N: Tensor
    entropy_gradient_N: Tensor | None

    def to_gradients(self, logits_NV: Tensor, tokens: slice, place_N: Tensor, is_here_N: Tensor) -> Tensor:
        """Turn logits of some tokens and words, in their own buffer, into the gradients of the head's products.

        Args: as of `_to_logit_gradients`.
        """
        if self.rule.is_plain:
            return self._to_logit_gradients(logits_NV, tokens, place_N, is_here_N)
        # An eighth of the buffer more.
        for rows in chunks(len(logits_NV), max(SLICE, len(logits_NV) // 8)):
            slope = self.rule.slope(logits_NV[rows] * self.temperature)
            here = slice(tokens.start + rows.start, tokens.start + rows.stop)
            self._to_logit_gradients(logits_NV[rows], here, place_N[rows], is_here_N[rows]).mul_(slope)
        return logits_NV

    def _to_logit_gradients(self, logits_NV: Tensor, tokens: slice, place_N: Tensor, is_here_N: Tensor) -> Tensor:
        """Turn logits of some tokens and words, in their own buffer, into the gradients of logits.

        Args:
            logits_NV: float32, of `tokens`.
            place_N: column of each token's target.
            is_here_N: whether the target is among these words, and allowed: the logit of a banned one is a constant.
        """
        gradient_N1 = self.gradient_N[tokens, None]
        logits_NV.sub_(self.total_N[tokens, None])
        if self.entropy_N is None:
            logits_NV.exp_().scatter_add_(-1, place_N[:, None], -is_here_N.float()[:, None])
            return logits_NV.mul_(gradient_N1 / -self.temperature)
        # p (g + e (log p + H)) - g 1[target], with the gradients g and e of log-prob and entropy.
        entropy_N1, slope_N1 = self.entropy_N[tokens, None], self.entropy_gradient_N[tokens, None]
        for rows in chunks(len(logits_NV), SLICE):
            logs = logits_NV[rows]
            pulls = (logs + entropy_N1[rows]).mul_(slope_N1[rows]).add_(gradient_N1[rows])
            # 0 * -inf is NaN; a banned token pulls nowhere.
            pulls.masked_fill_(logs.isneginf(), 0.0)
            logs.exp_().mul_(pulls)
        logits_NV.scatter_add_(-1, place_N[:, None], -is_here_N.float()[:, None] * gradient_N1)
        return logits_NV.div_(-self.temperature)


def rounds(weight_VH: Tensor) -> bool:
    """Whether sums in the weight's type lose what matters."""
    return weight_VH.dtype != torch.float32


def _gradients_by_tokens(call: HeadCall, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of states, weight and bias as far as `wanted`, `chunk_size` tokens at a time."""
    hidden_NH, weight_VH, bias_V, targets_N = call.hidden_NH, call.weight_VH, call.bias_V, call.targets_N
    hidden_gradient = torch.empty_like(hidden_NH) if wanted[0] else None
    weight_gradient = torch.zeros_like(weight_VH) if wanted[1] else None
    bias_gradient = torch.zeros_like(bias_V) if bias_V is not None and wanted[2] else None
    for chunk in chunks(len(targets_N), call.chunk_size):
        logits_NV = _chunk_logits(hidden_NH[chunk], weight_VH, bias_V, call.banned_V, call.temperature, call.rule)
        is_allowed_N = ~call.banned_V[targets_N[chunk]]
        logit_gradient = call.to_gradients(logits_NV, chunk, targets_N[chunk], is_allowed_N).to(weight_VH.dtype)
        if hidden_gradient is not None:
            torch.mm(logit_gradient, weight_VH, out=hidden_gradient[chunk])
        if weight_gradient is not None:
            weight_gradient.addmm_(logit_gradient.T, hidden_NH[chunk])
        if bias_gradient is not None:
            bias_gradient += logit_gradient.sum(dim=0)
        del logits_NV, logit_gradient
    return hidden_gradient, weight_gradient, bias_gradient


def _gradients_by_words(call: HeadCall, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same with all tokens and as many words at a time as make a buffer of that size."""
    hidden_NH, weight_VH, bias_V, targets_N = call.hidden_NH, call.weight_VH, call.bias_V, call.targets_N
    hidden_gradient = torch.zeros_like(hidden_NH, dtype=torch.float32) if wanted[0] else None
    weight_gradient = torch.empty_like(weight_VH) if wanted[1] else None
    bias_gradient = torch.empty_like(bias_V) if bias_V is not None and wanted[2] else None
    is_allowed_N = ~call.banned_V[targets_N]
    for words in chunks(len(weight_VH), max(1, call.chunk_size * len(weight_VH) // max(1, len(targets_N)))):
        bias = None if bias_V is None else bias_V[words]
        logits_NV = _chunk_logits(hidden_NH, weight_VH[words], bias, call.banned_V[words], call.temperature, call.rule)
        place_N = targets_N - words.start
        is_here_N = is_allowed_N & (place_N >= 0) & (place_N < logits_NV.shape[1])
        place_N = place_N.clamp(0, logits_NV.shape[1] - 1)
        gradient_NV = call.to_gradients(logits_NV, slice(0, len(targets_N)), place_N, is_here_N)
        if bias_gradient is not None:
            bias_gradient[words] = gradient_NV.sum(dim=0)
        logit_gradient = gradient_NV.to(weight_VH.dtype)
        if hidden_gradient is not None:
            hidden_gradient += product(logit_gradient, weight_VH[words])
        if weight_gradient is not None:
            torch.mm(logit_gradient.T, hidden_NH, out=weight_gradient[words])
        del logits_NV, gradient_NV, logit_gradient
    return None if hidden_gradient is None else hidden_gradient.to(hidden_NH.dtype), weight_gradient, bias_gradient


def _chunk_logits(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    banned_V: Tensor,
    temperature: float,
    rule: LogitRule,
) -> Tensor:
    """`scaled_logits` of some states, in one buffer."""
    return rule.apply_(_raw_logits(hidden_NH, weight_VH, bias_V)).div_(temperature).masked_fill_(banned_V, -torch.inf)


def _raw_logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """[N, V] float32: the head's product, of sampler and trainer alike."""
    logits_NV = product(hidden_NH, weight_VH.T).float()
    return logits_NV if bias_V is None else logits_NV.add_(bias_V)


def chunks(length: int, size: int) -> list[slice]:
    """0..length in slices of `size`; the last is shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
