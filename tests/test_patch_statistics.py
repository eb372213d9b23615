"""Statistics of many cells by matrix products equal the slow ones, one cell at a time."""

import itertools

import numpy as np
import pytest

from mi_massive._patch_statistics import corrected_p_values, ratios_of_means, sign_flips
from mi_massive.stats import holm, sign_flip_p_values


def planted(n: int = 9, n_cells: int = 4) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(n_cells, n))
    values[0] += 2.0
    values[1] = 0.0
    return values


def test_few_examples_are_tested_over_every_pattern_of_signs() -> None:
    effects = planted()
    for cell, p_value in zip(effects, sign_flips(effects, n_resamples=600, seed=0), strict=True):
        sums = [abs(np.dot(s, cell)) for s in itertools.product((1, -1), repeat=len(cell))]
        expected = np.mean([total >= abs(cell.sum()) - 1e-12 for total in sums])
        assert p_value == pytest.approx(expected)


def test_many_examples_agree_with_the_slow_test_up_to_its_draws() -> None:
    effects = planted(n=30)
    found = sign_flips(effects, n_resamples=20_000, seed=0)
    slow = sign_flip_p_values(effects.T, alternative="two-sided", n_resamples=20_000, seed=1)
    np.testing.assert_allclose(found, slow, atol=0.05)
    assert found[0] == pytest.approx(1 / 20_001)
    assert found[1] == 1.0


def test_p_values_are_corrected_over_the_cells() -> None:
    effects = planted()
    found = corrected_p_values(effects, level=0.95, n_resamples=600, seed=0)
    np.testing.assert_allclose(found, holm(sign_flips(effects, n_resamples=800, seed=0)))


def test_ratios_are_of_means_and_their_interval_resamples_whole_examples() -> None:
    totals = np.array([1.0, 2.0, 3.0, 4.0])
    effects = np.stack([0.5 * totals, totals[::-1].copy()])
    found = ratios_of_means(effects, totals, level=0.9, n_resamples=500, seed=0)
    np.testing.assert_allclose(found.ratio, [0.5, 1.0])
    # Half of each example is half of every resample.
    np.testing.assert_allclose([found.low[0], found.high[0]], [0.5, 0.5])
    assert found.low[1] < 1.0 < found.high[1]


def test_without_examples_nothing_is_zero() -> None:
    empty = ratios_of_means(np.zeros((3, 0)), np.zeros(0), level=0.95, n_resamples=10, seed=0)
    one = ratios_of_means(np.ones((3, 1)), np.ones(1), level=0.95, n_resamples=10, seed=0)
    assert np.isnan([empty.ratio, empty.low, empty.high, one.low, one.high]).all()
    assert (one.ratio == 1).all()
    assert np.isnan(sign_flips(np.ones((3, 1)), n_resamples=10, seed=0)).all()
