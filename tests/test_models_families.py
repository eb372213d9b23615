"""Each family, loaded from a folder: what its attention receives, and what an edit there does.

Queries, keys and values are compared with `tiny_models.expected_inputs`: forward hooks on the
projections of the untouched transformers model, and a rotation written for the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, Family, expected_inputs, token_ids
from torch import Tensor
from transformers import PreTrainedModel

from mi_massive.models import HookedModel, load_model
from mi_massive.models.attention import AttentionInputs, visiting

EXPECTED_AT = {
    "hook_q": "raw_q",
    "hook_k": "raw_k",
    "hook_v": "v",
    "hook_rot_q": "q",
    "hook_rot_k": "k",
}
"""What each hook point carries, in the words of `expected_inputs`."""


@dataclass(frozen=True)
class Served:
    """A family as the package serves it, beside the untouched model."""

    family: Family
    model: HookedModel
    untouched: PreTrainedModel
    ids: Tensor
    expected: dict[int, dict[str, Tensor]]

    def site(self, role: str, block: int | None = None) -> str:
        """Hook point of what enters the attention of a block, the first one if not named."""
        block = self.family.blocks[0] if block is None else block
        return f"blocks.{block}.attn.hook_{'rot_' if self.family.rotates else ''}{role}"

    def untouched_output(self, ids: Tensor) -> Tensor:
        """Logits, or hidden states of a model without head."""
        with torch.no_grad():
            return self.untouched(ids)[0]

    def require_head(self) -> None:
        if not self.family.has_head:
            pytest.skip("no logits: the checkpoint has no head")

    def require_cache(self) -> None:
        if not self.family.is_causal:
            pytest.skip("an encoder keeps no key-value cache")


@pytest.fixture(scope="module", name="served", params=FAMILIES.values(), ids=FAMILIES)
def fixture_served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    family: Family = request.param
    untouched, ids = family.build(), token_ids()
    folder = family.save(tmp_path_factory.mktemp(family.name))
    expected = expected_inputs(family, untouched, ids)
    return Served(family, load_model(folder), untouched, ids, expected)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` times the largest expected number, or times one if that is larger."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


def far_apart(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) > 1e-2 * float(second.abs().max())


class TestAttentionInputs:
    def test_they_equal_the_projections_with_norm_and_rotation(self, served: Served) -> None:
        seen: list[AttentionInputs] = []
        served.model.attention_inputs(served.ids, seen.append)
        assert tuple(inputs.block for inputs in seen) == served.family.blocks
        for inputs in seen:
            expected = served.expected[inputs.block]
            assert_near(inputs.query, expected["q"])
            assert_near(inputs.key, expected["k"])
            assert_near(inputs.value, expected["v"])
            n_heads, n_kv = served.family.n_heads, served.family.n_key_value_heads
            assert inputs.query.shape == (2, n_heads, 12, 16)
            assert inputs.key.shape == inputs.value.shape == (2, n_kv, 12, 16)

    def test_reading_them_leaves_the_logits_as_they_are(self, served: Served) -> None:
        with torch.no_grad(), visiting(served.model.plain, lambda inputs: None):
            seen = served.model.plain(served.ids)[0]
        with torch.no_grad():
            unseen = served.model.plain(served.ids)[0]
        assert torch.equal(seen, unseen)

    def test_a_replacement_reaches_the_next_layer(self, served: Served) -> None:
        first, last = served.family.blocks[0], served.family.blocks[-1]
        queries: list[Tensor] = []

        def replace(inputs: AttentionInputs) -> AttentionInputs | None:
            if inputs.block == last:
                queries.append(inputs.query.clone())
            if inputs.block != first:
                return None
            return AttentionInputs(first, inputs.query, inputs.key, torch.zeros_like(inputs.value))

        served.model.attention_inputs(served.ids, replace)
        assert far_apart(queries[0], served.expected[last]["q"])


class TestHookPoints:
    def test_exactly_those_that_carry_something_are_offered(self, served: Served) -> None:
        hooks = ["hook_q", "hook_k", "hook_v"]
        hooks += ["hook_rot_q", "hook_rot_k"] if served.family.rotates else []
        expected = {
            f"blocks.{block}.attn.{hook}" for block in served.family.blocks for hook in hooks
        }
        assert set(served.model.sites) == expected

    def test_each_fires_once_with_the_projection_it_is_named_for(self, served: Served) -> None:
        fired: dict[str, list[Tensor]] = {}

        def note(activation: Tensor, hook: Any) -> None:
            fired.setdefault(hook.name, []).append(activation.clone())

        bridge = served.model.bridge
        with torch.no_grad(), bridge.hooks(fwd_hooks=[(name, note) for name in served.model.sites]):
            bridge(served.ids, return_type=None)
        assert set(fired) == set(served.model.sites)
        for name, activations in fired.items():
            _, block, _, hook = name.split(".")
            expected = served.expected[int(block)][EXPECTED_AT[hook]]
            assert len(activations) == 1, name
            assert_near(activations[0].transpose(1, 2), expected)


class TestLogits:
    def test_plain_model_equals_the_untouched_one(self, served: Served) -> None:
        plain = served.model.plain if served.family.has_head else served.model.plain.base_model
        with torch.no_grad():
            assert_near(plain(served.ids)[0], served.untouched_output(served.ids))

    def test_bridge_equals_the_untouched_model(self, served: Served) -> None:
        served.require_head()
        logits = served.model.run_with_hooks(served.ids, fwd_hooks=[])
        assert_near(logits, served.untouched_output(served.ids))

    def test_building_the_bridge_leaves_the_plain_model_as_it_was(self, served: Served) -> None:
        with torch.no_grad():
            before = served.model.plain(served.ids)[0]
            assert served.model.bridge is served.model.bridge
            assert torch.equal(served.model.plain(served.ids)[0], before)


def edited(activation: Tensor) -> Tensor:
    """Head 0 gets other numbers in a quarter of its dimensions; [batch, pos, head, d_head]."""
    changed = activation.clone()
    changed[:, :, 0, :4] = 3.0
    return changed


class TestEdits:
    @pytest.mark.parametrize("role", ["q", "k"])
    def test_an_edit_changes_the_logits_and_a_copy_does_not(
        self, served: Served, role: str
    ) -> None:
        served.require_head()
        run, name = served.model.run_with_hooks, served.site(role)
        untouched = run(served.ids, fwd_hooks=[])
        changed = run(served.ids, fwd_hooks=[(name, lambda x, hook: edited(x))])
        copied = run(served.ids, fwd_hooks=[(name, lambda x, hook: x.clone())])
        assert far_apart(changed, untouched)
        assert torch.equal(copied, untouched)

    def test_an_edit_of_the_prefill_persists_in_the_cache(self, served: Served) -> None:
        served.require_cache()
        bridge, n_prefix = served.model.bridge, served.ids.shape[1] - 1
        names = [served.site("k", block) for block in served.family.blocks]

        def prefix_edited(activation: Tensor, hook: Any) -> Tensor:
            return torch.cat([edited(activation[:, :n_prefix]), activation[:, n_prefix:]], dim=1)

        def decoded(hook: Callable[..., Tensor]) -> Tensor:
            with torch.no_grad():
                with bridge.hooks(fwd_hooks=[(name, hook) for name in names]):
                    cached = bridge(
                        served.ids[:, :n_prefix], return_type="logits_and_cache", use_cache=True
                    )
                return bridge(served.ids[:, n_prefix:], past_key_values=cached[1])[:, -1]

        hooks = [(name, prefix_edited) for name in names]
        in_one_pass = served.model.run_with_hooks(served.ids, fwd_hooks=hooks)[:, -1]
        with_edit = decoded(prefix_edited)
        assert_near(with_edit, in_one_pass)
        assert far_apart(with_edit, decoded(lambda activation, hook: activation.clone()))

    def test_in_place_edits_of_the_plain_model_persist_and_new_tensors_do_not(
        self, served: Served
    ) -> None:
        served.require_cache()
        plain, n_prefix = served.model.plain, served.ids.shape[1] - 1

        def in_place(inputs: AttentionInputs) -> None:
            inputs.key[:, 0, :n_prefix, :4] = 3.0

        def with_new_keys(inputs: AttentionInputs) -> AttentionInputs:
            key = inputs.key.clone()
            key[:, 0, :n_prefix, :4] = 3.0
            return AttentionInputs(inputs.block, inputs.query, key, inputs.value)

        def prefilled(visitor: Callable[[AttentionInputs], AttentionInputs | None]) -> Any:
            with visiting(plain, visitor):
                return plain(served.ids[:, :n_prefix], use_cache=True)

        def decoded(cache: Any) -> Tensor:
            return plain(served.ids[:, n_prefix:], past_key_values=cache)[0][:, -1]

        with torch.no_grad():
            with visiting(plain, in_place):
                in_one_pass = plain(served.ids, use_cache=False)[0][:, -1]
            kept, passing = prefilled(in_place), prefilled(with_new_keys)
            assert_near(kept[0], passing[0])  # within the pass both do the same
            first = served.expected[served.family.blocks[0]]["k"][:, :, :n_prefix]
            cached = _first_keys(passing.past_key_values)
            assert_near(cached, first[:, :, -cached.shape[2] :])  # a sliding window keeps the end
            assert bool((_first_keys(kept.past_key_values)[:, 0, :, :4] == 3.0).all())
            from_kept = decoded(kept.past_key_values)
            assert_near(from_kept, in_one_pass)
            assert far_apart(decoded(passing.past_key_values), from_kept)


def _first_keys(cache: Any) -> Tensor:
    """Keys of the first layer that has any: a hybrid model's cache holds other states too."""
    found = [getattr(layer, "keys", None) for layer in cache.layers]
    return next(keys for keys in found if keys is not None and keys.numel())


class TestPaddedPrompts:
    def test_a_mask_keeps_padding_out_of_the_real_tokens(self, served: Served) -> None:
        n_real = 7
        mask = torch.ones_like(served.ids)
        mask[1, n_real:] = 0
        batch: dict[int, AttentionInputs] = {}
        alone: dict[int, AttentionInputs] = {}
        served.model.attention_inputs(
            served.ids, lambda seen: batch.__setitem__(seen.block, seen), attention_mask=mask
        )
        served.model.attention_inputs(
            served.ids[1:, :n_real], lambda seen: alone.__setitem__(seen.block, seen)
        )
        for block in served.family.blocks:
            for name in ("query", "key", "value"):
                together, apart = getattr(batch[block], name), getattr(alone[block], name)
                assert_near(together[1, :, :n_real], apart[0])


def test_soft_cap_on_attention_logits_is_kept(tmp_path: Path) -> None:
    family = FAMILIES["gemma2"]
    model, uncapped = load_model(family.save(tmp_path)), family.build()
    uncapped.set_attn_implementation("sdpa")  # transformers drops the cap there without a word
    assert model.kernel == "eager"
    with torch.no_grad():
        capped, dropped = model.plain(token_ids())[0], uncapped(token_ids())[0]
    assert far_apart(capped, dropped)
