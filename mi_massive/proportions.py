"""Scores of right and wrong answers: intervals, chance, and paired comparisons.

Thin over statsmodels and scipy. Everything is per example: two conditions are compared on the same
examples, never as two independent samples.

Does not show: that examples are independent draws from the task that one has in mind.
"""

import math
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float

from mi_massive._checks import require_in_range
from mi_massive.stats import Estimate

Correct = Bool[np.ndarray, "example"]
Paired = Bool[np.ndarray, "paired_example"]  # an axis of its own: unequal lengths get our text


def proportion(correct: Correct, *, level: float = 0.95, null: float = math.nan) -> Estimate:
    """Share of right answers with its Wilson interval, and an exact binomial test against `null`.

    Args:
        correct: True for a right answer.
        level: Level of the interval.
        null: Score of a guesser; NaN leaves out the test (two-sided).

    Returns:
        The estimate; all NaN without examples.

    Source:
        Wilson 1927 through `statsmodels.stats.proportion.proportion_confint`.
    """
    n, right = len(correct), int(correct.sum())
    if n == 0:
        nan = math.nan
        return Estimate(effect=nan, low=nan, high=nan, n=0, n_of="examples", test="no examples")
    import scipy.stats
    from statsmodels.stats import proportion as proportions

    wilson: Any = cast(Any, proportions).proportion_confint
    low, high = wilson(right, n, alpha=1 - level, method="wilson")
    low = 0.0 if right == 0 else low  # exactly, where rounding leaves 1e-17 above chance 0
    high = 1.0 if right == n else high
    test, p_value = "Wilson interval", math.nan
    if 0 < null < 1:
        test += "; exact binomial test against chance"
        p_value = float(cast(Any, scipy.stats).binomtest(right, n, null).pvalue)
    return Estimate(
        effect=right / n,
        low=float(low),
        high=float(high),
        level=level,
        n=n,
        n_of="examples",
        test=test,
        p_value=p_value,
        null=null,
    )


def chance_corrected(score: Float[np.ndarray, "*any"], chance: float) -> Float[np.ndarray, "*any"]:
    """Score between chance (0) and perfect (1): `(score - chance) / (1 - chance)`.

    Below 0 for less than chance.

    Raises:
        ValueError: If chance is not in 0 <= chance < 1.
    """
    if not 0 <= chance < 1:
        raise ValueError(f"chance must be at least 0 and below 1, got {chance}")
    return np.asarray((score - chance) / (1 - chance))  # numpy makes a scalar of a single score


def mcnemar_p_value(first: Correct, second: Paired) -> float:
    """Exact two-sided p that two conditions are right equally often on the same examples.

    Only examples where they differ count. 1 where they never differ; NaN without examples.

    Source:
        McNemar 1947, exact binomial form, through `statsmodels.stats.contingency_tables.mcnemar`.

    Raises:
        ValueError: If the two hold different numbers of examples.
    """
    _require_paired(first, second)
    if len(first) == 0:
        return math.nan
    from statsmodels.stats import contingency_tables

    table = [[int((first & second).sum()), int((first & ~second).sum())]]
    table.append([int((~first & second).sum()), int((~first & ~second).sum())])
    result: Any = cast(Any, contingency_tables).mcnemar(table, exact=True)
    return float(min(1.0, result.pvalue))


def smallest_difference(n: int, *, level: float = 0.95, n_tests: int = 1) -> float:
    """Smallest difference of two paired scores that McNemar's exact test could find significant.

    With every change in one direction m changes give p = 2 * 0.5 ** m; the difference is m / n. A
    comparison that finds nothing has not excluded effects below it.

    Args:
        n: Examples.
        level: 1 minus the significance threshold.
        n_tests: Comparisons that are corrected for (Bonferroni, which bounds Holm).

    Returns:
        A share in 0..1; infinite if no result of n examples could be significant.
    """
    require_in_range("n", n, low=0, high=1 << 40, unit="examples")
    require_in_range("n_tests", n_tests, low=1, high=1 << 20, unit="tests")
    changes = math.ceil(round(math.log2(2 * n_tests / (1 - level)), 9))
    return changes / n if changes <= n else math.inf


def _require_paired(first: Correct, second: Paired) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"both conditions must hold the same examples, got {len(first)} and {len(second)}; "
            "evaluate them on one task"
        )
