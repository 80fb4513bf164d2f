"""Checkpoints that are whole or absent; see `writing` for the order of a save, `reading` for what is refused."""

from vlm_mhpo.checkpoint.best import BEST, Best, best_step, read_best
from vlm_mhpo.checkpoint.files import DISK, Disk, only_writer
from vlm_mhpo.checkpoint.names import folder_of, step_of, steps_in
from vlm_mhpo.checkpoint.reading import (
    check_state,
    digest,
    load,
    newest_valid,
    read_state,
    refuse_programs,
    refuse_strangers,
    safe_load,
)
from vlm_mhpo.checkpoint.resharding import load_resharded
from vlm_mhpo.checkpoint.writing import Saving, begin, commit, finish, save

__all__ = [
    "BEST",
    "DISK",
    "Best",
    "Disk",
    "Saving",
    "begin",
    "best_step",
    "check_state",
    "commit",
    "digest",
    "finish",
    "folder_of",
    "load",
    "load_resharded",
    "newest_valid",
    "only_writer",
    "read_best",
    "read_state",
    "refuse_programs",
    "refuse_strangers",
    "safe_load",
    "save",
    "step_of",
    "steps_in",
]
