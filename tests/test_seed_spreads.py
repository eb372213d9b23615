"""Controls over their seeds stand beside the treatment of the same k."""

import math

import pytest
import sample_results as sample
from sample_results import contrast

from mi_massive.arms import make_arms
from mi_massive.contrasts import ArmContrast
from mi_massive.seed_spreads import Spread, seed_spreads


@pytest.mark.parametrize(
    ("drawn", "treated", "p_value"),
    [
        ((0.1, 0.2, 0.3), 0.25, 2 / 4),
        ((0.1, 0.2, 0.3), 0.9, 1 / 4),
        ((0.1, 0.2, 0.3), 0.3, 2 / 4),  # a tie counts for the control
        ((0.1, 0.2, 0.3), -1.0, 1.0),
    ],
)
def test_p_is_the_share_of_draws_that_cost_as_much_with_the_treatment_itself(
    drawn: tuple[float, ...], treated: float, p_value: float
) -> None:
    assert Spread(drawn=drawn, treated=treated).p_value == pytest.approx(p_value)


def test_what_is_undefined_under_one_draw_is_not_tested() -> None:
    assert math.isnan(Spread(drawn=(0.1, math.nan), treated=0.5).p_value)
    assert math.isnan(Spread(drawn=(0.1, 0.2), treated=math.nan).p_value)


def measured(n_seeds: int) -> tuple[list, list[ArmContrast]]:
    arms = list(make_arms(("paper", "smallest", "random"), ks=(2, 4), n_seeds=n_seeds))
    return arms, [contrast(arm, r) for r in ("generation", "options") for arm in arms]


def test_each_seeded_control_stands_beside_the_treatment_at_its_own_k() -> None:
    arms, contrasts = measured(3)
    found = seed_spreads(arms, contrasts)
    assert [(s.control, s.treatment, s.readout, s.n_seeds) for s in found] == [
        (f"random k={k}", f"paper k={k}", readout, 3)
        for k in (2, 4)
        for readout in ("generation", "options")
    ]
    for spread in found:
        own = {c.arm: c for c in contrasts if c.readout == spread.readout}
        for name in ("contextual_loss", "parametric_loss", "contrast"):
            values = [getattr(own[f"{spread.control} seed={s}"], name).effect for s in range(3)]
            assert getattr(spread, name).drawn == pytest.approx(values, nan_ok=True)
            treated = getattr(own[spread.treatment], name).effect
            assert getattr(spread, name).treated == pytest.approx(treated, nan_ok=True)


def test_one_seed_has_no_spread_and_neither_has_a_k_without_the_treatment() -> None:
    assert seed_spreads(*measured(1)) == ()
    arms, contrasts = measured(2)
    without = [arm for arm in arms if arm.name != "paper k=2"]
    assert {s.control for s in seed_spreads(without, contrasts)} == {"random k=4"}
    assert seed_spreads(arms, contrasts, treatment="sink_only") == ()


def test_a_result_holds_its_own_spreads() -> None:
    result = sample.disruption_result()
    assert result.seed_spreads == seed_spreads(result.arms, result.contrasts)
    assert {s.control for s in result.seed_spreads} == {f"random k={k}" for k in (1, 2, 4, 8)}
