"""What frequency bands of RoPE do: damage and losses band by band, and position against content."""

from collections.abc import Callable, Sequence
from typing import Final

import plotly.graph_objects as go

from mi_massive.position_shares import BandShares, PositionSharesResult
from mi_massive.stats import Estimate
from mi_massive.surgery import SurgeryResult
from mi_massive.surgery_plans import Kind
from mi_massive.viz.arms import Look, defined, estimates_line, short, undefined_trace
from mi_massive.viz.base import (
    GREEN,
    INDIGO,
    INK,
    MUTED,
    ROSE,
    WINE,
    Spec,
    figure,
    panel_axes,
    plain,
)

_DODGE: Final = 0.09
"""Bands between the kinds at one band, so that their bars do not cover each other."""


_KINDS: Final[dict[Kind, Look]] = {
    "removed": Look(
        name="not rotated (position goes)", color=INDIGO, symbol="circle", dash="solid"
    ),
    "content removed": Look(
        name="mean before the rotation (content goes)", color=GREEN, symbol="square", dash="dash"
    ),
    "disrupted": Look(name="mean after the rotation (both go)", color=WINE, symbol="x", dash="dot"),
}
_SHARES: Final[tuple[tuple[Look, Callable[[BandShares], Estimate]], ...]] = (
    (
        Look(name="text as it is", color=INDIGO, symbol="circle", dash="solid"),
        lambda band: band.position_share,
    ),
    (
        Look(name="tokens in random places", color=ROSE, symbol="square", dash="dash"),
        lambda band: band.shuffled,
    ),
    (
        Look(name="places exchanged (floor)", color=MUTED, symbol="x", dash="dot"),
        lambda band: band.floor,
    ),
    (
        Look(name="band's part in the variance", color=GREEN, symbol="diamond", dash="longdash"),
        lambda band: band.variance_share,
    ),
)


def plot_surgery(result: SurgeryResult) -> go.Figure:
    """Damage to neutral text and change of each task's score, band by band.

    How to read: one line a treatment of a single band, from the fastest to the slowest; the other
    bands are left alone. Not rotated, a band keeps what tokens are and loses where they stand; with
    its mean before the rotation in place it is the other way round. Bars are intervals; the level
    line is the intact model. Judge a loss beside the damage to neutral text in the first panel.

    Args:
        result: From `run_surgery`, with arms on single bands.

    Returns:
        One panel for neutral text and one a task, read as its first read-out, which the
        title names unless it is the options.

    Raises:
        ValueError: If no arm treats a single band.
    """
    by_kind = _arms(result)
    if not by_kind:
        raise ValueError("result must have arms on single bands, got none; see surgery_arms")
    readouts = {cell.task: cell.readout for cell in reversed(result.cells)}
    tasks = list(dict.fromkeys(cell.task for cell in result.cells))
    changes = {(cell.arm, cell.task, cell.readout): cell.change for cell in result.cells}

    def damage(arm: str) -> Estimate:
        return result.effects.of(arm)["added_cross_entropy"]

    def change(task: str) -> Callable[[str], Estimate]:
        return lambda arm: changes[arm, task, readouts[task]]

    sources = [damage, *(change(task) for task in tasks)]
    n_bands = 1 + max(band for arms in by_kind.values() for band, _ in arms)
    traces = _panels(by_kind, sources)
    return figure(
        traces,
        titles=["Added nats a token", *(_title(task, readouts[task]) for task in tasks)],
        x={
            "title": {"text": "band, fast to slow"},
            "tickvals": list(range(n_bands)),
            "range": [-0.5, n_bands - 0.5],
        },
        y={"title": {"text": "difference from the intact model"}},
        height=420,
        layout={"shapes": [_level(panel) for panel in range(len(sources))]},
    )


def plot_position_shares(result: PositionSharesResult) -> go.Figure:
    """Share of the logits' variance that distance explains, over the wavelengths of the bands.

    How to read: one point a band, at the middle of its wavelengths on the logarithmic axis; bars
    are intervals over passages. Near 1 the band compares places whatever the tokens are, near the
    floor it compares tokens wherever they are. The level line is the share of as many random pairs.
    A band can only matter with its part in the variance.

    Args:
        result: From `capture_position_shares`.

    Returns:
        One panel.
    """
    shown = [band for band in result.bands if 0 < band.longest < float("inf")]
    middles = [short((band.shortest * band.longest) ** 0.5) for band in shown]
    traces: list[Spec] = [
        estimates_line(look, middles, [of(band) for band in shown], panel=0, legend=True)
        for look, of in _SHARES
    ]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": middles,
            "y": [short(band.position_share.null) for band in shown],
            "line": {"color": INK, "width": 1},
            "name": "as many random pairs",
            "hoverinfo": "skip",
        }
        | panel_axes(0)
    )
    hidden = len(result.bands) - len(shown)
    title = "Position share of the logits"
    return figure(
        traces,
        titles=[title + (f" ({hidden} bands never turn, left out)" if hidden else "")],
        x={"title": {"text": "wavelength (tokens per turn)"}, "type": "log", "tickformat": "~s"},
        y={"title": {"text": "share of variance"}, "range": [-0.02, 1.02], "tickformat": ".0%"},
        height=420,
    )


def _title(task: str, readout: str) -> str:
    """Options are read nearly always, and a panel is narrow."""
    return task if readout == "options" else f"{task} ({readout})"


def _arms(result: SurgeryResult) -> dict[Kind, list[tuple[int, str]]]:
    """Band and name of the arms that treat one band, by how they do."""
    found: dict[Kind, list[tuple[int, str]]] = {}
    for kind in _KINDS:
        for arm in result.arms:
            if arm.kind == kind and arm.pairs.bands is not None:
                found.setdefault(kind, []).append((arm.pairs.bands[0], arm.name))
    return found


def _panels(
    by_kind: dict[Kind, list[tuple[int, str]]], sources: Sequence[Callable[[str], Estimate]]
) -> list[Spec]:
    values: list[dict[Kind, list[tuple[int, str, Estimate]]]] = [
        {kind: [(band, name, of(name)) for band, name in arms] for kind, arms in by_kind.items()}
        for of in sources
    ]
    missing = [
        [
            (band, name)
            for rows in panel.values()
            for band, name, value in rows
            if not defined(value)
        ]
        for panel in values
    ]
    n = sum(len(gone) for gone in missing)
    traces: list[Spec] = []
    for panel, (kinds, gone) in enumerate(zip(values, missing, strict=True)):
        for at, (kind, rows) in enumerate(kinds.items()):
            x = [short(band + _DODGE * (at - 1)) for band, _, _ in rows]
            estimates = [value for _, _, value in rows]
            traces.append(
                estimates_line(_KINDS[kind], x, estimates, panel=panel, legend=panel == 0)
            )
        texts = [f"{plain(name)}<br>undefined" for _, name in gone]
        places = [float(band) for band, _ in gone]
        traces.append(undefined_trace(places, [0.0] * len(gone), texts, panel=panel, n=n))
    return traces


def _level(panel: int) -> Spec:
    axes = panel_axes(panel)
    return {
        "type": "line",
        **{"x0": 0, "x1": 1, "xref": f"{axes['xaxis']} domain"},
        **{"y0": 0, "y1": 0, "yref": axes["yaxis"]},
        "layer": "below",
        "line": {"color": MUTED, "width": 1},
    }
