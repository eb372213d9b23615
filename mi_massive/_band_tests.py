"""The tests behind `bands`: shares of energy and of massive dimensions against permuted pairs."""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._pairs import PairConfig, layer_share, permuted_traces
from mi_massive.concentration import massive_mask
from mi_massive.norms import AttentionNorms
from mi_massive.rope import LayerGeometry, RotaryGeometry
from mi_massive.stats import Estimate, estimate, null_p_values

PERMUTED = "pairs permuted, alike in all layers"


def slow_half(n_pairs: int) -> Float[Tensor, "pair"]:
    """1 for the slower half of the pairs, 0.5 for a middle one, else 0."""
    ranks = torch.arange(n_pairs).double() - (n_pairs - 1) / 2
    return (ranks.sign() + 1) / 2


def low_half_share(shares: list[Float[Tensor, "prompt head _"]], config: PairConfig) -> Estimate:
    """Energy share in the slower half of the pairs: mean over heads, then over prompts.

    Args:
        shares: Energy share of each pair, one tensor a layer; NaN for a head without energy.
        config: Level, resamples and seed.

    Returns:
        Interval over prompts; p against pairs permuted, alike in all heads and layers.
    """
    weights = [slow_half(share.shape[-1]) for share in shares]
    heads = torch.cat([s @ w for s, w in zip(shares, weights, strict=True)], dim=-1)
    over_prompts = estimate(
        heads.nanmean(dim=-1).numpy(),
        n_of="prompts",
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
    if math.isnan(over_prompts.effect):
        return over_prompts
    tables = [
        torch.outer(share.nanmean(dim=0).nansum(dim=0), slow).numpy()
        for share, slow in zip(shares, weights, strict=True)
    ]
    draws, _ = permuted_traces(tables, config=config)
    observed = np.asarray(sum(float(table.trace()) for table in tables))
    return replace(
        over_prompts,
        test=f"{over_prompts.test}; {PERMUTED}",
        p_value=float(null_p_values(observed, draws)),
        null=0.5,
    )


def counted_share(
    counts: list[Float[Tensor, "_"]], weights: list[Float[Tensor, "_"]], config: PairConfig
) -> Estimate:
    """Weighted share of the massive dimensions, against pairs permuted alike in all layers.

    n counts layers. A few pairs that all layers prefer are a few chance events: one pair in the
    slower half gives p = 0.5 however many layers and heads hold it.

    Args:
        counts: Massive dimensions in each pair, one tensor a layer.
        weights: Weight of each pair in 0..1, one tensor a layer.
        config: Level, resamples and seed.
    """
    tables = [torch.outer(c, w).numpy() for c, w in zip(counts, weights, strict=True)]
    draws, null = permuted_traces(tables, config=config)
    return layer_share(
        np.array([table.trace() for table in tables]),
        torch.stack([count.sum() for count in counts]).numpy(),
        draws=draws,
        null=null,
        null_name=PERMUTED,
        config=config,
    )


def same_pair_share(
    q_pairs: Float[Tensor, "layer head"],
    k_pairs: Float[Tensor, "layer kv_head"],
    layers: list[LayerGeometry],
    config: PairConfig,
) -> Estimate:
    """Share of query heads whose top pair is that of their key-value head; n counts layers.

    Heads where either is undefined are left out. The key-value heads of each layer are permuted by
    themselves: unlike pairs, heads of the same number in two layers have nothing in common. NaN p
    where each layer has one key-value head: there is nothing to permute.

    Args:
        q_pairs: Pair of the largest dimension of each query head.
        k_pairs: The same of each key-value head.
        layers: Geometry of each layer.
        config: Level, resamples and seed.
    """
    tables: list[np.ndarray] = []
    wholes: list[float] = []
    n_kv_heads = k_pairs.shape[-1]
    for q_pair, k_pair, layer in zip(q_pairs, k_pairs, layers, strict=True):
        group = layer.kv_head_of_head
        defined = ~torch.isnan(q_pair + k_pair[group])
        same = (q_pair[:, None] == k_pair[None, :]) & defined[:, None]
        table = torch.zeros(n_kv_heads, n_kv_heads).double().index_add(0, group, same.double())
        tables.append(table.numpy())
        wholes.append(float(defined.sum()))
    draws, null = permuted_traces(tables, config=config, alike=False)
    movable = n_kv_heads > 1
    return layer_share(
        np.array([table.trace() for table in tables]),
        np.array(wholes),
        draws=draws if movable else np.full_like(draws, np.nan),
        null=null if movable else math.nan,
        null_name="key-value heads permuted within layers",
        config=config,
    )


def massive_counts(
    pooled: Float[Tensor, "layer head d_head"],
    rotaries: dict[int, RotaryGeometry],
    config: PairConfig,
) -> list[Float[Tensor, "head pair"]]:
    """Massive dimensions (0 to 2) in each pair, one tensor a rotating layer."""
    massive = massive_mask(pooled, ratio=config.ratio).double()
    return [massive[i][:, rotary.pair_dims].sum(dim=-1) for i, rotary in rotaries.items()]


def partial_cycle(
    norms: AttentionNorms,
    rotaries: dict[int, RotaryGeometry],
    training_context: int | None,
    config: PairConfig,
) -> Estimate:
    """Share of the massive dimensions of q and k whose pair makes no full turn in the context."""
    if training_context is None:
        nan = math.nan
        unknown = "not tested: the model states no training context"
        return Estimate(effect=nan, low=nan, high=nan, n=0, n_of="layers", test=unknown)
    return counted_share(
        _q_and_k_counts(norms, rotaries, config),
        [
            (rotary.inv_freq * training_context < 2 * math.pi).double()
            for rotary in rotaries.values()
        ],
        config,
    )


def unrotated_share(
    norms: AttentionNorms, rotaries: dict[int, RotaryGeometry], config: PairConfig
) -> Estimate:
    """Share of the massive dimensions of q and k that do not rotate, with no test."""
    rotating = torch.stack([count.sum() for count in _q_and_k_counts(norms, rotaries, config)])
    q, k = (massive_mask(pooled, ratio=config.ratio) for pooled in (norms.q, norms.k))
    wholes = torch.stack([q[index].sum() + k[index].sum() for index in rotaries]).double()
    return layer_share(
        (wholes - rotating).numpy(),
        wholes.numpy(),
        draws=np.full(1, np.nan),
        null=math.nan,
        null_name="no test",
        config=config,
    )


def _q_and_k_counts(
    norms: AttentionNorms, rotaries: dict[int, RotaryGeometry], config: PairConfig
) -> list[Float[Tensor, "pair"]]:
    q, k = (massive_counts(pooled, rotaries, config) for pooled in (norms.q, norms.k))
    return [q_count.sum(dim=0) + k_count.sum(dim=0) for q_count, k_count in zip(q, k, strict=True)]
