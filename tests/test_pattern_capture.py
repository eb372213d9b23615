"""Patterns and activations of single tokens, against an independent forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, expected_inputs, llama

from mi_massive import AttentionNorms, HookedModel, capture_norms, capture_patterns, load_model

WORDS = "t5 t9 t2 t40 t17 t3"
IDS = [5, 9, 2, 40, 17, 3]


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama(num_hidden_layers=3).save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="norms")
def fixture_norms(model: HookedModel) -> AttentionNorms:
    return capture_norms(model, [IDS, [1, 2, 3]])


def test_patterns_and_activations_equal_an_independent_forward_pass(
    model: HookedModel, norms: AttentionNorms
) -> None:
    family = llama(num_hidden_layers=3)
    states = expected_inputs(family, family.build(), torch.tensor([IDS]))
    heads = [(0, 0), (2, 3)]
    result = capture_patterns(model, WORDS, norms, heads=heads)
    assert result.tokens == tuple(WORDS.split())
    assert [(view.block, view.head) for view in result.heads] == heads
    for view in result.heads:
        q, k = states[view.block]["q"][0, view.head], states[view.block]["k"][0, view.head // 2]
        scores = q @ k.T / 4
        future = torch.ones(6, 6, dtype=torch.bool).triu(1)
        expected = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        torch.testing.assert_close(view.pattern, expected, atol=1e-5, rtol=1e-4)
        assert view.dimension == int(norms.q[view.block, view.head].argmax())
        torch.testing.assert_close(view.activations, q[:, view.dimension], atol=1e-5, rtol=1e-4)


def test_the_most_concentrated_head_of_each_chosen_layer_is_shown(
    model: HookedModel, norms: AttentionNorms
) -> None:
    peaks = (norms.q.amax(-1) / norms.q.mean(-1)).tolist()
    best = sorted(((max(row), row.index(max(row)), n) for n, row in enumerate(peaks)), reverse=True)
    expected = sorted((layer, head) for _, head, layer in best[:2])
    result = capture_patterns(model, WORDS, norms, n_heads=2)
    assert [(view.block, view.head) for view in result.heads] == expected
    assert len(capture_patterns(model, WORDS, norms, n_heads=9).heads) == 3


def test_token_ids_are_run_as_they_are(model: HookedModel, norms: AttentionNorms) -> None:
    text = capture_patterns(model, WORDS, norms, n_heads=1)
    ids = capture_patterns(model, IDS, norms, n_heads=1)
    assert ids.tokens == text.tokens
    assert torch.equal(ids.heads[0].pattern, text.heads[0].pattern)
    assert ids.provenance.prompts_digest == text.provenance.prompts_digest


def test_a_long_prompt_is_cut(model: HookedModel, norms: AttentionNorms) -> None:
    cut = capture_patterns(model, WORDS, norms, max_length=4, n_heads=1)
    assert cut.tokens == ("t5", "t9", "t2", "t40")
    beyond_context = capture_patterns(model, "t1 " * 200, norms, max_length=500, n_heads=1)
    assert len(beyond_context.tokens) == 128


def test_blocks_without_attention_are_counted_in_the_heads_name(tmp_path: Path) -> None:
    model = load_model(FAMILIES["jamba"].save(tmp_path))
    norms = capture_norms(model, [IDS])
    with pytest.raises(ValueError, match=r"one of \[1, 3\], got 0"):
        capture_patterns(model, IDS, norms, heads=[(0, 0)])


def test_what_does_not_exist_is_refused(
    model: HookedModel, norms: AttentionNorms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"heads": [(0, 4)]}, r"heads must be between 0 and 3 \(query heads\), got 4"),
        ({"heads": [(7, 0)]}, r"heads must name blocks with attention, one of \[0, 1, 2\], got 7"),
        ({"n_heads": 0}, r"n_heads must be finite and positive, got 0"),
    ]
    for arguments, message in refusals:
        with pytest.raises(ValueError, match=message):
            capture_patterns(model, WORDS, norms, **arguments)
    for empty in ("", []):
        with pytest.raises(ValueError, match="prompt must not be empty; pass a text or token ids"):
            capture_patterns(model, empty, norms)
    other = load_model(FAMILIES["qwen2"].save(tmp_path))
    with pytest.raises(ValueError, match=r"norms must come from .*, got norms of .*; capture them"):
        capture_patterns(other, WORDS, norms)
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(ValueError, match=r"must exist to name tokens, got none"):
        capture_patterns(model, IDS, norms)
