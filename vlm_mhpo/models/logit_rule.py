"""What a model does to its logits behind the head's product: nothing, a factor, a soft cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LogitRule:
    """z = cap tanh(scale x / cap) of a product x; without a cap z = scale x.

    Attributes:
        scale: a factor (Cohere's logit_scale, one over Granite's logits_scaling).
        cap: logits stay between -cap and cap (Gemma's final_logit_softcapping).
    """

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """That of a transformers configuration, by the keys that its models read."""
        text = config.get_text_config()
        scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(float(scale), getattr(text, "final_logit_softcapping", None))

    @property
    def is_plain(self) -> bool:
        """Logits are the product."""
        return self == PLAIN

    def apply_(self, products: Tensor) -> Tensor:
        """z of x, in its own buffer."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        return products if self.cap is None else products.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """dz / dx where the logits are z, -inf where they are banned; 0 there."""
        if self.cap is None:
            return self.scale
        return (logits / self.cap).clamp_(-1.0, 1.0).square_().neg_().add_(1.0).mul_(self.scale)


PLAIN = LogitRule()


def rule_of(lm_head: nn.Module) -> LogitRule:
    """What `set_rule` said of a head."""
    return getattr(lm_head, "logit_rule", PLAIN)


def set_rule(model: nn.Module) -> None:
    """Let the head of a loaded model know what its configuration says comes behind it, for sampler and trainer."""
    _give(model.lm_head, LogitRule.of(model.config))


@torch.no_grad()
def find_rule(model: nn.Module, *, of_body: bool) -> bool:
    """The same from what the model does with a few tokens; False where no rule explains it. Weights must be whole.

    With `of_body` the head must read the last hidden state of `model.model`, else whatever the model hands to it. Not
    every model reads the keys that its text configuration has (Aya Vision leaves Cohere's logit_scale alone).
    """
    said = LogitRule.of(model.config)
    seen: list[Tensor] = []
    ids_BS = torch.arange(1, 5, device=model.lm_head.weight.device)[None] % model.config.get_text_config().vocab_size
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    try:
        logits = model.eval()(input_ids=ids_BS, use_cache=False).logits
    finally:
        hook.remove()
    if of_body:
        seen.append(model.lm_head(model.model(input_ids=ids_BS, use_cache=False).last_hidden_state))
    for rule in (said, PLAIN, LogitRule(said.scale), LogitRule(cap=said.cap)):
        ours = rule.apply_(seen[-1].float().clone())
        if torch.allclose(logits.float(), ours, rtol=1e-2, atol=1e-2 if logits.dtype != torch.float32 else 1e-3):
            _give(model.lm_head, rule)
            return True
    return False


def _give(lm_head: nn.Module, rule: LogitRule) -> None:
    if rule != rule_of(lm_head):
        lm_head.logit_rule = rule
