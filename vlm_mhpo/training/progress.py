"""The progress bar of a run."""

from __future__ import annotations

from tqdm import tqdm

from vlm_mhpo.config import Config
from vlm_mhpo.runtime import ranks


class ProgressBar:
    """Steps done and time left, with reward, accuracy and the last held-out accuracy; silent but on the main rank."""

    def __init__(self, config: Config, start: int) -> None:
        self._note: dict[str, str] = {}
        self._bar = tqdm(
            total=config.train.max_steps,
            initial=start,
            desc=config.objective.name,
            unit="step",
            disable=not ranks.is_main(),
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, metrics: dict[str, float]) -> None:
        """One step more."""
        self._note["reward"] = f"{metrics['reward']:.3f}"
        for label, name in (("accuracy", "rewards/accuracy/mean"), ("held-out", "eval/accuracy")):
            if name in metrics:
                self._note[label] = f"{100 * metrics[name]:.1f} %"
        self._bar.set_postfix(self._note, refresh=False)
        self._bar.update()
