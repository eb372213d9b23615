"""The state of one intervention while a model runs: what it chose, what it wrote, how often.

Sees each layer's queries, keys and values on their way into the attention, pass by pass, and edits
the columns that the intervention names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._choices import Intervention
from mi_massive._replacements import (
    NEEDS_PROMPT,
    joint_mean,
    prompt_mean,
    prompt_norms,
    resampled,
    shuffled,
)
from mi_massive._selections import largest_across_heads, select
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.models.attention import AttentionInputs
from mi_massive.models.passes import ForwardPass, refuse_rereading
from mi_massive.norms import AttentionNorms, Stage
from mi_massive.rope import ModelGeometry, after_rotation, before_rotation

_ROLES: Final[dict[Projection, str]] = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """From outside the prompt: `norms` fix the selection, `means` give `dataset_mean`."""

    norms: AttentionNorms | None
    means: AttentionNorms | None
    masks: Mapping[Projection, Bool[Tensor, "layer head d_head"]]
    donor: Mapping[tuple[int, Projection], Float[Tensor, "head pos d_head"]]


@dataclass(slots=True, eq=False)
class _Plan:
    """What was chosen in one layer and projection when the prompt was read."""

    mask: Bool[Tensor, "batch head 1 d_head"] | None
    value: Tensor | None


class Disruptor:
    """Edits the attention inputs of one model, and counts what it edited."""

    def __init__(
        self,
        intervention: Intervention,
        geometry: ModelGeometry,
        sources: Sources,
        *,
        prompt_length: int | None = None,
        clean_cache: frozenset[int] = frozenset(),
    ) -> None:
        self.intervention = intervention
        self.prompt_length = prompt_length
        self._sources = sources
        self._clean_cache = clean_cache
        self._layers = {layer.block: (i, layer) for i, layer in enumerate(geometry.layers)}
        self._plans: dict[tuple[int, Projection], _Plan] = {}
        self._counts: dict[tuple[int, Projection], Tensor] = {}
        self._pass: ForwardPass | None = None
        self._rows: Bool[Tensor, "batch pos"] | None = None
        self._tokens: Bool[Tensor, "batch pos"] | None = None
        self._stated = prompt_length is not None

    # What each pass may touch.

    def begin(self, forward: ForwardPass) -> None:
        """Note a forward pass before its layers are seen."""
        if forward.start == 0:
            self._plans.clear()
            if not self._stated:
                refuse_rereading(forward, self._pass)
                self.prompt_length = forward.n_prompt or forward.stop
        elif self.prompt_length is None:
            raise RuntimeError(
                "the prompt must be read inside the context, got a pass that continues a cache of "
                f"{forward.start} tokens; open the context before the first pass or state "
                "prompt_length"
            )
        elif not self._stated and forward.n_prompt is None and forward.stop - forward.start > 1:
            raise RuntimeError(
                "prompt_length must be stated when a prompt is read in chunks, got a second pass "
                f"of {forward.stop - forward.start} tokens; pass the number of columns of the "
                "whole prompt"
            )
        n_prompt = cast(int, self.prompt_length)
        if 0 < forward.start < n_prompt and self._needs_prompt():
            raise ValueError(
                f"a prompt of {n_prompt} tokens must be read in one pass for this intervention, "
                f"got a chunk at {forward.start}; fix the selection by a capture (norms) and "
                "replace by 'zero' or 'dataset_mean'"
            )
        columns = torch.arange(forward.start, forward.stop, device=forward.real.device)
        in_prompt = (columns < n_prompt)[None]
        where = self.intervention.where
        wanted = {"prefill": in_prompt, "decode": ~in_prompt, "both": torch.ones_like(in_prompt)}
        rows = forward.real & wanted[where.positions]
        if where.rows != "all":
            rows = rows & (forward.first if where.rows == "first" else ~forward.first)
        # Known without asking the device: a decode pass of an intervention on the prompt is idle.
        outside = (
            forward.start >= n_prompt
            if where.positions == "prefill"
            else (where.positions == "decode" and forward.stop <= n_prompt)
        )
        idle = outside or self.intervention.selection.is_empty
        alone = forward.start == 0 and forward.stop == n_prompt
        several = forward.start < n_prompt or forward.stop - forward.start > 1
        if not idle and not alone and several and self.forgets:
            raise ValueError(
                f"cache must be 'edited' for columns {forward.start} to {forward.stop} of a prompt "
                f"of {n_prompt}, got {where.cache!r}: tokens of one pass see each other's edits, "
                "those of later ones would not; read the prompt alone and in one pass"
            )
        self._pass, self._rows = forward, None if idle else rows
        self._tokens = forward.real & in_prompt

    @property
    def _now(self) -> ForwardPass:
        """The pass that runs."""
        if self._pass is None:
            raise RuntimeError(
                "a forward pass must be noted before its layers are seen, got a layer of none"
            )
        return self._pass

    @property
    def _prompt(self) -> Bool[Tensor, "batch pos"]:
        """True at the real tokens of this pass that belong to the prompt."""
        return cast(Tensor, self._tokens)

    def _needs_prompt(self) -> bool:
        """True if selection or value are taken from the whole prompt."""
        fixed = self._sources.norms is not None or bool(self._sources.masks)
        per_prompt = not fixed and self.intervention.selection.rule != "across_heads"
        return per_prompt or self.intervention.value.kind in NEEDS_PROMPT

    @property
    def forgets(self) -> bool:
        """True if edits of keys or values hold for one pass alone in some layer."""
        where = self.intervention.where
        clean = where.cache == "clean" or bool(self._clean_cache)
        return clean and where.projections != ("q",)

    @property
    def keeps(self) -> bool:
        """True if edits of keys or values stay in the cache in some layer."""
        where = self.intervention.where
        clean = where.cache == "clean" or self._clean_cache >= set(self._layers)
        return not clean and where.projections != ("q",)

    # What each layer gets.

    def visit(self, seen: AttentionInputs) -> AttentionInputs | None:
        """Edit one layer's queries, keys and values."""
        where = self.intervention.where
        if where.layers is not None and seen.block not in where.layers:
            return None
        kept = where.cache != "clean" and seen.block not in self._clean_cache
        new: dict[str, Tensor] = {}
        n = self._now.real.shape[1]
        for projection in where.projections:
            role = _ROLES[projection]
            states = cast(Tensor, getattr(seen, role))
            fresh = states[:, :, states.shape[2] - n :]
            edited = self.edited(seen.block, projection, fresh)
            if edited is None:
                continue
            if projection == "q":
                new[role] = edited
            elif kept:
                fresh.copy_(edited)  # the cache's own storage: later tokens see the edit
            else:
                new[role] = torch.cat([states[:, :, : states.shape[2] - n], edited], dim=2)
        return replace(seen, **new) if new else None

    def edited(
        self, block: int, projection: Projection, states: Float[Tensor, "batch head pos d_head"]
    ) -> Float[Tensor, "batch head pos d_head"] | None:
        """The columns of this pass after the edit; None if none of them is to be touched."""
        self._counts.setdefault((block, projection), torch.zeros((), dtype=torch.int64))
        keeps = self._now.start == 0 and self.intervention.where.positions != "prefill"
        if self._rows is None and not keeps:
            return None
        rotary = None if projection == "v" else self._layers[block][1].rotary
        turned = self.intervention.where.stage == "unrotated" and rotary is not None
        positions = self._now.positions[:, None]
        shown = states
        if turned:  # in float32: half precision would not come back to where it was
            shown = before_rotation(states.float(), positions, cast(Any, rotary))
        plan = self._plans.get((block, projection))
        if plan is None:
            plan = self._plan(block, projection, shown)
            if self.intervention.where.positions != "prefill":
                self._plans[block, projection] = plan
        if self._rows is None:
            return None
        plan = _copied(plan, self._now.copies) if self._now.start else plan
        rule = self.intervention.selection
        chosen = largest_across_heads(shown, rule.k) if plan.mask is None else plan.mask
        mask = chosen & self._rows[:, None, :, None]
        self._count(block, projection, mask, states.shape[1])
        changed = self._replaced(shown, plan.value, projection, block)
        if not turned:
            return torch.where(mask, changed, states)
        changed = after_rotation(torch.where(mask, changed, shown), positions, cast(Any, rotary))
        return torch.where(self._with_partners(mask, block), changed.to(states), states)

    def _plan(self, block: int, projection: Projection, states: Tensor) -> _Plan:
        """Choose the dimensions, and compute what the value needs of the whole prompt."""
        tokens = self._prompt
        mask = self._mask(block, projection, states, tokens)
        kind = self.intervention.value.kind
        value = None
        if kind == "mean":
            value = prompt_mean(states, tokens)
        elif kind == "mean_after_first":
            value = prompt_mean(states, tokens & ~self._now.first)
        elif kind == "joint_mean":
            value = joint_mean(states, tokens, cast(Tensor, mask)[:, :, 0])
        elif kind == "dataset_mean":
            means = cast(AttentionNorms, self._sources.means).mean(projection, self._stage(block))
            value = means[self._layers[block][0]][None, :, None]
        return _Plan(mask, None if value is None else value.to(states))

    def _mask(
        self, block: int, projection: Projection, states: Tensor, tokens: Tensor
    ) -> Bool[Tensor, "batch head 1 d_head"] | None:
        rule = self.intervention.selection
        index, layer = self._layers[block]
        if rule.rule == "across_heads":
            return None
        if rule.rule == "mask":
            mask = self._sources.masks[projection][index][None]
        else:
            if self._sources.norms is None:
                norms = prompt_norms(states, tokens)
            else:
                sums = self._sources.norms.sums(projection, self._stage(block))
                norms = sums.pooled_norms()[index][None]
            place = (block, PROJECTIONS.index(projection))
            # Values are chosen along the keys' pairs, so that they are matched alike.
            mask = select(norms, rule, layer.rotary, place=place)
        return mask.to(states.device).expand(len(states), -1, -1)[:, :, None]

    def _replaced(
        self, states: Tensor, value: Tensor | None, projection: Projection, block: int
    ) -> Tensor:
        wanted, tokens = self.intervention.value, self._prompt
        if wanted.kind == "shuffled":
            value = shuffled(states, tokens, wanted.seed)
        elif wanted.kind == "resampled":
            value = resampled(states, tokens, self._sources.donor[block, projection])
        elif value is None:
            value = torch.zeros((), dtype=states.dtype, device=states.device)
        if wanted.strength == 1.0:
            return value
        return states + wanted.strength * (value - states)

    def _with_partners(self, mask: Tensor, block: int) -> Tensor:
        """Also the other member of each pair: turning back moves both."""
        partners = cast(Any, self._layers[block][1].rotary).partner_of_dim.to(mask.device)
        return mask | (mask[..., partners] & (partners >= 0))

    def _stage(self, block: int) -> Stage:
        rotates = self._layers[block][1].rotary is not None
        return self.intervention.where.stage if rotates else "attention"

    # What was done.

    def _count(self, block: int, projection: Projection, mask: Tensor, n_heads: int) -> None:
        entries = mask.sum() * (n_heads // mask.shape[1])
        self._counts[block, projection] = self._counts[block, projection].to(mask.device) + entries

    def counts(self) -> dict[tuple[int, Projection], int]:
        """Entries edited so far, by block and projection."""
        return {place: int(count) for place, count in self._counts.items()}


def _copied(plan: _Plan, copies: int) -> _Plan:
    """The plan of each prompt for every row that continues it; a fixed value serves all rows."""
    if copies == 1:
        return plan
    repeated = [
        part if part is None or len(part) == 1 else part.repeat_interleave(copies, dim=0)
        for part in (plan.mask, plan.value)
    ]
    return _Plan(*repeated)
