"""The errors of the trainer; each message says what was wrong, where, and what to do."""


class VlmMhpoError(Exception):
    """Base of every error that the command line prints as one sentence instead of a traceback."""

    exit_code = 2


class ConfigError(VlmMhpoError):
    """A configuration file, key or override is wrong."""


class ModelError(VlmMhpoError):
    """A model or processor cannot be loaded or is not supported."""


class PromptError(VlmMhpoError):
    """A row cannot be turned into a prompt (image tokens, context length, placeholders)."""


class CheckpointError(VlmMhpoError):
    """A checkpoint is missing, damaged, or was written by another configuration."""

    exit_code = 3


class SaveError(CheckpointError):
    """A checkpoint could not be written; the older ones are intact."""

    exit_code = 4


class NonFiniteError(VlmMhpoError):
    """A loss or gradient was not finite; the weights were not touched."""

    exit_code = 4


class TrainingError(VlmMhpoError):
    """Training cannot go on (a rank failed, no rows are left, verifiers fail)."""


class UnreadableError(TrainingError):
    """The model cannot read a completion; names its prompts."""


class RankError(VlmMhpoError):
    """Another rank died, failed or stands still; this one cannot go on without it."""

    exit_code = 5


class OutOfMemoryError(VlmMhpoError):
    """The device has no memory left for a phase; names it, the key to set and a value."""

    exit_code = 6


class Stopped(VlmMhpoError):
    """The run was asked to stop by a signal, and what it had learnt is saved."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EvaluationError(VlmMhpoError):
    """A benchmark, its records or a comparison of reports cannot be used."""


class JudgeError(EvaluationError):
    """The language model that judges cannot be asked, or answers with something else than a completion."""

    exit_code = 7


class RolloutError(VlmMhpoError):
    """A rollout server refuses what it is asked, or gives answers that cannot be those of the policy."""


class NoServerError(RolloutError):
    """No rollout server has been fit for use for `rollout.vllm.give_up_after` minutes."""

    exit_code = 8
