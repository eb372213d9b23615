"""Folders built once and kept: where on the disk is what we downloaded or converted?

A folder appears in the cache by one atomic rename, after everything in it was written, under a
file lock. So two processes at once build it once, and a process killed in the middle leaves a good
folder or none; the next builder removes what the killed one left. Costs nothing once it is there.

Does not show that a folder was left alone afterwards: whoever edits a cached folder gets the edit.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

CACHE_VARIABLE = "MI_MASSIVE_CACHE"
"""Environment variable that overrides the user's cache folder."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """The folder of all cached models: `MI_MASSIVE_CACHE`, else one in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE, "")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("mi_massive")


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the disk of `folder`."""
    return shutil.disk_usage(folder).free


def disk_full_error(folder: Path, *, needed: int | None = None) -> OSError:
    """The error for a full disk, naming the folder and the variable that moves the cache.

    Args:
        folder: Where the writing failed or would fail.
        needed: Bytes that the folder needs, where known.
    """
    rule = "must have room" if needed is None else f"must have {_megabytes(needed)} free"
    found = "a full disk" if needed is None else f"{_megabytes(free_bytes(folder))}"
    return OSError(
        errno.ENOSPC,
        f"the cache folder {folder} {rule}, got {found}; free some space, or set {CACHE_VARIABLE} "
        "to a folder on a larger disk",
    )


def find_cached(key: str, *, root: Path | None = None) -> Path | None:
    """The complete cached folder of `key`, or None while nobody has built it.

    Raises:
        ValueError: If `key` is not a plain file name.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"key must be letters, digits and ._=+-, got {key!r}")
    folder = (root or cache_root()) / key
    return folder if folder.is_dir() else None


def cached_folder(
    key: str,
    build: Callable[[Path], None],
    *,
    size: int | None = None,
    root: Path | None = None,
) -> Path:
    """Return the cached folder of `key`; when it is not there, build it first.

    Args:
        key: Names the contents exactly (source, version, checksum): same key, same bytes.
        build: Fills the empty folder that it is given. Runs at most once for all processes.
        size: Bytes that `build` writes at most, where known; checked against the free space first.
        root: The cache to use; None is `cache_root()`.

    Returns:
        The complete folder. Nobody writes to it any more.

    Raises:
        ValueError: If `key` is not a plain file name.
        OSError: If the disk has no room (`errno.ENOSPC`); nothing is left behind then.
    """
    found = find_cached(key, root=root)
    if found is not None:
        return found
    root = root or cache_root()
    folder = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{key}.lock"):
            if not folder.is_dir():
                _build_atomically(folder, build, size=size)
    except OSError as error:
        if error.errno in _DISK_FULL and CACHE_VARIABLE not in str(error):
            raise disk_full_error(root) from error
        raise
    return folder


def _build_atomically(folder: Path, build: Callable[[Path], None], *, size: int | None) -> None:
    """Build beside `folder` and rename. The caller holds the lock, so every leftover is stale."""
    prefix = f".{folder.name}.partial-"
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale)
    if size is not None and free_bytes(folder.parent) < size:
        raise disk_full_error(folder.parent, needed=size)
    # Not tempfile.mkdtemp, whose folder nobody else could read in a cache that users share.
    partial = folder.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        build(partial)
        _settle(partial)
        partial.rename(folder)
    finally:
        # After the rename there is nothing left to remove.
        shutil.rmtree(partial, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Give every file the folder's permissions, and force it to the disk.

    Some libraries write files that only their owner may read. Without the forcing, a power cut
    could keep the folder's name and lose its bytes.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
