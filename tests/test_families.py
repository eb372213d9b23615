"""The table of families: each row is what the analyses say, says what it is, and none is lost."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES as TINY
from tiny_models import llama, save_model

from mi_massive import (
    ConcentrationConfig,
    FamiliesResult,
    HookedModel,
    bands,
    capture_norms,
    concentration,
    load_model,
    load_result,
    measure_families,
    save_result,
    symmetry,
)
from mi_massive.bands import BandsConfig
from mi_massive.families import SEEDS
from mi_massive.family_rows import FamilyRow
from mi_massive.models import SHAPES, build_shape
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.families import FAMILIES
from mi_massive.symmetry import SymmetryConfig

PROMPTS = ["t1 t2 t3 t4 t5 t6", "t7 t8 t9", "t3 t1 t4 t1 t5 t9 t2", "t9 t9 t8 t1"]
QUICK = ConcentrationConfig(n_resamples=200)
TESTS: dict[str, Any] = {"n_resamples": 200}
MISSING = "./no-such-model"
UNREACHED = "Qwen/Qwen2.5-7B"

PLANTED = {0: 6, 1: 1}
"""Pair by layer, in query head 2 and key-value head 1. Pair 6 is slow and makes no full turn within
the 128 tokens of the context, pair 1 is fast and makes many."""


@pytest.fixture(scope="module", name="planted")
def fixture_planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = llama().build()
    with torch.no_grad():
        for layer, pair in PLANTED.items():
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            for name, head in (("q_proj", 2), ("k_proj", 1)):
                weight: Any = attention.get_submodule(name).weight
                weight[[16 * head + pair, 16 * head + pair + 8]] *= 100.0
    return save_model(model, tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module", name="gpt2")
def fixture_gpt2(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(TINY["gpt2"].save(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module", name="result")
def fixture_result(planted: Path, gpt2: HookedModel) -> FamiliesResult:
    models = [str(planted), MISSING, gpt2, build_shape("llama-3")]
    return measure_families(models, PROMPTS, config=QUICK)


@pytest.fixture(name="no_hub")
def fixture_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("the hub must be reached, got\nno answer")

    monkeypatch.setattr("mi_massive.families.load_model", refuse)


# --- what is measured


def test_planted_dimensions_are_counted_and_placed_and_no_others(
    result: FamiliesResult, planted: Path
) -> None:
    row = result.row(str(planted))
    assert (row.status, row.reason) == ("measured", "")
    assert row.q.massive_per_head == 4 / 8  # two dimensions in each of two layers of four heads
    assert row.k.massive_per_head == 4 / 4
    assert row.v.massive_per_head == 0
    assert row.q.slow_half.effect == row.k.slow_half.effect == 0.5
    assert row.partial_cycle.effect == 0.5
    assert math.isnan(row.v.slow_half.effect)  # of none


def test_a_row_holds_what_the_analyses_say(result: FamiliesResult, planted: Path) -> None:
    row = result.row(str(planted))
    norms = capture_norms(load_model(planted), PROMPTS)
    alone = concentration(norms, config=QUICK)
    assert (row.contrast_q, row.contrast_k) == (alone.contrast_q, alone.contrast_k)
    assert row.k.max_over_mean == pytest.approx(
        math.exp(float(alone.k.max_over_mean.double().log().mean()))
    )
    # The number of bands is that of another table: the shares here are counted by pair.
    banded = bands(norms, config=BandsConfig(**TESTS))
    assert row.k.slow_half == banded.k.massive_low_half_share
    assert row.partial_cycle == banded.partial_cycle
    symmetric = symmetry(norms, config=SymmetryConfig(**TESTS))
    assert row.q.halves == symmetric.q.layer_agreement
    assert row.provenance is not None
    assert row.provenance.prompts_digest == norms.provenance.prompts_digest


def test_a_model_without_rotation_has_no_place_on_the_frequencies(
    result: FamiliesResult, gpt2: HookedModel
) -> None:
    row = result.row(gpt2.name)
    assert row.heads is not None
    assert (row.heads.n_rotating_layers, row.heads.rotary_dim, row.heads.layout) == (0, 0, None)
    assert math.isfinite(row.contrast_q.effect)
    undefined = (row.q.slow_half, row.k.halves, row.partial_cycle)
    assert all(math.isnan(each.effect) and each.n == 0 for each in undefined)


def test_memory_is_that_of_every_weight_once(result: FamiliesResult, planted: Path) -> None:
    weights = {id(w): w.numel() for w in load_model(planted).plain.parameters()}
    assert result.row(str(planted)).memory == pytest.approx(4 * sum(weights.values()) / 1e9)


def test_memory_of_a_wrapped_model_is_unknown(gpt2: HookedModel) -> None:
    wrapped = HookedModel.wrap(gpt2.bridge, name="wrapped")
    (row,) = measure_families([wrapped], PROMPTS, config=QUICK).rows
    assert row.status == "measured"
    assert math.isnan(row.memory)


def test_texts_beyond_a_models_context_are_cut_to_it(gpt2: HookedModel) -> None:
    long = " ".join(["t1 t2 t3"] * 100)
    (row,) = measure_families([gpt2], [long, "t5 t6"], config=QUICK).rows
    assert row.status == "measured"
    (cut,) = measure_families([gpt2], [long, "t5 t6"], config=QUICK, max_length=128).rows
    assert row.provenance is not None
    assert cut.provenance is not None
    assert row.provenance.prompts_digest == cut.provenance.prompts_digest


# --- what cannot be measured


def test_a_missing_model_keeps_its_row_and_the_reason(result: FamiliesResult) -> None:
    assert [row.status for row in result.rows] == [
        "measured",
        "not available",
        "measured",
        "shape check: random weights",
    ]
    row = result.row(MISSING)
    assert "nothing is at" in row.reason
    assert row.heads is None
    assert row.provenance is None
    assert math.isnan(row.contrast_q.effect)
    assert math.isnan(row.q.massive_per_head)
    assert math.isnan(row.memory)


@pytest.mark.usefixtures("no_hub")
def test_the_memory_of_a_known_model_is_stated_without_having_it() -> None:
    (row,) = measure_families([UNREACHED], PROMPTS, dtype=torch.bfloat16).rows
    assert row.reason == "the hub must be reached, got no answer"
    assert row.memory == pytest.approx(SEEDS[UNREACHED] * 2 / 1e9)


def test_a_model_that_cannot_read_texts_keeps_its_row(gpt2: HookedModel) -> None:
    mute = HookedModel.wrap(gpt2.bridge, name="mute")
    mute.tokenizer = None
    (row,) = measure_families([mute], PROMPTS, config=QUICK).rows
    assert row.status == "not available"
    assert "tokenizer" in row.reason


def test_an_error_of_another_kind_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, gpt2: HookedModel
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a hook did not fire")

    monkeypatch.setattr("mi_massive.families.capture_norms", fail)
    with pytest.raises(RuntimeError, match="a hook did not fire"):
        measure_families([gpt2], PROMPTS)


@pytest.mark.parametrize(
    ("models", "prompts", "device", "text"),
    [
        ([], PROMPTS, "cpu", r"models must be at least one and differ in their names, got \[\]"),
        (["a", "a"], PROMPTS, "cpu", "models must be at least one and differ in their names"),
        (["a"], [], "cpu", r"prompts must be a list of at least one text, got \[\]"),
        (["a"], "a text", "cpu", "prompts must be a list of at least one text, got 'a text'"),
        (["a"], PROMPTS, "nowhere", "device must be one that torch knows"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    models: list[str], prompts: Any, device: str, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        measure_families(models, prompts, device=device)


def test_rows_are_shown_as_they_are_finished(gpt2: HookedModel) -> None:
    shown: list[FamilyRow] = []
    result = measure_families([MISSING, gpt2], PROMPTS, config=QUICK, on_row=shown.append)
    assert shown == list(result.rows)


# --- shapes


@pytest.mark.parametrize("family", SHAPES)
def test_a_shape_is_read_as_its_family_is(family: str) -> None:
    model = build_shape(family)
    tower = model.plain.config.get_text_config().model_type  # of a model with images its language
    known = {each.model_type: each.rotation for each in FAMILIES} | {"qwen2_vl_text": "half_split"}
    rotation = known[tower]
    layouts = {layer.rotary.layout if layer.rotary else "none" for layer in model.geometry.layers}
    assert layouts == {rotation}


@pytest.mark.parametrize(
    ("family", "heads", "rotary_dim", "blocks"),
    [
        ("llama-2", (4, 4, 16), 16, (0, 1)),
        ("llama-3", (4, 2, 16), 16, (0, 1)),
        ("gemma-2", (4, 2, 32), 32, (0, 1)),
        ("gpt-neox", (4, 4, 16), 4, (0, 1)),
        ("gpt-2", (4, 4, 16), 0, (0, 1)),
        ("jamba", (4, 2, 16), 0, (1, 3)),
        ("qwen-2-vl", (4, 2, 16), 16, (0, 1)),
        ("llava", (4, 4, 16), 16, (0, 1)),
    ],
)
def test_a_shape_has_the_heads_and_the_rotated_part_of_its_family(
    family: str, heads: tuple[int, int, int], rotary_dim: int, blocks: tuple[int, ...]
) -> None:
    geometry = build_shape(family).geometry
    layer = geometry.layers[0]
    assert (layer.n_heads, layer.n_key_value_heads, layer.d_head) == heads
    assert 2 * geometry.n_pairs == rotary_dim
    assert geometry.blocks == blocks


def test_llama_3_has_its_slow_frequencies_scaled() -> None:
    rotary = build_shape("llama-3").geometry.layers[0].rotary
    assert rotary is not None
    plain = 5e5 ** -(torch.arange(8, dtype=torch.float64) / 8)
    ratio = rotary.inv_freq / plain
    assert float(ratio[0]) == pytest.approx(1.0)
    assert float(ratio[-1]) == pytest.approx(1 / 8)


def test_position_axes_are_those_of_the_tower() -> None:
    shapes = [build_shape(family) for family in ("qwen-2-vl", "llava", "gpt-2")]
    rows = measure_families(shapes, PROMPTS, config=QUICK).rows
    assert [row.heads and row.heads.n_position_axes for row in rows] == [3, 1, 0]


def test_random_weights_are_never_called_measured(result: FamiliesResult) -> None:
    row = result.row("llama-3 (tiny)")
    assert row.status == "shape check: random weights"
    assert row.provenance is not None
    assert row.provenance.weights_note == "random weights of a tiny configuration"
    assert row.provenance.n_prompts == len(PROMPTS)


def test_a_seed_gives_the_same_shape_again() -> None:
    def weights(seed: int) -> torch.Tensor:
        plain: Any = build_shape("mistral", seed=seed).plain
        return plain.model.layers[0].self_attn.q_proj.weight

    state = torch.random.get_rng_state()
    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_unknown_family_and_hook_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"family must be one of llama-2, .*, got 'llama-9'"):
        build_shape("llama-9")
    with pytest.raises(UnsupportedModelError, match=r"mistral \(tiny\) must be a model with files"):
        _ = build_shape("mistral").bridge


# --- the table


def test_the_frame_has_a_row_a_model_and_nan_where_undefined(result: FamiliesResult) -> None:
    frame = result.to_frame()
    assert list(frame["model"]) == [row.model for row in result.rows]
    missing = frame[frame["status"] == "not available"].iloc[0]
    assert math.isnan(missing["n_heads"])
    assert math.isnan(missing["max_over_mean_q"])
    assert missing["rotates"] is None
    first = frame.iloc[0]
    assert (first["rotates"], first["layout"], first["rotary_dim"]) == (True, "half_split", 16)
    assert first["q_over_v_low"] <= first["q_over_v"] <= first["q_over_v_high"]
    assert math.isnan(frame["partial_cycle"][2])


def test_a_table_is_the_same_after_saving(result: FamiliesResult, tmp_path: Path) -> None:
    loaded = load_result(save_result(result, tmp_path / "families.json"))
    assert isinstance(loaded, FamiliesResult)
    assert repr(loaded.rows) == repr(result.rows)  # NaN is not equal to itself
    assert loaded.to_frame().equals(result.to_frame())
    assert not (tmp_path / "families.safetensors").exists()


def test_unknown_rows_are_a_key_error(result: FamiliesResult) -> None:
    with pytest.raises(KeyError):
        result.row("nobody")
