"""C7 and its section: verdicts and tables from the committed record, and from planted numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_results import concentration_result

from mi_massive import StateQuantizationResult, load_result, viz
from mi_massive._quantization_claims import quantization_findings
from mi_massive.claims import scoreboard
from mi_massive.concentration import ConcentrationResult
from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.report.quantization import quantization_section
from mi_massive.report.text import number

RECORDS = Path(__file__).parents[1] / "experiments/records"


def record(name: str = "state_quantization") -> StateQuantizationResult:
    result = load_result(RECORDS / f"{name}_smollm2-135m-instruct.json")
    assert isinstance(result, StateQuantizationResult)
    return result


@pytest.fixture(scope="module", name="result")
def fixture_result() -> StateQuantizationResult:
    return record()


@pytest.fixture(scope="module", name="observed")
def fixture_observed(result: StateQuantizationResult) -> ConcentrationResult:
    made = concentration_result(model=result.provenance.model)
    source = replace(made.provenance, revision=result.provenance.revision)
    return replace(made, provenance=source)


def with_damage(
    result: StateQuantizationResult, damage: dict[str, float]
) -> StateQuantizationResult:
    """Arms that begin with a key cost so many nats in every passage; the longest key decides."""
    effects = result.effects
    loss = effects.cross_entropy.clone()
    for i, name in enumerate(effects.arms):
        keys = [key for key in damage if name.startswith(key)]
        loss[i] = loss[0] + (damage[max(keys, key=len)] if keys else 0.0)
    return replace(result, effects=replace(effects, cross_entropy=loss))


def test_the_share_saved_is_that_of_the_damage_beyond_equally_many_others(
    result: StateQuantizationResult, observed: ConcentrationResult
) -> None:
    planted = with_damage(result, {"3 bits": 0.8, "3 bits, massive kept": 0.2})
    (id_a, saved, reading), _ = quantization_findings(planted, observed)
    assert id_a == "C7a"
    assert [one.effect for one in saved] == [pytest.approx(0.6 / 0.8, rel=1e-5)]
    assert (saved[0].low, saved[0].high) == pytest.approx((0.75, 0.75), rel=1e-5)
    assert "save 75% at 3 bits" in reading


def test_where_nothing_is_harmed_nothing_is_decided(
    result: StateQuantizationResult, observed: ConcentrationResult
) -> None:
    claims = {
        claim.id: claim
        for claim in scoreboard(observed, quantization=with_damage(result, {"2 bits": 0.09})).claims
    }
    assert claims["C7a"].verdict == "inconclusive"
    assert "No number of bits costs 0.1 nats" in claims["C7a"].reading


def test_the_record_supports_protection_and_not_that_the_loss_is_contextual(
    result: StateQuantizationResult, observed: ConcentrationResult
) -> None:
    claims = {c.id: c for c in scoreboard(observed, quantization=result).claims}
    assert claims["C7a"].verdict == "supported"
    assert claims["C7a"].estimate.effect == pytest.approx(
        float(result.gain(2).gain.effect)
        / result.effects.of("2 bits")["added_cross_entropy"].effect,
        rel=1e-4,
    )
    assert claims["C7b"].verdict == "not supported"
    assert claims["C7b"].estimate == replace(
        next(c.contrast for c in result.contrasts if c.arm == "3 bits"),
    )
    without = {claim.id for claim in scoreboard(observed).claims}
    assert not {"C7a", "C7b"} & without


def test_scales_by_channel_need_no_protection(observed: ConcentrationResult) -> None:
    claims = {
        c.id: c
        for c in scoreboard(observed, quantization=record("state_quantization_cache")).claims
    }
    assert claims["C7a"].verdict != "supported"
    assert claims["C7b"].verdict == "inconclusive"
    assert "No task was asked" in claims["C7b"].reading


def test_another_model_is_refused(result: StateQuantizationResult) -> None:
    with pytest.raises(ValueError, match="quantization must come from the model 'other'"):
        quantization_findings(result, concentration_result(model="other"))


def test_the_figure_draws_means_over_seeds_in_both_panels(result: StateQuantizationResult) -> None:
    figure = viz.plot_protection(result)
    lines = {(trace.legendgroup, trace.xaxis): trace for trace in figure.data}
    assert len(lines) == 12
    of = result.effects.of
    massive = lines["massive channels kept", "x"]
    assert list(massive.x) == [0, 1, 2, 3]
    assert massive.y[2] == pytest.approx(
        of("3 bits, massive kept")["added_cross_entropy"].effect, rel=1e-3
    )
    seeds = [of(f"3 bits, random kept seed={i}, first kept") for i in range(2)]
    mean = sum(seed["added_cross_entropy"].effect for seed in seeds) / 2
    at = list(lines["random channels kept", "x2"].x).index(2)
    assert lines["random channels kept", "x2"].y[at] == pytest.approx(mean, rel=1e-3)


def test_the_section_says_what_was_saved_and_what_it_costs(result: StateQuantizationResult) -> None:
    from test_report import bare

    section = quantization_section(result, title="t")
    assert "q with one asymmetric scale a token and head" in section.question
    gains, arms, scores = section.tables
    wanted = result.gain(3)
    row = next(
        r
        for r in gains.rows
        if r[:4] == ("3", "massive channels kept", "mean of the others", "quantized in both")
    )
    assert row[4].startswith(f"{number(wanted.gain.effect)} [")
    assert row[6:] == (number(wanted.extra_bits), "–")
    assert len(arms.rows) == len(result.arms)
    assert len(scores.rows) == len(result.cells)
    assert 'id="quantization"' not in render_page(bare())
    results = bare(quantization=result)
    assert "Must massive values be protected?" in render_page(results)
    made = frames(results)
    assert len(made["protection"]) == len(result.gains)
    assert len(made["quantization"]) == 1 + len(result.arms)
    assert not torch.tensor(made["quantization"].cross_entropy.to_numpy()).isnan().any()
