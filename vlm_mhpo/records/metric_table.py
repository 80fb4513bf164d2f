"""Every metric of metrics.jsonl: its name, how it is reduced, its unit, its group, a sentence; and the page of them.

Readers (charts, health rules, progress bar, measures) take names from here. The code that computes a metric writes the
name out, since some of it lies on a floor below. Plain Python: a report reads the table without torch.

    python -m vlm_mhpo.records.metric_table > docs/metrics.md

writes the page anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

# How the values of micro-batches and ranks become one; the first five are prefixes that `metrics.reduce_metrics` reads.
SUM, PART, MIN, MAX, ADD = "sum", "part", "min", "max", "add"
STATISTICS, GATHERED, PLAIN = "statistics", "gathered", "plain"
REDUCTIONS = {
    SUM: "a sum over tokens, added over micro-batches and ranks and divided by the global number of tokens",
    PART: "a sum over some tokens by the sum over all, each added over micro-batches and ranks; absent when both are 0",
    MIN: "the smallest value of any token",
    MAX: "the largest value of any token",
    ADD: "added over micro-batches and ranks",
    STATISTICS: "`mean` is a `sum` (or a `part`, of some updates' tokens), `min` and `max` are what they say",
    GATHERED: "computed from the gathered values of all ranks",
    PLAIN: "made of figures that are global already, or of the main rank's clock",
}
# What may stand for a {word} of a name, where it is not any text without a slash.
PLACEHOLDERS = {
    "extent": "mean|min|max",
    "inside": "psi|zeta",
    "moment": "mean|std",
    "name": ".+",  # as in synthetic/shapes
    "objective": "mhpo|grpo",
    "part": "psi|zeta|multiplier",
    "number": "[0-9]+",
    "percentile": "p50|p99",
    "print": "max|mean|moved",
    "quantile": "p01|p05|p50|p95|p99",
    "share": "busy|sync",
    "sign": "|_positive|_negative",
    "side": "low|high|region",
    "size": "mean|max",
    "verdict": "(?!by_worker$)[^/]+",
}
INTRODUCTION = """\
# The metrics of a run

Rows of `metrics.jsonl`, TensorBoard and W&B have these names; most are TRL's. `{a,b}` stands for one of the words,
`<word>` for any. The page of a run (`vlm-mhpo report RUN`) has a chart for each section here but the last.

`python -m vlm_mhpo.records.metric_table > docs/metrics.md` prints this page from the table in that module. Whoever adds
a metric touches two files, the one that computes it and the table, and prints this page anew. A loss of your own
(`objective.name=custom`) may return metrics that the table does not have: `sum/NAME`, `part/NAME` with `whole/NAME`,
`min/NAME`, `max/NAME` or `add/NAME`, reduced as follows.

Which tokens: metrics of an update run over the tokens that it reads. Without a KL term (`objective.beta` 0) a
completion whose advantage is 0, as in a group of equal rewards, adds exactly nothing to loss and gradient, and neither
does a masked one; no forward reads them, `idle_tokens` is their share, and ratios, divergences, multipliers and
`entropy` are those of the other completions. So `entropy` says how spread the policy is where it still learns: it lies
above that of all samples once many prompts are always solved, and a step of equal rewards alone has none. With a KL
term, and with a loss of your own that does not say `scales_with_advantage = True`, all tokens are read.

Reductions, which make one value of those of micro-batches and ranks:
"""


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics that belong together: `key` is the HTML id of their chart, `title` its heading."""

    key: str
    title: str


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them.

    Attributes:
        name: in metrics.jsonl; a {word} makes it a family, see `PLACEHOLDERS`.
        reduction: a key of `REDUCTIONS`.
        unit: of its values; "" for a bare number.
        group: where it is shown.
        sentence: what it is, in Markdown.
        when: the runs or steps that have it; "" = every training step.
    """

    name: str
    reduction: str
    unit: str
    group: Group
    sentence: str
    when: str = ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Of every name of the family; what stands for a {word} is the pattern's group of that name."""
        parts = re.split(r"\{(\w+)\}", self.name)
        parts[::2] = map(re.escape, parts[::2])
        parts[1::2] = (f"(?P<{word}>{PLACEHOLDERS.get(word, '[^/]+')})" for word in parts[1::2])
        return re.compile("".join(parts), re.DOTALL)

    def of(self, **words: str) -> str:
        """The name of one member of the family."""
        return self.name.format(**words)

    def words(self, name: str) -> dict[str, str] | None:
        """What stands for each {word} in `name`; None when it is the name of another metric."""
        found = self._pattern.fullmatch(name)
        return None if found is None else found.groupdict()


def metric_of(name: str) -> Metric | None:
    """The entry of a name in metrics.jsonl; None for one that only a user's own loss knows."""
    return next((metric for metric in METRICS if metric.words(name) is not None), None)


def markdown() -> str:
    """The page docs/metrics.md."""
    lines = [INTRODUCTION, *(f"- `{name}`: {text}." for name, text in REDUCTIONS.items())]
    for group in dict.fromkeys(metric.group for metric in METRICS):
        lines += ["", f"## {group.title}", "", "| metric | unit | reduction | what it is | when |", "| --- " * 5 + "|"]
        for metric in (metric for metric in METRICS if metric.group == group):
            name = re.sub(r"\{(\w+)\}", _choices, metric.name)
            cells = (f"`{name}`", metric.unit, metric.reduction, metric.sentence, metric.when)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _choices(word: re.Match[str]) -> str:
    """What the page prints for a {word}."""
    values = PLACEHOLDERS.get(word[1], "")
    return "{" + values.replace("|", ",") + "}" if "|" in values else f"<{word[1]}>"


REWARDS = Group("reward", "Reward")
HELD_OUT = Group("accuracy", "Held-out accuracy")
VERDICTS = Group("verdicts", "Verdicts of sampled completions")
LENGTHS = Group("length", "Completion length")
SIGNAL = Group("signal", "Groups without a signal")
GRADIENT = Group("gradient", "Gradient norm")
RATIOS = Group("ratio", "Distance from the sampling policy")
DAMPING = Group("damping", "What the objective damps")
INSIDE = Group("inside", "Inside the ratio")
DIVERGENCE = Group("entropy", "Entropy and divergence")
TIMES = Group("time", "Seconds a step")
UPDATES = Group("update", "Updates")

# Conditions of several metrics.
_TESTED, _REFILLED, _ENDED = "an evaluation is due", "`rollout.dynamic_sampling`", "some completion did"
_UPDATED, _STAKE = "an update was applied", "some token has an advantage"
_READ = "an applied update read some token"
_SERVED = "`rollout.engine=vllm`"

# As a table has it: a line for what is short and one for the sentence, where one line does not hold both.
# fmt: off
REWARD = Metric("reward", GATHERED, "", REWARDS, "Mean reward of the sampled completions.")
REWARD_STD = Metric("reward_std", GATHERED, "", REWARDS, "Mean over groups of the standard deviation inside a group.")
REWARD_PART = Metric("rewards/{name}/{moment}", GATHERED, "", REWARDS,
                     "Mean and standard deviation of one reward function's values, without its weight.",
                     "the function gave some value")
LOGGED = Metric("logged/{name}", GATHERED, "", REWARDS,
                "Mean of what reward functions of your own passed to TRL's `log_metric`.", "a function logged it")
EVAL_ACCURACY = Metric("eval/accuracy", GATHERED, "share", HELD_OUT, "Accuracy on `data.eval`.", _TESTED)
EVAL_LENGTH = Metric("eval/mean_length", GATHERED, "tokens", HELD_OUT,
                     "Mean length of the completions on `data.eval`.", _TESTED)
EVAL_PART = Metric("eval/{name}/accuracy", GATHERED, "share", HELD_OUT,
                   "Accuracy on one source of `data.eval`, or on one of `eval.benchmarks` by its official rule.",
                   _TESTED)
EVAL_OURS = Metric("eval/{name}/our_accuracy", GATHERED, "share", HELD_OUT,
                   "Accuracy on one of `eval.benchmarks` by our verifier.", f"`eval.benchmarks`, {_TESTED}")
VERDICT = Metric("verdicts/{verdict}", GATHERED, "share", VERDICTS,
                 "Completions with one verdict: `correct`, `wrong`, `no_answer`, `timeout`, ...",
                 "some completion has it")
BY_WORKER = Metric("verdicts/by_worker", GATHERED, "share", VERDICTS,
                   "Completions that a worker process judged, because our own grammar did not decide.")
LENGTH = Metric("completions/{extent}_length", GATHERED, "tokens", LENGTHS,
                "Mean, smallest and largest length of the completions.")
LENGTH_ENDED = Metric("completions/{extent}_terminated_length", GATHERED, "tokens", LENGTHS,
                      "The same of the completions that ended by themselves.", _ENDED)
LENGTH_CUT = Metric("completions/clipped_ratio", GATHERED, "share", LENGTHS,
                    "Completions that `rollout.max_completion_length` cut.")
NUM_TOKENS = Metric("num_tokens", GATHERED, "tokens", LENGTHS,
                    "Tokens of the step: each prompt once, and all completions.")
FLAT_GROUPS = Metric("frac_reward_zero_std", GATHERED, "share", SIGNAL,
                     "Groups whose rewards are all equal, so that they have no advantage to learn from.")
IDLE_STEPS = Metric("idle_steps", PLAIN, "steps", SIGNAL,
                    "Steps in a row, up to this one, in which every group was like that.")
IDLE_TOKENS = Metric("idle_tokens", PART, "share", SIGNAL,
                     "Sampled tokens that the updates left out because they add exactly nothing, see above.", _UPDATED)
REFILL_YIELD = Metric("dynamic_sampling/yield", GATHERED, "share", SIGNAL,
                      "Sampled groups, those of refills included, whose rewards differ.", _REFILLED)
REFILL_TRIES = Metric("dynamic_sampling/tries", PLAIN, "", SIGNAL,
                      "How often groups of equal rewards were replaced.", _REFILLED)
REFILL_FLAT = Metric("dynamic_sampling/still_flat", GATHERED, "share", SIGNAL,
                     "Groups of the final batch whose rewards are still all equal.", _REFILLED)
GRAD_NORM = Metric("grad_norm", PLAIN, "", GRADIENT,
                   "Global L2 norm of the gradient before clipping, mean over the updates of the step.", _UPDATED)
GRAD_NORM_MAX = Metric("grad_norm/max", PLAIN, "", GRADIENT, "The largest of them.", _UPDATED)
GRAD_NORM_PERCENTILE = Metric("grad_norm/{percentile}", PLAIN, "", GRADIENT,
                              "Percentiles 50 and 99 of the last 200 updates.", "some update of the run was applied")
GRAD_SPIKES = Metric("grad_norm/num_spikes", PLAIN, "updates", GRADIENT,
                     "Updates of the run so far whose norm was above 5 times the median of the 50 before.")
RATIO = Metric("ratio_{extent}", STATISTICS, "", RATIOS, "Ratio r of current to sampling policy over tokens.", _READ)
LOG_RATIO = Metric("{objective}/log_ratio_{extent}", STATISTICS, "nats", RATIOS,
                   "Its logarithm.", "objective `mhpo`, or `grpo` with its variants")
SAMPLE_SIZE = Metric("ratio_effective_sample_size", PLAIN, "share", RATIOS,
                     "(sum r)^2 / (n sum r^2): the tokens that the importance weights leave in effect.", _READ)
MULTIPLIER = Metric("multiplier_mean", SUM, "", DAMPING,
                    "Gradient multiplier M: what the objective puts before A grad log pi.", _READ)
DAMPED = Metric("damped_fraction", PART, "share", DAMPING,
                "Of the absolute advantages, what lies on tokens with M below a tenth of the on-policy one.", _STAKE)
DEAD_ZONE = Metric("mhpo/dead_zone_fraction{sign}", PART, "share", DAMPING,
                   "The same by MHPO's own formula; of all tokens, of those with A > 0 (`_positive`), with A < 0.",
                   f"objective `mhpo`, {_STAKE}")
MHPO_PART = Metric("mhpo/{part}_{extent}", STATISTICS, "", DAMPING,
                   "Modulated log-ratio psi (nats), hazard zeta, and multiplier.", "objective `mhpo`")
CLIPPED = Metric("clip_ratio/{side}_mean", SUM, "share", DAMPING,
                 "Tokens whose gradient is clipped away below, above, or either way (`region`).",
                 "objectives that clip; `gmpo` has `region` alone")
CLIPPED_CISPO = Metric("cispo_clip_ratio", SUM, "share", DAMPING,
                       "Tokens with A > 0 whose importance weight is clipped.", "objective `cispo`")
VESPO_WEIGHT = Metric("vespo/phi_mean", SUM, "", DAMPING, "Weight of VESPO.", "objective `vespo`")
SAPO_GATE = Metric("sapo/gate_mean", SUM, "", DAMPING, "Gate of SAPO.", "objective `sapo`")
RATIO_QUANTILE = Metric("ratio_{quantile}", PLAIN, "", INSIDE,
                        "Percentiles 1, 5, 50, 95 and 99 of the ratio over tokens with an advantage.", _STAKE)
MULTIPLIER_QUANTILE = Metric("multiplier_{quantile}", PLAIN, "", INSIDE, "The same of the gradient multiplier.", _STAKE)
MHPO_QUANTILE = Metric("mhpo/{inside}_{quantile}", PLAIN, "", INSIDE,
                       "The same of psi and zeta.", f"objective `mhpo`, {_STAKE}")
ENTROPY = Metric("entropy", SUM, "nats per token", DIVERGENCE, "Entropy of the policy where it sampled.", _READ)
KL = Metric("kl", SUM, "nats per token", DIVERGENCE,
            "KL divergence from the reference policy, estimated by k3.", "`objective.beta` > 0")
KL_TO_SAMPLER = Metric("kl_to_sampler", SUM, "nats per token", DIVERGENCE,
                       "KL divergence from the sampling policy, estimated by r - 1 - log r.", _READ)
KL_LAST_MINIBATCH = Metric("kl_to_sampler/last_minibatch", SUM, "nats per token", DIVERGENCE,
                           "The same in the last update of the step that read a token, where it is largest.", _READ)
SAMPLING_GAP = Metric("sampling/sampling_logp_difference/{size}", STATISTICS, "nats", DIVERGENCE,
                      "Mean and largest distance of the log-probs of sampler and trainer at equal weights, over the "
                      "tokens of the first update.", "the first update read some token")
ENGINE_RATIO = Metric("sampling/importance_sampling_ratio/{extent}", STATISTICS, "", DIVERGENCE,
                      "Ratio of trainer to sampler at equal weights over tokens, by `rollout.mismatch.mode`, before it "
                      "is bounded.", "`rollout.engine=vllm`, or a mode of `rollout.mismatch`")
FINGERPRINT = Metric("sampling/fingerprint/{print}", PLAIN, "nats", DIVERGENCE,
                     "Largest and mean distance of a server's and the trainer's log-probs of fixed prompts after the "
                     "last sync; `moved`: how far the last step moved the trainer's, below which they prove nothing.",
                     "`rollout.engine=vllm`")
STEP_TIME = Metric("step_time", PLAIN, "s", TIMES, "Time of the step on the wall clock.")
STAGE_TIME = Metric("time/{stage}", PLAIN, "s", TIMES,
                    "Its part in one stage: `prompts`, `sample`, `verify`, `log_probs`, `update`, `evaluate`.")
BATCH_TOKENS = Metric("sampling/max_batch_tokens", PLAIN, "tokens", TIMES,
                      "What the cache of the main rank's sampler may hold: `rollout.max_batch_tokens`, or what `auto` "
                      "found; halved when memory ran out.")
SYNC_TIME = Metric("sampling/sync_time", PLAIN, "s", TIMES, "Time of the last weight sync to the servers.", _SERVED)
SYNC_BYTES = Metric("sampling/sync_bytes", PLAIN, "bytes", TIMES, "Size of the weights that each server got.", _SERVED)
SERVER_SHARE = Metric("sampling/server_{number}/{share}", PLAIN, "share", TIMES,
                      "Of a step's time, what a server works on requests of the main rank, and on new weights; the "
                      "rest it is idle.", _SERVED)
NUM_SERVERS = Metric("sampling/num_servers", PLAIN, "servers", TIMES, "Servers that are fit for use.", _SERVED)
NUM_RETRIES = Metric("sampling/num_retries", PLAIN, "requests", TIMES,
                     "Requests of the main rank that were put again in this step.", _SERVED)
POLICY_LOSS = Metric("policy_loss", ADD, "", UPDATES,
                     "Loss without the KL term, mean over the updates of the step.", _UPDATED)
LEARNING_RATE = Metric("learning_rate", PLAIN, "", UPDATES, "Learning rate of the updates.")
SKIPPED = Metric("num_skipped_updates", PLAIN, "updates", UPDATES,
                 "Updates of the step that were not applied because a loss or gradient was not finite.")
SFT_LOSS = Metric("loss", ADD, "nats per token", UPDATES, "Minus the mean log-prob of the target tokens.", "warm start")
# fmt: on
METRICS = tuple(value for value in globals().values() if isinstance(value, Metric))

if __name__ == "__main__":
    print(markdown(), end="")
