"""A capture against plain loops over tokens, what must not matter to it, and what it refuses."""

import cmath
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, Family, expected_inputs, llama, save_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mi_massive._reductions import TokenWeights, sum_rotary_states, sum_states
from mi_massive.capture import capture_norms
from mi_massive.concentration import massive_mask
from mi_massive.models import HookedModel, load_model
from mi_massive.models.attention import AttentionInputs
from mi_massive.norms import AttentionNorms, SiteSums
from mi_massive.prompts import TokenizedPrompts
from mi_massive.rope import RotaryGeometry, rotate

PROMPTS = [[5, 9, 2, 40], [17], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [8, 8, 8, 8, 8]]
SLOW = ["llama", "llama_yarn", "gemma3", "gpt_neox", "smollm3", "gptj", "cohere2", "bert", "jamba"]

unhurried = settings(deadline=None, max_examples=25)

Model = Callable[[str], HookedModel]


@pytest.fixture(scope="module", name="load")
def fixture_load(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Loads a family of `tiny_models` once."""
    loaded: dict[str, HookedModel] = {}

    def load(name: str) -> HookedModel:
        if name not in loaded:
            loaded[name] = load_model(FAMILIES[name].save(tmp_path_factory.mktemp(name)))
        return loaded[name]

    return load


# The plain definition: one prompt at a time, one token, one number at a time, float64.


@dataclass(frozen=True)
class PlainSums:
    """Sums over the tokens of one prompt in one layer, as nested lists by head."""

    squares: list[list[float]]
    total: list[list[float]]
    first: list[list[float]]
    phasors: list[list[complex]]


def members(pair: int, n_pairs: int, layout: str | None) -> tuple[int, int]:
    return (2 * pair, 2 * pair + 1) if layout == "interleaved" else (pair, pair + n_pairs)


def plain_sums(
    states: Tensor, family: Family, inv_freq: Tensor | None, *, undo: bool, skip_first: bool
) -> PlainSums:
    """Sums of [head, pos, d_head], with the rotation of each pair undone if asked."""
    squares, totals, firsts, phasors = [], [], [], []
    frequencies = [] if inv_freq is None else inv_freq.tolist()
    for rows in states.double().tolist():
        d_head = len(rows[0])
        square, total, phasor = [0.0] * d_head, [0.0] * d_head, [0j] * len(frequencies)
        for position, row in enumerate(rows):
            for pair, frequency in enumerate(frequencies):
                x, y = members(pair, len(frequencies), family.layout)
                z = complex(row[x], row[y])
                if undo:
                    z *= cmath.exp(-1j * position * frequency) / family.factor
                row[x], row[y] = z.real, z.imag
                if position > 0:
                    phasor[pair] += z / abs(z)
            if position > 0 or not skip_first:
                square = [s + value**2 for s, value in zip(square, row, strict=True)]
                total = [s + value for s, value in zip(total, row, strict=True)]
        squares.append(square)
        totals.append(total)
        firsts.append([math.nan] * d_head if skip_first else rows[0])
        phasors.append(phasor)
    return PlainSums(squares, totals, firsts, phasors)


def states_of(model: HookedModel, ids: Sequence[int]) -> list[dict[str, Tensor]]:
    """Query, key and value of each layer on one prompt without padding, [head, pos, d_head]."""
    layers: list[dict[str, Tensor]] = []

    def visit(seen: AttentionInputs) -> None:
        roles = {"q": seen.query, "k": seen.key, "v": seen.value}
        layers.append({role: states[0].clone() for role, states in roles.items()})

    model.attention_inputs(torch.tensor([ids]), visit)
    return layers


def sites_of(norms: AttentionNorms) -> dict[tuple[str, bool], SiteSums]:
    """Each site with its projection and whether the rotation is undone."""
    found = {("q", False): norms.q_sums, ("k", False): norms.k_sums, ("v", False): norms.v_sums}
    if norms.q_unrotated_sums is not None and norms.k_unrotated_sums is not None:
        found |= {("q", True): norms.q_unrotated_sums, ("k", True): norms.k_unrotated_sums}
    return found


def assert_close(actual: Tensor, expected: Any, tolerance: float) -> None:
    """Equal to `tolerance` times the head's largest number."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    scale = expected.nan_to_num().abs().amax(dim=-1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(
        actual / scale, expected / scale, rtol=0, atol=tolerance, equal_nan=True, check_dtype=False
    )


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("name", SLOW)
def test_sums_equal_plain_loops_over_tokens(name: str, skip_first: bool, load: Model) -> None:
    family, model = FAMILIES[name], load(name)
    prompts = [ids for ids in PROMPTS if len(ids) > int(skip_first)]
    norms = capture_norms(model, prompts, batch_size=3, skip_first=skip_first)
    assert (norms.q_unrotated_sums is None) == (not family.rotates)
    for number, ids in enumerate(prompts):
        for layer, states in enumerate(states_of(model, ids)):
            inv_freq = family.inv_freq[layer]
            for (role, undo), sums in sites_of(norms).items():
                rotation = None if role == "v" else inv_freq
                expected = plain_sums(
                    states[role], family, rotation, undo=undo, skip_first=skip_first
                )
                assert_close(sums.squares[number, layer], expected.squares, 2e-5)
                assert_close(sums.total[number, layer], expected.total, 1e-4)
                assert_close(sums.first[number, layer], expected.first, 1e-5)
                if role != "v" and family.rotates:
                    assert_phasors(sums, number, layer, expected)
    assert norms.n_tokens.tolist() == [len(ids) - int(skip_first) for ids in prompts]


def assert_phasors(sums: SiteSums, number: int, layer: int, expected: PlainSums) -> None:
    assert sums.phasors is not None
    actual = sums.phasors[number, layer]
    if expected.phasors[0]:
        wanted = torch.view_as_real(torch.tensor(expected.phasors))
        torch.testing.assert_close(actual, wanted, atol=1e-3, rtol=0, check_dtype=False)
    else:
        assert bool(actual.isnan().all())  # a layer that does not rotate has no phases


@pytest.mark.parametrize("name", ["llama", "gptj", "smollm3"])
def test_unrotated_sums_equal_states_turned_back(name: str, load: Model) -> None:
    model = load(name)
    norms = capture_norms(model, PROMPTS)
    for number, ids in enumerate(PROMPTS):
        positions = torch.arange(len(ids))
        for layer, states in enumerate(states_of(model, ids)):
            rotary = norms.geometry.layers[layer].rotary
            for role in ("q", "k"):
                back = states[role].double()
                if rotary is not None:
                    back = rotate(back, positions, rotary, undo=True)
                sums = norms.sums(role, "unrotated")
                assert_close(sums.squares[number, layer], back.square().sum(dim=1), 2e-5)
                assert_close(sums.total[number, layer], back.sum(dim=1), 1e-4)


def test_pooled_views_are_those_of_all_tokens_together(load: Model) -> None:
    family, model = FAMILIES["llama"], load("llama")
    norms = capture_norms(model, PROMPTS)
    n_tokens = sum(len(ids) for ids in PROMPTS)
    everything = [states_of(model, ids) for ids in PROMPTS]
    layer, head, dim, pair = 1, 1, 5, 3
    inv_freq = family.inv_freq[layer]
    assert inv_freq is not None
    k = [states[layer]["k"][head].double() for states in everything]
    values = torch.cat(k)[:, dim]
    energy = float(values.square().sum())
    assert float(norms.k[layer, head, dim]) == pytest.approx(math.sqrt(energy), rel=1e-5)
    first = sum(float(one[0, dim]) ** 2 for one in k)
    assert float(norms.k_sums.first_share()[layer, head, dim]) == pytest.approx(first / energy)
    without = norms.k_sums.pooled_norms(without_first=True)[layer, head, dim]
    assert float(without) == pytest.approx(math.sqrt(energy - first), rel=1e-4)
    mean = abs(float(values.mean()))
    mean_over_rms = norms.mean_over_rms("k")[layer, head, dim]
    assert float(mean_over_rms) == pytest.approx(mean / math.sqrt(energy / n_tokens), rel=1e-4)
    resultant = 0j
    for one in k:
        for position, row in enumerate(one.tolist()):
            z = complex(row[pair], row[pair + 8]) * cmath.exp(-1j * position * inv_freq[pair])
            resultant += z / abs(z) if position else 0
    assert float(norms.phases("k")[layer, head, pair]) == pytest.approx(
        cmath.phase(resultant), abs=1e-4
    )
    assert float(norms.resultant_lengths("k")[layer, head, pair]) == pytest.approx(
        abs(resultant) / (n_tokens - len(PROMPTS)), abs=1e-5
    )


# What must not matter.


@pytest.mark.parametrize("name", ["llama", "bert", "gptj"])
@unhurried
@given(data=st.data())
def test_padding_side_batch_size_and_order_change_nothing(
    name: str, load: Model, data: st.DataObject
) -> None:
    model = load(name)
    words = st.lists(st.integers(0, 60), min_size=1, max_size=20)
    texts = [
        " ".join(f"t{i}" for i in ids) for ids in data.draw(st.lists(words, min_size=1, max_size=6))
    ]
    one_by_one = capture_norms(model, texts, batch_size=1)
    order = data.draw(st.permutations(range(len(texts))))
    assert model.tokenizer is not None
    kept = model.tokenizer.padding_side
    model.tokenizer.padding_side = data.draw(st.sampled_from(["left", "right"]))
    try:
        together = capture_norms(
            model, [texts[i] for i in order], batch_size=data.draw(st.integers(1, 7))
        )
    finally:
        model.tokenizer.padding_side = kept
    for projection in ("q", "k", "v"):
        expected, actual = getattr(one_by_one, projection), getattr(together, projection)
        assert_close(actual, expected, 1e-6)
        by_prompt = one_by_one.sums(projection).norms()[list(order)]
        assert_close(together.sums(projection).norms(), by_prompt, 2e-6)
    assert together.n_tokens.tolist() == one_by_one.n_tokens[list(order)].tolist()


@given(
    n_real=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    poison=st.sampled_from([math.nan, math.inf, -math.inf]),
    skip_first=st.booleans(),
)
@unhurried
def test_nothing_in_padding_enters_a_sum(
    n_real: list[int], poison: float, skip_first: bool
) -> None:
    longest = max(n_real)
    places = torch.arange(longest)
    real = places < torch.tensor(n_real)[:, None]
    states = torch.randn(len(n_real), 3, longest, 6, generator=torch.Generator().manual_seed(1))
    poisoned = torch.where(real[:, None, :, None], states, poison)
    zeroed = torch.where(real[:, None, :, None], states, 0.0)
    after_first = (real & (places > 0)).float()
    weights = TokenWeights(after_first if skip_first else real.float(), after_first, skip_first)
    inv_freq = torch.tensor([1.0, 0.1], dtype=torch.float64)
    rotary = RotaryGeometry(inv_freq=inv_freq, layout="interleaved", d_head=6)
    angles = places[:, None] * inv_freq
    turns = torch.stack([angles.cos(), angles.sin()]).float()
    pairs = [(sum_states(poisoned, weights), sum_states(zeroed, weights))]
    pairs += zip(
        sum_rotary_states(poisoned, weights, rotary, turns),
        sum_rotary_states(zeroed, weights, rotary, turns),
        strict=True,
    )
    for actual, expected in pairs:
        for name in ("squares", "total", "phasors"):
            with_poison, without = getattr(actual, name), getattr(expected, name)
            assert (with_poison is None) == (without is None)
            if with_poison is not None:
                assert torch.equal(with_poison, without)


def test_a_batch_is_padded_and_what_padding_holds_stays_out(
    load: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama")
    expected = capture_norms(model, PROMPTS, batch_size=1)
    inner, lengths = model.attention_inputs, sorted(len(ids) for ids in PROMPTS)

    def poisoned(input_ids: Tensor, visit: Any, **kw: Any) -> None:
        assert input_ids.shape == (len(lengths), max(lengths))

        def with_poison(seen: AttentionInputs) -> None:
            parts = [part.clone() for part in (seen.query, seen.key, seen.value)]
            for part in parts:
                for row, length in enumerate(lengths):
                    part[row, :, length:] = math.nan
            visit(AttentionInputs(seen.block, *parts))

        inner(input_ids, with_poison, **kw)

    monkeypatch.setattr(model, "attention_inputs", poisoned)
    norms = capture_norms(model, PROMPTS, batch_size=len(PROMPTS))
    for projection in ("q", "k", "v"):
        assert_close(getattr(norms, projection), getattr(expected, projection), 1e-6)


def test_long_prompts_are_summed_over_all_their_chunks(tmp_path: Path) -> None:
    family = llama(max_position_embeddings=2048)
    model = load_model(family.save(tmp_path))
    ids = torch.randint(0, 61, (1200,), generator=torch.Generator().manual_seed(3)).tolist()
    norms = capture_norms(model, [ids, ids[:700]])
    for layer, states in enumerate(states_of(model, ids)):
        rotary = model.geometry.layers[layer].rotary
        assert rotary is not None
        assert_close(norms.k_sums.squares[0, layer], states["k"].double().square().sum(1), 1e-5)
        back = rotate(states["k"].double(), torch.arange(len(ids)), rotary, undo=True)
        assert norms.k_unrotated_sums is not None
        assert_close(norms.k_unrotated_sums.squares[0, layer], back.square().sum(1), 1e-5)


# The first token, and prompts of one.


def test_the_first_row_is_the_activation_of_the_first_token(load: Model) -> None:
    model = load("gemma3")
    norms = capture_norms(model, PROMPTS)
    for number, ids in enumerate(PROMPTS):
        for layer, states in enumerate(states_of(model, ids)):
            for (role, _), sums in sites_of(norms).items():
                assert_close(sums.first[number, layer], states[role][:, 0], 1e-5)


def test_skipping_the_first_token_takes_its_energy_and_leaves_phases_alone(load: Model) -> None:
    model, prompts = load("llama"), [ids for ids in PROMPTS if len(ids) > 1]
    whole, rest = (capture_norms(model, prompts, skip_first=skip) for skip in (False, True))
    for (site, sums), others in zip(sites_of(whole).items(), sites_of(rest).values(), strict=True):
        assert_close(others.squares, sums.squares - sums.first.square(), 1e-5)
        assert bool(others.first.isnan().all()), site
        if sums.phasors is not None:
            assert others.phasors is not None
            torch.testing.assert_close(others.phasors, sums.phasors)
    torch.testing.assert_close(rest.phases("k"), whole.phases("k"))
    torch.testing.assert_close(rest.resultant_lengths("q"), whole.resultant_lengths("q"))


def test_a_prompt_of_one_token_has_norms_and_no_phase(load: Model) -> None:
    norms = capture_norms(load("llama"), [[17]])
    torch.testing.assert_close(norms.q, norms.q_sums.first[0].abs())
    assert float(norms.q_sums.first_share().min()) == pytest.approx(1.0)
    assert norms.q_sums.phasors is not None
    assert float(norms.q_sums.phasors.abs().max()) == 0.0
    assert bool(norms.resultant_lengths("q").isnan().all())


# A planted signal.


def test_planted_pair_is_found_and_nothing_else(tmp_path: Path) -> None:
    family = llama()
    model = family.build()
    planted = {0: 6, 1: 3}  # pair by layer, in key-value head 1 and query head 2
    with torch.no_grad():
        for layer, pair in planted.items():
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            for name, head in (("q_proj", 2), ("k_proj", 1)):
                weight: Any = attention.get_submodule(name).weight
                weight[[16 * head + pair, 16 * head + pair + 8]] *= 100.0
    norms = capture_norms(load_model(save_model(model, tmp_path)), PROMPTS)
    for masked, head in ((massive_mask(norms.q), 2), (massive_mask(norms.k), 1)):
        expected = {
            (layer, head, pair + half) for layer, pair in planted.items() for half in (0, 8)
        }
        assert {tuple(place) for place in masked.nonzero().tolist()} == expected
    assert not bool(massive_mask(norms.v).any())
    unrotated = norms.sums("k", "unrotated").pooled_norms()
    assert torch.equal(massive_mask(unrotated), massive_mask(norms.k))


# Cost: no attention pattern.


class LargestTensor(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_attention_pattern_is_materialized(tmp_path: Path) -> None:
    model = load_model(llama(max_position_embeddings=2048).save(tmp_path))
    n_long, n_short = 1500, 1100
    prompts = [[1] * n_long, [2] * n_short]
    with LargestTensor() as largest:
        capture_norms(model, prompts)
    assert largest.numel <= 2 * n_long * 2 * 64  # batch, tokens, twice the model's width
    assert n_long**2 > 4 * largest.numel
    with LargestTensor() as pattern, torch.no_grad():  # the counter sees a pattern where one is
        model.run_with_hooks(torch.ones(1, n_short, dtype=torch.long), fwd_hooks=[])
    assert pattern.numel >= 4 * n_short**2


# Arguments and refusals.


def test_texts_ids_and_tokenized_prompts_are_the_same(load: Model) -> None:
    model = load("llama")
    texts = ["t5 t9 t2 t40", "t17"]
    ids = [[5, 9, 2, 40], [17]]
    tokenized = TokenizedPrompts(input_ids=((5, 9, 2, 40), (17,)), texts=("", ""), n_truncated=0)
    norms = [capture_norms(model, prompts) for prompts in (texts, ids, tokenized)]
    assert torch.equal(norms[0].q, norms[1].q)
    assert torch.equal(norms[0].q, norms[2].q)
    digests = {one.provenance.prompts_digest for one in norms}
    assert digests == {tokenized.digest}


def test_max_length_cuts_every_kind_of_prompt(load: Model) -> None:
    model = load("llama")
    expected = capture_norms(model, [ids[:3] for ids in PROMPTS])
    texts = [" ".join(f"t{i}" for i in ids) for ids in PROMPTS]
    tokenized = TokenizedPrompts(
        input_ids=tuple(tuple(ids) for ids in PROMPTS), texts=tuple(texts), n_truncated=0
    )
    for prompts in (PROMPTS, texts, tokenized):
        norms = capture_norms(model, prompts, max_length=3)
        assert torch.equal(norms.k, expected.k)
        assert norms.provenance.prompts_digest == expected.provenance.prompts_digest


def test_progress_counts_every_prompt_once(load: Model) -> None:
    steps: list[int] = []
    capture_norms(load("llama"), PROMPTS, batch_size=2, on_progress=steps.append)
    assert steps == [2, 2, 1]


def test_provenance_says_how_the_numbers_came_about(load: Model) -> None:
    model = load("gemma2")
    provenance = capture_norms(model, PROMPTS, batch_size=2).provenance
    assert provenance.model == model.name
    assert provenance.attention_kernel == "eager"
    assert (provenance.dtype, provenance.device) == ("float32", "cpu")
    assert (provenance.batch_size, provenance.n_prompts) == (2, 5)


@pytest.mark.parametrize("prompts", [[], TokenizedPrompts(input_ids=(), texts=(), n_truncated=0)])
def test_no_prompts_are_refused(prompts: Any, load: Model) -> None:
    with pytest.raises(ValueError, match="prompts must not be empty; pass at least one text"):
        capture_norms(load("llama"), prompts)


@pytest.mark.parametrize("kind", ["ids", "text", "tokenized"])
def test_a_prompt_beyond_the_context_is_refused_with_the_remedy(kind: str, load: Model) -> None:
    ids = [1] * 129
    tokenized = TokenizedPrompts(input_ids=((1,), tuple(ids)), texts=("", ""), n_truncated=0)
    prompts: Any = {"ids": [[1], ids], "text": ["t1", "t1 " * 129], "tokenized": tokenized}[kind]
    message = r"prompts\[1\] must fit the model's context of 128 .* 129 tokens; pass max_length=128"
    with pytest.raises(ValueError, match=message):
        capture_norms(load("llama"), prompts)
    assert capture_norms(load("llama"), prompts, max_length=128).n_tokens.tolist() == [1, 128]


def test_a_prompt_with_nothing_left_is_refused(load: Model) -> None:
    message = r"at least 2 tokens each, got 1 in prompt 1; leave it out or pass skip_first=False"
    with pytest.raises(ValueError, match=message):
        capture_norms(load("llama"), PROMPTS, skip_first=True)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int, load: Model) -> None:
    with pytest.raises(ValueError, match="batch_size must be between 1 and"):
        capture_norms(load("llama"), PROMPTS, batch_size=batch_size)


def test_without_a_tokenizer_ids_are_captured_and_texts_refused(
    load: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama")
    expected = capture_norms(model, [[1, 2]])
    monkeypatch.setattr(model, "tokenizer", None)
    assert torch.equal(capture_norms(model, [[1, 2]]).q, expected.q)
    with pytest.raises(ValueError, match=r"must be token ids for a model without a tokenizer"):
        capture_norms(model, ["t1 t2"])


def test_float16_overflow_is_refused_where_it_begins(tmp_path: Path) -> None:
    model = llama().build()
    with torch.no_grad():
        embedding: Any = model.get_submodule("model.embed_tokens").weight
        toward = embedding[7] / embedding[7].norm()  # the norm makes it 8 long
        weight: Any = model.get_submodule("model.layers.0.self_attn.k_proj").weight
        weight[16 + 3] = 1e4 * toward  # 80,000 for token 7 alone
    folder = save_model(model, tmp_path)
    prompts = [[1, 2, 3, 4], [7, 1], [5]]
    assert bool(capture_norms(load_model(folder), prompts).k.isfinite().all())
    message = (
        r"got inf in k of L0H1, dimension 3, prompt 1; load the model with dtype float32 or "
        r"bfloat16 \(float16 overflows above 65504\)"
    )
    with pytest.raises(ValueError, match=message):
        capture_norms(load_model(folder, dtype=torch.float16), prompts)
    assert capture_norms(load_model(folder, dtype=torch.bfloat16), prompts).n_prompts == 3


@pytest.mark.parametrize("name", ["llama", "llama_yarn", "glm"])
def test_unrotated_norms_are_those_of_the_projections_own_output(name: str, load: Model) -> None:
    """Also where the model multiplies rotated states by a factor (YaRN) or rotates a part."""
    family, model = FAMILIES[name], load(name)
    ids = [[1, 2, 3, 4, 5, 6, 7, 8]]
    norms = capture_norms(model, ids)
    expected = expected_inputs(family, model.plain, torch.tensor(ids))
    for layer, block in enumerate(family.blocks):
        for projection, raw in (("q", "raw_q"), ("k", "raw_k")):
            sums = norms.sums("q" if projection == "q" else "k", "unrotated")
            states = expected[block][raw][0]
            torch.testing.assert_close(
                sums.norms()[0, layer], states.square().sum(dim=1).sqrt(), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(sums.first[0, layer], states[:, 0], rtol=1e-4, atol=1e-5)


def test_ids_beyond_the_vocabulary_are_refused(load: Model) -> None:
    with pytest.raises(ValueError, match=r"prompts\[0\] must hold token ids below the vocabulary"):
        capture_norms(load("llama"), [[1, 10**6]])


def test_a_negative_max_length_is_refused_for_token_ids_too(load: Model) -> None:
    prompts = TokenizedPrompts(input_ids=((1, 2, 3),), texts=("",), n_truncated=0)
    with pytest.raises(ValueError, match="max_length must be finite and positive, got -1"):
        capture_norms(load("llama"), prompts, max_length=-1)


def test_sums_hold_no_view_of_the_states_that_they_came_from() -> None:
    states = torch.randn(2, 3, 700, 16, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(2, 700)
    weights = TokenWeights(counted=ones, after_first=ones, skip_first=False, all_counted=True)
    sums = sum_states(states, weights)
    for tensor in (sums.squares, sums.total, sums.first):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
