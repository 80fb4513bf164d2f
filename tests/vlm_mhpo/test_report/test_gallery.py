"""Which problems changed, and which of them a page shows."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vlm_mhpo.pages.gallery import OUTCOMES, Entry, Pair, choose_pair, compare, select
from vlm_mhpo.records import evaluation
from vlm_mhpo.records.nouns import Run, RunFacts
from vlm_mhpo.records.reading import tolerant
from vlm_mhpo.records.run_folder import load_run

EvalCompletion, EvalItem, Evaluation = (
    tolerant(kind) for kind in (evaluation.EvalCompletion, evaluation.EvalItem, evaluation.Evaluation)
)


def item(name: str, *correct: bool) -> EvalItem:
    return EvalItem(id=name, completions=[EvalCompletion(correct=value) for value in correct])


def run_of(*evaluations: Evaluation, folder) -> Run:
    return Run(folder, RunFacts(), {}, evaluations, (), ())


def test_outcomes_of_the_hand_made_run(run_dir):
    entries = compare(choose_pair(load_run(run_dir)))
    outcomes = {entry.item.id: entry.outcome for entry in entries}
    assert outcomes == {"a": "fixed", "b": "broken", "c": "wrong", "d": "right", "e": "fixed"}


def test_several_completions_are_right_when_more_than_half_are():
    assert item("x", True, True, False).right
    assert not item("x", True, False).right
    assert not item("x").right


def test_a_problem_that_only_the_later_evaluation_has_is_right_or_wrong(tmp_path):
    before = Evaluation(name="before", items=[item("x", False)])
    after = Evaluation(name="after", items=[item("y", True), item("z", False)])
    entries = compare(choose_pair(run_of(before, after, folder=tmp_path)))
    assert [(entry.outcome, entry.before) for entry in entries] == [("right", None), ("wrong", None)]


def test_without_the_usual_names_the_first_and_last_of_the_same_decoding_are_compared(tmp_path):
    evaluations = [
        Evaluation(name="sampled", step=0, num_samples=8, temperature=1.0),
        Evaluation(name="step_0", step=0, temperature=0.0),
        Evaluation(name="step_5", step=5, temperature=0.0),
        Evaluation(name="step_9", step=9, temperature=0.0),
    ]
    pair = choose_pair(run_of(*evaluations, folder=tmp_path))
    assert (pair.before.name, pair.after.name) == ("step_0", "step_9")


def test_one_evaluation_alone_has_no_before(tmp_path):
    only = Evaluation(name="before", step=0)
    pair = choose_pair(run_of(only, folder=tmp_path))
    assert (pair.before, pair.after) == (None, only)
    assert choose_pair(run_of(folder=tmp_path)) is None


def test_a_model_of_no_step_of_this_run_is_neither_before_nor_after(tmp_path):
    evaluations = [
        Evaluation(name="step_5", step=5),
        Evaluation(name="step_9", step=9),
        Evaluation(name="a_base_model", step=None),
    ]
    run = run_of(*evaluations, folder=tmp_path)
    pair = choose_pair(run)
    assert (pair.before.name, pair.after.name) == ("step_5", "step_9")
    assert choose_pair(run_of(evaluations[2], folder=tmp_path)) == Pair(None, evaluations[2])


def test_two_evaluations_of_one_step_are_no_before_and_after(tmp_path):
    twice = [Evaluation(name="evaluation", step=9), Evaluation(name="step_9", step=9)]
    assert choose_pair(run_of(*twice, folder=tmp_path)).before is None


@given(st.lists(st.sampled_from(list(OUTCOMES)), max_size=120), st.integers(min_value=5, max_value=60))
def test_a_selection_fills_its_places_in_order_and_hides_no_outcome(outcomes, limit):
    entries = [Entry(outcome, item(str(index)), None) for index, outcome in enumerate(outcomes)]
    chosen = select(entries, limit)
    order = list(OUTCOMES)
    assert len(chosen) == min(limit, len(entries))
    assert [order.index(e.outcome) for e in chosen] == sorted(order.index(e.outcome) for e in chosen)
    assert {e.outcome for e in chosen} == set(outcomes)
    assert len({e.item.id for e in chosen}) == len(chosen)


def test_problems_whose_pictures_were_not_kept_are_left_out():
    kept, lost = {"images": ["a.png"]}, {"images": []}
    shown = {"kept": kept, "lost": lost, "text": lost | {"num_images": 0}, "gone": lost | {"num_images": 2}}
    entries = [Entry("right", EvalItem(id=name, **fields), None) for name, fields in shown.items()]
    assert [e.item.id for e in select(entries, 60)] == ["kept", "text"]
    assert [e.item.id for e in select(entries[1:2], 60)] == ["lost"]  # no image anywhere: problems in words


def test_a_large_gallery_gives_the_changed_ones_what_the_others_leave():
    outcomes = ["right"] * 100 + ["fixed"] * 100 + ["broken"] * 3
    entries = [Entry(outcome, item(str(index)), None) for index, outcome in enumerate(outcomes)]
    assert Counter(e.outcome for e in select(entries, 60)) == {"fixed": 45, "broken": 3, "right": 12}
