"""The small patching experiment of a report: a few patches, one map by gradients, a few patterns.

Answers roughly which heads and bands bring the context's answer to the last position, whether the
massive pairs carry it, and where the heads that matter look. `experiments/patching.py` is the large
one.

Does not show: small effects. With so few pairs a cell must be large to be told from its placebo.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mi_massive._patch_setup import patched_layers
from mi_massive.attribution import attribute, require_gradients
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.patch_results import (
    AttributionResult,
    PatchedPatternsResult,
    PatchingConfig,
    PatchingResult,
)
from mi_massive.patched_patterns import capture_patched_patterns
from mi_massive.patching import patch
from mi_massive.prompt_pairs import PromptPair

N_HEADS: Final = 4
"""Heads whose attention is shown."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchBattery:
    """What a report shows of patching."""

    patches: tuple[PatchingResult, ...] = field(repr=False)
    """Heads by their output; of rotary models also bands of queries, and massive pairs."""
    attributions: tuple[AttributionResult, ...] = field(repr=False)
    """Pairs of queries; none without rotary embeddings or without gradients."""
    patterns: PatchedPatternsResult | None = field(repr=False)
    """Attention on the first pair; None without rotary embeddings."""


def run_patch_battery(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    *,
    batch_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> PatchBattery:
    """Patch heads, bands and massive pairs, estimate single pairs, and record patterns.

    Args:
        model: From `load_model`, a decoder with a tokenizer.
        pairs: Aligned prompts, such as `conflict_pairs` gives.
        batch_size: Rows of a forward pass.
        on_progress: Called with the number of steps finished; there are `n_steps(model)`.

    Raises:
        ValueError: As `patch`.
        UnsupportedModelError: As `patch`.
    """
    config = PatchingConfig(batch_size=batch_size)
    run = partial(patch, model, pairs, on_progress=on_progress)
    heads = run(site="z", granularity="head", groups=("last",), config=config)
    if not _all_rotate(model):
        return PatchBattery(patches=(heads,), attributions=(), patterns=None)
    bands = run(site="rot_q", granularity="band", groups=("last",), config=config)
    joint = PatchingConfig(batch_size=batch_size, joint=True)
    massive = [
        run(
            site=site,
            granularity="massive",
            direction="noising",
            groups=("first", "later"),
            config=joint,
        )
        for site in ("rot_q", "rot_k")
    ]
    attributions = _attributions(model, pairs, config)
    patterns = capture_patched_patterns(model, pairs[0], heads=heads_that_matter(heads))
    if on_progress is not None:
        on_progress(1)
    return PatchBattery(
        patches=(heads, bands, *massive), attributions=attributions, patterns=patterns
    )


def heads_that_matter(result: PatchingResult, n: int = N_HEADS) -> list[tuple[int, int]]:
    """Block and head of the largest significant cells, then of the largest of the others."""
    cells = result.largest(result.recovered.numel())
    chosen = sorted(cells, key=lambda cell: not cell["significant"])[:n]
    return [(int(cell["layer"]), int(cell["head"])) for cell in chosen]


def n_steps(model: HookedModel) -> int:
    """Steps of a battery: layers of each patch, then estimates and patterns together."""
    heads = len(patched_layers(model, site="z"))
    if not _all_rotate(model):
        return heads
    return heads + len(patched_layers(model, site="rot_q")) + 2 + 1


def _attributions(
    model: HookedModel, pairs: Sequence[PromptPair], config: PatchingConfig
) -> tuple[AttributionResult, ...]:
    try:
        require_gradients(model)
    except UnsupportedModelError:
        return ()
    return (attribute(model, pairs, groups=("last",), config=config),)


def _all_rotate(model: HookedModel) -> bool:
    return all(layer.rotary for layer in model.geometry.layers)
