"""IMDB: is a film review positive or negative?

Answers: can the model tell the sentiment of a text in its prompt? Both classes are drawn equally
often, with a seed, and alternate.

Does not show: use of the whole review. Reviews are cut after 300 words, so that memory does not
depend on the longest one; a verdict at the very end of a long review is lost. Well-known reviews
may stand in the training data.

Source:
    Maas et al. 2011; test split. Jin et al. 2025 use the first 1000 rows of the unshuffled train
    split, which are all negative.
    Differs: both classes; the test split; a review with both words is graded by its verdict.
"""

import random
import re

from mi_massive.tasks._columns import text_in
from mi_massive.tasks.base import Example, HubSet, Row, Task, TaskInput, TaskSource
from mi_massive.tasks.scoring import grade_sentiment, legacy_grade_sentiment

MAX_WORDS = 300
"""Words of a review that are shown, from its beginning."""

_CLASSES = ("negative", "positive")  # by label
_QUESTION = "Is this review positive or negative? Answer with one word."


def _build(source: TaskSource, given: TaskInput) -> Task:
    rng = random.Random(f"{source.name}:{given.seed}")
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(
            _example(given.rows[i], f"{source.name}/{i}")
            for i in _balanced_draw(given.rows, rng)[: given.limit]
        ),
        grade=grade_sentiment,
        legacy_grade=legacy_grade_sentiment,
        chance=1 / len(_CLASSES),
        max_new_tokens=16,
        stop=("\nReview:",),
    )


def _balanced_draw(rows: tuple[Row, ...], rng: random.Random) -> list[int]:
    """Row numbers in random order, the classes by turns, as many of one as of the other."""
    labels = [_label(row) for row in rows]
    drawn: list[list[int]] = []
    for label, name in enumerate(_CLASSES):
        members = [i for i, other in enumerate(labels) if other == label]
        if not members:
            raise ValueError(
                f"label must take both values 0 and 1, got no {label} ({name}) in {len(rows)} rows "
                f"up to {rows[-1].where}; give reviews of both classes"
            )
        rng.shuffle(members)
        drawn.append(members)
    # zip ends with the smaller class.
    return [i for pair in zip(*drawn, strict=False) for i in rng.sample(pair, len(pair))]


def _label(row: Row) -> int:
    value = row.values["label"]
    if str(value) not in ("0", "1"):  # a .csv file holds texts
        raise ValueError(
            f"label must be 0 (negative) or 1 (positive), got {value!r} at {row.where}; "
            "recode it or remove the row"
        )
    return int(str(value))


def _example(row: Row, name: str) -> Example:
    gold = _label(row)
    words = re.sub(r"<br\s*/?>", " ", text_in(row, "text")).split()
    asked = f"Review: {' '.join(words[:MAX_WORDS])}\nQuestion: {_QUESTION}"
    return Example(
        id=name,
        prompt=f"{asked}\nAnswer:",
        question=asked,
        answer=_CLASSES[gold],
        options=tuple(f" {word}" for word in _CLASSES),
        gold=gold,
        group=name,
    )


SOURCES = (
    TaskSource(
        name="imdb",
        kind="contextual",
        summary="Film reviews, positive or negative.",
        default_limit=1000,
        build=_build,
        hub=HubSet("stanfordnlp/imdb", "plain_text", "test"),
        columns=("text", "label"),
    ),
)
