"""All tasks by name, and where each takes its data from.

Answers: which tasks are there, and what does each need? Costs: a task from the hub is downloaded by
`datasets` unless a file with the same columns is given; all others are made in well under a second.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mi_massive._checks import require_positive
from mi_massive._prompt_sources import rows
from mi_massive.tasks import aqua, facts, gsm8k, imdb, letters, pairs, passkey
from mi_massive.tasks.base import CountTokens, Row, Task, TaskInput, TaskSource

TASKS: Final[Mapping[str, TaskSource]] = MappingProxyType(
    {
        source.name: source
        for module in (gsm8k, aqua, imdb, passkey, facts, pairs, letters)
        for source in module.SOURCES
    }
)
"""How each task is made, by its name."""


def load_task(
    name: str,
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    count_tokens: CountTokens | None = None,
) -> Task:
    """Make the task of this name.

    The same arguments give the same examples, and `Task.digest` proves it.

    Args:
        name: One of `TASKS`.
        data: File (.jsonl, .json, .csv, .parquet) or folder that stands in for the task's data set
            on the hub, with the same columns; None loads from the hub.
        limit: At most so many examples; None takes the task's `default_limit`.
        seed: Seed of every draw: which examples, their order, pass keys and filler. `gsm8k` and
            `aqua` keep the order of the data, and their options do not depend on it.
        count_tokens: Number of tokens of a text without special tokens, by the tokenizer of the
            model that will be asked. Tasks that need it say so in `TASKS`; others ignore it.

    Raises:
        FileNotFoundError: If the data are neither given nor to be had from the hub.
        ValueError: If there is no such task, `data` is given to a task that has none, a column is
            missing or a value damaged, `limit` is not positive, or `count_tokens` is needed.
    """
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}; choose one")
    source = TASKS[name]
    if limit is not None:
        require_positive("limit", limit)
    if source.needs_tokenizer and count_tokens is None:
        raise ValueError(
            f"count_tokens must be given for {name}, whose length is measured in tokens, got None; "
            "pass the tokenizer's count, for instance lambda text: len(tokenizer.encode(text))"
        )
    given = TaskInput(
        rows=_rows(source, data),
        limit=source.default_limit if limit is None else limit,
        seed=seed,
        count_tokens=count_tokens,
    )
    return source.build(source, given)


def _rows(source: TaskSource, data: str | Path | None) -> tuple[Row, ...]:
    hub = source.hub
    if hub is None:
        if data is not None:
            raise ValueError(
                f"data must be None for {source.name}, whose data come with the package, got "
                f"{data}; load your own examples with load_own_task"
            )
        return ()
    if data is not None:
        found = rows(data, columns=source.columns, split=hub.split)
    else:
        try:
            found = rows(hub.dataset, columns=source.columns, split=hub.split, config=hub.config)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data must be a file (.jsonl, .json, .csv, .parquet) with the columns "
                f"{', '.join(source.columns)} for {source.name}, got None, and the hub does not "
                f"give {hub.dataset} ({hub.config}, {hub.split}); pass data=FILE or connect"
            ) from error
    return tuple(Row(where, values) for where, values in found)
