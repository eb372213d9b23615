"""Uniform integer quantization and back: what a tensor is once it was stored in few bits.

Pure tensor arithmetic. Entries of 0 widen no range, since 0 is always representable: what is to
stay out of the statistics is set to 0 by the caller.

Source: `calculate_qparams` and `fake_quantize` of compressed-tensors 0.19 (Apache-2.0), whose
numbers these are. Differs: a range of width zero gets zero point 0, where theirs is undefined.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range

Granularity = Literal["token", "channel"]
"""`token`: one scale for each token and head, over its dimensions; `channel`: one for each head
dimension, over the tokens of a row."""

FEWEST_BITS: Final = 2
MOST_BITS: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """The values that can be stored: `scale * (n - zero)` for n in `-2**(bits-1)..2**(bits-1)-1`.

    Both broadcast against the states.
    """

    bits: int
    scale: Float[Tensor, "..."]
    """Distance of two neighbours, in activation units; positive."""
    zero: Float[Tensor, "..."]
    """Integer that stands for 0."""

    def repeated(self, copies: int) -> "Grid":
        """The grid of each row for `copies` rows that continue it."""
        if copies == 1:
            return self
        scale, zero = (part.repeat_interleave(copies, dim=0) for part in (self.scale, self.zero))
        return Grid(bits=self.bits, scale=scale, zero=zero)


def grid_between(
    low: Float[Tensor, "*axes"], high: Float[Tensor, "*axes"], *, bits: int, symmetric: bool
) -> Grid:
    """The grid that covers the values between `low` and `high`, and 0.

        symmetric:   scale = max(|low|, |high|) / ((2**bits - 1) / 2),  zero = 0
        asymmetric:  scale = (high - low) / (2**bits - 1),  zero = -2**(bits-1) - low / scale

    with low at most and high at least 0, and zero rounded. A symmetric grid has one value more on
    the negative side, and cuts the largest positive value by up to half a step.

    Args:
        low: Smallest values, in activation units.
        high: Largest values.
        bits: Of one stored value.
        symmetric: Whether 0 stands in the middle.

    Returns:
        The grid; scale is the smallest float32 step from 1 where all values are 0.

    Raises:
        ValueError: If bits are not between 2 and 16.
    """
    require_in_range("bits", bits, low=FEWEST_BITS, high=MOST_BITS, unit="bits of a value")
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    smallest, steps = -(2.0 ** (bits - 1)), 2.0**bits - 1
    scale = torch.maximum(-low, high) / (steps / 2) if symmetric else (high - low) / steps
    empty = scale == 0
    scale = torch.where(empty, torch.finfo(scale.dtype).eps, scale)
    zero = torch.zeros_like(scale)
    if not symmetric:
        zero = (smallest - low / scale).clamp(smallest, -smallest - 1).round()
        zero = torch.where(empty, 0.0, zero)
    return Grid(bits=bits, scale=scale, zero=zero)


def token_grid(
    states: Float[Tensor, "batch head pos d_head"],
    *,
    bits: int,
    symmetric: bool,
    group: int | None = None,
) -> Grid:
    """The grid of each token and head, or of each group of neighbouring dimensions in it.

    Args:
        states: Queries, keys or values; 0 where nothing is to be stored.
        bits: Of one stored value.
        symmetric: Whether 0 stands in the middle.
        group: Dimensions of a group; None for the whole head.

    Returns:
        Scale and zero of each entry, or of each token.

    Raises:
        ValueError: If bits are out of range, or groups do not divide the head.
    """
    size = states.shape[-1]
    if group is None:
        low, high = states.amin(dim=-1, keepdim=True), states.amax(dim=-1, keepdim=True)
        return grid_between(low, high, bits=bits, symmetric=symmetric)
    require_dividing(group, size)
    grouped = states.reshape(*states.shape[:-1], -1, group)
    low, high = (
        part.repeat_interleave(group, dim=-1)
        for part in (grouped.amin(dim=-1), grouped.amax(dim=-1))
    )
    return grid_between(low, high, bits=bits, symmetric=symmetric)


def channel_grid(
    states: Float[Tensor, "batch head pos d_head"], *, bits: int, symmetric: bool
) -> Grid:
    """The grid of each head dimension over the tokens of its row.

    Args:
        states: Keys, queries or values; 0 at padding and where nothing is to be stored.
        bits: Of one stored value.
        symmetric: Whether 0 stands in the middle.

    Raises:
        ValueError: If bits are out of range.
    """
    low, high = states.amin(dim=-2, keepdim=True), states.amax(dim=-2, keepdim=True)
    return grid_between(low, high, bits=bits, symmetric=symmetric)


def fake_quantize(states: Float[Tensor, "*axes"], grid: Grid) -> Float[Tensor, "*axes"]:
    """Move each entry to the nearest value of its grid, ties to the even integer.

        scale * (clamp(round(x / scale + zero), -2**(bits-1), 2**(bits-1) - 1) - zero)

    Args:
        states: In activation units.
        grid: Broadcasts against them.
    """
    smallest = -(2.0 ** (grid.bits - 1))
    stored = (states / grid.scale + grid.zero).clamp(smallest, -smallest - 1).round()
    return (stored - grid.zero) * grid.scale


def hadamard(size: int, *, seed: int = 0) -> Float[Tensor, "d_head d_head"]:
    """An orthogonal matrix all of whose entries are `+-size ** -0.5`: it spreads any one channel.

    Sylvester's Hadamard matrix, its rows multiplied by random signs: `states @ H` rotates, and
    `states @ H.T` rotates back.

    Args:
        size: Dimensions; a power of two.
        seed: Of the signs.

    Raises:
        ValueError: If size is not a power of two.

    Source:
        Ashkboos et al. 2024, arXiv:2404.00456 (QuaRot), rotate the keys of each head so.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(
            f"d_head must be a power of two for a Hadamard rotation, got {size}; leave it out"
        )
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=size)).float()
    return signs[:, None] * matrix / size**0.5


def require_dividing(group: int, size: int) -> None:
    """Raise ValueError unless groups of `group` dimensions divide a head of `size`."""
    require_in_range("group", group, low=1, high=size, unit="dimensions of a head")
    if size % group:
        raise ValueError(f"group must divide the {size} dimensions of a head, got {group}")
