"""A `HookedTransformer` that the user already holds: every analysis works on it.

The class was removed in transformer-lens 4.0. The CI job `hooked-transformer` runs this file with
transformer-lens 3.9, its last release; elsewhere everything here is skipped.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive.attribution import attribute
from mi_massive.bands import BandsConfig, bands
from mi_massive.capture import capture_norms
from mi_massive.concentration import ConcentrationConfig, concentration
from mi_massive.models.base import HookedModel
from mi_massive.models.checkpoint import resolve_checkpoint
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.load import load_model
from mi_massive.patch_results import PatchingConfig
from mi_massive.patching import patch
from mi_massive.prompt_pairs import PromptPair
from mi_massive.prompts import TokenizedPrompts, default_passages
from mi_massive.symmetry import SymmetryConfig, symmetry

pytestmark = [
    pytest.mark.skipif(
        int(version("transformer-lens").split(".")[0]) >= 4,
        reason="transformer-lens 4.0 removed HookedTransformer; the CI job hooked-transformer "
        "runs this file with 3.9",
    ),
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]

N_LAYERS, N_HEADS, D_HEAD, CONTEXT = 2, 4, 32, 96
LENGTHS = (5, 60, 17, 1, 33, 48, 9, 60, 25, 40, 12, 52)
DEFAULT = "smollm2-135m-instruct"
CONCENTRATION = ConcentrationConfig(n_resamples=199)
BANDS = BandsConfig(n_resamples=199)
SYMMETRY = SymmetryConfig(n_resamples=199)


def geometric(base: float, rotary_dim: int = D_HEAD) -> Float[Tensor, "pair"]:
    return base ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small HookedTransformer, and what is true of its geometry."""

    name: str
    config: dict[str, Any]
    layout: str | None = "half_split"
    """None for a model that does not rotate."""
    inv_freq: tuple[Float[Tensor, "pair"] | None, ...] = field(repr=False)
    """Of each layer."""
    n_key_value_heads: int = 2

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        fields: dict[str, Any] = {
            **{"n_layers": N_LAYERS, "n_heads": N_HEADS, "d_head": D_HEAD, "n_ctx": CONTEXT},
            **{"d_model": 64, "d_mlp": 64, "d_vocab": 50, "act_fn": "silu", "gated_mlp": True},
            **{"normalization_type": "RMS", "positional_embedding_type": "rotary"},
            **{"n_key_value_heads": 2, "dtype": dtype, "device": "cpu", "seed": 0},
            **self.config,
        }
        return HookedTransformer(HookedTransformerConfig(**fields))


GQA = Case(name="gqa", config={}, inv_freq=(geometric(1e4),) * N_LAYERS)
INTERLEAVED = Case(
    name="interleaved partial",
    config={"rotary_adjacent_pairs": True, "rotary_dim": 16, "n_key_value_heads": None},
    layout="interleaved",
    inv_freq=(geometric(1e4, 16),) * N_LAYERS,
    n_key_value_heads=N_HEADS,
)
PARTIAL = Case(
    name="half-split partial",
    config={"rotary_dim": 16},
    inv_freq=(geometric(1e4, 16),) * N_LAYERS,
)
SCALED = Case(
    name="other base, linear scaling",
    config={"rotary_base": 500000, "rotary_scaling_factor": 4.0},
    inv_freq=(geometric(5e5) / 4,) * N_LAYERS,
)
TWO_BASES = Case(
    name="local and global layer",
    config={
        **{"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 16},
        **{"rotary_base": 1e6, "rotary_base_local": 1e4},
    },
    inv_freq=(geometric(1e4), geometric(1e6)),
)
STANDARD = Case(
    name="standard positions",
    config={"positional_embedding_type": "standard"},
    layout=None,
    inv_freq=(None,) * N_LAYERS,
)
CASES = (GQA, INTERLEAVED, PARTIAL, SCALED, TWO_BASES, STANDARD)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
planted_cases = pytest.mark.parametrize(
    "case", [GQA, INTERLEAVED, PARTIAL], ids=lambda case: case.name
)


def build_prompts(lengths: tuple[int, ...] = LENGTHS, *, d_vocab: int = 50) -> TokenizedPrompts:
    draws = torch.Generator().manual_seed(1)
    rows = [torch.randint(d_vocab, (length,), generator=draws).tolist() for length in lengths]
    return TokenizedPrompts(
        input_ids=tuple(tuple(row) for row in rows), texts=("",) * len(rows), n_truncated=0
    )


def members(pair: int, case: Case) -> list[int]:
    """The two dimensions of a rotary pair, by its definition."""
    if case.layout == "interleaved":
        return [2 * pair, 2 * pair + 1]
    frequencies = case.inv_freq[0]
    assert frequencies is not None
    return [pair, pair + len(frequencies)]


def rotated(
    states: Float[Tensor, "pos head d_head"], case: Case, layer: int
) -> Float[Tensor, "pos head d_head"]:
    """Each pair as a complex number, turned by exp(i * position * inv_freq)."""
    frequencies = case.inv_freq[layer]
    turned = states.double().clone()
    for pair, frequency in enumerate([] if frequencies is None else frequencies.tolist()):
        first, second = members(pair, case)
        for position in range(len(states)):
            angle = position * frequency
            x, y = states[position, :, first].double(), states[position, :, second].double()
            turned[position, :, first] = x * math.cos(angle) - y * math.sin(angle)
            turned[position, :, second] = x * math.sin(angle) + y * math.cos(angle)
    return turned


# --- small models: geometry and capture ------------------------------------------------------


@every_case
def test_the_geometry_is_measured(case: Case) -> None:
    geometry = HookedModel.wrap(case.build()).geometry
    assert geometry.training_context == CONTEXT
    assert geometry.blocks == (0, 1)
    for layer, inv_freq in zip(geometry.layers, case.inv_freq, strict=True):
        assert (layer.n_heads, layer.d_head) == (N_HEADS, D_HEAD)
        assert layer.n_key_value_heads == case.n_key_value_heads
        if inv_freq is None:
            assert layer.rotary is None
            continue
        assert layer.rotary is not None
        assert layer.rotary.layout == case.layout
        torch.testing.assert_close(layer.rotary.inv_freq, inv_freq, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [GQA, INTERLEAVED], ids=lambda case: case.name)
def test_the_geometry_is_measured_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    long = Case(**{**vars(case), "config": {**case.config, "n_ctx": 2048}})
    model = HookedModel.wrap(long.build(dtype))
    rotary = model.geometry.layers[0].rotary
    assert rotary is not None
    assert rotary.layout == case.layout
    assert case.inv_freq[0] is not None
    torch.testing.assert_close(rotary.inv_freq, case.inv_freq[0], rtol=4e-3, atol=0)
    assert capture_norms(model, build_prompts((4, 7))).provenance.dtype in str(dtype)


@every_case
def test_captured_norms_equal_their_plain_definition(case: Case) -> None:
    hooked = case.build()
    prompts = build_prompts((1, 24, 9))
    norms = capture_norms(HookedModel.wrap(hooked), prompts)
    for number, ids in enumerate(prompts.input_ids):
        _, cache = hooked.run_with_cache(torch.tensor([ids]))
        for layer in range(N_LAYERS):
            q, k, v = (cache[f"blocks.{layer}.attn.hook_{name}"][0] for name in "qkv")
            expected = {
                ("q", "attention"): rotated(q, case, layer),
                ("k", "attention"): rotated(k, case, layer),
                ("v", "attention"): v,
                **({("q", "unrotated"): q, ("k", "unrotated"): k} if case.layout else {}),
            }
            for (projection, stage), states in expected.items():
                captured = norms.sums(projection, stage).norms()[number, layer]
                plain = states.double().square().sum(dim=0).sqrt().float()
                torch.testing.assert_close(captured, plain, rtol=1e-4, atol=1e-5)


@every_case
def test_batch_size_and_padding_change_nothing(case: Case) -> None:
    model, prompts = HookedModel.wrap(case.build()), build_prompts()
    alone = capture_norms(model, prompts, batch_size=1)
    for batch_size in (5, len(LENGTHS)):
        together = capture_norms(model, prompts, batch_size=batch_size)
        for projection in ("q", "k", "v"):
            torch.testing.assert_close(
                together.sums(projection).norms(),
                alone.sums(projection).norms(),
                rtol=1e-5,
                atol=1e-5,
            )


def test_folded_layer_norms_leave_queries_keys_and_values_as_they_are() -> None:
    hooked = GQA.build()
    with torch.no_grad():
        for block in hooked.blocks:
            block.ln1.w.copy_(torch.linspace(0.5, 2, 64))
    before = capture_norms(HookedModel.wrap(hooked), build_prompts())
    hooked.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    after = capture_norms(HookedModel.wrap(hooked), build_prompts())
    for projection in ("q", "k", "v"):
        torch.testing.assert_close(
            after.sums(projection).norms(), before.sums(projection).norms(), rtol=1e-4, atol=1e-5
        )


# --- small models: analyses ------------------------------------------------------------------


def planted_pairs(case: Case) -> tuple[int, int]:
    """The pair planted in each layer: slow ones, less than a turn within the context."""
    assert case.inv_freq[0] is not None
    n_pairs = len(case.inv_freq[0])
    return n_pairs - 4, n_pairs - 2


def build_planted(case: Case) -> Any:
    """Biases that make one pair of each layer massive in q and k; q leads k by 90 degrees."""
    hooked = case.build()
    for block, pair in zip(hooked.blocks, planted_pairs(case), strict=True):
        first, second = members(pair, case)
        key_bias = block.attn.b_K if case.n_key_value_heads == N_HEADS else block.attn._b_K
        with torch.no_grad():
            block.attn.b_Q[:, [first, second]] = torch.tensor([40.0, 40.0])
            key_bias[:, [first, second]] = torch.tensor([40.0, -40.0])
    return hooked


@planted_cases
def test_planted_massive_dimensions_are_found(case: Case) -> None:
    norms = capture_norms(HookedModel.wrap(build_planted(case)), build_prompts())
    result = concentration(norms, config=CONCENTRATION)
    for layer, pair in enumerate(planted_pairs(case)):
        expected = torch.zeros(D_HEAD, dtype=torch.bool)
        expected[members(pair, case)] = True
        assert torch.equal(result.q.massive[layer], expected.expand(N_HEADS, -1))
        assert torch.equal(result.k.massive[layer], expected.expand(case.n_key_value_heads, -1))
    assert not result.v.massive.any()
    assert result.contrast_q.low > 5
    assert result.contrast_k.low > 5
    assert result.q.head_overlap.effect == pytest.approx(1)
    assert result.first_layer == 0
    assert result.rotating_layers == (0, 1)


@planted_cases
def test_planted_pairs_are_found_on_the_frequency_axis(case: Case) -> None:
    norms = capture_norms(HookedModel.wrap(build_planted(case)), build_prompts())
    result = bands(norms, config=BANDS)
    for layer, pair in enumerate(planted_pairs(case)):
        for part in (result.q, result.k, result.q_unrotated, result.k_unrotated):
            assert (part.top_pair[layer] == pair).all()
            assert (part.energy_share[layer, :, pair] > 0.98).all()
            assert part.massive_share[layer, pair] == 1
    assert torch.isnan(result.v.massive_share).all()
    assert result.q.massive_low_half_share.effect == 1
    assert result.partial_cycle.effect == 1
    assert result.q_k_same_pair.effect == 1
    assert result.v.low_half_share.effect == pytest.approx(0.5, abs=0.1)


@planted_cases
def test_planted_partners_are_two_mirror_clusters_with_their_phase(case: Case) -> None:
    norms = capture_norms(HookedModel.wrap(build_planted(case)), build_prompts())
    result = symmetry(norms, config=SYMMETRY)
    assert case.inv_freq[0] is not None
    assert result.layout == case.layout
    for part in (result.q, result.k):
        assert (part.n_clusters == 2).all()
        assert (part.mirrored == 1).all()
        assert (part.separation == len(case.inv_freq[0])).all()
        assert part.massive_partner_share.effect == 1
    assert (result.v.n_clusters == 0).all()
    torch.testing.assert_close(
        result.phase_offset, torch.full((N_LAYERS, N_HEADS), math.pi / 2), atol=0.05, rtol=0
    )
    assert result.phase_offset_magnitude.effect == pytest.approx(90, abs=3)


def test_a_model_without_rotation_has_concentration_alone() -> None:
    norms = capture_norms(HookedModel.wrap(STANDARD.build()), build_prompts())
    result = concentration(norms, config=CONCENTRATION)
    assert result.rotating_layers == ()
    assert not any(result.of(projection).massive.any() for projection in ("q", "k", "v"))
    assert result.first_layer is None
    for analysis in (bands, symmetry):
        with pytest.raises(ValueError, match=r"got none in 2 layers; frequency bands and rotary"):
            analysis(norms)


# --- small models: edits ---------------------------------------------------------------------


def untouched(activation: Tensor, hook: Any) -> Tensor:
    return activation


def zeroed(activation: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(activation)


@every_case
def test_an_edit_that_changes_nothing_gives_the_models_own_logits(case: Case) -> None:
    hooked = case.build()
    model = HookedModel.wrap(hooked)
    kinds = {name.rpartition(".")[2] for name in model.sites}
    rotary = {"hook_rot_q", "hook_rot_k"} if case.layout else set()
    assert kinds == {"hook_q", "hook_k", "hook_v", *rotary}
    ids = torch.tensor(build_prompts((20, 20)).input_ids)
    logits = model.run_with_hooks(ids, fwd_hooks=[(name, untouched) for name in model.sites])
    assert torch.equal(logits, hooked(ids, return_type="logits"))


@every_case
def test_an_edit_at_every_site_changes_the_logits_of_later_tokens_alone(case: Case) -> None:
    model = HookedModel.wrap(case.build())
    ids = torch.tensor(build_prompts((20,)).input_ids)
    logits = model.run_with_hooks(ids, fwd_hooks=[])
    for name in model.sites:
        seen: list[tuple[int, ...]] = []

        def from_ten(activation: Tensor, hook: Any, seen: list[Any] = seen) -> Tensor:
            seen.append(tuple(activation.shape))
            edited = activation.clone()
            edited[:, 10:] = 0
            return edited

        edited = model.run_with_hooks(ids, fwd_hooks=[(name, from_ten)])
        heads = N_HEADS if name.endswith("_q") else case.n_key_value_heads
        assert seen == [(1, 20, heads, D_HEAD)]
        assert torch.equal(edited[:, :10], logits[:, :10])
        assert (edited[:, 11:] - logits[:, 11:]).abs().amax(dim=-1).min() > 1e-4


def test_padded_prompts_have_the_logits_of_unpadded_ones() -> None:
    model = HookedModel.wrap(GQA.build())
    long, short = build_prompts((20, 12)).input_ids
    ids = torch.tensor([long, (*short, *[0] * 8)])
    mask = torch.tensor([[1] * 20, [1] * 12 + [0] * 8])
    together = model.run_with_hooks(ids, fwd_hooks=[], attention_mask=mask)
    alone = model.run_with_hooks(torch.tensor([short]), fwd_hooks=[])
    torch.testing.assert_close(together[1:, :12], alone, rtol=1e-5, atol=1e-5)


def test_a_hook_point_that_does_not_fire_is_refused() -> None:
    model = HookedModel.wrap(STANDARD.build(), name="mine")
    ids = torch.tensor([[1, 2, 3]])
    message = r"must name hook points that fire on mine, got 'blocks.0.attn.hook_rot_k'"
    with pytest.raises(ValueError, match=message):
        model.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_rot_k", zeroed)])


# --- small models: patching ------------------------------------------------------------------


def patch_pairs() -> list[PromptPair]:
    rows = build_prompts((9, 9, 9)).input_ids
    return [
        PromptPair(
            id=str(number),
            clean=ids,
            corrupted=(*ids[:3], (ids[3] + 1) % 50, *ids[4:]),
            answer=number,
            other=number + 10,
            groups={"object": (3,), "last": (8,)},
        )
        for number, ids in enumerate(rows)
    ]


def turned(model: HookedModel, pair: PromptPair) -> PromptPair:
    """The pair with the answers that its difference pulls apart the most."""
    with torch.no_grad():
        clean, corrupted = (
            model.bridge(torch.tensor([ids]), return_type="logits")[0, -1]
            for ids in (pair.clean, pair.corrupted)
        )
    moved = clean - corrupted
    return replace(pair, answer=int(moved.argmax()), other=int(moved.argmin()))


def put(states: Tensor, hook: Any, *, source: Tensor, head: int) -> Tensor:
    states[:, 3, head] = source[:, 3, head]
    return states


@pytest.mark.parametrize("reuse", ["layers", "nothing"])
def test_every_head_is_patched_as_by_a_hook_of_ones_own(reuse: Any) -> None:
    model = HookedModel.wrap(GQA.build())
    pairs = [turned(model, pair) for pair in patch_pairs()]
    config = PatchingConfig(n_resamples=50, min_difference=1e-9, reuse=reuse)
    found = patch(model, pairs, site="v", groups=("object",), config=config)
    assert found.labels["kv_head"] == (0, 1)
    for number, pair in enumerate(pairs):
        clean, corrupted = (torch.tensor([ids]) for ids in (pair.clean, pair.corrupted))
        answers = [pair.answer, pair.other]
        with torch.no_grad():
            _, cache = model.bridge.run_with_cache(clean)
            plain = model.bridge(corrupted, return_type="logits")[0, -1, answers]
        for layer, head in itertools.product(range(N_LAYERS), range(2)):
            name = f"blocks.{layer}.attn.hook_v"
            hook = partial(put, source=cache[name], head=head)
            logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, hook)])
            moved = (logits[0, -1, answers] - plain).tolist()
            effect = float(found.effects[layer, head, 0, number])
            assert effect == pytest.approx(moved[0] - moved[1], abs=1e-5)


def test_estimates_are_checked_and_a_missing_cache_is_named() -> None:
    model = HookedModel.wrap(GQA.build())
    pairs = [turned(model, pair) for pair in patch_pairs()]
    config = PatchingConfig(n_resamples=50, min_difference=1e-9, reuse="layers")
    found = attribute(model, pairs, n_sample=12, n_top=4, config=config)
    assert found.n_examples == 3
    assert bool(found.sample_exact.isfinite().all())
    with pytest.raises(UnsupportedModelError, match="one of another kind; use reuse='layers'"):
        patch(model, pairs, site="z")


# --- the default model's weights -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One set of weights, loaded by this package and held by a HookedTransformer."""

    loaded: HookedModel
    hooked: Any
    wrapped: HookedModel


@pytest.fixture(scope="module", name="pair")
def fixture_pair() -> Pair:
    return build_pair()


def build_pair() -> Pair:
    """The Llama weights of the default model through transformer-lens' own conversion."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_checkpoint(DEFAULT).folder
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = HookedTransformerConfig(
        n_layers=llama.config.num_hidden_layers,
        d_model=llama.config.hidden_size,
        d_mlp=llama.config.intermediate_size,
        n_heads=llama.config.num_attention_heads,
        n_key_value_heads=llama.config.num_key_value_heads,
        d_head=llama.config.head_dim,
        d_vocab=llama.config.vocab_size,
        n_ctx=llama.config.max_position_embeddings,
        eps=llama.config.rms_norm_eps,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_dim=llama.config.head_dim,
        rotary_base=llama.config.rope_parameters["rope_theta"],
        model_name="SmolLM2",
        init_weights=False,
        device="cpu",
    )
    hooked = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    hooked.load_and_process_state_dict(
        convert_llama_weights(llama, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return Pair(loaded=load_model(DEFAULT), hooked=hooked, wrapped=HookedModel.wrap(hooked))


def default_prompts(pair: Pair) -> TokenizedPrompts:
    """Passages with the ids of the plain tokenizer, which adds no BOS."""
    texts = default_passages()[:4]
    assert pair.loaded.tokenizer is not None
    rows = tuple(tuple(pair.loaded.tokenizer(text)["input_ids"][:64]) for text in texts)
    return TokenizedPrompts(input_ids=rows, texts=texts, n_truncated=len(texts))


def test_the_default_models_geometry_is_that_of_load_model(pair: Pair) -> None:
    assert pair.wrapped.name == "SmolLM2"
    wrapped, loaded = pair.wrapped.geometry, pair.loaded.geometry
    assert wrapped.training_context == loaded.training_context == 8192
    assert wrapped.blocks == loaded.blocks == tuple(range(30))
    for mine, theirs in zip(wrapped.layers, loaded.layers, strict=True):
        assert (mine.n_heads, mine.n_key_value_heads, mine.d_head) == (9, 3, 64)
        assert mine.rotary is not None
        assert theirs.rotary is not None
        assert mine.rotary.layout == theirs.rotary.layout == "half_split"
        torch.testing.assert_close(mine.rotary.inv_freq, theirs.rotary.inv_freq, rtol=1e-5, atol=0)


def test_the_default_models_norms_are_those_of_load_model(pair: Pair) -> None:
    prompts = default_prompts(pair)
    wrapped, loaded = (capture_norms(model, prompts) for model in (pair.wrapped, pair.loaded))
    for stage in ("attention", "unrotated"):
        for projection in ("q", "k", "v"):
            torch.testing.assert_close(
                wrapped.sums(projection, stage).norms(),
                loaded.sums(projection, stage).norms(),
                rtol=1e-3,
                atol=0,
            )


def test_the_default_models_analyses_are_those_of_load_model(pair: Pair) -> None:
    prompts = default_prompts(pair)
    wrapped, loaded = (capture_norms(model, prompts) for model in (pair.wrapped, pair.loaded))
    mine, theirs = (concentration(norms, config=CONCENTRATION) for norms in (wrapped, loaded))
    for projection in ("q", "k", "v"):
        assert torch.equal(mine.of(projection).massive, theirs.of(projection).massive)
    assert mine.k.massive.any(dim=-1).any(dim=-1)[1:].all()
    assert mine.v.massive.sum() < mine.k.massive.sum() / 10
    assert mine.contrast_k.low > 1
    assert mine.contrast_k.effect == pytest.approx(theirs.contrast_k.effect, rel=1e-3)
    assert mine.first_layer == theirs.first_layer
    profiles = [bands(norms, config=BANDS) for norms in (wrapped, loaded)]
    assert torch.equal(profiles[0].k.top_pair, profiles[1].k.top_pair)
    torch.testing.assert_close(
        profiles[0].q.energy_share, profiles[1].q.energy_share, rtol=2e-3, atol=1e-6
    )
    assert profiles[0].k.massive_low_half_share.effect > 0.9
    halves = [symmetry(norms, config=SYMMETRY) for norms in (wrapped, loaded)]
    assert torch.equal(halves[0].k.n_clusters, halves[1].k.n_clusters)
    assert halves[0].k.layer_agreement.effect == pytest.approx(
        halves[1].k.layer_agreement.effect, abs=1e-2
    )
    assert halves[0].phase_offset_magnitude.effect == pytest.approx(
        halves[1].phase_offset_magnitude.effect, abs=0.5
    )


def test_the_default_models_logits_survive_an_empty_edit_and_not_a_real_one(pair: Pair) -> None:
    ids = torch.tensor([default_prompts(pair).input_ids[0]])
    rotary = [name for name in pair.wrapped.sites if "hook_rot" in name]
    assert len(rotary) == 60
    own = pair.hooked(ids, return_type="logits")
    noop = pair.wrapped.run_with_hooks(ids, fwd_hooks=[(name, untouched) for name in rotary])
    assert torch.equal(noop, own)
    plain = pair.loaded.plain(ids).logits
    torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-3)
    edited = pair.wrapped.run_with_hooks(ids, fwd_hooks=[("blocks.9.attn.hook_rot_k", zeroed)])
    assert (edited - own).abs().max() > 0.1


def test_texts_are_tokenized_as_the_held_model_does(pair: Pair) -> None:
    text = "The capital of France is Paris."
    by_text = capture_norms(pair.wrapped, [text])
    ids = pair.hooked.to_tokens(text)[0].tolist()
    by_ids = capture_norms(pair.wrapped, [ids])
    assert by_text.provenance.prompts_digest == by_ids.provenance.prompts_digest
    assert torch.equal(by_text.q, by_ids.q)
