"""Rotary partners: planted clusters are counted, nulls are honest, phases are recovered."""

import math
from dataclasses import replace

import pytest
import torch
from builders import build_geometry, build_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    clusters,
    golden_norms,
    members,
    needs_golden,
    permuted_p,
    phase_offset,
    shifted_p,
    spearman,
    two_mirror_clusters,
)
from torch import Tensor

from mi_massive._clusters import find_clusters, mirrored_by_shift
from mi_massive._partner_tests import table_share
from mi_massive._phase_offsets import lead_share, median_magnitude, wrapped
from mi_massive.norms import AttentionNorms
from mi_massive.records import load_result, save_result
from mi_massive.rope import LayerGeometry, ModelGeometry, rotate
from mi_massive.symmetry import ProjectionSymmetry, SymmetryConfig, symmetry

QUICK = SymmetryConfig(n_resamples=199, ratio=3.0)

unhurried = settings(deadline=None, max_examples=60)  # the first call compiles the type checks


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(
    dims: list[list[list[int]]], geometry: ModelGeometry, *, size: float = 40.0
) -> AttentionNorms:
    """Noise, with a large constant at the given dimensions of each [layer][head] of q and k."""
    states = noise(3, 2, 12, len(dims), len(dims[0]), geometry.layers[0].d_head)
    for layer, heads in enumerate(dims):
        for head, large in enumerate(heads):
            states[:2, :, :, layer, head, large] = size
    return build_norms(*states, geometry=geometry)


def build_offsets(geometry: ModelGeometry, offset: float, *, size: float = 30.0) -> AttentionNorms:
    """Small noise; in pair 5 of every head q leads k by `offset` rad, on every token."""
    n_layers, n_heads = len(geometry.layers), geometry.layers[0].n_heads
    rotary = geometry.layers[0].rotary
    assert rotary is not None
    q, k, v = noise(3, 2, 12, n_layers, n_heads, rotary.d_head) * 0.01
    lead = noise(n_layers, n_heads) * 3
    for states, phase in ((q, lead + offset), (k, lead)):
        first, second = rotary.pair_dims[5].tolist()
        states[..., first] += size * phase.cos()
        states[..., second] += size * phase.sin()
    q, k = (
        rotate(states.movedim(1, -2), torch.arange(12), rotary).movedim(-2, 1) for states in (q, k)
    )
    return build_norms(q, k, v, geometry=geometry)


def test_a_planted_mirror_pair_is_found_exactly() -> None:
    geometry = build_geometry(1, 4, 64)
    dims = [[[26, 27, 58, 59], [26, 58, 60], [26], []]]
    result = symmetry(planted(dims, geometry), config=QUICK).q
    assert result.n_clusters.tolist() == [[2, 2, 1, 0]]
    assert result.mirrored[0, :3].tolist() == [1, 1, 0]
    assert torch.isnan(result.mirrored[0, 3])
    assert result.separation[0, :2].tolist() == [32, 33]
    assert torch.isnan(result.separation[0, 2:]).all()
    assert result.two_mirror_share.effect == pytest.approx(2 / 3)
    assert result.massive_partner_share.effect == pytest.approx(6 / 8)


def test_two_clusters_in_one_half_do_not_mirror() -> None:
    result = symmetry(planted([[[3, 26], [20, 58]]], build_geometry(1, 2, 64)), config=QUICK).k
    assert result.n_clusters.tolist() == [[2, 2]]
    assert result.mirrored.tolist() == [[0, 0]]
    assert result.separation.tolist() == [[23, 38]]


def test_interleaved_partners_are_neighbours_and_clusters_run_over_pairs() -> None:
    geometry = build_geometry(1, 2, 64, layout="interleaved")
    dims = [[[52, 53, 54, 55], [52, 54]]]  # both members of pairs 26 and 27; first members alone
    result = symmetry(planted(dims, geometry), config=QUICK)
    assert result.layout == "interleaved"
    assert result.q.n_clusters.tolist() == [[2, 1]]
    assert result.q.mirrored.tolist() == [[1, 0]]
    assert result.q.separation[0, 0] == 32
    assert result.q.massive_partner_share.effect == pytest.approx(4 / 6)


def test_layouts_give_the_same_result_for_permuted_dimensions() -> None:
    half = build_geometry(2, 3, 20, n_pairs=8)
    inter = build_geometry(2, 3, 20, n_pairs=8, layout="interleaved")
    assert half.layers[0].rotary is not None
    assert inter.layers[0].rotary is not None
    states = noise(3, 2, 9, 2, 3, 20)
    permuted = torch.empty_like(states)
    permuted[..., inter.layers[0].rotary.half_order] = states[..., half.layers[0].rotary.half_order]
    one = symmetry(build_norms(*states, geometry=half), config=QUICK)
    two = symmetry(build_norms(*permuted, geometry=inter), config=QUICK)
    torch.testing.assert_close(one.q.partner_correlation, two.q.partner_correlation)
    torch.testing.assert_close(one.phase_offset, two.phase_offset, atol=1e-4, rtol=0)
    assert one.k.partner_agreement.p_value == two.k.partner_agreement.p_value


@unhurried
@given(st.sets(st.integers(0, 19)), st.integers(1, 4))
def test_clusters_match_the_plain_definition(massive: set[int], max_gap: int) -> None:
    mask = torch.zeros(20, dtype=torch.bool)
    mask[list(massive)] = True
    found = find_clusters(mask, n_pairs=8, max_gap=max_gap)
    plain = clusters(list(massive), max_gap)
    assert found.count == len(plain)
    if not massive:
        assert math.isnan(found.mirrored)
    else:
        assert found.mirrored == two_mirror_clusters(list(massive), 8, max_gap)
    if len(plain) == 2:
        centres = [sum(group) / len(group) for group in plain]
        assert found.separation.item() == pytest.approx(centres[1] - centres[0])
    else:
        assert math.isnan(found.separation)


@unhurried
@given(st.lists(st.sets(st.integers(0, 13)), min_size=1, max_size=4))
def test_shifted_mirrors_match_the_plain_definition(heads: list[set[int]]) -> None:
    mask = torch.zeros(len(heads), 14, dtype=torch.bool)
    for head, massive in enumerate(heads):
        mask[head, list(massive)] = True
    found = mirrored_by_shift(mask, n_pairs=6, max_gap=1)
    for shift in range(6):
        moved = [
            [d if d < 6 or d >= 12 else 6 + (d - 6 - shift) % 6 for d in massive]
            for massive in heads
        ]
        assert found[shift] == sum(two_mirror_clusters(dims, 6, 1) for dims in moved)


@pytest.mark.parametrize("layout", ["half_split", "interleaved"])
def test_partner_correlation_is_spearmans(layout: str) -> None:
    geometry = build_geometry(1, 3, 14, n_pairs=6, layout=layout)
    norms = build_norms(*noise(3, 2, 6, 1, 3, 14), geometry=geometry)
    result = symmetry(norms, config=QUICK)
    for part, pooled in ((result.q, norms.q), (result.v, norms.v)):
        expected = []
        for head in pooled[0].tolist():
            pairs = [members(pair, 6, layout) for pair in range(6)]
            expected.append(spearman([head[a] for a, _ in pairs], [head[b] for _, b in pairs]))
        assert part.partner_correlation[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert part.partner_agreement.effect == pytest.approx(sum(expected) / 3)
        assert part.partner_agreement.null == pytest.approx(0, abs=1e-12)


def test_tied_norms_share_their_rank() -> None:
    states = torch.ones(3, 1, 1, 1, 1, 8) * torch.tensor([1, 1, 2, 3, 1, 2, 2, 3.0])
    result = symmetry(build_norms(*states, geometry=build_geometry(1, 1, 8)), config=QUICK)
    expected = spearman([1, 1, 2, 3], [1, 2, 2, 3])
    assert result.v.partner_correlation.item() == pytest.approx(expected)


def test_scale_changes_nothing() -> None:
    states, geometry = noise(3, 2, 6, 2, 2, 16), build_geometry(2, 2, 16)
    once = symmetry(build_norms(*states, geometry=geometry), config=QUICK)
    scaled = symmetry(build_norms(*(500 * states), geometry=geometry), config=QUICK)
    torch.testing.assert_close(once.q.partner_correlation, scaled.q.partner_correlation)
    torch.testing.assert_close(once.phase_offset, scaled.phase_offset)
    assert once.q.layer_agreement.effect == pytest.approx(scaled.q.layer_agreement.effect)


def test_permuted_heads_give_permuted_heads_and_the_same_estimates() -> None:
    states, geometry, order = noise(3, 2, 6, 2, 3, 16), build_geometry(2, 3, 16), [2, 0, 1]
    once = symmetry(build_norms(*states, geometry=geometry), config=QUICK)
    again = symmetry(build_norms(*states[..., order, :], geometry=geometry), config=QUICK)
    assert torch.equal(again.q.partner_correlation, once.q.partner_correlation[:, order])
    assert torch.equal(again.phase_offset, once.phase_offset[:, order])
    assert again.q.partner_agreement.p_value == once.q.partner_agreement.p_value
    assert again.q.layer_agreement.effect == pytest.approx(once.q.layer_agreement.effect)
    median = once.phase_offset_magnitude
    assert again.phase_offset_magnitude.effect == pytest.approx(median.effect)


def test_rotation_alone_makes_partners_alike_and_undoing_it_shows_that() -> None:
    """Energy in first members only; fast pairs spread it over both members once rotated."""
    geometry = build_geometry(4, 1, 64, theta=10.0)  # every pair makes several turns in 128 tokens
    rotary = geometry.layers[0].rotary
    assert rotary is not None
    sizes = torch.cat(
        [10 * torch.rand(32, generator=torch.Generator().manual_seed(0)), 0.1 * torch.ones(32)]
    )
    states = noise(3, 2, 128, 4, 1, 64) * sizes
    turned = rotate(states.movedim(2, -2), torch.arange(128), rotary).movedim(-2, 2)
    result = symmetry(build_norms(*turned, geometry=geometry), config=QUICK)
    assert result.q.partner_agreement.effect > 0.9
    assert result.q.partner_agreement.p_value < 0.01
    assert abs(result.q_unrotated.partner_agreement.effect) < 0.3


def test_noise_is_not_significant() -> None:
    norms = build_norms(*noise(3, 4, 8, 5, 2, 32), geometry=build_geometry(5, 2, 32))
    result = symmetry(norms, config=QUICK)
    for part in (result.q, result.k, result.v):
        for share in (part.partner_agreement, part.smooth_null_agreement, part.layer_agreement):
            assert share.p_value > 0.02
            assert share.n == 5


def smooth_profiles(n_layers: int, *, shift: int) -> Tensor:
    """Smooth bumps in both halves of 32 pairs, that of the second `shift` pairs on, by layer."""
    pairs, generator = torch.arange(32), torch.Generator().manual_seed(1)
    centres = torch.randint(0, 32, (n_layers, 1), generator=generator)
    first = 1 + 5 * (2 * math.pi * (pairs - centres) / 32).cos().exp()
    return torch.cat([first, first.roll(shift, dims=-1)], dim=-1)[:, None]


def test_the_smooth_null_is_stricter_than_the_permuted_one_for_smooth_profiles() -> None:
    profiles = smooth_profiles(1, shift=4)
    states = profiles * torch.ones(3, 2, 1, 1, 1, 64)
    result = symmetry(build_norms(*states, geometry=build_geometry(1, 1, 64)), config=QUICK).v
    assert result.partner_agreement.effect == result.smooth_null_agreement.effect
    assert result.partner_agreement.p_value == 1 / 200
    assert result.smooth_null_agreement.p_value > 0.1


def test_aligned_smooth_profiles_pass_the_smooth_null() -> None:
    states = smooth_profiles(4, shift=0) * torch.ones(3, 2, 1, 1, 1, 64)
    norms = build_norms(*states, geometry=build_geometry(4, 1, 64))
    result = symmetry(norms, config=replace(QUICK, n_resamples=2000)).v
    for share in (result.smooth_null_agreement, result.layer_agreement):
        assert share.p_value == pytest.approx(1 / 32, abs=0.01)  # one of 32 shifts, in all layers
    assert result.layer_agreement.effect == pytest.approx(1)


def test_halves_can_mirror_across_a_layer_where_no_single_head_does() -> None:
    """Each head large in one half only: the heat map shows two clusters, no head has them."""
    dims = [[[24 + head % 3 + 32 * (head // 3)] for head in range(6)]] * 3
    result = symmetry(planted(dims, build_geometry(3, 6, 64)), config=QUICK).q
    assert result.two_mirror_share.effect == 0
    assert result.massive_partner_share.effect == 0
    assert (result.n_clusters == 1).all()
    flat = symmetry(planted([[[]] * 6] * 3, build_geometry(3, 6, 64)), config=QUICK).q
    assert result.layer_agreement.effect > flat.layer_agreement.effect + 0.1


def test_a_table_share_follows_its_definition() -> None:
    tables = [torch.eye(4) * 2, torch.ones(4, 4)]
    share = table_share(tables, torch.tensor([16, 4]), null="permuted", config=QUICK)
    assert share.effect == (8 + 4) / 20
    assert share.null == pytest.approx((2 + 4) / 20)
    assert share.test == "bootstrap over layers (BCa); partners permuted, alike in all layers"
    shifted = table_share(tables, torch.tensor([16, 4]), null="shifted", config=QUICK)
    assert shifted.null == share.null
    assert shifted.p_value == pytest.approx(1 / 4, abs=0.1)
    assert shifted.test == (
        "bootstrap over layers (BCa); partners shifted circularly, alike in all layers "
        "(p at least about 1 / pairs)"
    )


def test_p_values_equal_those_over_all_moves_of_all_layers_alike() -> None:
    tables = [noise(5, 5, seed=layer) + 0.5 * torch.eye(5) for layer in range(3)]
    plain = [table.tolist() for table in tables]
    config, wholes = replace(QUICK, n_resamples=6000), torch.ones(3)
    permuted = table_share(tables, wholes, null="permuted", config=config)
    assert permuted.p_value == pytest.approx(permuted_p(plain), abs=0.02)
    shifted = table_share(tables, wholes, null="shifted", config=config)
    assert shifted.p_value == pytest.approx(shifted_p(plain), abs=0.02)


def test_many_layers_cannot_pass_the_floor_of_the_shifts() -> None:
    """Two mirror clusters at the same pair in 30 layers of 16 pairs: one of 16 shifts does it."""
    norms = planted([[[8, 24]]] * 30, build_geometry(30, 1, 32))
    share = symmetry(norms, config=replace(QUICK, n_resamples=2000)).q.two_mirror_share
    assert share.effect == 1
    assert share.p_value == pytest.approx(1 / 16, abs=0.02)


@pytest.mark.parametrize("degrees", [-150, -90, 20, 113, 180])
def test_a_planted_phase_offset_is_recovered(degrees: int) -> None:
    norms = build_offsets(build_geometry(2, 3, 32), math.radians(degrees))
    result = symmetry(norms, config=QUICK)
    difference = wrapped(result.phase_offset - math.radians(degrees))
    assert difference.abs().max() < 0.01
    assert result.phase_offset_magnitude.effect == pytest.approx(abs(degrees), abs=0.5)
    if abs(degrees) != 180:
        assert result.phase_lead_share.effect == (degrees > 0)
    assert result.q_resultant.min() > 0.999
    assert result.k_resultant.min() > 0.999


def test_the_phase_offset_equals_its_plain_definition() -> None:
    for layout in ("half_split", "interleaved"):
        geometry = build_geometry(1, 2, 10, n_pairs=4, layout=layout)
        rotary = geometry.layers[0].rotary
        assert rotary is not None
        q, k, v = noise(3, 1, 7, 1, 2, 10)
        result = symmetry(build_norms(q, k, v, geometry=geometry), config=QUICK)
        for head in range(2):
            rows = (states[0, :, 0, head].tolist() for states in (q, k))
            expected, _ = phase_offset(*rows, rotary.inv_freq.tolist(), layout)
            assert result.phase_offset[0, head].item() == pytest.approx(expected, abs=1e-4)


def test_the_phase_offset_does_not_depend_on_where_the_prompt_stands() -> None:
    geometry = build_geometry(1, 2, 32)
    rotary = geometry.layers[0].rotary
    assert rotary is not None
    states = noise(3, 1, 9, 1, 2, 32)
    later = rotate(states.movedim(2, -2), torch.full((9,), 50), rotary).movedim(-2, 2)
    one = symmetry(build_norms(*states, geometry=geometry), config=QUICK).phase_offset
    two = symmetry(build_norms(*later, geometry=geometry), config=QUICK).phase_offset
    assert wrapped(one - two).abs().max() < 1e-4


def test_query_heads_are_read_against_their_own_key_value_head() -> None:
    geometry = build_geometry(2, 4, 32, n_key_value_heads=2)
    full = build_offsets(build_geometry(2, 4, 32), 1.0)
    grouped = build_offsets(geometry, 1.0)
    narrow = {
        name: replace(
            getattr(grouped, name),
            **{
                part: getattr(getattr(full, name), part)[:, :, [0, 2]]
                for part in ("squares", "total", "first")
            },
            phasors=None if name == "v_sums" else getattr(full, name).phasors[:, :, [0, 2]],
        )
        for name in ("k_sums", "v_sums", "k_unrotated_sums")
    }
    result = symmetry(replace(grouped, **narrow), config=QUICK)
    own = symmetry(full, config=QUICK)
    torch.testing.assert_close(result.phase_offset[:, [0, 2]], own.phase_offset[:, [0, 2]])
    phases = full.phases("q")[:, 1, 5] - full.phases("k")[:, 0, 5]
    assert wrapped(result.phase_offset[:, 1] - phases).abs().max() < 1e-4


def test_unrelated_phases_are_not_significant_and_a_common_offset_is() -> None:
    kv_heads = torch.arange(8).expand(6, -1)
    draws = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    unrelated = median_magnitude((2 * draws - 1) * math.pi, kv_heads, config=QUICK)
    assert unrelated.null == 90
    assert unrelated.p_value > 0.05
    common = median_magnitude(torch.full((6, 8), math.radians(130)), kv_heads, config=QUICK)
    assert common.effect == pytest.approx(130)
    assert common.p_value == 2 / 200
    assert (common.low, common.high) == pytest.approx((130, 130))


def test_a_common_lead_of_the_queries_is_significant_at_any_magnitude() -> None:
    """A median of 90 degrees says nothing about unrelated phases; the common sign does."""
    kv_heads = torch.arange(8).expand(6, -1)
    offsets = torch.full((6, 8), math.radians(90))
    offsets[0, 0], offsets[1, 1] = -0.5, math.nan
    assert median_magnitude(offsets, kv_heads, config=QUICK).p_value > 0.5
    share = lead_share(offsets, kv_heads, config=QUICK)
    assert share.effect == 46 / 47
    assert share.null == 0.5
    assert share.p_value == 2 / 200
    reverse = lead_share(-offsets, kv_heads, config=QUICK)
    assert reverse.effect == 1 / 47
    assert reverse.p_value == 2 / 200


def test_heads_of_one_key_value_head_are_one_chance_event() -> None:
    offsets = torch.full((1, 40), math.radians(130))
    alone = median_magnitude(offsets, torch.zeros(1, 40, dtype=torch.int64), config=QUICK)
    assert alone.p_value > 0.3
    assert math.isnan(alone.low)


def test_angles_are_wrapped_to_half_open_range() -> None:
    angles = torch.tensor([-math.pi, math.pi, 3 * math.pi, 0.0, -4.0], dtype=torch.float64)
    expected = [math.pi, math.pi, math.pi, 0.0, 2 * math.pi - 4.0]
    assert wrapped(angles).tolist() == pytest.approx(expected)


def assert_undefined(part: ProjectionSymmetry) -> None:
    for share in (part.massive_partner_share, part.two_mirror_share):
        assert math.isnan(share.effect)
        assert math.isnan(share.p_value)
        assert share.n == 0


def test_nothing_massive_leaves_clusters_undefined() -> None:
    norms = build_norms(*noise(3, 2, 30, 2, 2, 16), geometry=build_geometry(2, 2, 16))
    result = symmetry(norms)
    assert (result.v.n_clusters == 0).all()
    assert torch.isnan(result.v.mirrored).all()
    assert_undefined(result.v)
    assert not math.isnan(result.v.partner_agreement.effect)


def test_silence_is_undefined_throughout() -> None:
    norms = build_norms(*torch.zeros(3, 2, 4, 2, 1, 16), geometry=build_geometry(2, 1, 16))
    result = symmetry(norms, config=QUICK)
    assert torch.isnan(result.q.partner_correlation).all()
    assert torch.isnan(result.phase_offset).all()
    assert math.isnan(result.phase_offset_magnitude.effect)
    assert math.isnan(result.phase_lead_share.effect)
    assert math.isnan(result.q.partner_agreement.effect)
    assert math.isnan(result.q.layer_agreement.effect)
    assert_undefined(result.q)


def test_a_silent_head_is_left_out_of_means() -> None:
    states = noise(3, 2, 6, 1, 2, 16)
    states[..., 1, :] = 0
    both = symmetry(build_norms(*states, geometry=build_geometry(1, 2, 16)), config=QUICK)
    one = symmetry(
        build_norms(*states[..., :1, :], geometry=build_geometry(1, 1, 16)), config=QUICK
    )
    assert torch.isnan(both.q.partner_correlation[0, 1])
    assert both.q.partner_agreement.effect == pytest.approx(one.q.partner_agreement.effect)
    assert both.q.layer_agreement.effect == pytest.approx(one.q.layer_agreement.effect)
    assert both.phase_offset_magnitude.effect == one.phase_offset_magnitude.effect


def test_one_token_has_no_phase() -> None:
    norms = build_norms(*noise(3, 2, 1, 1, 2, 16), geometry=build_geometry(1, 2, 16))
    result = symmetry(norms, config=QUICK)
    assert torch.isnan(result.phase_offset).all()
    assert torch.isnan(result.q_resultant).all()


def test_one_pair_has_no_correlation() -> None:
    norms = build_norms(*noise(3, 2, 6, 1, 2, 2), geometry=build_geometry(1, 2, 2))
    assert torch.isnan(symmetry(norms, config=QUICK).q.partner_correlation).all()


def test_unrotated_massive_dimensions_have_no_partner_but_are_clusters() -> None:
    geometry = build_geometry(1, 1, 48, n_pairs=16)
    result = symmetry(planted([[[13, 29, 40]]], geometry), config=QUICK).q
    assert result.n_clusters.tolist() == [[3]]
    assert result.mirrored.tolist() == [[0]]
    assert result.massive_partner_share.effect == 1


def test_layers_without_rotation_are_left_out_by_name() -> None:
    first, _, third = build_geometry(3, 1, 16, blocks=(1, 4, 7)).layers
    still = LayerGeometry(block=4, n_heads=1, n_key_value_heads=1, d_head=16, rotary=None)
    geometry = ModelGeometry(layers=(first, still, third), training_context=None)
    result = symmetry(build_norms(*noise(3, 2, 6, 3, 1, 16), geometry=geometry), config=QUICK)
    assert result.layers == (1, 7)
    assert result.skipped_layers == (4,)
    assert result.phase_offset.shape == (2, 1)
    assert not torch.isnan(result.phase_offset).any()


def test_layers_with_different_numbers_of_pairs_go_together() -> None:
    wide, narrow = build_geometry(1, 1, 16), build_geometry(1, 1, 16, n_pairs=4)
    layers = (wide.layers[0], replace(narrow.layers[0], block=1))
    geometry = ModelGeometry(layers=layers, training_context=None)
    norms = build_norms(*noise(3, 2, 6, 2, 1, 16), geometry=geometry)
    result = symmetry(norms, config=QUICK)
    firsts, seconds = norms.q[1, 0, :4].tolist(), norms.q[1, 0, 4:8].tolist()
    assert result.q.partner_correlation[1].item() == pytest.approx(spearman(firsts, seconds))
    assert not torch.isnan(result.phase_offset).any()


def test_the_frames_hold_every_head_once() -> None:
    geometry = build_geometry(2, 4, 16, n_key_value_heads=2, blocks=(3, 5))
    states = noise(3, 2, 6, 2, 4, 16)
    narrow = [states[i][:, :, :, :2] for i in (1, 2)]
    result = symmetry(build_norms(states[0], *narrow, geometry=geometry), config=QUICK)
    frame = result.to_frame()
    assert len(frame) == 2 * (2 * 4 + 3 * 2)
    assert not frame.duplicated(["projection", "stage", "layer", "head"]).any()
    rows = frame.query("projection == 'k' and stage == 'unrotated' and layer == 5")
    expected = result.k_unrotated.partner_correlation[1].numpy()
    assert rows["partner_correlation"].to_numpy() == pytest.approx(expected)
    phases = result.phase_frame()
    assert phases["layer"].tolist() == [3] * 4 + [5] * 4
    assert phases["phase_offset"].to_numpy() == pytest.approx(result.phase_offset.flatten().numpy())


def test_a_saved_result_is_read_back(tmp_path) -> None:
    norms = planted([[[7, 15], [6]]], build_geometry(1, 2, 16))
    result = symmetry(norms, config=QUICK)
    again = load_result(save_result(result, tmp_path / "symmetry.json"))
    assert torch.equal(again.q.n_clusters, result.q.n_clusters)
    assert again.layout == "half_split"
    assert again.layers == (0,)


def test_a_model_without_rotation_is_refused() -> None:
    message = "geometry must have a layer that rotates .* use `concentration` for this model"
    with pytest.raises(ValueError, match=message):
        symmetry(build_norms(*noise(3, 1, 4, 2, 1, 8)))


def test_mixed_layouts_are_refused() -> None:
    layers = tuple(
        build_geometry(1, 1, 8, layout=layout).layers[0] for layout in ("half_split", "interleaved")
    )
    geometry = ModelGeometry(layers=layers, training_context=None)
    norms = build_norms(*noise(3, 1, 4, 2, 1, 8), geometry=geometry)
    with pytest.raises(ValueError, match="must have one layout in all rotating layers, got both"):
        symmetry(norms)


def test_a_gap_below_one_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"max_gap must be between 1 and 1000000 \(dimensions\), got 0"
    ):
        SymmetryConfig(max_gap=0)


@needs_golden
def test_llama_2_layer_9_mirrors_as_a_layer_and_not_within_a_head() -> None:
    result = symmetry(golden_norms())
    for part in (result.q, result.k):
        assert part.layer_agreement.effect > 0.9
        assert part.layer_agreement.p_value < 0.05
        assert part.partner_agreement.effect > 0.6
        assert part.massive_partner_share.effect == 0
        assert part.two_mirror_share.effect == 0
    assert result.q_unrotated.partner_agreement.effect == pytest.approx(0.492, abs=0.001)
    assert abs(result.v.partner_agreement.effect) < 0.05
    assert abs(result.v.layer_agreement.effect) < 0.1


@needs_golden
def test_llama_2_layer_9_turns_queries_ahead_of_keys_by_115_degrees() -> None:
    result = symmetry(golden_norms())
    assert result.phase_offset_magnitude.effect == pytest.approx(115.4, abs=0.1)
    assert result.phase_lead_share.effect == 1
    assert result.phase_lead_share.p_value < 0.001
    assert result.q_resultant.median() > 0.98
    assert result.k_resultant.median() > 0.96
