"""Layers x head dimensions: where along the depth of the model a dimension is large."""

from typing import Literal

import plotly.graph_objects as go

from mi_massive.axes import PROJECTIONS
from mi_massive.concentration import ConcentrationResult
from mi_massive.viz.base import NAMES, Spec, by_projection, figure, head_means
from mi_massive.viz.cells import cell_axes, cell_traces, color_axis, scale

OverHeads = Literal["max", "mean"]


def plot_layers(
    result: ConcentrationResult, *, over_heads: OverHeads = "max", color_max: float | None = None
) -> go.Figure:
    """Norm of every head dimension over its head's mean norm, in every layer.

    How to read: one row a layer from the input (top) to the output, one column a dimension. A
    bright vertical line is a dimension that stays large through the layers; it can be carried by
    one head (`max`) or by all (`mean`). A cell is undefined if any head is.

    Args:
        result: From `concentration`.
        over_heads: How the heads of a layer become one cell.
        color_max: Upper end of the colour range; cells above it are marked. The largest value if
            None.

    Returns:
        Three heat maps.

    Raises:
        ValueError: If `color_max` is not finite and positive.
    """
    heads = head_means(result)
    reduced = [part.amax(1) if over_heads == "max" else part.mean(1) for part in heads.values()]
    values = by_projection(*reduced)
    bounds = scale(values, None, color_max=color_max, ratio=result.config.ratio)
    traces: list[Spec] = []
    for panel, projection in enumerate(PROJECTIONS):
        traces += cell_traces(
            values[projection],
            None,
            rows=[str(block) for block in result.layers],
            panel=panel,
            scale=bounds,
            hover=f"{projection}, layer %{{y}}, {over_heads} over heads",
        )
    x, y = cell_axes(result.q.norms.shape[-1])
    return figure(
        traces,
        titles=[NAMES[p] for p in PROJECTIONS],
        x=x,
        y=y | {"title": {"text": "layer"}, "nticks": 12},
        height=500,
        layout={"coloraxis": color_axis(bounds, ratio=result.config.ratio)},
    )
