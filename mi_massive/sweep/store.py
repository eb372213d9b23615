"""Where a sweep's results lie: a folder on this machine's file systems, or any fsspec URL.

Files have a kind (a subfolder) and a name, and are written whole: in a folder by renaming, on an
object store by its own rule. In a folder a cell is claimed by a lock that the system drops when its
holder dies, whatever killed it; nothing ever has to be cleaned up or waited out. An object store
has no such locks: there a cell may be computed twice, and the same text is written twice.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

from filelock import FileLock, Timeout

from mi_massive.records import write_atomically

Kind = Literal["cells", "failed", "strengths", "started", "plan"]


@runtime_checkable
class Store(Protocol):
    """Texts by kind and name."""

    place: str
    """Folder or URL."""
    locks: bool
    """Whether claims keep others out."""

    def names(self, kind: Kind) -> set[str]:
        """Everything of a kind."""
        ...

    def read(self, kind: Kind, name: str) -> str | None:
        """A text, or None if there is none."""
        ...

    def write(self, kind: Kind, name: str, text: str) -> None:
        """Write a text whole, over an older one."""
        ...

    def remove(self, kind: Kind, name: str) -> None:
        """Remove a text if it is there."""
        ...

    def claimed(self, name: str) -> Any:
        """Context whose value is False if someone else is at work on the cell."""
        ...


def open_store(place: str | Path) -> Store:
    """The store at a folder or URL."""
    text = str(place)
    if text.startswith("file://"):
        return FolderStore(Path(text.removeprefix("file://")))
    return UrlStore(text) if "://" in text else FolderStore(Path(text).absolute())


def is_complete(text: str | None) -> bool:
    """True unless a text was cut short or damaged: half a JSON document is none."""
    if text is None:
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


class FolderStore:
    """A folder, shared or not."""

    locks = True

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)
        self._folder = folder

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / kind / f"{name}.json"

    def names(self, kind: Kind) -> set[str]:
        """Everything of a kind; a file that is being written begins with a dot."""
        found = (self._folder / kind).glob("*.json")
        return {path.stem for path in found if not path.name.startswith(".")}

    def read(self, kind: Kind, name: str) -> str | None:
        """A text, or None if there is none, or no text."""
        try:
            return self._path(kind, name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write(self, kind: Kind, name: str, text: str) -> None:
        """Write beside the target, then rename."""
        path = self._path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))

    def remove(self, kind: Kind, name: str) -> None:
        """Remove a text if it is there."""
        self._path(kind, name).unlink(missing_ok=True)

    @contextmanager
    def claimed(self, name: str) -> Generator[bool, None, None]:
        """Hold the cell's lock; the value is False if another process holds it."""
        path = self._folder / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            # Removed while it is held: whoever gets it next sees the result, which was written
            # before, and a lock of the same name made meanwhile guards nothing any more.
            path.unlink(missing_ok=True)
            lock.release()


class UrlStore:
    """Any file system of fsspec, such as `s3://bucket/folder` with s3fs installed."""

    locks = False

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            found: Any = cast(Any, fsspec).core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"the result folder must be a path or a URL that fsspec can open, got {url!r} "
                f"({error})"
            ) from error
        self.place = url
        self._files, self._root = found

    def _path(self, kind: str, name: str) -> str:
        return f"{self._root}/{kind}/{name}.json"

    def names(self, kind: Kind) -> set[str]:
        """Everything of a kind, asked anew."""
        self._files.invalidate_cache()
        try:
            found = self._files.ls(f"{self._root}/{kind}", detail=False)
        except FileNotFoundError:
            return set()
        return {Path(path).stem for path in found if path.endswith(".json")}

    def read(self, kind: Kind, name: str) -> str | None:
        """A text, or None if there is none."""
        try:
            return self._files.cat_file(self._path(kind, name)).decode(errors="replace")
        except FileNotFoundError:
            return None

    def write(self, kind: Kind, name: str, text: str) -> None:
        """Put a text in one request."""
        self._files.makedirs(f"{self._root}/{kind}", exist_ok=True)
        self._files.pipe_file(self._path(kind, name), text.encode())

    def remove(self, kind: Kind, name: str) -> None:
        """Remove a text if it is there."""
        if self._files.exists(self._path(kind, name)):
            self._files.rm_file(self._path(kind, name))

    @contextmanager
    def claimed(self, name: str) -> Generator[bool, None, None]:
        """Nothing keeps others out."""
        del name
        yield True
