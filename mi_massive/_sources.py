"""An intervention made ready for one model: what it needs from outside, checked and collected."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from mi_massive._checks import require_in_range
from mi_massive._choices import Intervention
from mi_massive._disruptor import Disruptor, Sources
from mi_massive.axes import Projection
from mi_massive.models.attention import AttentionInputs, sliding_blocks
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms, Stage
from mi_massive.rope import ModelGeometry, before_rotation


def make_disruptor(
    model: HookedModel,
    intervention: Intervention,
    norms: AttentionNorms | None,
    means: AttentionNorms | None,
    masks: Mapping[Projection, Bool[Tensor, "layer head d_head"]] | None,
    donor: Sequence[int] | None,
    prompt_length: int | None,
) -> Disruptor:
    """The disruptor of an intervention; arguments as for `disrupt`.

    Raises:
        ValueError: If k exceeds the head, a layer does not exist, or norms, means, masks or donor
            are missing, superfluous or do not fit the model.
    """
    where, kind = intervention.where, intervention.value.kind
    blocks = model.geometry.blocks
    for block in where.layers or ():
        if block not in blocks:
            raise ValueError(f"layers must be among {list(blocks)}, got {block}")
    d_head = min(layer.d_head for layer in model.geometry.layers)
    if intervention.selection.rule not in ("massive", "mask"):
        require_in_range(
            "k", intervention.selection.k, low=0, high=d_head, unit="dimensions of a head"
        )
    if kind == "dataset_mean" and means is None:
        raise ValueError("means must be a capture for the value 'dataset_mean', got none")
    for name, capture in (("norms", norms), ("means", means)):
        if capture is not None and _shapes(capture.geometry) != _shapes(model.geometry):
            raise ValueError(
                f"{name} must cover the layers and heads of {model.name}, got those of "
                f"{capture.provenance.model}"
            )
    if (intervention.selection.rule == "mask") != (masks is not None):
        raise ValueError(
            "masks must be given exactly for the rule 'mask', got "
            f"{'none' if masks is None else 'some'} for {intervention.selection.rule!r}"
        )
    if masks is not None:
        require_masks(model, masks, where.projections)
    if (kind == "resampled") != (donor is not None):
        raise ValueError(
            "donor must be token ids exactly for the value 'resampled', got "
            f"{'none' if donor is None else 'some'} for {kind!r}"
        )
    return Disruptor(
        intervention,
        model.geometry,
        Sources(
            norms, means, masks or {}, {} if donor is None else _donor(model, donor, where.stage)
        ),
        prompt_length=prompt_length,
        clean_cache=sliding_blocks(model.plain) if where.cache == "edited_global" else frozenset(),
    )


def _shapes(geometry: ModelGeometry) -> list[tuple[int, int, int, int]]:
    return [(at.block, at.n_heads, at.n_key_value_heads, at.d_head) for at in geometry.layers]


def require_masks(
    model: HookedModel,
    masks: Mapping[Projection, Tensor],
    projections: tuple[Projection, ...],
    *,
    name: str = "masks",
) -> None:
    """Raise ValueError unless there is a mask of the model's shape for each projection."""
    layers = model.geometry.layers
    for projection in projections:
        if projection not in masks:
            raise ValueError(f"{name} must hold {projection!r}, got {sorted(masks)}")
        heads = layers[0].n_heads if projection == "q" else layers[0].n_key_value_heads
        expected = (len(layers), heads, layers[0].d_head)
        if tuple(masks[projection].shape) != expected:
            raise ValueError(
                f"{name}[{projection!r}] must have the shape [layer, head, d_head] = {expected}, "
                f"got {tuple(masks[projection].shape)}"
            )


@torch.no_grad()
def _donor(
    model: HookedModel, ids: Sequence[int], stage: Stage
) -> dict[tuple[int, Projection], Tensor]:
    states: dict[tuple[int, Projection], Tensor] = {}
    positions = torch.arange(len(ids))
    rotary_of = {layer.block: layer.rotary for layer in model.geometry.layers}

    def keep(seen: AttentionInputs) -> None:
        named: dict[Projection, Tensor] = {"q": seen.query, "k": seen.key, "v": seen.value}
        for projection, tensor in named.items():
            rotary = rotary_of[seen.block]
            own = tensor[0].detach().clone()
            if stage == "unrotated" and projection != "v" and rotary is not None:
                own = before_rotation(own.float(), positions, rotary)
            states[seen.block, projection] = own

    model.attention_inputs(torch.tensor([list(ids)], device=model.device), keep)
    return states
