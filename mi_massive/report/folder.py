"""The report's folder: whether it may be written, and how it is replaced whole."""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from mi_massive.report.frames import TABLES

SUMMARY: Final = "summary.json"
PAGE: Final = "report.html"


def table_file(name: str) -> str:
    """File of the table `name`."""
    return f"{name}.parquet"


OWN: Final = frozenset({PAGE, SUMMARY, *map(table_file, TABLES)})
"""Every file that a report may write; any other file in its folder is someone else's."""


def require_replaceable(path: Path, *, model: str, overwrite: bool) -> None:
    """Raise FileExistsError unless `path` is new, empty, or holds an earlier report on `model`.

    With `overwrite`, any folder will do; files in it that no report wrote are kept.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"path must be a folder or new, got the file {path}")
    if overwrite or not path.exists():
        return
    entries = sorted(entry.name for entry in path.iterdir())
    if not entries:
        return
    found = _reported_model(path)
    if found is not None and found != model:
        raise FileExistsError(
            f"path must be new, empty or hold a report on {model!r}, got a report on {found!r} at "
            f"{path}; choose another folder or pass overwrite=True"
        )
    foreign = [name for name in entries if not _is_ours(name)]
    if found is None or foreign:
        raise FileExistsError(
            f"path must be new, empty or hold an earlier report, got a folder with other files "
            f"({', '.join((foreign or entries)[:3])}) at {path}; choose another folder or pass "
            "overwrite=True, which keeps those files"
        )


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder beside `path`, then put it in the place of `path`.

    Until the swap the old folder is untouched, and it is put back if the swap fails. Files of the
    old folder that no report wrote move into the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    fresh = path.parent / f".{path.name}.new-{token}"
    old = path.parent / f".{path.name}.old-{token}"
    fresh.mkdir()
    try:
        fill(fresh)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(fresh, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
        _keep_foreign(old, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _keep_foreign(old: Path, path: Path) -> None:
    if not old.exists():
        return
    for entry in old.iterdir():
        if not _is_ours(entry.name):
            os.replace(entry, path / entry.name)


def _is_ours(name: str) -> bool:
    return name in OWN


def _reported_model(path: Path) -> str | None:
    """The model that the folder's summary names; None without a readable summary."""
    try:
        document: Any = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or "claims" not in document:
        return None
    model = cast("dict[str, Any]", document).get("model")
    return model if isinstance(model, str) else None
