"""How attention states are quantized: bits, which states, which scales, and what stays exact."""

from dataclasses import dataclass

from mi_massive._checks import require_in_range
from mi_massive._fake_quant import FEWEST_BITS, MOST_BITS, Granularity
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.norms import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationPlan:
    """How attention states are quantized."""

    bits: int = 4
    projections: tuple[Projection, ...] = ("q", "k")
    """`("q", "k")`: both factors of the scores; `("k", "v")`: what a cache holds."""
    symmetric: bool = False
    """Whether 0 stands in the middle of the grid."""
    granularity: Granularity = "token"
    """Of queries and keys."""
    value_granularity: Granularity = "token"
    group: int | None = None
    """Dimensions that share a scale, per token; None for the whole head."""
    stage: Stage = "attention"
    """Queries and keys after the rotation, or `unrotated`: before it, rotated once they are read
    back."""
    keep_first: bool = False
    """Whether the first token, where most models keep their attention sink, stays exact. It then
    widens no range either."""
    hadamard: bool = False
    """Rotate each head's vector by a Hadamard matrix before, and back after: it spreads large
    channels over all. Protected channels are taken out first."""
    seed: int = 0
    """Of the Hadamard matrix's signs."""

    def __post_init__(self) -> None:
        """Refuse plans that mean nothing."""
        require_in_range("bits", self.bits, low=FEWEST_BITS, high=MOST_BITS, unit="bits of a value")
        if not self.projections or len(set(self.projections)) != len(self.projections):
            raise ValueError(
                f"projections must name each of {', '.join(PROJECTIONS)} at most once and at least "
                f"one, got {self.projections}"
            )
        if self.stage == "unrotated" and self.projections == ("v",):
            raise ValueError("stage must be 'attention' for values, which are never rotated")
        if self.group is not None and "channel" in map(self.granularity_of, self.projections):
            raise ValueError(
                f"group must be None where scales are per channel, got {self.group}; groups are of "
                "the dimensions of one token"
            )

    @property
    def statement(self) -> str:
        """Scales and place in words, for tables."""
        grid = "symmetric" if self.symmetric else "asymmetric"
        each = {
            p: "channel" if self.granularity_of(p) == "channel" else "token and head"
            for p in self.projections
        }
        scales = ", ".join(f"{p} with one {grid} scale a {unit}" for p, unit in each.items())
        groups = "" if self.group is None else f" and {self.group} dimensions"
        turned = any(p != "v" for p in self.projections)
        place = "before" if self.stage == "unrotated" else "after"
        return f"{scales}{groups}" + (f", {place} the rotation" if turned else "")

    def granularity_of(self, projection: Projection) -> Granularity:
        """Granularity of one projection."""
        return self.value_granularity if projection == "v" else self.granularity
