"""Change the rotation of a loaded model's queries and keys while it runs.

Answers what a model does when some of its rotary pairs do not turn, turn at another frequency, or
turn as if tokens stood elsewhere. `operate` turns each layer's queries and keys, after the model's
own rotation, by the angle between what the surgery wants and what the model did:

    angle(position m, pair p) = wanted(m, p) - m * inv_freq[p]

so that nothing of the model itself is changed or has to be restored, every head can have pairs of
its own, and layouts, partial widths and layers with rotations of their own come from the geometry
that was measured on the model. Keys are turned before later tokens see them: the cache holds the
keys of the surgery. Costs one more rotation a layer.

Does not show: what a model trained so would do. It was trained with its own rotation, and any
change takes it out of the distribution that its weights know.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive._checks import require_positive
from mi_massive.interventions import refusing_bridge
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.geometry import fixed_until
from mi_massive.models.passes import ForwardPass, noting_passes
from mi_massive.norms import AttentionNorms
from mi_massive.pair_choices import PairChoice, chosen_pairs
from mi_massive.rope import LayerGeometry, RotaryGeometry, turn

Change = Literal["remove", "theta", "shift", "scale"]
"""What becomes of the chosen pairs' angle `m * f`, for pair p of n:

- `remove`: 0, no rotation.
- `theta`: `m * f * amount ** (-p / n)`, the rotation of a model whose theta is `amount` times as
  large (frequencies `theta ** (-p / n)`, scaled or not).
- `shift`: `(m + amount) * f`. Attention depends on differences of positions alone: a shift of every
  token changes no logit but for rounding.
- `scale`: `(m * amount) * f`, as linear position interpolation does.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surgery:
    """One change of the rotation of some rotary pairs."""

    change: Change = "remove"
    amount: float | None = None
    """Factor of `theta` and `scale`, tokens of `shift`; None for `remove`."""
    pairs: PairChoice = field(default_factory=PairChoice)

    def __post_init__(self) -> None:
        """Refuse a change that changes nothing, and an amount without meaning."""
        if self.change == "remove":
            if self.amount is not None:
                raise ValueError(f"amount must be None for 'remove', got {self.amount}")
            return
        if self.amount is None:
            raise ValueError(f"amount must be a number for {self.change!r}, got None")
        nothing = 0.0 if self.change == "shift" else 1.0
        if self.change == "shift":
            if not math.isfinite(self.amount):
                raise ValueError(f"amount must be finite for 'shift', got {self.amount}")
        else:
            require_positive("amount", self.amount)
        if self.amount == nothing:
            raise ValueError(
                f"amount must not be {nothing:g} for {self.change!r}, which changes nothing; run "
                "the model itself"
            )

    def angles(
        self, positions: Int[Tensor, "*batch pos"], rotary: RotaryGeometry
    ) -> Float[Tensor, "*batch pos pair"]:
        """Angle in rad by which each pair is turned beyond the model's own rotation, float64."""
        own = positions[..., None].cpu().double() * rotary.inv_freq
        match self.change:
            case "remove":
                return -own
            case "theta":
                pairs = torch.arange(rotary.n_pairs, dtype=torch.float64) / rotary.n_pairs
                return own * (self._factor ** (-pairs) - 1)
            case "shift":
                return (self._factor * rotary.inv_freq).expand_as(own)
            case "scale":
                return own * (self._factor - 1)

    @property
    def _factor(self) -> float:
        assert self.amount is not None  # refused for all but `remove`
        return self.amount


class Operation:
    """What a surgery has done so far, from `operate`."""

    def __init__(
        self, model: HookedModel, surgery: Surgery, pairs: dict[int, Bool[Tensor, "kv_head _"]]
    ) -> None:
        self.surgery = surgery
        self.pairs = pairs
        """Chosen pairs of each key-value head, by block index."""
        self._layers = {layer.block: layer for layer in model.geometry.layers}
        self._until = fixed_until(model.plain.config)
        self._positions: Tensor | None = None
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}
        self._turned: dict[int, Tensor] = {}
        self._counts = dict.fromkeys((block for block in pairs if bool(pairs[block].any())), 0)
        self._reached: set[int] = set()

    @property
    def by_block(self) -> dict[int, int]:
        """Pairs of queries and keys turned by another angle than the model's, by block index."""
        return dict(self._counts)

    @property
    def total(self) -> int:
        """Pairs of queries and keys turned so in all blocks."""
        return sum(self._counts.values())

    def begin(self, forward: ForwardPass) -> None:
        """Note a forward pass before its layers are seen, and find its angles."""
        positions = forward.positions.cpu()
        if self._until is not None and int(positions.max()) >= self._until:
            raise ValueError(
                f"positions must stay below {self._until} for a model that takes other frequencies "
                f"beyond them, got {int(positions.max())}; shorten the prompt"
            )
        self._positions = positions
        self._turns, self._turned = {}, {}
        real = forward.real.cpu()
        for block in self._counts:
            rotary = self._layers[block].rotary
            if rotary is None or id(rotary) in self._turned:
                continue
            angles = self.surgery.angles(positions, rotary)
            # On some devices there is no float64: its angles are taken on the CPU.
            cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
            self._turns[id(rotary)] = cos.to(forward.real.device), sin.to(forward.real.device)
            self._turned[id(rotary)] = ((angles != 0) & real[..., None]).sum(dim=(0, 1))

    def visit(self, seen: AttentionInputs) -> AttentionInputs | None:
        """Turn one layer's queries, and the keys that this pass adds, in the cache's storage."""
        if seen.block not in self._counts:
            return None
        layer, mask = self._layers[seen.block], self.pairs[seen.block]
        n = seen.query.shape[2]
        fresh = seen.key[:, :, seen.key.shape[2] - n :]
        fresh.copy_(self._turn(fresh, mask, layer))
        in_heads = mask[layer.kv_head_of_head]
        n_turned = (mask.sum(dim=0) + in_heads.sum(dim=0)) * self._turned[id(layer.rotary)]
        self._counts[seen.block] += int(n_turned.sum())
        self._reached.add(seen.block)
        return replace(seen, query=self._turn(seen.query, in_heads, layer))

    def _turn(
        self,
        states: Float[Tensor, "batch head pos d_head"],
        mask: Bool[Tensor, "head pair"],
        layer: LayerGeometry,
    ) -> Float[Tensor, "batch head pos d_head"]:
        rotary = layer.rotary
        if rotary is None or id(rotary) not in self._turns:
            raise RuntimeError(
                f"a forward pass must be noted before block {layer.block} is seen, got none"
            )
        cos, sin = (part.to(states.device) for part in self._turns[id(rotary)])
        chosen = mask[:, None, :].to(states.device)
        cos, sin = torch.where(chosen, cos, 1.0), torch.where(chosen, sin, 0.0)
        # In float32: half precision would round the angles.
        turned = turn(states.float(), cos, sin, rotary).to(states)
        # What does not turn keeps its bits, in half precision too.
        dims = torch.zeros(mask.shape[0], rotary.d_head, dtype=torch.bool)
        dims[:, rotary.pair_dims] = mask[..., None].expand(*mask.shape, 2)
        return torch.where(dims.to(states.device)[:, None], turned, states)

    def require_done(self, model: HookedModel) -> None:
        """Raise RuntimeError unless every block with chosen pairs was reached and turned."""
        for block in self._counts:
            if block not in self._reached:
                raise RuntimeError(
                    f"every layer with chosen pairs must be reached by the surgery, got no run of "
                    f"block {block}; run model.plain inside the context"
                )
        if self.total == 0:
            raise RuntimeError(
                f"a surgery must turn at least one pair of {model.name}, got none: every token "
                "stood where the change is nothing (position 0); run longer prompts"
            )


@contextmanager
def operate(
    model: HookedModel, surgery: Surgery, *, norms: AttentionNorms | None = None
) -> Generator[Operation, None, None]:
    """Change the rotation of every run of the plain model inside the context.

        with operate(model, Surgery(pairs=PairChoice(bands=(0, 1)))) as operation:
            logits = model.plain(input_ids=ids, attention_mask=mask, position_ids=places).logits
            text = model.plain.generate(ids, attention_mask=mask, max_new_tokens=20)

    Forward passes and generation with a KV cache, left padding, chunks and any batch; runs of
    `capture_norms` and of `model.attention_inputs` too. `disrupt` within the context sees the
    queries and keys of the surgery, but takes those of the model's own rotation for unrotated.

    Args:
        model: From `load_model`; at least one layer must rotate.
        surgery: What changes, and for which pairs.
        norms: A capture that says which dimensions are massive, where the surgery asks for them.

    Yields:
        The number of pairs turned so far.

    Raises:
        ValueError: If the model does not rotate, a band does not exist in it, the norms are missing
            or do not fit, or no pair is chosen; within, if a prompt reaches positions at which
            the model takes other frequencies.
        RuntimeError: If nothing was turned when the context closes, a block was not reached, or
            `model.bridge` was run inside.
        UnsupportedModelError: If the model was wrapped.
    """
    try:
        plain = model.plain
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{model.name} must be loaded by load_model to have its rotation changed, got a "
            "wrapped TransformerLens model; use load_model"
        ) from error
    if not model.geometry.rotates:
        raise ValueError(
            f"{model.name} must rotate its queries and keys to have that rotation changed, got a "
            "model without rotary position embeddings; use disrupt"
        )
    operation = Operation(model, surgery, chosen_pairs(model.geometry, surgery.pairs, norms=norms))
    with (
        noting_passes(plain, operation.begin),
        visiting(plain, operation.visit),
        refusing_bridge(model, "operate", "which sees them"),
    ):
        yield operation
    operation.require_done(model)
