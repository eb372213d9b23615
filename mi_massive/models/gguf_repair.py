"""What transformers loses when it reads a GGUF file, put back or refused.

Measured in transformers 5.17: the end token of a Llama vocabulary becomes the begin token, the pad
token is lost, every byte-level vocabulary is split like GPT-2's, and every scaling of the rotary
frequencies is dropped without a word. The last one would falsify each number this package reports.
"""

from typing import Any

import torch
from tokenizers import Regex, decoders, pre_tokenizers
from torch import nn

from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.gguf_header import GgufHeader

_DEFAULT_BASE = 10_000.0
_SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_GPT2_SPLIT = frozenset({"gpt-2", "mpt", "olmo"})
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
_LLAMA3 = frozenset({"llama-bpe", "llama-v3", "llama3"})
_QWEN2 = frozenset({"qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan"})
# The rules and their names are llama.cpp's (src/llama-vocab.cpp).
_LONG_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def repair_tokenizer(tokenizer: Any, header: GgufHeader) -> None:
    """Give `tokenizer` the special tokens and the splitting rule that the file names.

    Args:
        tokenizer: As `AutoTokenizer.from_pretrained(gguf_file=...)` returned it; changed in place.
        header: Of the same file.

    Raises:
        UnsupportedModelError: If the splitting rule is not known here: the text would be cut into
            other tokens than the model was trained on.
    """
    for role, key in _SPECIAL.items():
        index = header.values.get(key)
        if index is not None:
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(int(index)))
    # Meant for word pieces; on bytes it would only make transformers warn at each load.
    tokenizer.clean_up_tokenization_spaces = False
    if header.values.get("tokenizer.ggml.model") == "gpt2":
        _repair_splitting(tokenizer, header)
    add_bos = header.values.get("tokenizer.ggml.add_bos_token")
    if add_bos is not None:
        tokenizer.add_bos_token = bool(add_bos)


def _repair_splitting(tokenizer: Any, header: GgufHeader) -> None:
    """Set how text is cut before the merges, from `tokenizer.ggml.pre`."""
    rule = header.values.get("tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule in _SINGLE_DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif rule in _LLAMA3:
        steps.append(_long_split("{1,3}"))
        backend.model.ignore_merges = True
    elif rule in _QWEN2:
        steps.append(_long_split(""))
    elif rule not in _GPT2_SPLIT:
        known = ", ".join(sorted(_GPT2_SPLIT | _SINGLE_DIGITS | _LLAMA3 | _QWEN2))
        raise UnsupportedModelError(
            f"the vocabulary of {header.path} must use a known splitting rule ({known}), "
            f"got {rule!r}; load the model from its Hugging Face folder instead"
        )
    has_split = rule in _LLAMA3 | _QWEN2
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not has_split)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, to_bytes])
    backend.decoder = decoders.ByteLevel()


def _long_split(digits: str) -> pre_tokenizers.PreTokenizer:
    """Llama 3's rule; `digits` is how many of them stay together."""
    return pre_tokenizers.Split(Regex(_LONG_SPLIT.replace("DIGITS", digits)), behavior="isolated")


def repair_rope(config: Any, header: GgufHeader) -> None:
    """Write the file's scaling of the rotary frequencies into `config`.

    A `rope_freqs` tensor (Llama 3.1 and later) divides each pair's frequency; transformers has the
    same rule under the name longrope, with equal factors for short and long inputs.

    Raises:
        UnsupportedModelError: If the scaling is of a kind that cannot be written exactly.
    """
    scaling = header.own("rope.scaling.type", "none")
    factors = header.rope_tensors.get("rope_freqs.weight")
    # One flat table, or one for each layer type (Gemma 3), which GGUF's single scaling cannot name.
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    flat = rope.get("rope_type") == "default"
    if scaling == "none" and not header.rope_tensors:
        return
    if flat and scaling == "linear" and not header.rope_tensors:
        new = {"rope_type": "linear", "factor": float(header.own("rope.scaling.factor"))}
    elif flat and scaling == "none" and factors is not None and len(header.rope_tensors) == 1:
        new = {
            "rope_type": "longrope",
            "short_factor": list(factors),
            "long_factor": list(factors),
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": int(config.max_position_embeddings),
        }
    else:
        tensors = ", ".join(header.rope_tensors) or "no factors"
        raise UnsupportedModelError(
            f"rotary scaling of a GGUF file must be none, linear or a rope_freqs tensor, got "
            f"{scaling!r} with {tensors} in {header.path}; load the model from its Hugging Face "
            "folder instead"
        )
    config.rope_parameters = {**rope, **new}


def require_faithful(model: nn.Module, missing: list[str], header: GgufHeader) -> None:
    """Raise unless every weight of the file is in `model` and the rotation is the file's.

    Args:
        model: As converted.
        missing: Parameters that the loader did not find in the file.
        header: Of the same file.

    Raises:
        UnsupportedModelError: If weights were invented or left out, or a frequency differs.
    """
    n_taken = sum(parameter.numel() for parameter in model.parameters())
    if missing or n_taken != header.n_weights:
        first = f", {missing[0]} not in the file" if missing else ""
        raise UnsupportedModelError(
            f"every weight of {header.path} must have a place in transformers' "
            f"{type(model).__name__}, got {header.n_weights} in the file and {n_taken} in the model"
            f"{first}; load the model from its Hugging Face folder instead"
        )
    found = [b for name, b in model.named_buffers() if name.rpartition(".")[2].endswith("inv_freq")]
    width = header.own("rope.dimension_count")
    if not found or width is None:
        return
    base = float(header.own("rope.freq_base", _DEFAULT_BASE))
    expected = base ** -(torch.arange(0, int(width), 2, dtype=torch.float64) / int(width))
    expected /= float(header.own("rope.scaling.factor", 1.0)) if _is_linear(header) else 1.0
    if factors := header.rope_tensors.get("rope_freqs.weight"):
        expected /= torch.tensor(factors, dtype=torch.float64)
    if not any(
        b.shape == expected.shape and torch.allclose(b.double().cpu(), expected, rtol=1e-5, atol=0)
        for b in found
    ):
        raise UnsupportedModelError(
            f"the rotation must be the one {header.path} describes (base {base:g}, {width} rotated "
            f"dimensions), got frequencies of {2 * len(found[0])} dimensions that differ; load the "
            "model from its Hugging Face folder instead"
        )


def _is_linear(header: GgufHeader) -> bool:
    return header.own("rope.scaling.type") == "linear"
