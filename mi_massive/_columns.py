"""Columns of data frames that several results share."""

from mi_massive.stats import Estimate


def estimate_columns(name: str, value: Estimate) -> dict[str, float]:
    """The effect under `name`, then its interval, p-value and n."""
    ends = {f"{name}_low": value.low, f"{name}_high": value.high, f"{name}_p": value.p_value}
    return {name: value.effect, **ends, f"{name}_n": value.n}
