"""Gradient estimates: the definition in autograd, exactness of what is patched, refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from patch_models import random_pairs
from tiny_models import FAMILIES
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from mi_massive import (
    AttributionResult,
    HookedModel,
    PatchingConfig,
    attribute,
    load_model,
    load_result,
    patch,
    save_result,
)
from mi_massive.models import UnsupportedModelError
from mi_massive.prompt_pairs import PromptPair

QUICK = PatchingConfig(n_resamples=50, min_difference=1e-3)


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(FAMILIES["llama"].save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="pairs")
def fixture_pairs(model: HookedModel) -> list[PromptPair]:
    return random_pairs(model)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_what_is_patched_is_exactly_what_patch_recovers(
    model: HookedModel, pairs: list[PromptPair], direction: Any
) -> None:
    given: dict[str, Any] = {
        "site": "rot_k",
        "direction": direction,
        "groups": ("object",),
        "config": QUICK,
    }
    found = attribute(model, pairs, n_sample=10, n_top=5, **given)
    exact = patch(model, pairs, granularity="pair", **given)
    assert found.axes == ("layer", "kv_head", "pair", "group")
    assert found.estimated.shape == exact.recovered.shape == (2, 2, 8, 1)
    for places, values, whole in (
        (found.sample, found.sample_exact, exact.recovered),
        (found.top, found.top_exact, exact.recovered),
        (found.top, found.top_placebo, exact.placebo),
    ):
        expected = torch.stack([whole[place] for place in places])
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    sizes = found.estimated.abs().flatten().sort(descending=True).values[:5]
    top = torch.stack([found.estimated[place].abs() for place in found.top])
    torch.testing.assert_close(top, sizes)


def test_an_estimate_is_the_limit_of_small_patches(
    model: HookedModel, pairs: list[PromptPair]
) -> None:
    """Moving a pair a thousandth of the way moves the answer a thousandth of the estimate."""
    found = attribute(model, pairs[:1], site="rot_k", groups=("object",), config=QUICK)
    place = found.top[0]
    layer, head, pair, _ = place
    name = f"blocks.{layer}.attn.hook_rot_k"
    clean, corrupted = torch.tensor([pairs[0].clean]), torch.tensor([pairs[0].corrupted])
    step, dims = 1e-2, [pair, pair + 8]
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(clean)
        before = model.bridge(corrupted)[0, -1]

        def nudge(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            moved = activation.clone()
            away = cache[name][0, 4, head, dims] - activation[0, 4, head, dims]
            moved[0, 4, head, dims] += step * away
            return moved

        after = model.run_with_hooks(corrupted, fwd_hooks=[(name, nudge)])[0, -1]
        whole = model.bridge(clean)[0, -1] - before
    change = (after - before) / step
    answer, other = pairs[0].answer, pairs[0].other
    expected = (change[answer] - change[other]) / (whole[answer] - whole[other])
    assert float(found.estimated[place]) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("site", ["q", "rot_q", "rot_k"])
def test_an_estimate_is_that_of_the_activations_and_gradients_of_transformer_lens(
    model: HookedModel, pairs: list[PromptPair], site: Any
) -> None:
    """Its `attribution_patch` has no queries or keys, but what it is made of takes any hook."""
    groups = ("object", "last")
    found = attribute(model, pairs, site=site, groups=groups, config=QUICK)
    # The library's backward pass goes as far down as the lowest hook point asked for.
    names = [f"blocks.{block}.attn.hook_{site}" for block in (0, 1)]
    total, whole = torch.zeros(found.estimated.shape), 0.0
    for pair in pairs:

        def measure(logits: torch.Tensor, pair: PromptPair = pair) -> torch.Tensor:
            return logits[0, -1, pair.answer] - logits[0, -1, pair.other]

        clean, corrupted = (
            cache_activation_and_gradient(
                model.bridge, torch.tensor([ids]), measure, ["hook_embed", *names]
            )
            for ids in (pair.clean, pair.corrupted)
        )
        whole += float(clean.metric - corrupted.metric)
        for layer, name in enumerate(names):
            gradient = corrupted.gradients[name]
            assert gradient is not None
            parts = (clean.activations[name] - corrupted.activations[name])[0] * gradient[0]
            by_pair = parts[..., :8] + parts[..., 8:]
            for place, group in enumerate(groups):
                total[layer, ..., place] += by_pair[list(pair.groups[group])].sum(dim=0)
    assert found.n_examples == len(pairs)
    torch.testing.assert_close(found.estimated, total / whole, atol=1e-5, rtol=1e-4)


def test_the_correlation_is_over_the_sample_and_says_so(
    model: HookedModel, pairs: list[PromptPair], tmp_path: Path
) -> None:
    found = attribute(model, pairs, site="rot_q", n_sample=20, n_top=4, config=QUICK)
    estimated = torch.stack([found.estimated[place] for place in found.sample])
    expected = torch.corrcoef(torch.stack([estimated, found.sample_exact]))[0, 1]
    assert found.pearson.effect == pytest.approx(float(expected), abs=1e-5)
    assert (found.pearson.n, found.pearson_top.n, found.n_examples) == (20, 4, 3)
    assert found.spearman.test == "Spearman, random cells; bootstrap over cells"
    again = load_result(save_result(found, tmp_path / "attribution.json"))
    assert isinstance(again, AttributionResult)
    assert torch.equal(again.estimated, found.estimated)
    assert again.sample == found.sample


def test_without_a_usable_pair_everything_is_undefined(
    model: HookedModel, pairs: list[PromptPair]
) -> None:
    hopeless = dataclasses.replace(QUICK, min_difference=1e6)
    found = attribute(model, pairs, site="rot_q", n_sample=4, n_top=3, config=hopeless)
    assert (found.n_examples, found.n_left_out) == (0, 3)
    for name in ("estimated", "sample_exact", "top_exact", "top_placebo"):
        assert bool(getattr(found, name).isnan().all()), name
    assert found.pearson.effect != found.pearson.effect


def test_a_quantized_model_has_no_gradients(
    model: HookedModel, pairs: list[PromptPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = model.bridge.original_model.config
    monkeypatch.setattr(config, "quantization_config", {"bits": 4}, raising=False)
    with pytest.raises(UnsupportedModelError, match=r"must have plain floating-point weights for"):
        attribute(model, pairs)


def test_sites_without_rotary_pairs_and_joint_layers_are_refused(
    model: HookedModel, pairs: list[PromptPair]
) -> None:
    with pytest.raises(ValueError, match=r"granularity must be possible at the site, got 'pair'"):
        attribute(model, pairs, site="z")
    joint = dataclasses.replace(QUICK, joint=True)
    with pytest.raises(ValueError, match=r"joint must be False for estimates of single pairs"):
        attribute(model, pairs, config=joint)
    with pytest.raises(ValueError, match=r"n_top must be between 3 and"):
        attribute(model, pairs, n_top=0)
