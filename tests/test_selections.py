"""Which dimensions a rule takes, against a slow plain definition; what must not matter to it."""

from typing import Any, get_args

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_massive._selections import Rule, Selection, largest_across_heads, select
from mi_massive.rope import RotaryGeometry

PLACE = (3, 1)
"""Block 3, keys."""
RULES = ("largest", "smallest", "random", "same_band", "norm_matched")
unhurried = settings(deadline=None, max_examples=15)


def rotary(d_head: int = 12, n_pairs: int = 6, layout: str = "half_split") -> RotaryGeometry:
    inv_freq = 1e4 ** -(torch.arange(n_pairs, dtype=torch.float64) / n_pairs)
    return RotaryGeometry(inv_freq=inv_freq, layout=layout, d_head=d_head)


GEOMETRIES = {
    "half_split": rotary(),
    "interleaved": rotary(layout="interleaved"),
    "partial": rotary(n_pairs=4),
    "partial_interleaved": rotary(n_pairs=3, layout="interleaved"),
}


def units_of(geometry: RotaryGeometry, unit: str) -> list[tuple[list[int], int | None]]:
    """Dimensions and pair of each unit, written out from the definition of the layouts."""
    n = geometry.n_pairs
    members = [reference.members(pair, n, geometry.layout) for pair in range(n)]
    if unit == "pair":
        return [(list(dims), pair) for pair, dims in enumerate(members)]
    pair_of = {d: pair for pair, dims in enumerate(members) for d in dims}
    return [([d], pair_of.get(d)) for d in range(geometry.d_head)]


def slow_mask(
    norms: Tensor, selection: Selection, geometry: RotaryGeometry, place: tuple[int, int] = PLACE
) -> Tensor:
    units = units_of(geometry, selection.unit)
    n_heads = norms.shape[1]
    rng = np.random.default_rng([selection.seed, *place])
    draws = rng.random((n_heads, len(units)))
    bands = reference.frequency_bands([pair for _, pair in units], selection.n_bands)
    mask = torch.zeros_like(norms, dtype=torch.bool)
    for row in range(norms.shape[0]):
        for head in range(n_heads):
            own = norms[row, head].tolist()
            energy = [sum(own[d] ** 2 for d in dims) for dims, _ in units]
            chosen = reference.chosen_units(
                energy, selection.rule, selection.k, draws=draws[head].tolist(), bands=bands
            )
            for unit in chosen:
                mask[row, head, units[unit][0]] = True
    return mask


@st.composite
def norms_with_ties(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), 12)
    n = shape[0] * shape[1] * shape[2]
    values = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("unit", ["dimension", "pair"])
@pytest.mark.parametrize("rule", RULES)
@unhurried
@given(norms=norms_with_ties(), data=st.data())
def test_every_rule_equals_its_slow_definition(
    rule: Any, unit: Any, geometry: RotaryGeometry, norms: Tensor, data: st.DataObject
) -> None:
    """Also where norms are equal: the lower index comes first."""
    n_units = len(units_of(geometry, unit))
    k = data.draw(st.integers(0, n_units if rule in ("largest", "smallest") else n_units // 2))
    n_bands, seed = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 3))
    selection = Selection(rule=rule, k=k, unit=unit, n_bands=n_bands, seed=seed)
    mask = select(norms, selection, geometry, place=PLACE)
    assert torch.equal(mask, slow_mask(norms, selection, geometry))
    size = 2 if unit == "pair" else 1
    assert bool((mask.sum(dim=-1) == k * size).all())  # exactly k in every head


@unhurried
@given(norms=norms_with_ties(), ratio=st.floats(0.5, 6.0))
def test_massive_equals_its_slow_definition(norms: Tensor, ratio: float) -> None:
    mask = select(norms, Selection(rule="massive", ratio=ratio), None, place=PLACE)
    for row, expected in zip(mask.flatten(0, 1).tolist(), norms.flatten(0, 1), strict=True):
        assert row == reference.massive(expected.tolist(), ratio)


@unhurried
@given(data=st.data(), k=st.integers(0, 6))
def test_across_heads_takes_at_each_token_the_largest_of_all_heads_together(
    data: st.DataObject, k: int
) -> None:
    values = data.draw(st.lists(st.integers(-3, 3), min_size=72, max_size=72))
    states = torch.tensor(values, dtype=torch.float32).reshape(2, 3, 2, 6)
    mask = largest_across_heads(states, k)
    assert mask.shape == (2, 1, 2, 6)
    for row in range(2):
        for pos in range(2):
            norms = [sum(float(x) ** 2 for x in states[row, :, pos, d]) for d in range(6)]
            found = set(mask[row, 0, pos].nonzero()[:, 0].tolist())
            assert found == reference.largest(norms, k)


def test_a_layer_without_rotation_takes_dimensions_by_every_other_rule() -> None:
    norms = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(0))
    for rule in ("largest", "smallest", "random", "norm_matched"):
        selection = Selection(rule=rule, k=4)
        mask = select(norms, selection, None, place=PLACE)
        assert torch.equal(mask, slow_mask(norms, selection, rotary()))


# Frequency bands.


def test_same_band_stays_in_the_band_while_it_has_units_left() -> None:
    geometry = rotary(d_head=32, n_pairs=16)
    bands = [int(pair) // 4 for pair in geometry.pair_of_dim]  # 4 bands of 8 dimensions
    norms = torch.rand(5, 2, 32, generator=torch.Generator().manual_seed(1))
    for k in range(1, 5):  # even if all fall in one band it has k units left
        top = select(norms, Selection(k=k), geometry, place=PLACE)
        for seed in range(5):
            selection = Selection(rule="same_band", k=k, n_bands=4, seed=seed)
            matched = select(norms, selection, geometry, place=PLACE)
            assert not bool((matched & top).any())
            for one, other in zip(top.flatten(0, 1), matched.flatten(0, 1), strict=True):
                places = (one.nonzero()[:, 0], other.nonzero()[:, 0])
                had, got = (sorted(bands[int(d)] for d in dims) for dims in places)
                assert had == got


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        # One pair a band: the partner of the largest first, then the neighbouring pairs.
        ([0, 6], {1, 7}),
        ([5, 11], {4, 10}),
    ],
)
def test_same_band_takes_the_nearest_band_when_its_own_is_used_up(
    top: list[int], expected: set[int]
) -> None:
    norms = torch.ones(1, 1, 12)
    norms[..., top] = 5.0
    selection = Selection(rule="same_band", k=2, n_bands=6)
    mask = select(norms, selection, rotary(), place=PLACE)
    assert set(mask[0, 0].nonzero()[:, 0].tolist()) == expected


def test_dimensions_without_rotation_are_nearest_to_the_slowest_band() -> None:
    geometry = rotary(n_pairs=4)  # dimensions 0 .. 7 rotate, 8 .. 11 do not
    norms = torch.ones(1, 1, 12)
    norms[..., 8:] = 5.0
    selection = Selection(rule="same_band", k=4, n_bands=2)
    mask = select(norms, selection, geometry, place=PLACE)
    assert set(mask[0, 0].nonzero()[:, 0].tolist()) == {2, 3, 6, 7}  # pairs 2 and 3


# Draws.


def test_random_leaves_the_largest_alone_and_takes_all_others_in_time() -> None:
    norms = torch.rand(4, 2, 12, generator=torch.Generator().manual_seed(2))
    top = select(norms, Selection(k=3), None, place=PLACE)
    taken = torch.zeros_like(top)
    for seed in range(40):
        mask = select(norms, Selection(rule="random", k=3, seed=seed), None, place=PLACE)
        assert not bool((mask & top).any())
        taken |= mask
    assert torch.equal(taken, ~top)


@pytest.mark.parametrize("rule", ["random", "same_band"])
def test_draws_are_the_same_for_every_row_of_a_batch(rule: Any) -> None:
    norms = torch.rand(1, 2, 12, generator=torch.Generator().manual_seed(3))
    selection = Selection(rule=rule, k=3)
    alone = select(norms, selection, rotary(), place=PLACE)
    others = torch.rand(3, 2, 12, generator=torch.Generator().manual_seed(4))
    for batch in (torch.cat([norms, others, norms]), torch.cat([others, norms])):
        mask = select(batch, selection, rotary(), place=PLACE)
        assert torch.equal(mask[-1], alone[0])


@pytest.mark.parametrize("rule", ["random", "same_band"])
def test_draws_differ_by_seed_block_projection_and_head(rule: Any) -> None:
    norms = torch.rand(1, 1, 64, generator=torch.Generator().manual_seed(5)).repeat(1, 3, 1)
    geometry = rotary(d_head=64, n_pairs=32)

    def drawn(seed: int, block: int, projection: int) -> Tensor:
        selection = Selection(rule=rule, k=8, seed=seed, n_bands=2)
        return select(norms, selection, geometry, place=(block, projection))

    masks = [drawn(0, 0, 0), drawn(1, 0, 0), drawn(0, 1, 0), drawn(0, 0, 1), drawn(1, 1, 1)]
    heads = [mask[0, head].tolist() for mask in masks for head in range(3)]
    assert len({tuple(head) for head in heads}) == 15
    assert torch.equal(drawn(0, 0, 0), masks[0])


# What must not matter.


@pytest.mark.parametrize("rule", [*RULES, "massive"])
@pytest.mark.parametrize("factor", [1e-4, 3.7, 1e4])
def test_the_scale_of_a_head_does_not_matter(rule: Any, factor: float) -> None:
    norms = torch.rand(3, 2, 12, generator=torch.Generator().manual_seed(6))
    norms[:, :, 4] *= 30
    selection = Selection(rule=rule, k=4, ratio=2.0)
    scaled = norms.clone()
    scaled[:, 1] *= factor
    mask = select(norms, selection, rotary(), place=PLACE)
    assert torch.equal(select(scaled, selection, rotary(), place=PLACE), mask)
    assert bool(mask.any())


# Refusals.


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(k=13), r"k must be between 0 and 12 \(dimensions of a head\), got 13"),
        (Selection(rule="smallest", k=13), r"k must be between 0 and 12 \(dimensions"),
        (
            Selection(rule="random", k=7),
            r"k .* 0 and 6 \(half the dimensions of a head: 'random' leaves the k largest",
        ),
        (Selection(rule="norm_matched", k=7), r"k must be between 0 and 6 \(half the dimensions"),
        (Selection(rule="same_band", k=7), r"k must be between 0 and 6 \(half the dimensions"),
        (Selection(unit="pair", k=7), r"k must be between 0 and 6 \(pairs of a head\), got 7"),
        (Selection(rule="random", unit="pair", k=4), r"k must be between 0 and 3 \(half the pairs"),
    ],
)
def test_more_than_the_head_has_is_refused(selection: Selection, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(torch.ones(1, 1, 12), selection, rotary(), place=PLACE)


def test_more_than_the_head_has_is_refused_across_heads() -> None:
    with pytest.raises(ValueError, match=r"k must be between 0 and 6 \(dimensions of a head\)"):
        largest_across_heads(torch.ones(1, 1, 2, 6), 7)


@pytest.mark.parametrize(
    ("selection", "what"),
    [
        (Selection(unit="pair"), "unit='pair'"),
        (Selection(rule="same_band"), "the rule 'same_band'"),
    ],
)
def test_what_needs_a_rotation_is_refused_without_one(selection: Selection, what: str) -> None:
    message = f"{what} must be asked of a layer that rotates .* use rule='random' and unit="
    with pytest.raises(ValueError, match=message):
        select(torch.ones(1, 1, 12), selection, None, place=PLACE)


@pytest.mark.parametrize("rule", ["massive", "across_heads", "mask"])
def test_pairs_are_refused_for_rules_that_know_none(rule: Any) -> None:
    message = f"unit must be 'dimension' for the rule '{rule}', got 'pair'; use rule='largest'"
    with pytest.raises(ValueError, match=message):
        Selection(rule=rule, unit="pair")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": -1}, "k must be between 0 and"),
        ({"ratio": 0.0}, "ratio must be finite and positive, got 0.0"),
        ({"n_bands": 0}, "n_bands must be between 1 and"),
    ],
)
def test_values_that_choose_nothing_sensible_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection(**arguments)


def test_only_a_k_of_zero_is_an_empty_choice() -> None:
    for rule in get_args(Rule):
        assert Selection(rule=rule, k=0).is_empty == (rule not in ("massive", "mask"))
        assert not Selection(rule=rule, k=1).is_empty
