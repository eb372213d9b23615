"""A sweep's table has what run_disruption gives, of the arms whose cells are all there."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import Run
from sample_sweep import BoundedEngine
from tiny_models import llama

from mi_massive import evaluate, load_model, load_own_task, run_disruption
from mi_massive.records import text_of
from mi_massive.scores import INTACT, EvaluationConfig
from mi_massive.sweep import FailedCell, GridModel, ModelTable, SweepGrid, load_sweep, run_sweep

OPTIONS = ["t4", "t5"]
ARMS = ["paper k=2", "random k=2 seed=0", "random k=2 seed=1", "effect_matched k=2 seed=0"]
ARMS += ["effect_matched k=2 seed=1", "norm_matched k=2"]


def write_task(folder: Path, name: str, kind: str, answers: list[str]) -> Path:
    path = folder / f"{name}.jsonl"
    rows = [
        {"prompt": f"t{i} t2 t{3 * i + 1}", "answer": answer, "kind": kind, "options": OPTIONS}
        for i, answer in enumerate(answers)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> SweepGrid:
    """Tasks of both kinds that the intact model answers, so that arms have something to lose."""
    folder = tmp_path_factory.mktemp("costs")
    name = str(llama().save(folder / "model"))
    asked = write_task(folder, "asked", "contextual", ["t4"] * 16)
    config = EvaluationConfig(readouts=("options",))
    chosen = evaluate(load_model(name), load_own_task(asked), config=config)
    liked = [OPTIONS[0 if answer.chooses_gold else 1] for answer in chosen.answers]
    assert len(set(liked)) == 2
    kinds = {"read": "contextual", "known": "parametric"}
    tasks = [str(write_task(folder, task, kind, liked)) for task, kind in kinds.items()]
    return SweepGrid(
        models=(GridModel(name=name),),
        presets=("paper", "random", "effect_matched", "norm_matched"),
        tasks=tuple(tasks),
        k=(2,),
        seeds=(0, 1),
        readouts=("options",),
        n_neutral=2,
        neutral_length=8,
    )


@pytest.fixture(scope="module")
def folder(grid: SweepGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run_sweep(grid, folder).failures == ()
    return folder


def table_without(folder: Path, copy: Path, begins: str, *, failed: bool = False) -> ModelTable:
    """The table of a copy of the sweep in which a cell is still waiting, or failed."""
    shutil.copytree(folder, copy)
    (path,) = (copy / "cells").glob(f"{begins}-*.json")
    path.unlink()
    if failed:
        (copy / "failed").mkdir()
        fields = dict.fromkeys(("model", "arm", "task", "error"), "x")
        text = text_of(FailedCell(name=path.stem, **fields))
        (copy / "failed" / path.name).write_text(text)
    (table,) = load_sweep(copy).tables
    return table


def test_a_whole_table_has_the_contrasts_and_comparisons_of_run_disruption(
    grid: SweepGrid, folder: Path
) -> None:
    (table,) = load_sweep(folder).tables
    expected = run_disruption(
        load_model(grid.models[0].name),
        [load_own_task(Path(task)) for task in grid.tasks],
        grid.arms,
        config=grid.evaluation_for(grid.models[0]),
    )
    for name in ("cells", "contrasts", "comparisons"):
        mine, theirs = ([text_of(x) for x in getattr(t, name)] for t in (table, expected))
        assert mine == theirs
    assert table.incomplete == ()
    paper = table.contrasts[0]
    assert (paper.arm, paper.contextual_tasks, paper.parametric_tasks) == (
        *("paper k=2", ("read",), ("known",)),
    )
    assert paper.control == "effect_matched k=2 (2 seeds)"
    assert paper.beyond_control.n == 32
    assert {one.control for one in table.comparisons} == {
        *(INTACT, "random k=2", "effect_matched k=2", "norm_matched k=2"),
    }


def test_an_arm_that_lacks_a_cell_has_no_contrast_and_the_others_keep_theirs(
    folder: Path, tmp_path: Path
) -> None:
    (whole,) = load_sweep(folder).tables
    table = table_without(folder, tmp_path / "one", "model-known-norm_matched-k-2")
    # A treatment is read beside every control, so it waits for them too.
    assert table.incomplete == ("paper k=2", "norm_matched k=2")
    kept = {c.arm: text_of(c) for c in table.contrasts}
    assert list(kept) == [arm for arm in ARMS if arm not in table.incomplete]
    assert all(kept[c.arm] == text_of(c) for c in whole.contrasts if c.arm in kept)
    assert table.comparisons == ()
    assert {c.arm for c in table.cells} == {INTACT, *ARMS}  # scores are there all the same


def test_nothing_is_contrasted_while_the_intact_model_has_a_task_to_answer(
    folder: Path, tmp_path: Path
) -> None:
    table = table_without(folder, tmp_path / "waits", "model-known-intact")
    assert (table.contrasts, table.comparisons) == ((), ())
    assert table.incomplete == tuple(ARMS)


def test_a_task_that_failed_on_the_intact_model_is_left_out_and_its_absence_shows(
    folder: Path, tmp_path: Path
) -> None:
    table = table_without(folder, tmp_path / "failed", "model-known-intact", failed=True)
    assert table.incomplete == ()
    assert {(c.contextual_tasks, c.parametric_tasks) for c in table.contrasts} == {(("read",), ())}
    assert {one.task for one in table.comparisons} == {"read"}


def test_a_sweep_that_has_begun_says_what_is_missing(
    grid: SweepGrid, tmp_path: Path, run: Run
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, tmp_path, engine=BoundedEngine(n_cells=4))
    shown = run("sweep", "table", tmp_path).out
    assert "no losses of paper k=2, random k=2 seed=0, random" in " ".join(shown.split())
    assert "paper k=2" in shown


def test_the_command_shows_what_arms_cost(folder: Path, run: Run) -> None:
    shown = run("sweep", "table", folder).out
    assert "Treatments beside controls by options (p after Holm)" in shown
    assert "Share of the above-chance score lost" in shown
    assert "random k=2 (2 seeds)" in shown
    scores = run("sweep", "table", folder, "--scores").out
    assert shown.startswith(scores.rpartition("\n0 cells")[0])
    assert "lost" not in scores
    (table,) = json.loads(run("sweep", "table", folder, "--json").out)["tables"]
    (held,) = load_sweep(folder).tables
    assert len(table["contrasts"]) == len(held.contrasts) == len(ARMS)
    assert [c["task"] for c in table["comparisons"]] == [c.task for c in held.comparisons]
    assert set(table) == {field.name for field in dataclasses.fields(ModelTable)}
