"""What arms cost, in all read-outs: by kind of task, and beside their controls."""

from collections.abc import Mapping, Sequence

from mi_massive.arms import Arm, matched_controls
from mi_massive.contrasts import ArmContrast, contrasts
from mi_massive.control_comparisons import ControlComparison, control_comparisons
from mi_massive.scores import Readout, TaskResult


def arm_costs(
    arms: Sequence[Arm],
    intact: Sequence[TaskResult],
    by_arm: Mapping[str, Sequence[TaskResult]],
    *,
    readouts: Sequence[Readout],
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[tuple[ArmContrast, ...], tuple[ControlComparison, ...]]:
    """Contrasts of every arm, and comparisons of every treatment.

    Args:
        arms: What was run.
        intact: Results of the intact model, one a task.
        by_arm: Results of each arm for the same tasks, in the same order.
        readouts: Which scores, in this order; those that no task has are left out.
        n_resamples: Bootstrap resamples of the contrasts.
        seed: Of the resamples.
    """
    had: list[Readout] = [
        r for r in readouts if any(r in result.config.readouts for result in intact)
    ]
    found = [
        contrasts(
            intact,
            by_arm,
            readout=readout,
            controls=matched_controls(arms),
            n_resamples=n_resamples,
            seed=seed,
        )
        for readout in had
    ]
    beside = [
        control_comparisons(arms, intact, by_arm, readout=readout, seed=seed) for readout in had
    ]
    return tuple(one for part in found for one in part), tuple(x for part in beside for x in part)
