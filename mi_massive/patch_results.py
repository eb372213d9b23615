"""How a patch is measured and what it gives: configuration and result, without running a model."""

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive._checks import require_in_range
from mi_massive._selections import Rule
from mi_massive.axes import Site
from mi_massive.records import Provenance
from mi_massive.stats import Estimate

if TYPE_CHECKING:
    import pandas as pd

Granularity = Literal["layer", "head", "band", "pair", "massive"]
"""What a cell is: all of a layer, one head, one band of rotary pairs in all heads, one pair in one
head, or the massive pairs of all heads beside as many others."""

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

Direction = Literal["denoising", "noising"]
"""Clean activations into the corrupted run, or corrupted ones into the clean run."""

Reuse = Literal["prefix", "layers", "nothing"]
"""What a patched run takes from the unpatched one: `prefix`, blocks below the patch and positions
before it; `layers`, blocks below it; `nothing`, it is computed whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchingConfig:
    """What is patched together, beside what, and how it is tested."""

    layers: tuple[int, ...] | None = None
    """Block indices to patch; all attention layers (for rotated sites: that rotate) if None."""
    joint: bool = False
    """Patch all of these layers at once, instead of each by itself."""
    min_difference: float = 0.5
    """A pair whose clean and corrupted logit differences are not at least this far apart, in the
    right direction, has nothing to recover and is left out."""
    n_bands: int = 8
    """Bands of (nearly) equally many rotary pairs, from fast to slow."""
    k: int = 2
    """Of `massive`: pairs (or dimensions) of each head."""
    unit: Literal["pair", "dimension"] = "pair"
    """Of `massive`: whole rotary pairs, or single dimensions."""
    controls: tuple[Rule, ...] = ("norm_matched", "same_band", "random")
    """Of `massive`: how the others are chosen, as many in each head."""
    n_draws: int = 3
    """Draws of each control that draws; its cell is their mean."""
    batch_size: int = 64
    """Rows of a forward pass: pairs times the cells that are stacked."""
    reuse: Reuse = "prefix"
    level: float = 0.95
    n_resamples: int = 2000
    seed: int = 0
    """Of draws, bootstrap and permutations."""

    def __post_init__(self) -> None:
        """Refuse values that measure nothing sensible."""
        if not self.min_difference > 0:
            raise ValueError(
                f"min_difference must be positive, got {self.min_difference}; without a difference "
                "nothing can be recovered"
            )
        require_in_range("n_bands", self.n_bands, low=1, high=1 << 16, unit="bands")
        require_in_range("k", self.k, low=1, high=1 << 16, unit="pairs or dimensions of a head")
        require_in_range("n_draws", self.n_draws, low=1, high=1000, unit="draws")
        require_in_range("batch_size", self.batch_size, low=1, high=1 << 20, unit="rows")
        require_in_range("n_resamples", self.n_resamples, low=1, high=10**6, unit="resamples")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be between 0 and 1, got {self.level}; 0.95 is usual")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchedLayer:
    """Every cell of one layer, pair by pair: what a patch keeps on disk as soon as it is there."""

    patched: Float[Tensor, "job example"] = field(repr=False)
    """Logit difference with the cell patched."""
    placebo: Float[Tensor, "job example"] | None = field(repr=False)
    """The same with activations of the pair's placebo prompt."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class PatchingResult(Brief):
    """What each cell recovers of the difference between the clean and the corrupted run.

    Cell tensors have the axes named in `axes`, with the entries in `labels`. Everything is NaN
    where no pair had a difference to recover.
    """

    site: Site
    granularity: Granularity
    direction: Direction
    axes: tuple[str, ...]
    """`layer`, then those of the granularity (`head` or `kv_head`, `band`, `pair`, `selection`),
    then `group`."""
    labels: dict[str, tuple[int | str, ...]]
    """Entries of each axis: block indices, heads, names."""
    recovered: Float[Tensor, "*cells"] = field(repr=False)
    """Mean effect over mean difference: 0 nothing, 1 all of it, in both directions."""
    low: Float[Tensor, "*cells"] = field(repr=False)
    high: Float[Tensor, "*cells"] = field(repr=False)
    """Bootstrap interval of `recovered` over examples, at `config.level`."""
    p_values: Float[Tensor, "*cells"] = field(repr=False)
    """Sign-flip p of an effect of zero over examples, Holm-corrected over all cells."""
    placebo: Float[Tensor, "*cells"] = field(repr=False)
    """`recovered` with activations of an unrelated prompt; NaN if the pairs have none."""
    beyond_placebo: Float[Tensor, "*cells"] = field(repr=False)
    """Corrected p of no difference between an example's effect and that of its placebo."""
    effects: Float[Tensor, "*cells example"] = field(repr=False)
    """Effect of each example in logits: what the patch moves towards the other run's difference."""
    differences: Float[Tensor, "example"] = field(repr=False)
    """Clean minus corrupted logit difference of each example."""
    n_left_out: int
    """Pairs without a difference to recover."""
    config: PatchingConfig
    provenance: Provenance

    @property
    def n(self) -> int:
        """Pairs that were used."""
        return len(self.differences)

    @property
    def significant(self) -> Bool[Tensor, "*cells"]:
        """Cells with an effect that, corrected, is not zero and beyond that of their placebo."""
        alpha = 1 - self.config.level
        larger = (self.beyond_placebo <= alpha) & (self.recovered.abs() > self.placebo.abs())
        return (self.p_values <= alpha) & (larger | self.placebo.isnan())

    def group(self, name: str) -> int:
        """Position of a group on the last axis.

        Raises:
            ValueError: If it was not patched.
        """
        groups = self.labels["group"]
        if name not in groups:
            raise ValueError(f"group must be one of {', '.join(map(str, groups))}, got {name!r}")
        return groups.index(name)

    def to_frame(self) -> "pd.DataFrame":
        """One row a cell: its place, what it recovers, interval, placebo and tests."""
        import pandas as pd

        cells = list(itertools.product(*(self.labels[axis] for axis in self.axes)))
        frame = pd.DataFrame(cells, columns=list(self.axes))
        for name in ("recovered", "low", "high", "p_values", "placebo", "beyond_placebo"):
            frame[name] = getattr(self, name).flatten().numpy()
        frame["significant"] = self.significant.flatten().numpy()
        return frame

    def largest(self, n: int) -> list[dict[str, Any]]:
        """Rows of `to_frame` with the largest effects of either sign, undefined ones last."""
        frame: Any = self.to_frame()
        order = frame["recovered"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].head(n).to_dict(orient="records")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class AttributionResult(Brief):
    """Gradient estimates of every pair of every head, checked against exact patching."""

    site: Site
    direction: Direction
    axes: tuple[str, ...]
    """`layer`, `head` or `kv_head`, `pair`, `group`."""
    labels: dict[str, tuple[int | str, ...]]
    estimated: Float[Tensor, "*cells"] = field(repr=False)
    """First-order estimate of `recovered`; no limit holds it in 0..1."""
    sample: tuple[tuple[int, ...], ...] = field(repr=False)
    """Positions on the axes of cells drawn at random."""
    sample_exact: Float[Tensor, "sample"] = field(repr=False)
    """What patching these recovers."""
    top: tuple[tuple[int, ...], ...] = field(repr=False)
    """Positions on the axes of the cells with the largest estimates, by size."""
    top_exact: Float[Tensor, "top"] = field(repr=False)
    top_low: Float[Tensor, "top"] = field(repr=False)
    top_high: Float[Tensor, "top"] = field(repr=False)
    """What patching these recovers, with bootstrap intervals over examples."""
    top_placebo: Float[Tensor, "top"] = field(repr=False)
    pearson: Estimate
    """Correlation of estimated and exact over the random cells."""
    spearman: Estimate
    pearson_top: Estimate
    """The same over the top cells, chosen for their estimates."""
    n_examples: int
    n_left_out: int
    config: PatchingConfig
    provenance: Provenance

    def to_frame(self) -> "pd.DataFrame":
        """One row a cell: its estimate, and what patching it recovers where that was done."""
        import pandas as pd

        cells = list(itertools.product(*(self.labels[axis] for axis in self.axes)))
        frame = pd.DataFrame(cells, columns=list(self.axes))
        frame["estimated"] = self.estimated.flatten().numpy()
        exact = torch.full_like(self.estimated, math.nan)
        for places, values in ((self.sample, self.sample_exact), (self.top, self.top_exact)):
            for place, value in zip(places, values, strict=True):
                exact[place] = value
        frame["exact"] = exact.flatten().numpy()
        return frame


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchedHead:
    """Attention weights of one query head in three runs, row = query position."""

    block: int
    head: int
    clean: Float[Tensor, "pos pos"] = field(repr=False)
    corrupted: Float[Tensor, "pos pos"] = field(repr=False)
    patched: Float[Tensor, "pos pos"] = field(repr=False)
    """Of the corrupted run with the head's own activation of the clean run, at all positions."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class PatchedPatternsResult(Brief):
    """Attention of chosen heads on one pair, with and without the patch."""

    site: Site
    clean_tokens: tuple[str, ...]
    corrupted_tokens: tuple[str, ...]
    heads: tuple[PatchedHead, ...]
    provenance: Provenance

    def to_frame(self) -> "pd.DataFrame":
        """Attention weights, one row a head, query position and key position."""
        import pandas as pd

        frames = [
            pd.DataFrame(
                {
                    "layer": view.block,
                    "head": view.head,
                    "query": torch.arange(view.clean.shape[0]).repeat_interleave(
                        view.clean.shape[1]
                    ),
                    "key": torch.arange(view.clean.shape[1]).repeat(view.clean.shape[0]),
                    "clean": view.clean.flatten(),
                    "corrupted": view.corrupted.flatten(),
                    "patched": view.patched.flatten(),
                }
            )
            for view in self.heads
        ]
        return pd.concat(frames, ignore_index=True)
