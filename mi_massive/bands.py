"""Where on the frequency axis of RoPE the energy and the massive dimensions lie.

Answers which rotary pairs and which bands of wavelengths hold the norm of queries and keys (C8,
observational), before and after the rotation. v goes through the same code as the negative control:
it does not rotate. Costs seconds on captured norms. Does not show that RoPE causes the
concentration; that is a claim about training. The energy of a pair is the same before and after the
rotation, so energy shares cannot differ between the two stages; massive and top dimensions can.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mi_massive._band_tests import (
    counted_share,
    low_half_share,
    massive_counts,
    partial_cycle,
    same_pair_share,
    slow_half,
    unrotated_share,
)
from mi_massive._brief import Brief
from mi_massive._checks import require_in_range
from mi_massive._pairs import require_valid
from mi_massive.axes import Projection
from mi_massive.norms import AttentionNorms, Stage
from mi_massive.records import Provenance
from mi_massive.rope import ModelGeometry, RotaryGeometry, require_rotating
from mi_massive.stats import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class BandsConfig:
    """How pairs are grouped and tested."""

    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm."""
    n_bands: int = 8
    """Bands of (nearly) equally many pairs, from fast to slow."""
    level: float = 0.95
    n_resamples: int = 2000
    """Bootstrap resamples and permutations."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProjectionBands:
    """Frequency profile of one projection at one stage. Pairs ordered from fast to slow.

    NaN fills the pair axis of a layer with fewer pairs than another.
    """

    energy_share: Float[Tensor, "layer head pair"] = field(repr=False)
    """Share of the rotating dimensions' energy in each pair; sums to 1 over pairs. NaN for a head
    without energy there."""
    massive_share: Float[Tensor, "layer pair"] = field(repr=False)
    """Share of the layer's massive dimensions in each pair, of those that rotate; NaN where the
    layer has none."""
    band_energy: Float[Tensor, "layer band"] = field(repr=False)
    """Energy share of each band, mean over heads."""
    top_pair: Float[Tensor, "layer head"] = field(repr=False)
    """Pair of the head's largest dimension; NaN if that dimension does not rotate or is zero."""
    centre_of_mass: Float[Tensor, "layer head"] = field(repr=False)
    """Energy-weighted mean of log10(wavelength in tokens), over pairs of finite wavelength."""
    low_half_share: Estimate
    """Energy share in the slower half of the pairs, mean over heads, then over prompts; null 0.5
    (pairs permuted, alike in all heads and layers). A middle pair counts half."""
    massive_low_half_share: Estimate
    """Share of the massive dimensions that rotate that lie in the slower half of the pairs; null
    0.5 (pairs permuted, alike in all heads and layers). n counts layers with massive dimensions."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class BandsResult(Brief):
    """Frequency profiles of q, k (rotated and with the rotation undone) and of v as control."""

    q: ProjectionBands
    k: ProjectionBands
    v: ProjectionBands
    """v through the same grouping, head by key-value head: the negative control."""
    q_unrotated: ProjectionBands
    k_unrotated: ProjectionBands
    wavelengths: Float[Tensor, "layer pair"] = field(repr=False)
    """Tokens per turn in each rotating layer; NaN past the pairs of a layer that has fewer."""
    layers: tuple[int, ...]
    """Block index of each rotating layer, the layer axis of every tensor here."""
    skipped_layers: tuple[int, ...]
    """Block indices of attention layers without rotation, left out."""
    training_context: int | None
    partial_cycle: Estimate
    """Share of the massive dimensions of q and k whose pair makes no full turn within the training
    context (`inv_freq * training_context < 2 * pi`), against the share of all pairs that do not:
    Jonasson 2025, arXiv:2503.01832, expects large offsets in pairs with such a partial cycle. NaN
    without a training context."""
    massive_unrotated_share: Estimate
    """Share of the massive dimensions of q and k, in the layers here, that do not rotate: 0 but for
    partial rotary models. The shares of massive dimensions above do not see them. Not tested."""
    q_k_same_pair: Estimate
    """Share of query heads whose top pair equals that of their key-value head; null: key-value
    heads permuted within each layer by itself, which keeps what all heads of a layer have in
    common."""
    config: BandsConfig
    provenance: Provenance

    def to_frame(self) -> Any:
        """One row for each pair of each head: where its energy lies (pandas).

        Returns:
            Columns projection, stage, layer (block index), head (key-value head for k and v), pair,
            band, wavelength (tokens), energy_share, and massive_share (of the layer, not the head).
        """
        import pandas as pd

        parts: tuple[tuple[Projection, Stage, ProjectionBands], ...] = (
            ("q", "attention", self.q),
            ("k", "attention", self.k),
            ("v", "attention", self.v),
            ("q", "unrotated", self.q_unrotated),
            ("k", "unrotated", self.k_unrotated),
        )
        frames = [pd.DataFrame(self._columns(*part)) for part in parts]
        frame: Any = pd.concat(frames, ignore_index=True)
        return frame[frame["wavelength"].notna()].reset_index(drop=True)

    def _columns(
        self, projection: Projection, stage: Stage, part: ProjectionBands
    ) -> dict[str, Any]:
        shares = part.energy_share
        layer, head, pair = torch.ones_like(shares).nonzero(as_tuple=True)
        n_pairs = (~torch.isnan(self.wavelengths)).sum(dim=-1)
        return {
            "projection": projection,
            "stage": stage,
            "layer": torch.tensor(self.layers)[layer].numpy(),
            "head": head.numpy(),
            "pair": pair.numpy(),
            "band": (pair * self.config.n_bands // n_pairs[layer]).numpy(),
            "wavelength": self.wavelengths[layer, pair].numpy(),
            "energy_share": shares.flatten().numpy(),
            "massive_share": part.massive_share[layer, pair].numpy(),
        }


def bands(
    norms: AttentionNorms,
    *,
    geometry: ModelGeometry | None = None,
    config: BandsConfig | None = None,
) -> BandsResult:
    """Place the energy and the massive dimensions of q, k and v on the frequency axis of RoPE.

        energy[h, p] = M[h, first(p)] ** 2 + M[h, second(p)] ** 2
        energy_share[h, p] = energy[h, p] / sum over p of energy[h, p]

    Layers without rotation are left out and named in `skipped_layers`; dimensions that do not
    rotate (partial rotary) take no part in the shares but for `massive_unrotated_share`.

    Args:
        norms: From `capture_norms`.
        geometry: Replaces `norms.geometry`, for example to state a training context that the
            model's configuration leaves open. Layers and pairing must be those of the capture.
        config: Grouping and tests.

    Returns:
        Profiles of q, k and v, of q and k with the rotation undone, and two tests across them.

    Raises:
        ValueError: If no layer rotates, the geometry does not fit the norms, or `n_bands` exceeds
            the number of pairs.

    Source:
        Jin et al. 2025, arXiv:2502.01563, section on RoPE (our `norms` is their M), for the place
        of the massive values; Jonasson 2025, arXiv:2503.01832, for partial cycles; Oka et al.,
        ICLR 2026, for the band. Differs: everything is counted by pair, not by dimension.
    """
    config = config or BandsConfig()
    geometry = geometry or norms.geometry
    n_layers, _, d_head = norms.q.shape
    rotaries = require_rotating(geometry, n_layers=n_layers, d_head=d_head)
    fewest = min(rotary.n_pairs for rotary in rotaries.values())
    require_in_range("n_bands", config.n_bands, low=1, high=fewest, unit="rotary pairs of a head")
    q, k, v = (_profile(norms, name, "attention", rotaries, config) for name in ("q", "k", "v"))
    unrotated = [_profile(norms, name, "unrotated", rotaries, config) for name in ("q", "k")]
    blocks = geometry.blocks
    return BandsResult(
        q=q,
        k=k,
        v=v,
        q_unrotated=unrotated[0],
        k_unrotated=unrotated[1],
        wavelengths=_padded([rotary.wavelengths.float() for rotary in rotaries.values()]),
        layers=tuple(blocks[index] for index in rotaries),
        skipped_layers=tuple(blocks[i] for i in range(n_layers) if i not in rotaries),
        training_context=geometry.training_context,
        partial_cycle=partial_cycle(norms, rotaries, geometry.training_context, config),
        massive_unrotated_share=unrotated_share(norms, rotaries, config),
        q_k_same_pair=same_pair_share(
            q.top_pair, k.top_pair, [geometry.layers[i] for i in rotaries], config
        ),
        config=config,
        provenance=norms.provenance,
    )


def _profile(
    norms: AttentionNorms,
    projection: Projection,
    stage: Stage,
    rotaries: dict[int, RotaryGeometry],
    config: BandsConfig,
) -> ProjectionBands:
    sums = norms.sums(projection, stage)
    pooled = sums.pooled_norms()
    counts = massive_counts(pooled, rotaries, config)
    squares = sums.squares.double()
    energies = [
        squares[:, index][..., rotary.pair_dims].sum(dim=-1) for index, rotary in rotaries.items()
    ]
    shares = [_shares(energy.sum(dim=0)) for energy in energies]
    bands = [_band_shares(share, config.n_bands).nanmean(dim=0) for share in shares]
    return ProjectionBands(
        energy_share=_padded(shares).float(),
        massive_share=_padded([_shares(count.sum(dim=0)) for count in counts]).float(),
        band_energy=torch.stack(bands).float(),
        top_pair=_top_pairs(pooled, rotaries),
        centre_of_mass=torch.stack(
            [
                _centre(share, rotary)
                for share, rotary in zip(shares, rotaries.values(), strict=True)
            ]
        ),
        low_half_share=low_half_share([_shares(energy) for energy in energies], config),
        massive_low_half_share=counted_share(
            [count.sum(dim=0) for count in counts],
            [slow_half(rotary.n_pairs) for rotary in rotaries.values()],
            config,
        ),
    )


def _shares(values: Float[Tensor, "*rest pair"]) -> Float[Tensor, "*rest pair"]:
    return values / values.sum(dim=-1, keepdim=True)


def _band_shares(share: Float[Tensor, "head pair"], n_bands: int) -> Float[Tensor, "head band"]:
    n_pairs = share.shape[-1]
    band = torch.arange(n_pairs) * n_bands // n_pairs
    return torch.zeros(len(share), n_bands).double().index_add(1, band, share)


def _top_pairs(
    pooled: Float[Tensor, "_ head d_head"], rotaries: dict[int, RotaryGeometry]
) -> Float[Tensor, "layer head"]:
    largest, dimensions = pooled[list(rotaries)].max(dim=-1)
    of_dims = [rotary.pair_of_dim for rotary in rotaries.values()]
    pairs = torch.stack([of[dims] for of, dims in zip(of_dims, dimensions, strict=True)])
    return torch.where((pairs >= 0) & (largest > 0), pairs.float(), math.nan)


def _centre(share: Float[Tensor, "head pair"], rotary: RotaryGeometry) -> Float[Tensor, "head"]:
    finite = rotary.inv_freq > 0
    return (_shares(share[:, finite]) @ rotary.wavelengths[finite].log10()).float()


def _padded(rows: list[Float[Tensor, "*rest _"]]) -> Float[Tensor, "layer *rest pair"]:
    """Stack layers, filling the last axis with NaN to the longest."""
    longest = max(row.shape[-1] for row in rows)
    return torch.stack([F.pad(row, (0, longest - row.shape[-1]), value=math.nan) for row in rows])
