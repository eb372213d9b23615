"""The two halves of a head laid over each other: first against second members of rotary pairs."""

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range
from mi_massive.axes import PROJECTIONS, Layout, Projection
from mi_massive.concentration import ConcentrationResult
from mi_massive.rope import RotaryGeometry
from mi_massive.symmetry import SymmetryResult
from mi_massive.viz.base import (
    COLOURS,
    INK,
    NAMES,
    Spec,
    figure,
    head_means,
    layer_position,
    layer_slider,
    panel_axes,
    rounded,
)

_MEMBERS = ("first member of each pair", "second member (its partner)")


def plot_halves(
    symmetry: SymmetryResult,
    concentration: ConcentrationResult,
    *,
    n_pairs: int,
    layer: int | None = None,
) -> go.Figure:
    """Norms of the first members of the rotary pairs over those of the second, layer by layer.

    How to read: along the horizontal axis the pairs go from fast to slow. The coloured line is the
    mean over heads of the first members (in a half-split layout the first half of the head), the
    dashed one that of their partners, both in multiples of the head's mean norm; thin lines are
    single heads. Two symmetric clusters show as two lines that peak together. In values the two
    lines have no reason to follow each other: the control.

    Args:
        symmetry: From `symmetry`; gives the layout and which layers rotate.
        concentration: From `concentration`, of the same model.
        n_pairs: Rotary pairs of a head, as in the model's geometry; later dimensions do not rotate.
        layer: Block index shown first; the first rotating layer if None.

    Returns:
        Three panels with a slider over the rotating layers.

    Raises:
        ValueError: If the results are of different models or layers, `layer` does not rotate, or a
            head holds fewer than `n_pairs` pairs.
    """
    _require_same_model(symmetry, concentration)
    d_head = concentration.q.norms.shape[-1]
    require_in_range("n_pairs", n_pairs, low=1, high=d_head // 2, unit="rotary pairs of a head")
    shown = layer_position(symmetry.layers, layer)
    dims = _pair_dims(symmetry.layout, n_pairs=n_pairs, d_head=d_head)
    values = {p: heads[..., dims] for p, heads in head_means(concentration).items()}
    at_layer = [concentration.layers.index(block) for block in symmetry.layers]
    slices = [
        [
            trace
            for panel, projection in enumerate(PROJECTIONS)
            for trace in _panel(values[projection][at], projection, panel=panel)
        ]
        for at in at_layer
    ]
    finite = torch.cat([part[torch.isfinite(part)] for part in values.values()])
    top = float(finite.max()) if finite.numel() else 1.0
    frames: list[Spec] = [
        {
            "name": str(block),
            "data": [{"type": "scatter", "y": trace["y"]} for trace in traces],
            "traces": list(range(len(traces))),
        }
        for block, traces in zip(symmetry.layers, slices, strict=True)
    ]
    return figure(
        slices[shown],
        titles=[NAMES[p] if p != "v" else "Values (control)" for p in PROJECTIONS],
        x={"title": {"text": "rotary pair, fast to slow"}},
        y={"title": {"text": "norm / head mean"}, "range": [0, 1.05 * top]},
        height=388,
        layout={
            "sliders": layer_slider(symmetry.layers, shown),
        },
        frames=frames,
    )


def _panel(
    values: Float[Tensor, "head pair 2"], projection: Projection, *, panel: int
) -> list[Spec]:
    """Four traces: single heads and their mean, for first and for second members."""
    n_heads, n_pairs, _ = values.shape
    pairs = [*range(n_pairs), None]
    traces: list[Spec] = []
    for member, color in enumerate((COLOURS[projection], INK)):
        dash = "solid" if member == 0 else "dash"
        heads = rounded(values[..., member])
        traces.append(
            {
                "x": pairs * n_heads,
                "y": [value for head in heads for value in [*head, None]],
                "line": {"color": color, "width": 0.7},
                "opacity": 0.35,
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                "x": pairs[:-1],
                "y": rounded(values[..., member].mean(dim=0)),
                "line": {"color": color, "width": 2.4, "dash": dash},
                "name": _MEMBERS[member],
                "showlegend": panel == 0,
                "hovertemplate": f"{projection}, pair %{{x}}, {_MEMBERS[member].split(' ')[0]}"
                "<br>%{y} × head mean<extra></extra>",
            }
        )
    common: Spec = {"type": "scatter", "mode": "lines", **panel_axes(panel)}
    return [trace | common | {"legendgroup": str(at // 2)} for at, trace in enumerate(traces)]


def _pair_dims(layout: Layout, *, n_pairs: int, d_head: int) -> torch.Tensor:
    return RotaryGeometry(
        inv_freq=torch.ones(n_pairs, dtype=torch.float64), layout=layout, d_head=d_head
    ).pair_dims


def _require_same_model(symmetry: SymmetryResult, concentration: ConcentrationResult) -> None:
    if symmetry.provenance.model != concentration.provenance.model:
        raise ValueError(
            f"symmetry and concentration must be of the same model, got "
            f"{symmetry.provenance.model!r} and {concentration.provenance.model!r}"
        )
    missing = [block for block in symmetry.layers if block not in concentration.layers]
    if missing:
        raise ValueError(
            f"concentration must hold every rotating layer of symmetry, got none for {missing}; "
            "compute both from the same norms"
        )
