"""Two ways to read attention inputs out of a running model, behind one protocol.

`PlainEngine` taps a plain transformers model (no attention pattern is materialized). `HooksEngine`
reads the hook points of a TransformerLens model that the user already holds, a bridge or a
`HookedTransformer`, at that library's speed.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mi_massive.models.attention import (
    AttentionInputs,
    Visitor,
    attention_kernel,
    attention_modules,
    visiting,
)
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.geometry import (
    ConstantStates,
    candidate_rotations,
    measure_geometry,
    probe_positions,
    with_position_axes,
)
from mi_massive.models.sites import Hook, attention_site_names, fired_sites, site_name, token_device
from mi_massive.rope import ModelGeometry


@runtime_checkable
class Engine(Protocol):
    """Runs a model on token ids and shows its attention inputs."""

    @property
    def kernel(self) -> str:
        """Attention implementation that runs."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        ...

    @property
    def n_vocabulary(self) -> int:
        """Rows of the token embedding."""
        ...

    def attention_inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None,
        visit: Visitor,
    ) -> None:
        """Run right-padded prompts once and show each layer's attention inputs."""
        ...

    def constant_states(self, positions: Int[Tensor, "pos"]) -> list[ConstantStates]:
        """Queries and keys of each layer when its own input is the same at every position."""
        ...


class PlainEngine:
    """A tapped copy of a transformers model, from `tapped_copy`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # Logits over the vocabulary are no part of attention: run the body alone.
        self._body = model.base_model

    @property
    def kernel(self) -> str:
        """Attention implementation that runs."""
        return attention_kernel(self.model)

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        return token_device(self.model)

    @property
    def n_vocabulary(self) -> int:
        """Rows of the token embedding."""
        return cast(Any, self.model.get_input_embeddings()).weight.shape[0]

    @torch.no_grad()
    def attention_inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None,
        visit: Visitor,
    ) -> None:
        """Run the prompt once and show each layer's attention inputs."""
        with visiting(self.model, visit):
            self._run(input_ids, attention_mask=attention_mask)

    @property
    def n_position_axes(self) -> int:
        """Position axes of the model's rotary module: 3 for M-RoPE, else 1."""
        sections = (getattr(module, "mrope_section", None) for module in self.model.modules())
        return max((len(section) for section in sections if section is not None), default=1)

    @torch.no_grad()
    def constant_states(
        self, positions: Int[Tensor, "pos"], *, axis: int | None = None
    ) -> list[ConstantStates]:
        """Queries and keys of each layer when its own input is the same at every position.

        `axis` is the position axis that has the positions, of a model with several, while the
        others stay at 0; None gives them to all.
        """
        states: list[ConstantStates] = []
        device = self.device
        ids, places = (given[None].to(device) for given in (torch.ones_like(positions), positions))
        if axis is not None:
            of_axis = torch.arange(self.n_position_axes, device=places.device) == axis
            places = of_axis[:, None, None] * places
        removers = [
            module.register_forward_pre_hook(_hold_first, with_kwargs=True)
            for module in attention_modules(self.model, lambda: self._run(ids, position_ids=places))
        ]
        try:
            with visiting(self.model, lambda seen: states.append(_constant_states(seen))):
                self._run(ids, position_ids=places)
        finally:
            for remover in removers:
                remover.remove()
        return states

    def _run(self, input_ids: Tensor, **inputs: Tensor | None) -> None:
        given = {name: value for name, value in inputs.items() if value is not None}
        self._body(input_ids=input_ids, **self._without_cache(), **given)

    def _without_cache(self) -> dict[str, bool]:
        return {} if getattr(self.model.config, "use_cache", None) is None else {"use_cache": False}


def measured_geometry(engine: Engine, model: Any, context: int | None) -> ModelGeometry:
    """Rotary geometry of a model, measured on what its engine computes.

    Args:
        engine: Runs the model.
        model: Whose buffers hold the frequencies.
        context: Positions that the model was trained on, in tokens.

    Raises:
        UnsupportedModelError: If attention cannot be read or rotates in an unknown way.
    """
    positions = probe_positions(context)
    rotations = candidate_rotations(model)
    geometry = measure_geometry(
        engine.constant_states(positions),
        positions,
        frequencies=[frequencies for frequencies, _ in rotations],
        factors=[factor for _, factor in rotations],
        training_context=context,
    )
    if not isinstance(engine, PlainEngine) or engine.n_position_axes == 1:
        return geometry
    spread = torch.linspace(0, (context or 512) - 1, 9).long()  # far: slow pairs must be seen
    return with_position_axes(
        geometry,
        [engine.constant_states(spread, axis=axis) for axis in range(engine.n_position_axes)],
    )


class HooksEngine:
    """A TransformerLens model that the user holds: a TransformerBridge or a HookedTransformer."""

    kernel = "transformer_lens"

    def __init__(self, model: Any) -> None:
        self.model = model
        self._sites = self._live_sites()

    @property
    def n_vocabulary(self) -> int:
        """Rows of the token embedding."""
        return self.model.W_E.shape[0]

    @torch.no_grad()
    def attention_inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None,
        visit: Visitor,
    ) -> None:
        """Run the prompt once and show each layer's attention inputs."""
        pending: dict[int, dict[str, Tensor]] = {}

        def read(block: int, role: str) -> Callable[..., None]:
            def note(activation: Tensor, hook: Any) -> None:
                states = pending.setdefault(block, {})
                states[role] = activation.transpose(1, 2)
                if len(states) == 3:
                    _require_observer(visit(AttentionInputs(block, **pending.pop(block))))

            return note

        hooks = [
            (name, read(block, role))
            for block, names in self._sites.items()
            for role, name in names.items()
        ]
        with self.model.hooks(fwd_hooks=hooks):
            self._run(input_ids, attention_mask)

    @torch.no_grad()
    def constant_states(self, positions: Int[Tensor, "pos"]) -> list[ConstantStates]:
        """Queries and keys of each layer when its projections are the same at every position."""

        def hold(activation: Tensor, hook: Any) -> Tensor:
            return activation[:, :1].expand_as(activation).clone()

        def keep(seen: AttentionInputs) -> None:
            query, key = seen.query[0][:, positions], seen.key[0][:, positions]
            states.append(ConstantStates(seen.block, query, key))

        states: list[ConstantStates] = []
        raw: list[Hook] = ["hook_q", "hook_k"]
        n_positions = int(positions[-1]) + 1
        held = [(site_name(block, hook), hold) for block in self._sites for hook in raw]
        with self.model.hooks(fwd_hooks=held):
            ids = torch.ones(1, n_positions, dtype=torch.long, device=self.device)
            self.attention_inputs(ids, None, keep)
        return states

    def _live_sites(self) -> dict[int, dict[str, str]]:
        """Hook points of each block's attention inputs: the rotary ones where they fire."""
        listed = attention_site_names(self.model)
        ids = torch.ones(1, 4, dtype=torch.long, device=self.device)
        fired = fired_sites(self.model, listed, lambda: self._run(ids, None))
        sites: dict[int, dict[str, str]] = {}
        for block in range(len(self.model.blocks)):
            names = {
                role: next((n for hook in hooks if (n := site_name(block, hook)) in fired), None)
                for role, hooks in _ROLES.items()
            }
            if all(names.values()):
                sites[block] = cast(dict[str, str], names)
            elif any(names.values()):
                raise _silent_hooks_error(f"block {block}")
        if not sites:
            raise _silent_hooks_error("at least one block")
        return sites

    def _run(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.model(input_ids, return_type=None, attention_mask=mask)

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        return next(iter(self.model.parameters())).device


_ROLES: dict[str, tuple[Hook, ...]] = {
    "query": ("hook_rot_q", "hook_q"),
    "key": ("hook_rot_k", "hook_k"),
    "value": ("hook_v",),
}


def _require_observer(replacement: AttentionInputs | None) -> None:
    if replacement is not None:
        raise UnsupportedModelError(
            "visit must return None on a wrapped TransformerLens model, got a replacement, which "
            "cannot take effect there; edit with run_with_hooks"
        )


def _silent_hooks_error(where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"hook_q, hook_k and hook_v of {where} must all fire, got a model where they do not; call "
        "enable_compatibility_mode(no_processing=True) on a TransformerBridge, or use load_model"
    )


def _hold_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: give an attention module its first position's input at every position."""
    if args:
        return (args[0][:, :1].expand_as(args[0]).clone(), *args[1:]), kwargs
    states = kwargs["hidden_states"]
    return args, {**kwargs, "hidden_states": states[:, :1].expand_as(states).clone()}


def _constant_states(seen: AttentionInputs) -> ConstantStates:
    return ConstantStates(seen.block, seen.query[0], seen.key[0])
