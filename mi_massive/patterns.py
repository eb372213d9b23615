"""Token-level views of one prompt: attention patterns of chosen heads and activations of massive dimensions.

Costs one forward pass of one short prompt, with attention weights materialized for the chosen heads' layers only.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mi_massive.axes import Projection
from mi_massive.records import Provenance


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadView:
    """One query head on one prompt."""

    block: int
    head: int
    projection: Projection
    """Projection whose dimension is shown: q, or k of the query head's key-value head."""
    dimension: int
    """The head's dimension of largest norm in that projection."""
    activations: Float[Tensor, "pos"] = field(repr=False)
    """Value of that dimension at each token, as it enters the attention; activation units."""
    pattern: Float[Tensor, "pos pos"] = field(repr=False)
    """Attention weights of the query head, row = query position."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatternsResult:
    """Attention and massive activations of chosen heads on one prompt."""

    tokens: tuple[str, ...]
    heads: tuple[HeadView, ...]
    provenance: Provenance
