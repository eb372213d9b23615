"""Intervals for a handful of units, such as the seeds of a training, where a bootstrap fails."""

import math

import numpy as np
from jaxtyping import Float

from mi_massive.stats import Estimate


def student_estimate(
    values: Float[np.ndarray, "unit"],
    *,
    n_of: str,
    geometric: bool = False,
    null: float = math.nan,
    limits: tuple[float, float] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Mean over few units with Student's t interval and a two-sided t test against `null`.

    Units with NaN are left out and not counted. One unit has no interval, and no unit no mean:
    NaN. Assumes that units vary normally, which three of them cannot show.

    Args:
        values: One number a unit; logarithms if `geometric`, so that the effect is the exponential
            of their mean and the interval is that of a ratio.
        n_of: What a unit is.
        geometric: Whether `values` are logarithms of ratios.
        null: Expected mean (of `geometric`: ratio) without an effect; NaN tests nothing, except
            that a ratio is tested against 1.
        limits: Least and largest value that the mean can have, such as 0 and 1 of a share: the
            interval ends there, which costs it no coverage.
        level: Level of the interval.
    """
    from scipy import stats

    kept = values[~np.isnan(values)]
    n = len(kept)
    against = (0.0 if math.isnan(null) else math.log(null)) if geometric else null
    mean = float(kept.mean()) if n else math.nan
    low = high = p_value = math.nan
    if n > 1 and np.isfinite(kept).all():
        error = float(kept.std(ddof=1)) / math.sqrt(n)
        reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
        low, high = mean - reach, mean + reach
        if not math.isnan(against) and error > 0:
            p_value = float(2 * stats.t.sf(abs(mean - against) / error, n - 1))
    if limits is not None and not math.isnan(low):
        low, high = max(low, limits[0]), min(high, limits[1])
    if geometric:
        mean, low, high = (float(np.exp(x)) for x in (mean, low, high))
    return Estimate(
        effect=mean,
        low=low,
        high=high,
        level=level,
        n=n,
        n_of=n_of,
        test=f"Student's t over {n_of}" + (" on log ratios" if geometric else ""),
        p_value=p_value,
        null=1.0 if geometric and math.isnan(null) else null,
    )
