"""GSM8K: grade-school word problems whose answer is a number.

Answers: can the model reason over the numbers of the prompt? Zero-shot, greedy, up to 256 new
tokens an example: the costliest task. Its options are the answer at once, without the steps: the
right number against three drawn ones of as many digits.

Does not show: use of context alone. Arithmetic is stored knowledge too, many models were trained on
these very problems, and 256 tokens cut off long solutions, which then count as wrong.

Source:
    Cobbe et al. 2021, arXiv:2110.14168; test split, 1319 rows. Jin et al. 2025 use the first 1000.
    Differs: one wording for all models; graded by the stated answer, not the last number.
"""

import random
from typing import Final

from mi_massive.tasks._columns import text_in
from mi_massive.tasks.base import Example, HubSet, Row, Task, TaskInput, TaskSource
from mi_massive.tasks.extraction import normalise_number
from mi_massive.tasks.scoring import grade_number, legacy_grade_number

_INSTRUCTION = 'Work it out step by step and end with "The answer is N.", where N is a number.'
_N_OPTIONS: Final = 4


def _build(source: TaskSource, given: TaskInput) -> Task:
    rows = given.rows[: given.limit]
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(_example(row, f"{source.name}/{i}") for i, row in enumerate(rows)),
        grade=grade_number,
        legacy_grade=legacy_grade_number,
        chance=0.0,
        max_new_tokens=256,
        stop=("\nQuestion:",),
    )


def _example(row: Row, name: str) -> Example:
    question = f"{text_in(row, 'question').strip()}\n{_INSTRUCTION}"
    solution = text_in(row, "answer")
    gold = normalise_number(solution.rpartition("####")[2])
    if gold is None:
        raise ValueError(
            f"answer must be a number or end in '#### number', got {solution[-40:]!r} at "
            f"{row.where}; correct it"
        )
    rng = random.Random(f"{name}:{gold}")
    numbers = _numbers_like(gold, rng)
    return Example(
        id=name,
        prompt=f"Question: {question}\nAnswer:",
        question=question,
        answer=gold,
        options=tuple(f" The answer is {number}." for number in numbers),
        gold=numbers.index(gold),
        group=name,
    )


def _numbers_like(gold: str, rng: random.Random) -> list[str]:
    """The number and wrong ones with other digits in its places, in a drawn order."""
    found = [gold]
    while len(found) < _N_OPTIONS:
        other = "".join(str(rng.randrange(10)) if c.isdecimal() else c for c in gold)
        # A number that is written otherwise, such as 07 or 5.0, has fewer digits.
        if other not in found and normalise_number(other) == other:
            found.append(other)
    rng.shuffle(found)
    return found


SOURCES = (
    TaskSource(
        name="gsm8k",
        kind="contextual",
        summary="Grade-school word problems; the answer is a number.",
        default_limit=1000,
        build=_build,
        hub=HubSet("openai/gsm8k", "main", "test"),
        columns=("question", "answer"),
        version=2,
    ),
)
