"""Figures of patches show every value, mark what is significant, undefined or beyond the range."""

from typing import Any

import pytest
import torch
from sample_patching import patched_patterns, patching_result

from mi_massive.viz import (
    plot_massive_patching,
    plot_patching,
    view_patched_patterns,
)
from mi_massive.viz.patterns import patched_patterns_data


def of_type(figure: Any, kind: str, axis: str = "x") -> list[Any]:
    return [t for t in figure.data if t.type == kind and (t.xaxis or "x") == axis]


def test_a_heat_map_holds_the_values_and_its_marks() -> None:
    result = patching_result()
    figure = plot_patching(result)
    cells = of_type(figure, "heatmap")[0]
    assert [list(row) for row in cells.z] == [[0.75, -0.5, None, 0], [0] * 4, [0] * 4]
    assert list(cells.y) == ["0", "1", "5"]
    placebo = of_type(figure, "heatmap", "x2")[0]
    assert list(placebo.z[0]) == [0, -0.5, 0, 0]
    signs = {t.name.partition(":")[0]: t for t in of_type(figure, "scatter")}
    assert (list(signs["significant"].x), list(signs["significant"].y)) == (["0"], ["0"])
    assert (list(signs["undefined"].x), list(signs["undefined"].y)) == (["2"], ["0"])
    assert signs["significant"].name == "significant: 1 of 12 cells"
    assert signs["undefined"].name == "undefined: 1 cells"


def test_the_colours_are_centred_at_zero_and_clipped_cells_are_marked() -> None:
    figure = plot_patching(patching_result(), color_max=0.6)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-0.6, 0.6)
    beyond = next(t for t in of_type(figure, "scatter") if t.name.startswith("beyond"))
    assert (list(beyond.x), list(beyond.y)) == (["0"], ["0"])
    assert beyond.name == "beyond the range (> 0.6): 1 cells"
    assert of_type(figure, "heatmap")[0].z[0][0] is None
    assert plot_patching(patching_result()).layout.coloraxis.cmax == 0.75


def test_another_group_and_whole_layers_are_shown() -> None:
    figure = plot_patching(patching_result(), group="object")
    assert list(of_type(figure, "heatmap")[0].z[0]) == [0, 0, 0, 0]
    figure = plot_patching(patching_result("layer"))
    assert list(of_type(figure, "heatmap")[0].x) == ["last", "object"]
    assert list(of_type(figure, "heatmap")[0].z[0]) == [0.75, 0]


def test_bars_are_the_arms_and_an_undefined_arm_has_a_cross() -> None:
    figure = plot_massive_patching(patching_result("massive"))
    assert len(of_type(figure, "bar")) == 1
    bars = of_type(figure, "bar")[0]
    assert list(bars.x) == ["massive", "norm_matched", "same_band", "random"]
    assert list(bars.y) == [0.25, -0.167, None, 0]  # means over three layers
    assert figure.layout.yaxis2.matches == "y"  # one scale for all groups
    assert list(figure.layout.xaxis.ticktext)[1] == "norm<br>matched"
    crosses = next(t for t in of_type(figure, "scatter") if t.name == "undefined")
    assert list(crosses.x) == ["same_band"]
    diamonds = next(t for t in of_type(figure, "scatter") if "placebo" in t.name)
    assert list(diamonds.y) == [0, -0.167, 0, 0]


@pytest.mark.parametrize(
    ("plot", "granularity", "message"),
    [
        (plot_patching, "massive", r"granularity must be layer, head or band .* got 'massive'"),
        (plot_patching, "pair", r"granularity must be layer, head or band .* got 'pair'"),
        (plot_massive_patching, "head", r"granularity must be 'massive' for this figure, got 'hea"),
    ],
)
def test_a_result_with_another_figure_is_refused(plot: Any, granularity: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot(patching_result(granularity))


def test_an_unknown_group_and_a_bad_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group must be one of last, object, got 'verb'"):
        plot_patching(patching_result(), group="verb")
    with pytest.raises(ValueError, match=r"color_max must be finite and positive, got 0"):
        plot_patching(patching_result(), color_max=0.0)


def test_three_runs_stand_side_by_side_with_rounded_weights_and_inert_tokens() -> None:
    result = patched_patterns(tokens=("</script>", "<b>", " of"))
    data = patched_patterns_data(result)
    assert [entry["label"] for entry in data["patterns"]] == ["L4H0", "L4H1"]
    runs = data["patterns"][0]["runs"]
    assert [run["label"] for run in runs] == [
        "clean",
        "corrupted",
        "patched: its clean rot_q",
    ]
    assert runs[1]["weights"] == torch.eye(3).tolist()
    html = view_patched_patterns(result)
    assert "</script>" not in html.partition("mi-patterns-data")[2].partition("</script>")[0]
    assert "<b>" not in html.partition('class="mi-patterns-data">')[2].partition("</script>")[0]


def test_too_many_weights_are_refused() -> None:
    tokens = tuple("x" for _ in range(300))
    with pytest.raises(ValueError, match=r"patterns must hold at most 250,000 attention weights"):
        view_patched_patterns(patched_patterns(tokens=tokens, n_heads=1))
