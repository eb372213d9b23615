"""From a YAML file to a `SweepGrid`; whatever is of a wrong kind is named before it is used."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

import yaml

from mi_massive.models.wheel import BUILT_IN
from mi_massive.scores import Readout
from mi_massive.sweep.grid import OWN_TASK, GridModel, SweepGrid

_WORDS: Final = {int: "a whole number", str: "a text (in quotes if need be)", bool: "true or false"}
_MAY_BE_NONE: Final = ("k", "generated", "limit", "data", "max_new_tokens", "revision")
_ONE: Final[dict[str, type]] = {
    **dict.fromkeys(("limit", "batch_size", "max_new_tokens", "n_neutral", "neutral_length"), int),
    **dict.fromkeys(("data", "name", "revision"), str),
    **dict.fromkeys(("chat", "trust_remote_code"), bool),
}
"""Kind of each key that takes one value."""
_MANY: Final[dict[str, type]] = {
    **dict.fromkeys(("k", "seeds"), int),
    **dict.fromkeys(("presets", "tasks", "dtypes", "readouts", "generated"), str),
}
"""Kind of the values of each key that takes a list, but for models and layers."""


def read_grid(path: str | Path) -> SweepGrid:
    """Read a grid from a YAML file.

        models: [smollm2-135m-instruct, {name: owner/model, revision: main, chat: true}]
        presets: [paper, smallest, random]
        k: [1, 4]
        tasks: [passkey_128_6, pairs_open_book]

    Args:
        path: The file. Its keys are the fields of `SweepGrid`; models and files with relative paths
            lie beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML mapping, a key or a name in it is unknown, or a value is of a
            wrong kind.
    """
    path = Path(path)
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be YAML, got {reason!r}; correct it") from error
    given = _mapping(document, SweepGrid, str(path))
    return SweepGrid(**{name: _value(name, value, path) for name, value in given.items()})


def _mapping(document: Any, kind: type, where: str) -> dict[str, Any]:
    """A mapping whose keys are fields of a dataclass, all required ones among them."""
    if not isinstance(document, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values, got {document!r}")
    given = dict(cast(Mapping[str, Any], document))
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            raise ValueError(
                f"keys of {where} must be among {', '.join(fields)}, got {name!r}; correct it"
            )
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ValueError(f"{where} must have the key {name!r}, got none; add it")
    return given


def _value(name: str, value: Any, path: Path) -> Any:
    """The value of a field, of the field's kind."""
    if value is None and name in _MAY_BE_NONE:
        return None
    if name in _ONE:
        one = _of_kind(_ONE[name], value, f"{name} of {path}")
        return _beside(path, one) if name == "data" else one
    if not isinstance(value, list):
        raise ValueError(f"{name} of {path} must be a list, got {value!r}; write [{value}]")
    entries = cast(list[Any], value)
    if name == "models":
        return tuple(_model(entry, path) for entry in entries)
    if name == "layers":
        return tuple(_layers(entry, path) for entry in entries)
    found = [_of_kind(_MANY[name], entry, f"each of {name} in {path}") for entry in entries]
    if name in ("tasks", "generated"):
        return tuple(_beside(path, one) if one.endswith(OWN_TASK) else one for one in found)
    for one in found if name == "readouts" else ():
        if one not in get_args(Readout):
            raise ValueError(f"readouts must be among {', '.join(get_args(Readout))}, got {one!r}")
    return tuple(found)


def _of_kind(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:  # true is no number
        raise ValueError(f"{where} must be {_WORDS[kind]}, got {value!r}; correct it")
    return value


def _layers(entry: Any, path: Path) -> tuple[int, ...] | None:
    if entry == "all":
        return None
    if not isinstance(entry, list):
        raise ValueError(
            f"layers of {path} must be 'all' or lists of block indices, got {entry!r}; write "
            f"[{entry}] within the list"
        )
    return tuple(
        _of_kind(int, one, f"each block of layers in {path}") for one in cast(list[Any], entry)
    )


def _model(entry: Any, path: Path) -> GridModel:
    given: Any = {"name": entry} if isinstance(entry, str) else entry
    values = {
        name: _value(name, value, path)
        for name, value in _mapping(given, GridModel, f"models of {path}").items()
    }
    if values["name"] and values["name"] not in BUILT_IN:
        values["name"] = _beside(path, values["name"])
    return GridModel(**values)


def _beside(path: Path, name: str) -> str:
    """A file or folder by its whole path, which means the same to every worker."""
    found = path.absolute().parent / Path(name).expanduser()
    return str(found.resolve()) if found.exists() else name
