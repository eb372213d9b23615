"""The tests behind `symmetry`: first against second members of rotary pairs, and their nulls.

A table holds, for the pairs p and p' of one layer, what first member p and second member p' add to
a statistic when they are partners, summed over heads. Its trace is what is observed. Both nulls
move the second members of all layers alike; there are only as many circular shifts as pairs, so
that a p against them is never below about 1 / n_pairs.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mi_massive._pairs import PairConfig, layer_share, permuted_traces, shifted_sums
from mi_massive.stats import Estimate

Null = Literal["permuted", "shifted"]

_NULL_NAMES: dict[Null, str] = {
    "permuted": "partners permuted, alike in all layers",
    "shifted": "partners shifted circularly, alike in all layers (p at least about 1 / pairs)",
}


def standard_ranks(members: Float[Tensor, "head pair 2"]) -> Float[Tensor, "head pair 2"]:
    """Ranks over pairs, centred and of length one: their inner product is Spearman's correlation.

    NaN for a member that is constant over the pairs.
    """
    import scipy.stats  # late: see `mi_massive.stats`

    ranks: Tensor = torch.from_numpy(np.asarray(scipy.stats.rankdata(members.numpy(), axis=1)))
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    return centred / centred.square().sum(dim=1, keepdim=True).sqrt()


def correlations(ranks: Float[Tensor, "head pair 2"]) -> Float[Tensor, "head"]:
    """Spearman correlation of first and second members, from their standard ranks."""
    return ranks.prod(dim=-1).sum(dim=-1)


def partner_table(members: Float[Tensor, "head pair 2"]) -> Float[Tensor, "pair pair"]:
    """Products of first members with all second members, summed over heads where defined."""
    first, second = members.unbind(dim=-1)
    defined = ~torch.isnan(first + second).any(dim=-1)
    return first[defined].T @ second[defined]


def table_share(
    tables: list[Float[Tensor, "_ _"]],
    wholes: Shaped[Tensor, "layer"],
    *,
    null: Null,
    config: PairConfig,
) -> Estimate:
    """Sum of the tables' traces over the sum of `wholes`; interval over layers, one-sided p."""
    arrays = [table.double().numpy() for table in tables]
    if null == "permuted":
        draws, expected = permuted_traces(arrays, config=config)
    else:
        draws, expected = shifted_sums([_by_shift(array) for array in arrays], config=config)
    return layer_share(
        np.array([array.trace() for array in arrays]),
        wholes.double().numpy(),
        draws=draws,
        null=expected,
        null_name=_NULL_NAMES[null],
        config=config,
    )


def shift_share(
    by_shift: list[Float[Tensor, "_"]], wholes: Shaped[Tensor, "layer"], *, config: PairConfig
) -> Estimate:
    """The same for a statistic given at each circular shift of the second members."""
    arrays = [values.double().numpy() for values in by_shift]
    draws, expected = shifted_sums(arrays, config=config)
    return layer_share(
        np.array([array[0] for array in arrays]),
        wholes.double().numpy(),
        draws=draws,
        null=expected,
        null_name=_NULL_NAMES["shifted"],
        config=config,
    )


def _by_shift(table: Float[np.ndarray, "pair pair"]) -> Float[np.ndarray, "shift"]:
    pairs = np.arange(len(table))
    return table[pairs, (pairs + pairs[:, None]) % len(table)].sum(axis=1)
