"""On an accelerator: captures, edits and the doctor give what they give on the CPU.

Run with `pytest -m gpu`; skipped where torch finds no CUDA device.
"""

from pathlib import Path

import pytest
import torch
from tiny_models import llama, token_ids

from mi_massive import HookedModel, capture_norms, load_model
from mi_massive.axes import PROJECTIONS
from mi_massive.doctor import diagnose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest difference of a norm, relative to the largest of its head."""

PROMPTS = [" ".join(f"t{(7 * i + j * j) % 61}" for j in range(6 + 5 * i)) for i in range(5)]


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama().save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", name="dtype", params=TOLERANCE, ids=str)
def fixture_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", name="model")
def fixture_model(folder: Path, dtype: torch.dtype) -> HookedModel:
    return load_model(folder, device="cuda", dtype=dtype)


def test_a_capture_equals_that_on_the_cpu(
    model: HookedModel, folder: Path, dtype: torch.dtype
) -> None:
    there = capture_norms(model, PROMPTS, batch_size=2)
    here = capture_norms(load_model(folder, dtype=dtype), PROMPTS, batch_size=2)
    assert there.provenance.device.startswith("cuda")
    for projection in PROJECTIONS:
        got, expected = getattr(there, projection), getattr(here, projection)
        assert got.device.type == "cpu"
        gap = (got - expected).abs() / expected.amax(dim=-1, keepdim=True)
        assert float(gap.amax()) < TOLERANCE[dtype]


@pytest.mark.parametrize("site", ["hook_rot_q", "hook_rot_k", "hook_v"])
def test_an_edit_changes_the_logits(model: HookedModel, site: str) -> None:
    ids = token_ids().to(model.device)
    plain = model.run_with_hooks(ids, fwd_hooks=[])
    silence = (f"blocks.0.attn.{site}", lambda states, hook: torch.zeros_like(states))
    edited = model.run_with_hooks(ids, fwd_hooks=[silence])
    assert edited.device.type == "cuda"
    assert float((edited - plain).abs().amax()) > 0.1


def test_the_doctor_finds_the_model_healthy(model: HookedModel) -> None:
    result = diagnose(model)
    assert [check.found for check in result.checks if check.outcome == "deviates"] == []
    assert result.healthy
