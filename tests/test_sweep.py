"""Sweeps on a tiny random model: cells by content, resumed after every fault to the same table."""

import dataclasses
import resource
import signal
from pathlib import Path

import pytest
from conftest import Run
from sample_sweep import BoundedEngine, build_grid, table_text, written

from mi_massive import load_model, make_arms, run_disruption
from mi_massive.records import text_of
from mi_massive.scores import INTACT
from mi_massive.sweep import (
    InlineEngine,
    RayEngine,
    SweepGrid,
    load_sweep,
    run_sweep,
    sweep_status,
)
from mi_massive.sweep.plan import plan_sweep
from mi_massive.tasks import load_own_task

# --- what a sweep computes


def test_a_sweeps_table_is_that_of_run_disruption(grid: SweepGrid, undisturbed: Path) -> None:
    tasks = [load_own_task(Path(task)) for task in grid.tasks]
    config = dataclasses.replace(grid.evaluation_for(grid.models[0]), n_neutral=2, neutral_length=8)
    model = load_model(grid.models[0].name)
    expected = run_disruption(model, tasks, grid.arms, config=config)
    (table,) = load_sweep(undisturbed).tables
    assert [text_of(cell) for cell in table.cells] == [text_of(cell) for cell in expected.cells]


def test_nothing_is_computed_twice(grid: SweepGrid, undisturbed: Path) -> None:
    before = written(undisturbed)
    run_sweep(grid, undisturbed)
    assert written(undisturbed) == before


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, tmp_path, engine=BoundedEngine(n_cells=4))
    before = written(tmp_path)
    assert len(before) == 4
    run_sweep(grid, tmp_path)
    assert before.items() <= written(tmp_path).items()
    assert table_text(tmp_path) == table_text(undisturbed)


def test_arms_differ_in_layers_and_draw_only_where_they_draw(grid: SweepGrid) -> None:
    seeded = dataclasses.replace(grid, seeds=(0, 1), layers=(None,))
    assert [arm.name for arm in seeded.arms] == [
        *("paper k=2", "random k=2 seed=0", "random k=2 seed=1"),
    ]
    assert grid.arms[1].intervention.where.layers == (0,)
    assert grid.arms[0] == make_arms(["paper"], ks=[2])[0]


@pytest.mark.parametrize(
    "change",
    [{"limit": 4}, {"k": (1,)}, {"batch_size": 2}, {"dtypes": ("bfloat16",)}],
    ids=str,
)
def test_a_cells_name_changes_with_all_that_its_result_depends_on(
    grid: SweepGrid, change: dict[str, object]
) -> None:
    before, after = (plan_sweep(one) for one in (grid, dataclasses.replace(grid, **change)))
    kept = {c.key for c in before.cells} & {c.key for c in after.cells}
    arms = {cell.arm_name for cell in before.cells if cell.key in kept}
    assert arms == ({INTACT} if "k" in change else set())


def test_other_weights_in_the_same_folder_are_another_cell(grid: SweepGrid, tmp_path: Path) -> None:
    own = build_grid(tmp_path)
    before = plan_sweep(own).cells[0]
    weights = Path(own.models[0].name) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-3] ^= 1
    weights.write_bytes(changed)
    assert plan_sweep(own).cells[0].key != before.key
    assert plan_sweep(grid).cells[0].identity == before.identity  # the same weights elsewhere


# --- faults


def test_a_truncated_result_is_computed_again(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    run_sweep(grid, tmp_path)
    before = written(tmp_path)
    broken = sorted((tmp_path / "cells").glob("*.json"))[3]
    broken.write_bytes(broken.read_bytes()[:200])
    run_sweep(grid, tmp_path)
    after = written(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {broken.name}
    assert table_text(tmp_path) == table_text(undisturbed)


def test_a_cell_that_raises_is_kept_and_retried_on_request(grid: SweepGrid, tmp_path: Path) -> None:
    bad = dataclasses.replace(grid, layers=((9,),))
    status = run_sweep(bad, tmp_path / "bad")
    assert status.done == 2  # the intact model
    assert len(status.failures) == 4
    assert {f.error for f in status.failures} == {"ValueError: layers must be among [0, 1], got 9"}
    assert all("Traceback" in f.trace for f in status.failures)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "bad/failed").iterdir()}
    assert len(run_sweep(bad, tmp_path / "bad").failures) == 4
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "bad/failed").iterdir()} == before
    run_sweep(bad, tmp_path / "bad", retry_failed=True)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "bad/failed").iterdir()} != before


def test_a_full_disk_ends_the_sweep_and_leaves_whole_files(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, tmp_path, engine=BoundedEngine(n_cells=3))
    before = written(tmp_path)
    smallest = min(path.stat().st_size for path in (tmp_path / "cells").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an OSError instead, as a disk gives
    resource.setrlimit(resource.RLIMIT_FSIZE, (smallest // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            run_sweep(grid, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert written(tmp_path) == before
    assert sweep_status(tmp_path).failures == ()
    run_sweep(grid, tmp_path)
    assert before.items() <= written(tmp_path).items()
    assert table_text(tmp_path) == table_text(undisturbed)


# --- engines and places


def test_a_model_on_whatever_devices_there_are_gives_the_same_table(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    run_sweep(grid, tmp_path, engine=InlineEngine(device="auto"))
    assert table_text(tmp_path) == table_text(undisturbed)


def test_a_file_url_is_a_folder(grid: SweepGrid, tmp_path: Path) -> None:
    small = dataclasses.replace(grid, presets=("paper",), layers=(None,))
    run_sweep(small, tmp_path.as_uri())
    assert len(written(tmp_path)) == 4
    assert table_text(tmp_path) == text_of(load_sweep(tmp_path.as_uri()))


def test_an_object_store_holds_the_same_table(grid: SweepGrid, undisturbed: Path) -> None:
    url = "memory://sweep"
    run_sweep(grid, url)
    assert text_of(load_sweep(url)) == table_text(undisturbed)


# --- bad input, and the command line


def test_an_unknown_model_is_refused_before_anything_is_written(
    grid: SweepGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    other = dataclasses.replace(grid.models[0], name=str(tmp_path / "gone"))
    with pytest.raises((ValueError, ConnectionError)):
        run_sweep(dataclasses.replace(grid, models=(other,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_grid_is_refused_unless_it_is_extended(
    grid: SweepGrid, undisturbed: Path, tmp_path: Path
) -> None:
    small = dataclasses.replace(grid, presets=("paper",))
    run_sweep(small, tmp_path)
    before = written(tmp_path)
    with pytest.raises(ValueError, match=r"got another one in .* \(it differs in presets\)"):
        run_sweep(grid, tmp_path)
    run_sweep(grid, tmp_path, extend=True)
    assert before.items() <= written(tmp_path).items()
    assert table_text(tmp_path) == table_text(undisturbed)


def test_an_address_where_no_cluster_is_is_refused() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConnectionError, match="address must be that of a running Ray cluster"):
        RayEngine(address="127.0.0.1:1")
    with pytest.raises(ValueError, match="address must be auto, HOST:PORT or ray://HOST:PORT"):
        RayEngine(address="cluster")


def test_the_command_runs_tells_and_shows(run: Run, grid: SweepGrid, tmp_path: Path) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(
        f"models: [{grid.models[0].name}]\npresets: [paper]\nk: [2]\n"
        f"tasks: [{grid.tasks[0]}]\nreadouts: [options]\n"
    )
    status, shown, err = run("sweep", "run", path, "--out", out, "--engine", "inline")
    assert (status, "2/2 cells, 0 failed" in err) == (0, True)
    assert "waiting" in shown
    assert run("sweep", path, "--out", out, "--engine", "inline").status == 0  # run, in short
    assert run("sweep", "--out", out, path, "--engine", "inline").status == 0
    assert "Usage" in run("sweep", "--help").out
    assert '"done": 2' in run("sweep", "status", out, "--json")[1]
    text = run("sweep", "table", out)[1]
    assert "paper k=2" in text
    assert "first" in text
    path.write_text(path.read_text() + "limit: 3\n")
    status, _, err = run("sweep", path, "--out", out, "--engine", "inline")
    assert (status, "(it differs in limit); choose another folder, or --extend to" in err) == (
        1,
        True,
    )
    status, _, err = run("sweep", "status", tmp_path / "nothing")
    assert (status, "must be one that a sweep was run in" in err) == (1, True)
    status, _, err = run("sweep", "run", path, "--out", out, "--address", "auto")
    assert (status, "--address must go with --engine ray" in err) == (1, True)
