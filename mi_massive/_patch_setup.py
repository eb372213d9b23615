"""What `patch` and `attribute` check before they run anything, and the pairs they can use."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_not_empty
from mi_massive._patch_runs import (
    Batch,
    Job,
    differences,
    make_batches,
    patch_layers,
)
from mi_massive._patch_units import (
    Labels,
    Units,
    make_arms,
    require_granularity,
    require_site,
)
from mi_massive.axes import Site
from mi_massive.capture import provenance_of
from mi_massive.models.base import HookedModel
from mi_massive.models.resume import Resumer
from mi_massive.patch_results import Direction, PatchedLayer, PatchingConfig
from mi_massive.prompt_pairs import PromptPair
from mi_massive.prompts import TokenizedPrompts
from mi_massive.records import Provenance
from mi_massive.rope import LayerGeometry

_BUILT_IN_GROUPS = ("all", "later")


def patched_layers(
    model: HookedModel, *, site: Site, config: PatchingConfig | None = None
) -> tuple[LayerGeometry, ...]:
    """Attention layers that a patch covers; of a rotated site only those that rotate.

    Raises:
        ValueError: If `config.layers` names one that is not there, or none rotates.
    """
    config = config or PatchingConfig()
    rotated = site in ("rot_q", "rot_k")
    found = [layer for layer in model.geometry.layers if layer.rotary or not rotated]
    if not found:
        raise ValueError(
            f"site must exist in the model, got {site!r} on {model.name}, which has no rotary "
            f"position embeddings; use {site.removeprefix('rot_')!r}"
        )
    if config.layers is None:
        return tuple(found)
    blocks = [layer.block for layer in found]
    for block in config.layers:
        if block not in blocks:
            raise ValueError(
                f"layers must be among {blocks} (block indices with {site}), got {block}"
            )
    return tuple(layer for layer in found if layer.block in config.layers)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setup:
    """A patch that can be run: what is patched where, on which pairs."""

    model: HookedModel
    resumer: Resumer
    pairs: tuple[PromptPair, ...]
    """Those with a difference to recover."""
    batches: tuple[Batch, ...]
    """Their unpatched runs."""
    n_left_out: int
    clean: Float[Tensor, "example"]
    corrupted: Float[Tensor, "example"]
    """Logit differences of both prompts."""
    direction: Direction
    units: Units
    layers: tuple[LayerGeometry, ...]
    groups: tuple[str, ...]
    config: PatchingConfig
    provenance: Provenance

    @property
    def places(self) -> tuple[tuple[LayerGeometry, ...], ...]:
        """Layers that are patched together."""
        return (self.layers,) if self.config.joint else tuple((x,) for x in self.layers)

    @property
    def labels(self) -> Labels:
        """Entries of each axis."""
        blocks = ("all",) if self.config.joint else tuple(x.block for x in self.layers)
        return {"layer": blocks, **self.units.labels(self.layers[0]), "group": self.groups}

    @property
    def n_units(self) -> int:
        """Masks of a layer; several may be draws of one cell."""
        draws = sum(len(selections) for _, selections in self.units.arms)
        entries = [len(e) for axis, e in self.labels.items() if axis not in ("layer", "group")]
        return draws or int(np.prod(entries, dtype=int))

    @property
    def differences(self) -> Float[Tensor, "example"]:
        """Clean minus corrupted logit difference: all there is to recover."""
        return self.clean - self.corrupted

    def moved(self, patched: Float[Tensor, "*cell example"]) -> Float[Tensor, "*cell example"]:
        """How far patched logit differences have come towards the other run."""
        return patched - self.corrupted if self.direction == "denoising" else self.clean - patched

    @property
    def arguments(self) -> dict[str, object]:
        """Everything that a kept layer depends on, beside the model and the layer."""
        listed = [asdict(pair) | {"groups": dict(pair.groups)} for pair in self.pairs]
        text = json.dumps(listed, sort_keys=True)
        return {
            "pairs": hashlib.sha256(text.encode()).hexdigest(),
            "cells": [self.units.site, self.units.granularity, self.direction, *self.groups],
            "config": self.config,
        }

    @property
    def has_placebo(self) -> bool:
        """True if the pairs have a placebo."""
        return bool(self.pairs) and self.pairs[0].placebo is not None


def prepare(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    *,
    site: str,
    granularity: str,
    groups: Sequence[str],
    config: PatchingConfig,
    direction: Direction,
) -> Setup:
    """Check what is asked, and find the pairs that have something to recover.

    Raises:
        ValueError: If site, granularity or groups do not exist or do not fit each other, or only
            some pairs have a placebo.
        UnsupportedModelError: If the model cannot be patched, see `Resumer`.
    """
    site, granularity = require_site(site), require_granularity(granularity)
    require_not_empty("pairs", pairs, remedy="pass pairs such as conflict_pairs gives")
    require_not_empty("groups", groups, remedy="name at least one, such as 'all'")
    _require_groups(pairs, groups)
    if len({pair.placebo is None for pair in pairs}) > 1:
        raise ValueError("pairs must all have a placebo or none, got some of each; leave it out")
    layers = patched_layers(model, site=site, config=config)
    massive = granularity == "massive"
    units = Units(
        site=site,
        granularity=granularity,
        n_bands=config.n_bands,
        arms=make_arms(config) if massive else (),
    )
    units.require_possible(layers)
    resumer = Resumer(model, reuse=config.reuse)
    batches = make_batches(
        resumer,
        pairs,
        site=site,
        blocks=[layer.block for layer in layers],
        direction=direction,
        groups=groups,
        batch_size=config.batch_size,
    )
    start = batches[0].base.n_pos - 1 if config.reuse == "prefix" else 0
    resumer.require_same(batches[0].base, block=layers[len(layers) // 2].block, start=start)
    clean, corrupted = differences(batches)
    used = [i for i, d in enumerate(clean - corrupted) if d >= config.min_difference]
    kept = [batch.only(used) for batch in batches]
    return Setup(
        model=model,
        resumer=resumer,
        pairs=tuple(pairs[i] for i in used),
        n_left_out=len(pairs) - len(used),
        batches=tuple(batch for batch in kept if batch is not None),
        clean=clean[used],
        corrupted=corrupted[used],
        direction=direction,
        units=units,
        layers=layers,
        groups=tuple(groups),
        config=config,
        provenance=_provenance(model, pairs, config),
    )


def patch_place(
    setup: Setup, place: Sequence[LayerGeometry], jobs: Sequence[Job], *, with_placebo: bool
) -> PatchedLayer:
    """Every job of one place, on all pairs."""
    found = [_patch_batches(setup, place, jobs, source) for source in range(1 + with_placebo)]
    return PatchedLayer(patched=found[0], placebo=found[1] if with_placebo else None)


def _patch_batches(
    setup: Setup,
    place: Sequence[LayerGeometry],
    jobs: Sequence[Job],
    source: int,
) -> Float[Tensor, "job example"]:
    """Logit differences with each cell of one place patched by source 0, or by the placebo, 1."""
    patched = torch.zeros(len(jobs), len(setup.pairs))
    for batch in setup.batches:
        patched[:, list(batch.places)] = patch_layers(
            setup.resumer,
            batch,
            batch.sources[source],
            setup.units,
            place,
            jobs,
            batch_size=setup.config.batch_size,
        )
    return patched


def _require_groups(pairs: Sequence[PromptPair], groups: Sequence[str]) -> None:
    for group in groups:
        lacking = [p.id for p in pairs if group not in (*_BUILT_IN_GROUPS, *p.groups)]
        if lacking:
            known = sorted(g for g in pairs[0].groups if all(g in pair.groups for pair in pairs))
            raise ValueError(
                f"groups must be in every pair, got {group!r}, which {lacking[0]!r} does not have; "
                f"all of them have {', '.join((*_BUILT_IN_GROUPS, *known))}"
            )


def _provenance(
    model: HookedModel, pairs: Sequence[PromptPair], config: PatchingConfig
) -> Provenance:
    prompts = [p for pair in pairs for p in (pair.clean, pair.corrupted, pair.placebo) if p]
    texts = tuple("" for _ in prompts)
    tokenized = TokenizedPrompts(input_ids=tuple(prompts), texts=texts, n_truncated=0)
    return provenance_of(
        model,
        tokenized,
        batch_size=config.batch_size,
        settings={"n_pairs": len(pairs), "hook_points": "transformer_lens"},
    )
