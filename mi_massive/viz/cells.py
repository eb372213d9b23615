"""Heat maps that hide nothing: cells undefined or beyond the range have their own colour and sign.

Shared by the figures that show norms per head dimension. A cell is

- coloured on cividis between 0 and `limit` (in multiples of the head's mean norm), both ends
written at the bar;
- grey with a cross where it is undefined (NaN);
- purple with a triangle where it exceeds `limit`;
- dotted where it is massive, if the figure shows single heads.

The legend counts each kind over everything that the figure can show, not only over the layer on
display.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._checks import require_positive
from mi_massive.axes import Projection
from mi_massive.viz.base import BEYOND, INK, MUTED, UNDEFINED, Spec, panel_axes, positions, rounded

_KINDS = ("undefined", "beyond", "massive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The colour range of a figure and what its legend says."""

    limit: float
    """Upper end of the colour range; the lower end is 0."""
    names: Mapping[str, str]
    """Legend text by kind of cell."""
    shown: Mapping[str, bool]
    """Whether a kind occurs anywhere in the figure."""


def scale(
    values: Mapping[Projection, Float[Tensor, "..."]],
    massive: Mapping[Projection, Bool[Tensor, "..."]] | None,
    *,
    color_max: float | None,
    ratio: float,
) -> Scale:
    """The colour range for `values` and the counts for the legend.

    Args:
        values: Everything that the figure can show.
        massive: The massive mask of the same shapes; None if the figure does not mark massive
            cells.
        color_max: Upper end of the range; None for the largest finite value, so that nothing is
            beyond it.
        ratio: Massive threshold, for the legend.

    Returns:
        The scale; its range is 0..1 where no value is finite.

    Raises:
        ValueError: If `color_max` is not finite and positive.
    """
    flat = torch.cat([part.flatten() for part in values.values()])
    finite = flat[torch.isfinite(flat)]
    largest = float(finite.max()) if finite.numel() else 0.0
    if color_max is not None:
        require_positive("color_max", color_max)
    limit = color_max if color_max is not None else (largest if largest > 0 else 1.0)
    undefined = int(flat.isnan().sum())
    beyond = int((flat > limit).sum())
    marked = sum(int(mask.sum()) for mask in massive.values()) if massive else 0
    return Scale(
        limit=limit,
        names={
            "undefined": f"undefined: {undefined:,} of {flat.numel():,} cells",
            "beyond": f"beyond the range (> {limit:g}): {beyond:,} cells",
            "massive": f"massive (> {ratio:g} × head mean): {marked:,} cells",
        },
        shown={"undefined": undefined > 0, "beyond": beyond > 0, "massive": marked > 0},
    )


def cell_traces(
    values: Float[Tensor, "row d_head"],
    massive: Bool[Tensor, "row d_head"] | None,
    *,
    rows: Sequence[str],
    panel: int,
    scale: Scale,
    hover: str,
) -> list[Spec]:
    """The traces of one heat map: cells, flagged cells, and one scatter for each kind of sign.

    Always the same number of traces in the same order, so that they can serve as the data of a
    frame.
    """
    undefined, beyond = values.isnan(), values > scale.limit
    flags = torch.full_like(values, torch.nan)
    flags[undefined], flags[beyond] = 0.0, 1.0
    masks = {
        "undefined": undefined,
        "beyond": beyond,
        "massive": massive if massive is not None else torch.zeros_like(undefined),
    }
    axes = panel_axes(panel)
    cells: Spec = {
        "type": "heatmap",
        "z": rounded(values.masked_fill(beyond, torch.nan)),
        "y": list(rows),
        "coloraxis": "coloraxis",
        "hoverongaps": False,
        "hovertemplate": hover + ", dimension %{x}<br>%{z} × head mean<extra></extra>",
    }
    flagged: Spec = {
        "type": "heatmap",
        "z": rounded(flags) if bool((undefined | beyond).any()) else [],
        "y": list(rows),
        "text": _flag_texts(values, undefined | beyond),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, UNDEFINED], [0.5, UNDEFINED], [0.5, BEYOND], [1, BEYOND]],
        "showscale": False,
        "hoverongaps": False,
        "hovertemplate": hover + ", dimension %{x}<br>%{text}<extra></extra>",
    }
    signs = [_sign(kind, masks[kind], rows=rows, legend=panel == 0, scale=scale) for kind in _KINDS]
    return [trace | axes for trace in (cells, flagged, *signs)]


def cell_axes(d_head: int) -> tuple[Spec, Spec]:
    """Settings of the x axis (dimensions) and y axis (rows from top to bottom) of a heat map."""
    x: Spec = {"title": {"text": "dimension"}, "showgrid": False, "range": [-0.5, d_head - 0.5]}
    y: Spec = {"showgrid": False, "autorange": "reversed", "type": "category"}
    return x, y


def color_axis(scale: Scale, *, ratio: float) -> Spec:
    """The colour bar, with the ends of the range and the massive threshold as ticks."""
    inner = [tick for tick in (1.0, ratio) if tick < 0.93 * scale.limit]
    ticks = [0.0, *inner, scale.limit]
    return {
        "cmin": 0,
        "cmax": scale.limit,
        "colorscale": "Cividis",
        "colorbar": {
            "title": {"text": "norm /<br>head mean<br>\u00a0", "side": "top", "font": {"size": 12}},
            "tickvals": ticks,
            "ticktext": [f"{tick:.3g}" for tick in ticks],
            "thickness": 12,
            "outlinewidth": 0,
            "ticks": "outside",
            "tickcolor": MUTED,
        },
    }


def _sign(
    kind: str,
    mask: Bool[Tensor, "row d_head"],
    *,
    rows: Sequence[str],
    legend: bool,
    scale: Scale,
) -> Spec:
    columns, places = positions(mask)
    markers: dict[str, Spec] = {
        "undefined": {"symbol": "x-thin", "size": 4, "line": {"width": 1.2, "color": INK}},
        "beyond": {"symbol": "triangle-up", "size": 6, "color": INK},
        "massive": {
            "symbol": "circle",
            "size": 5,
            "color": "#ffffff",
            "line": {"width": 1, "color": "#000000"},
        },
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "x": columns or [None],  # an empty trace would lose its legend entry
        "y": [rows[place] for place in places] or [None],
        "marker": markers[kind],
        "name": scale.names[kind],
        "legendgroup": kind,
        "showlegend": legend and scale.shown[kind],
        "hoverinfo": "skip",
    }


def _flag_texts(
    values: Float[Tensor, "row d_head"], flagged: Bool[Tensor, "row d_head"]
) -> list[list[str]]:
    if not bool(flagged.any()):
        return []
    rows = cast("list[list[float]]", values.tolist())
    return [
        ["undefined" if math.isnan(value) else f"{value:.3g} × head mean" for value in row]
        if bool(mask.any())
        else []
        for row, mask in zip(rows, flagged, strict=True)
    ]
