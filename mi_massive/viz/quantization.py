"""What quantized attention states cost, and what keeping some channels exact saves of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import plotly.graph_objects as go

from mi_massive.protection import StateQuantizationResult
from mi_massive.quantization_arms import QuantizationArm
from mi_massive.stats import Estimate
from mi_massive.viz.arms import Look, estimates_line
from mi_massive.viz.base import (
    BROWN,
    GREEN,
    INDIGO,
    MUTED,
    ROSE,
    WINE,
    Spec,
    figure,
)

_LOOKS: Final[dict[str, Look]] = {
    "none": Look(name="nothing kept", color=MUTED, symbol="circle"),
    "massive": Look(name="massive channels kept", color=WINE, symbol="square"),
    "random": Look(name="random channels kept", color=GREEN, symbol="diamond"),
    "same_band": Look(name="channels of the same band kept", color=BROWN, symbol="cross"),
    "norm_matched": Look(name="next channels in rank kept", color=INDIGO, symbol="triangle-up"),
    "hadamard": Look(name="Hadamard rotation, nothing kept", color=ROSE, symbol="x"),
}


def plot_protection(result: StateQuantizationResult) -> go.Figure:
    """Nats a token that each arm adds to neutral text, over the bits of the states.

    How to read: one line a kind of protection, from many bits at the left to few at the right; the
    kept channels are equally many in every head. Bars are intervals over passages; where there are
    several seeds, points and ends are means over them. The right panel keeps the first token's
    entries exact as well. Massive channels matter where their line lies below that of the others.

    Args:
        result: From `run_state_quantization`.

    Returns:
        Two panels, without and with the first token kept.
    """
    bits = sorted({arm.plan.bits for arm in result.arms}, reverse=True)
    traces: list[Spec] = []
    for panel, first in enumerate((False, True)):
        for kind, look in _LOOKS.items():
            x: list[int] = []
            values: list[Estimate] = []
            for place, n in enumerate(bits):
                arms = [a for a in result.arms if a.plan.bits == n and _kind(a, first) == kind]
                if arms:
                    x.append(place)
                    values.append(_mean([_damage(result, arm) for arm in arms]))
            if x:
                traces.append(estimates_line(look, x, values, panel=panel, legend=panel == 0))
    return figure(
        traces,
        titles=["First token quantized", "First token kept exact"],
        x={
            "title": {"text": "bits of an entry"},
            "tickvals": list(range(len(bits))),
            "ticktext": [str(n) for n in bits],
            "range": [-0.3, len(bits) - 0.7],
        },
        y={"title": {"text": "added nats a token"}},
        height=420,
    )


def _kind(arm: QuantizationArm, first: bool) -> str | None:
    """The line that an arm belongs to in the panel with or without the first token; None: none."""
    if arm.plan.keep_first != first:
        return None
    if arm.plan.hadamard:
        return "hadamard" if arm.protected == "none" else None
    return arm.protected


def _damage(result: StateQuantizationResult, arm: QuantizationArm) -> Estimate:
    return result.effects.of(arm.name)["added_cross_entropy"]


def _mean(values: list[Estimate]) -> Estimate:
    """Seeds as one point: the means of the estimates and of their ends."""

    def mean(of: Callable[[Estimate], float]) -> float:
        return sum(map(of, values)) / len(values)

    return replace(
        values[0],
        effect=mean(lambda e: e.effect),
        low=mean(lambda e: e.low),
        high=mean(lambda e: e.high),
    )
