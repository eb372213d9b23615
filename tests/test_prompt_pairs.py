"""Aligned prompts: what is refused, and where two of them part."""

from typing import Any

import pytest

from mi_massive.prompt_pairs import PromptPair


def pair(**changes: Any) -> PromptPair:
    """Seven tokens; the third is the object."""
    given: dict[str, Any] = {
        "id": "capital/Kenya",
        "clean": (1, 5, 70, 8, 1, 5, 6),
        "corrupted": (1, 5, 71, 8, 1, 5, 6),
        "answer": 70,
        "other": 71,
        "groups": {"first": (0,), "object": (2,), "last": (6,)},
    }
    return PromptPair(**(given | changes))


def test_pair_keeps_what_it_is_given() -> None:
    made = pair(placebo=(1, 9, 9, 8, 1, 9, 6))
    assert made.clean[2] == made.answer
    assert made.corrupted[2] == made.other
    assert made.groups["last"] == (6,)


def test_prompts_of_different_length_are_refused_with_the_tokens_that_differ() -> None:
    message = (
        r"corrupted must have as many tokens as clean \(7\) at 'capital/Kenya', got 8: from token "
        r"2 on \[70\] against \[71, 72\]; align the two texts"
    )
    with pytest.raises(ValueError, match=message):
        pair(corrupted=(1, 5, 71, 72, 8, 1, 5, 6))


def test_a_prompt_that_is_the_others_beginning_is_refused_with_what_is_missing() -> None:
    with pytest.raises(
        ValueError, match=r"placebo .* got 5: from token 5 on \[5, 6\] against \[\]"
    ):
        pair(placebo=(1, 5, 70, 8, 1))


def test_one_answer_for_both_is_refused() -> None:
    with pytest.raises(ValueError, match=r"different tokens at 'capital/Kenya', got 70 twice"):
        pair(other=70)


@pytest.mark.parametrize("positions", [(7,), (-1,), ()])
def test_positions_outside_the_prompt_are_refused(positions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"groups\['object'\] must hold positions between 0 and 6"):
        pair(groups={"object": positions})
