"""What keeping the rows that write massive channels exact saves of rounded weights (C7).

Answers by arms in which W_Q and W_K are rounded to nearest and all else stays as it is: the rows
that write the massive channels of each head kept exact, or equally many random, same-band or
norm-matched rows, or none. Each is measured on neutral text, on the states that it makes and on
tasks. Costs a pass a passage and arm, and one evaluation of every task an arm asked.

Does not show: anything about the other weights, or about methods that correct the rounding. A row
has scales of its own: unlike a channel of quantized states, a kept row makes no other row finer.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mi_massive._brief import Brief
from mi_massive._cells import kept, kept_evaluation, task_key
from mi_massive._checks import require_in_range, require_not_empty, require_positive
from mi_massive._protection_gains import task_gains, text_gains
from mi_massive.attention_effects import EffectsResult, measure_contexts
from mi_massive.axes import Projection
from mi_massive.contrasts import ArmContrast, contrasts
from mi_massive.evaluation import evaluate_within
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import TokenizedPrompts
from mi_massive.protection import Against, Measure, ProtectionGain, gains_frame
from mi_massive.quantization_arms import (
    SEEDED,
    Control,
    Protected,
    QuantizationArm,
    protected_channels,
)
from mi_massive.quantization_plans import QuantizationPlan
from mi_massive.quantization_schemes import require_divides
from mi_massive.records import Provenance
from mi_massive.scores import INTACT, Cell, EvaluationConfig, TaskResult, cells_of
from mi_massive.state_errors import StateErrors, compare_states
from mi_massive.tasks.base import Task
from mi_massive.weight_rows import ROW_PROJECTIONS, RoundedRows, rounded_rows, row_layers

Context = Callable[[], AbstractContextManager[RoundedRows]]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightProtectionConfig:
    """The factorial on the rows of W_Q and W_K."""

    bits: tuple[int, ...] = (4, 3, 2)
    group: int = 64
    """Inputs of a row that share a scale."""
    controls: tuple[Control, ...] = ("random", "same_band", "norm_matched")
    n_seeds: int = 3
    """Of controls that draw their rows."""
    ratio: float = 5.0
    """Massive threshold in multiples of the head's mean norm, before the rotation."""
    task_bits: tuple[int, ...] = ()
    """Bits at which tasks are asked."""

    def __post_init__(self) -> None:
        """Refuse a factorial without levels."""
        require_not_empty("bits", self.bits, remedy="give at least one number")
        for bits in self.bits:
            require_in_range("bits", bits, low=2, high=8, unit="bits of a weight")
        if len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits must name each number once, got {self.bits}")
        if not set(self.task_bits) <= set(self.bits):
            raise ValueError(f"task_bits must be among bits {self.bits}, got {self.task_bits}")
        require_positive("ratio", self.ratio)
        require_in_range("n_seeds", self.n_seeds, low=1, high=100, unit="seeds")

    def arms(self, *, rotates: bool = True) -> tuple[QuantizationArm, ...]:
        """Bits x rows kept. Of an arm's plan its bits count, and the stage of the norms.

        Args:
            rotates: Whether the model does; without, no stage lies before the rotation.
        """
        rows: list[tuple[Protected, int]] = [("none", 0), ("massive", 0)]
        for control in self.controls:
            for seed in range(self.n_seeds if control in SEEDED else 1):
                rows.append((control, seed))
        stage = "unrotated" if rotates else "attention"
        return tuple(
            QuantizationArm(
                plan=QuantizationPlan(bits=bits, stage=stage),
                protected=protected,
                ratio=self.ratio,
                seed=seed,
            )
            for bits in self.bits
            for protected, seed in rows
        )


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class WeightProtectionResult(Brief):
    """Every arm of the factorial on neutral text, on states and on tasks."""

    arms: tuple[QuantizationArm, ...]
    extra_bits: dict[str, float]
    """Of each arm: bits per weight of W_Q and W_K beyond the others', for rows kept in 16 bits."""
    massive_per_head: dict[str, float]
    """Rows of a head that write massive channels, mean over heads and layers."""
    effects: EffectsResult = field(repr=False)
    """Cross-entropy and attention; full precision is `intact`."""
    errors: StateErrors
    """Of queries and keys as they enter the attention."""
    gains: tuple[ProtectionGain, ...] = field(repr=False)
    cells: tuple[Cell, ...] = field(repr=False)
    contrasts: tuple[ArmContrast, ...] = field(repr=False)
    config: WeightProtectionConfig

    @property
    def provenance(self) -> Provenance:
        """Of the model at full precision; the digest is that of the neutral text."""
        return self.effects.provenance

    def to_frame(self) -> Any:
        """Gains as a data frame (pandas), one row each."""
        return gains_frame(self.gains)

    def gain(
        self,
        bits: int,
        *,
        against: Against = "others",
        measure: Measure = "cross_entropy",
        task: str | None = None,
    ) -> ProtectionGain:
        """What the massive rows gain at one number of bits.

        Raises:
            ValueError: If there is no such gain.
        """
        for one in self.gains:
            if (one.bits, one.against, one.measure, one.task) == (bits, against, measure, task):
                return one
        asked = (bits, against, measure, task)
        raise ValueError(f"a gain must be one of the result's gains, got {asked}")


def run_weight_protection(
    model: HookedModel,
    tasks: Sequence[Task],
    neutral: TokenizedPrompts,
    norms: AttentionNorms,
    *,
    config: WeightProtectionConfig,
    evaluation: EvaluationConfig,
    n_resamples: int = 2000,
    seed: int = 0,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> WeightProtectionResult:
    """Measure full precision and every arm.

    Args:
        model: From `load_model`; its weights are changed while an arm runs, and put back.
        tasks: Asked at `config.task_bits`; those of `load_tasks`.
        neutral: Texts whose cross-entropy is measured.
        norms: From `capture_norms`; they decide which channels are massive.
        config: Levels of the factorial.
        evaluation: How tasks are asked.
        n_resamples: Of the contrasts' bootstrap.
        seed: Of every bootstrap and test.
        cells: Folder for finished pieces; see `compare_quantized`.
        on_progress: Called with the number of arms finished since the last call.

    Raises:
        ValueError: If the group does not divide the inputs of a layer.
        UnsupportedModelError: If the model has no separate W_Q and W_K.
    """
    for projection, layers in row_layers(model).items():
        for layer in layers:
            require_divides(config.group, layer.in_features, f"{projection}_proj")
    arms = config.arms(rotates=model.geometry.rotates)
    masks = {arm.name: arm.masks(norms) for arm in arms}
    contexts: dict[str, Context] = {
        arm.name: partial(
            rounded_rows, model, bits=arm.plan.bits, group=config.group, keep=masks[arm.name]
        )
        for arm in arms
    }
    massive: dict[Projection, Tensor] = {
        p: protected_channels(norms, p, "massive", ratio=config.ratio) for p in ROW_PROJECTIONS
    }
    places = {"group": config.group, "norms": norms.provenance.prompts_digest}
    arguments = {"arms": list(arms), "prompts": neutral.digest, **places}
    text = partial(measure_contexts, model, neutral, contexts)
    effects = kept(cells, "rounded-rows-text", model, arguments, text)
    changed = {name: partial(_changed, model, context) for name, context in contexts.items()}
    states = partial(compare_states, model, neutral, changed, massive=massive)
    errors = kept(cells, "rounded-rows-states", model, arguments, states)
    if on_progress is not None:
        on_progress(len(arms))
    asked = [arm for arm in arms if arm.plan.bits in config.task_bits]
    intact: list[TaskResult] = []
    by_arm: dict[str, list[TaskResult]] = {arm.name: [] for arm in asked}
    for task in tasks if asked else ():
        intact.append(
            kept_evaluation(cells, INTACT, model, task, intervention=None, config=evaluation)
        )
        for arm in asked:
            arguments = {"task": task_key(task), "rows": arm, "config": evaluation, **places}
            ask = partial(evaluate_within, model, task, contexts[arm.name], evaluation)
            by_arm[arm.name].append(kept(cells, f"{task.name}-rows", model, arguments, ask))
            if on_progress is not None:
                on_progress(1)
    extra = {arm.name: arm.extra_bits(masks[arm.name], n_tokens=1) for arm in arms}
    gains = text_gains(arms, effects, extra, seed=seed)
    found: list[ArmContrast] = []
    for readout in evaluation.readouts if intact else ():
        gains += task_gains(asked, by_arm, extra, readout=readout, seed=seed)
        found += contrasts(
            intact, by_arm, readout=readout, controls={}, n_resamples=n_resamples, seed=seed
        )
    written = QuantizationArm(plan=arms[0].plan, protected="massive", ratio=config.ratio)
    rows = written.masks(norms)
    return WeightProtectionResult(
        arms=arms,
        extra_bits=extra,
        massive_per_head={p: float(rows[p].sum(dim=-1).float().mean()) for p in ROW_PROJECTIONS},
        effects=effects,
        errors=errors,
        gains=tuple(gains),
        cells=cells_of(intact, by_arm, seed=seed) if intact else (),
        contrasts=tuple(found),
        config=config,
    )


@contextmanager
def _changed(model: HookedModel, context: Context) -> Generator[HookedModel]:
    """The model itself while its rows are rounded."""
    with context():
        yield model
