"""Which head dimensions an intervention edits: the massive ones, or others matched to them.

Every rule takes norms over positions and gives a mask, so that it serves a single prompt and a
whole capture alike. Pure tensor arithmetic; draws come from a seed, the layer and the projection
alone, never from the batch.

Source: Jin et al. 2025, arXiv:2502.01563, edit the largest (and, as a control, the smallest). The
other rules are ours: random dimensions, random ones of the same frequency band, the next in rank.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive._checks import require_in_range, require_positive
from mi_massive._head_statistics import exceeds
from mi_massive.rope import RotaryGeometry

Rule = Literal[
    "largest",
    "smallest",
    "massive",
    "random",
    "same_band",
    "norm_matched",
    "across_heads",
    "mask",
]
"""How dimensions are chosen in each head:

- `largest`, `smallest`: the k of largest or smallest norm.
- `massive`: norm above `ratio` times the head's mean norm, as `massive_mask`.
- `random`: k drawn from those that `largest` leaves.
- `same_band`: for each that `largest` takes, one drawn from the same frequency band, or the nearest
  band that has any left.
- `norm_matched`: the k that follow in rank after those that `largest` takes.
- `across_heads`: at each token, the k whose norm over *heads* is largest, in all heads (what the
  published code does for Gemma-2).
- `mask`: those of a mask that the user gives.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which dimensions of each head."""

    rule: Rule = "largest"
    k: int = 1
    """Dimensions (or pairs) of each head; not used by `massive` and `mask`. 0 edits nothing."""
    unit: Literal["dimension", "pair"] = "dimension"
    """`pair`: choose rotary pairs by the norm of both members together, and edit both."""
    ratio: float = 5.0
    """Threshold of `massive`, in multiples of the head's mean norm."""
    n_bands: int = 8
    """Frequency bands of `same_band`, equally many pairs each."""
    seed: int = 0
    """Of `random` and `same_band`."""

    def __post_init__(self) -> None:
        """Refuse values that choose nothing sensible in any head."""
        require_in_range("k", self.k, low=0, high=1 << 16, unit="dimensions of a head")
        require_positive("ratio", self.ratio)
        require_in_range("n_bands", self.n_bands, low=1, high=1 << 16, unit="bands")
        if self.unit == "pair" and self.rule in ("massive", "across_heads", "mask"):
            raise ValueError(
                f"unit must be 'dimension' for the rule {self.rule!r}, got 'pair'; "
                "use rule='largest' with k pairs"
            )

    @property
    def is_empty(self) -> bool:
        """True if it chooses nothing by request."""
        return self.k == 0 and self.rule not in ("massive", "mask")


def select(
    norms: Float[Tensor, "batch head d_head"],
    selection: Selection,
    rotary: RotaryGeometry | None,
    *,
    place: tuple[int, int],
) -> Bool[Tensor, "batch head d_head"]:
    """Mark the dimensions that `selection` chooses, for every rule but `across_heads` and `mask`.

    Args:
        norms: L2 norm over positions of one layer and projection.
        selection: The rule.
        rotary: The layer's rotation; None where it does not rotate.
        place: Block and projection, which seed the draws together with the selection's seed.

    Raises:
        ValueError: If k is larger than the head, or the rule needs a rotation and there is none.
    """
    if selection.rule == "massive":
        return exceeds(norms[:, None], selection.ratio)[:, 0]
    if selection.unit == "pair":
        rotary = _require_rotary(rotary, "unit='pair'")
        dims = rotary.pair_dims.to(norms.device)
        chosen = _select_units(
            norms[..., dims].square().sum(dim=-1).sqrt(),
            selection,
            torch.arange(rotary.n_pairs),
            rotary.n_pairs,
            place,
        )
        mask = torch.zeros_like(norms, dtype=torch.bool)
        mask[..., dims] = chosen[..., None].expand(*chosen.shape, 2)
        return mask
    if rotary is None:
        if selection.rule == "same_band":
            _require_rotary(rotary, "the rule 'same_band'")
        pairs, n_pairs = torch.arange(norms.shape[-1]), norms.shape[-1]
    else:
        pairs, n_pairs = rotary.pair_of_dim, rotary.n_pairs
    return _select_units(norms, selection, pairs, n_pairs, place)


def largest_across_heads(
    states: Float[Tensor, "batch head pos d_head"], k: int
) -> Bool[Tensor, "batch 1 pos d_head"]:
    """At each token the k dimensions whose norm over heads is largest."""
    require_in_range("k", k, low=0, high=states.shape[-1], unit="dimensions of a head")
    return _top(states.float().square().sum(dim=1, keepdim=True), k)


def _select_units(
    norms: Float[Tensor, "batch head unit"],
    selection: Selection,
    pairs: Int[Tensor, "unit"],
    n_pairs: int,
    place: tuple[int, int],
) -> Bool[Tensor, "batch head unit"]:
    k, rule, size = selection.k, selection.rule, norms.shape[-1]
    named = "pairs of a head" if selection.unit == "pair" else "dimensions of a head"
    if rule in ("random", "same_band", "norm_matched"):
        named = f"half the {named}: {rule!r} leaves the k largest and takes k others"
        require_in_range("k", k, low=0, high=size // 2, unit=named)
    require_in_range("k", k, low=0, high=size, unit=named)
    if rule == "smallest":
        return _top(-norms, k)
    top = _top(norms, k)
    if rule == "largest":
        return top
    if rule == "norm_matched":
        return _top(norms, 2 * k) & ~top
    draws = _draws(norms, selection.seed, place)
    if rule == "random":
        return _top(draws.masked_fill(top, -1.0), k)
    # Dimensions without rotation are a band of their own, next to the slowest.
    bands = (pairs * selection.n_bands // n_pairs).where(pairs >= 0, selection.n_bands)
    return _same_band(norms, top, draws, bands.to(norms.device), k)


def _top(scores: Tensor, k: int) -> Bool[Tensor, "..."]:
    """Mark the k highest of the last axis; equal scores: the lower index comes first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., :k], True)


def _draws(
    norms: Float[Tensor, "batch head unit"], seed: int, place: tuple[int, int]
) -> Float[Tensor, "batch head unit"]:
    """Uniform draws of each head and unit, the same in every row of the batch."""
    drawn = np.random.default_rng([seed, *place]).random(norms.shape[1:])
    return torch.from_numpy(drawn).to(norms).expand_as(norms)


def _same_band(
    norms: Float[Tensor, "batch head unit"],
    top: Bool[Tensor, "batch head unit"],
    draws: Float[Tensor, "batch head unit"],
    bands: Int[Tensor, "unit"],
    k: int,
) -> Bool[Tensor, "batch head unit"]:
    """One unit in the band of each of the k largest, the largest first; nearest band if empty."""
    taken = top.clone()
    order = norms.sort(dim=-1, descending=True, stable=True).indices
    for rank in range(k):
        band = bands[order[..., rank]]
        distance = (bands - band[..., None]).abs()
        scores = (draws - 2.0 * distance).masked_fill(taken, -torch.inf)
        taken |= _top(scores, 1)
    return taken & ~top


def _require_rotary(rotary: RotaryGeometry | None, what: str) -> RotaryGeometry:
    if rotary is None:
        raise ValueError(
            f"{what} must be asked of a layer that rotates its queries and keys, got one without "
            "rotary position embeddings; use rule='random' and unit='dimension'"
        )
    return rotary
