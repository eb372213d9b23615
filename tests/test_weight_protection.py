"""The factorial on rows: which are rounded, that weights come back, and what is gained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_surgery import make_task
from tiny_models import FAMILIES, llama, save_model, token_ids

from mi_massive import AttentionNorms, HookedModel, UnsupportedModelError, capture_norms, load_model
from mi_massive.axes import Projection
from mi_massive.models.compression import quantize
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.quantization_schemes import round_to_nearest
from mi_massive.scores import EvaluationConfig
from mi_massive.weight_protection import (
    WeightProtectionConfig,
    WeightProtectionResult,
    run_weight_protection,
)
from mi_massive.weight_rows import rounded_rows, row_layers

IDS = token_ids(2, 12, seed=3)
TEXTS = ["t3 t30 t12 t7 t45 t8 t21", "t5 t9 t33 t2 t60 t11", "t8 t8 t19 t50 t27 t4 t36"]
QUICK = WeightProtectionConfig(bits=(4, 2), group=16, n_seeds=2, ratio=3.0, task_bits=(2,))
ASKED = EvaluationConfig(readouts=("options",))


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A Llama with massive channels in some heads."""
    built = llama().build()
    with torch.no_grad():
        for name, row in (("q_proj", 16 + 3), ("q_proj", 32 + 7), ("k_proj", 16 + 5)):
            weight: Any = built.get_submodule(f"model.layers.1.self_attn.{name}").weight
            weight[row] *= 100.0
    return load_model(save_model(built, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module", name="neutral")
def fixture_neutral(model: HookedModel) -> TokenizedPrompts:
    return tokenize_prompts(model.tokenizer, TEXTS)


@pytest.fixture(scope="module", name="norms")
def fixture_norms(model: HookedModel, neutral: TokenizedPrompts) -> AttentionNorms:
    return capture_norms(model, neutral)


@pytest.fixture(scope="module", name="result")
def fixture_result(
    model: HookedModel,
    neutral: TokenizedPrompts,
    norms: AttentionNorms,
    tmp_path_factory: pytest.TempPathFactory,
) -> WeightProtectionResult:
    task = make_task("hidden", n=12, hidden=True)
    cells = tmp_path_factory.mktemp("cells")
    arguments: Any = {"config": QUICK, "evaluation": ASKED, "n_resamples": 50, "cells": cells}
    first = run_weight_protection(model, [task], neutral, norms, **arguments)
    told: list[int] = []
    again = run_weight_protection(
        model, [task], neutral, norms, **arguments, on_progress=told.append
    )
    assert torch.equal(first.effects.cross_entropy, again.effects.cross_entropy)
    assert sum(told) == 14 + 7
    return again


def weights(model: HookedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.plain.named_parameters()}


@torch.no_grad()
def logits(model: HookedModel) -> torch.Tensor:
    return model.plain(input_ids=IDS).logits


def masks(model: HookedModel, fill: bool) -> dict[Projection, torch.Tensor]:
    return {
        p: torch.full((2, layers[0].out_features // 16, 16), fill)
        for p, layers in row_layers(model).items()
    }


def test_all_rows_kept_give_the_model_bit_for_bit(model: HookedModel) -> None:
    before = logits(model)
    with rounded_rows(model, bits=2, group=16, keep=masks(model, True)) as done:
        assert torch.equal(logits(model), before)
    assert done.total == 0


@pytest.mark.parametrize("keep", [{}, {"q": False, "k": False}])
def test_no_row_kept_equals_the_rounding_of_compressed_tensors(
    model: HookedModel, tmp_path: Path, keep: dict[str, bool]
) -> None:
    theirs = weights(quantize(model, method="rtn", bits=3, group=16, cache=tmp_path))
    kept = masks(model, False) if keep else {}
    before = weights(model)
    with rounded_rows(model, bits=3, group=16, keep=kept) as done:
        own = weights(model)
    changed = [name for name, weight in before.items() if not torch.equal(weight, own[name])]
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj"}
    assert len(changed) == 4
    assert done.total == sum(before[name].numel() for name in changed)
    for name in changed:
        torch.testing.assert_close(own[name], theirs[name], rtol=0, atol=1e-5)


def test_a_kept_row_is_the_only_exact_one(model: HookedModel) -> None:
    keep = masks(model, False)
    keep["k"][1, 1, 5] = True
    exact = weights(model)["model.layers.1.self_attn.k_proj.weight"]
    with rounded_rows(model, bits=2, group=16, keep=keep):
        own = weights(model)["model.layers.1.self_attn.k_proj.weight"]
    row = 16 + 5
    assert torch.equal(own[row], exact[row])
    others = [i for i in range(len(exact)) if i != row]
    assert torch.equal(own[others], round_to_nearest(exact, bits=2, group=16)[others])


def test_a_row_writes_the_channel_of_its_head_before_the_rotation(
    model: HookedModel, norms: AttentionNorms, neutral: TokenizedPrompts
) -> None:
    keep = masks(model, True)
    keep["q"][0, 2, 9] = False
    with rounded_rows(model, bits=2, group=16, keep=keep):
        changed = capture_norms(model, neutral)
    own, other = (x.sums("q", "unrotated").pooled_norms()[0] for x in (norms, changed))
    moved = ((own - other).abs() > 1e-4).nonzero().tolist()
    assert moved == [[2, 9]]


@pytest.mark.parametrize("fails", [False, True])
def test_weights_come_back_bit_for_bit(model: HookedModel, fails: bool) -> None:
    before = weights(model)

    def use() -> None:
        with rounded_rows(model, bits=2, group=16, keep={}):
            name = "model.layers.0.self_attn.q_proj.weight"
            assert not torch.equal(weights(model)[name], before[name])
            if fails:
                raise KeyError("planted")

    if fails:
        with pytest.raises(KeyError, match="planted"):
            use()
    else:
        use()
    after = weights(model)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_arms_keep_equally_many_rows(result: WeightProtectionResult, norms: AttentionNorms) -> None:
    kept = [arm for arm in result.arms if arm.protected != "none"]
    assert len(kept) == 2 * 6
    counts = [
        tuple(tuple(m.sum(dim=-1).flatten().tolist()) for m in arm.masks(norms).values())
        for arm in kept
    ]
    assert len(set(counts)) == 1
    assert sum(map(sum, counts[0])) >= 3
    share = result.extra_bits["2 bits, massive kept"] / 14
    assert share == pytest.approx(sum(map(sum, counts[0])) / (2 * (4 + 2) * 16))
    assert result.extra_bits["2 bits, random kept seed=1"] == pytest.approx(14 * share)
    assert result.extra_bits["2 bits"] == 0.0


def test_a_gain_is_the_others_loss_minus_that_of_the_massive_rows(
    result: WeightProtectionResult,
) -> None:
    losses = dict(zip(result.effects.arms, result.effects.cross_entropy, strict=True))
    gain = result.gain(2, against="nothing")
    expected = float((losses["2 bits"] - losses["2 bits, massive kept"]).mean())
    assert gain.gain.effect == pytest.approx(expected, abs=1e-5)
    assert gain.per_bit == pytest.approx(gain.gain.effect / gain.extra_bits)
    assert result.gain(2, measure="logit_diff", task="hidden").gain.n == 12
    with pytest.raises(ValueError, match="a gain must be one of the result's gains"):
        result.gain(4, measure="logit_diff", task="hidden")


def test_fewer_bits_move_states_further(result: WeightProtectionResult) -> None:
    for projection in ("q", "k"):
        few, many = (result.errors.of(f"{b} bits", projection)["other"].effect for b in (2, 4))
        assert few > 2 * many
    kept = result.errors.of("2 bits, massive kept", "q")["massive"].effect
    assert kept < result.errors.of("2 bits", "q")["massive"].effect


def test_a_model_with_one_layer_for_q_k_and_v_is_refused(tmp_path: Path) -> None:
    fused = load_model(FAMILIES["gpt2"].save(tmp_path))
    with pytest.raises(UnsupportedModelError, match="must have a linear layer q_proj in every"):
        row_layers(fused)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": ()}, "bits must not be empty"),
        ({"bits": (9,)}, "bits must be between 2 and 8"),
        ({"bits": (4, 4)}, r"bits must name each number once, got \(4, 4\)"),
        ({"task_bits": (5,)}, r"task_bits must be among bits \(4, 2\), got \(5,\)"),
        ({"n_seeds": 0}, "n_seeds must be between 1 and 100"),
        ({"ratio": -1.0}, "ratio must be finite and positive"),
    ],
)
def test_senseless_factorials_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **change)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"group": 7}, "group must divide the 64 inputs of the weight, got 7; 4 does"),
        ({"keep": {"v": torch.zeros(2, 2, 16, dtype=torch.bool)}}, "keep must mark rows of q or k"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    model: HookedModel, arguments: dict[str, Any], words: str
) -> None:
    call: Callable[..., Any] = rounded_rows
    given = {"bits": 2, "group": 16, "keep": {}} | arguments
    before = weights(model)
    with pytest.raises(ValueError, match=words), call(model, **given):
        pass
    assert all(torch.equal(w, before[n]) for n, w in weights(model).items())
