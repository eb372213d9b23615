"""What every engine of a sweep is: something that runs workers and says which of them died."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

from mi_massive._checks import require_in_range
from mi_massive.models.load import SPREAD, require_device, require_known_device
from mi_massive.sweep.worker import SweepWork

PAUSE: Final = 0.25
"""Seconds between two looks at the workers."""


@runtime_checkable
class Engine(Protocol):
    """Runs workers. Results go through the sweep's folder, never through the engine."""

    @property
    def device(self) -> str:
        """Where each worker's model runs; `auto` spreads it over the devices of the worker."""
        ...

    @property
    def n_workers(self) -> int:
        """Workers at a time."""
        ...

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        """Run one worker for each work to its end.

        Args:
            works: At most `n_workers`.
            tick: To be called again and again meanwhile.

        Returns:
            For every worker that died, how.
        """
        ...


def require_workers(device: str, *, gpus_per_worker: int, here: bool) -> None:
    """Refuse devices that no worker could use, and GPUs that none would.

    Args:
        device: As an engine takes it.
        gpus_per_worker: GPUs that each worker sees.
        here: Whether workers run on this machine; elsewhere each worker numbers its own GPUs.

    Raises:
        ValueError: If torch does not know the device, this machine lacks it, it is one numbered GPU
            of workers elsewhere, or a worker would leave GPUs idle.
    """
    require_in_range("gpus_per_worker", gpus_per_worker, low=1, high=64, unit="GPUs")
    if gpus_per_worker > 1 and device != SPREAD:
        raise ValueError(
            f"gpus_per_worker must be 1 on one device, got {gpus_per_worker} on {device}; take the "
            f"device {SPREAD} to spread a model over several GPUs"
        )
    if device == SPREAD:
        return
    if here:
        require_device(device)
    elif require_known_device(device).type == "cuda" and device != "cuda":
        raise ValueError(
            f"device must be cpu, cuda or {SPREAD} for workers on other machines, got {device!r}; "
            "each is given GPUs of its own"
        )
