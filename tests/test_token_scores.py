"""Scores of continuations and texts against one pass of the untouched transformers model."""

import functools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

from mi_massive.generation import generate
from mi_massive.interventions import Intervention, Selection, Where, disrupt
from mi_massive.models import HookedModel, load_model
from mi_massive.models.passes import noting_passes
from mi_massive.token_scores import (
    TokenScores,
    answer_and_score,
    score_continuations,
    score_texts,
)

TEXTS = [[5, 9, 2, 40], [17, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 31, 32]]
N_SCORED = [3, 1, 4, 2]
EDIT = Intervention(selection=Selection(k=3))
SERVED = ["llama", "gemma2", "gpt2"]


@pytest.fixture(scope="module", name="models")
def fixture_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HookedModel]:
    return {name: load_model(FAMILIES[name].save(tmp_path_factory.mktemp(name))) for name in SERVED}


@functools.cache
def untouched(name: str) -> Any:
    """The transformers model itself."""
    return FAMILIES[name].build()


@torch.no_grad()
def by_hand(model: Any, ids: list[int], n: int) -> TokenScores:
    """The last n tokens, from a pass over all but the last of them."""
    log_probs = model(torch.tensor([ids[:-1]])).logits[0, -n:].double().log_softmax(dim=-1)
    own = [float(row[token]) for row, token in zip(log_probs, ids[-n:], strict=True)]
    best = [int(row.argmax()) for row in log_probs]
    return TokenScores(log_probs=tuple(own), greedy=best == ids[-n:])


def assert_same(actual: TokenScores, expected: TokenScores) -> None:
    assert actual.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
    assert actual.greedy == expected.greedy


@pytest.mark.parametrize("batch_size", [1, 3, 99])
@pytest.mark.parametrize("name", SERVED)
def test_the_end_of_a_text_is_scored_as_in_one_pass_over_it(
    name: str, batch_size: int, models: dict[str, HookedModel]
) -> None:
    found = score_texts(models[name], TEXTS, N_SCORED, batch_size=batch_size)
    for scores, ids, n in zip(found, TEXTS, N_SCORED, strict=True):
        assert_same(scores, by_hand(untouched(name), ids, n))


def test_under_an_edit_all_of_a_text_but_its_last_token_is_prompt(
    models: dict[str, HookedModel],
) -> None:
    model = models["llama"]
    with disrupt(model, EDIT) as edits:
        found = score_texts(model, TEXTS, N_SCORED, batch_size=3)
    heads = 4 + 2  # of queries and of keys, in each of two layers
    assert edits.total == sum(len(ids) - 1 for ids in TEXTS) * 3 * heads * 2
    for scores, ids, n in zip(found, TEXTS, N_SCORED, strict=True):
        with disrupt(model, EDIT):
            assert_same(scores, by_hand(model.plain, ids, n))
    intact = score_texts(model, TEXTS, N_SCORED)
    assert abs(found[0].log_probs[2] - intact[0].log_probs[2]) > 1e-2


def test_only_what_a_model_would_say_is_greedy(models: dict[str, HookedModel]) -> None:
    model, prompt = models["llama"], TEXTS[0]
    words = torch.tensor([prompt])
    said = (
        untouched("llama")
        .generate(words, attention_mask=torch.ones_like(words), max_new_tokens=3, do_sample=False)[
            0, len(prompt) :
        ]
        .tolist()
    )
    other = [*said[:2], (said[2] + 1) % 60]
    found = score_continuations(model, [prompt], [[said, other, said[:1], said[1:2]]])
    assert [scores.greedy for scores in found[0]] == [True, False, True, said[0] == said[1]]
    for scores, ids in zip(found[0], (said, other), strict=False):
        assert_same(scores, by_hand(untouched("llama"), [*prompt, *ids], 3))
    text = score_texts(model, [[*prompt, *said]], [3])[0]
    assert text.greedy
    assert text.log_probs == pytest.approx(found[0][0].log_probs, abs=1e-4)


def test_a_continuation_may_end_one_token_beyond_the_context(
    models: dict[str, HookedModel],
) -> None:
    """Its last token is not read; another one would be."""
    model, prompt = models["llama"], [1] * 126
    assert len(score_continuations(model, [[2], prompt], [[[3] * 9], [[4, 5, 6]]])) == 2
    with pytest.raises(ValueError, match=r"prompts\[1\] with 3 new tokens must fit"):
        score_continuations(model, [[2], prompt], [[[3] * 9], [[4, 5, 6, 7]]])


@pytest.mark.parametrize("n", [0, 3, 4])
def test_a_token_without_one_before_it_has_no_score(n: int, models: dict[str, HookedModel]) -> None:
    message = rf"n_scored\[1\] must be between 1 and the 3 tokens .* less one, got {n}; put a"
    with pytest.raises(ValueError, match=message):
        score_texts(models["llama"], [[1, 2], [1, 2, 3]], [1, n])


def test_progress_counts_every_text_once(models: dict[str, HookedModel]) -> None:
    finished: list[int] = []
    score_texts(models["llama"], TEXTS, N_SCORED, batch_size=3, on_progress=finished.append)
    assert finished == [3, 1]


CHOICES = [[[7], [8, 9, 10]], [[1, 2], [3]], [[4], [5]], [[60, 61], [62, 63]]]


def counting_reads(model: HookedModel, seen: list[int]) -> Any:
    """Note the new columns of every pass."""
    return noting_passes(
        model.plain, lambda forward: seen.append(forward.stop if forward.start == 0 else 0)
    )


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("positions", ["prefill", "decode", "both", None])
@pytest.mark.parametrize("name", SERVED)
def test_answers_and_scores_on_one_reading_are_those_of_two(
    name: str, positions: Any, batch_size: int, models: dict[str, HookedModel]
) -> None:
    model = models[name]
    arguments: dict[str, Any] = {"max_new_tokens": 5, "batch_size": batch_size}
    edit = Intervention(selection=Selection(k=3), where=Where(positions=positions or "prefill"))
    with disrupt(model, edit) if positions else nullcontext():
        texts = generate(model, TEXTS, **arguments)
        scores = score_continuations(model, TEXTS, CHOICES, batch_size=batch_size)
        both = answer_and_score(model, TEXTS, CHOICES, **arguments)
    assert both[0] == texts
    for found, expected in zip(both[1], scores, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_each_prompt_is_read_once_where_its_cache_can_be_cut_back(
    models: dict[str, HookedModel],
) -> None:
    reads: dict[str, list[int]] = {}
    for name in ("llama", "gemma2"):
        seen = reads.setdefault(name, [])
        with counting_reads(models[name], seen):
            answer_and_score(models[name], TEXTS[:1], CHOICES[:1], max_new_tokens=3)
    assert [n for n in reads["llama"] if n] == [4]
    assert [n for n in reads["gemma2"] if n] == [4, 4]  # its windows slide


def test_prompts_without_continuations_are_refused_with_answers_too(
    models: dict[str, HookedModel],
) -> None:
    with pytest.raises(ValueError, match=r"continuations\[1\] must hold at least one token each"):
        answer_and_score(models["llama"], TEXTS[:2], [[[1]], []], max_new_tokens=2)
