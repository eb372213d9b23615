"""Quantize a loaded model's queries, keys and values while it runs, and keep chosen parts exact.

Answers what a model does when its attention states are stored in few bits, with some channels (the
massive ones, or others) or the first token left at full precision. `quantized_states` replaces each
layer's states by what a quantized store would give back; nothing is stored in fact, and the
arithmetic is float32 throughout. Costs a few passes over the states a layer.

Tokens are stored as they are read. Per token each has a scale of its own, in the prompt and after
it. Per channel the scales are those of the prompt: its tokens are all there before the first is
stored, and what is generated later is stored with them, cut off at their ends. Padding is never
read or changed, and no row of a batch sees another.

Does not show: speed or memory of a quantized cache, or integer arithmetic in the scores.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._fake_quant import (
    Grid,
    channel_grid,
    fake_quantize,
    hadamard,
    require_dividing,
    token_grid,
)
from mi_massive._sources import require_masks
from mi_massive.axes import Projection
from mi_massive.interventions import refusing_bridge
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.passes import ForwardPass, noting_passes
from mi_massive.quantization_plans import QuantizationPlan
from mi_massive.rope import after_rotation, before_rotation

_ROLES: Final[dict[Projection, str]] = {"q": "query", "k": "key", "v": "value"}


class Quantizer:
    """The state of one plan while a model runs, and what it has done so far."""

    def __init__(
        self,
        model: HookedModel,
        plan: QuantizationPlan,
        protect: Mapping[Projection, Bool[Tensor, "layer head d_head"]],
    ) -> None:
        self.plan = plan
        self._layers = {layer.block: (i, layer) for i, layer in enumerate(model.geometry.layers)}
        self._protect = protect
        self._turns = {
            layer.d_head: hadamard(layer.d_head, seed=plan.seed)
            for layer in model.geometry.layers
            if plan.hadamard
        }
        self._grids: dict[tuple[int, Projection], Grid] = {}
        self._counts: dict[tuple[int, Projection], Tensor] = {}
        self._pass: ForwardPass | None = None

    @property
    def by_place(self) -> dict[tuple[int, Projection], int]:
        """Entries quantized, by block and projection."""
        return {place: int(count) for place, count in self._counts.items()}

    @property
    def total(self) -> int:
        """Entries (scalars of queries, keys and values) quantized so far."""
        return sum(self.by_place.values())

    def begin(self, forward: ForwardPass) -> None:
        """Note a forward pass before its layers are seen."""
        granularities = {self.plan.granularity_of(p) for p in self.plan.projections}
        if forward.start == 0:
            self._grids.clear()
        elif "channel" in granularities:
            self._require_whole_prompt(forward)
        self._pass = forward

    def _require_whole_prompt(self, forward: ForwardPass) -> None:
        n_new, n_prompt = forward.stop - forward.start, forward.n_prompt
        if not self._grids:
            raise RuntimeError(
                "the prompt must be read inside the context, got a pass that continues a cache of "
                f"{forward.start} tokens; open the context before the first pass"
            )
        if forward.start < n_prompt if n_prompt is not None else n_new > 1:
            raise ValueError(
                f"a prompt must be read in one pass for scales per channel, got a second pass of "
                f"{n_new} tokens at {forward.start}; quantize per token"
            )

    @property
    def _now(self) -> ForwardPass:
        """The pass that runs."""
        if self._pass is None:
            raise RuntimeError(
                "a forward pass must be noted before its layers are seen, got a layer of none"
            )
        return self._pass

    def visit(self, seen: AttentionInputs) -> AttentionInputs | None:
        """Quantize one layer's queries, and the keys and values that this pass adds, in place."""
        n, query = self._now.real.shape[1], None
        for projection in self.plan.projections:
            states = cast(Tensor, getattr(seen, _ROLES[projection]))
            fresh = states[:, :, states.shape[2] - n :]
            quantized = self.quantized(seen.block, projection, fresh)
            if projection == "q":
                query = quantized
            else:
                fresh.copy_(quantized)  # the cache's own storage: later tokens see it
        return None if query is None else replace(seen, query=query)

    def quantized(
        self, block: int, projection: Projection, states: Float[Tensor, "batch head pos d_head"]
    ) -> Float[Tensor, "batch head pos d_head"]:
        """The states of this pass as they come back from the store, the protected ones untouched.

        Args:
            block: Index of the block.
            projection: Which states they are.
            states: As they enter the attention; the columns of the pass.
        """
        index, layer = self._layers[block]
        now, rotary = self._now, None if projection == "v" else layer.rotary
        turned = self.plan.stage == "unrotated" and rotary is not None
        positions = now.positions[:, None]
        shown = states.float()
        if turned:
            shown = before_rotation(shown, positions, cast(Any, rotary))
        rows = now.real & ~now.first if self.plan.keep_first else now.real
        chosen = rows[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        if projection in self._protect:
            chosen = chosen & ~self._protect[projection][index][:, None].to(states.device)
        self._count(block, projection, chosen)
        back = self._stored((block, projection), shown.masked_fill(~chosen, 0.0))
        if turned:
            back = after_rotation(torch.where(chosen, back, shown), positions, cast(Any, rotary))
            # Turning back moves both members of a pair.
            partners = cast(Any, rotary).partner_of_dim.to(states.device)
            chosen = chosen | (chosen[..., partners] & (partners >= 0))
        return torch.where(chosen, back.to(states), states)

    def _stored(
        self, place: tuple[int, Projection], held: Float[Tensor, "batch head pos d_head"]
    ) -> Float[Tensor, "batch head pos d_head"]:
        """What comes back of states that are 0 wherever nothing is stored."""
        turn = self._turns.get(held.shape[-1])
        if turn is not None:
            held = held @ turn.to(held)
        back = fake_quantize(held, self._grid(place, held))
        return back if turn is None else back @ turn.T.to(back)

    def _grid(self, place: tuple[int, Projection], held: Tensor) -> Grid:
        plan, now = self.plan, self._now
        if plan.granularity_of(place[1]) == "token":
            return token_grid(held, bits=plan.bits, symmetric=plan.symmetric, group=plan.group)
        if now.start > 0:
            return self._grids[place].repeated(now.copies)
        prompt = held if now.n_prompt is None else held[:, :, : now.n_prompt]
        grid = channel_grid(prompt, bits=plan.bits, symmetric=plan.symmetric)
        self._grids[place] = grid
        return grid

    def _count(self, block: int, projection: Projection, chosen: Tensor) -> None:
        before = self._counts.get((block, projection), torch.zeros((), dtype=torch.int64))
        self._counts[block, projection] = before.to(chosen.device) + chosen.sum()

    def require_done(self, model: HookedModel) -> None:
        """Raise RuntimeError unless every layer was reached and something was quantized."""
        for block in self._layers:
            for projection in self.plan.projections:
                if (block, projection) not in self._counts:
                    raise RuntimeError(
                        f"every layer must be reached by the quantization, got no run of "
                        f"{projection} in block {block}; run model.plain inside the context"
                    )
        asked = any(
            p not in self._protect or not bool(self._protect[p].all())
            for p in self.plan.projections
        )
        if asked and self.total == 0:
            raise RuntimeError(
                f"a quantization must reach at least one entry of {model.name}, got none: every "
                "token was padding or a first one; run longer prompts"
            )


@contextmanager
def quantized_states(
    model: HookedModel,
    plan: QuantizationPlan,
    *,
    protect: Mapping[Projection, Bool[Tensor, "layer head d_head"]] | None = None,
) -> Generator[Quantizer, None, None]:
    """Quantize attention states in every run of the plain model inside the context.

        with quantized_states(model, QuantizationPlan(bits=4), protect=masks) as quantizer:
            logits = model.plain(input_ids=ids, attention_mask=mask, position_ids=places).logits
            text = model.plain.generate(ids, attention_mask=mask, max_new_tokens=20)

    Forward passes and generation with a KV cache, left padding and any batch; the cache holds the
    quantized keys and values. Contexts within contexts add up; open this one outside a `disrupt`
    that leaves the cache clean.

    Args:
        model: From `load_model`.
        plan: Bits, projections, scales.
        protect: Channels that stay exact, by projection, over key-value heads for k and v; they
            widen no range. Before the rotation if the plan quantizes there. All of them: the
            logits are those of the model, bit for bit.

    Yields:
        The number of entries quantized so far.

    Raises:
        ValueError: If a mask does not fit the model, groups do not divide the head, the head is no
            power of two for a Hadamard rotation, or the model does not rotate and states before the
            rotation are asked for; within, if scales per channel are asked of a prompt in chunks.
        RuntimeError: If nothing was quantized when the context closes, a block was not reached, or
            `model.bridge` was run inside.
        UnsupportedModelError: If the model was wrapped.
    """
    try:
        plain = model.plain
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{model.name} must be loaded by load_model to have its states quantized, got a "
            "wrapped TransformerLens model; use load_model"
        ) from error
    quantizer = make_quantizer(model, plan, protect)
    with (
        noting_passes(plain, quantizer.begin),
        visiting(plain, quantizer.visit),
        refusing_bridge(model, "quantized_states", "which sees them"),
    ):
        yield quantizer
    quantizer.require_done(model)


def make_quantizer(
    model: HookedModel,
    plan: QuantizationPlan,
    protect: Mapping[Projection, Bool[Tensor, "layer head d_head"]] | None,
) -> Quantizer:
    """The quantizer of a plan, its arguments checked; as for `quantized_states`.

    Raises:
        ValueError: If plan or masks do not fit the model.
    """
    if protect is not None:
        require_masks(model, protect, tuple(protect), name="protect")
    if plan.group is not None:
        for layer in model.geometry.layers:
            require_dividing(plan.group, layer.d_head)
    if plan.stage == "unrotated" and not model.geometry.rotates:
        raise ValueError(
            f"stage must be 'attention' for {model.name}, which has no rotary position embeddings, "
            "got 'unrotated'"
        )
    return Quantizer(model, plan, protect or {})
