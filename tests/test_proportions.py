"""Shares of right answers and paired comparisons of them, against sums written out."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from mi_massive.proportions import (
    chance_corrected,
    mcnemar_p_value,
    proportion,
    smallest_difference,
)

Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)
unhurried = settings(deadline=None, max_examples=50)


def flags_of(right: int, n: int) -> np.ndarray:
    return np.arange(n) < right


def binomial(n: int, k: int) -> float:
    """Probability of k heads in n throws."""
    return math.comb(n, k) / 2**n


def pair_of(both: int, first_only: int, second_only: int, neither: int) -> tuple[np.ndarray, ...]:
    counts = [both, first_only, second_only, neither]
    return (
        np.repeat([True, True, False, False], counts),
        np.repeat([True, False, True, False], counts),
    )


# One condition.


@pytest.mark.parametrize(("right", "n"), [(7, 10), (1, 30), (0, 12), (12, 12), (1, 1)])
def test_the_interval_is_wilsons_formula_and_statsmodels(right: int, n: int) -> None:
    got = proportion(flags_of(right, n))
    share = right / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    assert got.effect == share
    assert (got.low, got.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    expected = proportion_confint(right, n, alpha=0.05, method="wilson")
    assert (got.low, got.high) == pytest.approx(expected, abs=1e-12)
    assert (got.n, got.n_of, got.level, got.test) == (n, "examples", 0.95, "Wilson interval")
    assert math.isnan(got.p_value)


def test_another_level_gives_its_own_interval() -> None:
    got = proportion(flags_of(30, 40), level=0.8)
    expected = proportion_confint(30, 40, alpha=0.2, method="wilson")
    assert (got.low, got.high) == pytest.approx(expected, rel=1e-12)
    assert got.level == 0.8


def test_the_interval_reaches_0_and_1_exactly_where_all_answers_are_alike() -> None:
    """Rounding must not lift a model without a single right answer above a chance of 0."""
    for n in range(1, 80):
        assert proportion(flags_of(0, n)).low == 0.0
        assert proportion(flags_of(n, n)).high == 1.0


@pytest.mark.parametrize(("right", "n", "null"), [(9, 10, 0.5), (3, 20, 0.25), (5, 20, 0.25)])
def test_the_p_value_against_chance_is_scipys_exact_binomial_test(
    right: int, n: int, null: float
) -> None:
    got = proportion(flags_of(right, n), null=null)
    assert got.p_value == pytest.approx(scipy.stats.binomtest(right, n, null).pvalue)
    assert got.null == null
    assert got.test == "Wilson interval; exact binomial test against chance"


def test_nine_of_ten_against_a_coin_by_hand() -> None:
    """0, 1, 9 and 10 right of 10 are no more probable than 9."""
    p = proportion(flags_of(9, 10), null=0.5).p_value
    assert p == pytest.approx(2 * (binomial(10, 0) + binomial(10, 1)))


@pytest.mark.parametrize("null", [0.0, 1.0, math.nan])
def test_a_chance_that_one_answer_would_refute_is_not_tested(null: float) -> None:
    got = proportion(flags_of(3, 5), null=null)
    assert math.isnan(got.p_value)
    assert got.test == "Wilson interval"


def test_no_examples_have_no_share() -> None:
    got = proportion(np.array([], dtype=bool), null=0.5)
    for value in (got.effect, got.low, got.high, got.p_value):
        assert math.isnan(value)
    assert (got.n, got.test) == (0, "no examples")


# Chance.


def test_chance_becomes_0_and_perfect_1() -> None:
    scores = np.array([0.25, 1.0, 0.625, 0.0])
    assert chance_corrected(scores, 0.25).tolist() == pytest.approx([0.0, 1.0, 0.5, -1 / 3])
    assert chance_corrected(scores, 0.0).tolist() == scores.tolist()
    assert float(chance_corrected(np.array(0.625), 0.25)) == 0.5


@pytest.mark.parametrize("chance", [1.0, -0.1, 1.5, math.nan])
def test_a_chance_that_leaves_no_room_is_refused(chance: float) -> None:
    with pytest.raises(ValueError, match=f"chance must be at least 0 and below 1, got {chance}"):
        chance_corrected(np.array([0.5]), chance)


# Two conditions.


@given(pairs=flags)
@unhurried
def test_mcnemars_p_is_the_plain_binomial_sum(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    gained = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    fewer, n = min(gained, lost), gained + lost
    expected = min(1.0, 2 * sum(binomial(n, k) for k in range(fewer + 1)))
    assert mcnemar_p_value(first, second) == pytest.approx(expected)
    assert mcnemar_p_value(second, first) == pytest.approx(expected)


@pytest.mark.parametrize("counts", [(5, 9, 1, 5), (0, 3, 3, 0), (40, 0, 7, 2), (1, 12, 4, 0)])
def test_mcnemars_p_is_that_of_statsmodels(counts: tuple[int, int, int, int]) -> None:
    both, first_only, second_only, neither = counts
    table = [[both, first_only], [second_only, neither]]
    expected = min(1.0, float(mcnemar(table, exact=True).pvalue))
    assert mcnemar_p_value(*pair_of(*counts)) == pytest.approx(expected)


def test_examples_on_which_both_agree_say_nothing() -> None:
    alone = mcnemar_p_value(*pair_of(0, 9, 1, 0))
    assert mcnemar_p_value(*pair_of(500, 9, 1, 300)) == alone


def test_conditions_that_never_differ_have_p_1() -> None:
    same = flags_of(4, 9)
    assert mcnemar_p_value(same, same) == 1.0


def test_no_pairs_have_no_p() -> None:
    nothing = np.array([], dtype=bool)
    assert math.isnan(mcnemar_p_value(nothing, nothing))


def test_conditions_of_different_length_are_refused() -> None:
    message = r"must hold the same examples, got 3 and 4; evaluate them on one task"
    with pytest.raises(ValueError, match=message):
        mcnemar_p_value(flags_of(1, 3), flags_of(1, 4))


# What could have been found.


def smallest_by_trial(n: int, level: float, n_tests: int) -> float:
    """Fewest changes, all in one direction, that are significant, over n."""
    for m in range(1, n + 1):
        if mcnemar_p_value(*pair_of(0, m, 0, n - m)) * n_tests <= 1 - level + 1e-12:
            return m / n
    return math.inf


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95, 0.99, 0.9375])
@pytest.mark.parametrize("n", [1, 4, 5, 6, 7, 23])
def test_the_smallest_difference_is_found_by_trying_all(n: int, level: float) -> None:
    for n_tests in (1, 2, 7):
        got = smallest_difference(n, level=level, n_tests=n_tests)
        assert got == smallest_by_trial(n, level, n_tests)


def test_six_changes_of_a_hundred_are_the_least_and_more_tests_need_more() -> None:
    assert smallest_difference(100) == 0.06  # 2 / 2 ** 6 = 0.031, 2 / 2 ** 5 = 0.0625
    assert smallest_difference(100, n_tests=10) == 0.09  # 20 / 2 ** 9 = 0.039


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_examples_can_show_nothing(n: int) -> None:
    assert smallest_difference(n) == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n must be between 0 and"),
        ({"n": 9, "n_tests": 0}, "n_tests must be between 1 and"),
    ],
)
def test_numbers_that_count_nothing_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smallest_difference(**arguments)
