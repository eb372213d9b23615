"""Energy over wavelength: which rotary frequencies hold the norm of queries and keys."""

from collections.abc import Sequence
from typing import cast

import plotly.graph_objects as go
import torch

from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.bands import BandsResult
from mi_massive.viz.base import COLOURS, MUTED, NAMES, Spec, figure, panel_axes, rounded

_DEPTHS = ("early", "middle", "late")
_DASHES = ("dot", "dash", "longdash")

Group = tuple[str, list[int]]
"""A name for the legend and positions on the layer axis."""


def plot_wavelengths(result: BandsResult) -> go.Figure:
    """Share of a head's energy in each rotary pair over the pair's wavelength (logarithmic).

    How to read: left turns fast, right turns slowly. The thick line is the mean over all layers and
    heads, thin broken lines are the early, middle and late third of the layers (or, where layers
    rotate differently, each kind of layer). The level line is the share that every pair would have
    if none stood out. The upright line is the training context: a pair to its right never made a
    full turn in training. Values do not rotate; their panel groups their dimensions in the same way
    and is the control. A pair's energy is the same before and after rotation.

    Args:
        result: From `bands`.

    Returns:
        Three panels on one scale.
    """
    groups = _groups(result)
    traces: list[Spec] = []
    for panel, projection in enumerate(PROJECTIONS):
        traces += _panel(result, projection, groups, panel=panel)
    top = max(value for trace in traces for value in trace["y"] if value is not None)
    marks = _marks(result)
    return figure(
        traces,
        titles=[NAMES[p] if p != "v" else "Values (control, not rotated)" for p in PROJECTIONS],
        x={
            "title": {"text": "wavelength (tokens per turn)"},
            "type": "log",
            "tickformat": "~s",
            "dtick": 1,
        },
        y={"title": {"text": "share of energy"}, "range": [0, 1.08 * top], "tickformat": ".0%"},
        height=400,
        layout={"shapes": [line for line, _ in marks], "annotations": [text for _, text in marks]},
    )


def _panel(
    result: BandsResult, projection: Projection, groups: Sequence[Group], *, panel: int
) -> list[Spec]:
    share = {"q": result.q, "k": result.k, "v": result.v}[projection].energy_share
    everything = (_all_name(result), list(range(share.shape[0])))
    n_pairs = int((~result.wavelengths.isnan()).sum(dim=-1).max())
    lines = [
        _line(result, share, group, panel=panel, projection=projection) | _style(at, projection)
        for at, group in enumerate([everything, *groups])
        if at > 0 or _one_wavelength(result)
    ]
    waves = result.wavelengths[torch.isfinite(result.wavelengths)]
    level: Spec = {
        "type": "scatter",
        "x": rounded(torch.stack([waves.min(), waves.max()]), 4),
        "y": [1 / n_pairs, 1 / n_pairs],
        "mode": "lines",
        "line": {"color": MUTED, "width": 1},
        "name": "equal share",
        "legendgroup": "equal",
        "showlegend": panel == 0,
        "hoverinfo": "skip",
    }
    return [*lines, level | panel_axes(panel)]


def _line(
    result: BandsResult,
    share: torch.Tensor,
    group: Group,
    *,
    panel: int,
    projection: Projection,
) -> Spec:
    name, at = group
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(result.wavelengths[at[0]], 4),
        "y": rounded(share[at].nanmean(dim=(0, 1))),
        "name": name,
        "legendgroup": name,
        "showlegend": panel == 0,
        "hovertemplate": f"{projection}, {name}"
        "<br>wavelength %{x} tokens<br>%{y:.1%} of the energy"
        "<extra></extra>",
    } | panel_axes(panel)


def _style(at: int, projection: Projection) -> Spec:
    if at == 0:
        return {"line": {"color": COLOURS[projection], "width": 3}}
    dash = _DASHES[(at - 1) % len(_DASHES)]
    return {"line": {"color": COLOURS[projection], "width": 1.3, "dash": dash}}


def _all_name(result: BandsResult) -> str:
    defined = ~result.wavelengths.isnan()
    parts = (result.q, result.k, result.v)
    heads = sum(int((p.energy_share.isnan() & defined[:, None]).any(-1).sum()) for p in parts)
    still = int(result.wavelengths[0].isinf().sum())
    left_out = [f"{heads} undefined heads"] if heads else []
    left_out += [f"{still} pairs that never turn"] if still else []
    return "mean of all layers" + (f" (left out: {', '.join(left_out)})" if left_out else "")


def _one_wavelength(result: BandsResult) -> bool:
    waves = result.wavelengths.nan_to_num(nan=-1.0)
    return bool((waves == waves[0]).all())


def _groups(result: BandsResult) -> list[Group]:
    """Thirds of the layers; where layers differ in their wavelengths, one group a set of them."""
    if not _one_wavelength(result):
        kinds: dict[tuple[float, ...], list[int]] = {}
        rows = cast("list[list[float]]", result.wavelengths.nan_to_num(nan=-1.0).tolist())
        for at, waves in enumerate(rows):
            kinds.setdefault(tuple(waves), []).append(at)
        return [
            (f"{len(at)} layers, slowest wavelength {max(waves):,.0f}", at)
            for waves, at in kinds.items()
        ]
    n = len(result.layers)
    thirds = [list(range(n * part // 3, n * (part + 1) // 3)) for part in range(3)]
    return [
        (f"{name} (layers {result.layers[at[0]]} to {result.layers[at[-1]]})", at)
        for name, at in zip(_DEPTHS, thirds, strict=True)
        if at
    ]


def _marks(result: BandsResult) -> list[tuple[Spec, Spec]]:
    if result.training_context is None:
        return []
    context = result.training_context
    marks: list[tuple[Spec, Spec]] = []
    for panel in range(len(PROJECTIONS)):
        axes = panel_axes(panel)
        where: Spec = {"xref": axes["xaxis"], "yref": f"{axes['yaxis']} domain"}
        line: Spec = {"type": "line", "x0": context, "x1": context, "y0": 0, "y1": 1}
        text: Spec = {
            "text": f"training context<br>{context:,} tokens",
            **{"x": torch.tensor(float(context)).log10().item(), "y": 1},
            **{"xanchor": "right", "yanchor": "top", "xshift": -4, "align": "right"},
            "showarrow": False,
            "font": {"size": 11, "color": MUTED},
        }
        marks.append(
            (line | where | {"line": {"color": MUTED, "width": 1, "dash": "dash"}}, text | where)
        )
    return marks
