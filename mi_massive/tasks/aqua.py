"""AQuA-RAT: algebra questions with five options, A to E, that are shown.

Answers: can the model pick the right option after, or without, reasoning? Generation may reason (up
to 256 new tokens); the options compare " A" to " E" right after "Answer:", without reasoning, so
the two measure different things.

Does not show: more than a coarse difference: there are 254 rows and a floor of 20 %.

Source:
    Ling et al. 2017, arXiv:1705.04146; test split, 254 rows.
    Differs: the options are shown to every model; graded by the letter, not by a substring.
"""

from mi_massive.tasks._columns import text_in, texts_in
from mi_massive.tasks.base import Example, HubSet, Row, Task, TaskInput, TaskSource
from mi_massive.tasks.scoring import grade_letter, legacy_grade_option_text

_LETTERS = "ABCDE"
_INSTRUCTION = 'End with "The answer is X.", where X is the letter of the right option.'


def _build(source: TaskSource, given: TaskInput) -> Task:
    rows = given.rows[: given.limit]
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(_example(row, f"{source.name}/{i}") for i, row in enumerate(rows)),
        grade=grade_letter,
        legacy_grade=legacy_grade_option_text,
        chance=1 / len(_LETTERS),
        max_new_tokens=256,
        stop=("\nQuestion:",),
    )


def _example(row: Row, name: str) -> Example:
    options = [
        _option_text(option, letter, row)
        for letter, option in zip(_LETTERS, _five_options(row), strict=True)
    ]
    letter = text_in(row, "correct").strip()
    if letter not in _LETTERS or len(letter) != 1:
        raise ValueError(f"correct must be one letter of {_LETTERS}, got {letter!r} at {row.where}")
    gold = _LETTERS.index(letter)
    listed = "\n".join(f"{x}) {option}" for x, option in zip(_LETTERS, options, strict=True))
    question = f"{text_in(row, 'question').strip()}\nOptions:\n{listed}\n{_INSTRUCTION}"
    return Example(
        id=name,
        prompt=f"Question: {question}\nAnswer:",
        question=question,
        answer=letter,
        options=tuple(f" {x}" for x in _LETTERS),
        gold=gold,
        group=name,
        facts={"option": options[gold]},
    )


def _five_options(row: Row) -> tuple[str, ...]:
    options = texts_in(row, "options")
    if len(options) != len(_LETTERS):
        raise ValueError(
            f"options must be {len(_LETTERS)} texts, got {len(options)} at {row.where}; "
            "complete or remove the row"
        )
    return options


def _option_text(option: str, letter: str, row: Row) -> str:
    label, bracket, text = option.partition(")")
    if label.strip() != letter or not bracket or not text.strip():
        raise ValueError(
            f"options must begin with '{letter})' in its place, got {option!r} at {row.where}"
        )
    return text.strip()


SOURCES = (
    TaskSource(
        name="aqua",
        kind="contextual",
        summary="Algebra questions with five options, A to E.",
        default_limit=254,
        build=_build,
        hub=HubSet("deepmind/aqua_rat", "raw", "test"),
        columns=("question", "options", "correct"),
    ),
)
