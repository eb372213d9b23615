"""Values of a data row as texts, refused with their place where they are something else."""

import json
from collections.abc import Iterable
from typing import cast

from mi_massive.tasks.base import Row


def text_in(row: Row, column: str) -> str:
    """Return the text in a column.

    Raises:
        ValueError: If it is no text or empty.
    """
    value = row.values[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{column} must be a text that is not empty, got {value!r} at {row.where}; correct it"
        )
    return value


def texts_in(row: Row, column: str) -> tuple[str, ...]:
    """Return the texts of a list in a column; in a .csv file the list is written as JSON.

    Raises:
        ValueError: If it is no list of texts.
    """
    value = row.values[column]
    listed = _parsed(value) if isinstance(value, str) else value
    # Lists of a .parquet file are numpy arrays.
    iterable = isinstance(listed, Iterable) and not isinstance(listed, str | bytes | dict)
    texts = tuple(cast("Iterable[object]", listed)) if iterable else ()
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{column} must be a list of texts, got {value!r} at {row.where}")
    return cast("tuple[str, ...]", texts)


def _parsed(text: str) -> object:
    try:
        return cast(object, json.loads(text))
    except json.JSONDecodeError:
        return None
