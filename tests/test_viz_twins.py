"""Figures of twins show every curve, every seed and every disruption."""

import math
from typing import Any

import pytest
import torch
from sample_twins import CONFIG, STEPS, twin_run, twins_result

from mi_massive.viz import plot_abilities, plot_emergence


def lines(figure: Any, axis: str, *, thick: bool) -> dict[str, list[Any]]:
    chosen = [t for t in figure.data if (t.xaxis or "x") == axis and (t.line.width > 2) == thick]
    return {f"{t.legendgroup}{number}": list(t.y) for number, t in enumerate(chosen)}


def test_thick_lines_are_means_over_seeds_and_thin_ones_the_seeds() -> None:
    runs = [twin_run(seed=seed) for seed in range(3)]
    runs[0].sink[:] = torch.tensor([0.0, 0.0, 0.1, 0.2])[:, None]
    result = twins_result(runs=(*runs, *(twin_run("none", seed) for seed in range(3))))
    figure = plot_emergence(result)
    assert [a.text for a in figure.layout.annotations] == [
        "<b>Queries: max/mean</b>", "<b>Keys: max/mean</b>",
        "<b>Values: max/mean</b>", "<b>First token: attention</b>",
    ]  # fmt: skip
    queries = lines(figure, "x", thick=True)
    assert list(queries.values()) == [[1.25, 1.25, 2.5, 4.0], [1.25] * 4]
    sink = lines(figure, "x4", thick=True)
    assert sink["rope0"] == pytest.approx([0, 0, 0.2, 0.4])
    assert len(lines(figure, "x4", thick=False)) == 6
    assert list(figure.data[0].x) == [STEPS[1] / 2, *STEPS[1:]]
    assert next(iter(figure.layout.xaxis.ticktext)) == "0"
    assert {t.name for t in figure.data if t.showlegend} == {
        "RoPE, theta 1e4 (mean of 3 seeds)", "no position encoding (mean of 3 seeds)",
    }  # fmt: skip


def test_the_three_projections_have_one_scale() -> None:
    figure = plot_emergence(twins_result())
    ranges = [figure.layout[f"yaxis{n}"].range for n in ("", 2, 3)]
    assert ranges[0] == ranges[1] == ranges[2] == (1.0, pytest.approx(4.16))


def test_a_diverged_seed_leaves_a_gap_and_the_mean_goes_on() -> None:
    gone = twin_run(seed=0, failure="the loss became nan")
    gone.q[-1] = math.nan
    result = twins_result(
        runs=(gone, *(twin_run(seed=s) for s in (1, 2)), *(twin_run("none", s) for s in range(3)))
    )
    figure = plot_emergence(result)
    assert lines(figure, "x", thick=True)["rope0"][-1] == 4
    assert lines(figure, "x", thick=False)["rope0"][-1] is None


def test_one_layer_is_shown_alone_and_an_unknown_one_refused() -> None:
    run = twin_run()
    run.q[:, 1] = 1.0
    result = twins_result(runs=tuple(run for _ in range(6)), config=CONFIG)
    assert lines(plot_emergence(result, layer=1), "x", thick=True)["rope0"] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="layer must be 0 to 1, got 2"):
        plot_emergence(result, layer=2)


def test_abilities_stand_at_their_disruption_with_chance_marked() -> None:
    figure = plot_abilities(twins_result())
    recall = next(t for t in figure.data if (t.xaxis or "x") == "x" and t.legendgroup == "rope")
    assert (list(recall.y), list(recall.x)) == (
        ["intact", "paper k=1", "random k=1"],
        [1.0, 0.25, 0.625],  # of random dimensions the mean of two draws
    )
    facts = next(t for t in figure.data if t.xaxis == "x2" and t.legendgroup == "rope")
    assert list(facts.x) == [1.0, 0.75, 0.875]
    assert figure.layout.shapes[0].x0 == pytest.approx(1 / 16)
    with pytest.raises(ValueError, match="must be of twins trained on the mixture, got text"):
        plot_abilities(twins_result(edits=False))
