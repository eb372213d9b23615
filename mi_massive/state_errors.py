"""How far quantization moves queries, keys and values: massive channels, and the first token.

The relative error of a part of one head's states X, stored as Y, is

    || Y - X ||_2 / || X ||_2

over the part's tokens and channels, averaged over the heads of all layers that have it. Where the
states themselves are quantized, every layer is quantized as the intact model leaves it, so that
errors do not add up over layers; those of another model's states do. Costs one pass a prompt and,
for each arm, the quantization or a pass.

Does not show: what an error does to the attention; a constant offset on all keys does nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.models.base import HookedModel
from mi_massive.models.passes import ForwardPass, noting_passes
from mi_massive.prompts import TokenizedPrompts
from mi_massive.quantizer import Quantizer
from mi_massive.stats import Estimate, estimate

Part = Literal["massive", "other", "first", "later"]
"""Channels that are massive and others, on all tokens after the first; the first token and the
later ones, in all channels."""

PARTS: Final[tuple[Part, ...]] = ("massive", "other", "first", "later")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class StateErrors(Brief):
    """Relative errors of each arm, prompt by prompt."""

    arms: tuple[str, ...]
    projections: tuple[Projection, ...]
    relative: Float[Tensor, "arm projection part prompt"] = field(repr=False)
    """Mean over heads and layers, 0 where nothing moved; NaN where no head has the part, or the arm
    leaves the projection alone. Parts in the order massive, other, first, later."""

    def of(self, arm: str, projection: Projection) -> dict[Part, Estimate]:
        """Errors of one arm and projection with intervals over prompts.

        Raises:
            ValueError: If there is no such arm or projection.
        """
        if arm not in self.arms or projection not in self.projections:
            raise ValueError(
                f"arm and projection must be one of {', '.join(self.arms)} and "
                f"{', '.join(self.projections)}, got {arm!r} and {projection!r}"
            )
        rows = self.relative[self.arms.index(arm), self.projections.index(projection)]
        return {
            part: estimate(row.double().numpy(), n_of="prompts")
            for part, row in zip(PARTS, rows, strict=True)
        }


@torch.no_grad()
def measure_state_errors(
    model: HookedModel,
    prompts: TokenizedPrompts,
    quantizers: Mapping[str, Quantizer],
    *,
    massive: Mapping[Projection, Bool[Tensor, "layer head d_head"]],
) -> StateErrors:
    """Measure how far each quantizer moves the states of the intact model.

    Args:
        model: From `load_model`.
        prompts: From `tokenize_prompts`.
        quantizers: By arm, from `make_quantizer`.
        massive: Which channels are massive, for every projection that a quantizer treats.
    """
    plans = [quantizer.plan for quantizer in quantizers.values()]
    named: tuple[Projection, ...] = tuple(
        p for p in PROJECTIONS if any(p in plan.projections for plan in plans)
    )
    shape = (len(quantizers), len(named), len(PARTS), len(prompts.input_ids))
    relative = torch.full(shape, torch.nan)
    for column, ids in enumerate(prompts.input_ids):
        seen = _Measured(model, quantizers, named, massive)
        with noting_passes(model.plain, seen.begin), visiting(model.plain, seen.visit):
            cast(Any, model.plain)(
                input_ids=torch.tensor([ids], device=model.device), use_cache=False
            )
        relative[..., column] = seen.relative()
    return StateErrors(arms=tuple(quantizers), projections=named, relative=relative)


Opened = Callable[[], AbstractContextManager[HookedModel]]
"""Opens a context that gives the model to run."""


@torch.no_grad()
def compare_states(
    model: HookedModel,
    prompts: TokenizedPrompts,
    changed: Mapping[str, Opened],
    *,
    massive: Mapping[Projection, Bool[Tensor, "layer head d_head"]],
) -> StateErrors:
    """Measure how far the states of other models, or of this one changed, are from its own.

    Args:
        model: The model of full precision, from `load_model`.
        prompts: From `tokenize_prompts`.
        changed: By arm, what opens the model to compare: of the same shape and vocabulary.
        massive: Which channels are massive in `model`; its projections are compared.
    """
    named: tuple[Projection, ...] = tuple(p for p in PROJECTIONS if p in massive)
    relative = torch.full((len(changed), len(named), len(PARTS), len(prompts.input_ids)), torch.nan)
    for column, ids in enumerate(prompts.input_ids):
        own = _states(model, ids, named)
        sizes = {p: _layered(own[p], massive[p]) for p in named}
        for row, opened in enumerate(changed.values()):
            with opened() as other:
                states = _states(other, ids, named)
            for place, p in enumerate(named):
                moved = [y - x for y, x in zip(states[p], own[p], strict=True)]
                error = (_layered(moved, massive[p]) / sizes[p]).sqrt()
                relative[row, place, :, column] = error.flatten(1).nanmean(dim=-1)
    return StateErrors(arms=tuple(changed), projections=named, relative=relative)


def _states(
    model: HookedModel, ids: Sequence[int], named: tuple[Projection, ...]
) -> dict[Projection, list[Tensor]]:
    """States of every layer entering the attention, on one prompt."""
    found: dict[Projection, list[Tensor]] = {p: [] for p in named}

    def visit(seen: AttentionInputs) -> None:
        own: dict[Projection, Tensor] = {"q": seen.query, "k": seen.key, "v": seen.value}
        for projection in named:
            found[projection].append(own[projection].float().cpu())

    model.attention_inputs(torch.tensor([list(ids)], device=model.device), visit)
    return found


def _layered(
    states: Sequence[Float[Tensor, "1 head pos d_head"]],
    massive: Bool[Tensor, "layer head d_head"],
) -> Float[Tensor, "part layer head"]:
    """`_parts` of every layer."""
    return torch.stack([_parts(x, m) for x, m in zip(states, massive, strict=True)], dim=1)


class _Measured:
    """Collects the errors of one prompt, layer by layer."""

    def __init__(
        self,
        model: HookedModel,
        quantizers: Mapping[str, Quantizer],
        named: tuple[Projection, ...],
        massive: Mapping[Projection, Tensor],
    ) -> None:
        self._quantizers = list(quantizers.values())
        self._named = named
        self._massive = massive
        self._index = {block: i for i, block in enumerate(model.geometry.blocks)}
        self._found: dict[tuple[int, int], list[Tensor]] = {}

    def begin(self, forward: ForwardPass) -> None:
        """Note the pass for every quantizer."""
        for quantizer in self._quantizers:
            quantizer.begin(forward)

    def visit(self, seen: AttentionInputs) -> None:
        """Quantize one layer's states in every arm, and leave them as they are."""
        own: dict[Projection, Tensor] = {"q": seen.query, "k": seen.key, "v": seen.value}
        for column, projection in enumerate(self._named):
            states = own[projection]
            mask = self._massive[projection][self._index[seen.block]].to(states.device)
            size = _parts(states, mask)
            for row, quantizer in enumerate(self._quantizers):
                if projection in quantizer.plan.projections:
                    stored = quantizer.quantized(seen.block, projection, states)
                    error = (_parts(stored - states, mask) / size).sqrt()
                    self._found.setdefault((row, column), []).append(error)

    def relative(self) -> Float[Tensor, "arm projection part"]:
        """Mean over the heads of all layers."""
        means = torch.full((len(self._quantizers), len(self._named), len(PARTS)), torch.nan)
        for (row, column), errors in self._found.items():
            means[row, column] = torch.cat(errors, dim=-1).nanmean(dim=-1).cpu()
        return means


def _parts(
    states: Float[Tensor, "1 head pos d_head"], massive: Bool[Tensor, "head d_head"]
) -> Float[Tensor, "part head"]:
    """Sum of squares of each part of each head; NaN where a head does not have it."""
    squares = states[0].float().square()
    later = squares[:, 1:].sum(dim=1)
    parts = [
        (later * massive).sum(dim=-1).masked_fill(~massive.any(dim=-1), torch.nan),
        (later * ~massive).sum(dim=-1).masked_fill(massive.all(dim=-1), torch.nan),
        squares[:, 0].sum(dim=-1),
        later.sum(dim=-1),
    ]
    return torch.stack(parts)
