import dataclasses
import math

import pytest
import sample_conflict
import sample_results
import torch
from builders import build_geometry, build_norms, build_provenance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_massive._verdicts import RULES, decide
from mi_massive.arms import Arm
from mi_massive.bands import BandsConfig, BandsResult, bands
from mi_massive.claims import Claim, ScoreboardResult, scoreboard
from mi_massive.concentration import ConcentrationConfig, ConcentrationResult, concentration
from mi_massive.conflict_scores import conflict_cells
from mi_massive.disruption import DisruptionResult
from mi_massive.fluency import Fluency, FluencyResult
from mi_massive.norms import AttentionNorms
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig
from mi_massive.stats import Estimate
from mi_massive.symmetry import SymmetryConfig, SymmetryResult, symmetry

N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD = 8, 4, 2, 64
SLOW_DIMS = (24, 24 + 32)  # both members of pairs 24 to 31 of 32: no full turn in 1000 tokens
QUICK = ConcentrationConfig(n_resamples=300)


def states(n_heads: int, *, seed: int, n_prompts: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n_prompts, 5, N_LAYERS, n_heads, D_HEAD, generator=draw)


def capture(
    *,
    dims: tuple[int, ...] = SLOW_DIMS,
    offset: float = 40.0,
    v_offset: float = 0.0,
    rotates: bool = True,
    n_prompts: int = 8,
    from_layer: int = 0,
    slope: float = 0.0,
    n_pairs: int | None = None,
    model: str = "planted",
) -> AttentionNorms:
    """Constant offsets in `dims` of every head of q and k (and of v) on top of noise.

    They lie one dimension further on in each layer: a pair that all layers share is no evidence.
    `slope` makes the noise of q and k grow along the pairs, alike in both halves.
    """
    q, k, v = (
        states(heads, seed=i, n_prompts=n_prompts)
        for i, heads in enumerate((N_HEADS, N_KV_HEADS, N_KV_HEADS))
    )
    growth = 1 + slope * (torch.arange(D_HEAD) % (D_HEAD // 2))
    q, k = q * growth, k * growth
    for d in dims:
        for layer in range(from_layer, N_LAYERS):
            q[:, :, layer, :, d + layer] += offset
            k[:, :, layer, :, d + layer] += offset
            v[:, :, layer, :, d + layer] += v_offset
    geometry = build_geometry(
        N_LAYERS,
        N_HEADS,
        D_HEAD,
        n_key_value_heads=N_KV_HEADS,
        theta=1e4 if rotates else None,
        n_pairs=n_pairs,
        training_context=1000,
    )
    norms = build_norms(q, k, v, geometry=geometry)
    provenance = build_provenance(model=model, n_prompts=n_prompts)
    return dataclasses.replace(norms, provenance=provenance)


def measured(norms: AttentionNorms) -> tuple[ConcentrationResult, BandsResult, SymmetryResult]:
    return (
        concentration(norms, config=QUICK),
        bands(norms, config=BandsConfig(n_resamples=1000)),
        symmetry(norms, config=SymmetryConfig(n_resamples=1000)),
    )


def by_id(board: ScoreboardResult) -> dict[str, Claim]:
    return {claim.id: claim for claim in board.claims}


EXPERIMENTS = ("C3b", "C4", "C5", "C6", "C7", "C8e", "C9b")
OBSERVED = [name for name in RULES if not name.startswith(EXPERIMENTS)]
"""Claims that are judged without an intervention."""


@pytest.fixture(scope="module")
def model() -> tuple[ConcentrationResult, BandsResult, SymmetryResult]:
    return measured(capture(slope=0.05))


@pytest.fixture(scope="module")
def control() -> ConcentrationResult:
    return concentration(capture(offset=0, rotates=False, model="control"), config=QUICK)


@pytest.fixture(scope="module")
def board(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult], control: ConcentrationResult
) -> dict[str, Claim]:
    found, in_bands, halves = model
    return by_id(scoreboard(found, bands=in_bands, symmetry=halves, control=control))


# --- the rule --------------------------------------------------------------------------------


def estimate(effect: float, low: float, high: float, **changes: float) -> Estimate:
    fields: dict = {"n": 9, "n_of": "prompts", "test": "none", "null": 0.0, "p_value": 0.001}
    return Estimate(effect=effect, low=low, high=high, **(fields | changes))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (estimate(0.8, 0.6, 0.9), "supported"),
        (estimate(0.8, 0.1, 0.9), "supported"),
        (estimate(0.8, 0.6, 0.9, p_value=math.nan), "supported"),  # nothing was tested
        (estimate(0.8, 0.6, 0.9, p_value=0.2), "inconclusive"),
        (estimate(0.8, -0.1, 0.9), "inconclusive"),  # the interval holds the null
        (estimate(0.4, 0.3, 0.6), "inconclusive"),  # too small, but perhaps not
        (estimate(0.4, 0.3, 0.45), "not supported"),  # surely there, surely too small
        (estimate(-0.8, -0.9, -0.6, p_value=1.0), "not supported"),
        (estimate(0.8, math.nan, math.nan), "inconclusive"),
        (estimate(math.nan, 0.6, 0.9), "inconclusive"),
        (estimate(0.8, 0.6, 0.9, null=math.nan), "inconclusive"),  # nothing to compare with
    ],
)
def test_a_verdict_needs_an_interval_beyond_the_null_and_an_effect_of_size(
    found: Estimate, verdict: str
) -> None:
    assert decide(found, minimum=0.5) == verdict


@given(
    effect=st.floats(-2, 2),
    below=st.floats(0, 2),
    above=st.floats(0, 2),
    p_value=st.floats(0, 1),
)
def test_nothing_is_supported_by_an_interval_that_holds_the_null(
    effect: float, below: float, above: float, p_value: float
) -> None:
    found = estimate(effect, effect - below, effect + above, p_value=p_value)
    verdict = decide(found, minimum=0.5)
    if found.low <= 0 or effect < 0.5 or p_value > 0.05:
        assert verdict != "supported"
    if found.high >= 0.5:
        assert verdict != "not supported"


# --- a model that has it all -----------------------------------------------------------------


def test_every_claim_is_supported_on_a_model_planted_to_fulfil_it(board: dict[str, Claim]) -> None:
    assert {name: claim.verdict for name, claim in board.items()} == dict.fromkeys(
        OBSERVED, "supported"
    )


def test_the_claims_carry_the_statements_of_their_rules(board: dict[str, Claim]) -> None:
    for name, claim in board.items():
        assert (claim.statement, claim.quantity) == (RULES[name].statement, RULES[name].quantity)


def test_the_weaker_of_q_and_k_is_reported_with_the_larger_p(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult], board: dict[str, Claim]
) -> None:
    found = model[0]
    reported = board["C1"].estimate
    assert reported.effect == min(found.contrast_q.effect, found.contrast_k.effect)
    assert reported.p_value == max(found.contrast_q.p_value, found.contrast_k.p_value)


def test_readings_are_made_of_the_numbers(board: dict[str, Claim]) -> None:
    assert "q, k and v hold 2.00, 2.00 and 0.00 massive dimensions per head" in board["C1"].reading
    assert "0.00 in q, 0.00 in k" in board["C2"].reading
    assert "the control control" in board["C3"].reading
    assert "weak evidence" in board["C3"].reading
    assert "holds 100 % (q) and 100 % (k)" in board["C8a"].reading
    assert "training context of 1000 tokens" in board["C8c"].reading
    assert "L0 holds 2.00 (q), 2.00 (k) and 0.00 (v)" in board["C9"].reading
    assert "in 8 of 8 layers, L0 the first" in board["C9"].reading


def test_the_control_ratio_is_that_of_max_over_mean_prompt_by_prompt(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult],
    control: ConcentrationResult,
    board: dict[str, Claim],
) -> None:
    expected = []
    for name in ("q", "k"):
        of_model, of_control = (r.of(name).prompt_max_over_mean for r in (model[0], control))
        expected.append(float((of_model / of_control).log().mean().exp()))
    assert board["C3"].estimate.effect == pytest.approx(min(expected), rel=1e-5)
    assert board["C3"].estimate.n == 8


# --- models that lack it ---------------------------------------------------------------------


def test_noise_supports_nothing(control: ConcentrationResult) -> None:
    got = by_id(scoreboard(concentration(capture(offset=0), config=QUICK), control=control))
    for name in ("C1", "C3", "C9"):
        assert got[name].verdict == "not supported", name
    assert got["C2"].verdict != "supported"


def test_massive_values_in_v_withhold_the_support_of_c1() -> None:
    result = concentration(capture(dims=(3,), v_offset=8.0), config=QUICK)
    got = by_id(scoreboard(result))["C1"]
    assert result.v.massive.any()
    assert got.verdict == "inconclusive"
    assert got.estimate.low > 1
    assert "Support is withheld: v holds more than a tenth" in got.reading


def test_massive_values_in_the_control_withhold_the_support_of_c3() -> None:
    found = concentration(capture(offset=80.0), config=QUICK)
    other = concentration(capture(dims=(3,), offset=8.0, rotates=False), config=QUICK)
    got = by_id(scoreboard(found, control=other))["C3"]
    assert got.estimate.effect > 1
    assert got.verdict == "inconclusive"
    assert "the control holds them too" in got.reading


def test_the_fast_half_contradicts_low_frequency_and_partial_cycles() -> None:
    found, in_bands, _ = measured(capture(dims=(1, 33)))
    got = by_id(scoreboard(found, bands=in_bands))
    assert got["C8a"].verdict == "not supported"
    assert got["C8c"].verdict == "not supported"
    assert "holds 0 % (q)" in got["C8a"].reading


def test_one_cluster_contradicts_two_in_a_head() -> None:
    found, _, halves = measured(capture(dims=(24,)))
    assert by_id(scoreboard(found, symmetry=halves))["C8d"].verdict == "not supported"


def test_massive_values_from_a_later_layer_contradict_the_first() -> None:
    got = by_id(scoreboard(concentration(capture(from_layer=2), config=QUICK)))["C9"]
    assert got.verdict == "not supported"
    assert "in 6 of 8 layers, L2 the first" in got.reading


# --- what cannot be decided ------------------------------------------------------------------


def test_missing_inputs_are_inconclusive_and_say_what_is_missing(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult],
) -> None:
    got = by_id(scoreboard(model[0]))
    reasons = {
        "C3": "No model without rotary position embeddings was measured.",
        "C8a": "The analysis of frequency bands was not run on this model.",
        "C8b": "The analysis of symmetry was not run on this model.",
        "C8c": "The analysis of frequency bands was not run on this model.",
        "C8d": "The analysis of symmetry was not run on this model.",
    }
    for name, reason in reasons.items():
        assert (got[name].verdict, got[name].reading) == ("inconclusive", reason)
        assert math.isnan(got[name].estimate.effect)
        assert got[name].estimate.n == 0


def test_a_model_without_rotation_leaves_the_claims_about_rope_open(
    control: ConcentrationResult,
) -> None:
    got = by_id(scoreboard(control))
    assert {got[name].verdict for name in ("C3", "C8a", "C8b", "C8c", "C8d")} == {"inconclusive"}
    assert got["C3"].reading.startswith("This model does not rotate and could only be the control")
    assert got["C8a"].reading.startswith("This model does not rotate its queries and keys")


def test_one_prompt_decides_nothing() -> None:
    found, in_bands, halves = measured(capture(n_prompts=1))
    got = by_id(scoreboard(found, bands=in_bands, symmetry=halves))
    for name in ("C1", "C2", "C9"):
        assert got[name].verdict == "inconclusive", name
        assert "There is no interval from n = 1 prompts." in got[name].reading


def test_an_unknown_training_context_leaves_partial_cycles_open() -> None:
    norms = capture()
    geometry = dataclasses.replace(norms.geometry, training_context=None)
    found, in_bands, _ = measured(dataclasses.replace(norms, geometry=geometry))
    got = by_id(scoreboard(found, bands=in_bands))["C8c"]
    assert (got.verdict, got.reading) == (
        "inconclusive",
        "The training context of this model is not known.",
    )


@pytest.mark.parametrize("dims", [(8, 40, 50), (0, 40, 50)])
def test_massive_dimensions_that_mostly_do_not_rotate_leave_c8a_and_c8c_open(
    dims: tuple[int, ...],
) -> None:
    """Pairs 0 to 15; dimensions from 32 do not rotate. Neither slow nor fast pairs decide."""
    found, in_bands, _ = measured(capture(dims=dims, n_pairs=16, offset=60.0))
    assert in_bands.massive_unrotated_share.effect > 0.5
    got = by_id(scoreboard(found, bands=in_bands))
    for name in ("C8a", "C8c"):
        assert got[name].verdict == "inconclusive"
        assert "More than half of the massive dimensions (" in got[name].reading
        assert "%) do not rotate." in got[name].reading


def test_a_few_massive_dimensions_that_do_not_rotate_change_no_verdict() -> None:
    found, in_bands, _ = measured(capture(dims=(0, 16, 40), n_pairs=16))
    assert 0.2 < in_bands.massive_unrotated_share.effect < 0.5
    got = by_id(scoreboard(found, bands=in_bands))["C8a"]
    assert got.verdict == "not supported"
    assert "do not rotate" not in got.reading


def test_one_key_value_head_leaves_c2_to_the_queries() -> None:
    q, k = states(N_HEADS, seed=0), states(1, seed=1)
    q[..., 3] += 40
    got = by_id(scoreboard(concentration(build_norms(q, k, k), config=QUICK)))["C2"]
    assert got.verdict == "supported"
    assert "in k" not in got.reading
    alone = by_id(scoreboard(concentration(build_norms(k, k, k), config=QUICK)))["C2"]
    assert alone.verdict == "inconclusive"
    assert "undefined, with one head a layer" in alone.reading


# --- refusals and views ----------------------------------------------------------------------


def test_results_of_another_capture_are_refused(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult],
) -> None:
    found, in_bands, halves = model
    other = build_provenance(model="another", n_prompts=8)
    with pytest.raises(ValueError, match="bands must come from the same capture as concentration"):
        scoreboard(found, bands=dataclasses.replace(in_bands, provenance=other))
    other = dataclasses.replace(halves.provenance, prompts_digest="f" * 64)
    with pytest.raises(ValueError, match=r"symmetry must come from .* prompts ffffffff for"):
        scoreboard(found, symmetry=dataclasses.replace(halves, provenance=other))
    other = dataclasses.replace(halves.provenance, settings={"skip_first": True})
    with pytest.raises(ValueError, match=r"symmetry must come from .*, skip_first=True for"):
        scoreboard(found, symmetry=dataclasses.replace(halves, provenance=other))


def test_a_control_that_rotates_is_refused(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult],
) -> None:
    with pytest.raises(ValueError, match="control must be a model without rotary position"):
        scoreboard(model[0], control=model[0])


def test_a_control_on_other_prompts_is_refused(
    model: tuple[ConcentrationResult, BandsResult, SymmetryResult],
) -> None:
    other = concentration(capture(rotates=False, n_prompts=3), config=QUICK)
    with pytest.raises(ValueError, match="control must be measured on the same prompts, got 3 "):
        scoreboard(model[0], control=other)


def test_the_frame_has_one_row_a_claim_and_the_estimate_in_columns(
    control: ConcentrationResult,
) -> None:
    result = scoreboard(control)
    frame = result.to_frame()
    assert frame["id"].tolist() == OBSERVED
    assert "estimate" not in frame
    assert frame["effect"][0] == result.claims[0].estimate.effect
    assert frame["n"].tolist()[:2] == [8, 8]


def test_a_scoreboard_survives_saving(control: ConcentrationResult, tmp_path: object) -> None:
    before = scoreboard(control)
    after = load_result(save_result(before, f"{tmp_path}/scoreboard.json"))
    assert [c.reading for c in after.claims] == [c.reading for c in before.claims]
    assert [c.verdict for c in after.claims] == [c.verdict for c in before.claims]
    assert math.isnan(after.claims[2].estimate.effect)


# --- C4 and C5


def judged(result: DisruptionResult) -> dict[str, Claim]:
    observed = sample_results.concentration_result()
    board = scoreboard(observed, disruption=result)
    return {claim.id: claim for claim in board.claims if claim.id not in OBSERVED}


def test_c4_and_c5_are_about_the_papers_edit_that_has_a_matched_control() -> None:
    result = sample_results.disruption_result()
    assert result.judged is not None
    name = result.judged.name
    found = judged(result)
    assert list(found) == ["C4a", "C4b", "C5a", "C5b"]
    shown = [c for c in result.contrasts if c.arm == name and math.isfinite(c.contrast.low)]
    assert found["C4a"].estimate.effect in [c.contrast.effect for c in shown]
    assert found["C4b"].estimate.effect in [c.beyond_control.effect for c in shown]
    added = result.effects.of(name)["added_cross_entropy"]
    assert found["C5a"].estimate.effect == pytest.approx(math.exp(added.effect))
    assert found["C5a"].estimate.null == 1.0
    losses = [c.distinct_loss.effect for c in result.cells if c.arm == name]
    assert found["C5b"].estimate.effect in losses
    assert name in found["C4a"].reading


def test_c5b_is_judged_on_long_answers_where_they_were_measured() -> None:
    observed, result = sample_results.concentration_result(), sample_results.disruption_result()
    assert result.judged is not None
    name = result.judged.name

    def row(arm: str, task: str, lost: float) -> Fluency:
        value = sample_results.estimate(0.9 - lost, 0.05, n=12, n_of="answers")
        loss = sample_results.estimate(lost, 0.1, n=12, n_of="answers", null=0.0, p_value=0.01)
        measures = dict.fromkeys(("log_perplexity", "own_log_perplexity", "repetition"), value)
        changes = {"distinct_2": value, "distinct_loss": loss, "added_log_perplexity": loss}
        return Fluency(arm=arm, task=task, n_empty=0, **measures, **changes)

    arms = (Arm(preset="paper", k=4), Arm(preset="smallest", k=4))
    losses = {"intact": (0.0, 0.0), name: (0.5, 0.3), "smallest k=4": (0.01, 0.0)}
    written = FluencyResult(
        rows=tuple(
            row(arm, task, lost)
            for arm, pair in losses.items()
            for task, lost in zip(("gsm8k", "imdb"), pair, strict=True)
        ),
        arms=arms,
        config=EvaluationConfig(),
        provenance=observed.provenance,
    )
    board = scoreboard(observed, disruption=result, fluency=written)
    (claim,) = (claim for claim in board.claims if claim.id == "C5b")
    assert claim.verdict == "supported"
    assert claim.estimate.effect == 0.3  # the weaker of the two tasks decides
    assert f"gsm8k 0.40, imdb 0.60 under {name}" in claim.reading
    assert "intact gsm8k 0.90, imdb 0.90" in claim.reading
    assert "smallest k=4 gsm8k 0.89, imdb 0.90" in claim.reading
    other = dataclasses.replace(
        written, provenance=dataclasses.replace(observed.provenance, model="other")
    )
    with pytest.raises(ValueError, match="fluency"):
        scoreboard(observed, disruption=result, fluency=other)
    with pytest.raises(ValueError, match="fluency must come with disruption"):
        scoreboard(observed, fluency=written)


def test_c4b_says_how_equal_arm_and_control_are_in_damage_to_neutral_text() -> None:
    result = sample_results.disruption_result()
    control = "effect_matched k=4 seed=0"
    beyond = result.effects.added_beyond("paper k=4", [control])
    losses = result.effects.cross_entropy.double()
    rows = [result.effects.arms.index(name) for name in ("paper k=4", control)]
    assert beyond.effect == pytest.approx(float((losses[rows[0]] - losses[rows[1]]).mean()))
    assert f"adds {beyond.effect:+.2f} [{beyond.low:+.2f}, " in judged(result)["C4b"].reading


def test_c4b_beyond_several_seeds_speaks_of_all_of_them() -> None:
    result = sample_results.disruption_result()
    seeds = ("random k=4 seed=0", "random k=4 seed=1")
    label = "random k=4 (2 seeds)"
    drawn = tuple(dataclasses.replace(c, control=label) for c in result.contrasts)
    reading = judged(dataclasses.replace(result, contrasts=drawn))["C4b"].reading
    beyond = result.effects.added_beyond("paper k=4", seeds)
    assert reading.startswith(f"{label} at strength 1 moves the attention by ")
    assert f"adds {beyond.effect:+.2f} [" in reading


def test_without_a_contrast_or_the_papers_edit_nothing_is_decided() -> None:
    result = sample_results.disruption_result()
    silent = dataclasses.replace(result, contrasts=())
    assert {judged(silent)[name].verdict for name in ("C4a", "C4b")} == {"inconclusive"}
    others = tuple(arm for arm in result.arms if arm.preset != "paper")
    missing = judged(dataclasses.replace(result, arms=others))
    assert {claim.verdict for claim in missing.values()} == {"inconclusive"}
    assert "No arm of the preset 'paper' was run." in missing["C4a"].reading


def test_a_disruption_of_another_model_is_refused() -> None:
    result = sample_results.disruption_result()
    other = dataclasses.replace(result.provenance, model="another")
    with pytest.raises(ValueError, match="disruption must come from the model"):
        judged(dataclasses.replace(result, provenance=other))


# --- C6


def test_c6b_tells_what_the_control_does_and_how_equal_it_is_in_damage() -> None:
    before, back, lost = ["context"] * 12, ["memory"] * 12, ["neither"] * 12
    arms = (Arm(preset="paper", k=4), *(Arm(preset="random", k=4, seed=seed) for seed in (0, 1)))
    given = dict(zip(arms, (back, lost, back), strict=True))
    effects = sample_results.effects(arms)
    model = effects.provenance.model
    result = dataclasses.replace(
        sample_conflict.conflict_result(),
        arms=arms,
        effects=effects,
        cells=conflict_cells(
            sample_conflict.answers(before, "memory", model),
            {a.name: sample_conflict.answers(s, "memory", model) for a, s in given.items()},
            controls={arms[0].name: tuple(arm.name for arm in arms[1:])},
        ),
    )
    board = scoreboard(sample_results.concentration_result(), conflict=result)
    found = {claim.id: claim for claim in board.claims}["C6b"]
    # one draw loses everything, the other falls back as the treatment does
    assert found.estimate.effect == pytest.approx(0.5)
    assert found.reading.startswith("random k=4 (2 seeds) at strength 1 moves the attention by ")
    beyond = effects.added_beyond(arms[0].name, [arm.name for arm in arms[1:]])
    assert f"paper k=4 adds {beyond.effect:+.2f} [" in found.reading
    assert "Under the control 50% keep memory, 0% follow the context" in found.reading
