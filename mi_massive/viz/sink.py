"""The attention sink as a confound: attention on the first token against damage and losses."""

from collections.abc import Mapping, Sequence
from typing import Final

import plotly.graph_objects as go

from mi_massive.arms import Arm
from mi_massive.contrasts import ArmContrast
from mi_massive.disruption import DisruptionResult
from mi_massive.scores import INTACT, Readout
from mi_massive.stats import Estimate
from mi_massive.viz.arms import (
    defined,
    described,
    ends,
    error_bar,
    losses,
    short,
    style,
    undefined_trace,
)
from mi_massive.viz.base import INK, MUTED, Spec, figure, panel_axes, plain

_TITLES: Final = ("Neutral text: added nats a token", "Tasks: mean share lost")
_HOLLOW: Final = "-open"

Measures = Mapping[str, Mapping[str, Estimate]]
"""By arm, then by the measure's name."""


def plot_sink(result: DisruptionResult, *, readout: Readout) -> go.Figure:
    """Attention on the first token against added cross-entropy and against the shares lost.

    How to read: one sign an arm, labelled with its k; the upright line is the intact model. Damage
    that comes from losing the sink would grow from this line to the left. An arm that is damaged at
    the intact model's sink (such as `sink_preserving`) speaks against the sink as the cause, one
    that loses the sink without damage as well. In the second panel full signs are the losses of
    contextual tasks, hollow ones those of parametric tasks of the same arm, joined by a line.

    Args:
        result: From `run_disruption`.
        readout: Which scores the shares lost come from.

    Returns:
        Two panels over the same axis.

    Raises:
        ValueError: If the read-out was not run.
    """
    lost = losses(result, readout)
    measures = {arm: result.effects.of(arm) for arm in result.effects.arms}
    by_preset: dict[str, list[Arm]] = {}
    for arm in result.arms:
        by_preset.setdefault(arm.preset, []).append(arm)
    labels = {arm.name: str(arm.k) for arm in result.arms}
    traces = [_intact(measures)]
    for preset, arms in by_preset.items():
        traces.append(_damage(preset, arms, measures, labels))
        traces += _lost(preset, arms, measures, lost, labels)
    at = measures[INTACT]["sink_mass"]
    for panel in range(len(_TITLES)):
        traces.append(_undefined(list(labels), measures, lost, panel=panel))
    return figure(
        traces,
        titles=_TITLES,
        x={"title": {"text": "attention on the first token"}},
        y={},
        height=460,
        layout={"shapes": _marks(at.effect if defined(at) else None)},
    )


def _undefined(
    names: Sequence[str], measures: Measures, lost: Mapping[str, ArmContrast], *, panel: int
) -> Spec:
    """Crosses at the panel's lower edge for what has no value there."""
    every = [(name, *entry) for name in names for entry in _values(name, measures, lost)]
    missing = [
        (name, where, what)
        for name, where, what, value in every
        if not (defined(value) and defined(measures[name]["sink_mass"]))
    ]
    own = [(name, what) for name, where, what in missing if where == panel]
    bottom = min([0.0, *(ends(v)[0] for _, where, _, v in every if where == panel and defined(v))])
    sinks = [measures[name]["sink_mass"] for name, _ in own]
    intact = measures[INTACT]["sink_mass"]
    fallback = intact.effect if defined(intact) else 0.0
    return undefined_trace(
        [short(sink.effect if defined(sink) else fallback) for sink in sinks],
        [short(bottom)] * len(own),
        [f"{plain(name)}<br>{what}: undefined" for name, what in own],
        panel=panel,
        n=len(missing),
    )


def _values(
    name: str, measures: Measures, lost: Mapping[str, ArmContrast]
) -> tuple[tuple[int, str, Estimate], ...]:
    return (
        (0, "added cross-entropy", measures[name]["added_cross_entropy"]),
        (1, "contextual loss", lost[name].contextual_loss),
        (1, "parametric loss", lost[name].parametric_loss),
    )


def _intact(measures: Measures) -> Spec:
    sink = measures[INTACT]["sink_mass"]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [short(sink.effect) if defined(sink) else None],
        "y": [0],
        "error_x": _sink_bar([sink], color=INK) if defined(sink) else None,
        "marker": {"color": INK, "symbol": style(INTACT).symbol, "size": 10},
        "hovertext": [f"{INTACT}<br>sink {described(sink)}"],
        "hoverinfo": "text",
        "name": INTACT,
    } | panel_axes(0)


def _damage(
    preset: str, arms: Sequence[Arm], measures: Measures, labels: Mapping[str, str]
) -> Spec:
    shown = [arm.name for arm in arms if _placed(arm.name, measures, "added_cross_entropy")]
    values = [measures[name]["added_cross_entropy"] for name in shown]
    return _signs(preset, shown, values, measures, labels, what="added nats") | {
        "name": plain(preset),
        "showlegend": True,
        **panel_axes(0),
    }


def _lost(
    preset: str,
    arms: Sequence[Arm],
    measures: Measures,
    lost: Mapping[str, ArmContrast],
    labels: Mapping[str, str],
) -> list[Spec]:
    """Full signs, hollow signs, and the lines between them."""
    names = [arm.name for arm in arms if defined(measures[arm.name]["sink_mass"])]
    made: list[Spec] = []
    for what, hollow in (("contextual", ""), ("parametric", _HOLLOW)):
        own = {name: getattr(lost[name], f"{what}_loss") for name in names}
        shown = [name for name in names if defined(own[name])]
        values = [own[name] for name in shown]
        signs = _signs(preset, shown, values, measures, labels, what=f"{what} share lost")
        signs["marker"] |= {"symbol": style(preset).symbol + hollow}
        if hollow:
            signs |= {"mode": "markers"}
        made.append(signs)
    x: list[float | None] = []
    y: list[float | None] = []
    for name in names:
        pair = (lost[name].contextual_loss, lost[name].parametric_loss)
        if all(defined(value) for value in pair):
            x += [short(measures[name]["sink_mass"].effect)] * 2 + [None]
            y += [*(short(value.effect) for value in pair), None]
    join: Spec = {
        "type": "scatter",
        "mode": "lines",
        "x": x or [None],
        "y": y or [None],
        "line": {"color": style(preset).color, "width": 1},
        "hoverinfo": "skip",
    }
    return [
        trace | panel_axes(1) | {"legendgroup": preset, "showlegend": False}
        for trace in (join, *made)
    ]


def _placed(name: str, measures: Measures, what: str) -> bool:
    return defined(measures[name]["sink_mass"]) and defined(measures[name][what])


def _signs(
    preset: str,
    names: Sequence[str],
    values: Sequence[Estimate],
    measures: Measures,
    labels: Mapping[str, str],
    *,
    what: str,
) -> Spec:
    look = style(preset)
    sinks = [measures[name]["sink_mass"] for name in names]
    middle = [value.effect for value in values]
    low, high = ([ends(value)[end] for value in values] for end in (0, 1))
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [short(sink.effect) for sink in sinks] or [None],
        "y": [short(value) for value in middle] or [None],
        "error_x": _sink_bar(sinks, color=look.color),
        "error_y": error_bar(middle, low, high, color=look.color),
        "marker": {"color": look.color, "symbol": look.symbol, "size": 9},
        "text": [labels[name] for name in names],
        "textposition": "top right",
        "cliponaxis": False,
        "textfont": {"size": 11, "color": look.color},
        "hovertext": [
            f"{plain(name)}<br>{what} {described(value)}<br>sink {described(sink)}"
            for name, value, sink in zip(names, values, sinks, strict=True)
        ],
        "hoverinfo": "text",
        "legendgroup": preset,
    }


def _sink_bar(sinks: Sequence[Estimate], *, color: str) -> Spec:
    low, high = ([ends(sink)[end] for sink in sinks] for end in (0, 1))
    return error_bar([sink.effect for sink in sinks], low, high, color=color)


def _marks(sink: float | None) -> list[Spec]:
    """The intact model's sink where it is defined, and the level of no loss."""
    lines: list[Spec] = []
    for panel in range(len(_TITLES)):
        axes = panel_axes(panel)
        upright: Spec = {
            **{"x0": sink, "x1": sink, "xref": axes["xaxis"]},
            **{"y0": 0, "y1": 1, "yref": f"{axes['yaxis']} domain"},
            "line": {"color": INK, "width": 1, "dash": "dot"},
        }
        level: Spec = {
            **{"x0": 0, "x1": 1, "xref": f"{axes['xaxis']} domain"},
            **{"y0": 0, "y1": 0, "yref": axes["yaxis"]},
            "line": {"color": MUTED, "width": 1},
        }
        shown = (level,) if sink is None else (level, upright)
        lines += [line | {"type": "line", "layer": "below"} for line in shown]
    return lines
