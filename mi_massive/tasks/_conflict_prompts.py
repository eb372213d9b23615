"""The prompts of a conflict, token by token, and where their parts stand."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from mi_massive.tasks._conflict_facts import ConflictFact, Relation, Style
from mi_massive.tasks._filler import filler_of_length

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text as the model reads it; special tokens, if any, stand at the beginning."""


class Prompts(NamedTuple):
    """One cloze after three contexts of equal length; the fields are those of `Conflict`."""

    context: str
    neutral_context: str
    cloze: str
    conflicting: tuple[int, ...]
    consistent: tuple[int, ...]
    neutral: tuple[int, ...]
    unrelated: tuple[int, ...]
    groups: dict[str, tuple[int, ...]]


class PromptWriter:
    """Writes the prompts of one relation, and finds the parts of them."""

    def __init__(
        self, relation: Relation, encode: Encode, objects: Mapping[str, int], rng: random.Random
    ) -> None:
        self._relation = relation
        self._encode = encode
        self._objects = objects
        self._rng = rng
        # The same few sentences are counted for every fact.
        self._count = cache(self._n_tokens)

    def write(self, fact: ConflictFact, stated: str, style: Style) -> Prompts | None:
        """The prompts that state an object of a subject; None if they do not match."""
        template = self._relation.contexts[style]
        cloze = self._relation.cloze.format(subject=fact.subject)
        context, true_context = (
            template.format(subject=fact.subject, object=thing) for thing in (stated, fact.object)
        )
        conflicting, consistent = self._ids(context, cloze), self._ids(true_context, cloze)
        groups = self._groups(template, fact.subject, stated, cloze)
        neutral, unrelated = (
            filler_of_length(n, count_tokens=self._count, rng=self._rng)
            for n in (self._count(context), len(conflicting))
        )
        if groups is None or neutral is None or unrelated is None:
            return None
        made = Prompts(
            context=context,
            neutral_context=neutral,
            cloze=cloze,
            conflicting=conflicting,
            consistent=consistent,
            neutral=self._ids(neutral, cloze),
            unrelated=tuple(self._encode(unrelated)),
            groups=groups,
        )
        return made if self._match(made, fact.object, stated) else None

    def _match(self, made: Prompts, true: str, stated: str) -> bool:
        """True if only the stated object differs, and the next token is the answer's."""
        (place,) = made.groups["object"]
        ids = list(made.conflicting)
        answered = tuple(self._encode(f"{made.context}\n{made.cloze} {stated}"))
        if ids[place] != self._objects[stated] or answered != (*ids, self._objects[stated]):
            return False
        ids[place] = self._objects[true]
        return made.consistent == tuple(ids) and len(made.neutral) == len(ids)

    def _n_tokens(self, text: str) -> int:
        return len(self._encode(text))

    def _ids(self, context: str, cloze: str) -> tuple[int, ...]:
        return tuple(self._encode(f"{context}\n{cloze}"))

    def _groups(
        self, template: str, subject: str, stated: str, cloze: str
    ) -> dict[str, tuple[int, ...]] | None:
        """Positions of the parts of the conflicting prompt; None if tokens cross their ends."""
        slots = {"subject": subject, "object": stated}
        whole = template.format(**slots) + f"\n{cloze}"
        ids = tuple(self._encode(whole))
        spans: dict[str, tuple[int, int]] = {}
        for name, word in slots.items():
            start = len(template.partition(f"{{{name}}}")[0].format(**slots))
            spans[name] = (start, start + len(word))
        query = len(whole) - len(cloze) + self._relation.cloze.index("{subject}")
        spans["query_subject"] = (query, query + len(subject))
        groups: dict[str, tuple[int, ...]] = {"first": (0,)}
        for name, span in spans.items():
            # The space before a word belongs to its token.
            first, last = (self._n_before(whole[:at].rstrip(" "), ids) for at in span)
            if first is None or last is None or first == last:
                return None
            groups[name] = tuple(range(first, last))
        groups["last"] = (len(ids) - 1,)
        return groups if len(groups["object"]) == 1 else None

    def _n_before(self, text: str, ids: tuple[int, ...]) -> int | None:
        """Tokens of the beginning of a prompt; None if they are others within the whole."""
        found = tuple(self._encode(text))
        return len(found) if found == ids[: len(found)] else None
