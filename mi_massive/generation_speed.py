"""What disrupted generation costs beside plain generation, and beside the published way.

Every way continues the same prompts by as many tokens. The published way is written here as the
published code works: one prompt at a time, and in each layer a Python loop over heads. It runs the
model's own attention kernel, which is faster than the published one. Ways are timed in turn within
one run; ratios are formed within a round.

Does not show the speed of another machine: quote ratios. What is gained over the published way
grows with the batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range
from mi_massive._columns import seconds_frame
from mi_massive.capture import provenance_of
from mi_massive.generation import Rows, generate
from mi_massive.interventions import disrupt
from mi_massive.models.attention import AttentionInputs, visiting
from mi_massive.models.base import HookedModel
from mi_massive.presets import preset
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.records import Provenance
from mi_massive.speed import in_turn
from mi_massive.stats import Estimate, estimate

PLAIN: Final = "plain generate"
WAYS: Final = (PLAIN, "disrupted generate", "published way")
"""What is timed: transformers' `generate` in batches, ours in the same batches under an edit, and
the same edit made head by head on one prompt after the other."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerationSpeedResult:
    """Times of the ways to continue the same prompts."""

    ways: tuple[str, ...]
    seconds: Float[Tensor, "round way"] = field(repr=False)
    """Wall time of each way in each round."""
    throughput: tuple[Estimate, ...]
    """Examples per second of each way divided by those of plain generation, median over rounds."""
    speedup: Estimate
    """Examples per second of ours divided by those of the published way, median over rounds."""
    k: int
    """Dimensions edited in each head of q and k, in the prompt."""
    n_prompts: int
    n_tokens_prompt: int
    """Tokens of each prompt."""
    n_tokens_new: int
    """Tokens that each way adds to each prompt."""
    batch_size: int
    n_threads: int
    provenance: Provenance

    def to_frame(self) -> Any:
        """Times as a data frame (pandas), one row a way and round."""
        return seconds_frame(self.ways, self.seconds)


def measure_generation_speed(
    model: HookedModel,
    *,
    n_prompts: int = 16,
    n_tokens_prompt: int = 128,
    n_tokens_new: int = 32,
    batch_size: int = 16,
    k: int = 4,
    n_rounds: int = 5,
) -> GenerationSpeedResult:
    """Time every way of `WAYS` on passages of the default set, cut to one length.

    Args:
        model: From `load_model`.
        n_prompts: Prompts to continue.
        n_tokens_prompt: Tokens of each.
        n_tokens_new: Tokens to add to each.
        batch_size: Prompts of a batch; the published way takes one at a time.
        k: Dimensions of each head that the edit replaces.
        n_rounds: Rounds after one that is not counted.

    Raises:
        ValueError: If there are fewer passages than prompts, or a passage is shorter than asked.
        RuntimeError: If an answer ends early: the ways would not do the same work.
    """
    passages = default_passages()
    require_in_range("n_prompts", n_prompts, low=1, high=len(passages), unit="passages")
    prompts = tokenize_prompts(model.tokenizer, passages[:n_prompts], max_length=n_tokens_prompt)
    for number, row in enumerate(prompts.input_ids):
        if len(row) < n_tokens_prompt:
            raise ValueError(
                f"n_tokens_prompt must not exceed the passages, got {n_tokens_prompt} for "
                f"passage {number} of {len(row)} tokens; ask for fewer"
            )
    ways = _ways(model, prompts.input_ids, n_tokens_new, batch_size, k)
    seconds = torch.tensor(in_turn(ways, n_rounds))
    # Examples per second are the inverse of the time: all ways continue the same prompts.
    relative = (seconds[:, :1] / seconds).double().numpy()
    against = (seconds[:, 2] / seconds[:, 1]).double().numpy()
    return GenerationSpeedResult(
        ways=WAYS,
        seconds=seconds,
        throughput=tuple(estimate(r, n_of="rounds", statistic="median") for r in relative.T),
        speedup=estimate(against, n_of="rounds", statistic="median"),
        k=k,
        n_prompts=n_prompts,
        n_tokens_prompt=n_tokens_prompt,
        n_tokens_new=n_tokens_new,
        batch_size=batch_size,
        n_threads=torch.get_num_threads(),
        provenance=provenance_of(model, prompts, batch_size=batch_size),
    )


def _ways(
    model: HookedModel, rows: Rows, n_new: int, batch_size: int, k: int
) -> Mapping[str, Callable[[], list[list[int]]]]:
    plain: Any = model.plain

    def complete(answers: list[list[int]]) -> list[list[int]]:
        short = [len(answer) for answer in answers if len(answer) < n_new]
        if short:
            raise RuntimeError(
                f"every answer must have {n_new} tokens to be timed, got {min(short)}; ask for "
                "fewer tokens"
            )
        return answers

    def transformers_own(size: int) -> list[list[int]]:
        answers: list[list[int]] = []
        for start in range(0, len(rows), size):
            batch = torch.tensor(rows[start : start + size], device=model.device)
            output = plain.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=n_new,
                do_sample=False,
                pad_token_id=0,
            )
            answers += output[:, batch.shape[1] :].tolist()
        return complete(answers)

    def ours() -> list[list[int]]:
        with disrupt(model, preset("paper", k=k)):
            return complete(generate(model, rows, max_new_tokens=n_new, batch_size=batch_size))

    def published() -> list[list[int]]:
        with visiting(model.plain, lambda seen: edited_head_by_head(seen, k)):
            return transformers_own(1)

    return dict(zip(WAYS, (lambda: transformers_own(batch_size), ours, published), strict=True))


def edited_head_by_head(seen: AttentionInputs, k: int) -> AttentionInputs | None:
    """The published edit of one layer: a prompt's k largest dimensions of each head to their mean.

    Only a pass that reads a prompt at once and alone is edited, as in the published code; keys are
    edited in the cache's own storage.

    Source:
        Jin et al. 2025, arXiv:2502.01563; written anew. Differs: k dimensions, each to its own
        mean over tokens.
    """
    if seen.query.shape[2] == 1:  # a generated token
        return None
    query = seen.query.clone()
    for states in (query, seen.key):
        for head in range(states.shape[1]):
            norms = cast(Tensor, states[0, head].float().norm(dim=0))
            for dim in norms.topk(k).indices.unbind():
                states[0, head, :, dim] = states[0, head, :, dim].mean()
    return replace(seen, query=query)
