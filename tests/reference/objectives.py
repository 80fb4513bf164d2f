"""Loss and analytic gradient of the objectives in plain float64 loops.

Written from the papers' formulas, with nothing but `math`: no tensor library, no autograd, nothing of the
project. Slow on purpose; a tensor implementation is compared with it.

Legend: x = log_prob - old_log_prob of one token, r = e^x; T_i = counted tokens of completion i; N = completions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Rows = Sequence[Sequence[float]]
Mask = Sequence[Sequence[bool]]

# The share of one token of a completion of T_i tokens in a batch of N completions: share(T_i, N).
TokenShare = Callable[[int, int], float]


@dataclass(frozen=True)
class Reference:
    """What an objective gives: the loss, its gradient by every log_prob, and the size of every token's part in them.

    `magnitude` is |term| or |gradient| of each token, whichever is larger: the yardstick for rounding errors, since
    terms of both signs may cancel.
    """

    loss: float
    gradient: list[list[float]]
    magnitude: list[list[float]]

    @property
    def total_magnitude(self) -> float:
        """Sum of the sizes of all terms: the loss there would be if nothing cancelled."""
        return math.fsum(size for row in self.magnitude for size in row)


def completion_mean(length: int, num_completions: int) -> float:
    """Every completion weighs 1/N, shared by its tokens."""
    return 1.0 / length / num_completions


def token_mean(num_tokens: int) -> TokenShare:
    """Every token of the batch weighs the same."""
    return lambda length, num_completions: 1.0 / num_tokens


def fixed_length(max_completion_length: int) -> TokenShare:
    """Every token weighs what it would in a completion of the largest length."""
    return lambda length, num_completions: 1.0 / (num_completions * max_completion_length)


# --- MHPO ---


@dataclass(frozen=True)
class MhpoConstants:
    """Constants of MHPO; the defaults are the paper's."""

    c: float = 1.5
    k_pos: float = 1.5
    lambda_pos: float = 1.0
    k_neg: float = 2.0
    lambda_neg: float = 0.8
    normalize_hazard: bool = False
    use_modulator: bool = True
    use_hazard: bool = True


PAPER = MhpoConstants()


def softplus(u: float) -> float:
    """log(1 + e^u) without overflow."""
    return max(u, 0.0) + math.log1p(math.exp(-abs(u)))


def sech_squared(u: float) -> float:
    """1 / cosh(u)^2 without overflow and without the cancellation of 1 - tanh(u)^2."""
    decay = math.exp(-2.0 * abs(u))
    return 4.0 * decay / (1.0 + decay) ** 2


def mhpo_psi(x: float, constants: MhpoConstants = PAPER) -> float:
    """Log-Fidelity Modulator: the log-ratio squeezed into (-c, c); without it the log-ratio as it is."""
    if not constants.use_modulator:
        return x
    return constants.c * math.tanh(x / constants.c)


def mhpo_zeta(x: float, constants: MhpoConstants = PAPER) -> float:
    """Decoupled Hazard Penalty: two Weibull cumulative hazards, one for each direction; without it 0."""
    if not constants.use_hazard:
        return 0.0
    psi = mhpo_psi(x, constants)
    zeta = _hazard(psi, constants)
    return zeta - _hazard(0.0, constants) if constants.normalize_hazard else zeta


def _hazard(psi: float, constants: MhpoConstants) -> float:
    upward = (softplus(psi) / constants.lambda_pos) ** constants.k_pos
    downward = (softplus(-psi) / constants.lambda_neg) ** constants.k_neg
    return upward + downward


def mhpo_weight(x: float, constants: MhpoConstants = PAPER) -> float:
    """exp(psi - zeta): what multiplies the advantage in the loss."""
    return math.exp(mhpo_psi(x, constants) - mhpo_zeta(x, constants))


def mhpo_multiplier(x: float, constants: MhpoConstants = PAPER) -> float:
    """M: what multiplies the advantage in the gradient, the hazard being a constant there."""
    slope = sech_squared(x / constants.c) if constants.use_modulator else 1.0
    return mhpo_weight(x, constants) * slope


def mhpo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    constants: MhpoConstants = PAPER,
    share: TokenShare = completion_mean,
) -> Reference:
    """MHPO: L = - sum weight(x) A_i; dL/dx = -M(x) A_i, each times the token's share, 1 / (T_i N)."""

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        return mhpo_weight(x, constants) * advantage, mhpo_multiplier(x, constants) * advantage

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


# --- the family it is compared with ---


def grpo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    share: TokenShare = completion_mean,
) -> Reference:
    """GRPO: min(r A, clip(r) A) a token; no gradient where the clipped branch is smaller."""

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        return _clipped(math.exp(x), advantage, epsilon_low, epsilon_high)

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


def cispo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    epsilon_high: float = 4.0,
    share: TokenShare = completion_mean,
) -> Reference:
    """CISPO: sg[min(r, 1 + epsilon_high)] A log_prob a token; the weight is a constant, so the slope is weight A."""

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        weight = min(math.exp(x), 1.0 + epsilon_high)
        return weight * advantage * log_prob, weight * advantage

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


def sapo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    share: TokenShare = completion_mean,
) -> Reference:
    """SAPO: (4 / tau) sigmoid(tau (r - 1)) A a token; by x its slope is 4 s (1 - s) r A."""

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        tau = tau_pos if advantage > 0 else tau_neg
        ratio = math.exp(x)
        distance = tau * (ratio - 1.0)
        # s (1 - s) is a quarter of sech^2 of half the argument.
        return 4.0 / tau * _sigmoid(distance) * advantage, sech_squared(distance / 2.0) * ratio * advantage

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


def reinforce(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    share: TokenShare = completion_mean,
) -> Reference:
    """REINFORCE: A log_prob a token, whatever policy sampled it."""

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        return advantage * log_prob, advantage

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


def gspo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    epsilon_low: float = 3e-4,
    epsilon_high: float = 4e-4,
    share: TokenShare = completion_mean,
) -> Reference:
    """GSPO: s = exp(mean_t x), min(s A, clip(s) A) a completion; an unclipped s moves all its tokens alike."""

    def completion(log_ratios: Sequence[float], advantage: float) -> tuple[float, list[float]]:
        length = len(log_ratios)
        term, slope = _clipped(math.exp(math.fsum(log_ratios) / length), advantage, epsilon_low, epsilon_high)
        return term, [slope / length] * length

    return _sum_over_completions(log_probs, old_log_probs, advantages, mask, num_completions, share, completion)


def gmpo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    epsilon: float = 0.4,
    share: TokenShare = completion_mean,
) -> Reference:
    """GMPO: exp(mean_t y) A a completion, y the log-ratio clipped where it would gain; a clipped token has no slope."""

    def completion(log_ratios: Sequence[float], advantage: float) -> tuple[float, list[float]]:
        length = len(log_ratios)
        sign = 1.0 if advantage > 0 else -1.0
        clipped = [sign * min(sign * x, sign * min(max(x, -epsilon), epsilon)) for x in log_ratios]
        term = math.exp(math.fsum(clipped) / length) * advantage
        return term, [term / length if y == x else 0.0 for x, y in zip(log_ratios, clipped, strict=True)]

    return _sum_over_completions(log_probs, old_log_probs, advantages, mask, num_completions, share, completion)


def vespo(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
    share: TokenShare = completion_mean,
) -> Reference:
    """VESPO: W^k e^(lambda (1 - W)) A log_prob a token, W the constant product of all its ratios."""
    weights = []
    for row, old_row, advantage, kept in zip(log_probs, old_log_probs, advantages, mask, strict=True):
        k, decay = (k_pos, lambda_pos) if advantage >= 0 else (k_neg, lambda_neg)
        log_weight = math.fsum(row[t] - old_row[t] for t in range(len(row)) if kept[t])
        log_weight = min(max(log_weight, math.log(1e-8)), 20.0)
        weights.append(math.exp(k * log_weight - decay * math.expm1(log_weight)))
    of_row = iter([weight for weight, kept in zip(weights, mask, strict=True) for one in kept if one])

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        weight = next(of_row)
        return weight * advantage * log_prob, weight * advantage

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


def dppo_tv(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    delta_low: float = 0.2,
    delta_high: float = 0.2,
    max_ratio: float = 20.0,
    share: TokenShare = completion_mean,
) -> Reference:
    """DPPO-TV: sg[min(r, max_ratio)] A log_prob; 0 once the probability went too far the way A pushes."""

    def token(log_prob: float, x: float, advantage: float) -> tuple[float, float]:
        rise = math.exp(log_prob) - math.exp(log_prob - x)
        if (rise > delta_high) if advantage > 0 else (rise < -delta_low):
            return 0.0, 0.0
        weight = min(math.exp(x), max_ratio)
        return weight * advantage * log_prob, weight * advantage

    return _sum_over_tokens(log_probs, old_log_probs, advantages, mask, num_completions, share, token)


def k3_kl(log_prob: float, reference_log_prob: float) -> float:
    """k3 estimate of KL(policy || reference) from one token of the policy: e^d - d - 1 with d = ref - policy, nats."""
    difference = reference_log_prob - log_prob
    return math.expm1(difference) - difference


# --- what they share ---


def _sigmoid(u: float) -> float:
    if u >= 0:
        return 1.0 / (1.0 + math.exp(-u))
    decay = math.exp(u)
    return decay / (1.0 + decay)


def _clipped(ratio: float, advantage: float, epsilon_low: float, epsilon_high: float) -> tuple[float, float]:
    """min(r A, clip(r) A) and its slope by log r."""
    clipped = min(max(ratio, 1.0 - epsilon_low), 1.0 + epsilon_high)
    if clipped * advantage < ratio * advantage:
        return clipped * advantage, 0.0
    return ratio * advantage, ratio * advantage


def _sum_over_tokens(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    share: TokenShare,
    token: Callable[[float, float, float], tuple[float, float]],
) -> Reference:
    """Minus the sum of share times `token(log_prob, x, A)`, which gives a token's term and its derivative by x."""
    terms: list[float] = []
    gradient = [[0.0] * len(row) for row in log_probs]
    magnitude = [[0.0] * len(row) for row in log_probs]
    for i, (row, old_row, advantage, kept) in enumerate(zip(log_probs, old_log_probs, advantages, mask, strict=True)):
        for t in range(len(row)):
            if not kept[t]:
                continue
            term, slope = token(row[t], row[t] - old_row[t], advantage)
            weight = share(sum(kept), num_completions)
            terms.append(-term * weight)
            gradient[i][t] = -slope * weight
            magnitude[i][t] = max(abs(term), abs(slope)) * weight
    return Reference(math.fsum(terms), gradient, magnitude)


def _sum_over_completions(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Sequence[float],
    mask: Mask,
    num_completions: int,
    share: TokenShare,
    completion: Callable[[Sequence[float], float], tuple[float, list[float]]],
) -> Reference:
    """Minus the sum of `completion(all x, A)`, its value and derivatives, times the shares of all its tokens."""
    terms: list[float] = []
    gradient = [[0.0] * len(row) for row in log_probs]
    magnitude = [[0.0] * len(row) for row in log_probs]
    for i, (row, old_row, advantage, kept) in enumerate(zip(log_probs, old_log_probs, advantages, mask, strict=True)):
        columns = [t for t in range(len(row)) if kept[t]]
        if not columns:
            continue
        term, slopes = completion([row[t] - old_row[t] for t in columns], advantage)
        weight = share(len(columns), num_completions) * len(columns)
        terms.append(-term * weight)
        for t, slope in zip(columns, slopes, strict=True):
            gradient[i][t] = -slope * weight
            magnitude[i][t] = abs(term) / len(columns) * weight
    return Reference(math.fsum(terms), gradient, magnitude)
