"""Every named arm edits a model as its name says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import llama, save_model, token_ids
from torch import Tensor

from mi_massive.interventions import Edits, Intervention, Selection, Value, Where, disrupt
from mi_massive.models import HookedModel, load_model
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.presets import PRESETS, preset, with_strength

D_HEAD = 32
"""Room for the 22 dimensions of Gemma-2."""
MASSIVE = 31
"""The one massive dimension of every head of queries and keys; its pair hardly turns."""


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    model = llama(head_dim=D_HEAD).build()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight[MASSIVE::D_HEAD] *= 30.0
    return load_model(save_model(model, tmp_path_factory.mktemp("llama")))


Log = list[dict[str, Tensor]]


@contextmanager
def watched(model: HookedModel, intervention: Intervention) -> Iterator[tuple[Log, Log, Edits]]:
    """What each layer received before and after the edit."""
    before: Log = []
    after: Log = []

    def note(log: Log) -> Any:
        def visit(seen: AttentionInputs) -> None:
            named = {"q": seen.query, "k": seen.key, "v": seen.value}
            log.append({name: states.clone() for name, states in named.items()})

        return visit

    with (
        torch.no_grad(),
        visiting(model.plain, note(before)),
        disrupt(model, intervention) as edits,
        visiting(model.plain, note(after)),
    ):
        yield before, after, edits


def changed(model: HookedModel, intervention: Intervention) -> list[dict[str, Tensor]]:
    """Changed entries [batch, head, pos, d_head] of each layer."""
    with watched(model, intervention) as (before, after, _):
        model.plain(input_ids=token_ids())
    return [
        {name: old[name] != new[name] for name in old}
        for old, new in zip(before, after, strict=True)
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_edits_its_own_number_of_dimensions_in_every_layer(
    name: str, model: HookedModel
) -> None:
    entry, intervention = PRESETS[name], preset(name)
    assert intervention.selection.k == entry.k
    with watched(model, intervention) as (_, _, edits):
        model.plain(input_ids=token_ids())
    rows = 2 * (1 if name == "sink_only" else 11 if name == "sink_preserving" else 12)
    heads = {"q": 4, "k": 2}
    named = intervention.where.projections
    expected = {(block, p): rows * heads[p] * entry.k for block in (0, 1) for p in named}
    assert edits.by_place == expected
    assert set(named) == ({"k"} if name == "sink_only" else {"q", "k"})


@pytest.mark.parametrize("name", PRESETS)
def test_another_seed_edits_other_dimensions_where_the_table_says_so(
    name: str, model: HookedModel
) -> None:
    one, same, other = (changed(model, preset(name, k=4, seed=s))[0]["k"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one, other) != PRESETS[name].seeded
    assert int(one[0, 0, 0].sum()) == {"sink_preserving": 0, "massive": 1}.get(name, 4)


def test_massive_takes_what_is_above_the_threshold_whatever_k(model: HookedModel) -> None:
    for k in (1, 9):
        for layer in changed(model, preset("massive", k=k)):
            for name in "qk":
                dims = layer[name].any(dim=2).nonzero()[:, 2].tolist()
                assert dims == [MASSIVE] * (2 * layer[name].shape[1])


def test_treatments_and_controls_share_no_dimension(model: HookedModel) -> None:
    """The published control apart, where k is more than half of the head."""
    treated = changed(model, preset("paper", k=8))[0]
    for name, entry in PRESETS.items():
        if entry.role == "control":
            untreated = changed(model, preset(name, k=8))[0]
            assert not any(bool((treated[p] & untreated[p]).any()) for p in "qk"), name


def test_paper_and_the_llama_code_are_the_token_mean_of_the_largest() -> None:
    expected = Intervention(
        selection=Selection(rule="largest", k=1), value=Value(kind="mean"), where=Where()
    )
    assert preset("paper", k=1) == preset("authors_llama") == expected
    assert (expected.where.positions, expected.where.cache) == ("prefill", "edited")


def test_the_qwen2_code_writes_one_scalar_a_head_and_leaves_the_cache(model: HookedModel) -> None:
    with watched(model, preset("authors_qwen2")) as (before, after, _):
        cache = model.plain(input_ids=token_ids()).past_key_values
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        for name in "qk":
            for row in range(2):
                for own, edited in zip(old[name][row], new[name][row], strict=True):
                    dims = own.norm(dim=0).topk(3).indices
                    expected = own[:, dims].mean()
                    torch.testing.assert_close(
                        edited[:, dims], expected.expand(12, 3), rtol=1e-4, atol=1e-5
                    )
                    assert len(set(edited[:, dims].flatten().tolist())) == 1
                    assert int((own != edited).any(dim=0).sum()) == 3
        assert torch.equal(cache.layers[layer].keys, old["k"])
        assert not torch.equal(old["k"], new["k"])


def test_the_gemma2_code_zeroes_the_same_dimensions_in_all_heads(model: HookedModel) -> None:
    with watched(model, preset("authors_gemma2")) as (before, after, _):
        model.plain(input_ids=token_ids())
    for old, new in zip(before, after, strict=True):
        for name in "qk":
            zeroed = new[name] == 0
            assert bool((zeroed.sum(dim=-1) == 22).all())
            assert torch.equal(zeroed, zeroed[:, :1].expand_as(zeroed))
            across = old[name].norm(dim=1)  # [batch, pos, d_head]
            expected = torch.zeros_like(across, dtype=torch.bool)
            expected.scatter_(-1, across.topk(22).indices, True)
            assert torch.equal(zeroed[:, 0], expected)
            assert torch.equal(new[name][~zeroed], old[name][~zeroed])
    chosen = (after[0]["q"] == 0)[0, 0]
    assert not torch.equal(chosen, chosen[:1].expand_as(chosen))  # each token has its own


def test_the_sink_arms_part_what_paper_does(model: HookedModel) -> None:
    whole = changed(model, preset("paper", k=3))[0]
    kept = changed(model, preset("sink_preserving", k=3))[0]
    alone = changed(model, preset("sink_only", k=3))[0]
    assert not bool(kept["q"][:, :, 0].any() | kept["k"][:, :, 0].any())
    assert not bool(alone["q"].any())
    assert torch.equal(kept["k"] | alone["k"], whole["k"])
    assert not bool((kept["k"] & alone["k"]).any())
    assert torch.equal(kept["q"][:, :, 1:], whole["q"][:, :, 1:])


def test_a_preset_that_is_matched_names_one_that_exists() -> None:
    matched = {name: entry.matched_to for name, entry in PRESETS.items() if entry.matched_to}
    assert matched == {"effect_matched": "paper"}
    assert set(matched.values()) <= set(PRESETS)


def test_strength_is_set_and_nothing_else(model: HookedModel) -> None:
    one = preset("effect_matched", k=4, seed=3)
    half = with_strength(one, 0.5)
    assert (half.selection, half.where) == (one.selection, one.where)
    assert half.value == Value(kind="mean", strength=0.5)
    with watched(model, half) as (before, after, _):
        model.plain(input_ids=token_ids())
    with watched(model, one) as (same, full, _):
        model.plain(input_ids=token_ids())
    assert torch.equal(before[0]["q"], same[0]["q"])
    midway = (before[0]["q"] + full[0]["q"]) / 2
    torch.testing.assert_close(after[0]["q"], midway, rtol=1e-5, atol=1e-6)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    names = ", ".join(PRESETS)
    with pytest.raises(ValueError, match=f"preset must be one of {names}, got 'papper'"):
        preset("papper")


def test_zero_and_shuffled_change_the_value_alone(model: HookedModel) -> None:
    with watched(model, preset("zero", k=4)) as (before, after, _):
        model.plain(input_ids=token_ids())
    for old, new in zip(before, after, strict=True):
        for name in "qk":
            assert set((new[name] == 0).sum(dim=-1).flatten().tolist()) == {4}
            assert torch.equal(new[name][new[name] != 0], old[name][new[name] != 0])
    with watched(model, preset("shuffled", k=4)) as (before, after, _):
        model.plain(input_ids=token_ids())
    for old, new in zip(before, after, strict=True):
        for name in "qk":
            assert not torch.equal(old[name], new[name])
            torch.testing.assert_close(old[name].sort(dim=2).values, new[name].sort(dim=2).values)
    assert preset("zero").selection == preset("shuffled").selection == preset("paper").selection
