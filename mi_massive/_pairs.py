"""What bands and symmetry share: estimates over layers, and nulls that move a layer's rotary pairs.

Heads of one layer agree with each other, so a layer is the unit of the intervals: they resample
whole layers. Layers agree as well: they share the frequencies of RoPE and prefer the same pairs. So
a draw from a null moves the pairs of all heads of all layers alike. Moving each head or each layer
by itself would count what they share as evidence many times over.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mi_massive._checks import require_in_range, require_positive
from mi_massive.stats import Estimate, bootstrap_interval, null_p_values


@runtime_checkable
class PairConfig(Protocol):
    """What the configurations of bands and symmetry have in common."""

    @property
    def ratio(self) -> float:
        """Massive threshold in multiples of the head's mean norm."""
        ...

    @property
    def level(self) -> float:
        """Level of the intervals."""
        ...

    @property
    def n_resamples(self) -> int:
        """Bootstrap resamples and draws from each null."""
        ...

    @property
    def seed(self) -> int:
        """Seeds both."""
        ...


def require_valid(config: PairConfig) -> None:
    """Raise ValueError unless ratio, level and n_resamples are usable."""
    require_positive("ratio", config.ratio)
    if not 0 < config.level < 1:
        raise ValueError(f"level must be between 0 and 1, got {config.level}; 0.95 is usual")
    require_in_range("n_resamples", config.n_resamples, low=1, high=10**6, unit="resamples")


def layer_share(
    parts: Float[np.ndarray, "layer"],
    wholes: Float[np.ndarray, "layer"],
    *,
    draws: Float[np.ndarray, "draw"],
    null: float,
    null_name: str,
    config: PairConfig,
) -> Estimate:
    """Ratio of two sums over layers, with its interval over layers and a one-sided test.

        effect = sum(parts) / sum(wholes)

    Layers whose whole is zero are left out and not counted. Without any other the effect is NaN;
    with one the interval is NaN.

    Args:
        parts: Numerator of each layer.
        wholes: Denominator of each layer.
        draws: `sum(parts)` under the null hypothesis.
        null: `sum(parts)` expected under the null hypothesis.
        null_name: The null in words, for the field `test`.
        config: Level, resamples and seed of the interval.

    Returns:
        The estimate; p is the share of draws at least as large.
    """
    used = wholes > 0
    part, whole = parts[used], wholes[used]

    def ratio(layers: Any, *, axis: int) -> Any:
        layers = layers.astype(np.int64)
        return part[layers].sum(axis=axis) / whole[layers].sum(axis=axis)

    interval = bootstrap_interval(
        np.arange(len(part), dtype=np.float64),
        ratio,
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
    total = whole.sum() if used.any() else np.nan
    effect = part.sum() / total
    return Estimate(
        effect=float(effect),
        low=float(interval.low),
        high=float(interval.high),
        level=config.level,
        n=len(part),
        n_of="layers",
        test=f"bootstrap over layers ({interval.method}); {null_name}",
        p_value=float(null_p_values(np.asarray(effect), draws / total)),
        null=float(null / total),
    )


def permuted_traces(
    tables: Sequence[Float[np.ndarray, "_ _"]], *, config: PairConfig, alike: bool = True
) -> tuple[Float[np.ndarray, "draw"], float]:
    """Draws of `sum over layers of sum_p table[p, permuted(p)]`, and their expectation.

    The trace of a table is what is observed. A draw permutes the columns of all tables of one size
    alike: n layers that prefer the same pair are one chance event, not n. Tables of different sizes
    are permuted independently of each other.

    Args:
        tables: One a layer, square: what row p would add if it met column p'.
        config: Number of draws and their seed.
        alike: False permutes each table by itself, for tables of things that have nothing in
            common between layers, such as heads.

    Returns:
        The draws, and the exact mean over all permutations.
    """
    rng = np.random.default_rng(config.seed)
    draws, expected = np.zeros(config.n_resamples), 0.0
    for table in _summed_by_size(tables) if alike else tables:
        rows = np.arange(len(table))
        columns = rng.permuted(np.tile(rows, (config.n_resamples, 1)), axis=1)
        draws += table[rows, columns].sum(axis=1)
        expected += float(table.sum()) / len(table)
    return draws, expected


def shifted_sums(
    tables: Sequence[Float[np.ndarray, "_"]], *, config: PairConfig
) -> tuple[Float[np.ndarray, "draw"], float]:
    """Draws of `sum over layers of table[shift]` with random shifts, and their mean.

    A draw shifts all layers of equally many pairs alike, others independently. Shift 0 is what is
    observed. It is drawn as often as any other, so that p cannot fall below about 1 / n where all
    layers have n pairs: with n < 20 it never reaches 0.05.

    Args:
        tables: One a layer: the statistic at each circular shift, from 0.
        config: Number of draws and their seed.

    Returns:
        The draws, and the exact mean over all shifts.
    """
    rng = np.random.default_rng(config.seed)
    draws, expected = np.zeros(config.n_resamples), 0.0
    for table in _summed_by_size(tables):
        draws += table[rng.integers(len(table), size=config.n_resamples)]
        expected += float(table.mean())
    return draws, expected


def _summed_by_size(tables: Sequence[Any]) -> list[Any]:
    """Sum over the tables of each size: what moves alike can be added up before it moves."""
    sums: dict[int, Any] = {}
    for table in tables:
        sums[len(table)] = sums.get(len(table), 0) + table
    return list(sums.values())
