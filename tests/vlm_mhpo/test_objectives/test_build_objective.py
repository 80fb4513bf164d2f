"""A section of the configuration becomes the objective it names, with its constants and its aggregation."""

import pytest

from tests.reference import objectives as reference
from tests.reference.objectives import MhpoConstants
from tests.vlm_mhpo.test_objectives.cases import assert_matches, loss_and_gradient, random_case, reference_of
from vlm_mhpo.config import objectives as sections
from vlm_mhpo.objectives import build_objective

LENGTH = 77

# Section without a key set: reference, constants and aggregation of the paper.
PAPERS = [
    (sections.MhpoConfig, reference.mhpo, {"constants": MhpoConstants(1.5, 1.5, 1.0, 2.0, 0.8)}, "completion_mean"),
    (sections.GrpoConfig, reference.grpo, {"epsilon_low": 0.2, "epsilon_high": 0.2}, "completion_mean"),
    (sections.DrGrpoConfig, reference.grpo, {"epsilon_low": 0.2, "epsilon_high": 0.2}, "fixed_length"),
    (sections.DapoConfig, reference.grpo, {"epsilon_low": 0.2, "epsilon_high": 0.28}, "token_mean"),
    (sections.GspoConfig, reference.gspo, {"epsilon_low": 3e-4, "epsilon_high": 4e-4}, "completion_mean"),
    (sections.CispoConfig, reference.cispo, {"epsilon_high": 4.0}, "token_mean"),
    (sections.SapoConfig, reference.sapo, {"tau_pos": 1.0, "tau_neg": 1.05}, "completion_mean"),
    (sections.GmpoConfig, reference.gmpo, {"epsilon": 0.4}, "completion_mean"),
    (
        sections.VespoConfig,
        reference.vespo,
        {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0},
        "token_mean",
    ),
    (
        sections.DppoTvConfig,
        reference.dppo_tv,
        {"delta_low": 0.2, "delta_high": 0.2, "max_ratio": 20.0},
        "token_mean",
    ),
    (sections.ReinforceConfig, reference.reinforce, {}, "completion_mean"),
]
# Keys of a section, none of them a default, and the same for the reference.
OTHERS = [
    (
        sections.MhpoConfig(c=0.7, k_pos=2.5, lambda_pos=1.3, k_neg=1.2, lambda_neg=0.6, normalize_hazard=True),
        reference.mhpo,
        {"constants": MhpoConstants(0.7, 2.5, 1.3, 1.2, 0.6, normalize_hazard=True)},
    ),
    (sections.MhpoConfig(use_modulator=False), reference.mhpo, {"constants": MhpoConstants(use_modulator=False)}),
    (sections.MhpoConfig(use_hazard=False), reference.mhpo, {"constants": MhpoConstants(use_hazard=False)}),
    (sections.GrpoConfig(epsilon=0.1), reference.grpo, {"epsilon_low": 0.1, "epsilon_high": 0.1}),
    (sections.DapoConfig(epsilon=0.1, epsilon_high=0.4), reference.grpo, {"epsilon_low": 0.1, "epsilon_high": 0.4}),
    (sections.GspoConfig(epsilon=0.1, epsilon_high=0.3), reference.gspo, {"epsilon_low": 0.1, "epsilon_high": 0.3}),
    (sections.CispoConfig(epsilon_high=0.5), reference.cispo, {"epsilon_high": 0.5}),
    (sections.SapoConfig(tau_pos=2.0, tau_neg=0.5), reference.sapo, {"tau_pos": 2.0, "tau_neg": 0.5}),
    (sections.GmpoConfig(epsilon=0.2), reference.gmpo, {"epsilon": 0.2}),
    (
        sections.VespoConfig(k_pos=1.0, lambda_pos=0.5, k_neg=0.5, lambda_neg=4.0),
        reference.vespo,
        {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 0.5, "lambda_neg": 4.0},
    ),
    (
        sections.DppoTvConfig(delta_low=0.05, delta_high=0.1, max_ratio=3.0),
        reference.dppo_tv,
        {"delta_low": 0.05, "delta_high": 0.1, "max_ratio": 3.0},
    ),
]


def check(section: sections.BaseObjective, loop: object, constants: dict, aggregation: str) -> None:
    objective = build_objective(section, LENGTH)
    for seed in range(4):
        case = random_case(seed, num_rows=5, num_tokens=12, span=[1e-3, 2.0][seed % 2])
        share = {
            "completion_mean": reference.completion_mean,
            "token_mean": reference.token_mean(case.num_tokens),
            "fixed_length": reference.fixed_length(LENGTH),
        }[aggregation]
        expected = reference_of(loop, case, share=share, **constants)
        assert_matches(*loss_and_gradient(objective.loss, case), expected, tolerance=1e-12)
        ones = case.mask.double()
        counted = objective.aggregate(ones, case.mask, num_completions=case.num_completions, num_tokens=case.num_tokens)
        lengths = [length for length in case.mask.sum(dim=1).tolist() if length]
        by_share = sum(length * share(length, case.num_completions) for length in lengths)
        assert counted.item() == pytest.approx(by_share, rel=1e-12)


@pytest.mark.parametrize(
    ("section", "loop", "constants", "aggregation"), PAPERS, ids=[row[0].__name__ for row in PAPERS]
)
def test_defaults_are_those_of_the_paper(section: type, loop: object, constants: dict, aggregation: str) -> None:
    check(section(), loop, constants, aggregation)


def test_every_section_of_the_configuration_is_checked() -> None:
    assert {row[0] for row in PAPERS} == set(sections.OBJECTIVES)


@pytest.mark.parametrize(("section", "loop", "constants"), OTHERS, ids=[repr(row[0])[:60] for row in OTHERS])
def test_every_key_of_a_section_reaches_the_loss(
    section: sections.BaseObjective, loop: object, constants: dict
) -> None:
    check(section, loop, constants, section.aggregation)


@pytest.mark.parametrize("aggregation", ["completion_mean", "token_mean", "fixed_length"])
def test_any_objective_takes_any_aggregation(aggregation: str) -> None:
    for section, loop, constants, _ in PAPERS:
        check(section(aggregation=aggregation), loop, constants, aggregation)
