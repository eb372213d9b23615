"""Answers to twelve conflicts under two edits: one falls back on memory, one destroys."""

import numpy as np
import sample_results as sample

from mi_massive.arms import Arm
from mi_massive.conflict import ConflictConfig, ConflictResult
from mi_massive.conflict_scores import (
    CONFLICT_READOUTS,
    ConflictAnswer,
    ConflictAnswers,
    Reading,
    Said,
    conflict_cells,
)
from mi_massive.known_facts import KnownFacts
from mi_massive.proportions import proportion
from mi_massive.tasks.conflicts import RelationCount

N = 12
BACK, DESTROYED = Arm(preset="paper", k=4), Arm(preset="random", k=4)
HARMLESS = (Arm(preset="smallest", k=4), Arm(preset="same_band", k=4))
RELATIONS = ("country_capital", "athlete_sport")


def answers(given: list[Said], recalled: Said, model: str) -> ConflictAnswers:
    def reading(what: Said, diff: float) -> Reading:
        return Reading(said=dict.fromkeys(CONFLICT_READOUTS, what), logit_diff=diff)

    return ConflictAnswers(
        answers=tuple(
            ConflictAnswer(
                id=str(i),
                relation=RELATIONS[i % 2],
                style="quoted" if i % 3 else "assertive",
                conflict=reading(what, 2.0 if what == "context" else -1.0),
                closed_book=reading(recalled, 0.0),
            )
            for i, what in enumerate(given)
        ),
        n_edits=0,
        provenance=sample.provenance(model),
    )


def conflict_result(model: str = "smollm2-135m-instruct") -> ConflictResult:
    """The intact model follows the context in 10 of 12 conflicts, and keeps memory in 2."""
    before: list[Said] = ["context"] * 10 + ["memory"] * 2
    edited = {
        BACK.name: answers(["memory"] * N, "memory", model),
        DESTROYED.name: answers(["neither"] * N, "neither", model),
        **{arm.name: answers(before, "memory", model) for arm in HARMLESS},
    }
    return ConflictResult(
        arms=(BACK, DESTROYED, *HARMLESS),
        known=tuple(
            KnownFacts(
                relation=name,
                counts=RelationCount(
                    relation=name,
                    subjects=60,
                    kept=20,
                    not_one_token=38,
                    too_few_alternatives=1,
                    not_aligned=1,
                ),
                asked=8,
                known=proportion(np.array([True] * 6 + [False] * 2), null=0.05),
            )
            for name in RELATIONS
        ),
        cells=conflict_cells(answers(before, "memory", model), edited, controls={}),
        legacy=(),
        effects=sample.effects(()),
        config=ConflictConfig(),
        provenance=sample.provenance(model),
    )
