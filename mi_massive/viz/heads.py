"""Heads x head dimensions of one layer, q, k and v side by side (figure 2 of Jin et al. 2025)."""

from collections.abc import Mapping

import plotly.graph_objects as go
from torch import Tensor

from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.concentration import ConcentrationResult
from mi_massive.viz.base import (
    NAMES,
    Spec,
    by_projection,
    figure,
    head_means,
    layer_position,
    layer_slider,
    parts,
)
from mi_massive.viz.cells import Scale, cell_axes, cell_traces, color_axis, scale


def plot_heads(
    result: ConcentrationResult, *, layer: int | None = None, color_max: float | None = None
) -> go.Figure:
    """Norm of every head dimension over its head's mean norm; a slider picks the layer.

    How to read: one row a head, one column a dimension. A bright column is a dimension that is
    large in many heads; a dotted cell is massive. Queries and keys of a rotary model are expected
    to have a few bright columns at the same dimensions, values none. The colour range is the same
    for all layers and all three panels. Keys and values have as many rows as the model has
    key-value heads.

    Args:
        result: From `concentration`.
        layer: Block index shown first; the first layer if None.
        color_max: Upper end of the colour range; cells above it are marked, never clipped unseen.
            The largest value if None.

    Returns:
        Three heat maps with a slider over layers.

    Raises:
        ValueError: If `layer` is not in the result, or `color_max` is not finite and positive.

    Differs:
        The paper draws raw norms as surfaces; ours are divided by the head's mean, the paper's own
        yardstick for massive, so that heads and layers share one scale.
    """
    shown = layer_position(result.layers, layer)
    values = head_means(result)
    massive = by_projection(*(part.massive for part in parts(result)))
    ratio = result.config.ratio
    bounds = scale(values, massive, color_max=color_max, ratio=ratio)
    slices = [_layer_traces(result, values, at, bounds) for at in range(len(result.layers))]
    frames: list[Spec] = [
        {
            "name": str(block),
            "data": [_changing(trace) for trace in traces],
            "traces": list(range(len(traces))),
        }
        for block, traces in zip(result.layers, slices, strict=True)
    ]
    x, y = cell_axes(result.q.norms.shape[-1])
    return figure(
        slices[shown],
        titles=[
            f"{NAMES[p]}, {values[p].shape[1]} {'heads' if p == 'q' else 'key-value heads'}"
            for p in PROJECTIONS
        ],
        x=x,
        y=y | {"title": {"text": "head"}},
        height=440,
        layout={
            "coloraxis": color_axis(bounds, ratio=ratio),
            "sliders": layer_slider(result.layers, shown),
        },
        frames=frames,
    )


def _layer_traces(
    result: ConcentrationResult, values: Mapping[Projection, Tensor], at: int, bounds: Scale
) -> list[Spec]:
    traces: list[Spec] = []
    for panel, (projection, part) in enumerate(zip(PROJECTIONS, parts(result), strict=True)):
        traces += cell_traces(
            values[projection][at],
            part.massive[at],
            rows=[str(head) for head in range(part.norms.shape[1])],
            panel=panel,
            scale=bounds,
            hover=f"{projection} of layer {result.layers[at]}, head %{{y}}",
        )
    return traces


def _changing(trace: Spec) -> Spec:
    """What differs between the layers; a frame need not repeat the rest."""
    keys = ("type", "x", "y", "z", "text", "hovertemplate")
    return {key: trace[key] for key in keys if key in trace}
