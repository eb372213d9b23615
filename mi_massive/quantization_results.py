"""What quantized copies of one model lose beside full precision, and which method keeps what (C7).

Schemes are set beside full precision on the same passages and examples: massive masks, errors of
the rotated queries and keys, cross-entropy, and scores. Methods that look for channels of large
activations (AWQ, SmoothQuant) are set against the others at equal bits.

Does not show: that such a method is better because of those channels; it differs in more. The
factorial on rows (`mi_massive.weight_protection`) and on states (`mi_massive.protection`) hold all
else equal.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive._checks import require_in_range, require_not_empty, require_positive
from mi_massive._columns import estimate_columns
from mi_massive._score_frames import scores_frame
from mi_massive.axes import Projection
from mi_massive.contrasts import ArmContrast, GroupContrast
from mi_massive.quantization_schemes import QuantizationScheme, make_schemes
from mi_massive.records import Provenance
from mi_massive.scores import Cell, EvaluationConfig
from mi_massive.state_errors import StateErrors
from mi_massive.stats import Estimate, estimate
from mi_massive.weight_protection import WeightProtectionConfig, WeightProtectionResult


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class QuantizationConfig(Brief):
    """What is compared, and how it is measured."""

    schemes: tuple[QuantizationScheme, ...] = field(
        default_factory=lambda: make_schemes(("rtn", "gptq", "awq"))
    )
    """From `make_schemes`."""
    rows: WeightProtectionConfig | None = None
    """The factorial on rows of W_Q and W_K; None leaves it out."""
    row_tasks: tuple[str, ...] = ()
    """Tasks that it asks at its `task_bits`."""
    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm."""
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(readouts=("options",))
    )
    n_neutral: int = 16
    """Default passages of neutral text; those after them are the default calibration."""
    neutral_length: int = 128
    """Tokens of each, at most."""
    n_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a comparison of nothing."""
        require_not_empty("schemes", self.schemes, remedy="give at least one, see make_schemes")
        names = [scheme.name for scheme in self.schemes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"schemes must differ in name, got {name!r} twice; drop one")
        require_positive("ratio", self.ratio)
        require_in_range("n_neutral", self.n_neutral, low=2, high=31, unit="passages")
        require_in_range("neutral_length", self.neutral_length, low=8, high=1 << 20, unit="tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskChange:
    """What became of the massive channels of one projection under one scheme."""

    arm: str
    projection: Projection
    n_before: int
    """Massive channels at full precision, over all heads and layers."""
    n_after: int
    moved: int
    """Channels that took the place of another in the same head."""
    appeared: int
    """Channels beyond those, in heads that have more of them now."""
    vanished: int
    """Channels lost in heads that have fewer of them now."""
    massive_norm: float
    """Norm after over norm before, mean over the channels that were massive; NaN without any."""
    other_norm: float
    """The same of all others."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class QuantizationResult(Brief):
    """Every scheme beside full precision."""

    schemes: tuple[QuantizationScheme, ...]
    bits_per_weight: dict[str, float]
    """Stored bits of a weight with its share of scale and zero, by the scheme's name."""
    masks: tuple[MaskChange, ...] = field(repr=False)
    errors: StateErrors
    """Of rotated queries and keys; errors of earlier layers are in those of later ones."""
    cross_entropy: Float[Tensor, "arm prompt"] = field(repr=False)
    """Nats a token of neutral text: full precision, then the schemes in order."""
    cells: tuple[Cell, ...] = field(repr=False)
    """Scores of full precision first, then of each scheme; changes are paired with it."""
    contrasts: tuple[ArmContrast, ...] = field(repr=False)
    """Loss of contextual minus parametric tasks of each scheme."""
    methods: tuple[GroupContrast, ...] = field(repr=False)
    """Methods that protect massive values against the others, at equal bits."""
    rows: WeightProtectionResult | None
    config: QuantizationConfig
    provenance: Provenance
    """Of the model of full precision; the digest is that of the neutral text."""

    def damage(self, name: str) -> Estimate:
        """Nats a token that a scheme adds to neutral text, paired with full precision.

        Raises:
            ValueError: If there is no such scheme.
        """
        return estimate(
            self.added(name).double().numpy(),
            n_of="passages",
            null=0.0,
            alternative="two-sided",
            n_resamples=self.config.n_resamples,
            seed=self.config.seed,
        )

    def added(self, name: str) -> Float[Tensor, "prompt"]:
        """Nats a token that a scheme adds to each passage.

        Raises:
            ValueError: If there is no such scheme.
        """
        names = [scheme.name for scheme in self.schemes]
        if name not in names:
            raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
        return self.cross_entropy[1 + names.index(name)] - self.cross_entropy[0]

    def to_frame(self) -> Any:
        """Text, states and storage as a data frame (pandas), one row a scheme."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for scheme in self.schemes:
            added = self.damage(scheme.name)
            row: dict[str, Any] = {
                **{n: getattr(scheme, n) for n in ("name", "method", "bits", "activation_bits")},
                "seed": scheme.seed,
                "bits_per_weight": self.bits_per_weight[scheme.name],
                **estimate_columns("added_cross_entropy", added),
            }
            for change in self.masks:
                if change.arm == scheme.name:
                    for part in ("moved", "appeared", "vanished"):
                        row[f"{part}_{change.projection}"] = getattr(change, part)
            for projection in self.errors.projections:
                for part, value in self.errors.of(scheme.name, projection).items():
                    row[f"error_{projection}_{part}"] = value.effect
            rows.append(row)
        return pd.DataFrame(rows)

    def scores_frame(self) -> Any:
        """Scores as a data frame (pandas), one row a cell; `intact` is full precision."""
        return scores_frame(self.cells)


def mask_change(
    arm: str,
    projection: Projection,
    before: Float[Tensor, "layer head d_head"],
    after: Float[Tensor, "layer head d_head"],
    masks: tuple[Bool[Tensor, "layer head d_head"], Bool[Tensor, "layer head d_head"]],
) -> MaskChange:
    """Count what moved, appeared and vanished, head by head.

        moved = min(new, gone),  appeared = new - moved,  vanished = gone - moved

    where new and gone are the channels of a head that only the second or only the first mask marks.

    Args:
        arm: The scheme's name.
        projection: Whose channels.
        before: Norms at full precision.
        after: Norms of the quantized model on the same prompts.
        masks: Massive channels before and after.
    """
    first, second = masks
    new, gone = (second & ~first).sum(dim=-1), (first & ~second).sum(dim=-1)
    moved = torch.minimum(new, gone)
    ratios = after / before
    return MaskChange(
        arm=arm,
        projection=projection,
        n_before=int(first.sum()),
        n_after=int(second.sum()),
        moved=int(moved.sum()),
        appeared=int((new - moved).sum()),
        vanished=int((gone - moved).sum()),
        massive_norm=float(ratios[first].nanmean()),
        other_norm=float(ratios[~first].nanmean()),
    )
