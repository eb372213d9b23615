"""Tiny random models of real families, and what their attention must receive.

A model is built from a real transformers configuration, its weights are random with a standard
deviation of 0.3 (so that an edit is visible in the logits), and it is saved with a tokenizer of 64
words: a test loads it like any other folder. `Family` states by hand what the package must find out
by itself: layout, frequencies, blocks, heads, and where a layer's projections come from;
`expected_inputs` computes queries, keys and values from that, by forward hooks on the untouched
transformers model and a rotation of its own. Nothing here uses the package.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 64
CONTEXT = 128
WORDS = tuple(f"t{i}" for i in range(VOCABULARY - 3))
BOS_ID, PAD_ID = VOCABULARY - 2, VOCABULARY - 1

Frequencies = Float[Tensor, "pair"]


@dataclass(frozen=True, kw_only=True)
class Projections:
    """Where a layer's queries, keys and values leave the weights of a plain transformers model."""

    path: str
    """Attention module of a block, with `{block}`."""
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Three modules, or the one that computes all three."""
    fused_by: str = "projection"
    """Of a single module: `projection` (all q, all k, all v) or `head` (q, k, v of head 0, ...)."""
    norms: tuple[str, str] | None = None
    """Modules that norm queries and keys by head; what they return is taken."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, and what is true of it."""

    name: str
    config: PreTrainedConfig = field(repr=False)
    model_class: str
    projections: Projections
    layout: str | None = None
    """Pairs of the rotation; None for a family without rotary position embeddings."""
    inv_freq: tuple[Frequencies | None, ...] = field(repr=False, default=(None, None))
    """Frequencies of each attention layer; None where the layer does not rotate."""
    factor: float = 1.0
    """Constant on rotated queries and keys (the attention factor of YaRN)."""
    blocks: tuple[int, ...] = (0, 1)
    n_key_value_heads: int = 2
    is_causal: bool = True
    has_head: bool = True

    n_heads = 4
    d_head = 16

    @property
    def rotates(self) -> bool:
        """True if a layer rotates its queries and keys."""
        return any(frequencies is not None for frequencies in self.inv_freq)

    def build(self) -> PreTrainedModel:
        """The model itself, with random weights."""
        torch.manual_seed(0)
        model = getattr(transformers, self.model_class)(copy.deepcopy(self.config))
        if getattr(self.config, "attn_logit_softcapping", None) is not None:
            model.set_attn_implementation("eager")  # the only kernel that computes the soft cap
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(std=0.3)
                elif name.endswith("bias"):
                    weight.normal_(std=0.1)
        return model.eval()

    def save(self, folder: Path) -> Path:
        """Save the model with a tokenizer, as `load_model` wants it."""
        return save_model(self.build(), folder)


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model with the tokenizer of 64 words."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words `t0` ... `t60` are the ids 0 ... 60; the unknown, first and padding token follow."""
    vocabulary = {word: number for number, word in enumerate((*WORDS, "<unk>", "<s>", "<pad>"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<pad>",
    )


def token_ids(batch: int = 2, pos: int = 12, *, seed: int = 0) -> Tensor:
    """Random words, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, len(WORDS), (batch, pos), generator=generator)


# Frequencies, written out from the papers and not read from any model.


def powers(theta: float, n_pairs: int) -> Frequencies:
    """Unscaled frequencies, `theta ** (-p / n_pairs)` for pair p."""
    return theta ** -(torch.arange(n_pairs, dtype=torch.float64) / n_pairs)


def llama3_frequencies(theta: float, n_pairs: int, *, factor: float, context: int) -> Frequencies:
    """Below 1 turn in the original context divided by `factor`, above 4 kept, a blend between."""
    scaled: list[float] = []
    for frequency in powers(theta, n_pairs).tolist():
        turns = context * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
        scaled.append(kept * frequency + (1 - kept) * frequency / factor)
    return torch.tensor(scaled, dtype=torch.float64)


def yarn_frequencies(theta: float, n_pairs: int, *, factor: float, context: int) -> Frequencies:
    """A linear ramp over the pairs between 32 turns (kept) and 1 turn (divided by `factor`)."""

    def pair_with(turns: float) -> float:
        return n_pairs * math.log(context / (turns * 2 * math.pi)) / math.log(theta)

    first, last = max(math.floor(pair_with(32)), 0), math.ceil(pair_with(1))
    scaled: list[float] = []
    for pair, frequency in enumerate(powers(theta, n_pairs).tolist()):
        ramp = min(1.0, max(0.0, (pair - first) / (last - first)))
        scaled.append((1 - ramp) * frequency + ramp * frequency / factor)
    return torch.tensor(scaled, dtype=torch.float64)


def turn(states: Tensor, inv_freq: Frequencies, layout: str, factor: float) -> Tensor:
    """Rotate [batch, head, pos, d_head] at positions 0, 1, ... by complex multiplication."""
    n, last = inv_freq.numel(), 2 * inv_freq.numel()
    rotated = states[..., :last].double()
    if layout == "half_split":
        plane = torch.complex(rotated[..., :n], rotated[..., n:])
    else:
        plane = torch.complex(rotated[..., 0::2], rotated[..., 1::2])
    angles = torch.arange(states.shape[-2], dtype=torch.float64)[:, None] * inv_freq
    plane = factor * plane * torch.polar(torch.ones_like(angles), angles)
    parts = [plane.real, plane.imag]
    joined = torch.cat(parts, -1) if layout == "half_split" else torch.stack(parts, -1).flatten(-2)
    return torch.cat([joined, states[..., last:].double()], dim=-1)


# What the attention must receive.


@contextmanager
def collected(model: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules at `paths` while the context is open."""
    outputs: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        return lambda module, args, output: outputs.__setitem__(path, output.detach())

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def expected_inputs(
    family: Family, model: PreTrainedModel, input_ids: Tensor
) -> dict[int, dict[str, Tensor]]:
    """By block: raw q and k (before norm and rotation), q and k of the attention, and v.

    Tensors are [batch, head, pos, d_head], keys and values over key-value heads.
    """
    where = family.projections
    norms = where.norms or ()
    bases = {block: where.path.format(block=block) for block in family.blocks}
    paths = [f"{base}.{name}" for base in bases.values() for name in (*where.names, *norms)]
    with collected(model, paths) as outputs:
        model(input_ids)
    inputs: dict[int, dict[str, Tensor]] = {}
    for (block, base), inv_freq in zip(bases.items(), family.inv_freq, strict=True):
        raw = _split(family, [outputs[f"{base}.{name}"] for name in where.names])
        seen = {"raw_q": raw["q"], "raw_k": raw["k"], "v": raw["v"]}
        for role, norm in zip("qk", norms or (None, None), strict=True):
            states = raw[role] if norm is None else _by_head(outputs[f"{base}.{norm}"], raw[role])
            if inv_freq is not None:
                assert family.layout is not None
                states = turn(states, inv_freq, family.layout, family.factor)
            seen[role] = states.float()
        inputs[block] = seen
    return inputs


def _split(family: Family, outputs: list[Tensor]) -> dict[str, Tensor]:
    n_heads, n_kv, d_head = family.n_heads, family.n_key_value_heads, family.d_head
    if len(outputs) == 1 and family.projections.fused_by == "head":
        by_head = outputs[0].unflatten(-1, (n_heads, 3, d_head)).transpose(1, 2)
        return dict(zip("qkv", by_head.unbind(dim=-2), strict=True))
    if len(outputs) == 1:
        outputs = list(outputs[0].split([n * d_head for n in (n_heads, n_kv, n_kv)], dim=-1))
    by_role = zip("qkv", outputs, strict=True)
    return {role: flat.unflatten(-1, (-1, d_head)).transpose(1, 2) for role, flat in by_role}


def _by_head(normed: Tensor, like: Tensor) -> Tensor:
    """A norm's output as [batch, head, pos, d_head], whichever of the two orders it came in."""
    return normed if normed.shape == like.shape else normed.transpose(1, 2)


# The families.

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS_ID,
    "eos_token_id": BOS_ID,
    "pad_token_id": PAD_ID,
}
_GQA: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_IDS: dict[str, Any] = {k: v for k, v in _SIZES.items() if k.endswith("_id") or k == "vocab_size"}
_SELF_ATTN = Projections(path="model.layers.{block}.self_attn")
_NORMED = Projections(path="model.layers.{block}.self_attn", norms=("q_norm", "k_norm"))


def rope(theta: float, rope_type: str = "default", **parameters: Any) -> dict[str, Any]:
    """Keyword arguments of a configuration that rotates."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **parameters}}


def llama(
    name: str = "llama_plain",
    inv_freq: Frequencies | None = None,
    *,
    rotation: dict[str, Any] | None = None,
    factor: float = 1.0,
    **sizes: Any,
) -> Family:
    """A Llama with 4 query heads, 2 key-value heads and 8 pairs; theta 1e4 if nothing is said."""
    config = transformers.LlamaConfig(**{**_GQA, **sizes}, **(rotation or rope(1e4)))
    inv_freq = powers(1e4, 8) if inv_freq is None else inv_freq
    return Family(
        name=name,
        config=config,
        model_class="LlamaForCausalLM",
        projections=_SELF_ATTN,
        layout="half_split",
        inv_freq=(inv_freq,) * config.num_hidden_layers,
        factor=factor,
        blocks=tuple(range(config.num_hidden_layers)),
    )


def _scaled_llamas() -> list[Family]:
    original: dict[str, Any] = {"original_max_position_embeddings": 32}
    turns = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return [
        llama(
            "llama",
            llama3_frequencies(1e4, 8, factor=8.0, context=32),
            rotation=rope(1e4, "llama3", factor=8.0, **turns, **original),
        ),
        llama("llama_linear", powers(1e4, 8) / 4, rotation=rope(1e4, "linear", factor=4.0)),
        llama("llama_dynamic", powers(1e4, 8), rotation=rope(1e4, "dynamic", factor=4.0)),
        llama(
            "llama_yarn",
            yarn_frequencies(1e4, 8, factor=4.0, context=32),
            rotation=rope(1e4, "yarn", factor=4.0, **original),
            factor=0.1 * math.log(4.0) + 1,
        ),
    ]


def _half_split_families() -> list[Family]:
    def family(name: str, config: PreTrainedConfig, model_class: str, **facts: Any) -> Family:
        defaults: dict[str, Any] = {"projections": _SELF_ATTN, "layout": "half_split"}
        return Family(name=name, config=config, model_class=model_class, **defaults | facts)

    sliding = ["sliding_attention", "full_attention", "sliding_attention"]
    gemma3_rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    t = transformers
    return [
        family(
            "mistral",
            t.MistralConfig(**_GQA, **rope(5e5), head_dim=16, sliding_window=8),
            "MistralForCausalLM",
            inv_freq=(powers(5e5, 8),) * 2,
        ),
        family(
            "qwen2",
            t.Qwen2Config(**_GQA, **rope(1e6)),
            "Qwen2ForCausalLM",
            inv_freq=(powers(1e6, 8),) * 2,
        ),
        family(
            "qwen3",
            t.Qwen3Config(**_GQA, **rope(1e6), head_dim=16),
            "Qwen3ForCausalLM",
            projections=_NORMED,
            inv_freq=(powers(1e6, 8),) * 2,
        ),
        family(
            "gemma2",
            t.Gemma2Config(
                **_GQA, **rope(1e4), head_dim=16, sliding_window=8, attn_logit_softcapping=2.0
            ),
            "Gemma2ForCausalLM",
            inv_freq=(powers(1e4, 8),) * 2,
        ),
        family(
            "gemma3",
            t.Gemma3TextConfig(
                **{**_GQA, "num_hidden_layers": 3},
                rope_parameters=gemma3_rope,
                head_dim=16,
                sliding_window=8,
                layer_types=sliding,
            ),
            "Gemma3ForCausalLM",
            projections=_NORMED,
            inv_freq=(powers(1e4, 8), powers(1e6, 8) / 8, powers(1e4, 8)),
            blocks=(0, 1, 2),
        ),
        family(
            "phi",
            t.PhiConfig(**_SIZES, **rope(1e4, partial_rotary_factor=0.5)),
            "PhiForCausalLM",
            inv_freq=(powers(1e4, 4),) * 2,
            n_key_value_heads=4,
        ),
        family(
            "phi3",
            t.Phi3Config(**_GQA, **rope(1e4)),
            "Phi3ForCausalLM",
            projections=Projections(path="model.layers.{block}.self_attn", names=("qkv_proj",)),
            inv_freq=(powers(1e4, 8),) * 2,
        ),
        family(
            "gpt_neox",
            t.GPTNeoXConfig(**_SIZES, **rope(1e4, partial_rotary_factor=0.5)),
            "GPTNeoXForCausalLM",
            projections=Projections(
                path="gpt_neox.layers.{block}.attention",
                names=("query_key_value",),
                fused_by="head",
            ),
            inv_freq=(powers(1e4, 4),) * 2,
            n_key_value_heads=4,
        ),
        family(
            "smollm3",
            t.SmolLM3Config(
                **{**_GQA, "num_hidden_layers": 3}, **rope(5e4), no_rope_layers=[1, 0, 1]
            ),
            "SmolLM3ForCausalLM",
            inv_freq=(powers(5e4, 8), None, powers(5e4, 8)),
            blocks=(0, 1, 2),
        ),
    ]


def _interleaved_families() -> list[Family]:
    t = transformers
    return [
        Family(
            name="gptj",
            config=t.GPTJConfig(
                **_IDS, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4, rotary_dim=8
            ),
            model_class="GPTJForCausalLM",
            projections=Projections(path="transformer.h.{block}.attn"),
            layout="interleaved",
            inv_freq=(powers(1e4, 4),) * 2,
            n_key_value_heads=4,
        ),
        Family(
            name="glm",
            config=t.GlmConfig(**_GQA, **rope(1e4, partial_rotary_factor=0.5), head_dim=16),
            model_class="GlmForCausalLM",
            projections=_SELF_ATTN,
            layout="interleaved",
            inv_freq=(powers(1e4, 4),) * 2,
        ),
        Family(
            name="cohere",
            config=t.CohereConfig(**_GQA, **rope(8e6), use_qk_norm=True),
            model_class="CohereForCausalLM",
            projections=_NORMED,
            layout="interleaved",
            inv_freq=(powers(8e6, 8),) * 2,
        ),
        Family(
            name="cohere2",
            config=t.Cohere2Config(
                **_GQA,
                **rope(5e4),
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
            model_class="Cohere2ForCausalLM",
            projections=_SELF_ATTN,
            layout="interleaved",
            inv_freq=(powers(5e4, 8), None),  # full attention goes without rotation
        ),
    ]


def _plain_families() -> list[Family]:
    t = transformers
    bert = Projections(
        path="bert.encoder.layer.{block}.attention.self", names=("query", "key", "value")
    )
    return [
        Family(
            name="gpt2",
            config=t.GPT2Config(**_IDS, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4),
            model_class="GPT2LMHeadModel",
            projections=Projections(path="transformer.h.{block}.attn", names=("c_attn",)),
            n_key_value_heads=4,
        ),
        Family(
            name="gpt_neo",
            config=t.GPTNeoConfig(
                **_IDS,
                max_position_embeddings=CONTEXT,
                hidden_size=64,
                num_layers=2,
                num_heads=4,
                attention_types=[[["global", "local"], 1]],
                window_size=8,
            ),
            model_class="GPTNeoForCausalLM",
            projections=Projections(path="transformer.h.{block}.attn.attention"),
            n_key_value_heads=4,
        ),
        Family(
            name="opt",
            config=t.OPTConfig(
                **_IDS,
                hidden_size=64,
                ffn_dim=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                word_embed_proj_dim=64,
            ),
            model_class="OPTForCausalLM",
            projections=Projections(path="model.decoder.layers.{block}.self_attn"),
            n_key_value_heads=4,
        ),
        Family(
            name="bert",
            config=t.BertConfig(**_SIZES),
            model_class="BertForMaskedLM",
            projections=bert,
            n_key_value_heads=4,
            is_causal=False,
        ),
        Family(
            name="bert_bare",
            config=t.BertConfig(**_SIZES),
            model_class="BertModel",
            projections=Projections(path=bert.path.removeprefix("bert."), names=bert.names),
            n_key_value_heads=4,
            is_causal=False,
            has_head=False,
        ),
        Family(
            name="jamba",
            config=t.JambaConfig(
                **{**_GQA, "num_hidden_layers": 4},
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=1,
                num_experts=2,
                num_experts_per_tok=1,
                use_mamba_kernels=False,
                mamba_d_state=4,
                mamba_dt_rank=2,
            ),
            model_class="JambaForCausalLM",
            projections=_SELF_ATTN,
            blocks=(1, 3),
        ),
    ]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *_scaled_llamas(),
        *_half_split_families(),
        *_interleaved_families(),
        *_plain_families(),
    )
}
