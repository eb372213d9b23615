"""Twins with intervals over seeds: curves over steps and loss, massive dimensions, paired losses.

Two encodings that learn at different speeds are compared at equal loss: a curve over steps says
when something appears, one over the loss whether it comes with what the model has learned. Does
not show: what lies between measured steps; over the loss, curves are straight between them.
"""

import math
from typing import Final

import numpy as np
from jaxtyping import Float

from mi_massive._head_statistics import exceeds
from mi_massive.axes import Projection
from mi_massive.concentration import ConcentrationConfig
from mi_massive.small_samples import student_estimate
from mi_massive.stats import Estimate
from mi_massive.twin_results import TwinsResult
from mi_massive.twin_runs import Measure, TwinRun, at_loss, curve_of, lowest_loss, norms_of

_RATIO: Final = ConcentrationConfig().ratio
N_LEVELS: Final = 12
"""Losses at which a curve over the loss is read."""


def curve_over_steps(
    result: TwinsResult, arm: str, what: Measure, *, layer: int | None = None
) -> list[Estimate]:
    """A measure at every step of `result.steps`, over seeds.

    Args:
        result: From `train_twins`.
        arm: Name of an arm.
        what: `q`, `k` or `v`: max/mean, geometric mean over heads, layers and seeds; `sink`:
            attention on the first token, mean over heads, layers and seeds.
        layer: One layer; all of them without it.

    Raises:
        ValueError: If there is no such arm or layer.
    """
    curves = np.stack([curve_of(run, what, layer) for run in result.of(arm)], axis=1)
    return [_over_seeds(values, what) for values in curves]


def curve_over_losses(
    result: TwinsResult, arm: str, what: Measure, *, layer: int | None = None
) -> list[tuple[float, Estimate]]:
    """A measure at losses that every seed of an arm passed, over seeds; the highest loss first.

    Twelve losses, evenly spaced from the lowest that all had before training to the highest of
    those that each reached; none if no seed was trained to the end.

    Args:
        result: From `train_twins`.
        arm: Name of an arm.
        what: As for `curve_over_steps`.
        layer: One layer; all of them without it.

    Raises:
        ValueError: If there is no such arm or layer.
    """
    runs = [run for run in result.of(arm) if run.failure is None]
    curves = [curve_of(run, what, layer) for run in runs]
    if not runs:
        return []
    first = min(float(run.loss[0]) for run in runs)
    levels = np.linspace(first, max(map(lowest_loss, runs)), N_LEVELS)
    return [
        (
            float(level),
            _over_seeds(
                np.array([at_loss(r, c, float(level)) for r, c in zip(runs, curves, strict=True)]),
                what,
            ),
        )
        for level in levels
    ]


def massive_over_steps(
    result: TwinsResult, arm: str, projection: Projection, *, ratio: float = _RATIO
) -> list[Estimate]:
    """Massive dimensions a head at every step of `result.steps`, mean over heads, over seeds.

    Massive is a norm above `ratio` times the mean of its head.

    Raises:
        ValueError: If there is no such arm.

    Source:
        Jin et al. 2025, arXiv:2502.01563, with its lambda of 5.
    """
    counts = np.stack([_massive(run, projection, ratio) for run in result.of(arm)], axis=1)
    limits = (0.0, float(result.config.shape.d_head))
    return [student_estimate(values, n_of="seeds", limits=limits) for values in counts]


def loss_difference(result: TwinsResult, arm: str, *, against: str) -> Estimate:
    """Held-out loss of a trained twin minus that of another arm, seed by seed, in nats.

    Twins of a seed read the same windows, which seeds do not share: the difference is surer than
    the two losses.

    Raises:
        ValueError: If there is no such arm.
    """
    pairs = zip(result.of(arm), result.of(against), strict=True)
    differences = [float(run.loss[-1] - other.loss[-1]) for run, other in pairs]
    return student_estimate(np.array(differences), n_of="seeds", null=0.0)


def _massive(run: TwinRun, projection: Projection, ratio: float) -> Float[np.ndarray, "step"]:
    """NaN at steps that a diverged run did not reach."""
    norms = norms_of(run, projection)
    counts = exceeds(norms, ratio).sum(dim=-1).double()
    return counts.masked_fill(~norms.isfinite().all(dim=-1), math.nan).mean(dim=(1, 2)).numpy()


def _over_seeds(values: Float[np.ndarray, "seed"], what: Measure) -> Estimate:
    share = what == "sink"
    limits = (0.0, 1.0 if share else math.inf)  # a logarithm of max/mean is at least 0
    return student_estimate(values, n_of="seeds", geometric=not share, limits=limits)
