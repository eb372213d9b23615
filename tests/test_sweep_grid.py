"""Mistakes in a grid or in an engine: one sentence each, before anything is computed or written."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from mi_massive.arms import Arm
from mi_massive.sweep import (
    InlineEngine,
    ProcessEngine,
    RayEngine,
    SlurmEngine,
    SweepGrid,
    read_grid,
)
from mi_massive.sweep import processes as sweep_processes
from mi_massive.sweep.plan import plan_sweep
from mi_massive.sweep.slurm import read_parameter

GOOD = {"models": ["smollm2-135m-instruct"], "presets": ["paper"], "tasks": ["letters"]}


def write_grid(folder: Path, **changes: Any) -> Path:
    """A grid of one cell and the intact model, with some values replaced; `...` leaves one out."""
    path = folder / "grid.yaml"
    values = {**GOOD, **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return path


def write_task(path: Path, *, options: list[str] | None = None) -> Path:
    row = {"prompt": "t1 t2", "answer": "t4", "kind": "contextual"}
    path.write_text(json.dumps(row if options is None else {**row, "options": options}))
    return path


# --- what is in the file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("modles: [x]", r"keys of .* must be among models, presets, tasks, .*, got 'modles'"),
        ("models: [m]", r"must have the key 'presets', got none"),
        ("- 3", r"must be a mapping of names to values, got \[3\]"),
        ("models: [", r"must be YAML, got "),
        ("models: m\npresets: [paper]\ntasks: [letters]", r"models of .* must be a list, got 'm'"),
    ],
)
def test_a_file_that_is_no_grid_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_grid(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"models": []}, "models must not be empty"),
        ({"models": ["m", "m"]}, "models must differ, got .* twice"),
        ({"models": [""]}, "name of a model must not be empty"),
        ({"models": [{"nmae": "m"}]}, "must be among name, revision, .*, got 'nmae'"),
        ({"models": [{"name": 3}]}, "name of .* must be a text .*, got 3"),
        ({"models": [{"name": "m", "chat": 1}]}, "chat of .* must be true or false, got 1"),
        ({"models": [{"name": "m", "revision": 12}]}, "revision of .* must be a text .*, got 12"),
        ({"presets": ["papr"]}, "preset must be one of paper, .*'papr'"),
        ({"presets": [7]}, "each of presets in .* must be a text .*, got 7"),
        ({"tasks": ["leters"]}, "tasks must be among gsm8k, .*'leters'"),
        ({"tasks": ["a/own.jsonl", "b/own.jsonl"]}, "tasks must have different names, got 'own'"),
        ({"k": 3}, r"k of .* must be a list, got 3; write \[3\]"),
        ({"k": ["1"]}, "each of k in .* must be a whole number, got '1'"),
        ({"k": [True]}, "each of k in .* must be a whole number, got True"),
        ({"k": [0]}, "k must be between 1 and .*, got 0"),
        ({"seeds": [0.5]}, "each of seeds in .* must be a whole number, got 0.5"),
        ({"seeds": [-1]}, "seeds must be 0 or more, got -1"),
        ({"layers": [0]}, r"layers of .* must be 'all' or lists of block indices, got 0; write"),
        ({"layers": [["0"]]}, "each block of layers in .* must be a whole number, got '0'"),
        ({"layers": [[-1]]}, r"layers must be sets of different block indices from 0 on, got \[-1"),
        ({"layers": [[]]}, r"layers must be sets of different block indices from 0 on, got \[\]"),
        ({"layers": [[2, 2]]}, r"layers must be sets of different block indices .*, got \[2, 2\]"),
        ({"layers": [[0, 1], [1, 0]]}, r"layers must differ, got the blocks \[0, 1\] twice"),
        ({"layers": ["all", "all"]}, "layers must differ, got all twice"),
        ({"dtypes": ["float64"]}, "dtypes must be among float32, .*, got 'float64'"),
        ({"limit": 0}, "limit must be finite and positive, got 0"),
        ({"limit": -2}, "limit must be finite and positive, got -2"),
        ({"limit": "3"}, "limit of .* must be a whole number, got '3'"),
        ({"limit": 1.5}, "limit of .* must be a whole number, got 1.5"),
        ({"data": 3}, "data of .* must be a text .*, got 3"),
        ({"readouts": ["option"]}, "readouts must be among generation, options, got 'option'"),
        ({"generated": ["imdb"]}, "generated must be among the tasks letters, got 'imdb'"),
        ({"generated": "letters"}, "generated of .* must be a list, got 'letters'"),
        ({"batch_size": "8"}, "batch_size of .* must be a whole number, got '8'"),
        ({"batch_size": None}, "batch_size of .* must be a whole number, got None"),
        ({"batch_size": 0}, r"batch_size must be between 1 and .* \(prompts\), got 0"),
        ({"max_new_tokens": 0}, r"max_new_tokens must be between 1 and .* \(tokens\), got 0"),
        ({"n_neutral": 1}, r"n_neutral must be between 2 and 32 \(passages\), got 1"),
        ({"neutral_length": 4}, r"neutral_length must be between 8 and .* \(tokens\), got 4"),
    ],
    ids=str,
)
def test_a_bad_value_is_one_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_grid(write_grid(tmp_path, **changes))
    assert "\n" not in str(caught.value)


# --- what lies beside it, and what would be used by nothing


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "gone", "tasks": ["gsm8k"]}, "data must be a folder that exists, got gone"),
        ({"data": ".", "tasks": ["gsm8k"]}, "data must be a folder that holds gsm8k.jsonl, got"),
        ({"data": "."}, "data must be left out where no task has its data on the hub, got"),
        ({"tasks": ["gone.jsonl"]}, "tasks must be files that exist, got gone.jsonl"),
        ({"tasks": ["open.jsonl"], "readouts": ["options"]}, "open must have one of the read-outs"),
        ({"generated": [], "readouts": ["generation"]}, "letters must have a read-out, got gener"),
        ({"k": [2], "presets": ["massive"]}, "k must be left out where nothing uses it, got it wi"),
        (
            {"seeds": [0, 1]},
            "seeds must be left out where nothing uses it, got it with paper alone",
        ),
        ({"n_neutral": 3}, "n_neutral and neutral_length must be left out where nothing uses it"),
        ({"generated": ["letters"], "readouts": ["options"]}, "generated must be left out where"),
        ({"max_new_tokens": 4, "readouts": ["options"]}, "max_new_tokens must be left out where"),
        ({"models": [{"name": "smollm2-135m-instruct", "revision": "main"}]}, "revision must be N"),
    ],
    ids=str,
)
def test_what_a_grid_could_not_use_is_refused_before_anything_is_written(
    changes: dict[str, Any], sentence: str, tmp_path: Path, run: Run
) -> None:
    write_task(tmp_path / "open.jsonl")
    out = tmp_path / "out"
    path = write_grid(tmp_path, **changes)
    status, _, error = run("sweep", path, "--out", out, "--engine", "inline")
    assert (status, out.exists()) == (1, False)
    assert error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1


def test_a_grid_that_was_run_is_read_without_its_files(grid: SweepGrid, tmp_path: Path) -> None:
    own = write_task(tmp_path / "own.jsonl", options=["t4", "t5"])
    read = read_grid(write_grid(tmp_path, tasks=["own.jsonl"], readouts=["options"]))
    own.unlink()
    assert SweepGrid(**{name: getattr(read, name) for name in SweepGrid.__slots__}) == read
    with pytest.raises(
        FileNotFoundError, match=r"tasks must be files that exist, got .*own\.jsonl"
    ):
        plan_sweep(read)


def test_a_task_of_ones_own_may_be_the_one_that_is_generated(tmp_path: Path) -> None:
    write_task(tmp_path / "own.jsonl", options=["t4", "t5"])
    grid = read_grid(write_grid(tmp_path, tasks=["own.jsonl", "letters"], generated=["own.jsonl"]))
    assert grid.evaluation_for(grid.models[0]).generated == ("own",)
    other = read_grid(write_grid(tmp_path, tasks=["own.jsonl", "letters"], generated=["letters"]))
    keys = [{c.key for c in plan_sweep(one).cells} for one in (grid, other)]
    assert keys[0].isdisjoint(keys[1])


def test_names_mean_tasks_and_built_in_models_whatever_lies_beside_the_grid(tmp_path: Path) -> None:
    for name in (GOOD["tasks"][0], GOOD["models"][0]):
        (tmp_path / name).mkdir()
    grid = read_grid(write_grid(tmp_path))
    assert (grid.tasks, grid.models[0].name) == (("letters",), "smollm2-135m-instruct")
    assert grid.arms == (Arm(preset="paper", k=4),)


# --- engines


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--device", "gpu"), "device must be one that torch knows, .*, got 'gpu'"),
        (("--device", "cuda:99"), "device must be on this machine .*, got 'cuda:99'"),
        (("--workers", "2"), "--workers must be left out for --engine inline, got 2"),
        (("--gpus-per-worker", "1"), "--gpus-per-worker must be left out for --engine inline"),
        (("--address", "auto"), "--address must go with --engine ray, got --engine inline"),
        (("--slurm", "a=1"), "--slurm must go with --engine slurm, got --engine inline"),
    ],
    ids=str,
)
def test_an_option_that_this_process_could_not_use_is_refused(
    options: tuple[str, ...], sentence: str, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    path = write_grid(tmp_path)
    status, _, error = run("sweep", path, "--out", out, "--engine", "inline", *options)
    assert (status, out.exists()) == (1, False)
    assert re.match(f"error: {sentence}", error)


def test_workers_without_a_device_of_their_own_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"device must be one that torch knows, .*, got 'gpu'"):
        ProcessEngine(device="gpu")
    with pytest.raises(ValueError, match="gpus_per_worker must be 1 on one device, got 2 on cpu"):
        ProcessEngine(gpus_per_worker=2)
    with pytest.raises(ValueError, match="gpus_per_worker must be between 1 and 64"):
        ProcessEngine(gpus_per_worker=0)
    monkeypatch.setattr(sweep_processes, "_gpus", lambda: ["0", "1", "2"])
    assert ProcessEngine(device="auto", gpus_per_worker=3).n_workers == 1
    for workers, gpus in ((None, 4), (2, 2), (4, 1)):
        with pytest.raises(ValueError, match=f"at most the 3 GPUs of .*, got . x {gpus}; ask"):
            ProcessEngine(device="auto", workers=workers, gpus_per_worker=gpus)
    with pytest.raises(ValueError, match=r"device must be one that torch knows, .*, got 'gpu'"):
        InlineEngine(device="gpu")
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"must be cpu, cuda or auto for workers on .*'cuda:1'"):
        RayEngine(device="cuda:1")
    assert RayEngine(device="cuda", workers=2).n_workers == 2  # this machine needs none
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="gpus_per_worker must be 1 on one device, got 2 on cuda"):
        SlurmEngine(logs=str(tmp_path), device="cuda", gpus_per_worker=2, cluster="local")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("mem_gb=x", "mem_gb must be a number, got 'x'; correct it"),
        ("mem_gb=true", "mem_gb must be a number, got 'true'"),
        ("timeout_min=1.5", r"timeout_min must be a whole number, got 1\.5"),
        ("slurm_time=24:00:00", "slurm_time must be a whole number, got '24:00:00'"),
        ("slurm_use_srun=maybe", "slurm_use_srun must be true or false, got 'maybe'"),
        ("slurm_setup=[1, 2]", r"slurm_setup must be a text or a list of texts, got \[1, 2\]"),
        ("slurm_additional_parameters=x", "slurm_additional_parameters must be a mapping such as"),
        ("cluster=foo", "--slurm cluster must be one of slurm, local, got 'foo'"),
        ("nodes=2", "nodes must be a parameter .*, got 2; it says: LocalExecutor can use only one"),
        ("foo=1", "foo must be a parameter of .*, got '1'; it says: Parameter 'foo' need"),
        ("foo_bar=1", "foo_bar must be a parameter of .* Unknown executor 'foo' in parameter"),
        ("slurm_foo=1", "slurm_foo must be a parameter of .* Unknown argument 'foo' for executor"),
        ("mem_gb", "--slurm must be KEY=VALUE, got 'mem_gb'"),
    ],
)
def test_a_parameter_that_submitit_would_not_take_is_one_sentence(
    given: str, sentence: str, tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("submitit")
    out = tmp_path / "out"
    options = ("--engine", "slurm", "--slurm", "cluster=local", "--slurm", given)
    status, _, error = run("sweep", write_grid(tmp_path), "--out", out, *options)
    assert (status, out.exists(), error.count("\n")) == (1, False, 1)
    assert re.match(f"error: {sentence}", error)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("mem_gb", "1.5", 1.5),
        ("timeout_min", "010", 10),
        ("name", "5", "5"),
        ("slurm_partition", "yes", "yes"),
        ("slurm_nodelist", "node[1-3]", "node[1-3]"),
        ("slurm_exclusive", "true", True),
        ("slurm_exclusive", "user", "user"),
        ("slurm_setup", "module load cuda", "module load cuda"),
        ("slurm_setup", "echo a: b", "echo a: b"),
        ("local_setup", "[ -f x ] && y", "[ -f x ] && y"),
        ("slurm_srun_args", "[--mpi, none]", ["--mpi", "none"]),
        ("slurm_additional_parameters", "{mail-type: END}", {"mail-type": "END"}),
    ],
)
def test_parameters_of_submitit_are_read_as_what_it_wants(
    name: str, text: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where the commands of SLURM are found, so that submitit checks as it would."""
    pytest.importorskip("submitit")
    assert read_parameter(name, text) == value
    for command in ("sbatch", "srun"):
        (tmp_path / command).symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    logs = tmp_path / "logs"
    SlurmEngine(logs=str(logs), options={name: value})
    assert not logs.exists()


def test_parameters_from_python_are_checked_as_well(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    for options in ({"name": 5}, {"slurm_mem_gb": "x"}, {"slurm_setup": ("a", "b")}):
        (name,) = options
        with pytest.raises(ValueError, match=f"^{name} must be "):
            SlurmEngine(logs=str(tmp_path), options=options, cluster="local")
