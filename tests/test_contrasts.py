"""Losses are shares of the above-chance score, and intervals resample the same examples."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import build_provenance

from mi_massive.contrasts import ArmContrast, contrasts
from mi_massive.controls import Controls
from mi_massive.scores import Answer, EvaluationConfig, TaskResult


def result(task: str, kind: str, correct: Sequence[bool], *, chance: float = 0.0) -> TaskResult:
    """A task of which the answers are right or wrong as given."""
    answers = tuple(
        Answer(
            id=str(number),
            group="",
            condition="",
            text="x",
            extracted="x",
            correct=right,
            legacy_correct=None,
            log_probs=(),
            gold=None,
        )
        for number, right in enumerate(correct)
    )
    return TaskResult(
        task=task,
        kind=kind,
        version=1,
        digest="0" * 64,
        chance=chance,
        options_chance=math.nan,
        answers=answers,
        n_edits=0,
        config=EvaluationConfig(),
        provenance=build_provenance(),
    )


def answers(n_right: int, n: int = 40) -> list[bool]:
    return [number < n_right for number in range(n)]


INTACT = (
    result("read", "contextual", answers(40)),
    result("find", "contextual", answers(30)),
    result("recall", "parametric", answers(36), chance=0.5),
    result("guess", "parametric", answers(21), chance=0.5),  # not above chance
)


def arm(read: int, find: int, recall: int, guess: int = 20) -> tuple[TaskResult, ...]:
    return (
        result("read", "contextual", answers(read)),
        result("find", "contextual", answers(find)),
        result("recall", "parametric", answers(recall), chance=0.5),
        result("guess", "parametric", answers(guess), chance=0.5),
    )


def one(
    arms: dict[str, tuple[TaskResult, ...]], *, controls: Controls | None = None
) -> dict[str, ArmContrast]:
    found = contrasts(INTACT, arms, readout="generation", controls=controls or {})
    return {contrast.arm: contrast for contrast in found}


def test_losses_are_shares_of_what_was_above_chance() -> None:
    found = one({"arm": arm(10, 15, 28)})["arm"]
    # 30 of 40, 15 of 30; and 8 of the 16 that 36 of 40 are above 20 of 40
    assert found.contextual_loss.effect == pytest.approx((0.75 + 0.375) / (1 + 0.75))
    assert found.parametric_loss.effect == pytest.approx(0.5)
    assert found.contrast.effect == pytest.approx(1.125 / 1.75 - 0.5)
    assert found.contextual_tasks == ("read", "find")


def test_a_task_at_chance_has_nothing_to_lose_and_is_left_out() -> None:
    found = one({"arm": arm(10, 15, 28, guess=0)})["arm"]
    assert found.parametric_tasks == ("recall",)
    assert found.parametric_loss.effect == pytest.approx(0.5)


def test_an_interval_holds_the_effect_and_a_clear_contrast_is_significant() -> None:
    found = one({"arm": arm(0, 0, 36)})["arm"]
    assert found.contrast.effect == pytest.approx(1.0)
    assert found.contrast.low <= 1.0 <= found.contrast.high + 1e-9
    assert found.contrast.p_value < 0.01
    assert found.contrast.n == 120
    same = one({"arm": INTACT})["arm"]
    assert (same.contrast.effect, same.contrast.low, same.contrast.high) == (0.0, 0.0, 0.0)
    assert same.contrast.p_value == 1.0


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    lost = arm(10, 30, 36)
    found = one({"arm": lost})["arm"]
    rng = np.random.default_rng(5)
    before, after = (r[0].correct("generation").astype(float) for r in (INTACT, lost))
    other = INTACT[1].correct("generation").astype(float)  # loses nothing, has its own room
    draws = []
    for _ in range(4000):
        rows = rng.integers(40, size=40)
        room = before[rows].mean() + other[rng.integers(40, size=40)].mean()
        draws.append((before[rows].mean() - after[rows].mean()) / room)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.contextual_loss.low == pytest.approx(low, abs=0.02)
    assert found.contextual_loss.high == pytest.approx(high, abs=0.02)


def test_a_control_that_costs_the_same_leaves_nothing_beyond_it() -> None:
    costs = arm(10, 15, 28)
    found = one({"arm": costs, "control": costs}, controls={"arm": ("control",)})
    beyond = found["arm"].beyond_control
    assert (beyond.effect, beyond.low, beyond.high) == (0.0, 0.0, 0.0)
    assert math.isnan(found["control"].beyond_control.effect)
    harmless = one({"arm": costs, "control": INTACT}, controls={"arm": ("control",)})["arm"]
    assert harmless.beyond_control == harmless.contrast


def test_beyond_several_seeds_of_a_control_is_beyond_their_mean() -> None:
    drawn = {f"drawn k=4 seed={seed}": arm(n, n, 36) for seed, n in enumerate((10, 20, 30))}
    arms = {"arm": arm(10, 15, 28), **drawn}
    found = one(arms, controls={"arm": tuple(drawn)})["arm"]
    assert found.control == "drawn k=4 (3 seeds)"
    alone = [one(arms, controls={"arm": (name,)})["arm"].beyond_control for name in drawn]
    assert found.beyond_control.effect == pytest.approx(np.mean([each.effect for each in alone]))
    assert found.beyond_control.n == found.contrast.n
    # the arm costs what the first draw does: one draw decides nothing
    ends = [each.high - each.low for each in alone]
    assert 0 < found.beyond_control.high - found.beyond_control.low < max(ends)


def test_without_a_task_of_one_kind_the_contrast_is_unknown() -> None:
    (found,) = contrasts(
        INTACT[:2], {"arm": arm(10, 15, 28)[:2]}, readout="generation", controls={}
    )
    assert found.contextual_loss.effect == pytest.approx(1.125 / 1.75)
    assert math.isnan(found.parametric_loss.effect)
    assert math.isnan(found.contrast.effect)
    assert found.contrast.n == 0


def test_a_read_out_that_no_task_has_shows_nothing() -> None:
    (found,) = contrasts(INTACT, {"arm": INTACT}, readout="options", controls={})
    assert (found.contextual_tasks, found.parametric_tasks) == ((), ())
    assert math.isnan(found.contrast.effect)


def test_a_task_of_a_few_examples_is_left_out() -> None:
    intact = [result("read", "contextual", answers(n, n)) for n in (9, 10)]
    lost = [result("read", "contextual", answers(0, n)) for n in (9, 10)]
    few, enough = (
        contrasts([before], {"arm": [after]}, readout="generation", controls={})[0]
        for before, after in zip(intact, lost, strict=True)
    )
    assert few.contextual_tasks == ()
    assert math.isnan(few.contextual_loss.effect)
    assert enough.contextual_loss.effect == 1.0


def grouped(task: str, kind: str, correct: Sequence[bool], groups: Sequence[str]) -> TaskResult:
    plain = result(task, kind, correct)
    named = zip(plain.answers, groups, strict=True)
    return replace(plain, answers=tuple(replace(answer, group=g) for answer, g in named))


def test_tasks_on_the_same_facts_are_resampled_together() -> None:
    """Each fact is lost from context and from memory alike: whatever is drawn, nothing remains."""
    facts = [f"fact {number}" for number in range(40)]
    turned = facts[::-1]
    intact = (
        grouped("open", "contextual", answers(40), facts),
        grouped("closed", "parametric", answers(40), turned),
    )
    lost = (
        grouped("open", "contextual", answers(20), facts),
        grouped("closed", "parametric", answers(20)[::-1], turned),
    )
    (found,) = contrasts(intact, {"arm": lost}, readout="generation", controls={})
    assert found.contextual_loss.low < 0.5 < found.contextual_loss.high
    assert (found.contrast.effect, found.contrast.low, found.contrast.high) == (0, 0, 0)


def test_two_questions_on_one_fact_count_once() -> None:
    alone = result("a", "contextual", answers(40)), result("a", "contextual", answers(20))
    facts = [f"fact {number // 2}" for number in range(40)]
    both = [grouped("a", "contextual", answers(n), facts) for n in (40, 20)]
    widths = []
    for before, after in (alone, both):
        (found,) = contrasts([before], {"arm": [after]}, readout="generation", controls={})
        widths.append(found.contextual_loss.high - found.contextual_loss.low)
    assert widths[1] > 1.2 * widths[0]


def test_a_few_lucky_answers_are_no_ability() -> None:
    intact = result("hard", "contextual", answers(3))
    (found,) = contrasts(
        [intact],
        {"arm": [result("hard", "contextual", answers(0))]},
        readout="generation",
        controls={},
    )
    assert intact.score("generation").low > 0
    assert found.contextual_tasks == ()
