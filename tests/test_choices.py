"""Blocks of a model, as options and arguments name them."""

import pytest

from mi_massive._choices import blocks_of


@pytest.mark.parametrize(
    ("listed", "blocks"),
    [("3", (3,)), ("3-5", (3, 4, 5)), ("0, 4-5,9", (0, 4, 5, 9)), ("7-7", (7,))],
)
def test_blocks_are_named_one_by_one_and_in_ranges(listed: str, blocks: tuple[int, ...]) -> None:
    assert blocks_of(listed) == blocks


@pytest.mark.parametrize("listed", ["", "x", "5-3", "1,,2", "-1", "1-", "1.5"])
def test_what_names_no_block_is_refused(listed: str) -> None:
    with pytest.raises(ValueError, match=r"layers must be a block such as 3, .* got"):
        blocks_of(listed)
