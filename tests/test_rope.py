"""Rotary geometry: dimensions of a pair, rotation and its inverse, what a rotation keeps."""

import math

import pytest
import torch
from builders import build_geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import members, turned
from torch import Tensor

from mi_massive.rope import LayerGeometry, RotaryGeometry, require_rotating, rotate

LAYOUTS = ("half_split", "interleaved")

unhurried = settings(deadline=None, max_examples=50)  # the first call compiles the type checks


def build_rotary(n_pairs: int, d_head: int, layout: str, theta: float = 1e4) -> RotaryGeometry:
    inv_freq = theta ** -(torch.arange(n_pairs, dtype=torch.float64) / n_pairs)
    return RotaryGeometry(inv_freq=inv_freq, layout=layout, d_head=d_head)


@st.composite
def rotations(draw: st.DrawFn) -> tuple[RotaryGeometry, Tensor, Tensor]:
    """A rotation (also partial), states of two heads at a few positions, and the positions."""
    n_pairs, n_unrotated = draw(st.integers(1, 6)), draw(st.integers(0, 3))
    rotary = build_rotary(
        n_pairs,
        2 * n_pairs + n_unrotated,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from([10.0, 1e4, 5e5])),
    )
    positions = draw(st.lists(st.integers(0, 100_000), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    states = torch.randn(2, len(positions), rotary.d_head, generator=generator).double()
    return rotary, states, torch.tensor(positions)


def pair_norms(states: Tensor, rotary: RotaryGeometry) -> Tensor:
    return states[..., rotary.pair_dims].norm(dim=-1)


@unhurried
@given(rotations())
def test_turning_back_restores_the_states(case: tuple[RotaryGeometry, Tensor, Tensor]) -> None:
    rotary, states, positions = case
    there = rotate(states, positions, rotary)
    torch.testing.assert_close(rotate(there, positions, rotary, undo=True), states)


@unhurried
@given(rotations())
def test_rotation_keeps_the_norm_of_every_pair(
    case: tuple[RotaryGeometry, Tensor, Tensor],
) -> None:
    rotary, states, positions = case
    there = rotate(states, positions, rotary)
    torch.testing.assert_close(pair_norms(there, rotary), pair_norms(states, rotary))


@unhurried
@given(rotations())
def test_unrotated_dimensions_pass_unchanged(case: tuple[RotaryGeometry, Tensor, Tensor]) -> None:
    rotary, states, positions = case
    there = rotate(states, positions, rotary)
    assert torch.equal(there[..., rotary.rotary_dim :], states[..., rotary.rotary_dim :])


@unhurried
@given(rotations(), st.integers(0, 1000))
def test_rotations_add_their_positions(
    case: tuple[RotaryGeometry, Tensor, Tensor], further: int
) -> None:
    rotary, states, positions = case
    steps = torch.full_like(positions, further)
    twice = rotate(rotate(states, positions, rotary), steps, rotary)
    torch.testing.assert_close(twice, rotate(states, positions + further, rotary))


@unhurried
@given(rotations(), st.integers(0, 1000))
def test_scores_depend_on_the_distance_alone(
    case: tuple[RotaryGeometry, Tensor, Tensor], shift: int
) -> None:
    rotary, states, positions = case
    q, k = states

    def scores(offset: int) -> Tensor:
        return rotate(q, positions + offset, rotary) @ rotate(k, positions + offset, rotary).T

    torch.testing.assert_close(scores(0), scores(shift))


@unhurried
@given(rotations())
def test_the_two_layouts_differ_by_a_permutation_of_dimensions(
    case: tuple[RotaryGeometry, Tensor, Tensor],
) -> None:
    rotary, states, positions = case
    half, inter = (
        RotaryGeometry(inv_freq=rotary.inv_freq, layout=layout, d_head=rotary.d_head)
        for layout in LAYOUTS
    )
    permuted = torch.empty_like(states)
    permuted[..., inter.half_order] = states[..., half.half_order]
    there = rotate(permuted, positions, inter)[..., inter.half_order]
    torch.testing.assert_close(there, rotate(states, positions, half)[..., half.half_order])


@unhurried
@given(rotations())
def test_rotation_matches_complex_multiplication(
    case: tuple[RotaryGeometry, Tensor, Tensor],
) -> None:
    rotary, states, positions = case
    there = rotate(states, positions, rotary)
    for head, row in torch.cartesian_prod(torch.arange(2), torch.arange(len(positions))).tolist():
        for pair in range(rotary.n_pairs):
            first, second = members(pair, rotary.n_pairs, rotary.layout)
            x, y = states[head, row, [first, second]].tolist()
            angle = positions[row].item() * rotary.inv_freq[pair].item()
            expected = turned(x, y, angle)
            assert there[head, row, [first, second]].tolist() == pytest.approx(expected, abs=1e-9)


def test_positions_are_broadcast_over_leading_axes() -> None:
    rotary = build_rotary(2, 4, "half_split")
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 7, 7, 7, 7], [4, 3, 2, 1, 0]])
    rows = torch.stack([rotate(states[i], positions[i], rotary) for i in range(3)])
    assert torch.equal(rotate(states, positions, rotary), rows)


def test_the_first_position_is_not_turned() -> None:
    rotary = build_rotary(2, 4, "interleaved")
    states = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(rotate(states, torch.tensor([0]), rotary), states)


def test_half_precision_states_keep_their_dtype() -> None:
    rotary = build_rotary(2, 4, "half_split")
    states = torch.ones(3, 4, dtype=torch.bfloat16)
    assert rotate(states, torch.arange(3), rotary).dtype == torch.bfloat16


def test_pairs_partners_and_order_of_half_split() -> None:
    rotary = build_rotary(3, 8, "half_split")
    assert rotary.pair_dims.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert rotary.pair_of_dim.tolist() == [0, 1, 2, 0, 1, 2, -1, -1]
    assert rotary.partner_of_dim.tolist() == [3, 4, 5, 0, 1, 2, -1, -1]
    assert rotary.half_order.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_pairs_partners_and_order_of_interleaved() -> None:
    rotary = build_rotary(3, 8, "interleaved")
    assert rotary.pair_dims.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert rotary.pair_of_dim.tolist() == [0, 0, 1, 1, 2, 2, -1, -1]
    assert rotary.partner_of_dim.tolist() == [1, 0, 3, 2, 5, 4, -1, -1]
    assert rotary.half_order.tolist() == [0, 2, 4, 1, 3, 5, 6, 7]


def test_a_wavelength_is_the_number_of_tokens_of_a_full_turn() -> None:
    rotary = RotaryGeometry(
        inv_freq=torch.tensor([math.pi, math.pi / 50, 0.0], dtype=torch.float64),
        layout="half_split",
        d_head=6,
    )
    assert rotary.wavelengths.tolist() == pytest.approx([2, 100, math.inf])
    states = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    full_turn = rotate(states, torch.tensor([100]), rotary)
    torch.testing.assert_close(full_turn, states, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_pairs", [0, 3])
def test_more_pairs_than_the_head_holds_are_refused(n_pairs: int) -> None:
    message = rf"inv_freq must hold between 1 and d_head / 2 = 2 frequencies, got {n_pairs}"
    with pytest.raises(ValueError, match=message):
        RotaryGeometry(inv_freq=torch.ones(n_pairs).double(), layout="half_split", d_head=4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"inv_freq must be finite, got nan at index \(1,\); read it from the model"),
        (-0.5, r"inv_freq must not be negative, got -0.5"),
    ],
)
def test_frequencies_that_cannot_be_are_refused(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotaryGeometry(inv_freq=torch.tensor([1.0, value]), layout="half_split", d_head=4)


def test_query_heads_share_key_value_heads_in_order() -> None:
    (layer,) = build_geometry(1, 6, 4, n_key_value_heads=2).layers
    assert layer.kv_head_of_head.tolist() == [0, 0, 0, 1, 1, 1]


def test_query_heads_that_do_not_divide_are_refused() -> None:
    message = "n_heads must be a multiple of n_key_value_heads, got 6 and 4 at block 3"
    with pytest.raises(ValueError, match=message):
        LayerGeometry(block=3, n_heads=6, n_key_value_heads=4, d_head=4, rotary=None)


def test_rotating_layers_are_found_by_their_place() -> None:
    first, second, third = build_geometry(3, 1, 4, blocks=(2, 5, 8)).layers
    still = LayerGeometry(block=5, n_heads=1, n_key_value_heads=1, d_head=4, rotary=None)
    geometry = type(build_geometry(1, 1, 4))(layers=(first, still, third), training_context=None)
    assert require_rotating(geometry, n_layers=3, d_head=4) == {0: first.rotary, 2: third.rotary}
    assert geometry.rotates
    assert second.rotary is not None


@pytest.mark.parametrize(
    ("n_layers", "d_head", "theta", "message"),
    [
        (3, 4, 1e4, "geometry must describe 3 layers as the norms do, got 2"),
        (2, 8, 1e4, "geometry must have d_head 8 as the norms do, got 4 at block 0"),
        (2, 4, None, "geometry must have a layer that rotates its queries and keys, got none in 2"),
    ],
)
def test_a_geometry_that_does_not_serve_is_refused(
    n_layers: int, d_head: int, theta: float | None, message: str
) -> None:
    geometry = build_geometry(2, 1, 4, theta=theta)
    with pytest.raises(ValueError, match=message):
        require_rotating(geometry, n_layers=n_layers, d_head=d_head)
