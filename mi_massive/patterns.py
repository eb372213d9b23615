"""Token-level view of one prompt: attention patterns and massive activations of some heads.

Shows which tokens hold the massive activation and where the head attends, so that the first
token's different behaviour can be seen. One prompt is an illustration: no claim rests on it.
Filled by `capture_patterns`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive.axes import Projection
from mi_massive.records import Provenance

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class PatternsResult(Brief):
    """Attention and massive activations of chosen heads on one prompt."""

    tokens: tuple[str, ...]
    heads: tuple[HeadView, ...]
    provenance: Provenance

    def to_frame(self) -> "pd.DataFrame":
        """The activations, one row a head and token: layer, head, projection, dimension, pos."""
        import pandas as pd

        rows = [
            {
                "layer": view.block,
                "head": view.head,
                "projection": view.projection,
                "dimension": view.dimension,
                "pos": pos,
                "token": token,
                "activation": float(view.activations[pos]),
            }
            for view in self.heads
            for pos, token in enumerate(self.tokens)
        ]
        return pd.DataFrame(rows)
