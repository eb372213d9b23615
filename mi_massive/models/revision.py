"""Which weights a model's name means, found without loading or downloading them."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Final, NamedTuple

from httpx import HTTPError
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mi_massive.models.gguf import file_sha256
from mi_massive.models.wheel import BUILT_IN

_READ: Final = (".json", ".jinja", ".txt", ".model", ".py", ".safetensors")
"""What decides a folder's model: config, tokenizer, code and weights, to the last tensor."""


class Pinned(NamedTuple):
    """The weights that a name means now."""

    identity: str
    """Differs where the weights do: a requirement, a checksum, or a commit of the hub."""
    commit: str | None
    """Commit to load from the hub; None for every other source."""


def pin_model(name: str, *, revision: str | None = None) -> Pinned:
    """Find out which weights `name` means, at the cost of reading its files or of one request.

    Args:
        name: As `load_model` takes it.
        revision: Branch, tag or commit of a hub model.

    Raises:
        ValueError: If a revision is asked for of a model that is not on the hub.
        ConnectionError: If it is a hub model that is neither in the cache nor on a hub that can be
            reached.
    """
    path = Path(name).expanduser()
    if revision is not None and (name in BUILT_IN or path.exists()):
        raise ValueError(
            f"revision must be None for a model that is not on the hub, got {revision!r} for "
            f"{name!r}; leave it out"
        )
    if name in BUILT_IN:
        return Pinned(BUILT_IN[name].requirement, None)
    if path.is_file():
        return Pinned(f"sha256:{file_sha256(path)}", None)
    if path.is_dir():
        return Pinned(f"folder:{_folder_digest(path)}", None)
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    commit = Path(cached).parent.name if isinstance(cached, str) else _commit(name, revision)
    return Pinned(f"{name}@{commit}", commit)


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ:
            found = file.stat()
            sha256 = _file_digest(file.resolve(), found.st_size, found.st_mtime_ns)
            digest.update(json.dumps([file.name, sha256]).encode())
    return digest.hexdigest()[:16]


@functools.cache
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Checksum of a file as it was then; read once a process."""
    del size, changed  # a file that differs in them is read again
    return file_sha256(file)


def _commit(name: str, revision: str | None) -> str:
    try:
        return str(HfApi().model_info(name, revision=revision).sha)
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled) as error:
        at = "" if revision is None else f" at {revision!r}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(
            f"model {name}{at} must be a built-in name, a file or folder that exists, or on a hub "
            f"that can be reached, got none ({reason}); check the spelling, or connect"
        ) from error
