"""Letters: a list of six countries, continued from the prompt or from memory.

Answers: as `pairs`, on a surface that is the same up to the answers. Both tasks show six entries
"The capital of X: Y." and then "The capital of Z:".

- `letters`: Y are letters drawn at random, and Z is one of the six: gold is its letter, which only
  the prompt tells.
- `letters_recall`: Y are the capitals, and Z is none of the six: gold is its capital, which only
  memory tells. Five of the six countries are those of the matched example in `letters`.

Both have six options, in the order of the list: its answers, but gold in the place of the entry in
which the two lists differ. Examples with one `group` ask for the same country.

Does not show: equal difficulty. A letter is one token and a capital may be several. In `letters`
the gold option has been seen in the prompt; in `letters_recall` only wrong ones have, which a model
that copies will prefer. Letters that begin the country or its capital are never used, nor A and I,
which are words.

Source:
    Suggested in the reviews of Jin et al. 2025: "The capital of America: A. The capital of China:
    B. ... The capital of Japan:".
    Differs: letters are drawn, not alphabetical, so counting on does not help.
"""

import random
from functools import partial
from string import ascii_uppercase
from typing import Final, Literal

from mi_massive.tasks.base import Example, Task, TaskInput, TaskSource
from mi_massive.tasks.facts import Fact, load_facts
from mi_massive.tasks.scoring import grade_named

Condition = Literal["letters", "letters_recall"]

N_ENTRIES: Final = 6
"""Entries of the list, and options."""

_RELATION: Final = "country_capital"
_LETTERS: Final = tuple(letter for letter in ascii_uppercase if letter not in "AI")


def _build(source: TaskSource, given: TaskInput, *, condition: Condition) -> Task:
    # The same draws in both tasks.
    rng = random.Random(f"letters:{given.seed}")
    facts = [fact for fact in load_facts("geography") if fact.relation == _RELATION]
    asked = rng.sample(facts, len(facts))[: given.limit]
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(_example(fact, facts, condition, rng) for fact in asked),
        grade=grade_named,
        chance=1 / N_ENTRIES if condition == "letters" else 0.0,
        max_new_tokens=8,
        stop=("\n",),
    )


def _example(asked: Fact, facts: list[Fact], condition: Condition, rng: random.Random) -> Example:
    others = [fact for fact in facts if fact is not asked]
    *shared, substitute = rng.sample(others, N_ENTRIES)
    gold = rng.randrange(N_ENTRIES)
    listed = [*shared[:gold], asked, *shared[gold:]]
    letters = _letters(listed, rng)
    if condition == "letters":
        answers = letters
        entries = zip(listed, letters, strict=True)
    else:
        answers = [fact.answer for fact in listed]
        shown = [*listed[:gold], substitute, *listed[gold + 1 :]]
        entries = ((fact, fact.answer) for fact in shown)
    text = " ".join(f"The capital of {fact.subject}: {answer}." for fact, answer in entries)
    prompt = f"{text} The capital of {asked.subject}:"
    group = f"{_RELATION}/{asked.subject}"
    return Example(
        id=f"{condition}/{group}",
        prompt=prompt,
        question=f"Continue the list with the missing entry alone.\n{prompt}",
        answer=answers[gold],
        options=tuple(f" {answer}" for answer in answers),
        gold=gold,
        condition=condition,
        group=group,
        facts={"subject": asked.subject, "relation": _RELATION, "object": asked.answer},
    )


def _letters(listed: list[Fact], rng: random.Random) -> list[str]:
    """A letter for each entry, all different, none an initial of its own country or capital."""
    drawn: list[str] = []
    for fact in listed:
        initials = {word[0].upper() for word in f"{fact.subject} {fact.answer}".split()}
        drawn.append(rng.choice([x for x in _LETTERS if x not in initials and x not in drawn]))
    return drawn


SOURCES = (
    TaskSource(
        name="letters",
        kind="contextual",
        summary="Capitals replaced by letters that only the prompt tells.",
        default_limit=100,
        build=partial(_build, condition="letters"),
    ),
    TaskSource(
        name="letters_recall",
        kind="parametric",
        summary="Capitals from memory, after as many entries as in letters.",
        default_limit=100,
        build=partial(_build, condition="letters_recall"),
    ),
)
