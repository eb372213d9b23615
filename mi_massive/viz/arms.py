"""How the arms of a disruption experiment look in every figure: one colour and sign a preset."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mi_massive.arms import Arm
from mi_massive.contrasts import ArmContrast
from mi_massive.disruption import DisruptionResult
from mi_massive.scores import INTACT, Readout
from mi_massive.stats import Estimate
from mi_massive.viz.base import (
    BROWN,
    GREEN,
    INDIGO,
    INK,
    MUTED,
    OLIVE,
    PURPLE,
    ROSE,
    TEAL,
    UNDEFINED,
    WINE,
    Spec,
    panel_axes,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Look of one preset."""

    color: str
    symbol: str
    dash: str


STYLES: Final[dict[str, Style]] = {
    INTACT: Style(color=INK, symbol="diamond", dash="solid"),
    "paper": Style(color=WINE, symbol="circle", dash="solid"),
    "zero": Style(color=WINE, symbol="triangle-left", dash="dash"),
    "shuffled": Style(color=WINE, symbol="diamond-tall", dash="dashdot"),
    "massive": Style(color=WINE, symbol="triangle-right", dash="dot"),
    "authors_llama": Style(color=BROWN, symbol="star", dash="solid"),
    "authors_qwen2": Style(color=BROWN, symbol="pentagon", dash="dash"),
    "authors_gemma2": Style(color=BROWN, symbol="hexagram", dash="dot"),
    "sink_preserving": Style(color=PURPLE, symbol="triangle-up", dash="dash"),
    "sink_only": Style(color=ROSE, symbol="triangle-down", dash="dot"),
    "smallest": Style(color=MUTED, symbol="square", dash="dot"),
    "random": Style(color=TEAL, symbol="x", dash="dash"),
    "same_band": Style(color=OLIVE, symbol="cross", dash="dashdot"),
    "norm_matched": Style(color=GREEN, symbol="hourglass", dash="longdash"),
    "effect_matched": Style(color=INDIGO, symbol="star-diamond", dash="solid"),
}
_OTHER: Final = Style(color=UNDEFINED, symbol="circle-open", dash="longdashdot")
"""A preset added after this table."""


def style(preset: str) -> Style:
    """Look of a preset, or of the intact model."""
    return STYLES.get(preset, _OTHER)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmGroup:
    """Arms that differ in their seed alone."""

    preset: str
    k: int
    arms: tuple[Arm, ...]

    @property
    def label(self) -> str:
        """`random k=4 (3 seeds)`."""
        seeds = f" ({len(self.arms)} seeds)" if len(self.arms) > 1 else ""
        return f"{self.preset} k={self.k}{seeds}"


def arm_groups(arms: Iterable[Arm]) -> tuple[ArmGroup, ...]:
    """The arms by preset and k, in their order."""
    found: dict[tuple[str, int], list[Arm]] = {}
    for arm in arms:
        found.setdefault((arm.preset, arm.k), []).append(arm)
    return tuple(
        ArmGroup(preset=preset, k=k, arms=tuple(group)) for (preset, k), group in found.items()
    )


def losses(result: DisruptionResult, readout: Readout) -> dict[str, ArmContrast]:
    """Losses of each arm in one read-out, by the arm's name.

    Raises:
        ValueError: If the result does not hold the read-out.
    """
    require_readout(result, readout)
    return {c.arm: c for c in result.contrasts if c.readout == readout}


def require_readout(result: DisruptionResult, readout: Readout) -> None:
    """Raise ValueError unless some task was read out so."""
    found = dict.fromkeys(cell.readout for cell in result.cells)
    if readout not in found:
        raise ValueError(
            f"readout must be one of {', '.join(found) or 'none'}, got {readout!r}; "
            "it was not run on any task"
        )


def defined(value: Estimate) -> bool:
    """True if the estimate has a place on an axis."""
    return math.isfinite(value.effect)


def ends(value: Estimate) -> tuple[float, float]:
    """Ends of the interval, the estimate itself where an end is undefined."""
    low, high = (e if math.isfinite(e) else value.effect for e in (value.low, value.high))
    return low, high


def described(value: Estimate) -> str:
    """Estimate and interval as a hover text shows them."""
    return f"{value.effect:.3g} [{value.low:.3g}, {value.high:.3g}]"


def error_bar(
    middle: Sequence[float], low: Sequence[float], high: Sequence[float], *, color: str
) -> Spec:
    """Error bars from `low` to `high` around the points."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [short(up - at) for at, up in zip(middle, high, strict=True)],
        "arrayminus": [short(at - down) for at, down in zip(middle, low, strict=True)],
        "color": color,
        "thickness": 1.2,
        "width": 0,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """A line of a panel."""

    name: str
    color: str
    symbol: str
    dash: str = "solid"


def estimates_line(
    look: Look, x: Sequence[float], values: Sequence[Estimate], *, panel: int, legend: bool
) -> Spec:
    """A line through the estimates that are defined, with their intervals as bars."""
    found = [(at, value) for at, value in zip(x, values, strict=True) if defined(value)]
    middle = [value.effect for _, value in found]
    low, high = ([ends(value)[end] for _, value in found] for end in (0, 1))
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [at for at, _ in found],
        "y": [short(value) for value in middle],
        "error_y": error_bar(middle, low, high, color=look.color),
        "line": {"color": look.color, "width": 1.8, "dash": look.dash},
        "marker": {"color": look.color, "symbol": look.symbol, "size": 8},
        "hovertext": [f"{look.name}<br>{described(v)}, n = {v.n}" for _, v in found],
        "hoverinfo": "text",
        "name": look.name,
        "legendgroup": look.name,
        "showlegend": legend,
    } | panel_axes(panel)


def undefined_trace(
    x: Sequence[float], y: Sequence[float], texts: Sequence[str], *, panel: int, n: int
) -> Spec:
    """Grey crosses for points without a value, at an edge of the panel; `n` is their total."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x) or [None],  # an empty trace would lose its legend entry
        "y": list(y) or [None],
        "marker": {
            "symbol": "circle-x",
            "size": 9,
            "color": UNDEFINED,
            "line": {"width": 1, "color": INK},
        },
        "hovertext": list(texts),
        "hoverinfo": "text",
        "name": f"undefined: {n} point{'s' if n != 1 else ''}",
        "legendgroup": "undefined",
        "showlegend": panel == 0 and n > 0,
        "cliponaxis": False,
    } | panel_axes(panel)


def short(value: float) -> float:
    """Four significant digits, as the page stores it."""
    return float(f"{value:.4g}")
