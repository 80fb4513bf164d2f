"""Which token of a row sees which, where layers differ: sliding windows, and images whose tokens see ahead.

Transformers counts a window in places of the row. A completion that shares its prompt stands behind others, so here it
is counted in positions: the masks are those of the separate row, picked out of the packed one.

    position      0  1  2  3 | 4  5 | 4  5       window 3: a query at position 5 sees 3, 4 and 5
    row           p0 p1 p2 p3| a0 a1| b0 b1      so b1 sees p3, b0, b1, though p3 stands four places before it

Shape suffixes: R rows, S row tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm_mhpo.models.packing import segment_mask

FULL, SLIDING, RECURRENT = "full_attention", "sliding_attention", "linear_attention"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a family's layers see beside what a causal layer sees of a packed row.

    Attributes:
        image_ahead: layers in which the tokens of one image see each other both ways: none, all, or those that slide
            where the text configuration says so (use_bidirectional_attention "vision", Gemma 4).
        by_kind: the model takes a mask for each kind of layer by name; else one for all layers.
    """

    image_ahead: Literal["", "all", "sliding"] = ""
    by_kind: bool = True

    def masks(self, config: Any, input_ids_RS: Tensor, segments_RS: Tensor, positions_RS: Tensor) -> Any:
        """[R, 1, S, S] bool, by kind of layer: True where a query (third axis) may see a key (fourth).

        Args:
            config: of the transformers model.
            input_ids_RS, segments_RS, positions_RS: as in `PackedRows`; of prompts alone all segments are 0 or -1.
        """
        text, full_R1SS = config.get_text_config(), segment_mask(segments_RS)
        near_R1SS = full_R1SS
        if self.image_ahead == "all" or (self.image_ahead and text.use_bidirectional_attention == "vision"):
            near_R1SS = full_R1SS | _same_image(input_ids_RS == config.image_token_id)
            full_R1SS = near_R1SS if self.image_ahead == "all" else full_R1SS
        if (window := getattr(text, "sliding_window", None)) is not None:
            positions_RS = positions_RS.int()
            distance_RSS = positions_RS[:, :, None] - positions_RS[:, None, :]
            near_R1SS = near_R1SS & (distance_RSS < window)[:, None]
        return {FULL: full_R1SS, SLIDING: near_R1SS} if self.by_kind else near_R1SS


def _same_image(is_image_RS: Tensor) -> Tensor:
    """[R, 1, S, S] bool, True for two tokens of one run of image tokens."""
    begins_RS = is_image_RS & ~pad(is_image_RS, (1, 0))[:, :-1]
    image_RS = torch.where(is_image_RS, begins_RS.cumsum(dim=1), 0)
    return ((image_RS[:, :, None] == image_RS[:, None, :]) & is_image_RS[:, :, None])[:, None]


def slides(text: Any) -> bool:
    """Whether some layer of a text configuration looks back only so far."""
    if kinds := getattr(text, "layer_types", None):
        return SLIDING in kinds
    return bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True)


def shares(text: Any, known: set[str]) -> bool:
    """Whether completions can share a row with their prompt: layers of known kinds, and no rotary positions whose
    frequencies depend on how long a row is."""
    if not set(getattr(text, "layer_types", None) or (FULL,)) <= known or (slides(text) and SLIDING not in known):
        return False
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, dict)}
    return not kinds & {"dynamic", "longrope"}
