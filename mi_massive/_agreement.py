"""How close the largest dimensions of different heads lie to each other, corrected for chance (C2).

Heads agree on a neighbourhood more than on an index: on Llama-2-7b-chat the overlap of the heads'
top dimensions is small (0.06 of 1, chance 0.01), yet they lie 2 to 4 rotary pairs apart where
chance gives 21. And the two members of a rotary pair hold the same energy, split by phase. So the
statistic is a distance along the rotary pairs:

    agreement = 1 - (mean distance of the top dimensions of two heads) / (that distance by chance)

1: the same pair in every head; 0: chance; negative: further apart than by chance. It has no
threshold, so values and models without massive dimensions are measured by the same rule.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive import stats
from mi_massive._pairs import PairConfig
from mi_massive.rope import ModelGeometry
from mi_massive.stats import Estimate

_BATCH_ELEMENTS = 2**23  # array elements that one batch of resamples may hold


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Agreement:
    """Agreement between the heads of a layer and between consecutive layers."""

    heads: Estimate
    """Mean over layers; n counts prompts."""
    consecutive: Estimate
    """Between the heads of a layer and those of the next one, mean over layers; n counts
    prompts."""
    by_layer: Float[np.ndarray, "layer"]
    """NaN for a layer with fewer than two heads that are not zero."""
    p_values: Float[np.ndarray, "layer"]
    """Holm-corrected over layers."""


def dim_positions(geometry: ModelGeometry) -> Int[np.ndarray, "layer d_head"]:
    """Place of each head dimension on the axis along which distances are taken.

    In a layer that rotates, the rotary pair; dimensions without rotation follow after the slowest
    pair, in their order. In a layer that does not rotate, the dimension itself.
    """
    rows: list[Tensor] = []
    for layer in geometry.layers:
        if layer.rotary is None:
            rows.append(torch.arange(layer.d_head))
            continue
        pairs = layer.rotary.pair_of_dim
        rest = layer.rotary.n_pairs + torch.arange(layer.d_head - layer.rotary.rotary_dim)
        rows.append(pairs.masked_scatter(pairs < 0, rest))
    return torch.stack(rows).numpy()


def agreement(
    squares: Float[Tensor, "prompt layer head d_head"],
    positions: Int[np.ndarray, "layer d_head"],
    config: PairConfig,
) -> Agreement:
    """Agreement of the heads' largest dimensions, with interval over prompts and permutation null.

    The interval resamples prompts and pools their energy anew. The null permutes the dimensions of
    each head independently, which puts each head's largest dimension anywhere with equal chance.

    Args:
        squares: Energy of one projection per prompt.
        positions: From `dim_positions`.
        config: Level, resamples (more permutations where many layers need them) and seed.

    Returns:
        The agreements. A head whose norms are all zero has no largest dimension and takes no part.
    """
    pooled = squares.sum(dim=0)
    measure = _Measure(positions=positions, present=(pooled.amax(dim=-1) > 0).numpy())
    by_layer, by_step = measure(pooled.argmax(dim=-1).numpy())
    draws = stats.resamples_for_tests(
        len(by_layer), level=config.level, n_resamples=config.n_resamples
    )
    null_by_layer, null_by_step = measure.null(draws, seed=config.seed)

    def resampled(prompts: Any, *, axis: int) -> Any:
        del axis  # scipy puts the resampled units last
        agreed = measure(_pooled_tops(squares, prompts[0]))
        return np.stack([_mean_over_layers(values) for values in agreed])

    interval = stats.bootstrap_interval(
        np.stack([np.arange(len(squares))] * 2, axis=-1),  # one column for each of the two means
        resampled,
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
        batch=max(1, _BATCH_ELEMENTS // pooled.numel()),
    )

    def estimate(column: int, observed: Any, null: Any) -> Estimate:
        effect = float(_mean_over_layers(observed))
        return Estimate(
            effect=effect,
            low=float(interval.low[column]),
            high=float(interval.high[column]),
            level=config.level,
            n=len(squares),
            n_of="prompts",
            test=f"bootstrap over prompts ({interval.method}); dimensions of each head permuted",
            p_value=float(stats.null_p_values(effect, _mean_over_layers(null))),
            null=0.0,
        )

    return Agreement(
        heads=estimate(0, by_layer, null_by_layer),
        consecutive=estimate(1, by_step, null_by_step),
        by_layer=by_layer,
        p_values=stats.holm(stats.null_p_values(by_layer, null_by_layer)),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Measure:
    """Agreement as a function of the heads' largest dimensions `[*draw, layer, head]`."""

    positions: Int[np.ndarray, "layer d_head"]
    present: Bool[np.ndarray, "layer head"]

    def __call__(self, tops: Any) -> tuple[Any, Any]:
        """Agreement within each layer `[*draw, layer]` and with the next one `[*draw, step]`."""
        n = self.present.sum(axis=-1)
        below = self._cdf(tops)
        chance = self._chance()
        same_axis = (self.positions[:-1] == self.positions[1:]).all(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            # The cdf also pairs each head with itself, at distance 0.
            within = 1 - _distance(below, below) * n / (n - 1) / chance
            between = 1 - _distance(below[..., :-1, :], below[..., 1:, :]) / chance[:-1]
        return np.where(n > 1, within, np.nan), np.where(same_axis, between, np.nan)

    def null(self, n_draws: int, *, seed: int) -> tuple[Any, Any]:
        """Both for heads whose largest dimension is drawn uniformly, draws on the first axis."""
        rng = np.random.default_rng(seed)
        (n_layers, d_head), n_heads = self.positions.shape, self.present.shape[-1]
        parts = [
            self(rng.integers(d_head, size=(n, n_layers, n_heads)))
            for n in _batches(n_draws, max(1, _BATCH_ELEMENTS // self.positions.size))
        ]
        within, between = zip(*parts, strict=True)
        return np.concatenate(within), np.concatenate(between)

    def _cdf(self, tops: Any) -> Any:
        """Share of a layer's heads whose largest dimension lies at or before each position."""
        n_layers, d_head = self.positions.shape
        places = self.positions[np.arange(n_layers)[:, None], tops]
        n_rows = math.prod(tops.shape[:-1])
        rows = np.arange(n_rows)[:, None]
        counts = np.bincount(
            (rows * d_head + places.reshape(n_rows, -1)).ravel(),
            weights=np.broadcast_to(self.present, places.shape).ravel(),
            minlength=n_rows * d_head,
        ).reshape(*tops.shape[:-1], d_head)
        with np.errstate(invalid="ignore"):
            return counts.cumsum(axis=-1) / self.present.sum(axis=-1)[:, None]

    def _chance(self) -> Float[np.ndarray, "layer"]:
        """Mean distance of two dimensions drawn independently and uniformly."""
        axis = np.arange(int(self.positions.shape[1]))
        below = (self.positions[:, :, None] <= axis).mean(axis=1)
        return _distance(below, below)


def _distance(below: Any, other: Any) -> Any:
    """Mean |x - y| of x and y drawn independently from two distributions given as cdf."""
    both = np.einsum("...i,...i->...", below, other)
    return below.sum(axis=-1) + other.sum(axis=-1) - 2 * both


def _mean_over_layers(values: Any) -> Any:
    """Mean of the defined entries of the last axis; NaN where there is none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


def _pooled_tops(squares: Float[Tensor, "prompt layer head d_head"], prompts: Any) -> Any:
    """Largest dimension of each head when the energy of the given prompts is pooled."""
    n_prompts = len(squares)
    counts = (prompts[..., None] == np.arange(n_prompts)).sum(axis=-2)
    weights = torch.from_numpy(counts).to(squares.dtype)
    pooled = weights @ squares.reshape(n_prompts, -1)
    return pooled.reshape(*weights.shape[:-1], *squares.shape[1:]).argmax(dim=-1).numpy()


def _batches(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)
