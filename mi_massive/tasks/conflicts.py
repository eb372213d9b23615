"""Conflicts: the prompt states one object, training stored another, and a cloze asks which.

Answers: on what prompts can one see whether a model follows its context or keeps to its memory?
Each subject is asked once, after one context of equal length in tokens out of three: one that
contradicts the fact, one that states it, and one about nothing in particular. Both answers are
single tokens of the model's tokenizer, so the next token decides. What a tokenizer cannot say in
one token is left out and counted.

Does not show: that a model knows the fact. Only facts that it gives without help are conflicts for
it: `mi_massive.conflict` measures that.

Source:
    Conflicts by substitution of the object after Longpre et al. 2021, arXiv:2109.05052.
    Differs: facts, clozes and contexts are our own; the object is replaced by another one of its
    relation that the subject does not have.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from mi_massive._checks import require_positive
from mi_massive.prompt_pairs import PromptPair
from mi_massive.tasks._conflict_facts import STYLES, ConflictFact, Relation, Style, load_relations
from mi_massive.tasks._conflict_prompts import Encode, Prompts, PromptWriter

FEWEST_OBJECTS: Final = 4
"""Single-token objects that a relation must have: a guess among fewer is right too often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """One subject, asked after three contexts of equal length."""

    id: str
    relation: str
    subject: str
    style: Style
    fact: str
    """The true object."""
    counterfactual: str
    """The object that the conflicting context states."""
    context: str = field(repr=False)
    """The conflicting context, as text."""
    neutral_context: str = field(repr=False)
    cloze: str = field(repr=False)
    conflicting: tuple[int, ...] = field(repr=False)
    """Token ids of the conflicting context and the cloze."""
    consistent: tuple[int, ...] = field(repr=False)
    """The same with the true object: other than `conflicting` in one token."""
    neutral: tuple[int, ...] = field(repr=False)
    """As many token ids; the context says nothing of the subject."""
    unrelated: tuple[int, ...] = field(repr=False)
    """As many token ids of a text that neither tells nor asks anything."""
    context_answer: int
    """Token of the counterfactual."""
    parametric_answer: int
    """Token of the fact."""
    groups: Mapping[str, tuple[int, ...]] = field(repr=False, hash=False)
    """Positions in `conflicting`: first, subject, object, query_subject, last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationCount:
    """What the tokenizer left of one relation."""

    relation: str
    subjects: int
    """Facts in the data."""
    kept: int
    not_one_token: int
    """Left out because the true object is not one token of its own."""
    too_few_alternatives: int
    """Left out because there is no false object of one token, or the relation has under four."""
    not_aligned: int
    """Left out because the three prompts cannot be made to match token by token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictSet:
    """Conflicts for one tokenizer, and what it left out."""

    conflicts: tuple[Conflict, ...] = field(repr=False)
    """Relations take turns, styles too: every prefix is as balanced as it can be."""
    candidates: Mapping[str, tuple[int, ...]] = field(repr=False, hash=False)
    """By relation the tokens of all its single-token objects, each once."""
    counts: tuple[RelationCount, ...]

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over every prompt, answer and candidate."""
        listed = [
            [c.id, c.style, c.conflicting, c.neutral, c.context_answer, c.parametric_answer]
            for c in self.conflicts
        ]
        text = json.dumps([listed, sorted(self.candidates.items())], separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def make_conflicts(
    encode: Encode,
    *,
    relations: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ConflictSet:
    """Make the conflicts that a tokenizer allows, with one context style a subject.

    Args:
        encode: The tokenizer of the model that will be asked: text to token ids.
        relations: Names of relations; None takes all.
        limit: At most so many subjects in all; None takes all.
        seed: Of the order, the styles, the false objects and the filler. Another seed asks the same
            subjects in other styles.

    Returns:
        The conflicts and how many facts of each relation were left out, and why. The counts do not
        depend on `limit`.

    Raises:
        ValueError: If a relation does not exist, `limit` is not positive, or nothing is left.
    """
    known = load_relations()
    for name in relations or ():
        if name not in known:
            raise ValueError(f"relations must be among {', '.join(known)}, got {name!r}")
    if limit is not None:
        require_positive("limit", limit)
    made = [_load(known[name], encode, seed) for name in relations or known]
    longest = max(len(found.conflicts) for found in made)
    conflicts = [f.conflicts[i] for i in range(longest) for f in made if i < len(f.conflicts)]
    if not conflicts:
        raise ValueError(
            "encode must give one token for at least one fact and four objects of its relation, "
            "got none; ask another model or other relations"
        )
    return ConflictSet(
        conflicts=tuple(conflicts[:limit]),
        candidates={f.counted.relation: f.tokens for f in made if f.conflicts},
        counts=tuple(f.counted for f in made),
    )


class _Loaded(NamedTuple):
    conflicts: list[Conflict]
    tokens: tuple[int, ...]
    counted: RelationCount


def _load(relation: Relation, encode: Encode, seed: int) -> _Loaded:
    rng = random.Random(f"conflicts:{seed}:{relation.name}")
    objects = _single_tokens(relation, encode)
    facts = list(relation.facts)
    rng.shuffle(facts)
    conflicts: list[Conflict] = []
    writer = PromptWriter(relation, encode, objects, rng)
    dropped = {"not_one_token": 0, "too_few_alternatives": 0, "not_aligned": 0}
    for fact in facts:
        others = sorted(set(objects) - {fact.object, *fact.also_true})
        if fact.object not in objects:
            dropped["not_one_token"] += 1
        elif len(objects) < FEWEST_OBJECTS or not others:
            dropped["too_few_alternatives"] += 1
        else:
            # Styles take turns with the conflicts that are kept, not with all facts.
            style = STYLES[(len(conflicts) + seed) % len(STYLES)]
            stated = rng.choice(others)
            prompts = writer.write(fact, stated, style)
            if prompts is None:
                dropped["not_aligned"] += 1
            else:
                conflicts.append(_conflict(relation, fact, stated, style, prompts, objects))
    count = RelationCount(
        relation=relation.name, subjects=len(facts), kept=len(conflicts), **dropped
    )
    return _Loaded(conflicts, tuple(sorted(objects.values())), count)


def _conflict(
    relation: Relation,
    fact: ConflictFact,
    stated: str,
    style: Style,
    prompts: Prompts,
    objects: Mapping[str, int],
) -> Conflict:
    return Conflict(
        id=f"{relation.name}/{fact.subject}/{style}",
        relation=relation.name,
        subject=fact.subject,
        style=style,
        fact=fact.object,
        counterfactual=stated,
        context_answer=objects[stated],
        parametric_answer=objects[fact.object],
        **prompts._asdict(),
    )


def _single_tokens(relation: Relation, encode: Encode) -> dict[str, int]:
    """Objects that continue the cloze by one token of their own."""
    cloze = relation.cloze.format(subject=relation.facts[0].subject)
    start = tuple(encode(cloze))
    found: dict[int, list[str]] = {}
    for thing in dict.fromkeys(fact.object for fact in relation.facts):
        ids = tuple(encode(f"{cloze} {thing}"))
        if len(ids) == len(start) + 1 and ids[:-1] == start:
            found.setdefault(ids[-1], []).append(thing)
    # Two words of one token are none of their own: the tokenizer does not know them.
    return {things[0]: token for token, things in found.items() if len(things) == 1}


def conflict_pairs(
    conflicts: Sequence[Conflict], *, corrupted: Literal["consistent", "neutral"] = "consistent"
) -> list[PromptPair]:
    """Aligned prompts for activation patching: the conflict is clean, another context corrupted.

    Args:
        conflicts: From `make_conflicts`; best those that the model knows.
        corrupted: `consistent` differs in the stated object alone; `neutral` in the whole context,
            whose positions then hold filler.

    Returns:
        One pair a conflict, in order. The answer is the context's, the other one the fact; the
        groups are positions in the conflicting prompt; the placebo tells and asks nothing.
    """
    return [
        PromptPair(
            id=conflict.id,
            clean=conflict.conflicting,
            corrupted=conflict.consistent if corrupted == "consistent" else conflict.neutral,
            answer=conflict.context_answer,
            other=conflict.parametric_answer,
            groups=conflict.groups,
            placebo=conflict.unrelated,
        )
        for conflict in conflicts
    ]
