"""Run prompts in batches: greedy answers, and log-probabilities of given continuations.

Rows are sorted by length, padded on the left and given back in order; batch size and padding change
nothing but rounding. A prompt is read once for all its continuations. Everything runs on the plain
model, so `disrupt` acts on it: the prompt is prefill, answers and continuations are decode.

Costs about what transformers' own `generate` costs. Does not show what a model says when sampled.
"""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import GenerationConfig, StopStringCriteria

from mi_massive._checks import require_in_range, require_not_empty
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.passes import stating_prompt

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Left-padded prompts and where they stood."""

    rows: list[int]
    input_ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]


class _Stops(StopStringCriteria):
    """Ends rows at stop strings and notes when: what follows there is padding or runs on."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        super().__init__(tokenizer, list(stop))
        self._ended: list[Bool[Tensor, "batch"]] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """True for the rows whose last token ends a stop string."""
        self._ended.append(super().__call__(input_ids, scores, **kwargs))
        return self._ended[-1]

    def take_lengths(self) -> list[int | None]:
        """New tokens of each row of the last batch; None where no stop string came."""
        ended: list[list[bool]] = cast(Any, torch.stack(self._ended).T).tolist()
        self._ended = []
        return [row.index(True) + 1 if True in row else None for row in ended]


@torch.no_grad()
def generate(
    model: HookedModel,
    prompts: Rows,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt greedily.

    Args:
        model: From `load_model`; it must decode.
        prompts: Token ids of each prompt.
        max_new_tokens: Tokens of an answer at most.
        stop: Texts that end an answer; they stay in it.
        batch_size: Prompts of a batch.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        The new token ids of each prompt, without padding and end of text.

    Raises:
        ValueError: If there are no prompts, a prompt and its answer do not fit the context, or
            there are stop strings and the model has no tokenizer.
        UnsupportedModelError: If the model cannot generate.
    """
    plain = _generating(model)
    require_in_range("max_new_tokens", max_new_tokens, low=1, high=1 << 20, unit="tokens")
    _require_room(model, prompts, max_new_tokens)
    if stop and model.tokenizer is None:
        raise ValueError(
            f"stop must be empty for a model without a tokenizer, got {list(stop)}; leave it out"
        )
    ends = _end_ids(model)
    stops = _Stops(model.tokenizer, stop) if stop else None
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=ends or None,
        pad_token_id=_padding_id(model),
    )
    answers: list[list[int]] = [[] for _ in prompts]
    for batch in _batches(prompts, batch_size, model.device):
        n_prompt = batch.input_ids.shape[1]
        with _without_own_settings(plain), stating_prompt(n_prompt):
            output = plain.generate(
                batch.input_ids,
                attention_mask=batch.mask,
                generation_config=config,
                stopping_criteria=[stops] if stops else None,
            )
        lengths = stops.take_lengths() if stops else [None] * len(batch.rows)
        for row, ids, n in zip(batch.rows, output[:, n_prompt:].tolist(), lengths, strict=True):
            answers[row] = _until_end(ids, ends, n or max_new_tokens)
        if on_progress is not None:
            on_progress(len(batch.rows))
    return answers


@torch.no_grad()
def continuation_log_probs(
    model: HookedModel,
    prompts: Rows,
    continuations: Sequence[Rows],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[list[float]]]:
    """Log-probability (nats) of each token of each continuation, given its prompt.

    Args:
        model: From `load_model`; it must have a language-modelling head.
        prompts: Token ids of each prompt.
        continuations: For each prompt the token ids of one or more continuations.
        batch_size: Prompts of a batch.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        `[prompt][continuation][token]`.

    Raises:
        ValueError: If a prompt has no continuation, one is empty, or they do not fit the context.
        UnsupportedModelError: If the model cannot generate, or it keeps a recurrent state that
            cannot be copied and a continuation has several tokens.
    """
    plain = _generating(model)
    if len(continuations) != len(prompts):
        raise ValueError(
            f"continuations must hold one entry a prompt ({len(prompts)}), got {len(continuations)}"
        )
    for number, own in enumerate(continuations):
        if not own or not all(own):
            raise ValueError(
                f"continuations[{number}] must hold at least one token each, got {list(own)}"
            )
    longest = max((len(ids) for own in continuations for ids in own), default=1)
    _require_room(model, prompts, longest)
    found: list[list[list[float]]] = [[] for _ in prompts]
    groups: dict[int, list[int]] = {}
    for number, own in enumerate(continuations):
        groups.setdefault(len(own), []).append(number)
    for group in groups.values():
        for batch in _batches([prompts[i] for i in group], batch_size, model.device):
            numbers = [group[row] for row in batch.rows]
            scores = _score(plain, batch, [continuations[i] for i in numbers])
            for number, own in zip(numbers, scores, strict=True):
                found[number] = own
            if on_progress is not None:
                on_progress(len(numbers))
    return found


def _score(plain: Any, batch: _Batch, continuations: list[Rows]) -> list[list[list[float]]]:
    """Read the prompts once, then all continuations on copies of the cache."""
    n_each = len(continuations[0])
    flat = [list(ids) for own in continuations for ids in own]
    width = max(len(ids) for ids in flat)
    device = batch.input_ids.device
    n_prompt = batch.input_ids.shape[1]
    with stating_prompt(n_prompt):
        output = _run(plain, batch.input_ids, batch.mask, cache=None, last_only=True)
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
            more = _run(plain, ids[:, :-1], mask, cache=cache, last_only=False).logits
        logits = torch.cat([logits, more], dim=1)
    log_probs = logits.float().log_softmax(dim=-1)
    scores = [
        [float(log_probs[row, place, token]) for place, token in enumerate(own)]
        for row, own in enumerate(flat)
    ]
    return [scores[start : start + n_each] for start in range(0, len(flat), n_each)]


def _require_copies(cache: Any) -> None:
    """Refuse a cache that holds more than keys and values."""
    for layer in cache.layers:
        if not hasattr(layer, "batch_repeat_interleave"):
            raise UnsupportedModelError(
                "a model must cache keys and values alone to score continuations of several "
                f"tokens, got a {type(layer).__name__}; use the read-out 'generation'"
            )


def _run(plain: Any, input_ids: Tensor, mask: Tensor, *, cache: Any, last_only: bool) -> Any:
    known = inspect.signature(plain.forward).parameters
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
    options: dict[str, Any] = {"use_cache": True}
    if "position_ids" in known:
        options["position_ids"] = positions
    if last_only and "logits_to_keep" in known:
        options["logits_to_keep"] = 1
    return plain(input_ids=input_ids, attention_mask=mask, past_key_values=cache, **options)


def _batches(prompts: Rows, batch_size: int, device: torch.device) -> Iterator[_Batch]:
    """Batches of prompts of similar length, the longest first, so that memory runs out at once."""
    require_in_range("batch_size", batch_size, low=1, high=1 << 20, unit="prompts")
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = len(prompts[rows[0]])
        ids = [[0] * (width - len(prompts[row])) + list(prompts[row]) for row in rows]
        mask = [[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows]
        yield _Batch(rows, torch.tensor(ids, device=device), torch.tensor(mask, device=device))


def _generating(model: HookedModel) -> Any:
    plain = cast(Any, model.plain)
    if not (model.has_head and model.is_causal and plain.can_generate()):
        raise UnsupportedModelError(
            f"{model.name} must be a decoder with a language-modelling head to answer prompts, "
            f"got a {type(plain).__name__}"
        )
    return plain


def _require_room(model: HookedModel, prompts: Rows, n_new: int) -> None:
    require_not_empty("prompts", prompts, remedy="give at least one")
    context = model.geometry.training_context
    for number, ids in enumerate(prompts):
        if len(ids) == 0:
            raise ValueError(f"prompts[{number}] must have at least one token, got none")
        if context is not None and len(ids) + n_new > context:
            raise ValueError(
                f"prompts[{number}] with {n_new} new tokens must fit the model's context of "
                f"{context} tokens, got {len(ids)} + {n_new}; shorten the prompt or the answer"
            )


@contextmanager
def _without_own_settings(plain: Any) -> Generator[None, None, None]:
    """Leave out a model's own generation settings, which fill in whatever a call does not name."""
    own = plain.generation_config
    plain.generation_config = GenerationConfig()
    try:
        yield
    finally:
        plain.generation_config = own


def _end_ids(model: HookedModel) -> list[int]:
    """Tokens that end an answer: the model's own, and the tokenizer's."""
    own = cast(Any, model.plain).generation_config.eos_token_id
    listed = cast("list[Any]", own) if isinstance(own, list) else [own]
    listed = [*listed, getattr(model.tokenizer, "eos_token_id", None)]
    return sorted({int(token) for token in listed if token is not None})


def _padding_id(model: HookedModel) -> int:
    """Never read: what follows an end is cut off. Some models have none."""
    padding = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if padding is None else int(padding)


def _until_end(ids: list[int], ends: list[int], n: int) -> list[int]:
    for place, token in enumerate(ids[:n]):
        if token in ends:
            return ids[:place]
    return ids[:n]
