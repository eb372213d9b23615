"""Both ways patch the same cells, and agree."""

import dataclasses
from pathlib import Path

import pytest
from patch_models import random_pairs
from tiny_models import llama

from mi_massive import load_model, load_result, save_result
from mi_massive.patch_speed import measure_patch_speed


def test_both_ways_patch_the_same_grid_and_agree(tmp_path: Path) -> None:
    model = load_model(llama(num_hidden_layers=3).save(tmp_path / "llama"))
    pairs = [dataclasses.replace(p, placebo=None) for p in random_pairs(model, 2)]
    result = measure_patch_speed(model, pairs, layers=(0, 2), n_rounds=2)
    assert result.seconds.shape == (2, 2)
    ratios = sorted((result.seconds[:, 0] / result.seconds[:, 1]).tolist())
    assert result.ratio.effect == pytest.approx(sum(ratios) / 2)
    assert (result.n_cells, result.n_pairs, result.n_tokens) == (8, 2, 11)
    assert result.largest_difference < 1e-4
    again = load_result(save_result(result, tmp_path / "speed.json"))
    assert again.largest_difference == result.largest_difference


def test_pairs_of_two_lengths_are_refused(tmp_path: Path) -> None:
    model = load_model(llama().save(tmp_path / "llama"))
    pairs = [*random_pairs(model, 1), *random_pairs(model, 1, n_pos=9)]
    with pytest.raises(ValueError, match=r"pairs must have one length, got \[9, 11\]; choose some"):
        measure_patch_speed(model, pairs, layers=(0,))
