"""Rotary geometry: which dimensions rotate together, how fast, and how to turn and unturn them.

Answers where a head dimension lies on the frequency axis of rotary position embeddings (RoPE).
Everything comes from the frequencies that the model itself uses, given as `inv_freq`; nothing is
recomputed from a configuration. Pure tensor arithmetic, negligible cost.

Convention: at position m, pair p turns by the angle `m * inv_freq[p]`, anticlockwise in the plane
(first dimension, second dimension) of the pair.

Does not show: what a model does with a frequency; see bands and symmetry.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._checks import require_finite
from mi_massive.axes import Layout


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RotaryGeometry:
    """The rotation of one layer's queries and keys."""

    inv_freq: Float[Tensor, "pair"] = field(repr=False)
    """Angle per token of each pair as the model uses it (after any scaling), in rad; float64 on the
    CPU."""
    layout: Layout
    d_head: int
    """Dimensions of a head; the first `2 * n_pairs` rotate, the others pass unrotated."""
    factor: float = 1.0
    """What the model multiplies rotated dimensions by beside the turn (YaRN's attention factor)."""
    axis_of_pair: Int[Tensor, "pair"] | None = field(repr=False, default=None)
    """M-RoPE: which of several position axes (time, height, width of an image) turns each pair;
    None for one axis. A text has the same position on all of them, so that it turns as by ordinary
    RoPE and nothing here changes; an image does not."""

    def __post_init__(self) -> None:
        if self.inv_freq.numel() == 0 or 2 * self.inv_freq.numel() > self.d_head:
            raise ValueError(
                f"inv_freq must hold between 1 and d_head / 2 = {self.d_head // 2} frequencies, "
                f"got {self.inv_freq.numel()}"
            )
        require_finite("inv_freq", self.inv_freq, remedy="read it from the model's rotary module")
        if bool((self.inv_freq < 0).any()):
            raise ValueError(f"inv_freq must not be negative, got {float(self.inv_freq.min())}")

    @property
    def n_pairs(self) -> int:
        """Rotary pairs of a head."""
        return self.inv_freq.numel()

    @property
    def n_position_axes(self) -> int:
        """Position axes that turn some pair: 1, or 3 for M-RoPE."""
        axes = self.axis_of_pair
        return 1 if axes is None else len({int(axis) for axis in axes})

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head, `2 * n_pairs`."""
        return 2 * self.n_pairs

    @property
    def wavelengths(self) -> Float[Tensor, "pair"]:
        """Tokens per turn of each pair, `2 * pi / inv_freq`; infinite for a frequency of zero."""
        return 2 * math.pi / self.inv_freq.double()

    @property
    def pair_dims(self) -> Int[Tensor, "pair 2"]:
        """First and second dimension of each pair."""
        first = torch.arange(self.n_pairs)
        if self.layout == "interleaved":
            return torch.stack([2 * first, 2 * first + 1], dim=-1)
        return torch.stack([first, first + self.n_pairs], dim=-1)

    @property
    def pair_of_dim(self) -> Int[Tensor, "d_head"]:
        """Pair of each dimension, -1 for a dimension that does not rotate."""
        pairs = torch.full((self.d_head,), -1, dtype=torch.int64)
        dims = self.pair_dims
        pairs[dims[:, 0]] = pairs[dims[:, 1]] = torch.arange(self.n_pairs)
        return pairs

    @property
    def partner_of_dim(self) -> Int[Tensor, "d_head"]:
        """The other dimension of the same pair, -1 for a dimension that does not rotate."""
        partners = torch.full((self.d_head,), -1, dtype=torch.int64)
        dims = self.pair_dims
        partners[dims[:, 0]], partners[dims[:, 1]] = dims[:, 1], dims[:, 0]
        return partners

    @property
    def half_order(self) -> Int[Tensor, "d_head"]:
        """All dimensions: first members by pair, second members by pair, then the unrotated ones.

        The head's own order for half_split; even dimensions before odd ones for interleaved.
        """
        unrotated = torch.arange(self.rotary_dim, self.d_head)
        return torch.cat([self.pair_dims.T.reshape(-1), unrotated])


def rotate(
    states: Float[Tensor, "*batch pos d_head"],
    positions: Int[Tensor, "*#batch pos"],
    rotary: RotaryGeometry,
    *,
    undo: bool = False,
) -> Float[Tensor, "*batch pos d_head"]:
    """Turn each rotary pair by `position * inv_freq`, or turn it back.

        first'  = first * cos(a) - second * sin(a)
        second' = first * sin(a) + second * cos(a)      with a = position * inv_freq[pair]

    A rotation keeps the norm of every pair and leaves unrotated dimensions as they are. A constant
    factor that a model applies on top (the attention factor of YaRN) is not part of the rotation.

    Args:
        states: Queries or keys of one layer.
        positions: Token positions, broadcast over the leading axes.
        rotary: The layer's rotation, from the model's geometry.
        undo: Turn back instead: `rotate(rotate(x), undo=True)` is x up to rounding.

    Returns:
        The turned states, in the dtype of `states`.

    Source:
        Su et al. 2021, arXiv:2104.09864, equation 34.
    """
    angles = positions[..., None].cpu().double() * rotary.inv_freq
    if undo:
        angles = -angles
    # Angles are taken in float64 on the CPU: not every device has it.
    return turn(states, angles.cos().to(states), angles.sin().to(states), rotary)


def turn(
    states: Float[Tensor, "*batch pos d_head"],
    cos: Float[Tensor, "*#batch pos pair"],
    sin: Float[Tensor, "*#batch pos pair"],
    rotary: RotaryGeometry,
) -> Float[Tensor, "*batch pos d_head"]:
    """Turn each rotary pair by the angle that `cos` and `sin` give, anticlockwise.

    Args:
        states: Queries or keys of one layer.
        cos: Of the angles, in the dtype of `states`, on its device.
        sin: Likewise.
        rotary: The layer's rotation, which says what the pairs are.
    """
    dims = rotary.pair_dims.to(states.device)
    first, second = states[..., dims[:, 0]], states[..., dims[:, 1]]
    turned = states.clone()
    turned[..., dims[:, 0]] = first * cos - second * sin
    turned[..., dims[:, 1]] = first * sin + second * cos
    return turned


def before_rotation(
    states: Float[Tensor, "*batch pos d_head"],
    positions: Int[Tensor, "*#batch pos"],
    rotary: RotaryGeometry,
) -> Float[Tensor, "*batch pos d_head"]:
    """States with the rotation undone, and the factor that the model applies with it."""
    return rotate(states, positions, rotary, undo=True) / _factors(states, rotary)


def after_rotation(
    states: Float[Tensor, "*batch pos d_head"],
    positions: Int[Tensor, "*#batch pos"],
    rotary: RotaryGeometry,
) -> Float[Tensor, "*batch pos d_head"]:
    """Inverse of `before_rotation`."""
    return rotate(states, positions, rotary) * _factors(states, rotary)


def _factors(states: Tensor, rotary: RotaryGeometry) -> Tensor:
    factors = torch.ones(rotary.d_head).to(states)
    factors[: rotary.rotary_dim] = rotary.factor
    return factors


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerGeometry:
    """Heads and rotation of one attention layer."""

    block: int
    """0-based index of the block that holds the layer, as in `blocks.{block}.attn`."""
    n_heads: int
    n_key_value_heads: int
    d_head: int
    rotary: RotaryGeometry | None
    """None where the layer does not rotate its queries and keys."""

    def __post_init__(self) -> None:
        if self.n_key_value_heads < 1 or self.n_heads % self.n_key_value_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_key_value_heads, got {self.n_heads} and "
                f"{self.n_key_value_heads} at block {self.block}"
            )

    @property
    def kv_head_of_head(self) -> Int[Tensor, "head"]:
        """Key-value head that each query head attends with."""
        return torch.arange(self.n_heads) // (self.n_heads // self.n_key_value_heads)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelGeometry:
    """Heads and rotations of a model's attention layers, in model order."""

    layers: tuple[LayerGeometry, ...]
    training_context: int | None
    """Positions that the model was trained on, in tokens; None where it does not say."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Block index of each attention layer; a hybrid model has blocks without attention."""
        return tuple(layer.block for layer in self.layers)

    @property
    def rotates(self) -> bool:
        """True if any layer rotates its queries and keys."""
        return any(layer.rotary is not None for layer in self.layers)

    @property
    def n_pairs(self) -> int:
        """Largest number of rotary pairs in a layer; 0 without rotation."""
        return max((layer.rotary.n_pairs for layer in self.layers if layer.rotary), default=0)


def require_rotating(
    geometry: ModelGeometry, *, n_layers: int, d_head: int
) -> dict[int, RotaryGeometry]:
    """Rotation of each rotating layer, by its position on the layer axis.

    Args:
        geometry: The model's geometry.
        n_layers: Layers of the tensors that the geometry is to describe.
        d_head: Head dimensions of those tensors.

    Returns:
        Only layers that rotate, in model order; never empty.

    Raises:
        ValueError: If no layer rotates, or the geometry does not fit the tensors.
    """
    if len(geometry.layers) != n_layers:
        raise ValueError(
            f"geometry must describe {n_layers} layers as the norms do, got {len(geometry.layers)}"
        )
    for layer in geometry.layers:
        if layer.d_head != d_head:
            raise ValueError(
                f"geometry must have d_head {d_head} as the norms do, got {layer.d_head} at "
                f"block {layer.block}"
            )
    found = {i: layer.rotary for i, layer in enumerate(geometry.layers) if layer.rotary is not None}
    if not found:
        raise ValueError(
            f"geometry must have a layer that rotates its queries and keys, got none in {n_layers} "
            "layers; frequency bands and rotary partners exist only with rotary position "
            "embeddings, use `concentration` for this model"
        )
    return found
