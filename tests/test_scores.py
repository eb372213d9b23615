"""Scores of hand-made answers, and comparisons of two conditions, by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_results
import scipy.stats
from builders import build_provenance
from statsmodels.stats.proportion import proportion_confint

from mi_massive.records import load_result, save_result
from mi_massive.scores import Answer, EvaluationConfig, TaskResult, compare
from mi_massive.stats import estimate

BOTH = EvaluationConfig(readouts=("generation", "options"))


def answer(number: int = 0, **changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "group": "",
        "condition": "",
        "text": " t1",
        "extracted": "t1",
        "correct": True,
        "legacy_correct": None,
        "log_probs": (-1.0, -2.0),
        "gold": 0,
    }
    return Answer(**(fields | changes))


def result(answers: list[Answer], **changes: Any) -> TaskResult:
    fields: dict[str, Any] = {
        "task": "words",
        "kind": "contextual",
        "version": 1,
        "digest": "d" * 64,
        "chance": 0.25,
        "options_chance": 0.5,
        "answers": tuple(answers),
        "n_edits": 0,
        "config": BOTH,
        "provenance": build_provenance(),
    }
    return TaskResult(**(fields | changes))


def graded(*correct: bool, **changes: Any) -> TaskResult:
    """Right and wrong generated answers; every right one also chooses the right option."""
    answers = [
        answer(n, correct=right, extracted="t1", log_probs=(-1.0, -2.0) if right else (-2.0, -1.0))
        for n, right in enumerate(correct)
    ]
    return result(answers, **changes)


# One answer.


@pytest.mark.parametrize(
    ("log_probs", "gold", "chooses", "difference"),
    [
        ((-1.0, -2.5, -4.0), 0, True, 1.5),
        ((-1.0, -2.5, -4.0), 1, False, -1.5),
        ((-1.0, -2.5, -4.0), 2, False, -3.0),
        ((-4.0, -2.5, -1.0), 2, True, 1.5),
        ((-5.0, -2.5), 1, True, 2.5),
    ],
)
def test_the_chosen_option_and_its_lead_by_hand(
    log_probs: tuple[float, ...], gold: int, chooses: bool, difference: float
) -> None:
    got = answer(log_probs=log_probs, gold=gold)
    assert got.chooses_gold is chooses
    assert got.logit_diff == difference


@pytest.mark.parametrize("gold", [0, 1])
@pytest.mark.parametrize("value", [-1.0, math.nan, -math.inf])
def test_options_that_are_all_alike_are_no_choice_of_the_first(value: float, gold: int) -> None:
    assert answer(log_probs=(value, value), gold=gold).chooses_gold is False


@pytest.mark.parametrize("changes", [{"log_probs": ()}, {"gold": None}])
def test_an_answer_without_options_chooses_none(changes: dict[str, Any]) -> None:
    got = answer(**changes)
    assert got.chooses_gold is None
    assert math.isnan(got.logit_diff)


# One condition.


def test_each_read_out_has_its_own_score_floor_and_test() -> None:
    answers = [
        answer(0),
        answer(1, correct=False),
        answer(2, correct=False, extracted=None, gold=1),
        answer(3, correct=True, gold=1),
        answer(4, correct=False),
    ]
    got = result(answers)
    assert got.correct("generation").tolist() == [True, False, False, True, False]
    assert got.correct("options").tolist() == [True, True, False, False, True]
    assert (got.floor("generation"), got.floor("options")) == (0.25, 0.5)
    for readout, right, floor in (("generation", 2, 0.25), ("options", 3, 0.5)):
        score = got.score(readout)
        assert score.effect == right / 5
        expected = proportion_confint(right, 5, method="wilson")
        assert (score.low, score.high) == pytest.approx(expected)
        assert score.p_value == pytest.approx(scipy.stats.binomtest(right, 5, floor).pvalue)
        assert score.null == floor
        assert got.above_chance(readout) == pytest.approx((right / 5 - floor) / (1 - floor))


def test_a_read_out_that_was_not_run_is_refused() -> None:
    got = result([answer()], config=EvaluationConfig(readouts=("options",)))
    with pytest.raises(ValueError, match="readout must be one of options, got 'generation'"):
        got.score("generation")


def test_texts_without_an_answer_are_counted_among_generated_ones_alone() -> None:
    nothing = answer(0, text="hm", extracted=None, correct=False)
    unasked = answer(1, text=None, extracted=None, correct=None)
    assert result([nothing, answer(2), answer(3)]).failed_extraction == pytest.approx(1 / 3)
    assert result([nothing, answer(2), unasked]).failed_extraction == 0.5
    assert math.isnan(result([unasked]).failed_extraction)


def test_the_published_grading_counts_where_there_is_one() -> None:
    answers = [answer(0, legacy_correct=True), answer(1, legacy_correct=False), answer(2)]
    got = result(answers).legacy_score()
    assert (got.effect, got.n) == (0.5, 2)
    none = result([answer()]).legacy_score()
    assert math.isnan(none.effect)
    assert none.n == 0


def test_the_mean_lead_of_the_right_option_leaves_out_examples_without() -> None:
    answers = [
        answer(0, log_probs=(-1.0, -3.0)),
        answer(1, log_probs=(-3.0, -2.0)),
        answer(2, log_probs=(), gold=None),
        answer(3, log_probs=(-1.0, -9.0, -1.5), gold=2),
    ]
    got = result(answers).logit_diff()
    assert got.effect == pytest.approx((2.0 - 1.0 - 0.5) / 3)
    assert (got.n, got.n_of, got.null) == (3, "examples", 0.0)
    assert math.isnan(result([answer(log_probs=(), gold=None)]).logit_diff().effect)


def test_a_result_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    answers = [
        answer(0, text='t1 "\n€', group="g", condition="open_book", legacy_correct=False),
        answer(1, text=None, extracted=None, correct=None, log_probs=(-0.5, -math.inf), gold=1),
        answer(2, log_probs=(), gold=None),
    ]
    config = EvaluationConfig(readouts=("options", "generation"), chat=True, max_new_tokens=7)
    saved = result(answers, config=config, n_edits=12)
    assert load_result(save_result(saved, tmp_path / "result.json")) == saved
    undefined = result(answers, options_chance=math.nan)
    loaded = load_result(save_result(undefined, tmp_path / "undefined.json"))
    assert math.isnan(loaded.options_chance)
    assert replace(loaded, options_chance=0.5) == replace(undefined, options_chance=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"readouts": ()}, "readouts must name generation, options or both, got none"),
        ({"batch_size": 0}, "batch_size must be between 1 and"),
    ],
)
def test_an_evaluation_that_reads_nothing_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**arguments)


# Two conditions.


def test_two_conditions_are_compared_example_by_example() -> None:
    """Of 16 examples 10 stay right, 5 are lost, 1 is gained."""
    before = graded(*[True] * 15, False)
    after = graded(*[True] * 10, *[False] * 5, True)
    got = compare(before, after, readout="generation", n_tests=3, seed=4)
    assert (got.task, got.kind, got.readout) == ("words", "contextual", "generation")
    assert got.difference.effect == pytest.approx((11 - 15) / 16)
    assert got.corrected_difference == pytest.approx((11 - 15) / 16 / 0.75)
    fewer = sum(math.comb(6, k) for k in (0, 1)) / 2**6
    assert got.difference.p_value == pytest.approx(2 * fewer)
    assert got.difference.null == 0.0
    assert got.difference.test == "paired bootstrap over examples; McNemar exact"
    changes = after.correct("generation").astype(float) - before.correct("generation")
    interval = estimate(changes, n_of="examples", seed=4)
    assert (got.difference.low, got.difference.high) == (interval.low, interval.high)
    assert got.difference.n == 16
    assert got.smallest_difference == 7 / 16  # 3 * 2 / 2 ** 7 = 0.047, 3 * 2 / 2 ** 6 = 0.094


def test_pairing_makes_a_small_steady_loss_plainer_than_independent_samples_would() -> None:
    before, after = graded(*[True] * 40, *[False] * 60), graded(*[True] * 30, *[False] * 70)
    got = compare(before, after, readout="generation")
    assert got.difference.p_value == pytest.approx(2 / 2**10)
    assert got.difference.high < 0
    unpaired = scipy.stats.fisher_exact([[40, 60], [30, 70]]).pvalue
    assert unpaired > 0.1


def test_the_floor_of_the_read_out_corrects_its_difference() -> None:
    before, after = graded(True, True, True, False), graded(True, False, True, False)
    for readout, floor in (("generation", 0.25), ("options", 0.5)):
        got = compare(before, after, readout=readout)
        assert got.difference.effect == -0.25
        assert got.corrected_difference == pytest.approx(-0.25 / (1 - floor))


@pytest.mark.parametrize(
    ("right", "n", "chance", "above"),
    [
        (9, 10, 0.5, True),
        (9, 10, 0.55, True),  # the interval begins at 0.596
        (9, 10, 0.6, False),
        (6, 10, 0.5, False),
        (1, 10, 0.5, False),
        (1, 7, 0.0, True),
        (0, 7, 0.0, False),
    ],
)
def test_a_condition_is_above_chance_if_its_whole_interval_is(
    right: int, n: int, chance: float, above: bool
) -> None:
    before = graded(*[True] * right, *[False] * (n - right), chance=chance)
    after = graded(*[False] * n, chance=chance)
    assert compare(before, after, readout="generation").above_chance_before is above


def test_the_same_answers_differ_by_nothing() -> None:
    same = graded(True, False, True)
    got = compare(same, same, readout="options")
    assert (got.difference.effect, got.difference.low, got.difference.high) == (0.0, 0.0, 0.0)
    assert got.difference.p_value == 1.0
    assert got.smallest_difference == math.inf


@pytest.mark.parametrize("changes", [{"digest": "e" * 64}, {"task": "others"}])
def test_results_of_other_examples_are_not_compared(changes: dict[str, str]) -> None:
    before = graded(True)
    message = (
        f"both results must be of the same examples, got words dddddddd and "
        f"{changes.get('task', 'words')} {changes.get('digest', 'd' * 8)[:8]}; evaluate one task in"
    )
    with pytest.raises(ValueError, match=message):
        compare(before, replace(before, **changes), readout="generation")


def test_a_read_out_that_one_condition_lacks_is_refused() -> None:
    before, after = graded(True), graded(True, config=EvaluationConfig())
    with pytest.raises(ValueError, match="readout must be one of generation, got 'options'"):
        compare(before, after, readout="options")


def test_a_cell_has_its_score_above_chance_beside_the_raw_one() -> None:
    frame = sample_results.disruption_result().to_frame()
    shown = frame[(frame["readout"] == "options") & frame["score"].notna()]
    expected = (shown["score"] - shown["floor"]) / (1 - shown["floor"])
    assert len(shown)
    assert shown["above_chance"].tolist() == pytest.approx(expected.tolist())
