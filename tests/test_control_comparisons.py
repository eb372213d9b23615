"""Treatments beside controls, task by task: pairing, seeds, direction and correction."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import build_provenance
from statsmodels.stats.contingency_tables import mcnemar

from mi_massive.answers import Answer
from mi_massive.arms import Arm
from mi_massive.control_comparisons import ControlComparison, control_comparisons
from mi_massive.scores import EvaluationConfig, TaskResult

N = 40
TREATMENT = Arm(preset="paper", k=4)
MATCHED = Arm(preset="norm_matched", k=4)
DRAWS = tuple(Arm(preset="random", k=4, seed=seed) for seed in range(3))
OTHER_K = Arm(preset="norm_matched", k=2)


def result(task: str, logits: Sequence[float]) -> TaskResult:
    """Two options; the first is right, by the given logit difference."""
    answers = tuple(
        Answer(
            id=str(number),
            group="",
            condition="",
            text=None,
            extracted=None,
            correct=None,
            legacy_correct=None,
            log_probs=(logit, 0.0),
            gold=0,
        )
        for number, logit in enumerate(logits)
    )
    return TaskResult(
        task=task,
        kind="contextual",
        version=1,
        digest="0" * 64,
        chance=0.0,
        options_chance=0.5,
        answers=answers,
        n_edits=0,
        config=EvaluationConfig(readouts=("options",)),
        provenance=build_provenance(),
    )


def logits(n_right: int) -> list[float]:
    return [1.0 + number / N if number < n_right else -1.0 for number in range(N)]


def compared(
    by_arm: dict[Arm, list[TaskResult]], intact: list[TaskResult]
) -> dict[tuple[str, str], ControlComparison]:
    results = {arm.name: found for arm, found in by_arm.items()}
    found = control_comparisons([*by_arm], intact, results, readout="options")
    return {(one.control, one.task): one for one in found}


def test_a_treatment_stands_beside_the_intact_model_and_controls_of_its_k() -> None:
    intact = [result("read", logits(40))]
    found = compared(
        {
            TREATMENT: [result("read", logits(10))],
            MATCHED: [result("read", logits(12))],
            OTHER_K: [result("read", logits(0))],
        },
        intact,
    )
    assert set(found) == {("intact", "read"), ("norm_matched k=4", "read")}
    assert found["intact", "read"].score.effect == pytest.approx(30 / 40)
    assert found["norm_matched k=4", "read"].score.effect == pytest.approx(2 / 40)
    assert found["intact", "read"].score.p_value < 0.01
    assert found["norm_matched k=4", "read"].score.p_value > 0.05  # nearly what the control costs
    gap = np.mean(np.array(logits(40)) - np.array(logits(10)))
    assert found["intact", "read"].logit_diff.effect == pytest.approx(gap)


def test_a_control_that_draws_is_the_mean_over_its_seeds() -> None:
    drawn = {arm: [result("read", logits(n))] for arm, n in zip(DRAWS, (10, 20, 30), strict=True)}
    found = compared(
        {TREATMENT: [result("read", logits(20))], **drawn}, [result("read", logits(40))]
    )
    one = found["random k=4", "read"]
    assert one.n_seeds == 3
    assert one.score.effect == pytest.approx(0)
    assert one.score.n == N


def test_the_test_of_one_pair_of_conditions_agrees_with_mcnemar() -> None:
    before, after = logits(24), [*logits(40)[:14], *[-1.0] * 22, *[1.0] * 4]
    one = compared({TREATMENT: [result("read", after)]}, [result("read", before)])["intact", "read"]
    first, second = np.array(before) > 0, np.array(after) > 0
    table = [
        [int((first & second).sum()), int((first & ~second).sum())],
        [int((~first & second).sum()), int((~first & ~second).sum())],
    ]
    assert one.score.p_value == pytest.approx(mcnemar(table, exact=True).pvalue, abs=0.03)


def test_p_is_corrected_over_the_tasks_and_controls_of_a_treatment() -> None:
    tasks = [f"task {number}" for number in range(5)]
    intact = [result(name, logits(24)) for name in tasks]
    alone = compared({TREATMENT: [result("task 0", logits(17))]}, intact[:1])
    together = compared({TREATMENT: [result(name, logits(17)) for name in tasks]}, intact)
    p = alone["intact", "task 0"].score.p_value
    assert together["intact", "task 0"].score.p_value == pytest.approx(min(1.0, 5 * p))


def test_generated_answers_have_no_logits() -> None:
    def generated(n_right: int) -> TaskResult:
        whole = result("read", logits(n_right))
        answers = tuple(
            replace(answer, text="x", correct=answer.log_probs[0] > 0) for answer in whole.answers
        )
        return replace(whole, answers=answers, config=EvaluationConfig(readouts=("generation",)))

    (one,) = control_comparisons(
        [TREATMENT], [generated(40)], {TREATMENT.name: [generated(4)]}, readout="generation"
    )
    assert one.score.effect == pytest.approx(36 / 40)
    assert math.isnan(one.logit_diff.effect)
    assert not control_comparisons(
        [TREATMENT], [generated(40)], {TREATMENT.name: [generated(4)]}, readout="options"
    )
