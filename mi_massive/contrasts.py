"""Whether an arm costs contextual tasks more than parametric ones, beyond a control (C4).

The loss of a task is the share of its above-chance score that is gone,

    loss = (before - after) / (before - floor)

so that tasks with different floors and formats can stand side by side. Tasks that were not above
chance before have nothing to lose and are left out, and so are tasks of fewer than ten examples.
The contrast is the mean loss of contextual tasks minus that of parametric ones. Intervals resample
the examples within each task, the same ones in every arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from mi_massive.controls import Controls, control_label
from mi_massive.scores import Readout, TaskResult
from mi_massive.stats import Estimate
from mi_massive.tasks.base import Kind

_TEST: Final = "percentile bootstrap over examples within tasks"
FEWEST: Final = 10
"""Examples that a task must have: resamples of fewer say too little about others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmContrast:
    """Losses of one arm by kind of task, and their difference. NaN where no task can show it."""

    arm: str
    readout: Readout
    contextual_tasks: tuple[str, ...]
    """Tasks that were above chance before."""
    parametric_tasks: tuple[str, ...]
    contextual_loss: Estimate
    """Share of the above-chance score lost, mean over tasks: 0 nothing, 1 all."""
    parametric_loss: Estimate
    contrast: Estimate
    """Contextual minus parametric loss."""
    control: str | None
    """What to compare with: an arm, or a condition with the number of its seeds."""
    beyond_control: Estimate
    """The contrast minus that of the control, mean over its seeds; NaN without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupContrast:
    """What a first group of arms loses beyond a second: means over members and then over parts.

    NaN where no task can show it.
    """

    level: str
    """What the two groups have in common, such as the bits of a weight."""
    readout: Readout
    first: tuple[tuple[str, ...], ...]
    """Arms by part, such as the seeds of a method."""
    second: tuple[tuple[str, ...], ...]
    contextual_tasks: tuple[str, ...]
    parametric_tasks: tuple[str, ...]
    contextual: Estimate
    """Loss of the first group minus that of the second, mean over tasks that were above chance."""
    parametric: Estimate
    contrast: Estimate
    """Contextual minus parametric."""


@dataclass(frozen=True, slots=True, eq=False)
class _Draws:
    """Observed value first, then its resamples."""

    values: Float[np.ndarray, "draw"]
    n: int

    def minus(self, other: "_Draws") -> "_Draws":
        """The difference, of as many examples as both have; of none where either has none."""
        n = self.n + other.n if self.n and other.n else 0
        return _Draws(self.values - other.values, n)

    def estimate(self) -> Estimate:
        drawn, n_draws = self.values[1:], len(self.values) - 1
        if self.n == 0:
            low = high = p_value = float("nan")
        else:
            low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975]))
            tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
            p_value = min(1.0, 2 * (1 + tail) / (1 + n_draws))
        return Estimate(
            effect=float(self.values[0]),
            low=low,
            high=high,
            n=self.n,
            n_of="examples",
            test=_TEST,
            p_value=p_value,
            null=0.0,
        )


def contrasts(
    intact: Sequence[TaskResult],
    arms: Mapping[str, Sequence[TaskResult]],
    *,
    readout: Readout,
    controls: Controls,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[ArmContrast, ...]:
    """Contrast of every arm.

    Args:
        intact: Results of the intact model, one a task.
        arms: Results of each arm for the same tasks, in the same order.
        readout: Which scores; tasks without it are left out.
        controls: The control of an arm, where it has one: every seed of it.
        n_resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    shown = [i for i, result in enumerate(intact) if _can_lose(result, readout)]
    losses = {
        name: {i: _loss(intact[i], results[i], readout, n_resamples, seed) for i in shown}
        for name, results in arms.items()
    }

    def mean(name: str, kind: Kind) -> _Draws:
        return _mean_over_tasks(intact, losses[name], kind, n_resamples)

    def contrast(name: str) -> _Draws:
        return mean(name, "contextual").minus(mean(name, "parametric"))

    def beyond(name: str) -> _Draws:
        own, others = contrast(name), controls.get(name)
        if not others:
            return _nothing(n_resamples)
        return _Draws(own.values - np.mean([contrast(c).values for c in others], axis=0), own.n)

    return tuple(
        ArmContrast(
            arm=name,
            readout=readout,
            contextual_tasks=_named(intact, shown, "contextual"),
            parametric_tasks=_named(intact, shown, "parametric"),
            contextual_loss=mean(name, "contextual").estimate(),
            parametric_loss=mean(name, "parametric").estimate(),
            contrast=contrast(name).estimate(),
            control=control_label(controls.get(name, ())),
            beyond_control=beyond(name).estimate(),
        )
        for name in arms
    )


def group_contrast(
    intact: Sequence[TaskResult],
    arms: Mapping[str, Sequence[TaskResult]],
    *,
    level: str,
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    readout: Readout,
    n_resamples: int = 2000,
    seed: int = 0,
) -> GroupContrast:
    """Set one group of arms against another, on the same examples.

    Args:
        intact: Results of the intact model, one a task.
        arms: Results of each arm for the same tasks, in the same order.
        level: What both groups have in common, for the result.
        first: Arms of one group, by part; a part counts once however many members it has.
        second: Arms of the other.
        readout: Which scores.
        n_resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    shown = [i for i, result in enumerate(intact) if _can_lose(result, readout)]

    def mean(group: Sequence[Sequence[str]], i: int) -> Float[np.ndarray, "draw"]:
        parts = [
            np.mean(
                [_loss(intact[i], arms[a][i], readout, n_resamples, seed) for a in part], axis=0
            )
            for part in group
        ]
        return np.mean(parts, axis=0)

    differences = {i: mean(first, i) - mean(second, i) for i in shown}
    context = _mean_over_tasks(intact, differences, "contextual", n_resamples)
    memory = _mean_over_tasks(intact, differences, "parametric", n_resamples)
    return GroupContrast(
        level=level,
        readout=readout,
        first=tuple(map(tuple, first)),
        second=tuple(map(tuple, second)),
        contextual_tasks=_named(intact, shown, "contextual"),
        parametric_tasks=_named(intact, shown, "parametric"),
        contextual=context.estimate(),
        parametric=memory.estimate(),
        contrast=context.minus(memory).estimate(),
    )


def _mean_over_tasks(
    intact: Sequence[TaskResult],
    values: Mapping[int, Float[np.ndarray, "draw"]],
    kind: Kind,
    n_resamples: int,
) -> _Draws:
    """Mean of the values of the tasks of one kind, by their place in `intact`."""
    own = [i for i in values if intact[i].kind == kind]
    if not own:
        return _nothing(n_resamples)
    n = sum(len(intact[i].answers) for i in own)
    return _Draws(np.mean([values[i] for i in own], axis=0), n)


def _nothing(n_resamples: int) -> _Draws:
    return _Draws(np.full(n_resamples + 1, np.nan), 0)


def _named(intact: Sequence[TaskResult], shown: Sequence[int], kind: Kind) -> tuple[str, ...]:
    return tuple(intact[i].task for i in shown if intact[i].kind == kind)


def _can_lose(result: TaskResult, readout: Readout) -> bool:
    """True for a task with this read-out, enough examples, and a score surely above chance."""
    if readout not in result.config.readouts or len(result.answers) < FEWEST:
        return False
    return result.score(readout).low > result.floor(readout)


def _loss(
    before: TaskResult, after: TaskResult, readout: Readout, n_resamples: int, seed: int
) -> Float[np.ndarray, "draw"]:
    """Observed loss of one task, then those of the resamples, the same examples for every arm."""
    first, second = (result.correct(readout).astype(float) for result in (before, after))
    n, floor = len(first), before.floor(readout)
    name = [ord(letter) for letter in before.task]
    drawn = np.random.default_rng([seed, *name]).integers(n, size=(n_resamples, n))
    rows = np.concatenate([np.arange(n)[None], drawn])
    top, bottom = first[rows].mean(axis=1) - second[rows].mean(axis=1), first[rows].mean(axis=1)
    # A resample at or below chance has nothing to lose: the least that n examples can tell apart.
    return top / np.maximum(bottom - floor, 1 / n)
