"""Experiments are short scripts that say what would refute them, and their records can be read."""

import argparse
import ast
import importlib.util
import math
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import LlamaConfig

from mi_massive import FamiliesResult, ScoreboardResult, TwinsResult, load_result
from mi_massive.command_speed import CommandSpeedResult
from mi_massive.models.wheel import BUILT_IN, DEFAULT_MODEL

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
RECORDS = EXPERIMENTS / "records"
SCRIPTS = sorted(path for path in EXPERIMENTS.glob("*.py") if path.name[0] != "_")
SAVED = sorted(RECORDS.glob("*.json"))
PAGES = (ROOT / "README.md", EXPERIMENTS / "README.md")
MAX_LINES = 150

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
each_record = pytest.mark.parametrize("record", SAVED, ids=lambda path: path.stem)


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(page: Path) -> list[Path]:
    """Files that a page links to."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [(page.parent / target).resolve() for target in targets if "://" not in target]


@each_script
def test_a_script_states_question_refutation_cost_and_command(script: Path) -> None:
    documented = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    opening, _, rest = documented.partition("\n\n")
    assert "\n" not in opening
    assert re.findall(r"^(Question|Refuted by|Cost|Command): \S", rest, re.MULTILINE) == [
        "Question",
        "Refuted by",
        "Cost",
        "Command",
    ]
    assert f"Command: python experiments/{script.name}" in rest


@each_script
def test_a_script_is_short(script: Path) -> None:
    assert script.read_text(encoding="utf-8").count("\n") < MAX_LINES


@each_script
def test_help_works(script: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(EXPERIMENTS))  # as when the script itself is started
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "usage: " in capsys.readouterr().out


def test_a_shape_with_random_weights_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    speed = load(EXPERIMENTS / "_speed.py")
    small = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=49152,  # of the tokenizer
        rope_theta=500000.0,
    )
    monkeypatch.setitem(speed.SHAPES, "llama-3-8b", small)
    given = argparse.Namespace(
        model=DEFAULT_MODEL,
        shape="llama-3-8b",
        device="cpu",
        dtype="bfloat16",
        rounds=2,
        nnsight=None,
    )
    memory = speed.memory(argparse.Namespace(**{**vars(given), "tokens": 24}))
    assert (memory.n_tokens, memory.provenance.model) == (24, "llama-3-8b")
    assert all(peak > 100 for peak in memory.peak_mb)
    result = speed.capture(given, n_prompts=2, n_tokens=16)
    assert result.provenance.weights_note == "random weights"
    assert result.provenance.dtype == "bfloat16"
    assert bool((result.seconds > 0).all())


@each_record
def test_a_record_loads_and_names_a_model_of_this_package(record: Path) -> None:
    result = load_result(record)
    if isinstance(result, TwinsResult):
        assert record.stem.startswith("twins_")
        assert result.provenance.versions["torch"]
        return
    if isinstance(result, FamiliesResult):
        assert record.stem.startswith("families")
        rows = {row.model: row for row in result.rows if row.status == "measured"}
        assert set(rows) == set(BUILT_IN)
        for name, row in rows.items():
            assert row.provenance is not None
            assert row.provenance.revision == BUILT_IN[name].requirement
        return
    if isinstance(result, CommandSpeedResult):
        assert record.stem.startswith("speed_")
        assert result.versions["torch"]
        return
    if "_twin_" in record.stem:
        assert result.provenance.model.startswith("twin ")
        return
    if record.stem.startswith("speed_") and result.provenance.model not in BUILT_IN:
        assert result.provenance.weights_note == "random weights"
        assert result.provenance.model in record.stem
        return
    assert result.provenance.model in BUILT_IN
    assert result.provenance.model in record.stem
    assert result.provenance.revision == BUILT_IN[result.provenance.model].requirement
    assert len(result.provenance.prompts_digest) == 64
    assert result.provenance.versions["mi-massive"] != "not installed"


@each_record
def test_a_record_is_linked(record: Path) -> None:
    assert record.resolve() in [target for page in PAGES for target in links(page)]


def test_every_tensor_file_belongs_to_a_record() -> None:
    tensors = {path.stem for path in RECORDS.glob("*.safetensors")}
    assert tensors <= {path.stem for path in SAVED}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_linked_file_exists(page: Path) -> None:
    assert [str(target) for target in links(page) if not target.exists()] == []


def test_the_claims_table_of_the_readme_is_that_of_its_record() -> None:
    record = RECORDS / "claims_smollm2-135m-instruct.json"
    table = load(EXPERIMENTS / "readme_table.py").table(record)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_number_of_the_readme_is_still_to_be_filled_in() -> None:
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_decided_claim_has_an_interval() -> None:
    board = load_result(RECORDS / "claims_smollm2-135m-instruct.json")
    assert isinstance(board, ScoreboardResult)
    for claim in board.claims:
        assert claim.estimate.n > 0
        assert claim.estimate.test
        if claim.verdict != "inconclusive":
            assert math.isfinite(claim.estimate.low)
            assert math.isfinite(claim.estimate.high)
