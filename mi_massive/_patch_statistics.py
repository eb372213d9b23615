"""Intervals and tests of many cells over the same examples, by matrix products.

The same bootstrap samples and sign patterns serve every cell, so that a thousand cells cost little
more than one. Pure: arrays in, arrays out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mi_massive.stats import holm, resamples_for_tests

_CHUNK = 4096  # sign patterns at a time
_ENOUGH = 50  # exceedances after which a p is known well enough


@dataclass(frozen=True, slots=True, eq=False)
class Ratios:
    """Ratio of means of each cell, with its interval."""

    ratio: Float[np.ndarray, "cell"]
    low: Float[np.ndarray, "cell"]
    high: Float[np.ndarray, "cell"]


def ratios_of_means(
    effects: Float[np.ndarray, "cell example"],
    totals: Float[np.ndarray, "example"],
    *,
    level: float,
    n_resamples: int,
    seed: int,
) -> Ratios:
    """Mean effect over mean total of each cell, with a percentile bootstrap over examples.

        ratio[c] = sum over e of effects[c, e] / sum over e of totals[e]

    Examples are drawn as a whole: effects and totals of one stay together.

    Returns:
        NaN without an example; with one the ratio is known and its interval NaN.
    """
    n = len(totals)
    nothing = np.full(len(effects), np.nan)
    if n == 0:
        return Ratios(nothing, nothing.copy(), nothing.copy())
    ratio = effects.sum(axis=1) / totals.sum()
    if n < 2:
        return Ratios(ratio, nothing, nothing.copy())
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    drawn = draws @ effects.T / (draws @ totals)[:, None]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Ratios(ratio, low, high)


def corrected_p_values(
    effects: Float[np.ndarray, "cell example"], *, level: float, n_resamples: int, seed: int
) -> Float[np.ndarray, "cell"]:
    """Two-sided sign-flip p of each cell's mean effect, Holm-corrected over the cells.

    There are as many sign patterns as the correction needs (`resamples_for_tests`).
    """
    needed = resamples_for_tests(max(1, len(effects)), level=level, n_resamples=n_resamples)
    return holm(sign_flips(effects, n_resamples=needed, seed=seed))


def sign_flips(
    effects: Float[np.ndarray, "cell example"], *, n_resamples: int, seed: int
) -> Float[np.ndarray, "cell"]:
    """Two-sided p of each cell's mean effect under random signs.

    All `2 ** n` patterns where these are at most `n_resamples`, otherwise `(1 + exceedances) / (1 +
    patterns)`; a cell with 50 exceedances is drawn no further.

    Returns:
        NaN for fewer than two examples; 1 where all effects are zero.

    Source:
        Besag and Clifford 1991, doi:10.1093/biomet/78.2.301, for stopping early.
    """
    n_cells, n = effects.shape
    if n < 2:
        return np.full((n_cells,), np.nan)
    observed = np.abs(effects.sum(axis=1))
    observed -= 100 * np.finfo(np.float64).eps * np.abs(effects).sum(axis=1)
    exact = 2**n <= n_resamples
    total = 2**n if exact else n_resamples
    exceeding, drawn = np.zeros(n_cells), np.zeros(n_cells)
    rng = np.random.default_rng(seed)
    for start in range(0, total, _CHUNK):
        going = np.flatnonzero(exceeding < (np.inf if exact else _ENOUGH))
        if not going.size:
            break
        size = min(_CHUNK, total - start)
        signs = _patterns(start, size, n) if exact else rng.choice([-1.0, 1.0], size=(size, n))
        sums = np.abs(signs @ effects[going].T)
        exceeding[going] += (sums >= observed[going]).sum(axis=0)
        drawn[going] += size
    p_values: Any = exceeding / drawn if exact else (1 + exceeding) / (1 + drawn)
    return p_values


def _patterns(start: int, size: int, n: int) -> Any:
    """Signs of the patterns numbered from `start` on: bit i is the sign of example i."""
    bits: Any = np.arange(start, start + size)[:, None] >> np.arange(n)
    return 1.0 - 2.0 * (bits & 1)
