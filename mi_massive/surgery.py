"""Take the frequencies of RoPE apart in a trained model: tasks, text and heads under each surgery.

Answers what each frequency band does (C8; evidences 1 to 3 of the paper): bands that do not rotate,
bands replaced by their means, both sides of a cut with and without the massive pairs, the massive
pairs and as many others, another theta, shifted and scaled positions; pass keys against the
distance of the key; position against content in the logits of heads, band by band; and the norms
before and after the rotation. Costs one evaluation of every task an arm, and a few minutes more.
Cells are kept on disk if a folder is given, so that a killed run goes on where it stopped.

Does not show: what training without a band would give. Every surgery takes a model out of what its
weights know, so that a loss alone is no function of a band: read arms beside each other at equal
damage to neutral text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mi_massive._brief import Brief
from mi_massive._cells import kept, kept_evaluation, task_key
from mi_massive._checks import require_in_range, require_not_empty
from mi_massive._score_frames import scores_frame
from mi_massive.attention_effects import EffectsResult, measure_contexts
from mi_massive.capture import capture_norms
from mi_massive.contrasts import ArmContrast, contrasts
from mi_massive.distances import DistanceCell, answer_distances, distance_cells
from mi_massive.evaluation import evaluate_within, with_tasks
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms
from mi_massive.position_shares import PositionSharesConfig, PositionSharesResult
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.records import Provenance
from mi_massive.rotation_norms import RotationNorms, rotation_norms
from mi_massive.scores import INTACT, Cell, EvaluationConfig, Readout, TaskResult, cells_of
from mi_massive.share_capture import capture_position_shares
from mi_massive.surgery_plans import SurgeryArm, possible_arms
from mi_massive.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class SurgeryConfig:
    """How the arms are measured."""

    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(readouts=("options",))
    )
    """Read-outs of every task but those in `generated`."""
    generated: tuple[str, ...] = ()
    """Tasks answered by generation instead: what an edit costs there can be lost in the answer
    before it is lost in what the model prefers."""
    shares: PositionSharesConfig = field(default_factory=PositionSharesConfig)
    n_neutral: int = 8
    """Default passages for attention, cross-entropy and position shares."""
    neutral_length: int = 64
    """Tokens of each for attention and cross-entropy."""
    share_length: int = 192
    """Tokens of each for position shares."""
    n_distances: int = 3
    """Groups of equally many examples by the distance of the answer."""
    n_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an experiment without neutral text."""
        require_in_range("n_neutral", self.n_neutral, low=2, high=32, unit="passages")
        require_in_range("neutral_length", self.neutral_length, low=8, high=1 << 20, unit="tokens")
        require_in_range("share_length", self.share_length, low=8, high=1 << 20, unit="tokens")
        require_in_range("n_distances", self.n_distances, low=1, high=100, unit="groups")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SurgeryResult(Brief):
    """Every arm on every task and on neutral text, and what the intact heads do in each band."""

    arms: tuple[SurgeryArm, ...]
    cells: tuple[Cell, ...]
    """The intact model first, then the arms in order; tasks in order within each. `n_edits` counts
    pairs turned, or entries replaced."""
    contrasts: tuple[ArmContrast, ...]
    """Loss of contextual minus parametric tasks; the massive pairs against the random others."""
    distances: tuple[DistanceCell, ...]
    """Tasks that hide their answer in the prompt, by the answer's distance."""
    effects: EffectsResult
    shares: PositionSharesResult
    norms: tuple[RotationNorms, ...]
    """Massive dimensions of q, k and v before and after the rotation, on all default passages."""
    config: SurgeryConfig
    provenance: Provenance
    left_out: tuple[str, ...] = ()
    """Arms on massive pairs, or on as many others, of a model in which nothing is massive there."""

    def cell(self, arm: str, task: str, readout: Readout) -> Cell:
        """The score of an arm on a task in one read-out.

        Raises:
            ValueError: If there is none.
        """
        for cell in self.cells:
            if (cell.arm, cell.task, cell.readout) == (arm, task, readout):
                return cell
        names = ", ".join(dict.fromkeys(f"{c.task} ({c.readout})" for c in self.cells))
        raise ValueError(
            f"arm, task and readout must be one of the arms on one of {names}, got {arm!r}, "
            f"{task!r}, {readout!r}"
        )

    def to_frame(self) -> Any:
        """Scores as a data frame (pandas), one row a cell."""
        return scores_frame(self.cells)


def run_surgery(
    model: HookedModel,
    arms: Sequence[SurgeryArm],
    tasks: Sequence[Task],
    *,
    config: SurgeryConfig | None = None,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SurgeryResult:
    """Measure the intact model and every arm, and the bands of the intact model's heads.

    Args:
        model: From `load_model`; at least one layer must rotate.
        arms: From `surgery_arms`; what has no massive pair to treat is named in `left_out`.
        tasks: From `load_tasks`.
        config: Read-outs, batches, neutral text, bands and window of the position shares.
        cells: Folder for every finished piece; a later run with the same arguments takes them from
            there.
        on_progress: Called with the number of (arm, task) pairs finished since the last call.

    Raises:
        ValueError: If a task with distances has fewer examples than groups, two arms have one
            name, the model does not rotate, an arm's bands do not exist in it, or a task cannot be
            asked (see `evaluate`).
        UnsupportedModelError: If the model was wrapped or cannot answer.
    """
    config = config or SurgeryConfig()
    require_not_empty("tasks", tasks, remedy="load at least one with load_tasks")
    require_not_empty("arms", arms, remedy="take those of surgery_arms")
    if not model.geometry.rotates:
        raise ValueError(
            f"{model.name} must rotate its queries and keys to have its frequencies taken apart, "
            "got a model without rotary position embeddings; use run_disruption"
        )
    for task in tasks:
        if answer_distances(model.tokenizer, task) is not None:  # before anything is computed
            require_in_range(
                "n_distances", config.n_distances, low=1, high=len(task.examples), unit="examples"
            )
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names) or INTACT in names:
        raise ValueError(
            f"arms must have different names and none may be called {INTACT!r}, got {names}"
        )
    passages = tokenize_prompts(model.tokenizer, default_passages())
    norms = kept(
        cells, "norms", model, {"p": passages.digest}, partial(capture_norms, model, passages)
    )
    arms = possible_arms(model, arms, norms)
    require_not_empty("arms", arms, remedy="nothing is massive here: take others of surgery_arms")
    contexts = {arm.name: arm.context(model, norms) for arm in arms}
    intact: list[TaskResult] = []
    by_arm: dict[str, list[TaskResult]] = {arm.name: [] for arm in arms}
    for task in tasks:
        asked = replace(config.evaluation, readouts=_readouts(task, config))
        intact.append(kept_evaluation(cells, INTACT, model, task, intervention=None, config=asked))
        for arm in arms:
            # Norms on the default passages decide what is massive.
            arguments = {
                "task": task_key(task),
                "surgery": arm,
                "config": asked,
                "p": passages.digest,
            }
            run = partial(evaluate_within, model, task, contexts[arm.name], asked)
            by_arm[arm.name].append(kept(cells, f"{task.name}-{arm.name}", model, arguments, run))
            if on_progress is not None:
                on_progress(1)
    effects = _effects(model, arms, contexts, config, cells)
    readouts: list[Readout] = ["options", "generation"]
    return SurgeryResult(
        arms=tuple(arms),
        cells=cells_of(intact, by_arm, seed=config.seed),
        contrasts=tuple(
            contrast
            for readout in readouts
            if any(readout in result.config.readouts for result in intact)
            for contrast in contrasts(
                intact,
                by_arm,
                readout=readout,
                controls=_controls(arms),
                n_resamples=config.n_resamples,
                seed=config.seed,
            )
        ),
        distances=_distances(model, tasks, intact, by_arm, config),
        effects=effects,
        shares=_shares(model, norms, config, cells),
        norms=rotation_norms(norms),
        config=config,
        provenance=with_tasks(effects.provenance, intact, seed=config.seed),
        left_out=tuple(name for name in names if name not in contexts),
    )


def _readouts(task: Task, config: SurgeryConfig) -> tuple[Readout, ...]:
    return ("generation",) if task.name in config.generated else config.evaluation.readouts


def _controls(arms: Sequence[SurgeryArm]) -> dict[str, tuple[str, ...]]:
    """For arms on the massive pairs those that do the same to random others."""
    return {
        arm.name: tuple(control.name for control in arms if _same_to_random(arm, control))
        for arm in arms
        if arm.pairs.among == "massive"
    }


def _same_to_random(arm: SurgeryArm, control: SurgeryArm) -> bool:
    return (
        control.pairs.among == "random"
        and arm.surgery is not None
        and control.surgery is not None
        and arm.pairs.bands == control.pairs.bands
        and (arm.surgery.change, arm.surgery.amount)
        == (control.surgery.change, control.surgery.amount)
    )


def _effects(
    model: HookedModel,
    arms: Sequence[SurgeryArm],
    contexts: dict[str, Any],
    config: SurgeryConfig,
    cells: Path | None,
) -> EffectsResult:
    neutral = tokenize_prompts(
        model.tokenizer, default_passages()[: config.n_neutral], max_length=config.neutral_length
    )
    return kept(
        cells,
        "surgery-effects",
        model,
        {"arms": list(arms), "prompts": neutral.digest},
        partial(measure_contexts, model, neutral, contexts),
    )


def _shares(
    model: HookedModel, norms: AttentionNorms, config: SurgeryConfig, cells: Path | None
) -> PositionSharesResult:
    prompts = tokenize_prompts(
        model.tokenizer, default_passages()[: config.n_neutral], max_length=config.share_length
    )
    return kept(
        cells,
        "position-shares",
        model,
        {"prompts": prompts.digest, "config": config.shares},
        partial(capture_position_shares, model, prompts, config=config.shares),
    )


def _distances(
    model: HookedModel,
    tasks: Sequence[Task],
    intact: Sequence[TaskResult],
    by_arm: dict[str, list[TaskResult]],
    config: SurgeryConfig,
) -> tuple[DistanceCell, ...]:
    found: list[DistanceCell] = []
    for index, task in enumerate(tasks):
        distances = answer_distances(model.tokenizer, task)
        if distances is not None:
            results = {name: own[index] for name, own in by_arm.items()}
            found += distance_cells(
                intact[index], results, distances, n_groups=config.n_distances, seed=config.seed
            )
    return tuple(found)
