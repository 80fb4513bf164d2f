"""Sampling of completions."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import FREE, Section, check_address

MAX_SERVED_TEMPERATURE = 2.0


class VllmConfig(Section):
    """Servers of `rollout.engine=vllm`."""

    servers: list[str] = Field(
        default_factory=list,
        description="Addresses of vLLM servers that scripts/serve_rollouts.sh has started, such as "
        "http://127.0.0.1:8101.",
    )
    token_file: str | None = Field(
        None, description="File that holds the servers' access token and nothing else; null = none, on this host alone."
    )
    sync: Literal["files", "gloo"] = Field(
        "files", description="How weights go to the servers: files in sync_dir, or over TCP without a common folder."
    )
    sync_dir: str = Field(
        "/dev/shm/vlm_mhpo", description="Folder for weights that trainer and servers see under the same path."
    )
    max_requests: PositiveInt = Field(64, description="Prompts that a rank has open at one server.")
    request_timeout: PositiveFloat = Field(600.0, description="Seconds for all completions of a prompt.")
    sync_timeout: PositiveFloat = Field(300.0, description="Seconds for each call that gives a server its weights.")
    give_up_after: PositiveFloat = Field(
        20.0, description="Minutes without a usable server after which the run saves and ends with exit code 8."
    )

    @model_validator(mode="after")
    def _servers_are_addresses(self) -> VllmConfig:
        keys = "rollout.vllm.servers", "rollout.vllm.token_file", "http://127.0.0.1:8101"
        for url in self.servers:
            host = check_address(url, *keys).hostname
            if self.token_file is None and not _is_this_host(host):
                raise ValueError(
                    f"rollout.vllm.servers names {host}, another host, and whoever reaches such a server can change "
                    "its weights: start it with --token-file and set rollout.vllm.token_file"
                )
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("rollout.vllm.servers names a server twice: leave one out")
        return self


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class MismatchConfig(Section):
    """Weights pi_trainer / pi_sampler against the gap between two engines that hold the same weights.

    Not the ratio of the objective, which compares the trainer with itself some updates later.
    """

    mode: Literal["none", "token", "sequence", "geometric", "icepop"] = Field(
        "none",
        description="What a token's term of the loss is multiplied by: nothing; its own ratio; the product of its "
        "completion's ratios; their geometric mean; its own ratio, or 0 outside min to max.",
    )
    max: PositiveFloat | None = Field(
        None, description="Larger ratios count as this (icepop: as 0); null = 3 (icepop: 5)."
    )
    min: PositiveFloat | None = Field(None, description="Smaller ratios count as 0; null = 0 (icepop: 0.5).")

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest ratio that count as they are."""
        low, high = (0.5, 5.0) if self.mode == "icepop" else (0.0, 3.0)
        return self.min or low, self.max or high

    @model_validator(mode="after")
    def _bounds_in_order(self) -> MismatchConfig:
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"rollout.mismatch.min={low:g} is not below rollout.mismatch.max={high:g}: swap them")
        return self


class RolloutConfig(Section):
    """Sampling of completions."""

    num_generations: int = Field(8, ge=2, description="G, completions sampled a prompt; the group of the advantage.")
    max_completion_length: PositiveInt = Field(512, description="Token budget of a completion.")
    temperature: PositiveFloat = Field(1.0, description="Softmax temperature, also of the trainer's log-probs.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass; log-probs stay those of the whole distribution.")
    top_k: int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 = all.")
    max_batch_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Tokens that a rank's attention cache may hold: a prompt once, and the budget of each completion "
        "that is decoded at the same time; waiting ones take the places of those that end. auto = what fits in the "
        "memory that is free at the first rollout, the same on all ranks (recorded as sampling/max_batch_tokens).",
        json_schema_extra=FREE,
    )
    dynamic_sampling: bool = Field(False, description="Replace groups of equal rewards by groups of other prompts.")
    max_resample_times: int = Field(3, ge=0, description="Tries of dynamic sampling; then the step goes on.")
    old_log_probs: Literal["trainer", "sampler"] = Field(
        "trainer",
        description="Where the ratio's denominator comes from: the trainer (exact in bfloat16; one more forward of "
        "all minibatches but the first), or the sampler's own (free; right in float32).",
    )
    engine: Literal["hf", "vllm"] = Field(
        "hf", description="What samples: the trainer's own model, or vLLM servers that get its weights at every step."
    )
    vllm: VllmConfig = Field(default_factory=VllmConfig, description="Servers of engine vllm.", json_schema_extra=FREE)
    mismatch: MismatchConfig = Field(
        default_factory=MismatchConfig, description="Weights against the gap between sampler and trainer."
    )

    @model_validator(mode="after")
    def _engines_are_comparable(self) -> RolloutConfig:
        if self.mismatch.mode != "none" and self.old_log_probs == "sampler":
            raise ValueError(
                "rollout.mismatch compares the sampler's log-probs with the trainer's own: set "
                "rollout.old_log_probs=trainer"
            )
        if self.engine != "vllm":
            return self
        if not self.vllm.servers:
            raise ValueError(
                "rollout.engine=vllm has no server: start some with scripts/serve_rollouts.sh and name them in "
                "rollout.vllm.servers"
            )
        if self.temperature > MAX_SERVED_TEMPERATURE:
            raise ValueError(
                f"rollout.temperature={self.temperature:g} is more than vLLM takes: set "
                f"{MAX_SERVED_TEMPERATURE:g} or less"
            )
        if self.top_p < 1 or self.top_k > 0:
            raise ValueError(
                "rollout.engine=vllm tells log-probs of the tokens that top_p and top_k leave, not of all: set "
                "rollout.top_p=1 and rollout.top_k=0"
            )
        return self
