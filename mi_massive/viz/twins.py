"""Emergence: concentration and attention sink over a training, one line an encoding."""

import math
from collections.abc import Sequence
from typing import Final, Literal

import plotly.graph_objects as go

from mi_massive.axes import Projection
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twin_results import CHANCE, TwinsResult
from mi_massive.twin_runs import TwinRun, concentration_of
from mi_massive.viz.base import (
    BROWN,
    GREEN,
    INDIGO,
    MUTED,
    OLIVE,
    PURPLE,
    ROSE,
    TEAL,
    UNDEFINED,
    WINE,
    Spec,
    figure,
    panel_axes,
    panel_axis,
    plain,
)

_PANELS: Final[tuple[tuple[str, Projection | Literal["sink"]], ...]] = (
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


def plot_emergence(result: TwinsResult, *, layer: int | None = None) -> go.Figure:
    """Concentration of q, k and v, and the attention on the first token, over training.

    How to read: one thick line an encoding, the mean over seeds; thin lines are single seeds. Step
    0, the random weights, stands at the left edge of the log axis. An encoding that causes the
    concentration parts from the others in queries and keys, and not in values.

    Args:
        result: From `train_twins`.
        layer: One layer; geometric mean over layers (sink: mean) without it.

    Returns:
        Four panels over steps on a logarithmic axis; the first three on one scale.

    Raises:
        ValueError: If there is no such layer.
    """
    n_layers = result.config.shape.n_layers
    if layer is not None and not 0 <= layer < n_layers:
        raise ValueError(f"layer must be 0 to {n_layers - 1}, got {layer}")
    steps = [max(step, result.steps[1] / 2) for step in result.steps]
    traces: list[Spec] = []
    for panel, (_, what) in enumerate(_PANELS):
        for arm in result.config.arms:
            curves = [_curve(run, what, layer) for run in result.of(arm)]
            traces += [_thin(arm, steps, curve, panel) for curve in curves if len(curves) > 1]
            traces.append(_thick(arm, steps, _mean(curves), panel, n=len(curves)))
    made = figure(
        traces,
        titles=[title for title, _ in _PANELS],
        x={
            "title": {"text": "training step"},
            "type": "log",
            "tickvals": [steps[0], *_ticks(result.steps)],
            "ticktext": ["0", *(f"{tick:,}" for tick in _ticks(result.steps))],
        },
        y={},
        height=430,
    )
    shared = [c for trace in traces if trace["yaxis"] != "y4" for c in trace["y"] if c is not None]
    span = [1.0, 1.04 * max(shared, default=2.0)]
    for panel in range(3):
        made.update_layout({panel_axis("y", panel): {"range": span}})
    return made.update_layout({panel_axis("y", 3): {"range": [0, 1]}})


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
                    "y": list(conditions),
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
        y={"autorange": "reversed", "automargin": True, "dtick": 1, "tickfont": {"size": 11}},
        height=300 + rows,
        layout={"shapes": chance, "meta": {"panels": len(abilities), "panel_height": 60 + rows}},
    ).update_layout({panel_axis("y", 1): {"showticklabels": False}})


def _curve(run: TwinRun, what: Projection | Literal["sink"], layer: int | None) -> list[float]:
    if what == "sink":
        chosen = run.sink if layer is None else run.sink[:, layer : layer + 1]
        return [float(value) for value in chosen.mean(dim=1)]
    return [float(value) for value in concentration_of(run, what, layer)]


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean over the seeds that reached the step."""
    return [
        math.nan if not (found := [v for v in values if not math.isnan(v)])
        else sum(found) / len(found)
        for values in zip(*curves, strict=True)
    ]  # fmt: skip


def _thick(arm: str, steps: list[float], curve: list[float], panel: int, *, n: int) -> Spec:
    color, dash = _LOOK.get(arm, (UNDEFINED, "solid"))
    seeds = f" (mean of {n} seeds)" if n > 1 else ""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": steps,
        "y": _values(curve),
        "line": {"color": color, "width": 2.4, "dash": dash},
        "marker": {"color": color, "size": 6, "symbol": _symbol(arm)},
        "name": plain(TWIN_ARMS[arm].statement) + seeds,
        "legendgroup": arm,
        "showlegend": panel == 0,
    } | panel_axes(panel)


def _thin(arm: str, steps: list[float], curve: list[float], panel: int) -> Spec:
    color, dash = _LOOK.get(arm, (UNDEFINED, "solid"))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": steps,
        "y": _values(curve),
        "line": {"color": color, "width": 1, "dash": dash},
        "opacity": 0.4,
        "hoverinfo": "skip",
        "legendgroup": arm,
        "showlegend": False,
    } | panel_axes(panel)


def _symbol(arm: str) -> str:
    return "square" if arm in _WITHOUT_ROTATION else "circle"


def _values(curve: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in curve]


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _ticks(steps: tuple[int, ...]) -> list[int]:
    powers = [10**i * lead for i in range(1, 9) for lead in (1, 3)]
    return [power for power in powers if steps[1] <= power <= steps[-1]]
