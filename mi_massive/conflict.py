"""When the prompt says one thing and the weights another, which does the model follow (C6)?

Answers, for the intact model and under each arm: the shares that follow the context, keep memory or
do neither; how many examples flip, and where to; and whether the fact is still there closed-book,
which tells a model that falls back on its memory from one that has lost both. Only facts that the
intact model gives after a neutral context of equal length are conflicts; how many these are is part
of the result. Costs two passes a conflict and arm. Cells are kept on disk if a folder is given.

Does not show: how the model decides; `mi_massive.prompt_pairs` feeds the patching that does. That
memory was used: an answer is named after the one that holds it. Closed-book, the intact model is
right on every conflict by selection, so that arms can only lose there.

Source:
    Claim of Jin et al. 2025, arXiv:2502.01563.
    Differs: real conflicts, single-token answers, known facts alone, matched controls. For the
    published protocol see `ConflictConfig.legacy_examples`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mi_massive._brief import Brief
from mi_massive._cells import kept
from mi_massive._checks import require_in_range
from mi_massive._columns import estimate_columns
from mi_massive._conflict_answers import ask_conflicts, ask_legacy, require_independent
from mi_massive.arms import Arm, matched_controls, prepare_arms
from mi_massive.attention_effects import EffectsResult
from mi_massive.conflict_scores import (
    DECIDING,
    ConflictAnswers,
    ConflictCell,
    ConflictReadout,
    conflict_cells,
    said,
)
from mi_massive.interventions import Intervention
from mi_massive.known_facts import KnownFacts, known_facts
from mi_massive.models.base import HookedModel
from mi_massive.records import Provenance
from mi_massive.scores import INTACT, Cell
from mi_massive.stats import Estimate
from mi_massive.tasks.conflicts import Conflict, ConflictSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictConfig:
    """How conflicts are measured."""

    known: ConflictReadout = DECIDING
    """A fact counts as known if the intact model gives it after the neutral context in this
    read-out. `candidates`: before all other objects of its relation; `next_token` is stricter,
    `two_answers` laxer: before the one counterfactual, which half of all guesses are."""
    batch_size: int = 8
    legacy_examples: int = 0
    """Questions of the published protocol (`mi_massive.tasks.legacy_conflict`); 0 leaves it out."""
    n_neutral: int = 8
    """Default passages on which attention and cross-entropy are measured, and arms matched."""
    neutral_length: int = 64
    """Tokens of each."""
    n_resamples: int = 2000
    """Of the bootstrap over examples."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        require_in_range("batch_size", self.batch_size, low=1, high=1 << 20, unit="prompts")
        require_in_range("legacy_examples", self.legacy_examples, low=0, high=220, unit="examples")
        require_in_range("n_neutral", self.n_neutral, low=2, high=32, unit="passages")
        require_in_range("neutral_length", self.neutral_length, low=8, high=1 << 20, unit="tokens")
        require_in_range("n_resamples", self.n_resamples, low=1, high=10**6, unit="resamples")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ConflictResult(Brief):
    """Every arm on the conflicts that the intact model knows."""

    arms: tuple[Arm, ...]
    known: tuple[KnownFacts, ...]
    cells: tuple[ConflictCell, ...]
    """See `conflict_cells`; all NaN where the model knows nothing."""
    legacy: tuple[Cell, ...]
    """The published protocol; empty unless asked for."""
    effects: EffectsResult
    config: ConflictConfig
    provenance: Provenance

    @property
    def n_known(self) -> int:
        """Conflicts: asked facts that the intact model knows."""
        return sum(entry.n_known for entry in self.known)

    @property
    def judged(self) -> Arm | None:
        """The paper's edit at the first k with a matched control, or at its first k; or None."""
        arms = [arm for arm in self.arms if arm.preset == "paper"]
        controlled = matched_controls(self.arms)
        return next((a for a in arms if a.name in controlled), arms[0] if arms else None)

    def cell(
        self,
        arm: str,
        *,
        readout: ConflictReadout = DECIDING,
        relation: str | None = None,
        style: str | None = None,
    ) -> ConflictCell:
        """The cell of an arm on all conflicts, or on those of one relation or style.

        Raises:
            ValueError: If there is none.
        """
        part = (relation, style, readout)
        for cell in self.cells:
            if cell.arm == arm and cell.part == part:
                return cell
        names = ", ".join(dict.fromkeys(c.arm for c in self.cells))
        raise ValueError(f"arm must be one of {names} with a cell at {part}, got {arm!r}")

    def to_frame(self) -> Any:
        """Cells as a data frame, one row a cell."""
        import pandas as pd

        names = ConflictCell.__dataclass_fields__
        rows: list[dict[str, Any]] = []
        for cell in self.cells:
            row: dict[str, Any] = {}
            for name in names:
                value = getattr(cell, name)
                row |= (
                    estimate_columns(name, value) if isinstance(value, Estimate) else {name: value}
                )
            rows.append(row)
        return pd.DataFrame(rows)


def run_conflict(
    model: HookedModel,
    conflicts: ConflictSet,
    arms: Sequence[Arm],
    *,
    config: ConflictConfig | None = None,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ConflictResult:
    """Ask the intact model every conflict, and every arm those whose fact it knows.

    Args:
        model: From `load_model`.
        conflicts: From `load_conflicts`, for this model.
        arms: From `make_arms`; the strength of a matched one is set here (`match_arms`).
        config: What counts as known, batches, neutral text, the published protocol.
        cells: Folder for every finished piece; a later run with the same arguments takes them from
            there.
        on_progress: Called with the number of conditions finished since the last call: the intact
            model and each arm, twice with the published protocol.

    Returns:
        The result. A model that knows no fact gives counts, and NaN for everything else.

    Raises:
        ValueError: If two arms have one name, a subject is asked twice, a control cannot be
            matched, or a prompt does not fit the context.
        UnsupportedModelError: If the model cannot generate.
    """
    config = config or ConflictConfig()
    require_independent(conflicts.conflicts)
    arms, effects = prepare_arms(
        model,
        arms,
        n_neutral=config.n_neutral,
        neutral_length=config.neutral_length,
        cells=cells,
    )
    edits = {arm.name: arm.intervention for arm in arms}
    asked = partial(_answers, model, conflicts, config, cells, on_progress)
    everything = asked(None, INTACT, conflicts.conflicts)
    knows = [s == "memory" for s in said(everything, config.known, closed_book=True)]
    known = [c for c, knows_it in zip(conflicts.conflicts, knows, strict=True) if knows_it]
    intact = replace(
        everything,
        answers=tuple(a for a, knows_it in zip(everything.answers, knows, strict=True) if knows_it),
    )
    by_arm = {name: asked(edit, name, known) for name, edit in edits.items()}
    legacy = ask_legacy(
        model, edits, config.legacy_examples, cells, on_progress, batch_size=config.batch_size
    )
    return ConflictResult(
        arms=arms,
        known=known_facts(conflicts, knows),
        cells=conflict_cells(
            intact,
            by_arm,
            controls=matched_controls(arms),
            n_resamples=config.n_resamples,
            seed=config.seed,
        ),
        legacy=legacy,
        effects=effects,
        config=config,
        provenance=everything.provenance,
    )


def _answers(
    model: HookedModel,
    every: ConflictSet,
    config: ConflictConfig,
    cells: Path | None,
    on_progress: Callable[[int], None] | None,
    intervention: Intervention | None,
    label: str,
    conflicts: Sequence[Conflict],
) -> ConflictAnswers:
    """One condition on some of the conflicts, from the folder if it is there."""
    found = kept(
        cells,
        f"conflict-{label}",
        model,
        {
            "conflicts": every.digest,
            "asked": [conflict.id for conflict in conflicts],
            "edit": intervention,
            "batch_size": config.batch_size,
        },
        partial(
            ask_conflicts,
            model,
            conflicts,
            every.candidates,
            intervention,
            batch_size=config.batch_size,
        ),
    )
    if on_progress is not None:
        on_progress(1)
    return found
