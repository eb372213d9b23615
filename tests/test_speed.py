"""Speed is measured in turn, in ratios to the plain forward pass, and memory in processes apart."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import llama

from mi_massive import HookedModel, capture_norms, load_model, load_result, save_result, speed
from mi_massive.speed import PLAIN, WAYS, SpeedResult, measure_peak_memory, measure_speed


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose vocabulary holds the ids that are timed."""
    return llama(vocab_size=1000).save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", name="result")
def fixture_result(folder: Path) -> SpeedResult:
    return measure_speed(load_model(folder), n_tokens=24, n_rounds=3)


def test_ratios_are_medians_over_rounds_to_the_plain_forward_pass(result: SpeedResult) -> None:
    assert result.ways == WAYS
    assert result.seconds.shape == (3, len(WAYS))
    assert bool((result.seconds > 0).all())
    ratios = (result.seconds / result.seconds[:, :1]).numpy()
    assert [r.effect for r in result.ratios] == pytest.approx(np.median(ratios, axis=0))
    plain = result.ratios[WAYS.index(PLAIN)]
    assert (plain.effect, plain.low, plain.high) == (1.0, 1.0, 1.0)
    assert all(ratio.low <= ratio.effect <= ratio.high for ratio in result.ratios)
    assert {ratio.n for ratio in result.ratios} == {3}
    for index, found in ((1, result.ratios_to_body), (2, result.ratios_to_capture)):
        relative = (result.seconds / result.seconds[:, index, None]).numpy()
        assert [r.effect for r in found] == pytest.approx(np.median(relative, axis=0))


def test_the_record_says_what_was_timed(result: SpeedResult, folder: Path, tmp_path: Path) -> None:
    assert (result.n_prompts, result.n_tokens) == (1, 24)
    assert result.n_threads == torch.get_num_threads()
    again = load_result(save_result(result, tmp_path / "speed.json"))
    assert torch.equal(again.seconds, result.seconds)
    assert repr(again.ratios) == repr(result.ratios)  # NaN is not equal to itself
    assert again.provenance.model == str(folder)


@pytest.mark.parametrize("n_prompts", [1, 3])
def test_every_way_but_the_plain_ones_gives_the_same_norms(folder: Path, n_prompts: int) -> None:
    model = load_model(folder)
    ids = speed.token_ids(24, n_prompts)
    ways = speed._ways(model, ids)
    assert tuple(ways) == WAYS
    expected = capture_norms(model, ids)
    by_hooks = capture_norms(HookedModel.wrap(model.bridge), ids)
    torch.testing.assert_close(by_hooks.q, expected.q)
    with torch.no_grad():
        cached = ways["run_with_cache"]()
    squares = [expected.q[0], expected.k[0], expected.v[0], expected.q[1]]
    for found, norms in zip(cached, squares, strict=False):
        torch.testing.assert_close(found.sum(dim=0), norms.square())


def test_a_planted_allocation_is_seen_in_the_peak_and_not_in_that_of_a_child(folder: Path) -> None:
    before = speed._own_peak_mb()
    planted = torch.ones(2**28)  # 1 GiB
    peak = speed._own_peak_mb()
    assert peak >= 1024
    del planted
    assert speed._own_peak_mb() + 1 >= peak >= before  # the kernel counts in batches of pages
    child = speed._peak_mb(load_model(folder), str(folder), "capture", 64)
    assert 100 < child < peak - 256  # ru_maxrss of the child would be at least ours


def test_peak_memory_is_taken_of_the_first_three_ways(folder: Path, tmp_path: Path) -> None:
    result = measure_peak_memory(load_model(folder), n_tokens=32)
    assert result.ways == WAYS[:3]
    assert all(100 < peak < 8192 for peak in result.peak_mb)
    again = load_result(save_result(result, tmp_path / "memory.json"))
    assert again.peak_mb == result.peak_mb


def test_a_prompt_beyond_the_context_is_refused_before_anything_is_measured(folder: Path) -> None:
    model = load_model(folder)
    context = model.geometry.training_context
    assert context is not None
    with pytest.raises(ValueError, match=rf"n_tokens must be .* {context}.*, got {context + 1}"):
        measure_peak_memory(model, n_tokens=context + 1)


def test_token_ids_are_the_same_every_time() -> None:
    (ids,) = speed.token_ids(1000)
    assert speed.token_ids(1000) == [ids]
    assert 100 <= min(ids) <= max(ids) < 1000
    assert [len(row) for row in speed.token_ids(5, 2)] == [5, 5]


def test_other_ways_are_timed_in_the_same_rounds(folder: Path) -> None:
    calls: list[int] = []
    result = measure_speed(
        load_model(folder),
        n_tokens=8,
        n_rounds=2,
        others={"nap": lambda: calls.append(time.sleep(0.2) or 1)},
    )
    assert result.ways == (*WAYS, "nap")
    assert len(calls) == 3  # one is not counted
    assert bool((result.seconds[:, -1] >= 0.2).all())
    assert result.ratios_to_capture[-1].effect > 1


def test_another_way_needs_a_name_of_its_own(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"names of their own, got capture$"):
        measure_speed(load_model(folder), others={"capture": list})
