"""Paired tests over prompts: q and k against v as a whole (C1), and layer by layer (C9)."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive import stats
from mi_massive._head_statistics import exceeds
from mi_massive._pairs import PairConfig
from mi_massive.axes import Projection
from mi_massive.stats import Estimate

Counts = dict[Projection, Any]
"""Massive dimensions per head of each projection, arrays `[prompt, layer]`."""


def massive_per_head(
    norms: Float[Tensor, "prompt layer head d_head"], ratio: float
) -> Float[np.ndarray, "prompt layer"]:
    """Massive dimensions within each prompt, mean over the heads of a layer."""
    return exceeds(norms, ratio).sum(dim=-1).double().mean(dim=-1).numpy()


def curve(counts: Float[np.ndarray, "prompt layer"], config: PairConfig) -> dict[str, Tensor]:
    """Mean over prompts in each layer, and the ends of its bootstrap interval."""
    interval = stats.bootstrap_interval(
        counts, np.mean, level=config.level, n_resamples=config.n_resamples, seed=config.seed
    )
    ends = {"curve": counts.mean(axis=0), "curve_low": interval.low, "curve_high": interval.high}
    return {name: torch.from_numpy(values).float() for name, values in ends.items()}


def contrast(
    peaks: Float[np.ndarray, "prompt"],
    control: Float[np.ndarray, "prompt"],
    config: PairConfig,
) -> Estimate:
    """Geometric mean over prompts of the ratio of two max/mean statistics; 1 if they are equal."""
    return stats.estimate(
        peaks / control,
        n_of="prompts",
        statistic="geometric mean",
        null=1.0,
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )


def layer_tests(counts: Counts, config: PairConfig) -> Float[np.ndarray, "layer"]:
    """Test in each layer whether both q and k hold more massive dimensions than v.

    Returns:
        The larger of the two sign-flip p-values, which tests that *both* do, Holm-corrected over
        layers.

    Source:
        Berger 1982, doi:10.1080/00401706.1982.10487790: the intersection-union test needs no
        correction for q and k.
    """
    n_layers = counts["v"].shape[1]
    n = stats.resamples_for_tests(n_layers, level=config.level, n_resamples=config.n_resamples)
    p_values = [
        stats.sign_flip_p_values(counts[name] - counts["v"], n_resamples=n, seed=config.seed)
        for name in ("q", "k")
    ]
    return stats.holm(np.maximum(*p_values))


def first_layer_excess(counts: Counts, config: PairConfig) -> Estimate:
    """Compare the first layer with v: min(q, k) - v in massive dimensions per head, by prompt."""
    fewer = np.minimum(counts["q"], counts["k"])
    return stats.estimate(
        (fewer - counts["v"])[:, 0],
        n_of="prompts",
        null=0.0,
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
