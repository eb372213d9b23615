"""How many facts a model knows without help, relation by relation: only these can be conflicts.

Known is measured, never assumed: the fact must win after a neutral context. Relations without any
conflict are listed as well, with the reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mi_massive.proportions import proportion
from mi_massive.stats import Estimate
from mi_massive.tasks.conflicts import ConflictSet, RelationCount


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFacts:
    """How many conflicts of a relation there are for this model."""

    relation: str
    counts: RelationCount
    """What the tokenizer left."""
    asked: int
    known: Estimate
    """Share of the asked facts that the intact model gives closed-book; null: a guess among the
    relation's objects."""

    @property
    def n_known(self) -> int:
        """Facts that the model knows."""
        return round(self.known.effect * self.asked) if self.asked else 0


def known_facts(conflicts: ConflictSet, knows: Sequence[bool]) -> tuple[KnownFacts, ...]:
    """Count the known facts of each relation.

    Args:
        conflicts: What was asked.
        knows: For each conflict whether the model gave the fact closed-book.
    """
    found: list[KnownFacts] = []
    for counts in conflicts.counts:
        own = [
            knows_it
            for conflict, knows_it in zip(conflicts.conflicts, knows, strict=True)
            if conflict.relation == counts.relation
        ]
        candidates = conflicts.candidates.get(counts.relation, ())
        guess = 1 / len(candidates) if candidates else math.nan
        known = proportion(np.array(own, dtype=bool), null=guess)
        found.append(
            KnownFacts(relation=counts.relation, counts=counts, asked=len(own), known=known)
        )
    return tuple(found)
