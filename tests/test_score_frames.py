"""Scores have one form in data frames, whatever experiment they are of."""

from dataclasses import fields
from pathlib import Path

import sample_results
import sample_surgery

from mi_massive._score_frames import cell_columns
from mi_massive.scores import Cell
from mi_massive.sweep import load_sweep


def test_every_field_of_a_cell_is_there_and_an_estimate_with_its_interval_p_and_n() -> None:
    result = sample_results.disruption_result()
    cell = result.cells[-1]
    columns = cell_columns(cell)
    assert {field.name for field in fields(Cell)} | {"above_chance"} <= set(columns)
    for name in ("score", "legacy_score", "change", "logit_diff", "distinct_2", "repetition"):
        value = getattr(cell, name)
        ends = [columns[f"{name}_{end}"] for end in ("low", "high", "p", "n")]
        assert repr(ends) == repr([value.low, value.high, value.p_value, value.n])  # NaN is NaN
    assert columns["above_chance"] == cell.above_chance


def test_experiments_and_sweeps_name_their_columns_alike(undisturbed: Path) -> None:
    disrupted = sample_results.disruption_result()
    columns = list(disrupted.to_frame().columns)
    assert columns == list(cell_columns(disrupted.cells[0]))
    assert list(sample_surgery.surgery_result().to_frame().columns) == columns
    frame = load_sweep(undisturbed).to_frame()
    assert list(frame.columns) == ["model", "identity", "dtype", *columns]
