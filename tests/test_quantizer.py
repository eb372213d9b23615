"""Quantized attention states of running models: what is stored, what stays exact, in any batch."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from builders import continuation_log_probs
from tiny_models import FAMILIES, PAD_ID, llama, save_model, token_ids
from torch import Tensor

from mi_massive import HookedModel, UnsupportedModelError, load_model, quantized_states
from mi_massive._fake_quant import channel_grid, fake_quantize, hadamard, token_grid
from mi_massive.generation import generate
from mi_massive.interventions import Intervention, disrupt
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.models.passes import whole_prompt
from mi_massive.quantization_plans import QuantizationPlan
from mi_massive.quantizer import make_quantizer
from mi_massive.rope import after_rotation, before_rotation

SERVED = ["llama", "llama_yarn", "mistral", "qwen3", "gemma3", "phi", "gptj", "cohere2", "gpt2"]
PROMPTS = [[5, 9, 2, 40], [17, 3, 8, 1, 22, 6, 30], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [33, 12]]
CACHE: tuple[Literal["k", "v"], ...] = ("k", "v")
PLANS = {
    "scores": QuantizationPlan(bits=3),
    "symmetric": QuantizationPlan(bits=3, symmetric=True, group=8),
    "cache": QuantizationPlan(bits=3, projections=CACHE, granularity="channel"),
    "before": QuantizationPlan(bits=3, projections=CACHE, granularity="channel", stage="unrotated"),
    "values": QuantizationPlan(bits=3, projections=("v",), value_granularity="channel"),
    "first": QuantizationPlan(bits=3, granularity="channel", keep_first=True),
    "hadamard": QuantizationPlan(bits=3, hadamard=True, stage="unrotated"),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)

Load = Callable[[str], HookedModel]


@pytest.fixture(scope="module", name="load")
def fixture_load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    loaded: dict[str, HookedModel] = {}

    def load(name: str) -> HookedModel:
        if name not in loaded:
            loaded[name] = load_model(FAMILIES[name].save(tmp_path_factory.mktemp(name)))
        return loaded[name]

    return load


@pytest.fixture(scope="module", name="model")
def fixture_model(load: Load) -> HookedModel:
    return load("llama")


@torch.no_grad()
def logits_of(model: Any, ids: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    if mask is not None:
        places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        given = {"attention_mask": mask, "position_ids": places} | given
    return model(input_ids=ids, **given).logits


def masks_of(model: HookedModel, *, marked: bool = True) -> dict[Any, Tensor]:
    layers = model.geometry.layers
    n = (len(layers), layers[0].n_heads, layers[0].d_head)
    n_kv = (len(layers), layers[0].n_key_value_heads, layers[0].d_head)
    return {p: torch.full(n if p == "q" else n_kv, marked) for p in "qkv"}


def seen_by(model: HookedModel, ids: Tensor, **given: Any) -> list[AttentionInputs]:
    """What each layer's attention receives, copied."""
    seen: list[AttentionInputs] = []

    def keep(own: AttentionInputs) -> None:
        copies = (part.clone() for part in (own.query, own.key, own.value))
        seen.append(AttentionInputs(own.block, *copies))

    with visiting(model.plain, keep):
        logits_of(model.plain, ids, **given)
    return seen


def far_apart(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) > 1e-3 * float(second.abs().max())


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids in prompts)
    ids = [[PAD_ID] * (width - len(own)) + list(own) for own in prompts]
    mask = [[0] * (width - len(own)) + [1] * len(own) for own in prompts]
    return torch.tensor(ids), torch.tensor(mask)


class TestWhatIsStored:
    """In the first layer, whose states no quantization has moved before."""

    def first_layers(
        self, model: HookedModel, plan: QuantizationPlan, **given: Any
    ) -> tuple[AttentionInputs, AttentionInputs]:
        ids = token_ids(2, 9)
        before = seen_by(model, ids)[0]
        with quantized_states(model, plan, **given):
            return before, seen_by(model, ids)[0]

    def test_queries_and_keys_per_token(self, model: HookedModel) -> None:
        before, after = self.first_layers(model, QuantizationPlan(bits=3))
        for role in ("query", "key"):
            own = getattr(before, role)
            expected = fake_quantize(own, token_grid(own, bits=3, symmetric=False))
            assert torch.equal(getattr(after, role), expected)
            assert far_apart(getattr(after, role), own)
        assert torch.equal(after.value, before.value)

    def test_a_cache_per_channel_and_values_per_token(self, model: HookedModel) -> None:
        before, after = self.first_layers(model, PLANS["cache"])
        keys = fake_quantize(before.key, channel_grid(before.key, bits=3, symmetric=False))
        values = fake_quantize(before.value, token_grid(before.value, bits=3, symmetric=False))
        assert torch.equal(after.key, keys)
        assert torch.equal(after.value, values)
        assert torch.equal(after.query, before.query)

    def test_keys_before_the_rotation(self, model: HookedModel) -> None:
        before, after = self.first_layers(model, PLANS["before"])
        rotary: Any = model.geometry.layers[0].rotary
        positions = torch.arange(9)
        own = before_rotation(before.key, positions, rotary)
        stored = fake_quantize(own, channel_grid(own, bits=3, symmetric=False))
        expected = after_rotation(stored, positions, rotary)
        torch.testing.assert_close(after.key, expected, atol=1e-4, rtol=0)
        assert far_apart(after.key, before.key)

    def test_protected_channels_stay_and_widen_no_range(self, model: HookedModel) -> None:
        masks = masks_of(model, marked=False)
        masks["q"][:, :, 3] = masks["k"][:, :, 3] = True
        before, after = self.first_layers(model, QuantizationPlan(bits=3), protect=masks)
        others = [d for d in range(16) if d != 3]
        for role in ("query", "key"):
            own, new = getattr(before, role), getattr(after, role)
            assert torch.equal(new[..., 3], own[..., 3])
            grid = token_grid(own[..., others], bits=3, symmetric=False)
            assert torch.equal(new[..., others], fake_quantize(own[..., others], grid))

    def test_the_first_token_stays_and_widens_no_range(self, model: HookedModel) -> None:
        before, after = self.first_layers(model, PLANS["first"])
        for role in ("query", "key"):
            own, new = getattr(before, role), getattr(after, role)
            assert torch.equal(new[:, :, 0], own[:, :, 0])
            later = own[:, :, 1:]
            grid = channel_grid(later, bits=3, symmetric=False)
            assert torch.equal(new[:, :, 1:], fake_quantize(later, grid))

    def test_a_hadamard_rotation_and_back(self, model: HookedModel) -> None:
        before, after = self.first_layers(model, QuantizationPlan(bits=3, hadamard=True, seed=5))
        turned = before.query @ hadamard(16, seed=5)
        stored = fake_quantize(turned, token_grid(turned, bits=3, symmetric=False))
        expected = stored @ hadamard(16, seed=5).T
        torch.testing.assert_close(after.query, expected, atol=1e-5, rtol=0)

    def test_it_counts_what_it_quantized(self, model: HookedModel) -> None:
        ids, mask = left_padded([[1, 2, 3], [4, 5, 6, 7, 8]])
        masks = masks_of(model, marked=False)
        masks["k"][:, :, :6] = True
        plan = QuantizationPlan(keep_first=True)
        with quantized_states(model, plan, protect=masks) as done:
            logits_of(model.plain, ids, mask)
        n_tokens = 2 + 4
        assert done.by_place[0, "q"] == n_tokens * 4 * 16
        assert done.by_place[1, "k"] == n_tokens * 2 * 10
        assert done.total == 2 * n_tokens * (4 * 16 + 2 * 10)


class TestNothingProtectedAndEverything:
    @pytest.mark.parametrize("name", SERVED)
    def test_every_family_moves(self, name: str, load: Load) -> None:
        ids = token_ids(2, 12)
        with quantized_states(load(name), QuantizationPlan(bits=3)):
            actual = logits_of(load(name).plain, ids)
        assert far_apart(actual, logits_of(load(name).plain, ids))

    @each_plan
    @pytest.mark.parametrize("name", ["llama", "cohere2"])
    def test_all_channels_protected_is_the_model_bit_for_bit(
        self, name: str, plan: QuantizationPlan, load: Load
    ) -> None:
        model, ids = load(name), token_ids(2, 12)
        with quantized_states(model, plan, protect=masks_of(model)) as done:
            actual = logits_of(model.plain, ids)
        assert torch.equal(actual, logits_of(model.plain, ids))
        assert done.total == 0

    def test_half_precision_too(self, model: HookedModel, tmp_path: Any) -> None:
        half = load_model(FAMILIES["llama"].save(tmp_path), dtype=torch.bfloat16)
        ids, plan = token_ids(2, 12), PLANS["before"]
        plain = logits_of(half.plain, ids)
        with quantized_states(half, plan, protect=masks_of(half)):
            assert torch.equal(logits_of(half.plain, ids), plain)
        with quantized_states(half, plan):
            assert far_apart(logits_of(half.plain, ids), plain)

    @each_plan
    def test_none_protected_is_no_mask(self, plan: QuantizationPlan, model: HookedModel) -> None:
        ids = token_ids(2, 12)
        with quantized_states(model, plan):
            expected = logits_of(model.plain, ids)
        with quantized_states(model, plan, protect=masks_of(model, marked=False)):
            assert torch.equal(logits_of(model.plain, ids), expected)

    def test_many_bits_change_next_to_nothing(self, model: HookedModel) -> None:
        ids = token_ids(2, 12)
        with quantized_states(model, QuantizationPlan(bits=16)):
            actual = logits_of(model.plain, ids)
        torch.testing.assert_close(actual, logits_of(model.plain, ids), atol=2e-2, rtol=0)

    def test_nothing_is_left_behind(self, model: HookedModel) -> None:
        ids = token_ids(2, 12)
        before = logits_of(model.plain, ids)
        with quantized_states(model, PLANS["cache"]):
            logits_of(model.plain, ids)
        assert torch.equal(logits_of(model.plain, ids), before)


@each_plan
def test_a_row_is_stored_as_it_would_be_alone(plan: QuantizationPlan, model: HookedModel) -> None:
    """The same states in a padded batch, whose padding holds large numbers, and by themselves."""
    ids, mask = left_padded(PROMPTS)
    projection = plan.projections[0]
    n_heads = 4 if projection == "q" else 2
    states = torch.randn(*ids.shape, n_heads, 16, generator=torch.Generator().manual_seed(0))
    states = states.masked_fill(~mask.bool()[..., None, None], 1e4).transpose(1, 2)
    quantizer = make_quantizer(model, plan, None)
    quantizer.begin(whole_prompt(*ids.shape, mask, ids.device))
    together = quantizer.quantized(0, projection, states)
    for row, own in enumerate(PROMPTS):
        quantizer.begin(whole_prompt(1, len(own), None, ids.device))
        alone = states[row : row + 1, :, -len(own) :]
        expected = quantizer.quantized(0, projection, alone)[0]
        torch.testing.assert_close(together[row, :, -len(own) :], expected, atol=1e-6, rtol=0)
        # The only token after the first is the range of its channels, and stored exactly.
        assert far_apart(expected, alone[0]) or (plan.keep_first and len(own) == 2)
        assert torch.equal(together[row, :, : -len(own)], states[row, :, : -len(own)])


# A symmetric grid stores its largest negative value halfway between two of its own: what rounding
# does there depends on the last bit of the model's arithmetic.
@pytest.mark.parametrize(
    "plan",
    [plan for plan in PLANS.values() if not plan.symmetric],
    ids=[name for name, plan in PLANS.items() if not plan.symmetric],
)
class TestBatchesAndCaches:
    def test_padding_and_batch_change_nothing(
        self, plan: QuantizationPlan, model: HookedModel
    ) -> None:
        ids, mask = left_padded(PROMPTS)
        with quantized_states(model, plan):
            together = logits_of(model.plain, ids, mask)[:, -1]
            for row, own in enumerate(PROMPTS):
                alone = logits_of(model.plain, torch.tensor([own]))[0, -1]
                torch.testing.assert_close(together[row], alone, atol=2e-3, rtol=0)

    def test_answers_are_those_of_prompts_alone(
        self, plan: QuantizationPlan, model: HookedModel
    ) -> None:
        with quantized_states(model, plan):
            together = generate(model, PROMPTS, max_new_tokens=4, batch_size=4)
            alone = [generate(model, [own], max_new_tokens=4)[0] for own in PROMPTS]
        assert together == alone

    def test_continuations_are_stored_as_generated_tokens_are(
        self, plan: QuantizationPlan, model: HookedModel
    ) -> None:
        """Several at once on a copied cache give what one token after another gives."""
        prompt, continuation = PROMPTS[1], [4, 19, 33]
        with quantized_states(model, plan):
            scores = continuation_log_probs(model, [prompt], [[continuation, [7, 7, 7]]])[0][0]
            ids, cache, one_by_one = torch.tensor([prompt]), None, []
            for token in continuation:
                with torch.no_grad():
                    out: Any = model.plain(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, ids = out.past_key_values, torch.tensor([[token]])
                one_by_one.append(float(out.logits[0, -1].log_softmax(dim=-1)[token]))
        assert scores == pytest.approx(one_by_one, abs=2e-3)


def test_per_token_a_cache_gives_what_one_pass_gives(model: HookedModel) -> None:
    ids, plan = token_ids(2, 12), QuantizationPlan(bits=3)
    with quantized_states(model, plan), torch.no_grad():
        whole = logits_of(model.plain, ids)
        first: Any = model.plain(input_ids=ids[:, :7], use_cache=True)
        rest: Any = model.plain(input_ids=ids[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, 7:], atol=2e-3, rtol=0)


def test_generated_tokens_are_cut_off_at_the_prompts_range(model: HookedModel) -> None:
    plan, ids = QuantizationPlan(bits=3, granularity="channel"), token_ids(1, 6)
    with quantized_states(model, plan), torch.no_grad():
        seen = seen_by(model, ids[:, :5])[0]
        first: Any = model.plain(input_ids=ids[:, :5], use_cache=True)
        later = seen_by(model, ids[:, 5:], past_key_values=first.past_key_values)[0]
    clean = seen_by(model, ids)[0]
    grid = channel_grid(clean.key[:, :, :5], bits=3, symmetric=False)
    assert torch.equal(seen.key, fake_quantize(clean.key[:, :, :5], grid))
    expected = fake_quantize(clean.key[:, :, 5:], grid)
    torch.testing.assert_close(later.key[:, :, 5:], expected, atol=1e-5, rtol=0)


def test_contexts_add_up(model: HookedModel) -> None:
    ids = token_ids(2, 12)
    with quantized_states(model, QuantizationPlan(bits=4)) as outer, disrupt(model, Intervention()):
        both = logits_of(model.plain, ids)
    assert outer.total > 0
    with disrupt(model, Intervention()):
        assert far_apart(both, logits_of(model.plain, ids))


class TestRefusals:
    def test_nothing_was_run(self, model: HookedModel) -> None:
        with (
            pytest.raises(RuntimeError, match="every layer must be reached by the quantization"),
            quantized_states(model, QuantizationPlan()),
        ):
            pass

    def test_nothing_was_quantized(self, model: HookedModel) -> None:
        message = "a quantization must reach at least one entry of .*, got none: every token was"
        with (
            pytest.raises(RuntimeError, match=message),
            quantized_states(model, QuantizationPlan(keep_first=True)),
        ):
            logits_of(model.plain, torch.tensor([[4]]))

    def test_a_mask_of_the_wrong_shape(self, model: HookedModel) -> None:
        masks = masks_of(model)
        masks["k"] = masks["q"]
        message = r"protect\['k'\] must have the shape \[layer, head, d_head\] = \(2, 2, 16\), got"
        with (
            pytest.raises(ValueError, match=message),
            quantized_states(model, QuantizationPlan(), protect=masks),
        ):
            pass

    def test_a_prompt_in_chunks_per_channel(self, model: HookedModel) -> None:
        ids = token_ids(1, 8)

        def in_chunks() -> None:
            with quantized_states(model, PLANS["cache"]):
                first: Any = model.plain(input_ids=ids[:, :5], use_cache=True)
                model.plain(input_ids=ids[:, 5:], past_key_values=first.past_key_values)

        message = "a prompt must be read in one pass for scales per channel, got a second pass of 3"
        with pytest.raises(ValueError, match=message):
            in_chunks()

    def test_a_prompt_that_was_read_outside(self, model: HookedModel) -> None:
        ids = token_ids(1, 8)
        first: Any = model.plain(input_ids=ids[:, :5], use_cache=True)
        message = "the prompt must be read inside the context, got a pass that continues a cache"
        with pytest.raises(RuntimeError, match=message), quantized_states(model, PLANS["cache"]):
            model.plain(input_ids=ids[:, 5:], past_key_values=first.past_key_values)

    def test_a_head_that_is_no_power_of_two(self, tmp_path: Any) -> None:
        odd = load_model(save_model(llama(head_dim=12).build(), tmp_path))
        message = "d_head must be a power of two for a Hadamard rotation, got 12; leave it out"
        with (
            pytest.raises(ValueError, match=message),
            quantized_states(odd, QuantizationPlan(hadamard=True)),
        ):
            pass

    def test_groups_that_do_not_divide_the_head(self, model: HookedModel) -> None:
        with (
            pytest.raises(ValueError, match="group must divide the 16 dimensions of a head, got 5"),
            quantized_states(model, QuantizationPlan(group=5)),
        ):
            pass

    def test_states_before_a_rotation_that_does_not_exist(self, load: Load) -> None:
        message = "stage must be 'attention' for .*, which has no rotary position embeddings"
        with (
            pytest.raises(ValueError, match=message),
            quantized_states(load("gpt2"), QuantizationPlan(stage="unrotated")),
        ):
            pass

    def test_a_wrapped_model(self, load: Load) -> None:
        wrapped = HookedModel.wrap(load("llama_yarn").bridge)
        message = "must be loaded by load_model to have its states quantized, got a wrapped"
        with (
            pytest.raises(UnsupportedModelError, match=message),
            quantized_states(wrapped, QuantizationPlan()),
        ):
            pass

    def test_the_bridge(self, load: Load) -> None:
        model = load("mistral")
        bridge, ids = model.bridge, token_ids(1, 5)
        with (
            pytest.raises(RuntimeError, match="must not be run inside quantized_states, whose"),
            quantized_states(model, QuantizationPlan()),
        ):
            bridge(ids, return_type=None)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"bits": 1}, r"bits must be between 2 and 16 \(bits of a value\), got 1"),
            ({"bits": 17}, r"bits must be between 2 and 16 \(bits of a value\), got 17"),
            ({"projections": ()}, "projections must name each of q, k, v at most once and at"),
            ({"projections": ("k", "k")}, "projections must name each of q, k, v at most once"),
            (
                {"projections": ("v",), "stage": "unrotated"},
                "stage must be 'attention' for values, which are never rotated",
            ),
            (
                {"group": 8, "granularity": "channel"},
                "group must be None where scales are per channel, got 8",
            ),
        ],
    )
    def test_senseless_plans(self, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            QuantizationPlan(**given)
