"""The patches of a report: every part of it, on models that have it."""

from dataclasses import replace
from pathlib import Path

import pytest
from patch_models import random_pairs
from sample_patching import patching_result
from tiny_models import FAMILIES, llama

from mi_massive.models import HookedModel, load_model
from mi_massive.patch_battery import heads_that_matter, n_steps, run_patch_battery


@pytest.fixture(scope="module", name="llama")
def fixture_llama(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama().save(tmp_path_factory.mktemp("llama")))


def test_a_rotary_model_gets_every_part_and_the_patterns_of_its_largest_heads(
    llama: HookedModel,
) -> None:
    done: list[int] = []
    found = run_patch_battery(llama, random_pairs(llama), on_progress=done.append)
    assert sum(done) == n_steps(llama)
    assert [(p.site, p.granularity, p.direction, p.config.joint) for p in found.patches] == [
        ("z", "head", "denoising", False),
        ("rot_q", "band", "denoising", False),
        ("rot_q", "massive", "noising", True),
        ("rot_k", "massive", "noising", True),
    ]
    (estimates,) = found.attributions
    assert estimates.site == "rot_q"
    assert found.patterns is not None
    shown = [(view.block, view.head) for view in found.patterns.heads]
    assert shown == heads_that_matter(found.patches[0])


def test_significant_heads_come_before_larger_ones_that_are_not() -> None:
    planted = patching_result("head")
    recovered = planted.recovered.clone()
    recovered[1, 2, 0] = 5.0  # larger than the significant head, and no more than chance
    result = replace(planted, recovered=recovered)
    assert heads_that_matter(result, 3) == [(0, 0), (1, 2), (0, 1)]


def test_a_model_without_rotation_gets_its_heads_alone(tmp_path: Path) -> None:
    model = load_model(FAMILIES["gpt2"].save(tmp_path))
    done: list[int] = []
    found = run_patch_battery(model, random_pairs(model), on_progress=done.append)
    assert sum(done) == n_steps(model)
    assert [patch.granularity for patch in found.patches] == ["head"]
    assert found.attributions == ()
    assert found.patterns is None


def test_weights_without_gradients_get_no_estimates(
    llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        llama.bridge.original_model.config, "quantization_config", {}, raising=False
    )
    found = run_patch_battery(llama, random_pairs(llama))
    assert len(found.patches) == 4
    assert found.attributions == ()
