"""Cells computed in this process, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mi_massive.sweep.base import require_workers
from mi_massive.sweep.worker import SweepWork, run_work


@dataclass(frozen=True, kw_only=True, slots=True)
class InlineEngine:
    """No worker but this process."""

    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse a device that is not here."""
        require_workers(self.device, gpus_per_worker=1, here=True)

    @property
    def n_workers(self) -> int:
        """One."""
        return 1

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        """Compute here; an error of the machine, such as a full disk, is raised as it is."""
        for work in works:
            run_work(work, tick)
        return []
