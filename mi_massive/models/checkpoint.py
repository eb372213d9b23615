"""From a model's name to a folder on this machine: which source serves the name?

In this order: a built-in name, an existing `.gguf` file, an existing folder, else a model of the
Hugging Face hub. Every source ends as a complete Hugging Face folder that loads without a network.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from mi_massive.models.cache import find_cached
from mi_massive.models.folder import require_model_folder
from mi_massive.models.gguf import convert_gguf, converted_folder, file_sha256, read_weights_note
from mi_massive.models.hub import HubModelNotFoundError, hub_folder
from mi_massive.models.wheel import BUILT_IN, BuiltInModel, wheel_folder

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SURELY_MEANT = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Where a model's files lie, and where they came from."""

    name: str
    """As the user gave it."""
    folder: Path
    """A complete Hugging Face folder: config, safetensors weights, tokenizer."""
    revision: str | None
    """Commit of a hub model, requirement of a wheel, checksum of a GGUF file; else None."""
    trust_remote_code: bool
    """Whether the model's own Python files may run; never for built-in models and GGUF files."""
    weights_note: str | None
    """What happened to the weights before this package saw them, where that is known."""


def resolve_checkpoint(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Find the model that `name_or_path` means and put a loadable folder of it on this machine.

    Args:
        name_or_path: A built-in name, a path to a `.gguf` file or to a Hugging Face folder, or a
            hub id such as `owner/name`.
        revision: Branch, tag or commit of a hub model; other sources have none.
        trust_remote_code: Whether a folder's or hub model's own Python files may run.

    Raises:
        ValueError: If the name means nothing, or what it means is incomplete or damaged.
        FileNotFoundError: If it is written as a path and nothing is there.
        UnsupportedModelError: If the files are of a kind that this package does not load.
        OSError: If a download failed (`ConnectionError`) or the disk has no room.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    built_in = BUILT_IN.get(name) if isinstance(name_or_path, str) else None
    is_local = built_in is not None or path.exists() or _looks_like_path(name_or_path)
    if revision is not None and is_local:
        raise ValueError(
            f"revision must be None for a model that is not on the hub, got {revision!r} for "
            f"{name!r}; leave it out"
        )
    if built_in is not None:
        return _built_in_checkpoint(built_in)
    if path.is_dir():
        require_model_folder(path, trust_remote_code=trust_remote_code)
        return Checkpoint(
            name=name,
            folder=path.absolute(),
            revision=None,
            trust_remote_code=trust_remote_code,
            weights_note=None,
        )
    if path.is_file():
        return _file_checkpoint(name, path.absolute())
    if is_local:
        raise FileNotFoundError(
            f"name_or_path must be an existing file or folder when written as a path, got {name!r}"
            f"; nothing is at {path.absolute()}"
        )
    return _hub_checkpoint(name, revision=revision, trust_remote_code=trust_remote_code)


def _looks_like_path(name_or_path: str | Path) -> bool:
    """Whether a name that matches nothing on the disk was surely meant as a path."""
    name = str(name_or_path)
    return (
        isinstance(name_or_path, Path)
        or name.startswith((".", "~", "/"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith("/")
        or name.lower().endswith(_FILE_ENDINGS)
    )


def _built_in_checkpoint(model: BuiltInModel) -> Checkpoint:
    """A built-in model; its GGUF file is neither fetched nor hashed again once converted."""
    note = None
    file = model.files[0]
    if file.member.endswith(".gguf"):
        folder = find_cached(converted_folder(file.sha256))
        if folder is None:
            packed = wheel_folder(model) / Path(file.member).name
            folder = convert_gguf(packed, sha256=file.sha256)
        note = read_weights_note(folder)
    else:
        folder = wheel_folder(model)
    require_model_folder(folder)
    return Checkpoint(
        name=model.name,
        folder=folder,
        revision=model.requirement,
        trust_remote_code=False,
        weights_note=note,
    )


def _file_checkpoint(name: str, path: Path) -> Checkpoint:
    """A single file: GGUF, or refused with what to give instead."""
    if path.suffix.lower() != ".gguf":
        raise ValueError(
            f"a model file must end in .gguf, got {name!r}; for other formats give the folder that "
            "holds config.json and the safetensors weights"
        )
    sha256 = file_sha256(path)
    folder = find_cached(converted_folder(sha256))
    if folder is None:
        folder = convert_gguf(path, sha256=sha256)
    require_model_folder(folder)
    return Checkpoint(
        name=name,
        folder=folder,
        revision=f"sha256:{sha256}",
        trust_remote_code=False,
        weights_note=read_weights_note(folder),
    )


def _hub_checkpoint(name: str, *, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    """A hub model, unless the name cannot be one or is a built-in name misspelt."""
    bare = "/" not in name
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=_SURELY_MEANT)
    if not _HUB_ID.fullmatch(name) or (bare and close):
        raise _unknown_name(name)
    try:
        folder = hub_folder(name, revision=revision, trust_remote_code=trust_remote_code)
    except HubModelNotFoundError as error:
        raise _unknown_name(name, reason=str(error)) from error
    except ConnectionError as error:
        if not bare:
            raise
        raise ConnectionError(str(_unknown_name(name, reason=str(error)))) from error
    return Checkpoint(
        name=name,
        folder=folder,
        revision=folder.name,
        trust_remote_code=trust_remote_code,
        weights_note=None,
    )


def _unknown_name(name: str, *, reason: str | None = None) -> ValueError:
    """The sentence for a name that no source knows."""
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    hub = f"; the hub was asked too: {reason}" if reason else ""
    return ValueError(
        f"name_or_path must be a built-in name ({', '.join(BUILT_IN)}), a hub id such as "
        f"'owner/name', or a path such as './folder' or 'model.gguf', got {name!r}{meant}{hub}"
    )
