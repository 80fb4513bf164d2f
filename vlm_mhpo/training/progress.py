"""The progress bar of a run."""

from __future__ import annotations

from tqdm import tqdm

from vlm_mhpo.records.metric_table import EVAL_ACCURACY, REWARD, REWARD_PART, SFT_LOSS
from vlm_mhpo.runtime import ranks

# Label, metric, form: of RL, and of the warm start.
SHOWN = (
    ("reward", REWARD.name, "{:.3f}"),
    ("accuracy", REWARD_PART.of(name="accuracy", moment="mean"), "{:.1%}"),
    ("held-out", EVAL_ACCURACY.name, "{:.1%}"),
    (SFT_LOSS.name, SFT_LOSS.name, "{:.3f}"),
)


class ProgressBar:
    """Steps done and time left, with reward, accuracy and the last held-out accuracy; silent but on the main rank."""

    def __init__(self, name: str, start: int, max_steps: int) -> None:
        self._note: dict[str, str] = {}
        self._bar = tqdm(
            total=max_steps,
            initial=start,
            desc=name,
            unit="step",
            disable=not ranks.is_main(),
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, metrics: dict[str, float]) -> None:
        """One step more."""
        for label, name, form in SHOWN:
            if name in metrics:
                self._note[label] = form.format(metrics[name])
        self._bar.set_postfix(self._note, refresh=False)
        self._bar.update()
