"""Run prompts in batches and take greedy answers; `mi_massive.token_scores` scores given ones.

Rows are sorted by length, padded on the left and given back in order; batch size and padding change
nothing but rounding. Prompts that begin alike are read one by one, because an edit is chosen and
computed on the whole prompt, so that under it the same first tokens have other keys and values in
each: the intact model alone, one condition of many, could share them. Everything runs on the plain
model, so `disrupt` acts on it: the prompt is prefill, answers are decode.

Costs about what transformers' own `generate` costs. Does not show what a model says when sampled.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StopStringCriteria
from transformers.cache_utils import DynamicLayer

from mi_massive._checks import require_in_range
from mi_massive._prompt_batches import Batch, Reading, Rows, batches, generating, require_room
from mi_massive.models.base import HookedModel
from mi_massive.models.passes import stating_prompt


class _Stops(StopStringCriteria):
    """Ends rows at stop strings and notes when: what follows there is padding or runs on."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        try:
            super().__init__(tokenizer, list(stop))
        except ValueError as error:  # transformers' "substring not found"
            raise ValueError(
                f"stop must be empty for a {type(tokenizer).__name__} whose tokens transformers' "
                f"stop criterion cannot read, got {list(stop)}: {error}"
            ) from error
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
    answering = Answering(model, prompts, max_new_tokens=max_new_tokens, stop=stop)
    answers: list[list[int]] = [[] for _ in prompts]
    for batch in batches(prompts, batch_size, model.device):
        for row, ids in zip(batch.rows, answering.answer(batch)[0], strict=True):
            answers[row] = ids
        if on_progress is not None:
            on_progress(len(batch.rows))
    return answers


class Answering:
    """Greedy answers to batches of prompts.

    Args:
        model: From `load_model`; it must decode.
        prompts: All prompts that batches are made of.
        max_new_tokens: Tokens of an answer at most.
        stop: Texts that end an answer; they stay in it.

    Raises:
        ValueError: As `generate`.
        UnsupportedModelError: If the model cannot generate.
    """

    def __init__(
        self, model: HookedModel, prompts: Rows, *, max_new_tokens: int, stop: Sequence[str]
    ) -> None:
        self._plain = generating(model)
        require_in_range("max_new_tokens", max_new_tokens, low=1, high=1 << 20, unit="tokens")
        require_room(model, prompts, max_new_tokens)
        if stop and model.tokenizer is None:
            raise ValueError(
                f"stop must be empty for a model without a tokenizer, got {list(stop)}; "
                "leave it out"
            )
        self._ends = _end_ids(model)
        self._stops = _Stops(model.tokenizer, stop) if stop else None
        self._config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._ends or None,
            pad_token_id=_padding_id(model),
            return_dict_in_generate=True,
        )

    def answer(self, batch: Batch) -> tuple[list[list[int]], Reading | None]:
        """New token ids of each row, without padding and end of text, and what its prompt left.

        None instead of that if the cache cannot be cut back to the prompt.
        """
        n_prompt, stops, first = batch.input_ids.shape[1], self._stops, _FirstLogits()
        with _without_own_settings(self._plain), stating_prompt(n_prompt):
            output = self._plain.generate(
                batch.input_ids,
                attention_mask=batch.mask,
                generation_config=self._config,
                stopping_criteria=[stops] if stops else None,
                logits_processor=[first],
            )
        lengths = stops.take_lengths() if stops else [None] * len(batch.rows)
        new = output.sequences[:, n_prompt:].tolist()
        most = cast(int, self._config.max_new_tokens)
        answers = [
            _until_end(ids, self._ends, n or most) for ids, n in zip(new, lengths, strict=True)
        ]
        return answers, _reading(output.past_key_values, first.logits, n_prompt)


class _FirstLogits(LogitsProcessor):
    """Keeps the logits after the prompt, before anything else has touched them."""

    logits: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Pass the logits of each step on."""
        if self.logits is None:
            self.logits = scores
        return scores


def _reading(cache: Any, logits: Tensor | None, n_prompt: int) -> Reading | None:
    """Caches of sliding windows have forgotten, recurrent states cannot go back."""
    if logits is None or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.crop(n_prompt - int(cache.get_seq_length()))
    return Reading(logits=logits, cache=cache)


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
