"""What a treatment costs one task more than each control does, on the same examples (C4).

A treatment that is worse than the intact model has shown little: so may every control be. Each
treatment stands here beside the intact model and beside every control at its k, task by task, by
right answers and by the graded logit difference. A control that draws its dimensions is the mean
over its seeds, example by example.

Does not show: which control is the fair one, see `mi_massive.presets`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mi_massive.arms import Arm, controls_at
from mi_massive.scores import INTACT, Readout, TaskResult
from mi_massive.stats import Estimate, estimate, holm


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlComparison:
    """One treatment and one control on one task: the control's minus the treatment's.

    Positive: the treatment costs more. Paired bootstrap over examples, two-sided sign-flip test,
    p Holm-corrected over all tasks and controls of the treatment in the read-out.
    """

    arm: str
    control: str
    """`intact`, or a condition over all its seeds."""
    n_seeds: int
    task: str
    readout: Readout
    score: Estimate
    """Difference of the shares of right answers."""
    logit_diff: Estimate
    """Difference of the logit differences (right option minus the best other) in nats; undefined
    when generating."""


def control_comparisons(
    arms: Sequence[Arm],
    intact: Sequence[TaskResult],
    results: Mapping[str, Sequence[TaskResult]],
    *,
    readout: Readout,
    seed: int = 0,
) -> tuple[ControlComparison, ...]:
    """Compare every treatment with the intact model and with every control at its k.

    Args:
        arms: What was run.
        intact: Results of the intact model, one a task.
        results: Results of each arm for the same tasks, by the arm's name.
        readout: Which scores; tasks without it are left out.
        seed: Of the bootstraps.

    Returns:
        By treatment, then control, then task.
    """
    found: list[ControlComparison] = []
    for arm in arms:
        if arm.role == "treatment":
            found += _corrected(list(_of(arm, arms, intact, results, readout, seed)))
    return tuple(found)


def _of(
    arm: Arm,
    arms: Sequence[Arm],
    intact: Sequence[TaskResult],
    results: Mapping[str, Sequence[TaskResult]],
    readout: Readout,
    seed: int,
) -> Iterator[ControlComparison]:
    controls: dict[str, list[Sequence[TaskResult]]] = {INTACT: [intact]}
    for other in controls_at(arms, arm):
        controls.setdefault(other.condition, []).append(results[other.name])
    for control, drawn in controls.items():
        for at, own in enumerate(results[arm.name]):
            if readout not in own.config.readouts:
                continue
            others = [task_results[at] for task_results in drawn]
            right = np.mean([_right(other, readout) for other in others], axis=0)
            logits = np.mean([_logits(other, readout) for other in others], axis=0)
            yield ControlComparison(
                arm=arm.name,
                control=control,
                n_seeds=len(drawn),
                task=own.task,
                readout=readout,
                score=_paired(right - _right(own, readout), seed),
                logit_diff=_paired(logits - _logits(own, readout), seed),
            )


def _right(result: TaskResult, readout: Readout) -> Float[np.ndarray, "example"]:
    return result.correct(readout).astype(float)


def _logits(result: TaskResult, readout: Readout) -> Float[np.ndarray, "example"]:
    values = np.array([answer.logit_diff for answer in result.answers])
    return values if readout == "options" else np.full_like(values, np.nan)


def _paired(differences: Float[np.ndarray, "example"], seed: int) -> Estimate:
    return estimate(differences, n_of="examples", null=0.0, alternative="two-sided", seed=seed)


def _corrected(found: list[ControlComparison]) -> Iterator[ControlComparison]:
    scores = holm(np.array([one.score.p_value for one in found], dtype=float))
    logits = holm(np.array([one.logit_diff.p_value for one in found], dtype=float))
    for one, score, logit in zip(found, scores, logits, strict=True):
        yield dataclasses.replace(
            one,
            score=dataclasses.replace(one.score, p_value=float(score)),
            logit_diff=dataclasses.replace(one.logit_diff, p_value=float(logit)),
        )
