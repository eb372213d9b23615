"""What a sweep found: the scores of every arm on every task, model by model, in table 1's form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_massive._score_frames import cell_columns
from mi_massive.records import result_of
from mi_massive.scores import INTACT, Cell, TaskResult, cells_of
from mi_massive.sweep.grid import SweepGrid
from mi_massive.sweep.plan import SweepCell
from mi_massive.sweep.status import failures_of, read_plan
from mi_massive.sweep.store import Store, open_store
from mi_massive.sweep.worker import FailedCell


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTable:
    """One model's part of a sweep."""

    model: str
    identity: str
    """Which weights these were."""
    dtype: str
    cells: tuple[Cell, ...]
    """As `run_disruption` gives them; p corrected over this table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """Everything that is there of a sweep."""

    grid: SweepGrid
    tables: tuple[ModelTable, ...]
    waiting: int
    """Cells that are not there; p-values will change with them."""
    failures: tuple[FailedCell, ...]

    def to_frame(self) -> Any:
        """One row a model, arm, task and read-out, as a data frame."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"model": table.model, "identity": table.identity, "dtype": table.dtype}
                | cell_columns(cell)
                for table in self.tables
                for cell in table.cells
            ]
        )


def load_sweep(folder: str | Path) -> SweepResult:
    """Read what a sweep has found so far.

    Args:
        folder: Folder or URL that `run_sweep` writes to.

    Raises:
        FileNotFoundError: If no sweep was begun there.
        ValueError: If a result is damaged; `run_sweep` computes it again.
    """
    store = open_store(folder)
    plan = read_plan(store)
    there = store.names("cells")
    failures = failures_of(store, {cell.name for cell in plan.cells})
    tables: list[ModelTable] = []
    for model, identity, dtype in dict.fromkeys((c.model, c.identity, c.dtype) for c in plan.cells):
        own = [
            cell
            for cell in plan.cells
            if (cell.model, cell.dtype) == (model, dtype) and cell.name in there
        ]
        cells = _cells(store, own)
        tables.append(ModelTable(model=model.name, identity=identity, dtype=dtype, cells=cells))
    n_done = len(there & {cell.name for cell in plan.cells})
    return SweepResult(
        grid=plan.grid,
        tables=tuple(tables),
        waiting=len(plan.cells) - n_done - len(failures),
        failures=failures,
    )


def _cells(store: Store, own: list[SweepCell]) -> tuple[Cell, ...]:
    """Scores and changes; an arm's result counts once that of the intact model is there."""
    by_arm: dict[str, list[TaskResult]] = {INTACT: []}
    intact = {cell.task for cell in own if cell.arm is None}
    for cell in own:
        if cell.task in intact:
            text = store.read("cells", cell.name)
            result = result_of(text or "", source=f"{store.place}: {cell.name}")
            by_arm.setdefault(cell.arm_name, []).append(result)
    return cells_of(by_arm.pop(INTACT), by_arm)
