"""Scores against distance: how far before its question a hidden answer stands.

Pure: reads answers that were collected. Examples are divided into groups of (nearly) equally many
by their distance in tokens, and each condition is compared with the intact model on the same
examples.

Does not show: distances that the task does not have. A pass key of 128 tokens is never farther.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mi_massive._checks import require_in_range
from mi_massive.proportions import mcnemar_p_value, proportion
from mi_massive.scores import INTACT, Readout, TaskResult
from mi_massive.stats import Estimate, estimate, holm
from mi_massive.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class DistanceCell:
    """One arm on the examples of a task whose answer stands about equally far away."""

    arm: str
    task: str
    readout: Readout
    nearest: int
    """Tokens from the end of the answer's last mention to the end of the prompt, smallest of the
    group."""
    farthest: int
    score: Estimate
    """Share of right answers, Wilson interval."""
    change: Estimate
    """Score minus that of the intact model; McNemar's exact p, Holm over arms and groups."""
    logit_diff: Estimate
    """Right option minus the best other one, in nats; undefined without options."""
    logit_change: Estimate
    """The same minus that of the intact model, paired; sign-flip test (two-sided), uncorrected."""


def answer_distances(tokenizer: Any, task: Task) -> tuple[int, ...] | None:
    """Tokens between the last mention of each answer and the end of its prompt.

    None for a task that does not say where it hides its answers (fact `position`).

    Args:
        tokenizer: The model's tokenizer.
        task: The task.
    """
    if not all("position" in e.facts and e.answer in e.prompt for e in task.examples):
        return None
    tails = [e.prompt[e.prompt.rindex(e.answer) + len(e.answer) :] for e in task.examples]
    return tuple(len(tokenizer(tail, add_special_tokens=False)["input_ids"]) for tail in tails)


def distance_cells(
    intact: TaskResult,
    by_arm: Mapping[str, TaskResult],
    distances: tuple[int, ...],
    *,
    n_groups: int,
    seed: int = 0,
) -> tuple[DistanceCell, ...]:
    """Scores of every arm in groups of examples by distance, the nearest first.

    Args:
        intact: The intact model's answers.
        by_arm: Those of each arm to the same examples.
        distances: Of each example, from `answer_distances`.
        n_groups: Groups of (nearly) equally many examples.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are more groups than examples.
    """
    require_in_range("n_distances", n_groups, low=1, high=len(distances), unit="examples")
    order = np.argsort(np.array(distances), kind="stable")
    groups = np.array_split(order, n_groups)
    first = np.array([answer.logit_diff for answer in intact.answers])
    cells: list[DistanceCell] = []
    p_values: list[float] = []
    for arm, result in {INTACT: intact, **by_arm}.items():
        for readout in result.config.readouts:
            before, after = intact.correct(readout), result.correct(readout)
            logits = np.array([answer.logit_diff for answer in result.answers])
            for group in groups:
                change = _change(before[group], after[group], seed)
                p_values.append(np.nan if arm == INTACT else change.p_value)
                own = [distances[int(i)] for i in group]
                cells.append(
                    DistanceCell(
                        arm=arm,
                        task=result.task,
                        readout=readout,
                        nearest=min(own),
                        farthest=max(own),
                        score=proportion(after[group], null=result.floor(readout)),
                        change=change,
                        logit_diff=estimate(logits[group], n_of="examples", seed=seed),
                        logit_change=estimate(
                            logits[group] - first[group],
                            n_of="examples",
                            null=0.0,
                            alternative="two-sided",
                            seed=seed,
                        ),
                    )
                )
    return tuple(_corrected(cells, holm(np.array(p_values))))


def _change(
    before: Bool[np.ndarray, "example"], after: Bool[np.ndarray, "example"], seed: int
) -> Estimate:
    changes = after.astype(float) - before.astype(float)
    return replace(
        estimate(changes, n_of="examples", seed=seed),
        test="paired bootstrap over examples; McNemar exact, Holm over arms and groups",
        p_value=mcnemar_p_value(before, after),
        null=0.0,
    )


def _corrected(
    cells: list[DistanceCell], p_values: Float[np.ndarray, "cell"]
) -> list[DistanceCell]:
    return [
        replace(cell, change=replace(cell.change, p_value=float(p)))
        for cell, p in zip(cells, p_values, strict=True)
    ]
