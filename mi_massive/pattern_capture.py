"""Attention patterns and massive activations of chosen heads on one prompt.

Answers what single tokens do, which norms over positions cannot show. Costs two forward passes of
one short prompt, with the attention weights of every layer materialized by TransformerLens while
they run.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mi_massive._checks import require_in_range, require_not_empty, require_positive
from mi_massive.capture import provenance_of
from mi_massive.models.attention import AttentionInputs
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.norms import AttentionNorms
from mi_massive.patterns import HeadView, PatternsResult
from mi_massive.prompts import tokenize_prompts


def capture_patterns(
    model: HookedModel,
    prompt: str | Sequence[int],
    norms: AttentionNorms,
    *,
    n_heads: int = 6,
    heads: Sequence[tuple[int, int]] | None = None,
    max_length: int = 96,
) -> PatternsResult:
    """Record what the most concentrated query heads do on one prompt.

    Args:
        model: The model that `norms` came from.
        prompt: Text to run, or its token ids (of a prompt in a chat template, for instance).
        norms: From `capture_norms`; decides each head's massive dimension and, without `heads`,
            the heads.
        n_heads: Heads to show at most: those with the largest max/mean of the query norms, one a
            layer.
        heads: `(block, head)` pairs to show instead.
        max_length: Tokens of the prompt to keep; patterns grow with its square.

    Raises:
        ValueError: If a head does not exist, the prompt is empty, or `norms` came from another
            model.
        UnsupportedModelError: If the model has no attention patterns to read.
    """
    _require_same_model(model, norms)
    require_not_empty("prompt", prompt, remedy="pass a text or token ids")
    chosen = _most_concentrated(norms, n_heads) if heads is None else list(heads)
    for block, head in chosen:
        _require_head(norms, block, head)
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.name} must exist to name tokens, got none")
    kept = min(max_length, model.geometry.training_context or max_length)
    tokenized = tokenize_prompts(model.tokenizer, [prompt], max_length=kept)
    input_ids = torch.tensor(tokenized.input_ids, device=model.device)
    queries = _queries(model, input_ids)
    patterns = _patterns(model, input_ids, sorted({block for block, _ in chosen}))
    views: list[HeadView] = []
    for block, head in chosen:
        dimension = int(norms.q[norms.layers.index(block), head].argmax())
        views.append(
            HeadView(
                block=block,
                head=head,
                projection="q",
                dimension=dimension,
                activations=queries[block][head, :, dimension],
                pattern=patterns[block][head],
            )
        )
    return PatternsResult(
        tokens=_token_texts(model, tokenized.input_ids[0]),
        heads=tuple(views),
        provenance=provenance_of(model, tokenized, batch_size=1),
    )


def _require_same_model(model: HookedModel, norms: AttentionNorms) -> None:
    captured = norms.provenance.model
    if captured != model.name:
        raise ValueError(
            f"norms must come from {model.name}, got norms of {captured}; capture them again"
        )


def _require_head(norms: AttentionNorms, block: int, head: int) -> None:
    if block not in norms.layers:
        raise ValueError(
            f"heads must name blocks with attention, one of {list(norms.layers)}, got {block}"
        )
    require_in_range("heads", head, low=0, high=norms.q.shape[1] - 1, unit="query heads")


def _most_concentrated(norms: AttentionNorms, n_heads: int) -> list[tuple[int, int]]:
    """Heads of largest max/mean, at most one a layer, in model order."""
    require_positive("n_heads", n_heads)
    # A head whose norms are all zero has no max/mean, and nothing to show.
    peaks, heads = (norms.q.amax(dim=-1) / norms.q.mean(dim=-1)).nan_to_num(0).max(dim=-1)
    layers = sorted(int(layer) for layer in peaks.topk(min(n_heads, len(peaks))).indices)
    return [(norms.layers[layer], int(heads[layer])) for layer in layers]


def _queries(model: HookedModel, input_ids: Tensor) -> dict[int, Tensor]:
    """Queries `[head, pos, d_head]` of each block, as they enter the attention."""
    queries: dict[int, Tensor] = {}

    def visit(seen: AttentionInputs) -> None:
        queries[seen.block] = seen.query[0].detach().float().cpu()

    model.attention_inputs(input_ids, visit)
    return queries


def _patterns(model: HookedModel, input_ids: Tensor, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Attention weights `[head, pos, pos]` of each of `blocks`."""
    names = {f"blocks.{block}.attn.hook_pattern": block for block in blocks}
    missing = [name for name in names if name not in model.bridge.hook_dict]
    if missing:
        raise UnsupportedModelError(
            f"{model.name} must have attention patterns at {missing[0]}, got no such hook point"
        )
    patterns: dict[int, Tensor] = {}

    def read(pattern: Tensor, hook: Any) -> None:
        patterns[names[hook.name]] = pattern[0].detach().float().cpu()

    model.run_with_hooks(input_ids, fwd_hooks=[(name, read) for name in names])
    return patterns


def _token_texts(model: HookedModel, ids: Sequence[int]) -> tuple[str, ...]:
    decode = cast(Any, model.tokenizer).decode
    return tuple(str(decode([token])) for token in ids)
