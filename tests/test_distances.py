"""Distances are counted in tokens, groups are by distance, changes are paired and corrected."""

from dataclasses import replace

import numpy as np
import pytest
from builders import build_provenance
from tiny_models import build_tokenizer

from mi_massive.distances import answer_distances, distance_cells
from mi_massive.proportions import mcnemar_p_value
from mi_massive.scores import Answer, EvaluationConfig, TaskResult
from mi_massive.stats import holm
from mi_massive.tasks.base import Example, Grade, Task


def example(prompt: str, answer: str, **facts: str) -> Example:
    return Example(id=prompt, prompt=prompt, question=prompt, answer=answer, facts=facts)


def task(*examples: Example) -> Task:
    return Task(
        name="hidden",
        kind="contextual",
        version=1,
        summary="Find it.",
        examples=examples,
        grade=lambda text, example: Grade(correct=False, extracted=None),
        chance=0.0,
        max_new_tokens=1,
    )


def result(correct: list[bool], logits: list[float]) -> TaskResult:
    answers = tuple(
        Answer(
            id=str(i),
            group="",
            condition="",
            text="",
            extracted=None,
            correct=right,
            legacy_correct=None,
            log_probs=(logit, 0.0),
            gold=0,
        )
        for i, (right, logit) in enumerate(zip(correct, logits, strict=True))
    )
    return TaskResult(
        task="hidden",
        kind="contextual",
        version=1,
        digest="0" * 64,
        chance=0.0,
        options_chance=0.5,
        answers=answers,
        n_edits=0,
        config=EvaluationConfig(readouts=("generation", "options")),
        provenance=build_provenance(),
    )


def test_distances_are_tokens_after_the_last_mention_of_the_answer() -> None:
    hidden = task(
        example("t1 t9 t2 t9 t3 t4", "t9", position="1"), example("t9 t1 t2", "t9", position="0")
    )
    assert answer_distances(build_tokenizer(), hidden) == (2, 2)


def test_a_task_that_does_not_say_where_it_hides_answers_has_none() -> None:
    assert answer_distances(build_tokenizer(), task(example("t9 t1", "t9"))) is None
    apart = task(example("t9 t1", "t9", position="0"), example("t8 t1", "t9", position="0"))
    assert answer_distances(build_tokenizer(), apart) is None


def test_groups_are_by_distance_and_changes_paired_with_the_intact_model() -> None:
    distances = (50, 1, 2, 40, 30, 3)
    before = result([True] * 6, [1.0] * 6)
    after = result([False, True, True, False, True, True], [-5.0, 1, 2, -4, 1, 3])
    cells = distance_cells(before, {"cut": after}, distances, n_groups=2)
    near, far = (c for c in cells if c.arm == "cut" and c.readout == "generation")
    assert (near.nearest, near.farthest) == (1, 3)
    assert (far.nearest, far.farthest) == (30, 50)
    assert near.score.effect == 1.0
    assert far.score.effect == pytest.approx(1 / 3)
    assert near.change.effect == 0.0
    assert far.change.effect == pytest.approx(-2 / 3)
    assert far.logit_diff.effect == pytest.approx((-5 - 4 + 1) / 3)
    assert far.logit_change.effect == pytest.approx((-5 - 4 + 1) / 3 - 1)
    assert near.logit_change.p_value == pytest.approx(0.5)  # 0, 1 and 2 up: 2 of 4 sign patterns
    assert [c.change.effect for c in cells if c.arm == "intact"] == [0.0] * 4


def test_p_values_are_mcnemars_corrected_over_arms_groups_and_readouts() -> None:
    n = 20
    before, after = result([True] * n, [1.0] * n), result([False] * n, [1.0] * n)
    cells = distance_cells(before, {"cut": after}, tuple(range(n)), n_groups=2)
    raw = mcnemar_p_value(np.ones(10, dtype=bool), np.zeros(10, dtype=bool))
    found = [c.change.p_value for c in cells if c.arm == "cut"]
    assert found == pytest.approx(holm(np.array([raw, raw, 1.0, 1.0])).tolist())
    assert found[0] == pytest.approx(4 * raw)
    assert all(np.isnan(c.change.p_value) for c in cells if c.arm == "intact")


def test_more_groups_than_examples_are_refused() -> None:
    before = result([True, True], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"n_distances must be between 1 and 2 \(examples\), got"):
        distance_cells(before, {}, (1, 2), n_groups=3)


def test_the_order_of_examples_changes_nothing() -> None:
    distances = [5, 1, 9, 3]
    correct = [True, False, True, False]
    logits = [1.0, 2.0, 3.0, 4.0]
    order = [2, 0, 3, 1]
    first = distance_cells(result(correct, logits), {}, tuple(distances), n_groups=2)
    second = distance_cells(
        result([correct[i] for i in order], [logits[i] for i in order]),
        {},
        tuple(distances[i] for i in order),
        n_groups=2,
    )
    assert [(c.score.effect, c.logit_diff.effect) for c in first] == [
        (c.score.effect, c.logit_diff.effect) for c in second
    ]
    assert replace(first[0], arm="x").nearest == 1
