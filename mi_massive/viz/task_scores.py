"""Scores of every task under every arm, with the intact model and chance beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go

from mi_massive.arms import Arm
from mi_massive.disruption import DisruptionResult
from mi_massive.scores import INTACT, Cell, Readout
from mi_massive.tasks.base import Kind
from mi_massive.viz.arms import (
    Style,
    arm_groups,
    defined,
    described,
    ends,
    error_bar,
    require_readout,
    short,
    style,
    undefined_trace,
)
from mi_massive.viz.base import MUTED, Spec, figure, panel_axes, plain

_KINDS: Final[tuple[tuple[Kind, str], ...]] = (
    ("contextual", "Contextual tasks"),
    ("parametric", "Parametric tasks"),
)
_PITCH: Final = 11
"""Height of one arm's row, in pixels."""
_HEAD, _FOOT = 2.2, 0.8
"""Room above and below the rows of a task, in rows."""
_ENTRIES_A_LINE: Final = 5

Cells = Mapping[tuple[str, str], Cell]
"""By arm and task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One line of dots: the intact model, or the seeds of a preset at one k."""

    label: str
    arms: tuple[str, ...]
    look: Style


def plot_task_scores(
    result: DisruptionResult, *, readout: Readout, arms: Sequence[str] | None = None
) -> go.Figure:
    """Share of right answers of every task under every arm, contextual and parametric apart.

    How to read: one block a task, in it one row an arm, always in the order of the legend: the
    intact model first, then treatments and controls as they were run. A dot is the share of right
    answers, its bar the interval; several dots in a row are seeds. The dotted upright line is the
    score of a guesser in this task. Where the intact model is not above it ("at chance") nothing
    can be lost, whatever the dots do.

    Args:
        result: From `run_disruption`.
        readout: Which scores.
        arms: Names of the arms to show; all if None.

    Returns:
        One panel a kind of task.

    Raises:
        ValueError: If the read-out was not run or there is no arm of a name.
    """
    require_readout(result, readout)
    rows = _rows(_chosen(result, arms))
    cells = {(c.arm, c.task): c for c in result.cells if c.readout == readout}
    panels = {title: _tasks(cells, kind) for kind, title in _KINDS if _tasks(cells, kind)}
    shown = [arm for row in rows for arm in row.arms]
    n_undefined = sum(
        not defined(cells[arm, task].score)
        for tasks in panels.values()
        for task in tasks
        for arm in shown
    )
    traces: list[Spec] = []
    heads: list[Spec] = []
    for panel, tasks in enumerate(panels.values()):
        traces.append(_chance(cells, tasks, rows, panel=panel))
        traces += [_dots(cells, tasks, rows, at, panel=panel) for at in range(len(rows))]
        traces.append(_undefined(cells, tasks, rows, panel=panel, n=n_undefined))
        heads += [
            _head(cells[INTACT, task], at, rows, panel=panel) for at, task in enumerate(tasks)
        ]
    total = max(len(tasks) for tasks in panels.values()) * _block(rows)
    n_lines = math.ceil((len(rows) + 2) / _ENTRIES_A_LINE)
    inner = round(_PITCH * total)
    margin: Spec = {"l": 24, "r": 24, "t": 40 + 24 * n_lines, "b": 60, "pad": 2}
    return figure(
        traces,
        titles=list(panels),
        x={"title": {"text": "share of right answers"}, "range": [-0.03, 1.03], "dtick": 0.25},
        y={"showticklabels": False, "ticks": "", "showgrid": False, "range": [total, 0]},
        height=inner + margin["t"] + margin["b"],
        layout={
            "height": inner + margin["t"] + margin["b"],
            "margin": margin,
            "annotations": heads,
            "legend": {
                "orientation": "h",
                **{"x": 0, "xanchor": "left", "y": 1 + 32 / inner, "yanchor": "bottom"},
                "bgcolor": "rgba(0,0,0,0)",
            },
            "meta": {"panels": len(panels), "panel_height": inner},
        },
    )


def _chosen(result: DisruptionResult, arms: Sequence[str] | None) -> tuple[Arm, ...]:
    known = [arm.name for arm in result.arms]
    for name in arms or ():
        if name not in known:
            raise ValueError(f"arms must be among {', '.join(known)}, got {name!r}")
    return tuple(arm for arm in result.arms if arms is None or arm.name in arms)


def _rows(arms: Sequence[Arm]) -> list[_Row]:
    groups = [
        _Row(label=g.label, arms=tuple(arm.name for arm in g.arms), look=style(g.preset))
        for g in arm_groups(arms)
    ]
    return [_Row(label=INTACT, arms=(INTACT,), look=style(INTACT)), *groups]


def _tasks(cells: Cells, kind: Kind) -> list[str]:
    return [task for (arm, task), cell in cells.items() if arm == INTACT and cell.kind == kind]


def _block(rows: Sequence[_Row]) -> float:
    """Rows that one task takes."""
    return _HEAD + len(rows) + _FOOT


def _place(task: int, row: int, rows: Sequence[_Row]) -> float:
    """Vertical position of an arm's row in the block of a task."""
    return task * _block(rows) + _HEAD + row + 0.5


def _dots(cells: Cells, tasks: Sequence[str], rows: Sequence[_Row], at: int, *, panel: int) -> Spec:
    row = rows[at]
    points = [
        (cells[arm, task], _place(number, at, rows))
        for number, task in enumerate(tasks)
        for arm in row.arms
        if defined(cells[arm, task].score)
    ]
    middle = [cell.score.effect for cell, _ in points]
    low, high = ([ends(cell.score)[end] for cell, _ in points] for end in (0, 1))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [short(value) for value in middle] or [None],
        "y": [y for _, y in points] or [None],
        "error_x": error_bar(middle, low, high, color=row.look.color),
        "marker": {"color": row.look.color, "symbol": row.look.symbol, "size": 8},
        "opacity": 1 if len(row.arms) == 1 else 0.8,
        "hovertext": [_hover(cell) for cell, _ in points],
        "hoverinfo": "text",
        "name": plain(row.label),
        "legendgroup": row.label,
        "showlegend": panel == 0,
    } | panel_axes(panel)


def _hover(cell: Cell) -> str:
    change = "" if cell.arm == INTACT else f"<br>change {described(cell.change)}"
    return (
        f"{plain(cell.task)}, {plain(cell.arm)}<br>{described(cell.score)}, n = {cell.score.n}"
        f"{change}"
    )


def _chance(cells: Cells, tasks: Sequence[str], rows: Sequence[_Row], *, panel: int) -> Spec:
    x: list[float | None] = []
    y: list[float | None] = []
    for number, task in enumerate(tasks):
        floor = short(cells[INTACT, task].floor)
        x += [floor, floor, None]
        y += [_place(number, 0, rows) - 0.7, _place(number, len(rows) - 1, rows) + 0.7, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": MUTED, "width": 1.2, "dash": "dot"},
        "hoverinfo": "skip",
        "name": "chance",
        "legendgroup": "chance",
        "legendrank": 1001,
        "showlegend": panel == 0,
    } | panel_axes(panel)


def _undefined(
    cells: Cells, tasks: Sequence[str], rows: Sequence[_Row], *, panel: int, n: int
) -> Spec:
    missing = [
        (cells[arm, task], _place(number, at, rows))
        for number, task in enumerate(tasks)
        for at, row in enumerate(rows)
        for arm in row.arms
        if not defined(cells[arm, task].score)
    ]
    texts = [f"{plain(cell.task)}, {plain(cell.arm)}<br>undefined" for cell, _ in missing]
    return undefined_trace([0.0] * len(missing), [y for _, y in missing], texts, panel=panel, n=n)


def _head(cell: Cell, number: int, rows: Sequence[_Row], *, panel: int) -> Spec:
    """Name of a task above its rows; `cell` is that of the intact model."""
    axes = panel_axes(panel)
    stuck = " · at chance" if math.isnan(cell.lost_share) else ""
    return {
        "text": f"{plain(cell.task)}{stuck}",
        "showarrow": False,
        **{"x": 0, "xref": f"{axes['xaxis']} domain", "xanchor": "left", "xshift": 4},
        **{"y": number * _block(rows), "yref": axes["yaxis"], "yanchor": "top"},
        "font": {"size": 12, "color": MUTED},
    }
