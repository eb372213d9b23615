"""Small inputs that several test files build on."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive.norms import AttentionNorms, SiteSums
from mi_massive.records import Provenance
from mi_massive.rope import LayerGeometry, ModelGeometry, RotaryGeometry, rotate
from mi_massive.token_scores import score_continuations

States = Float[Tensor, "prompt pos layer head d_head"]


def build_provenance(**changes: object) -> Provenance:
    """Provenance of a model that does not exist; `changes` replaces fields."""
    fields: dict[str, object] = {
        "model": "synthetic",
        "revision": None,
        "weights_note": None,
        "dtype": "float32",
        "device": "cpu",
        "attention_kernel": "none",
        "batch_size": 1,
        "n_prompts": 1,
        "prompts_digest": "0" * 64,
        "seed": None,
        "settings": {},
        "versions": {},
        "command": "pytest",
    }
    return Provenance(**{**fields, **changes})


def build_geometry(
    n_layers: int,
    n_heads: int,
    d_head: int,
    *,
    n_key_value_heads: int | None = None,
    theta: float | None = 1e4,
    n_pairs: int | None = None,
    layout: str = "half_split",
    training_context: int | None = 2048,
    blocks: tuple[int, ...] | None = None,
) -> ModelGeometry:
    """Geometry with the same layer throughout; `theta=None` gives a model without rotation."""
    pairs = d_head // 2 if n_pairs is None else n_pairs
    rotary = None
    if theta is not None:
        inv_freq = theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        rotary = RotaryGeometry(inv_freq=inv_freq, layout=layout, d_head=d_head)
    layers = tuple(
        LayerGeometry(
            block=block,
            n_heads=n_heads,
            n_key_value_heads=n_key_value_heads or n_heads,
            d_head=d_head,
            rotary=rotary,
        )
        for block in (blocks or range(n_layers))
    )
    return ModelGeometry(layers=layers, training_context=training_context)


def build_norms(
    q: States,
    k: States,
    v: States,
    *,
    geometry: ModelGeometry | None = None,
    skip_first: bool = False,
) -> AttentionNorms:
    """Norms of the given activations, by the plain definitions of `SiteSums`.

    q and k are taken as they enter the attention: where `geometry` rotates they are rotated
    already, by positions 0, 1, ... Without `geometry` no layer rotates. `skip_first` leaves the
    first token out of every sum, as a capture with that option does.
    """
    n_prompts, n_pos, n_layers, n_heads, d_head = q.shape
    if geometry is None:
        geometry = build_geometry(
            n_layers, n_heads, d_head, n_key_value_heads=k.shape[3], theta=None
        )
    turned = geometry.rotates
    return AttentionNorms(
        q_sums=_sums(q, geometry if turned else None, skip_first),
        k_sums=_sums(k, geometry if turned else None, skip_first),
        v_sums=_sums(v, None, skip_first),
        q_unrotated_sums=_sums(_unrotated(q, geometry), geometry, skip_first) if turned else None,
        k_unrotated_sums=_sums(_unrotated(k, geometry), geometry, skip_first) if turned else None,
        n_tokens=torch.full((n_prompts,), n_pos - int(skip_first), dtype=torch.int64),
        geometry=geometry,
        provenance=build_provenance(n_prompts=n_prompts),
    )


def _unrotated(states: States, geometry: ModelGeometry) -> States:
    positions = torch.arange(states.shape[1])
    out = states.double().clone()
    for index, layer in enumerate(geometry.layers):
        if layer.rotary is not None:
            by_head = out[:, :, index].transpose(1, 2)
            out[:, :, index] = rotate(by_head, positions, layer.rotary, undo=True).transpose(1, 2)
    return out


def _sums(states: States, geometry: ModelGeometry | None, skip_first: bool) -> SiteSums:
    states = states.double()
    counted = states[:, 1:] if skip_first else states
    first = torch.full_like(states[:, 0], math.nan) if skip_first else states[:, 0]
    phasors = None if geometry is None else _phasors(states[:, 1:], geometry).float()
    return SiteSums(
        squares=counted.square().sum(dim=1).float(),
        total=counted.sum(dim=1).float(),
        first=first.float(),
        phasors=phasors,
    )


def _phasors(states: States, geometry: ModelGeometry) -> Float[Tensor, "prompt layer head pair 2"]:
    n_prompts, _, n_layers, n_heads, _ = states.shape
    out = torch.full((n_prompts, n_layers, n_heads, geometry.n_pairs, 2), math.nan).double()
    for index, layer in enumerate(geometry.layers):
        if layer.rotary is None:
            continue
        for pair, (first, second) in enumerate(layer.rotary.pair_dims.tolist()):
            x, y = states[:, :, index, :, first], states[:, :, index, :, second]
            phase = torch.atan2(y, x)
            unit = torch.stack([phase.cos(), phase.sin()], dim=-1)
            unit[(x == 0) & (y == 0)] = 0  # a pair of length zero has no phase
            out[:, index, :, pair] = unit.sum(dim=1)
    return out


def continuation_log_probs(*arguments: Any, **options: Any) -> list[list[list[float]]]:
    """Scores of continuations without what is greedy: `[prompt][continuation][token]`."""
    scores = score_continuations(*arguments, **options)
    return [[list(one.log_probs) for one in own] for own in scores]
