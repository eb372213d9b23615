"""Prompts in left-padded batches through the plain model."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._checks import require_in_range, require_not_empty
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Left-padded prompts and where they stood."""

    rows: list[int]
    input_ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What reading the prompts of a batch leaves."""

    logits: Float[Tensor, "batch vocabulary"]
    """Of the token after each prompt."""
    cache: Any
    """Keys and values of the prompts alone."""


def batches(prompts: Rows, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Batches of prompts of similar length, the longest first, so that memory runs out at once."""
    require_in_range("batch_size", batch_size, low=1, high=1 << 20, unit="prompts")
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = len(prompts[rows[0]])
        ids = [[0] * (width - len(prompts[row])) + list(prompts[row]) for row in rows]
        mask = [[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows]
        yield Batch(rows, torch.tensor(ids, device=device), torch.tensor(mask, device=device))


def run_batch(plain: Any, input_ids: Tensor, mask: Tensor, *, cache: Any, last_only: bool) -> Any:
    """A pass over left-padded rows; with a cache, over what follows its prompt."""
    known = inspect.signature(plain.forward).parameters
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
    options: dict[str, Any] = {"use_cache": True}
    if "position_ids" in known:
        options["position_ids"] = positions
    if last_only and "logits_to_keep" in known:
        options["logits_to_keep"] = 1
    return plain(input_ids=input_ids, attention_mask=mask, past_key_values=cache, **options)


def generating(model: HookedModel) -> Any:
    """The plain model, if it can answer.

    Raises:
        UnsupportedModelError: If it is an encoder or has no language-modelling head.
    """
    plain = cast(Any, model.plain)
    if not (model.has_head and model.is_causal and plain.can_generate()):
        raise UnsupportedModelError(
            f"{model.name} must be a decoder with a language-modelling head to answer prompts, "
            f"got a {type(plain).__name__}"
        )
    return plain


def require_room(model: HookedModel, prompts: Rows, n_new: int | Sequence[int]) -> None:
    """Raise ValueError unless each prompt has a token and fits the context with its answer.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        n_new: Tokens that are read after each prompt: of all alike, or one number a prompt.
    """
    require_not_empty("prompts", prompts, remedy="give at least one")
    context = model.geometry.training_context
    more = [n_new] * len(prompts) if isinstance(n_new, int) else n_new
    for number, (ids, n) in enumerate(zip(prompts, more, strict=True)):
        if len(ids) == 0:
            raise ValueError(f"prompts[{number}] must have at least one token, got none")
        if context is not None and len(ids) + n > context:
            raise ValueError(
                f"prompts[{number}] with {n} new tokens must fit the model's context of "
                f"{context} tokens, got {len(ids)} + {n}; shorten the prompt or the answer"
            )
