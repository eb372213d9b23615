"""Conditions of the quantization factorial: a plan, and which channels it leaves exact.

The massive channels of each head, or exactly as many others in the same head: random ones, random
ones of the same frequency bands, or those that follow in rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive._checks import require_positive
from mi_massive._selections import Selection, select
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.concentration import massive_mask
from mi_massive.norms import AttentionNorms, Stage
from mi_massive.quantization_plans import QuantizationPlan
from mi_massive.rope import RotaryGeometry

Control = Literal["random", "same_band", "norm_matched"]
"""Other channels, by the rules of `Selection`."""

Protected = Literal["none", "massive", "random", "same_band", "norm_matched"]

SEEDED: Final[tuple[Control, ...]] = ("random", "same_band")
"""Controls that draw their channels."""

FULL_BITS: Final = 16
"""Bits in which a cache would store an entry that is not quantized."""

Masks = Mapping[Projection, Bool[Tensor, "layer head d_head"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationArm:
    """One condition."""

    plan: QuantizationPlan = field(default_factory=QuantizationPlan)
    protected: Protected = "none"
    """Channels that stay exact."""
    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm."""
    seed: int = 0
    """Of controls that draw their channels."""

    def __post_init__(self) -> None:
        """Refuse a threshold without meaning."""
        require_positive("ratio", self.ratio)

    @property
    def name(self) -> str:
        """`4 bits, massive kept, first kept`, with the seed where it decides."""
        drawn = f" seed={self.seed}" if self.protected in SEEDED else ""
        parts = [f"{self.plan.bits} bits"]
        parts += ["hadamard"] * self.plan.hadamard
        parts += [f"{self.protected} kept{drawn}"] * (self.protected != "none")
        parts += ["first kept"] * self.plan.keep_first
        return ", ".join(parts)

    def masks(self, norms: AttentionNorms) -> dict[Projection, Bool[Tensor, "layer head d_head"]]:
        """The protected channels of each projection that the plan quantizes; empty for `none`.

        Args:
            norms: From `capture_norms`; those at the plan's stage decide.

        Raises:
            ValueError: If `same_band` is asked of a layer that does not rotate.
        """
        if self.protected == "none":
            return {}
        return {
            projection: protected_channels(
                norms,
                projection,
                self.protected,
                stage="attention" if projection == "v" else self.plan.stage,
                ratio=self.ratio,
                seed=self.seed,
            )
            for projection in self.plan.projections
        }

    def extra_bits(self, masks: Masks, *, n_tokens: int) -> float:
        """Bits per stored value beyond the plan's own, for what stays exact in 16 bits.

            (16 - bits) * (share + (1 - share) / n_tokens)

        where share is that of protected channels, and the last term is there if the first token is
        kept. Scales and zero points are those of every arm of a plan and are not counted, nor is
        the list of protected channels, which is one for all tokens.

        Args:
            masks: From `masks`.
            n_tokens: Tokens of a text.
        """
        n_exact = sum(int(mask.sum()) for mask in masks.values())
        n_all = sum(mask.numel() for mask in masks.values())
        share = n_exact / n_all if n_all else 0.0
        if self.plan.keep_first:
            share += (1 - share) / n_tokens
        return (FULL_BITS - self.plan.bits) * share


def protected_channels(
    norms: AttentionNorms,
    projection: Projection,
    protected: Protected,
    *,
    stage: Stage = "attention",
    ratio: float = 5.0,
    seed: int = 0,
) -> Bool[Tensor, "layer head d_head"]:
    """Mark the massive channels, or as many others in every head.

    Args:
        norms: From `capture_norms`.
        projection: Whose channels.
        protected: Which; `none` marks nothing.
        stage: Of the norms.
        ratio: Massive threshold.
        seed: Of the draws.

    Raises:
        ValueError: If `same_band` is asked of a layer that does not rotate.
    """
    pooled = norms.sums(projection, stage).pooled_norms()
    massive = massive_mask(pooled, ratio=ratio)
    if protected == "massive":
        return massive
    if protected == "none":
        return torch.zeros_like(massive)
    place = PROJECTIONS.index(projection)
    return torch.stack(
        [
            _as_many(own, massive[i].sum(dim=-1), protected, seed, layer.rotary, layer.block, place)
            for i, (own, layer) in enumerate(zip(pooled, norms.geometry.layers, strict=True))
        ]
    )


def _as_many(
    norms: Float[Tensor, "head d_head"],
    counts: Int[Tensor, "head"],
    rule: Control,
    seed: int,
    rotary: RotaryGeometry | None,
    block: int,
    place: int,
) -> Bool[Tensor, "head d_head"]:
    """As many channels of each head as are massive in it, none of them massive."""
    mask = torch.zeros_like(norms, dtype=torch.bool)
    for k in range(1, int(counts.max()) + 1):
        if not bool((counts == k).any()):
            continue
        selection = Selection(rule=rule, k=k, seed=seed)
        chosen = select(norms[None], selection, rotary, place=(block, place))[0]
        mask = torch.where((counts == k)[:, None], chosen, mask)
    return mask
