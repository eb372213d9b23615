"""Run a TransformerLens model again from the middle, without what a patch cannot change.

A patch in block l leaves everything below that block as it was, and in a causal model everything at
earlier positions too. `Resumer` keeps the unpatched run of a batch of prompts: a second run enters
at the residual stream of block l, with the keys and values of earlier positions in the model's own
cache, and computes the rest, for several copies of each prompt at once. Masks and rotations are the
model's own: its forward pass runs whole, only the blocks below pass their input on.
"""

import copy
import inspect
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.sites import HookFunction, patch_site_name
from mi_massive.patch_results import Reuse

_CACHED_LAYERS: Final = ("DynamicLayer", "DynamicSlidingWindowLayer")


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """An unpatched run of prompts of one length."""

    ids: Int[Tensor, "example pos"]
    logits: Float[Tensor, "example d_vocab"]
    """At the last position."""
    states: dict[str, Tensor]
    """Activations by hook point, as the model gives them."""
    residuals: dict[int, Tensor]
    """What enters each block."""
    prefixes: dict[int, Any] = field(default_factory=dict[int, Any])
    """Key-value caches of the first n positions, by n; filled when asked for."""

    @property
    def n_pos(self) -> int:
        """Tokens of each prompt."""
        return self.ids.shape[1]

    def rows(self, kept: Sequence[int]) -> "Run":
        """The run of some of the prompts alone."""
        at = list(kept)
        return Run(
            self.ids[at],
            self.logits[at],
            {name: states[at] for name, states in self.states.items()},
            {block: states[at] for block, states in self.residuals.items()},
        )


class Resumer:
    """Runs a model whole, and again from a block and a position on.

    Raises:
        UnsupportedModelError: If the model is an encoder, has no language-modelling head, or the
            parts that `reuse` asks for cannot be taken from an earlier run.
    """

    def __init__(self, model: HookedModel, *, reuse: Reuse = "prefix") -> None:
        if not (model.has_head and model.is_causal):
            raise UnsupportedModelError(
                f"{model.name} must be a decoder with a language-modelling head to be patched, got "
                "none"
            )
        self._name = model.name
        self._model: Any = model.bridge
        self._device = model.device
        self.reuse: Reuse = reuse
        original = getattr(self._model, "original_model", None)
        self._last_only: dict[str, int] = {}
        if original and "logits_to_keep" in inspect.signature(original.forward).parameters:
            self._last_only = {"logits_to_keep": 1}
        # The model's loop over its blocks expects what its blocks return.
        self._returns_tuple = self._block_outputs()
        if reuse == "prefix":
            self._require_cache(original)

    @torch.no_grad()
    def run(
        self, ids: Int[Tensor, "example pos"], *, names: Iterable[str] = (), blocks: Sequence[int]
    ) -> Run:
        """Run prompts whole; keep activations at `names` and what enters each of `blocks`."""
        entering = {block: patch_site_name(block, "resid_pre") for block in blocks}
        states: dict[str, Tensor] = {}

        def keeping(name: str) -> HookFunction:
            def keep(activation: Tensor, hook: Any) -> None:
                states[name] = activation.detach().clone()

            return keep

        asked = dict.fromkeys([*names, *entering.values()])
        known = [name for name in asked if name in self._model.hook_dict]
        ids = ids.to(self._device)
        logits = self._forward(ids, [(name, keeping(name)) for name in known])
        for name in asked:
            if name not in states:
                raise UnsupportedModelError(
                    f"{name} must be a hook point that fires on {self._name} to be patched, got "
                    "none; choose another site or layer"
                )
        residuals = {block: states[name] for block, name in entering.items()}
        return Run(ids, logits, states, residuals)

    @torch.enable_grad()
    def gradients(
        self,
        ids: Int[Tensor, "example pos"],
        names: Sequence[str],
        measure: Callable[[Tensor], Tensor],
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Activations at `names`, and the gradient there of a measure of the last logits.

        Raises:
            UnsupportedModelError: If a hook point does not fire or has no gradient.
        """
        states: dict[str, Tensor] = {}

        def begin(activation: Tensor, hook: Any) -> Tensor:
            return activation.detach().requires_grad_()

        def keeping(name: str) -> HookFunction:
            def keep(activation: Tensor, hook: Any) -> Tensor:
                states[name] = activation.clone()
                return states[name]

            return keep

        hooks: list[tuple[str, HookFunction]] = [(patch_site_name(0, "resid_pre"), begin)]
        hooks += [(name, keeping(name)) for name in names]
        value = measure(self._forward(ids.to(self._device), hooks))
        reached = [name for name in names if name in states and states[name].requires_grad]
        found = torch.autograd.grad(value, [states[n] for n in reached], allow_unused=True)
        gradients = {n: g for n, g in zip(reached, cast(Any, found), strict=True) if g is not None}
        for name in names:
            if name not in gradients:
                raise UnsupportedModelError(
                    f"{name} must have a gradient on {self._name}, got none; use patch, which "
                    "needs no gradient"
                )
        return {name: (states[name].detach(), gradients[name]) for name in names}

    @torch.no_grad()
    def again(
        self,
        run: Run,
        hooks: Sequence[tuple[str, HookFunction]],
        *,
        block: int,
        start: int,
        copies: int,
    ) -> Float[Tensor, "row d_vocab"]:
        """Logits at the last position of `copies` of each prompt, next to each other, with hooks.

        Args:
            run: Unpatched run of the prompts.
            hooks: `(hook point, function)`; nothing below `block` or before `start` may be changed
                by them. Functions get activations `[row, ...]` of positions from `start` on.
            block: First block that is computed.
            start: First position that is computed; 0 where `reuse` is not `prefix`.
            copies: Rows of each prompt.

        Raises:
            RuntimeError: If a hook does not fire.
        """
        fired: set[str] = set()

        def noted(name: str, function: HookFunction) -> HookFunction:
            def call(activation: Tensor, hook: Any) -> Any:
                fired.add(name)
                return function(activation, hook=hook)

            return call

        named = [(name, noted(name, function)) for name, function in hooks]
        ids = run.ids[:, start:].repeat_interleave(copies, dim=0)
        cache = self._prefix(run, start, copies) if start else None
        if self.reuse == "nothing" or block == 0:
            logits = self._forward(ids, named, cache=cache)
        else:
            residual = run.residuals[block][:, start:].repeat_interleave(copies, dim=0)
            with self._skipping(block, residual):
                logits = self._forward(ids, named, cache=cache)
        silent = [name for name, _ in hooks if name not in fired]
        if silent:
            raise RuntimeError(f"every hook must fire, got none at {', '.join(silent)}")
        return logits

    def require_same(self, run: Run, *, block: int, start: int) -> None:
        """Refuse a model whose resumed run differs from its whole run.

        Raises:
            UnsupportedModelError: If the logits differ by more than rounding.
        """
        again = self.again(run, (), block=block, start=start, copies=1)
        apart = float((again - run.logits).abs().max())
        scale = float(run.logits.abs().max())
        if not apart <= max(1e-4, 8 * torch.finfo(run.logits.dtype).eps) * max(1.0, scale):
            raise UnsupportedModelError(
                f"a run resumed at block {block} and position {start} must equal the whole run, "
                f"got logits {apart:.2g} apart; use reuse='layers' or reuse='nothing'"
            )

    def _forward(
        self, ids: Tensor, hooks: Sequence[tuple[str, HookFunction]], *, cache: Any = None
    ) -> Float[Tensor, "row d_vocab"]:
        n_before = 0 if cache is None else int(cache.get_seq_length())
        mask = torch.ones(len(ids), n_before + ids.shape[1], dtype=torch.long, device=ids.device)
        given: dict[str, Any] = {"attention_mask": mask, **self._last_only}
        if cache is not None:
            given |= {"past_key_values": cache, "use_cache": True}
        with self._model.hooks(fwd_hooks=list(hooks)):
            return self._model(ids, return_type="logits", **given)[:, -1]

    def _prefix(self, run: Run, start: int, copies: int) -> Any:
        """Key-value cache of the first `start` positions, `copies` rows a prompt."""
        if start not in run.prefixes:
            run.prefixes[start] = self._fill(run.ids[:, :start])
        cache = copy.deepcopy(run.prefixes[start])
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        return cache

    def _fill(self, ids: Tensor) -> Any:
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self._model.original_model.config)
        self._model(
            ids,
            return_type=None,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _require_cache(self, original: Any) -> None:
        kinds = ["of another kind"]
        if original is not None:
            with torch.no_grad():
                kinds = [type(layer).__name__ for layer in self._fill(self._probe()).layers]
        unknown = sorted(set(kinds) - set(_CACHED_LAYERS))
        if unknown:
            raise UnsupportedModelError(
                "earlier positions must stand in a cache of keys and values to be reused, got one "
                f"{'with ' if original is not None else ''}{', '.join(unknown)}; use "
                "reuse='layers', which computes them again"
            )

    def _probe(self) -> Int[Tensor, "example pos"]:
        return torch.ones(1, 3, dtype=torch.long, device=self._device)

    @torch.no_grad()
    def _block_outputs(self) -> list[int]:
        """How many entries the tuple has that each block returns; 0 for a bare tensor."""
        sizes: dict[int, int] = {}

        def note(block: int) -> Callable[..., None]:
            def see(module: nn.Module, args: Any, output: Any) -> None:
                sizes[block] = len(cast(Any, output)) if isinstance(output, tuple) else 0

            return see

        handles = [b.register_forward_hook(note(i)) for i, b in enumerate(self._model.blocks)]
        try:
            self._model(self._probe(), return_type=None)
        finally:
            for handle in handles:
                handle.remove()
        return [sizes[block] for block in range(len(self._model.blocks))]

    @contextmanager
    def _skipping(self, block: int, residual: Tensor) -> Generator[None, None, None]:
        """Let every block below pass its input on, and the last of them return `residual`."""
        skipped = [self._model.blocks[below] for below in range(block)]

        def pass_on(below: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                given = args[0] if args else kwargs["hidden_states"]
                states = residual if below == block - 1 else given
                size = self._returns_tuple[below]
                return (states, *[None] * (size - 1)) if size else states

            return forward

        for below, module in enumerate(skipped):
            module.__dict__["forward"] = pass_on(below)
        try:
            yield
        finally:
            for module in skipped:
                del module.__dict__["forward"]
