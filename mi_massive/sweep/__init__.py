"""A grid of models, arms, tasks, seeds and layers, computed cell by cell, safe against any kill.

========== ====================================================================================
grid       SweepGrid: what is asked for
reading    read_grid: the same in YAML
checks     check_grid: what can only be found wrong beside the grid's files
plan       every cell under a name that holds all its result depends on
store      folder or fsspec URL: whole files, claims
worker     what a worker does: one model held, cell after cell
base       Engine: what runs workers
inline     this process
processes  processes of this machine, one for each GPU
ray        actors of a Ray cluster (extra `ray`)
slurm      jobs of a SLURM cluster, through submitit (extra `slurm`)
run        run_sweep: plan, run workers until nothing is left
status     sweep_status: how far a sweep is, from its folder alone
table      load_sweep: scores, contrasts and comparisons, as run_disruption gives them
faults     SweepFaultsResult: what a sweep kept and lost when parts of it were killed
========== ====================================================================================

Costs one evaluation a cell, and one load of each model a worker. Does not show: anything that one
`run_disruption` would not; effects on neutral text are not part of a sweep.
"""

from mi_massive.sweep.base import Engine
from mi_massive.sweep.faults import SweepFault, SweepFaultsResult
from mi_massive.sweep.grid import GridModel, SweepGrid
from mi_massive.sweep.inline import InlineEngine
from mi_massive.sweep.processes import ProcessEngine
from mi_massive.sweep.ray import RayEngine
from mi_massive.sweep.reading import read_grid
from mi_massive.sweep.run import run_sweep
from mi_massive.sweep.slurm import SlurmEngine
from mi_massive.sweep.status import SweepProgress, SweepStatus, sweep_status
from mi_massive.sweep.table import ModelTable, SweepResult, load_sweep
from mi_massive.sweep.worker import FailedCell

__all__ = [
    "Engine",
    "FailedCell",
    "GridModel",
    "InlineEngine",
    "ModelTable",
    "ProcessEngine",
    "RayEngine",
    "SlurmEngine",
    "SweepFault",
    "SweepFaultsResult",
    "SweepGrid",
    "SweepProgress",
    "SweepResult",
    "SweepStatus",
    "load_sweep",
    "read_grid",
    "run_sweep",
    "sweep_status",
]
