"""Sums over tokens of one layer's states: the arithmetic of a capture.

Weighted sums over positions are matrix products with a row of weights, which run at memory speed;
positions are taken in chunks so that intermediate tensors stay small whatever the length of the
prompt. Sums are float32.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive.norms import SiteSums
from mi_massive.rope import RotaryGeometry

_CHUNK = 512
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Which tokens of a right-padded batch enter the sums: 1 yes, 0 no."""

    counted: Float[Tensor, "batch pos"]
    """Real tokens, without the first if the capture skips it."""
    after_first: Float[Tensor, "batch pos"]
    """Real tokens after the first, over which phases are taken."""
    skip_first: bool
    all_counted: bool = False
    """True if every token of `counted` enters, so that nothing needs to be masked."""

    def on(self, device: torch.device) -> "TokenWeights":
        """The same weights on the device of a layer."""
        return replace(
            self, counted=self.counted.to(device), after_first=self.after_first.to(device)
        )


def sum_states(states: Float[Tensor, "batch head pos d_head"], weights: TokenWeights) -> SiteSums:
    """Sums of one layer's states; `prompt` is the batch axis and `layer` has length 1."""
    squares, total = _zeros(states), _zeros(states)
    for chunk in _chunks(states):
        part = _kept(states, chunk, weights)
        counted = weights.counted[:, chunk]
        total += _weighted_sum(part, counted)
        squares += _weighted_sum(part.square(), counted)
    return _site_sums(states, weights, squares, total, phasors=None)


def sum_rotary_states(
    states: Float[Tensor, "batch head pos d_head"],
    weights: TokenWeights,
    rotary: RotaryGeometry,
    turns: Float[Tensor, "2 pos pair"],
) -> tuple[SiteSums, SiteSums]:
    """Sums of rotated states as they are, and of the same states turned back.

    Args:
        states: Rotated queries or keys of one layer.
        weights: Which tokens enter.
        rotary: The layer's rotation.
        turns: Cosine and sine of each pair's angle at each position.
    """
    n, start = rotary.n_pairs, rotary.rotary_dim
    rotated = [_zeros(states), _zeros(states), _zeros(states[..., :start])]
    back = [_zeros(states), _zeros(states), _zeros(states[..., :start])]
    for chunk in _chunks(states):
        counted, after = weights.counted[:, chunk], weights.after_first[:, chunk]
        # Members of a pair lie in the two halves of `part`, whatever the model's layout. It is
        # contiguous, lest every product below copies its operand.
        part = _split_pairs(_kept(states, chunk, weights), rotary).contiguous()
        turned = _turn_back(part, turns[:, chunk], n)
        first, second = part[..., :n], part[..., n:start]
        length = first.square().addcmul_(second, second)
        inverse = length.clamp_min_(_TINY).rsqrt_()  # a pair of zeros stays one
        scratch = torch.empty_like(part)
        for sums, value in ((rotated, part), (back, turned)):
            sums[0] += _weighted_sum(torch.mul(value, value, out=scratch), counted)
            sums[1] += _weighted_sum(value, counted)
            for half in (slice(0, n), slice(n, start)):
                torch.mul(value[..., half], inverse, out=scratch[..., half])
            sums[2] += _weighted_sum(scratch[..., :start], after)
    # A factor that the model applies on top of the turn is no part of the states before it.
    unscaled = torch.ones(states.shape[-1], device=states.device)
    unscaled[:start] = 1 / rotary.factor
    back[0], back[1] = back[0] * unscaled.square(), back[1] * unscaled
    rotated_sums, back_sums = (
        _site_sums(
            states,
            weights,
            _join_pairs(squares, rotary),
            _join_pairs(total, rotary),
            phasors=torch.stack([unit[..., :n], unit[..., n:]], dim=-1)[:, None],
        )
        for squares, total, unit in (rotated, back)
    )
    # Position 0 is not turned: both stages share the first token's activation, up to the factor.
    return rotated_sums, replace(back_sums, first=back_sums.first * unscaled)


def _site_sums(
    states: Tensor, weights: TokenWeights, squares: Tensor, total: Tensor, phasors: Tensor | None
) -> SiteSums:
    first = states[:, :, 0].float().clone()  # a view would keep all states in memory
    if weights.skip_first:
        first = torch.full_like(first, torch.nan)
    return SiteSums(
        squares=squares[:, None], total=total[:, None], first=first[:, None], phasors=phasors
    )


def _chunks(states: Tensor) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, states.shape[2], _CHUNK)]


def _zeros(states: Tensor) -> Tensor:
    batch, head, _, d_head = states.shape
    return torch.zeros(batch, head, d_head, device=states.device)


def _kept(states: Tensor, chunk: slice, weights: TokenWeights) -> Tensor:
    """A chunk in float32; tokens that do not count are zero, lest a NaN enters a product."""
    part = states[:, :, chunk].float()
    if weights.all_counted:
        return part
    counted = weights.counted[:, chunk]
    return torch.where(counted[:, None, :, None] == 1, part, torch.zeros((), device=part.device))


def _weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of `values` [batch head pos dim] over positions with `weights` [batch pos]."""
    batch, head, pos, dim = values.shape
    row = weights[:, None, None, :].expand(batch, head, 1, pos).reshape(batch * head, 1, pos)
    return torch.bmm(row, values.reshape(batch * head, pos, dim)).view(batch, head, dim)


def _turn_back(part: Tensor, turns: Tensor, n: int) -> Tensor:
    cos, sin = turns[0], turns[1]
    first, second = part[..., :n], part[..., n : 2 * n]
    turned = torch.empty_like(part) if part.shape[-1] == 2 * n else part.clone()
    torch.mul(first, cos, out=turned[..., :n]).addcmul_(second, sin)
    torch.mul(second, cos, out=turned[..., n : 2 * n]).addcmul_(first, sin, value=-1)
    return turned


def _split_pairs(part: Tensor, rotary: RotaryGeometry) -> Tensor:
    """First members of all pairs, then second members, then the dimensions that do not rotate."""
    if rotary.layout == "half_split":
        return part
    end = rotary.rotary_dim
    return torch.cat([part[..., 0:end:2], part[..., 1:end:2], part[..., end:]], dim=-1)


def _join_pairs(sums: Tensor, rotary: RotaryGeometry) -> Tensor:
    """Inverse of `_split_pairs`."""
    if rotary.layout == "half_split":
        return sums
    n, end = rotary.n_pairs, rotary.rotary_dim
    pairs = torch.stack([sums[..., :n], sums[..., n:end]], dim=-1).flatten(-2)
    return torch.cat([pairs, sums[..., end:]], dim=-1)
