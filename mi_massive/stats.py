"""Estimates with interval, n and test: bootstrap, permutation nulls, correction for many tests.

Thin over scipy.stats: it fixes what that leaves open, namely seeds, axes and what an undefined case
gives. Every draw comes from a numpy Generator made from the `seed` argument. The units of analysis
always lie on the first axis. scipy is imported where it is called, because `import mi_massive` and
the help of the command line do not need it.

Does not show: that the units (prompts, heads, layers) are independent draws. Heads and layers of
one model are not; an interval over them describes their spread.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Num

from mi_massive._checks import require_in_range

Statistic = Literal["mean", "geometric mean", "median"]
Alternative = Literal["greater", "less", "two-sided"]

_BATCH_ELEMENTS = 2**22  # array elements that one batch of resamples may hold


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with what is needed to judge it. Undefined entries are NaN, never 0."""

    effect: float
    """The point estimate; its meaning and unit are the field's that holds it."""
    low: float
    high: float
    """Ends of the interval at `level`."""
    level: float = 0.95
    n: int
    n_of: str
    """What `n` counts: prompts, heads, layers."""
    test: str
    """Interval and test in words: 'bootstrap over prompts (BCa); sign-flip permutation'."""
    p_value: float = math.nan
    """After the correction that `test` names; NaN where nothing was tested."""
    null: float = math.nan
    """Expected effect under the null hypothesis; NaN where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Interval:
    """Ends of a bootstrap interval, elementwise."""

    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    method: str
    """`BCa`, `percentile`, `BCa, percentile where degenerate`, or `undefined` (under two units)."""


def estimate(
    values: Float[np.ndarray, "unit"],
    *,
    n_of: str,
    statistic: Statistic = "mean",
    null: float = math.nan,
    alternative: Alternative = "greater",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Average over units with its bootstrap interval and a sign-flip test against `null`.

    Units with NaN are left out and not counted. The geometric mean is computed and tested on
    logarithms.

    Args:
        values: One value a unit; paired data enter as their differences or ratios.
        n_of: What the units are, in the plural.
        statistic: Which average.
        null: Value expected if nothing is there; NaN leaves out the test.
        alternative: Direction of the test.
        level: Level of the interval.
        n_resamples: Resamples of the bootstrap and of the test.
        seed: Seeds both.

    Returns:
        The estimate. One unit: interval and p are NaN. No unit: the effect is NaN as well. All
        units equal: an interval of width zero (percentile).

    Raises:
        ValueError: If a geometric mean is asked of a value (or a null) that is not positive.
    """
    units = values[~np.isnan(values)].astype(np.float64)
    log = statistic == "geometric mean"
    if log and not (np.all(units > 0) and not null <= 0):
        raise ValueError(
            f"values must be positive for a geometric mean, got {units[units <= 0][:1]} and null "
            f"{null}; use the mean or the median"
        )
    average = np.median if statistic == "median" else np.mean
    scaled, scaled_null = (np.log(units), math.log(null)) if log else (units, null)
    effect = float(average(scaled)) if len(units) else math.nan
    interval = bootstrap_interval(scaled, average, level=level, n_resamples=n_resamples, seed=seed)
    test, p_value = f"bootstrap over {n_of} ({interval.method})", math.nan
    if not math.isnan(null):
        test += f"; sign-flip permutation ({alternative})"
        p_value = float(
            sign_flip_p_values(
                scaled - scaled_null,
                average,
                alternative=alternative,
                n_resamples=n_resamples,
                seed=seed,
            )
        )
    back = math.exp if log else float
    return Estimate(
        effect=back(effect),
        low=back(float(interval.low)),
        high=back(float(interval.high)),
        level=level,
        n=len(units),
        n_of=n_of,
        test=test,
        p_value=p_value,
        null=null,
    )


def bootstrap_interval(
    units: Num[np.ndarray, "unit *rest"],
    statistic: Callable[..., Any],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    batch: int | None = None,
) -> Interval:
    """Bootstrap interval of a statistic over units, for each element of the other axes.

    Bias-corrected and accelerated (BCa) where that is defined; percentile where it is not, which is
    where every resample, or every leave-one-out sample, gives the same value.

    Args:
        units: The units on the first axis. To resample something else, give unit indices.
        statistic: `statistic(sample, axis=...)`, reducing that axis of an array of any rank.
        level: Level of the interval.
        n_resamples: Bootstrap resamples.
        seed: Seeds the resampling.
        batch: Resamples handled at a time; by default as memory allows.

    Returns:
        Ends and method. NaN for fewer than two units.

    Source:
        Efron 1987, doi:10.1080/01621459.1987.10478410, through `scipy.stats.bootstrap`.
    """
    if len(units) < 2:
        undefined = np.full(units.shape[1:], np.nan)
        return Interval(low=undefined, high=undefined.copy(), method="undefined")
    import scipy.stats

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result: Any = scipy.stats.bootstrap(
            (units,),
            statistic,
            axis=0,
            vectorized=True,
            confidence_level=level,
            n_resamples=n_resamples,
            batch=batch or max(1, _BATCH_ELEMENTS // max(1, units.size)),
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low = np.asarray(result.confidence_interval.low)
    high = np.asarray(result.confidence_interval.high)
    degenerate = np.isnan(low) | np.isnan(high)
    ends = np.quantile(result.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    partly = "BCa, percentile where degenerate"
    return Interval(
        low=np.where(degenerate, ends[0], low),
        high=np.where(degenerate, ends[1], high),
        method="BCa" if not degenerate.any() else "percentile" if degenerate.all() else partly,
    )


def sign_flip_p_values(
    differences: Float[np.ndarray, "unit *rest"],
    statistic: Callable[..., Any] = np.mean,
    *,
    alternative: Alternative = "greater",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, "*rest"]:
    """Test by permuted signs whether a statistic of paired differences is zero.

    One p for each element of the other axes. Under the null hypothesis each difference is as likely
    with the opposite sign. Exact, over all `2 ** n` patterns of signs, where these are at most
    `n_resamples`; otherwise `(1 + exceedances) / (1 + n_resamples)`.

    Args:
        differences: Units on the first axis.
        statistic: `statistic(sample, axis=...)`, odd: it changes sign with its data.
        alternative: 'greater' tests for a positive statistic.
        n_resamples: Random sign patterns.
        seed: Seeds them.

    Returns:
        p-values, never 0: the smallest is `1 / (1 + n_resamples)` or `2 ** -n`. NaN for fewer than
        two units; 1 where all differences are zero.

    Source:
        `scipy.stats.permutation_test` of the paired samples `differences` and zeros.
    """
    if len(differences) < 2:
        return np.full(differences.shape[1:], np.nan)
    import scipy.stats

    def paired(first: Any, second: Any, *, axis: int) -> Any:
        return statistic(first - second, axis=axis)

    result: Any = scipy.stats.permutation_test(
        (differences, np.zeros_like(differences)),
        paired,
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, _BATCH_ELEMENTS // max(1, 2 * differences.size)),
        alternative=alternative,
        axis=0,
        rng=np.random.default_rng(seed),
    )
    undefined = np.isnan(differences).any(axis=0)
    return np.where(undefined, np.nan, np.asarray(result.pvalue, dtype=np.float64))


def null_p_values(
    observed: Float[np.ndarray, "*rest"] | float,
    draws: Float[np.ndarray, "draw *rest"],
    *,
    alternative: Alternative = "greater",
) -> Float[np.ndarray, "*rest"]:
    """Find the p of observed values among draws from their null distribution.

        p = (1 + exceedances) / (1 + draws)

    A draw that equals the observation up to rounding exceeds it. Two-sided is twice the smaller
    tail, at most 1.

    Args:
        observed: Statistics of the data.
        draws: The same statistics of data made under the null hypothesis.
        alternative: Which tail counts.

    Returns:
        p-values, never 0. NaN where the observation or any of its draws is NaN.

    Source:
        Phipson and Smyth 2010, arXiv:1603.05766: a permutation p is never zero.
    """
    slack = 100 * np.finfo(draws.dtype).eps * np.maximum(np.abs(observed), 1)
    n = len(draws)
    greater = (1 + (draws >= observed - slack).sum(axis=0)) / (1 + n)
    less = (1 + (draws <= observed + slack).sum(axis=0)) / (1 + n)
    both = np.minimum(1, 2 * np.minimum(greater, less))
    p_values = {"greater": greater, "less": less, "two-sided": both}[alternative]
    undefined = np.isnan(observed) | np.isnan(draws).any(axis=0)
    return np.where(undefined, np.nan, p_values)


def holm(p_values: Float[np.ndarray, "*tests"]) -> Float[np.ndarray, "*tests"]:
    """Correct p-values for the number of tests (Holm). NaN entries count as no test and stay NaN.

    Source:
        Holm 1979. Equals `statsmodels.stats.multitest.multipletests`, which collects all garbage of
        the process in every call: half a second beside a loaded model.
    """
    corrected = np.full(p_values.shape, np.nan)
    tested = ~np.isnan(p_values)
    own = p_values[tested]
    order = np.argsort(own)
    stepped = np.maximum.accumulate(own[order] * np.arange(own.size, 0, -1))
    own[order] = np.minimum(stepped, 1)
    corrected[tested] = own
    return corrected


def resamples_for_tests(n_tests: int, *, level: float = 0.95, n_resamples: int = 2000) -> int:
    """Resamples that let each of `n_tests` permutation tests stay significant after correction.

    A permutation p is at least `1 / (1 + n)`, so the smallest Holm-corrected one is `n_tests / (1 +
    n)`: with 2000 resamples and 126 layers no layer could pass at 0.05. This returns n_resamples,
    or more where needed to bring that floor to a tenth of `1 - level`.
    """
    require_in_range("n_tests", n_tests, low=1, high=10**6, unit="tests")
    return max(n_resamples, math.ceil(10 * n_tests / (1 - level)))
