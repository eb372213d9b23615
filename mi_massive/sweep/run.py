"""The driver of a sweep: plan, make the folder ready, run workers until no cell is left.

The folder is the only truth. A driver that is killed is started again and finds what is there; two
drivers on one folder share the work by the claims of their workers.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from mi_massive.records import text_of
from mi_massive.sweep.base import PAUSE, Engine
from mi_massive.sweep.grid import SweepGrid
from mi_massive.sweep.inline import InlineEngine
from mi_massive.sweep.plan import SweepCell, SweepPlan, plan_sweep
from mi_massive.sweep.status import PLAN, SweepProgress, SweepStatus, Watch, read_plan, sweep_status
from mi_massive.sweep.store import Store, is_complete, open_store
from mi_massive.sweep.worker import SweepWork

_SEEN_WITHIN = 60.0
"""Seconds in which a shared folder shows what a worker elsewhere has written."""
_LOOKS = {True: 0.5, False: 10.0}
"""Seconds between two looks into a folder, and into an object store, which counts requests."""


def run_sweep(
    grid: SweepGrid,
    folder: str | Path,
    *,
    engine: Engine | None = None,
    retry_failed: bool = False,
    extend: bool = False,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepStatus:
    """Compute every cell of a grid that the folder does not hold yet.

    Args:
        grid: From `read_grid`, or made in Python.
        folder: Folder, or URL of fsspec; every worker must see it.
        engine: What runs the workers; None computes in this process.
        retry_failed: Compute failed cells again.
        extend: Put this grid in place of another one that the folder holds; cells of both stay.
        on_progress: Called again and again while the sweep runs.

    Returns:
        The state at the end, failed cells with their errors.

    Raises:
        ValueError: If the folder holds another grid, or a cell stands twice in this one.
        ConnectionError: If a model's revision or the engine cannot be reached.
        OSError: If the folder cannot be written or the disk is full.
        RuntimeError: If workers die before they begin a single cell, or end without leaving one.
    """
    engine = engine or InlineEngine()
    store, plan = open_store(folder), plan_sweep(grid)
    _take(store, plan, extend=extend)
    _tidy(store, plan.cells, retry_failed=retry_failed)
    watch = Watch(store, {cell.name for cell in plan.cells})
    looked = 0.0

    def tick() -> None:
        nonlocal looked
        if on_progress is not None and time.monotonic() - looked > _LOOKS[store.locks]:
            on_progress(watch.look())
            looked = time.monotonic()

    while todo := _left(store, plan.cells):
        if all(_is_held(store, cell) for cell in todo):  # by the workers of another driver
            tick()
            time.sleep(PAUSE)
            continue
        before = _traces(store, plan.cells)
        deaths = engine.run(_works(store, plan, todo, engine), tick)
        if deaths and _traces(store, plan.cells) == before:
            raise RuntimeError(
                f"workers must begin cells, got {len(deaths)} that died before the first one; "
                f"{deaths[0]}"
            )
        until = time.monotonic() + _SEEN_WITHIN
        while not _goes_on(store, plan.cells, before):
            if time.monotonic() < until:
                time.sleep(PAUSE)
                continue
            raise RuntimeError(
                f"workers must leave cells in {store.place}, got none from those that ended; "
                "choose a folder or URL that every worker sees"
            )
    if on_progress is not None:
        on_progress(watch.look())
    return sweep_status(folder)


def _take(store: Store, plan: SweepPlan, *, extend: bool) -> None:
    """Write the plan, unless the folder holds it or another one."""
    text, held = text_of(plan), store.read("plan", PLAN)
    if held == text:
        return
    if is_complete(held) and not extend:
        try:
            before = read_plan(store).grid
        except ValueError as error:
            raise ValueError(
                f"folder must hold a grid that this version can read, got another one in "
                f"{store.place}; choose another folder, or extend=True to keep its cells"
            ) from error
        names = [field.name for field in dataclasses.fields(SweepGrid)]
        other = [n for n in names if getattr(before, n) != getattr(plan.grid, n)]
        differs = ", ".join(other) or "weights or version of this package"
        raise ValueError(
            f"folder must hold this grid or none, got another one in {store.place} (it differs in "
            f"{differs}); choose another folder, or extend=True to keep the cells of both"
        )
    store.write("plan", PLAN, text)


def _tidy(store: Store, cells: Sequence[SweepCell], *, retry_failed: bool) -> None:
    """Remove what earlier runs left behind: damaged results, marks of the dead, failures."""
    done, failed, started = (store.names(k) for k in ("cells", "failed", "started"))
    for name in (cell.name for cell in cells):
        if name in done and not is_complete(store.read("cells", name)):
            store.remove("cells", name)
        if name in failed and (retry_failed or not is_complete(store.read("failed", name))):
            store.remove("failed", name)
        if name in started:
            with store.claimed(name) as mine:
                if mine:
                    store.remove("started", name)


def _left(store: Store, cells: Sequence[SweepCell]) -> list[SweepCell]:
    settled = store.names("cells") | store.names("failed")
    return [cell for cell in cells if cell.name not in settled]


def _traces(store: Store, cells: Sequence[SweepCell]) -> list[object]:
    """What workers leave behind: cells that are settled, and deaths in cells that are not."""
    started = store.names("started")
    deaths = [store.read("started", cell.name) for cell in cells if cell.name in started]
    return [store.names("cells") | store.names("failed"), deaths]


def _goes_on(store: Store, cells: Sequence[SweepCell], before: list[object]) -> bool:
    """True if cells have been settled or begun since, or another driver's workers have some."""
    # In this order: what another driver ends meanwhile has left its trace.
    held = any(_is_held(store, cell) for cell in _left(store, cells))
    return held or _traces(store, cells) != before


def _is_held(store: Store, cell: SweepCell) -> bool:
    with store.claimed(cell.name) as mine:
        return not mine


def _works(store: Store, plan: SweepPlan, todo: list[SweepCell], engine: Engine) -> list[SweepWork]:
    """A share of neighbouring cells for each worker; where claims hold, then those of the others.

    Neighbours have one model, so that a worker loads few.
    """
    n = min(engine.n_workers, len(todo))
    firsts = [len(todo) * i // n for i in range(n + 1)]
    works: list[SweepWork] = []
    for first, end in pairwise(firsts):
        cells = todo[first:] + todo[:first] if store.locks else todo[first:end]
        own = SweepPlan(grid=plan.grid, cells=tuple(cells))
        works.append(SweepWork(plan=own, place=store.place, device=engine.device))
    return works
