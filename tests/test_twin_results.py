"""What twins show, from curves that are known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from builders import build_norms
from sample_twins import CONFIG, SHAPE, STEPS, norms, twin_run, twins_result

from mi_massive._twin_claims import twin_findings
from mi_massive.claims import scoreboard
from mi_massive.concentration import ConcentrationConfig, ConcentrationResult, concentration
from mi_massive.small_samples import student_estimate
from mi_massive.twin_curves import curve_over_steps, loss_difference, massive_over_steps
from mi_massive.twin_results import TwinsResult
from mi_massive.twin_runs import TwinRun, TwinsConfig, at_loss, concentration_of, halfway


@pytest.fixture(scope="module")
def observed() -> ConcentrationResult:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 5, 2, 2, 16, generator=draw) for _ in range(3))
    return concentration(build_norms(q, k, v), config=ConcentrationConfig(n_resamples=50))


def with_runs(**by_seed: list[TwinRun]) -> TwinsResult:
    return twins_result(runs=tuple(run for runs in by_seed.values() for run in runs))


def test_concentration_is_the_geometric_mean_of_max_over_mean() -> None:
    run = twin_run()
    assert concentration_of(run, "q").tolist() == pytest.approx([1.25, 1.25, 2.5, 4.0])
    run.q[:, 1] = norms([1.25] * 4)[:, 1]
    assert concentration_of(run, "q").tolist()[-1] == pytest.approx(math.sqrt(4 * 1.25))
    assert concentration_of(run, "q", 0).tolist()[-1] == pytest.approx(4)
    assert concentration_of(run, "q", 1).tolist()[-1] == pytest.approx(1.25)


def test_the_contrast_is_read_where_both_have_the_same_loss() -> None:
    """`none` ends at a loss of 2, where `rope` is at its third step: 2.5 over 1.25."""
    result = twins_result()
    assert result.contrast("q").effect == pytest.approx(2)
    assert result.contrast("v").effect == pytest.approx(1)
    # Between measured steps: a loss of 1.5 is half-way, on a log axis, from 2.5 to 4.
    slow = [twin_run("none", seed, loss=torch.tensor([5, 4, 3, 1.5])) for seed in range(3)]
    moved = with_runs(rope=[twin_run(seed=seed) for seed in range(3)], none=slow)
    assert moved.contrast("q").effect == pytest.approx(math.sqrt(2.5 * 4) / 1.25)


def test_intervals_are_over_seeds() -> None:
    grown = [
        twin_run(seed=seed, q=norms([1.25, 1.25, 2.5, peak]), loss=torch.tensor([5, 4, 3, 2.0]))
        for seed, peak in enumerate((3.0, 4.0, 5.0))
    ]
    result = with_runs(rope=grown, none=[twin_run("none", seed) for seed in range(3)])
    found = result.contrast("q")
    logs = torch.tensor([3.0, 4.0, 5.0]).div(1.25).log()
    reach = 4.302653 * float(logs.std()) / math.sqrt(3)  # t of 2 degrees of freedom, 95 %
    assert found.effect == pytest.approx(float(logs.mean().exp()))
    assert found.low == pytest.approx(math.exp(float(logs.mean()) - reach), rel=1e-5)
    assert (found.n, found.n_of) == (3, "seeds")
    assert found.p_value == pytest.approx(0.021, abs=0.01)


def test_a_run_that_stopped_early_leaves_the_contrast() -> None:
    gone = twin_run(seed=2, failure="the loss became nan", loss=torch.tensor([5, 3, 2, math.nan]))
    result = with_runs(
        rope=[twin_run(seed=0), twin_run(seed=1), gone],
        none=[twin_run("none", seed) for seed in range(3)],
    )
    assert result.contrast("q").n == 2
    assert result.final_loss("rope").n == 2
    assert result.slow_share("rope", "q").n == 2
    assert result.failures == {"rope, seed 2": "the loss became nan"}


def test_the_half_way_step_lies_between_measured_steps() -> None:
    result = twins_result()
    # log max/mean rises by log(2) at step 40 and by log(3.2) in all: half is log(3.2) / 2.
    part = (math.log(3.2) / 2) / math.log(2)
    assert result.halfway("rope", "q")[0] == pytest.approx(20 * 2**part)
    assert result.halfway("rope", "sink")[0] == pytest.approx(40)
    assert math.isnan(result.halfway("none", "q")[0])  # it went nowhere


def test_a_rise_within_the_first_measured_step_is_dated_at_it() -> None:
    """Nothing was measured before: its date is the latest that it can have been."""
    curve = torch.tensor([0.0, 1.0, 1.0, 1.0]).numpy()
    assert halfway(STEPS, curve, least_rise=0.5) == STEPS[1] == 20


def test_what_values_do_as_well_is_not_dated() -> None:
    """A max/mean that grows in queries, keys and values alike is no concentration of q and k."""
    alike = twin_run()
    alike.v[:] = alike.q
    result = with_runs(rope=[alike], none=[twin_run("none")])
    assert math.isnan(result.halfway("rope", "q")[0])


def test_layers_that_there_are_not_are_refused() -> None:
    result = twins_result()
    for refused in (
        lambda: result.contrast("q", layer=2),
        lambda: result.excess("k", layer=-1),
        lambda: curve_over_steps(result, "rope", "sink", layer=5),
    ):
        with pytest.raises(ValueError, match="layer must be 0 to 1, got"):
            refused()


def test_massive_dimensions_are_counted_a_head() -> None:
    """max/mean of 4 in eight dimensions: one of them passes 3 times the mean, none 5 times."""
    result = twins_result()
    counts = massive_over_steps(result, "rope", "q", ratio=3)
    assert [c.effect for c in counts] == [0, 0, 0, 1]
    assert [c.effect for c in massive_over_steps(result, "rope", "q")] == [0] * 4
    assert massive_over_steps(result, "rope", "v", ratio=3)[-1].effect == 0
    gone = twin_run(seed=2, failure="the loss became nan")
    gone.q[-1] = math.nan
    result = with_runs(
        rope=[twin_run(seed=0), twin_run(seed=1), gone],
        none=[twin_run("none", seed) for seed in range(3)],
    )
    assert massive_over_steps(result, "rope", "q", ratio=3)[-1].n == 2


def test_losses_are_compared_seed_by_seed() -> None:
    """Seeds read windows of their own: what differs between them is no doubt about the arms."""
    losses = [torch.tensor([5.0, 4.0, 3.0, loss]) for loss in (1.0, 1.5, 2.0)]
    result = with_runs(
        rope=[twin_run(seed=s, loss=loss) for s, loss in enumerate(losses)],
        none=[
            twin_run("none", s, loss=loss + 0.25 * (1 + 0.01 * s)) for s, loss in enumerate(losses)
        ],
    )
    difference = loss_difference(result, "none", against="rope")
    assert difference.effect == pytest.approx(0.2525)
    assert difference.high - difference.low < 0.02
    alone = result.final_loss("none")
    assert alone.high - alone.low > 2


def test_what_did_not_appear_has_no_date() -> None:
    faint = torch.tensor([[0.035] * 2, [0.035] * 2, [0.04] * 2, [0.05] * 2])
    result = with_runs(rope=[twin_run(sink=faint)], none=[twin_run("none", sink=2 * faint)])
    assert math.isnan(result.halfway("rope", "sink")[0])  # it did not double
    curve = torch.tensor([0.0, 0.1, 0.15, 0.2]).numpy()
    assert math.isnan(halfway(STEPS, curve, least_rise=math.log(1.25)))


def test_a_loss_that_rises_again_is_read_where_it_first_fell() -> None:
    run = twin_run(loss=torch.tensor([5.0, 3.0, 2.0, 2.5]))
    curve = torch.tensor([0.0, 1.0, 2.0, 9.0]).numpy()
    assert at_loss(run, curve, 2.0) == 2.0
    assert at_loss(run, curve, 4.0) == pytest.approx(0.5)


def test_the_last_step_is_always_measured() -> None:
    assert TwinsConfig(n_steps=1000, n_measured=1).steps == (0, 20, 1000)


def test_the_order_of_concentration_and_sink() -> None:
    part = (math.log(3.2) / 2) / math.log(2)
    assert twins_result().order().effect == pytest.approx(40 / (20 * 2**part))


def test_the_largest_dimension_is_placed_on_the_wavelengths() -> None:
    """Dimension 2 turns once in 2 pi * 10 = 63 tokens, of a context of 64: a full turn."""
    result = twins_result()
    assert result.top_wavelength("rope", "q").effect == pytest.approx(20 * math.pi)
    assert result.slow_share("rope", "q").effect == 0
    assert result.slow_share("rope", "q").null == 0.25  # one of four pairs
    shorter = dataclasses.replace(SHAPE, context=48)
    result = twins_result(config=dataclasses.replace(CONFIG, shape=shorter))
    assert result.slow_share("rope", "q").effect == 1
    assert math.isnan(result.slow_share("none", "q").effect)
    assert math.isnan(result.top_wavelength("none", "q").effect)
    partial = result.top_wavelength("rope", "q", partial=True)
    assert partial.effect == pytest.approx(20 * math.pi)
    assert math.isnan(twins_result().top_wavelength("rope", "q", partial=True).effect)


def test_dimensions_that_stand_still_are_slow() -> None:
    still = [twin_run(seed=s, wavelengths=torch.full((8,), math.inf)) for s in range(3)]
    result = with_runs(rope=still, none=[twin_run("none", seed) for seed in range(3)])
    assert result.slow_share("rope", "k").effect == 1
    assert math.isinf(result.top_wavelength("rope", "k").effect)


def test_mirrored_halves_correlate() -> None:
    profile = torch.arange(1, 5).float()
    mirrored = torch.cat([profile, profile]).expand(4, 2, 2, 8).clone()
    opposed = torch.cat([profile, profile.flip(0)]).expand(4, 2, 2, 8).clone()
    result = with_runs(
        rope=[twin_run(seed=seed, q=mirrored, k=opposed) for seed in range(3)],
        none=[twin_run("none", seed) for seed in range(3)],
    )
    assert result.halves("rope", "q").effect == pytest.approx(1)
    assert result.halves("rope", "k").effect == pytest.approx(-1)


def test_abilities_are_read_by_name() -> None:
    result = twins_result()
    assert result.ability("rope", "paper k=1", "recall").effect == 0.25
    assert result.ability("rope", "paper k=1", "facts", 1).effect == -1
    assert math.isnan(result.ability("rope", "paper k=9", "facts").effect)


def test_draws_of_one_disruption_are_averaged_within_a_twin() -> None:
    result = twins_result()
    assert result.conditions == ("intact", "paper k=1", "random k=1")
    assert result.ability("rope", "random k=1", "recall").effect == 0.625
    assert result.lost("rope", "random k=1", "facts").effect == 0.125
    assert result.lost("rope", "random k=1", "recall").n == 3  # twins, not draws
    with pytest.raises(ValueError, match="ability must be one of recall, facts, got 'sums'"):
        result.ability("rope", "intact", "sums")


def test_selectivity_is_the_loss_of_recall_beyond_facts_and_beyond_a_control() -> None:
    """paper: .75 of recall and .25 of facts; random: .375 and .125. In nats 2.9, .8; .5, .1."""
    result = twins_result()
    assert result.selectivity("rope", "paper k=1").effect == pytest.approx(0.5)
    assert result.selectivity("rope", "random k=1").effect == pytest.approx(0.25)
    beyond = result.selectivity("rope", "paper k=1", against="random k=1")
    assert beyond.effect == pytest.approx(0.25)
    nats = result.selectivity("rope", "paper k=1", against="random k=1", measure=1)
    assert nats.effect == pytest.approx(2.1 - 0.4)
    assert math.isnan(result.selectivity("rope", "same_band k=1").effect)


def test_selectivity_is_tested_over_twins() -> None:
    hurt = [
        twin_run(seed=s, edited=twin_run().edited + torch.tensor([0, d, 0, 0])[:, None, None] * one)
        for one in [torch.tensor([[1.0, 0.0], [0.0, 0.0]])]  # the share of recall alone
        for s, d in enumerate((-0.1, 0.0, 0.1))
    ]
    result = with_runs(rope=hurt, none=[twin_run("none", seed) for seed in range(3)])
    found = result.selectivity("rope", "paper k=1")
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.effect, found.low) == (pytest.approx(0.5), pytest.approx(0.5 - reach, abs=1e-4))
    assert found.null == 0
    assert found.p_value == pytest.approx(0.0131, abs=1e-3)


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="arm must be one of rope, none, got 'alibi'"):
        twins_result().of("alibi")


# --- claims


def test_twins_judge_cause_frequencies_and_first_layer(observed: ConcentrationResult) -> None:
    grown = [
        twin_run(seed=seed, q=norms([1.25, 1.25, 2.5, peak]), k=norms([1.25, 1.25, 2.5, peak]),
                 loss=torch.tensor([5, 4, 3, 2.0]))
        for seed, peak in enumerate((3.9, 4.0, 4.1))
    ]  # fmt: skip
    result = with_runs(rope=grown, none=[twin_run("none", seed) for seed in range(3)])
    board = scoreboard(observed, twins=[result])
    verdicts = {claim.id: claim.verdict for claim in board.claims}
    assert [id for id in verdicts if id.startswith(("C3", "C8e", "C9"))] == [
        *("C3", "C3b", "C8e", "C9", "C9b")
    ]
    assert verdicts["C3b"] == verdicts["C9b"] == "supported"
    assert verdicts["C8e"] == "not supported"  # the largest dimension makes a full turn
    reading = next(claim.reading for claim in board.claims if claim.id == "C3b")
    assert "no position encoding 3.20 (q) and 3.20 (k)" in reading


def test_equal_twins_do_not_support_the_cause(observed: ConcentrationResult) -> None:
    same = [
        twin_run(seed=seed, q=norms([1.25] * 3 + [peak]), k=norms([1.25] * 3 + [peak]),
                 loss=torch.tensor([5, 4, 3, 2.0]))
        for seed, peak in enumerate((1.24, 1.25, 1.26))
    ]  # fmt: skip
    result = with_runs(rope=same, none=[twin_run("none", seed) for seed in range(3)])
    board = scoreboard(observed, twins=[result])
    assert {c.id: c.verdict for c in board.claims}["C3b"] == "not supported"


def test_twins_of_one_kind_are_inconclusive_and_none_are_silent() -> None:
    config = dataclasses.replace(CONFIG, arms=("rope",))
    alone = twins_result(runs=tuple(twin_run(seed=s) for s in range(3)), config=config)
    found = {claim: estimates for claim, estimates, _ in twin_findings([alone])}
    assert found["C3b"] == found["C9b"] == []
    assert len(found["C8e"]) == 2  # needs no twin without rotation
    assert "not both with and without RoPE" in twin_findings([alone])[0][2]
    both = with_runs(
        rope=[twin_run(seed=seed) for seed in range(3)],
        none=[twin_run("none", seed) for seed in range(3)],
    )
    assert repr(twin_findings([alone, both])[0]) == repr(twin_findings([both])[0])
    assert twin_findings([]) == []


def test_twins_that_have_hardly_learned_say_nothing() -> None:
    flat = torch.tensor([5.0, 4.9, 4.8, 4.7])
    untrained = with_runs(
        rope=[twin_run(seed=seed, loss=flat) for seed in range(3)],
        none=[twin_run("none", seed) for seed in range(3)],
    )
    found = twin_findings([untrained])
    assert [claim for claim, _, _ in found] == ["C3b", "C8e", "C9b"]
    assert all(estimates == [] and "hardly learned" in said for _, estimates, said in found)


def test_an_arm_without_slow_dimensions_says_nothing_about_them() -> None:
    fast = twin_run().wavelengths / 100
    result = with_runs(
        rope=[twin_run(seed=seed, wavelengths=fast) for seed in range(3)],
        none=[twin_run("none", seed) for seed in range(3)],
    )
    assert result.slow_share("rope", "q").null == 0
    found = {claim: estimates for claim, estimates, _ in twin_findings([result])}
    assert found["C8e"] == []
    assert len(found["C3b"]) == 2


def test_the_first_set_judges_the_cause_and_all_sets_the_frequencies() -> None:
    first, second = (
        with_runs(
            rope=[twin_run(seed=seed) for seed in range(3)],
            none=[twin_run("none", seed) for seed in range(3)],
        )
        for _ in range(2)
    )
    longer = dataclasses.replace(SHAPE, context=2 * SHAPE.context)
    second = dataclasses.replace(second, config=dataclasses.replace(CONFIG, shape=longer))
    alone, both = ({f[0]: f for f in twin_findings(s)} for s in ([first], [first, second]))
    assert len(both["C3b"][1]) == len(alone["C3b"][1]) == 2
    assert (len(alone["C8e"][1]), len(both["C8e"][1])) == (2, 4)
    assert both["C8e"][2].count("No full turn") == 2
    again = {f[0]: f for f in twin_findings([first, first])}
    assert again["C8e"][2] == alone["C8e"][2]  # the same twins are told once


def test_without_plain_rope_the_first_rotation_judges_the_frequencies() -> None:
    config = dataclasses.replace(CONFIG, arms=("partial_25", "none"))
    runs = tuple(twin_run(arm, seed) for arm in config.arms for seed in range(3))
    found = {f[0]: f for f in twin_findings([twins_result(runs=runs, config=config)])}
    assert len(found["C8e"][1]) == 2
    assert "RoPE on 25 %" in found["C8e"][2]


def test_other_rotations_are_named_beside_the_whole_head() -> None:
    config = dataclasses.replace(CONFIG, arms=("rope", "partial_25", "none"))
    runs = tuple(twin_run(arm, seed) for arm in config.arms for seed in range(3))
    result = twins_result(runs=runs, config=config)
    reading = twin_findings([result])[0][2]
    assert "Other rotations over no position encoding: RoPE on 25 %" in reading


def test_the_interval_of_a_share_ends_where_shares_do() -> None:
    values = np.array([0.9, 1.0, 0.7])
    wide = student_estimate(values, n_of="seeds")
    ended = student_estimate(values, n_of="seeds", limits=(0.0, 1.0))
    assert wide.high > 1
    assert ended.high == 1
    assert (ended.effect, ended.low, ended.n) == (wide.effect, wide.low, wide.n)
    assert math.isnan(student_estimate(values[:1], n_of="seeds", limits=(0.0, 1.0)).low)
