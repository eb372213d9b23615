"""What a sweep found: the scores of every arm on every task, model by model, in table 1's form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_massive._arm_costs import arm_costs
from mi_massive._brief import Brief
from mi_massive._score_frames import cell_columns
from mi_massive.arms import Arm, controls_at
from mi_massive.contrasts import ArmContrast
from mi_massive.control_comparisons import ControlComparison
from mi_massive.records import result_of
from mi_massive.scores import INTACT, Cell, TaskResult, cells_of
from mi_massive.sweep.grid import SweepGrid
from mi_massive.sweep.plan import SweepCell
from mi_massive.sweep.status import failures_of, read_plan
from mi_massive.sweep.store import Store, open_store
from mi_massive.sweep.worker import FailedCell


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ModelTable(Brief):
    """One model's part of a sweep."""

    model: str
    identity: str
    """Which weights these were."""
    dtype: str
    cells: tuple[Cell, ...]
    """As `run_disruption` gives them; p corrected over this table."""
    contrasts: tuple[ArmContrast, ...] = ()
    """As `run_disruption` gives them, over the tasks that the intact model has answered, once none
    of its cells is waiting. An arm stands here when it has answered all of these tasks, and a
    treatment when every control at its k has too."""
    comparisons: tuple[ControlComparison, ...] = ()
    """As `run_disruption` gives them, of the treatments in `contrasts`."""
    incomplete: tuple[str, ...] = ()
    """Arms without contrasts, for want of cells of their own, of their controls or of the intact
    model."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SweepResult(Brief):
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


def load_sweep(folder: str | Path, *, costs: bool = True) -> SweepResult:
    """Read what a sweep has found so far.

    Args:
        folder: Folder or URL that `run_sweep` writes to.
        costs: Whether to compute contrasts and comparisons, which takes about as long as the rest.

    Raises:
        FileNotFoundError: If no sweep was begun there.
        ValueError: If a result is damaged; `run_sweep` computes it again.
    """
    store = open_store(folder)
    plan = read_plan(store)
    there = store.names("cells")
    failures = failures_of(store, {cell.name for cell in plan.cells})
    failed = {failure.name for failure in failures}
    tables: list[ModelTable] = []
    for model, identity, dtype in dict.fromkeys((c.model, c.identity, c.dtype) for c in plan.cells):
        own = [cell for cell in plan.cells if (cell.model, cell.dtype) == (model, dtype)]
        results = {c.name: _result(store, c) for c in own if c.name in there}
        cells, intact, by_arm = _scores(own, results)
        waits = any(c.arm is None and c.name not in there | failed for c in own)
        found = _costs(plan.grid, [] if waits else intact, by_arm) if costs else {}
        tables.append(
            ModelTable(model=model.name, identity=identity, dtype=dtype, cells=cells, **found)
        )
    n_done = len(there & {cell.name for cell in plan.cells})
    return SweepResult(
        grid=plan.grid,
        tables=tuple(tables),
        waiting=len(plan.cells) - n_done - len(failures),
        failures=failures,
    )


def _result(store: Store, cell: SweepCell) -> TaskResult:
    text = store.read("cells", cell.name)
    return result_of(text or "", source=f"{store.place}: {cell.name}")


def _scores(
    own: list[SweepCell], results: Mapping[str, TaskResult]
) -> tuple[tuple[Cell, ...], list[TaskResult], dict[str, list[TaskResult]]]:
    """Cells, and their results; one of an arm counts once that of the intact model is there."""
    answered = {cell.task for cell in own if cell.arm is None and cell.name in results}
    by_arm: dict[str, list[TaskResult]] = {INTACT: []}
    for cell in own:
        if cell.task in answered and cell.name in results:
            by_arm.setdefault(cell.arm_name, []).append(results[cell.name])
    intact = by_arm.pop(INTACT)
    return cells_of(intact, by_arm), intact, by_arm


def _costs(
    grid: SweepGrid, intact: list[TaskResult], by_arm: Mapping[str, list[TaskResult]]
) -> dict[str, Any]:
    """Contrasts and comparisons of the arms that have all tasks of `intact`, and the other arms."""

    def whole(arm: Arm) -> bool:
        return 0 < len(intact) == len(by_arm.get(arm.name, ()))

    arms = grid.arms
    ready = [
        arm
        for arm in arms
        if whole(arm) and (arm.role == "control" or all(map(whole, controls_at(arms, arm))))
    ]
    contrasts, comparisons = arm_costs(
        ready, intact, {arm.name: by_arm[arm.name] for arm in ready}, readouts=grid.readouts
    )
    return {
        "contrasts": contrasts,
        "comparisons": comparisons,
        "incomplete": tuple(arm.name for arm in arms if arm not in ready),
    }
