"""How much of what heads compare is position, and how much is content, band by band.

The logit of a query and a key is a sum over rotary pairs, and so over frequency bands. For each
head and band, this takes the part of the logits that the band contributes to keys at the distances
1 .. window before a query, and asks how much of its variance the distance alone explains:

    part[i, d] = sum over the band's pairs of q_i . k_(i - d), minus its mean over d
    position_share = n * sum_d mean_i(part[i, d]) ** 2 / sum_i,d part[i, d] ** 2

1: the band compares places, whatever the tokens are; 0: it compares tokens, wherever they are. What
is the same for all keys of a query (its mean over d) cannot change the attention and is left out,
as are the first token, which heads use as a sink, and a token's comparison with itself. Costs one
forward pass and a few products a head; patterns are never materialized, memory grows with window
times tokens for one head at a time.

Does not show: that a head uses a band. A share says what varies within the band; `variance_share`
says how much of the logits' variation the band has. Content that repeats at a fixed distance counts
as position; `shuffled` tells how much is left when tokens stand in random places. Position beyond
the window: a pair that hardly turns within it cannot compare places there.

Source: the question is evidence 1 of Jin et al. 2025, arXiv:2502.01563 (after Barbero et al.,
arXiv:2410.06205); the measure is ours.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive._checks import require_in_range
from mi_massive.records import Provenance
from mi_massive.stats import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionSharesConfig:
    """How logits are divided and tested."""

    n_bands: int = 8
    """Bands of (nearly) equally many pairs, from fast to slow."""
    window: int = 64
    """Largest distance between query and key, in tokens."""
    n_permutations: int = 500
    """Draws of pairs permuted, alike in all heads and layers."""
    level: float = 0.95
    n_resamples: int = 2000
    """Bootstrap resamples over passages."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a window or bands that hold nothing."""
        require_in_range("n_bands", self.n_bands, low=2, high=1 << 16, unit="bands")
        require_in_range("window", self.window, low=2, high=1 << 16, unit="tokens")
        require_in_range("n_permutations", self.n_permutations, low=1, high=10**6, unit="draws")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be between 0 and 1, got {self.level}; 0.95 is usual")


@dataclass(frozen=True, kw_only=True, slots=True)
class BandShares:
    """One band, mean over heads and layers; intervals over passages."""

    band: int
    """From fast (0) to slow."""
    shortest: float
    """Wavelength of the band's fastest pair in any layer, in tokens."""
    longest: float
    """Wavelength of its slowest pair in any layer, in tokens."""
    position_share: Estimate
    """Tested against pairs permuted alike in all heads and layers (two-sided, Holm over bands);
    its null is the mean share of as many random pairs."""
    shuffled: Estimate
    """The share when tokens stand in random places and are rotated there: of position proper."""
    floor: Estimate
    """The share when rotated queries and keys change places: what finite text gives to noise."""
    variance_share: Estimate
    """The band's part in the variance of the logits over distances, of all bands."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class PositionSharesResult(Brief):
    """Position against content in the logits of every head, by frequency band."""

    share: Float[Tensor, "layer head band"] = field(repr=False)
    """Position share of each query head, mean over passages; NaN where a band adds nothing."""
    shuffled: Float[Tensor, "layer head band"] = field(repr=False)
    floor: Float[Tensor, "layer head band"] = field(repr=False)
    variance_share: Float[Tensor, "layer head band"] = field(repr=False)
    """Each band's part in the variance, sums to 1 over bands; products of bands are left out."""
    bands: tuple[BandShares, ...]
    fast_minus_slow: Estimate
    """Position share of the faster half of the bands minus that of the slower half (a middle band
    in neither), mean over passages; tested against pairs permuted (two-sided)."""
    layers: tuple[int, ...]
    """Block index of each rotating layer."""
    config: PositionSharesConfig
    provenance: Provenance

    def to_frame(self) -> Any:
        """One row a head and band (pandas): layer, head, band, and the four shares."""
        import pandas as pd

        layer, head, band = torch.ones_like(self.share).nonzero(as_tuple=True)
        return pd.DataFrame(
            {
                "layer": torch.tensor(self.layers)[layer].numpy(),
                "head": head.numpy(),
                "band": band.numpy(),
                "position_share": self.share.flatten().numpy(),
                "shuffled": self.shuffled.flatten().numpy(),
                "floor": self.floor.flatten().numpy(),
                "variance_share": self.variance_share.flatten().numpy(),
            }
        )
