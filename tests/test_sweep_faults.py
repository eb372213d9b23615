"""Sweeps whose parts are killed: processes, drivers, nodes. Each ends in the undisturbed table."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch
from sample_sweep import N_CELLS, table_text, written

from mi_massive.scores import TaskResult
from mi_massive.sweep import (
    ProcessEngine,
    RayEngine,
    SlurmEngine,
    SweepGrid,
    run_sweep,
    sweep_status,
)
from mi_massive.sweep import run as sweep_run
from mi_massive.sweep import worker as sweep_worker
from mi_massive.sweep.plan import SweepCell
from mi_massive.sweep.worker import N_DEATHS, SweepWork, run_work

# A copy of this process is there at once, while a new one imports torch first.
fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForkEngine:
    """One worker in a copy of this process, which is there at once."""

    device: str = "cpu"
    n_workers: int = 1

    def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
        process = fork.Process(target=alone, args=(works[0],))
        process.start()
        process.join()
        tick()
        return [f"status {process.exitcode}"] if process.exitcode else []


def alone(work: SweepWork) -> None:
    torch.set_num_threads(1)  # a copy has none of the other threads
    run_work(work)


def drive(grid: SweepGrid, folder: Path) -> ForkProcess:
    """A driver in a process of its own, with one worker process."""
    engine = ProcessEngine(workers=1)
    driver = fork.Process(target=run_sweep, args=(grid, folder), kwargs={"engine": engine})
    driver.start()
    return driver


def wait_for_cells(folder: Path, n: int) -> None:
    until = time.monotonic() + 240
    while len(written(folder)) < n:
        assert time.monotonic() < until
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ps:
        listed, _ = ps.communicate()
    return [int(child) for child in listed.split() if int(child) != ps.pid]


@contextmanager
def struck(folder: Path, strike: Callable[[], object]) -> Generator[dict[str, int], None, None]:
    """Strike as soon as a cell is done; what was done by then stands in the value."""
    before: dict[str, int] = {}

    def wait_and_strike() -> None:
        wait_for_cells(folder, 1)
        before.update(written(folder))
        strike()

    thread = threading.Thread(target=wait_and_strike)
    thread.start()
    yield before
    thread.join()


def test_of_two_worker_processes_one_is_killed_and_no_finished_cell_is_lost(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    others = set(children(os.getpid()))

    def strike() -> None:
        os.kill(min(set(children(os.getpid())) - others), signal.SIGKILL)

    told = pytest.warns(UserWarning, match=r"worker \d+ ended with status -9.* left to the others")
    with struck(tmp_path, strike) as before, told:
        run_sweep(grid, tmp_path, engine=ProcessEngine(workers=2))
    assert 0 < len(before) < N_CELLS
    assert before.items() <= written(tmp_path).items()
    assert table_text(tmp_path) == table_text(undisturbed)


def test_a_killed_driver_loses_nothing_that_is_there(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    driver = drive(grid, tmp_path)
    wait_for_cells(tmp_path, 2)
    driver.kill()
    driver.join()
    before = written(tmp_path)
    run_sweep(grid, tmp_path)
    assert before.items() <= written(tmp_path).items()
    assert table_text(tmp_path) == table_text(undisturbed)


def test_two_drivers_share_a_folder_and_compute_no_cell_twice(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    driver = drive(grid, tmp_path)
    wait_for_cells(tmp_path, 1)
    run_sweep(grid, tmp_path)
    driver.join()
    assert driver.exitcode == 0
    assert len(written(tmp_path)) == N_CELLS
    assert table_text(tmp_path) == table_text(undisturbed)


def test_a_cell_that_kills_every_worker_is_given_up_and_stops_no_other(
    grid: SweepGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = sweep_worker.compute_cell
    doomed = "intact"  # the first cells of all

    def die_in_one(*given: object) -> TaskResult:
        cell = given[-1]
        assert isinstance(cell, SweepCell)
        if cell.arm_name == doomed and Path(cell.task).stem == "first":
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(*given)

    monkeypatch.setattr(sweep_worker, "compute_cell", die_in_one)
    status = run_sweep(grid, tmp_path, engine=ForkEngine())
    assert status.done == N_CELLS - 1
    (failure,) = status.failures
    assert (failure.arm, Path(failure.task).stem) == (doomed, "first")
    assert f"its worker died {N_DEATHS} times" in failure.error
    assert sweep_status(tmp_path).started == 0


def test_workers_that_cannot_begin_end_the_sweep(grid: SweepGrid, tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stillborn(ForkEngine):
        def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
            return ["status 1: no module named torch"]

    with pytest.raises(RuntimeError, match="got 1 that died before the first one; status 1: no"):
        run_sweep(grid, tmp_path, engine=Stillborn())


def test_workers_that_leave_nothing_behind_end_the_sweep(
    grid: SweepGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each wrote into a folder of its own machine."""
    runs: list[int] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Elsewhere(ForkEngine):
        def run(self, works: Sequence[SweepWork], tick: Callable[[], None]) -> list[str]:
            runs.append(len(works))
            return []

    monkeypatch.setattr(sweep_run, "_SEEN_WITHIN", 0.2)
    with pytest.raises(RuntimeError, match=r"workers must leave cells in .* every worker sees"):
        run_sweep(grid, tmp_path, engine=Elsewhere())
    assert len(runs) == 1


def test_slurm_jobs_give_the_same_table(grid: SweepGrid, undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    options = {"mem_gb": 1.5, "slurm_partition": "gpu", "local_setup": f"touch {tmp_path}/set-up"}
    engine = SlurmEngine(logs=str(tmp_path / "logs"), cluster="local", workers=1, options=options)
    run_sweep(grid, tmp_path, engine=engine)
    assert (tmp_path / "set-up").exists()
    assert table_text(tmp_path) == table_text(undisturbed)


@pytest.mark.slow
def test_of_two_ray_nodes_one_is_killed_and_the_other_ends_the_sweep(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        engine = RayEngine(address=cluster.address, workers=2)
        strike = partial(cluster.remove_node, second, allow_graceful=False)
        with struck(tmp_path, strike) as before:
            run_sweep(grid, tmp_path, engine=engine)
    finally:
        cluster.shutdown()
    assert 0 < len(before) < N_CELLS
    assert before.items() <= written(tmp_path).items()
    assert table_text(tmp_path) == table_text(undisturbed)
