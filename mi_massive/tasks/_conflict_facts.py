"""The facts behind the conflicts: relations, what else is true, and contexts in four styles.

The facts are those of the yes/no tasks. `data/conflicts.json` adds to each relation a cloze, the
sentences that may contradict it, and the objects that would be true of a subject as well, or nearly
so (a second sport, a co-official language, a namesake of a city): none of these may be drawn as
false.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from mi_massive.tasks.facts import Fact, load_facts

Style = Literal["assertive", "quoted", "according_to_text", "fictional"]

STYLES: Final[tuple[Style, ...]] = ("assertive", "quoted", "according_to_text", "fictional")
"""How a context says what it says: as a fact, as somebody's words, as the text's, as fiction."""

_DATA: Final = Path(__file__).parents[1] / "data" / "conflicts.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictFact:
    """A subject and its true object, as one word of the relation."""

    subject: str
    object: str
    also_true: tuple[str, ...] = ()
    """Objects that would be true as well, or arguably so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """Facts of one kind, and the sentences about them."""

    name: str
    facts: tuple[ConflictFact, ...] = field(repr=False)
    cloze: str
    """Template with {subject}: a sentence that lacks its end, the object."""
    contexts: Mapping[str, str] = field(repr=False, hash=False)
    """By style a template with {subject} and {object}; the object always follows a space."""


@cache
def load_relations() -> Mapping[str, Relation]:
    """Every relation of conflicts by name, in the order of the data file."""
    data = json.loads(_DATA.read_text(encoding="utf-8"))["relations"]
    return {name: _relation(name, entry) for name, entry in data.items()}


def _relation(name: str, entry: dict[str, Any]) -> Relation:
    also_true: dict[str, list[str]] = entry.get("also_true", {})
    facts = tuple(
        ConflictFact(
            subject=fact.subject,
            object=thing,
            also_true=tuple(also_true.get(fact.subject, ())),
        )
        for fact in load_facts(entry["facts"])
        if fact.relation == name and (thing := _object(fact, entry)) is not None
    )
    return Relation(name=name, facts=facts, cloze=entry["cloze"], contexts=entry["contexts"])


def _object(fact: Fact, entry: dict[str, Any]) -> str | None:
    """The true object; of a person, where the cloze asks for it, the surname.

    A full name is hardly ever one token. The surname is the last word of the name, unless the data
    file gives another; None leaves out people without one.
    """
    if entry.get("object") != "surname":
        return fact.answer
    return entry["surnames"].get(fact.answer, fact.answer.split()[-1])
