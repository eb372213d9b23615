"""Statistics of how unequal the norms of one head's dimensions are, without a threshold.

All are invariant to the scale of the norms and to the order of the dimensions, and NaN where
undefined, for example in a head whose norms are all zero. Their ranges depend on d_head: compare
heads of different width with care.
"""

import math
import warnings
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

OVERFLOW_REMEDY: Final = "float16 overflows here: load the model with dtype float32 or bfloat16"

HEAD_STATISTICS: Final = ("max_over_mean", "max_over_median", "kurtosis", "gini", "top_share")
"""Keys of `head_statistics`, and fields of the concentration of a projection."""


def head_statistics(
    norms: Float[Tensor, "layer head d_head"],
) -> dict[str, Float[Tensor, "layer head"]]:
    """Compute every statistic of `HEAD_STATISTICS` for each head.

    With n = d_head, the norms M sorted upwards and their energies E = M ** 2:

        max_over_mean    max(M) / mean(M)                                1 .. n
        max_over_median  max(M) / median(M)                              1 .. inf
        kurtosis         mean((M - mean)^4) / var(M)^2 - 3               -2 .. n
        gini             sum((2 i - n - 1) E_i) / (n sum(E)), i = 1..n   0 .. 1 - 1 / n
        top_share        max(E) / sum(E)                                 1 / n .. 1

    A median of 0 makes max/median NaN, equal norms the kurtosis.

    Args:
        norms: L2 norm over positions of one projection; activation units.
    """
    import scipy.stats  # late: see `mi_massive.stats`

    wide = norms.double()
    median = wide.quantile(0.5, dim=-1)
    energy = wide.square().sort(dim=-1).values
    d_head = norms.shape[-1]
    rank = 2 * torch.arange(1, d_head + 1) - d_head - 1
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # equal norms: NaN, as documented
        kurtosis: Any = scipy.stats.kurtosis(wide.numpy(), axis=-1)
    statistics = {
        "max_over_mean": max_over_mean(wide),
        "max_over_median": wide.amax(dim=-1) / median.where(median > 0, math.nan),
        "kurtosis": torch.from_numpy(np.asarray(kurtosis)),
        "gini": (energy * rank).sum(dim=-1) / (d_head * energy.sum(dim=-1)),
        "top_share": energy[..., -1] / energy.sum(dim=-1),
    }
    return {name: value.float() for name, value in statistics.items()}


TOP_STATISTICS: Final = ("top_first_share", "top_mean_over_rms")
"""Keys of `top_statistics`, and fields of the concentration of a projection."""


def top_statistics(
    norms: Float[Tensor, "layer head d_head"],
    first_share: Float[Tensor, "layer head d_head"],
    mean_over_rms: Float[Tensor, "layer head d_head"],
) -> dict[str, Float[Tensor, "layer head"]]:
    """Share of the first tokens and |mean| / rms over tokens of each head's largest dimension."""
    top = norms.argmax(dim=-1, keepdim=True)
    values = (first_share, mean_over_rms)
    picked = (value.gather(-1, top).squeeze(-1).float() for value in values)
    return dict(zip(TOP_STATISTICS, picked, strict=True))


def exceeds(
    norms: Float[Tensor, "*prompt layer head d_head"], ratio: float
) -> Bool[Tensor, "*prompt layer head d_head"]:
    """Mark norms above `ratio` times the mean norm of their head, as `massive_mask` defines it."""
    wide = norms.double()
    return wide > ratio * wide.mean(dim=-1, keepdim=True)


def max_over_mean(
    norms: Float[Tensor, "*prompt layer head d_head"],
) -> Float[Tensor, "*prompt layer head"]:
    """Largest norm of each head over its mean norm; NaN for a head whose norms are all zero."""
    return norms.amax(dim=-1) / norms.mean(dim=-1)


def require_finite_squares(
    squares: Float[Tensor, "prompt layer head d_head"], projection: str, layers: tuple[int, ...]
) -> None:
    """Raise ValueError at the first NaN or infinite sum of squares, naming head and dimension."""
    bad = ~torch.isfinite(squares)
    if bool(bad.any()):
        prompt, layer, head, d = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"norms of {projection} must be finite, got {float(squares[prompt, layer, head, d])} "
            f"at L{layers[layer]}H{head}, dimension {d}, prompt {prompt}; {OVERFLOW_REMEDY}"
        )
