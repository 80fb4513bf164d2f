"""The configuration of a run; importable without torch."""

from vlm_mhpo.config.base import Section
from vlm_mhpo.config.objectives import OBJECTIVES, BaseObjective, GrpoConfig, MhpoConfig, ObjectiveConfig
from vlm_mhpo.config.reading import describe, known_keys, load_config, parse_config
from vlm_mhpo.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    DeepSpeedConfig,
    EvalConfig,
    FaultsConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RewardsConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
    check_world_size,
    nearest_multiple,
)

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
    "LoggingConfig",
    "MhpoConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RewardConfig",
    "RewardsConfig",
    "RolloutConfig",
    "Section",
    "SftConfig",
    "TrainConfig",
    "check_world_size",
    "describe",
    "known_keys",
    "load_config",
    "nearest_multiple",
    "parse_config",
]
