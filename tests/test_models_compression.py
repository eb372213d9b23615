"""Each method rounds every weight, and what is rounded is a model like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama, save_model, token_ids

from mi_massive import HookedModel, UnsupportedModelError, capture_norms, load_model, quantize
from mi_massive.models import compression, oneshot
from mi_massive.models.compression import calibration_windows, quantization_of
from mi_massive.models.oneshot import linear_layers
from mi_massive.quantization_schemes import QuantizationScheme, round_to_nearest

IDS = token_ids(2, 12, seed=3)
TEXT = token_ids(20, 20).tolist()
SMALL: dict[str, Any] = {"calibration": TEXT, "n_calibration": 4, "calibration_length": 32}
FOUR: dict[str, dict[str, Any]] = {m: {"method": m, "group": 16} for m in ("rtn", "gptq", "awq")}
EIGHT: dict[str, dict[str, Any]] = {
    "smoothquant": {"method": "smoothquant", "bits": 8},
    "rtn8": {"method": "rtn", "bits": 8, "activation_bits": 8},
}

Quantized = Callable[[str], HookedModel]


@pytest.fixture(name="model", scope="module")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(save_model(llama().build(), tmp_path_factory.mktemp("model")))


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture(name="quantized", scope="module")
def fixture_quantized(model: HookedModel, folder: Path) -> Quantized:
    return lambda name: quantize(model, **SMALL, **(FOUR | EIGHT)[name], cache=folder)


def weights(model: HookedModel) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach() for name, layer in linear_layers(model.plain).items()}


@torch.no_grad()
def logits(model: HookedModel) -> torch.Tensor:
    return model.plain(input_ids=IDS).logits


@pytest.mark.parametrize("name", [*FOUR, *EIGHT])
def test_a_method_changes_every_layer_and_nothing_of_the_original(
    model: HookedModel, quantized: Quantized, name: str
) -> None:
    before = {key: value.clone() for key, value in weights(model).items()}
    after = weights(quantized(name))
    assert after.keys() == before.keys()
    assert not [key for key in before if torch.equal(before[key], after[key])]
    assert all(torch.equal(before[key], value) for key, value in weights(model).items())


@pytest.mark.parametrize("name", [*FOUR])
def test_a_group_holds_no_more_values_than_its_bits_can_tell_apart(
    quantized: Quantized, name: str
) -> None:
    for weight in weights(quantized(name)).values():
        groups = weight.unflatten(1, (-1, 16)).flatten(0, 1)
        assert max(len(group.unique()) for group in groups) <= 2**4


def test_round_to_nearest_equals_its_plain_definition(
    model: HookedModel, quantized: Quantized
) -> None:
    rounded = weights(quantized("rtn"))
    for name, weight in weights(model).items():
        expected = round_to_nearest(weight, bits=4, group=16)
        torch.testing.assert_close(rounded[name], expected, rtol=0, atol=1e-6)


def test_methods_that_look_at_text_differ_from_round_to_nearest(quantized: Quantized) -> None:
    found = [logits(quantized(name)) for name in FOUR]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[1], found[2])


@pytest.mark.parametrize("name", [*EIGHT])
def test_activations_are_rounded_while_the_model_runs(quantized: Quantized, name: str) -> None:
    held = quantized(name)
    unrounded = llama().build()
    own = held.plain.state_dict()
    unrounded.load_state_dict({key: own[key] for key in unrounded.state_dict()})
    with torch.no_grad():
        assert not torch.allclose(unrounded(IDS).logits, logits(held), atol=1e-2)


@pytest.mark.parametrize("name", ["gptq", "rtn8"])
def test_captures_hooks_and_generation_work(quantized: Quantized, name: str) -> None:
    held = quantized(name)
    assert capture_norms(held, IDS.tolist()).q.isfinite().all()
    hooked = held.run_with_hooks(IDS, fwd_hooks=[("blocks.0.attn.hook_rot_q", lambda x, hook: x)])
    torch.testing.assert_close(hooked, logits(held), rtol=0, atol=1e-3)
    longer: Any = held.plain
    assert longer.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] == 15


def test_the_second_time_the_model_comes_from_the_cache(
    model: HookedModel, quantized: Quantized, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantized("gptq")

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("nothing is to be computed again")

    monkeypatch.setattr(compression, "run_oneshot", refuse)
    second = quantized("gptq")
    assert second.revision == first.revision
    assert torch.equal(logits(first), logits(second))
    with pytest.raises(AssertionError, match="computed again"):
        quantize(model, **SMALL, **FOUR["gptq"], seed=1, cache=folder)
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_the_note_says_method_bits_and_what_the_weights_were(
    model: HookedModel, quantized: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = quantized("gptq")
    assert str(held.weights_note).startswith("weights were quantized by gptq to 4 bits in groups")
    facts = quantization_of(held)
    assert facts is not None
    assert facts["bits_per_weight"] == pytest.approx(4 + (16 + 4) / 16)
    assert quantization_of(model) is None
    monkeypatch.setattr(model, "weights_note", "weights were dequantized from a Q4_1 GGUF file")
    assert str(quantized("rtn").weights_note).endswith("before that " + str(model.weights_note))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "int4"}, "method must be one of rtn, gptq, awq, smoothquant, got 'int4'"),
        ({"method": "rtn", "bits": 9}, "bits must be between 2 and 8"),
        ({"method": "smoothquant", "bits": 4}, "bits must be 8 for weights and activations"),
        ({"method": "gptq", "activation_bits": 8}, "activation_bits must be None for gptq, got 8"),
        ({"method": "rtn", "group": 7}, "group must divide the 64 inputs of .*, got 7; 4 does"),
        ({"method": "gptq", "group": 16}, "calibration must hold texts .*, got None"),
        (
            {"method": "awq", "group": 16, "calibration": [[1, 2, 3]], "calibration_length": 32},
            "calibration must fill at least one window of 32 tokens, got 3",
        ),
    ],
)
def test_bad_arguments_are_refused(
    model: HookedModel, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        quantize(model, **arguments)


@pytest.mark.parametrize("name", ["rtn", "rtn8"])
def test_a_quantized_model_is_not_quantized_again(quantized: Quantized, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="must have weights of full precision"):
        quantize(quantized(name), method="rtn", group=16)


def test_without_the_extra_the_sentence_says_what_to_install(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oneshot, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'mi-massive\[quantize\]'"):
        quantize(model, method="rtn")


def test_windows_depend_on_the_seed_and_hold_the_text(model: HookedModel) -> None:
    made = [calibration_windows(model, TEXT, n=4, length=32, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == (4, 32)


def test_a_group_of_zeros_stays_zero_and_zero_is_always_kept() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, 3.0]])
    rounded = round_to_nearest(weight, bits=2, group=2)
    torch.testing.assert_close(rounded, weight)


def test_stored_bits_count_scale_and_zero() -> None:
    assert QuantizationScheme(method="rtn", bits=4, group=64).bits_per_weight(576) == 4.3125
