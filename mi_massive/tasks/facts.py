"""Facts: yes/no questions about what training stored, a hundred facts a category, asked twice.

Answers: does the model tell a true statement from a false one without any context? Each fact is
asked once with its true object (yes) and once with another one of the same kind (no), so always
answering yes gives exactly one half.

Does not show: graded knowledge. A yes/no question has a floor of one half: a fall from 95 % to 72 %
is a loss of half of what was there. Small models answer every question alike; the log-probability
of the options, or `pairs_closed_book`, shows then what generation hides. The facts are well known;
rare ones may behave differently.

Source:
    Categories of Jin et al. 2025, arXiv:2502.01563; facts and wording are our own (cities from
    GeoNames, CC BY 4.0, see the data file).
    Differs: balanced exactly; graded by the first clear verdict, not by substrings.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from mi_massive.tasks.base import Example, Task, TaskInput, TaskSource
from mi_massive.tasks.scoring import grade_verdict, legacy_grade_verdict

CATEGORIES: Final = ("cities", "sports", "art", "technology", "celebrity")
"""Categories of the yes/no tasks; `geography` serves the matched tasks alone."""

_DATA: Final = Path(__file__).parents[1] / "data" / "facts"
_ANSWERS: Final = ("yes", "no")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A true fact, another object of the same kind, and the templates of its relation."""

    relation: str
    subject: str
    answer: str
    """The true object."""
    counterfactual: str
    """Another object of the same kind, with which the statement is false."""
    question: str = field(repr=False)
    """Template with {subject} and {object}: a yes/no question."""
    statement: str = field(repr=False)
    """Template with {subject} and {object}: a sentence that asserts it."""
    cloze: str = field(repr=False)
    """Template with {subject}: a sentence that lacks its end, the object."""

    def asserted(self, thing: str) -> str:
        """The sentence that asserts the object `thing`."""
        return self.statement.format(subject=self.subject, object=thing)


@cache
def load_facts(category: str) -> tuple[Fact, ...]:
    """Return the facts of one of the package's data files, in their order there."""
    data = json.loads((_DATA / f"{category}.json").read_text(encoding="utf-8"))
    return tuple(
        Fact(
            **{key: fact[key] for key in ("relation", "subject", "answer", "counterfactual")},
            **{key: data["relations"][fact["relation"]][key] for key in _TEMPLATES},
        )
        for fact in data["facts"]
    )


_TEMPLATES: Final = ("question", "statement", "cloze")


def alternated(facts: Iterable[Fact], rng: random.Random) -> list[Fact]:
    """Facts in random order, the relations by turns until the shorter ones are used up."""
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    for members in by_relation.values():
        rng.shuffle(members)
    longest = max((len(members) for members in by_relation.values()), default=0)
    return [
        members[i] for i in range(longest) for members in by_relation.values() if i < len(members)
    ]


def _build(source: TaskSource, given: TaskInput) -> Task:
    rng = random.Random(f"{source.name}:{given.seed}")
    facts = alternated(load_facts(source.name), rng)
    # A fact's two questions stand side by side, in random order.
    asked = [(fact, answer) for fact in facts for answer in rng.sample(_ANSWERS, 2)]
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(_example(fact, answer) for fact, answer in asked[: given.limit]),
        grade=grade_verdict,
        legacy_grade=legacy_grade_verdict,
        chance=1 / len(_ANSWERS),
        max_new_tokens=16,
        stop=("\nQuestion:",),
    )


def _example(fact: Fact, answer: str) -> Example:
    asked = fact.answer if answer == "yes" else fact.counterfactual
    question = f"{fact.question.format(subject=fact.subject, object=asked)} Answer yes or no."
    group = f"{fact.relation}/{fact.subject}"
    return Example(
        id=f"{group}/{answer}",
        prompt=f"Question: {question}\nAnswer:",
        question=question,
        answer=answer,
        options=(" Yes", " No"),
        gold=_ANSWERS.index(answer),
        condition="closed_book",
        group=group,
        facts={
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.answer,
            "statement": fact.asserted(fact.answer),
        },
    )


SOURCES = tuple(
    TaskSource(
        name=category,
        kind="parametric",
        summary=f"Yes/no questions on {category}, without context.",
        default_limit=200,
        build=_build,
    )
    for category in CATEGORIES
)
