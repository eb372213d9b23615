"""Integer quantization against a plain definition, entry by entry, and compressed-tensors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_massive._fake_quant import (
    channel_grid,
    fake_quantize,
    grid_between,
    hadamard,
    token_grid,
)

BITS = [2, 3, 4, 8]


def random_states(*, seed: int = 0, batch: int = 2, pos: int = 5, d_head: int = 16) -> Tensor:
    """With one channel 30 times as large as the others, and a constant offset on another."""
    states = torch.randn(batch, 3, pos, d_head, generator=torch.Generator().manual_seed(seed))
    states[..., 7] *= 30
    states[..., 2] += 4
    return states


def plainly(values: list[float], *, bits: int, symmetric: bool) -> list[float]:
    """Values that share one scale, in float32 as the package, one at a time."""
    single = np.float32
    low = single(min(0.0, *values))
    high = single(max(0.0, *values))
    n_steps = single(2**bits - 1)
    if symmetric:
        scale, zero = max(-low, high) / (n_steps / single(2)), single(0)
    else:
        scale = (high - low) / n_steps
        zero = single(0) if scale == 0 else single(-(2 ** (bits - 1))) - low / scale
        zero = np.rint(np.clip(zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    if scale == 0:
        return [0.0 for _ in values]
    found = []
    for value in values:
        stored = np.clip(single(value) / scale + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        found.append(float((np.rint(stored) - zero) * scale))
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
class TestEqualsThePlainDefinition:
    def test_per_token(self, bits: int, symmetric: bool) -> None:
        states = random_states()
        actual = fake_quantize(states, token_grid(states, bits=bits, symmetric=symmetric))
        expected = states.clone()
        for b, h, t in np.ndindex(2, 3, 5):
            own = plainly(states[b, h, t].tolist(), bits=bits, symmetric=symmetric)
            expected[b, h, t] = torch.tensor(own)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    def test_per_group(self, bits: int, symmetric: bool) -> None:
        states = random_states()
        grid = token_grid(states, bits=bits, symmetric=symmetric, group=4)
        expected = states.clone()
        for b, h, t, g in np.ndindex(2, 3, 5, 4):
            dims = slice(4 * g, 4 * g + 4)
            own = plainly(states[b, h, t, dims].tolist(), bits=bits, symmetric=symmetric)
            expected[b, h, t, dims] = torch.tensor(own)
        torch.testing.assert_close(fake_quantize(states, grid), expected, atol=1e-5, rtol=0)

    def test_per_channel(self, bits: int, symmetric: bool) -> None:
        states = random_states()
        actual = fake_quantize(states, channel_grid(states, bits=bits, symmetric=symmetric))
        expected = states.clone()
        for b, h, d in np.ndindex(2, 3, 16):
            own = plainly(states[b, h, :, d].tolist(), bits=bits, symmetric=symmetric)
            expected[b, h, :, d] = torch.tensor(own)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_it_equals_compressed_tensors(bits: int, symmetric: bool) -> None:
    quantization: Any = pytest.importorskip("compressed_tensors.quantization")
    lifecycle: Any = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    utils: Any = pytest.importorskip("compressed_tensors.quantization.utils")
    arguments = quantization.QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="token", dynamic=True
    )
    states = random_states(seed=bits)
    for dim, grid in (
        (-1, token_grid(states, bits=bits, symmetric=symmetric)),
        (-2, channel_grid(states, bits=bits, symmetric=symmetric)),
    ):
        low, high = states.amin(dim=dim, keepdim=True), states.amax(dim=dim, keepdim=True)
        scale, zero = utils.calculate_qparams(low, high, arguments)
        expected = lifecycle.fake_quantize(states, scale, zero, arguments)
        assert torch.equal(fake_quantize(states, grid), expected)
    grouped = quantization.QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="group", group_size=4, dynamic=True
    )
    rows = states.flatten(0, 2)
    scale, zero = utils.compute_dynamic_scales_and_zp(rows, grouped, torch.nn.Module())
    expected = lifecycle.fake_quantize(rows, scale, zero, grouped).view_as(states)
    own = token_grid(states, bits=bits, symmetric=symmetric, group=4)
    assert torch.equal(fake_quantize(states, own), expected)


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12),
    bits=st.integers(2, 12),
    symmetric=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_entry_moves_by_at_most_half_a_step_and_zero_stays(
    values: list[float], bits: int, symmetric: bool
) -> None:
    states = torch.tensor([*values, 0.0]).view(1, 1, 1, -1)
    grid = token_grid(states, bits=bits, symmetric=symmetric)
    moved = (fake_quantize(states, grid) - states).abs()
    # An asymmetric grid is shifted by up to half a step, so that 0 is one of its values.
    largest = 0.5 if symmetric else 1.0
    assert float(moved.max()) <= largest * float(grid.scale) * (1 + 1e-3) + 1e-6
    assert float(moved[..., -1]) == 0.0


def test_zeros_widen_no_range() -> None:
    states = random_states()
    without = states.clone()
    without[..., 7] = 0.0
    shorter = torch.cat([states[..., :7], states[..., 8:]], dim=-1)
    one = token_grid(without, bits=4, symmetric=False)
    other = token_grid(shorter, bits=4, symmetric=False)
    assert torch.equal(one.scale, other.scale)
    assert torch.equal(one.zero, other.zero)


def test_all_zeros_stay_zeros() -> None:
    zeros = torch.zeros(1, 1, 2, 4)
    for symmetric in (True, False):
        grid = token_grid(zeros, bits=2, symmetric=symmetric)
        assert torch.equal(fake_quantize(zeros, grid), zeros)


def test_two_symmetric_bits_have_four_values() -> None:
    values = torch.tensor([[-3.0, -1.0, 0.4, 1.2, 3.0]]).view(1, 1, 1, 5)
    grid = token_grid(values, bits=2, symmetric=True)
    assert float(grid.scale) == 2.0  # 3 / 1.5
    expected = torch.tensor([-4.0, 0.0, 0.0, 2.0, 2.0]).view(1, 1, 1, 5)
    assert torch.equal(fake_quantize(values, grid) + 0.0, expected + 0.0)


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range(bits: int) -> None:
    message = rf"bits must be between 2 and 16 \(bits of a value\), got {bits}"
    with pytest.raises(ValueError, match=message):
        grid_between(torch.zeros(1), torch.ones(1), bits=bits, symmetric=True)


def test_groups_must_divide_the_head() -> None:
    with pytest.raises(ValueError, match="group must divide the 16 dimensions of a head, got 5"):
        token_grid(random_states(), bits=4, symmetric=True, group=5)
    with pytest.raises(ValueError, match=r"group must be between 1 and 16 \(dimensions of a head"):
        token_grid(random_states(), bits=4, symmetric=True, group=32)


class TestHadamard:
    @pytest.mark.parametrize("size", [1, 2, 16, 64])
    def test_it_is_orthogonal_and_spreads_a_channel_evenly(self, size: int) -> None:
        matrix = hadamard(size, seed=3)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-6, rtol=0)
        assert torch.allclose(matrix.abs(), torch.full((size, size), size**-0.5))

    def test_rotating_back_gives_the_states(self) -> None:
        states = random_states()
        back = states @ hadamard(16) @ hadamard(16).T
        torch.testing.assert_close(back, states, atol=1e-4, rtol=0)

    def test_the_seed_draws_the_signs(self) -> None:
        assert torch.equal(hadamard(16, seed=1), hadamard(16, seed=1))
        assert not torch.equal(hadamard(16, seed=1), hadamard(16, seed=2))

    def test_a_large_channel_costs_the_others_less(self) -> None:
        states = random_states()
        states[..., 7] = 30.0
        plain = fake_quantize(states, token_grid(states, bits=4, symmetric=False))
        turned = states @ hadamard(16)
        spread = fake_quantize(turned, token_grid(turned, bits=4, symmetric=False)) @ hadamard(16).T
        others = [d for d in range(16) if d != 7]
        lost = [(x - states)[..., others].square().mean().sqrt() for x in (plain, spread)]
        assert float(lost[1]) < 0.75 * float(lost[0])

    @pytest.mark.parametrize("size", [0, 3, 80])
    def test_other_sizes_are_refused(self, size: int) -> None:
        message = f"d_head must be a power of two for a Hadamard rotation, got {size}"
        with pytest.raises(ValueError, match=message):
            hadamard(size)


def test_half_a_step_is_the_largest_error_within_the_range() -> None:
    states = random_states()
    grid = token_grid(states, bits=8, symmetric=False)
    moved = (fake_quantize(states, grid) - states).abs() / grid.scale
    assert float(moved.max()) <= 1.0
    assert math.isclose(float(moved.median()), 0.25, abs_tol=0.1)
