"""Every result is a table on request: a pandas frame, Parquet, a data set of `datasets`."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

import mi_massive
from mi_massive import load_result
from mi_massive.answers import Answer
from mi_massive.report.frames import TABLES
from mi_massive.scores import EvaluationConfig, TaskResult

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "experiments" / "records").glob("*.json"))


def test_every_result_class_of_the_package_has_a_frame():
    found = set()
    for module in pkgutil.walk_packages(mi_massive.__path__, "mi_massive."):
        if module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and kind.__name__.endswith("Result"):
                found.add(kind)
    assert len(found) > 20
    assert [kind.__name__ for kind in found if not hasattr(kind, "to_frame")] == []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_becomes_parquet_and_a_data_set(path, tmp_path):
    frame = load_result(path).to_frame()
    assert len(frame)
    assert frame.columns.is_unique
    file = tmp_path / "frame.parquet"
    frame.to_parquet(file)
    assert list(pd.read_parquet(file).columns) == list(frame.columns)
    rows = Dataset.from_pandas(frame)
    assert rows.num_rows == len(frame)
    assert rows.column_names == list(frame.columns)


def test_answers_are_rows_with_what_was_chosen():
    shared = {"group": "a", "condition": "closed_book", "legacy_correct": None, "gold": 0}
    answers = (
        Answer(id="1", text="Paris", extracted="Paris", correct=True, log_probs=(), **shared),
        Answer(id="2", text=None, extracted=None, correct=None, log_probs=(-1.0, -3.0), **shared),
    )
    result = TaskResult(
        task="t",
        kind="parametric",
        version=1,
        digest="0",
        chance=0.0,
        options_chance=0.5,
        answers=answers,
        n_edits=0,
        config=EvaluationConfig(),
        provenance=load_result(ROOT / "experiments/records/families.json").provenance,
    )
    frame = result.to_frame()
    assert list(frame["id"]) == ["1", "2"]
    assert list(frame["chooses_gold"]) == [None, True]
    assert frame["logit_diff"].tolist()[1] == 2.0
    assert set(dataclasses.asdict(answers[0])) <= set(frame.columns)


def test_abilities_of_twins_are_a_table_of_the_report():
    twins = load_result(ROOT / "experiments/records/twins_mixture_small.json")
    frame = twins.abilities_frame()
    row = frame.query("arm == 'rope' and condition == 'intact' and ability == 'recall'").iloc[0]
    assert row["right"] == twins.ability("rope", "intact", "recall").effect
    assert row["lost"] == 0
    assert len(frame) == len(twins.config.arms) * len(twins.conditions) * 2
    assert "twin_abilities" in TABLES


def test_effects_are_rows_of_arm_and_prompt():
    effects = load_result(ROOT / "experiments/records/table1_smollm2-135m-instruct.json").effects
    frame = effects.to_frame()
    assert len(frame) == effects.cross_entropy.numel()
    means = frame.groupby("arm")["cross_entropy"].mean()
    for arm in effects.arms:
        assert means[arm] == pytest.approx(effects.of(arm)["cross_entropy"].effect, rel=1e-6)
