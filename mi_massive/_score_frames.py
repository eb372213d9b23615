"""The one form of scores in data frames, whatever experiment they are of."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from mi_massive._columns import estimate_columns
from mi_massive.scores import Cell
from mi_massive.stats import Estimate


def scores_frame(cells: Sequence[Cell]) -> Any:
    """Scores as a data frame (pandas), one row a cell; see `cell_columns`."""
    import pandas as pd

    return pd.DataFrame([cell_columns(cell) for cell in cells])


def cell_columns(cell: Cell) -> dict[str, Any]:
    """Every field of a cell by its name, and `above_chance`; an estimate as `estimate_columns`."""
    columns: dict[str, Any] = {}
    for field in fields(cell):
        value: Any = getattr(cell, field.name)
        estimated = isinstance(value, Estimate)
        columns |= estimate_columns(field.name, value) if estimated else {field.name: value}
        if field.name == "score":
            columns["above_chance"] = cell.above_chance
    return columns
