"""What every section of the configuration is, and what a continued run may change of a key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# Marks of a key, for a run that goes on with another value than the one it began with; a section's mark is that of all
# keys in it. A key without a mark changes what is learnt: its change is refused unless `checkpoint.allow_change` names
# it. It costs time, memory or disk, or only looks on:
FREE: dict[str, Any] = {"on_resume": "free"}
# It says where something is found, or which part of it is used; what comes of it counts, by its digest:
PLACE: dict[str, Any] = {"on_resume": "by content"}
# Which tensors a checkpoint has, and of what type, follows from it, so that no run can go on with another value:
FIXED: dict[str, Any] = {"on_resume": "never"}


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
