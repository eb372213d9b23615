"""Which rotary pairs of which heads: frequency bands, those with massive dimensions, and others.

Pure tensor arithmetic. A choice is made for each key-value head together with the query heads that
attend with it: a pair that turned in the queries and not in the keys would make their product
depend on absolute positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_massive._checks import require_in_range, require_positive
from mi_massive.axes import Projection
from mi_massive.concentration import massive_mask
from mi_massive.norms import AttentionNorms
from mi_massive.rope import LayerGeometry, ModelGeometry

Among = Literal["all", "massive", "not_massive", "random"]
"""Which pairs of the bands:

- `all`: every one.
- `massive`: those that hold a massive dimension of the key head or of one of its query heads.
- `not_massive`: the others.
- `random`: as many of the others as are massive, drawn in each head.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairChoice:
    """Rotary pairs, by frequency band and by whether they hold massive dimensions."""

    bands: tuple[int, ...] | None = None
    """Bands from fast (0) to slow; None for all of them."""
    n_bands: int = 8
    """Bands of (nearly) equally many pairs; read only where `bands` names some."""
    among: Among = "all"
    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm."""
    seed: int = 0
    """Of `random`."""

    def __post_init__(self) -> None:
        """Refuse bands that do not exist."""
        require_positive("ratio", self.ratio)
        require_in_range("n_bands", self.n_bands, low=1, high=1 << 16, unit="bands")
        if self.bands is not None:
            if not self.bands or len(set(self.bands)) < len(self.bands):
                raise ValueError(
                    f"bands must name at least one band, each once, got {self.bands}; None means "
                    "all"
                )
            for band in self.bands:
                require_in_range("bands", band, low=0, high=self.n_bands - 1, unit="bands")

    @property
    def needs_norms(self) -> bool:
        """True if it asks which dimensions are massive."""
        return self.among != "all"


def bands_of_pairs(n_pairs: int, n_bands: int) -> Int[Tensor, "pair"]:
    """Band of each pair, from fast (0) to slow; bands differ by at most one pair.

    Raises:
        ValueError: If there are more bands than pairs.
    """
    require_in_range("n_bands", n_bands, low=1, high=n_pairs, unit="rotary pairs of a head")
    return torch.arange(n_pairs) * n_bands // n_pairs


def chosen_pairs(
    geometry: ModelGeometry, choice: PairChoice, *, norms: AttentionNorms | None = None
) -> dict[int, Bool[Tensor, "kv_head _"]]:
    """Mark the pairs of each rotating layer that a choice takes.

    Args:
        geometry: The model's geometry.
        choice: Which pairs.
        norms: A capture of the model, which says what is massive.

    Returns:
        By block index, for each key-value head and pair. Layers without rotation are left out.

    Raises:
        ValueError: If no layer rotates, the norms are missing or of other layers, a head has fewer
            other pairs than massive ones, or nothing is chosen at all.
    """
    if not geometry.rotates:
        raise ValueError(
            f"geometry must have a layer that rotates its queries and keys, got none in "
            f"{len(geometry.layers)} layers; a model without rotary position embeddings has no "
            "rotary pairs"
        )
    if choice.needs_norms:
        if norms is None:
            raise ValueError(
                f"norms must be a capture of the model for pairs among {choice.among!r}, got none; "
                "use capture_norms"
            )
        if norms.geometry.blocks != geometry.blocks:
            raise ValueError(
                f"norms must cover the blocks {list(geometry.blocks)}, got those of "
                f"{norms.provenance.model}"
            )
    found: dict[int, Bool[Tensor, "kv_head _"]] = {}
    for index, layer in enumerate(geometry.layers):
        if layer.rotary is None:
            continue
        inside = _in_bands(choice, layer.rotary.n_pairs).expand(layer.n_key_value_heads, -1)
        if norms is None or not choice.needs_norms:
            found[layer.block] = inside
            continue
        massive = massive_pairs(norms, index, ratio=choice.ratio)
        found[layer.block] = _among(inside, massive, choice, layer.block)
    if not any(bool(pairs.any()) for pairs in found.values()):
        raise ValueError(
            f"a choice of pairs must take at least one pair of a head, got none for {choice}; "
            "choose other bands or a lower ratio"
        )
    return found


def holds_massive(geometry: ModelGeometry, choice: PairChoice, *, norms: AttentionNorms) -> bool:
    """True if a pair in the bands of a choice is massive in any head, whatever it takes of them."""
    return any(
        bool((massive_pairs(norms, index, ratio=choice.ratio) & _in_bands(choice, n)).any())
        for index, layer in enumerate(geometry.layers)
        if layer.rotary is not None
        for n in [layer.rotary.n_pairs]
    )


def massive_pairs(
    norms: AttentionNorms, index: int, *, ratio: float = 5.0
) -> Bool[Tensor, "kv_head _"]:
    """Pairs of one layer that hold a massive dimension of a key head or of its query heads.

    Args:
        norms: From `capture_norms`.
        index: Position on the layer axis of a layer that rotates.
        ratio: Massive threshold in multiples of the head's mean norm.
    """
    layer = norms.geometry.layers[index]
    assert layer.rotary is not None  # the caller leaves out layers without rotation
    of_queries = massive_mask(norms.q[index : index + 1], ratio=ratio)[0]
    of_keys = massive_mask(norms.k[index : index + 1], ratio=ratio)[0]
    by_group = of_queries.view(layer.n_key_value_heads, -1, layer.d_head)
    together = by_group.any(dim=1) | of_keys
    return together[:, layer.rotary.pair_dims].any(dim=-1)


def dimension_masks(
    geometry: ModelGeometry, pairs: Mapping[int, Bool[Tensor, "kv_head _"]]
) -> dict[Projection, Bool[Tensor, "layer head d_head"]]:
    """Both dimensions of each chosen pair, as the rule `mask` of an intervention takes them.

    Args:
        geometry: The model's geometry.
        pairs: From `chosen_pairs`.

    Returns:
        Masks of q (over query heads) and k (over key-value heads).
    """
    keys = [_dimensions(layer, pairs.get(layer.block)) for layer in geometry.layers]
    queries = [own[layer.kv_head_of_head] for own, layer in zip(keys, geometry.layers, strict=True)]
    return {"q": torch.stack(queries), "k": torch.stack(keys)}


def _dimensions(layer: LayerGeometry, pairs: Tensor | None) -> Bool[Tensor, "kv_head d_head"]:
    mask = torch.zeros(layer.n_key_value_heads, layer.d_head, dtype=torch.bool)
    if pairs is not None and layer.rotary is not None:
        mask[:, layer.rotary.pair_dims] = pairs[..., None].expand(*pairs.shape, 2)
    return mask


def _in_bands(choice: PairChoice, n_pairs: int) -> Bool[Tensor, "pair"]:
    if choice.bands is None:
        return torch.ones(n_pairs, dtype=torch.bool)
    return torch.isin(bands_of_pairs(n_pairs, choice.n_bands), torch.tensor(choice.bands))


def _among(
    inside: Bool[Tensor, "kv_head pair"],
    massive: Bool[Tensor, "kv_head pair"],
    choice: PairChoice,
    block: int,
) -> Bool[Tensor, "kv_head pair"]:
    if choice.among == "massive":
        return inside & massive
    others = inside & ~massive
    if choice.among == "not_massive":
        return others
    counts = (inside & massive).sum(dim=-1)
    if bool((others.sum(dim=-1) < counts).any()):
        head = int((others.sum(dim=-1) < counts).nonzero()[0])
        raise ValueError(
            f"the bands must hold as many other pairs as massive ones, got {int(counts[head])} "
            f"massive of {int(inside[head].sum())} in key-value head {head} of block {block}; "
            "choose more bands"
        )
    draws = torch.from_numpy(np.random.default_rng([choice.seed, block]).random(inside.shape))
    order = draws.masked_fill(~others, -1.0).argsort(dim=-1, descending=True)
    rank = order.argsort(dim=-1)
    return rank < counts[:, None]
