"""Do massive dimensions come in two symmetric clusters, one in each half of the head?

Answers whether a dimension and its rotary partner are large together, how many clusters of massive
dimensions a head has, whether they mirror each other, and by what phase q and k differ in the
massive pairs (C8, observational). Costs seconds on captured norms. Does not show a cause: rotation
mixes the two members of a pair over positions and so makes them alike where it turns fast, which is
why q and k are also read with the rotation undone.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive._checks import require_in_range
from mi_massive._clusters import Clusters, find_clusters, mirrored_by_shift
from mi_massive._pairs import require_valid
from mi_massive._partner_tests import (
    correlations,
    partner_table,
    shift_share,
    standard_ranks,
    table_share,
)
from mi_massive._phase_offsets import lead_share, median_magnitude, phase_offsets
from mi_massive.axes import Layout, Projection
from mi_massive.concentration import massive_mask
from mi_massive.norms import AttentionNorms, Stage
from mi_massive.records import Provenance
from mi_massive.rope import ModelGeometry, RotaryGeometry, require_rotating
from mi_massive.stats import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class SymmetryConfig:
    """How clusters are found and agreement is tested."""

    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm."""
    max_gap: int = 2
    """Massive dimensions at most this far apart belong to one cluster."""
    level: float = 0.95
    n_resamples: int = 2000
    """Bootstrap resamples and draws from each null."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_valid(self)
        require_in_range("max_gap", self.max_gap, low=1, high=10**6, unit="dimensions")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProjectionSymmetry:
    """Agreement of the two members of each rotary pair in one projection at one stage.

    Clusters are counted with the first members of all pairs before the second members: the head's
    own order for half_split, even before odd dimensions for interleaved.
    """

    partner_correlation: Float[Tensor, "layer head"] = field(repr=False)
    """Spearman correlation between the norms of first and second members over pairs; NaN where one
    of them is constant."""
    partner_agreement: Estimate
    """Mean partner correlation over heads, against partners permuted, alike in all layers."""
    smooth_null_agreement: Estimate
    """The same against partners shifted circularly, a null that keeps each half's smooth profile.
    All layers are shifted alike, so that p is never below about 1 / n_pairs, here and below."""
    layer_correlation: Float[Tensor, "layer"] = field(repr=False)
    """Spearman correlation between the two halves of the layer's profile: the norms in multiples of
    each head's mean, averaged over heads. What a head x d_head heat map shows to the eye."""
    layer_agreement: Estimate
    """Mean of it over layers, against partners shifted circularly (alike in all layers)."""
    massive_partner_share: Estimate
    """Share of massive dimensions (that rotate) whose partner is massive too, against partners
    permuted, alike in all layers; n counts layers with massive dimensions."""
    n_clusters: Int[Tensor, "layer head"] = field(repr=False)
    """Clusters of massive dimensions along the head dimension; 0 where nothing is massive."""
    mirrored: Float[Tensor, "layer head"] = field(repr=False)
    """1 where a head has exactly two clusters that overlap when one is moved onto the other by the
    partner map, 0 where not, NaN where nothing is massive."""
    separation: Float[Tensor, "layer head"] = field(repr=False)
    """Distance between the centres of the two clusters in dimensions; NaN unless there are exactly
    two. `n_pairs` for clusters that mirror each other exactly."""
    two_mirror_share: Estimate
    """Share of heads (among those with any massive dimension) with exactly two mirror clusters,
    against partners shifted circularly (alike in all layers): this null keeps the clusters of each
    half, so that only their correspondence is tested, where a random placement would also scatter
    the clusters."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class SymmetryResult(Brief):
    """Half symmetry of q, k and v (control) and the phase between q and k."""

    q: ProjectionSymmetry
    k: ProjectionSymmetry
    v: ProjectionSymmetry
    q_unrotated: ProjectionSymmetry
    k_unrotated: ProjectionSymmetry
    phase_offset: Float[Tensor, "layer head"] = field(repr=False)
    """phase(q) - phase(k) in the query head's most energetic pair (product of q and k energy),
    rotation undone, rad in (-pi, pi]. At distance D = position(q) - position(k) the pair adds
    |q| |k| cos(phase_offset + D * inv_freq) to the score: negative from the start if the magnitude
    exceeds pi / 2, and negative over longer distances if the offset is positive."""
    phase_offset_magnitude: Estimate
    """Median over heads of |phase_offset| in degrees; 90 expected for unrelated phases."""
    phase_lead_share: Estimate
    """Share of heads whose phase_offset is positive (q leads k); 0.5 expected for unrelated
    phases."""
    q_resultant: Float[Tensor, "layer head"] = field(repr=False)
    k_resultant: Float[Tensor, "layer head"] = field(repr=False)
    """Mean resultant length of that pair's phase over tokens, in 0..1: 1 is a constant offset."""
    layout: Layout
    layers: tuple[int, ...]
    """Block index of each rotating layer, the layer axis of every tensor here."""
    skipped_layers: tuple[int, ...]
    """Block indices of attention layers without rotation, left out."""
    config: SymmetryConfig
    provenance: Provenance

    def to_frame(self) -> Any:
        """One row a head and stage (pandas).

        Returns:
            Columns projection, stage, layer (block index), head (key-value head for k and v),
            partner_correlation, n_clusters, mirrored, separation.
        """
        import pandas as pd

        parts: tuple[tuple[Projection, Stage, ProjectionSymmetry], ...] = (
            ("q", "attention", self.q),
            ("k", "attention", self.k),
            ("v", "attention", self.v),
            ("q", "unrotated", self.q_unrotated),
            ("k", "unrotated", self.k_unrotated),
        )
        frames: list[Any] = []
        for projection, stage, part in parts:
            columns: dict[str, Any] = {"projection": projection, "stage": stage}
            columns |= self._axes(part.mirrored)
            for name in ("partner_correlation", "n_clusters", "mirrored", "separation"):
                columns[name] = getattr(part, name).flatten().numpy()
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def phase_frame(self) -> Any:
        """One row a query head (pandas): layer, head, phase_offset, q_resultant, k_resultant."""
        import pandas as pd

        columns = self._axes(self.phase_offset)
        for name in ("phase_offset", "q_resultant", "k_resultant"):
            columns[name] = getattr(self, name).flatten().numpy()
        return pd.DataFrame(columns)

    def _axes(self, values: Float[Tensor, "layer head"]) -> dict[str, Any]:
        n_layers, n_heads = values.shape
        return {
            "layer": np.repeat(self.layers, n_heads),
            "head": np.tile(np.arange(n_heads), n_layers),
        }


def symmetry(
    norms: AttentionNorms,
    *,
    geometry: ModelGeometry | None = None,
    config: SymmetryConfig | None = None,
) -> SymmetryResult:
    """Compare the first with the second members of the rotary pairs of q, k and v.

    The partner of a dimension is the other member of its rotary pair: `n_pairs` away in a
    half_split layout, its neighbour in an interleaved one. Layers without rotation are left out and
    named in `skipped_layers`.

    Args:
        norms: From `capture_norms`.
        geometry: Replaces `norms.geometry`. Layers and pairing must be those of the capture.
        config: Threshold, clusters and tests.

    Returns:
        Agreement of the members, clusters of massive dimensions, and the phase of q against k.

    Raises:
        ValueError: If no layer rotates, the geometry does not fit the norms, or its layers differ
            in their layout.

    Source:
        Jin et al. 2025, arXiv:2502.01563 (two symmetric clusters, read off heat maps); Jonasson
        2025, arXiv:2503.01832 (a minimum angle between q and k in offset features). Differs: both
        are tested against nulls here, head by head and for the layer as a whole.
    """
    config = config or SymmetryConfig()
    geometry = geometry or norms.geometry
    n_layers, _, d_head = norms.q.shape
    rotaries = require_rotating(geometry, n_layers=n_layers, d_head=d_head)
    layouts: set[Layout] = {rotary.layout for rotary in rotaries.values()}
    if len(layouts) > 1:
        raise ValueError("geometry must have one layout in all rotating layers, got both")
    q, k, v = (_agreement(norms, name, "attention", rotaries, config) for name in ("q", "k", "v"))
    unrotated = [_agreement(norms, name, "unrotated", rotaries, config) for name in ("q", "k")]
    phases = phase_offsets(norms, geometry, rotaries)
    kv_heads = torch.stack([geometry.layers[index].kv_head_of_head for index in rotaries])
    return SymmetryResult(
        q=q,
        k=k,
        v=v,
        q_unrotated=unrotated[0],
        k_unrotated=unrotated[1],
        phase_offset=phases.offset,
        phase_offset_magnitude=median_magnitude(phases.offset, kv_heads, config=config),
        phase_lead_share=lead_share(phases.offset, kv_heads, config=config),
        q_resultant=phases.q_resultant,
        k_resultant=phases.k_resultant,
        layout=layouts.pop(),
        layers=tuple(geometry.blocks[index] for index in rotaries),
        skipped_layers=tuple(geometry.blocks[i] for i in range(n_layers) if i not in rotaries),
        config=config,
        provenance=norms.provenance,
    )


def _agreement(
    norms: AttentionNorms,
    projection: Projection,
    stage: Stage,
    rotaries: dict[int, RotaryGeometry],
    config: SymmetryConfig,
) -> ProjectionSymmetry:
    pooled = norms.sums(projection, stage).pooled_norms().double()
    relative = pooled / pooled.mean(dim=-1, keepdim=True)
    massive = massive_mask(pooled, ratio=config.ratio)
    clusters, by_shift = _clusters(massive, rotaries, config)
    ranks: list[Tensor] = []
    profiles: list[Tensor] = []
    marks: list[Tensor] = []
    for index, rotary in rotaries.items():
        ranks.append(standard_ranks(pooled[index][:, rotary.pair_dims]))
        profile = relative[index].nanmean(dim=0, keepdim=True)
        profiles.append(standard_ranks(profile[:, rotary.pair_dims]))
        marks.append(massive[index][:, rotary.pair_dims].double())
    correlation = torch.stack([correlations(rank) for rank in ranks])
    layer_correlation = torch.cat([correlations(profile) for profile in profiles])
    tables = [partner_table(rank) for rank in ranks]
    n_heads = (~torch.isnan(correlation)).sum(dim=-1)
    return ProjectionSymmetry(
        partner_correlation=correlation.float(),
        partner_agreement=table_share(tables, n_heads, null="permuted", config=config),
        smooth_null_agreement=table_share(tables, n_heads, null="shifted", config=config),
        layer_correlation=layer_correlation.float(),
        layer_agreement=table_share(
            [partner_table(profile) for profile in profiles],
            ~torch.isnan(layer_correlation),
            null="shifted",
            config=config,
        ),
        massive_partner_share=table_share(
            [2 * partner_table(mark) for mark in marks],
            torch.stack([mark.sum() for mark in marks]),
            null="permuted",
            config=config,
        ),
        n_clusters=clusters.count,
        mirrored=clusters.mirrored,
        separation=clusters.separation,
        two_mirror_share=shift_share(
            by_shift, (~torch.isnan(clusters.mirrored)).sum(dim=-1), config=config
        ),
    )


def _clusters(
    massive: Bool[Tensor, "layer head d_head"],
    rotaries: dict[int, RotaryGeometry],
    config: SymmetryConfig,
) -> tuple[Clusters, list[Float[Tensor, "_"]]]:
    """Clusters of each layer, and its two-mirror heads at each circular shift."""
    found: list[Clusters] = []
    by_shift: list[Tensor] = []
    for index, rotary in rotaries.items():
        mask = massive[index][:, rotary.half_order]
        found.append(find_clusters(mask, n_pairs=rotary.n_pairs, max_gap=config.max_gap))
        by_shift.append(mirrored_by_shift(mask, n_pairs=rotary.n_pairs, max_gap=config.max_gap))
    merged = Clusters(
        count=torch.stack([layer.count for layer in found]),
        mirrored=torch.stack([layer.mirrored for layer in found]),
        separation=torch.stack([layer.separation for layer in found]),
    )
    return merged, by_shift
