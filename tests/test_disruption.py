"""The table of an experiment is that of its parts, and a killed run ends in the same table."""

import functools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import llama, save_model

from mi_massive.arms import Arm, make_arms, match_arms, matched_controls
from mi_massive.attention_effects import measure_effects
from mi_massive.disruption import DisruptionConfig, DisruptionResult, run_disruption
from mi_massive.evaluation import evaluate
from mi_massive.models import HookedModel, load_model
from mi_massive.presets import preset
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig, compare
from mi_massive.stats import holm
from mi_massive.tasks.base import Example, Grade, Task
from mi_massive.text_measures import distinct_share

QUICK = DisruptionConfig(
    evaluation=EvaluationConfig(readouts=("generation", "options"), max_new_tokens=6),
    n_neutral=2,
    neutral_length=24,
    n_resamples=200,
)
ARMS = ("paper", "random")


def grade(text: str, example: Example) -> Grade:
    words = text.split()
    return Grade(correct=bool(words) and words[0] == example.answer, extracted=(words or [None])[0])


def make_task(model: HookedModel, name: str, kind: str, *, n: int = 8, seed: int = 0) -> Task:
    """Random words, of which the model's own next word is the gold answer of three in four."""
    rng = np.random.default_rng(seed)
    prompts = [" ".join(f"t{w}" for w in rng.integers(0, 60, 5 + i % 4)) for i in range(n)]
    bare = Task(
        name=name,
        kind=kind,
        version=1,
        summary="Continue.",
        examples=tuple(
            Example(id=str(i), prompt=p, question=p, answer="t0") for i, p in enumerate(prompts)
        ),
        grade=grade,
        chance=0.0,
        max_new_tokens=4,
    )
    said = evaluate(model, bare, config=EvaluationConfig(max_new_tokens=1)).answers
    examples = []
    for i, (example, answer) in enumerate(zip(bare.examples, said, strict=True)):
        gold = answer.text if answer.text and i % 4 else "t59"
        options = (f" {gold}", " t58", " t57")
        examples.append(
            Example(
                id=example.id,
                prompt=example.prompt,
                question=example.prompt,
                answer=gold,
                options=options,
                gold=0,
            )
        )
    return Task(
        name=name,
        kind=kind,
        version=1,
        summary="Continue.",
        examples=tuple(examples),
        grade=grade,
        chance=0.0,
        max_new_tokens=4,
    )


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama().save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="tasks")
def fixture_tasks(model: HookedModel) -> list[Task]:
    return [
        make_task(model, "reads", "contextual", seed=1),
        make_task(model, "knows", "parametric", seed=2),
    ]


@pytest.fixture(scope="module", name="result")
def fixture_result(model: HookedModel, tasks: list[Task]) -> DisruptionResult:
    return run_disruption(model, tasks, make_arms(ARMS, ks=(2,)), config=QUICK)


def test_every_cell_is_that_of_an_evaluation_on_its_own(
    model: HookedModel, tasks: list[Task], result: DisruptionResult
) -> None:
    names = ("intact", "paper k=2", "random k=2 seed=0")
    edits = (None, preset("paper", k=2), preset("random", k=2))
    expected = [
        (name, task, readout, evaluate(model, task, intervention=edit, config=QUICK.evaluation))
        for name, edit in zip(names, edits, strict=True)
        for task in tasks
        for readout in ("generation", "options")
    ]
    assert len(result.cells) == len(expected) == 12
    intact = {task.name: alone for name, task, _, alone in expected if name == "intact"}
    for cell, (name, task, readout, alone) in zip(result.cells, expected, strict=True):
        assert (cell.arm, cell.task, cell.readout) == (name, task.name, readout)
        assert repr(cell.score) == repr(alone.score(readout))
        assert cell.n_edits == alone.n_edits
        change = compare(intact[task.name], alone, readout=readout).difference
        assert cell.change.effect == change.effect
        if readout == "generation":
            shares = [distinct_share(answer.text) for answer in alone.answers]
            assert cell.distinct_2.effect == pytest.approx(np.nanmean(shares), nan_ok=True)


def test_the_provenance_names_what_was_asked(tasks: list[Task], result: DisruptionResult) -> None:
    for task in tasks:
        n = len(task.examples)
        assert result.provenance.settings[f"task {task.name}"] == (
            f"version {task.version}, {n} examples, digest {task.digest}"
        )
    assert result.provenance.seed == QUICK.seed


def test_p_values_are_corrected_over_all_cells_of_the_arms(
    model: HookedModel, tasks: list[Task], result: DisruptionResult
) -> None:
    raw = []
    for edit in (preset("paper", k=2), preset("random", k=2)):
        for task in tasks:
            before = evaluate(model, task, config=QUICK.evaluation)
            after = evaluate(model, task, intervention=edit, config=QUICK.evaluation)
            for readout in ("generation", "options"):
                raw.append(compare(before, after, readout=readout).difference.p_value)
    found = [cell.change.p_value for cell in result.cells]
    assert all(math.isnan(p) for p in found[:4])  # the intact model is compared with nothing
    assert found[4:] == pytest.approx(holm(np.array(raw)).tolist())


def test_effects_on_neutral_text_are_those_of_a_measurement_on_their_own(
    model: HookedModel, result: DisruptionResult
) -> None:
    neutral = tokenize_prompts(model.tokenizer, default_passages()[:2], max_length=24)
    alone = measure_effects(model, neutral, {"paper k=2": preset("paper", k=2)})
    for name, value in alone.of("paper k=2").items():
        assert result.effects.of("paper k=2")[name].effect == pytest.approx(value.effect)


def test_a_matched_arm_moves_the_attention_as_far_as_its_treatment(model: HookedModel) -> None:
    neutral = tokenize_prompts(model.tokenizer, default_passages()[:2], max_length=24)
    paper, matched = match_arms(model, make_arms(("paper", "effect_matched"), ks=(2,)), neutral)
    assert paper.strength == 1.0
    assert matched.strength != 1.0
    edits = {arm.preset: arm.intervention for arm in (paper, matched)}
    moved = measure_effects(model, neutral, edits).attention_kl.mean(dim=(1, 2))
    assert float(moved[2]) == pytest.approx(float(moved[1]), rel=0.03)


def test_arms_are_every_preset_at_every_dose_with_seeds_where_they_decide() -> None:
    made = make_arms(("paper", "random"), ks=(1, 4), n_seeds=2)
    assert [arm.name for arm in made] == [
        *("paper k=1", "paper k=4"),
        *("random k=1 seed=0", "random k=1 seed=1", "random k=4 seed=0", "random k=4 seed=1"),
    ]
    assert made[-1] == Arm(preset="random", k=4, seed=1)
    (one,) = make_arms(("paper",), layers=[3, 4])
    assert one.intervention.where.layers == (3, 4)


def test_without_doses_every_preset_edits_its_own_number_of_dimensions() -> None:
    made = make_arms(("paper", "authors_llama", "authors_qwen2", "authors_gemma2", "massive"))
    assert [arm.name for arm in made] == [
        *("paper k=4", "authors_llama k=1", "authors_qwen2 k=3", "authors_gemma2 k=22", "massive"),
    ]
    with pytest.raises(ValueError, match="ks must not be empty; give at least one number"):
        make_arms(("paper",), ks=())


def test_tasks_that_are_not_to_be_generated_are_read_by_their_options_alone(
    model: HookedModel, tasks: list[Task]
) -> None:
    config = DisruptionConfig(
        evaluation=QUICK.evaluation, generated=("knows",), n_neutral=2, neutral_length=24
    )
    found = run_disruption(model, tasks, make_arms(("paper",), ks=(2,)), config=config)
    assert {(cell.task, cell.readout) for cell in found.cells} == {
        ("reads", "options"),
        ("knows", "generation"),
        ("knows", "options"),
    }


def test_a_result_survives_saving(result: DisruptionResult, tmp_path: Path) -> None:
    again = load_result(save_result(result, tmp_path / "disruption.json"))
    assert repr(again.cells) == repr(result.cells)
    assert repr(again.contrasts) == repr(result.contrasts)
    assert again.to_frame().equals(result.to_frame())
    assert again.effects_frame().equals(result.effects_frame())


def test_finished_cells_are_taken_from_the_folder_and_damaged_ones_made_again(
    model: HookedModel, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = make_arms(("paper",), ks=(2,))
    first = run_disruption(model, tasks, arms, config=QUICK, cells=tmp_path)
    asked: list[str] = []

    @functools.wraps(evaluate)
    def counted(model: HookedModel, task: Task, **options: object) -> object:
        asked.append(task.name)
        return evaluate(model, task, **options)

    monkeypatch.setattr("mi_massive._cells.evaluate", counted)
    again = run_disruption(model, tasks, arms, config=QUICK, cells=tmp_path)
    assert asked == []
    assert repr(again.cells) == repr(first.cells)
    (damaged,) = tmp_path.glob("knows-paper*.json")
    damaged.write_text(damaged.read_text()[:100])
    (tmp_path / "stray.json").write_text("{}")
    third = run_disruption(model, tasks, arms, config=QUICK, cells=tmp_path)
    assert asked == ["knows"]
    assert repr(third.cells) == repr(first.cells)


def test_other_arguments_are_other_cells(
    model: HookedModel, tasks: list[Task], tmp_path: Path
) -> None:
    run_disruption(model, tasks[:1], make_arms(("paper",), ks=(1,)), config=QUICK, cells=tmp_path)
    before = set(tmp_path.glob("reads-*.json"))
    run_disruption(model, tasks[:1], make_arms(("paper",), ks=(2,)), config=QUICK, cells=tmp_path)
    after = set(tmp_path.glob("reads-*.json"))
    assert len(before) == 2
    assert len(after - before) == 1  # the intact model is the same


def test_a_folder_with_other_weights_is_another_model(
    model: HookedModel, tasks: list[Task], tmp_path: Path
) -> None:
    """A model trained on in its folder has the same name, and answers otherwise."""
    arms, one, cells = make_arms(("paper",), ks=(1,)), tasks[:1], tmp_path / "cells"
    run_disruption(model, one, arms, config=QUICK, cells=cells)
    before = set(cells.glob("*.json"))
    trained = llama().build()
    with torch.no_grad():
        trained.lm_head.weight += 0.01
    other = load_model(save_model(trained, tmp_path / "model"))
    other.name = model.name
    run_disruption(other, one, arms, config=QUICK, cells=cells)
    assert len(set(cells.glob("*.json")) - before) == len(before) == 3  # two answers, one effects


SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
from test_disruption import ARMS, QUICK, make_task
from mi_massive import load_model, make_arms, run_disruption, save_result
model = load_model(os.environ["MODEL"])
kinds = (("reads", "contextual"), ("knows", "parametric"))
tasks = [make_task(model, *named, seed=1) for named in kinds]
folder = Path(os.environ["FOLDER"])
done = run_disruption(
    model, tasks, make_arms(ARMS, ks=(1, 2)), config=QUICK, cells=folder / "cells",
    on_progress=lambda n: time.sleep(float(os.environ["PAUSE"])),
)
save_result(done, folder / "table.json")
"""


def test_a_killed_run_goes_on_and_its_table_is_byte_equal(
    model: HookedModel, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(folder: str, pause: float) -> subprocess.Popen[bytes]:
        named = {
            "TESTS": str(Path(__file__).parent),
            "MODEL": model.name,
            "FOLDER": str(tmp_path / folder),
            "PAUSE": str(pause),
        }
        return subprocess.Popen([sys.executable, str(script)], env={**os.environ, **named})

    whole = start("whole", 0.0)
    killed = start("killed", 30.0)
    cells = tmp_path / "killed" / "cells"
    deadline = time.monotonic() + 120
    while not list(cells.glob("reads-intact-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert whole.wait(timeout=120) == 0
    n_kept = len(list(cells.glob("*.json")))
    assert 0 < n_kept < len(list((tmp_path / "whole" / "cells").glob("*.json")))
    assert not (tmp_path / "killed" / "table.json").exists()
    assert start("killed", 0.0).wait(timeout=120) == 0
    for suffix in (".json", ".safetensors"):
        tables = [(tmp_path / run / "table").with_suffix(suffix) for run in ("whole", "killed")]
        assert tables[0].read_bytes() == tables[1].read_bytes()


def test_two_arms_of_one_name_are_refused(model: HookedModel, tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match="arms must have different names, got one twice"):
        run_disruption(model, tasks, [*make_arms(("paper",)), *make_arms(("paper",))])


def test_two_tasks_of_one_name_are_refused(model: HookedModel, tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match=f"names, got '{tasks[0].name}' twice; rename one"):
        run_disruption(model, [*tasks, tasks[0]], make_arms(("paper",)))


def test_no_task_and_no_preset_are_refused(model: HookedModel) -> None:
    with pytest.raises(ValueError, match="tasks must not be empty"):
        run_disruption(model, [], make_arms(("paper",)))
    with pytest.raises(ValueError, match="preset must be one of paper, "):
        make_arms(("nonsense",))


def test_a_number_of_dimensions_that_no_preset_uses_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"left out for presets that have no k, got \[4\] for mass"
    ):
        make_arms(("massive",), ks=(4,))
    names = [arm.name for arm in make_arms(("massive", "paper"), ks=(2,))]
    assert names == ["massive", "paper k=2"]
    assert [arm.name for arm in make_arms(("massive",))] == ["massive"]


def test_a_matched_control_belongs_to_its_treatment_at_the_same_dose_alone() -> None:
    arms = make_arms(("paper", "sink_preserving", "effect_matched"), ks=(1, 4), n_seeds=2)
    assert matched_controls(arms) == {
        f"paper k={k}": (f"effect_matched k={k} seed=0", f"effect_matched k={k} seed=1")
        for k in (1, 4)
    }
