"""What a worker does: cell after cell, with one model held, from and into the sweep's folder.

A worker needs nothing but the folder. It goes through the cells from its own share on, leaves out
those that are there, that failed or that another worker holds, and so takes over what a dead or
slow one left. A cell whose worker died comes last, and is given up after the third death.
"""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mi_massive.arms import Arm, match_arms
from mi_massive.battery import load_tasks
from mi_massive.disruption import evaluation_of
from mi_massive.evaluation import evaluate
from mi_massive.models.base import HookedModel
from mi_massive.models.load import DTYPES, load_model
from mi_massive.models.revision import pin_model
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.records import result_of, text_of
from mi_massive.scores import TaskResult
from mi_massive.sweep.grid import SweepGrid
from mi_massive.sweep.plan import SweepCell, SweepPlan
from mi_massive.sweep.store import Store, open_store
from mi_massive.tasks import TASKS, Task, load_own_task

N_DEATHS: Final = 3
"""Workers that a cell may kill before it counts as failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepWork:
    """What one worker is told."""

    plan: SweepPlan
    """The cells still to do, this worker's share first."""
    place: str
    """Folder or URL of the sweep."""
    device: str
    """`cpu`, `cuda`, ... or `auto`: the model's layers spread over all devices that it sees."""
    parent: int | None = None
    """Process id of the driver; a worker ends after its cell when that one is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedCell:
    """A cell that raised an error."""

    name: str
    model: str
    arm: str
    task: str
    error: str
    """Type and text, in one line."""
    trace: str = ""


def run_work(work: SweepWork, tick: Callable[[], None] | None = None) -> None:
    """Compute cells until none is left that this worker can have.

    Args:
        work: The cells, and where results go.
        tick: Called after every cell.

    Raises:
        OSError: If a result cannot be written.
    """
    store, models = open_store(work.place), _Models(work.device)
    died = store.names("started")
    for cell in sorted(work.plan.cells, key=lambda cell: cell.name in died):
        if work.parent is not None and os.getppid() != work.parent:
            return
        with store.claimed(cell.name) as mine:
            if mine and not _is_settled(store, cell):
                _settle(store, models, work.plan.grid, cell)
        if tick is not None:
            tick()


def failed_cell(cell: SweepCell, error: str, trace: str = "") -> FailedCell:
    """The failure of a cell."""
    return FailedCell(
        name=cell.name,
        model=cell.model.name,
        arm=cell.arm_name,
        task=cell.task,
        error=error,
        trace=trace,
    )


def _is_settled(store: Store, cell: SweepCell) -> bool:
    return any(store.read(kind, cell.name) is not None for kind in ("cells", "failed"))


def _settle(store: Store, models: "_Models", grid: SweepGrid, cell: SweepCell) -> None:
    """Compute one cell and write its result, or its error."""
    dead: list[int] = json.loads(store.read("started", cell.name) or "[]")
    if len(dead) >= N_DEATHS:
        error = f"its worker died {len(dead)} times while computing it (out of memory, or killed)"
        store.write("failed", cell.name, text_of(failed_cell(cell, error)))
    else:
        store.write("started", cell.name, json.dumps([*dead, os.getpid()]))
        try:
            text = text_of(compute_cell(store, models, grid, cell))
        except Exception as error:  # whatever it is: it belongs to this cell, others go on
            failure = failed_cell(cell, _one_line(error), traceback.format_exc())
            store.write("failed", cell.name, text_of(failure))
        else:
            store.write("cells", cell.name, text)
    store.remove("started", cell.name)


class _Models:
    """The one model that a worker holds, and what was prepared on it."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._held: tuple[object, HookedModel | Exception] | None = None
        self.tasks: dict[tuple[str, bool], Task] = {}

    def get(self, cell: SweepCell) -> HookedModel:
        """The model of a cell; one that cannot be loaded is tried once."""
        wanted = (cell.model, cell.dtype)
        if self._held is None or self._held[0] != wanted:
            self._held, self.tasks = None, {}  # before the next one needs its memory
            try:
                self._held = (wanted, self._load(cell))
            except (ValueError, OSError, RuntimeError) as error:
                self._held = (wanted, error)
        held = self._held[1]
        if isinstance(held, Exception):
            raise held
        return held

    def _load(self, cell: SweepCell) -> HookedModel:
        found = pin_model(cell.model.name, revision=cell.commit).identity
        if found != cell.identity:
            raise ValueError(
                f"the weights of {cell.model.name} must be those the sweep began with, got others "
                f"({found}); start a sweep of its own"
            )
        return load_model(
            cell.model.name,
            device=self._device,
            dtype=DTYPES[cell.dtype],
            revision=cell.commit,
            trust_remote_code=cell.model.trust_remote_code,
        )


def compute_cell(store: Store, models: _Models, grid: SweepGrid, cell: SweepCell) -> TaskResult:
    """The cell's result, equal to what `run_disruption` computes for this arm and task."""
    model, config = models.get(cell), grid.evaluation_for(cell.model)
    asked = (cell.task, cell.model.chat)
    if asked not in models.tasks:
        models.tasks[asked] = _task(grid, cell.task, model, chat=cell.model.chat)
    task = models.tasks[asked]
    arm = cell.arm and _matched(store, model, grid, cell, cell.arm)
    edit = None if arm is None else arm.intervention
    return evaluate(model, task, intervention=edit, config=evaluation_of(task, config))


def _task(grid: SweepGrid, name: str, model: HookedModel, *, chat: bool) -> Task:
    if name in TASKS:
        data = None if grid.data is None else Path(grid.data)
        return load_tasks(model, [name], data=data, limit=grid.limit, chat=chat)[0]
    own = load_own_task(Path(name))
    return own if grid.limit is None else own.first(grid.limit)


def _matched(store: Store, model: HookedModel, grid: SweepGrid, cell: SweepCell, arm: Arm) -> Arm:
    """The arm at its strength, which is the same for all tasks: found once and kept."""
    if cell.matching_key is None:
        return arm
    kept = store.read("strengths", cell.matching_key)
    if kept is None:
        passages = default_passages()[: grid.n_neutral]
        neutral = tokenize_prompts(model.tokenizer, passages, max_length=grid.neutral_length)
        kept = text_of(match_arms(model, [arm], neutral)[0])
        store.write("strengths", cell.matching_key, kept)
    strength = result_of(kept, source=f"strengths of {store.place}").strength
    return dataclasses.replace(arm, strength=strength)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main() -> None:
    """A worker in a process of its own: its work as JSON on the standard input."""
    work: Any = result_of(sys.stdin.read(), source="the standard input")
    run_work(work)
