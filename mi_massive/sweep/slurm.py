"""Workers that are jobs of a SLURM cluster, submitted through submitit.

Every node must see the sweep's folder. A job that is preempted and requeued goes on with what is
left, as any worker does.
"""

import importlib
import importlib.util
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, cast

import yaml

from mi_massive._checks import require_in_range
from mi_massive.records import result_of, text_of
from mi_massive.sweep.base import PAUSE, require_workers
from mi_massive.sweep.worker import SweepWork, run_work

Cluster = Literal["slurm", "local"]
_KINDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    **dict.fromkeys(
        (
            *("timeout_min", "time", "nodes", "cpus_per_task", "gpus_per_node", "gpus_per_task"),
            *("tasks_per_node", "ntasks_per_node", "cpus_per_gpu", "num_gpus", "signal_delay_s"),
            "array_parallelism",
        ),
        ((int,), "a whole number"),
    ),
    "mem_gb": ((float, int), "a number"),
    **dict.fromkeys(("stderr_to_stdout", "use_srun"), ((bool,), "true or false")),
    "exclusive": ((bool, str), "true or a text"),
    **dict.fromkeys(("setup", "teardown", "srun_args"), ((list,), "a text or a list of texts")),
    "additional_parameters": ((dict,), "a mapping such as {mail-type: END}"),
}
"""Parameters of submitit that are more than text, without the prefix that says whose they are."""
_TEXT: Final = (str,)


def read_parameter(name: str, text: str) -> Any:
    """What a parameter of submitit given as text means: numbers, else YAML where it wants no text.

    A text that means nothing of the kind stays one, for the engine to refuse.
    """
    types, _ = _kind(name)
    if types == _TEXT:
        return text
    if int in types:  # YAML would read 24:00:00 and 010 as other numbers
        number = re.fullmatch(r"\d+(\.\d+)?", text)
        return text if number is None else float(text) if number[1] else int(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if type(value) in types else text


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmEngine:
    """Jobs of one array."""

    logs: str
    """Folder for scripts and output of the jobs, on a file system that every node sees."""
    device: str = "cpu"
    workers: int = 1
    gpus_per_worker: int = 1
    """On every device but the processor."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Parameters of submitit, such as `slurm_partition` and `timeout_min`; a text where it takes a
    list, such as `slurm_setup`, is a list of one."""
    cluster: Cluster = "slurm"
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
        with TemporaryDirectory() as folder:
            executor = self._executor(folder)
            for name, value in self._parameters().items():
                try:
                    executor.update_parameters(**{name: value})
                except (AssertionError, NameError, TypeError, ValueError) as error:
                    said = str(error).partition("\n")[0]
                    raise ValueError(
                        f"{name} must be a parameter of submitit as it takes it, got {value!r}; "
                        f"it says: {said}"
                    ) from error

    @property
    def n_workers(self) -> int:
        """Jobs at a time."""
        return self.workers

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        """Submit a job for each work and wait for all; an interrupt cancels them."""
        executor = self._executor(self.logs)
        executor.update_parameters(**self._parameters())
        jobs: list[Any] = executor.map_array(_Job(), [text_of(work) for work in works])
        try:
            while not all(job.done() for job in jobs):
                tick()
                time.sleep(PAUSE)
            return [_death(job) for job in jobs if job.exception() is not None]
        finally:
            for job in jobs:
                job.cancel()

    def _executor(self, logs: str) -> Any:
        submitit: Any = importlib.import_module("submitit")
        return submitit.AutoExecutor(folder=Path(logs), cluster=self.cluster)

    def _parameters(self) -> dict[str, Any]:
        gpus = 0 if self.device == "cpu" else self.gpus_per_worker
        own = {"gpus_per_node": gpus, "name": "mi-massive", "timeout_min": 24 * 60}
        return {**own, **{name: _of_kind(name, value) for name, value in self.options.items()}}


class _Job:
    """What a job runs; after a preemption it is submitted again as it is."""

    def __call__(self, work: str) -> None:
        run_work(result_of(work, source="the driver"))

    def checkpoint(self, work: str) -> Any:
        submitit: Any = importlib.import_module("submitit")
        return submitit.helpers.DelayedSubmission(self, work)


def _kind(name: str) -> tuple[tuple[type, ...], str]:
    bare = re.sub(r"^(slurm|local)_", "", name)
    return _KINDS.get(bare, (_TEXT, "a text"))


def _of_kind(name: str, value: Any) -> Any:
    types, words = _kind(name)
    if types == _TEXT:  # submitit takes more for some, and says which names it does not know
        return value
    if list in types and isinstance(value, str):
        return [value]
    if type(value) not in types or (
        list in types and not all(isinstance(text, str) for text in cast(list[Any], value))
    ):
        raise ValueError(f"{name} must be {words}, got {value!r}; correct it")
    return value


def _death(job: Any) -> str:
    said = " ".join(str(job.exception()).split())[:300]
    return f"job {job.job_id} ended: {said}"
