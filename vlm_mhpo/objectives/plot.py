"""The gradient multiplier of the chosen objective beside GRPO's and SAPO's, as an image."""

from __future__ import annotations

from pathlib import Path

import torch

from vlm_mhpo.config import Config, GrpoConfig
from vlm_mhpo.config.objectives import BaseObjective, SapoConfig
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.objectives.multipliers import multiplier_curve

# Ratios from a twentieth to twenty.
LOG_RATIO_RANGE = 3.0


def plot_multipliers(config: Config, out: Path) -> Path:
    """Write M(r), the factor of A grad log pi, for both signs of the advantage; returns `out` (png, svg or pdf).

    Raises:
        ConfigError: another kind of file.
    """
    from matplotlib.figure import Figure

    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {out}: give a file that ends in .png, .svg or .pdf")
    length = config.rollout.max_completion_length
    log_ratio = torch.linspace(-LOG_RATIO_RANGE, LOG_RATIO_RANGE, 1201, dtype=torch.float64)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (sign, advantage) in zip(axes, (("positive", 1.0), ("negative", -1.0)), strict=True):
        for section, style in curves(config.objective):
            curve = multiplier_curve(build_objective(section, length), log_ratio, advantage)
            axis.plot(log_ratio.exp(), curve, label=section.name, **style)
        axis.set(xscale="log", ylim=(0, 2.2), xlabel="ratio r", title=f"{sign} advantage")
        axis.axvline(1.0, color="0.8", linewidth=0.8, zorder=0)
    axes[0].set_ylabel("multiplier of A grad log pi")
    axes[0].legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    return out


def curves(chosen: BaseObjective) -> list[tuple[BaseObjective, dict]]:
    """The chosen objective and the two it is compared with, with their line styles."""
    others = [section for section in (GrpoConfig(), SapoConfig()) if section.name != chosen.name]
    styles = [{"color": "0.35", "linestyle": "--"}, {"color": "0.35", "linestyle": ":"}]
    return [(chosen, {"color": "tab:red", "linewidth": 2}), *zip(others, styles, strict=False)]
