"""Phase between queries and keys in the rotary pair that both use most."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._pairs import PairConfig
from mi_massive.norms import AttentionNorms
from mi_massive.rope import ModelGeometry, RotaryGeometry
from mi_massive.stats import Estimate, bootstrap_interval, null_p_values

_BATCH_ELEMENTS = 2**22  # array elements that one batch of resamples may hold


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PhaseOffsets:
    """Offset and constancy of q and k in one pair of each query head; NaN where undefined."""

    offset: Float[Tensor, "layer head"]
    q_resultant: Float[Tensor, "layer head"]
    k_resultant: Float[Tensor, "layer head"]


def wrapped(angle: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The same angle in (-pi, pi]."""
    return torch.pi - torch.remainder(torch.pi - angle, 2 * torch.pi)


def phase_offsets(
    norms: AttentionNorms, geometry: ModelGeometry, rotaries: dict[int, RotaryGeometry]
) -> PhaseOffsets:
    """Offset phase(q) - phase(k) in the pair with the largest product of pooled energies.

    Each phase is a circular mean over the tokens after the first, with the rotation undone. NaN for
    a head without energy in q or k, or without a token after the first.
    """
    rows: list[Tensor] = []
    q_phases, k_phases = norms.phases("q"), norms.phases("k")
    q_lengths, k_lengths = norms.resultant_lengths("q"), norms.resultant_lengths("k")
    q, k = norms.q.double(), norms.k.double()
    for index, rotary in rotaries.items():
        group = geometry.layers[index].kv_head_of_head
        q_energy = q[index][:, rotary.pair_dims].square().sum(dim=-1)
        k_energy = k[index][:, rotary.pair_dims].square().sum(dim=-1)
        product, best = (q_energy * k_energy[group]).max(dim=-1)
        heads = torch.arange(len(best))
        q_length, k_length = q_lengths[index, heads, best], k_lengths[index, group, best]
        offset = wrapped((q_phases[index, heads, best] - k_phases[index, group, best]).double())
        values = torch.stack([offset.float(), q_length, k_length])
        defined = (product > 0) & (q_length > 0) & (k_length > 0)
        rows.append(torch.where(defined, values, torch.nan))
    offset, q_resultant, k_resultant = torch.stack(rows, dim=1)
    return PhaseOffsets(offset=offset, q_resultant=q_resultant, k_resultant=k_resultant)


def median_magnitude(
    offsets: Float[Tensor, "layer head"],
    kv_heads: Int[Tensor, "layer head"],
    *,
    config: PairConfig,
) -> Estimate:
    """Median over heads of |offset| in degrees, against keys turned by a random angle.

    Args:
        offsets: In rad; NaN entries are left out.
        kv_heads: Key-value head of each query head; the heads of one share its random angle.
        config: Level, resamples and seed.

    Returns:
        Interval over layers; two-sided p; null 90.
    """

    def median(degrees: Any) -> Any:
        return np.nanmedian(np.abs(degrees), axis=-1)

    return _against_turned_keys(offsets, kv_heads, median, null=90.0, config=config)


def lead_share(
    offsets: Float[Tensor, "layer head"],
    kv_heads: Int[Tensor, "layer head"],
    *,
    config: PairConfig,
) -> Estimate:
    """Share of heads in which q leads k (a positive offset), against keys turned at random.

    Arguments and interval as in `median_magnitude`; two-sided p; null 0.5.
    """

    def share(degrees: Any) -> Any:
        return np.nanmean(np.where(np.isnan(degrees), np.nan, degrees > 0), axis=-1)

    return _against_turned_keys(offsets, kv_heads, share, null=0.5, config=config)


def _against_turned_keys(
    offsets: Float[Tensor, "layer head"],
    kv_heads: Int[Tensor, "layer head"],
    statistic: Callable[[Any], Any],
    *,
    null: float,
    config: PairConfig,
) -> Estimate:
    """Estimate of `statistic`, which reduces the last axis of offsets in degrees (-180, 180]."""
    defined = ~torch.isnan(offsets).all(dim=-1)
    degrees = torch.rad2deg(offsets[defined].double()).numpy()
    n_layers = len(degrees)
    batch = max(1, _BATCH_ELEMENTS // max(1, degrees.size))

    def resampled(layers: Any, *, axis: int) -> Any:
        sample = degrees[layers.astype(np.int64)]
        return statistic(sample.reshape(*layers.shape[:axis], -1))

    interval = bootstrap_interval(
        np.arange(n_layers, dtype=np.float64),
        resampled,
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
        batch=batch,
    )
    test = f"bootstrap over layers ({interval.method}); keys turned at random (two-sided)"
    if n_layers == 0:
        nan = np.nan
        return Estimate(effect=nan, low=nan, high=nan, n=0, n_of="layers", test=test)
    effect = float(statistic(degrees.reshape(-1)))
    turned = _turned(degrees, kv_heads[defined].numpy(), batch=batch, config=config)
    draws = np.concatenate([statistic(part) for part in turned])
    return Estimate(
        effect=effect,
        low=float(interval.low),
        high=float(interval.high),
        level=config.level,
        n=n_layers,
        n_of="layers",
        test=test,
        p_value=float(null_p_values(np.asarray(effect), draws, alternative="two-sided")),
        null=null,
    )


def _turned(
    degrees: Float[np.ndarray, "layer head"],
    groups: Int[np.ndarray, "layer head"],
    *,
    batch: int,
    config: PairConfig,
) -> Iterator[Float[np.ndarray, "draw heads"]]:
    """Offsets of all heads with each key-value head turned by a random angle, batch by batch."""
    rng = np.random.default_rng(config.seed)
    layers = np.arange(len(degrees))[:, None]
    for begin in range(0, config.n_resamples, batch):
        n_draws = min(batch, config.n_resamples - begin)
        turns = rng.uniform(0, 360, size=(n_draws, len(degrees), int(groups.max()) + 1))
        turned = 180 - np.remainder(180 - degrees - turns[:, layers, groups], 360)
        yield turned.reshape(n_draws, -1)
