"""The scoreboard and provenance for machines: `summary.json`."""

import dataclasses
import math
from typing import Any

from mi_massive.claims import Claim
from mi_massive.report.results import ReportResults


def summary(results: ReportResults) -> dict[str, Any]:
    """Keys `model`, `claims` and `provenance`; an undefined or infinite number is None.

    A claim has `id`, `statement`, `verdict`, `effect`, `interval` (low, high), `level`, `n`,
    `n_of`, `test`, `p_value`, `null`, `quantity` and `reading`. `provenance` is
    that of the capture, with the settings of each analysis under `config`.
    """
    scoreboard = results.scoreboard
    return {
        "model": scoreboard.provenance.model,
        "claims": [_claim(claim) for claim in scoreboard.claims],
        "provenance": dataclasses.asdict(scoreboard.provenance) | {"config": results.configs},
    }


def _claim(claim: Claim) -> dict[str, Any]:
    estimate = claim.estimate
    return {
        "id": claim.id,
        "statement": claim.statement,
        "verdict": claim.verdict,
        "effect": _finite(estimate.effect),
        "interval": [_finite(estimate.low), _finite(estimate.high)],
        "level": estimate.level,
        "n": estimate.n,
        "n_of": estimate.n_of,
        "test": estimate.test,
        "p_value": _finite(estimate.p_value),
        "null": _finite(estimate.null),
        "quantity": claim.quantity,
        "reading": claim.reading,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
