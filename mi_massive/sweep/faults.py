"""What a sweep kept and lost under faults: the record of an experiment that kills its parts."""

from dataclasses import asdict, dataclass
from typing import Any

from mi_massive.records import Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFault:
    """One disturbed sweep, run again until its table was whole."""

    name: str
    engine: str
    done_before: int
    """Cells whose results were there at the fault."""
    in_flight: int
    """Cells that were being computed just before the fault, by any worker."""
    done_again: int
    """Of the cells done before, those that were written a second time."""
    same_table: bool
    """Whether the table at the end is that of an undisturbed sweep, byte for byte."""
    seconds: float
    """From the first start to the whole table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFaultsResult:
    """Every fault on one grid."""

    n_cells: int
    undisturbed_seconds: float
    """Of the same grid in one process, the model's load included."""
    faults: tuple[SweepFault, ...]
    provenance: Provenance
    """Of the first cell."""

    def to_frame(self) -> Any:
        """The faults as a data frame (pandas), one row each."""
        import pandas as pd

        return pd.DataFrame([asdict(fault) for fault in self.faults])
