"""A user's own task, from a file of prompts and answers.

Answers: how well does a model do on my examples? Any file with rows will do; .jsonl is usual:

    {"prompt": "The sky is", "answer": "blue", "options": ["blue", "green"], "kind": "parametric"}

Options may be left out; with them in every row the task is also read by their log-probability.

Does not show: that the examples measure what their `kind` says, or that wrong and right options are
equally likely to a model that does not know.
"""

from pathlib import Path
from typing import Final, cast, get_args

from mi_massive._prompt_sources import rows
from mi_massive.tasks._columns import text_in, texts_in
from mi_massive.tasks.base import Example, Grader, Kind, Row, Task
from mi_massive.tasks.extraction import normalise_number
from mi_massive.tasks.scoring import grade_named, grade_number

_KINDS: Final[tuple[str, ...]] = get_args(Kind)
_OPTIONAL: Final = ("id", "question", "condition", "group")


def load_own_task(path: str | Path, *, kind: Kind | None = None, max_new_tokens: int = 32) -> Task:
    """Load a task from a file with one example a row.

    Columns: `prompt` and `answer`; where wanted `options`, one of which is the answer, `kind`,
    `question` (the user's message of a chat; the prompt where absent), `id`, `condition`, `group`.

    Graded by which option the text names first; without options, by whether it names the answer in
    whole words, or, if every answer is a number, by the number it states last.

    Args:
        path: .jsonl, .json, .csv or .parquet file; its name is the task's.
        kind: Kind of all examples; None takes the column `kind`, the same in every row.
        max_new_tokens: Length of the answers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, `kind` is unknown or mixed, the answer is none of the
            options, or an example is refused by `Example`; the row is named.
    """
    columns = ("prompt", "answer") if kind is not None else ("prompt", "answer", "kind")
    found = [
        Row(where, values) for where, values in rows(Path(path), columns=columns, split="train")
    ]
    examples = tuple(_example(row, i) for i, row in enumerate(found))
    n_options = [len(example.options) for example in examples]
    return Task(
        name=Path(path).stem,
        kind=_one_kind(found) if kind is None else kind,
        version=1,
        summary=f"Own examples from {Path(path).name}.",
        examples=examples,
        grade=_grader(examples),
        chance=sum(1 / n for n in n_options) / len(examples) if all(n_options) and found else 0.0,
        max_new_tokens=max_new_tokens,
    )


def _one_kind(found: list[Row]) -> Kind:
    kinds = [text_in(row, "kind") for row in found]
    for row, kind in zip(found, kinds, strict=True):
        if kind not in _KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(_KINDS)}, got {kind!r} at {row.where}; "
                "correct it, or pass kind"
            )
        if kind != kinds[0]:
            raise ValueError(
                f"kind must be the same in every row, got {kind!r} after {kinds[0]!r} at "
                f"{row.where}; make two files"
            )
    return cast(Kind, kinds[0]) if kinds else "contextual"  # refused by Task: no examples


def _grader(examples: tuple[Example, ...]) -> Grader:
    open_answers = not any(example.options for example in examples)
    numbers = all(normalise_number(example.answer) == example.answer for example in examples)
    return grade_number if open_answers and numbers else grade_named


def _example(row: Row, i: int) -> Example:
    prompt, answer = text_in(row, "prompt"), text_in(row, "answer").strip()
    options = texts_in(row, "options") if row.values.get("options") else ()
    stripped = [option.strip() for option in options]
    if options and answer not in stripped:
        raise ValueError(
            f"answer must be one of the options {stripped}, got {answer!r} at {row.where}; add it"
        )
    others = {name: text_in(row, name) for name in _OPTIONAL if row.values.get(name)}
    # A word that follows a word needs its space; after a line break it does not.
    space = "" if prompt.endswith("\n") else " "
    try:
        return Example(
            id=others.get("id", str(i)),
            prompt=prompt,
            question=others.get("question", prompt),
            answer=answer,
            options=tuple(o if o[:1].isspace() else f"{space}{o}" for o in options),
            gold=stripped.index(answer) if options else None,
            condition=others.get("condition", ""),
            group=others.get("group", ""),
        )
    except ValueError as error:
        raise ValueError(f"{error} ({row.where})") from error
