"""The curve over layers: how many massive dimensions a head has, from the first to the last."""

import plotly.graph_objects as go
import torch

from mi_massive.axes import PROJECTIONS
from mi_massive.concentration import ConcentrationResult
from mi_massive.viz.base import (
    COLOURS,
    FILLS,
    MUTED,
    NAMES,
    Spec,
    figure,
    panel_axes,
    parts,
    plain,
    rounded,
)

_DASHES = {"q": "solid", "k": "dash", "v": "dot"}


def plot_curve(
    result: ConcentrationResult, *, control: ConcentrationResult | None = None
) -> go.Figure:
    """Massive dimensions per head in each layer, with the interval over prompts as a band.

    How to read: the line is the mean over the heads of a layer and over prompts; the shaded band is
    its bootstrap interval (often too narrow to see). The upright line marks the first layer in
    which queries and keys both hold more than values. A control without rotary position embeddings
    stands in a second panel on the same vertical scale. A gap in a line is an undefined layer; the
    legend counts them.

    Args:
        result: From `concentration`.
        control: The same of a model without rotary position embeddings.

    Returns:
        One panel a model.
    """
    shown = [result] if control is None else [result, control]
    traces = [
        trace for panel, model in enumerate(shown) for trace in _model_traces(model, panel=panel)
    ]
    top = max(_highest(model) for model in shown)
    marks = [] if result.first_layer is None else [_first_layer(result.first_layer)]
    return figure(
        traces,
        titles=[
            plain_name if panel == 0 else f"Control: {plain_name}"
            for panel, plain_name in enumerate(model.provenance.model for model in shown)
        ],
        x={"title": {"text": "layer"}, "nticks": 11, "tickformat": "d"},
        y={"title": {"text": "massive dimensions per head"}, "range": [0, 1.08 * top]},
        height=400,
        layout={"shapes": [mark[0] for mark in marks], "annotations": [mark[1] for mark in marks]},
    )


def _model_traces(model: ConcentrationResult, *, panel: int) -> list[Spec]:
    traces: list[Spec] = []
    for projection, part in zip(PROJECTIONS, parts(model), strict=True):
        undefined = int(part.curve.isnan().sum())
        name = NAMES[projection] + (f" (undefined layers: {undefined})" if undefined else "")
        layers = list(model.layers)
        for edge in (part.curve_high, part.curve_low):
            traces.append(
                {
                    "type": "scatter",
                    "x": layers,
                    "y": rounded(edge, 4),
                    "mode": "lines",
                    "line": {"width": 0},
                    "fill": None if edge is part.curve_high else "tonexty",
                    "fillcolor": FILLS[projection],
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": projection,
                }
                | panel_axes(panel)
            )
        traces.append(
            {
                "type": "scatter",
                "x": layers,
                "y": rounded(part.curve, 4),
                "customdata": rounded(torch.stack([part.curve_low, part.curve_high], dim=-1), 4),
                "mode": "lines+markers",
                "line": {"color": COLOURS[projection], "width": 2, "dash": _DASHES[projection]},
                "marker": {"size": 5},
                "name": plain(name),
                "legendgroup": projection,
                "showlegend": panel == 0,
                "hovertemplate": f"{projection}, layer %{{x}}<br>%{{y}} per head, interval "
                "%{customdata[0]} to %{customdata[1]}<extra></extra>",
            }
            | panel_axes(panel)
        )
    return traces


def _highest(model: ConcentrationResult) -> float:
    ends = [float(part.curve_high.nan_to_num(0.0).max()) for part in parts(model)]
    ends += [float(part.curve.nan_to_num(0.0).max()) for part in parts(model)]
    return max(ends) or 1.0


def _first_layer(block: int) -> tuple[Spec, Spec]:
    line: Spec = {
        "type": "line",
        "x0": block,
        "x1": block,
        "y0": 0,
        "y1": 1,
        "xref": "x",
        "yref": "y domain",
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
    }
    text: Spec = {
        "text": f"first layer: {block}",
        "x": block,
        "y": 1,
        "xref": "x",
        "yref": "y domain",
        "xanchor": "left",
        "yanchor": "top",
        "xshift": 4,
        "showarrow": False,
        "font": {"size": 12, "color": MUTED},
    }
    return line, text
