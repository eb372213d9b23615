"""Losses of a control over its seeds, beside the treatment's: is one draw of dimensions typical?

Random dimensions differ: some draws cost nothing, others as much as the massive ones. The share of
draws that cost at least as much as the treatment is a test of the treatment against the control
itself, not against one draw of it.

Does not show: uncertainty over examples, which `ArmContrast` has; every draw is asked the same.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mi_massive.arms import Arm
from mi_massive.contrasts import ArmContrast
from mi_massive.scores import Readout


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """One quantity under every draw, and under the treatment."""

    drawn: tuple[float, ...]
    """One value a seed, in the order of the seeds."""
    treated: float

    @property
    def median(self) -> float:
        """Of the draws."""
        return statistics.median(self.drawn)

    @property
    def p_value(self) -> float:
        """One-sided: (1 + draws at or above the treatment) / (1 + draws); NaN where undefined.

        With ten draws it cannot be under 1/11.
        """
        if self.treated != self.treated or any(x != x for x in self.drawn):
            return float("nan")
        return (1 + sum(x >= self.treated for x in self.drawn)) / (1 + len(self.drawn))


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """One control over its seeds in one read-out, beside the treatment at the same k."""

    control: str
    """Preset and k, without a seed."""
    treatment: str
    readout: Readout
    contextual_loss: Spread
    parametric_loss: Spread
    contrast: Spread
    """Contextual minus parametric loss."""

    @property
    def n_seeds(self) -> int:
        """Draws of dimensions."""
        return len(self.contrast.drawn)


def seed_spreads(
    arms: Sequence[Arm], contrasts: Sequence[ArmContrast], *, treatment: str = "paper"
) -> tuple[SeedSpread, ...]:
    """Every control that was run with several seeds, beside a treatment at the same k.

    Args:
        arms: Those of a `DisruptionResult`.
        contrasts: Theirs.
        treatment: Preset to compare with; controls at a k without it are left out.

    Returns:
        In the order of the arms, then of the read-outs; empty where every control has one seed.
    """
    seeds: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.role == "control":
            seeds.setdefault(arm.condition, []).append(arm)
    treated = {(arm.k, arm.layers): arm.name for arm in arms if arm.preset == treatment}
    found = {(c.arm, c.readout): c for c in contrasts}
    readouts = list(dict.fromkeys(c.readout for c in contrasts))
    return tuple(
        _spread(control, found[treated[at], r], [found[arm.name, r] for arm in drawn])
        for control, drawn in seeds.items()
        for at in [(drawn[0].k, drawn[0].layers)]
        if len(drawn) > 1 and at in treated
        for r in readouts
    )


def _spread(control: str, treated: ArmContrast, drawn: Sequence[ArmContrast]) -> SeedSpread:
    return SeedSpread(
        control=control,
        treatment=treated.arm,
        readout=treated.readout,
        contextual_loss=Spread(
            drawn=tuple(c.contextual_loss.effect for c in drawn),
            treated=treated.contextual_loss.effect,
        ),
        parametric_loss=Spread(
            drawn=tuple(c.parametric_loss.effect for c in drawn),
            treated=treated.parametric_loss.effect,
        ),
        contrast=Spread(
            drawn=tuple(c.contrast.effect for c in drawn), treated=treated.contrast.effect
        ),
    )
