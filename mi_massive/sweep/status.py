"""How far a sweep is: read from its folder alone, without a model, a network or a scheduler."""

import time
from dataclasses import dataclass
from pathlib import Path

from mi_massive.records import result_of
from mi_massive.sweep.plan import SweepPlan
from mi_massive.sweep.store import Store, open_store
from mi_massive.sweep.worker import FailedCell

PLAN = "grid"
"""Name of the plan in the folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepProgress:
    """What a running sweep tells now and then."""

    done: int
    failed: int
    total: int
    computed: int
    """Cells that were settled since this run began."""
    seconds: float
    """Since this run began."""

    @property
    def per_minute(self) -> float:
        """Cells settled in a minute, over the whole run so far."""
        return 60 * self.computed / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None before the first cell."""
        left = self.total - self.done - self.failed
        return left * self.seconds / self.computed if self.computed else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStatus:
    """The cells of a sweep by their state."""

    total: int
    done: int
    started: int
    """In work now, or when their worker died."""
    failures: tuple[FailedCell, ...]

    @property
    def waiting(self) -> int:
        """Neither done nor failed."""
        return self.total - self.done - len(self.failures)


def sweep_status(folder: str | Path) -> SweepStatus:
    """How far the sweep in a folder is.

    Args:
        folder: Folder or URL that `run_sweep` writes to.

    Raises:
        FileNotFoundError: If no sweep was begun there.
    """
    store = open_store(folder)
    names = {cell.name for cell in read_plan(store).cells}
    return SweepStatus(
        total=len(names),
        done=len(names & store.names("cells")),
        started=len(names & store.names("started")),
        failures=failures_of(store, names),
    )


def read_plan(store: Store) -> SweepPlan:
    """The grid and the cells that a folder holds.

    Raises:
        FileNotFoundError: If there are none.
    """
    text = store.read("plan", PLAN)
    if text is None:
        raise FileNotFoundError(
            f"folder must be one that a sweep was run in, got no plan in {store.place}; check the "
            "path, or begin with mi-massive sweep GRID --out DIR"
        )
    return result_of(text, source=f"the plan in {store.place}")


def failures_of(store: Store, names: set[str]) -> tuple[FailedCell, ...]:
    """Failed cells among these, in the order of their names."""
    texts = [(name, store.read("failed", name)) for name in sorted(names & store.names("failed"))]
    return tuple(result_of(text, source=name) for name, text in texts if text is not None)


class Watch:
    """Looks into the folder now and then, and counts what this run has settled."""

    def __init__(self, store: Store, names: set[str]) -> None:
        self._store, self._names = store, names
        self._began = time.monotonic()
        self._at_first = self._count()

    def _count(self) -> tuple[int, int]:
        kinds = (self._store.names("cells"), self._store.names("failed"))
        done, failed = (len(self._names & kind) for kind in kinds)
        return done, failed

    def look(self) -> SweepProgress:
        """Where the sweep is now."""
        done, failed = self._count()
        return SweepProgress(
            done=done,
            failed=failed,
            total=len(self._names),
            computed=done + failed - sum(self._at_first),
            seconds=time.monotonic() - self._began,
        )
