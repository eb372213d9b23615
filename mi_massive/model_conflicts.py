"""The conflicts of one model: what its tokenizer can say in one token, and what it knows.

Costs nothing to make and two passes a conflict to ask. Whether a model follows the context or keeps
to its memory is measured by `mi_massive.conflict`.
"""

from collections.abc import Sequence
from typing import Any, cast

from mi_massive._checks import require_positive
from mi_massive._conflict_answers import ask_conflicts
from mi_massive.conflict_scores import DECIDING, ConflictReadout, said
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.tasks.conflicts import Conflict, ConflictSet, make_conflicts


def load_conflicts(
    model: HookedModel,
    *,
    relations: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ConflictSet:
    """Make the conflicts whose answers are single tokens for a model's tokenizer.

    Args:
        model: From `load_model`.
        relations: Names of relations; None takes all.
        limit: At most so many subjects in all; None takes all.
        seed: Of the order, the styles, the false objects and the filler.

    Raises:
        ValueError: If the model has no tokenizer, a relation does not exist, or nothing is left.
        UnsupportedModelError: If the model is no decoder with a language-modelling head.
    """
    if not (model.is_causal and model.has_head):
        raise UnsupportedModelError(
            f"{model.name} must be a decoder with a language-modelling head to be asked, got none"
        )
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.name} must exist to write prompts, got none")
    tokenizer = cast(Any, model.tokenizer)

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    return make_conflicts(encode, relations=relations, limit=limit, seed=seed)


def known_conflicts(
    model: HookedModel,
    conflicts: ConflictSet,
    *,
    limit: int | None = None,
    known: ConflictReadout = DECIDING,
    batch_size: int = 8,
) -> tuple[Conflict, ...]:
    """The conflicts whose fact the intact model gives closed-book: those worth patching.

    Args:
        model: From `load_model`.
        conflicts: From `load_conflicts`, for this model.
        limit: Ask no further once so many are known; None asks all.
        known: What counts as known, see `ConflictConfig.known`.
        batch_size: Prompts of a batch.

    Returns:
        The first of them in order; none where the model knows nothing.

    Raises:
        ValueError: If `limit` is not positive, or a prompt does not fit the context.
        UnsupportedModelError: If the model cannot generate.
    """
    if limit is not None:
        require_positive("limit", limit)
    found: list[Conflict] = []
    size = 4 * batch_size
    for start in range(0, len(conflicts.conflicts), size):
        asked = conflicts.conflicts[start : start + size]
        told = ask_conflicts(model, asked, conflicts.candidates, None, batch_size=batch_size)
        answers = said(told, known, closed_book=True)
        found += [c for c, answer in zip(asked, answers, strict=True) if answer == "memory"]
        if limit is not None and len(found) >= limit:
            break
    return tuple(found[:limit])
