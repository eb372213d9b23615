"""Mistakes in a grid that show only beside its files, or in what it would leave unused.

A grid that was run is read back without its files, to show what was found; so these are looked for
when it is planned, before anything is computed.
"""

from pathlib import Path

from mi_massive.disruption import DisruptionConfig, evaluation_of
from mi_massive.presets import PRESETS
from mi_massive.sweep.grid import SweepGrid
from mi_massive.tasks import TASKS, load_own_task


def check_grid(grid: SweepGrid) -> None:
    """Raise unless every cell can be asked what the grid says, and all that it says is used.

    Raises:
        ValueError: If a value would be used by nothing, or a task has none of the read-outs.
        FileNotFoundError: If a file or folder of it is missing.
    """
    _require_data(grid)
    _require_use(grid)
    for task in grid.tasks:
        _require_readout(grid, task)


def _require_data(grid: SweepGrid) -> None:
    hub = [task for task in grid.tasks if task in TASKS and TASKS[task].hub is not None]
    if grid.data is None:
        return
    if not Path(grid.data).is_dir():
        raise FileNotFoundError(f"data must be a folder that exists, got {grid.data}; correct it")
    if not hub:
        raise ValueError(
            f"data must be left out where no task has its data on the hub, got {grid.data} for "
            f"{', '.join(grid.tasks)}"
        )
    for task in hub:
        if not (Path(grid.data) / f"{task}.jsonl").is_file():
            raise FileNotFoundError(
                f"data must be a folder that holds {task}.jsonl, got {grid.data} without it; add it"
            )


def _require_use(grid: SweepGrid) -> None:
    """Refuse values that would change nothing."""
    presets = [PRESETS[name] for name in grid.presets]
    own = DisruptionConfig()
    neutral = (grid.n_neutral, grid.neutral_length) != (own.n_neutral, own.neutral_length)
    in_words = "generation" in grid.readouts
    of_presets, of_readouts = ", ".join(grid.presets), ", ".join(grid.readouts)
    unused = (
        ("k", grid.k is not None and not any(one.dosed for one in presets), of_presets),
        ("seeds", grid.seeds != (0,) and not any(one.seeded for one in presets), of_presets),
        (
            "n_neutral and neutral_length",
            neutral and all(one.matched_to is None for one in presets),
            of_presets,
        ),
        ("generated", grid.generated is not None and not in_words, of_readouts),
        ("max_new_tokens", grid.max_new_tokens is not None and not in_words, of_readouts),
    )
    for name, given, by in unused:
        if given:
            raise ValueError(
                f"{name} must be left out where nothing uses it, got it with {by} alone"
            )


def _require_readout(grid: SweepGrid, task: str) -> None:
    """Refuse a task that could be asked in no read-out: those of this package have options."""
    if task not in TASKS:
        if not Path(task).is_file():
            raise FileNotFoundError(f"tasks must be files that exist, got {task}; correct it")
        evaluation_of(load_own_task(Path(task)), grid.evaluation_for(grid.models[0]))
    elif "options" not in grid.readouts and task not in (
        grid.tasks if grid.generated is None else grid.generated
    ):
        raise ValueError(
            f"{task} must have a read-out, got generation alone and a task that is not among "
            "generated; add it there, or ask for options"
        )
