"""A planted circuit is found exactly, and patching equals TransformerLens' own loop."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from patch_models import BLOCK, HEAD, KV_HEAD, PAIR, planted_pairs, random_pairs, save_planted
from tiny_models import FAMILIES
from torch import Tensor
from transformer_lens import patching as library

from mi_massive import (
    HookedModel,
    PatchingConfig,
    _patch_setup,
    load_model,
    load_result,
    patch,
    save_result,
)
from mi_massive.models import UnsupportedModelError
from mi_massive.patch_results import PatchingResult
from mi_massive.prompt_pairs import PromptPair

SITES = ("q", "k", "v", "rot_q", "rot_k", "pattern", "z")
QUICK = PatchingConfig(n_resamples=50, min_difference=1e-3)


def quick(**changes: Any) -> PatchingConfig:
    return dataclasses.replace(QUICK, **changes)


@pytest.fixture(scope="module", name="planted")
def fixture_planted(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(save_planted(tmp_path_factory.mktemp("planted")))


@pytest.fixture(scope="module", name="llama")
def fixture_llama(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(FAMILIES["llama"].save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="pairs")
def fixture_pairs(llama: HookedModel) -> list[PromptPair]:
    return random_pairs(llama)


def only(result: PatchingResult, *place: int) -> Tensor:
    """Zeros but for one cell of 1."""
    expected = torch.zeros_like(result.recovered)
    expected[place] = 1.0
    return expected


# --- the planted circuit


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    ("site", "granularity", "group", "unit"),
    [
        ("z", "head", "last", (HEAD,)),
        ("pattern", "head", "last", (HEAD,)),
        ("k", "head", "object", (KV_HEAD,)),
        ("rot_k", "head", "object", (KV_HEAD,)),
        ("rot_k", "band", "object", (PAIR,)),
        ("rot_k", "pair", "object", (KV_HEAD, PAIR)),
        ("k", "pair", "object", (KV_HEAD, PAIR)),
    ],
)
def test_exactly_the_planted_cell_recovers_one(
    planted: HookedModel,
    site: str,
    granularity: str,
    group: str,
    unit: tuple[int, ...],
    direction: Any,
) -> None:
    result = patch(
        planted,
        planted_pairs(),
        site=site,
        granularity=granularity,
        direction=direction,
        groups=("first", group),
        config=QUICK,
    )
    expected = only(result, BLOCK, *unit, 1)
    torch.testing.assert_close(result.recovered, expected, atol=1e-4, rtol=0)
    assert result.n == 3
    assert result.n_left_out == 0


def test_queries_and_values_that_both_runs_share_recover_nothing(planted: HookedModel) -> None:
    for site in ("q", "rot_q", "v"):
        result = patch(planted, planted_pairs(), site=site, config=QUICK)
        assert float(result.recovered.abs().max()) < 1e-4


def test_the_residual_stream_recovers_all_where_the_answer_is(planted: HookedModel) -> None:
    result = patch(
        planted,
        planted_pairs(),
        site="resid_pre",
        granularity="layer",
        groups=("all", "object", "last"),
        config=QUICK,
    )
    # The answer lies at the object tokens up to the block that reads it, then at the last one.
    expected = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 1]])
    torch.testing.assert_close(result.recovered, expected, atol=1e-4, rtol=0)


def test_the_massive_pair_is_the_planted_one_and_its_controls_recover_nothing(
    planted: HookedModel,
) -> None:
    result = patch(
        planted, planted_pairs(), site="rot_k", granularity="massive", config=quick(k=1, joint=True)
    )
    assert result.axes == ("layer", "selection", "group")
    assert result.labels["layer"] == ("all",)
    assert result.labels["selection"] == ("massive", "norm_matched", "same_band", "random")
    torch.testing.assert_close(result.recovered, only(result, 0, 0, 0), atol=1e-4, rtol=0)


# --- what patching is


def test_a_run_patched_with_itself_does_not_change(llama: HookedModel) -> None:
    pairs = [dataclasses.replace(p, placebo=p.corrupted) for p in random_pairs(llama)]
    for site in SITES:
        result = patch(llama, pairs, site=site, groups=("all", "last"), config=QUICK)
        assert float(result.placebo.abs().max()) < 1e-5


def test_the_whole_residual_stream_recovers_one_in_every_layer(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    for direction in ("denoising", "noising"):
        result = patch(
            llama, pairs, site="resid_pre", granularity="layer", direction=direction, config=QUICK
        )
        torch.testing.assert_close(result.recovered, torch.ones(2, 1), atol=1e-5, rtol=0)


def test_noising_is_denoising_with_the_two_prompts_exchanged(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    turned = [
        dataclasses.replace(p, clean=p.corrupted, corrupted=p.clean, answer=p.other, other=p.answer)
        for p in pairs
    ]
    noised = patch(llama, pairs, site="z", direction="noising", config=QUICK)
    denoised = patch(llama, turned, site="z", config=QUICK)
    torch.testing.assert_close(noised.recovered, denoised.recovered, atol=1e-5, rtol=0)


def library_effects(model: HookedModel, pairs: Sequence[PromptPair], site: str) -> Tensor:
    """What `generic_activation_patch` moves, one full forward pass a cell."""
    clean, corrupted = (
        torch.tensor([getattr(pair, name) for pair in pairs]) for name in ("clean", "corrupted")
    )
    answers = torch.tensor([[pair.answer, pair.other] for pair in pairs])

    def metric(logits: Tensor) -> Tensor:
        both = logits[:, -1].gather(1, answers)
        return both[:, 0] - both[:, 1]

    setters: dict[str, Any] = {
        "pattern": library.layer_head_pattern_patch_setter,
        "resid_pre": lambda activation, index, clean: clean,
    }
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(clean)
        n_kv = model.geometry.layers[0].n_key_value_heads
        n_heads = n_kv if site in ("k", "v", "rot_k") else model.geometry.layers[0].n_heads
        import pandas as pd

        heads = [(layer, head) for layer in range(2) for head in range(n_heads)]
        places = [(layer,) for layer in range(2)] if site == "resid_pre" else heads
        found = library.generic_activation_patch(
            model.bridge,
            corrupted,
            cache,
            metric,
            setters.get(site, library.layer_head_vector_patch_setter),
            site,
            index_df=pd.DataFrame(places),
            reduce="none",
            baseline=True,
        )
    return found.effect()


@pytest.mark.parametrize("reuse", ["prefix", "layers", "nothing"])
@pytest.mark.parametrize("site", [*SITES, "resid_pre"])
def test_every_site_equals_the_loop_of_transformer_lens(
    llama: HookedModel, pairs: list[PromptPair], site: str, reuse: Any
) -> None:
    granularity = "layer" if site == "resid_pre" else "head"
    found = patch(
        llama, pairs, site=site, granularity=granularity, config=quick(reuse=reuse)
    ).effects.flatten(0, -2)
    expected = library_effects(llama, pairs, site)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_bridge_that_is_already_held_is_patched_as_the_loaded_model(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    held = HookedModel.wrap(llama.bridge)
    for site in ("z", "rot_k"):
        own, wrapped = (patch(m, pairs, site=site, config=QUICK) for m in (llama, held))
        assert wrapped.labels == own.labels
        torch.testing.assert_close(wrapped.effects, own.effects, atol=1e-6, rtol=0)


def test_keys_and_values_have_their_own_heads_and_are_not_padded(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    for site, axis, n_heads in (("q", "head", 4), ("k", "kv_head", 2), ("v", "kv_head", 2)):
        result = patch(llama, pairs, site=site, groups=("object", "last"), config=QUICK)
        assert result.axes == ("layer", axis, "group")
        assert result.recovered.shape == (2, n_heads, 2)
        assert result.effects.shape == (2, n_heads, 2, 3)
        assert result.labels == {
            "layer": (0, 1),
            axis: tuple(range(n_heads)),
            "group": ("object", "last"),
        }


def test_neither_the_batch_nor_other_lengths_change_a_cell(llama: HookedModel) -> None:
    pairs = [*random_pairs(llama, 2), *random_pairs(llama, 2, n_pos=8)]
    whole = patch(llama, pairs, site="z", groups=("all", "last"), config=QUICK)
    one_by_one = patch(llama, pairs, site="z", groups=("all", "last"), config=quick(batch_size=1))
    torch.testing.assert_close(one_by_one.effects, whole.effects, atol=1e-5, rtol=0)
    alone = patch(llama, pairs[2:3], site="z", groups=("all", "last"), config=QUICK)
    torch.testing.assert_close(alone.effects[..., 0], whole.effects[..., 2], atol=1e-5, rtol=0)


def test_bands_together_are_the_head(llama: HookedModel, pairs: list[PromptPair]) -> None:
    """One band holds every rotating dimension, and all of this model's dimensions rotate."""
    band = patch(llama, pairs, site="rot_q", granularity="band", config=quick(n_bands=1))
    layer = patch(llama, pairs, site="rot_q", granularity="layer", config=QUICK)
    torch.testing.assert_close(band.effects[:, 0], layer.effects, atol=1e-5, rtol=0)


def test_recovered_is_a_ratio_of_means(llama: HookedModel, pairs: list[PromptPair]) -> None:
    result = patch(llama, pairs, site="z", config=QUICK)
    expected = result.effects.mean(dim=-1) / result.differences.mean()
    torch.testing.assert_close(result.recovered, expected)
    assert bool((result.low <= result.recovered + 1e-6).all())
    assert bool((result.recovered <= result.high + 1e-6).all())


# --- kept layers, saved results


def test_finished_layers_are_taken_from_disk(
    llama: HookedModel, pairs: list[PromptPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    first = patch(llama, pairs, site="z", config=QUICK, cells=tmp_path, on_progress=done.append)
    assert done == [1, 1]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(_patch_setup, "_patch_batches", refuse)
    again = patch(llama, pairs, site="z", config=QUICK, cells=tmp_path)
    assert torch.equal(again.effects, first.effects)
    with pytest.raises(AssertionError, match="nothing is left"):
        patch(llama, pairs, site="z", direction="noising", config=QUICK, cells=tmp_path)


def test_a_result_survives_saving(
    llama: HookedModel, pairs: list[PromptPair], tmp_path: Path
) -> None:
    result = patch(llama, pairs, site="v", groups=("object",), config=QUICK)
    again = load_result(save_result(result, tmp_path / "patching.json"))
    assert isinstance(again, PatchingResult)
    assert torch.equal(again.recovered, result.recovered)
    assert again.labels == result.labels
    frame = again.to_frame()
    assert list(frame.columns[:3]) == ["layer", "kv_head", "group"]
    assert frame["recovered"].tolist() == pytest.approx(result.recovered.flatten().tolist())


# --- pairs with nothing to recover


def test_pairs_without_a_difference_are_counted_and_left_out(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    same = dataclasses.replace(pairs[0], id="same", corrupted=pairs[0].clean)
    turned = dataclasses.replace(pairs[1], answer=pairs[1].other, other=pairs[1].answer)
    result = patch(llama, [*pairs, same, turned], site="z", config=QUICK)
    assert (result.n, result.n_left_out) == (3, 2)
    expected = patch(llama, pairs, site="z", config=QUICK)
    torch.testing.assert_close(result.effects, expected.effects, atol=1e-5, rtol=0)


def test_without_a_usable_pair_all_is_undefined_and_nothing_is_zero(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    result = patch(llama, pairs, site="z", config=quick(min_difference=1e6))
    assert (result.n, result.n_left_out) == (0, 3)
    for name in ("recovered", "low", "high", "p_values", "placebo", "beyond_placebo"):
        values = getattr(result, name)
        assert values.shape == (2, 4, 1)
        assert bool(values.isnan().all()), name
    assert not bool(result.significant.any())


def test_one_pair_has_a_value_and_no_interval(llama: HookedModel, pairs: list[PromptPair]) -> None:
    result = patch(llama, pairs[:1], site="z", config=QUICK)
    assert bool(result.recovered.isfinite().all())
    assert bool(result.low.isnan().all())
    assert bool(result.p_values.isnan().all())


def test_without_placebos_their_cells_are_undefined(llama: HookedModel) -> None:
    pairs = random_pairs(llama, placebo=False)
    result = patch(llama, pairs, site="z", config=QUICK)
    assert bool(result.placebo.isnan().all())
    assert bool(result.recovered.isfinite().all())


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "mlp_out"}, r"site must be one of q, k, v, rot_q, .*, got 'mlp_out'"),
        (
            {"site": "z", "granularity": "token"},
            r"granularity must be one of layer, head, band, pair, massive, got 'token'",
        ),
        (
            {"site": "z", "granularity": "band"},
            r"granularity must be possible at the site, got 'band' at 'z'; band is there for q, k",
        ),
        ({"site": "resid_pre"}, r"possible at the site, got 'head' at 'resid_pre'"),
        (
            {"site": "z", "groups": ("verb",)},
            r"groups must be in every pair, got 'verb', which 'random 0' does not have; all of "
            r"them have all, later, first, last, object",
        ),
        (
            {"site": "z", "config": PatchingConfig(layers=(7,))},
            r"layers must be among \[0, 1\] \(block indices with z\), got 7",
        ),
        (
            {"site": "q", "granularity": "band", "config": PatchingConfig(n_bands=9)},
            r"n_bands must be between 1 and 8 \(rotary pairs\), got 9",
        ),
    ],
)
def test_what_does_not_exist_is_refused(
    llama: HookedModel, pairs: list[PromptPair], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        patch(llama, pairs, **arguments)


def test_no_pairs_and_mixed_placebos_are_refused(
    llama: HookedModel, pairs: list[PromptPair]
) -> None:
    with pytest.raises(ValueError, match=r"pairs must not be empty; pass pairs such as"):
        patch(llama, [], site="z")
    mixed = [pairs[0], dataclasses.replace(pairs[1], placebo=None)]
    with pytest.raises(ValueError, match=r"pairs must all have a placebo or none, got some of"):
        patch(llama, mixed, site="z")


def test_rotary_cells_are_refused_without_rotary_embeddings(tmp_path: Path) -> None:
    model = load_model(FAMILIES["gpt2"].save(tmp_path))
    pairs = random_pairs(model)
    with pytest.raises(ValueError, match=r"site must exist in the model, got 'rot_q' .*use 'q'"):
        patch(model, pairs, site="rot_q")
    for granularity in ("band", "pair", "massive"):
        with pytest.raises(ValueError, match=r"must be asked of layers that rotate their queries"):
            patch(model, pairs, site="q", granularity=granularity)
    dimensions = quick(unit="dimension", controls=("norm_matched",), k=1)
    result = patch(model, pairs, site="q", granularity="massive", config=dimensions)
    assert bool(result.recovered.isfinite().all())


def test_layers_without_rotation_are_left_out_of_rotated_sites(tmp_path: Path) -> None:
    model = load_model(FAMILIES["smollm3"].save(tmp_path))
    result = patch(model, random_pairs(model), site="rot_q", config=QUICK)
    assert result.labels["layer"] == (0, 2)


def test_an_encoder_and_a_hybrid_cache_are_refused_with_what_to_do(tmp_path: Path) -> None:
    bert = load_model(FAMILIES["bert"].save(tmp_path / "bert"))
    with pytest.raises(UnsupportedModelError, match=r"must be a decoder with a language-modelling"):
        patch(bert, random_pairs(bert), site="z")
    jamba = load_model(FAMILIES["jamba"].save(tmp_path / "jamba"))
    pairs = random_pairs(jamba)
    with pytest.raises(UnsupportedModelError, match=r"LinearAttentionLayer; use reuse='layers'"):
        patch(jamba, pairs, site="z")
    resumed = patch(jamba, pairs, site="z", config=quick(reuse="layers"))
    whole = patch(jamba, pairs, site="z", config=quick(reuse="nothing"))
    torch.testing.assert_close(resumed.effects, whole.effects, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_difference": 0.0}, r"min_difference must be positive, got 0.0; without a differ"),
        ({"min_difference": math.nan}, r"min_difference must be positive, got nan"),
        ({"k": 0}, r"k must be between 1 and"),
        ({"n_draws": 0}, r"n_draws must be between 1 and 1000 \(draws\), got 0"),
        ({"batch_size": 0}, r"batch_size must be between 1"),
        ({"level": 1.0}, r"level must be between 0 and 1, got 1.0; 0.95 is usual"),
    ],
)
def test_settings_that_measure_nothing_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchingConfig(**setting)
