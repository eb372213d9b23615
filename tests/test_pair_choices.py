"""Bands, massive pairs, the others and as many random ones, head group by head group."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_geometry, build_norms

from mi_massive.norms import AttentionNorms
from mi_massive.pair_choices import (
    PairChoice,
    bands_of_pairs,
    chosen_pairs,
    dimension_masks,
    massive_pairs,
)
from mi_massive.rope import ModelGeometry

N_HEADS, N_KV, D_HEAD = 4, 2, 16


def geometry(**facts: Any) -> ModelGeometry:
    return build_geometry(2, N_HEADS, D_HEAD, n_key_value_heads=N_KV, **facts)


def planted(**facts: Any) -> AttentionNorms:
    """Query head 1 is massive in dimension 3 (pair 3), key head 1 in dimension 13 (pair 5)."""
    torch.manual_seed(0)
    q = 1 + 0.01 * torch.randn(2, 9, 2, N_HEADS, D_HEAD)
    k = 1 + 0.01 * torch.randn(2, 9, 2, N_KV, D_HEAD)
    q[:, :, :, 1, 3] = 100.0
    k[:, :, :, 1, 13] = 100.0
    norms = build_norms(q, k, k, geometry=None)
    return replace(norms, geometry=geometry(**facts))


def test_bands_hold_nearly_equally_many_pairs_from_fast_to_slow() -> None:
    assert bands_of_pairs(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"n_bands must be between 1 and 7 \(rotary pairs of a "):
        bands_of_pairs(7, 8)


def test_bands_are_taken_in_every_head_of_every_rotating_layer() -> None:
    found = chosen_pairs(geometry(), PairChoice(bands=(0, 3), n_bands=4))
    assert sorted(found) == [0, 1]
    for pairs in found.values():
        assert pairs.tolist() == [[True, True, False, False, False, False, True, True]] * N_KV
    every = chosen_pairs(geometry(), PairChoice(n_bands=1000))  # no band is named: not read
    assert all(bool(pairs.all()) for pairs in every.values())


def test_massive_pairs_are_those_of_the_group_of_a_key_head() -> None:
    """Query heads 0 and 1 attend with key head 0, so head 1 decides for both."""
    expected = torch.zeros(N_KV, 8, dtype=torch.bool)
    expected[0, 3] = expected[1, 5] = True
    assert torch.equal(massive_pairs(planted(), 0), expected)
    found = chosen_pairs(geometry(), PairChoice(among="massive"), norms=planted())
    assert all(torch.equal(pairs, expected) for pairs in found.values())
    others = chosen_pairs(geometry(), PairChoice(among="not_massive"), norms=planted())
    assert all(torch.equal(pairs, ~expected) for pairs in others.values())


def test_layouts_decide_which_pair_a_dimension_is_of() -> None:
    norms = planted(layout="interleaved")
    assert massive_pairs(norms, 0).nonzero().tolist() == [[0, 1], [1, 6]]  # 3 // 2, 13 // 2


def test_a_massive_dimension_that_does_not_rotate_is_no_pair() -> None:
    norms = planted(n_pairs=4)  # dimensions 8 .. 15 stay as they are
    assert massive_pairs(norms, 0).nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_random_pairs_are_as_many_others_of_the_bands_in_each_head(seed: int) -> None:
    choice = PairChoice(among="random", bands=(0, 1, 2), n_bands=4, seed=seed)
    found = chosen_pairs(geometry(), choice, norms=planted())
    for pairs in found.values():
        assert pairs.sum(dim=-1).tolist() == [1, 1]
        assert not bool((pairs & massive_pairs(planted(), 0)).any())
        assert not bool(pairs[:, 6:].any())
    again = chosen_pairs(geometry(), choice, norms=planted())
    assert all(torch.equal(again[block], found[block]) for block in found)


def test_random_pairs_differ_by_seed_and_block() -> None:
    drawn = [
        chosen_pairs(geometry(), PairChoice(among="random", seed=seed), norms=planted())[block]
        for seed in range(4)
        for block in (0, 1)
    ]
    assert len({tuple(pairs.flatten().tolist()) for pairs in drawn}) > 4


def test_masks_hold_both_dimensions_in_all_heads_of_a_group() -> None:
    pairs = chosen_pairs(geometry(), PairChoice(among="massive"), norms=planted())
    masks = dimension_masks(geometry(), pairs)
    keys = torch.zeros(2, N_KV, D_HEAD, dtype=torch.bool)
    keys[:, 0, [3, 11]] = keys[:, 1, [5, 13]] = True
    assert torch.equal(masks["k"], keys)
    assert torch.equal(masks["q"], keys.repeat_interleave(2, dim=1))


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"bands": ()}, "bands must name at least one band, each once"),
            ({"bands": (1, 1)}, "bands must name at least one band, each once"),
            ({"bands": (8,)}, r"bands must be between 0 and 7 \(bands\), got 8"),
            ({"ratio": 0}, "ratio must be finite and positive"),
            ({"n_bands": 0}, "n_bands must be between 1 and 65536"),
        ],
    )
    def test_choices_of_nothing(self, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PairChoice(**given)

    def test_a_model_without_rotation(self) -> None:
        with pytest.raises(ValueError, match="geometry must have a layer that rotates"):
            chosen_pairs(geometry(theta=None), PairChoice())

    def test_massive_pairs_without_norms_or_with_those_of_other_layers(self) -> None:
        with pytest.raises(ValueError, match="norms must be a capture of the model for pairs amo"):
            chosen_pairs(geometry(), PairChoice(among="massive"))
        other = geometry(blocks=(0, 2))
        with pytest.raises(ValueError, match=r"norms must cover the blocks \[0, 2\], got those of"):
            chosen_pairs(other, PairChoice(among="massive"), norms=planted())

    def test_bands_without_a_massive_pair(self) -> None:
        choice = PairChoice(among="massive", bands=(0,), n_bands=8)
        with pytest.raises(ValueError, match="must take at least one pair of a head, got none for"):
            chosen_pairs(geometry(), choice, norms=planted())

    def test_too_few_others(self) -> None:
        choice = PairChoice(among="random", bands=(3,), n_bands=8)
        message = "must hold as many other pairs as massive ones, got 1 massive of 1 in key-value "
        with pytest.raises(ValueError, match=message):
            chosen_pairs(geometry(), choice, norms=planted())
