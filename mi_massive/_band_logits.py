"""Parts of attention logits by rotary pair, and the variance of them that distance explains.

With part[i, d, p] the product of query i and key i - d in pair p, centred over d, two matrices hold
all that is needed of a head:

    whole[p, p'] = sum_i,d part[i, d, p] part[i, d, p']
    distance[p, p'] = n * sum_d mean_i(part[i, d, p]) mean_i(part[i, d, p'])

For any set z of pairs (0 or 1 each) the share is then (z distance z) / (z whole z), so that bands
and thousands of permuted ones cost one pass over the tokens.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive.pair_choices import bands_of_pairs
from mi_massive.rope import (
    LayerGeometry,
    ModelGeometry,
    RotaryGeometry,
    after_rotation,
    before_rotation,
)

Sets = Float[Tensor, "draw band pair"]
"""1 where a pair is of a band; draw 0 are the bands themselves, the others permuted."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadParts:
    """Shares of heads; NaN where a set of pairs adds nothing to any logit."""

    share: Float[Tensor, "*heads band"]
    permuted: Float[Tensor, "*heads draw band"]
    shuffled: Float[Tensor, "*heads band"]
    floor: Float[Tensor, "*heads band"]
    variance_share: Float[Tensor, "*heads band"]


def layer_parts(
    query: Float[Tensor, "head pos d_head"],
    key: Float[Tensor, "kv_head pos d_head"],
    layer: LayerGeometry,
    sets: Sets,
    *,
    window: int,
    places: Int[Tensor, "pos"],
) -> HeadParts:
    """Shares of one layer's heads on one passage.

    Args:
        query: Rotated queries at positions 0, 1, ...
        key: Rotated keys.
        layer: The layer, which rotates.
        sets: Pairs of each band, and of permuted ones.
        window: Largest distance.
        places: For the nulls: which token stands at each position.
    """
    rotary = layer.rotary
    assert rotary is not None  # layers without rotation are left out
    moved = [_moved(states, places, rotary) for states in (query, key)]
    found: list[HeadParts] = []
    for head in range(layer.n_heads):
        group = int(layer.kv_head_of_head[head])
        whole, distance = pair_products(query[head], key[group], rotary, window=window)
        shares = set_shares(whole, distance, sets)
        energy = _quadratic(whole, sets[0])
        found.append(
            HeadParts(
                share=shares[0],
                permuted=shares[1:],
                shuffled=set_shares(
                    *pair_products(moved[0][head], moved[1][group], rotary, window=window), sets[:1]
                )[0],
                floor=set_shares(
                    *pair_products(query[head][places], key[group][places], rotary, window=window),
                    sets[:1],
                )[0],
                variance_share=energy / energy.sum(),
            )
        )
    return HeadParts(
        *(torch.stack([getattr(part, name) for part in found]) for name in HeadParts.__slots__)
    )


def pair_products(
    query: Float[Tensor, "pos d_head"],
    key: Float[Tensor, "pos d_head"],
    rotary: RotaryGeometry,
    *,
    window: int,
) -> tuple[Float[Tensor, "pair pair"], Float[Tensor, "pair pair"]]:
    """The matrices `whole` and `distance` of one head, float64.

    Queries from position window + 1 on see keys at the distances 1 .. window, none the first token.
    """
    dims = rotary.pair_dims
    n = len(query) - window - 1
    queries = query[window + 1 :, dims]  # [query, pair, 2]
    keys = key[1:-1, dims].unfold(0, window, 1)  # [query, pair, 2, window], the farthest first
    parts = torch.einsum("ipc,ipcd->idp", queries, keys)
    parts = parts - parts.mean(dim=1, keepdim=True)
    flat, means = parts.flatten(0, 1), parts.mean(dim=0)
    return (flat.T @ flat).double(), n * (means.T @ means).double()


def set_shares(
    whole: Float[Tensor, "pair pair"],
    distance: Float[Tensor, "pair pair"],
    sets: Sets,
) -> Float[Tensor, "draw band"]:
    """Position share of each set of pairs; NaN where it adds nothing to any logit."""
    total = _quadratic(whole, sets)
    return torch.where(total > 0, _quadratic(distance, sets) / total, torch.nan)


def _quadratic(
    products: Float[Tensor, "pair pair"], sets: Float[Tensor, "*draw band pair"]
) -> Float[Tensor, "*draw band"]:
    return ((sets @ products) * sets).sum(dim=-1)


def _moved(
    states: Float[Tensor, "head pos d_head"], places: Int[Tensor, "pos"], rotary: RotaryGeometry
) -> Float[Tensor, "head pos d_head"]:
    """The same tokens in other places, rotated there."""
    positions = torch.arange(states.shape[1])
    return after_rotation(before_rotation(states, positions, rotary)[:, places], positions, rotary)


def band_sets(
    geometry: ModelGeometry, n_bands: int, *, n_permutations: int, seed: int
) -> dict[int, Sets]:
    """For each number of pairs: the pairs of each band, then of each band permuted."""
    rng = np.random.default_rng(seed)
    found: dict[int, Sets] = {}
    for layer in geometry.layers:
        if layer.rotary is None or layer.rotary.n_pairs in found:
            continue
        n = layer.rotary.n_pairs
        band = bands_of_pairs(n, n_bands)
        drawn = rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
        orders = torch.cat([torch.arange(n)[None], torch.from_numpy(drawn)])
        found[n] = (band[orders][:, None] == torch.arange(n_bands)[:, None]).double()
    return found


def band_wavelengths(geometry: ModelGeometry, n_bands: int) -> list[tuple[float, float]]:
    """Shortest and longest wavelength of each band in any layer, in tokens."""
    ends = [(math.inf, 0.0)] * n_bands
    for layer in geometry.layers:
        if layer.rotary is None:
            continue
        bands = bands_of_pairs(layer.rotary.n_pairs, n_bands)
        for band, (low, high) in enumerate(ends):
            own = layer.rotary.wavelengths[bands == band]
            ends[band] = (min(low, float(own.min())), max(high, float(own.max())))
    return ends
