"""What is claimed about the two built-in models, measured on them: not on a made-up one.

Costs about a minute, and the download of both the first time. The numbers are those of
SmolLM2-135M-Instruct from its 4-bit file and all-MiniLM-L6-v2 on the 32 default passages.
"""

from typing import Literal

import pytest
import torch
from torch import Tensor

from mi_massive import (
    AttentionNorms,
    PatchingConfig,
    capture_norms,
    conflict_pairs,
    default_passages,
    known_conflicts,
    load_conflicts,
    load_model,
    massive_mask,
    patch,
    top_k_mask,
)
from mi_massive.axes import Projection


@pytest.fixture(scope="module", name="smollm")
def fixture_smollm() -> AttentionNorms:
    return capture_norms(load_model("smollm2-135m-instruct"), default_passages())


@pytest.fixture(scope="module", name="minilm")
def fixture_minilm() -> AttentionNorms:
    return capture_norms(load_model("all-minilm-l6-v2"), default_passages())


def massive_by_layer(norms: AttentionNorms, projection: Projection) -> list[int]:
    return massive_mask(getattr(norms, projection), ratio=5.0).sum(dim=(1, 2)).tolist()


def max_over_mean(norms: Tensor) -> float:
    return float((norms.amax(dim=-1) / norms.mean(dim=-1)).max())


def test_smollm2_is_the_model_that_the_numbers_are_about(smollm: AttentionNorms) -> None:
    assert smollm.q.shape == (30, 9, 64)
    assert smollm.k.shape == smollm.v.shape == (30, 3, 64)
    assert smollm.geometry.training_context == 8192
    assert smollm.provenance.weights_note is not None
    assert "dequantized" in smollm.provenance.weights_note
    assert smollm.n_prompts == 32


def test_queries_are_massive_in_every_layer_and_keys_in_every_layer_but_the_first(
    smollm: AttentionNorms,
) -> None:
    q, k = massive_by_layer(smollm, "q"), massive_by_layer(smollm, "k")
    assert min(q) >= 1
    assert min(k[1:]) >= 1
    assert (sum(q), sum(k)) == (pytest.approx(260, abs=40), pytest.approx(69, abs=15))


def test_in_the_first_layer_keys_are_massive_in_some_prompts_alone(smollm: AttentionNorms) -> None:
    norms = smollm.k_sums.norms()[:, 0]
    massive = (norms > 5 * norms.mean(dim=-1, keepdim=True)).flatten(1).any(dim=1)
    assert massive_by_layer(smollm, "k")[0] == 0
    assert 0 < int(massive.sum()) < 32


def test_values_have_at_most_a_handful(smollm: AttentionNorms) -> None:
    assert sum(massive_by_layer(smollm, "v")) <= 4


@pytest.mark.parametrize("projection", ["q", "k"])
def test_the_top_dimension_lies_in_the_slower_half_of_the_pairs_in_nearly_every_head(
    projection: Projection, smollm: AttentionNorms
) -> None:
    rotary = smollm.geometry.layers[0].rotary
    assert rotary is not None
    n_pairs = smollm.geometry.n_pairs
    assert bool((rotary.inv_freq.diff() < 0).all())  # pair 0 is the fastest
    top = top_k_mask(getattr(smollm, projection), k=1).nonzero()[:, 2]
    slower = (top % n_pairs >= n_pairs // 2).float().mean()  # half_split: d and d + n_pairs
    assert float(slower) >= 0.95


def test_values_have_no_such_preference(smollm: AttentionNorms) -> None:
    top = top_k_mask(smollm.v, k=1).nonzero()[:, 2]
    slower = (top % 32 >= 16).float().mean()
    assert 0.3 < float(slower) < 0.7


def test_minilm_rotates_nothing_and_has_no_massive_dimension(minilm: AttentionNorms) -> None:
    assert not minilm.geometry.rotates
    assert minilm.q.shape == (6, 12, 32)
    for projection in ("q", "k", "v"):
        assert sum(massive_by_layer(minilm, projection)) == 0


@pytest.mark.parametrize(("projection", "most"), [("q", 2.5), ("k", 2.3), ("v", 3.5)])
def test_minilm_is_not_concentrated(
    projection: Projection, most: float, minilm: AttentionNorms
) -> None:
    norms = getattr(minilm, projection)
    assert bool(torch.isfinite(norms).all())
    assert 1 < max_over_mean(norms) <= most


@pytest.mark.parametrize("corrupted", ["consistent", "neutral"])
def test_the_whole_residual_stream_recovers_the_contexts_answer_of_real_conflicts(
    corrupted: Literal["consistent", "neutral"],
) -> None:
    model = load_model("smollm2-135m-instruct")
    known = known_conflicts(model, load_conflicts(model, limit=12), limit=2)
    assert len(known) == 2
    pairs = conflict_pairs(known, corrupted=corrupted)
    config = PatchingConfig(layers=(15,), n_resamples=20)
    found = patch(model, pairs, site="resid_pre", granularity="layer", config=config)
    assert found.n == 2
    assert float(found.recovered) == pytest.approx(1.0, abs=1e-3)
    assert float(found.placebo) != pytest.approx(1.0, abs=0.1)
