"""What the experiment on faults does to a sweep, and what is there at that moment."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from mi_massive.sweep import RayEngine, SweepProgress, read_grid, run_sweep

COMMAND = (sys.executable, "-m", "mi_massive", "sweep", "--quiet")
State = tuple[dict[str, int], int]
"""When each result was written, and how many cells were being computed."""


def state(folder: Path) -> State:
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}
    return written, len(list((folder / "started").glob("*.json")))


def started(grid: Path, folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*COMMAND, str(grid), "--out", str(folder), *options])


def state_after(folder: Path, n: int) -> State:
    while len(state(folder)[0]) < n:
        time.sleep(0.02)
    return state(folder)


def worker_killed(grid: Path, folder: Path) -> State:
    """One of two, within a cell; the other goes on, and takes that cell up."""
    driver = started(grid, folder, "--workers", "2")
    state_after(folder, 1)
    computing: list[Path] = []
    while not computing:
        time.sleep(0.02)
        computing = list((folder / "started").glob("*.json"))
    found = state(folder)
    os.kill(json.loads(computing[0].read_text())[-1], signal.SIGKILL)
    driver.wait()
    return found


def cell_raises(grid: Path, folder: Path) -> State:
    """Those of the intact model raise; they are kept as failed, and computed when asked again."""
    inside = "mi_massive.sweep.worker.compute_cell"  # no public call makes a sound cell raise
    compute = pkgutil.resolve_name(inside)

    def broken(*given: Any) -> Any:
        if given[-1].arm is None:
            raise RuntimeError("planted")
        return compute(*given)

    with mock.patch(inside, broken):
        failed = run_sweep(read_grid(grid), folder).failures
    if not all("planted" in failure.error for failure in failed) or not failed:
        raise RuntimeError(f"the planted cells must have failed, got {failed}")
    found = state(folder)
    run_sweep(read_grid(grid), folder, retry_failed=True)
    return found


def driver_killed(grid: Path, folder: Path) -> State:
    driver = started(grid, folder, "--workers", "1")
    found = state_after(folder, 2)
    driver.kill()
    driver.wait()
    return found


def two_drivers(grid: Path, folder: Path) -> State:
    driver = started(grid, folder, "--workers", "1")
    found = state_after(folder, 1)
    run_sweep(read_grid(grid), folder)
    driver.wait()
    return found


def disk_full(grid: Path, folder: Path) -> State:
    sweep = f"{sys.executable} -m mi_massive sweep --quiet {grid} --out $1/disk --engine inline"
    script = f"mount -t tmpfs -o size=32k none $1 && ! {sweep}; cp -a $1/disk/. $2"
    with tempfile.TemporaryDirectory() as mounted:
        subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", mounted, folder], check=True)
    return state(folder)


def result_truncated(grid: Path, folder: Path) -> State:
    run_sweep(read_grid(grid), folder)
    broken = min((folder / "cells").glob("*.json"))
    broken.write_bytes(broken.read_bytes()[:200])
    written, n_started = state(folder)
    return {name: at for name, at in written.items() if name != broken.name}, n_started


def ray_node_killed(grid: Path, folder: Path) -> State:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    found: list[State] = []

    def kill_once(progress: SweepProgress) -> None:
        if not found and progress.done:
            found.append(state(folder))
            cluster.remove_node(second, allow_graceful=False)

    engine = RayEngine(address=cluster.address, workers=2)
    try:
        run_sweep(read_grid(grid), folder, engine=engine, on_progress=kill_once)
    finally:
        cluster.shutdown()
    return found[0]


FAULTS: dict[str, tuple[str, Callable[[Path, Path], State]]] = {
    "worker killed": ("local", worker_killed),
    "cell raises": ("inline", cell_raises),
    "driver killed": ("local", driver_killed),
    "two drivers": ("local, inline", two_drivers),
    "disk full": ("inline", disk_full),
    "result truncated": ("inline", result_truncated),
    "Ray node killed": ("ray", ray_node_killed),
}
