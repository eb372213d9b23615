"""Columns of data frames that several results share."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mi_massive.stats import Estimate


def estimate_columns(name: str, value: Estimate) -> dict[str, float]:
    """The effect under `name`, then its interval, p-value and n."""
    ends = {f"{name}_low": value.low, f"{name}_high": value.high, f"{name}_p": value.p_value}
    return {name: value.effect, **ends, f"{name}_n": value.n}


def seconds_frame(ways: Sequence[str], seconds: Float[Tensor, "round way"]) -> Any:
    """Times as a data frame (pandas), one row a way and round."""
    import pandas as pd

    rows = [
        {"way": way, "round": turn, "seconds": float(seconds[turn, column])}
        for column, way in enumerate(ways)
        for turn in range(len(seconds))
    ]
    return pd.DataFrame(rows)
