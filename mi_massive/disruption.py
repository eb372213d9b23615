"""The paper's central experiment on one model: tasks and neutral text under each arm (C4, C5).

Answers whether losing the massive values costs a model its use of context more than its stored
knowledge, and what matched controls cost. Costs one evaluation of every task an arm. Cells are kept
on disk if a folder is given, so that a killed run goes on where it stopped.

Does not show: a cause beyond what the arms hold equal. `paper` differs from `smallest` in almost
everything; read it beside `norm_matched`, `same_band`, `effect_matched` and the two sink arms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mi_massive._arm_costs import arm_costs
from mi_massive._brief import Brief
from mi_massive._cells import kept_evaluation
from mi_massive._checks import require_in_range, require_not_empty
from mi_massive._columns import estimate_columns
from mi_massive._score_frames import scores_frame
from mi_massive.arms import Arm, prepare_arms
from mi_massive.attention_effects import EffectsResult
from mi_massive.contrasts import ArmContrast
from mi_massive.control_comparisons import ControlComparison
from mi_massive.evaluation import with_tasks
from mi_massive.interventions import Intervention
from mi_massive.models.base import HookedModel
from mi_massive.records import Provenance
from mi_massive.scores import INTACT, Cell, EvaluationConfig, TaskResult, cells_of
from mi_massive.seed_spreads import SeedSpread, seed_spreads
from mi_massive.tasks.base import Task, require_different_names


@dataclass(frozen=True, kw_only=True, slots=True)
class DisruptionConfig:
    """How the arms are measured."""

    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(readouts=("generation", "options"))
    )
    """Read-outs that a task does not have are left out for it."""
    generated: tuple[str, ...] | None = None
    """Tasks to generate answers for; the others are read by their options where they have any.
    None: all."""
    n_neutral: int = 8
    """Default passages on which attention and cross-entropy are measured. Under six no two-sided
    sign-flip test over passages can be significant."""
    neutral_length: int = 64
    """Tokens of each."""
    n_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an experiment without neutral text."""
        require_in_range("n_neutral", self.n_neutral, low=2, high=32, unit="passages")
        require_in_range("neutral_length", self.neutral_length, low=8, high=1 << 20, unit="tokens")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class DisruptionResult(Brief):
    """Every arm on every task, with what each does to neutral text."""

    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]
    """The intact model first, then the arms in order; tasks in order within each."""
    contrasts: tuple[ArmContrast, ...]
    effects: EffectsResult
    config: DisruptionConfig
    provenance: Provenance
    comparisons: tuple[ControlComparison, ...] = ()
    """Each treatment beside the intact model and every control, task by task."""

    @property
    def judged(self) -> Arm | None:
        """The arm that claims are about: the paper's edit at the first k with a matched control.

        At its first k without such a control; None without that edit.
        """
        arms = [arm for arm in self.arms if arm.preset == "paper"]
        controlled = {c.arm for c in self.contrasts if c.control is not None}
        return next((a for a in arms if a.name in controlled), arms[0] if arms else None)

    @property
    def seed_spreads(self) -> tuple[SeedSpread, ...]:
        """Controls that were run with several seeds, each over its seeds beside `paper`."""
        return seed_spreads(self.arms, self.contrasts)

    def to_frame(self) -> Any:
        """Scores as a data frame, one row a cell."""
        return scores_frame(self.cells)

    def comparisons_frame(self) -> Any:
        """Treatments beside controls, task by task, as a data frame."""
        import pandas as pd

        rows = [
            {
                **{n: getattr(c, n) for n in ("arm", "control", "n_seeds", "task", "readout")},
                **estimate_columns("score", c.score),
                **estimate_columns("logit_diff", c.logit_diff),
            }
            for c in self.comparisons
        ]
        return pd.DataFrame(rows)

    def effects_frame(self) -> Any:
        """Attention and cross-entropy on neutral text as a data frame, one row an arm."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for arm in self.effects.arms:
            measures = self.effects.of(arm)
            row: dict[str, Any] = {"arm": arm, "strength": self.effects.strengths.get(arm)}
            for name, value in measures.items():
                row |= estimate_columns(name, value)
            rows.append(row)
        return pd.DataFrame(rows)


def run_disruption(
    model: HookedModel,
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    *,
    config: DisruptionConfig | None = None,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_result: Callable[[str, TaskResult], None] | None = None,
) -> DisruptionResult:
    """Evaluate the intact model and every arm on every task and on neutral text.

    Args:
        model: From `load_model`.
        tasks: From `load_task`.
        arms: From `make_arms`; the strength of a matched one is set here (`match_arms`).
        config: Read-outs, batches, neutral text.
        cells: Folder for every finished piece, answers included; a later run with the same
            arguments takes them from there.
        on_progress: Called with the number of (arm, task) pairs finished since the last call.
        on_result: Called with the arm and the answers of each pair as it is finished; see
            `mi_massive.answer_files`.

    Raises:
        ValueError: If two arms or two tasks have one name, a control cannot be matched, or a task
            cannot be asked (see `evaluate`).
    """
    config = config or DisruptionConfig()
    require_not_empty("tasks", tasks, remedy="load at least one with load_task")
    require_different_names(tasks)
    arms, effects = prepare_arms(
        model,
        arms,
        n_neutral=config.n_neutral,
        neutral_length=config.neutral_length,
        cells=cells,
    )
    edits = {arm.name: arm.intervention for arm in arms}

    def results(intervention: Intervention | None, label: str) -> list[TaskResult]:
        done: list[TaskResult] = []
        for task in tasks:
            asked = evaluation_of(task, config)
            done.append(
                kept_evaluation(cells, label, model, task, intervention=intervention, config=asked)
            )
            if on_result is not None:
                on_result(label, done[-1])
            if on_progress is not None:
                on_progress(1)
        return done

    intact = results(None, INTACT)
    by_arm = {arm.name: results(edits[arm.name], arm.name) for arm in arms}
    found, comparisons = arm_costs(
        arms,
        intact,
        by_arm,
        readouts=config.evaluation.readouts,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
    return DisruptionResult(
        arms=arms,
        cells=cells_of(intact, by_arm, seed=config.seed),
        contrasts=found,
        effects=effects,
        config=config,
        comparisons=comparisons,
        provenance=with_tasks(effects.provenance, intact, seed=config.seed),
    )


def evaluation_of(task: Task, config: DisruptionConfig) -> EvaluationConfig:
    """How one task is asked: in the read-outs that it has and that are wanted for it.

    Raises:
        ValueError: If none is left, or only some of its examples have options.
    """
    wanted = config.evaluation.readouts
    without = [example.id for example in task.examples if not example.options]
    if "options" in wanted and 0 < len(without) < len(task.examples):
        raise ValueError(
            f"options must be given for every example of {task.name} or for none, got none at "
            f"{without[0]!r} and {len(without) - 1} more; complete them, or ask without options"
        )
    generated = config.generated is None or task.name in config.generated or bool(without)
    has = {"options": not without, "generation": generated}
    readouts = tuple(readout for readout in wanted if has[readout])
    if not readouts:
        raise ValueError(
            f"{task.name} must have one of the read-outs {', '.join(wanted)}, got a task "
            + ("without options" if without else "whose answers are not to be generated")
            + "; ask for the other read-out, or leave it out"
        )
    return replace(config.evaluation, readouts=readouts)
