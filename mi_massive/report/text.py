"""Numbers as the page writes them: three significant digits, intervals, p and undefined values."""

import math

from mi_massive.stats import Estimate

UNDEFINED = "undefined"
_MINUS = "\u2212"
_RESIDUE = 1e-12
"""Below this a mean of cancelling terms is zero up to rounding."""


def number(value: float) -> str:
    """Three significant digits, thousands grouped; `undefined` for NaN, 0 for rounding residue."""
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    if abs(value) < _RESIDUE:
        return "0"
    if abs(value) < 0.001:
        text = f"{value:.2e}"
    else:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        text = f"{value:,.{max(0, 3 - whole)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text and float(value).is_integer() else text
    return text.replace("-", _MINUS)


def interval(estimate: Estimate) -> str:
    """Both ends of the interval in brackets; `undefined` if neither is defined."""
    if math.isnan(estimate.low) and math.isnan(estimate.high):
        return UNDEFINED
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def with_interval(estimate: Estimate) -> str:
    """The estimate and its interval: `1.20 [1.10, 1.30]`."""
    return f"{number(estimate.effect)} {interval(estimate)}"


def level(estimate: Estimate) -> str:
    """The interval's level in per cent."""
    return f"{100 * estimate.level:g}\u00a0%"


def p_value(value: float) -> str:
    """Three decimals, `< 0.001` below that, `not tested` for NaN."""
    if math.isnan(value):
        return "not tested"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def null(estimate: Estimate) -> str:
    """The effect expected under the null hypothesis, or a dash where there is none."""
    return "–" if math.isnan(estimate.null) else number(estimate.null)


def counted(estimate: Estimate) -> str:
    """What was counted: `270 heads`, `1 layer`."""
    unit = estimate.n_of.removesuffix("s") if estimate.n == 1 else estimate.n_of
    return f"{estimate.n:,} {unit}"


def printable(value: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold."""
    return value.encode("utf-8", errors="replace").decode("utf-8")
