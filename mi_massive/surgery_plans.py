"""Conditions of the surgery experiment: a changed rotation, or edited pairs, under a name."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from mi_massive._checks import require_in_range
from mi_massive.interventions import Edits, Intervention, Selection, Value, Where, disrupt
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms, Stage
from mi_massive.operation import Operation, Surgery, operate
from mi_massive.pair_choices import PairChoice, chosen_pairs, dimension_masks, holds_massive

Kind = Literal["removed", "disrupted", "content removed", "other"]
"""How an arm treats one band: not rotated (its content stays, its position goes), replaced by its
token mean as it enters the attention (both go), or by the token mean with the rotation undone (its
content goes, its position stays)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanEdit:
    """Queries and keys of some pairs replaced by their token mean, everywhere."""

    pairs: PairChoice = field(default_factory=PairChoice)
    stage: Stage = "attention"
    """`attention`: the mean of rotated entries; `unrotated`: of entries with the rotation undone,
    which are rotated again."""

    @property
    def intervention(self) -> Intervention:
        """The edit; tokens after the prompt get the prompt's mean."""
        return Intervention(
            selection=Selection(rule="mask"),
            value=Value(kind="mean"),
            where=Where(projections=("q", "k"), stage=self.stage, positions="both"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SurgeryArm:
    """One condition."""

    name: str
    surgery: Surgery | None = None
    """What becomes of the rotation."""
    edit: MeanEdit | None = None
    """Or what is replaced."""

    def __post_init__(self) -> None:
        """Refuse an arm that does nothing, or two things."""
        if (self.surgery is None) == (self.edit is None):
            raise ValueError(
                f"an arm must have either a surgery or an edit, got "
                f"{'neither' if self.surgery is None else 'both'} in {self.name!r}"
            )

    @property
    def pairs(self) -> PairChoice:
        """The pairs that it treats."""
        if self.surgery is not None:
            return self.surgery.pairs
        assert self.edit is not None  # refused above
        return self.edit.pairs

    @property
    def kind(self) -> Kind:
        """How one band of all pairs is treated; `other` for every other arm."""
        if self.pairs.bands is None or len(self.pairs.bands) != 1 or self.pairs.among != "all":
            return "other"
        if self.surgery is not None:
            return "removed" if self.surgery.change == "remove" else "other"
        assert self.edit is not None
        return "disrupted" if self.edit.stage == "attention" else "content removed"

    def context(
        self, model: HookedModel, norms: AttentionNorms
    ) -> Callable[[], AbstractContextManager[Operation | Edits]]:
        """What opens the context in which the model runs under this arm."""
        if self.surgery is not None:
            return partial(operate, model, self.surgery, norms=norms)
        assert self.edit is not None
        pairs = chosen_pairs(model.geometry, self.edit.pairs, norms=norms)
        masks = dimension_masks(model.geometry, pairs)
        return partial(disrupt, model, self.edit.intervention, masks=masks)


def possible_arms(
    model: HookedModel, arms: Sequence[SurgeryArm], norms: AttentionNorms
) -> tuple[SurgeryArm, ...]:
    """The arms without those that treat massive pairs, or as many others, where none is massive."""
    return tuple(
        arm
        for arm in arms
        if arm.pairs.among not in ("massive", "random")
        or holds_massive(model.geometry, arm.pairs, norms=norms)
    )


def surgery_arms(
    *, n_bands: int = 8, n_seeds: int = 2, shift: float = 1000.0, factor: float = 2.0
) -> tuple[SurgeryArm, ...]:
    """The arms of the experiment.

    Args:
        n_bands: Bands of (nearly) equally many pairs, each removed, disrupted and its content
            removed in turn; the cuts lie in their middle.
        n_seeds: Seeds of the random others of the massive pairs.
        shift: Tokens of the shift, which must change nothing.
        factor: Of theta and of the positions, as it is and inverted.

    Returns:
        Bands, no rotation at all, both sides of a cut with and without the massive pairs, massive
        pairs and as many random others, theta, scale and shift.

    Raises:
        ValueError: If there are fewer than four bands, whose halves are single bands, or a change
            changes nothing.
    """
    require_in_range("n_bands", n_bands, low=4, high=1 << 16, unit="bands")
    bands = [PairChoice(bands=(band,), n_bands=n_bands) for band in range(n_bands)]
    sides = {"faster": range(n_bands // 2), "slower": range(n_bands // 2, n_bands)}

    def removed(name: str, pairs: PairChoice) -> SurgeryArm:
        return SurgeryArm(name=name, surgery=Surgery(pairs=pairs))

    def changed(name: str, change: Literal["theta", "scale"], by: float) -> SurgeryArm:
        return SurgeryArm(name=name, surgery=Surgery(change=change, amount=by))

    arms = [SurgeryArm(name=f"band {i} removed", surgery=Surgery(pairs=b)) for i, b in _at(bands)]
    arms += [SurgeryArm(name=f"band {i} disrupted", edit=MeanEdit(pairs=b)) for i, b in _at(bands)]
    arms += [
        SurgeryArm(name=f"band {i} content removed", edit=MeanEdit(pairs=b, stage="unrotated"))
        for i, b in _at(bands)
    ]
    arms.append(SurgeryArm(name="no rotation", surgery=Surgery()))
    for side, of in sides.items():
        half = PairChoice(bands=tuple(of), n_bands=n_bands)
        arms.append(removed(f"{side} half removed", half))
        spared = replace(half, among="not_massive")
        arms.append(removed(f"{side} half removed, massive kept", spared))
    arms.append(removed("massive removed", PairChoice(among="massive")))
    arms += [
        removed(f"random removed seed={seed}", PairChoice(among="random", seed=seed))
        for seed in range(n_seeds)
    ]
    arms += [changed(f"theta x {by:g}", "theta", by) for by in (factor, 1 / factor)]
    arms += [changed(f"positions x {by:g}", "scale", by) for by in (factor, 1 / factor)]
    arms.append(SurgeryArm(name="shift", surgery=Surgery(change="shift", amount=shift)))
    return tuple(arms)


def _at(bands: list[PairChoice]) -> list[tuple[int, PairChoice]]:
    return list(enumerate(bands))
