"""One row a model: what the table of families holds.

Kept apart from the measuring, which is in `families`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from mi_massive._brief import Brief
from mi_massive._verdicts import UNDEFINED
from mi_massive.axes import PROJECTIONS, Layout, Projection
from mi_massive.concentration import ConcentrationConfig
from mi_massive.records import Provenance
from mi_massive.stats import Estimate

Status = Literal["measured", "shape check: random weights", "not available"]
"""`shape check`: a tiny model of the family, whose numbers say nothing about the family's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyHeads:
    """Attention layers of a model, and how they rotate."""

    n_layers: int
    """Attention layers; a hybrid model has more blocks."""
    n_rotating_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    rotary_dim: int
    """Rotated dimensions of a head; 0 without rotation."""
    layout: Layout | None
    """Which dimensions rotate together; None without rotation."""
    n_position_axes: int
    """Position axes that turn the pairs: 0 without rotation, 1 for RoPE, 3 for M-RoPE, which is
    RoPE on texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyProjection:
    """Queries, keys or values of one model. NaN where it was not measured or does not rotate."""

    massive_per_head: float = math.nan
    """Massive dimensions, mean over heads and layers, of norms pooled over all prompts."""
    max_over_mean: float = math.nan
    """Largest norm of a head over its mean norm, geometric mean over heads and layers."""
    slow_half: Estimate = UNDEFINED
    """Share of the massive dimensions that rotate in the slower half of the pairs, from `bands`."""
    halves: Estimate = UNDEFINED
    """Rank correlation of the two halves of a layer's mean profile, from `symmetry`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRow:
    """One model."""

    model: str
    status: Status
    reason: str = ""
    """Why the model is not available."""
    memory: float
    """GB (1e9 bytes) that its weights take in the dtype of the run; NaN if unknown."""
    heads: FamilyHeads | None = None
    """None for a model that is not available."""
    q: FamilyProjection = FamilyProjection()
    k: FamilyProjection = FamilyProjection()
    v: FamilyProjection = FamilyProjection()
    contrast_q: Estimate = UNDEFINED
    """max/mean in q over that in v, from `concentration`; 1: no difference."""
    contrast_k: Estimate = UNDEFINED
    partial_cycle: Estimate = UNDEFINED
    """Share of the massive dimensions whose pair makes no full turn in the training context."""
    provenance: Provenance | None = None
    """Of the capture; None for a model that is not available."""

    def of(self, projection: Projection) -> FamilyProjection:
        """The part of one projection."""
        return {"q": self.q, "k": self.k, "v": self.v}[projection]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class FamiliesResult(Brief):
    """A row for every model that was asked for, in that order."""

    rows: tuple[FamilyRow, ...]
    config: ConcentrationConfig
    """Threshold, level, resamples and seed of all analyses."""
    provenance: Provenance
    """Of the whole; each row has that of its own capture."""

    def row(self, model: str) -> FamilyRow:
        """The row of a model.

        Raises:
            KeyError: If it was not asked for.
        """
        return {row.model: row for row in self.rows}[model]

    def to_frame(self) -> Any:
        """The table as a data frame, one row a model; what is undefined is NaN (pandas)."""
        import pandas as pd

        return pd.DataFrame([_columns(row) for row in self.rows])


def _columns(row: FamilyRow) -> dict[str, Any]:
    heads = row.heads
    columns: dict[str, Any] = {
        "model": row.model,
        "status": row.status,
        "reason": row.reason,
        "memory_gb": row.memory,
        "rotates": heads.n_rotating_layers > 0 if heads else None,
        "layout": heads.layout if heads else None,
    }
    sizes = ("n_layers", "n_heads", "n_key_value_heads", "d_head", "rotary_dim", "n_position_axes")
    for field in sizes:
        columns[field] = getattr(heads, field) if heads else math.nan
    for projection in PROJECTIONS:
        part = row.of(projection)
        columns[f"massive_per_head_{projection}"] = part.massive_per_head
        columns[f"max_over_mean_{projection}"] = part.max_over_mean
        columns[f"slow_half_{projection}"] = part.slow_half.effect
        columns[f"halves_{projection}"] = part.halves.effect
    estimates = {
        "q_over_v": row.contrast_q,
        "k_over_v": row.contrast_k,
        "partial_cycle": row.partial_cycle,
    }
    for name, value in estimates.items():
        columns |= {name: value.effect, f"{name}_low": value.low, f"{name}_high": value.high}
    return columns
