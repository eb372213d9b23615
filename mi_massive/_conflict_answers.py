"""Ask a model conflicts, intact or disrupted, and read each next token in three ways."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from mi_massive._cells import kept_evaluation
from mi_massive._checks import require_not_empty
from mi_massive.capture import provenance_of
from mi_massive.conflict_scores import (
    CONFLICT_READOUTS,
    ConflictAnswer,
    ConflictAnswers,
    Reading,
    Said,
)
from mi_massive.interventions import Edits, Intervention, disrupt
from mi_massive.models.base import HookedModel
from mi_massive.next_tokens import NextToken, next_tokens
from mi_massive.prompts import TokenizedPrompts
from mi_massive.scores import INTACT, Cell, EvaluationConfig, TaskResult, cells_of
from mi_massive.tasks.conflicts import Conflict
from mi_massive.tasks.legacy_conflict import legacy_conflict


def ask_conflicts(
    model: HookedModel,
    conflicts: Sequence[Conflict],
    candidates: Mapping[str, Sequence[int]],
    intervention: Intervention | None,
    *,
    batch_size: int,
) -> ConflictAnswers:
    """What a model says after the conflicting and after the neutral context of each conflict.

    Args:
        model: From `load_model`.
        conflicts: Which; none give no answers.
        candidates: By relation the tokens of its objects.
        intervention: What is edited meanwhile; None leaves the model intact.
        batch_size: Prompts of a batch; changes nothing but rounding.
    """
    prompts = TokenizedPrompts(
        input_ids=tuple(ids for c in conflicts for ids in (c.conflicting, c.neutral)),
        texts=tuple(
            f"{context}\n{c.cloze}" for c in conflicts for context in (c.context, c.neutral_context)
        ),
        n_truncated=0,
    )
    asked = [candidates[c.relation] for c in conflicts for _ in range(2)]
    found: list[NextToken] = []
    n_edits = 0
    if conflicts:
        with nullcontext() if intervention is None else disrupt(model, intervention) as edits:
            found = next_tokens(model, prompts.input_ids, asked, batch_size=batch_size)
        n_edits = edits.total if isinstance(edits, Edits) else 0
    return ConflictAnswers(
        answers=tuple(
            ConflictAnswer(
                id=c.id,
                relation=c.relation,
                style=c.style,
                conflict=reading(c, candidates[c.relation], found[2 * i]),
                closed_book=reading(c, candidates[c.relation], found[2 * i + 1]),
            )
            for i, c in enumerate(conflicts)
        ),
        n_edits=n_edits,
        provenance=provenance_of(model, prompts, batch_size=batch_size),
    )


def reading(conflict: Conflict, candidates: Sequence[int], next_token: NextToken) -> Reading:
    """Which answer a next token gives, in each read-out.

    An answer must be more probable than every other one: a tie is neither, and so is everything
    that a model says whose log-probabilities are NaN.
    """
    scores = dict(zip(candidates, next_token.log_probs, strict=True))
    context, memory = conflict.context_answer, conflict.parametric_answer
    difference = scores[context] - scores[memory]

    def among(tokens: Sequence[int]) -> Said:
        best = max(scores[token] for token in tokens)
        winners = [token for token in tokens if scores[token] == best]
        return named(winners[0]) if len(winners) == 1 else "neither"

    def named(token: int) -> Said:
        if token == context:
            return "context"
        return "memory" if token == memory else "neither"

    if any(math.isnan(score) for score in scores.values()):
        nothing: dict[str, Said] = dict.fromkeys(CONFLICT_READOUTS, "neither")
        return Reading(said=nothing, logit_diff=difference)
    answers: dict[str, Said] = {
        "next_token": named(next_token.top),
        "candidates": among(candidates),
        "two_answers": among((context, memory)),
    }
    return Reading(said=answers, logit_diff=difference)


def require_independent(conflicts: Sequence[Conflict]) -> None:
    """Raise ValueError unless each subject of a relation is asked once: tests count examples."""
    seen: set[tuple[str, str]] = set()
    for number, conflict in enumerate(conflicts):
        if (conflict.relation, conflict.subject) in seen:
            raise ValueError(
                f"conflicts must ask each subject once, got {conflict.subject!r} again at "
                f"conflicts[{number}]; run other styles apart, with another seed"
            )
        seen.add((conflict.relation, conflict.subject))
    require_not_empty("conflicts", conflicts, remedy="take them from load_conflicts")


def ask_legacy(
    model: HookedModel,
    edits: Mapping[str, Intervention],
    n_examples: int,
    cells: Path | None,
    on_progress: Callable[[int], None] | None,
    *,
    batch_size: int,
) -> tuple[Cell, ...]:
    """The published protocol in every condition; nothing for no examples."""
    if not n_examples:
        return ()
    task = legacy_conflict(limit=n_examples)
    asking = EvaluationConfig(readouts=("generation", "options"), batch_size=batch_size)
    found: dict[str, TaskResult] = {}
    conditions: dict[str, Intervention | None] = {INTACT: None, **edits}
    for label, edit in conditions.items():
        found[label] = kept_evaluation(cells, label, model, task, intervention=edit, config=asking)
        if on_progress is not None:
            on_progress(1)
    intact = found.pop(INTACT)
    return cells_of([intact], {name: [result] for name, result in found.items()})
