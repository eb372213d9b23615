"""Figures of a surgery show the result's numbers and mark what is undefined."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_provenance

from mi_massive import viz
from mi_massive.attention_effects import EffectsResult
from mi_massive.operation import Surgery
from mi_massive.position_shares import BandShares, PositionSharesConfig, PositionSharesResult
from mi_massive.scores import Answer, EvaluationConfig, TaskResult, cells_of
from mi_massive.stats import Estimate
from mi_massive.surgery import SurgeryConfig, SurgeryResult
from mi_massive.surgery_plans import SurgeryArm, surgery_arms

N_BANDS = 4
ARMS = surgery_arms(n_bands=N_BANDS)


def number(effect: float) -> Estimate:
    return Estimate(
        effect=effect,
        low=effect - 0.1,
        high=effect + 0.1,
        n=4,
        n_of="passages",
        test="none",
        p_value=0.5,
        null=0.25,
    )


def task_result(task: str, shift: int) -> TaskResult:
    answers = tuple(
        Answer(
            id=str(i),
            group="",
            condition="",
            text=None,
            extracted=None,
            correct=None,
            legacy_correct=None,
            log_probs=(float((i + shift) % 3) - 0.5, 0.0),
            gold=0,
        )
        for i in range(12)
    )
    return TaskResult(
        task=task,
        kind="contextual",
        version=1,
        digest="0" * 64,
        chance=0.0,
        options_chance=0.5,
        answers=answers,
        n_edits=1,
        config=EvaluationConfig(readouts=("options",)),
        provenance=build_provenance(),
    )


def shares(**changes: Any) -> PositionSharesResult:
    values = torch.rand(2, 4, N_BANDS, generator=torch.Generator().manual_seed(0))
    made: dict[str, Any] = {
        "share": values,
        "shuffled": values,
        "floor": values,
        "variance_share": values,
        "bands": tuple(
            BandShares(
                band=band,
                shortest=10.0**band,
                longest=4 * 10.0**band,
                position_share=number(0.5 - 0.1 * band),
                shuffled=number(0.4),
                floor=number(0.05),
                variance_share=number(0.3),
            )
            for band in range(N_BANDS)
        ),
        "fast_minus_slow": number(0.2),
        "layers": (0, 1),
        "config": PositionSharesConfig(n_bands=N_BANDS),
        "provenance": build_provenance(),
    }
    return PositionSharesResult(**made | changes)


@pytest.fixture(scope="module", name="result")
def fixture_result() -> SurgeryResult:
    names = [arm.name for arm in ARMS]
    generator = torch.Generator().manual_seed(1)
    effects = EffectsResult(
        arms=("intact", *names),
        sink_mass=torch.rand(1 + len(names), 4, 2, generator=generator),
        attention_kl=torch.rand(1 + len(names), 4, 2, generator=generator),
        cross_entropy=torch.rand(1 + len(names), 4, generator=generator),
        layers=(0, 1),
        strengths={},
        provenance=build_provenance(),
    )
    intact = [task_result(task, 0) for task in ("keys", "facts")]
    by_arm = {
        name: [task_result(task, i % 3) for task in ("keys", "facts")]
        for i, name in enumerate(names)
    }
    return SurgeryResult(
        arms=ARMS,
        cells=cells_of(intact, by_arm),
        contrasts=(),
        distances=(),
        effects=effects,
        shares=shares(),
        norms=(),
        config=SurgeryConfig(),
        provenance=build_provenance(),
    )


def test_a_line_is_the_change_of_the_arms_that_treat_one_band(result: SurgeryResult) -> None:
    figure = viz.plot_surgery(result)
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "<b>Added nats a token</b>",
        "<b>keys (options)</b>",
        "<b>facts (options)</b>",
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
