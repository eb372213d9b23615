"""Small decoders that differ in their position encoding alone.

Every twin is a Llama of transformers or the member of its family that has the encoding: Qwen3 for
QK-norm, Phi-3 for a rotated part of the head, GLM for interleaved pairs, the `proportional` kind of
rotation for frequencies that stand still. Only learned positions and ALiBi have no such member;
they are Llamas without rotation, with one layer or the attention replaced by the smallest subclass
that adds them. TransformerLens' `boot_native` builds two of the encodings and shows no rotated
queries.

Weights that two twins share by shape are equal at the start, for a seed.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.glm import GlmConfig, GlmForCausalLM
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer
from transformers.models.phi3 import Phi3Config, Phi3ForCausalLM
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.twin_arms import TWIN_ARMS, TwinArm, TwinShape


def build_twin(arm: TwinArm, shape: TwinShape, *, seed: int) -> PreTrainedModel:
    """A twin at the start of its training, on the CPU in float32.

    Weights whose shapes agree are equal in all arms of a seed; those that an arm has alone
    (positions, norms of queries and keys) are drawn after them.
    """
    with _building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        common = LlamaForCausalLM(_config(LlamaConfig, TWIN_ARMS["rope"], shape))
        model = _make(arm, shape)
        weights = _renamed(common.state_dict(), model)
        loaded = cast(Any, model).load_state_dict(weights, strict=False)
    if loaded.unexpected_keys:
        raise UnsupportedModelError(
            f"a twin with {arm.encoding} must hold the weights of a Llama, got none for "
            f"{', '.join(loaded.unexpected_keys)}; this transformers names them in another way"
        )
    missing = cast("list[str]", loaded.missing_keys)
    own = [name for name in missing if not name.endswith(_OWN_WEIGHTS)]
    if own:
        raise UnsupportedModelError(
            f"a twin with {arm.encoding} must start from the weights of the others, got weights "
            f"of its own in {', '.join(own)}"
        )
    return model


def hold_twin(model: PreTrainedModel, *, name: str, folder: Path) -> HookedModel:
    """Hold a twin for captures, interventions and forward passes, also while it trains.

    Its plain model shares the weights of `model`. Hook points of TransformerLens are there once
    `folder` holds the configuration; twins with ALiBi or learned positions have none.
    """
    held = HookedModel.from_transformers(model, None, name=name, folder=folder)
    if any(isinstance(part, _PositionedLayer | _AlibiAttention) for part in model.modules()):

        def refuse() -> Any:
            raise UnsupportedModelError(
                f"{name} must have an encoding that TransformerLens computes, got one of its own; "
                "use capture_norms, attention_inputs, disrupt or model.plain"
            )

        held._make_bridge = refuse  # pyright: ignore[reportPrivateUsage]
    return held


_building: Final = threading.Lock()  # transformers and torch draw initial weights from global state
_OWN_WEIGHTS: Final = ("position_embedding.weight", "q_norm.weight", "k_norm.weight")


def _make(arm: TwinArm, shape: TwinShape) -> PreTrainedModel:
    if arm.encoding == "qk_norm":
        return Qwen3ForCausalLM(_config(Qwen3Config, arm, shape))
    if arm.encoding == "partial":
        return Phi3ForCausalLM(_config(Phi3Config, arm, shape))
    if arm.encoding == "interleaved":
        return GlmForCausalLM(_config(GlmConfig, arm, shape))
    model = LlamaForCausalLM(_config(LlamaConfig, arm, shape))
    body = cast(Any, model).model
    if arm.encoding == "learned":
        body.layers[0] = _PositionedLayer(body.config)
    elif arm.encoding == "alibi":
        for number, layer in enumerate(body.layers):
            layer.self_attn = _AlibiAttention(body.config, number)
    return model


def _config(family: Any, arm: TwinArm, shape: TwinShape) -> Any:
    rotation: dict[str, object] = {
        "rope_type": "default",
        "rope_theta": arm.theta,
        "partial_rotary_factor": arm.share,
    }
    if arm.encoding == "p_rope" or not arm.rotates:
        share = arm.share if arm.rotates else 0.0
        rotation |= {"rope_type": "proportional", "partial_rotary_factor": share}
    return family(
        vocab_size=shape.n_vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=8 * shape.d_model // 3 // 8 * 8,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        head_dim=shape.d_head,
        max_position_embeddings=shape.context,
        rope_parameters=rotation,
        rms_norm_eps=1e-6,
        attention_bias=False,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def _renamed(weights: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """A Llama's weights under the names of `model`, which may hold several in one matrix."""
    wanted = model.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for joined, parts in _JOINED.items():
            for part in parts:
                if name.endswith(f".{part}.weight") and name.replace(part, joined) in wanted:
                    target = name.replace(part, joined)
                    renamed[target] = torch.cat([renamed.get(target, weight[:0]), weight])
                    break
            else:
                continue
            break
        else:
            renamed[name] = weight
    return renamed


_JOINED: Final = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


class _PositionedLayer(LlamaDecoderLayer):
    """The first layer of a Llama, with a learned vector for each position added to its input."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config, layer_idx=0)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.position_embedding.weight, std=config.initializer_range)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        *args: Any,
        position_ids: Int[Tensor, "_ pos"],
        **kwargs: Any,
    ) -> Any:
        placed = hidden_states + self.position_embedding(position_ids)
        return super().forward(placed, *args, position_ids=cast(Any, position_ids), **kwargs)


class _AlibiAttention(LlamaAttention):
    """A Llama's attention with a penalty on its scores that grows with the distance.

    Head h of n subtracts distance * 2 ** (-8 (h + 1) / n), as published for powers of two (Press
    et al. 2022, arXiv:2108.12409). Distances are counted in the cache, so padding on the left
    changes nothing.
    """

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        n_new = hidden_states.shape[1]
        past = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
        device, dtype = hidden_states.device, hidden_states.dtype
        keys = torch.arange(past + n_new, device=device)
        distance = keys[past:, None] - keys
        n_heads = self.config.num_attention_heads
        slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, device=device) / n_heads)
        bias = (-slopes[:, None, None] * distance).to(dtype)
        lowest = torch.finfo(dtype).min
        if attention_mask is None:
            scores = bias.masked_fill(distance < 0, lowest)[None]
        elif attention_mask.dtype == torch.bool:
            scores = bias.masked_fill(~attention_mask, lowest)
        else:
            scores = (bias + attention_mask).clamp_min(lowest)
        return super().forward(
            hidden_states, position_embeddings, scores, past_key_values, **kwargs
        )
