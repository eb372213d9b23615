"""Tiny models of known families with random weights: what can be checked where no weights are.

A shape has the architecture of its family (projections, grouping of key-value heads, rotation and
its scaling, kinds of layers) from a real configuration class of transformers, in some ten thousand
weights. It shows that a family is read correctly: which layers rotate, in which pairs, with how
many heads. Its concentration says nothing about the family, whose weights were trained.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neo import GPTNeoConfig
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.jamba import JambaConfig
from transformers.models.llama import LlamaConfig
from transformers.models.llava import LlavaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.opt import OPTConfig
from transformers.models.phi3 import Phi3Config
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen2_vl import Qwen2VLConfig

from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.load import WITH_IMAGES

RANDOM_WEIGHTS: Final = "random weights of a tiny configuration"
"""Weights note of every shape; results of such a model are a check of shapes alone."""

N_SPECIAL: Final = 2
"""Token ids from this one on are words; those below pad, open and close."""

_CONTEXT: Final = 128
_IDS: Final[dict[str, Any]] = {
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_SIZES: Final[dict[str, Any]] = _IDS | {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": _CONTEXT,
}
_GROUPED: Final[dict[str, Any]] = _SIZES | {"num_key_value_heads": 2}


def _rope(theta: float, kind: str = "default", **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


def _llama_3() -> Any:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return LlamaConfig(
        **_GROUPED, **_rope(5e5, "llama3", original_max_position_embeddings=32, **scaling)
    )


def _gemma_2() -> Any:
    return Gemma2Config(
        **_GROUPED, **_rope(1e4), head_dim=32, sliding_window=8, attn_logit_softcapping=50.0
    )


def _gpt_neo() -> Any:
    sizes = {key: _SIZES[key] for key in ("hidden_size", "max_position_embeddings")}
    kinds = [[["global", "local"], 1]]
    return GPTNeoConfig(
        **_IDS, **sizes, num_layers=2, num_heads=4, attention_types=kinds, window_size=8
    )


def _opt() -> Any:
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    return OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=64)


def _jamba() -> Any:
    attention = {"attn_layer_period": 2, "attn_layer_offset": 1}
    experts = {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2}
    mamba = {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 2}
    sizes: dict[str, Any] = _GROUPED | {"num_hidden_layers": 4} | attention | experts | mamba
    return JambaConfig(**sizes, num_experts_per_tok=1)


def _qwen_2_vl() -> Any:
    text = _GROUPED | _rope(1e6)
    text["rope_parameters"]["mrope_section"] = [2, 3, 3]
    tower = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids: dict[str, Any] = {name: 60 + at for at, name in enumerate(names)}
    return Qwen2VLConfig(text_config=text, vision_config=tower, **ids)


def _llava() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    return LlavaConfig(
        text_config=_SIZES | _rope(1e4) | {"model_type": "llama"},
        vision_config=tower | layers | {"model_type": "clip_vision_model"},
        image_token_index=60,
    )


SHAPES: Final[dict[str, Callable[[], Any]]] = {
    "llama-2": lambda: LlamaConfig(**_SIZES, **_rope(1e4)),
    "llama-3": _llama_3,
    "gemma-2": _gemma_2,
    "qwen-2.5": lambda: Qwen2Config(**_GROUPED, **_rope(1e6)),
    "mistral": lambda: MistralConfig(**_GROUPED, **_rope(1e4), sliding_window=8),
    "phi-3": lambda: Phi3Config(**_SIZES, **_rope(1e4), num_key_value_heads=4),
    "gpt-neox": lambda: GPTNeoXConfig(**_SIZES, **_rope(1e4, partial_rotary_factor=0.25)),
    "gpt-neo": _gpt_neo,
    "gpt-2": lambda: GPT2Config(**_IDS, n_positions=_CONTEXT, n_embd=64, n_layer=2, n_head=4),
    "opt": _opt,
    "jamba": _jamba,
    "qwen-2-vl": _qwen_2_vl,
    "llava": _llava,
}
"""A tiny configuration of each family, made when asked for. The last two read images as well; their
language towers run, on token ids of text."""


def build_shape(family: str, *, seed: int = 0) -> HookedModel:
    """Hold a tiny model of a family with random weights, on the CPU in float32.

    It has no tokenizer, so it is fed token ids, and no hook points of TransformerLens.

    Args:
        family: One of `SHAPES`.
        seed: Of the weights.

    Raises:
        ValueError: If the family is not among `SHAPES`.
        UnsupportedModelError: If this transformers builds it in a way that cannot be read.
    """
    if family not in SHAPES:
        raise ValueError(f"family must be one of {', '.join(SHAPES)}, got {family!r}")
    config = SHAPES[family]()
    # transformers' SDPA ignores the soft cap on attention logits.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    with _building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = AutoModelForImageTextToText if config.model_type in WITH_IMAGES else None
        model = cast(Any, kind or AutoModelForCausalLM).from_config(
            config, **({"attn_implementation": "eager"} if capped else {})
        )
    name = f"{family} (tiny)"
    held = HookedModel.from_transformers(
        model.eval(), None, name=name, folder=Path(name), weights_note=RANDOM_WEIGHTS
    )

    def refuse() -> Any:
        raise UnsupportedModelError(
            f"{name} must be a model with files to have hook points of TransformerLens, got a "
            "shape; use capture_norms, attention_inputs or model.plain"
        )

    held._make_bridge = refuse  # pyright: ignore[reportPrivateUsage]
    return held


_building: Final = threading.Lock()  # transformers draws initial weights from global state
