"""Rounded rows of W_Q and W_K, with chosen rows left exact while a context lasts.

A row of W_Q writes one channel of one head's queries before the rotation, a row of W_K one of the
keys. All other weights stay as they are, so that arms differ in nothing but the rows. Costs the
rounding once; weights are put back bit for bit.

Does not show: what a rounded row does to a rotated channel alone; a rotation mixes two rows.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mi_massive.axes import Projection
from mi_massive.models.attention import attention_modules
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.quantization_schemes import round_to_nearest

ROW_PROJECTIONS: Final[tuple[Projection, ...]] = ("q", "k")


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """What a context has done."""

    total: int
    """Weights that were rounded."""


def row_layers(model: HookedModel) -> dict[Projection, tuple[nn.Linear, ...]]:
    """The layers that write queries and keys, in the order of the attention layers.

    Raises:
        UnsupportedModelError: If an attention layer has no `q_proj` and `k_proj` of its own whose
            rows are the channels of its heads.
    """
    plain: Any = model.plain
    ids = torch.ones(1, 4, dtype=torch.long, device=model.device)
    with torch.no_grad():
        modules = attention_modules(plain, lambda: plain(input_ids=ids, use_cache=False))
    found: dict[Projection, list[nn.Linear]] = {p: [] for p in ROW_PROJECTIONS}
    for block, module in zip(model.geometry.blocks, modules, strict=True):
        for projection in ROW_PROJECTIONS:
            layer = getattr(module, f"{projection}_proj", None)
            if not isinstance(layer, nn.Linear):
                raise UnsupportedModelError(
                    f"{model.name} must have a linear layer {projection}_proj in every attention "
                    f"layer for rows of it to be rounded, got none in layer {block}; quantize the "
                    "states instead (`quantized_states`)"
                )
            found[projection].append(layer)
    return {projection: tuple(layers) for projection, layers in found.items()}


@contextmanager
def rounded_rows(
    model: HookedModel,
    *,
    bits: int,
    group: int,
    keep: Mapping[Projection, Bool[Tensor, "layer head d_head"]],
) -> Generator[RoundedRows]:
    """Round W_Q and W_K to nearest while the context lasts, but for the rows to keep.

    Args:
        model: From `load_model`. Its weights are changed in place, and back at the end.
        bits: Of a weight.
        group: Inputs of a row that share scale and zero.
        keep: Rows that stay exact, by the head and the channel that they write; none where a
            projection is missing.

    Yields:
        How many weights were rounded.

    Raises:
        ValueError: If `group` does not divide a layer's inputs, or a mask is not of its rows.
        UnsupportedModelError: If the model has no such rows (see `row_layers`).
    """
    before: list[tuple[Tensor, Tensor]] = []
    total = 0
    layers = row_layers(model)
    for projection, mask in keep.items():
        rows = [layer.out_features for layer in layers.get(projection, ())]
        if rows != [int(own.numel()) for own in mask]:
            raise ValueError(
                f"keep must mark rows of {' or '.join(ROW_PROJECTIONS)}, got {tuple(mask.shape)} "
                f"for {projection}, whose layers have {rows[:1]} rows"
            )
    try:
        with torch.no_grad():
            for projection, own in layers.items():
                for i, layer in enumerate(own):
                    weight = layer.weight
                    before.append((weight, weight.clone()))
                    rounded = round_to_nearest(weight.float(), bits=bits, group=group)
                    rounded = rounded.to(weight.dtype)
                    exact = torch.zeros(len(weight), dtype=torch.bool)
                    if projection in keep:
                        exact = keep[projection][i].flatten()
                    weight.copy_(torch.where(exact.to(weight.device)[:, None], weight, rounded))
                    total += int((~exact).sum()) * weight.shape[1]
        yield RoundedRows(total)
    finally:
        with torch.no_grad():
            for weight, original in before:
                weight.copy_(original)
