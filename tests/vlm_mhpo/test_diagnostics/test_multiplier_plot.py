"""The image of the multiplier shows the chosen objective, with its constants, beside GRPO and SAPO."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.vlm_mhpo.test_diagnostics.analytic import FORMULAS
from vlm_mhpo import cli
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.objectives.plot import plot_multipliers

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """`drawn(overrides...)` -> {panel title: {label: (ratios, multipliers)}} of the image, which is not rendered."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))

    def draw(*overrides: str) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        plot_multipliers(load_config(QUICKSTART, overrides), tmp_path / "m.png")
        return {
            axis.get_title(): {
                line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
                for line in axis.get_lines()
                if not line.get_label().startswith("_")
            }
            for axis in figures.pop().axes
        }

    return draw


@pytest.mark.parametrize("name", FORMULAS)
def test_every_line_is_its_formula(drawn, name: str):
    panels = drawn(f"objective.name={name}")
    assert list(panels) == ["positive advantage", "negative advantage"]
    for advantage, lines in zip((1.0, -1.0), panels.values(), strict=True):
        assert list(lines) == [name, *(other for other in ("grpo", "sapo") if other != name)]
        for label, (ratios, heights) in lines.items():
            expected = [FORMULAS[label]([math.log(r)], advantage)[0] for r in ratios]
            np.testing.assert_allclose(heights, expected, rtol=1e-9, atol=1e-13)
            assert ratios[0] < 0.06 and ratios[-1] > 19


def test_the_picture_uses_the_constants_of_the_configuration(drawn):
    ratios, heights = drawn("objective.normalize_hazard=true")["positive advantage"]["mhpo"]
    assert heights[np.abs(np.log(ratios)).argmin()] == pytest.approx(1.0, abs=1e-9)
    _, heights = drawn("objective.use_hazard=false")["positive advantage"]["mhpo"]
    assert heights.max() == pytest.approx(1.5925119191, abs=1e-4)


@pytest.mark.parametrize(("name", "head"), [("m.png", b"\x89PNG"), ("deep/er/m.svg", b"<?xml"), ("m.pdf", b"%PDF")])
def test_the_ending_of_the_name_chooses_the_format(tmp_path, name: str, head: bytes):
    out = tmp_path / name
    assert plot_multipliers(load_config(QUICKSTART), out) == out
    assert out.read_bytes().startswith(head)


@pytest.mark.parametrize("name", ["m.xyz", "m", "m.png.txt"])
def test_another_ending_is_refused(tmp_path, name: str):
    with pytest.raises(ConfigError, match=r"\.png"):
        plot_multipliers(load_config(QUICKSTART), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_it_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vlm-mhpo", "doctor", str(QUICKSTART), "--plot", str(tmp_path / "m.xyz")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith("error: --plot ") and err.count("\n") == 1
