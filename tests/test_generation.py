"""Batched answers and log-probabilities against the untouched transformers model, row by row."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from builders import continuation_log_probs
from tiny_models import FAMILIES, PAD_ID, VOCABULARY
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mi_massive.generation import generate
from mi_massive.interventions import Intervention, Selection, Value, Where, disrupt
from mi_massive.models import HookedModel, UnsupportedModelError, load_model

PROMPTS = [
    [5, 9, 2, 40],
    [17],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],  # beyond the window of 8 of gemma2
    [30, 31, 32],
    [8, 8, 8, 8, 8],
]
CONTINUATIONS = [
    [[1, 2, 3], [4]],
    [[5], [6, 7, 8, 9, 10]],
    [[11, 12, 13, 14]],
    [[1], [2], [3]],
    [[7, 7], [8, 8]],
]
SERVED = ["llama", "qwen2", "gpt_neox", "gemma2", "gpt2", "phi3"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;!?-+*/=()'\"<>[]{}@#"

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


@pytest.fixture(name="own")
def fixture_own(load: Model, monkeypatch: pytest.MonkeyPatch) -> HookedModel:
    """A model whose tokenizer and generation settings a test may change."""
    model = load("llama")
    monkeypatch.setattr(model, "tokenizer", copy.deepcopy(model.tokenizer))
    generation = copy.deepcopy(model.plain.generation_config)
    monkeypatch.setattr(model.plain, "generation_config", generation)
    return model


@functools.cache
def untouched(name: str) -> Any:
    """The transformers model itself."""
    return FAMILIES[name].build()


def plain_answer(
    name: str, ids: Sequence[int], n: int, *, ends: Sequence[int] = (PAD_ID - 1,)
) -> list[int]:
    """Greedy answer of the untouched model to one prompt, by transformers' own loop."""
    model = untouched(name)
    prompt = torch.tensor([list(ids)])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=PAD_ID,
    )
    new = output[0, len(ids) :].tolist()
    return new[: min([new.index(end) for end in ends if end in new], default=n)]


@torch.no_grad()
def plain_log_probs(name: str, ids: Sequence[int], continuation: Sequence[int]) -> list[float]:
    """Of each token, from one forward pass of the untouched model over all of them."""
    logits = untouched(name)(torch.tensor([[*ids, *continuation]])).logits[0].double()
    return [
        float(logits[len(ids) - 1 + place].log_softmax(dim=-1)[token])
        for place, token in enumerate(continuation)
    ]


def assert_near(actual: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal nested lists of numbers."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        if isinstance(one, list):
            assert_near(one, other, tolerance)
        else:
            assert one == pytest.approx(other, abs=tolerance)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, with the special tokens of the tiny models."""
    assert len(CHARACTERS) == VOCABULARY - 3
    names = (*CHARACTERS, "<unk>", "<s>", "<pad>")
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<pad>",
    )


def speaking(model: HookedModel, *, ends: bool = True, pads: bool = True) -> Any:
    """Give a model the tokenizer of single characters, with or without special tokens."""
    tokenizer: Any = character_tokenizer()
    if not ends:
        generation: Any = model.plain.generation_config
        tokenizer.eos_token = generation.eos_token_id = None
    if not pads:
        tokenizer.pad_token = None
    model.tokenizer = tokenizer
    return tokenizer


# Greedy answers.


@pytest.mark.parametrize("name", SERVED)
def test_answers_are_those_of_transformers_one_prompt_at_a_time(name: str, load: Model) -> None:
    answers = generate(load(name), PROMPTS, max_new_tokens=10, batch_size=len(PROMPTS))
    assert answers == [plain_answer(name, ids, 10) for ids in PROMPTS]
    assert len({tuple(ids) for ids in answers}) == len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 99])
def test_answers_stand_in_the_order_of_the_prompts_whatever_the_batch(
    batch_size: int, load: Model
) -> None:
    model = load("llama")
    expected = [generate(model, [ids], max_new_tokens=6)[0] for ids in PROMPTS]
    finished: list[int] = []
    got = generate(
        model, PROMPTS, max_new_tokens=6, batch_size=batch_size, on_progress=finished.append
    )
    assert got == expected
    assert sum(finished) == len(PROMPTS)
    assert max(finished) == min(batch_size, len(PROMPTS))
    turned = generate(model, PROMPTS[::-1], max_new_tokens=6, batch_size=batch_size)
    assert turned == expected[::-1]


def test_end_of_text_ends_an_answer_and_is_no_part_of_it(own: HookedModel) -> None:
    whole = [plain_answer("llama", ids, 10) for ids in PROMPTS]
    ends = [whole[0][3], whole[2][0]]  # in the middle, and at once
    generation: Any = own.plain.generation_config
    generation.eos_token_id = ends
    answers = generate(own, PROMPTS, max_new_tokens=10)
    assert answers == [plain_answer("llama", ids, 10, ends=[*ends, 62]) for ids in PROMPTS]
    assert len(answers[0]) <= 3
    assert answers[2] == []


def test_the_tokenizers_end_of_text_ends_an_answer_too(own: HookedModel) -> None:
    whole = plain_answer("llama", PROMPTS[0], 10)
    tokenizer: Any = own.tokenizer
    tokenizer.eos_token = f"t{whole[3]}"
    answer = generate(own, PROMPTS[:1], max_new_tokens=10)[0]
    assert answer == whole[: whole.index(whole[3])]


@pytest.mark.parametrize(
    ("ends", "pads"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_an_answer_stops_after_a_stop_string_in_any_batch(
    ends: bool, pads: bool, own: HookedModel
) -> None:
    """Rows that stop early wait for the others; what they get meanwhile is no answer.

    Without a padding token that would be token 0, and without an end of text they run on.
    """
    tokenizer = speaking(own, ends=ends, pads=pads)
    whole = generate(own, PROMPTS, max_new_tokens=12)
    texts = [tokenizer.decode(ids) for ids in whole]
    stop = [texts[0][2:4], texts[2][5]]  # two tokens, and one
    expected = []
    for ids, text in zip(whole, texts, strict=True):
        found = [text.index(one) + len(one) for one in stop if one in text]
        expected.append(ids[: min(found, default=len(ids))])
    lengths = [len(ids) for ids in expected]
    assert min(lengths) < max(lengths)
    for batch_size in (1, 2, len(PROMPTS)):
        got = generate(own, PROMPTS, max_new_tokens=12, stop=stop, batch_size=batch_size)
        assert got == expected
    assert any(tokenizer.decode(ids).endswith(stop[0]) for ids in expected)


def test_a_stop_string_in_the_prompt_ends_nothing(own: HookedModel) -> None:
    tokenizer = speaking(own)
    prompt = tokenizer("a stop. b", add_special_tokens=False)["input_ids"]
    expected = generate(own, [prompt], max_new_tokens=5)
    assert "stop." not in tokenizer.decode(expected[0])
    assert generate(own, [prompt], max_new_tokens=5, stop=["stop."]) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"do_sample": True, "temperature": 5.0, "top_k": 50},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(0, 60, 2))},
        {"num_beams": 3},
        {"max_new_tokens": 2, "max_length": 3},
        {"min_new_tokens": 8},
        {"num_return_sequences": 2, "do_sample": True},
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"stop_strings": ["t"]},
        {"bad_words_ids": [[n] for n in range(40)]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_models_own_generation_settings_do_not_come_in(
    settings: dict[str, Any], own: HookedModel
) -> None:
    expected = generate(own, PROMPTS[:2], max_new_tokens=8)
    generation: Any = own.plain.generation_config
    generation.update(**settings)
    assert generate(own, PROMPTS[:2], max_new_tokens=8) == expected
    assert own.plain.generation_config is generation
    for name, value in settings.items():
        assert getattr(generation, name) == value


def test_the_models_settings_come_back_after_an_exception(
    own: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = own.plain.generation_config

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(own.plain, "generate", broken)
    with pytest.raises(KeyboardInterrupt):
        generate(own, PROMPTS[:1], max_new_tokens=2)
    assert own.plain.generation_config is generation


# Log-probabilities of continuations.


@pytest.mark.parametrize("name", [*SERVED, "gemma3", "gptj", "opt"])
@pytest.mark.parametrize("batch_size", [1, 99])
def test_log_probs_are_those_of_one_pass_over_prompt_and_continuation(
    name: str, batch_size: int, load: Model
) -> None:
    got = continuation_log_probs(load(name), PROMPTS, CONTINUATIONS, batch_size=batch_size)
    expected = [
        [plain_log_probs(name, ids, one) for one in own]
        for ids, own in zip(PROMPTS, CONTINUATIONS, strict=True)
    ]
    assert_near(got, expected)


def test_log_probs_of_single_tokens_need_only_the_prompt(
    load: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama")
    single = [[[token], [token + 1]] for token in range(len(PROMPTS))]
    lengths: list[int] = []
    forward = model.plain.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model.plain, "forward", counted)
    got = continuation_log_probs(model, PROMPTS, single)
    assert lengths == [max(len(ids) for ids in PROMPTS)]
    expected = [
        [plain_log_probs("llama", ids, one) for one in own]
        for ids, own in zip(PROMPTS, single, strict=True)
    ]
    assert_near(got, expected)


def test_log_probs_sum_to_probability_one_over_all_single_tokens(load: Model) -> None:
    every = [[[token] for token in range(VOCABULARY)]]
    got = continuation_log_probs(load("qwen2"), PROMPTS[:1], every)
    assert sum(math.exp(own[0]) for own in got[0]) == pytest.approx(1.0, abs=1e-5)


def test_progress_of_log_probs_counts_every_prompt_once(load: Model) -> None:
    finished: list[int] = []
    continuation_log_probs(
        load("llama"), PROMPTS, CONTINUATIONS, batch_size=2, on_progress=finished.append
    )
    assert sum(finished) == len(PROMPTS)


# Under an intervention: the prompt is prefill, what follows is decode.


def edited(positions: Any = "prefill", kind: Any = "mean", **where: Any) -> Intervention:
    return Intervention(
        selection=Selection(k=3), value=Value(kind=kind), where=Where(positions=positions, **where)
    )


@torch.no_grad()
def token_by_token(
    model: HookedModel,
    intervention: Intervention,
    ids: Sequence[int],
    continuation: Sequence[int],
) -> list[float]:
    """Read the prompt alone under the edit, then feed one token at a time on that cache."""
    plain: Any = model.plain
    found: list[float] = []
    with disrupt(model, intervention):
        output = plain(input_ids=torch.tensor([list(ids)]), use_cache=True)
        for token in continuation:
            found.append(float(output.logits[0, -1].double().log_softmax(dim=-1)[token]))
            output = plain(
                input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values
            )
    return found


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(
    "intervention",
    [edited(), edited(cache="clean"), edited("both")],
    ids=["prefill", "clean cache", "both"],
)
def test_log_probs_under_an_edit_are_those_of_reading_token_by_token(
    name: str, intervention: Intervention, load: Model
) -> None:
    """Each prompt has its own dimensions and means, and so have the copies of its row."""
    model = load(name)
    expected = [
        [token_by_token(model, intervention, ids, one) for one in own]
        for ids, own in zip(PROMPTS, CONTINUATIONS, strict=True)
    ]
    with disrupt(model, intervention) as edits:
        got = continuation_log_probs(model, PROMPTS, CONTINUATIONS, batch_size=len(PROMPTS))
    assert edits.total > 0
    assert_near(got, expected)
    intact = continuation_log_probs(model, PROMPTS, CONTINUATIONS)
    assert abs(got[0][0][0] - intact[0][0][0]) > 1e-2


@pytest.mark.parametrize("positions", ["prefill", "decode", "both"])
def test_prompts_of_one_batch_keep_their_own_edits(positions: str, load: Model) -> None:
    model, intervention = load("llama"), edited(positions)
    two = [[[1, 2, 3], [4, 5]]] * len(PROMPTS)

    def scores(batch_size: int) -> list[list[list[float]]]:
        with disrupt(model, intervention):
            return continuation_log_probs(model, PROMPTS, two, batch_size=batch_size)

    alone = scores(1)
    assert_near(scores(len(PROMPTS)), alone)
    intact = continuation_log_probs(model, PROMPTS, two)
    assert abs(alone[0][0][2] - intact[0][0][2]) > 1e-3


@pytest.mark.parametrize("positions", ["prefill", "decode", "both"])
def test_answers_under_an_edit_do_not_depend_on_the_batch(positions: str, load: Model) -> None:
    model, intervention = load("llama"), edited(positions)

    def answers(batch_size: int) -> list[list[int]]:
        with disrupt(model, intervention) as edits:
            found = generate(model, PROMPTS, max_new_tokens=6, batch_size=batch_size)
        assert edits.total > 0
        return found

    assert answers(len(PROMPTS)) == answers(1)
    assert answers(1) != generate(model, PROMPTS, max_new_tokens=6)


# Refusals.


def test_an_answer_that_does_not_fit_the_context_is_refused(load: Model) -> None:
    model = load("llama")
    message = (
        r"prompts\[1\] with 10 new tokens must fit the model's context of 128 tokens, got "
        r"119 \+ 10; shorten the prompt or the answer"
    )
    with pytest.raises(ValueError, match=message):
        generate(model, [[1], [1] * 119], max_new_tokens=10)
    with pytest.raises(ValueError, match=message):
        continuation_log_probs(model, [[1], [1] * 119], [[[1]], [[1] * 11]])  # the last is not read
    assert len(generate(model, [[1] * 118], max_new_tokens=10)[0]) <= 10


@pytest.mark.parametrize("name", ["bert", "bert_bare"])
def test_a_model_that_does_not_decode_is_refused(name: str, load: Model) -> None:
    message = "must be a decoder with a language-modelling head to answer prompts, got a Bert"
    with pytest.raises(UnsupportedModelError, match=message):
        generate(load(name), PROMPTS, max_new_tokens=2)
    with pytest.raises(UnsupportedModelError, match=message):
        continuation_log_probs(load(name), PROMPTS, CONTINUATIONS)


def test_no_prompts_and_prompts_without_tokens_are_refused(load: Model) -> None:
    with pytest.raises(ValueError, match="prompts must not be empty; give at least one"):
        generate(load("llama"), [], max_new_tokens=2)
    message = r"prompts\[1\] must have at least one token, got none"
    with pytest.raises(ValueError, match=message):
        generate(load("llama"), [[1], []], max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        continuation_log_probs(load("llama"), [[1], []], [[[1]], [[2]]])


@pytest.mark.parametrize(
    ("continuations", "message"),
    [
        ([[[1]], []], r"continuations\[1\] must hold at least one token each, got \[\]"),
        ([[[1], []], [[2]]], r"continuations\[0\] must hold at least one token each"),
        ([[[1]]], r"continuations must hold one entry a prompt \(2\), got 1"),
        ([[[1]]] * 3, r"continuations must hold one entry a prompt \(2\), got 3"),
    ],
)
def test_continuations_that_say_nothing_are_refused(
    continuations: Any, message: str, load: Model
) -> None:
    with pytest.raises(ValueError, match=message):
        continuation_log_probs(load("llama"), [[1], [2]], continuations)


@pytest.mark.parametrize("arguments", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(arguments: dict[str, int], load: Model) -> None:
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=f"{name} must be between 1 and"):
        generate(load("llama"), [[1]], **{"max_new_tokens": 2, **arguments})


def test_stop_strings_need_a_tokenizer(own: HookedModel) -> None:
    own.tokenizer = None
    assert generate(own, [[1]], max_new_tokens=3) == [plain_answer("llama", [1], 3)]
    message = r"stop must be empty for a model without a tokenizer, got \['x'\]; leave it out"
    with pytest.raises(ValueError, match=message):
        generate(own, [[1]], max_new_tokens=3, stop=["x"])


def test_a_recurrent_state_is_not_copied_and_that_is_said(load: Model) -> None:
    """It answers and scores single tokens; longer continuations would need copies of the state."""
    model = load("jamba")
    assert generate(model, PROMPTS[:2], max_new_tokens=4) == [
        plain_answer("jamba", ids, 4) for ids in PROMPTS[:2]
    ]
    got = continuation_log_probs(model, PROMPTS[:2], [[[1], [2]], [[3], [4]]])
    assert_near(got[1], [plain_log_probs("jamba", PROMPTS[1], [token]) for token in (3, 4)])
    message = r"must cache keys and values alone to score .*, got a LinearAttentionLayer; use the"
    with pytest.raises(UnsupportedModelError, match=message):
        continuation_log_probs(model, PROMPTS[:1], [[[1, 2]]])
