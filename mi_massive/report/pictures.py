"""Figures on their way into the page."""

from dataclasses import dataclass
from typing import cast

import plotly.graph_objects as go

from mi_massive.viz.base import SLIDER_SPACE, Spec
from mi_massive.viz.patterns import json_for_html


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One figure on the page."""

    id: str
    title: str
    reading: str
    """How to read it."""
    data: str
    """The figure as JSON that is inert in HTML."""
    layers: tuple[str, ...]
    """Names of the slider's positions; empty without a slider."""
    shown: int
    """Position of the slider at first."""


def picture(name: str, title: str, reading: str, figure: go.Figure) -> Picture:
    """A figure for the page, its own slider replaced by one that a keyboard reaches."""
    spec = cast("Spec", figure.to_dict())
    sliders = spec["layout"].pop("sliders", ())
    steps = sliders[0]["steps"] if sliders else ()
    if sliders:
        spec["layout"]["height"] -= SLIDER_SPACE
        spec["layout"]["margin"]["b"] -= SLIDER_SPACE
    return Picture(
        id=name,
        title=title,
        reading=reading,
        data=json_for_html({key: spec[key] for key in ("data", "layout", "frames") if key in spec}),
        layers=tuple(step["label"] for step in steps),
        shown=sliders[0]["active"] if sliders else 0,
    )
