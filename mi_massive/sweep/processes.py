"""Workers that are processes of this machine: one for each GPU, or some on the processor."""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Final

from mi_massive._checks import require_in_range
from mi_massive._cores import n_cores
from mi_massive.records import text_of
from mi_massive.sweep.base import PAUSE, require_workers
from mi_massive.sweep.worker import SweepWork

_PROGRAM: Final = "from mi_massive.sweep.worker import main; main()"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessEngine:
    """Processes of this machine."""

    device: str = "cpu"
    """All workers share a GPU that is named by its number; `cuda` and `auto` give each its own."""
    workers: int | None = None
    """None: one for each GPU (or group of GPUs) on `cuda` and `auto`, else one."""
    gpus_per_worker: int = 1

    def __post_init__(self) -> None:
        """Refuse workers that would have no device."""
        require_workers(self.device, gpus_per_worker=self.gpus_per_worker, here=True)
        if self.workers is not None:
            require_in_range("workers", self.workers, low=1, high=1024, unit="processes")
        wanted = self.n_workers * self.gpus_per_worker
        if (self._on_gpus or self.gpus_per_worker > 1) and wanted > len(_gpus()):
            raise ValueError(
                f"workers x gpus_per_worker must be at most the {len(_gpus())} GPUs of this "
                f"machine on {self.device}, got {self.n_workers} x {self.gpus_per_worker}; ask for "
                "fewer, or name one GPU, such as cuda:0, that all workers share"
            )

    @property
    def n_workers(self) -> int:
        """As given, or as many as the GPUs allow."""
        if self.workers is not None:
            return self.workers
        return max(1, len(_gpus()) // self.gpus_per_worker) if self._on_gpus else 1

    @property
    def _on_gpus(self) -> bool:
        return self.device in ("cuda", "auto") and bool(_gpus())

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        """Start a process for each work and wait for all; none outlives this call."""
        running: list[tuple[subprocess.Popen[str], IO[str]]] = []
        try:
            for i, work in enumerate(works):
                errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed below
                process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    text=True,
                    env=self._environment(i),
                )
                running.append((process, errors))
                _tell(process, replace(work, parent=os.getpid()))
            told = set[int]()
            while any(process.poll() is None for process, _ in running):
                tick()
                time.sleep(PAUSE)
                for process, errors in running:
                    if process.poll() and process.pid not in told:  # the others may work for days
                        told.add(process.pid)
                        death = _death(process, errors)
                        warnings.warn(f"{death}; its cells are left to the others", stacklevel=2)
            return [_death(*worker) for worker in running if worker[0].returncode]
        finally:
            for process, errors in running:
                process.kill()
                process.wait()
                errors.close()

    def _environment(self, worker: int) -> Mapping[str, str]:
        own = {"OMP_NUM_THREADS": str(max(1, n_cores() // self.n_workers))}
        if self._on_gpus:
            first = worker * self.gpus_per_worker
            own["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus()[first : first + self.gpus_per_worker])
        return {**own, **os.environ} if not self._on_gpus else {**os.environ, **own}


def _tell(process: "subprocess.Popen[str]", work: SweepWork) -> None:
    """Give a process its work; one that is dead already is reported with the others."""
    assert process.stdin is not None  # opened as a pipe
    try:
        process.stdin.write(text_of(work))
        process.stdin.close()
    except BrokenPipeError:
        process.wait()


def _gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _death(process: "subprocess.Popen[str]", errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    said = lines[-1] if lines else "no message"
    return f"worker {process.pid} ended with status {process.returncode}: {said}"
