"""How probable a model finds given tokens: those of continuations of a prompt, or of a text.

A continuation is scored on the cache of its prompt, which is read once for all of them; a text is
read at once and scored as it goes. So under an edit of the prompt a continuation is decode, and a
text is prompt throughout. Rows are sorted by length, padded on the left and given back in order;
batch size and padding change nothing but rounding. Everything runs on the plain model, so `disrupt`
acts on it.

Does not show: what a model would say itself; `mi_massive.generation` has that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._prompt_batches import Batch, Rows, batches, generating, require_room, run_batch
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.passes import stating_prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScores:
    """How probable some tokens are in their order."""

    log_probs: tuple[float, ...]
    """Of each token given all before it, in nats."""
    greedy: bool
    """True if each is the most probable at its place; of those that tie, the first is."""


@torch.no_grad()
def score_continuations(
    model: HookedModel,
    prompts: Rows,
    continuations: Sequence[Rows],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[TokenScores]]:
    """Score each continuation of each prompt.

    Args:
        model: From `load_model`; it must have a language-modelling head.
        prompts: Token ids of each prompt.
        continuations: For each prompt the token ids of one or more continuations.
        batch_size: Prompts of a batch.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        `[prompt][continuation]`.

    Raises:
        ValueError: If a prompt has no continuation, one is empty, or they do not fit the context.
        UnsupportedModelError: If the model cannot generate, or it keeps a recurrent state that
            cannot be copied and a continuation has several tokens.
    """
    plain = generating(model)
    if len(continuations) != len(prompts):
        raise ValueError(
            f"continuations must hold one entry a prompt ({len(prompts)}), got {len(continuations)}"
        )
    for number, own in enumerate(continuations):
        if not own or not all(own):
            raise ValueError(
                f"continuations[{number}] must hold at least one token each, got {list(own)}"
            )
    # The last token of a continuation is scored and not read.
    require_room(model, prompts, [max(map(len, own)) - 1 for own in continuations])
    found: list[list[TokenScores]] = [[] for _ in prompts]
    groups: dict[int, list[int]] = {}
    for number, own in enumerate(continuations):
        groups.setdefault(len(own), []).append(number)
    for group in groups.values():
        for batch in batches([prompts[i] for i in group], batch_size, model.device):
            numbers = [group[row] for row in batch.rows]
            scores = _score(plain, batch, [continuations[i] for i in numbers])
            for number, own in zip(numbers, scores, strict=True):
                found[number] = own
            if on_progress is not None:
                on_progress(len(numbers))
    return found


@torch.no_grad()
def score_texts(
    model: HookedModel,
    texts: Rows,
    n_scored: Sequence[int],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> list[TokenScores]:
    """Score the last tokens of each text in one pass over it.

    Args:
        model: From `load_model`; it must have a language-modelling head.
        texts: Token ids of each text. The last one is scored and not read.
        n_scored: For each text how many of its tokens are scored, from the end.
        batch_size: Texts of a batch.
        on_progress: Called with the number of texts finished since the last call.

    Returns:
        Scores of each text, in order.

    Raises:
        ValueError: If a text does not fit the context, or a token to be scored has none before it.
        UnsupportedModelError: If the model cannot generate.
    """
    plain = generating(model)
    for number, (ids, n) in enumerate(zip(texts, n_scored, strict=True)):
        if not 1 <= n < len(ids):
            raise ValueError(
                f"n_scored[{number}] must be between 1 and the {len(ids)} tokens of its text less "
                f"one, got {n}; put a token before the text"
            )
    read = [ids[:-1] for ids in texts]
    require_room(model, read, 0)
    found: dict[int, TokenScores] = {}
    for batch in batches(read, batch_size, model.device):
        with stating_prompt(batch.input_ids.shape[1]):
            logits = run_batch(plain, batch.input_ids, batch.mask, cache=None, last_only=False)
        log_probs = logits.logits.float().log_softmax(dim=-1)
        for row, own in zip(batch.rows, log_probs, strict=True):
            n = n_scored[row]
            found[row] = _scores_of(own[-n:], texts[row][-n:])
        if on_progress is not None:
            on_progress(len(batch.rows))
    return [found[row] for row in range(len(texts))]


def _score(plain: Any, batch: Batch, continuations: list[Rows]) -> list[list[TokenScores]]:
    """Read the prompts once, then all continuations on copies of the cache."""
    n_each = len(continuations[0])
    flat = [list(ids) for own in continuations for ids in own]
    width = max(len(ids) for ids in flat)
    device = batch.input_ids.device
    n_prompt = batch.input_ids.shape[1]
    with stating_prompt(n_prompt):
        output = run_batch(plain, batch.input_ids, batch.mask, cache=None, last_only=True)
    logits = output.logits[:, -1:].repeat_interleave(n_each, dim=0)
    if width > 1:
        ids = torch.tensor([own + [0] * (width - len(own)) for own in flat], device=device)
        cache = output.past_key_values
        _require_copies(cache)
        cache.batch_repeat_interleave(n_each)
        mask = torch.cat(
            [batch.mask.repeat_interleave(n_each, dim=0), torch.ones_like(ids[:, :-1])], dim=1
        )
        with stating_prompt(n_prompt, copies=n_each):
            more = run_batch(plain, ids[:, :-1], mask, cache=cache, last_only=False).logits
        logits = torch.cat([logits, more], dim=1)
    log_probs = logits.float().log_softmax(dim=-1)
    scores = [_scores_of(log_probs[row, : len(own)], own) for row, own in enumerate(flat)]
    return [scores[start : start + n_each] for start in range(0, len(flat), n_each)]


def _scores_of(log_probs: Float[Tensor, "pos vocabulary"], tokens: Sequence[int]) -> TokenScores:
    wanted = torch.tensor(list(tokens), device=log_probs.device)
    own: list[float] = cast(Any, log_probs.gather(1, wanted[:, None])[:, 0]).tolist()
    greedy = bool((log_probs.argmax(dim=-1) == wanted).all())
    return TokenScores(log_probs=tuple(own), greedy=greedy)


def _require_copies(cache: Any) -> None:
    """Refuse a cache that holds more than keys and values."""
    for layer in cache.layers:
        if not hasattr(layer, "batch_repeat_interleave"):
            raise UnsupportedModelError(
                "a model must cache keys and values alone to score continuations of several "
                f"tokens, got a {type(layer).__name__}; use the read-out 'generation'"
            )
