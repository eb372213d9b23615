"""Surgery on the rotation against frequencies changed by hand, in every family that rotates."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONTEXT, FAMILIES, PAD_ID, Family, expected_inputs, token_ids, turn
from torch import Tensor
from transformers import PreTrainedModel

from mi_massive import HookedModel, UnsupportedModelError, capture_norms, load_model, operate
from mi_massive.interventions import Intervention, Selection, disrupt
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.operation import Surgery
from mi_massive.pair_choices import PairChoice

SERVED = [
    *("llama", "llama_yarn", "mistral", "qwen3", "gemma2", "gemma3", "phi", "phi3", "gpt_neox"),
    *("smollm3", "gptj", "glm", "cohere", "cohere2"),
]
"""Scaled frequencies, factors, QK-norm, windows, soft cap, two rotations, partial widths, fused
projections, layers without rotation, both layouts."""
PROMPTS = [[5, 9, 2, 40], [17, 3, 8, 1, 22, 6, 30], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [33, 12]]
FAST_HALF = PairChoice(bands=(0, 1), n_bands=4)
SLOWEST = PairChoice(bands=(3,), n_bands=4)

Model = Callable[[str], HookedModel]
ByFrequency = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module", name="load")
def fixture_load(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Loads a family of `tiny_models` once; its answers are as long as asked for."""
    loaded: dict[str, HookedModel] = {}

    def load(name: str) -> HookedModel:
        if name not in loaded:
            loaded[name] = load_model(FAMILIES[name].save(tmp_path_factory.mktemp(name)))
            generation: Any = getattr(loaded[name].plain, "generation_config", None)
            generation.eos_token_id = None
        return loaded[name]

    return load


@torch.no_grad()
def logits_of(model: Any, ids: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    if mask is not None:
        places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        given = {"attention_mask": mask, "position_ids": places} | given
    return model(input_ids=ids, **given).logits


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


def far_apart(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) > 1e-3 * float(second.abs().max())


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids in prompts)
    ids = [[PAD_ID] * (width - len(own)) + list(own) for own in prompts]
    mask = [[0] * (width - len(own)) + [1] * len(own) for own in prompts]
    return torch.tensor(ids), torch.tensor(mask)


# Frequencies changed by hand, in the buffers of an untouched transformers model.


def by_hand(family: Family, change: ByFrequency) -> PreTrainedModel:
    model = family.build()
    for name, buffer in dict(model.named_buffers()).items():
        if name.endswith("inv_freq") and "original" not in name:
            buffer.copy_(change(buffer.double()))
        elif name.endswith("embed_positions"):  # GPT-J: sines, then cosines, by position
            n_pairs = buffer.shape[-1] // 2
            own = 1e4 ** -(torch.arange(n_pairs).double() / n_pairs)
            angles = torch.arange(len(buffer)).double()[:, None] * change(own)
            buffer.copy_(torch.cat([angles.sin(), angles.cos()], dim=-1))
    return model


def zeroed(first: int, last: int) -> ByFrequency:
    """Frequencies of the quarters first .. last - 1 set to zero."""

    def change(inv_freq: Tensor) -> Tensor:
        n = len(inv_freq)
        kept = torch.arange(n)
        return inv_freq * ~((kept >= n * first // 4) & (kept < n * last // 4))

    return change


def larger_theta(factor: float) -> ByFrequency:
    return lambda f: f * torch.tensor([factor ** (-p / len(f)) for p in range(len(f))]).double()


SURGERIES: dict[str, tuple[Surgery, ByFrequency]] = {
    "no rotation": (Surgery(), lambda f: 0 * f),
    "fast half": (Surgery(pairs=FAST_HALF), zeroed(0, 2)),
    "second band": (Surgery(pairs=PairChoice(bands=(1,), n_bands=4)), zeroed(1, 2)),
    "theta": (Surgery(change="theta", amount=3.0), larger_theta(3.0)),
    "scale": (Surgery(change="scale", amount=0.5), lambda f: f / 2),
}


class TestEqualsFrequenciesChangedByHand:
    @pytest.mark.parametrize("name", SERVED)
    @pytest.mark.parametrize("kind", SURGERIES)
    def test_logits(self, name: str, kind: str, load: Model) -> None:
        surgery, change = SURGERIES[kind]
        ids = token_ids(2, 12)
        with operate(load(name), surgery):
            actual = logits_of(load(name).plain, ids)
        expected = logits_of(by_hand(FAMILIES[name], change), ids)
        assert_near(actual, expected)
        assert far_apart(actual, logits_of(load(name).plain, ids))

    def test_generation(self, load: Model) -> None:
        ids = token_ids(2, 7)
        surgery, change = SURGERIES["fast half"]
        options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD_ID}
        with operate(load("llama"), surgery):
            actual = load("llama").plain.generate(ids, **options)
        model = by_hand(FAMILIES["llama"], change)
        model.generation_config.eos_token_id = None
        assert torch.equal(actual, model.generate(ids, **options))
        assert not torch.equal(actual, load("llama").plain.generate(ids, **options))


class TestShift:
    @pytest.mark.parametrize("name", SERVED)
    @pytest.mark.parametrize("tokens", [40.0, -3.0, 2000.0])
    def test_of_all_positions_leaves_logits_as_they_are(
        self, name: str, tokens: float, load: Model
    ) -> None:
        ids = token_ids(2, 12)
        intact = logits_of(load(name).plain, ids)
        with operate(load(name), Surgery(change="shift", amount=tokens)) as operation:
            shifted = logits_of(load(name).plain, ids)
        assert operation.total > 0
        assert_near(shifted, intact)

    def test_turns_states_as_the_model_does_at_later_positions(self, load: Model) -> None:
        model, ids = load("llama"), token_ids(1, 6)
        with operate(model, Surgery(change="shift", amount=40.0)):
            shifted = inputs_of(model, ids)
        later = inputs_of(model, ids, position_ids=torch.arange(40, 46)[None])
        intact = inputs_of(model, ids)
        for own, expected, before in zip(shifted, later, intact, strict=True):
            assert_near(own.query, expected.query)
            assert_near(own.key, expected.key)
            assert far_apart(own.query, before.query)
            assert torch.equal(own.value[:, :, :1], before.value[:, :, :1])

    def test_of_some_pairs_leaves_logits_as_they_are_too(self, load: Model) -> None:
        ids = token_ids(2, 12)
        surgery = Surgery(change="shift", amount=17.0, pairs=FAST_HALF)
        with operate(load("gemma3"), surgery):
            shifted = logits_of(load("gemma3").plain, ids)
        assert_near(shifted, logits_of(load("gemma3").plain, ids))


def inputs_of(model: HookedModel, ids: Tensor, **given: Any) -> list[AttentionInputs]:
    seen: list[AttentionInputs] = []

    def keep(inputs: AttentionInputs) -> None:
        seen.append(
            AttentionInputs(
                inputs.block, inputs.query.clone(), inputs.key.clone(), inputs.value.clone()
            )
        )

    with visiting(model.plain, keep):
        logits_of(model.plain, ids, **given)
    return seen


class TestHeads:
    @pytest.mark.parametrize("name", ["llama_yarn", "gpt_neox", "glm"])
    def test_each_has_the_pairs_that_are_massive_in_it(self, name: str, load: Model) -> None:
        family, model, ids = FAMILIES[name], load(name), token_ids(2, 9)
        norms = capture_norms(model, token_ids(3, 9, seed=1).tolist())
        choice = PairChoice(among="massive", ratio=1.2)
        with operate(model, Surgery(pairs=choice), norms=norms) as operation:
            seen = inputs_of(model, ids)[0]
        kinds = {tuple(row) for row in operation.pairs[0].tolist()}
        assert len(kinds) > 1  # heads differ
        raw = expected_inputs(family, family.build(), ids)[0]
        expected = {"query": raw["raw_q"], "key": raw["raw_k"]}
        for role, states in expected.items():
            actual = getattr(seen, role)
            for head in range(actual.shape[1]):
                group = head if role == "key" else head * family.n_key_value_heads // 4
                own = family.inv_freq[0] * ~operation.pairs[0][group]
                turned = turn(states[:, head : head + 1], own, family.layout, family.factor)
                assert_near(actual[:, head : head + 1], turned.float())

    def test_pairs_that_are_not_chosen_keep_their_bits(self, tmp_path: Path) -> None:
        model = load_model(FAMILIES["llama"].save(tmp_path), dtype=torch.bfloat16)
        ids = token_ids(1, 9)
        intact = inputs_of(model, ids)[0].query
        with operate(model, Surgery(pairs=FAST_HALF)):
            seen = inputs_of(model, ids)[0].query
        kept = [4, 5, 6, 7, 12, 13, 14, 15]
        assert torch.equal(seen[..., kept], intact[..., kept])
        assert not torch.equal(seen, intact)


class TestRuns:
    @pytest.mark.parametrize("name", ["llama", "gemma3", "gptj", "gpt_neox", "cohere2"])
    def test_rows_of_a_left_padded_batch_answer_as_if_alone(self, name: str, load: Model) -> None:
        model = load(name)
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD_ID}
        options |= {"output_scores": True, "return_dict_in_generate": True}
        ids, mask = left_padded(PROMPTS)
        surgery = Surgery(change="scale", amount=0.4, pairs=FAST_HALF)
        with operate(model, surgery):
            together = model.plain.generate(ids, attention_mask=mask, **options)
            for row, own in enumerate(PROMPTS):
                alone = model.plain.generate(torch.tensor([own]), **options)
                for first, second in zip(together.scores, alone.scores, strict=True):
                    assert_near(first[row], second[0])

    @pytest.mark.parametrize("name", SERVED)
    def test_a_cache_holds_the_keys_of_the_surgery(self, name: str, load: Model) -> None:
        model, ids = load(name).plain, token_ids(2, 14)
        with operate(load(name), Surgery(pairs=FAST_HALF)):
            whole = logits_of(model, ids)
            cache: Any = None
            parts: list[Tensor] = []
            for start, stop in ((0, 5), (5, 9), *((i, i + 1) for i in range(9, 14))):
                with torch.no_grad():
                    output = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                parts.append(output.logits)
        assert_near(torch.cat(parts, dim=1), whole)

    def test_a_capture_inside_sees_the_surgery(self, load: Model) -> None:
        model, prompts = load("llama"), token_ids(3, 9).tolist()
        with operate(model, Surgery()):
            removed = capture_norms(model, prompts)
        intact = capture_norms(model, prompts)
        assert intact.q_unrotated_sums is not None
        assert_near(removed.q_sums.squares[:, 0], intact.q_unrotated_sums.squares[:, 0], 1e-4)
        assert far_apart(removed.q_sums.squares[:, 0], intact.q_sums.squares[:, 0])

    def test_disrupt_inside_sees_what_the_surgery_left(self, load: Model) -> None:
        model, ids = load("llama"), token_ids(2, 9)
        both: list[Tensor] = []
        with operate(model, Surgery()), disrupt(model, Intervention(selection=Selection(k=4))):
            both.append(logits_of(model.plain, ids))
        with operate(model, Surgery()):
            alone = logits_of(model.plain, ids)
        assert far_apart(both[0], alone)

    def test_counts_pairs_of_tokens_that_turn(self, load: Model) -> None:
        ids, mask = left_padded([[5, 9, 2], [7]])
        with operate(load("llama"), Surgery(pairs=SLOWEST)) as operation:
            logits_of(load("llama").plain, ids, mask)
        # Two pairs of 4 query and 2 key heads, at positions 1 and 2 of the first row alone.
        assert operation.by_block == {0: 2 * 6 * 2, 1: 2 * 6 * 2}
        assert operation.total == 48

    def test_layers_without_rotation_are_left_alone(self, load: Model) -> None:
        with operate(load("smollm3"), Surgery()) as operation:
            logits_of(load("smollm3").plain, token_ids(1, 4))
        assert set(operation.by_block) == {0, 2}


class TestNothingStaysBehind:
    def test_after_the_context_the_model_is_as_before(self, load: Model) -> None:
        model, ids = load("gemma3"), token_ids(2, 12)
        before = logits_of(model.plain, ids)
        buffers = {n: b.clone() for n, b in model.plain.named_buffers()}
        with operate(model, Surgery()):
            logits_of(model.plain, ids)
        assert torch.equal(logits_of(model.plain, ids), before)
        assert all(torch.equal(b, buffers[n]) for n, b in model.plain.named_buffers())

    def test_after_an_error_too(self, load: Model) -> None:
        model, ids = load("llama"), token_ids(2, 12)
        before = logits_of(model.plain, ids)
        wrong = torch.full((1, 4), 10_000)  # beyond the vocabulary
        with pytest.raises(IndexError), operate(model, Surgery()):
            logits_of(model.plain, wrong)
        assert torch.equal(logits_of(model.plain, ids), before)

    def test_another_model_inside_is_not_touched(self, load: Model) -> None:
        ids = token_ids(2, 12)
        before = logits_of(load("qwen3").plain, ids)
        with operate(load("llama"), Surgery()):
            logits_of(load("llama").plain, ids)
            assert torch.equal(logits_of(load("qwen3").plain, ids), before)


class TestRefusals:
    @pytest.mark.parametrize("name", ["gpt2", "opt", "jamba"])
    def test_a_model_without_rotation(self, name: str, load: Model) -> None:
        message = "must rotate its queries and keys to have that rotation changed, got a model "
        with pytest.raises(ValueError, match=message), operate(load(name), Surgery()):
            pass

    def test_a_wrapped_model(self, tmp_path: Path) -> None:
        model = HookedModel.wrap(load_model(FAMILIES["llama"].save(tmp_path)).bridge, name="mine")
        message = "mine must be loaded by load_model to have its rotation changed, got a wrapped"
        with pytest.raises(UnsupportedModelError, match=message), operate(model, Surgery()):
            pass

    def test_a_context_in_which_nothing_ran(self, load: Model) -> None:
        message = "every layer with chosen pairs must be reached by the surgery, got no run of bl"
        with pytest.raises(RuntimeError, match=message), operate(load("llama"), Surgery()):
            pass

    def test_tokens_at_which_nothing_turns(self, load: Model) -> None:
        message = r"must turn at least one pair of .*, got none: every token stood where"
        with pytest.raises(RuntimeError, match=message), operate(load("llama"), Surgery()):
            logits_of(load("llama").plain, torch.tensor([[3]]))

    def test_the_bridge_inside(self, tmp_path: Path) -> None:
        model = load_model(FAMILIES["llama"].save(tmp_path))
        bridge, ids = model.bridge, token_ids(1, 4)
        message = "must not be run inside operate, whose edits it does not see; run model.plain"
        with pytest.raises(RuntimeError, match=message), operate(model, Surgery()):
            bridge(ids)

    def test_positions_at_which_the_model_takes_other_frequencies(self, load: Model) -> None:
        model = load("llama_dynamic")
        with operate(model, Surgery(pairs=FAST_HALF)):
            logits_of(model.plain, token_ids(1, CONTEXT))
        message = f"positions must stay below {CONTEXT} for a model that takes other frequencies"
        with pytest.raises(ValueError, match=message), operate(model, Surgery()):
            logits_of(model.plain, token_ids(1, CONTEXT + 1))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"change": "theta", "amount": 1}, "amount must not be 1 for 'theta', which changes"),
            ({"change": "scale", "amount": 1.0}, "amount must not be 1 for 'scale'"),
            ({"change": "shift", "amount": 0.0}, "amount must not be 0 for 'shift'"),
            ({"change": "shift", "amount": math.inf}, "amount must be finite for 'shift', got inf"),
            ({"change": "scale", "amount": -2.0}, "amount must be finite and positive, got -2.0"),
            ({"change": "theta"}, "amount must be a number for 'theta', got None"),
            ({"amount": 2.0}, "amount must be None for 'remove', got 2.0"),
        ],
    )
    def test_a_change_that_is_none(self, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Surgery(**given)
