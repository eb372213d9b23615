"""A model's rotary geometry, measured on its own computation.

Configurations and library attributes state frequencies, layouts and rotated widths wrongly often
enough that none is believed here. Each attention layer is fed the same hidden state at every
position, so that its queries and keys differ between positions by the rotation alone; the
frequencies are read from the model's own buffers and accepted only where they, with one of the two
layouts, turn position 0 into every other position. A layer whose queries and keys do not differ
does not rotate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mi_massive._checks import require_finite
from mi_massive.axes import Layout
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.rope import LayerGeometry, ModelGeometry, RotaryGeometry, rotate

_LAYOUTS: Final[tuple[Layout, ...]] = ("half_split", "interleaved")


@dataclass(frozen=True, slots=True)
class ConstantStates:
    """One layer's queries and keys when its input is the same at every position."""

    block: int
    query: Float[Tensor, "head pos d_head"]
    key: Float[Tensor, "kv_head pos d_head"]


def training_context(config: Any) -> int | None:
    """Positions that a model was trained on with the frequencies that it has for short prompts."""
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()  # of a model with several towers
    rope = cast(dict[str, Any], getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type") == "longrope":
        # Longer prompts are rotated by a second set of frequencies: another geometry.
        return rope["original_max_position_embeddings"]
    return getattr(config, "max_position_embeddings", getattr(config, "n_ctx", None))


def fixed_until(config: Any) -> int | None:
    """Positions below which a model's frequencies stay the same; None where they always do.

    Models with dynamic or long-prompt scaling take other frequencies beyond their first context.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope = cast(dict[str, Any], getattr(text, "rope_parameters", None) or {})
    # One dictionary, or one for each kind of layer.
    parts: list[Any] = [rope, *rope.values()]
    kinds = {cast(Any, part).get("rope_type") for part in parts if isinstance(part, dict)}
    changing = bool(kinds & {"dynamic", "longrope"})
    return training_context(config) if changing else None


def probe_positions(context: int | None) -> Int[Tensor, "pos"]:
    """Positions that tell fast from slow rotations: 0, 1, 2, powers of four in the context."""
    last = min(context or 512, 2048) - 1  # float32 angles lose precision beyond
    spread = [0, 1, 2] + [4**i for i in range(1, 12)]
    return torch.tensor([position for position in spread if position < last] + [last])


def measure_geometry(
    states: Sequence[ConstantStates],
    positions: Int[Tensor, "pos"],
    *,
    frequencies: Sequence[Float[Tensor, "_"]],
    factors: Sequence[float] | None = None,
    training_context: int | None,
) -> ModelGeometry:
    """Find each layer's rotation among candidate frequencies by what it does to constant states.

    Args:
        states: Queries and keys of each attention layer, in model order, at `positions`; the first
            is position 0.
        positions: Token positions of the states.
        frequencies: Candidates from `candidate_rotations`, in rad per token.
        factors: What the model multiplies rotated states by beside each candidate; 1 if left out.
        training_context: Positions that the model was trained on, in tokens.

    Raises:
        UnsupportedModelError: If there is no layer, layers differ in heads, or a layer changes its
            queries with position in a way that no candidate explains.
        ValueError: If a query or key is NaN or infinite, or a layer's are all zero.
    """
    if not states:
        raise UnsupportedModelError(
            "a model must hand queries, keys and values to transformers' attention interface or "
            "compute attention in a method `_attn(query, key, value)`, got no layer that does; it "
            "has no attention, or one of its own that cannot be read"
        )
    # One object a rotation, shared by the layers that turn alike.
    candidates = [
        RotaryGeometry(inv_freq=inv_freq, layout=layout, d_head=d_head, factor=factor)
        for d_head in sorted({state.query.shape[-1] for state in states})
        for inv_freq, factor in zip(frequencies, factors or [1.0] * len(frequencies), strict=True)
        if 2 * inv_freq.numel() <= d_head
        for layout in _LAYOUTS
    ]
    layers = tuple(_layer_geometry(state, positions, candidates) for state in states)
    shapes = {(layer.n_heads, layer.n_key_value_heads, layer.d_head) for layer in layers}
    if len(shapes) != 1:
        raise UnsupportedModelError(
            "a model must have the same heads in every attention layer, whose norms stand in one "
            f"tensor, got (heads, key-value heads, d_head) = {sorted(shapes)}"
        )
    return ModelGeometry(layers=layers, training_context=training_context)


def with_position_axes(
    geometry: ModelGeometry, states: Sequence[Sequence[ConstantStates]]
) -> ModelGeometry:
    """Find which position axis turns each rotary pair of a model with several (M-RoPE).

    A pair that changes while one axis alone moves, and stays while the others do, belongs to it.

    Args:
        geometry: Measured with equal positions on all axes.
        states: For each axis the constant states of every layer, with positions on that axis alone
            and zeros on the others.

    Raises:
        UnsupportedModelError: If a pair follows no axis, or more than one.
    """
    known: dict[tuple[int, tuple[int, ...]], RotaryGeometry] = {}  # shared by layers, as before
    layers: list[LayerGeometry] = []
    for layer, by_axis in zip(geometry.layers, zip(*states, strict=True), strict=True):
        rotary = layer.rotary
        if rotary is not None:
            axes = _axis_of_pair([_pair_changes(state, rotary) for state in by_axis], layer.block)
            key = id(rotary), tuple(int(axis) for axis in axes)
            rotary = known.setdefault(key, replace(rotary, axis_of_pair=axes))
        layers.append(replace(layer, rotary=rotary))
    return replace(geometry, layers=tuple(layers))


def _pair_changes(state: ConstantStates, rotary: RotaryGeometry) -> Float[Tensor, "pair"]:
    """How far each pair of queries and keys moves away from position 0, in squared norm."""
    changes = torch.zeros(rotary.n_pairs, dtype=torch.float64)
    for measured in (state.query.cpu().double(), state.key.cpu().double()):
        moved = (measured - measured[:, :1]).square().sum(dim=(0, 1))
        changes += moved[rotary.pair_dims].sum(dim=-1)
    return changes


def _axis_of_pair(changes: Sequence[Float[Tensor, "pair"]], block: int) -> Int[Tensor, "pair"]:
    least, most = torch.stack(list(changes)).sort(dim=0).values[-2:]
    axes = torch.stack(list(changes)).argmax(dim=0)
    unclear = most <= _CLEARLY * least
    if bool(unclear.any()):
        pair = int(unclear.nonzero()[0])
        raise UnsupportedModelError(
            f"each rotary pair of block {block} must turn with one position axis alone, got pair "
            f"{pair} that moves by {float(most[pair]):.2g} and {float(least[pair]):.2g} (squared) "
            "with two of them; its rotary geometry is needed"
        )
    return axes


_CLEARLY: Final = 9.0  # threefold in length: beyond what rounding moves


def candidate_rotations(model: nn.Module) -> list[tuple[Float[Tensor, "_"], float]]:
    """Rotary frequencies of a model's buffers, float64 on the CPU, with the factor beside each.

    The factor multiplies rotated states and is 1 in most models (`attention_scaling` of the rotary
    module). Frequencies that stand in several buffers come once. Reads `inv_freq` buffers of
    rotary modules (one per layer type in some models), tables of sines and cosines by position
    (`embed_positions` of GPT-J), and the `rotary_sin`, `rotary_cos` tables of a
    `HookedTransformer`.
    """
    found: list[tuple[Tensor, float]] = []
    for frequencies, factor in _stated_rotations(model):
        candidate = frequencies.detach().cpu().double()
        if not any(torch.equal(candidate, known) for known, _ in found):
            found.append((candidate, factor))
    return found


def candidate_frequencies(model: nn.Module) -> list[Float[Tensor, "_"]]:
    """The frequencies of `candidate_rotations` alone."""
    return [frequencies for frequencies, _ in candidate_rotations(model)]


def _stated_rotations(model: nn.Module) -> Iterator[tuple[Tensor, float]]:
    buffers = dict(model.named_buffers())
    for name, buffer in buffers.items():
        path, _, kind = name.rpartition(".")
        if kind.endswith("inv_freq") and "original" not in kind:
            scaling = kind.removesuffix("inv_freq") + "attention_scaling"
            yield buffer, float(getattr(model.get_submodule(path), scaling, 1.0))
        elif kind == "embed_positions":
            yield _table_frequencies(*buffer.chunk(2, dim=-1)), 1.0
        elif kind == "rotary_sin":
            frequencies = _table_frequencies(buffer, buffers[f"{path}.rotary_cos"])
            yield frequencies[: frequencies.numel() // 2], 1.0
            yield frequencies[::2], 1.0


def _table_frequencies(
    sin: Float[Tensor, "pos dim"], cos: Float[Tensor, "pos dim"]
) -> Float[Tensor, "dim"]:
    """Angle per position of tables of sines and cosines by position, in rad.

    Row 1 gives it to the rounding of the tables (2 ** -9 in bfloat16), rows 2, 4, 8, ... refine it.
    """
    angles = torch.atan2(sin.cpu().double(), cos.cpu().double())
    frequencies, row = angles[1], 2
    while row < len(angles):
        excess = angles[row] - row * frequencies
        turned_back = torch.remainder(excess + math.pi, 2 * math.pi) - math.pi
        frequencies, row = frequencies + turned_back / row, 2 * row
    return frequencies


def _layer_geometry(
    state: ConstantStates,
    positions: Int[Tensor, "pos"],
    candidates: Sequence[RotaryGeometry],
) -> LayerGeometry:
    _require_measurable(state)
    d_head = state.query.shape[-1]
    rotary = None
    if _residual(state, positions, None) > _tolerance(state):
        candidates = [candidate for candidate in candidates if candidate.d_head == d_head]
        residuals = [_residual(state, positions, candidate) for candidate in candidates]
        best = min(range(len(candidates)), key=residuals.__getitem__, default=None)
        if best is None or residuals[best] > _tolerance(state):
            raise UnsupportedModelError(
                f"block {state.block} must rotate its queries and keys in half-split or "
                f"interleaved pairs at the frequencies of the model's own buffers, got "
                f"{len(candidates) // 2} sets of frequencies of which the best leaves a "
                f"relative error of {min(residuals, default=math.nan):.2g}; its rotary "
                "geometry is needed"
            )
        rotary = candidates[best]
    return LayerGeometry(
        block=state.block,
        n_heads=state.query.shape[0],
        n_key_value_heads=state.key.shape[0],
        d_head=d_head,
        rotary=rotary,
    )


def _residual(
    state: ConstantStates, positions: Int[Tensor, "pos"], rotary: RotaryGeometry | None
) -> float:
    """Relative error of turning position 0 into the others, the larger of query and key."""
    errors: list[float] = []
    for measured in (state.query.cpu().double(), state.key.cpu().double()):
        if not bool(measured.any()):
            continue  # zeros rotate into zeros: the other one of the two has to tell
        predicted = measured[:, :1].expand_as(measured)
        if rotary is not None:
            predicted = rotate(predicted, positions[None], rotary)
        errors.append(math.sqrt((measured - predicted).square().sum() / measured.square().sum()))
    return max(errors)


def _require_measurable(state: ConstantStates) -> None:
    for name, measured in (("queries", state.query), ("keys", state.key)):
        require_finite(
            f"{name} of block {state.block}",
            measured,
            remedy="load the model with dtype float32 or bfloat16 (float16 overflows above 65504)",
        )
    if not bool(state.query.any()) and not bool(state.key.any()):
        raise ValueError(
            f"queries and keys of block {state.block} must not all be zero, got zeros; a layer "
            "without weights shows no rotation, load a trained model"
        )


def _tolerance(state: ConstantStates) -> float:
    """Rounding of the model's dtype, with room for angles that grow with the position."""
    return max(2e-4, 4 * torch.finfo(state.query.dtype).eps)
