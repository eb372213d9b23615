"""What every engine of a sweep is: something that runs workers and says which of them died."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

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
