"""Which tokens one forward pass of a model computes: fresh or cached, real or padding, where.

Generation runs a model many times: once (or in chunks) over the prompt, then once a token. What
an edit may touch is decided by a token's column in the batch, never by the length of a pass: a
prompt can have one token, and can be read in chunks.
"""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class ForwardPass:
    """The columns that one forward pass adds to a batch."""

    start: int
    """Columns that the cache holds already; 0 at the beginning of a prompt."""
    real: Bool[Tensor, "batch pos"]
    """False at padding."""
    first: Bool[Tensor, "batch pos"]
    """True at the first real token of each row, if it is among these columns."""
    positions: Int[Tensor, "batch pos"]
    """Position of each token, as the model rotates it."""
    n_prompt: int | None = None
    """Columns of the prompt, padding included, where the caller has stated it."""
    copies: int = 1
    """Rows that continue each row of the prompt, next to each other."""
    ids: Int[Tensor, "batch pos"] | None = None
    """Token ids, where the pass is given them."""

    @property
    def stop(self) -> int:
        """Columns after this pass."""
        return self.start + self.real.shape[1]


def refuse_rereading(now: ForwardPass, earlier: ForwardPass | None) -> None:
    """Raise if a pass reads the text of an earlier one again, and one token more.

    So generates a model without a cache; which of its tokens are prompt, nobody has stated.

    Raises:
        RuntimeError: If so.
    """
    if now.n_prompt is not None or earlier is None or now.ids is None or earlier.ids is None:
        return
    longer = earlier.start == 0 and now.ids.shape[1] == earlier.ids.shape[1] + 1
    same_rows = longer and len(now.ids) == len(earlier.ids)
    if same_rows and torch.equal(now.ids[:, :-1], earlier.ids):
        raise RuntimeError(
            "prompt_length must be stated for generation without a cache, got a pass that reads "
            "the last one again with one token more, which would be edited as a prompt; state it, "
            "keep the cache, or open a context for each prompt"
        )


_stated: ContextVar[tuple[int | None, int]] = ContextVar("stated", default=(None, 1))


@contextmanager
def stating_prompt(n_prompt: int, *, copies: int = 1) -> Generator[None, None, None]:
    """State how many columns of the passes inside the context are prompt.

    Args:
        n_prompt: Columns of the prompt, padding included.
        copies: Rows that each row of the prompt was copied to, once it was read.
    """
    token = _stated.set((n_prompt, copies))
    try:
        yield
    finally:
        _stated.reset(token)


@contextmanager
def noting_passes(
    model: PreTrainedModel, note: Callable[[ForwardPass], None]
) -> Generator[None, None, None]:
    """Call `note` before every forward pass of a plain transformers model inside the context."""
    # The innermost module that still gets the mask and the cache: some models pass the outer by.
    body = cast(nn.Module, cast(Any, model).get_decoder())
    signature = inspect.signature(body.forward)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind_partial(*args, **kwargs).arguments
        note(_forward_pass(given | given.get("kwargs", {})))

    handle = body.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def whole_prompt(
    n_batch: int, n_pos: int, attention_mask: Int[Tensor, "batch pos"] | None, device: torch.device
) -> ForwardPass:
    """The pass of a TransformerLens model that reads whole prompts at once, without a cache."""
    given: dict[str, Any] = {"inputs_embeds": torch.empty(n_batch, n_pos, device=device)}
    if attention_mask is not None:
        # TransformerLens counts positions from the first real token.
        places = (attention_mask.to(device).cumsum(dim=1) - 1).clamp_min(0)
        given |= {"attention_mask": attention_mask, "position_ids": places}
    return _forward_pass(given)


def _forward_pass(given: dict[str, Any]) -> ForwardPass:
    tokens = given.get("input_ids")
    tokens = given["inputs_embeds"] if tokens is None else tokens
    (n_batch, n_pos), device = tokens.shape[:2], tokens.device
    cache = given.get("past_key_values")
    if getattr(cache, "is_compileable", False):
        raise ValueError(
            f"past_key_values must grow with the text, got a {type(cache).__name__} of fixed size; "
            "use a DynamicCache"
        )
    start = 0 if cache is None else int(cache.get_seq_length())
    mask = given.get("attention_mask")
    if mask is not None and mask.shape != (n_batch, start + n_pos):
        raise ValueError(
            f"attention_mask must be [batch, pos] over all {start + n_pos} columns, got shape "
            f"{tuple(mask.shape)}; pass 1 for real tokens and 0 for padding"
        )
    if mask is None:
        mask = torch.ones(n_batch, start + n_pos, dtype=torch.bool, device=device)
    real = mask.bool().to(device)
    first = real & (real.cumsum(dim=1) == 1)
    positions = given.get("position_ids")
    if positions is None:
        if start == 0 and not bool(real[:, 0].all()):
            raise ValueError(
                "position_ids must be given for prompts that are padded on the left, got none: the "
                "model counts columns, and what is edited depends on position; pass "
                "(attention_mask.cumsum(1) - 1).clamp_min(0)"
            )
        positions = torch.arange(start, start + n_pos, device=device)[None]
    return ForwardPass(
        start=start,
        real=real[:, start:],
        first=first[:, start:],
        positions=_of_text(positions, real[:, start:]).expand(n_batch, n_pos),
        n_prompt=_stated.get()[0],
        copies=_stated.get()[1],
        ids=given.get("input_ids"),
    )


def _of_text(
    positions: Int[Tensor, "*axis _ pos"], real: Bool[Tensor, "batch pos"]
) -> Int[Tensor, "_ pos"]:
    """Positions of a text, also where a model has several position axes (M-RoPE)."""
    if positions.ndim == 2:
        return positions
    if bool((positions[:, real] != positions[:1, real]).any()):
        raise ValueError(
            "position_ids must be equal on all position axes, as for a text, got different ones; "
            "leave out pictures and videos"
        )
    return positions[0]
