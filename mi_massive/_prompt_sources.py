"""Where prompts come from: one reader a file format, and the folders and names of `datasets`.

Answers: which entries or rows a source holds and where each stands. Costs: pandas and datasets are
imported only for the formats that need them. It checks no prompt and no value of a row; the modules
that read do: `mi_massive.prompts`, `mi_massive.tasks`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from mi_massive._logs import without_warnings


@runtime_checkable
class PromptTable(Protocol):
    """A table with named columns, such as a `datasets.Dataset`."""

    @property
    def column_names(self) -> Any:
        """The names of the columns; a mapping from splits to names in a `datasets.DatasetDict`."""
        ...

    def __getitem__(self, key: str, /) -> Any:
        """Return the values of the column `key`."""
        ...


def entries(
    source: str | Path | PromptTable, *, column: str, split: str
) -> Iterator[tuple[str, object]]:
    """Yield each entry with its place in the source, as read: not yet known to be a text.

    Args:
        source: See `mi_massive.prompts.read_prompts`, as for the other arguments.
        column: Column or key that holds the prompt.
        split: Split of a data set.

    Raises:
        FileNotFoundError: If there is no such file, folder or data set.
        ValueError: If the column is missing or the file is damaged.
    """
    if isinstance(source, PromptTable):
        return _from_table(source, column, "the table")
    path = Path(source)
    if path.is_file():
        if path.suffix not in _READERS:
            raise ValueError(
                f"source must end in one of {', '.join(_READERS)}, got {path}; convert it"
            )
        return _READERS[path.suffix](path, column)
    if path.is_dir():
        return _from_table(_open_folder(path, split), column, str(path))
    if isinstance(source, Path) or path.suffix in _READERS or path.is_absolute():
        raise FileNotFoundError(f"source must be an existing file or folder, got {source}")
    return _from_table(_open_hub(source, split), column, source)


def rows(
    source: str | Path, *, columns: Sequence[str], split: str, config: str | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each row with its place in the source; it holds every column of the source.

    Args:
        source: As for `entries`, but no `.txt` file and no table.
        columns: Columns that each row must have.
        split: Split of a data set.
        config: Configuration of a data set on the hub; None for a set with only one.

    Raises:
        FileNotFoundError: If there is no such file, folder or data set.
        ValueError: If a column is missing or the file is damaged.
    """
    path = Path(source)
    if path.is_dir():
        return _table_rows(_open_folder(path, split), columns, str(path))
    if not path.is_file():
        if isinstance(source, Path) or path.suffix in _READERS or path.is_absolute():
            raise FileNotFoundError(f"data must be an existing file or folder, got {source}")
        return _table_rows(_open_hub(source, split, config), columns, source)
    if path.suffix in (".csv", ".parquet"):
        return _frame_rows(path, columns)
    if path.suffix in (".jsonl", ".json"):
        items = _jsonl_items(path) if path.suffix == ".jsonl" else _json_items(path)
        return _item_rows(items, columns, path)
    raise ValueError(f"data must end in .jsonl, .json, .csv or .parquet, got {path}; convert it")


def _item_rows(
    items: Iterator[tuple[str, object]], columns: Sequence[str], path: Path
) -> Iterator[tuple[str, dict[str, object]]]:
    for where, item in items:
        if not isinstance(item, dict):
            raise ValueError(
                f"data must hold one object a row, got {type(item).__name__} at {where} of {path}"
            )
        row = cast("dict[str, object]", item)
        _require_columns(columns, row, f"{where} of {path}")
        yield f"{where} of {path}", row


def _frame_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, object]]]:
    frame = _read_frame(path)
    _require_columns(columns, [str(name) for name in frame.columns], str(path))
    for n, row in enumerate(cast("list[dict[str, object]]", frame.to_dict("records")), start=1):
        yield f"row {n} of {path}", row


def _table_rows(
    table: PromptTable, columns: Sequence[str], name: str
) -> Iterator[tuple[str, dict[str, object]]]:
    present = cast("list[str]", table.column_names)
    _require_columns(columns, present, name)
    values = [cast("Iterable[object]", table[column]) for column in present]
    for n, row in enumerate(zip(*values, strict=True), start=1):
        yield f"row {n} of {name}", dict(zip(present, row, strict=True))


def _require_columns(columns: Sequence[str], present: Iterable[str], where: str) -> None:
    names = list(present)
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(
            f"data must have the columns {list(columns)}, got {names} at {where}; "
            f"add or rename {missing}"
        )


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8 text, got other bytes at offset {error.start}; convert it"
        ) from error


def _from_text(path: Path, column: str) -> Iterator[tuple[str, object]]:
    del column
    paragraph: list[str] = []
    n = 0
    for line in [*_read_utf8(path).splitlines(), ""]:
        if line.strip():
            paragraph.append(line.rstrip())
        elif paragraph:
            n += 1
            yield f"paragraph {n}", "\n".join(paragraph)
            paragraph = []


def _from_jsonl(path: Path, column: str) -> Iterator[tuple[str, object]]:
    for where, item in _jsonl_items(path):
        yield where, _field(item, column, f"{where} of {path}")


def _jsonl_items(path: Path) -> Iterator[tuple[str, object]]:
    # Not splitlines(): JSON strings may hold other line separators unescaped.
    for n, line in enumerate(_read_utf8(path).rstrip("\n").split("\n"), start=1):
        yield f"line {n}", _parse_json(line, f"line {n} of {path}")


def _from_json(path: Path, column: str) -> Iterator[tuple[str, object]]:
    for where, item in _json_items(path):
        yield where, _field(item, column, f"{where} of {path}")


def _json_items(path: Path) -> Iterator[tuple[str, object]]:
    items = _parse_json(_read_utf8(path), str(path))
    if not isinstance(items, list):
        raise ValueError(
            f"{path} must hold a list of objects or strings, got {type(items).__name__}; "
            "put it into a list"
        )
    for n, item in enumerate(cast("list[object]", items), start=1):
        yield f"item {n}", item


def _parse_json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} must be JSON, got {text[:40]!r}: {error.msg}") from error


def _field(record: object, column: str, where: str) -> object:
    if not isinstance(record, dict):
        return record
    fields = cast("dict[str, object]", record)
    _require_column(column, fields, where)
    return fields[column]


def _read_frame(path: Path) -> Any:
    import pandas  # a second of start-up, for these two formats alone

    try:
        if path.suffix == ".csv":
            return pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        return pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} must be a whole {path.suffix} file, got: {error}") from error


def _from_frame(path: Path, column: str) -> Iterator[tuple[str, object]]:
    frame = _read_frame(path)
    _require_column(column, [str(name) for name in frame.columns], str(path))
    for n, value in enumerate(cast("list[object]", frame[column].tolist()), start=1):
        yield f"row {n}", value


def _from_table(table: PromptTable, column: str, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(table.column_names, Mapping):
        splits = sorted(cast("Mapping[str, object]", table.column_names))
        raise ValueError(f"source must be one split, got a data set with {splits}; choose one")
    _require_column(column, cast("list[str]", table.column_names), name)
    for n, value in enumerate(cast("Iterable[object]", table[column]), start=1):
        yield f"row {n}", value


def _require_column(column: str, present: Iterable[str], where: str) -> None:
    names = list(present)
    if column not in names:
        raise ValueError(f"column must be one of {names}, got {column!r} for {where}")


def _open_folder(path: Path, split: str) -> PromptTable:
    import datasets

    if (path / "state.json").is_file():
        return cast(PromptTable, datasets.load_from_disk(str(path)))
    if (path / "dataset_dict.json").is_file():
        splits = cast("dict[str, PromptTable]", datasets.load_from_disk(str(path)))
        if split not in splits:
            raise ValueError(f"split must be one of {sorted(splits)}, got {split!r} for {path}")
        return splits[split]
    try:
        return cast(PromptTable, datasets.load_dataset(str(path), split=split))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"source must hold data files, got {path} without any") from error


def _open_hub(name: str, split: str, config: str | None = None) -> PromptTable:
    import datasets

    chosen = (name,) if config is None else (name, config)
    try:
        # Where no hub answers it notes each retry; the error that follows says it all.
        with without_warnings("huggingface_hub"):
            return cast(PromptTable, datasets.load_dataset(*chosen, split=split))
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"source must be a file, a folder or a data set on the hub, got {name!r}; "
            f"there is no such file or folder, and the hub answered: {error}"
        ) from error


_READERS: Final[Mapping[str, Callable[[Path, str], Iterator[tuple[str, object]]]]] = {
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".csv": _from_frame,
    ".parquet": _from_frame,
}
