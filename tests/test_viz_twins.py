"""Figures of twins show every curve, every seed and every disruption."""

import math
from typing import Any

import pytest
import torch
from sample_twins import CONFIG, STEPS, norms, twin_run, twins_result

from mi_massive.twin_curves import curve_over_losses, curve_over_steps
from mi_massive.twin_results import TwinsResult
from mi_massive.viz import plot_abilities, plot_emergence


def lines(figure: Any, axis: str) -> dict[str, list[Any]]:
    chosen = [t for t in figure.data if (t.xaxis or "x") == axis and t.fill is None]
    return {t.legendgroup: list(t.y) for t in chosen}


def shades(figure: Any, axis: str) -> dict[str, Any]:
    chosen = [t for t in figure.data if (t.xaxis or "x") == axis and t.fill == "toself"]
    return {t.legendgroup: t for t in chosen}


def unlike_seeds() -> TwinsResult:
    """Sinks that end at .2, .5 and .5, and q of 2, 4 and 4, with RoPE."""
    runs = [twin_run(seed=seed) for seed in range(3)]
    runs[0].sink[:] = torch.tensor([0.0, 0.0, 0.1, 0.2])[:, None]
    runs[0].q[:] = norms([1.25, 1.25, 1.5, 2.0])
    return twins_result(runs=(*runs, *(twin_run("none", seed) for seed in range(3))))


def test_lines_are_means_over_seeds_with_their_interval_around() -> None:
    figure = plot_emergence(unlike_seeds())
    assert [a.text for a in figure.layout.annotations] == [
        "<b>Queries: max/mean</b>", "<b>Keys: max/mean</b>",
        "<b>Values: max/mean</b>", "<b>First token: attention</b>",
    ]  # fmt: skip
    queries = lines(figure, "x")
    middle, last = (1.5 * 2.5**2) ** (1 / 3), (2 * 4**2) ** (1 / 3)
    assert queries["rope"] == pytest.approx([1.25, 1.25, middle, last], rel=1e-3)
    assert queries["none"] == [1.25] * 4
    assert lines(figure, "x4")["rope"] == pytest.approx([0, 0, 0.2, 0.4])
    around = shades(figure, "x4")["rope"]
    assert list(around.x) == [*figure.data[1].x, *reversed(figure.data[1].x)]
    # Of .2, .5, .5: mean .4, standard error .1, and 4.303 of them; a share ends at 1 and 0.
    assert (around.y[3], around.y[4]) == (pytest.approx(0.8303, abs=1e-4), 0)
    assert list(figure.data[1].x) == [STEPS[1] / 2, *STEPS[1:]]
    assert next(iter(figure.layout.xaxis.ticktext)) == "0"
    assert {t.name for t in figure.data if t.showlegend} == {
        "RoPE, theta 1e4 (mean of 3 seeds)", "no position encoding (mean of 3 seeds)",
    }  # fmt: skip


def test_over_the_loss_encodings_stand_at_what_they_have_learned() -> None:
    figure = plot_emergence(twins_result(), over="loss")
    rope = next(t for t in figure.data if t.legendgroup == "rope" and t.fill is None)
    none = next(t for t in figure.data if t.legendgroup == "none" and t.fill is None)
    assert (rope.x[0], rope.x[-1]) == (5, 1)
    assert (none.x[0], none.x[-1]) == (5, 2)  # it learns less
    assert (rope.y[0], rope.y[-1]) == (1.25, 4)
    halfway = curve_over_losses(twins_result(), "rope", "q")
    loss, estimate = halfway[3]  # 12 losses between 5 and 1; at 3 the curve is still flat
    assert loss == pytest.approx(5 - 3 * 4 / 11)
    assert estimate.effect == pytest.approx(1.25)
    loss, estimate = halfway[-2]  # between 2 and 1, where log max/mean goes from 2.5 to 4
    assert estimate.effect == pytest.approx(2.5 * 1.6 ** (2 - loss))
    assert rope.mode == "lines"  # no mark where nothing was measured
    assert figure.layout.xaxis.range == (pytest.approx(5.16), pytest.approx(0.84))  # falling
    assert figure.layout.xaxis.title.text == "held-out loss (nats)"


def test_no_curve_over_the_loss_is_drawn_of_an_arm_that_never_finished() -> None:
    gone = [twin_run(seed=seed, failure="the loss became nan") for seed in range(3)]
    result = twins_result(runs=(*gone, *(twin_run("none", s) for s in range(3))))
    assert curve_over_losses(result, "rope", "k") == []
    assert lines(plot_emergence(result, over="loss"), "x")["rope"] == []


def test_the_three_projections_have_one_scale() -> None:
    figure = plot_emergence(twins_result())
    ranges = [figure.layout[f"yaxis{n}"].range for n in ("", 2, 3)]
    assert ranges[0] == ranges[1] == ranges[2] == (1.0, pytest.approx(4.16))
    wide = plot_emergence(unlike_seeds())  # q ends at 3.2 with an interval to 8.6
    highest = 4.0  # of the keys
    assert wide.layout.yaxis.range[1] == pytest.approx(1.04 * 1.25 * highest)
    assert wide.layout.yaxis4.range == (0, pytest.approx(1.04 * 1.25 * 0.5))


def test_a_diverged_seed_is_left_out_and_the_mean_goes_on() -> None:
    gone = twin_run(seed=0, failure="the loss became nan")
    gone.q[-1] = math.nan
    result = twins_result(
        runs=(gone, *(twin_run(seed=s) for s in (1, 2)), *(twin_run("none", s) for s in range(3)))
    )
    assert lines(plot_emergence(result), "x")["rope"][-1] == 4
    assert [e.n for e in curve_over_steps(result, "rope", "q")] == [3, 3, 3, 2]


def test_one_layer_is_shown_alone_and_an_unknown_one_refused() -> None:
    result = twins_result(config=CONFIG)
    for run in result.of("rope"):
        run.q[:, 1] = 1.0
    assert lines(plot_emergence(result, layer=1), "x")["rope"] == [1, 1, 1, 1]
    for over in ("steps", "loss"):
        with pytest.raises(ValueError, match="layer must be 0 to 1, got 2"):
            plot_emergence(result, over=over, layer=2)


def test_abilities_stand_at_their_disruption_with_chance_marked() -> None:
    figure = plot_abilities(twins_result())
    recall = next(t for t in figure.data if (t.xaxis or "x") == "x" and t.legendgroup == "rope")
    assert list(recall.x) == [1.0, 0.25, 0.625]  # of random dimensions the mean of two draws
    assert list(recall.text) == ["intact", "paper k=1", "random k=1"]
    assert list(figure.layout.yaxis.ticktext) == list(recall.text)
    none = next(t for t in figure.data if (t.xaxis or "x") == "x" and t.legendgroup == "none")
    for row, (upper, lower) in enumerate(zip(recall.y, none.y, strict=True)):
        assert row - 0.5 < upper < row < lower < row + 0.5  # equal scores do not hide each other
    facts = next(t for t in figure.data if t.xaxis == "x2" and t.legendgroup == "rope")
    assert list(facts.x) == [1.0, 0.75, 0.875]
    assert figure.layout.shapes[0].x0 == pytest.approx(1 / 16)
    with pytest.raises(ValueError, match="must be of twins trained on the mixture, got text"):
        plot_abilities(twins_result(edits=False))
