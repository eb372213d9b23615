"""What each cell of a patch recovers: heat maps beside their placebo, and massive against matched.

A cell of a heat map is coloured between blue (against the answer) and orange (for it) around 0; it
is dotted where the effect is significant, grey with a cross where it is undefined, purple with a
triangle where it lies beyond the colour range.
"""

import math
from typing import Final, cast

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._checks import require_positive
from mi_massive.patch_results import PatchingResult
from mi_massive.viz.base import (
    BEYOND,
    BROWN,
    INDIGO,
    INK,
    MUTED,
    OLIVE,
    TEAL,
    UNDEFINED,
    WINE,
    Spec,
    figure,
    panel_axes,
    panel_axis,
    plain,
    positions,
    rounded,
)

_SCALE: Final = [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b35806"]]
_KINDS: Final = ("significant", "undefined", "beyond")
_COLOURS: Final = {"massive": WINE, "norm_matched": INDIGO, "same_band": TEAL, "random": OLIVE}
_WORDS: Final = {"kv_head": "key-value head", "head": "head", "band": "band, fast to slow"}


def plot_patching(
    result: PatchingResult, *, group: str | None = None, color_max: float | None = None
) -> go.Figure:
    """What each cell recovers, and what an unrelated prompt's activations do in its place.

    How to read: one row a layer, one column a head, a band, or (for whole layers) a position group.
    Orange recovers the answer of the other run, blue moves away from it, 1 is the whole difference.
    A dot marks an effect that is neither zero nor that of its placebo after correction over all
    cells. A colour that is as strong for the placebo says nothing about the prompt.

    Args:
        result: From `patch`, by layer, head or band.
        group: Position group to show; the first if None. Whole layers show all groups.
        color_max: End of the colour range on both sides; the largest size if None.

    Returns:
        Two heat maps, or one where the pairs had no placebo.

    Raises:
        ValueError: If the granularity has another figure, the group was not patched, or `color_max`
            is not finite and positive.
    """
    if result.granularity not in ("layer", "head", "band"):
        raise ValueError(
            f"granularity must be layer, head or band for this figure, got {result.granularity!r}; "
            "use plot_massive_patching for 'massive', and the tables for single pairs"
        )
    axis = result.axes[1]
    at = None if axis == "group" else result.group(group or str(result.labels["group"][0]))

    def shown(values: Tensor) -> Tensor:
        return values if at is None else values[..., at]

    panels = [shown(result.recovered), shown(result.placebo)]
    panels = panels[: 1 if bool(result.placebo.isnan().all()) else 2]
    flat = torch.cat([panel.flatten() for panel in panels])
    finite = flat[flat.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    if color_max is not None:
        require_positive("color_max", color_max)
    limit = color_max or (largest if largest > 0 else 1.0)
    significant = shown(result.significant)
    names = {
        "significant": f"significant: {int(significant.sum()):,} of {significant.numel():,} cells",
        "undefined": f"undefined: {int(flat.isnan().sum()):,} cells",
        "beyond": f"beyond the range (> {limit:.3g}): {int((finite > limit).sum()):,} cells",
    }
    rows = [str(block) for block in result.labels["layer"]]
    columns = [plain(str(entry)) for entry in result.labels[axis]]
    traces: list[Spec] = []
    for panel, values in enumerate(panels):
        marks = significant if panel == 0 else torch.zeros_like(significant)
        traces += _cells(values, marks, rows, columns, names, limit=limit, panel=panel)
    return figure(
        traces,
        titles=["Recovered", "Placebo: an unrelated prompt"][: len(panels)],
        x={"title": {"text": _WORDS.get(axis, "positions")}, "showgrid": False, "type": "category"},
        y={
            "title": {"text": "layer"},
            "showgrid": False,
            "autorange": "reversed",
            "type": "category",
            "nticks": 12,
        },
        height=520,
        layout={"coloraxis": _color_axis(limit)},
    )


def plot_massive_patching(result: PatchingResult) -> go.Figure:
    """Massive pairs against as many others, position group by position group.

    How to read: one panel a group, one bar an arm: what it recovers, mean over layers if they were
    patched one at a time, with its interval where all were patched at once. A diamond is the arm's
    placebo. Massive values that carry the answer have a longer bar than every control and than
    their own placebo. A cross is an arm without a value.

    Args:
        result: From `patch(..., granularity="massive")`.

    Returns:
        One panel a group.

    Raises:
        ValueError: If the result has another granularity.
    """
    if result.granularity != "massive":
        raise ValueError(
            f"granularity must be 'massive' for this figure, got {result.granularity!r}; use "
            "plot_patching"
        )
    arms = [str(arm) for arm in result.labels["selection"]]
    groups = [str(group) for group in result.labels["group"]]
    traces: list[Spec] = []
    for panel in range(len(groups)):
        means = result.recovered[..., panel].mean(dim=0)
        placebo = result.placebo[..., panel].mean(dim=0)
        low, high = (
            values[0, :, panel] if len(values) == 1 else torch.full_like(means, math.nan)
            for values in (result.low, result.high)
        )
        traces += _bars(arms, means, placebo, low, high, panel=panel)
    words = [plain(arm).replace("_", "<br>") for arm in arms]
    drawn = figure(
        traces,
        titles=groups,
        x={"showgrid": False, "type": "category", "tickvals": arms, "ticktext": words},
        y={"title": {"text": "recovered"}, "zeroline": True, "zerolinecolor": MUTED},
        height=420,
    )
    for panel in range(1, len(groups)):
        # One scale: alone, a panel of zeros shows rounding as if it were an effect.
        drawn.update_layout({panel_axis("y", panel): {"matches": "y"}})
    return drawn.update_xaxes(tickangle=0)


def _cells(
    values: Float[Tensor, "row column"],
    significant: Bool[Tensor, "row column"],
    rows: list[str],
    columns: list[str],
    names: dict[str, str],
    *,
    limit: float,
    panel: int,
) -> list[Spec]:
    undefined, beyond = values.isnan(), values.abs() > limit * (1 + 1e-6)
    flags = torch.full_like(values, math.nan)
    flags[undefined], flags[beyond] = 0.0, 1.0
    hover = "layer %{y}, %{x}<br>%{z}<extra></extra>"
    shared: Spec = {"type": "heatmap", "x": columns, "y": rows, "hoverongaps": False}
    cells: Spec = shared | {
        "z": rounded(values.masked_fill(beyond, math.nan)),
        "coloraxis": "coloraxis",
        "hovertemplate": hover,
    }
    listed = cast("list[list[float]]", values.tolist())
    texts = [[f"{value:.3g}" for value in row] for row in listed]
    flagged: Spec = shared | {
        "z": rounded(flags),
        "text": texts,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, UNDEFINED], [0.5, UNDEFINED], [0.5, BEYOND], [1, BEYOND]],
        "showscale": False,
        "hovertemplate": "layer %{y}, %{x}<br>%{text}<extra></extra>",
    }
    masks = {"significant": significant, "undefined": undefined, "beyond": beyond}
    signs = [
        _sign(kind, masks[kind], rows, columns, name=names[kind], legend=panel == 0)
        for kind in _KINDS
    ]
    return [trace | panel_axes(panel) for trace in (cells, flagged, *signs)]


def _sign(
    kind: str,
    mask: Bool[Tensor, "row column"],
    rows: list[str],
    columns: list[str],
    *,
    name: str,
    legend: bool,
) -> Spec:
    across, down = positions(mask)
    markers: dict[str, Spec] = {
        "significant": {
            "symbol": "circle",
            "size": 6,
            "color": "#ffffff",
            "line": {"width": 1.2, "color": "#000000"},
        },
        "undefined": {"symbol": "x-thin", "size": 4, "line": {"width": 1.2, "color": INK}},
        "beyond": {"symbol": "triangle-up", "size": 7, "color": INK},
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [columns[place] for place in across] or [None],
        "y": [rows[place] for place in down] or [None],
        "marker": markers[kind],
        "name": name,
        "legendgroup": kind,
        "showlegend": legend and (bool(mask.any()) or kind == "significant"),
        "hoverinfo": "skip",
    }


def _bars(
    arms: list[str],
    means: Float[Tensor, "arm"],
    placebo: Float[Tensor, "arm"],
    low: Float[Tensor, "arm"],
    high: Float[Tensor, "arm"],
    *,
    panel: int,
) -> list[Spec]:
    listed = cast("list[float]", means.tolist())
    missing = [arm for arm, value in zip(arms, listed, strict=True) if math.isnan(value)]
    bars: Spec = {
        "type": "bar",
        "x": arms,
        "y": rounded(means),
        "marker": {"color": [_COLOURS.get(arm, BROWN) for arm in arms]},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": rounded(high - means),
            "arrayminus": rounded(means - low),
            "color": INK,
            "thickness": 1.5,
        },
        "hovertemplate": "%{x}: %{y}<extra></extra>",
        "showlegend": False,
    }
    unrelated: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": arms,
        "y": rounded(placebo),
        "marker": {"symbol": "diamond-open", "size": 10, "color": INK, "line": {"width": 2}},
        "name": "placebo: an unrelated prompt",
        "legendgroup": "placebo",
        "showlegend": panel == 0 and not bool(placebo.isnan().all()),
        "hovertemplate": "placebo of %{x}: %{y}<extra></extra>",
    }
    crosses: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": missing or [None],
        "y": [0.0] * len(missing) or [None],
        "marker": {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": INK}},
        "name": "undefined",
        "legendgroup": "undefined",
        "showlegend": panel == 0 and bool(missing),
        "hoverinfo": "skip",
    }
    return [trace | panel_axes(panel) for trace in (bars, unrelated, crosses)]


def _color_axis(limit: float) -> Spec:
    ticks = [-limit, 0.0, limit]
    return {
        "cmin": -limit,
        "cmax": limit,
        "cmid": 0,
        "colorscale": _SCALE,
        "colorbar": {
            "title": {"text": "recovered<br>\u00a0", "side": "top", "font": {"size": 12}},
            "tickvals": ticks,
            "ticktext": [f"{tick:.2g}" for tick in ticks],
            "thickness": 12,
            "outlinewidth": 0,
            "ticks": "outside",
            "tickcolor": MUTED,
        },
    }
