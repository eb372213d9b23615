"""Loss over dose: what editing more dimensions costs, treatment beside every control."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go

from mi_massive.contrasts import ArmContrast
from mi_massive.disruption import DisruptionResult
from mi_massive.scores import Readout
from mi_massive.stats import Estimate
from mi_massive.viz.arms import (
    ArmGroup,
    arm_groups,
    defined,
    ends,
    error_bar,
    losses,
    short,
    style,
    undefined_trace,
)
from mi_massive.viz.base import MUTED, Spec, figure, panel_axes, panel_axis, plain

_TITLES: Final = (
    "Contextual tasks: share lost",
    "Parametric tasks: share lost",
    "Neutral text: added nats a token",
)
_DODGE: Final = 0.035
"""Octaves between the presets at one k, so that their bars do not cover each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    """One preset at one k."""

    k: int
    x: float
    middle: float
    low: float
    high: float
    text: str


def plot_dose(result: DisruptionResult, *, readout: Readout) -> go.Figure:
    """Losses and damage over k, the number of dimensions of each head that are edited.

    How to read: one line a preset. The first two panels show the mean share of the above-chance
    score that is lost, 0 nothing and 1 all, over the tasks that were above chance before; below 0
    the score grew. The third shows by how much the cross-entropy of neutral text rises: judge a
    loss at equal damage. Bars are intervals; for presets with several seeds the point is their mean
    and the bar goes from the lowest to the highest. Points at one k stand a little apart.

    Args:
        result: From `run_disruption`, with several k.
        readout: Which scores.

    Returns:
        Three panels over k on a logarithmic axis; the first two on one scale.

    Raises:
        ValueError: If the read-out was not run.
    """
    lost = losses(result, readout)
    sources: tuple[Callable[[str], Estimate], ...] = (
        lambda arm: lost[arm].contextual_loss,
        lambda arm: lost[arm].parametric_loss,
        lambda arm: result.effects.of(arm)["added_cross_entropy"],
    )
    series: dict[str, list[ArmGroup]] = {}
    for group in arm_groups(result.arms):
        series.setdefault(group.preset, []).append(group)
    panels = [
        {
            preset: [_point(group, source, _shift(at, len(series))) for group in groups]
            for at, (preset, groups) in enumerate(series.items())
        }
        for source in sources
    ]
    flat = [[point for points in panel.values() for point in points] for panel in panels]
    missing = [[point for point in points if math.isnan(point.middle)] for points in flat]
    empty = [panel for panel, points in enumerate(flat) if len(missing[panel]) == len(points)]
    n_undefined = sum(len(gone) for panel, gone in enumerate(missing) if panel not in empty)
    scales = [_scale([*flat[0], *flat[1]], 0, 1)] * 2 + [_scale(flat[2], 0, 0.1)]
    traces: list[Spec] = []
    for panel, points in enumerate(panels):
        for preset, line in points.items():
            traces.append(_line(preset, series[preset], line, panel=panel))
        gone = [] if panel in empty else missing[panel]
        x, y = [short(point.x) for point in gone], [scales[panel][0]] * len(gone)
        texts = [point.text for point in gone]
        traces.append(undefined_trace(x, y, texts, panel=panel, n=n_undefined))
    ks = sorted({arm.k for arm in result.arms})
    return figure(
        traces,
        titles=_TITLES,
        x={
            "title": {"text": "k, dimensions edited in each head"},
            "type": "log",
            "tickvals": ks,
            "ticktext": [str(k) for k in ks],
            "range": [math.log10(ks[0]) - 0.12, math.log10(ks[-1]) + 0.12],
        },
        y={},
        height=440,
        layout={"shapes": _marks(), "annotations": [_words(panel, lost) for panel in empty]},
    ).update_layout({panel_axis("y", at): {"range": _padded(s)} for at, s in enumerate(scales)})


def _shift(at: int, n: int) -> float:
    return 2 ** (_DODGE * (at - (n - 1) / 2))


def _point(group: ArmGroup, source: Callable[[str], Estimate], shift: float) -> _Point:
    values = [source(arm.name) for arm in group.arms]
    found = [value for value in values if defined(value)]
    head = f"{plain(group.preset)}, k = {group.k}<br>"
    middle = low = high = math.nan
    text = "undefined"
    if found:
        effects = [value.effect for value in found]
        middle = sum(effects) / len(effects)
        low, high = ends(found[0]) if len(values) == 1 else (min(effects), max(effects))
        text = f"{middle:.3g} [{low:.3g}, {high:.3g}]"
    if len(values) > 1:
        text += f"<br>mean and range of {len(found)} of {len(values)} seeds"
    return _Point(k=group.k, x=group.k * shift, middle=middle, low=low, high=high, text=head + text)


def _scale(points: Sequence[_Point], low: float, high: float) -> tuple[float, float]:
    """The range that holds every point with its bar, and `low` to `high`."""
    found = [point for point in points if not math.isnan(point.middle)]
    lows = [min(point.low, point.middle) for point in found]
    highs = [max(point.high, point.middle) for point in found]
    return min([low, *lows]), max([high, *highs])


def _padded(span: tuple[float, float]) -> list[float]:
    room = 0.06 * (span[1] - span[0])
    return [span[0] - room, span[1] + room]


def _line(preset: str, groups: Sequence[ArmGroup], points: Sequence[_Point], *, panel: int) -> Spec:
    look = style(preset)
    in_order = sorted(points, key=lambda point: point.k)
    middle, low, high = (
        [0.0 if math.isnan(p.middle) else getattr(p, end) for p in in_order]
        for end in ("middle", "low", "high")
    )
    n_seeds = max(len(group.arms) for group in groups)
    seeds = f" (mean of {n_seeds} seeds)" if n_seeds > 1 else ""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [short(point.x) for point in in_order],
        "y": [None if math.isnan(p.middle) else short(p.middle) for p in in_order],
        "error_y": error_bar(middle, low, high, color=look.color),
        "line": {"color": look.color, "width": 1.8, "dash": look.dash},
        "marker": {"color": look.color, "symbol": look.symbol, "size": 8},
        "hovertext": [point.text for point in in_order],
        "hoverinfo": "text",
        "name": plain(preset) + seeds,
        "legendgroup": preset,
        "showlegend": panel == 0,
    } | panel_axes(panel)


def _marks() -> list[Spec]:
    """Level lines: nothing lost, everything lost."""
    shapes: list[Spec] = []
    for panel, level in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        axes = panel_axes(panel)
        shapes.append(
            {
                "type": "line",
                **{"x0": 0, "x1": 1, "xref": f"{axes['xaxis']} domain"},
                **{"y0": level, "y1": level, "yref": axes["yaxis"]},
                "layer": "below",
                "line": {"color": MUTED, "width": 1, "dash": "dot" if level else "solid"},
            }
        )
    return shapes


def _words(panel: int, lost: Mapping[str, ArmContrast]) -> Spec:
    """Why a panel holds no point."""
    axes = panel_axes(panel)
    tasks = [
        (c.contextual_tasks, c.parametric_tasks, ("neutral text",))[panel] for c in lost.values()
    ]
    return {
        "text": "undefined in every arm"
        if any(tasks)
        else "no task above chance<br>before the edit",
        "showarrow": False,
        **{"x": 0.5, "xref": f"{axes['xaxis']} domain"},
        **{"y": 0.5, "yref": f"{axes['yaxis']} domain"},
        "font": {"size": 12, "color": MUTED},
    }
