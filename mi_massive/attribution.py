"""Attribution patching: a gradient estimate of every rotary pair of every head, checked exactly.

Answers, at the resolution of single rotary pairs, what exact patching would take thousands of
passes for. Costs one pass forward and back for each batch of pairs, and exact patches of a random
sample of cells and of the cells with the largest estimates.

Does not show: effects that bend. The estimate is the first term of a series; softmax saturates, so
a pair that decides a saturated head has a gradient near zero. Read it with the correlation beside
it, and trust the exact numbers of the top cells, not their estimates.

Source: Nanda 2023, attribution patching; Syed, Rager and Conmy 2023, arXiv:2310.10348. Differs: by
rotary pair, normalised as `patch` is, and never without its check.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._cells import kept
from mi_massive._checks import require_in_range
from mi_massive._patch_runs import Job, logit_differences
from mi_massive._patch_setup import Setup, patch_place, prepare
from mi_massive._patch_statistics import Ratios, ratios_of_means
from mi_massive._patch_units import to_heads
from mi_massive.axes import Site
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.sites import patch_site_name
from mi_massive.patch_results import AttributionResult, Direction, PatchingConfig
from mi_massive.prompt_pairs import PromptPair
from mi_massive.stats import Estimate, bootstrap_interval

Cell = tuple[int, ...]


def attribute(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    *,
    site: Site | str = "rot_q",
    direction: Direction = "denoising",
    groups: Sequence[str] | None = None,
    config: PatchingConfig | None = None,
    n_sample: int = 64,
    n_top: int = 16,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> AttributionResult:
    """Estimate what every rotary pair of every head recovers, and patch some cells exactly.

        estimated = sum((source - base) * gradient) / sum(d_clean - d_corrupted)

    Sums run over examples, the positions of a group and both dimensions of a pair. The gradient of
    `logit[answer] - logit[other]` is taken in the run that is patched (`base`); in the noising
    direction the sign is turned, so that 0 and 1 mean what they mean in `patch`.

    Args:
        model: From `load_model`, a decoder with plain weights.
        pairs: Aligned prompts.
        site: Queries or keys: q, k, rot_q or rot_k.
        direction: As for `patch`.
        groups: As for `patch`.
        config: As for `patch`; each layer is estimated by itself.
        n_sample: Cells drawn at random for the correlation; all of them if there are fewer.
        n_top: Cells of largest estimate that are patched exactly.
        cells: Folder that keeps the exact patches of each layer as soon as they are there; a later
            run takes them from there. Estimates are cheap and made again.
        on_progress: Called with the number of cells patched since the last call.

    Returns:
        Estimates, and exact values with correlations. NaN if no pair has a difference to recover.

    Raises:
        ValueError: As `patch`.
        UnsupportedModelError: If the model is quantized, so that it has no gradients, or as
            `patch`.
    """
    require_in_range("n_sample", n_sample, low=3, high=10**6, unit="cells")
    require_in_range("n_top", n_top, low=3, high=10**6, unit="cells")
    require_gradients(model)
    setup = prepare(
        model,
        pairs,
        site=site,
        granularity="pair",
        groups=groups or ("all",),
        config=config or PatchingConfig(),
        direction=direction,
    )
    if setup.config.joint:
        raise ValueError("joint must be False for estimates of single pairs, got True")
    estimated = _estimates(setup)
    flat = estimated.flatten().double().numpy()
    rng = np.random.default_rng(setup.config.seed)
    drawn = np.sort(rng.permutation(flat.size)[:n_sample])
    top = np.argsort(-np.abs(flat), kind="stable")[:n_top]
    patching = partial(_patched, setup, estimated.shape, folder=cells, on_progress=on_progress)
    sample_exact, _ = patching(drawn, with_placebo=False)
    top_exact, placebo = patching(top, with_placebo=True)
    correlate = partial(_correlation, config=setup.config)
    return AttributionResult(
        site=setup.units.site,
        direction=direction,
        axes=tuple(setup.labels),
        labels=dict(setup.labels),
        estimated=estimated,
        sample=_cells(drawn, estimated.shape),
        sample_exact=_tensor(sample_exact.ratio),
        top=_cells(top, estimated.shape),
        top_exact=_tensor(top_exact.ratio),
        top_low=_tensor(top_exact.low),
        top_high=_tensor(top_exact.high),
        top_placebo=_tensor(placebo.ratio),
        pearson=correlate(flat[drawn], sample_exact.ratio, name="Pearson, random cells"),
        spearman=correlate(
            _ranks(flat[drawn]), _ranks(sample_exact.ratio), name="Spearman, random cells"
        ),
        pearson_top=correlate(flat[top], top_exact.ratio, name="Pearson, top cells"),
        n_examples=len(setup.pairs),
        n_left_out=setup.n_left_out,
        config=setup.config,
        provenance=setup.provenance,
    )


def require_gradients(model: HookedModel) -> None:
    """Refuse a model whose weights are quantized.

    Raises:
        UnsupportedModelError: If they are.
    """
    bridge = model.bridge
    inner: Any = getattr(bridge, "original_model", bridge)
    quantized = getattr(getattr(inner, "config", None), "quantization_config", None) is not None
    whole = [p for p in inner.parameters() if not p.dtype.is_floating_point]
    if quantized or whole:
        raise UnsupportedModelError(
            f"{model.name} must have plain floating-point weights for gradients, got quantized "
            "ones; use patch, which needs no gradient"
        )


def _estimates(setup: Setup) -> Float[Tensor, "layer head pair group"]:
    """First-order effects of all cells, summed over examples, over the whole difference."""
    shape = [len(entries) for entries in setup.labels.values()]
    total = torch.zeros(shape, dtype=torch.float64)
    site = setup.units.site
    names = [patch_site_name(layer.block, site) for layer in setup.layers]
    for batch in setup.batches:
        answers = batch.answers
        found = setup.resumer.gradients(
            batch.base.ids, names, lambda logits, a=answers: logit_differences(logits, a).sum()
        )
        groups = torch.stack([batch.groups[group] for group in setup.groups]).double()
        for number, (layer, name) in enumerate(zip(setup.layers, names, strict=True)):
            assert layer.rotary is not None
            states, gradient = found[name]
            moved = (to_heads(site, batch.sources[0].states[name]) - to_heads(site, states)).float()
            parts = (moved * to_heads(site, gradient).float()).cpu().double()
            by_pair = parts[..., layer.rotary.pair_dims].sum(dim=-1)
            total[number] += torch.einsum("ephr,gep->hrg", by_pair, groups)
    sign = 1.0 if setup.direction == "denoising" else -1.0
    whole = float(setup.differences.double().sum()) if setup.pairs else math.nan
    return (sign * total / whole).float()


def _patched(
    setup: Setup,
    shape: torch.Size,
    chosen: Int[np.ndarray, "cell"],
    *,
    with_placebo: bool,
    folder: Path | None,
    on_progress: Callable[[int], None] | None,
) -> tuple[Ratios, Ratios]:
    """What exact patches of the chosen cells recover, and their placebos."""
    places = _cells(chosen, shape)
    with_placebo = with_placebo and setup.has_placebo
    values = torch.full((2, len(places), len(setup.pairs)), math.nan)
    for number, layer in enumerate(setup.layers):
        here = [row for row, place in enumerate(places) if place[0] == number]
        if not here:
            continue
        jobs: list[Job] = [
            (head * shape[2] + pair, setup.groups[group])
            for _, head, pair, group in (places[row] for row in here)
        ]
        found = kept(
            folder,
            f"attribute-{setup.units.site}-{layer.block}",
            setup.model,
            setup.arguments | {"blocks": [layer.block], "jobs": jobs, "placebo": with_placebo},
            partial(patch_place, setup, (layer,), jobs, with_placebo=with_placebo),
        )
        values[0, here] = found.patched
        if found.placebo is not None:
            values[1, here] = found.placebo
        if on_progress is not None:
            on_progress(len(here))
    moved = setup.moved(values)
    settings = {name: getattr(setup.config, name) for name in ("level", "n_resamples", "seed")}
    totals = setup.differences.double().numpy()
    treated, placebo = (
        ratios_of_means(part.double().numpy(), totals, **settings) for part in moved
    )
    return treated, placebo


def _correlation(
    estimated: Float[np.ndarray, "cell"],
    exact: Float[np.ndarray, "cell"],
    *,
    name: str,
    config: PatchingConfig,
) -> Estimate:
    """Correlation over cells with a bootstrap over them; NaN where one side does not vary."""

    def correlation(index: Any, axis: int = 0) -> Any:
        x, y = estimated[index], exact[index]
        x, y = (v - v.mean(axis=axis, keepdims=True) for v in (x, y))
        with np.errstate(invalid="ignore", divide="ignore"):
            norm = np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
            return (x * y).sum(axis=axis) / norm

    index = np.arange(len(exact))
    effect, interval = float(correlation(index)), None
    if math.isfinite(effect):
        interval = bootstrap_interval(
            index, correlation, level=config.level, n_resamples=config.n_resamples, seed=config.seed
        )
    return Estimate(
        effect=effect,
        low=math.nan if interval is None else float(interval.low),
        high=math.nan if interval is None else float(interval.high),
        level=config.level,
        n=len(exact),
        n_of="cells",
        test=f"{name}; bootstrap over cells",
    )


def _ranks(values: Float[np.ndarray, "cell"]) -> Float[np.ndarray, "cell"]:
    import scipy.stats

    return np.asarray(scipy.stats.rankdata(values), dtype=np.float64)


def _cells(chosen: Int[np.ndarray, "cell"], shape: torch.Size) -> tuple[Cell, ...]:
    indices = np.stack(np.unravel_index(chosen, tuple(shape)), axis=-1)
    return tuple(tuple(map(int, place)) for place in indices.tolist())


def _tensor(values: Float[np.ndarray, "cell"]) -> Float[Tensor, "cell"]:
    return torch.from_numpy(values.copy()).float()
