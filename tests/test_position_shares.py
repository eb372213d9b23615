"""Position against content: planted heads, a slow definition, nulls, invariances and refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_geometry
from tiny_models import FAMILIES, token_ids
from torch import Tensor

from mi_massive._band_logits import band_sets, pair_products, set_shares
from mi_massive.models import load_model
from mi_massive.models.attention import AttentionInputs
from mi_massive.position_shares import PositionSharesConfig, PositionSharesResult
from mi_massive.prompts import tokenize_prompts
from mi_massive.records import load_result, save_result
from mi_massive.rope import RotaryGeometry, rotate
from mi_massive.share_capture import capture_position_shares

N_PAIRS, D_HEAD, WINDOW = 4, 8, 6
SMALL = PositionSharesConfig(n_bands=2, window=WINDOW, n_permutations=20, n_resamples=50)


def rotary(layout: Any = "half_split") -> RotaryGeometry:
    inv_freq = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    return RotaryGeometry(inv_freq=inv_freq, layout=layout, d_head=D_HEAD)


def bands() -> Tensor:
    return torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]], dtype=torch.float64)


def shares_of(query: Tensor, key: Tensor, turned: RotaryGeometry) -> Tensor:
    return set_shares(*pair_products(query, key, turned, window=WINDOW), bands())[0]


@pytest.mark.parametrize("layout", ["half_split", "interleaved"])
def test_a_head_that_sees_distance_alone_has_share_one_in_that_band(layout: str) -> None:
    """Constant queries and keys, rotated: the logit is a function of the distance."""
    torch.manual_seed(0)
    turned, positions = rotary(layout), torch.arange(40)
    query, key = (torch.randn(D_HEAD).expand(40, -1) for _ in range(2))
    states = [rotate(own.double(), positions, turned) for own in (query, key)]
    shares = shares_of(states[0], states[1], turned)
    assert shares.tolist() == pytest.approx([1.0, 1.0], abs=1e-9)


def test_a_head_that_sees_content_alone_has_share_zero_in_that_band() -> None:
    """The slow band holds a key's content, whose period meets every distance equally often."""
    turned = rotary()
    period, n_queries = WINDOW, 4 * WINDOW
    n = n_queries + WINDOW + 1
    content = torch.tensor([1.0, -3, 2, 5, 0, 1]).double()[torch.arange(n) % period]
    query, key = torch.zeros(n, D_HEAD).double(), torch.zeros(n, D_HEAD).double()
    query[:, 3], key[:, 3] = 1.0, content  # pair 3 does not turn
    query[:, 0] = key[:, 0] = 1.0
    states = [rotate(own, torch.arange(n), turned) for own in (query, key)]
    fast, slow = shares_of(states[0], states[1], turned).tolist()
    assert slow == pytest.approx(0.0, abs=1e-12)
    assert fast == pytest.approx(1.0, abs=1e-9)


def test_what_all_keys_of_a_query_share_does_not_count() -> None:
    """A key that never changes, in a pair that does not turn, adds the same to every logit."""
    query = torch.randn(40, D_HEAD).double()
    key = torch.zeros(40, D_HEAD).double()
    key[:, 3] = 5.0
    fast, slow = shares_of(query, key, rotary()).tolist()
    assert math.isnan(fast)
    assert math.isnan(slow)


def by_loops(query: Tensor, key: Tensor, pairs: list[tuple[int, int]]) -> float:
    """The share of one band, one number at a time."""
    table = []
    for i in range(WINDOW + 1, len(query)):
        row = []
        for distance in range(1, WINDOW + 1):
            j = i - distance
            row.append(sum(float(query[i, d] * key[j, d]) for pair in pairs for d in pair))
        mean = sum(row) / len(row)
        table.append([value - mean for value in row])
    whole = sum(value**2 for row in table for value in row)
    columns = [sum(row[d] for row in table) / len(table) for d in range(WINDOW)]
    return len(table) * sum(value**2 for value in columns) / whole


def test_shares_equal_the_slow_definition_in_every_band() -> None:
    torch.manual_seed(1)
    query, key = torch.randn(2, 30, D_HEAD).double().unbind()
    query += 2.0  # something constant, so that no share is near zero
    actual = shares_of(query, key, rotary())
    expected = [by_loops(query, key, [(0, 4), (1, 5)]), by_loops(query, key, [(2, 6), (3, 7)])]
    assert actual.tolist() == pytest.approx(expected)
    scaled = shares_of(3 * query, key / 7, rotary())
    assert scaled.tolist() == pytest.approx(expected)


def test_the_sets_are_the_bands_and_then_as_many_permuted_pairs() -> None:
    sets = band_sets(build_geometry(3, 2, 16), 4, n_permutations=30, seed=3)
    assert list(sets) == [8]
    assert sets[8].shape == (31, 4, 8)
    assert sets[8][0].argmax(dim=0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(sets[8].sum(dim=1), torch.ones(31, 8).double())  # each pair in one band
    assert torch.equal(sets[8].sum(dim=2), 2 * torch.ones(31, 4).double())
    assert not torch.equal(sets[8][1], sets[8][0])


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "glm", "smollm3"])
def test_a_model_gives_the_shares_of_its_attention_inputs(name: str, tmp_path: Path) -> None:
    model = load_model(FAMILIES[name].save(tmp_path))
    ids = token_ids(2, 20).tolist()
    result = capture_position_shares(model, tokenize_prompts(None, ids), config=SMALL)
    rotating = [layer for layer in model.geometry.layers if layer.rotary is not None]
    assert result.layers == tuple(layer.block for layer in rotating)
    seen: dict[tuple[int, int], AttentionInputs] = {}
    for number, own in enumerate(ids):

        def keep(inputs: AttentionInputs, number: int = number) -> None:
            seen[number, inputs.block] = inputs

        model.attention_inputs(torch.tensor([own]), keep)
    for at, layer in enumerate(rotating):
        assert layer.rotary is not None
        dims = layer.rotary.pair_dims.tolist()
        half = len(dims) // 2
        for head in range(4):
            group = int(layer.kv_head_of_head[head])
            expected = [0.0, 0.0]
            for number in range(2):
                inputs = seen[number, layer.block]
                states = inputs.query[0, head].double(), inputs.key[0, group].double()
                for band, pairs in enumerate((dims[:half], dims[half:])):
                    expected[band] += by_loops(*states, pairs) / 2
            assert result.share[at, head].tolist() == pytest.approx(expected, rel=1e-3)


def test_shuffled_tokens_keep_what_is_position_and_exchanged_places_lose_it() -> None:
    """Keys and queries with a constant part: the share stays when tokens move before rotating."""
    from mi_massive._band_logits import layer_parts

    torch.manual_seed(0)
    geometry = build_geometry(1, 2, D_HEAD)
    layer = geometry.layers[0]
    assert layer.rotary is not None
    states = 4.0 + torch.randn(2, 2, 200, D_HEAD).double()
    query, key = (rotate(own, torch.arange(200), layer.rotary) for own in states)
    places = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(199)])
    sets = band_sets(geometry, 2, n_permutations=5, seed=0)[4]
    parts = layer_parts(query, key, layer, sets, window=WINDOW, places=places)
    assert (parts.share[:, 0] > 0.3).all()
    assert (parts.shuffled[:, 0] - parts.share[:, 0]).abs().max() < 0.1
    assert (parts.floor < 0.1).all()
    assert parts.variance_share.sum(dim=-1).tolist() == pytest.approx([1.0, 1.0])


@pytest.fixture(name="result", scope="module")
def fixture_result(tmp_path_factory: pytest.TempPathFactory) -> PositionSharesResult:
    model = load_model(FAMILIES["llama"].save(tmp_path_factory.mktemp("llama")))
    prompts = tokenize_prompts(None, token_ids(4, 30).tolist())
    return capture_position_shares(model, prompts, config=SMALL)


class TestResult:
    def test_bands_are_means_over_heads_with_intervals_over_passages(
        self, result: PositionSharesResult
    ) -> None:
        for band in result.bands:
            mean = float(result.share[..., band.band].mean())
            assert band.position_share.effect == pytest.approx(mean, rel=1e-5)
            assert band.position_share.n == 4
            assert band.position_share.n_of == "passages"
            assert band.position_share.low <= mean <= band.position_share.high
            assert 0 < band.position_share.null < 1
        assert result.bands[0].longest < result.bands[1].shortest
        difference = result.bands[0].position_share.effect - result.bands[1].position_share.effect
        assert result.fast_minus_slow.effect == pytest.approx(difference)

    def test_it_is_saved_and_tabled(self, result: PositionSharesResult, tmp_path: Path) -> None:
        loaded = load_result(save_result(result, tmp_path / "shares.json"))
        assert torch.equal(loaded.share, result.share)
        assert repr(loaded.bands) == repr(result.bands)  # NaN is unequal to itself
        frame = result.to_frame()
        assert len(frame) == result.share.numel()
        row = frame[(frame["layer"] == 1) & (frame["head"] == 2) & (frame["band"] == 1)]
        assert float(row["position_share"].iloc[0]) == float(result.share[1, 2, 1])


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "length", "config", "message"),
        [
            ("gpt2", 20, SMALL, "geometry must have a layer that rotates its queries and keys"),
            ("llama", 12, SMALL, r"prompts\[0\] must have at least 13 tokens for a window of 6"),
            (
                "llama",
                20,
                PositionSharesConfig(n_bands=9, window=6),
                r"n_bands must be between 2 and 8 \(rotary pairs of a head\), got 9",
            ),
        ],
    )
    def test_what_cannot_be_measured(
        self, name: str, length: int, config: Any, message: str, tmp_path: Path
    ) -> None:
        model = load_model(FAMILIES[name].save(tmp_path))
        prompts = tokenize_prompts(None, token_ids(1, length).tolist())
        with pytest.raises(ValueError, match=message):
            capture_position_shares(model, prompts, config=config)

    def test_a_level_outside_zero_and_one(self) -> None:
        with pytest.raises(ValueError, match=r"level must be between 0 and 1, got 1\.5"):
            PositionSharesConfig(level=1.5)
