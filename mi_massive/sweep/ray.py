"""Workers that are actors of a Ray cluster, of one machine or of many.

Every node must see the sweep's folder, and have this package installed.
"""

import importlib
import importlib.util
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mi_massive._checks import require_in_range
from mi_massive.records import result_of, text_of
from mi_massive.sweep.base import PAUSE, require_workers
from mi_massive.sweep.worker import SweepWork, run_work

_PATIENCE: Final = 5.0
"""Seconds in which the address of a cluster must answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayEngine:
    """Actors of a Ray cluster."""

    address: str | None = None
    """`auto`, `HOST:PORT` or `ray://HOST:PORT`; None starts Ray on this machine."""
    device: str = "cpu"
    workers: int = 1
    gpus_per_worker: int = 1
    """On every device but the processor."""

    def __post_init__(self) -> None:
        """Refuse what cannot run before anything is planned."""
        require_in_range("workers", self.workers, low=1, high=4096, unit="actors")
        require_workers(self.device, gpus_per_worker=self.gpus_per_worker, here=False)
        if importlib.util.find_spec("ray") is None:
            raise ValueError(
                "engine ray must have Ray installed, got none; pip install 'mi-massive[ray]'"
            )
        _require_answer(self.address)

    @property
    def n_workers(self) -> int:
        """Actors at a time."""
        return self.workers

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        """Start an actor for each work, spread over the nodes, and wait for all."""
        ray: Any = importlib.import_module("ray")
        mine = not ray.is_initialized()
        if mine:
            self._connect(ray)
        actors: list[Any] = []
        try:
            kind = ray.remote(_Worker).options(**self._needs())
            actors += [kind.remote() for _ in works]
            pairs = zip(actors, works, strict=True)
            waiting = [actor.run.remote(text_of(work)) for actor, work in pairs]
            deaths: list[str] = []
            while waiting:
                done, waiting = ray.wait(waiting, timeout=PAUSE)
                tick()
                for one in done:
                    try:
                        ray.get(one)
                    except ray.exceptions.RayError as error:
                        deaths.append(f"an actor died: {' '.join(str(error).split())[:300]}")
            return deaths
        finally:
            for actor in actors:
                ray.kill(actor)  # an interrupt leaves them at work otherwise
            if mine:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            ray.init(address=self.address or "local", log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConnectionError(_unreachable(self.address, str(error))) from error

    def _needs(self) -> dict[str, Any]:
        gpus = 0 if self.device == "cpu" else self.gpus_per_worker
        return {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}


class _Worker:
    """The actor: a process that keeps its model from cell to cell."""

    def run(self, work: str) -> None:
        run_work(result_of(work, source="the driver"))


def _require_answer(address: str | None) -> None:
    """Raise ConnectionError unless something listens at the address."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"address must be auto, HOST:PORT or ray://HOST:PORT, got {address!r}; correct it"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise ConnectionError(_unreachable(address, str(error))) from error


def _unreachable(address: str | None, reason: str) -> str:
    said = " ".join(reason.split())[:200]
    return (
        f"address must be that of a running Ray cluster, got {address!r} ({said}); start one with "
        "`ray start --head`, or leave the address out"
    )
