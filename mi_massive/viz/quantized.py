"""Scores of quantized copies relative to full precision, task by task, beside published bars."""

from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Final

import plotly.graph_objects as go

from mi_massive.published import QUANTIZED
from mi_massive.quantization_results import QuantizationResult
from mi_massive.quantization_schemes import QuantizationScheme
from mi_massive.scores import INTACT, Cell, Readout
from mi_massive.stats import Estimate
from mi_massive.viz.arms import described, ends, error_bar, short
from mi_massive.viz.base import BROWN, GREEN, INK, MUTED, TEAL, WINE, Spec, figure, panel_axes

_COLOURS: Final = {"rtn": MUTED, "gptq": BROWN, "awq": WINE, "smoothquant": GREEN}
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x")
_WIDTH: Final = 0.7
"""Of the band of a task that its schemes share."""


def plot_quantized(result: QuantizationResult, *, readout: Readout = "options") -> go.Figure:
    """Score over the score of full precision, task by task.

    How to read: 1 is full precision. One point a scheme, seeds as their mean; bars are intervals of
    the paired change over examples, for full precision's score as it is. At the right the bars that
    the paper prints for other models, relative to its best method, without full precision.

    Args:
        result: From `compare_quantized`, with tasks.
        readout: Which scores.

    Returns:
        Two panels.

    Raises:
        ValueError: If no task was read out so.
    """
    cells = {(c.arm, c.task): c for c in result.cells if c.readout == readout}
    tasks = list(dict.fromkeys(task for _, task in cells))
    if not tasks:
        raise ValueError(f"readout must be one that a task was asked in, got {readout!r}")
    groups: dict[str, list[QuantizationScheme]] = {}
    for scheme in result.schemes:
        groups.setdefault(scheme.label, []).append(scheme)
    levels = list(dict.fromkeys(scheme.level for scheme in result.schemes))
    traces: list[Spec] = [_full(len(tasks))]
    for place, (label, schemes) in enumerate(groups.items()):
        ratios = [_mean([_ratio(cells, s.name, t) for s in schemes]) for t in tasks]
        x = [i + _WIDTH * ((place + 0.5) / len(groups) - 0.5) for i in range(len(tasks))]
        symbol = _SYMBOLS[levels.index(schemes[0].level) % len(_SYMBOLS)]
        traces.append(_points(label, schemes[0].method, symbol, x, ratios, len(schemes)))
    printed = list(next(iter(QUANTIZED.values())))
    for place, (method, bars) in enumerate(QUANTIZED.items()):
        traces.append(_bars(method, place, [bars[task] for task in printed]))
    made = figure(
        traces,
        titles=["Measured, relative to full precision", "Published (best is 1)"],
        x={
            "tickvals": list(range(len(tasks))),
            "ticktext": [_label(task) for task in tasks],
            "tickangle": 0,  # narrow pages would turn them over the panel below
            "tickfont": {"size": 10},
        },
        y={"title": {"text": "relative score"}, "rangemode": "tozero"},
        height=460,
    )
    made.update_layout(
        {
            "xaxis": {"domain": [0.0, 0.68]},
            "xaxis2": {
                "domain": [0.74, 1.0],
                "tickvals": list(range(len(printed))),
                "ticktext": printed,
            },
        }
    )
    return made


def _label(task: str) -> str:
    """Words below each other, long ones in two."""
    return "<br>".join(part for word in task.split("_") for part in wrap(word, 8))


def _full(n_tasks: int) -> Spec:
    """The level line of full precision."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [-0.5, n_tasks - 0.5],
        "y": [1, 1],
        "line": {"color": INK, "width": 1.2, "dash": "dash"},
        "name": "full precision",
        "hoverinfo": "skip",
    } | panel_axes(0)


def _points(
    label: str,
    method: str,
    symbol: str,
    x: Sequence[float],
    ratios: Sequence[Estimate],
    n_seeds: int,
) -> Spec:
    name = label + (f" ({n_seeds} seeds)" if n_seeds > 1 else "")
    middle = [e.effect for e in ratios]
    low, high = ([ends(e)[end] for e in ratios] for end in (0, 1))
    colour = _COLOURS.get(method, TEAL)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [short(at) for at in x],
        "y": [short(value) for value in middle],
        "error_y": error_bar(middle, low, high, color=colour),
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "hovertext": [f"{name}<br>{described(e)}, n = {e.n}" for e in ratios],
        "hoverinfo": "text",
        "name": name,
    } | panel_axes(0)


def _bars(method: str, place: int, values: Sequence[float]) -> Spec:
    return {
        "type": "bar",
        "x": list(range(len(values))),
        "y": list(values),
        "offset": 0.26 * place - 0.39,
        "width": 0.24,
        "marker": {"color": _COLOURS[method]},
        "hovertext": [f"{method}, published: {value:g}" for value in values],
        "hoverinfo": "text",
        "name": method,
        "showlegend": False,
    } | panel_axes(1)


def _ratio(cells: dict[tuple[str, str], Cell], name: str, task: str) -> Estimate:
    """Score over that of full precision, with the interval of the paired change."""
    full, change = cells[INTACT, task].score.effect, cells[name, task].change
    if full == 0:
        return replace(change, effect=float("nan"), low=float("nan"), high=float("nan"))
    return replace(
        change,
        effect=1 + change.effect / full,
        low=1 + change.low / full,
        high=1 + change.high / full,
    )


def _mean(values: Sequence[Estimate]) -> Estimate:
    """Seeds as one point: the means of the estimates and of their ends."""
    mean = {
        name: sum(getattr(value, name) for value in values) / len(values)
        for name in ("effect", "low", "high")
    }
    return replace(values[0], **mean)
