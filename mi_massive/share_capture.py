"""Run passages through a model and measure how much of its logits distance explains.

Answers what `mi_massive.position_shares` defines. Costs one forward pass a passage and, for every
head, three products of window times tokens entries by pairs; patterns are never materialized.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from mi_massive._band_logits import HeadParts, Sets, band_sets, band_wavelengths, layer_parts
from mi_massive._checks import require_in_range, require_not_empty
from mi_massive.capture import provenance_of
from mi_massive.models.attention import AttentionInputs
from mi_massive.models.base import HookedModel
from mi_massive.position_shares import (
    BandShares,
    PositionSharesConfig,
    PositionSharesResult,
)
from mi_massive.prompts import TokenizedPrompts
from mi_massive.records import Provenance
from mi_massive.rope import LayerGeometry, ModelGeometry, require_rotating
from mi_massive.stats import Estimate, estimate, holm, null_p_values


@torch.no_grad()
def capture_position_shares(
    model: HookedModel,
    prompts: TokenizedPrompts,
    *,
    config: PositionSharesConfig | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> PositionSharesResult:
    """Measure how much of each band's part of the logits the distance alone explains.

    Args:
        model: Loaded or wrapped; at least one layer must rotate.
        prompts: Neutral passages, from `tokenize_prompts`.
        config: Bands, window and tests.
        on_progress: Called with the number of passages finished since the last call.

    Returns:
        Shares of each head, and of each band with intervals over passages.

    Raises:
        ValueError: If no layer rotates, there are more bands than pairs, or a passage has fewer
            tokens than twice the window and one.
    """
    config = config or PositionSharesConfig()
    require_not_empty("prompts", prompts.input_ids, remedy="give at least one passage")
    geometry = model.geometry
    rotaries = require_rotating(
        geometry, n_layers=len(geometry.layers), d_head=geometry.layers[0].d_head
    )
    fewest = min(rotary.n_pairs for rotary in rotaries.values())
    require_in_range("n_bands", config.n_bands, low=2, high=fewest, unit="rotary pairs of a head")
    for number, ids in enumerate(prompts.input_ids):
        if len(ids) < 2 * config.window + 1:
            raise ValueError(
                f"prompts[{number}] must have at least {2 * config.window + 1} tokens for a window "
                f"of {config.window}, got {len(ids)}; leave it out or take a smaller window"
            )
    sets = band_sets(
        geometry, config.n_bands, n_permutations=config.n_permutations, seed=config.seed
    )
    passages: list[HeadParts] = []
    for number, ids in enumerate(prompts.input_ids):
        passages.append(_passage(model, ids, sets, config, seed=(config.seed, number)))
        if on_progress is not None:
            on_progress(1)
    return _result(passages, geometry, config, provenance_of(model, prompts, batch_size=1))


def _passage(
    model: HookedModel,
    ids: Sequence[int],
    sets: dict[int, Sets],
    config: PositionSharesConfig,
    *,
    seed: tuple[int, int],
) -> HeadParts:
    """Shares of one passage: every head of every rotating layer."""
    layer_of: dict[int, LayerGeometry] = {at.block: at for at in model.geometry.layers}
    order = 1 + np.random.default_rng(seed).permutation(len(ids) - 1)
    places = torch.from_numpy(np.concatenate([[0], order]))
    found: list[HeadParts] = []

    def visit(seen: AttentionInputs) -> None:
        layer = layer_of[seen.block]
        if layer.rotary is None:
            return
        found.append(
            layer_parts(
                seen.query[0].float().cpu(),
                seen.key[0].float().cpu(),
                layer,
                sets[layer.rotary.n_pairs],
                window=config.window,
                places=places,
            )
        )

    model.attention_inputs(torch.tensor([list(ids)], device=model.device), visit)
    n_rotating = sum(layer.rotary is not None for layer in model.geometry.layers)
    if len(found) != n_rotating:
        raise RuntimeError(
            f"every rotating layer must run once, got {len(found)} runs of {n_rotating} layers"
        )
    return HeadParts(
        *(torch.stack([getattr(part, name) for part in found]) for name in HeadParts.__slots__)
    )


def _result(
    passages: list[HeadParts],
    geometry: ModelGeometry,
    config: PositionSharesConfig,
    provenance: Provenance,
) -> PositionSharesResult:
    """Means over passages of each head, and over heads of each passage."""
    heads = {name: [getattr(part, name) for part in passages] for name in HeadParts.__slots__}
    per_head = {name: torch.stack(parts).nanmean(dim=0) for name, parts in heads.items()}
    # [passage, draw, band] of the permuted shares, [passage, band] of the others.
    per_passage = {
        name: np.stack([part.flatten(0, 1).nanmean(dim=0).numpy() for part in parts])
        for name, parts in heads.items()
    }
    observed, draws = per_passage["share"], per_passage["permuted"].mean(axis=0)
    p_values = holm(null_p_values(observed.mean(axis=0), draws, alternative="two-sided"))
    waves = band_wavelengths(geometry, config.n_bands)
    return PositionSharesResult(
        **{n: per_head[n].float() for n in ("share", "shuffled", "floor", "variance_share")},
        bands=tuple(
            BandShares(
                band=band,
                shortest=waves[band][0],
                longest=waves[band][1],
                position_share=replace(
                    _over_passages(observed[:, band], config),
                    p_value=float(p_values[band]),
                    null=float(draws[:, band].mean()),
                    test=f"bootstrap over passages; {_PERMUTED}, two-sided, Holm over bands",
                ),
                shuffled=_over_passages(per_passage["shuffled"][:, band], config),
                floor=_over_passages(per_passage["floor"][:, band], config),
                variance_share=_over_passages(per_passage["variance_share"][:, band], config),
            )
            for band in range(config.n_bands)
        ),
        fast_minus_slow=replace(
            _over_passages(_fast_minus_slow(observed), config),
            p_value=float(
                null_p_values(
                    np.asarray(_fast_minus_slow(observed).mean()),
                    _fast_minus_slow(draws),
                    alternative="two-sided",
                )
            ),
            null=0.0,
            test=f"bootstrap over passages; {_PERMUTED}, two-sided",
        ),
        layers=tuple(layer.block for layer in geometry.layers if layer.rotary is not None),
        config=config,
        provenance=replace(provenance, seed=config.seed),
    )


_PERMUTED = "pairs permuted, alike in all heads and layers"


def _over_passages(values: Float[np.ndarray, "passage"], config: PositionSharesConfig) -> Estimate:
    return estimate(
        values,
        n_of="passages",
        level=config.level,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )


def _fast_minus_slow(shares: Float[np.ndarray, "row band"]) -> Float[np.ndarray, "row"]:
    half = shares.shape[1] // 2
    return shares[:, :half].mean(axis=1) - shares[:, -half:].mean(axis=1)
