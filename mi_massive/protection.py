"""What protecting the massive channels of quantized states gains, beyond protecting others (C7).

A gain is a difference between two arms on the same passages or examples: nats of cross-entropy or
of attention moved that are saved, or score and log-probability that are kept. It is positive where
the first arm does better. Massive channels are set against nothing, and against equally many other
channels of the same heads, which cost the same storage; the first token and the Hadamard rotation
are set against nothing.

Does not show: that a channel matters because it is massive. Set against `norm_matched`, the next in
rank, it is size that is held nearly equal; against `same_band`, frequency.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mi_massive._brief import Brief
from mi_massive._checks import require_in_range, require_not_empty, require_positive
from mi_massive._columns import estimate_columns
from mi_massive._score_frames import scores_frame
from mi_massive.attention_effects import EffectsResult
from mi_massive.contrasts import ArmContrast
from mi_massive.quantization_arms import SEEDED, Control, Protected, QuantizationArm
from mi_massive.quantization_plans import QuantizationPlan
from mi_massive.records import Provenance
from mi_massive.scores import Cell, EvaluationConfig
from mi_massive.state_errors import StateErrors
from mi_massive.stats import Estimate

Measure = Literal["cross_entropy", "attention_kl", "score", "logit_diff"]
"""Nats saved a token of neutral text; nats of attention not moved; score kept; log-probability of
the right option over the best other one kept, in nats."""

Measured = Literal["massive", "first", "hadamard"]
"""What is gained by: massive channels kept, the first token kept, a Hadamard rotation."""

Against = Literal["nothing", "random", "same_band", "norm_matched", "others"]
"""`others`: the mean of the controls there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateQuantizationConfig:
    """The factorial, and how its arms are measured."""

    plan: QuantizationPlan = field(default_factory=QuantizationPlan)
    """Everything but bits, first token and Hadamard rotation, which the arms set."""
    bits: tuple[int, ...] = (8, 4, 3, 2)
    controls: tuple[Control, ...] = ("random", "same_band", "norm_matched")
    n_seeds: int = 3
    """Of controls that draw their channels."""
    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm."""
    hadamard: bool = True
    """Whether there are arms with the rotation; the head must be a power of two."""
    task_bits: tuple[int, ...] | None = None
    """Bits at which tasks are asked; None: all."""
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(readouts=("options",))
    )
    n_neutral: int = 12
    """Default passages of neutral text. With fewer, no sign-flip test could stay significant once
    it is corrected for the 52 gains of this factorial."""
    neutral_length: int = 64
    """Tokens of each."""
    n_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a factorial without levels or text."""
        require_not_empty("bits", self.bits, remedy="give at least one number")
        if len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits must name each number once, got {self.bits}")
        if self.task_bits is not None and not set(self.task_bits) <= set(self.bits):
            raise ValueError(f"task_bits must be among bits {self.bits}, got {self.task_bits}")
        if self.plan.keep_first or self.plan.hadamard:
            raise ValueError(
                "plan must leave keep_first and hadamard False, which the arms set, got "
                f"{self.plan.keep_first} and {self.plan.hadamard}"
            )
        require_positive("ratio", self.ratio)
        require_in_range("n_seeds", self.n_seeds, low=1, high=100, unit="seeds")
        require_in_range("n_neutral", self.n_neutral, low=2, high=32, unit="passages")
        require_in_range("neutral_length", self.neutral_length, low=8, high=1 << 20, unit="tokens")

    def arms(self) -> tuple[QuantizationArm, ...]:
        """Bits x channels kept x first token kept, then the Hadamard arms, bits by bits."""
        kept: list[tuple[Protected, int]] = [("none", 0), ("massive", 0)]
        for control in self.controls:
            for seed in range(self.n_seeds if control in SEEDED else 1):
                kept.append((control, seed))
        turned = [True] if self.hadamard else []
        return tuple(
            QuantizationArm(
                plan=replace(self.plan, bits=bits, keep_first=first, hadamard=rotated),
                protected=protected,
                ratio=self.ratio,
                seed=seed,
            )
            for bits in self.bits
            for rotated in (False, *turned)
            for first in (False, True)
            for protected, seed in (kept[:2] if rotated else kept)
        )

    def asks(self, arm: QuantizationArm) -> bool:
        """True if tasks are asked of an arm."""
        return self.task_bits is None or arm.plan.bits in self.task_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtectionGain:
    """What one thing gains at one number of bits."""

    by: Measured
    bits: int
    first_kept: bool
    """In both arms; for `first` in the better one alone."""
    against: Against
    measure: Measure
    task: str | None
    """None for neutral text."""
    gain: Estimate
    """Positive where it helps; paired, p Holm-corrected over all gains in this measure."""
    extra_bits: float
    """Bits per stored value that it costs beyond what it is set against; 0 for equal numbers."""

    @property
    def per_bit(self) -> float:
        """Gain per extra bit of storage; NaN where it costs none."""
        return self.gain.effect / self.extra_bits if self.extra_bits else float("nan")


def gains_frame(gains: Sequence[ProtectionGain]) -> Any:
    """Gains as a data frame (pandas), one row a gain."""
    import pandas as pd

    named = ("by", "bits", "first_kept", "against", "measure", "task", "extra_bits", "per_bit")
    return pd.DataFrame(
        [{**{n: getattr(g, n) for n in named}, **estimate_columns("gain", g.gain)} for g in gains]
    )


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class StateQuantizationResult(Brief):
    """Every arm of the factorial on neutral text and on tasks."""

    arms: tuple[QuantizationArm, ...]
    extra_bits: dict[str, float]
    """Of each arm by name, see `QuantizationArm.extra_bits`."""
    massive_per_head: dict[str, float]
    """Massive channels of a head by projection, mean over heads and layers."""
    effects: EffectsResult
    """Cross-entropy and attention; full precision is `intact`."""
    errors: StateErrors
    gains: tuple[ProtectionGain, ...]
    cells: tuple[Cell, ...]
    """Scores of full precision first, then of the arms that were asked."""
    contrasts: tuple[ArmContrast, ...]
    """Loss of contextual minus parametric tasks; massive kept beyond the random control."""
    config: StateQuantizationConfig
    provenance: Provenance

    def gain(
        self,
        bits: int,
        *,
        by: Measured = "massive",
        against: Against = "others",
        first_kept: bool = False,
        measure: Measure = "cross_entropy",
        task: str | None = None,
    ) -> ProtectionGain:
        """One gain.

        Raises:
            ValueError: If there is none such.
        """
        asked = (by, bits, first_kept, against, measure, task)
        for one in self.gains:
            own = (one.by, one.bits, one.first_kept, one.against, one.measure, one.task)
            if own == asked:
                return one
        raise ValueError(f"a gain must be one of the result's gains, got {asked}")

    def to_frame(self) -> Any:
        """Neutral text, errors and storage as a data frame (pandas), one row an arm."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        by_name = {arm.name: arm for arm in self.arms}
        for name in self.effects.arms:
            arm = by_name.get(name)
            row: dict[str, Any] = {
                "arm": name,
                "bits": None if arm is None else arm.plan.bits,
                "protected": None if arm is None else arm.protected,
                "first_kept": None if arm is None else arm.plan.keep_first,
                "hadamard": None if arm is None else arm.plan.hadamard,
                "extra_bits": self.extra_bits.get(name, float("nan")),
            }
            for measure, value in self.effects.of(name).items():
                row |= estimate_columns(measure, value)
            for projection in self.errors.projections if arm is not None else ():
                for part, value in self.errors.of(name, projection).items():
                    row[f"error_{projection}_{part}"] = value.effect
            rows.append(row)
        return pd.DataFrame(rows)

    def gains_frame(self) -> Any:
        """Gains as a data frame (pandas), one row a gain."""
        return gains_frame(self.gains)

    def scores_frame(self) -> Any:
        """Scores as a data frame (pandas), one row a cell."""
        return scores_frame(self.cells)
