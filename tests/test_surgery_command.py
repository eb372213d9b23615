"""`mi-massive surgery` on a tiny model, and its way into a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from sample_results import concentration_result
from sample_surgery import surgery_result
from tiny_models import llama, save_model

from mi_massive import SurgeryResult, load_result, save_result


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with room for the default passages, a dimension of two heads massive."""
    built = llama("roomy", max_position_embeddings=1024).build()
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            weight: Any = built.get_submodule(f"model.layers.1.self_attn.{name}").weight
            weight[16 + 7] *= 100.0
    return save_model(built, tmp_path_factory.mktemp("roomy"))


@pytest.fixture(scope="module", name="task")
def fixture_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "words.jsonl"
    rows = [
        {"prompt": f"t{i} t7", "options": ["t5", "t6"], "answer": "t5", "kind": "contextual"}
        for i in range(10, 16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_arms_are_printed_saved_and_kept(
    run: Run, folder: Path, task: Path, tmp_path: Path
) -> None:
    saved, cells = tmp_path / "surgery.json", tmp_path / "cells"
    options = ("surgery", folder, "--tasks", task, "--limit", 4, "--cells", cells, "--quiet")
    status, out, err = run(*options, "--json", "--save", saved)
    assert (status, err) == (0, "")
    told = json.loads(out)
    result = load_result(saved)
    assert isinstance(result, SurgeryResult)
    cell = told["cells"][0]
    assert (cell["arm"], cell["task"], cell["score"]["n"]) == ("intact", "words", 4)
    assert len(told["effects"]) == 1 + len(result.arms)
    assert told["effects"]["shift"]["attention_kl"]["effect"] == pytest.approx(0.0, abs=1e-5)
    assert len(told["bands"]) == len(result.shares.bands)
    before = {path.name for path in cells.iterdir()}
    status, text, _ = run(*options)
    assert status == 0
    assert "band 0 content removed" in text
    assert {path.name for path in cells.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "poems"), "--tasks must be among"),
        (("--tasks", "none.jsonl"), "none.jsonl"),
        (("--save", "surgery.txt"), "--save must"),
    ],
)
def test_bad_options_are_one_sentence(
    run: Run, folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = run("surgery", folder, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in " ".join(err.split())
    assert err.count("\n") == 1


def test_a_report_takes_a_saved_surgery_of_its_model_and_no_other(run: Run, tmp_path: Path) -> None:
    other = save_result(concentration_result(), tmp_path / "other.json")
    status, _, err = run("report", "--out", tmp_path / "page", "--surgery", other)
    assert status == 1
    assert "--surgery must name a saved SurgeryResult, got a ConcentrationResult: " in err
    foreign = save_result(surgery_result("another"), tmp_path / "foreign.json")
    status, _, err = run("report", "--out", tmp_path / "page", "--surgery", foreign)
    assert status == 1
    assert "must be of the model smollm2-135m-instruct, got one of another: " in err
    assert not (tmp_path / "page").exists()
