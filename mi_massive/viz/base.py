"""What all figures share: colours, the look of axes, rows of panels, rounding.

Colours follow Okabe and Ito and keep one meaning everywhere: queries blue, keys vermillion, values
bluish green; arms of an experiment have colours of their own. Backgrounds are transparent; `DARK`
maps every colour of a figure to its twin for a dark ground, so that a page can repaint a figure by
replacing text.
"""

import html
import math
from collections.abc import Sequence
from typing import Any, Final, cast

import plotly.graph_objects as go
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mi_massive.axes import Projection
from mi_massive.concentration import ConcentrationResult, ProjectionConcentration

Spec = dict[str, Any]
"""A part of a Plotly figure, as its JSON is."""

INK: Final = "#1f1e1c"
MUTED: Final = "#66625b"
GRID: Final = "#e5e2dc"
UNDEFINED: Final = "#a8a49c"
"""Cells whose value is NaN."""
BEYOND: Final = "#b5478e"
"""Cells whose value lies outside the colour range."""
COLOURS: Final[dict[Projection, str]] = {"q": "#0072b2", "k": "#d55e00", "v": "#009e73"}
FILLS: Final[dict[Projection, str]] = {
    "q": "rgba(0,114,178,0.18)",
    "k": "rgba(213,94,0,0.18)",
    "v": "rgba(0,158,115,0.18)",
}
NAMES: Final[dict[Projection, str]] = {"q": "Queries", "k": "Keys", "v": "Values"}

# Arms of an experiment (Tol's muted scheme, darkened): treatments red to purple, controls cool.
WINE: Final = "#882255"
PURPLE: Final = "#aa4499"
ROSE: Final = "#c4566a"
BROWN: Final = "#7a4a1e"
INDIGO: Final = "#332288"
GREEN: Final = "#117733"
TEAL: Final = "#2a8c7c"
OLIVE: Final = "#7f7a1f"

DARK: Final[dict[str, str]] = {
    INK: "#e9e6df",
    MUTED: "#a9a499",
    GRID: "#3a3c40",
    UNDEFINED: "#7d7a74",
    BEYOND: "#e08ac0",
    COLOURS["q"]: "#56b4e9",
    COLOURS["k"]: "#f2904d",
    COLOURS["v"]: "#35c79b",
    WINE: "#e07aae",
    PURPLE: "#d58ad0",
    ROSE: "#f09ba8",
    BROWN: "#d6a06e",
    INDIGO: "#a79cf0",
    GREEN: "#6cc98a",
    TEAL: "#6fd0c0",
    OLIVE: "#cfc85a",
    FILLS["q"]: "rgba(86,180,233,0.22)",
    FILLS["k"]: "rgba(242,144,77,0.22)",
    FILLS["v"]: "rgba(53,199,155,0.22)",
}

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SLIDER_SPACE: Final = 72
"""Height that a layer slider takes below its figure, in pixels."""
_LEGEND_SPACE: Final = 44
_GAP: Final = 0.06


def figure(
    traces: Sequence[Spec],
    *,
    titles: Sequence[str],
    x: Spec,
    y: Spec,
    height: int,
    layout: Spec | None = None,
    frames: Sequence[Spec] = (),
) -> go.Figure:
    """A row of panels with one look.

    The titles hang on their panel's axes and `layout.meta.panels` counts the panels, so that a
    narrow page can stack them by moving the axes alone.

    Args:
        traces: Trace specs; those of panel i name its axes by `panel_axes(i)`.
        titles: Title of each panel, plain text.
        x: Settings of every x axis.
        y: Settings of every y axis; its title is shown on the first panel only.
        height: Height of the row, in pixels.
        layout: More layout settings.
        frames: Frames of a slider.

    Returns:
        The figure.
    """
    base: Spec = {
        "template": "none",
        "height": height,
        "margin": {"l": 60, "r": 24, "t": 40, "b": 104, "pad": 2},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": INK},
        "legend": {
            "orientation": "h",
            **{"x": 0, "xanchor": "left", "y": -54 / (height - 144), "yanchor": "top"},
            "bgcolor": "rgba(0,0,0,0)",
        },
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
        "meta": {"panels": len(titles)},
        "annotations": [_panel_title(title, panel) for panel, title in enumerate(titles)],
    }
    for panel in range(len(titles)):
        base[panel_axis("x", panel)] = _axis(x) | {
            "domain": _domain(panel, len(titles)),
            "anchor": _axis_id("y", panel),
        }
        base[panel_axis("y", panel)] = _axis(y) | {"anchor": _axis_id("x", panel)}
        if panel:
            base[panel_axis("y", panel)].pop("title", None)
    if not any(trace.get("name") and trace.get("showlegend", True) for trace in traces):
        base["height"] -= _LEGEND_SPACE
        base["margin"]["b"] -= _LEGEND_SPACE
    if frames:
        base["height"] += SLIDER_SPACE
        base["margin"]["b"] += SLIDER_SPACE
    for key, value in (layout or {}).items():
        base[key] = base[key] + value if key == "annotations" else value
    if "coloraxis" in base:
        base["legend"]["itemsizing"] = "constant"
    return go.Figure(data=list(traces), layout=base, frames=list(frames))


def panel_axes(panel: int) -> Spec:
    """The axes of one panel, as a trace names them."""
    return {"xaxis": _axis_id("x", panel), "yaxis": _axis_id("y", panel)}


def panel_axis(letter: str, panel: int) -> str:
    """One axis of a panel, as the layout names it."""
    return f"{letter}axis" if panel == 0 else f"{letter}axis{panel + 1}"


def layer_slider(layers: Sequence[int], shown: int) -> list[Spec]:
    """A slider over frames named by block index; `shown` is the position it starts at."""
    instant: Spec = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    steps = [
        {"label": str(block), "method": "animate", "args": [[str(block)], instant]}
        for block in layers
    ]
    return [
        {
            "active": shown,
            "steps": steps,
            "currentvalue": {"prefix": "Layer "},
            "pad": {"t": 44, "b": 34},
            "x": 0,
            "len": 1,
        }
    ]


def layer_position(layers: Sequence[int], layer: int | None) -> int:
    """Position of a block index on the layer axis; the first layer for None.

    Raises:
        ValueError: If the block index is not among `layers`.
    """
    if layer is None:
        return 0
    if layer not in layers:
        raise ValueError(f"layer must be one of {list(layers)} (block indices), got {layer}")
    return list(layers).index(layer)


def over_head_mean(part: ProjectionConcentration) -> Float[Tensor, "layer head d_head"]:
    """Norms over their head's mean norm, scaled so that the largest equals `max_over_mean`.

    NaN where the norm or the head's `max_over_mean` is undefined, or the whole head is zero.
    """
    largest = part.norms.nan_to_num(nan=0.0).amax(dim=-1)
    return part.norms * (part.max_over_mean / largest)[..., None]


def head_means(result: ConcentrationResult) -> dict[Projection, Float[Tensor, "layer head d_head"]]:
    """`over_head_mean` of queries, keys and values."""
    return by_projection(*map(over_head_mean, parts(result)))


def by_projection(
    q: Shaped[Tensor, "..."], k: Shaped[Tensor, "..."], v: Shaped[Tensor, "..."]
) -> dict[Projection, Tensor]:
    """Three tensors under their projection's name."""
    return {"q": q, "k": k, "v": v}


def parts(result: ConcentrationResult) -> tuple[ProjectionConcentration, ...]:
    """Queries, keys and values of a result, in that order."""
    return result.q, result.k, result.v


def rounded(values: Shaped[Tensor, "..."], digits: int = 3) -> Any:
    """Nested lists with `digits` significant digits; None where not finite."""
    return _rounded(values.tolist(), digits)


def positions(mask: Bool[Tensor, "row column"]) -> tuple[list[int], list[int]]:
    """Columns and rows of the True cells, as x and y of a scatter."""
    rows, columns = (cast("list[int]", index.tolist()) for index in mask.nonzero(as_tuple=True))
    return columns, rows


def plain(text: str) -> str:
    """Text that Plotly shows as it is; Plotly reads a few HTML tags in labels."""
    return html.escape(text, quote=False)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, list):
        return [_rounded(child, digits) for child in cast(list[Any], value)]
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _axis_id(letter: str, panel: int) -> str:
    return letter if panel == 0 else f"{letter}{panel + 1}"


def _domain(panel: int, n_panels: int) -> list[float]:
    width = (1 - _GAP * (n_panels - 1)) / n_panels
    return [panel * (width + _GAP), panel * (width + _GAP) + width]


def _axis(settings: Spec) -> Spec:
    return {
        "gridcolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
        **settings,
        "title": {"standoff": 10, "font": {"size": 13}, **settings.get("title", {})},
    }


def _panel_title(title: str, panel: int) -> Spec:
    return {
        "text": f"<b>{plain(title)}</b>",
        "showarrow": False,
        "x": 0,
        "y": 1,
        "xref": f"{_axis_id('x', panel)} domain",
        "yref": f"{_axis_id('y', panel)} domain",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 6,
    }
