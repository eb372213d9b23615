"""Workers that are jobs of a SLURM cluster, submitted through submitit.

Every node must see the sweep's folder. A job that is preempted and requeued goes on with what is
left, as any worker does.
"""

import importlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mi_massive._checks import require_in_range
from mi_massive.records import result_of, text_of
from mi_massive.sweep.base import PAUSE, require_workers
from mi_massive.sweep.worker import SweepWork, run_work


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmEngine:
    """Jobs of one array."""

    logs: str
    """Folder for scripts and output of the jobs, on a file system that every node sees."""
    device: str = "cpu"
    workers: int = 1
    gpus_per_worker: int = 1
    """On every device but the processor."""
    options: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    """Parameters of submitit, such as `slurm_partition` and `timeout_min`."""
    cluster: Literal["slurm", "local"] = "slurm"
    """`local` runs the jobs as processes of this machine, to try things out."""

    def __post_init__(self) -> None:
        """Refuse what cannot run before anything is planned."""
        require_in_range("workers", self.workers, low=1, high=4096, unit="jobs")
        require_workers(self.device, gpus_per_worker=self.gpus_per_worker, here=False)
        if importlib.util.find_spec("submitit") is None:
            raise ValueError(
                "engine slurm must have submitit installed, got none; pip install "
                "'mi-massive[slurm]'"
            )
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ValueError(
                "engine slurm must find sbatch on this machine, got none; run it on a login node"
            )

    @property
    def n_workers(self) -> int:
        """Jobs at a time."""
        return self.workers

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        """Submit a job for each work and wait for all; an interrupt cancels them."""
        submitit: Any = importlib.import_module("submitit")
        executor = submitit.AutoExecutor(folder=Path(self.logs), cluster=self.cluster)
        try:
            executor.update_parameters(**self._parameters())
        except (NameError, ValueError) as error:  # a name that submitit does not know
            raise ValueError(f"options must be parameters of submitit, got {error}") from error
        jobs: list[Any] = executor.map_array(_Job(), [text_of(work) for work in works])
        try:
            while not all(job.done() for job in jobs):
                tick()
                time.sleep(PAUSE)
            return [_death(job) for job in jobs if job.exception() is not None]
        finally:
            for job in jobs:
                job.cancel()

    def _parameters(self) -> dict[str, str | int]:
        gpus = 0 if self.device == "cpu" else self.gpus_per_worker
        own: dict[str, str | int] = {"gpus_per_node": gpus, "name": "mi-massive"}
        return {**own, "timeout_min": 24 * 60, **self.options}


class _Job:
    """What a job runs; after a preemption it is submitted again as it is."""

    def __call__(self, work: str) -> None:
        run_work(result_of(work, source="the driver"))

    def checkpoint(self, work: str) -> Any:
        submitit: Any = importlib.import_module("submitit")
        return submitit.helpers.DelayedSubmission(self, work)


def _death(job: Any) -> str:
    said = " ".join(str(job.exception()).split())[:300]
    return f"job {job.job_id} ended: {said}"
