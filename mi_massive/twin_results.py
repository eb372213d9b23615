"""What a set of twins gives: all runs side by side, and what they show.

Everything is a function of norms, losses and attention at the measured steps. Concentration is
read without a threshold: the largest norm of a head over its mean norm (max/mean), as a geometric
mean over heads and layers. Does not show: that what holds in a small model holds in a large one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mi_massive._columns import estimate_columns
from mi_massive._twin_corpora import ABILITIES, N_VALUES
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.records import Provenance
from mi_massive.small_samples import student_estimate
from mi_massive.stats import Estimate
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twin_runs import (
    TwinRun,
    TwinsConfig,
    at_loss,
    concentration_of,
    conditions_of,
    halfway,
    lowest_loss,
    partner_correlation,
    risen_curve,
    score_under,
    top_wavelengths,
)

CHANCE: Final = 1 / N_VALUES
"""Of a question of the mixture: one value of 16."""
_SHARE: Final = (0.0, 1.0)
_DIFFERENCE: Final = (-1.0, 1.0)
"""What shares, and correlations or differences of shares, can be."""
_LEAST_RISE: Final = math.log(1.25)
"""Of log max/mean, for it to have risen at all."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwinsResult:
    """Twins that differ in their position encoding alone, over the steps of their training."""

    runs: tuple[TwinRun, ...] = field(repr=False)
    """Arms in the order of the config, the seeds of each together."""
    steps: tuple[int, ...]
    config: TwinsConfig
    corpus_digest: str
    provenance: Provenance

    def of(self, arm: str) -> tuple[TwinRun, ...]:
        """The runs of an arm, by seed.

        Raises:
            ValueError: If there is no such arm.
        """
        if arm not in self.config.arms:
            raise ValueError(f"arm must be one of {', '.join(self.config.arms)}, got {arm!r}")
        return tuple(run for run in self.runs if run.arm == arm)

    @property
    def failures(self) -> dict[str, str]:
        """Why runs stopped early, by arm and seed."""
        return {f"{run.arm}, seed {run.seed}": run.failure for run in self.runs if run.failure}

    def to_frame(self) -> Any:
        """Curves as a data frame, one row a measured step of a twin."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for run in self.runs:
            curves = {p: concentration_of(run, p) for p in PROJECTIONS}
            for row, step in enumerate(self.steps):
                measured = {
                    "corpus": self.provenance.settings["corpus"],
                    "context": self.config.shape.context,
                    "arm": run.arm,
                    "seed": run.seed,
                    "step": step,
                    "loss": float(run.loss[row]),
                    "first_token": float(run.sink[row].mean()),
                }
                measured |= {f"max_over_mean_{p}": float(curve[row]) for p, curve in curves.items()}
                rows.append(measured)
        return pd.DataFrame(rows)

    def final_loss(self, arm: str) -> Estimate:
        """Held-out cross-entropy of the trained twin, in nats per token that is scored."""
        return self._over_seeds(arm, lambda run: float(run.loss[-1]))

    def sink(self, arm: str) -> Estimate:
        """Attention on the first token of the trained twin, mean over layers, heads and queries."""
        return self._over_seeds(arm, lambda run: float(run.sink[-1].mean()), limits=_SHARE)

    def contrast(
        self,
        projection: Projection,
        *,
        arm: str = "rope",
        against: str = "none",
        layer: int | None = None,
    ) -> Estimate:
        """Concentration of an arm over that of another at equal loss, as a ratio.

        For each seed both curves are read at the lowest loss that both reach, linearly between the
        measured steps on a log axis of max/mean.

        Args:
            projection: Whose norms.
            arm: The numerator.
            against: The denominator.
            layer: One layer; the geometric mean over layers without it.
        """
        ratios: list[float] = []
        for run, other in zip(self.of(arm), self.of(against), strict=True):
            level = max(lowest_loss(run), lowest_loss(other))
            logs = [
                at_loss(each, np.log(concentration_of(each, projection, layer)), level)
                for each in (run, other)
            ]
            ratios.append(logs[0] - logs[1])
        return student_estimate(np.array(ratios), n_of="seeds", geometric=True)

    def excess(
        self, projection: Projection, *, arm: str = "rope", layer: int | None = None
    ) -> Estimate:
        """Concentration of q or k over that of v in the same trained twin, as a ratio."""
        logs = [
            math.log(float(concentration_of(run, projection, layer)[-1]))
            - math.log(float(concentration_of(run, "v", layer)[-1]))
            for run in self.of(arm)
        ]
        return student_estimate(np.array(logs), n_of="seeds", geometric=True)

    def halfway(self, arm: str, what: Literal["q", "k", "sink"]) -> list[float]:
        """Step at which each seed's curve has made half of its way; NaN where it did not rise.

        Queries and keys are read over the values of the same twin (log ratio of max/mean), which
        must grow by a quarter: what all three do alike is not dated. The attention sink must at
        least double what random weights give the first token, about uniform attention.

        Args:
            arm: Name of the arm.
            what: `q` or `k` over `v`, or `sink`.
        """
        curves = [risen_curve(run, what) for run in self.of(arm)]
        rises = [float(curve[0]) if what == "sink" else _LEAST_RISE for curve in curves]
        return [
            halfway(self.steps, curve, least_rise=rise)
            for curve, rise in zip(curves, rises, strict=True)
        ]

    def order(self, arm: str = "rope", projection: Literal["q", "k"] = "k") -> Estimate:
        """How much later the sink is half there than the concentration, as a ratio of steps.

        Above 1: concentration comes first.
        """
        pairs = zip(self.halfway(arm, "sink"), self.halfway(arm, projection), strict=True)
        return student_estimate(
            np.array([math.log(sink / massive) for sink, massive in pairs]),
            n_of="seeds",
            geometric=True,
        )

    def slow_share(self, arm: str, projection: Projection) -> Estimate:
        """Share of heads whose largest dimension makes no full turn within the context.

        The null is the share of dimensions that make none; NaN for an arm without rotation.
        """
        context, runs = self.config.shape.context, self.of(arm)
        tops = [top_wavelengths(run, projection) for run in runs]
        shares = [float((waves > context).float().mean()) for waves in tops]
        slow = (runs[0].wavelengths > context).float().mean()
        null = float(slow) if TWIN_ARMS[arm].rotates else math.nan
        return student_estimate(np.array(shares), n_of="seeds", null=null, limits=_SHARE)

    def top_wavelength(
        self, arm: str, projection: Projection, *, partial: bool = False
    ) -> Estimate:
        """Wavelength of the heads' largest dimensions in tokens: their median, by seed.

        NaN for an arm without rotation; infinite where the largest dimensions stand still.

        Args:
            arm: Name of the arm.
            projection: Whose norms.
            partial: Only heads whose largest dimension makes no full turn within the context.
        """
        least = self.config.shape.context if partial else 0
        medians = [_median(top_wavelengths(run, projection), least) for run in self.of(arm)]
        return student_estimate(np.log(medians), n_of="seeds", geometric=True)

    def halves(self, arm: str, projection: Projection) -> Estimate:
        """Rank correlation of the norms with those of their rotary partners, mean over layers.

        Over the mean profile of a layer's heads, each head divided by its mean. Of an arm that does
        not rotate the two halves of the head are compared: the null.
        """
        values = [partner_correlation(run, projection) for run in self.of(arm)]
        return student_estimate(np.array(values), n_of="seeds", null=0.0, limits=_DIFFERENCE)

    def _over_seeds(
        self,
        arm: str,
        value: Callable[[TwinRun], float],
        limits: tuple[float, float] | None = None,
    ) -> Estimate:
        values = np.array([value(run) for run in self.of(arm)])
        return student_estimate(values, n_of="seeds", limits=limits)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Disruptions of trained twins, `intact` first; an arm may lack some of them."""
        return tuple(dict.fromkeys(name for run in self.runs for name in conditions_of(run)))

    def abilities_frame(self) -> Any:
        """Scores under disruptions as a data frame, one row an arm, condition and ability."""
        import pandas as pd

        rows = [
            {
                "arm": arm,
                "condition": condition,
                "ability": ability,
                **estimate_columns("right", self.ability(arm, condition, ability)),
                **estimate_columns("log_prob", self.ability(arm, condition, ability, 1)),
                **estimate_columns("lost", self.lost(arm, condition, ability)),
            }
            for arm in self.config.arms
            for condition in self.conditions
            for ability in ABILITIES
        ]
        return pd.DataFrame(rows)

    def ability(self, arm: str, condition: str, ability: str, measure: int = 0) -> Estimate:
        """A trained twin's score under a disruption; NaN for a corpus of text.

        Args:
            arm: Name of the arm.
            condition: One of `conditions`; of disruptions that draw their dimensions, the mean over
                the draws.
            ability: `recall` or `facts`.
            measure: 0 for the share of right answers, 1 for the mean log-probability in nats.
        """
        return self._over_seeds(
            arm,
            lambda run: score_under(run, condition, ability, measure),
            limits=_SHARE if measure == 0 else None,
        )

    def lost(self, arm: str, condition: str, ability: str, measure: int = 0) -> Estimate:
        """What a disruption takes from an ability: intact minus disrupted, twin by twin."""
        return student_estimate(
            np.array([_lost(run, condition, ability, measure) for run in self.of(arm)]),
            n_of="seeds",
            null=0.0,
            limits=_DIFFERENCE if measure == 0 else None,
        )

    def selectivity(
        self, arm: str, condition: str, *, against: str | None = None, measure: int = 0
    ) -> Estimate:
        """How much more recall loses than facts under a disruption, twin by twin.

            (recall lost - facts lost)(condition) - (recall lost - facts lost)(against)

        Args:
            arm: Name of the arm.
            condition: One of `conditions`.
            against: A control at the same number of dimensions; None subtracts nothing.
            measure: As for `ability`.
        """
        values = [
            _selectivity(run, condition, measure)
            - (0.0 if against is None else _selectivity(run, against, measure))
            for run in self.of(arm)
        ]
        return student_estimate(np.array(values), n_of="seeds", null=0.0)


def _median(wavelengths: Float[Tensor, "n_heads"], least: float) -> float:
    kept = wavelengths[wavelengths > least]
    return float(kept.median()) if len(kept) else math.nan


def _lost(run: TwinRun, condition: str, ability: str, measure: int) -> float:
    before, after = (score_under(run, name, ability, measure) for name in ("intact", condition))
    return before - after


def _selectivity(run: TwinRun, condition: str, measure: int) -> float:
    recall, facts = (_lost(run, condition, ability, measure) for ability in ABILITIES)
    return recall - facts
