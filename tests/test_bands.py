"""Frequency profiles: planted pairs are found, shares equal their definition, nulls are honest."""

import math
from dataclasses import replace

import pytest
import torch
from builders import build_geometry, build_norms
from reference import energy_shares, golden_norms, low_half, needs_golden, permuted_p
from torch import Tensor

from mi_massive._band_tests import counted_share
from mi_massive._pairs import permuted_traces
from mi_massive.bands import BandsConfig, bands
from mi_massive.norms import AttentionNorms
from mi_massive.records import load_result, save_result
from mi_massive.rope import LayerGeometry, ModelGeometry, rotate

QUICK = BandsConfig(n_bands=4, n_resamples=199, ratio=3.0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(
    q_dims: list[list[list[int]]],
    k_dims: list[list[list[int]]],
    geometry: ModelGeometry,
    *,
    n_prompts: int = 3,
    size: float = 40.0,
) -> AttentionNorms:
    """Noise, with a large constant at the given dimensions of each [layer][head] of q and of k."""
    d_head = geometry.layers[0].d_head
    states = []
    for seed, dims in enumerate((q_dims, k_dims)):
        activations = noise(n_prompts, 12, len(dims), len(dims[0]), d_head, seed=seed)
        for layer, heads in enumerate(dims):
            for head, large in enumerate(heads):
                activations[:, :, layer, head, large] = size
        states.append(activations)
    v = noise(*states[1].shape, seed=2)
    return build_norms(*states, v, geometry=geometry)


def test_a_planted_pair_is_found_with_its_band_and_wavelength() -> None:
    geometry = build_geometry(2, 2, 32)
    dims = [[[13], [29]], [[13, 29], [12]]]
    result = bands(planted(dims, dims, geometry), config=QUICK)
    assert result.q.top_pair.tolist() == [[13, 13], [13, 12]]
    assert result.q.massive_share[0].nonzero().tolist() == [[13]]
    assert result.q.massive_share[1, [12, 13]].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert result.q.band_energy.argmax(dim=-1).tolist() == [3, 3]
    assert result.q.massive_low_half_share.effect == 1
    assert result.q.centre_of_mass[0, 0] == pytest.approx(
        math.log10(2 * math.pi * 1e4 ** (13 / 16)), abs=0.2
    )
    assert torch.isnan(result.v.massive_share).all()


def test_shares_equal_their_plain_definition() -> None:
    for layout in ("half_split", "interleaved"):
        geometry = build_geometry(1, 2, 12, n_pairs=5, layout=layout)
        norms = build_norms(*noise(3, 2, 6, 1, 2, 12), geometry=geometry)
        result = bands(norms, config=QUICK)
        assert geometry.layers[0].rotary is not None
        logs = geometry.layers[0].rotary.wavelengths.log10().tolist()
        for head in range(2):
            shares = energy_shares(norms.q[0, head].tolist(), 5, layout)
            assert result.q.energy_share[0, head].tolist() == pytest.approx(shares, abs=1e-6)
            centre = sum(share * log for share, log in zip(shares, logs, strict=True))
            assert result.q.centre_of_mass[0, head].item() == pytest.approx(centre, abs=1e-5)
        by_band = result.q.energy_share.mean(dim=1)[0].tolist()
        expected = [by_band[0] + by_band[1], *by_band[2:]]
        assert result.q.band_energy[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_pairs", [1, 4, 5])
def test_the_low_half_share_is_a_mean_over_heads_then_prompts(n_pairs: int) -> None:
    geometry = build_geometry(2, 3, 2 * n_pairs)
    norms = build_norms(*noise(3, 4, 6, 2, 3, 2 * n_pairs), geometry=geometry)
    result = bands(norms, config=replace(QUICK, n_bands=1))
    by_prompt = [
        low_half(energy_shares(head, n_pairs, "half_split"))
        for prompt in norms.q_sums.norms().tolist()
        for layer in prompt
        for head in layer
    ]
    assert result.q.low_half_share.effect == pytest.approx(sum(by_prompt) / len(by_prompt))
    assert result.q.low_half_share.n == 4
    assert result.q.low_half_share.null == 0.5


def test_scale_changes_nothing() -> None:
    states = noise(3, 2, 6, 2, 2, 16)
    geometry = build_geometry(2, 2, 16)
    once = bands(build_norms(*states, geometry=geometry), config=QUICK)
    scaled = bands(build_norms(*(1000 * states), geometry=geometry), config=QUICK)
    torch.testing.assert_close(once.q.energy_share, scaled.q.energy_share)
    assert once.q.low_half_share.effect == pytest.approx(scaled.q.low_half_share.effect)
    assert once.q.low_half_share.p_value == scaled.q.low_half_share.p_value


def test_permuted_heads_give_permuted_profiles_and_the_same_estimates() -> None:
    geometry = build_geometry(2, 3, 16)
    dims = [[[7], [15], [2]], [[6], [14], [7]]]
    norms = planted(dims, dims, geometry)
    order = [2, 0, 1]
    turned = [[heads[i] for i in order] for heads in dims]
    permuted = planted(turned, turned, geometry)
    once, again = bands(norms, config=QUICK), bands(permuted, config=QUICK)
    assert torch.equal(again.q.top_pair, once.q.top_pair[:, order])
    assert torch.equal(again.q.massive_share, once.q.massive_share)
    assert again.partial_cycle == once.partial_cycle
    assert again.q_k_same_pair.effect == once.q_k_same_pair.effect


def test_undoing_the_rotation_keeps_the_energy_of_every_pair() -> None:
    geometry = build_geometry(2, 2, 16)
    result = bands(build_norms(*noise(3, 3, 40, 2, 2, 16), geometry=geometry), config=QUICK)
    torch.testing.assert_close(result.q.energy_share, result.q_unrotated.energy_share)
    torch.testing.assert_close(result.k.band_energy, result.k_unrotated.band_energy)


def test_shifted_positions_change_no_energy_share() -> None:
    geometry = build_geometry(1, 2, 16)
    rotary = geometry.layers[0].rotary
    assert rotary is not None
    states = noise(3, 1, 6, 1, 2, 16)
    by_head = states.movedim(2, -2)
    shifted = rotate(by_head, torch.full((6,), 31), rotary).movedim(-2, 2)
    once = bands(build_norms(*states, geometry=geometry), config=QUICK)
    later = bands(build_norms(*shifted, geometry=geometry), config=QUICK)
    torch.testing.assert_close(once.q.energy_share, later.q.energy_share)


def test_a_low_frequency_plant_is_significant_and_noise_is_not() -> None:
    geometry = build_geometry(10, 2, 32)
    dims = [[[8 + layer % 8], [24 + layer % 8]] for layer in range(10)]
    result = bands(planted(dims, dims, geometry), config=QUICK)
    for part in (result.q, result.k_unrotated):
        assert part.low_half_share.p_value == part.massive_low_half_share.p_value == 1 / 200
        assert part.low_half_share.low > 0.9
    assert result.v.low_half_share.effect == pytest.approx(0.5, abs=0.03)
    assert result.v.low_half_share.p_value > 0.05


def test_heads_of_one_layer_are_no_independent_evidence() -> None:
    """One pair of 16 shared by 50 heads is one chance event, not fifty."""
    geometry = build_geometry(1, 50, 32)
    dims = [[[8]] * 50]
    share = bands(planted(dims, dims, geometry, n_prompts=1)).q.massive_low_half_share
    assert share.effect == 1
    assert 0.4 < share.p_value < 0.6


def test_layers_that_prefer_the_same_pair_are_no_independent_evidence() -> None:
    """One pair of 16 shared by 30 layers is one chance event, not thirty."""
    dims = [[[8], [8]]] * 30
    result = bands(planted(dims, dims, build_geometry(30, 2, 32), n_prompts=2))
    assert 0.4 < result.q.massive_low_half_share.p_value < 0.6
    for share in (result.q.massive_low_half_share, result.q.low_half_share):
        assert share.effect > 0.9
        assert share.p_value > 0.05
        assert share.test.endswith("; pairs permuted, alike in all layers")


def test_the_p_of_massive_dimensions_equals_that_over_all_permutations() -> None:
    counts = [[0, 1, 0, 0, 2, 1], [0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 2]]
    slow = [0.0, 0, 0, 1, 1, 1]
    tables = [[[count * weight for weight in slow] for count in row] for row in counts]
    share = counted_share(
        [torch.tensor(row).double() for row in counts],
        [torch.tensor(slow).double()] * 3,
        replace(QUICK, n_resamples=6000),
    )
    assert share.effect == 7 / 9
    assert share.null == 0.5
    assert share.p_value == pytest.approx(permuted_p(tables), abs=0.02)


def test_tables_of_one_size_are_permuted_alike_and_others_by_themselves() -> None:
    eye, other = torch.eye(3).double().numpy(), torch.eye(2).double().numpy()
    config = BandsConfig(n_resamples=6000)
    draws, expected = permuted_traces([eye, eye, 10 * other], config=config)
    assert expected == pytest.approx(1 + 1 + 10)
    assert set(draws % 10) == {0, 2, 6}  # twice 0, 1 or 3 fixed points
    for of_two in (0, 20):
        assert (draws == 6 + of_two).mean() == pytest.approx(1 / 6 / 2, abs=0.02)
    by_itself, expected = permuted_traces([eye, eye], config=config, alike=False)
    assert expected == pytest.approx(2)
    assert (by_itself == 6).mean() == pytest.approx(1 / 36, abs=0.01)


def test_permuted_traces_follow_the_exact_distribution() -> None:
    table = torch.tensor([[4.0, 0, 1], [0, 2, 0], [3, 0, 1]]).double().numpy()
    draws, expected = permuted_traces([table], config=BandsConfig(n_resamples=6000))
    exact = [4 + 2 + 1, 4 + 0 + 0, 0 + 0 + 1, 0 + 0 + 3, 1 + 0 + 0, 1 + 2 + 3]
    assert expected == pytest.approx(sum(exact) / 6)
    for value in set(exact):
        assert (draws == value).mean() == pytest.approx(exact.count(value) / 6, abs=0.03)


def test_partial_cycles_are_counted_against_each_layers_own_wavelengths() -> None:
    fast, slow = build_geometry(1, 1, 32, theta=100), build_geometry(1, 1, 32, theta=1e6)
    layers = (fast.layers[0], replace(slow.layers[0], block=1))
    geometry = ModelGeometry(layers=layers, training_context=1000)
    dims = [[[12]], [[12]]]
    result = bands(planted(dims, dims, geometry), config=QUICK)
    full_turns = [
        [1000 * theta ** -(p / 16) / (2 * math.pi) for p in range(16)] for theta in (100, 1e6)
    ]
    assert [turns[12] < 1 for turns in full_turns] == [False, True]
    partial = [sum(t < 1 for t in turns) / 16 for turns in full_turns]
    assert result.partial_cycle.effect == 0.5
    assert result.partial_cycle.null == pytest.approx(sum(partial) / 2)
    assert result.partial_cycle.n == 2
    assert result.wavelengths[0, 15] < result.wavelengths[1, 15]


def test_without_a_training_context_partial_cycles_are_not_tested() -> None:
    geometry = build_geometry(1, 1, 16, training_context=None)
    norms = planted([[[7]]], [[[7]]], geometry)
    share = bands(norms, config=QUICK).partial_cycle
    assert math.isnan(share.effect)
    assert math.isnan(share.p_value)
    assert share.test == "not tested: the model states no training context"
    stated = bands(norms, geometry=replace(geometry, training_context=10_000), config=QUICK)
    assert stated.partial_cycle.null == pytest.approx(1 / 8)
    assert stated.training_context == 10_000


def test_query_heads_are_compared_with_their_own_key_value_head() -> None:
    geometry = build_geometry(4, 6, 32, n_key_value_heads=3)
    q_dims = [[[2], [18], [5], [21], [9], [25]]] * 4
    own = bands(planted(q_dims, [[[18], [5], [25]]] * 4, geometry), config=QUICK).q_k_same_pair
    assert own.effect == 1
    assert own.null == pytest.approx(1 / 3)
    assert own.p_value == pytest.approx(1 / 200)
    other = bands(planted(q_dims, [[[5], [9], [2]]] * 4, geometry), config=QUICK).q_k_same_pair
    assert other.effect == 0
    assert other.p_value > 0.5


def test_a_match_that_all_heads_of_a_layer_share_is_no_evidence_for_the_head() -> None:
    geometry = build_geometry(3, 2, 16)
    dims = [[[7], [15]]] * 3
    share = bands(planted(dims, dims, geometry), config=QUICK).q_k_same_pair
    assert share.effect == share.null == 1
    assert share.p_value == 1


def test_one_key_value_head_leaves_nothing_to_permute() -> None:
    geometry = build_geometry(2, 2, 16, n_key_value_heads=1)
    share = bands(planted([[[7], [6]]] * 2, [[[7]]] * 2, geometry), config=QUICK).q_k_same_pair
    assert share.effect == 0.5
    assert math.isnan(share.p_value)
    assert math.isnan(share.null)


def test_unrotated_dimensions_take_no_part() -> None:
    geometry = build_geometry(1, 1, 24, n_pairs=8)
    norms = planted([[[20]]], [[[7]]], geometry)
    result = bands(norms, config=QUICK)
    torch.testing.assert_close(result.q.energy_share.sum(dim=-1), torch.ones(1, 1))
    assert result.q.energy_share.max() < 0.3
    assert torch.isnan(result.q.top_pair).all()
    assert torch.isnan(result.q.massive_share).all()
    assert result.q.massive_low_half_share.n == 0
    assert result.k.top_pair.tolist() == [[7]]
    assert math.isnan(result.q_k_same_pair.effect)
    assert result.massive_unrotated_share.effect == 0.5


def test_massive_dimensions_that_do_not_rotate_are_counted() -> None:
    geometry = build_geometry(2, 2, 24, n_pairs=8)  # dimensions 16 to 23 do not rotate
    norms = planted([[[20], [7, 21]], [[18], [23]]], [[[7], [15]], [[16], []]], geometry)
    share = bands(norms, config=QUICK).massive_unrotated_share
    assert share.effect == (2 + 3) / (5 + 3)
    assert (share.n, share.n_of) == (2, "layers")
    assert math.isnan(share.p_value)
    full = planted([[[7], [15]]], [[[7], [3]]], build_geometry(1, 2, 24))
    assert bands(full, config=QUICK).massive_unrotated_share.effect == 0


def test_layers_without_rotation_are_left_out_by_name() -> None:
    first, _, third = build_geometry(3, 1, 16, blocks=(1, 4, 7)).layers
    still = LayerGeometry(block=4, n_heads=1, n_key_value_heads=1, d_head=16, rotary=None)
    geometry = ModelGeometry(layers=(first, still, third), training_context=2048)
    norms = planted([[[7]], [[1]], [[6]]], [[[7]], [[1]], [[6]]], geometry)
    result = bands(norms, config=QUICK)
    assert result.layers == (1, 7)
    assert result.skipped_layers == (4,)
    assert result.q.top_pair.tolist() == [[7], [6]]
    assert sorted(result.to_frame()["layer"].unique()) == [1, 7]


def test_layers_with_fewer_pairs_are_padded_with_nan() -> None:
    wide, narrow = build_geometry(1, 1, 16), build_geometry(1, 1, 16, n_pairs=4)
    layers = (wide.layers[0], replace(narrow.layers[0], block=1))
    geometry = ModelGeometry(layers=layers, training_context=2048)
    result = bands(build_norms(*noise(3, 2, 6, 2, 1, 16), geometry=geometry), config=QUICK)
    assert torch.isnan(result.q.energy_share[1, 0, 4:]).all()
    assert torch.isnan(result.wavelengths[1, 4:]).all()
    torch.testing.assert_close(result.q.energy_share.nansum(dim=-1), torch.ones(2, 1))
    torch.testing.assert_close(result.q.band_energy.sum(dim=-1), torch.ones(2))
    frame = result.to_frame()
    assert frame.groupby("layer")["band"].max().tolist() == [3, 3]
    assert (frame["layer"] == 1).sum() == 5 * 4


def test_a_head_without_energy_is_nan_and_is_left_out_of_means() -> None:
    geometry = build_geometry(1, 2, 16)
    states = noise(3, 2, 6, 1, 2, 16)
    states[0, :, :, :, 1] = 0
    result = bands(build_norms(*states, geometry=geometry), config=QUICK)
    alone = bands(
        build_norms(*states[:, :, :, :, :1], geometry=build_geometry(1, 1, 16)), config=QUICK
    )
    assert torch.isnan(result.q.energy_share[0, 1]).all()
    assert torch.isnan(result.q.top_pair[0, 1])
    assert torch.isnan(result.q.centre_of_mass[0, 1])
    assert result.q.low_half_share.effect == pytest.approx(alone.q.low_half_share.effect)
    torch.testing.assert_close(result.q.band_energy, alone.q.band_energy)


def test_silence_is_undefined_throughout() -> None:
    geometry = build_geometry(2, 1, 16)
    result = bands(build_norms(*torch.zeros(3, 2, 4, 2, 1, 16), geometry=geometry), config=QUICK)
    for share in (
        result.q.low_half_share,
        result.q.massive_low_half_share,
        result.partial_cycle,
        result.massive_unrotated_share,
        result.q_k_same_pair,
    ):
        assert math.isnan(share.effect)
        assert math.isnan(share.p_value)
        assert share.n == 0


def test_one_prompt_and_one_layer_have_no_interval() -> None:
    geometry = build_geometry(1, 2, 16)
    result = bands(planted([[[7], [6]]], [[[7], [6]]], geometry, n_prompts=1), config=QUICK)
    for share in (result.q.low_half_share, result.q.massive_low_half_share):
        assert share.n == 1
        assert share.effect > 0.9
        assert math.isnan(share.low)
        assert math.isnan(share.high)


def test_a_frequency_of_zero_has_no_place_in_the_centre_of_mass() -> None:
    (layer,) = build_geometry(1, 1, 8).layers
    assert layer.rotary is not None
    inv_freq = torch.tensor([1.0, 0.1, 0.01, 0.0], dtype=torch.float64)
    layer = replace(layer, rotary=replace(layer.rotary, inv_freq=inv_freq))
    geometry = ModelGeometry(layers=(layer,), training_context=100)
    states = torch.zeros(3, 1, 4, 1, 1, 8)
    states[..., [1, 3]] = 5.0
    result = bands(build_norms(*states, geometry=geometry), config=replace(QUICK, n_bands=2))
    assert result.q.centre_of_mass.item() == pytest.approx(math.log10(20 * math.pi))
    assert result.wavelengths[0, 3] == math.inf


def test_the_frame_holds_every_pair_once() -> None:
    geometry = build_geometry(2, 4, 16, n_key_value_heads=2, blocks=(3, 5))
    states = noise(3, 2, 6, 2, 4, 16)
    norms = build_norms(
        states[0], states[1][:, :, :, :2], states[2][:, :, :, :2], geometry=geometry
    )
    result = bands(norms, config=QUICK)
    frame = result.to_frame()
    keys = ["projection", "stage", "layer", "head"]
    assert len(frame) == 2 * 8 * (2 * 4 + 3 * 2)
    assert not frame.duplicated([*keys, "pair"]).any()
    assert frame.groupby(keys)["energy_share"].sum().to_numpy() == pytest.approx(1.0)
    row = frame.query("projection == 'k' and stage == 'attention' and layer == 5 and head == 1")
    assert row["energy_share"].to_numpy() == pytest.approx(result.k.energy_share[1, 1].numpy())
    assert row["wavelength"].to_numpy() == pytest.approx(result.wavelengths[1].numpy())
    assert row["band"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_saved_result_is_read_back(tmp_path) -> None:
    result = bands(
        build_norms(*noise(3, 2, 6, 1, 2, 16), geometry=build_geometry(1, 2, 16)), config=QUICK
    )
    again = load_result(save_result(result, tmp_path / "bands.json"))
    torch.testing.assert_close(again.q.energy_share, result.q.energy_share)
    assert again.q.low_half_share == result.q.low_half_share
    assert again.config == QUICK


def test_a_model_without_rotation_is_refused() -> None:
    norms = build_norms(*noise(3, 1, 4, 2, 1, 8))
    message = "geometry must have a layer that rotates .* use `concentration` for this model"
    with pytest.raises(ValueError, match=message):
        bands(norms)


def test_more_bands_than_pairs_are_refused() -> None:
    norms = build_norms(*noise(3, 1, 4, 1, 1, 8), geometry=build_geometry(1, 1, 8))
    message = r"n_bands must be between 1 and 4 \(rotary pairs of a head\), got 8"
    with pytest.raises(ValueError, match=message):
        bands(norms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.0}, "ratio must be finite and positive, got 0.0"),
        ({"level": 1.0}, "level must be between 0 and 1, got 1.0; 0.95 is usual"),
        ({"n_resamples": 0}, r"n_resamples must be between 1 and 1000000 \(resamples\), got 0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BandsConfig(**changes)


@needs_golden
def test_llama_2_layer_9_peaks_in_slow_pairs_and_values_do_not() -> None:
    result = bands(golden_norms())
    assert result.layers == (9,)
    for part, median, low, high in ((result.q, 52, 50, 63), (result.k, 51, 49, 59)):
        assert part.top_pair.median() == median
        assert (part.top_pair.min(), part.top_pair.max()) == (low, high)
        assert part.massive_low_half_share.effect == 1
        assert part.low_half_share.effect == pytest.approx(0.80, abs=0.005)
        assert part.low_half_share.p_value < 0.001
    assert result.v.low_half_share.effect == pytest.approx(0.504, abs=0.001)
    assert result.v.low_half_share.p_value > 0.05


@needs_golden
def test_llama_2_layer_9_agrees_between_queries_and_keys_and_with_partial_cycles() -> None:
    result = bands(golden_norms())
    assert result.q_k_same_pair.effect == 25 / 32  # the 78 % of science.md
    assert result.q_k_same_pair.null == pytest.approx(0.154, abs=0.001)
    assert result.q_k_same_pair.p_value < 0.001
    assert result.partial_cycle.effect == 90 / 94
    assert result.partial_cycle.null == 18 / 64
    assert result.partial_cycle.p_value < 0.001
