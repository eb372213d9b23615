"""Activation patching: which layers, heads, bands or pairs carry the answer from run to run.

Answers where the difference between a clean and a corrupted prompt passes on its way to the answer.
A cell (a part of one layer's activation at the positions of one group) is replaced by what it is in
the other run; the share of the logit difference that this recovers is the cell's. Costs one pass
from the patched layer to the end for each cell and pair. The cells of a layer are stacked on the
batch axis; neither the layers below nor the positions before a patch are computed again.

Does not show: a circuit. Shares of cells need not add up to 1, a cell that another one backs up
shows nothing, and what both runs have in common (the first token, where they begin alike) can show
nothing at all.

Beside TransformerLens (4.3.0): the hook points and their names are its own, the loop is not.
`transformer_lens.patching.generic_activation_patch` patches the same sites, whole heads or
positions, by one whole forward pass a cell; stacking the cells and leaving out what a patch cannot
change is what makes this 4.6 times as fast (`mi_massive.patch_speed`), with equal effects. Its
setters know no rotary band or pair and no chosen dimensions, and its stacked sweeps fill key-value
heads up with zeros to the number of query heads. `tools.analysis.interchange` exchanges linear
subspaces, of activations without a head axis and at one position an example.
`tools.analysis.attribution_patching` scores nodes (embedding, output of a head or MLP) and, without
shared key-value heads, edges, but no queries or keys: `mi_massive.attribution` takes the same first
order by rotary pair, from gradients equal to those of that module.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._cells import kept
from mi_massive._patch_setup import Setup, patch_place, prepare
from mi_massive._patch_statistics import corrected_p_values, ratios_of_means
from mi_massive.axes import Site
from mi_massive.models.base import HookedModel
from mi_massive.patch_results import (
    Direction,
    Granularity,
    PatchedLayer,
    PatchingConfig,
    PatchingResult,
)
from mi_massive.prompt_pairs import PromptPair


def patch(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    *,
    site: Site | str,
    granularity: Granularity | str = "head",
    direction: Direction = "denoising",
    groups: Sequence[str] | None = None,
    config: PatchingConfig | None = None,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> PatchingResult:
    """Patch every cell of a site and measure what it recovers of the answer.

        d = logit[answer] - logit[other], at the last position
        denoising: recovered = sum(d_patched - d_corrupted) / sum(d_clean - d_corrupted)
        noising:   recovered = sum(d_clean - d_patched) / sum(d_clean - d_corrupted)

    Sums run over the examples (a ratio of means: ratios of single examples explode where their
    denominator is small). Denoising puts clean activations into the corrupted run and asks what is
    enough; noising puts corrupted activations into the clean run and asks what is needed. In both 0
    is no effect and 1 the whole difference; neither is a bound.

    Args:
        model: From `load_model`, a decoder.
        pairs: Aligned prompts, such as `conflict_pairs` gives. Lengths may differ between pairs.
        site: Activation, in TransformerLens' words (`rot_q` is hook_rot_q). k, v and rot_k have
            key-value heads.
        granularity: What a cell is. `band` and `pair` are there for queries and keys of rotary
            models, `head` not for the residual stream, `massive` for q, k, v and rotated q, k.
        direction: Which run is patched.
        groups: Names of position groups of the pairs, patched one at a time; `all` is every
            position, `later` all but the first. None: `all`. For patterns the positions are those
            of the queries.
        config: What is patched together, controls, batches and tests.
        cells: Folder that keeps each finished layer; a later run takes it from there.
        on_progress: Called with the number of layers finished since the last call.

    Returns:
        The result; NaN throughout if no pair has a difference to recover. With fewer examples than
        the correction over cells needs no cell is significant: n examples have `2 ** n` patterns of
        signs.

    Raises:
        ValueError: If site, granularity or groups do not exist or do not fit each other, or only
            some pairs have a placebo.
        UnsupportedModelError: If the model is no decoder with a head, the site does not fire, or
            what `config.reuse` asks for cannot be reused.

    Source:
        Meng et al. 2022, arXiv:2202.05262; names and practice after Heimersheim and Nanda 2024,
        arXiv:2404.15255. Differs: ratio of means, placebo, correction over cells.
    """
    setup = prepare(
        model,
        pairs,
        site=site,
        granularity=granularity,
        groups=groups or ("all",),
        config=config or PatchingConfig(),
        direction=direction,
    )
    jobs = [(unit, group) for unit in range(setup.n_units) for group in setup.groups]
    layers: list[PatchedLayer] = []
    for place in setup.places:
        blocks = [layer.block for layer in place]
        label = f"patch-{setup.units.site}-{setup.units.granularity}-{blocks[0]}"
        arguments = setup.arguments | {"blocks": blocks}
        compute = partial(patch_place, setup, place, jobs, with_placebo=setup.has_placebo)
        layers.append(kept(cells, label, model, arguments, compute))
        if on_progress is not None:
            on_progress(1)
    return _result(setup, layers)


def _result(setup: Setup, layers: Sequence[PatchedLayer]) -> PatchingResult:
    config, labels = setup.config, setup.labels
    shape = [len(entries) for entries in labels.values()]
    effects = _effects(setup, [layer.patched for layer in layers])
    cells = effects.double().flatten(0, -2).numpy()
    totals = setup.differences.double().numpy()
    settings: dict[str, Any] = {
        name: getattr(config, name) for name in ("level", "n_resamples", "seed")
    }
    found = ratios_of_means(cells, totals, **settings)
    placebo = beyond = np.full(len(cells), np.nan)
    others = [layer.placebo for layer in layers if layer.placebo is not None]
    if others:
        unrelated = _effects(setup, others).double().numpy().reshape(cells.shape)
        placebo = ratios_of_means(unrelated, totals, **settings).ratio
        beyond = corrected_p_values(cells - unrelated, **settings)

    def tensor(values: Float[np.ndarray, "cell"]) -> Float[Tensor, "*cells"]:
        return torch.from_numpy(values).float().reshape(shape)

    return PatchingResult(
        site=setup.units.site,
        granularity=setup.units.granularity,
        direction=setup.direction,
        axes=tuple(labels),
        labels=dict(labels),
        recovered=tensor(found.ratio),
        low=tensor(found.low),
        high=tensor(found.high),
        p_values=tensor(corrected_p_values(cells, **settings)),
        placebo=tensor(placebo),
        beyond_placebo=tensor(beyond),
        effects=effects.reshape(*shape, len(setup.pairs)),
        differences=setup.differences,
        n_left_out=setup.n_left_out,
        config=config,
        provenance=setup.provenance,
    )


def _effects(
    setup: Setup, patched: Sequence[Float[Tensor, "job example"]]
) -> Float[Tensor, "layer unit group example"]:
    """What each cell moves towards the other run, in logits; draws of one cell averaged."""
    shape = (len(patched), setup.n_units, len(setup.groups), len(setup.pairs))
    values: Tensor = torch.stack(list(patched)).reshape(shape)
    moved = setup.moved(values)
    if not setup.units.arms:
        return moved
    sizes = [len(selections) for _, selections in setup.units.arms]
    parts: list[Tensor] = list(torch.split(moved, sizes, dim=1))
    return torch.stack([draws.mean(dim=1) for draws in parts], dim=1)
