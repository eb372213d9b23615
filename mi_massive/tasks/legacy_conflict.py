"""Conflict as published: a fixed false sentence about a city that is not asked about.

The yes/no questions on cities, each after the same sentence; gold is the world's truth. To compare
with published numbers only: the sentence has nothing to do with the question, so there is no
conflict, and a model that ignores its context, uses it well or says yes to everything scores alike.

Source:
    Protocol of the published code of Jin et al. 2025, arXiv:2502.01563; the sentence is our own.
"""

from dataclasses import replace
from typing import Final

from mi_massive.tasks.base import Example, Task
from mi_massive.tasks.registry import load_task

SENTENCE: Final = "The city of Madrid is in the country of Norway."
"""False, and about no city that `cities` asks about."""


def legacy_conflict(*, limit: int, seed: int = 0) -> Task:
    """Make the published task.

    Args:
        limit: Questions, two a fact.
        seed: As for `load_task`.

    Raises:
        ValueError: If `limit` is not positive.
    """
    cities = load_task("cities", limit=limit, seed=seed)
    return replace(
        cities,
        name="legacy_conflict",
        kind="parametric",
        summary="Yes/no questions on cities after a false sentence about another city.",
        examples=tuple(_after_sentence(example) for example in cities.examples),
    )


def _after_sentence(example: Example) -> Example:
    return replace(
        example,
        prompt=f"{SENTENCE}\n{example.prompt}",
        question=f"{SENTENCE} {example.question}",
        condition="legacy_conflict",
    )
