"""Massive dimensions before and after the rotation of the same queries and keys (evidences 2, 3).

Answers whether the rotation makes the concentration at inference or finds it there: the norms of a
capture with the rotation undone beside those that enter the attention. v is not rotated and the
same in both. Pure arithmetic on captured norms.

Does not show: what causes it in training. Weights that were trained with RoPE are not those of a
model without it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_positive
from mi_massive._head_statistics import exceeds, max_over_mean
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.norms import AttentionNorms
from mi_massive.rope import LayerGeometry, ModelGeometry
from mi_massive.stats import Estimate, estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationNorms:
    """One projection, over the layers that rotate; intervals over prompts."""

    projection: Projection
    massive_before: Estimate
    """Massive dimensions per head within a prompt, the rotation undone."""
    massive_after: Estimate
    """The same as they enter the attention."""
    massive_change: Estimate
    """After minus before, paired by prompt; sign-flip test (two-sided)."""
    peak_before: Estimate
    """max/mean of a head's norms, geometric mean over heads, then over prompts."""
    peak_after: Estimate
    peak_ratio: Estimate
    """After divided by before, paired by prompt; sign-flip test (two-sided)."""
    same_pair: Estimate
    """Share of the dimensions massive after the rotation whose pair holds one that is massive
    before it; NaN for v and where nothing is massive."""


def rotation_norms(norms: AttentionNorms, *, ratio: float = 5.0) -> tuple[RotationNorms, ...]:
    """Compare massive dimensions and max/mean before and after the rotation.

    Args:
        norms: From `capture_norms`.
        ratio: Massive threshold in multiples of the head's mean norm.

    Returns:
        Rows of q, k and v, the control.

    Raises:
        ValueError: If no layer rotates, or `ratio` is not positive.
    """
    require_positive("ratio", ratio)
    rotating = norms.rotating()
    if not bool(rotating.any()):
        raise ValueError(
            "norms must come from a model with a layer that rotates, got none; there is nothing "
            "before and after a rotation"
        )
    return tuple(_row(norms, projection, ratio) for projection in PROJECTIONS)


def _row(norms: AttentionNorms, projection: Projection, ratio: float) -> RotationNorms:
    rotating = norms.rotating()
    before, after = (
        norms.sums(projection, stage).norms()[:, rotating] for stage in ("unrotated", "attention")
    )
    counts = [_per_head(exceeds(states, ratio).sum(dim=-1)) for states in (before, after)]
    peaks = [np.exp(_per_head(max_over_mean(states).log())) for states in (before, after)]
    return RotationNorms(
        projection=projection,
        massive_before=estimate(counts[0], n_of="prompts"),
        massive_after=estimate(counts[1], n_of="prompts"),
        massive_change=estimate(
            counts[1] - counts[0], n_of="prompts", null=0.0, alternative="two-sided"
        ),
        peak_before=estimate(peaks[0], n_of="prompts", statistic="geometric mean"),
        peak_after=estimate(peaks[1], n_of="prompts", statistic="geometric mean"),
        peak_ratio=estimate(
            peaks[1] / peaks[0],
            n_of="prompts",
            statistic="geometric mean",
            null=1.0,
            alternative="two-sided",
        ),
        same_pair=estimate(_same_pair(before, after, norms, projection, ratio), n_of="prompts"),
    )


def _per_head(values: Tensor) -> Float[np.ndarray, "prompt"]:
    """Mean over layers and heads; a head without any energy has no max/mean and is left out."""
    return values.double().flatten(1).nanmean(dim=-1).numpy()


def _same_pair(
    before: Float[Tensor, "prompt layer head d_head"],
    after: Float[Tensor, "prompt layer head d_head"],
    norms: AttentionNorms,
    projection: Projection,
    ratio: float,
) -> Float[np.ndarray, "prompt"]:
    if projection == "v":
        return np.full(len(before), np.nan)
    found, total = torch.zeros(len(before)), torch.zeros(len(before))
    rotaries = [layer.rotary for layer in _rotating(norms.geometry)]
    for index, rotary in enumerate(rotaries):
        assert rotary is not None
        first, second = (
            exceeds(states, ratio)[:, index][..., rotary.pair_dims] for states in (before, after)
        )
        held = first.any(dim=-1, keepdim=True)
        found += (second & held).sum(dim=(1, 2, 3))
        total += second.sum(dim=(1, 2, 3))
    return torch.where(total > 0, found / total, torch.nan).double().numpy()


def _rotating(geometry: ModelGeometry) -> list[LayerGeometry]:
    return [layer for layer in geometry.layers if layer.rotary is not None]
