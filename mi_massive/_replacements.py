"""What an intervention puts in place of the chosen entries.

Pure tensor arithmetic over one batch; padding never enters, and no row sees another. Everything
that needs the whole prompt (a mean, a permutation) is taken from its real tokens.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_massive._checks import require_finite

Replacement = Literal[
    "mean",
    "mean_after_first",
    "joint_mean",
    "zero",
    "dataset_mean",
    "resampled",
    "shuffled",
]
"""What replaces an entry of a chosen dimension:

- `mean`: the dimension's mean over the prompt's tokens.
- `mean_after_first`: the same without the first token, which holds the attention sink.
- `joint_mean`: one mean over the tokens *and* all chosen dimensions of the head.
- `zero`.
- `dataset_mean`: the dimension's mean over the tokens of a capture.
- `resampled`: the entry of another prompt at the same place (the other prompt is repeated, without
  its first token, where it is shorter).
- `shuffled`: the entry of another token of the prompt, by a seeded permutation.
"""

NEEDS_PROMPT: Final = ("mean", "mean_after_first", "joint_mean", "shuffled", "resampled")
"""Replacements that are taken from a whole prompt."""
PREFILL_ONLY: Final = ("shuffled", "resampled")
"""Replacements that have no meaning for a generated token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """What replaces the chosen entries, and how far.

    entry + strength * (replacement - entry)
    """

    kind: Replacement = "mean"
    strength: float = 1.0
    """1 replaces, 0 leaves, above 1 overshoots."""
    seed: int = 0
    """Of `shuffled`."""

    def __post_init__(self) -> None:
        """Refuse a strength that is no number."""
        require_finite("strength", torch.tensor(self.strength), remedy="1 replaces, 0 leaves")

    @classmethod
    def scaled(cls, alpha: float) -> "Value":
        """Entries multiplied by `alpha`: 0 removes, 1 leaves."""
        return cls(kind="zero", strength=1.0 - alpha)


def prompt_mean(
    states: Float[Tensor, "batch head pos d_head"], tokens: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch head 1 d_head"]:
    """Mean over the given tokens; zero for a row without any."""
    weights = tokens.to(torch.float32)
    total = torch.einsum("bhtd,bt->bhd", _zeroed(states, tokens), weights)
    return (total / weights.sum(dim=1).clamp_min(1)[:, None, None])[:, :, None]


def joint_mean(
    states: Float[Tensor, "batch head pos d_head"],
    tokens: Bool[Tensor, "batch pos"],
    chosen: Bool[Tensor, "batch head d_head"],
) -> Float[Tensor, "batch head 1 1"]:
    """Mean over the given tokens and the chosen dimensions of each head."""
    means = prompt_mean(states, tokens)[:, :, 0]
    picked = means.where(chosen, torch.zeros((), device=means.device)).sum(dim=-1)
    return (picked / chosen.sum(dim=-1).clamp_min(1))[..., None, None]


def prompt_norms(
    states: Float[Tensor, "batch head pos d_head"], tokens: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch head d_head"]:
    """L2 norm over the given tokens, float32."""
    squares = _zeroed(states, tokens).square()
    return torch.einsum("bhtd,bt->bhd", squares, tokens.to(torch.float32)).sqrt()


def shuffled(
    states: Float[Tensor, "batch head pos d_head"],
    tokens: Bool[Tensor, "batch pos"],
    seed: int,
) -> Float[Tensor, "batch head pos d_head"]:
    """Each row's tokens in another order, which depends on the seed and their number alone."""
    source = torch.arange(states.shape[2], device=states.device).repeat(len(states), 1)
    for row, real in enumerate(tokens):
        columns = real.nonzero()[:, 0]
        order = np.random.default_rng([seed, len(columns)]).permutation(len(columns))
        source[row, columns] = columns[torch.from_numpy(order).to(columns.device)]
    return states.gather(2, source[:, None, :, None].expand_as(states))


def resampled(
    states: Float[Tensor, "batch head pos d_head"],
    tokens: Bool[Tensor, "batch pos"],
    donor: Float[Tensor, "head donor_pos d_head"],
) -> Float[Tensor, "batch head pos d_head"]:
    """The donor's states, its first token for the first token, the others in turn for the others.

    Raises:
        ValueError: If the donor has fewer than two tokens.
    """
    n_donor = donor.shape[1]
    if n_donor < 2:
        raise ValueError(f"donor must have at least two tokens, got {n_donor}; give a longer text")
    places = (tokens.cumsum(dim=1) - 1).clamp_min(0)
    places = torch.where(places == 0, places, 1 + (places - 1) % (n_donor - 1))
    return donor.to(states)[:, places].transpose(0, 1)


def _zeroed(states: Tensor, tokens: Tensor) -> Tensor:
    """Float32, with padding at zero, lest a NaN of it enters a sum."""
    return states.float().masked_fill(~tokens[:, None, :, None], 0.0)
