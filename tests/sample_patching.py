"""Results of patches with planted cells, undefined ones among them."""

import math

import torch
from builders import build_provenance

from mi_massive.patch_results import (
    AttributionResult,
    PatchedHead,
    PatchedPatternsResult,
    PatchingConfig,
    PatchingResult,
)
from mi_massive.stats import Estimate

MODEL = "smollm2-135m-instruct"
N = 5


def patching_result(granularity: str = "head", *, model: str = MODEL) -> PatchingResult:
    """Three layers; one significant cell, one with as large a placebo, one undefined."""
    axes = {
        "layer": ("layer", "group"),
        "head": ("layer", "head", "group"),
        "massive": ("layer", "selection", "group"),
        "pair": ("layer", "head", "pair", "group"),
    }[granularity]
    entries = {
        "head": (0, 1, 2, 3),
        "pair": (0, 1),
        "selection": ("massive", "norm_matched", "same_band", "random"),
        "group": ("last", "object"),
    }
    labels = {"layer": (0, 1, 5), **{axis: entries[axis] for axis in axes[1:]}}
    shape = [len(labels[axis]) for axis in axes]
    recovered, placebo = torch.zeros(shape), torch.zeros(shape)
    p_values, beyond = torch.ones(shape), torch.ones(shape)
    flat = recovered.view(-1)
    flat[0], flat[2], flat[4] = 0.75, -0.5, math.nan
    placebo.view(-1)[2] = -0.5
    p_values.view(-1)[[0, 2]] = 0.001
    beyond.view(-1)[0] = 0.001
    return PatchingResult(
        site="rot_q",
        granularity=granularity,
        direction="denoising",
        axes=axes,
        labels=labels,
        recovered=recovered,
        low=recovered - 0.1,
        high=recovered + 0.1,
        p_values=p_values,
        placebo=placebo,
        beyond_placebo=beyond,
        effects=recovered[..., None].expand(*shape, N).clone(),
        differences=torch.ones(N),
        n_left_out=2,
        config=PatchingConfig(),
        provenance=build_provenance(model=model),
    )


def attribution_result(*, model: str = MODEL) -> AttributionResult:
    """Two layers, two heads, two pairs; three cells patched."""
    estimated = torch.arange(8, dtype=torch.float32).view(2, 2, 2, 1) / 10
    exact = torch.tensor([0.6, 0.5, math.nan])
    correlation = Estimate(effect=0.9, low=0.5, high=0.99, n=3, n_of="cells", test="planted")
    return AttributionResult(
        site="rot_q",
        direction="denoising",
        axes=("layer", "head", "pair", "group"),
        labels={"layer": (0, 5), "head": (0, 1), "pair": (0, 1), "group": ("last",)},
        estimated=estimated,
        sample=((0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 1, 0)),
        sample_exact=exact,
        top=((1, 1, 1, 0), (1, 1, 0, 0), (1, 0, 1, 0)),
        top_exact=exact,
        top_low=exact - 0.1,
        top_high=exact + 0.1,
        top_placebo=torch.zeros(3),
        pearson=correlation,
        spearman=correlation,
        pearson_top=correlation,
        n_examples=N,
        n_left_out=0,
        config=PatchingConfig(),
        provenance=build_provenance(model=model),
    )


def patched_patterns(
    *, model: str = MODEL, tokens: tuple[str, ...] = ("The", " king", " of"), n_heads: int = 2
) -> PatchedPatternsResult:
    """Every head looks at itself, at the first token once patched."""
    n = len(tokens)
    own, first = torch.eye(n), torch.zeros(n, n)
    first[:, 0] = 1.0
    return PatchedPatternsResult(
        site="rot_q",
        clean_tokens=tokens,
        corrupted_tokens=tokens,
        heads=tuple(
            PatchedHead(block=4, head=head, clean=first, corrupted=own, patched=first)
            for head in range(n_heads)
        ),
        provenance=build_provenance(model=model),
    )
