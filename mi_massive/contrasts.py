"""Whether an arm costs contextual tasks more than parametric ones, beyond a control (C4).

The loss of the tasks of one kind is the share of all their above-chance score that is gone,

    loss = sum (before - after) / sum (before - floor)

so that tasks with different floors and formats can stand side by side, and a task with little to
lose weighs little. Tasks that were not surely above chance before, or by less than a tenth of the
scale, have nothing to lose and are left out, and so are tasks of fewer than ten examples. The
contrast is the loss of contextual tasks minus that of parametric ones. Intervals resample groups
of examples that belong together, such as the questions on one fact: the same ones in every arm and
in every task that asks about the same groups.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from mi_massive.controls import Controls, control_label
from mi_massive.scores import Readout, TaskResult
from mi_massive.stats import Estimate
from mi_massive.tasks.base import Kind

_TEST: Final = "percentile bootstrap over groups of examples"
FEWEST: Final = 10
"""Examples that a task must have: resamples of fewer say too little about others."""
LEAST_ROOM: Final = 0.1
"""Distance above chance that a task must have had: a lucky answer or two are no ability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmContrast:
    """Losses of one arm by kind of task, and their difference. NaN where no task can show it."""

    arm: str
    readout: Readout
    contextual_tasks: tuple[str, ...]
    """Tasks that were above chance before."""
    parametric_tasks: tuple[str, ...]
    contextual_loss: Estimate
    """Share of these tasks' above-chance score that is lost: 0 nothing, 1 all."""
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
    """Loss of the first group minus that of the second, over tasks that were above chance."""
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
    drawn = {i: _Resampled(intact[i], readout, n_resamples, seed) for i in shown}
    drops = {name: {i: drawn[i].drop(results[i]) for i in shown} for name, results in arms.items()}

    def mean(name: str, kind: Kind) -> _Draws:
        return _share(drawn, drops[name], kind, n_resamples)

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
    drawn = {i: _Resampled(intact[i], readout, n_resamples, seed) for i in shown}

    def mean(group: Sequence[Sequence[str]], i: int) -> Float[np.ndarray, "draw"]:
        parts = [np.mean([drawn[i].drop(arms[a][i]) for a in part], axis=0) for part in group]
        return np.mean(parts, axis=0)

    differences = {i: mean(first, i) - mean(second, i) for i in shown}
    context = _share(drawn, differences, "contextual", n_resamples)
    memory = _share(drawn, differences, "parametric", n_resamples)
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


class _Resampled:
    """Scores of one task over its groups of examples as they are, then over resamples of them."""

    def __init__(self, before: TaskResult, readout: Readout, n_resamples: int, seed: int) -> None:
        self.kind, self.n = before.kind, len(before.answers)
        self._readout: Readout = readout
        names = [answer.group or f"{before.task}/{answer.id}" for answer in before.answers]
        groups, self._group_of = np.unique(names, return_inverse=True)
        # The seed is the groups': tasks with the same groups draw the same ones.
        named = hashlib.sha256("\n".join(groups).encode()).digest()
        rng = np.random.default_rng([seed, *named])
        drawn = rng.integers(len(groups), size=(n_resamples, len(groups)))
        self._rows = np.concatenate([np.arange(len(groups))[None], drawn])
        self._sizes = np.bincount(self._group_of)[self._rows].sum(axis=1)
        self._before = self._scores(before)
        # A resample at or below chance has nothing to lose: the least that n can tell apart.
        self.room = np.maximum(self._before - before.floor(readout), 1 / self.n)

    def drop(self, after: TaskResult) -> Float[np.ndarray, "draw"]:
        """How much lower the score of another result of the task is, on the same examples."""
        return self._before - self._scores(after)

    def _scores(self, result: TaskResult) -> Float[np.ndarray, "draw"]:
        right = np.bincount(self._group_of, weights=result.correct(self._readout))
        return right[self._rows].sum(axis=1) / self._sizes


def _share(
    drawn: Mapping[int, _Resampled],
    drops: Mapping[int, Float[np.ndarray, "draw"]],
    kind: Kind,
    n_resamples: int,
) -> _Draws:
    """Share of the above-chance score that the tasks of one kind lose together."""
    own = [i for i in drops if drawn[i].kind == kind]
    if not own:
        return _nothing(n_resamples)
    lost = np.sum([drops[i] for i in own], axis=0)
    return _Draws(lost / np.sum([drawn[i].room for i in own], axis=0), sum(drawn[i].n for i in own))


def _nothing(n_resamples: int) -> _Draws:
    return _Draws(np.full(n_resamples + 1, np.nan), 0)


def _named(intact: Sequence[TaskResult], shown: Sequence[int], kind: Kind) -> tuple[str, ...]:
    return tuple(intact[i].task for i in shown if intact[i].kind == kind)


def _can_lose(result: TaskResult, readout: Readout) -> bool:
    """True for a task with this read-out, enough examples, and a score surely above chance."""
    if readout not in result.config.readouts or len(result.answers) < FEWEST:
        return False
    score, floor = result.score(readout), result.floor(readout)
    return score.low > floor and score.effect - floor >= LEAST_ROOM
