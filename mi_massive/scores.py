"""Answers of a model to a task, their scores, and what changed between two conditions.

Scores stand beside chance and with an interval; two conditions are compared on the same examples,
never as two independent samples. Pure: reads what `mi_massive.evaluation` has collected.

Does not show: why a score changed, or that a task measures what its kind says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from mi_massive._checks import require_in_range
from mi_massive.answers import Answer
from mi_massive.proportions import (
    chance_corrected,
    mcnemar_p_value,
    proportion,
    smallest_difference,
)
from mi_massive.records import Provenance
from mi_massive.stats import Estimate, estimate, holm
from mi_massive.tasks.base import Kind
from mi_massive.text_measures import distinct_share, repetition_share

INTACT: Final = "intact"
"""Name of the condition without an edit."""

Readout = Literal["generation", "options"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How a task is asked."""

    readouts: tuple[Readout, ...] = ("generation",)
    chat: bool = False
    """Ask in the model's chat template."""
    batch_size: int = 8
    max_new_tokens: int | None = None
    """Tokens of an answer; None takes the task's own number."""

    def __post_init__(self) -> None:
        """Refuse an evaluation that reads nothing."""
        require_in_range("batch_size", self.batch_size, low=1, high=1 << 20, unit="prompts")
        if self.max_new_tokens is not None:
            require_in_range(
                "max_new_tokens", self.max_new_tokens, low=1, high=1 << 20, unit="tokens"
            )
        if not self.readouts:
            raise ValueError("readouts must name generation, options or both, got none")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """Every answer of a model to a task, in one condition."""

    task: str
    kind: Kind
    version: int
    digest: str
    """Of the task's examples."""
    chance: float
    """Score of a guesser who knows the format, when generating."""
    options_chance: float
    answers: tuple[Answer, ...] = field(repr=False)
    n_edits: int
    """Entries that the intervention edited; 0 without one."""
    config: EvaluationConfig
    provenance: Provenance

    def correct(self, readout: Readout) -> Bool[np.ndarray, "example"]:
        """Right or wrong, in the order of the answers.

        Raises:
            ValueError: If the read-out was not run.
        """
        if readout not in self.config.readouts:
            raise ValueError(
                f"readout must be one of {', '.join(self.config.readouts)}, got {readout!r}"
            )
        values = [a.correct if readout == "generation" else a.chooses_gold for a in self.answers]
        return np.array(values, dtype=bool)

    def floor(self, readout: Readout) -> float:
        """Score of a guesser in this read-out."""
        return self.chance if readout == "generation" else self.options_chance

    def score(self, readout: Readout) -> Estimate:
        """Share of right answers, Wilson interval, tested against chance."""
        return proportion(self.correct(readout), null=self.floor(readout))

    def above_chance(self, readout: Readout) -> float:
        """The score between chance (0) and perfect (1)."""
        return float(chance_corrected(np.array(self.score(readout).effect), self.floor(readout)))

    def legacy_score(self) -> Estimate:
        """Share of right answers under the published grading; undefined where a task has none."""
        values = [a.legacy_correct for a in self.answers if a.legacy_correct is not None]
        return proportion(np.array(values, dtype=bool))

    @property
    def failed_extraction(self) -> float:
        """Share of generated texts in which no answer was found; NaN if nothing was generated."""
        texts = [a for a in self.answers if a.text is not None]
        return sum(a.extracted is None for a in texts) / len(texts) if texts else math.nan

    def logit_diff(self) -> Estimate:
        """Mean log-probability of the right option minus the best other one, in nats."""
        values = np.array([answer.logit_diff for answer in self.answers])
        return estimate(values, n_of="examples", null=0.0, alternative="two-sided")

    def to_frame(self) -> Any:
        """Every answer as a data frame (pandas), one row an example."""
        import pandas as pd

        rows = [
            {
                "task": self.task,
                "kind": self.kind,
                **asdict(answer),
                "chooses_gold": answer.chooses_gold,
                "logit_diff": answer.logit_diff,
            }
            for answer in self.answers
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two conditions on the same examples of one task: the second minus the first."""

    task: str
    kind: Kind
    readout: Readout
    difference: Estimate
    """Of the scores; interval by paired bootstrap over examples, p by McNemar's exact test."""
    corrected_difference: float
    """The same in multiples of the distance from chance to a perfect score."""
    smallest_difference: float
    """Smallest difference that this many examples could have shown to be significant."""
    above_chance_before: bool
    """False if the first condition itself is not better than chance: nothing can be lost then."""


def compare(
    before: TaskResult, after: TaskResult, *, readout: Readout, n_tests: int = 1, seed: int = 0
) -> Comparison:
    """Compare two conditions on the same examples.

    Args:
        before: Usually the intact model.
        after: Usually under an intervention.
        readout: Which scores.
        n_tests: Comparisons that the reader will correct for; only sets `smallest_difference`.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the two did not answer the same examples.
    """
    if (before.task, before.digest) != (after.task, after.digest):
        raise ValueError(
            f"both results must be of the same examples, got {before.task} {before.digest[:8]} and "
            f"{after.task} {after.digest[:8]}; evaluate one task in both conditions"
        )
    first, second = before.correct(readout), after.correct(readout)
    changes: Float[np.ndarray, "example"] = second.astype(float) - first.astype(float)
    interval = estimate(changes, n_of="examples", seed=seed)
    floor = before.floor(readout)
    score = before.score(readout)
    return Comparison(
        task=before.task,
        kind=before.kind,
        readout=readout,
        difference=Estimate(
            effect=interval.effect,
            low=interval.low,
            high=interval.high,
            n=interval.n,
            n_of="examples",
            test="paired bootstrap over examples; McNemar exact",
            p_value=mcnemar_p_value(first, second),
            null=0.0,
        ),
        corrected_difference=interval.effect / (1 - floor),
        smallest_difference=smallest_difference(len(first), n_tests=n_tests),
        above_chance_before=score.low > floor,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Score of one arm on one task in one read-out."""

    arm: str
    task: str
    kind: Kind
    readout: Readout
    floor: float
    """Score of a guesser."""
    score: Estimate
    legacy_score: Estimate
    """Under the published grading of generated texts; undefined where there is none."""
    change: Estimate
    """Score minus that of the intact model, paired; p Holm-corrected over all cells."""
    lost_share: float
    """Share of the intact model's above-chance score that is gone; NaN if it was not above."""
    smallest_difference: float
    """Smallest change that could have been significant after correction (Bonferroni)."""
    logit_diff: Estimate
    """Right option minus the best other, in nats; undefined without options."""
    failed_extraction: float
    """Share of texts in which no answer was found."""
    distinct_2: Estimate
    """Different 2-grams over all 2-grams of a text, mean over texts."""
    distinct_loss: Estimate
    """How much less of that than in the intact model's answers to the same examples."""
    repetition: Estimate
    """Share of a text's 4-grams that occur more than once, mean over texts."""
    n_edits: int

    @property
    def above_chance(self) -> float:
        """The score between chance (0) and perfect (1); NaN without an answer."""
        return float(chance_corrected(np.array(self.score.effect), self.floor))


def cells_of(
    intact: Sequence[TaskResult], by_arm: Mapping[str, Sequence[TaskResult]], *, seed: int = 0
) -> tuple[Cell, ...]:
    """Cells of the intact model and of every arm, with the p of their changes corrected together.

    Args:
        intact: Results of the intact model, one a task.
        by_arm: Results of each arm for these tasks or some of them.
        seed: Of the bootstrap.
    """
    n_tests = max(1, sum(len(after.config.readouts) for arm in by_arm.values() for after in arm))
    before_of = {result.task: result for result in intact}
    cells = [
        _cell(arm, before_of[after.task], after, readout, n_tests=n_tests, seed=seed)
        for arm, results in {INTACT: intact, **by_arm}.items()
        for after in results
        for readout in after.config.readouts
    ]
    tested = np.array([np.nan if c.arm == INTACT else c.change.p_value for c in cells])
    return tuple(
        replace(cell, change=replace(cell.change, p_value=float(p)))
        for cell, p in zip(cells, holm(tested), strict=True)
    )


def _cell(
    arm: str, before: TaskResult, after: TaskResult, readout: Readout, *, n_tests: int, seed: int
) -> Cell:
    compared = compare(before, after, readout=readout, n_tests=n_tests, seed=seed)
    score, floor = after.score(readout), after.floor(readout)
    room = before.score(readout).effect - floor
    texts = [
        (b.text or "", a.text or "") for b, a in zip(before.answers, after.answers, strict=True)
    ]
    shown = texts if readout == "generation" else []
    once = np.array([distinct_share(text) for text, _ in shown], dtype=np.float64)
    varied = np.array([distinct_share(text) for _, text in shown], dtype=np.float64)
    repeated = np.array([repetition_share(text) for _, text in shown], dtype=np.float64)
    return Cell(
        arm=arm,
        task=after.task,
        kind=after.kind,
        readout=readout,
        floor=floor,
        score=score,
        legacy_score=after.legacy_score(),
        change=compared.difference,
        lost_share=0.0 - compared.difference.effect / room
        if compared.above_chance_before
        else np.nan,
        smallest_difference=compared.smallest_difference,
        logit_diff=after.logit_diff(),
        failed_extraction=after.failed_extraction,
        distinct_2=estimate(varied, n_of="texts"),
        distinct_loss=estimate(once - varied, n_of="texts", null=0.0, alternative="two-sided"),
        repetition=estimate(repeated, n_of="texts"),
        n_edits=after.n_edits,
    )
