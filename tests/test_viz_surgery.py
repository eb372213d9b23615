"""Figures of a surgery show the result's numbers and mark what is undefined."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_surgery import N_BANDS, shares, surgery_result

from mi_massive import viz
from mi_massive.operation import Surgery
from mi_massive.surgery import SurgeryResult
from mi_massive.surgery_plans import SurgeryArm


@pytest.fixture(scope="module", name="result")
def fixture_result() -> SurgeryResult:
    return surgery_result()


def test_a_line_is_the_change_of_the_arms_that_treat_one_band(result: SurgeryResult) -> None:
    figure = viz.plot_surgery(result)
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "<b>Added nats a token</b>",
        "<b>keys</b>",
        "<b>facts</b>",
    ]
    lines = {(t.legendgroup, t.xaxis): t for t in figure.data if t.mode == "lines+markers"}
    assert len(lines) == 9
    for group, kind in (
        ("not rotated (position goes)", "removed"),
        ("mean before the rotation (content goes)", "content removed"),
        ("mean after the rotation (both go)", "disrupted"),
    ):
        names = [f"band {band} {kind}" for band in range(N_BANDS)]
        damage = [result.effects.of(n)["added_cross_entropy"].effect for n in names]
        assert list(lines[group, "x"].y) == pytest.approx(damage, rel=1e-3)
        changes = [result.cell(n, "facts", "options").change.effect for n in names]
        assert list(lines[group, "x3"].y) == pytest.approx(changes, rel=1e-3)
        assert np.round(lines[group, "x3"].x).tolist() == [0, 1, 2, 3]
        first = result.cell(names[0], "facts", "options").change
        bar = lines[group, "x3"].error_y
        assert bar.array[0] == pytest.approx(first.high - first.effect, rel=1e-3, abs=1e-9)
        assert bar.arrayminus[0] == pytest.approx(first.effect - first.low, rel=1e-3, abs=1e-9)


def test_what_is_undefined_is_marked_and_counted(result: SurgeryResult) -> None:
    loss = result.effects.cross_entropy.clone()
    loss[1] = torch.nan  # `band 0 removed`
    figure = viz.plot_surgery(replace(result, effects=replace(result.effects, cross_entropy=loss)))
    marks = [t for t in figure.data if t.legendgroup == "undefined"]
    assert [t.name for t in marks] == ["undefined: 1 point"] * 3
    assert marks[0].hovertext == ("band 0 removed<br>undefined",)
    line = next(t for t in figure.data if t.name == "not rotated (position goes)")
    assert np.round(line.x).tolist() == [1, 2, 3]


def test_a_result_without_arms_on_single_bands_is_refused(result: SurgeryResult) -> None:
    other = (SurgeryArm(name="no rotation", surgery=Surgery()),)
    with pytest.raises(ValueError, match="result must have arms on single bands, got none"):
        viz.plot_surgery(replace(result, arms=other))


def test_shares_are_drawn_at_the_middle_wavelength_of_their_band() -> None:
    figure = viz.plot_position_shares(shares())
    line = next(t for t in figure.data if t.name == "text as it is")
    assert list(line.x) == pytest.approx([2.0, 20.0, 200.0, 2000.0])
    assert list(line.y) == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert line.error_y.array[0] == pytest.approx(0.1)
    level = next(t for t in figure.data if t.name == "as many random pairs")
    assert list(level.y) == [0.25] * 4
    assert figure.layout.xaxis.type == "log"


def test_bands_that_never_turn_are_counted_not_drawn() -> None:
    made = shares()
    still = replace(made.bands[3], longest=float("inf"))
    figure = viz.plot_position_shares(replace(made, bands=(*made.bands[:3], still)))
    assert len(figure.data[0].x) == 3
    assert "(1 bands never turn, left out)" in figure.layout.annotations[0].text
