"""Massive values in many models, one row each: with rotary position embeddings and without (C3).

Answers how concentrated queries, keys and values are in each model of a list, where its massive
dimensions lie on the frequencies of RoPE, and whether the halves of its heads agree, all on the
same texts. Costs a load and a capture of each model, one after the other. Does not show a cause:
models of different families differ in more than their position encoding; see twins.

A model that cannot be had keeps its row, with the reason. A row of a tiny model with random weights
says that its family is read correctly, and nothing about the family's own numbers.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from mi_massive._verdicts import UNDEFINED
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.bands import BandsConfig, BandsResult, bands
from mi_massive.capture import capture_norms
from mi_massive.concentration import ConcentrationConfig, ConcentrationResult, concentration
from mi_massive.family_rows import (
    FamiliesResult,
    FamilyHeads,
    FamilyProjection,
    FamilyRow,
)
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.load import SPREAD, load_model, require_device
from mi_massive.models.shapes import N_SPECIAL, RANDOM_WEIGHTS
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.records import Provenance, command_line, package_versions
from mi_massive.rope import ModelGeometry
from mi_massive.symmetry import SymmetryConfig, SymmetryResult, symmetry

SEEDS: Final[dict[str, int]] = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "google/gemma-2-9b": 9_241_705_984,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "EleutherAI/gpt-neo-1.3B": 1_315_575_808,
    "openai-community/gpt2": 124_439_808,
    "facebook/opt-1.3b": 1_315_758_080,
    "ai21labs/Jamba-v0.1": 51_570_323_328,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
}
"""Models of the hub that the paper or its critics compare, with their numbers of weights."""

_SHAPE_TOKENS: Final = 64


def measure_families(
    models: Sequence[str | HookedModel],
    prompts: Sequence[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    max_length: int | None = None,
    config: ConcentrationConfig | None = None,
    on_row: Callable[[FamilyRow], None] | None = None,
) -> FamiliesResult:
    """Measure concentration, bands and symmetry of each model on the same texts, a row each.

    Models given by name are loaded one after the other, and let go. One that cannot be loaded or
    measured becomes a row `not available` with the reason. A shape (`build_shape`), which has no
    tokenizer, reads random token ids, as many prompts as there are texts.

    Args:
        models: Names as `load_model` takes them, or models that you hold.
        prompts: Texts. Those longer than a model's context are cut to it.
        device: Where named models run, `auto` spread over all GPUs; held ones stay where they are.
        dtype: Of the weights of named models.
        batch_size: Prompts of a forward pass.
        max_length: Truncate prompts to this many tokens.
        config: Threshold, level, resamples and seed.
        on_row: Called with each row when it is finished.

    Raises:
        ValueError: If there are no models, two have the same name, there are no prompts, or there
            is no such device.
    """
    names = [model if isinstance(model, str) else model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models must be at least one and differ in their names, got {names}")
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
    if device != SPREAD:
        require_device(device)
    config = config or ConcentrationConfig()
    rows: list[FamilyRow] = []
    for model, name in zip(models, names, strict=True):
        try:
            held = (
                load_model(model, device=device, dtype=dtype) if isinstance(model, str) else model
            )
            row = _measure(held, prompts, batch_size, max_length, config)
        except (OSError, ValueError, torch.OutOfMemoryError) as error:  # UnsupportedModelError too
            row = _unavailable(name, error, dtype)
        held = None  # before the next one needs the memory
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return FamiliesResult(
        rows=tuple(rows),
        config=config,
        provenance=_provenance(names, prompts, device, dtype, batch_size, max_length),
    )


def _measure(
    model: HookedModel,
    texts: Sequence[str],
    batch_size: int,
    max_length: int | None,
    config: ConcentrationConfig,
) -> FamilyRow:
    is_shape = model.weights_note == RANDOM_WEIGHTS
    prompts = _shape_prompts(model, len(texts)) if is_shape else _fitting(model, texts, max_length)
    norms = capture_norms(model, prompts, batch_size=batch_size)
    tests: dict[str, Any] = {
        name: getattr(config, name) for name in ("ratio", "level", "n_resamples", "seed")
    }
    concentrated = concentration(norms, config=config)
    banded = symmetric = None
    if model.geometry.rotates:
        # One band: what a row holds is counted by pair, and some heads have very few.
        banded = bands(norms, config=BandsConfig(n_bands=1, **tests))
        symmetric = symmetry(norms, config=SymmetryConfig(**tests))
    q, k, v = (_projection(p, concentrated, banded, symmetric) for p in PROJECTIONS)
    return FamilyRow(
        model=model.name,
        status="shape check: random weights" if is_shape else "measured",
        memory=_memory(model),
        heads=_heads(model.geometry),
        q=q,
        k=k,
        v=v,
        contrast_q=concentrated.contrast_q,
        contrast_k=concentrated.contrast_k,
        partial_cycle=banded.partial_cycle if banded else UNDEFINED,
        provenance=norms.provenance,
    )


def _fitting(model: HookedModel, texts: Sequence[str], max_length: int | None) -> TokenizedPrompts:
    limits = [n for n in (max_length, model.geometry.training_context) if n is not None]
    return tokenize_prompts(model.tokenizer, texts, max_length=min(limits, default=None))


def _shape_prompts(model: HookedModel, n_prompts: int) -> TokenizedPrompts:
    generator = torch.Generator().manual_seed(0)
    wanted = (n_prompts, _SHAPE_TOKENS)
    drawn = torch.randint(N_SPECIAL, model.n_vocabulary, wanted, generator=generator)
    return tokenize_prompts(None, [[int(token) for token in row] for row in drawn])


def _projection(
    projection: Projection,
    concentrated: ConcentrationResult,
    banded: BandsResult | None,
    symmetric: SymmetryResult | None,
) -> FamilyProjection:
    part = concentrated.of(projection)
    return FamilyProjection(
        massive_per_head=float(part.massive.sum(dim=-1).float().mean()),
        max_over_mean=float(part.max_over_mean.double().log().nanmean().exp()),
        slow_half=getattr(banded, projection).massive_low_half_share if banded else UNDEFINED,
        halves=getattr(symmetric, projection).layer_agreement if symmetric else UNDEFINED,
    )


def _heads(geometry: ModelGeometry) -> FamilyHeads:
    first = geometry.layers[0]
    rotaries = [layer.rotary for layer in geometry.layers if layer.rotary is not None]
    return FamilyHeads(
        n_layers=len(geometry.layers),
        n_rotating_layers=len(rotaries),
        n_heads=first.n_heads,
        n_key_value_heads=first.n_key_value_heads,
        d_head=first.d_head,
        rotary_dim=2 * geometry.n_pairs,
        layout=rotaries[0].layout if rotaries else None,
        n_position_axes=max((rotary.n_position_axes for rotary in rotaries), default=0),
    )


def _memory(model: HookedModel) -> float:
    """GB of the weights; of a wrapped model, whose weights are another library's, unknown."""
    try:
        weights = list(model.plain.parameters())
    except UnsupportedModelError:
        return math.nan
    return sum(weight.numel() * weight.element_size() for weight in weights) / 1e9


def _unavailable(name: str, error: Exception, dtype: torch.dtype) -> FamilyRow:
    reason = " ".join(str(error).split()) or type(error).__name__
    return FamilyRow(
        model=name,
        status="not available",
        reason=reason,
        memory=SEEDS.get(name, math.nan) * dtype.itemsize / 1e9,
    )


def _provenance(
    names: Sequence[str],
    prompts: Sequence[str],
    device: str,
    dtype: torch.dtype,
    batch_size: int,
    max_length: int | None,
) -> Provenance:
    """Of the table. Token ids differ between the models: the digest is that of the texts."""
    return Provenance(
        model=f"{len(names)} models",
        revision=None,
        weights_note=None,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        attention_kernel="each model's own",
        batch_size=batch_size,
        n_prompts=len(prompts),
        prompts_digest=hashlib.sha256("\0".join(prompts).encode()).hexdigest(),
        seed=None,
        settings={"max_length": max_length},
        versions=package_versions(),
        command=command_line(),
    )
