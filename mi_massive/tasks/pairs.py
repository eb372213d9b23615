"""Pairs: one question asked closed-book, open-book and against what training stored.

Answers: does a change hit the use of context more than the recall of facts, at equal format? The
three tasks ask the same clozes with the same two options, and what precedes has the same length:

- `pairs_closed_book`: filler that says nothing of the subject; gold is the fact.
- `pairs_open_book`: a sentence that states the fact; gold is the fact.
- `pairs_counterfactual`: a sentence that states another object; gold is that object, which the
  text says and the world does not.

Examples with one `group` belong together, within a task and between the three, in the same order.

Does not show: reading beyond copying. The sentence in the context begins as the cloze does, so a
model can continue it by induction without understanding it. Open-book, memory alone suffices: only
the counterfactual task needs the context, and it measures whether the model follows the text rather
than whether it could. The options are compared at different lengths in tokens; log-probabilities
summed over tokens favour the shorter one, equally in all three tasks.

Source:
    The reviews of Jin et al. 2025 ask for questions matched in surface; conflict after
    Longpre et al. 2021, arXiv:2109.05052.
"""

import random
from functools import cache, partial
from typing import Final, Literal

from mi_massive.tasks._filler import matched_filler
from mi_massive.tasks.base import CountTokens, Example, Kind, Task, TaskInput, TaskSource
from mi_massive.tasks.facts import CATEGORIES, Fact, alternated, load_facts
from mi_massive.tasks.scoring import grade_named

Condition = Literal["closed_book", "open_book", "counterfactual"]

DATA_FILES: Final = (*CATEGORIES, "geography")
"""Files whose facts are asked; every relation of each."""

_SUMMARIES: Final[dict[Condition, tuple[Kind, str]]] = {
    "closed_book": ("parametric", "Clozes on facts after filler that says nothing of them."),
    "open_book": ("contextual", "Clozes on facts that the prompt states."),
    "counterfactual": ("contextual", "Clozes on facts that the prompt states otherwise."),
}


def _build(source: TaskSource, given: TaskInput, *, condition: Condition) -> Task:
    # The same draw in the three conditions, so that their examples belong together at any limit.
    every = (fact for category in DATA_FILES for fact in load_facts(category))
    facts = alternated(every, random.Random(f"pairs:{given.seed}"))[: given.limit]
    filler = random.Random(f"pairs filler:{given.seed}")
    # The same few sentences are counted for every example.
    count_tokens = None if given.count_tokens is None else cache(given.count_tokens)
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(
            _example(fact, condition, _context(fact, condition, count_tokens, filler))
            for fact in facts
        ),
        grade=grade_named,
        chance=0.0,
        max_new_tokens=16,
        stop=("\n",),
    )


def _context(
    fact: Fact, condition: Condition, count_tokens: CountTokens | None, rng: random.Random
) -> str:
    true, false = fact.asserted(fact.answer), fact.asserted(fact.counterfactual)
    if condition == "closed_book":
        assert count_tokens is not None  # load_task gives it to tasks that need a tokenizer
        return matched_filler(true, false, count_tokens=count_tokens, rng=rng)
    return true if condition == "open_book" else false


def _example(fact: Fact, condition: Condition, context: str) -> Example:
    cloze = fact.cloze.format(subject=fact.subject)
    group = f"{fact.relation}/{fact.subject}"
    objects = (fact.answer, fact.counterfactual)
    gold = 1 if condition == "counterfactual" else 0
    return Example(
        id=f"{condition}/{group}",
        prompt=f"{context}\n{cloze}",
        question=f"{context}\nComplete the sentence with the missing words alone: {cloze}",
        answer=objects[gold],
        options=tuple(f" {thing}" for thing in objects),
        gold=gold,
        condition=condition,
        group=group,
        facts={
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.answer,
            "counterfactual": fact.counterfactual,
            "context": context,
        },
    )


SOURCES = tuple(
    TaskSource(
        name=f"pairs_{condition}",
        kind=kind,
        summary=summary,
        default_limit=240,
        build=partial(_build, condition=condition),
        needs_tokenizer=condition == "closed_book",
    )
    for condition, (kind, summary) in _SUMMARIES.items()
)
