import math

import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from mi_massive.stats import (
    bootstrap_interval,
    estimate,
    holm,
    null_p_values,
    resamples_for_tests,
    sign_flip_p_values,
)

VALUES = np.random.default_rng(3).normal(loc=0.4, size=20)


def test_estimate_of_a_mean_is_scipys_bca_interval_and_paired_permutation_test() -> None:
    got = estimate(VALUES, n_of="prompts", null=0.0, seed=5)
    interval = scipy.stats.bootstrap(
        (VALUES,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    test = scipy.stats.permutation_test(
        (VALUES, np.zeros(20)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2000,
        alternative="greater",
        rng=np.random.default_rng(5),
    )
    assert got.effect == pytest.approx(VALUES.mean())
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high))
    assert got.p_value == pytest.approx(test.pvalue)
    assert (got.n, got.n_of) == (20, "prompts")
    assert got.test == "bootstrap over prompts (BCa); sign-flip permutation (greater)"


def test_geometric_mean_is_the_mean_of_logarithms_carried_back() -> None:
    ratios = np.exp(VALUES)
    got = estimate(ratios, n_of="prompts", statistic="geometric mean", null=1.0)
    logs = estimate(VALUES, n_of="prompts", null=0.0)
    assert got.effect == pytest.approx(scipy.stats.gmean(ratios))
    assert (got.low, got.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    assert got.p_value == logs.p_value


def test_median_resists_an_outlier_that_moves_the_mean() -> None:
    values = np.append(VALUES, 1e6)
    assert estimate(values, n_of="heads", statistic="median").effect == np.median(values)
    assert estimate(values, n_of="heads").effect > 1e4


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(loc=2.0, size=(30, 400))
    interval = bootstrap_interval(samples, np.mean, level=0.9, n_resamples=400)
    covered = np.mean((interval.low <= 2) & (interval.high >= 2))
    assert 0.84 < covered < 0.95


def test_one_unit_has_an_effect_but_neither_interval_nor_p() -> None:
    got = estimate(np.array([3.0]), n_of="prompts", null=0.0)
    assert got.effect == 3.0
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert math.isnan(got.p_value)
    assert "undefined" in got.test


@pytest.mark.parametrize("statistic", ["mean", "median", "geometric mean"])
def test_no_unit_has_no_effect(statistic: str) -> None:
    got = estimate(np.array([math.nan]), n_of="heads", statistic=statistic, null=1.0)
    assert got.n == 0
    assert math.isnan(got.effect)


def test_undefined_units_are_left_out_and_not_counted() -> None:
    with_nan = estimate(np.insert(VALUES, 4, math.nan), n_of="heads")
    without = estimate(VALUES, n_of="heads")
    assert (with_nan.effect, with_nan.low, with_nan.high) == (
        without.effect,
        without.low,
        without.high,
    )
    assert with_nan.n == 20


def test_equal_units_give_an_interval_of_width_zero_by_percentiles() -> None:
    got = estimate(np.full(6, 2.5), n_of="prompts", null=0.0)
    assert (got.low, got.high) == (2.5, 2.5)
    assert got.p_value == 1 / 64  # exact: all of the 2 ** 6 sign patterns are fewer than 2000
    assert "percentile" in got.test


def test_only_the_degenerate_elements_fall_back_to_percentiles() -> None:
    units = np.stack([VALUES, np.ones(20)], axis=-1)
    interval = bootstrap_interval(units, np.mean)
    alone = bootstrap_interval(VALUES, np.mean)
    assert interval.method == "BCa, percentile where degenerate"
    assert interval.low.tolist() == pytest.approx([float(alone.low), 1.0])
    assert interval.high.tolist() == pytest.approx([float(alone.high), 1.0])


def test_the_same_seed_gives_the_same_interval_and_another_seed_does_not() -> None:
    def low(seed: int) -> float:
        return estimate(VALUES, n_of="prompts", seed=seed, n_resamples=100).low

    assert low(1) == low(1)
    assert low(1) != low(2)


def test_batches_change_nothing() -> None:
    whole = bootstrap_interval(VALUES, np.mean, n_resamples=300, batch=300)
    parts = bootstrap_interval(VALUES, np.mean, n_resamples=300, batch=7)
    assert (whole.low, whole.high) == (parts.low, parts.high)


def test_a_geometric_mean_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values must be positive for a geometric mean, got \[0"):
        estimate(np.array([1.0, 0.0]), n_of="prompts", statistic="geometric mean")


@given(
    st.lists(st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 3)), min_size=2, max_size=7)
)
@settings(deadline=None, max_examples=40)
def test_sign_flip_p_equals_the_share_of_all_sign_patterns(differences: list[float]) -> None:
    got = sign_flip_p_values(np.array(differences))
    assert float(got) == pytest.approx(reference.sign_flip_p(differences))


def test_sign_flip_of_many_units_has_the_floor_of_its_resamples() -> None:
    p_values = sign_flip_p_values(np.ones((40, 3)) * [1, 0, -1], n_resamples=999)
    assert p_values.tolist() == [1 / 1000, 1.0, 1.0]


def test_sign_flip_p_of_noise_is_uniform() -> None:
    noise = np.random.default_rng(1).normal(size=(12, 500))
    p_values = sign_flip_p_values(noise, n_resamples=500)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


def test_sign_flip_of_an_undefined_difference_is_undefined() -> None:
    differences = np.array([[1.0, math.nan], [2.0, 1.0], [1.0, 1.0]])
    assert np.isnan(sign_flip_p_values(differences)).tolist() == [False, True]


def test_null_p_counts_ties_and_never_reaches_zero() -> None:
    draws = np.array([0.0, 1.0, 2.0, 3.0])
    assert float(null_p_values(5.0, draws)) == 1 / 5
    assert float(null_p_values(2.0, draws)) == 3 / 5
    assert float(null_p_values(0.0, draws, alternative="less")) == 2 / 5
    assert float(null_p_values(5.0, draws, alternative="two-sided")) == 2 / 5
    assert float(null_p_values(1.5, draws, alternative="two-sided")) == 1.0


def test_null_p_takes_a_draw_that_differs_by_rounding_as_a_tie() -> None:
    assert float(null_p_values(0.3, np.array([0.1 + 0.2 - 1e-15] * 9))) == 1.0


def test_null_p_of_something_undefined_is_undefined() -> None:
    draws = np.array([[0.0, math.nan], [1.0, 1.0]])
    assert np.isnan(null_p_values(np.array([math.nan, 1.0]), draws)).all()


def test_holm_equals_the_step_down_definition() -> None:
    p_values = np.random.default_rng(2).uniform(size=12) ** 3
    p_values[3] = p_values[7]  # a tie
    assert holm(p_values).tolist() == pytest.approx(reference.holm(p_values.tolist()))
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


def test_holm_equals_statsmodels_to_the_last_bit() -> None:
    p_values = np.random.default_rng(0).uniform(size=200).round(2) / 50
    expected = multipletests(p_values, method="holm")[1]
    assert np.array_equal(holm(p_values.reshape(4, 50)), expected.reshape(4, 50))
    assert holm(np.empty(0)).shape == (0,)


def test_holm_counts_tests_without_a_result_as_none() -> None:
    got = holm(np.array([0.01, math.nan, 0.04]))
    assert got.tolist() == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert np.isnan(holm(np.array([math.nan]))).all()


@pytest.mark.parametrize("n_tests", [1, 30, 126, 1000])
def test_a_layer_can_be_significant_however_many_layers_there_are(n_tests: int) -> None:
    n = resamples_for_tests(n_tests)
    assert n >= 2000
    assert n_tests / (1 + n) < 0.006


def test_zero_tests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_tests must be between 1 and .* \(tests\), got 0"):
        resamples_for_tests(0)
