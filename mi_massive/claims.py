"""From results to verdicts on the paper's claims.

One function a claim says which estimate decides it and puts the numbers into words; one rule for
all (`mi_massive._verdicts.decide`) gives the verdict. A claim that a result cannot decide is
inconclusive, never supported by default.

Only twins show causes (C3b, C8e, C9b): the rest of C8 is the observational part of "RoPE causes
it", and C3 compares two models that differ in more than their position encoding.

Source of the claims: Jin et al. 2025, arXiv:2502.01563.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mi_massive._brief import Brief
from mi_massive._concentration_tests import contrast
from mi_massive._conflict_claims import edit_findings
from mi_massive._method_claims import method_findings
from mi_massive._quantization_claims import quantization_findings
from mi_massive._twin_claims import twin_findings
from mi_massive._verdicts import (
    NONE_SHARE,
    RULES,
    Verdict,
    decide_all,
    massive_per_head,
    mostly_unrotated,
    peak,
    peaks,
    percent,
    require_control,
    require_same_capture,
)
from mi_massive.bands import BandsResult
from mi_massive.concentration import ConcentrationResult
from mi_massive.conflict import ConflictResult
from mi_massive.disruption import DisruptionResult
from mi_massive.fluency import FluencyResult
from mi_massive.protection import StateQuantizationResult
from mi_massive.quantization_results import QuantizationResult
from mi_massive.records import Provenance
from mi_massive.stats import Estimate
from mi_massive.symmetry import SymmetryResult
from mi_massive.twin_results import TwinsResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One row of the scoreboard."""

    id: str
    """C1..C9, with a letter where a claim has several parts: C8a."""
    statement: str
    verdict: Verdict
    estimate: Estimate
    """The estimate that decides the verdict."""
    quantity: str
    """What `estimate.effect` measures, with its unit."""
    reading: str
    """What was found in plain words, also against the paper."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ScoreboardResult(Brief):
    """Verdicts on the claims for one model."""

    claims: tuple[Claim, ...]
    provenance: Provenance

    def to_frame(self) -> Any:
        """Scoreboard as a data frame, one row a claim."""
        import pandas as pd

        rows = [dataclasses.asdict(claim) for claim in self.claims]
        return pd.DataFrame([row | row.pop("estimate") for row in rows])


def scoreboard(
    concentration: ConcentrationResult,
    *,
    bands: BandsResult | None = None,
    symmetry: SymmetryResult | None = None,
    control: ConcentrationResult | None = None,
    disruption: DisruptionResult | None = None,
    conflict: ConflictResult | None = None,
    fluency: FluencyResult | None = None,
    quantization: StateQuantizationResult | None = None,
    quantized: QuantizationResult | None = None,
    twins: Sequence[TwinsResult] = (),
) -> ScoreboardResult:
    """Judge the claims on one model.

    A claim about q and k must hold in both: the verdict is that of the weaker one, whose estimate
    is reported with the larger p of the two. What is missing makes its claims inconclusive, with
    the reason in the reading.

    Args:
        concentration: Of the model.
        bands: Of the same capture; None for a model that does not rotate.
        symmetry: Of the same capture; None for a model that does not rotate.
        control: Of a model without rotary position embeddings, on the same prompts.
        disruption: Of the same model; without it C4 and C5 have no row.
        conflict: Of the same model; without it C6 has no row.
        fluency: Of the same model; judges C5b in the place of the tasks' answers.
        quantization: Of the same model; without it C7a and C7b have no row.
        quantized: Of the same model; without it C7c and C7d have no row.
        twins: Sets of small models of their own: the first judges C3b and C9b, all together C8e;
            without them these have no row.

    Returns:
        One row a claim, some in parts.

    Raises:
        ValueError: If `bands` or `symmetry` come from another capture, `control` rotates or has
            another number of prompts, or `disruption`, `conflict`, `fluency`, `quantization` or
            `quantized` come from another model.
    """
    for name, result in (("bands", bands), ("symmetry", symmetry)):
        if result is not None:
            require_same_capture(name, result.provenance, concentration.provenance)
    if control is not None:
        require_control(control, concentration)
    claims = (
        *(_claim(*found) for found in edit_findings(concentration, disruption, conflict, fluency)),
        *(_claim(*found) for found in quantization_findings(quantization, concentration)),
        *(_claim(*found) for found in method_findings(quantized, concentration)),
        *(_claim(*found) for found in twin_findings(twins)),
        _concentrated(concentration),
        _heads_close(concentration),
        _absent_without_rope(concentration, control),
        _low_frequency(concentration, bands),
        _symmetric_over_heads(concentration, symmetry),
        _partial_cycle(concentration, bands),
        _symmetric_in_heads(concentration, symmetry),
        _from_first_layer(concentration),
    )
    claims = tuple(sorted(claims, key=lambda claim: list(RULES).index(claim.id)))
    return ScoreboardResult(claims=claims, provenance=concentration.provenance)


def _concentrated(result: ConcentrationResult) -> Claim:
    """C1. Support is withheld if v holds more than `NONE_SHARE` of q's or of k's massive ones."""
    q, k, v = (massive_per_head(part) for part in (result.q, result.k, result.v))
    few_in_v = v <= NONE_SHARE * min(q, k)
    reading = (
        f"The largest norm of a head is {peak(result.q):.2f} (q) and {peak(result.k):.2f} (k) "
        f"times its mean norm against {peak(result.v):.2f} in v; q, k and v hold {q:.2f}, {k:.2f} "
        f"and {v:.2f} massive dimensions per head."
    )
    return _claim(
        "C1",
        [result.contrast_q, result.contrast_k],
        reading,
        withheld=None if few_in_v else "v holds more than a tenth as many as q or k",
    )


def _heads_close(result: ConcentrationResult) -> Claim:
    """C2. A projection with one head a layer has no other head to be close to and is left out."""
    parts = {"q": result.q.head_overlap, "k": result.k.head_overlap, "v": result.v.head_overlap}
    defined = {name: e for name, e in parts.items() if not math.isnan(e.effect)}
    distances = ", ".join(f"{1 - e.effect:.2f} in {name}" for name, e in defined.items())
    reading = (
        "The distance between the largest dimensions of two heads of a layer, in multiples of that "
        f"by chance: {distances or 'undefined, with one head a layer'}."
    )
    return _claim("C2", [e for name, e in defined.items() if name != "v"], reading)


def _absent_without_rope(result: ConcentrationResult, control: ConcentrationResult | None) -> Claim:
    """C3. Support is withheld if the control holds more than `NONE_SHARE` of the model's."""
    if not result.rotating_layers:
        own = f"max/mean in q is {result.contrast_q.effect:.2f} times that in v"
        return _claim("C3", [], f"This model does not rotate and could only be the control; {own}.")
    if control is None:
        return _claim("C3", [], "No model without rotary position embeddings was measured.")
    q, k = massive_per_head(control.q), massive_per_head(control.k)
    allowed = [NONE_SHARE * massive_per_head(part) for part in (result.q, result.k)]
    reading = (
        f"max/mean of a head is {peak(result.q):.2f} (q) and {peak(result.k):.2f} (k), in the "
        f"control {control.provenance.model} {peak(control.q):.2f} and {peak(control.k):.2f} "
        f"with {q:.2f} and {k:.2f} massive dimensions per head. One control that differs in more "
        "than its position encoding is weak evidence."
    )
    return _claim(
        "C3",
        [
            contrast(peaks(result.q), peaks(control.q), result.config),
            contrast(peaks(result.k), peaks(control.k), result.config),
        ],
        reading,
        withheld=None if q <= allowed[0] and k <= allowed[1] else "the control holds them too",
    )


def _low_frequency(result: ConcentrationResult, bands: BandsResult | None) -> Claim:
    """C8a."""
    if bands is None:
        return _claim("C8a", [], _not_measured(result, "frequency bands"))
    q, k, v = bands.q, bands.k, bands.v
    reading = (
        f"The slower half of the pairs holds {percent(q.massive_low_half_share)} (q) and "
        f"{percent(k.massive_low_half_share)} (k) of the massive dimensions, and of the energy "
        f"{percent(q.low_half_share)} (q), {percent(k.low_half_share)} (k) and "
        f"{percent(v.low_half_share)} (v)."
    )
    shares = [q.massive_low_half_share, k.massive_low_half_share]
    return _claim("C8a", shares, reading, undecided=mostly_unrotated(bands))


def _symmetric_over_heads(result: ConcentrationResult, symmetry: SymmetryResult | None) -> Claim:
    """C8b: what a heat map of heads by dimensions shows."""
    if symmetry is None:
        return _claim("C8b", [], _not_measured(result, "symmetry"))
    parts = [part.layer_agreement for part in (symmetry.q, symmetry.k, symmetry.v)]
    reading = (
        "The two halves of the mean profile of a layer's heads correlate with "
        f"{parts[0].effect:.2f} in q, {parts[1].effect:.2f} in k and {parts[2].effect:.2f} in v."
    )
    return _claim("C8b", parts[:2], reading)


def _partial_cycle(result: ConcentrationResult, bands: BandsResult | None) -> Claim:
    """C8c."""
    if bands is None:
        return _claim("C8c", [], _not_measured(result, "frequency bands"))
    if bands.training_context is None:
        return _claim("C8c", [], "The training context of this model is not known.")
    reading = (
        f"{percent(bands.partial_cycle)} of the massive dimensions have a wavelength beyond the "
        f"training context of {bands.training_context} tokens; of all pairs "
        f"{100 * bands.partial_cycle.null:.0f} % do."
    )
    return _claim("C8c", [bands.partial_cycle], reading, undecided=mostly_unrotated(bands))


def _symmetric_in_heads(result: ConcentrationResult, symmetry: SymmetryResult | None) -> Claim:
    """C8d."""
    if symmetry is None:
        return _claim("C8d", [], _not_measured(result, "symmetry"))
    q, k = symmetry.q.two_mirror_share, symmetry.k.two_mirror_share
    reading = (
        f"Of the heads with massive dimensions {percent(q)} (q) and {percent(k)} (k) have "
        f"exactly two mirror clusters; by chance {100 * q.null:.0f} % and {100 * k.null:.0f} %."
    )
    return _claim("C8d", [q, k], reading)


def _from_first_layer(result: ConcentrationResult) -> Claim:
    """C9. Decided by the first layer; the count over layers uses corrected tests."""
    q, k, v = (float(part.curve[0]) for part in (result.q, result.k, result.v))
    holds = int((result.layer_tests <= 1 - result.config.level).sum())
    first = "" if result.first_layer is None else f", L{result.first_layer} the first"
    reading = (
        f"Within a prompt L{result.layers[0]} holds {q:.2f} (q), {k:.2f} (k) and {v:.2f} (v) "
        "massive dimensions per head; q and k both hold more than v in "
        f"{holds} of {len(result.layers)} layers{first}."
    )
    return _claim("C9", [result.first_layer_excess], reading)


def _claim(
    id: str,
    estimates: Sequence[Estimate],
    reading: str,
    *,
    withheld: str | None = None,
    undecided: str | None = None,
) -> Claim:
    """Judge the estimates that must all pass.

    `withheld` says why passing is not enough, `undecided` why neither passing nor failing is.
    """
    rule = RULES[id]
    verdict, weakest = decide_all(estimates, minimum=rule.minimum)
    if verdict == "supported" and withheld is not None:
        verdict, reading = "inconclusive", f"{reading} Support is withheld: {withheld}."
    if undecided is not None:
        verdict, reading = "inconclusive", f"{reading} {undecided}"
    if math.isnan(weakest.low) and weakest.n > 0:
        reading += f" There is no interval from n = {weakest.n} {weakest.n_of}."
    return Claim(
        id=id,
        statement=rule.statement,
        verdict=verdict,
        estimate=weakest,
        quantity=rule.quantity,
        reading=reading,
    )


def _not_measured(result: ConcentrationResult, what: str) -> str:
    if not result.rotating_layers:
        return "This model does not rotate its queries and keys: it has no rotary pairs."
    return f"The analysis of {what} was not run on this model."
