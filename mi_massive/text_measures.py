"""How varied a generated text is: distinct n-grams, the published diversity, and repetition.

Answers whether answers degenerate into loops (C5). Costs nothing. Words are split at white space,
so that models with other tokenizers compare.

Does not show: whether a text is any good; and a short text is varied by being short.

Source: Jin et al. 2025, arXiv:2502.01563, figure 3, report the diversity of 2-grams.
"""

import math
from collections import Counter

from mi_massive._checks import require_positive


def distinct_share(text: str, n: int = 2) -> float:
    """Different n-grams of words over all n-grams: 1 without any repetition.

        len(set(ngrams)) / len(ngrams)

    The published "2-gram diversity" is this with n = 2. NaN for a text of fewer than n words.

    Args:
        text: A generated answer.
        n: Words of an n-gram.

    Raises:
        ValueError: If `n` is not positive.

    Source:
        Li et al. 2016, arXiv:1510.03055 (distinct-n).
    """
    require_positive("n", n)
    words = text.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def repetition_share(text: str, n: int = 4) -> float:
    """Share of n-grams of words that occur more than once; 0 without repetition, 1 in a loop.

    NaN for a text of fewer than n words.

    Raises:
        ValueError: If `n` is not positive.
    """
    require_positive("n", n)
    words = text.split()
    ngrams = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    total = sum(ngrams.values())
    repeated = sum(count for count in ngrams.values() if count > 1)
    return repeated / total if total else math.nan
