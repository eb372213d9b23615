"""Emergence: concentration and attention sink as twins learn, one line an encoding."""

import math
from collections.abc import Sequence
from typing import Final, Literal

import plotly.graph_objects as go

from mi_massive.stats import Estimate
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twin_curves import curve_over_losses, curve_over_steps
from mi_massive.twin_results import CHANCE, TwinsResult
from mi_massive.twin_runs import Measure
from mi_massive.viz.base import (
    BROWN,
    GREEN,
    INDIGO,
    MUTED,
    OLIVE,
    PURPLE,
    ROSE,
    TEAL,
    WINE,
    Spec,
    figure,
    panel_axes,
    panel_axis,
    plain,
)

_PANELS: Final[tuple[tuple[str, Measure], ...]] = (
    ("Queries: max/mean", "q"),
    ("Keys: max/mean", "k"),
    ("Values: max/mean", "v"),
    ("First token: attention", "sink"),
)
_LOOK: Final[dict[str, tuple[str, str]]] = {
    "rope": (WINE, "solid"),
    "rope_1e2": (ROSE, "dash"),
    "rope_5e5": (PURPLE, "dash"),
    "partial_25": (BROWN, "dot"),
    "partial_50": (BROWN, "dashdot"),
    "p_rope": (PURPLE, "dot"),
    "interleaved": (ROSE, "dot"),
    "qk_norm": (OLIVE, "dash"),
    "learned": (INDIGO, "solid"),
    "alibi": (TEAL, "solid"),
    "none": (GREEN, "solid"),
}
_WITHOUT_ROTATION: Final = ("none", "alibi", "learned")


def plot_emergence(
    result: TwinsResult, *, over: Literal["steps", "loss"] = "steps", layer: int | None = None
) -> go.Figure:
    """Concentration of q, k and v, and the attention on the first token, as twins learn.

    How to read: one line an encoding, the mean over seeds; the shade is its 95 % interval
    (Student's t), which three seeds leave wide. Over steps, step 0 (the random weights) stands at
    the left edge of the log axis; over the loss, models learn from left to right, and encodings are
    compared at what they have learned. An encoding that causes the concentration parts from the
    others in queries and keys, and not in values.

    Args:
        result: From `train_twins`.
        over: Steps on a logarithmic axis, or the held-out loss in nats, falling.
        layer: One layer; geometric mean over layers (sink: mean) without it.

    Returns:
        Four panels; the first three on one scale.

    Raises:
        ValueError: If there is no such layer.
    """
    traces: list[Spec] = []
    # Highest effect and end of an interval: of the three projections, which share a scale; sink.
    effects, ends = ([2.0], [0.1]), ([2.0], [0.1])
    for panel, (_, what) in enumerate(_PANELS):
        for arm in result.config.arms:
            x, found = _curve(result, arm, what, over, layer)
            scale = int(what == "sink")
            effects[scale].extend(e.effect for e in found if math.isfinite(e.effect))
            ends[scale].extend(e.high for e in found if math.isfinite(e.high))
            traces += [*_shade(arm, x, found, panel), _line(arm, x, found, panel, over=over)]
    made = figure(
        traces,
        titles=[title for title, _ in _PANELS],
        x=_steps_axis(result.steps) if over == "steps" else _loss_axis(traces),
        y={},
        height=430,
    )
    for panel, (_, what) in enumerate(_PANELS):
        scale = int(what == "sink")
        # An interval of few seeds may reach far beyond every curve, which keeps most of the panel.
        top = 1.04 * max(*effects[scale], min(max(ends[scale]), 1.25 * max(effects[scale])))
        made.update_layout({panel_axis("y", panel): {"range": [1.0 - scale, top]}})
    return made


def plot_abilities(result: TwinsResult) -> go.Figure:
    """What disruptions of trained twins cost: recall from the prompt against memorized facts.

    How to read: one panel an ability, one line an encoding, one place a disruption; 1 is every
    answer right, the dotted line is chance. Bars are intervals over seeds; a disruption that draws
    its dimensions stands as the mean over its draws, and has no mark where an encoding lacks it.

    Args:
        result: Of twins that were trained on the mixture.

    Raises:
        ValueError: If the twins were trained on text.
    """
    conditions = result.conditions
    if not conditions:
        raise ValueError("result must be of twins trained on the mixture, got text; train on it")
    abilities = (("Recall, from the prompt", "recall"), ("Facts, from the weights", "facts"))
    traces: list[Spec] = []
    for panel, (_, ability) in enumerate(abilities):
        for arm in result.config.arms:
            found = [result.ability(arm, name, ability) for name in conditions]
            color, _ = _LOOK[arm]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [_number(estimate.effect) for estimate in found],
                    "y": [row + _offset(result, arm) for row in range(len(conditions))],
                    "text": list(conditions),
                    "hovertemplate": "%{text}: %{x}",
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [_number(max(0.0, e.high - e.effect)) for e in found],
                        "arrayminus": [_number(max(0.0, e.effect - e.low)) for e in found],
                        "color": color,
                        "thickness": 1.2,
                    },
                    "marker": {"color": color, "size": 8, "symbol": _symbol(arm)},
                    "name": plain(TWIN_ARMS[arm].statement),
                    "legendgroup": arm,
                    "showlegend": panel == 0,
                }
                | panel_axes(panel)
            )
    chance = [
        {
            "type": "line",
            **{"x0": CHANCE, "x1": CHANCE, "xref": panel_axes(panel)["xaxis"]},
            **{"y0": 0, "y1": 1, "yref": f"{panel_axes(panel)['yaxis']} domain"},
            "line": {"color": MUTED, "width": 1, "dash": "dot"},
        }
        for panel in range(2)
    ]
    rows = 18 * len(conditions)
    return figure(
        traces,
        titles=[title for title, _ in abilities],
        x={"title": {"text": "share of right answers"}, "range": [-0.03, 1.03]},
        y={
            **{"range": [len(conditions) - 0.5, -0.5], "automargin": True},
            **{"tickvals": [*range(len(conditions))], "ticktext": list(conditions)},
            "tickfont": {"size": 11},
        },
        height=300 + rows,
        layout={"shapes": chance, "meta": {"panels": len(abilities), "panel_height": 60 + rows}},
    ).update_layout({panel_axis("y", 1): {"showticklabels": False}})


def _offset(result: TwinsResult, arm: str) -> float:
    """Arms of one row stand below each other, so that equal scores do not hide each other."""
    arms = result.config.arms
    return 0.7 * ((arms.index(arm) + 0.5) / len(arms) - 0.5)


def _curve(
    result: TwinsResult, arm: str, what: Measure, over: str, layer: int | None
) -> tuple[list[float], list[Estimate]]:
    """Where on the x axis, and the measure there."""
    if over == "steps":
        return _shown_steps(result.steps), curve_over_steps(result, arm, what, layer=layer)
    curve = curve_over_losses(result, arm, what, layer=layer)
    return [loss for loss, _ in curve], [estimate for _, estimate in curve]


def _shown_steps(steps: tuple[int, ...]) -> list[float]:
    """Steps on a log axis, step 0 at its left edge."""
    return [max(step, steps[1] / 2) for step in steps]


def _steps_axis(steps: tuple[int, ...]) -> Spec:
    powers = [10**i * lead for i in range(1, 9) for lead in (1, 3)]
    ticks = [power for power in powers if steps[1] <= power <= steps[-1]]
    return {
        "title": {"text": "training step"},
        "type": "log",
        "tickvals": [_shown_steps(steps)[0], *ticks],
        "ticktext": ["0", *(f"{tick:,}" for tick in ticks)],
    }


def _loss_axis(traces: Sequence[Spec]) -> Spec:
    """Falling from left to right, with room beside the ends of the lines."""
    losses = [loss for trace in traces for loss in trace["x"]] or [1.0, 0.0]
    room = 0.04 * (max(losses) - min(losses))
    return {
        "title": {"text": "held-out loss (nats)"},
        "range": [max(losses) + room, min(losses) - room],
    }


def _line(
    arm: str, x: Sequence[float], found: Sequence[Estimate], panel: int, *, over: str
) -> Spec:
    """With a mark at every step that was measured; over the loss all points are between such."""
    color, dash = _LOOK[arm]
    n = max((estimate.n for estimate in found), default=0)
    seeds = f" (mean of {n} seeds)" if n > 1 else ""
    return {
        "type": "scatter",
        "mode": "lines+markers" if over == "steps" else "lines",
        "x": _values(x),
        "y": _values([estimate.effect for estimate in found]),
        "line": {"color": color, "width": 2.4, "dash": dash},
        "marker": {"color": color, "size": 6, "symbol": _symbol(arm)},
        "name": plain(TWIN_ARMS[arm].statement) + seeds,
        "legendgroup": arm,
        "showlegend": panel == 0,
    } | panel_axes(panel)


def _shade(arm: str, x: Sequence[float], found: Sequence[Estimate], panel: int) -> list[Spec]:
    """The intervals as one closed outline; none where there are no two seeds."""
    sure = [(at, e) for at, e in zip(x, found, strict=True) if math.isfinite(e.low)]
    if not sure:
        return []
    around = [(at, e.high) for at, e in sure] + [(at, e.low) for at, e in reversed(sure)]
    color, _ = _LOOK[arm]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": _values([at for at, _ in around]),
            "y": _values([value for _, value in around]),
            "fill": "toself",
            "fillcolor": color,
            "line": {"color": color, "width": 0},
            "opacity": 0.14,
            "hoverinfo": "skip",
            "legendgroup": arm,
            "showlegend": False,
        }
        | panel_axes(panel)
    ]


def _symbol(arm: str) -> str:
    return "square" if arm in _WITHOUT_ROTATION else "circle"


def _values(curve: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in curve]


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
