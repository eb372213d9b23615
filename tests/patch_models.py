"""A hand-built model whose answer travels through one known head and rotary pair, and its pairs."""

from pathlib import Path

import torch
import transformers
from tiny_models import save_model, token_ids

from mi_massive.models import HookedModel
from mi_massive.prompt_pairs import PromptPair

# Tokens of the planted circuit.
START, ON_A, OFF_A, ON_B, OFF_B, FILLER, ASK, A, B = 0, 1, 2, 3, 4, 5, 6, 10, 11
UNRELATED = (12, 13, 14, 15, 16, 17)

BLOCK, HEAD, KV_HEAD, PAIR = 1, 2, 1, 7
"""Where the circuit is: the slowest pair, whose rotation is negligible over a short prompt."""

D_MODEL, D_HEAD, N_HEADS, N_KV_HEADS = 64, 16, 4, 2


def save_planted(folder: Path) -> Path:
    """Save a Llama of 3 layers in which only head 2 of layer 1 does anything.

    Its query at `ASK` looks for a direction in rotary pair 7 that keys of `ON_A` and `ON_B` have
    and keys of `OFF_A` and `OFF_B` do not; its values tell A from B, whichever is on.
    """
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=D_MODEL,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        tie_word_embeddings=False,
        bos_token_id=62,
        eos_token_id=62,
        pad_token_id=63,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, :].copy_(torch.eye(64))  # a token is a direction
        generator = torch.Generator().manual_seed(0)
        for layer in model.model.layers:  # heads that look around and say nothing
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight.normal_(std=0.3, generator=generator)
        attention = model.model.layers[BLOCK].self_attn
        attention.q_proj.weight[HEAD * D_HEAD : (HEAD + 1) * D_HEAD] = 0.0
        attention.k_proj.weight[KV_HEAD * D_HEAD :] = 0.0
        scale = 0.4
        dim, kv_dim = HEAD * D_HEAD + PAIR, KV_HEAD * D_HEAD + PAIR  # half-split: first member
        attention.q_proj.weight[dim, ASK] = scale * 8
        for token in (ON_A, ON_B):
            attention.k_proj.weight[kv_dim, token] = scale
        for token, sign in ((ON_A, 1.0), (OFF_A, 1.0), (ON_B, -1.0), (OFF_B, -1.0)):
            attention.v_proj.weight[KV_HEAD * D_HEAD, token] = sign
        attention.o_proj.weight[A, HEAD * D_HEAD] = 1.0
        model.lm_head.weight[A, A] = 1.0
        model.lm_head.weight[B, A] = -1.0
    return save_model(model, folder)


def planted_pairs(n: int = 3) -> list[PromptPair]:
    """A is on in the clean prompts and B in the corrupted ones; lengths differ between pairs."""
    pairs: list[PromptPair] = []
    for number in range(n):
        filler = (FILLER,) * (1 + number % 2)
        clean = (START, ON_A, *filler, OFF_B, ASK)
        corrupted = (START, OFF_A, *filler, ON_B, ASK)
        last = len(clean) - 1
        pairs.append(
            PromptPair(
                id=f"planted {number}",
                clean=clean,
                corrupted=corrupted,
                answer=A,
                other=B,
                groups={"first": (0,), "object": (1, last - 1), "last": (last,)},
                placebo=UNRELATED[: len(clean)],
            )
        )
    return pairs


def random_pairs(
    model: HookedModel, n: int = 3, n_pos: int = 11, *, placebo: bool = True
) -> list[PromptPair]:
    """Pairs of random tokens that differ at one, with the answers that this moves the most."""
    clean, other = token_ids(n, n_pos), token_ids(n, n_pos, seed=7)
    corrupted = clean.clone()
    corrupted[:, 4] = (clean[:, 4] + 7) % 60
    with torch.no_grad():
        moved = model.bridge(clean)[:, -1] - model.bridge(corrupted)[:, -1]
    return [
        PromptPair(
            id=f"random {row}",
            clean=tuple(clean[row].tolist()),
            corrupted=tuple(corrupted[row].tolist()),
            answer=int(moved[row].argmax()),
            other=int(moved[row].argmin()),
            groups={"first": (0,), "object": (4,), "last": (n_pos - 1,)},
            placebo=tuple(other[row].tolist()) if placebo else None,
        )
        for row in range(n)
    ]
