"""What one cell of a patch replaces: whole layers, heads, bands, pairs, or the massive pairs.

A unit is a mask over heads and dimensions of one layer's activation, brought to `[example, pos,
head, dim]`: for patterns a head's row of keys stands in the place of its dimensions, for the
residual stream there is one head. Pure tensor arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._selections import Rule, Selection, select
from mi_massive.axes import SITES, Site
from mi_massive.patch_results import GRANULARITIES, Granularity, PatchingConfig
from mi_massive.rope import LayerGeometry, RotaryGeometry

Labels = Mapping[str, tuple[int | str, ...]]
"""Entries of each axis, by axis word."""

_ROTARY: tuple[Site, ...] = ("q", "k", "rot_q", "rot_k")
_BY_HEAD: tuple[Site, ...] = ("q", "k", "v", "rot_q", "rot_k", "pattern", "z")
_MASSIVE: tuple[Site, ...] = ("q", "k", "v", "rot_q", "rot_k")


def to_heads(site: Site, activation: Float[Tensor, "row *rest"]) -> Float[Tensor, "row pos _ _"]:
    """An activation as `[row, pos, head, dim]`."""
    if site == "pattern":
        return activation.transpose(1, 2)
    return activation[:, :, None] if site == "resid_pre" else activation


def from_heads(site: Site, states: Float[Tensor, "row pos _ _"]) -> Float[Tensor, "row *rest"]:
    """Inverse of `to_heads`."""
    if site == "pattern":
        return states.transpose(1, 2)
    return states[:, :, 0] if site == "resid_pre" else states


def head_axis(site: Site) -> str:
    """Which heads a site has: those of keys and values are their own, never padded."""
    return "kv_head" if site in ("k", "v", "rot_k") else "head"


def n_heads(site: Site, layer: LayerGeometry) -> int:
    """Heads of a site in a layer."""
    return layer.n_key_value_heads if head_axis(site) == "kv_head" else layer.n_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """The units of every layer of a patch."""

    site: Site
    granularity: Granularity
    n_bands: int
    arms: tuple[tuple[str, tuple[Selection, ...]], ...] = ()
    """Of `massive`: name and selections of each arm; several selections are draws of one."""

    def require_possible(self, layers: tuple[LayerGeometry, ...]) -> None:
        """Refuse a granularity that the site or the model does not have.

        Raises:
            ValueError: If it does not.
        """
        granularity = self.granularity
        require_fitting(self.site, granularity)
        rotary = [layer.rotary for layer in layers]
        by_pair = granularity in ("band", "pair") or any(
            s.unit == "pair" or s.rule == "same_band" for _, arm in self.arms for s in arm
        )
        if by_pair and not all(rotary):
            raise ValueError(
                f"granularity {granularity!r} must be asked of layers that rotate their queries "
                "and keys, got a layer without rotary position embeddings; use 'head' or 'layer'"
            )
        counts = {r.n_pairs for r in rotary if r is not None}
        if by_pair and len(counts) > 1:
            raise ValueError(
                f"layers must have the same number of rotary pairs, got {sorted(counts)}; patch "
                "those with one number at a time"
            )
        if granularity == "band" and self.n_bands > min(counts):
            raise ValueError(
                f"n_bands must be between 1 and {min(counts)} (rotary pairs), got {self.n_bands}"
            )

    def labels(self, layer: LayerGeometry) -> Labels:
        """Unit axes in order, with their entries, the same in every layer."""
        heads = {head_axis(self.site): tuple(range(n_heads(self.site, layer)))}
        pairs = tuple(range(layer.rotary.n_pairs)) if layer.rotary else ()
        axes: dict[Granularity, Labels] = {
            "layer": {},
            "head": heads,
            "band": {"band": tuple(range(self.n_bands))},
            "pair": {**heads, "pair": pairs},
            "massive": {"selection": tuple(name for name, _ in self.arms)},
        }
        return axes[self.granularity]

    def masks(
        self, layer: LayerGeometry, norms: Float[Tensor, "example head d_head"] | None
    ) -> Bool[Tensor, "#example unit _ _"]:
        """Heads and dimensions of each unit, `[example, unit, head, dim]`, broadcast where equal.

        Args:
            layer: The layer.
            norms: Of `massive`: L2 norm over positions of the clean prompt.
        """
        heads = torch.eye(n_heads(self.site, layer), dtype=torch.bool)[None, :, :, None]
        if self.granularity == "layer":
            return torch.ones(1, 1, 1, 1, dtype=torch.bool)
        if self.granularity == "head":
            return heads
        if self.granularity == "massive":
            assert norms is not None
            place = (layer.block, _PROJECTION[self.site])
            chosen = [
                select(norms, selection, layer.rotary, place=place)
                for _, arm in self.arms
                for selection in arm
            ]
            return torch.stack(chosen, dim=1)
        rotary = layer.rotary
        assert rotary is not None
        if self.granularity == "band":
            return _in_band(rotary, self.n_bands)[None, :, None]
        pairs = torch.arange(rotary.n_pairs)[:, None] == rotary.pair_of_dim
        return (heads[:, :, None] & pairs[None, None, :, None]).flatten(1, 2)


def require_site(name: str) -> Site:
    """The site of this name."""
    if name not in SITES:
        raise ValueError(f"site must be one of {', '.join(SITES)}, got {name!r}")
    return name


def require_granularity(name: str) -> Granularity:
    """The granularity of this name."""
    if name not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {name!r}")
    return name


def require_fitting(site: Site, granularity: Granularity) -> None:
    """Refuse a granularity that the site does not have in any model.

    Raises:
        ValueError: If it does not.
    """
    sites = {"layer": get_args(Site), "head": _BY_HEAD, "massive": _MASSIVE}
    allowed = sites.get(granularity, _ROTARY)
    if site not in allowed:
        raise ValueError(
            f"granularity must be possible at the site, got {granularity!r} at {site!r}; "
            f"{granularity} is there for {', '.join(allowed)}"
        )


def make_arms(config: PatchingConfig) -> tuple[tuple[str, tuple[Selection, ...]], ...]:
    """The massive dimensions and, under each control, as many others in every head."""
    rules: tuple[Rule, ...] = ("largest", *config.controls)
    return tuple(
        (
            "massive" if rule == "largest" else rule,
            tuple(
                Selection(
                    rule=rule,
                    k=config.k,
                    unit=config.unit,
                    n_bands=config.n_bands,
                    seed=config.seed + draw,
                )
                for draw in range(config.n_draws if rule in ("random", "same_band") else 1)
            ),
        )
        for rule in rules
    )


_PROJECTION: dict[Site, int] = {"q": 0, "k": 1, "v": 2, "rot_q": 0, "rot_k": 1}


def _in_band(rotary: RotaryGeometry, n_bands: int) -> Bool[Tensor, "band d_head"]:
    """Dimensions of each band; those that do not rotate are in none."""
    pairs = rotary.pair_of_dim
    bands = (pairs * n_bands // rotary.n_pairs).where(pairs >= 0, -1)
    return torch.arange(n_bands)[:, None] == bands
