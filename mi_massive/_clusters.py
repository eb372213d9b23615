"""Clusters of massive dimensions along a head, and whether two of them mirror each other."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clusters:
    """Clusters of each head. See `ProjectionSymmetry` for the meaning of each field."""

    count: Int[Tensor, "*head"]
    mirrored: Float[Tensor, "*head"]
    separation: Float[Tensor, "*head"]


def find_clusters(massive: Bool[Tensor, "*head dim"], *, n_pairs: int, max_gap: int) -> Clusters:
    """Group massive dimensions at most `max_gap` apart; see whether exactly two groups mirror.

    A cluster spans from its first to its last massive dimension. Two clusters mirror each other if
    the span of one, moved onto the other half by the partner map, meets the span of the other.
    Their separation is the distance between the means of their massive dimensions.

    Args:
        massive: Mask with the dimensions in `RotaryGeometry.half_order`: first members of all
            pairs, second members, then unrotated dimensions.
        n_pairs: Pairs of the head.
        max_gap: Largest step between neighbours of one cluster, in dimensions.

    Returns:
        Count 0, mirrored NaN for a head without massive dimensions; separation NaN unless there are
        exactly two clusters.
    """
    positions = torch.arange(massive.shape[-1])
    nowhere = -max_gap - 1
    latest = torch.where(massive, positions, nowhere).cummax(dim=-1).values
    previous = torch.cat([torch.full_like(latest[..., :1], nowhere), latest[..., :-1]], dim=-1)
    starts = massive & (positions - previous > max_gap)
    count, label = starts.sum(dim=-1), starts.cumsum(dim=-1)
    one, two = massive & (label == 1), massive & (label == 2)
    first, second = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    span_one, span_two = _span(one), _span(two)
    meet = (span_one[..., first] & span_two[..., second]).any(dim=-1)
    meet |= (span_one[..., second] & span_two[..., first]).any(dim=-1)
    distance = _mean_position(two) - _mean_position(one)
    return Clusters(
        count=count,
        mirrored=torch.where(count == 0, torch.nan, ((count == 2) & meet).float()),
        separation=torch.where(count == 2, distance, torch.nan),
    )


def mirrored_by_shift(
    massive: Bool[Tensor, "head dim"], *, n_pairs: int, max_gap: int
) -> Float[Tensor, "shift"]:
    """Heads with exactly two mirror clusters, at each circular shift of the second members.

    A shift keeps the clusters of each half (but for those cut at its end) and breaks the
    correspondence of the halves. Shift 0 is the head as it is.
    """
    halves = massive[:, : 2 * n_pairs].reshape(-1, 2, n_pairs)
    candidates = massive[halves.any(dim=-1).all(dim=-1)]  # no shift can mirror an empty half
    first, rest = candidates[:, :n_pairs], candidates[:, 2 * n_pairs :]
    second = candidates[:, n_pairs : 2 * n_pairs]
    shifted = torch.stack(
        [torch.cat([first, second.roll(-s, dims=-1), rest], dim=-1) for s in range(n_pairs)]
    )
    return find_clusters(shifted, n_pairs=n_pairs, max_gap=max_gap).mirrored.nansum(dim=-1)


def _span(members: Bool[Tensor, "*head dim"]) -> Bool[Tensor, "*head dim"]:
    marks = members.int()
    begun = marks.cummax(dim=-1).values
    unfinished = marks.flip(-1).cummax(dim=-1).values.flip(-1)
    return (begun & unfinished).bool()


def _mean_position(members: Bool[Tensor, "*head dim"]) -> Float[Tensor, "*head"]:
    positions = torch.arange(members.shape[-1], dtype=torch.float32)
    return (members * positions).sum(dim=-1) / members.sum(dim=-1)
