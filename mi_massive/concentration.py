"""Concentration of queries, keys and values in a few head dimensions.

Answers which dimensions are massive, how concentrated each head is by statistics without a
threshold, whether q and k differ from v (C1), whether heads agree on the dimensions (C2), and from
which layer on it holds (C9). Costs seconds on norms that are already captured. Does not show what
the dimensions do: see disruption and patching.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive import _concentration_tests as prompt_tests
from mi_massive._agreement import agreement, dim_positions
from mi_massive._brief import Brief
from mi_massive._checks import require_finite, require_in_range, require_positive
from mi_massive._head_statistics import (
    HEAD_STATISTICS,
    OVERFLOW_REMEDY,
    TOP_STATISTICS,
    exceeds,
    head_statistics,
    max_over_mean,
    require_finite_squares,
    top_statistics,
)
from mi_massive._pairs import require_valid
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.norms import AttentionNorms
from mi_massive.records import Provenance
from mi_massive.stats import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcentrationConfig:
    """How massive dimensions are marked and tested."""

    ratio: float = 5.0
    """Threshold in multiples of the head's mean norm (lambda in the paper)."""
    level: float = 0.95
    """Level of the intervals."""
    n_resamples: int = 2000
    """Bootstrap resamples and permutations."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProjectionConcentration:
    """Norms of one projection, its massive dimensions, and statistics without a threshold."""

    norms: Float[Tensor, "layer head d_head"] = field(repr=False)
    """Pooled L2 norm over positions, in activation units."""
    massive: Bool[Tensor, "layer head d_head"] = field(repr=False)
    max_over_mean: Float[Tensor, "layer head"] = field(repr=False)
    max_over_median: Float[Tensor, "layer head"] = field(repr=False)
    kurtosis: Float[Tensor, "layer head"] = field(repr=False)
    """Excess kurtosis of the norms over the dimensions of the head; 0 for a normal distribution."""
    gini: Float[Tensor, "layer head"] = field(repr=False)
    """Gini coefficient of the energy (squared norm): 0 equal, towards 1 concentrated."""
    top_share: Float[Tensor, "layer head"] = field(repr=False)
    """Share of the head's energy in its largest dimension."""
    top_first_share: Float[Tensor, "layer head"] = field(repr=False)
    """Share of its energy that the first tokens hold; NaN where they were skipped."""
    top_mean_over_rms: Float[Tensor, "layer head"] = field(repr=False)
    """|mean over tokens| / rms of that dimension: 1 is a constant offset, 0 averages out."""
    prompt_max_over_mean: Float[Tensor, "prompt"] = field(repr=False)
    """max/mean of the norms within one prompt, mean over layers and heads."""
    head_overlap: Estimate
    """C2: how close the largest dimensions of a layer's heads lie, mean over layers. 1: in the same
    rotary pair; 0: as far apart as by chance. See `mi_massive._agreement`."""
    layer_agreement: Estimate
    """The same between the heads of consecutive layers."""
    layer_overlap: Float[Tensor, "layer"] = field(repr=False)
    """Agreement of the heads of each layer; NaN for a layer with one head."""
    layer_p_values: Float[Tensor, "layer"] = field(repr=False)
    """Permutation p of each layer's agreement, Holm-corrected over layers."""
    curve: Float[Tensor, "layer"] = field(repr=False)
    """Mean massive dimensions per head in each layer, averaged over prompts."""
    curve_low: Float[Tensor, "layer"] = field(repr=False)
    curve_high: Float[Tensor, "layer"] = field(repr=False)
    """Bootstrap interval of the curve over prompts."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ConcentrationResult(Brief):
    """Concentration of q, k and v, side by side; v is the negative control."""

    q: ProjectionConcentration
    k: ProjectionConcentration
    v: ProjectionConcentration
    layers: tuple[int, ...]
    """Block index of each entry of the layer axis."""
    rotating_layers: tuple[int, ...]
    """Block indices of the layers that rotate their queries and keys; empty without RoPE."""
    contrast_q: Estimate
    """C1: mean over layers and heads of max/mean in q divided by that in v; 1: no difference.

    Geometric mean over prompts, paired by prompt.
    """
    contrast_k: Estimate
    first_layer: int | None
    """C9: block index of the first layer whose q and k both hold more massive dimensions than v.

    By a paired test over prompts, corrected over layers; None if there is none.
    """
    first_layer_excess: Estimate
    """C9: massive dimensions per head in the first attention layer, beyond those of v.

    The smaller of q and k minus v within a prompt, mean over prompts; 0: no more than in v.
    """
    layer_tests: Float[Tensor, "layer"] = field(repr=False)
    """Corrected p of that test in each layer (the larger of q and k)."""
    config: ConcentrationConfig
    provenance: Provenance

    def to_frame(self) -> Any:
        """Statistics as a data frame, one row a projection, layer (block index) and head."""

        def columns(part: ProjectionConcentration) -> dict[str, Any]:
            n_layers, n_heads = part.max_over_mean.shape
            names = (*HEAD_STATISTICS, *TOP_STATISTICS)
            return {
                "layer": np.repeat(self.layers, n_heads),
                "head": np.tile(np.arange(n_heads), n_layers),
                "massive": part.massive.sum(dim=-1).flatten(),
                **{name: getattr(part, name).flatten() for name in names},
            }

        return self._frame(columns)

    def layer_frame(self) -> Any:
        """Curve, agreement of heads and tests as a data frame, one row a projection and layer."""

        def columns(part: ProjectionConcentration) -> dict[str, Any]:
            return {
                "layer": self.layers,
                "massive_per_head": part.curve,
                "massive_per_head_low": part.curve_low,
                "massive_per_head_high": part.curve_high,
                "head_overlap": part.layer_overlap,
                "head_overlap_p_value": part.layer_p_values,
                "more_than_v_p_value": self.layer_tests,
            }

        return self._frame(columns)

    def of(self, projection: Projection) -> ProjectionConcentration:
        """The part of one projection."""
        return {"q": self.q, "k": self.k, "v": self.v}[projection]

    def _frame(self, columns: Callable[[ProjectionConcentration], dict[str, Any]]) -> Any:
        import pandas as pd

        frames = [pd.DataFrame({"projection": p, **columns(self.of(p))}) for p in PROJECTIONS]
        return pd.concat(frames, ignore_index=True)


def massive_mask(
    norms: Float[Tensor, "layer head d_head"], *, ratio: float = 5.0
) -> Bool[Tensor, "layer head d_head"]:
    """Mark each head dimension whose norm exceeds `ratio` times its head's mean norm.

        norms[l, h, d] > ratio * mean(norms[l, h, :])

    The mean includes d itself, so a head has fewer than `d_head / ratio` massive dimensions.

    Args:
        norms: L2 norm over positions of one projection, from `capture_norms`; activation units.
        ratio: Threshold in multiples of the head's mean norm.

    Returns:
        True where massive; all False for a head whose norms are all zero.

    Raises:
        ValueError: If `ratio` is not finite and positive, or a norm is NaN or infinite.

    Source:
        Jin et al. 2025, arXiv:2502.01563. Our `norms` is their M, our `ratio` their lambda.
    """
    require_positive("ratio", ratio)
    require_finite("norms", norms, remedy=OVERFLOW_REMEDY)
    return exceeds(norms, ratio)


def top_k_mask(
    norms: Float[Tensor, "layer head d_head"], *, k: int = 1, largest: bool = True
) -> Bool[Tensor, "layer head d_head"]:
    """Mark the k head dimensions with the largest (or smallest) norm of each head.

    Every head has exactly k, also one without energy. Equal norms: the lower index comes first.

    Args:
        norms: L2 norm over positions of one projection, from `capture_norms`; activation units.
        k: Dimensions marked in each head.
        largest: False marks the smallest instead, the paper's control.

    Returns:
        True where marked.

    Raises:
        ValueError: If `k` is not between 1 and d_head, or a norm is NaN or infinite.

    Source:
        Jin et al. 2025, arXiv:2502.01563: their disruption selects by top-k, not by lambda.
    """
    require_in_range("k", k, low=1, high=norms.shape[-1], unit="dimensions of a head")
    require_finite("norms", norms, remedy=OVERFLOW_REMEDY)
    order = norms.sort(dim=-1, descending=largest, stable=True).indices
    return torch.zeros_like(norms, dtype=torch.bool).scatter(-1, order[..., :k], True)


def concentration(
    norms: AttentionNorms, *, config: ConcentrationConfig | None = None
) -> ConcentrationResult:
    """Measure how far queries, keys and values concentrate in few dimensions of their heads.

    Pooled norms give masks, head statistics and the agreement of heads (C2); norms per prompt give
    the curve over layers (C9) and the contrast with v (C1),

        exp(mean over prompts of log(r_q / r_v)),  r = mean over all heads of max(M) / mean(M)

    with M the norms of one prompt.

    Args:
        norms: From `capture_norms`.
        config: Threshold, level, resamples and seed.

    Returns:
        The result. With one prompt intervals and tests over prompts are NaN. Statistics of a head
        whose norms are all zero are NaN, and means leave it out.

    Raises:
        ValueError: If `norms` holds no prompt, or a NaN or infinite norm.

    Source:
        Jin et al. 2025, arXiv:2502.01563, section 3. Differs: they compare by eye; the statistics
        without threshold and the tests are ours.
    """
    config = config or ConcentrationConfig()
    if norms.n_prompts == 0:
        raise ValueError("norms must hold at least one prompt, got 0; capture some prompts first")
    counts: prompt_tests.Counts = {}
    for name in PROJECTIONS:
        require_finite_squares(norms.sums(name).squares, name, norms.layers)
        counts[name] = prompt_tests.massive_per_head(norms.sums(name).norms(), config.ratio)
    parts = {name: _projection(norms, name, counts[name], config) for name in PROJECTIONS}
    peaks = {name: parts[name].prompt_max_over_mean.double().numpy() for name in PROJECTIONS}
    p_values = prompt_tests.layer_tests(counts, config)
    holds: Any = np.flatnonzero(p_values <= 1 - config.level)
    return ConcentrationResult(
        q=parts["q"],
        k=parts["k"],
        v=parts["v"],
        layers=norms.layers,
        rotating_layers=tuple(
            layer.block for layer in norms.geometry.layers if layer.rotary is not None
        ),
        contrast_q=prompt_tests.contrast(peaks["q"], peaks["v"], config),
        contrast_k=prompt_tests.contrast(peaks["k"], peaks["v"], config),
        first_layer=norms.layers[int(holds[0])] if len(holds) else None,
        first_layer_excess=prompt_tests.first_layer_excess(counts, config),
        layer_tests=_tensor(p_values),
        config=config,
        provenance=norms.provenance,
    )


def _projection(
    norms: AttentionNorms,
    projection: Projection,
    counts: Float[np.ndarray, "prompt layer"],
    config: ConcentrationConfig,
) -> ProjectionConcentration:
    sums = norms.sums(projection)
    pooled = sums.pooled_norms()
    agreed = agreement(sums.squares, dim_positions(norms.geometry), config)
    return ProjectionConcentration(
        norms=pooled,
        massive=exceeds(pooled, config.ratio),
        **head_statistics(pooled),
        **top_statistics(pooled, sums.first_share(), norms.mean_over_rms(projection)),
        prompt_max_over_mean=max_over_mean(sums.norms()).flatten(1).nanmean(dim=1),
        head_overlap=agreed.heads,
        layer_agreement=agreed.consecutive,
        layer_overlap=_tensor(agreed.by_layer),
        layer_p_values=_tensor(agreed.p_values),
        **prompt_tests.curve(counts, config),
    )


def _tensor(values: Float[np.ndarray, "layer"]) -> Float[Tensor, "layer"]:
    return torch.from_numpy(values).float()
