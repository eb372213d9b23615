"""Where a result came from, and how it is saved: JSON for structure, safetensors for tensors.

A saved result is one folder-free pair of files, `NAME.json` and, if it holds tensors,
`NAME.safetensors`. NaN and infinities survive the round trip. Loading runs no code: only the result
classes of this package are built.
"""

import dataclasses
import errno
import importlib
import inspect
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, cast

import safetensors
import safetensors.torch
from torch import Tensor

from mi_massive._brief import Brief

_PACKAGE: Final = __name__.partition(".")[0]
_VERSIONED: Final = ("mi-massive", "torch", "transformers", "transformer-lens")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Provenance(Brief):
    """What a result was computed from and with."""

    model: str
    revision: str | None
    weights_note: str | None
    """What happened to the weights before they were loaded, such as a dequantization."""
    dtype: str
    device: str
    attention_kernel: str
    batch_size: int
    n_prompts: int
    prompts_digest: str
    """SHA-256 over the exact token ids of all prompts, in order."""
    seed: int | None
    settings: dict[str, str | int | float | bool | None]
    """Arguments of the run that change its numbers and are not seen in the digest."""
    versions: dict[str, str]
    command: str


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that decide its numbers, and of Python."""
    versions = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in _VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def command_line() -> str:
    """The running command: the program's file name and its arguments."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def save_result(result: object, path: str | Path) -> Path:
    """Write a result dataclass of this package as `path` (JSON) and a safetensors file beside it.

    Both files are written whole and then renamed; a kill in the middle leaves the old pair or a
    pair whose tensors are newer than its JSON, never a truncated file. Lists are read back as
    tuples.

    Args:
        result: An instance of one of this package's result classes.
        path: Target; must end in `.json`. The folder is made if it is missing.

    Returns:
        The JSON file's path.

    Raises:
        ValueError: If `path` does not end in `.json`, `result` is no result class of this package,
            or it holds something other than tensors, such dataclasses and plain data.
        OSError: If the folder cannot be written or the disk is full.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"path must end in .json, got {path}")
    if not _is_result(result):
        raise ValueError(f"result must be a dataclass of {_PACKAGE}, got {type(result).__name__}")
    tensors: dict[str, Tensor] = {}
    document = _encode(result, key="", tensors=tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    if tensors:
        write_atomically(
            path.with_suffix(".safetensors"),
            lambda file: save_tensors(tensors, file),
        )
    text = json.dumps(document, indent=1) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    if not tensors:  # those of an earlier result under this name
        path.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def load_result(path: str | Path) -> Any:
    """Read what `save_result` wrote.

    Raises:
        FileNotFoundError: If the JSON file or the tensors that it names are missing.
        ValueError: If the file holds no complete result of this package, or one with other fields
            than this version's.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:  # not UTF-8
        raise ValueError(f"{path} must hold JSON, got {error}; compute it again") from error
    return result_of(text, source=path)


def text_of(result: object) -> str:
    """A result without tensors as the JSON text that `save_result` writes.

    Raises:
        ValueError: If `result` is no result class of this package, or it holds tensors.
    """
    if not _is_result(result):
        raise ValueError(f"result must be a dataclass of {_PACKAGE}, got {type(result).__name__}")
    tensors: dict[str, Tensor] = {}
    document = _encode(result, key="", tensors=tensors)
    if tensors:
        raise ValueError(f"result must hold no tensors, got {', '.join(tensors)}; use save_result")
    return json.dumps(document, indent=1) + "\n"


def result_of(text: str, *, source: str | Path) -> Any:
    """The result that a JSON text holds; `source` says where it and its tensors lie.

    Raises:
        FileNotFoundError: If the tensors that it names are missing.
        ValueError: If it holds no complete result of this package and version.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} must hold JSON, got {error}; compute it again") from error
    if not (isinstance(document, dict) and "$type" in document):
        raise ValueError(f"{source} must hold a result written by save_result, got other JSON")
    tensors: Mapping[str, Tensor] = {}
    if _names_tensors(document):
        tensors = load_tensors(Path(source).with_suffix(".safetensors"))
    try:
        return _decode(document, tensors)
    except KeyError as missing:
        raise ValueError(
            f"{source} must hold a complete result, got no entry {missing}"
        ) from missing
    except TypeError as error:  # a field too many, too few, or of another type
        raise ValueError(
            f"{source} must hold the fields of {document['$type']}, got: {error}; it was written "
            "by another version or edited, compute it again"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` and rename it: no partial file is seen."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _is_result(value: object) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and type(value).__module__.partition(".")[0] == _PACKAGE
    )


def _qualified_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _under(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _encode(value: Any, *, key: str, tensors: dict[str, Tensor]) -> Any:
    # No function within: it would be made and checked anew for every value of a result.
    if isinstance(value, Tensor):
        if key in tensors:
            raise ValueError(f"{key} must name one tensor, got two; leave out dots in names")
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"$tensor": key}
    if _is_result(value):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {n: _encode(getattr(value, n), key=_under(key, n), tensors=tensors) for n in names}
        return {"$type": _qualified_name(cast(object, value)), **fields}
    if isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        for name in mapping:
            if not isinstance(name, str) or name.startswith("$"):
                raise ValueError(f"{key} must have names without a leading $ as keys, got {name!r}")
        return {n: _encode(v, key=_under(key, n), tensors=tensors) for n, v in mapping.items()}
    if isinstance(value, tuple | list):
        items = cast("tuple[Any, ...] | list[Any]", value)
        return [_encode(v, key=_under(key, i), tensors=tensors) for i, v in enumerate(items)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(
        f"{key} must be a tensor, a dataclass of {_PACKAGE} or plain data, "
        f"got {type(value).__name__}"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(child, tensors) for child in cast(list[Any], value))
    if not isinstance(value, dict):
        return value
    document = cast(dict[str, Any], value)
    if "$tensor" in document:
        return tensors[document["$tensor"]]
    fields = {name: _decode(child, tensors) for name, child in document.items() if name != "$type"}
    if "$type" not in document:
        return fields
    return _result_class(document["$type"])(**fields)


def _names_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        document = cast(dict[str, Any], value)
        return "$tensor" in document or any(_names_tensors(child) for child in document.values())
    return isinstance(value, list) and any(
        _names_tensors(child) for child in cast(list[Any], value)
    )


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; a full disk is an OSError, whose text alone safetensors keeps."""
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:
        full = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC if full in str(error) else errno.EIO, str(error)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} must lie beside its JSON file, got none; copy both files")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must hold tensors, got {error}; compute it again") from error


def _result_class(qualified: str) -> Callable[..., Any]:
    module, _, name = qualified.rpartition(".")
    package, *inner = module.split(".")
    # A private module is no home of results, and importing `__main__` would run the program.
    if package != _PACKAGE or not inner or any(part.startswith("_") for part in inner):
        raise ValueError(f"$type must name a class of {_PACKAGE}, got {qualified!r}")
    try:
        kind: Any = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        kind = None
    if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"$type must name a result class of {_PACKAGE}, got {qualified!r}")
    return kind
