"""`mi-massive disrupt`, `tasks` and `presets` on a tiny model, through the command line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Run
from sample_conflict import conflict_result
from sample_results import disruption_result
from tiny_models import llama

from mi_massive import load_result, save_result
from mi_massive.presets import PRESETS
from mi_massive.tasks import TASKS

QUESTION = {"prompt": "t1 t2 t3", "answer": "t4", "options": ["t4", "t5"], "kind": "contextual"}


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama().save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(name="own")
def fixture_own(tmp_path: Path) -> Path:
    """Eight questions of one's own."""
    rows = [{**QUESTION, "id": str(i), "prompt": f"t{i} t2 t{3 * i}"} for i in range(8)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_lists_name_every_task_and_preset(run: Run) -> None:
    for command, key, name, known in (
        ("tasks", "tasks", "task", TASKS),
        ("presets", "presets", "preset", PRESETS),
    ):
        status, out, _ = run(command, "--json")
        assert status == 0
        assert [row[name] for row in json.loads(out)[key]] == list(known)
        text = run(command)[1]
        assert all(entry.summary in text for entry in known.values())


def test_a_task_of_ones_own_is_asked_under_every_arm(
    run: Run, model: Path, own: Path, tmp_path: Path
) -> None:
    saved, cells = tmp_path / "result.json", tmp_path / "cells"
    options = ["--tasks", own, "--preset", "paper,random", "--k", "1,2", "--limit", 6]
    status, out, _ = run("disrupt", model, *options, "--cells", cells, "--save", saved, "--json")
    assert status == 0
    document: dict[str, Any] = json.loads(out)
    names = ["intact", "paper k=1", "paper k=2", "random k=1 seed=0", "random k=2 seed=0"]
    assert list(dict.fromkeys(cell["arm"] for cell in document["cells"])) == names
    assert list(document["effects"]) == names
    assert {cell["score"]["n"] for cell in document["cells"]} == {6}
    again = load_result(saved)
    assert [cell.score.effect for cell in again.cells] == [
        cell["score"]["effect"] for cell in document["cells"]
    ]
    assert len(list(cells.glob("own-*.json"))) == 5
    text = run("disrupt", model, *options, "--cells", cells)[1]
    generation, options_part = text.split("Scores by generation")[1].split("Scores by options")
    failed = {cell["failed_extraction"] for cell in document["cells"]}
    assert "no answer" in generation  # how often no answer was found, beside the score
    assert any(f"{share:.2f}" in generation for share in failed)
    assert "no answer" not in options_part
    assert all(name in text for name in names)
    assert "no task of at least 10 examples was surely above chance" in text  # six were asked


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "nonsense"], "--tasks must be among gsm8k, aqua"),
        (["--preset", "nonsense"], "preset must be one of paper, zero, shuffled, massive"),
        (["--k", "99"], "k must be between 0 and"),
        (
            ["--preset", "massive", "--k", "4"],
            "for massive; take the preset paper for the k largest",
        ),
        (["--k", "four"], "--k must be whole numbers of at least 1 with commas, got 'four'; try 4"),
        (["--k", "0"], "--k must be whole numbers of at least 1 with commas, got '0'; try 4"),
        (["--readout", "thoughts"], "--readout must be among generation,options"),
        (["--chat"], "chat must be False for a tokenizer without a chat template"),
        (["--tasks", "gone.jsonl"], "gone.jsonl"),
        (["--tasks", ","], "--tasks must name at least one of gsm8k, aqua"),
        (["--data", "rows.jsonl"], "--data must stand in for one of the tasks gsm8k, aqua, imdb"),
        (["--save", "result.txt"], "--save must end in .json"),
        (
            ["--seeds", "3"],
            "--seeds must be left out for presets that draw nothing, got 3 for paper",
        ),
        (["--layers", "x"], "layers must be a block such as 3, a range such as 3-9 or several"),
        (["--layers", "0-2"], "layers must be among [0, 1], got 2"),
        (["--answers", "a.json"], "--answers must be a file that ends in .jsonl, got a.json"),
        (["--answers", "/dev/null/a.jsonl"], "--answers must"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str], sentence: str, run: Run, model: Path, own: Path
) -> None:
    given = [] if "--tasks" in options else ["--tasks", own]
    status, out, err = run("disrupt", model, "--preset", "paper", *given, *options)
    assert status != 0
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


def test_every_answer_is_written_with_what_was_asked(
    run: Run, model: Path, own: Path, tmp_path: Path
) -> None:
    path, cells = tmp_path / "folder" / "answers.jsonl", tmp_path / "cells"
    given = ["disrupt", model, "--tasks", own, "--preset", "paper", "--k", "2", "--limit", 3]
    given += ["--cells", cells, "--answers", path]
    assert run(*given)[0] == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["arm"], row["id"]) for row in rows] == [
        (arm, str(i)) for arm in ("intact", "paper k=2") for i in range(3)
    ]
    assert [row["asked"] for row in rows[:3]] == [f"t{i} t2 t{3 * i}" for i in range(3)]
    kept = [load_result(cell) for cell in sorted(cells.glob("own-*.json"))]
    answers = {(a.id, a.text, a.correct, a.log_probs) for result in kept for a in result.answers}
    assert answers == {
        (row["id"], row["text"], row["correct"], tuple(row["log_probs"])) for row in rows
    }
    assert {(row["task"], row["task_version"], *row["options"]) for row in rows} == {
        ("own", 1, " t4", " t5")
    }
    before = path.read_text()
    assert run(*given)[0] == 0  # from the folder: the same answers, not twice
    assert path.read_text() == before


def test_cells_in_a_file_are_refused_before_the_model_is_loaded(run: Run, own: Path) -> None:
    for command in ("disrupt", "conflict", "patch", "surgery", "quantize"):
        err = run(command, "./no-such-model", "--cells", own)[2]
        assert err.startswith("error: --cells must be a folder, got the file"), (command, err)
    assert "--cells must be a folder" in run("twins", "--cells", own)[2]


def test_answers_do_not_replace_the_questions(run: Run, model: Path, own: Path) -> None:
    before = own.read_text()
    status, out, err = run("disrupt", model, "--tasks", own, "--answers", own)
    assert (status, out) == (1, "")
    assert "answers must go to a new file or one of earlier answers" in err
    assert own.read_text() == before


def test_a_task_that_changes_beside_its_examples_is_asked_again(
    run: Run, model: Path, own: Path, tmp_path: Path
) -> None:
    given = ["disrupt", model, "--tasks", own, "--preset", "paper", "--k", 1]
    given += ["--cells", tmp_path / "cells", "--json"]
    kinds: list[set[str]] = []
    for kind in ("contextual", "parametric"):
        own.write_text(own.read_text().replace("contextual", kind))
        kinds.append({cell["kind"] for cell in json.loads(run(*given)[1])["cells"]})
    assert kinds == [{"contextual"}, {"parametric"}]


def test_a_read_out_that_a_task_lacks_is_refused(
    run: Run, model: Path, own: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in own.read_text().splitlines()]
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    for row in rows[1:]:
        del row["options"]
    some.write_text("\n".join(map(json.dumps, rows)))
    none.write_text("\n".join(map(json.dumps, rows[1:])))
    asked = ["--preset", "paper", "--k", 1, "--readout", "options"]
    err = run("disrupt", model, "--tasks", some, *asked)[2]
    assert "options must be given for every example of some or for none, got none at '1'" in err
    err = run("disrupt", model, "--tasks", none, *asked)[2]
    assert "none must have one of the read-outs options, got a task without options" in err


def test_what_can_be_refused_without_the_model_is_refused_before_it_is_loaded(
    run: Run, own: Path
) -> None:
    bad = (["--preset", "nonsense"], ["--tasks", "gone.jsonl"], ["--readout", "thoughts"])
    for options in bad:
        _, _, err = run("disrupt", "./no-such-model", "--tasks", own, *options)
        assert "no-such-model" not in err
    assert "no-such-model" in run("disrupt", "./no-such-model", "--tasks", own)[2]


def test_without_k_every_preset_edits_its_own_number_of_dimensions(
    run: Run, model: Path, own: Path
) -> None:
    options = ["--tasks", own, "--preset", "authors_llama,authors_qwen2,paper", "--limit", 2]
    status, out, _ = run("disrupt", model, *options, "--readout", "options", "--json")
    assert status == 0
    names = ["intact", "authors_llama k=1", "authors_qwen2 k=3", "paper k=4"]
    assert list(json.loads(out)["effects"]) == names


def test_a_name_that_several_tasks_begin_with_means_all_of_them() -> None:
    from mi_massive._disrupt_command import task_names

    assert task_names("letters,letters") == ["letters"]

    assert task_names("pairs,cities") == [
        *("pairs_closed_book", "pairs_open_book", "pairs_counterfactual"),
        "cities",
    ]


def test_an_encoder_has_no_answers(run: Run, own: Path, tmp_path: Path) -> None:
    from tiny_models import FAMILIES

    folder = FAMILIES["bert"].save(tmp_path / "bert")
    status, _, err = run("disrupt", folder, "--tasks", own)
    assert status != 0
    assert "must be a decoder with a language-modelling head" in err


def test_arms_can_be_kept_to_some_blocks(run: Run, model: Path, own: Path) -> None:
    given = ["--tasks", own, "--preset", "paper,random", "--k", "2", "--readout", "options"]
    edits: dict[str, int] = {}
    for layers in ((), ("--layers", "1"), ("--layers", "0-1")):
        status, out, _ = run("disrupt", model, *given, *layers, "--json")
        assert status == 0
        edits |= {cell["arm"]: cell["n_edits"] for cell in json.loads(out)["cells"]}
    assert edits["paper k=2 layers=1"] * 2 == edits["paper k=2"] == edits["paper k=2 layers=0,1"]
    assert "random k=2 seed=0 layers=1" in edits


def test_a_report_shows_a_saved_disruption_and_asks_no_task_anew(
    run: Run, model: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("tasks were asked")

    saved, texts, out = (tmp_path / name for name in ("disrupted.json", "texts.txt", "page"))
    given = ["--tasks", own, "--preset", "paper", "--k", 2, "--save", saved, "--quiet"]
    assert run("disrupt", model, *given).status == 0
    texts.write_text("\n\n".join(f"t{i} t2 t{3 * i} t4" for i in range(4)))
    monkeypatch.setattr("mi_massive.battery.run_battery", refuse)
    common = ["--control", "none", "--prompts", texts, "--out", out]
    status, told, err = run("report", model, "--disruption", saved, *common, "--json")
    assert (status, err) == (0, "")
    readings = {claim["id"]: claim["reading"] for claim in json.loads(told)["claims"]}
    assert readings["C4a"].startswith("Under paper k=2 no read-out has both")
    assert "C5a" in readings
    assert "What does the model lose" in (out / "report.html").read_text(encoding="utf-8")
    shown = pd.read_parquet(out / "disruption.parquet")
    pd.testing.assert_frame_equal(shown, load_result(saved).to_frame())


def test_a_report_takes_a_saved_disruption_of_its_model_and_no_other(
    run: Run, tmp_path: Path
) -> None:
    foreign = save_result(disruption_result(model="another"), tmp_path / "foreign.json")
    of_conflicts = save_result(conflict_result(), tmp_path / "conflict.json")
    for options, words in (
        ((of_conflicts,), "must name a saved DisruptionResult, got a ConflictResult"),
        ((foreign,), "must be of the model smollm2-135m-instruct, got one of another"),
        ((foreign, "--examples", 4), "--examples must not come with --disruption, got both"),
        ((tmp_path / "none.json",), "none.json"),
    ):
        answer = run("report", "--out", tmp_path / "page", "--disruption", *options)
        assert (answer.status, answer.out) == (1, "")
        assert words in answer.err
        assert answer.err.count("\n") == 1
