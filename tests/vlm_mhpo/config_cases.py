"""A minimal configuration, ways to change it, and bad values each with what the refusal must say."""

import copy

INF, NAN = float("inf"), float("nan")
MINIMAL = """
output_dir: runs/x
model:
  path: some/model
data:
  train: rows.jsonl
train:
  max_steps: 4
  num_prompts_per_step: 8
"""


def minimal(**changes) -> dict:
    """The smallest valid configuration with dotted keys (written with __ for the dot) set."""
    values = {
        "output_dir": "runs/x",
        "model": {"path": "some/model"},
        "data": {"train": "rows.jsonl"},
        "train": {"max_steps": 4, "num_prompts_per_step": 8},
    }
    return with_values(values, {key.replace("__", "."): value for key, value in changes.items()})


def with_values(values: dict, changes: dict) -> dict:
    values = copy.deepcopy(values)
    for key, value in changes.items():
        node = values
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return values


MISTYPED = [
    ("trian", "train"),
    ("modle", "model"),
    ("train.max_step", "train.max_steps"),
    ("train.learning_rat", "train.learning_rate"),
    ("train.num_promts_per_step", "train.num_prompts_per_step"),
    ("rollout.temprature", "rollout.temperature"),
    ("rollout.num_generation", "rollout.num_generations"),
    ("objective.lamda_pos", "objective.lambda_pos"),
    ("deepspeed.zero_stge", "deepspeed.zero_stage"),
    ("model.pth", "model.path"),
    # Right name, wrong section.
    ("learning_rate", "train.learning_rate"),
    ("max_completion_length", "rollout.max_completion_length"),
    ("train.num_generations", "rollout.num_generations"),
    ("train.beta", "objective.beta"),
    # Named like a branch of a union inside pydantic.
    ("model.mhpo", "model."),
    ("data.str", "data."),
]

SERVED = {"rollout.engine": "vllm", "rollout.vllm.servers": ["http://127.0.0.1:8101"]}
BAD_VALUES = [
    ({"rollout.num_generations": 1}, "rollout.num_generations: Input should be greater than or equal to 2 (got 1)"),
    ({"rollout.max_completion_length": 0}, "rollout.max_completion_length: Input should be greater than 0 (got 0)"),
    ({"rollout.temperature": 0}, "rollout.temperature: Input should be greater than 0 (got 0)"),
    ({"rollout.temperature": INF}, "rollout.temperature: Input should be a finite number"),
    ({"rollout.top_p": 0}, "rollout.top_p: Input should be greater than 0"),
    ({"rollout.top_p": 1.5}, "rollout.top_p: Input should be less than or equal to 1"),
    ({"rollout.top_k": -1}, "rollout.top_k: Input should be greater than or equal to 0"),
    ({"rollout.old_log_probs": "vllm"}, "rollout.old_log_probs: Input should be 'trainer' or 'sampler' (got 'vllm')"),
    ({"rollout.engine": "vllm"}, "rollout.engine=vllm has no server: start some with scripts/serve_rollouts.sh"),
    (SERVED | {"rollout.top_p": 0.9}, "set rollout.top_p=1 and rollout.top_k=0"),
    (SERVED | {"rollout.top_k": 5}, "set rollout.top_p=1 and rollout.top_k=0"),
    (SERVED | {"rollout.temperature": 2.5}, "rollout.temperature=2.5 is more than vLLM takes: set 2 or less"),
    (SERVED | {"rollout.vllm.servers": ["http://10.0.0.7:8101"]}, "rollout.vllm.servers names 10.0.0.7, another host"),
    (SERVED | {"rollout.vllm.servers": ["http://a:b@127.0.0.1"]}, "put an access token into rollout.vllm.token_file"),
    (SERVED | {"rollout.vllm.servers": ["http://localhost:1"] * 2}, "rollout.vllm.servers names a server twice"),
    (SERVED | {"rollout.vllm.give_up_after": 0}, "rollout.vllm.give_up_after: Input should be greater than 0"),
    (
        SERVED | {"model.lora": {}, "model.quantization": "nf4"},
        "set model.quantization=null",
    ),
    (SERVED | {"rollout.old_log_probs": "sampler", "model.dtype": "bfloat16"}, "set rollout.old_log_probs=trainer"),
    ({"train.learning_rate": 0}, "train.learning_rate: Input should be greater than 0"),
    ({"train.learning_rate": -1e-6}, "train.learning_rate: Input should be greater than 0"),
    ({"train.learning_rate": INF}, "train.learning_rate: Input should be a finite number"),
    ({"train.learning_rate": NAN}, "train.learning_rate: Input should be a finite number"),
    ({"train.learning_rate": "fast"}, "train.learning_rate: Input should be a valid number"),
    ({"train.max_steps": 0}, "train.max_steps: Input should be greater than 0 (got 0)"),
    ({"train.max_steps": 2.5}, "train.max_steps: Input should be a valid integer"),
    ({"train.max_steps": None}, "train.max_steps: Input should be a valid integer (got None)"),
    ({"train.num_minibatches": 0}, "train.num_minibatches: Input should be greater than 0"),
    ({"train.num_iterations": 0}, "train.num_iterations: Input should be greater than 0"),
    ({"train.scale_rewards": "std"}, "train.scale_rewards: Input should be 'group', 'batch' or 'none'"),
    ({"train.lr_scheduler_type": "cos"}, "train.lr_scheduler_type: Input should be 'constant', 'linear', 'cosine' or"),
    ({"train.warmup_steps": -1}, "train.warmup_steps: Input should be greater than or equal to 0"),
    ({"train.adam_beta1": 1.0}, "train.adam_beta1: Input should be less than 1"),
    ({"train.adam_beta2": NAN}, "train.adam_beta2: Input should be a finite number"),
    ({"train.adam_epsilon": 0}, "train.adam_epsilon: Input should be greater than 0"),
    ({"train.weight_decay": -0.1}, "train.weight_decay: Input should be greater than or equal to 0"),
    ({"train.max_grad_norm": 0}, "train.max_grad_norm: Input should be greater than 0"),
    ({"train.on_nonfinite": "ignore"}, "train.on_nonfinite: Input should be 'stop' or 'skip'"),
    ({"train.max_tokens_per_micro_batch": 0}, "train.max_tokens_per_micro_batch: Input should be greater than 0"),
    ({"train.logits_chunk_size": 0}, "train.logits_chunk_size: Input should be greater than 0"),
    ({"train": [1]}, "train: Input should be a valid dictionary"),
    (
        {"objective.name": "ppo"},
        "objective: Input tag 'ppo' found using 'name' does not match any of the expected tags: 'mhpo', 'grpo'",
    ),
    ({"objective.beta": -0.1}, "objective.beta: Input should be greater than or equal to 0"),
    ({"objective.c": 0}, "objective.c: Input should be greater than 0"),
    ({"objective.c": INF}, "objective.c: Input should be a finite number"),
    ({"objective.name": "grpo", "objective.epsilon": 0}, "objective.epsilon: Input should be greater than 0"),
    ({"model.dtype": "float16"}, "model.dtype: Input should be 'float32' or 'bfloat16' (got 'float16')"),
    ({"model.attn_implementation": "eager", "model.dtype": "bfloat16"}, "eager rounds attention scores to bfloat16"),
    ({"faults.max_sampling_gap": -0.1}, "faults.max_sampling_gap: Input should be greater than or equal to 0"),
    (
        {"model.attn_implementation": "flash"},
        "model.attn_implementation: Input should be 'sdpa', 'eager' or 'flash_attention_2'",
    ),
    (
        {"model.attn_implementation": "flash_attention_2", "model.dtype": "float32"},
        "flash_attention_2 has no kernels for float32: set it to sdpa, or model.dtype=bfloat16",
    ),
    (
        {"data.video.min_frames": 9, "data.video.max_frames": 8},
        "data.video.min_frames=9 is above max_frames=8: swap them",
    ),
    (
        {"data.video.min_pixels": 9000, "data.video.max_pixels": 8000},
        "data.video.min_pixels=9000 is above max_pixels=8000: swap them",
    ),
    ({"model.max_pixels": -1}, "model.max_pixels: Input should be greater than 0"),
    ({"model.freeze_projector": "maybe"}, "model.freeze_projector: Input should be a valid boolean"),
    ({"data.train": 5}, "data.train: Input should be a valid string (got 5)"),
    ({"data.template": "free"}, "data.template: Input should be 'think_answer', 'think_boxed' or 'boxed' (got 'free')"),
    ({"data.overlong_prompts": "truncate"}, "data.overlong_prompts: Input should be 'error' or 'filter'"),
    ({"data.max_prompt_length": 0}, "data.max_prompt_length: Input should be greater than 0"),
    ({"rewards.num_workers": 0}, "rewards.num_workers: Input should be greater than 0"),
    ({"rewards.timeout_s": 0}, "rewards.timeout_s: Input should be greater than 0"),
    ({"rewards.functions": [{"weight": 1}]}, "rewards.functions.0.name is required"),
    (
        {"rewards.functions": [{"name": "accuracy", "weight": NAN}]},
        "rewards.functions.0.weight: Input should be a finite number",
    ),
    ({"deepspeed.zero_stage": 4}, "deepspeed.zero_stage: Input should be 0, 1, 2 or 3 (got 4)"),
    ({"eval.temperature": -1}, "eval.temperature: Input should be greater than or equal to 0"),
    ({"checkpoint.save_total_limit": 0}, "checkpoint.save_total_limit: Input should be greater than 0"),
    ({"logging.sample_prompts": 0}, "logging.sample_prompts: Input should be greater than 0"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ({"num_threads": -1}, "num_threads: Input should be greater than or equal to 0"),
    # Rules between keys.
    (
        {"train.num_prompts_per_step": 10},
        "train.num_prompts_per_step=10 does not divide into train.num_minibatches=4: use 8 prompts, or a divisor of 10",
    ),
    (
        {"train.num_prompts_per_step": 1, "train.num_minibatches": 3},
        "train.num_prompts_per_step=1 does not divide into train.num_minibatches=3: use 3 prompts",
    ),
    ({"model.min_pixels": 100, "model.max_pixels": 99}, "model.min_pixels=100 is above model.max_pixels=99: swap them"),
    ({"train.warmup_ratio": 0.1, "train.warmup_steps": 3}, "warmup_steps and warmup_ratio both say"),
    ({"train.warmup_ratio": 1.0}, "train.warmup_ratio: Input should be less than 1"),
    ({"train.advantage": "rloo"}, "set train.scale_rewards=none"),
    ({"train.advantage": "reinforce_plus_plus"}, "set train.scale_rewards=batch"),
    ({"objective.entropy_coef": -0.1}, "entropy_coef: Input should be greater than or equal to 0"),
    ({"model.lora": {"rank": 4}}, "model.lora.rank"),
    ({"model.lora": {"r": 0}}, "model.lora.r: Input should be greater than 0"),
    ({"deepspeed.offload_param": True}, "deepspeed.offload_param needs deepspeed.zero_stage=3"),
    (
        {"deepspeed.offload_optimizer": True, "deepspeed.zero_stage": 0},
        "deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3",
    ),
    ({"eval.num_samples": 4}, "eval.num_samples > 1 needs eval.temperature > 0"),
    ({"rewards.functions": []}, "rewards.functions: every weight is 0"),
    ({"rewards.functions": [{"name": "accuracy", "weight": 0}]}, "rewards.functions: every weight is 0"),
    (
        {"rewards.functions": [{"name": "format"}, {"name": "format", "weight": 2}]},
        "rewards.functions: names must differ, got ['format', 'format']",
    ),
]
