"""Language towers of models that read images as well: on texts they are ordinary decoders.

Qwen2-VL turns its rotary pairs by three position axes, which differ on images alone.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_tokenizer, collected, powers, token_ids, turn
from torch import Tensor
from transformers import PreTrainedModel

from mi_massive import capture_norms, disrupt, load_model, preset
from mi_massive.models import HookedModel, UnsupportedModelError, build_shape
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.models.geometry import ConstantStates, measure_geometry, with_position_axes

AXES = [0, 0, 1, 1, 1, 2, 2, 2]
"""Of the tiny Qwen2-VL: sections of 2, 3 and 3 pairs."""
THETA = {"qwen-2-vl": 1e6, "llava": 1e4}

each_tower = pytest.mark.parametrize("family", THETA)


def load(family: str, folder: Path) -> HookedModel:
    """The shape of a family, saved with a tokenizer and loaded like any folder."""
    model: Any = build_shape(family).plain
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return load_model(folder)


def seen(model: HookedModel, run: Any) -> list[AttentionInputs]:
    states: list[AttentionInputs] = []
    with torch.no_grad(), visiting(model.plain, states.append):
        run(model.plain.base_model)
    return states


def projections(model: PreTrainedModel, run: Any) -> list[dict[str, Tensor]]:
    """Queries, keys and values of each layer as they leave the weights: [batch, head, pos, 16]."""
    base = "model.language_model.layers.{}.self_attn.{}_proj"
    paths = {(block, role): base.format(block, role) for block in (0, 1) for role in "qkv"}
    with torch.no_grad(), collected(model, list(paths.values())) as outputs:
        run(model.base_model)
    return [
        {r: outputs[paths[block, r]].unflatten(-1, (-1, 16)).transpose(1, 2) for r in "qkv"}
        for block in (0, 1)
    ]


@each_tower
def test_a_text_enters_the_attention_by_ordinary_rope(family: str, tmp_path: Path) -> None:
    model = load(family, tmp_path)
    ids = token_ids()
    inputs: list[AttentionInputs] = []
    model.attention_inputs(ids, inputs.append)
    expected = projections(model.plain, lambda body: body(input_ids=ids))
    assert [each.block for each in inputs] == [0, 1]
    for each, raw in zip(inputs, expected, strict=True):
        inv_freq = powers(THETA[family], 8)
        for state, role in ((each.query, "q"), (each.key, "k")):
            torch.testing.assert_close(state, turn(raw[role], inv_freq, "half_split", 1.0).float())
        torch.testing.assert_close(each.value, raw["v"])


@each_tower
def test_texts_are_captured_and_pictures_are_not_needed(family: str, tmp_path: Path) -> None:
    model = load(family, tmp_path)
    assert model.has_head
    assert model.is_causal
    norms = capture_norms(model, ["t1 t2 t3", "t4 t5 t6 t7"])
    assert norms.layers == (0, 1)
    assert norms.geometry.rotates
    assert norms.geometry.training_context == 128


@each_tower
def test_a_disrupted_tower_generates_from_padded_texts(family: str, tmp_path: Path) -> None:
    model: Any = load(family, tmp_path)
    ids = torch.tensor([[63, 63, 63, 4, 5, 6], [7, 8, 9, 10, 11, 12]])  # the first is padded
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        settings: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
        settings |= {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        made = model.plain.generate(ids, attention_mask=mask, **settings)
        return torch.stack(made.logits, dim=1)

    intact = logits(ids, mask)
    with disrupt(model, preset("paper", k=4)) as edits:
        both, alone = logits(ids, mask), logits(ids[:1, 3:], mask[:1, 3:])
    assert edits.total > 0
    assert not torch.allclose(both, intact)
    torch.testing.assert_close(both[:1], alone)


@each_tower
def test_hook_points_are_refused_before_anything_is_installed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[object] = []
    # Nothing may be installed even where the refusal is missing.
    monkeypatch.setattr("subprocess.check_call", lambda command, **_: commands.append(command))
    model = load(family, tmp_path)
    with pytest.raises(UnsupportedModelError, match="must read no images to have hook points"):
        _ = model.bridge
    assert commands == []


def test_an_edit_refuses_positions_of_a_picture() -> None:
    model = build_shape("qwen-2-vl")
    places = torch.arange(12).repeat(3, 1, 1)
    places[2, 0, 5] = 9
    with (
        pytest.raises(ValueError, match="position_ids must be equal on all position axes"),
        disrupt(model, preset("paper", k=1)),
    ):
        model.plain.base_model(input_ids=token_ids(batch=1), position_ids=places)


def test_each_pair_is_given_to_the_axis_that_turns_it() -> None:
    first, second = (layer.rotary for layer in build_shape("qwen-2-vl").geometry.layers)
    assert first is not None
    assert first.axis_of_pair is not None
    assert first.axis_of_pair.tolist() == AXES
    assert first.n_position_axes == 3
    assert first is second  # one object, as for ordinary RoPE


@pytest.mark.parametrize("family", ["llava", "llama-3", "gpt-neox"])
def test_ordinary_rope_names_no_axes(family: str) -> None:
    for layer in build_shape(family).geometry.layers:
        assert layer.rotary is not None
        assert layer.rotary.axis_of_pair is None
        assert layer.rotary.n_position_axes == 1


def test_three_different_positions_turn_pairs_by_their_own_axis() -> None:
    model = build_shape("qwen-2-vl")
    rotary = model.geometry.layers[0].rotary
    assert rotary is not None
    assert rotary.axis_of_pair is not None
    ids = token_ids(batch=1)
    places = torch.randint(100, (3, 1, 12), generator=torch.Generator().manual_seed(1))

    def run(body: Any) -> None:
        body(input_ids=ids, position_ids=places)

    angles = places[rotary.axis_of_pair, 0].T.double() * rotary.inv_freq  # [pos, pair]
    turned = torch.polar(torch.ones_like(angles), angles)
    for each, raw in zip(seen(model, run), projections(model.plain, run), strict=True):
        for state, role in ((each.query, "q"), (each.key, "k")):
            plane = torch.complex(raw[role][..., :8].double(), raw[role][..., 8:].double()) * turned
            expected = torch.cat([plane.real, plane.imag], dim=-1).float()
            torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


def test_axes_in_another_order_are_found_as_they_are() -> None:
    model: Any = build_shape("qwen-2-vl").plain
    rotation = model.model.language_model.rotary_emb
    rotation.mrope_section = [1, 2, 5]
    held = HookedModel.from_transformers(model, None, name="other sections", folder=Path("none"))
    rotary = held.geometry.layers[0].rotary
    assert rotary is not None
    assert rotary.axis_of_pair is not None
    assert rotary.axis_of_pair.tolist() == [0, 1, 1, 2, 2, 2, 2, 2]


def test_a_pair_that_two_axes_turn_is_refused() -> None:
    positions = torch.tensor([0, 1, 2, 4, 16, 63])
    state = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    inv_freq = powers(1e2, 2)
    whole = turn(state.expand(2, 64, 4), inv_freq, "half_split", 1.0)[:, positions].float()
    states = ConstantStates(0, whole, whole)
    geometry = measure_geometry([states], positions, frequencies=[inv_freq], training_context=64)
    with pytest.raises(
        UnsupportedModelError,
        match=r"each rotary pair of block 0 must turn with one position axis alone, got pair 0",
    ):
        with_position_axes(geometry, [[states], [states]])
