"""The doctor finds a healthy model healthy, and what was planted in a sick one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, llama, save_model

from mi_massive import doctor
from mi_massive.doctor import DoctorResult, diagnose
from mi_massive.models import HookedModel, load_model
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import tokenize_prompts

ROTATION = "Is the rotation known?"
BRIDGE = "Do hook points run the same model as captures?"
SITES = "Does every site fire?"
HOOKS = "Do hook points show what captures read?"
BATCH = "Does batch size leave the norms alone?"
PADDING = "Does padding stay out?"
DTYPE = "Does the dtype hold the activations?"
QUESTIONS = [ROTATION, BRIDGE, SITES, HOOKS, BATCH, PADDING, DTYPE]


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama().save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(name="model")
def fixture_model(folder: Path) -> HookedModel:
    """Loaded anew for each test, which plants its fault in it."""
    return load_model(folder)


def outcomes(result: DoctorResult, outcome: str) -> list[str]:
    return [check.question for check in result.checks if check.outcome == outcome]


def found(result: DoctorResult, question: str) -> str:
    return next(check.found for check in result.checks if check.question == question)


def test_a_healthy_model_is_ok_in_every_check(model: HookedModel) -> None:
    result = diagnose(model)
    assert [check.question for check in result.checks] == QUESTIONS
    assert outcomes(result, "ok") == QUESTIONS
    assert result.healthy
    assert "2 of 2 attention layers rotate (half_split, 8 pairs)" in found(result, ROTATION)
    assert found(result, SITES) == "10 of 10 hook points fire"
    assert result.provenance.model == model.name


def test_a_bridge_that_computes_something_else_deviates(model: HookedModel) -> None:
    point = model.bridge.hook_dict["blocks.0.hook_resid_pre"]
    point.add_perma_hook(lambda states, hook: states + 1)  # left behind by an experiment
    result = diagnose(model)
    assert outcomes(result, "deviates") == [BRIDGE, HOOKS]
    assert not result.healthy
    consequences = [check.consequence for check in result.checks if check.outcome == "deviates"]
    assert all(text.startswith("it cannot be said that ") for text in consequences)


def test_a_dead_hook_point_deviates_and_is_named(model: HookedModel) -> None:
    dead = "blocks.1.attn.hook_rot_k"
    assert dead in model.bridge.hook_dict
    model.bridge.blocks[1].attn.hook_rot_k = torch.nn.Identity()  # called in its place
    result = diagnose(model)
    assert outcomes(result, "deviates") == [SITES]
    assert found(result, SITES) == f"9 of 10 hook points fire; silent: {dead}"


@pytest.mark.parametrize(("rows", "deviating"), [(4, [BATCH]), (5, [PADDING])])
def test_norms_that_depend_on_the_batch_deviate(
    rows: int, deviating: list[str], model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = doctor.capture_norms

    def sick(model: HookedModel, prompts: Any, *, batch_size: int) -> AttentionNorms:
        norms = capture(model, prompts, batch_size=batch_size)
        if batch_size != rows:
            return norms
        return replace(norms, k_sums=replace(norms.k_sums, squares=1.01 * norms.k_sums.squares))

    monkeypatch.setattr(doctor, "capture_norms", sick)
    result = diagnose(model)
    assert outcomes(result, "deviates") == deviating
    assert ": 0.005 (" in found(result, deviating[0])  # half of a hundredth


def test_a_wrapped_bridge_has_one_form_to_look_at(model: HookedModel) -> None:
    result = diagnose(HookedModel.wrap(model.bridge))
    assert outcomes(result, "does not apply") == [BRIDGE]
    assert outcomes(result, "deviates") == []
    assert "there is one form of it" in found(result, BRIDGE)


def test_a_model_without_rope_is_told_what_is_refused(tmp_path: Path) -> None:
    result = diagnose(load_model(FAMILIES["gpt2"].save(tmp_path)))
    assert outcomes(result, "does not apply") == [ROTATION]
    assert outcomes(result, "deviates") == []
    assert result.checks[0].consequence.startswith("bands and symmetry are refused")
    assert found(result, SITES) == "6 of 6 hook points fire"


def test_an_encoder_without_a_head_has_no_logits_to_compare(tmp_path: Path) -> None:
    result = diagnose(load_model(FAMILIES["bert_bare"].save(tmp_path)))
    assert outcomes(result, "does not apply") == [ROTATION, BRIDGE]
    assert outcomes(result, "deviates") == []


def test_half_precision_is_judged_by_its_own_rounding(folder: Path) -> None:
    result = diagnose(load_model(folder, dtype=torch.bfloat16))
    assert outcomes(result, "ok") == QUESTIONS
    assert found(result, DTYPE).startswith("bfloat16: largest activation ")
    assert result.checks[-1].consequence.endswith(
        "compare with float32 before trusting small differences"
    )


def test_activations_close_to_overflow_deviate(tmp_path: Path) -> None:
    model = llama().build()
    unknown = 61  # the tokenizer of 64 words knows none of the passages'
    with torch.no_grad():
        embedding: Any = model.get_submodule("model.embed_tokens").weight
        weight: Any = model.get_submodule("model.layers.0.self_attn.v_proj").weight
        weight[3] = 5e3 * embedding[unknown] / embedding[unknown].norm()  # 8 times that: 40,000
    half = diagnose(load_model(save_model(model, tmp_path), dtype=torch.float16))
    assert DTYPE in outcomes(half, "deviates")
    assert "float16: largest activation 4e+04, largest number 6.55e+04" in found(half, DTYPE)
    assert DTYPE in outcomes(diagnose(load_model(tmp_path)), "ok")


def test_a_wrapped_model_in_float64_is_judged_like_float32(model: HookedModel) -> None:
    result = diagnose(HookedModel.wrap(model.bridge.to(torch.float64)))
    assert outcomes(result, "deviates") == []
    assert found(result, DTYPE).startswith("float64: largest activation ")
    assert "(at most 1e-05 expected" in found(result, BATCH)


def test_another_dtype_is_refused(model: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HookedModel, "dtype", torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"must be one of float64, .* got float8_e4m3fn; load"):
        diagnose(model)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("projection", ["q", "k", "v"])
def test_a_norm_that_is_nan_deviates_wherever_it_stands(
    projection: str, layer: int, model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = doctor.capture_norms

    def sick(model: HookedModel, prompts: Any, *, batch_size: int) -> AttentionNorms:
        norms = capture(model, prompts, batch_size=batch_size)
        if batch_size > 1:
            norms.sums(projection).squares[0, layer, 0, 3] = torch.nan
        return norms

    monkeypatch.setattr(doctor, "capture_norms", sick)
    result = diagnose(model)
    assert outcomes(result, "deviates") == [BATCH, PADDING]
    assert ": nan (" in found(result, BATCH)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_hook_point_that_shows_nan_deviates_wherever_it_stands(
    layer: int, model: HookedModel
) -> None:
    point = model.bridge.hook_dict[f"blocks.{layer}.attn.hook_rot_q"]
    point.add_perma_hook(lambda states, hook: states * torch.nan)
    result = diagnose(model)
    assert {HOOKS, BRIDGE} <= set(outcomes(result, "deviates"))
    assert ": nan (" in found(result, HOOKS)


@pytest.mark.parametrize("place", [0, 1])
def test_an_activation_that_is_nan_deviates_wherever_it_stands(
    place: int, model: HookedModel
) -> None:
    prompts = tokenize_prompts(model.tokenizer, ["t1 t2 t3"])
    run = model.attention_inputs

    def sick(ids: Any, visit: Any) -> None:
        seen: list[Any] = []
        run(ids, seen.append)
        values = [layer.value.clone() for layer in seen]
        values[place][0, 0, 0, 0] = torch.nan
        for layer, value in zip(seen, values, strict=True):
            visit(replace(layer, value=value))

    model.attention_inputs = sick  # type: ignore[method-assign]
    check = doctor._dtype(model, prompts)
    assert check.outcome == "deviates"
    assert "largest activation nan" in check.found


def test_a_head_that_is_zero_throughout_is_healthy(tmp_path: Path) -> None:
    model = llama().build()
    with torch.no_grad():
        weight: Any = model.get_submodule("model.layers.1.self_attn.v_proj").weight
        weight.zero_()
    result = diagnose(load_model(save_model(model, tmp_path)))
    assert outcomes(result, "ok") == QUESTIONS


def test_a_model_without_a_tokenizer_is_refused(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(ValueError, match=r"the tokenizer of .* must exist to run the passages"):
        diagnose(model)
