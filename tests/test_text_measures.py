"""Repetition of texts whose n-grams are counted by hand."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_massive.text_measures import distinct_share, repetition_share

words = st.lists(st.sampled_from("abc"), max_size=12)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b a b", 1, 2 / 4),
        ("a b a b", 2, 2 / 3),  # ab ba ab
        ("a b a b", 3, 2 / 2),  # aba bab
        ("a b a b", 4, 1.0),
        ("a a a a a", 2, 1 / 4),
        ("the cat saw the dog", 2, 1.0),
        ("a\nb \t a b", 2, 2 / 3),  # white space of any kind divides
        ("A a A a", 2, 2 / 3),  # case is kept
    ],
)
def test_distinct_share_by_hand(text: str, n: int, expected: float) -> None:
    assert distinct_share(text, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b a b", 1, 1.0),
        ("a b a b", 2, 2 / 3),  # ab twice, ba once
        ("a b a b", 3, 0.0),
        ("a b c d a b c d", 4, 2 / 5),  # abcd twice, bcda, cdab, dabc once
        ("a a a a a", 4, 1.0),
        ("a b c d e", 4, 0.0),
    ],
)
def test_repetition_share_by_hand(text: str, n: int, expected: float) -> None:
    assert repetition_share(text, n) == pytest.approx(expected)


def test_pairs_and_runs_of_four_are_what_is_counted_unless_said() -> None:
    text = "a b a b c a b a b"
    assert distinct_share(text) == distinct_share(text, 2) == 4 / 8
    assert repetition_share(text) == repetition_share(text, 4) == 2 / 6


@given(words=words, n=st.integers(1, 4))
def test_both_are_the_plain_count_over_all_places(words: list[str], n: int) -> None:
    grams = ["".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    text = " ".join(words)
    if not grams:
        assert math.isnan(distinct_share(text, n))
        assert math.isnan(repetition_share(text, n))
        return
    new = [gram not in grams[:i] for i, gram in enumerate(grams)]
    repeated = [grams.count(gram) > 1 for gram in grams]
    assert distinct_share(text, n) == pytest.approx(sum(new) / len(grams))
    assert repetition_share(text, n) == pytest.approx(sum(repeated) / len(grams))


@pytest.mark.parametrize("measure", [distinct_share, repetition_share])
def test_a_text_shorter_than_n_words_has_no_share(measure: Callable[[str, int], float]) -> None:
    for text in ("", " \n ", "one", "one two"):
        assert math.isnan(measure(text, 3))
    assert not math.isnan(measure("one two three", 3))


@pytest.mark.parametrize("measure", [distinct_share, repetition_share])
@pytest.mark.parametrize("n", [0, -2])
def test_n_grams_of_no_words_are_refused(measure: Callable[[str, int], float], n: int) -> None:
    with pytest.raises(ValueError, match=f"n must be finite and positive, got {n}"):
        measure("a b", n)
