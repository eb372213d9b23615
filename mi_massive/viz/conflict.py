"""What an edited model does when its prompt contradicts what it knows, and what it still knows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import plotly.graph_objects as go

from mi_massive.conflict import ConflictResult
from mi_massive.conflict_scores import DECIDING, ConflictCell, ConflictReadout
from mi_massive.scores import INTACT
from mi_massive.stats import Estimate
from mi_massive.viz.arms import defined, described, ends, error_bar, short, undefined_trace
from mi_massive.viz.base import GRID, INDIGO, INK, MUTED, OLIVE, Spec, figure, panel_axes, plain

TITLES: Final = ("The prompt contradicts the fact", "The prompt says nothing of it")

_ROW: Final = 40
"""Height of one arm, in pixels."""
_MARGIN: Final[Spec] = {"l": 24, "r": 24, "t": 40, "b": 104, "pad": 2}

_Part = Literal["follows", "keeps", "neither"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """A share of the bar."""

    name: str
    color: str
    pattern: str


_LOOKS: Final[dict[_Part, _Look]] = {
    "follows": _Look(name="follows the context", color=INDIGO, pattern=""),
    "keeps": _Look(name="gives the fact (memory)", color=OLIVE, pattern="/"),
    "neither": _Look(name="neither", color=GRID, pattern=""),
}


def plot_conflict(result: ConflictResult, *, readout: ConflictReadout = DECIDING) -> go.Figure:
    """Shares that follow the context, keep memory or do neither, arm by arm; and memory alone.

    How to read: one row an arm, the intact model first. On the left the known conflicts: the bar
    is all of them, cut by which answer is given. On the right the same facts after a context that
    says nothing of them, with the interval of the share that is still given: an edit that shortens
    the left bar's first part and the right bar alike has destroyed memory, and a model cannot fall
    back on it.

    Args:
        result: From `run_conflict`.
        readout: How answers are read.

    Returns:
        Two panels. Arms without any known conflict are marked as undefined.
    """
    cells = [
        result.cell(name, readout=readout) for name in (INTACT, *(a.name for a in result.arms))
    ]
    missing = sum(not defined(cell.keeps) for cell in cells)
    traces: list[Spec] = [
        *(_bars(cells, part, panel=0) for part in _LOOKS),
        _undefined(cells, panel=0, n=2 * missing),
        _recalled(cells),
        _undefined(cells, panel=1, n=2 * missing),
    ]
    height = _ROW * len(cells) + _MARGIN["t"] + _MARGIN["b"]
    return figure(
        traces,
        titles=TITLES,
        x={"title": {"text": "share of the known conflicts"}, "range": [0, 1.02], "dtick": 0.25},
        y={
            "showticklabels": False,
            "ticks": "",
            "showgrid": False,
            "range": [len(cells) - 0.5, -0.6],
        },
        height=height,
        layout={
            "barmode": "stack",
            "bargap": 0.5,
            "margin": _MARGIN,
            "annotations": [
                _label(cell, row, panel) for panel in (0, 1) for row, cell in enumerate(cells)
            ],
            "meta": {"panels": 2, "panel_height": _ROW * len(cells)},
        },
    )


def _bars(cells: Sequence[ConflictCell], part: _Part, *, panel: int) -> Spec:
    look = _LOOKS[part]
    shown = [(row, cell, _value(cell, part)) for row, cell in enumerate(cells)]
    shown = [entry for entry in shown if defined(entry[2])]
    return {
        "type": "bar",
        "orientation": "h",
        "x": [short(value.effect) for _, _, value in shown],
        "y": [row for row, _, _ in shown],
        "marker": _marker(look),
        "hovertext": [
            f"{plain(cell.arm)}<br>{look.name}: {described(value)}, n = {value.n}"
            for _, cell, value in shown
        ],
        "hoverinfo": "text",
        "name": look.name,
        "legendgroup": part,
    } | panel_axes(panel)


def _recalled(cells: Sequence[ConflictCell]) -> Spec:
    shown = [(row, cell) for row, cell in enumerate(cells) if defined(cell.closed_book)]
    middle = [cell.closed_book.effect for _, cell in shown]
    low, high = ([ends(cell.closed_book)[end] for _, cell in shown] for end in (0, 1))
    return {
        "type": "bar",
        "orientation": "h",
        "x": [short(value) for value in middle],
        "y": [row for row, _ in shown],
        "error_x": error_bar(middle, low, high, color=INK),
        "marker": _marker(_LOOKS["keeps"]),
        "hovertext": [
            f"{plain(cell.arm)}<br>gives the fact: {described(cell.closed_book)}, "
            f"n = {cell.closed_book.n}"
            for _, cell in shown
        ],
        "hoverinfo": "text",
        "name": _LOOKS["keeps"].name,
        "legendgroup": "keeps",
        "showlegend": False,
    } | panel_axes(1)


def _marker(look: _Look) -> Spec:
    return {
        "color": look.color,
        "line": {"color": MUTED, "width": 0.8},
        "pattern": {"shape": look.pattern, "size": 6, "solidity": 0.2},
    }


def _value(cell: ConflictCell, part: _Part) -> Estimate:
    return {"follows": cell.follows, "keeps": cell.keeps, "neither": cell.neither}[part]


def _undefined(cells: Sequence[ConflictCell], *, panel: int, n: int) -> Spec:
    rows = [row for row, cell in enumerate(cells) if not defined(cell.keeps)]
    texts = [f"{plain(cells[row].arm)}<br>no known conflict" for row in rows]
    places = [float(row) for row in rows]
    return undefined_trace([0.0] * len(rows), places, texts, panel=panel, n=n)


def _label(cell: ConflictCell, row: int, panel: int) -> Spec:
    """Name of an arm above its bar."""
    axes = panel_axes(panel)
    count = "" if math.isnan(cell.keeps.effect) else f" (n = {cell.keeps.n})"
    return {
        "text": plain(cell.arm) + (count if cell.arm == INTACT else ""),
        "showarrow": False,
        **{"x": 0, "xref": f"{axes['xaxis']} domain", "xanchor": "left", "xshift": 2},
        **{"y": row - 0.26, "yref": axes["yaxis"], "yanchor": "bottom"},
        "font": {"size": 11, "color": MUTED},
    }
