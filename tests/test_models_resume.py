"""A resumed run equals the whole run in every family, with and without a patch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, Family, token_ids
from torch import Tensor

from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.models.resume import Resumer

DECODERS = [f for f in FAMILIES.values() if f.is_causal and f.has_head]
START = 5


def tripled(activation: Tensor, hook: Any) -> Tensor:
    return activation * 3.0


@pytest.mark.parametrize("family", DECODERS, ids=lambda family: family.name)
def test_a_run_resumed_above_and_behind_equals_the_whole_run(
    family: Family, tmp_path: Path
) -> None:
    """Longer than the sliding window of the families that have one."""
    model = load_model(family.save(tmp_path))
    ids = token_ids(2, 14)
    cached = family.name != "jamba"
    resumer = Resumer(model, reuse="prefix" if cached else "layers")
    run = resumer.run(ids, blocks=range(len(model.bridge.blocks)))
    with torch.no_grad():
        torch.testing.assert_close(run.logits, model.bridge(ids)[:, -1])
    for block in family.blocks:
        for start in (0, START) if cached else (0,):
            plain = resumer.again(run, (), block=block, start=start, copies=2)
            expected = run.logits.repeat_interleave(2, dim=0)
            torch.testing.assert_close(plain, expected, atol=1e-4, rtol=1e-4)
            resumer.require_same(run, block=block, start=start)

            def late(activation: Tensor, hook: Any, start: int = start) -> Tensor:
                edited = activation.clone()
                edited[:, START - start :] += 1.0
                return edited

            hook = f"blocks.{block}.attn.hook_v"
            patched = resumer.again(run, [(hook, late)], block=block, start=start, copies=1)

            def whole(activation: Tensor, hook: Any) -> Tensor:
                edited = activation.clone()
                edited[:, START:] += 1.0
                return edited

            expected = model.run_with_hooks(ids, fwd_hooks=[(hook, whole)])[:, -1]
            torch.testing.assert_close(patched, expected, atol=1e-4, rtol=1e-4)
            assert float((expected - run.logits).abs().max()) > 1e-3  # the patch does something
    # The blocks are themselves again.
    with torch.no_grad():
        torch.testing.assert_close(run.logits, model.bridge(ids)[:, -1])


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(FAMILIES["llama"].save(tmp_path_factory.mktemp("llama")))


def test_the_model_is_whole_again_after_a_failed_run(model: HookedModel) -> None:
    ids = token_ids(1, 6)
    resumer = Resumer(model)
    run = resumer.run(ids, blocks=(1,))

    def fail(activation: Tensor, hook: Any) -> None:
        raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError, match="planted"):
        resumer.again(run, [("blocks.1.attn.hook_v", fail)], block=1, start=2, copies=1)
    with torch.no_grad():
        torch.testing.assert_close(run.logits, model.bridge(ids)[:, -1])


def test_a_hook_below_the_first_block_is_noticed(model: HookedModel) -> None:
    resumer = Resumer(model)
    run = resumer.run(token_ids(1, 6), blocks=(1,))
    with pytest.raises(RuntimeError, match=r"every hook must fire, got none at blocks.0.attn.hook"):
        resumer.again(run, [("blocks.0.attn.hook_v", tripled)], block=1, start=0, copies=1)


def test_a_hook_point_that_does_not_exist_is_refused(model: HookedModel) -> None:
    with pytest.raises(UnsupportedModelError, match=r"blocks.0.attn.hook_w must be a hook point"):
        Resumer(model).run(token_ids(1, 6), names=["blocks.0.attn.hook_w"], blocks=())


def test_a_resumed_run_that_differs_is_refused(model: HookedModel) -> None:
    resumer = Resumer(model)
    run = resumer.run(token_ids(1, 6), blocks=(1,))
    run.residuals[1].mul_(1.5)
    with pytest.raises(
        UnsupportedModelError, match=r"a run resumed at block 1 and position 0 must"
    ):
        resumer.require_same(run, block=1, start=0)
