"""The configuration of a run; importable without torch."""

from vlm_mhpo.config.base import Section
from vlm_mhpo.config.data import DataConfig
from vlm_mhpo.config.evaluation import EvalConfig, JudgeConfig
from vlm_mhpo.config.model import LoraConfig, ModelConfig
from vlm_mhpo.config.objectives import OBJECTIVES, BaseObjective, GrpoConfig, MhpoConfig, ObjectiveConfig
from vlm_mhpo.config.reading import describe, known_keys, load_config, parse_config
from vlm_mhpo.config.rewards import RewardConfig, RewardsConfig
from vlm_mhpo.config.rollout import MismatchConfig, RolloutConfig, VllmConfig
from vlm_mhpo.config.run import (
    CheckpointConfig,
    Config,
    FaultsConfig,
    LoggingConfig,
    check_world_size,
    nearest_multiple,
)
from vlm_mhpo.config.training import DeepSpeedConfig, OptimizerConfig, SftConfig, TrainConfig

__all__ = [
    "OBJECTIVES",
    "BaseObjective",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeepSpeedConfig",
    "EvalConfig",
    "FaultsConfig",
    "GrpoConfig",
    "JudgeConfig",
    "LoggingConfig",
    "LoraConfig",
    "MhpoConfig",
    "MismatchConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RewardConfig",
    "RewardsConfig",
    "RolloutConfig",
    "Section",
    "SftConfig",
    "TrainConfig",
    "VllmConfig",
    "check_world_size",
    "describe",
    "known_keys",
    "load_config",
    "nearest_multiple",
    "parse_config",
]
