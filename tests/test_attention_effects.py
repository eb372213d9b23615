"""Patterns, sink, KL and cross-entropy of each arm against slow plain definitions."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, token_ids
from torch import Tensor

from mi_massive import attention_effects
from mi_massive.attention_effects import EffectsResult, measure_effects
from mi_massive.capture import capture_norms
from mi_massive.effect_matching import match_effect
from mi_massive.interventions import Intervention, Selection, Value, Where, disrupt
from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.models.attention import AttentionInputs, visiting, watching_patterns
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.records import load_result, save_result
from mi_massive.stats import estimate

IDS = [
    [5, 9, 2, 40, 17, 33, 1],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],  # beyond the window of 8 of gemma2 and mistral
    [30, 31, 32],
]
PROMPTS = tokenize_prompts(None, IDS)
SERVED = ["llama", "gemma2", "gpt_neox", "gpt2"]
TREATMENT = Intervention(selection=Selection(k=3))
CONTROL = Intervention(selection=Selection(rule="random", k=3))

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


# The plain definition: one prompt, one layer, one head, one query at a time.


def plain_pattern(name: str, block: int, query: Tensor, key: Tensor) -> list[list[list[float]]]:
    """softmax(q k^T / sqrt(d)) by head and query over all keys, later ones at 0."""
    window = 8 if name == "mistral" or (name == "gemma2" and block == 0) else None
    cap = 2.0 if name == "gemma2" else None
    root = 16.0 if name == "gemma2" else 4.0  # of query_pre_attn_scalar = 256, and of d_head
    n_heads, n_pos, _ = query.shape
    group = n_heads // key.shape[0]
    pattern: list[list[list[float]]] = []
    for head in range(n_heads):
        rows: list[list[float]] = []
        for place in range(n_pos):
            weights = [0.0] * n_pos
            for other in range(place + 1):
                if window is not None and place - other >= window:
                    continue
                score = float(query[head, place].double() @ key[head // group, other].double())
                score /= root
                score = score if cap is None else cap * math.tanh(score / cap)
                weights[other] = math.exp(score)
            rows.append([weight / sum(weights) for weight in weights])
        pattern.append(rows)
    return pattern


@torch.no_grad()
def plain_patterns(
    name: str, model: HookedModel, ids: list[int], arm: Intervention | None = None
) -> list[list[list[list[float]]]]:
    """Of each layer, from the queries and keys that its attention receives."""
    layers: list[list[list[list[float]]]] = []

    def note(seen: AttentionInputs) -> None:
        layers.append(plain_pattern(name, seen.block, seen.query[0], seen.key[0]))

    plain: Any = model.plain
    if arm is None:
        with visiting(model.plain, note):
            plain(input_ids=torch.tensor([ids]))
    else:
        with disrupt(model, arm), visiting(model.plain, note):  # the inner one sees the edit
            plain(input_ids=torch.tensor([ids]))
    return layers


def plain_sink(pattern: list[list[list[float]]]) -> float:
    """Mean weight on the first token over heads and all queries but the first."""
    values = [row[0] for rows in pattern for row in rows[1:]]
    return sum(values) / len(values)


def plain_kl(before: list[list[list[float]]], after: list[list[list[float]]]) -> float:
    """Mean over heads and all queries but the first of sum p log(p / q)."""
    values: list[float] = []
    for old_rows, new_rows in zip(before, after, strict=True):
        for old, new in zip(old_rows[1:], new_rows[1:], strict=True):
            pairs = zip(old, new, strict=True)
            values.append(sum(p * math.log(p / q) for p, q in pairs if p > 0))
    return sum(values) / len(values)


@torch.no_grad()
def watched(model: HookedModel, ids: list[int]) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Patterns that a watcher sees, with their block, and the logits."""
    seen: list[tuple[int, Tensor]] = []
    plain: Any = model.plain
    with watching_patterns(model.plain, lambda block, found: seen.append((block, found.clone()))):
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits
    return seen, logits


@torch.no_grad()
def logits_of(model: HookedModel, ids: list[int]) -> Tensor:
    plain: Any = model.plain
    return plain(input_ids=torch.tensor([ids]), use_cache=False).logits


# Watching the attention.


@pytest.mark.parametrize("name", [*SERVED, "mistral", "gptj"])
def test_watched_patterns_are_the_softmax_of_what_the_attention_receives(
    name: str, load: Model
) -> None:
    model = load(name)
    for ids in IDS:
        seen, _ = watched(model, ids)
        expected = plain_patterns(name, model, ids)
        assert [block for block, _ in seen] == list(range(len(expected)))
        for (_, pattern), slow in zip(seen, expected, strict=True):
            torch.testing.assert_close(
                pattern[0].double(), torch.tensor(slow).double(), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("name", SERVED)
def test_watching_leaves_logits_alone_and_gives_the_kernel_back(name: str, load: Model) -> None:
    model = load(name)
    kernel, own = model.kernel, logits_of(model, IDS[1])
    _, logits = watched(model, IDS[1])
    torch.testing.assert_close(logits, own, atol=1e-4, rtol=1e-4)
    assert model.kernel == kernel
    assert torch.equal(logits_of(model, IDS[1]), own)


def test_the_kernel_comes_back_after_an_exception_too(load: Model) -> None:
    model = load("llama")
    kernel, own = model.kernel, logits_of(model, IDS[0])
    assert kernel == "sdpa"

    def interrupted() -> None:
        with watching_patterns(model.plain, lambda block, pattern: None):
            assert model.kernel == "eager"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.kernel == kernel
    assert torch.equal(logits_of(model, IDS[0]), own)


def test_no_pattern_is_shown_once_the_context_is_closed(load: Model) -> None:
    model = load("llama")
    seen: list[int] = []
    with watching_patterns(model.plain, lambda block, pattern: seen.append(block)):
        logits_of(model, IDS[0])
    logits_of(model, IDS[0])
    assert seen == [0, 1]


# What each arm does.


@pytest.mark.parametrize("name", SERVED)
def test_sink_and_kl_of_every_arm_are_those_of_the_plain_definition(name: str, load: Model) -> None:
    model = load(name)
    arms = {
        "paper": TREATMENT,
        "first key": Intervention(where=Where(projections=("k",), rows="first")),
        "values": Intervention(where=Where(projections=("v",))),
    }
    result = measure_effects(model, PROMPTS, arms)
    assert result.arms == ("intact", "paper", "first key", "values")
    assert result.layers == (0, 1)
    assert not result.attention_kl[0].any()
    for column, ids in enumerate(IDS):
        before = plain_patterns(name, model, ids)
        for row, arm in enumerate([None, *arms.values()]):
            after = plain_patterns(name, model, ids, arm)
            sinks = [plain_sink(pattern) for pattern in after]
            moved = [plain_kl(*pair) for pair in zip(before, after, strict=True)]
            assert result.sink_mass[row, column].tolist() == pytest.approx(sinks, abs=1e-5)
            assert result.attention_kl[row, column].tolist() == pytest.approx(moved, abs=1e-5)
    assert float(result.attention_kl[1].min()) > 1e-4
    assert not result.attention_kl[3, :, 0].any()  # values reach later layers only
    assert float(result.attention_kl[3, :, 1].min()) > 1e-4


def test_the_sink_of_uniform_attention_is_one_over_the_keys_seen(load: Model) -> None:
    """Queries of zero see all keys alike: 1/2 for the second token, 1/3 for the third, ..."""
    nothing = Intervention(
        selection=Selection(k=16), value=Value(kind="zero"), where=Where(projections=("q",))
    )
    result = measure_effects(load("llama"), PROMPTS, {"zero": nothing})
    for column, ids in enumerate(IDS):
        expected = sum(1 / seen for seen in range(2, len(ids) + 1)) / (len(ids) - 1)
        assert result.sink_mass[1, column].tolist() == pytest.approx([expected] * 2, abs=1e-6)


@pytest.mark.parametrize("name", [*SERVED, "opt", "jamba"])
def test_cross_entropy_is_torchs_over_the_untouched_models_logits(name: str, load: Model) -> None:
    untouched: Any = FAMILIES[name].build()
    result = measure_effects(load(name), PROMPTS, {"paper": TREATMENT})
    for column, ids in enumerate(IDS):
        with torch.no_grad():
            logits = untouched(torch.tensor([ids])).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
        assert float(result.cross_entropy[0, column]) == pytest.approx(float(expected), abs=1e-4)
        with disrupt(load(name), TREATMENT):
            edited = logits_of(load(name), ids)[0]
        expected = torch.nn.functional.cross_entropy(edited[:-1], torch.tensor(ids[1:]))
        assert float(result.cross_entropy[1, column]) == pytest.approx(float(expected), abs=1e-4)
    assert result.cross_entropy[0].tolist() != result.cross_entropy[1].tolist()


@pytest.mark.parametrize(
    "none",
    [
        Intervention(selection=Selection(k=0)),
        Intervention(selection=Selection(k=3), value=Value(strength=0.0)),
    ],
    ids=["k=0", "strength=0"],
)
def test_an_edit_of_nothing_is_the_intact_model(none: Intervention, load: Model) -> None:
    result = measure_effects(load("llama"), PROMPTS, {"none": none})
    torch.testing.assert_close(result.sink_mass[1], result.sink_mass[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(result.cross_entropy[1], result.cross_entropy[0])
    assert float(result.attention_kl[1].abs().max()) < 1e-6


def test_an_arm_is_the_same_in_any_company(load: Model) -> None:
    model = load("llama")
    alone = measure_effects(model, PROMPTS, {"paper": TREATMENT})
    among = measure_effects(model, PROMPTS, {"control": CONTROL, "paper": TREATMENT})
    assert torch.equal(among.attention_kl[2], alone.attention_kl[1])
    assert torch.equal(among.cross_entropy[2], alone.cross_entropy[1])
    one = measure_effects(model, tokenize_prompts(None, IDS[1:2]), {"paper": TREATMENT})
    assert torch.equal(one.sink_mass[:, 0], alone.sink_mass[:, 1])


def test_prompts_of_one_length_are_measured_together_and_as_alone(load: Model) -> None:
    model = load("llama")
    prompts = [*token_ids(3, 9).tolist(), [1, 2, 3, 4], *token_ids(2, 9, seed=5).tolist()]
    together = measure_effects(model, tokenize_prompts(None, prompts), {"paper": TREATMENT})
    assert together.provenance.batch_size == 5
    for column, ids in enumerate(prompts):
        alone = measure_effects(model, tokenize_prompts(None, [ids]), {"paper": TREATMENT})
        for name in ("sink_mass", "attention_kl", "cross_entropy"):
            found, expected = (getattr(r, name)[:, i] for r, i in ((together, column), (alone, 0)))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_long_prompts_are_measured_one_by_one() -> None:
    rows = [[0] * 3000, [0] * 20, [0] * 3000, [0] * 20]
    assert attention_effects._together(rows, 32) == [[0], [2], [1, 3]]
    assert list(map(len, attention_effects._together([[0] * 8] * 40, 4))) == [16, 16, 8]


def test_a_capture_fixes_what_the_arms_select(load: Model) -> None:
    model = load("llama")
    norms = capture_norms(model, [[50, 51, 52], [53, 54]])
    fixed = measure_effects(model, PROMPTS, {"paper": TREATMENT}, norms=norms)
    with disrupt(model, TREATMENT, norms=norms):
        logits = logits_of(model, IDS[0])[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(IDS[0][1:]))
    assert float(fixed.cross_entropy[1, 0]) == pytest.approx(float(expected), abs=1e-4)
    by_prompt = measure_effects(model, PROMPTS, {"paper": TREATMENT})
    assert not torch.equal(fixed.attention_kl[1], by_prompt.attention_kl[1])


def test_progress_strengths_and_provenance(load: Model) -> None:
    steps: list[int] = []
    stronger = replace(TREATMENT, value=Value(strength=1.5))
    arms = {"paper": TREATMENT, "more": stronger}
    result = measure_effects(load("llama"), PROMPTS, arms, on_progress=steps.append)
    assert steps == [1] * len(IDS)
    assert result.strengths == {"paper": 1.0, "more": 1.5}
    assert result.provenance.prompts_digest == PROMPTS.digest
    assert result.provenance.n_prompts == len(IDS)


# Intervals over prompts.


@pytest.fixture(scope="module", name="result")
def fixture_result(load: Model) -> EffectsResult:
    many = tokenize_prompts(None, [[n, 2 * n % 61, 3 * n % 61, n + 7, 5] for n in range(1, 9)])
    return measure_effects(load("llama"), many, {"paper": TREATMENT, "control": CONTROL})


def test_intervals_of_an_arm_are_over_prompts(result: EffectsResult) -> None:
    got = result.of("control")
    rows = {
        "sink_mass": result.sink_mass[2].mean(dim=-1),
        "attention_kl": result.attention_kl[2].mean(dim=-1),
        "cross_entropy": result.cross_entropy[2],
    }
    for name, values in rows.items():
        expected = estimate(values.double().numpy(), n_of="prompts", alternative="two-sided")
        assert (got[name].effect, got[name].low, got[name].high) == pytest.approx(
            (expected.effect, expected.low, expected.high)
        )
        assert (got[name].n, got[name].n_of) == (8, "prompts")
        assert math.isnan(got[name].p_value)


def test_the_added_cross_entropy_is_paired_with_the_intact_model(result: EffectsResult) -> None:
    got = result.of("paper")["added_cross_entropy"]
    added = (result.cross_entropy[1].double() - result.cross_entropy[0].double()).numpy()
    assert got.effect == pytest.approx(added.mean())
    expected = estimate(added, n_of="prompts", null=0.0, alternative="two-sided")
    assert got.p_value == expected.p_value
    assert (got.low, got.high) == (expected.low, expected.high)
    intact = result.of("intact")
    assert intact["added_cross_entropy"].effect == 0.0
    assert intact["added_cross_entropy"].p_value == 1.0
    assert intact["attention_kl"].effect == 0.0


def test_an_arm_that_was_not_measured_is_refused(result: EffectsResult) -> None:
    with pytest.raises(ValueError, match="arm must be one of intact, paper, control, got 'other'"):
        result.of("other")


def test_effects_are_the_same_after_saving_and_loading(
    result: EffectsResult, tmp_path: Path
) -> None:
    loaded = load_result(save_result(result, tmp_path / "effects.json"))
    for name in ("sink_mass", "attention_kl", "cross_entropy"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert (loaded.arms, loaded.strengths) == (result.arms, result.strengths)


# Controls of equal effect.


def moved_by(model: HookedModel, intervention: Intervention) -> float:
    result = measure_effects(model, PROMPTS, {"arm": intervention})
    return float(result.attention_kl[1].mean())


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0, 4.0])
def test_a_control_is_set_to_move_the_attention_as_far(share: float, load: Model) -> None:
    """To less than at strength 1 and to more, within the tolerance; nothing else changes."""
    model = load("llama")
    target = share * moved_by(model, CONTROL)
    found = match_effect(model, PROMPTS, CONTROL, attention_kl=target)
    assert moved_by(model, found) == pytest.approx(target, rel=0.02)
    assert (found.value.strength > 1) is (share > 1)
    assert replace(found, value=CONTROL.value) == CONTROL


def test_a_narrower_tolerance_is_kept(load: Model) -> None:
    model, target = load("llama"), moved_by(load("llama"), TREATMENT)
    found = match_effect(model, PROMPTS, CONTROL, attention_kl=target, tolerance=1e-3)
    assert moved_by(model, found) == pytest.approx(target, rel=1e-3)


def test_the_strength_stays_in_the_range_of_the_search(load: Model) -> None:
    model = load("llama")
    target = 0.1 * moved_by(model, CONTROL)
    found = match_effect(model, PROMPTS, CONTROL, attention_kl=target, strengths=(0.0, 0.6))
    assert found.value.strength <= 0.6
    assert moved_by(model, found) == pytest.approx(target, rel=0.02)
    with pytest.raises(ValueError, match=r"at strength 0\.01; edit more dimensions"):
        match_effect(model, PROMPTS, CONTROL, attention_kl=target, strengths=(0.0, 0.01))


def test_an_effect_out_of_reach_is_refused(load: Model) -> None:
    """The edit of one dimension at strength 2 moves the attention so far, and no farther."""
    model = load("llama")
    weak = Intervention(selection=Selection(rule="smallest", k=1))
    reached = moved_by(model, replace(weak, value=Value(strength=2.0)))
    message = (
        rf"the control must be able to move the attention by 50 nats, got {reached:.3g} at "
        r"strength 2; edit more dimensions"
    )
    with pytest.raises(ValueError, match=message):
        match_effect(model, PROMPTS, weak, attention_kl=50.0, strengths=(0.0, 2.0))
    none = Intervention(selection=Selection(rule="random", k=0))
    with pytest.raises(ValueError, match="got 0 at strength 64; edit more dimensions"):
        match_effect(model, PROMPTS, none, attention_kl=0.1)


def test_a_search_that_ends_too_soon_is_refused(load: Model) -> None:
    model = load("llama")
    target = 0.02 * moved_by(model, CONTROL)
    message = r"max_steps must suffice to move the attention by .* got .* after 1; allow more steps"
    with pytest.raises(ValueError, match=message):
        match_effect(model, PROMPTS, CONTROL, attention_kl=target, max_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_kl": 0.0}, "attention_kl must be finite and positive, got 0.0"),
        ({"attention_kl": math.nan}, "attention_kl must be finite and positive, got nan"),
        ({"max_steps": 0}, "max_steps must be between 1 and 100"),
    ],
)
def test_searches_without_an_aim_are_refused(
    arguments: dict[str, Any], message: str, load: Model
) -> None:
    with pytest.raises(ValueError, match=message):
        match_effect(load("llama"), PROMPTS, CONTROL, **{"attention_kl": 0.1, **arguments})


# Refusals.


def test_a_prompt_without_room_for_attention_is_refused(load: Model) -> None:
    short = TokenizedPrompts(input_ids=((1, 2, 3), (1, 2)), texts=("", ""), n_truncated=0)
    with pytest.raises(ValueError, match=r"prompts\[1\] must have at least 3 tokens, got 2"):
        measure_effects(load("llama"), short, {"paper": TREATMENT})


def test_an_arm_called_intact_is_refused(load: Model) -> None:
    with pytest.raises(ValueError, match="arms must not be called 'intact', which is the model it"):
        measure_effects(load("llama"), PROMPTS, {"intact": TREATMENT})


@pytest.mark.parametrize("name", ["bert", "bert_bare"])
def test_a_model_without_next_tokens_is_refused(name: str, load: Model) -> None:
    message = "must be a decoder with a language-modelling head"
    with pytest.raises(UnsupportedModelError, match=message):
        measure_effects(load(name), PROMPTS, {"paper": TREATMENT})
