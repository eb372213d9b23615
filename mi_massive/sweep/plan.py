"""From a grid to its cells, each under a name that holds everything its result depends on.

A cell is one model on one task, intact or under one arm: what `evaluate` gives, and what
`run_disruption` computes of it. Its name is known before anything is loaded: it holds the weights,
their type, the edit, the task and how it is asked, and the code that a worker runs (`_code`). The
device and the versions of other packages are not in it, and stand in the result's provenance.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mi_massive._code import code_digest
from mi_massive.arms import Arm
from mi_massive.models.gguf import file_sha256
from mi_massive.models.revision import Pinned, pin_model
from mi_massive.presets import PRESETS
from mi_massive.scores import INTACT
from mi_massive.sweep.checks import check_grid
from mi_massive.sweep.grid import GridModel, SweepGrid, task_name
from mi_massive.tasks import TASKS

_COMPUTED_BY: Final = "mi_massive.sweep.worker"
"""Module whose code decides a result, with all that it imports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepCell:
    """One result of a sweep, before it is computed."""

    model: GridModel
    identity: str
    """Of the model's weights, from `pin_model`."""
    commit: str | None
    """What to load from the hub."""
    dtype: str
    arm: Arm | None
    """None is the intact model."""
    task: str
    key: str
    """Hash of all that the result depends on."""
    matching_key: str | None
    """Of all that the strength of a matched arm depends on; None for any other arm."""

    @property
    def arm_name(self) -> str:
        """The arm's name, or `intact`."""
        return INTACT if self.arm is None else self.arm.name

    @property
    def name(self) -> str:
        """Name of its files: words for people, then the key."""
        words = "-".join((Path(self.model.name).name, task_name(self.task), self.arm_name))
        return f"{re.sub(r'[^A-Za-z0-9._]+', '-', words)[:100]}-{self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """A grid and its cells, as a sweep's folder holds them."""

    grid: SweepGrid
    cells: tuple[SweepCell, ...]
    """Those of one model and type next to each other; the intact model first."""


def plan_sweep(grid: SweepGrid) -> SweepPlan:
    """Find out which weights the models' names mean, and name every cell.

    Raises:
        ValueError: If two cells would be the same, or something in the grid would be used by none.
        FileNotFoundError: If a file or folder of the grid is missing.
        ConnectionError: If a model's revision must be asked of a hub that cannot be reached.
    """
    check_grid(grid)
    tasks = {task: _task_identity(task, grid) for task in grid.tasks}
    cells: list[SweepCell] = []
    for model in grid.models:
        pinned = pin_model(model.name, revision=model.revision)
        for dtype in grid.dtypes:
            for arm in (None, *grid.arms):
                cells += [
                    _cell(grid, model, pinned, dtype, arm, task, asked)
                    for task, asked in tasks.items()
                ]
    times = Counter(cell.key for cell in cells)
    for cell in cells:
        if times[cell.key] > 1:
            raise ValueError(
                f"models must have different weights, got {cell.model.name} twice; leave one out"
            )
    return SweepPlan(grid=grid, cells=tuple(cells))


def _cell(
    grid: SweepGrid,
    model: GridModel,
    pinned: Pinned,
    dtype: str,
    arm: Arm | None,
    task: str,
    asked: list[Any],
) -> SweepCell:
    edited = {
        "code": code_digest(_COMPUTED_BY),
        "model": pinned.identity,
        "dtype": dtype,
        "arm": None if arm is None else dataclasses.asdict(arm.intervention),
        "matching": _matching(grid, arm),
    }
    depends = {
        **edited,
        "task": asked,
        "asked": dataclasses.asdict(grid.evaluation_for(model).evaluation),
        "generated": grid.generated is None or task in grid.generated,
    }
    return SweepCell(
        model=model,
        identity=pinned.identity,
        commit=pinned.commit,
        dtype=dtype,
        arm=arm,
        task=task,
        key=_hash(depends),
        matching_key=None if edited["matching"] is None else _hash(edited),
    )


def _matching(grid: SweepGrid, arm: Arm | None) -> list[Any] | None:
    """What the strength of a matched arm depends on besides the model."""
    target = None if arm is None else PRESETS[arm.preset].matched_to
    return None if target is None else [target, grid.n_neutral, grid.neutral_length]


def _task_identity(task: str, grid: SweepGrid) -> list[Any]:
    if task not in TASKS:
        return [task_name(task), file_sha256(Path(task)), grid.limit]
    source = TASKS[task]
    rows = None
    if source.hub is not None:
        file = None if grid.data is None else Path(grid.data) / f"{task}.jsonl"
        rows = list(source.hub) if file is None else file_sha256(file)
    limit = source.default_limit if grid.limit is None else grid.limit
    return [task, source.version, rows, limit]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
