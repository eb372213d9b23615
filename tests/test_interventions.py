"""Edits of running models against slow plain definitions, and what they must leave alone.

The slow side replaces entries by loops over single numbers (`reference.replaced_rows`) through a
visitor of its own; it shares no code with the package's selection, replacement or bookkeeping.
"""

import cmath
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, PAD_ID, Family, llama, save_model, token_ids
from torch import Tensor
from transformers import GenerationConfig

from mi_massive._replacements import (
    joint_mean,
    prompt_mean,
    prompt_norms,
    resampled,
    shuffled,
)
from mi_massive.capture import capture_norms
from mi_massive.interventions import (
    Edits,
    Intervention,
    Selection,
    Value,
    Where,
    disrupt,
    disruption_hooks,
)
from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.presets import PRESETS, preset
from mi_massive.rope import rotate

SERVED = ["llama", "qwen3", "gpt_neox", "gptj", "gemma2", "gpt2"]
"""GQA; QK-norm; partial rotation; interleaved; sliding window and soft cap; no rotation."""
PROMPTS = [[5, 9, 2, 40], [17, 3, 8, 1, 22, 6, 30], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [33, 12]]
ROLES = {"q": "query", "k": "key", "v": "value"}

Model = Callable[[str], HookedModel]


def endless(folder: Path) -> HookedModel:
    """A model whose answers are as long as asked for."""
    model = load_model(folder)
    generation: Any = getattr(model.plain, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = None
    return model


@pytest.fixture(scope="module", name="load")
def fixture_load(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Loads a family of `tiny_models` once."""
    loaded: dict[str, HookedModel] = {}

    def load(name: str) -> HookedModel:
        if name not in loaded:
            loaded[name] = endless(FAMILIES[name].save(tmp_path_factory.mktemp(name)))
        return loaded[name]

    return load


# What runs, and how it is compared.


def batch(prompts: Sequence[Sequence[int]], *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Token ids and mask, padded on one side."""
    width = max(len(ids) for ids in prompts)
    ids, mask = [], []
    for own in prompts:
        pad = width - len(own)
        before, after = (pad, 0) if left else (0, pad)
        ids.append([PAD_ID] * before + list(own) + [PAD_ID] * after)
        mask.append([0] * before + [1] * len(own) + [0] * after)
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def logits_of(model: HookedModel, ids: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    return read(model, ids, mask, **given)[0]


def read(model: HookedModel, ids: Tensor, mask: Tensor | None = None, **given: Any) -> Any:
    """A pass over columns that the mask ends with; positions count from the first real token."""
    if mask is not None:
        places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        given = {"attention_mask": mask, "position_ids": places} | given
    return model.plain(input_ids=ids, **given)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` times the largest expected number, or times one if that is larger."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


def far_apart(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) > 1e-2 * float(second.abs().max())


def edit(rule: Any = "largest", k: int = 1, kind: Any = "mean", **where: Any) -> Intervention:
    return Intervention(
        selection=Selection(rule=rule, k=k), value=Value(kind=kind), where=Where(**where)
    )


def masks_of(model: HookedModel, *dims: int) -> dict[Any, Tensor]:
    """The same dimensions in every layer and head."""
    masks: dict[Any, Tensor] = {}
    for projection in "qkv":
        first = model.geometry.layers[0]
        heads = first.n_heads if projection == "q" else first.n_key_value_heads
        masks[projection] = torch.zeros(len(model.geometry.layers), heads, 16, dtype=torch.bool)
        masks[projection][:, :, list(dims)] = True
    return masks


def pair_dims(model: HookedModel, pair: int) -> tuple[int, int]:
    rotary = model.geometry.layers[0].rotary
    assert rotary is not None
    first, second = rotary.pair_dims[pair].tolist()
    return first, second


def parts_of(seen: AttentionInputs) -> dict[str, Tensor]:
    return {name: getattr(seen, role).detach().clone() for name, role in ROLES.items()}


@dataclass
class Log:
    """What each layer received, pass by pass, before and after an edit."""

    edits: Edits
    before: list[tuple[int, dict[str, Tensor]]]
    after: list[tuple[int, dict[str, Tensor]]]

    def changed(self) -> list[tuple[int, str, Tensor]]:
        """Block, projection and changed entries [batch, head, pos, d_head] of each run layer."""
        found = []
        for (block, old), (same, new) in zip(self.before, self.after, strict=True):
            assert block == same
            found += [(block, name, old[name] != new[name]) for name in ROLES]
        return found

    def places(self) -> set[tuple[int, str]]:
        return {(block, name) for block, name, entries in self.changed() if bool(entries.any())}


@contextmanager
def watched(model: HookedModel, intervention: Intervention, **sources: Any) -> Iterator[Log]:
    """Disrupt, with a visitor on either side of the edit."""
    before: list[tuple[int, dict[str, Tensor]]] = []
    after: list[tuple[int, dict[str, Tensor]]] = []
    with (
        visiting(model.plain, lambda seen: before.append((seen.block, parts_of(seen)))),
        disrupt(model, intervention, **sources) as edits,
        visiting(model.plain, lambda seen: after.append((seen.block, parts_of(seen)))),
    ):
        yield Log(edits, before, after)


# Replacements against loops.


@st.composite
def padded_states(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """[batch, head, pos, d_head] with NaN in padding, and the tokens, padded left or right."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    width = max(lengths) + draw(st.integers(0, 2))
    left = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    states = torch.randn(len(lengths), 2, width, 5, generator=generator)
    places = torch.arange(width)
    n = torch.tensor(lengths)[:, None]
    tokens = places >= width - n if left else places < n
    return states.masked_fill(~tokens[:, None, :, None], math.nan), tokens


def by_loops(states: Tensor, tokens: Tensor, kind: str, **sources: Any) -> Tensor:
    """All dimensions of all heads replaced; NaN in padding stays where it is."""
    out = states.clone()
    for row in range(len(states)):
        for head in range(states.shape[1]):
            rows, donor = states[row, head].tolist(), sources.get("donor")
            edited = reference.replaced_rows(
                rows,
                tokens[row].tolist(),
                sources.get("chosen", set(range(states.shape[-1]))),
                kind,
                seed=sources.get("seed", 0),
                donor=None if donor is None else donor[head].tolist(),
            )
            out[row, head] = torch.tensor(edited)
    return out


def assert_same_at_tokens(actual: Tensor, expected: Tensor, tokens: Tensor) -> None:
    """Where a token is; NaN would be unequal."""
    at = tokens[:, None, :, None].expand_as(expected)
    torch.testing.assert_close(actual.expand_as(expected)[at], expected[at], rtol=1e-5, atol=1e-6)


class TestReplacements:
    @settings(deadline=None, max_examples=20)
    @given(case=padded_states())
    def test_means_and_norms_equal_plain_loops_and_no_padding_enters(
        self, case: tuple[Tensor, Tensor]
    ) -> None:
        states, tokens = case
        assert_same_at_tokens(prompt_mean(states, tokens), by_loops(*case, "mean"), tokens)
        norms = prompt_norms(states, tokens)
        for row, own in enumerate(tokens.tolist()):
            for head in range(2):
                expected = reference.norms_of(states[row, head].tolist(), own)
                assert norms[row, head].tolist() == pytest.approx(expected, rel=1e-5)

    @settings(deadline=None, max_examples=20)
    @given(case=padded_states(), chosen=st.sets(st.integers(0, 4), min_size=1))
    def test_joint_mean_is_one_number_a_head(
        self, case: tuple[Tensor, Tensor], chosen: set[int]
    ) -> None:
        states, tokens = case
        mask = torch.zeros(len(states), 2, 5, dtype=torch.bool)
        mask[..., sorted(chosen)] = True
        value = joint_mean(states, tokens, mask)
        assert value.shape == (len(states), 2, 1, 1)
        expected = by_loops(states, tokens, "joint_mean", chosen=chosen)
        actual = torch.where(mask[:, :, None], value, states)
        assert_same_at_tokens(actual, expected, tokens)

    @settings(deadline=None, max_examples=20)
    @given(case=padded_states(), seed=st.integers(0, 5), n_donor=st.integers(2, 8))
    def test_shuffled_and_resampled_equal_plain_loops_and_no_padding_enters(
        self, case: tuple[Tensor, Tensor], seed: int, n_donor: int
    ) -> None:
        states, tokens = case
        expected = by_loops(states, tokens, "shuffled", seed=seed)
        assert_same_at_tokens(shuffled(states, tokens, seed), expected, tokens)
        donor = torch.randn(2, n_donor, 5, generator=torch.Generator().manual_seed(seed))
        expected = by_loops(states, tokens, "resampled", donor=donor)
        assert_same_at_tokens(resampled(states, tokens, donor), expected, tokens)

    def test_shuffled_is_a_permutation_that_depends_on_seed_and_length_alone(self) -> None:
        states = torch.arange(16.0)[None, None, :, None].expand(3, 2, 16, 4)
        tokens = torch.ones(3, 16, dtype=torch.bool)
        tokens[1, :6] = tokens[2, 10:] = False  # ten tokens on either side of padding
        one = shuffled(states, tokens, 0)[:, 0, :, 0]
        assert sorted(one[0].tolist()) == list(range(16))
        assert one[1, 6:].tolist() == [6 + x for x in one[2, :10].tolist()]
        assert sorted(one[2, :10].tolist()) == list(range(10))
        assert torch.equal(one[2, 10:], states[2, 0, 10:, 0])  # padding stays in its place
        assert not torch.equal(shuffled(states, tokens, 1)[0, 0, :, 0], one[0])
        other = shuffled(states.flip(2) * 3, tokens, 0)[0, 0, :, 0]  # whatever the states are
        assert torch.equal(other, 3 * (15 - one[0]))

    def test_a_donor_of_one_token_is_refused(self) -> None:
        states, tokens = torch.zeros(1, 2, 3, 4), torch.ones(1, 3, dtype=torch.bool)
        with pytest.raises(ValueError, match="donor must have at least two tokens, got 1; give a"):
            resampled(states, tokens, torch.zeros(2, 1, 4))

    def test_strength_moves_part_of_the_way_and_scaling_multiplies(self) -> None:
        assert Value.scaled(0.25) == Value(kind="zero", strength=0.75)
        with pytest.raises(ValueError, match=r"strength must be finite, got nan .* 1 replaces"):
            Value(strength=math.nan)


# Whole passes against an edit by hand.


def turned(row: list[float], family: Family, layer: int, angle_of: int, *, undo: bool) -> None:
    """Rotate one token's dimensions in place by its position, or turn them back."""
    inv_freq = family.inv_freq[layer]
    if inv_freq is None:
        return
    assert family.layout is not None
    for pair, frequency in enumerate(inv_freq.tolist()):
        x, y = reference.members(pair, inv_freq.numel(), family.layout)
        z, turn = complex(row[x], row[y]), cmath.exp(1j * angle_of * frequency) * family.factor
        z = z / turn if undo else z * turn
        row[x], row[y] = z.real, z.imag


@contextmanager
def edited_by_hand(
    family: Family,
    model: HookedModel,
    mask: Tensor,
    *,
    k: int,
    value: Value,
    projections: str = "qk",
    stage: str = "attention",
    donor: Mapping[int, Mapping[str, Tensor]] | None = None,
    dataset: Mapping[tuple[int, str], list[list[float]]] | None = None,
) -> Iterator[None]:
    """The k largest dimensions of each head, replaced number by number."""
    places = (mask.cumsum(dim=1) - 1).clamp_min(0).tolist()

    def visit(seen: AttentionInputs) -> AttentionInputs:
        layer, parts = family.blocks.index(seen.block), parts_of(seen)
        for name in projections:
            turns = stage == "unrotated" and name != "v"
            states = parts[name]
            for row in range(states.shape[0]):
                tokens = [bool(real) for real in mask[row]]
                for head in range(states.shape[1]):
                    rows = states[row, head].double().tolist()
                    own = None if donor is None else donor[seen.block][name][0, head].tolist()
                    for column, one in enumerate(rows if turns else []):
                        turned(one, family, layer, places[row][column], undo=True)
                    for position, one in enumerate(own if own and turns else []):
                        turned(one, family, layer, position, undo=True)
                    edited = reference.replaced_rows(
                        rows,
                        tokens,
                        reference.largest(reference.norms_of(rows, tokens), k),
                        value.kind,
                        strength=value.strength,
                        seed=value.seed,
                        donor=own,
                        dataset_mean=None if dataset is None else dataset[seen.block, name][head],
                    )
                    for column, one in enumerate(edited if turns else []):
                        turned(one, family, layer, places[row][column], undo=False)
                    states[row, head] = torch.tensor(edited)
        return AttentionInputs(seen.block, parts["q"], parts["k"], parts["v"])

    with visiting(model.plain, visit):
        yield


class TestWholePrompts:
    @pytest.mark.parametrize("projections", ["qk", "v"])
    @pytest.mark.parametrize("name", [*SERVED, "opt", "smollm3"])
    def test_logits_equal_those_of_an_edit_by_hand(
        self, name: str, projections: Any, load: Model
    ) -> None:
        family, model = FAMILIES[name], load(name)
        ids, mask = batch(PROMPTS)
        intervention = edit(k=3, projections=tuple(projections))
        with edited_by_hand(family, model, mask, k=3, value=Value(), projections=projections):
            expected = logits_of(model, ids, mask)
        with disrupt(model, intervention):
            actual = logits_of(model, ids, mask)
        real = mask.bool()
        assert_near(actual[real], expected[real])
        assert far_apart(actual[real], logits_of(model, ids, mask)[real])

    @pytest.mark.parametrize("kind", ["mean_after_first", "joint_mean", "zero", "shuffled"])
    @pytest.mark.parametrize("strength", [1.0, 0.4, 2.5])
    def test_every_value_and_strength_equals_the_edit_by_hand(
        self, kind: Any, strength: float, load: Model
    ) -> None:
        family, model = FAMILIES["llama"], load("llama")
        ids, mask = batch(PROMPTS, left=strength != 1.0)
        value = Value(kind=kind, strength=strength, seed=4)
        with edited_by_hand(family, model, mask, k=2, value=value):
            expected = logits_of(model, ids, mask)
        with disrupt(model, Intervention(selection=Selection(k=2), value=value)):
            actual = logits_of(model, ids, mask)
        assert_near(actual[mask.bool()], expected[mask.bool()])

    @pytest.mark.parametrize("kind", ["mean", "zero", "joint_mean"])
    @pytest.mark.parametrize("name", ["llama", "llama_yarn", "qwen3", "gpt_neox", "gptj"])
    def test_an_edit_before_the_rotation_equals_the_edit_by_hand(
        self, name: str, kind: Any, load: Model
    ) -> None:
        """Also where a part rotates, and where the model applies a factor (YaRN)."""
        family, model = FAMILIES[name], load(name)
        ids, mask = batch(PROMPTS[:2])
        value = Value(kind=kind)
        where = Where(stage="unrotated")
        with edited_by_hand(family, model, mask, k=3, value=value, stage="unrotated"):
            expected = logits_of(model, ids, mask)
        with disrupt(model, Intervention(selection=Selection(k=3), value=value, where=where)):
            actual = logits_of(model, ids, mask)
        assert_near(actual[mask.bool()], expected[mask.bool()], 1e-4)

    @pytest.mark.parametrize("stage", ["attention", "unrotated"])
    @pytest.mark.parametrize("name", ["llama", "llama_yarn"])
    def test_the_dataset_mean_is_that_of_the_capture(
        self, name: str, stage: Any, load: Model
    ) -> None:
        family, model = FAMILIES[name], load(name)
        norms = capture_norms(model, PROMPTS)
        ids, mask = batch([PROMPTS[2]])
        everything = [states_of(model, own) for own in PROMPTS]
        dataset: dict[tuple[int, str], list[list[float]]] = {}
        for layer, block in enumerate(family.blocks):
            for part in "qk":
                dataset[block, part] = []
                for head in range(everything[0][block][part].shape[1]):
                    rows = []
                    for states in everything:
                        own = states[block][part][0, head].double().tolist()
                        for position, row in enumerate(own if stage == "unrotated" else []):
                            turned(row, family, layer, position, undo=True)
                        rows += own
                    dataset[block, part].append([sum(c) / len(rows) for c in zip(*rows)])  # noqa: B905
        masks = masks_of(model, 2, 5)
        intervention = edit("mask", kind="dataset_mean", stage=stage)
        # All by hand: every head's dimensions 2 and 5 are "the two largest" of planted norms.
        value = Value(kind="dataset_mean")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "largest", lambda own, k: {2, 5})
            with edited_by_hand(
                family, model, mask, k=2, value=value, stage=stage, dataset=dataset
            ):
                expected = logits_of(model, ids, mask)
        with disrupt(model, intervention, means=norms, masks=masks):
            actual = logits_of(model, ids, mask)
        assert_near(actual, expected, 1e-4)
        # And with the dimensions chosen for the prompt by its own norms.
        with edited_by_hand(family, model, mask, k=2, value=value, stage=stage, dataset=dataset):
            expected = logits_of(model, ids, mask)
        with disrupt(model, edit(k=2, kind="dataset_mean", stage=stage), means=norms):
            actual = logits_of(model, ids, mask)
        assert_near(actual, expected, 1e-4)

    @pytest.mark.parametrize("stage", ["attention", "unrotated"])
    def test_resampled_entries_are_those_of_the_other_prompt(self, stage: Any, load: Model) -> None:
        family, model = FAMILIES["llama"], load("llama")
        ids, mask = batch(PROMPTS)
        donor = [7, 21, 4, 50, 9]
        value = Value(kind="resampled")
        with edited_by_hand(
            family, model, mask, k=4, value=value, stage=stage, donor=states_of(model, donor)
        ):
            expected = logits_of(model, ids, mask)
        with disrupt(model, edit(k=4, kind="resampled", stage=stage), donor=donor):
            actual = logits_of(model, ids, mask)
        assert_near(actual[mask.bool()], expected[mask.bool()], 1e-4)

    @pytest.mark.parametrize("name", [*SERVED, "bert", "jamba", "gpt_neo"])
    def test_no_dimension_or_no_strength_changes_nothing(self, name: str, load: Model) -> None:
        model, ids = load(name), token_ids()
        intact = logits_of(model, ids)
        with disrupt(model, edit(k=0)) as edits:
            assert torch.equal(logits_of(model, ids), intact)
        assert edits.total == 0
        for stage in ("attention", "unrotated"):
            where = Where(stage=stage, projections=("q", "k", "v"))
            with disrupt(model, Intervention(value=Value(strength=0.0), where=where)) as edits:
                assert_near(logits_of(model, ids), intact)
            assert edits.total > 0

    def test_half_precision_is_turned_back_and_forth_without_loss(self, tmp_path: Path) -> None:
        """An entry that is not replaced comes back as it was, its partner in the pair too."""
        model = load_model(llama().save(tmp_path), dtype=torch.bfloat16)
        where = Where(stage="unrotated")
        unmoved = Intervention(selection=Selection(k=9), value=Value(strength=0.0), where=where)
        with watched(model, unmoved) as log:
            logits_of(model, token_ids(pos=100))
        for (_, before), (_, after) in zip(log.before, log.after, strict=True):
            for name in "qk":
                assert_near(after[name].float(), before[name].float(), 1e-6)
        assert log.edits.total > 0
        masks, dims = masks_of(model, 3), (3, 11)
        with watched(model, edit("mask", kind="zero", stage="unrotated"), masks=masks) as log:
            logits_of(model, token_ids(pos=100))
        for block, own in log.after:
            rotary = model.geometry.layers[block].rotary
            assert rotary is not None
            back = rotate(own["q"].float(), torch.arange(100), rotary, undo=True)
            size = own["q"][..., list(dims)].float().norm(dim=-1)
            assert bool((back[..., 3].abs() <= 2**-8 * size).all())

    def test_padding_beside_a_prompt_changes_nothing(
        self, load: Model, planted: HookedModel
    ) -> None:
        for preset_name in PRESETS:
            model = planted if preset_name == "massive" else load("llama")
            intervention = preset(preset_name, k=3)
            with disrupt(model, intervention):
                alone = [logits_of(model, torch.tensor([own]))[0] for own in PROMPTS]
            for left in (True, False):
                ids, mask = batch(PROMPTS, left=left)
                with disrupt(model, intervention):
                    together = logits_of(model, ids, mask)
                for row, expected in enumerate(alone):
                    assert_near(together[row][mask[row].bool()], expected, 1e-4)


def states_of(model: HookedModel, ids: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """Query, key and value of each block on one prompt without padding."""
    found: dict[int, dict[str, Tensor]] = {}
    model.attention_inputs(
        torch.tensor([list(ids)]), lambda seen: found.__setitem__(seen.block, parts_of(seen))
    )
    return found


class TestDraws:
    @pytest.mark.parametrize("name", ["llama", "gptj"])
    @pytest.mark.parametrize("rule", ["random", "same_band"])
    def test_they_come_from_seed_block_and_projection(
        self, rule: Any, name: str, load: Model
    ) -> None:
        model, family = load(name), FAMILIES[name]
        ids, mask = batch(PROMPTS)
        selection = Selection(rule=rule, k=3, seed=5, n_bands=2)
        where = Where(projections=("q", "k", "v"))
        intervention = Intervention(selection=selection, value=Value(kind="zero"), where=where)
        with watched(model, intervention) as log:
            logits_of(model, ids, mask)
        n_pairs = 8 if name == "llama" else 4
        assert family.layout is not None
        pair_of = {
            d: pair
            for pair in range(n_pairs)
            for d in reference.members(pair, n_pairs, family.layout)
        }
        bands = reference.frequency_bands([pair_of.get(d) for d in range(16)], 2)
        for number, (block, role, entries) in enumerate(log.changed()):
            states = log.before[number // 3][1][role]
            draws = np.random.default_rng([5, block, "qkv".index(role)]).random(
                (len(states[0]), 16)
            )
            for row, tokens in enumerate(mask.bool().tolist()):
                for head, own in enumerate(states[row].tolist()):
                    expected = reference.chosen_units(
                        reference.norms_of(own, tokens),
                        rule,
                        3,
                        draws=draws[head].tolist(),
                        bands=bands,
                    )
                    found = entries[row, head].any(dim=0).nonzero()[:, 0].tolist()
                    assert set(found) == expected


# A planted signal.


PLANTED = {0: 7, 1: 15}
"""Dimension by layer, of query head 2 and key-value head 1; their pair hardly turns."""


@pytest.fixture(scope="module", name="planted")
def fixture_planted(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    model = llama().build()
    with torch.no_grad():
        for layer, dim in PLANTED.items():
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            for name, head in (("q_proj", 2), ("k_proj", 1)):
                weight: Any = attention.get_submodule(name).weight
                weight[16 * head + dim] *= 100.0
    return endless(save_model(model, tmp_path_factory.mktemp("planted")))


class TestPlantedDimensions:
    @pytest.mark.parametrize("rule", ["largest", "massive"])
    def test_exactly_those_are_edited_in_every_prompt(
        self, rule: Any, planted: HookedModel
    ) -> None:
        ids, mask = batch(PROMPTS)
        with watched(planted, edit(rule, kind="zero")) as log:
            logits_of(planted, ids, mask)
        for block, name, entries in log.changed():
            head = {"q": 2, "k": 1}.get(name)
            expected = torch.zeros_like(entries)
            if head is not None:
                expected[:, head, :, PLANTED[block]] = mask.bool()
            if rule == "massive":
                assert torch.equal(entries, expected)  # in no other head or dimension
            elif head is not None:
                assert torch.equal(entries[:, head], expected[:, head])

    def test_a_capture_finds_them_for_all_prompts(self, planted: HookedModel) -> None:
        norms = capture_norms(planted, PROMPTS)
        ids, mask = batch(PROMPTS)
        intervention = edit("massive", kind="zero")
        with watched(planted, intervention, norms=norms) as log:
            logits_of(planted, ids, mask)
        assert log.edits.total == 2 * 2 * int(mask.sum())  # q and k, layers, tokens
        assert log.places() == {(block, name) for block in (0, 1) for name in "qk"}


# Equivalences (science.md, section 3).


class TestEquivalences:
    @pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gptj", "gpt2"])
    def test_constant_keys_are_the_same_as_no_keys_within_a_pass(
        self, name: str, load: Model
    ) -> None:
        """(a) softmax is shift invariant."""
        model, (ids, mask) = load(name), batch(PROMPTS)
        runs = []
        for kind in ("mean", "zero"):
            with disrupt(model, edit(k=3, kind=kind, projections=("k",))):
                runs.append(logits_of(model, ids, mask)[mask.bool()])
        assert_near(runs[0], runs[1])
        assert far_apart(runs[0], logits_of(model, ids, mask)[mask.bool()])

    def test_a_soft_cap_on_the_scores_breaks_that(self, load: Model) -> None:
        model, (ids, mask) = load("gemma2"), batch(PROMPTS)
        runs = []
        for kind in ("mean", "zero"):
            with disrupt(model, edit(k=3, kind=kind, projections=("k",))):
                runs.append(logits_of(model, ids, mask)[mask.bool()])
        assert far_apart(runs[0], runs[1])

    @pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gptj", "gpt2"])
    def test_constant_queries_are_not(self, name: str, load: Model) -> None:
        """(b)"""
        model, (ids, mask) = load(name), batch(PROMPTS)
        runs = []
        for kind in ("mean", "zero"):
            with disrupt(model, edit(k=3, kind=kind, projections=("q",))):
                runs.append(logits_of(model, ids, mask)[mask.bool()])
        assert far_apart(runs[0], runs[1])

    def test_an_edited_cache_that_new_keys_follow_is_not(self, load: Model) -> None:
        """(b) a new key has its own entry, so the constant of the others counts."""
        model, prompt = load("llama"), torch.tensor([PROMPTS[2]])
        prefilled, decoded = [], []
        for kind in ("mean", "zero"):
            with disrupt(model, edit(k=3, kind=kind, projections=("k",))), torch.no_grad():
                first = model.plain(input_ids=prompt)
                prefilled.append(first.logits)
                decoded.append(
                    model.plain(
                        input_ids=torch.tensor([[7]]), past_key_values=first.past_key_values
                    ).logits
                )
        assert_near(prefilled[0], prefilled[1])
        assert far_apart(decoded[0], decoded[1])

    @pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gptj"])
    def test_half_a_pair_after_the_rotation_depends_on_absolute_position(
        self, name: str, load: Model
    ) -> None:
        """(c) the whole pair, or one dimension before the rotation, does not."""
        model, ids = load(name), token_ids()
        positions = torch.arange(ids.shape[1])[None].expand_as(ids)
        first, second = pair_dims(model, 1)

        def shift(intervention: Intervention | None, *dims: int) -> tuple[Tensor, Tensor]:
            runs = []
            for start in (0, 37):
                if intervention is None:
                    runs.append(logits_of(model, ids, position_ids=positions + start))
                    continue
                with disrupt(model, intervention, masks=masks_of(model, *dims)):
                    runs.append(logits_of(model, ids, position_ids=positions + start))
            return runs[0], runs[1]

        rotated, unrotated = edit("mask", kind="zero"), edit("mask", kind="zero", stage="unrotated")
        still = shift(None)
        assert_near(*still, 1e-4)
        here, there = shift(rotated, first)
        assert far_apart(here, there)
        for run in (
            shift(rotated, first, second),
            shift(unrotated, first),
            shift(unrotated, second),
        ):
            assert_near(*run, 1e-4)
            assert far_apart(run[0], still[0])
        one, other = shift(edit("mask", stage="unrotated"), first)  # to the mean, too
        assert_near(one, other, 1e-4)


# Generation.


def generated(
    model: HookedModel, ids: Tensor, mask: Tensor, *, n: int = 4
) -> tuple[Tensor, list[Tensor]]:
    """New tokens, and the logits of each step."""
    config = GenerationConfig(
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD_ID,
        output_logits=True,
        return_dict_in_generate=True,
    )
    out: Any = model.plain.generate(ids, attention_mask=mask, generation_config=config)
    assert out.sequences.shape[1] == ids.shape[1] + n
    return out.sequences[:, ids.shape[1] :], list(out.logits)


def assert_rows_do_not_see_each_other(
    model: HookedModel, intervention: Intervention, **sources: Any
) -> None:
    with disrupt(model, intervention, **sources):
        together, logits = generated(model, *batch(PROMPTS))
    for row, own in enumerate(PROMPTS):
        with disrupt(model, intervention, **sources):
            alone, expected = generated(model, *batch([own]))
        assert together[row].tolist() == alone[0].tolist()
        for step, (many, one) in enumerate(zip(logits, expected, strict=True)):
            assert_near(many[row], one[0], 1e-4), step


class TestGeneration:
    @pytest.mark.parametrize("name", list(PRESETS))
    def test_each_row_of_a_batch_is_as_if_alone_under_every_preset(
        self, name: str, load: Model, planted: HookedModel
    ) -> None:
        model = planted if name == "massive" else load("llama")
        assert_rows_do_not_see_each_other(model, preset(name, k=3, seed=2))

    @pytest.mark.parametrize("name", [name for name in SERVED if name != "llama"])
    def test_each_row_of_a_batch_is_as_if_alone_in_every_family(
        self, name: str, load: Model
    ) -> None:
        for intervention in (edit(k=3, positions="both"), preset("authors_gemma2", k=3)):
            assert_rows_do_not_see_each_other(load(name), intervention)

    @pytest.mark.parametrize("positions", ["decode", "both"])
    @pytest.mark.parametrize("cache", ["edited", "clean"])
    @pytest.mark.parametrize(
        ("rule", "kind", "stage"),
        [
            ("largest", "mean", "attention"),
            ("random", "joint_mean", "unrotated"),
            ("across_heads", "mean_after_first", "attention"),
            ("massive", "zero", "unrotated"),
        ],
    )
    def test_each_row_of_a_batch_is_as_if_alone_when_generated_tokens_are_edited(
        self, positions: Any, cache: Any, rule: Any, kind: Any, stage: Any, load: Model
    ) -> None:
        intervention = Intervention(
            selection=Selection(rule=rule, k=3, ratio=1.5),
            value=Value(kind=kind),
            where=Where(positions=positions, cache=cache, stage=stage),
        )
        assert_rows_do_not_see_each_other(load("llama"), intervention)

    @pytest.mark.parametrize("name", ["llama", "gemma2", "gptj", "gpt2", "opt", "jamba", "mistral"])
    @pytest.mark.parametrize(
        ("positions", "edited_steps"),
        [("prefill", [True, False, False]), ("decode", [False, True, True]), ("both", [True] * 3)],
    )
    def test_prompt_and_generated_tokens_are_told_apart_by_column(
        self, name: str, positions: Any, edited_steps: list[bool], load: Model
    ) -> None:
        """Also for a prompt of one token, whose pass is as short as a generated token's."""
        model = load(name)
        for prompts in ([[17]], PROMPTS):
            ids, mask = batch(prompts)
            with watched(model, edit(k=2, kind="zero", positions=positions)) as log:
                generated(model, ids, mask, n=3)
            n_blocks = len(model.geometry.layers)
            for number, (_, projection, entries) in enumerate(log.changed()):
                step = number // (3 * n_blocks)
                n_new = ids.shape[1] if step == 0 else 1
                expected = torch.zeros_like(entries)
                if edited_steps[step] and projection != "v":
                    real = mask.bool() if step == 0 else torch.ones(len(ids), 1, dtype=torch.bool)
                    expected[:, :, -n_new:] = real[:, None, :, None]
                assert torch.equal(entries.any(dim=-1), expected.any(dim=-1))
                assert bool((entries.sum(dim=-1) <= 2).all())
            n_prompt, n_decoded = int(mask.sum()), 2 * len(ids)
            n_tokens = edited_steps[0] * n_prompt + edited_steps[1] * n_decoded
            heads = model.geometry.layers[0].n_heads + model.geometry.layers[0].n_key_value_heads
            assert log.edits.total == n_tokens * n_blocks * heads * 2

    def test_what_generated_tokens_get_is_chosen_and_computed_on_the_prompt(
        self, load: Model
    ) -> None:
        model, (ids, mask) = load("llama"), batch([PROMPTS[2]])
        with watched(model, edit(k=2, positions="decode")) as log:
            generated(model, ids, mask, n=3)
        prompt = {name: states[0] for name, states in log.before[0][1].items()}
        for step in (1, 2):
            block, new = log.after[2 * step]
            assert block == 0
            for name in "qk":
                for head in range(prompt[name].shape[0]):
                    rows = prompt[name][head].tolist()
                    tokens = [True] * len(rows)
                    chosen = reference.largest(reference.norms_of(rows, tokens), 2)
                    expected = reference.replaced_rows(rows, tokens, chosen, "mean")[0]
                    for d in chosen:
                        last = float(new[name][0, head, -1, d])
                        assert last == pytest.approx(expected[d], rel=1e-4, abs=1e-5)

    def test_one_context_serves_prompt_after_prompt(self, load: Model) -> None:
        model, intervention = load("llama"), edit(k=3, positions="both")
        with disrupt(model, intervention):
            runs = [generated(model, *batch([own]))[1] for own in PROMPTS]
        for own, logits in zip(PROMPTS, runs, strict=True):
            with disrupt(model, intervention):
                expected = generated(model, *batch([own]))[1]
            for actual, wanted in zip(logits, expected, strict=True):
                assert torch.equal(actual, wanted)


# The cache.


def keys_and_values(cache: Any, block: int) -> dict[str, Tensor]:
    return {"k": cache.layers[block].keys, "v": cache.layers[block].values}


class TestCache:
    @pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gptj", "gpt2"])
    @pytest.mark.parametrize("cache", ["edited", "clean", "edited_global"])
    def test_later_tokens_see_what_was_asked_for(self, name: str, cache: Any, load: Model) -> None:
        """Gemma-2 alternates sliding and global layers; all layers of Mistral slide."""
        model, (ids, mask) = load(name), batch(PROMPTS)
        intervention = edit(k=3, projections=("q", "k", "v"), cache=cache)
        with watched(model, intervention) as log, torch.no_grad():
            kept = read(model, ids, mask).past_key_values
        sliding = {"gemma2": {0}, "mistral": {0, 1}}.get(name, set())
        for (block, before), (_, after) in zip(log.before, log.after, strict=True):
            clean = cache == "clean" or (cache == "edited_global" and block in sliding)
            expected = before if clean else after
            for role, held in keys_and_values(kept, block).items():
                assert torch.equal(held, expected[role][:, :, -held.shape[2] :])
                assert not torch.equal(before[role], after[role])

    def test_a_clean_cache_is_that_of_an_edit_of_the_pattern_alone(self, load: Model) -> None:
        """Decoding sees the first layer's keys as they were."""
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        caches = {}
        for arm in ("clean", "edited", None):
            if arm is None:
                with torch.no_grad():
                    caches[arm] = read(model, ids, mask).past_key_values
                continue
            with disrupt(model, edit(k=3, cache=arm)), torch.no_grad():
                caches[arm] = read(model, ids, mask).past_key_values
        keys = {arm: keys_and_values(cache, 0)["k"] for arm, cache in caches.items()}
        assert torch.equal(keys["clean"], keys[None])
        assert not torch.equal(keys["edited"], keys[None])

    def test_generated_keys_persist_or_not_like_those_of_the_prompt(self, load: Model) -> None:
        model, prompt = load("llama"), torch.tensor([PROMPTS[2]])
        for arm in ("edited", "clean"):
            intervention = edit(k=3, kind="zero", projections=("k",), positions="both", cache=arm)
            with watched(model, intervention) as log, torch.no_grad():
                out = model.plain(input_ids=prompt)
                for token in (3, 4):
                    out = model.plain(
                        input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values
                    )
            kept = out.past_key_values
            for block in (0, 1):
                held = keys_and_values(kept, block)["k"]
                passes = [states["k"] for number, states in log.after if number == block]
                fresh = torch.cat([passes[0], passes[1][:, :, -1:], passes[2][:, :, -1:]], dim=2)
                n_zero = int((held == 0).sum())
                assert n_zero == (0 if arm == "clean" else 3 * 2 * fresh.shape[2])
                assert torch.equal(held, fresh) == (arm == "edited")

    def test_a_cache_of_fixed_size_is_refused(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        config = GenerationConfig(
            max_new_tokens=2, cache_implementation="static", do_sample=False, pad_token_id=PAD_ID
        )
        message = "past_key_values must grow with the text, got a StaticCache of fixed size; use a"
        with disrupt(model, edit(k=0)) as edits:
            logits_of(model, ids, mask)
            with pytest.raises(ValueError, match=message):
                model.plain.generate(ids, attention_mask=mask, generation_config=config)
        assert edits.total == 0


# Prompts that are not read in one pass.


@torch.no_grad()
def read_in_chunks(model: HookedModel, ids: Tensor, mask: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logits of all columns, read so many at a time."""
    assert sum(sizes) == ids.shape[1]
    cache, start, logits = None, 0, []
    for size in sizes:
        stop = start + size
        given = {"past_key_values": cache, "use_cache": True}
        out = read(model, ids[:, start:stop], mask[:, :stop], **given)
        cache, start = out.past_key_values, stop
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


class TestChunks:
    @pytest.mark.parametrize("name", ["llama", "gemma2", "gptj"])
    @pytest.mark.parametrize("sizes", [(5, 6), (1, 9, 1)])
    def test_a_prompt_in_chunks_is_a_prompt(
        self, name: str, sizes: Sequence[int], load: Model
    ) -> None:
        model, (ids, mask) = load(name), batch(PROMPTS)
        norms = capture_norms(model, PROMPTS)
        real = mask.bool()
        assert_near(
            read_in_chunks(model, ids, mask, sizes)[real], logits_of(model, ids, mask)[real]
        )
        for kind, rows in (("zero", "all"), ("dataset_mean", "after_first"), ("zero", "first")):
            intervention = edit(k=3, kind=kind, rows=rows)
            with disrupt(model, intervention, norms=norms, means=norms) as whole:
                expected = logits_of(model, ids, mask)
            with disrupt(model, intervention, norms=norms, means=norms, prompt_length=11) as parts:
                actual = read_in_chunks(model, ids, mask, sizes)
            assert_near(actual[real], expected[real], 1e-4)
            assert parts.by_place == whole.by_place

    def test_positions_go_on_from_chunk_to_chunk_where_none_are_given(self, load: Model) -> None:
        model, ids = load("llama"), token_ids()
        norms = capture_norms(model, ids.tolist())
        intervention = edit(k=3, kind="zero", stage="unrotated")
        with disrupt(model, intervention, norms=norms):
            whole = logits_of(model, ids)
        with disrupt(model, intervention, norms=norms, prompt_length=12), torch.no_grad():
            first = model.plain(input_ids=ids[:, :7])
            rest = model.plain(input_ids=ids[:, 7:], past_key_values=first.past_key_values)
        assert_near(torch.cat([first.logits, rest.logits], dim=1), whole, 1e-4)

    def test_what_needs_the_whole_prompt_is_refused_in_chunks(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        norms = capture_norms(model, PROMPTS)
        message = (
            r"a prompt of 11 tokens must be read in one pass for this intervention, got a chunk at "
            r"5; fix the selection by a capture \(norms\) and replace by 'zero' or 'dataset_mean'"
        )
        for intervention, sources in (
            (edit(kind="zero"), {}),
            (edit(kind="mean"), {"norms": norms}),
            (edit("mask", kind="mean"), {"masks": masks_of(model, 1)}),
            (edit(kind="shuffled"), {"norms": norms}),
            (edit(kind="resampled"), {"norms": norms, "donor": [1, 2]}),
        ):
            with (
                pytest.raises(ValueError, match=message),
                disrupt(model, intervention, prompt_length=11, **sources),
            ):
                read_in_chunks(model, ids, mask, (5, 6))

    def test_longer_and_longer_prompts_are_prompts_where_they_differ(self, load: Model) -> None:
        model = load("llama")
        with disrupt(model, edit()), torch.no_grad():
            for length in (4, 5, 6):
                model.plain(token_ids(1, length, seed=length))

    def test_a_second_chunk_is_refused_unless_the_prompt_length_is_stated(
        self, load: Model
    ) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        message = (
            "prompt_length must be stated when a prompt is read in chunks, got a second pass of 6 "
            "tokens; pass the number of columns of the whole prompt"
        )
        with pytest.raises(RuntimeError, match=message), disrupt(model, edit()):
            read_in_chunks(model, ids, mask, (5, 6))

    def test_generation_without_a_cache_is_refused_unless_the_prompt_length_is_stated(
        self, load: Model
    ) -> None:
        model, ids = load("llama"), token_ids(1, 6)
        given: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        given["attention_mask"] = torch.ones_like(ids)
        intervention = edit(k=3, kind="zero")
        with disrupt(model, intervention) as edits:
            cached = model.plain.generate(ids, **given)
        with (
            pytest.raises(RuntimeError, match="must be stated for generation without a cache"),
            disrupt(model, intervention),
        ):
            model.plain.generate(ids, use_cache=False, **given)
        with disrupt(model, intervention, prompt_length=6) as again:
            uncached = model.plain.generate(ids, use_cache=False, **given)
        assert torch.equal(cached, uncached)
        assert again.total % edits.total == 0  # the same entries, once for every pass

    def test_a_context_that_opens_after_the_prompt_is_refused(self, load: Model) -> None:
        model, ids = load("llama"), token_ids()
        with torch.no_grad():
            cache = model.plain(input_ids=ids).past_key_values
        message = (
            "the prompt must be read inside the context, got a pass that continues a cache of 12 "
            "tokens; open the context before the first pass or state prompt_length"
        )
        with pytest.raises(RuntimeError, match=message), disrupt(model, edit()), torch.no_grad():
            model.plain(input_ids=ids[:, :1], past_key_values=cache)

    @pytest.mark.parametrize("positions", ["prefill", "decode", "both"])
    @pytest.mark.parametrize("kind", ["mean", "joint_mean", "shuffled"])
    def test_a_prompt_and_what_follows_in_one_pass_are_told_apart(
        self, positions: Any, kind: Any, load: Model
    ) -> None:
        """What follows is neither edited as prompt, nor read for selection or value."""
        if kind == "shuffled":
            positions = "prefill"  # a generated token has no such counterpart
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        ids = torch.cat([ids, token_ids(4, 3, seed=9)], dim=1)
        mask = torch.cat([mask, torch.ones(4, 3, dtype=torch.long)], dim=1)
        intervention = edit(k=3, kind=kind, positions=positions)
        with disrupt(model, intervention, prompt_length=11):
            in_one_pass = logits_of(model, ids, mask)
        with disrupt(model, intervention):
            token_by_token = read_in_chunks(model, ids, mask, (11, 1, 1, 1))
        assert_near(in_one_pass[mask.bool()], token_by_token[mask.bool()], 1e-4)

    @pytest.mark.parametrize("sizes", [(5, 9), (14,), (11, 3)])
    def test_a_clean_cache_is_refused_where_tokens_of_one_pass_would_see_the_edit(
        self, sizes: Sequence[int], load: Model
    ) -> None:
        model, norms = load("llama"), capture_norms(load("llama"), PROMPTS)
        ids, mask = token_ids(2, 14), torch.ones(2, 14, dtype=torch.long)
        start, stop = (11, 14) if sizes == (11, 3) else (0, sizes[0])
        message = (
            f"cache must be 'edited' for columns {start} to {stop} of a prompt of 11, got 'clean': "
            "tokens of one pass see each other's edits, those of later ones would not; read the "
            "prompt alone and in one pass"
        )
        intervention = edit(kind="zero", positions="both", cache="clean")
        with (
            pytest.raises(ValueError, match=message),
            disrupt(model, intervention, norms=norms, prompt_length=11),
        ):
            read_in_chunks(model, ids, mask, sizes)


# Where.


class TestPlaces:
    @pytest.mark.parametrize("left", [True, False])
    @pytest.mark.parametrize("stage", ["attention", "unrotated"])
    def test_the_first_token_is_left_alone_or_edited_alone(
        self, left: bool, stage: Any, load: Model
    ) -> None:
        """In its row, wherever padding put it; selection and value come from all tokens."""
        model, (ids, mask) = load("llama"), batch(PROMPTS, left=left)
        first = mask.bool() & (mask.cumsum(dim=1) == 1)
        rest = mask.bool() & ~first
        logs = {}
        for rows, tokens in (("all", mask.bool()), ("after_first", rest), ("first", first)):
            where = Where(rows=rows, layers=(0,), stage=stage, projections=("q", "k", "v"))
            with watched(model, Intervention(selection=Selection(k=3), where=where)) as log:
                logits_of(model, ids, mask)
            logs[rows] = log
            for block, _, entries in log.changed():
                expected = tokens[:, None].expand_as(entries[..., 0]) & (block == 0)
                assert torch.equal(entries.any(dim=-1), expected)
        for rows, tokens in (("after_first", rest), ("first", first)):
            for name in ROLES:
                one, whole = logs[rows].after[0][1][name], logs["all"].after[0][1][name]
                at = tokens[:, None].expand(one.shape[:3])
                assert torch.equal(one[at], whole[at])

    @pytest.mark.parametrize("projections", [("q",), ("k",), ("v",), ("q", "v"), ("k", "q", "v")])
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
    def test_only_the_named_projections_change(
        self, name: str, projections: Any, load: Model
    ) -> None:
        model = load(name)
        with watched(model, edit(projections=projections)) as log:
            logits_of(model, token_ids())
        assert log.places() == {(block, role) for block in (0, 1) for role in projections}

    @pytest.mark.parametrize("layers", [(0,), (2,), (0, 2)])
    def test_only_the_named_layers_change(self, layers: Any, load: Model) -> None:
        model = load("smollm3")
        with watched(model, edit(layers=layers)) as log:
            logits_of(model, token_ids())
        assert log.places() == {(block, role) for block in layers for role in "qk"}
        assert set(log.edits.by_place) == log.places()

    def test_blocks_without_attention_are_no_layers(self, load: Model) -> None:
        model = load("jamba")
        with watched(model, edit(kind="zero")) as log:
            logits_of(model, token_ids())
        assert log.places() == {(block, role) for block in (1, 3) for role in "qk"}

    def test_before_the_rotation_both_members_of_a_pair_move_and_no_other(
        self, load: Model
    ) -> None:
        for name, pair in (("llama", (3, 11)), ("gptj", (2, 3)), ("gpt_neox", (3, 7))):
            model = load(name)
            masks = masks_of(model, pair[0])
            for stage, dims in (("attention", {pair[0]}), ("unrotated", set(pair))):
                with watched(model, edit("mask", kind="zero", stage=stage), masks=masks) as log:
                    logits_of(model, token_ids())
                for _, role, entries in log.changed():
                    found = set(entries.any(dim=2).any(dim=1).any(dim=0).nonzero()[:, 0].tolist())
                    assert found == (set() if role == "v" else dims)
                    if role != "v" and stage == "attention":
                        assert bool(entries[..., pair[0]].all())

    def test_a_selection_before_the_rotation_is_by_the_norms_there(self, load: Model) -> None:
        model, ids = load("llama"), [PROMPTS[2]]
        norms = capture_norms(model, ids)
        for stage in ("attention", "unrotated"):
            intervention = edit(k=3, kind="zero", stage=stage)
            with disrupt(model, intervention):
                by_prompt = logits_of(model, torch.tensor(ids))
            with disrupt(model, intervention, norms=norms):
                by_capture = logits_of(model, torch.tensor(ids))
            if stage == "attention":
                rotated = by_prompt
            # The first layer's inputs are the same; later ones see edited layers before them.
            with watched(model, intervention) as one:
                logits_of(model, torch.tensor(ids))
            with watched(model, intervention, norms=norms) as other:
                logits_of(model, torch.tensor(ids))
            for (_, name, a), (_, _, b) in zip(one.changed()[:3], other.changed()[:3], strict=True):
                assert torch.equal(a, b), name
            assert far_apart(by_capture, logits_of(model, torch.tensor(ids)))
        assert far_apart(by_prompt, rotated)


# Contexts.


class TestContexts:
    def test_two_inside_each_other_are_one_with_both(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        for one, other, both in (
            (
                edit(k=2, projections=("q",)),
                edit(k=2, projections=("k",)),
                edit(k=2, projections=("q", "k")),
            ),
            (edit(k=2, layers=(0,)), edit(k=2, layers=(1,)), edit(k=2)),
        ):
            for outer, inner in ((one, other), (other, one)):
                with disrupt(model, outer) as first, disrupt(model, inner) as second:
                    nested = generated(model, ids, mask)[1]
                with disrupt(model, both) as whole:
                    together = generated(model, ids, mask)[1]
                assert first.by_place | second.by_place == whole.by_place
                for actual, expected in zip(nested, together, strict=True):
                    assert torch.equal(actual, expected)

    def test_an_inner_edit_sees_what_the_outer_one_left(self, load: Model) -> None:
        """The largest dimension of what is left is the second largest."""
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        for projections in (("q",), ("k",), ("v",)):
            one, two = (edit(k=k, kind="zero", projections=projections) for k in (1, 2))
            with disrupt(model, one), disrupt(model, one):
                nested = logits_of(model, ids, mask)
            with disrupt(model, two):
                together = logits_of(model, ids, mask)
            assert_near(nested[mask.bool()], together[mask.bool()])

    def test_a_capture_inside_sees_the_edit_and_pads_without_a_trace(self, load: Model) -> None:
        model = load("llama")
        masks = masks_of(model, 4, 9)
        with disrupt(model, edit("mask", kind="zero"), masks=masks):
            norms = capture_norms(model, PROMPTS, batch_size=4)
        for projection in ("q", "k"):
            sums = getattr(norms, projection)
            assert torch.equal(sums == 0, masks[projection])
        assert bool((norms.v > 0).all())
        for intervention in (edit(k=3), edit(k=3, kind="shuffled"), edit("massive", kind="zero")):
            intervention = Intervention(
                selection=Selection(rule=intervention.selection.rule, k=3, ratio=1.5),
                value=intervention.value,
            )
            with disrupt(model, intervention):
                together = capture_norms(model, PROMPTS, batch_size=4)
                apart = capture_norms(model, PROMPTS, batch_size=1)
            for projection in ("q", "k", "v"):
                torch.testing.assert_close(
                    together.sums(projection).norms(),
                    apart.sums(projection).norms(),
                    rtol=1e-4,
                    atol=1e-4,
                )

    def test_another_model_inside_is_not_touched(self, load: Model, tmp_path: Path) -> None:
        model, other = load("llama"), load_model(FAMILIES["llama"].save(tmp_path))
        ids = token_ids()
        intact = logits_of(other, ids)
        with disrupt(model, edit(k=4)) as edits:
            assert torch.equal(logits_of(other, ids), intact)
            assert edits.total == 0
            edited = logits_of(model, ids)
        assert far_apart(edited, intact)

    def test_an_error_inside_leaves_nothing_behind(self, load: Model) -> None:
        model, ids = load("llama"), token_ids()
        intact = logits_of(model, ids)
        hooks = [len(module._forward_pre_hooks) for module in model.plain.modules()]
        for run in (lambda *_: 1, lambda *given: int(bool(logits_of(*given).any()))):
            with pytest.raises(ZeroDivisionError), disrupt(model, edit(k=4)):
                _ = run(model, ids) / 0
        assert [len(module._forward_pre_hooks) for module in model.plain.modules()] == hooks
        assert torch.equal(logits_of(model, ids), intact)

    def test_the_context_closed_the_model_is_as_before(self, load: Model) -> None:
        for name in (*SERVED, "opt"):
            model, ids = load(name), token_ids()
            intact = logits_of(model, ids)
            with disrupt(model, edit(k=4, projections=("q", "k", "v"))):
                assert far_apart(logits_of(model, ids), intact)
            assert torch.equal(logits_of(model, ids), intact)


# Counts and refusals.


class TestCounts:
    def test_entries_are_rows_times_heads_times_k(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)  # 4 + 7 + 11 + 2 tokens
        cases = [
            (edit(k=3), {"q": 24 * 4 * 3, "k": 24 * 2 * 3}),
            (edit(k=3, rows="first", projections=("v",)), {"v": 4 * 2 * 3}),
            (edit(k=3, rows="after_first"), {"q": 20 * 4 * 3, "k": 20 * 2 * 3}),
            (edit("across_heads", k=5, kind="zero"), {"q": 24 * 4 * 5, "k": 24 * 2 * 5}),
        ]
        for intervention, by_role in cases:
            with disrupt(model, intervention) as edits:
                logits_of(model, ids, mask)
            expected = {(block, role): n for role, n in by_role.items() for block in (0, 1)}
            assert edits.by_place == expected
            assert edits.total == 2 * sum(by_role.values())

    def test_pairs_count_both_members(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        intervention = Intervention(selection=Selection(k=2, unit="pair"))
        with disrupt(model, intervention) as edits:
            logits_of(model, ids, mask)
        assert edits.total == 2 * 24 * (4 + 2) * 4

    def test_nothing_edited_is_an_error(self, load: Model) -> None:
        model, ids = load("llama"), token_ids()
        message = (
            "an intervention must edit at least one entry of .*, got none: its selection or its "
            "positions never occurred; check rule, rows and positions"
        )
        for intervention in (
            Intervention(selection=Selection(rule="massive", ratio=1e3)),
            edit(positions="decode"),
        ):
            with pytest.raises(RuntimeError, match=message), disrupt(model, intervention):
                logits_of(model, ids)
        masks = masks_of(model)
        with (
            pytest.raises(RuntimeError, match=message),
            disrupt(model, edit("mask"), masks=masks),
        ):
            logits_of(model, ids)

    def test_no_run_of_the_plain_model_is_an_error(self, load: Model) -> None:
        model = load("llama")
        message = (
            "every layer must be reached by the intervention, got no run of q in block 0; run "
            "model.plain inside the context"
        )
        with pytest.raises(RuntimeError, match=message), disrupt(model, edit()):
            pass

    @pytest.mark.parametrize("built", [True, False])
    def test_a_run_of_the_bridge_is_an_error_even_beside_runs_of_the_plain_model(
        self, built: bool, tmp_path: Path
    ) -> None:
        model = load_model(llama().save(tmp_path))
        if built:
            model.run_with_hooks(token_ids(), fwd_hooks=[])
        message = (
            "model.bridge of .* must not be run inside disrupt, whose edits it does not see; run "
            "model.plain, or use disruption_hooks"
        )

        def runs_both() -> None:
            with disrupt(model, edit()):
                logits_of(model, token_ids())
                model.run_with_hooks(token_ids(), fwd_hooks=[])

        with pytest.raises(RuntimeError, match=message):
            runs_both()
        model.run_with_hooks(token_ids(), fwd_hooks=[])  # outside it runs again


class TestRefusals:
    def test_what_does_not_exist_in_the_model_is_refused(self, load: Model, tmp_path: Path) -> None:
        model = load("llama")
        other = load_model(llama(num_hidden_layers=3).save(tmp_path))
        norms = capture_norms(other, PROMPTS)
        heads = capture_norms(load("gpt_neox"), PROMPTS)
        masks = masks_of(model, 1)
        without = {"q": masks["q"]}
        flat = masks | {"k": masks["k"][:, :1]}
        refusals: list[tuple[Intervention, dict[str, Any], str]] = [
            (edit(layers=(0, 2)), {}, r"layers must be among \[0, 1\], got 2"),
            (edit(k=17), {}, r"k must be between 0 and 16 \(dimensions of a head\), got 17"),
            (edit(), {"norms": norms}, "norms must cover the layers and heads of .*, got those of"),
            (edit(), {"norms": heads}, "norms must cover the layers and heads of .*, got those of"),
            (edit(), {"means": heads}, "means must cover the layers and heads of .*, got those of"),
            (edit(kind="dataset_mean"), {}, "means must be a capture for the value 'dataset_mean'"),
            (edit("mask"), {}, "masks must be given exactly for the rule 'mask', got none for 'm"),
            (edit(), {"masks": masks}, "masks must be given exactly .*, got some for 'largest'"),
            (edit("mask"), {"masks": without}, r"masks must hold 'k', got \['q'\]"),
            (edit("mask"), {"masks": flat}, r"\[layer, head, d_head\] = \(2, 2, 16\), got \(2, 1,"),
            (edit(kind="resampled"), {}, "donor must be token ids exactly .*, got none for 'resam"),
            (edit(), {"donor": [1, 2]}, "donor must be token ids exactly .*, got some for 'mean'"),
        ]
        for intervention, sources, message in refusals:
            with pytest.raises(ValueError, match=message), disrupt(model, intervention, **sources):
                pytest.fail("the context must not open")
            with pytest.raises(ValueError, match=message):
                disruption_hooks(model, intervention, **sources)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: Where(layers=(0, 0)),
                r"layers must name each block at most once, got \(0, 0\)",
            ),
            (lambda: Where(projections=()), r"projections must name each of q, k, v at most once"),
            (lambda: Where(projections=("q", "q")), r"at least one, got \('q', 'q'\)"),
            (lambda: Where(layers=()), "layers must name at least one block, got none; None means"),
            (
                lambda: edit(kind="shuffled", positions="both"),
                "positions must be 'prefill' for the value 'shuffled', got 'both'; a generated",
            ),
            (
                lambda: edit(kind="resampled", positions="decode"),
                "positions must be 'prefill' for the value 'resampled', got 'decode'",
            ),
            (
                lambda: edit("across_heads", kind="joint_mean"),
                "value must not be 'joint_mean' for the rule 'across_heads'; use zero",
            ),
            (
                lambda: edit(projections=("v",), stage="unrotated"),
                "stage must be 'attention' for values, which are never rotated",
            ),
        ],
    )
    def test_choices_that_do_not_go_together_are_refused(
        self, make: Callable[[], object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            make()

    def test_a_mask_that_does_not_cover_the_columns_is_refused(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        message = r"attention_mask must be \[batch, pos\] over all 11 columns, got shape \(4, 1, 11"
        with pytest.raises(ValueError, match=message), disrupt(model, edit()):
            logits_of(model, ids, mask.bool()[:, None, None].expand(4, 1, 11, 11))

    def test_prompts_that_are_padded_on_the_left_need_positions(self, load: Model) -> None:
        """Else the model rotates a token by its column, and its largest dimension is another."""
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        message = (
            "position_ids must be given for prompts that are padded on the left, got none: the "
            "model counts columns, and what is edited depends on position; pass "
            r"\(attention_mask.cumsum\(1\) - 1\).clamp_min\(0\)"
        )
        with pytest.raises(ValueError, match=message), disrupt(model, edit()), torch.no_grad():
            model.plain(input_ids=ids, attention_mask=mask)

    def test_a_kept_edit_inside_a_passing_one_is_refused(self, load: Model) -> None:
        """It would be written into what passes, and be lost with it."""
        model, ids = load("llama"), token_ids()
        kept, passing = edit(projections=("k",)), edit(projections=("k",), cache="clean")
        message = (
            "a context that keeps its edits in the cache must be opened outside one that does not, "
            "got it inside; swap them"
        )
        with (
            pytest.raises(ValueError, match=message),
            disrupt(model, passing),
            disrupt(model, kept),
        ):
            pytest.fail("the context must not open")
        for outer, inner in (
            (kept, passing),
            (passing, passing),
            (passing, edit(projections=("q",))),
        ):
            with disrupt(model, outer), disrupt(model, inner):
                logits_of(model, ids)

    def test_pairs_of_a_model_that_does_not_rotate_are_refused(self, load: Model) -> None:
        intervention = Intervention(selection=Selection(unit="pair"))
        message = "unit='pair' must be asked of a layer that rotates its queries and keys"
        with pytest.raises(ValueError, match=message), disrupt(load("gpt2"), intervention):
            logits_of(load("gpt2"), token_ids())


# Hooks of TransformerLens.


@pytest.fixture(scope="module", name="wrapped")
def fixture_wrapped(load: Model) -> Model:
    found: dict[str, HookedModel] = {}

    def wrapped(name: str) -> HookedModel:
        if name not in found:
            found[name] = HookedModel.wrap(load(name).bridge, name=name)
        return found[name]

    return wrapped


class TestHooks:
    @pytest.mark.parametrize("left", [True, False])
    @pytest.mark.parametrize("stage", ["attention", "unrotated"])
    @pytest.mark.parametrize("name", [*SERVED, "smollm3"])
    def test_hooks_compute_the_logits_of_the_context(
        self, name: str, stage: Any, left: bool, load: Model, wrapped: Model
    ) -> None:
        model, (ids, mask) = load(name), batch(PROMPTS, left=left)
        real = mask.bool()
        for intervention in (
            edit(k=3, stage=stage, projections=("q", "k", "v")),
            edit(k=3, stage=stage, rows="after_first", kind="zero", layers=(1,)),
        ):
            with disrupt(model, intervention):
                expected = logits_of(model, ids, mask)
            for held in (model, wrapped(name)):
                hooks = disruption_hooks(held, intervention, attention_mask=mask)
                actual = held.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=mask)
                assert_near(actual[real], expected[real], 1e-4)
            assert far_apart(expected[real], logits_of(model, ids, mask)[real])

    def test_hooks_of_ones_own_run_beside_those_of_an_edit(
        self, load: Model, wrapped: Model
    ) -> None:
        """In the order of the list, where they share a hook point."""
        model, ids = load("llama"), token_ids()
        edited, seen = edit(k=3, kind="zero"), []
        hooks = disruption_hooks(model, edited)
        name = next(name for name, _ in hooks if "rot_k" in name or "hook_k" in name)

        def mine(keys: Tensor, hook: Any) -> None:
            seen.append(int((keys == 0).sum()))

        for held in (model, wrapped("llama")):
            before = held.run_with_hooks(ids, fwd_hooks=[(name, mine), *hooks])
            after = held.run_with_hooks(ids, fwd_hooks=[*hooks, (name, mine)])
            assert_near(before, after, 1e-5)
        with disrupt(model, edited):
            assert_near(after, logits_of(model, ids), 1e-4)
        assert [n > 0 for n in seen] == [False, True] * 2

    def test_a_torch_hook_of_ones_own_runs_under_the_context(self, load: Model) -> None:
        model, seen = load("llama"), []
        handle = model.plain.base_model.layers[1].register_forward_hook(
            lambda module, given, output: seen.append(1)
        )
        with disrupt(model, edit(k=3)) as edits:
            logits_of(model, token_ids())
        handle.remove()
        assert seen == [1]
        assert edits.total > 0

    def test_sources_serve_hooks_too(self, load: Model, wrapped: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        norms, masks = capture_norms(model, PROMPTS), masks_of(model, 3)
        for intervention, sources in (
            (edit(k=3, kind="dataset_mean"), {"norms": norms, "means": norms}),
            (edit("mask", stage="unrotated"), {"masks": masks}),
            (edit(k=3, kind="resampled", stage="unrotated"), {"donor": [4, 5, 6]}),
        ):
            with disrupt(model, intervention, **sources):
                expected = logits_of(model, ids, mask)
            for held in (model, wrapped("llama")):
                hooks = disruption_hooks(held, intervention, attention_mask=mask, **sources)
                actual = held.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=mask)
                assert_near(actual[mask.bool()], expected[mask.bool()], 1e-4)

    def test_they_name_the_sites_of_what_they_edit(self, load: Model) -> None:
        names = [name for name, _ in disruption_hooks(load("smollm3"), edit(layers=(0, 1)))]
        assert names == [
            "blocks.0.attn.hook_rot_q",
            "blocks.0.attn.hook_rot_k",
            "blocks.1.attn.hook_q",  # this layer does not rotate
            "blocks.1.attn.hook_k",
        ]

    def test_what_hooks_cannot_do_is_refused(self, load: Model) -> None:
        message = (
            "positions must be 'prefill' and cache 'edited' for hooks, got {} and {}; use disrupt"
        )
        for where, got in (
            ({"positions": "both"}, ("'both'", "'edited'")),
            ({"cache": "clean"}, ("'prefill'", "'clean'")),
        ):
            with pytest.raises(ValueError, match=message.format(*got)):
                disruption_hooks(load("llama"), edit(**where))

    def test_a_site_that_does_not_fire_is_refused(
        self, load: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load("llama")
        monkeypatch.setitem(vars(model), "sites", ("blocks.0.attn.hook_rot_q",))
        message = (
            "every hook point of the intervention must fire on .*, got 'blocks.0.attn.hook_rot_k', "
            "which does not; use disrupt"
        )
        with pytest.raises(ValueError, match=message):
            disruption_hooks(model, edit())

    def test_a_wrapped_model_is_sent_from_the_context_to_hooks(self, wrapped: Model) -> None:
        message = (
            "llama must be loaded by load_model to be disrupted in place, got a wrapped "
            "TransformerLens model; use disruption_hooks with run_with_hooks"
        )
        with (
            pytest.raises(UnsupportedModelError, match=message),
            disrupt(wrapped("llama"), edit()),
        ):
            pytest.fail("the context must not open")

    def test_hooks_that_edit_nothing_are_an_error(self, load: Model) -> None:
        model, ids = load("llama"), token_ids()
        none = Selection(rule="massive", ratio=60.0)
        message = "an intervention must edit at least one entry of .*, got none: its selection"
        for _ in range(2):
            hooks = disruption_hooks(model, Intervention(selection=none))
            with pytest.raises(RuntimeError, match=message):
                model.run_with_hooks(ids, fwd_hooks=hooks)
        hooks = disruption_hooks(model, edit(k=3))
        first = model.run_with_hooks(ids, fwd_hooks=hooks)
        again = model.run_with_hooks(ids, fwd_hooks=hooks)  # each run is counted for itself
        assert torch.equal(first, again)
        assert far_apart(first, model.run_with_hooks(ids, fwd_hooks=[]))
        empty = disruption_hooks(model, edit(k=0))
        assert torch.equal(
            model.run_with_hooks(ids, fwd_hooks=empty), model.run_with_hooks(ids, fwd_hooks=[])
        )

    def test_a_mask_of_another_batch_is_refused(self, load: Model) -> None:
        model, (ids, mask) = load("llama"), batch(PROMPTS)
        hooks = disruption_hooks(model, edit(), attention_mask=mask[:2])
        with pytest.raises(ValueError, match=r"attention_mask must be .* over all 11 columns"):
            model.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=mask)
