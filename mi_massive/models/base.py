"""The loaded model: hook points by name, fast attention inputs, measured rotary geometry.

A loaded model is held twice over one set of weights: as a plain transformers model whose attention
inputs can be read without materializing attention (what captures use), and as a TransformerBridge
with every hook point of TransformerLens (what patching and your own hooks use; built at first
use). Both compute the same logits; `diagnose` measures it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mi_massive.models.attention import Visitor
from mi_massive.models.engines import Engine, HooksEngine, PlainEngine, measured_geometry
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.geometry import candidate_rotations, training_context
from mi_massive.models.sites import (
    HookFunction,
    attention_site_names,
    boot_bridge,
    fired_sites,
    revive_rotary_hooks,
)
from mi_massive.rope import ModelGeometry


class HookedModel:
    """A language model whose queries, keys and values can be read and edited by name.

    Made by `load_model`, or by `HookedModel.wrap` around a TransformerLens model that you hold.

    Attributes:
        name: As the user gave it.
        revision: Commit, wheel or checksum the weights came from; None if unknown.
        weights_note: What happened to the weights before loading, such as a dequantization.
        tokenizer: The model's tokenizer; None if a wrapped model has none.
        geometry: Heads and rotations of each attention layer, measured on the model itself.
        is_causal: False for an encoder.
        has_head: False if the checkpoint has no language-modelling head; its logits are then
            refused.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        geometry: ModelGeometry,
        tokenizer: PreTrainedTokenizerBase | None,
        make_bridge: Callable[[], Any],
        revision: str | None = None,
        weights_note: str | None = None,
        is_causal: bool = True,
        has_head: bool = True,
    ) -> None:
        self.name = name
        self.revision = revision
        self.weights_note = weights_note
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.is_causal = is_causal
        self.has_head = has_head
        self._engine = engine
        self._make_bridge = make_bridge

    @classmethod
    def wrap(cls, model: Any, *, name: str | None = None) -> "HookedModel":
        """Use a `TransformerBridge` or `HookedTransformer` (transformer-lens 3.9) that you hold.

        Captures, the analyses of norms, patching and your own hooks work on it, and edits as
        `disruption_hooks`. `disrupt` and what asks tasks under it (`evaluate`, `run_disruption`,
        surgery, quantization) need the plain transformers model, which `load_model` keeps.
        Attention inputs are read through its hook points, at that library's speed and memory.
        Weights and tokenizer are as you hold them:
        `HookedTransformer` by default prepends BOS to texts and folds the bias of v into the
        output, which `load_model` does not.

        Raises:
            UnsupportedModelError: If `model` has no TransformerLens hook points, or an attention
                layer's queries, keys and values cannot all be read.
        """
        if not all(
            hasattr(model, attribute) for attribute in ("hook_dict", "hooks", "blocks", "cfg")
        ):
            raise UnsupportedModelError(
                "model must be a TransformerBridge or a HookedTransformer, got "
                f"{type(model).__name__}; load_model takes names, folders and GGUF files"
            )
        revive_rotary_hooks(model)
        engine = HooksEngine(model)
        hf_model = getattr(model, "original_model", model)
        geometry = measured_geometry(
            engine, hf_model, training_context(getattr(hf_model, "config", model.cfg))
        )
        if not geometry.rotates and candidate_rotations(hf_model):
            raise UnsupportedModelError(
                "a model with rotary position embeddings must fire hook_rot_q and hook_rot_k, got "
                f"a {type(hf_model).__name__} whose rotated queries and keys this TransformerLens "
                "model does not show; use load_model, which reads the plain transformers model"
            )
        return cls(
            name=name or str(getattr(model.cfg, "model_name", type(model).__name__)),
            engine=engine,
            geometry=geometry,
            tokenizer=getattr(model, "tokenizer", None),
            make_bridge=lambda: model,
            weights_note=None,
            is_causal=getattr(model.cfg, "attention_dir", "causal") == "causal",
        )

    @classmethod
    def from_transformers(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        folder: Path,
        revision: str | None = None,
        weights_note: str | None = None,
        is_causal: bool = True,
        has_head: bool = True,
    ) -> "HookedModel":
        """Hold a transformers model, with its files in `folder`, both plain and as a bridge.

        `model` is taken over: the bridge replaces its modules when it is built.

        Raises:
            UnsupportedModelError: If attention inputs cannot be read or the rotation is of an
                unknown kind.
        """
        from mi_massive.models.attention import tapped_copy

        plain = PlainEngine(tapped_copy(model))
        return cls(
            name=name,
            engine=plain,
            geometry=measured_geometry(plain, plain.model, training_context(model.config)),
            tokenizer=tokenizer,
            make_bridge=lambda: boot_bridge(model, tokenizer, folder),
            revision=revision,
            weights_note=weights_note,
            is_causal=is_causal,
            has_head=has_head,
        )

    @cached_property
    def bridge(self) -> Any:
        """The TransformerLens model in compatibility mode, weights unprocessed; built when used."""
        bridge = self._make_bridge()
        revive_rotary_hooks(bridge)
        return bridge

    @property
    def plain(self) -> PreTrainedModel:
        """The plain transformers model over the same weights.

        Raises:
            UnsupportedModelError: If the model was wrapped, so that only the TransformerLens model
                exists.
        """
        if not isinstance(self._engine, PlainEngine):
            raise UnsupportedModelError(
                "a plain transformers model must exist, got a wrapped TransformerLens model; "
                "use load_model"
            )
        return self._engine.model

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Hook points of q, k, v and rotated q, k that fire: `blocks.9.attn.hook_rot_q`."""
        listed = attention_site_names(self.bridge)
        fired = fired_sites(
            self.bridge, listed, lambda: self.bridge(self._probe_ids(), return_type=None)
        )
        return tuple(name for name in listed if name in fired)

    @property
    def kernel(self) -> str:
        """Attention implementation that captures run, such as `sdpa`."""
        return self._engine.kernel

    @property
    def n_vocabulary(self) -> int:
        """Token ids that the model knows: 0 .. n_vocabulary - 1."""
        return self._engine.n_vocabulary

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(iter(self._parameters())).dtype

    def attention_inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        visit: Visitor,
        *,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Run prompts once and show each layer's query, key and value entering the attention.

        Queries and keys are normed and rotated where the model does so; tensors are `[batch, head,
        pos, d_head]`. What `visit` returns replaces them (loaded models only); returning None
        observes.

        Args:
            input_ids: Token ids, padded on the right.
            visit: Called once a layer, in model order.
            attention_mask: 1 at real tokens. A causal model with padding on the right needs none.
        """
        self._engine.attention_inputs(input_ids, attention_mask, visit)

    def run_with_hooks(
        self,
        input_ids: Int[Tensor, "batch pos"],
        *,
        fwd_hooks: Sequence[tuple[str, HookFunction]],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Run the TransformerLens model with hooks and return its logits.

        Args:
            input_ids: Token ids.
            fwd_hooks: `(hook point, function)`; the function gets the activation `[batch, pos,
                head, d_head]` and the hook point, and returns a replacement or None.
            attention_mask: 1 at real tokens.

        Raises:
            ValueError: If a name is an attention site of this package that does not fire on this
                model.
            RuntimeError: If a hook did not fire.
            UnsupportedModelError: If the checkpoint has no language-modelling head.
        """
        if not self.has_head:
            raise UnsupportedModelError(
                f"the checkpoint of {self.name} must have a language-modelling head to give "
                "logits, got none; "
                "use attention_inputs or capture_norms"
            )
        listed = set(attention_site_names(self.bridge))
        for name, _ in fwd_hooks:
            if name not in self.bridge.hook_dict or (name in listed and name not in self.sites):
                raise ValueError(
                    f"fwd_hooks must name hook points that fire on {self.name}, got {name!r}; "
                    "see `model.sites`"
                )
        fired = dict.fromkeys((name for name, _ in fwd_hooks), 0)

        def counted(name: str, function: HookFunction) -> HookFunction:
            def call(activation: Tensor, hook: Any) -> Any:
                fired[name] += 1
                return function(activation, hook=hook)

            return call

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with torch.no_grad():
            logits = self.bridge.run_with_hooks(
                input_ids,
                return_type="logits",
                attention_mask=mask,
                fwd_hooks=[(name, counted(name, function)) for name, function in fwd_hooks],
            )
        silent = [name for name, count in fired.items() if count == 0]
        if silent:
            raise RuntimeError(f"every hook must fire, got none at {', '.join(silent)}")
        return logits

    def _probe_ids(self) -> Int[Tensor, "batch pos"]:
        return torch.ones(1, 4, dtype=torch.long, device=self.device)

    def _parameters(self) -> Any:
        return cast(Any, self._engine).model.parameters()
