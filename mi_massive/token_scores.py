"""How probable a model finds given tokens: those of continuations of a prompt, or of a text.

A continuation is scored on the cache of its prompt, which is read once for all of them; a text is
read at once and scored as it goes. So under an edit of the prompt a continuation is decode, and a
text is prompt throughout. Rows are sorted by length, padded on the left and given back in order;
batch size and padding change nothing but rounding. Everything runs on the plain model, so `disrupt`
acts on it.

Does not show: what a model would say itself; `mi_massive.generation` has that, and
`answer_and_score` both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._prompt_batches import (
    Batch,
    Reading,
    Rows,
    batches,
    generating,
    require_room,
    run_batch,
)
from mi_massive.generation import Answering
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
    found: list[list[TokenScores]] = [[] for _ in prompts]
    for batch, own in _batches(model, prompts, continuations, batch_size):
        scores = _score(plain, batch, own, _read(plain, batch))
        _put(found, batch, scores, on_progress)
    return found


@torch.no_grad()
def answer_and_score(
    model: HookedModel,
    prompts: Rows,
    continuations: Sequence[Rows],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[list[int]], list[list[TokenScores]]]:
    """`generate` and `score_continuations` on one reading of each prompt.

    A model whose cache cannot be cut back to the prompt reads it twice.

    Args:
        model: From `load_model`; it must have a language-modelling head.
        prompts: Token ids of each prompt.
        continuations: For each prompt the token ids of one or more continuations.
        max_new_tokens: Tokens of an answer at most.
        stop: Texts that end an answer; they stay in it.
        batch_size: Prompts of a batch.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        The new token ids of each prompt, and the scores `[prompt][continuation]`.

    Raises:
        ValueError: As the two functions.
        UnsupportedModelError: As the two functions.
    """
    answering = Answering(model, prompts, max_new_tokens=max_new_tokens, stop=stop)
    plain = generating(model)
    answers: list[list[int]] = [[] for _ in prompts]
    found: list[list[TokenScores]] = [[] for _ in prompts]

    def answered_and_scored(batch: Batch, own: list[Rows]) -> list[list[TokenScores]]:
        # Its cache is gone before that of the next batch is made.
        new, reading = answering.answer(batch)
        for row, ids in zip(batch.rows, new, strict=True):
            answers[row] = ids
        return _score(plain, batch, own, reading or _read(plain, batch))

    for batch, own in _batches(model, prompts, continuations, batch_size):
        _put(found, batch, answered_and_scored(batch, own), on_progress)
    return answers, found


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


def _batches(
    model: HookedModel, prompts: Rows, continuations: Sequence[Rows], batch_size: int
) -> Iterator[tuple[Batch, list[Rows]]]:
    """Batches of prompts with equally many continuations, and these."""
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
    groups: dict[int, list[int]] = {}
    for number, own in enumerate(continuations):
        groups.setdefault(len(own), []).append(number)
    for group in groups.values():
        for batch in batches([prompts[i] for i in group], batch_size, model.device):
            rows = [group[row] for row in batch.rows]
            yield replace(batch, rows=rows), [continuations[i] for i in rows]


def _put(
    found: list[list[TokenScores]],
    batch: Batch,
    scores: list[list[TokenScores]],
    on_progress: Callable[[int], None] | None,
) -> None:
    for row, own in zip(batch.rows, scores, strict=True):
        found[row] = own
    if on_progress is not None:
        on_progress(len(batch.rows))


def _read(plain: Any, batch: Batch) -> Reading:
    with stating_prompt(batch.input_ids.shape[1]):
        output = run_batch(plain, batch.input_ids, batch.mask, cache=None, last_only=True)
    return Reading(logits=output.logits[:, -1], cache=output.past_key_values)


def _score(
    plain: Any, batch: Batch, continuations: list[Rows], reading: Reading
) -> list[list[TokenScores]]:
    """Score all continuations on copies of the prompts' cache."""
    n_each = len(continuations[0])
    flat = [list(ids) for own in continuations for ids in own]
    width = max(len(ids) for ids in flat)
    logits = reading.logits[:, None].repeat_interleave(n_each, dim=0)
    if width > 1:
        ids = torch.tensor(
            [own + [0] * (width - len(own)) for own in flat], device=batch.input_ids.device
        )
        _require_copies(reading.cache)
        reading.cache.batch_repeat_interleave(n_each)
        mask = torch.cat(
            [batch.mask.repeat_interleave(n_each, dim=0), torch.ones_like(ids[:, :-1])], dim=1
        )
        with stating_prompt(batch.input_ids.shape[1], copies=n_each):
            more = run_batch(plain, ids[:, :-1], mask, cache=reading.cache, last_only=False).logits
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
