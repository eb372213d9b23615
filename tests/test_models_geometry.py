"""Geometry is measured on the computation: of real families, and of states made for the purpose."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import (
    FAMILIES,
    Family,
    Frequencies,
    llama,
    powers,
    rope,
    save_model,
    turn,
)
from torch import Tensor, nn

from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.models.geometry import (
    ConstantStates,
    candidate_frequencies,
    measure_geometry,
    probe_positions,
)
from mi_massive.rope import ModelGeometry


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_heads_blocks_layout_and_frequencies_are_those_of_the_family(
    family: Family, tmp_path: Path
) -> None:
    geometry = load_model(family.save(tmp_path)).geometry
    assert geometry.blocks == family.blocks
    assert geometry.rotates == family.rotates
    assert geometry.training_context == 128
    for layer, inv_freq in zip(geometry.layers, family.inv_freq, strict=True):
        assert layer.n_heads == family.n_heads
        assert layer.n_key_value_heads == family.n_key_value_heads
        assert layer.d_head == family.d_head
        assert (layer.rotary is None) == (inv_freq is None)
        if layer.rotary is not None and inv_freq is not None:
            assert layer.rotary.layout == family.layout
            torch.testing.assert_close(layer.rotary.inv_freq, inv_freq, rtol=1e-6, atol=0)


# States whose rotation is known, without a model.


def constant(
    inv_freq: Frequencies | None,
    layout: str = "half_split",
    *,
    block: int = 0,
    n_kv: int = 2,
    d_head: int = 8,
    factor: float = 1.0,
    positions: Tensor | None = None,
) -> ConstantStates:
    """Random queries and keys, the same at every position and then rotated."""
    positions = probe_positions(128) if positions is None else positions
    generator = torch.Generator().manual_seed(block)
    states: list[Tensor] = []
    for n in (4, n_kv):
        first = torch.randn(1, n, 1, d_head, generator=generator)
        held = first.expand(1, n, int(positions[-1]) + 1, d_head)
        turned = held if inv_freq is None else turn(held, inv_freq, layout, factor)
        states.append(turned[0][:, positions].float())
    return ConstantStates(block, *states)


def measure(states: list[ConstantStates], frequencies: list[Frequencies]) -> ModelGeometry:
    positions = probe_positions(128)
    return measure_geometry(states, positions, frequencies=frequencies, training_context=None)


@pytest.mark.parametrize("layout", ["half_split", "interleaved"])
@pytest.mark.parametrize("n_pairs", [1, 2, 4])
def test_rotation_is_found_among_wrong_candidates(layout: str, n_pairs: int) -> None:
    true = powers(5e5, n_pairs) * 0.7
    wrong = [powers(1e4, n_pairs), powers(5e5, n_pairs), true * 1.02, powers(1e4, 16)]
    rotary = measure([constant(true, layout)], [*wrong, true]).layers[0].rotary
    assert rotary is not None
    assert rotary.inv_freq is true
    # One rotated pair of neighbours is the same in both layouts.
    assert rotary.layout == (layout if n_pairs > 1 else "half_split")


def test_layers_differ_in_frequencies_and_one_does_not_rotate() -> None:
    fast, slow = powers(1e4, 4), powers(1e6, 4)
    states = [constant(fast), constant(None, block=1), constant(slow, block=4)]
    geometry = measure(states, [slow, fast])
    found = [layer.rotary and layer.rotary.inv_freq for layer in geometry.layers]
    assert found[0] is fast
    assert found[1] is None
    assert found[2] is slow
    assert geometry.blocks == (0, 1, 4)


def test_constant_factor_is_no_part_of_the_rotation() -> None:
    rotary = measure([constant(powers(1e4, 4), factor=1.14)], [powers(1e4, 4)]).layers[0].rotary
    assert rotary is not None


def test_candidates_of_different_widths_stand_beside_each_other() -> None:
    candidates = [powers(1e4, n) for n in (256, 4, 3, 2, 1)]
    for _ in range(5):  # the type checker looks at one of them at random
        assert measure([constant(powers(1e4, 3))], candidates).n_pairs == 3


def test_states_of_zeros_are_told_by_the_others() -> None:
    turned = constant(powers(1e4, 4))
    without_keys = ConstantStates(0, turned.query, torch.zeros_like(turned.key))
    assert measure([without_keys], [powers(1e4, 4)]).rotates
    with pytest.raises(ValueError, match="queries and keys of block 3 must not all be zero"):
        measure([ConstantStates(3, 0 * turned.query, 0 * turned.key)], [powers(1e4, 4)])


def test_overflow_is_refused_and_not_taken_for_a_layer_without_rotation() -> None:
    turned = constant(powers(1e4, 4))
    turned.key[0, 2, 1] = math.inf
    with pytest.raises(ValueError, match=r"keys of block 0 must be finite.*float16 overflows"):
        measure([turned], [powers(1e4, 4)])


def test_unknown_rotation_is_refused_with_what_was_found() -> None:
    message = r"block 0 must rotate .*, got 1 sets of frequencies .* relative error of \d"
    with pytest.raises(UnsupportedModelError, match=message):
        measure([constant(powers(1e4, 4))], [powers(2e4, 4)])
    with pytest.raises(UnsupportedModelError, match="got 0 sets of frequencies"):
        measure([constant(powers(1e4, 4))], [])


def test_layers_with_different_heads_are_refused() -> None:
    states = [constant(None), constant(None, block=1, n_kv=4)]
    with pytest.raises(UnsupportedModelError, match=r"got .* = \[\(4, 2, 8\), \(4, 4, 8\)\]"):
        measure(states, [])


def test_no_layer_at_all_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="got no layer that does"):
        measure([], [])


def test_probe_positions_stay_within_the_context() -> None:
    for context in (2, 5, 128, 4096, 1 << 20, None):
        positions = probe_positions(context).tolist()
        assert positions[0] == 0
        assert positions == sorted(set(positions))
        assert positions[-1] < min(context or 512, 2048)


class TestCandidates:
    def test_originals_of_a_scaling_and_repetitions_are_left_out(self) -> None:
        model = nn.Module()
        model.register_buffer("original_inv_freq", powers(1e4, 4))
        model.register_buffer("inv_freq", powers(1e4, 4) / 8)
        model.register_buffer("full_attention_inv_freq", powers(1e6, 4))
        model.layer = nn.Module()
        model.layer.register_buffer("inv_freq", powers(1e4, 4) / 8)
        found = candidate_frequencies(model)
        assert len(found) == 2
        assert torch.equal(found[0], powers(1e4, 4) / 8)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_tables_of_sines_and_cosines_give_their_frequencies(self, dtype: torch.dtype) -> None:
        angles = torch.arange(2048, dtype=torch.float64)[:, None] * powers(1e4, 8)
        model = nn.Module()
        table = torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)
        model.register_buffer("embed_positions", table)
        (found,) = candidate_frequencies(model)
        relative = 1e-6 if dtype == torch.float32 else 1e-3
        torch.testing.assert_close(found, powers(1e4, 8), rtol=relative, atol=1e-6)


# Whole models at the edge of what is served.


def load_saved(model: transformers.PreTrainedModel, folder: Path) -> HookedModel:
    return load_model(save_model(model, folder))


def test_longrope_is_measured_and_used_within_its_original_context(tmp_path: Path) -> None:
    family = llama(
        rotation=rope(
            1e4,
            "longrope",
            short_factor=[1.0 + p / 4 for p in range(8)],
            long_factor=[4.0] * 8,
            original_max_position_embeddings=32,
        )
    )
    geometry = load_model(family.save(tmp_path)).geometry
    assert geometry.training_context == 32  # beyond, the model turns by its second set
    rotary = geometry.layers[0].rotary
    assert rotary is not None
    expected = powers(1e4, 8) / (1.0 + torch.arange(8) / 4)
    torch.testing.assert_close(rotary.inv_freq, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gptj", "gpt_neox", "cohere2", "opt"])
def test_low_precision_gives_the_same_geometry(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    geometry = load_model(family.save(tmp_path), dtype=dtype).geometry
    for layer, inv_freq in zip(geometry.layers, family.inv_freq, strict=True):
        assert (layer.rotary is None) == (inv_freq is None)
        if layer.rotary is not None and inv_freq is not None:
            assert layer.rotary.layout == family.layout
            torch.testing.assert_close(layer.rotary.inv_freq, inv_freq, rtol=1e-3, atol=1e-5)


def test_attention_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=64, n_layer=1, n_head=4)
    with pytest.raises(UnsupportedModelError, match="must hand queries, keys and values to"):
        load_saved(transformers.BloomForCausalLM(config), tmp_path)


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)
    with pytest.raises(UnsupportedModelError, match="it has no attention, or one of its own"):
        load_saved(transformers.MambaForCausalLM(config), tmp_path)


def test_latent_attention_is_refused_with_its_block(tmp_path: Path) -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=1,
        max_position_embeddings=64,
    )
    with pytest.raises(UnsupportedModelError, match="block 0 must rotate"):
        load_saved(transformers.DeepseekV3ForCausalLM(config), tmp_path)
