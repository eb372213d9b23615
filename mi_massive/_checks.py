"""Value checks with one wording: `<argument> must <rule>, got <value> at <where>; <what to do>`.

Types and shapes are checked by beartype and jaxtyping; only values are checked here.
"""

import math
from collections.abc import Sized

import torch
from jaxtyping import Shaped
from torch import Tensor


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and greater than zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and positive, got {value}")


def require_in_range(name: str, value: int, *, low: int, high: int, unit: str) -> None:
    """Raise ValueError unless `low <= value <= high`; `unit` says what is being counted."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high} ({unit}), got {value}")


def require_not_empty(name: str, values: Sized, *, remedy: str) -> None:
    """Raise ValueError if `values` has no element."""
    if len(values) == 0:
        raise ValueError(f"{name} must not be empty; {remedy}")


def require_finite(name: str, values: Shaped[Tensor, "..."], *, remedy: str) -> None:
    """Raise ValueError at the first NaN or infinite entry, naming its index."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        value = float(values[index])
        raise ValueError(f"{name} must be finite, got {value} at index {index}; {remedy}")
