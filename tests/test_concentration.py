import dataclasses
import math

import numpy as np
import pytest
import reference
import scipy.stats
import torch
from builders import build_geometry, build_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import golden_norms, needs_golden
from torch import Tensor

from mi_massive._agreement import _Measure, agreement, dim_positions
from mi_massive._head_statistics import head_statistics, top_statistics
from mi_massive.concentration import (
    ConcentrationConfig,
    ConcentrationResult,
    concentration,
    massive_mask,
    top_k_mask,
)
from mi_massive.norms import AttentionNorms
from mi_massive.rope import ModelGeometry
from mi_massive.stats import null_p_values

QUICK = ConcentrationConfig(n_resamples=200)
PLANTED = 26  # a dimension of 32; pair 10 of 16


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(
    n_heads: int = 4, *, n_prompts: int = 8, n_layers: int = 3, d_head: int = 32, seed: int = 0
) -> Tensor:
    return noise(n_prompts, 6, n_layers, n_heads, d_head, seed=seed)


def planted(
    *, from_layer: int = 0, n_prompts: int = 8, geometry: ModelGeometry | None = None
) -> AttentionNorms:
    """A constant offset in one dimension of every head of q and k, from one layer on."""
    q = states(n_prompts=n_prompts, seed=1)
    k = states(2, n_prompts=n_prompts, seed=2)
    q[:, :, from_layer:, :, PLANTED] += 30
    k[:, :, from_layer:, :, PLANTED] += 30
    return build_norms(q, k, states(2, n_prompts=n_prompts, seed=3), geometry=geometry)


def plain_norms(seed: int = 0, *, n_prompts: int = 8) -> AttentionNorms:
    q, k, v = (states(h, n_prompts=n_prompts, seed=seed + i) for i, h in enumerate((4, 2, 2)))
    return build_norms(q, k, v)


# --- masks -----------------------------------------------------------------------------------


def test_massive_mask_equals_its_definition_head_by_head() -> None:
    norms = noise(3, 5, 16).abs() ** 3
    expected = [[reference.massive(head, 3.0) for head in layer] for layer in norms.tolist()]
    mask = massive_mask(norms, ratio=3)
    assert mask.tolist() == expected
    assert mask.any()


def test_massive_mask_is_strict_at_the_threshold() -> None:
    # mean 2, so 4 is exactly twice the mean
    norms = torch.tensor([[[4.0, 2.0, 2.0, 0.0]]])
    assert not massive_mask(norms, ratio=2.0).any()
    assert massive_mask(norms, ratio=1.99).tolist() == [[[True, False, False, False]]]


@given(scale=st.floats(1e-6, 1e6), ratio=st.floats(0.5, 8), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=30)
def test_massive_mask_ignores_scale_and_bounds_the_count(
    scale: float, ratio: float, seed: int
) -> None:
    norms = noise(2, 3, 24, seed=seed).double().abs().pow(4)
    mask = massive_mask(norms, ratio=ratio)
    assert torch.equal(massive_mask(norms * scale, ratio=ratio), mask)
    assert (mask.sum(dim=-1) < 24 / ratio).all()


def test_massive_mask_of_half_precision_norms_does_not_overflow_in_the_mean() -> None:
    norms = torch.full((1, 1, 8), 60000.0, dtype=torch.float16)
    assert not massive_mask(norms).any()


def test_a_head_of_zeros_has_no_massive_dimension_and_still_k_largest() -> None:
    zeros = torch.zeros(1, 1, 8)
    assert not massive_mask(zeros).any()
    assert top_k_mask(zeros, k=2).tolist() == [[[True, True] + [False] * 6]]


@pytest.mark.parametrize("largest", [True, False])
def test_top_k_mask_takes_the_lower_index_among_equal_norms(largest: bool) -> None:
    ties = torch.tensor([[[1.0, 3.0, 3.0, 1.0, 3.0, 1.0]]])
    first = [1, 2] if largest else [0, 3]
    assert top_k_mask(ties, k=2, largest=largest).nonzero()[:, 2].tolist() == first


@given(k=st.integers(1, 12), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=25)
def test_top_k_and_the_smallest_rest_share_a_head_between_them(k: int, seed: int) -> None:
    norms = noise(2, 2, 12, seed=seed).abs()
    top = top_k_mask(norms, k=k)
    assert (top.sum(dim=-1) == k).all()
    if k < 12:
        assert torch.equal(top_k_mask(norms, k=12 - k, largest=False), ~top)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_a_ratio_that_is_no_threshold_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be finite and positive, got"):
        massive_mask(torch.ones(1, 1, 4), ratio=ratio)
    with pytest.raises(ValueError, match="ratio must be finite and positive, got"):
        ConcentrationConfig(ratio=ratio)


@pytest.mark.parametrize("k", [0, -1, 9])
def test_k_outside_the_head_is_refused(k: int) -> None:
    message = rf"k must be between 1 and 8 \(dimensions of a head\), got {k}"
    with pytest.raises(ValueError, match=message):
        top_k_mask(torch.ones(1, 1, 8), k=k)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("mask", [massive_mask, top_k_mask])
def test_masks_refuse_norms_that_are_not_finite(mask: object, bad: float) -> None:
    norms = torch.ones(2, 3, 4)
    norms[1, 2, 3] = bad
    message = rf"norms must be finite, got {bad} at index \(1, 2, 3\); float16 overflows.*float32"
    with pytest.raises(ValueError, match=message):
        mask(norms)  # type: ignore[operator]


# --- statistics of a head --------------------------------------------------------------------


def test_head_statistics_equal_their_definitions() -> None:
    norms = noise(2, 3, 10).abs().double()
    got = head_statistics(norms)
    for index in np.ndindex(2, 3):
        head = norms[index].tolist()
        energy = [x * x for x in head]
        middle = sorted(head)[4:6]
        expected = {
            "max_over_mean": max(head) / (sum(head) / 10),
            "max_over_median": max(head) / (sum(middle) / 2),
            "kurtosis": reference.excess_kurtosis(head),
            "gini": reference.gini(energy),
            "top_share": max(energy) / sum(energy),
        }
        assert {name: float(got[name][index]) for name in got} == pytest.approx(expected, rel=1e-5)


def test_one_hot_and_equal_heads_reach_the_ends_of_the_statistics() -> None:
    one_hot, equal = torch.zeros(8), torch.ones(8)
    one_hot[3] = 2.0
    got = head_statistics(torch.stack([one_hot, equal])[None])
    assert got["max_over_mean"].tolist() == [[8.0, 1.0]]
    assert got["gini"].tolist() == [[7 / 8, 0.0]]
    assert got["top_share"].tolist() == [[1.0, 1 / 8]]
    assert torch.equal(got["max_over_median"].isnan(), torch.tensor([[True, False]]))
    assert torch.equal(got["kurtosis"].isnan(), torch.tensor([[False, True]]))


def test_statistics_of_a_head_of_zeros_are_undefined() -> None:
    for value in head_statistics(torch.zeros(1, 1, 6)).values():
        assert value.isnan().all()


# --- agreement of heads ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_pairs", "layout"),
    [(None, "half_split"), (8, "half_split"), (8, "interleaved"), (3, "half_split")],
)
def test_agreement_equals_the_loop_over_pairs_of_heads(n_pairs: int | None, layout: str) -> None:
    theta = None if n_pairs is None else 1e4
    geometry = build_geometry(4, 5, 16, theta=theta, n_pairs=n_pairs, layout=layout)
    squares = noise(3, 4, 5, 16).square()
    got = agreement(squares, dim_positions(geometry), QUICK)
    places = [reference.position(d, 16, n_pairs, layout) for d in range(16)]
    tops = squares.sum(dim=0).argmax(dim=-1).tolist()
    within = [reference.closeness(layer, None, places) for layer in tops]
    between = [reference.closeness(tops[i], tops[i + 1], places) for i in range(3)]
    assert got.by_layer.tolist() == pytest.approx(within)
    assert got.heads.effect == pytest.approx(np.mean(within))
    assert got.consecutive.effect == pytest.approx(np.mean(between))


def test_heads_with_the_same_pair_agree_fully_whichever_member_is_larger() -> None:
    squares = noise(4, 2, 6, 16).square()
    squares[:, :, 0::2, 5] += 100
    squares[:, :, 1::2, 5 + 8] += 100  # the partner in the other half
    folded = agreement(squares, dim_positions(build_geometry(2, 6, 16)), QUICK)
    assert folded.by_layer.tolist() == pytest.approx([1.0, 1.0])
    assert folded.consecutive.effect == pytest.approx(1.0)
    assert folded.heads.p_value == 1 / 401  # 200 resamples, raised for two layers
    unrotated = agreement(squares, dim_positions(build_geometry(2, 6, 16, theta=None)), QUICK)
    assert unrotated.heads.effect < 0.5


def test_heads_without_anything_in_common_agree_by_chance() -> None:
    squares = noise(2, 60, 4, 32, seed=7).square()
    got = agreement(squares, dim_positions(build_geometry(60, 4, 32)), QUICK)
    assert abs(got.heads.effect) < 0.15
    assert got.heads.p_value > 0.01
    assert (got.p_values > 0.05).all()


def test_the_permutation_p_of_noise_is_uniform() -> None:
    positions = dim_positions(build_geometry(300, 6, 64))
    measure = _Measure(positions=positions, present=np.ones((300, 6), dtype=bool))
    observed, _ = measure(noise(300, 6, 64).argmax(dim=-1).numpy())
    null, _ = measure.null(500, seed=0)
    p_values = null_p_values(observed, null)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01
    assert abs(null.mean()) < 0.01


def test_a_layer_with_one_head_has_no_agreement() -> None:
    got = agreement(noise(3, 2, 1, 8).square(), dim_positions(build_geometry(2, 1, 8)), QUICK)
    assert np.isnan(got.by_layer).all()
    assert np.isnan(got.p_values).all()
    assert math.isnan(got.heads.effect)
    assert math.isnan(got.heads.p_value)
    assert not math.isnan(got.consecutive.effect)


def test_a_head_of_zeros_takes_no_part_in_the_agreement() -> None:
    squares = noise(3, 1, 4, 8).square()
    squares[:, :, 3] = 0
    positions = dim_positions(build_geometry(1, 4, 8))
    got = agreement(squares, positions, QUICK)
    assert got.by_layer.tolist() == agreement(squares[:, :, :3], positions, QUICK).by_layer.tolist()


def test_layers_that_rotate_differently_are_not_compared_with_each_other() -> None:
    layers = (
        build_geometry(1, 3, 8).layers[0],
        dataclasses.replace(build_geometry(1, 3, 8, theta=None).layers[0], block=1),
    )
    geometry = ModelGeometry(layers=layers, training_context=None)
    got = agreement(noise(3, 2, 3, 8).square(), dim_positions(geometry), QUICK)
    assert math.isnan(got.consecutive.effect)
    assert not np.isnan(got.by_layer).any()


# --- the whole analysis ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> ConcentrationResult:
    geometry = build_geometry(3, 4, 32, n_key_value_heads=2, blocks=(0, 2, 5))
    return concentration(planted(from_layer=1, geometry=geometry), config=QUICK)


def test_the_planted_dimension_is_the_only_massive_one(result: ConcentrationResult) -> None:
    expected = torch.zeros(32, dtype=torch.bool)
    expected[PLANTED] = True
    for part in (result.q, result.k):
        assert (part.massive[1:] == expected).all()
        assert not part.massive[0].any()
        assert part.curve.tolist() == [0, 1, 1]
        assert part.layer_overlap[1:].tolist() == pytest.approx([1.0, 1.0])
    assert not result.v.massive.any()


def test_the_first_layer_with_massive_values_is_named_by_its_block(
    result: ConcentrationResult,
) -> None:
    assert result.layers == (0, 2, 5)
    assert result.first_layer == 2
    assert result.first_layer_excess.effect == 0
    assert (result.layer_tests <= 0.05).tolist() == [False, True, True]


def test_massive_values_from_the_first_layer_on_exceed_v_there() -> None:
    got = concentration(planted(), config=QUICK)
    assert got.first_layer == 0
    assert got.first_layer_excess.effect == 1
    assert got.first_layer_excess.p_value < 0.01


def test_contrast_is_the_geometric_mean_of_max_over_mean_against_v(
    result: ConcentrationResult,
) -> None:
    norms = planted(from_layer=1)
    ratios = []
    for prompt in range(8):
        peak = {}
        for name in ("q", "v"):
            heads = norms.sums(name).norms()[prompt].flatten(0, 1).tolist()
            peak[name] = np.mean([max(h) / (sum(h) / 32) for h in heads])
        ratios.append(peak["q"] / peak["v"])
    assert result.contrast_q.effect == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-5)
    assert result.contrast_q.low > 1
    assert result.contrast_q.p_value < 0.02  # one in 2 ** 8 sign patterns
    assert result.contrast_q.n == 8


def test_noise_shows_no_contrast_no_first_layer_and_no_agreement() -> None:
    got = concentration(plain_norms(5), config=QUICK)
    assert 0.9 < got.contrast_q.effect < 1.1
    assert got.first_layer is None
    assert (got.q.layer_p_values > 0.05).all()


def test_one_prompt_leaves_every_interval_and_test_over_prompts_undefined() -> None:
    got = concentration(planted(n_prompts=1), config=QUICK)
    for estimate in (got.contrast_q, got.contrast_k, got.first_layer_excess, got.q.head_overlap):
        assert estimate.n == 1
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert not math.isnan(estimate.effect)
    assert math.isnan(got.contrast_q.p_value)
    assert got.q.curve_low.isnan().all()
    assert got.layer_tests.isnan().all()
    assert got.first_layer is None


def test_scale_changes_the_norms_alone() -> None:
    q, k, v = (states(h, seed=h) for h in (4, 2, 2))
    one = concentration(build_norms(q, k, v), config=QUICK)
    ten = concentration(build_norms(10 * q, 10 * k, 10 * v), config=QUICK)
    assert torch.allclose(ten.q.norms, 10 * one.q.norms)
    for name in ("max_over_mean", "gini", "kurtosis", "top_share", "curve", "layer_overlap"):
        assert torch.allclose(getattr(ten.q, name), getattr(one.q, name), atol=1e-5), name
    assert ten.contrast_q.effect == pytest.approx(one.contrast_q.effect, rel=1e-5)


def test_permuted_heads_give_permuted_statistics_and_the_same_summary() -> None:
    q, k, v = (states(h, seed=h) for h in (4, 2, 2))
    order = torch.tensor([2, 0, 3, 1])
    one = concentration(build_norms(q, k, v), config=QUICK)
    moved = concentration(build_norms(q[:, :, :, order], k, v), config=QUICK)
    assert torch.equal(moved.q.gini, one.q.gini[:, order])
    assert torch.equal(moved.q.massive, one.q.massive[:, order])
    assert moved.q.head_overlap.effect == pytest.approx(one.q.head_overlap.effect)
    assert torch.equal(moved.q.layer_p_values, one.q.layer_p_values)


def test_the_order_of_prompts_changes_no_estimate() -> None:
    q, k, v = (states(h, seed=h) for h in (4, 2, 2))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    one = concentration(build_norms(q, k, v), config=QUICK)
    other = concentration(build_norms(q[order], k[order], v[order]), config=QUICK)
    assert torch.allclose(other.q.curve, one.q.curve)
    assert torch.allclose(other.q.norms, one.q.norms)
    assert other.contrast_q.effect == pytest.approx(one.contrast_q.effect, rel=1e-6)
    assert other.q.head_overlap.effect == pytest.approx(one.q.head_overlap.effect)


def test_the_result_is_determined_by_the_seed() -> None:
    norms = plain_norms()
    one, two = (concentration(norms, config=QUICK) for _ in range(2))
    assert one.contrast_q == two.contrast_q
    assert one.q.head_overlap == two.q.head_overlap
    other = concentration(norms, config=ConcentrationConfig(n_resamples=200, seed=1))
    assert other.contrast_q.low != one.contrast_q.low


def test_layers_that_rotate_are_listed() -> None:
    assert concentration(plain_norms(), config=QUICK).rotating_layers == ()
    geometry = build_geometry(3, 4, 32, n_key_value_heads=2, blocks=(1, 3, 4))
    rotating = concentration(planted(geometry=geometry), config=QUICK)
    assert rotating.rotating_layers == (1, 3, 4)


@pytest.mark.parametrize(("name", "bad"), [("q", math.inf), ("k", math.nan), ("v", math.inf)])
def test_norms_that_are_not_finite_are_refused_with_their_place(name: str, bad: float) -> None:
    activations = {p: states(2, seed=i) for i, p in enumerate("qkv")}
    activations[name][3, 0, 1, 1, 7] = bad
    geometry = build_geometry(3, 2, 32, theta=None, blocks=(4, 5, 6))
    norms = build_norms(**activations, geometry=geometry)
    message = rf"norms of {name} must be finite, got {bad} at L5H1, dimension 7, prompt 3; float16"
    with pytest.raises(ValueError, match=message):
        concentration(norms)


def test_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="norms must hold at least one prompt, got 0; capture"):
        concentration(plain_norms(n_prompts=0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": 1.0}, "level must be between 0 and 1, got 1.0"),
        ({"n_resamples": 0}, "n_resamples must be between 1 and"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConcentrationConfig(**fields)


def test_frames_name_their_axes_and_hold_the_tensors(result: ConcentrationResult) -> None:
    heads = result.to_frame()
    assert len(heads) == 3 * (4 + 2 + 2)
    row = heads[(heads.projection == "q") & (heads.layer == 5) & (heads["head"] == 3)].iloc[0]
    assert row["massive"] == 1
    assert row["gini"] == pytest.approx(float(result.q.gini[2, 3]))
    layers = result.layer_frame()
    row = layers[(layers.projection == "k") & (layers.layer == 2)].iloc[0]
    assert row["massive_per_head"] == pytest.approx(float(result.k.curve[1]))
    assert row["more_than_v_p_value"] == pytest.approx(float(result.layer_tests[1]))


# --- the authors' tensors (science.md, section 6) --------------------------------------------


@pytest.fixture(scope="module")
def golden() -> AttentionNorms:
    return golden_norms()


@needs_golden
def test_llama_2_layer_9_shows_the_published_concentration(golden: AttentionNorms) -> None:
    got = concentration(golden, config=QUICK)
    assert [int(got.of(p).massive.sum()) for p in ("q", "k", "v")] == [48, 46, 0]
    for name, median, largest in (("q", 8.44, 10.75), ("k", 8.74, 10.56), ("v", 1.97, 3.79)):
        ratios = got.of(name).max_over_mean
        assert float(ratios.quantile(0.5)) == pytest.approx(median, abs=0.005)
        assert float(ratios.max()) == pytest.approx(largest, abs=0.005)


@needs_golden
def test_llama_2_layer_9_has_its_top_dimensions_in_the_published_pairs(
    golden: AttentionNorms,
) -> None:
    pair_of_dim = golden.geometry.layers[0].rotary.pair_of_dim
    for name, middle, low, high in (("q", 52, 50, 63), ("k", 51, 49, 59)):
        pairs = pair_of_dim[top_k_mask(getattr(golden, name)).nonzero()[:, 2]]
        assert (pairs.median(), pairs.min(), pairs.max()) == (middle, low, high)


@needs_golden
def test_llama_2_layer_9_top_dimensions_are_nearly_constant_offsets(golden: AttentionNorms) -> None:
    for name, expected in (("q", 0.98), ("k", 0.97), ("v", 0.72)):
        top = top_k_mask(getattr(golden, name))
        median = golden.mean_over_rms(name)[top].quantile(0.5)
        assert float(median) == pytest.approx(expected, abs=0.005)


@needs_golden
def test_llama_2_layer_9_heads_agree_in_q_and_k_and_not_in_v(golden: AttentionNorms) -> None:
    got = concentration(golden, config=QUICK)
    assert float(got.q.layer_overlap[0]) == pytest.approx(0.83, abs=0.01)
    assert float(got.k.layer_overlap[0]) == pytest.approx(0.90, abs=0.01)
    assert abs(float(got.v.layer_overlap[0])) < 0.1
    assert got.q.layer_p_values[0] < 0.01 < got.v.layer_p_values[0]


def test_the_largest_dimension_is_described_over_tokens() -> None:
    # Dimension 2 is 3 on both tokens of one prompt, and -3 on the first of another.
    rows = [[[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]], [[1.0, 0.0, -3.0], [1.0, 1.0, 3.0]]]
    tokens = torch.tensor(rows)[:, :, None, None]  # prompt pos layer head d_head
    norms = build_norms(tokens, tokens, tokens)
    share, offset = norms.q_sums.first_share(), norms.mean_over_rms("q")
    found = top_statistics(norms.q, share, offset)
    assert float(found["top_first_share"]) == pytest.approx(0.5)
    assert float(found["top_mean_over_rms"]) == pytest.approx(0.5)  # (3 + 3 - 3 + 3) / 4 / 3
    result = concentration(norms)
    assert torch.equal(result.q.top_first_share, found["top_first_share"])
    assert torch.equal(result.q.top_mean_over_rms, found["top_mean_over_rms"])
