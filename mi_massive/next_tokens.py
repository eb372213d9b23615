"""What a model would say next: its most probable token, and the log-probability of given ones.

One pass a prompt, batched by length. Everything runs on the plain model, so `disrupt` acts on it.

Does not show: an answer of several tokens; `mi_massive.generation` has those.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mi_massive._prompt_batches import Rows, batches, generating, require_room, run_batch
from mi_massive.models.base import HookedModel
from mi_massive.models.passes import stating_prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken:
    """What follows one prompt."""

    top: int
    """The most probable token of all; the first of those that tie."""
    log_probs: tuple[float, ...]
    """In nats, of the tokens that were asked about, in their order; NaN if the model gives NaN."""


@torch.no_grad()
def next_tokens(
    model: HookedModel,
    prompts: Rows,
    asked: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> list[NextToken]:
    """Read the next token after each prompt.

    Args:
        model: From `load_model`; it must have a language-modelling head.
        prompts: Token ids of each prompt.
        asked: For each prompt the tokens whose log-probability is wanted.
        batch_size: Prompts of a batch; changes nothing but rounding.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        One reading a prompt, in order.

    Raises:
        ValueError: If there are no prompts, one does not fit the context, or `asked` does not hold
            one entry a prompt.
        UnsupportedModelError: If the model cannot generate.
    """
    plain = generating(model)
    if len(asked) != len(prompts):
        raise ValueError(f"asked must hold one entry a prompt ({len(prompts)}), got {len(asked)}")
    require_room(model, prompts, 1)
    found: dict[int, NextToken] = {}
    for batch in batches(prompts, batch_size, model.device):
        with stating_prompt(batch.input_ids.shape[1]):
            output = run_batch(plain, batch.input_ids, batch.mask, cache=None, last_only=True)
        log_probs = output.logits[:, -1].float().log_softmax(dim=-1).cpu()
        for row, scores in zip(batch.rows, log_probs, strict=True):
            wanted = tuple(float(scores[token]) for token in asked[row])
            found[row] = NextToken(top=int(scores.argmax()), log_probs=wanted)
        if on_progress is not None:
            on_progress(len(batch.rows))
    return [found[row] for row in range(len(prompts))]
