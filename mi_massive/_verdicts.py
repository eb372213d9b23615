"""The decision rule of the scoreboard: what each claim says and which effect supports it.

A verdict needs an interval that excludes the null *and* an effect of at least the claim's minimum:
with many prompts a ratio of 1.05 excludes 1, and is not what the paper means by massive. The
minimum effects are round numbers: twice as close as by chance, three in four, most heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from mi_massive.bands import BandsResult
from mi_massive.concentration import ConcentrationResult, ProjectionConcentration
from mi_massive.records import Provenance
from mi_massive.stats import Estimate

Verdict = Literal["supported", "not supported", "inconclusive"]

VERDICTS: Final[tuple[Verdict, ...]] = ("not supported", "inconclusive", "supported")
"""From the weakest to the strongest."""

UNDEFINED: Final = Estimate(
    effect=math.nan, low=math.nan, high=math.nan, n=0, n_of="prompts", test="not measured"
)
"""Estimate of a claim whose input is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a claim says, how it is measured, and from which effect on it counts."""

    statement: str
    quantity: str
    minimum: float
    """Smallest effect that supports the claim, in units of `quantity`."""


NONE_SHARE: Final = 0.1
"""'None' in C1 and C3: at most this share of the massive dimensions per head of q and of k."""

RULES: Final[dict[str, Rule]] = {
    "C1": Rule(
        statement="Queries and keys hold concentrated massive values, values hold none.",
        quantity="max/mean norm of a head in q (k) divided by that in v, geometric mean",
        minimum=1.5,
    ),
    "C2": Rule(
        statement="The massive dimensions of different heads are close to each other.",
        quantity="1 - distance of two heads' largest dimensions / distance by chance",
        minimum=0.5,  # on average at most half as far apart as by chance
    ),
    "C3": Rule(
        statement="The control without rotary position embeddings does not have them.",
        quantity="max/mean norm of a head divided by that in the control, geometric mean",
        minimum=1.5,
    ),
    "C3b": Rule(
        statement="Of twins that differ in their position encoding alone, only those with RoPE "
        "concentrate their queries and keys.",
        quantity="max/mean norm of a head divided by that of a twin without RoPE, at equal loss",
        minimum=1.5,
    ),
    "C4a": Rule(
        statement="Disrupting the massive values costs contextual tasks more than parametric ones.",
        quantity="share of the above-chance score lost, contextual minus parametric tasks",
        minimum=0.25,
    ),
    "C4b": Rule(
        statement="It does so beyond an edit of random dimensions that moves the attention as far.",
        quantity="C4a's difference, minus that of the effect-matched control",
        minimum=0.1,
    ),
    "C5a": Rule(
        statement="Disrupting the massive values raises the perplexity.",
        quantity="perplexity of neutral text divided by that of the intact model",
        minimum=1.5,
    ),
    "C5b": Rule(
        statement="Disrupting the massive values lowers the diversity of generated text.",
        quantity="share of different 2-grams in an answer, intact minus disrupted",
        minimum=0.1,
    ),
    "C6a": Rule(
        statement="Under knowledge conflict, disrupting the massive values makes the model fall "
        "back on its memory.",
        quantity="share of known conflicts that keep memory, disrupted minus intact",
        minimum=0.1,
    ),
    "C6b": Rule(
        statement="It does so beyond an edit of random dimensions that moves the attention as far.",
        quantity="share that keeps memory, minus that under the effect-matched control",
        minimum=0.1,
    ),
    "C7a": Rule(
        statement="Quantized queries and keys lose less if their massive channels stay exact than "
        "if equally many others do.",
        quantity="share of the added cross-entropy saved, massive channels minus others",
        minimum=0.25,  # a quarter of the damage
    ),
    "C7b": Rule(
        statement="What quantized queries and keys lose without protection is contextual.",
        quantity="share of the above-chance score lost, contextual minus parametric tasks",
        minimum=0.25,
    ),
    "C7c": Rule(
        statement="Rounded to equal bits, methods that protect massive values (AWQ, SmoothQuant) "
        "keep contextual performance that the others lose.",
        quantity="share of the above-chance score that the others lose beyond them, contextual "
        "minus parametric tasks",
        minimum=0.1,
    ),
    "C7d": Rule(
        statement="Rounded W_Q and W_K lose less if the rows that write massive channels stay "
        "exact than if equally many others do.",
        quantity="share of the added cross-entropy saved, massive rows minus others",
        minimum=0.25,
    ),
    "C8a": Rule(
        statement="Massive dimensions lie in the low frequencies of RoPE.",
        quantity="share of massive dimensions in the slower half of the rotary pairs",
        minimum=0.75,  # three of four
    ),
    "C8b": Rule(
        statement="Massive values form two symmetric clusters in the two halves of the head, over "
        "the heads of a layer.",
        quantity="rank correlation of the two halves of a layer's mean profile",
        minimum=0.5,  # a large correlation (Cohen 1988)
    ),
    "C8c": Rule(
        statement="Massive dimensions lie where RoPE makes no full turn within the training "
        "context (partial cycles).",
        quantity="share of massive dimensions whose wavelength exceeds the training context",
        minimum=0.75,
    ),
    "C8d": Rule(
        statement="Single heads show the two symmetric clusters.",
        quantity="share of heads with massive dimensions that have exactly two mirror clusters",
        minimum=0.5,  # most heads
    ),
    "C8e": Rule(
        statement="In twins the largest dimensions make no full turn within the context, whatever "
        "the base of the frequencies.",
        quantity="share of heads whose largest dimension has a wavelength beyond the context",
        minimum=0.75,
    ),
    "C9": Rule(
        statement="From the first layer on, queries and keys hold more massive values than values.",
        quantity="massive dimensions per head of the first layer: the smaller of q and k, minus v",
        minimum=0.1,  # one more in ten heads
    ),
    "C9b": Rule(
        statement="Twins with RoPE concentrate their queries and keys in the first layer already.",
        quantity="max/mean norm of a head of layer 0 divided by that of a twin without RoPE",
        minimum=1.5,
    ),
}
"""The claims that are judged."""


def decide(estimate: Estimate, *, minimum: float) -> Verdict:
    """Judge one estimate against its null and a minimum effect.

        supported      low > null, effect >= minimum, and p <= 1 - level where there is a test
        not supported  high < minimum
        inconclusive   otherwise, and always without an interval

    An effect that surely differs from the null but is surely smaller than the minimum is therefore
    not supported: it is there, and too small to be what the claim means.
    """
    if math.isnan(estimate.effect) or math.isnan(estimate.low) or math.isnan(estimate.high):
        return "inconclusive"
    significant = not estimate.p_value > 1 - estimate.level
    if estimate.low > estimate.null and estimate.effect >= minimum and significant:
        return "supported"
    return "not supported" if estimate.high < minimum else "inconclusive"


def decide_all(estimates: Sequence[Estimate], *, minimum: float) -> tuple[Verdict, Estimate]:
    """Judge estimates that must all pass: the worst verdict, and the smallest effect that has it.

    The estimate carries the largest p of all, NaN if one is. Nothing to judge is inconclusive.
    """
    estimates = estimates or [UNDEFINED]
    verdicts: list[Verdict] = [decide(estimate, minimum=minimum) for estimate in estimates]
    verdict = min(verdicts, key=VERDICTS.index)
    weakest = min(
        (e for v, e in zip(verdicts, estimates, strict=True) if v == verdict),
        key=lambda e: math.inf if math.isnan(e.effect) else e.effect,
    )
    p_values = [estimate.p_value for estimate in estimates]
    p_value = math.nan if any(map(math.isnan, p_values)) else max(p_values)
    return verdict, replace(weakest, p_value=p_value)


def require_same_capture(name: str, given: Provenance, expected: Provenance) -> None:
    """Raise ValueError unless both come from one model, the same prompts and the same settings."""

    def named(source: Provenance) -> str:
        settings = "".join(f", {key}={value}" for key, value in sorted(source.settings.items()))
        return f"{source.model!r} with prompts {source.prompts_digest[:8]}{settings}"

    if named(given) != named(expected):
        raise ValueError(
            f"{name} must come from the same capture as concentration, got {named(given)} for "
            f"{named(expected)}; compute both from one capture"
        )


def require_same_model(name: str, given: Provenance, expected: Provenance) -> None:
    """Raise ValueError unless both come from one model."""
    if (given.model, given.revision) != (expected.model, expected.revision):
        raise ValueError(
            f"{name} must come from the model {expected.model!r}, got {given.model!r}; "
            "measure both on one model"
        )


def require_control(control: ConcentrationResult, result: ConcentrationResult) -> None:
    """Raise ValueError unless `control` does not rotate and has as many prompts as `result`."""
    if control.rotating_layers:
        raise ValueError(
            f"control must be a model without rotary position embeddings, got "
            f"{control.provenance.model!r}, which rotates in {len(control.rotating_layers)} layers"
        )
    n, expected = (len(r.q.prompt_max_over_mean) for r in (control, result))
    if n != expected:
        raise ValueError(
            f"control must be measured on the same prompts, got {n} prompts and {expected}; "
            "capture both models on one list"
        )


def mostly_unrotated(bands: BandsResult) -> str | None:
    """Why rotary pairs say little, if more than half of the massive dimensions do not rotate."""
    share = bands.massive_unrotated_share
    reason = f"More than half of the massive dimensions ({percent(share)}) do not rotate."
    return reason if share.effect > 0.5 else None


def massive_per_head(part: ProjectionConcentration) -> float:
    """Massive dimensions per head, mean over heads and layers."""
    return float(part.massive.sum(dim=-1).double().mean())


def peaks(part: ProjectionConcentration) -> Float[np.ndarray, "prompt"]:
    """max/mean of a head, geometric mean over heads, one a prompt."""
    return part.prompt_max_over_mean.double().numpy()


def peak(part: ProjectionConcentration) -> float:
    """Average the peaks as the contrasts do, by their geometric mean over prompts."""
    return float(part.prompt_max_over_mean.double().log().mean().exp())


def percent(estimate: Estimate) -> str:
    """A share in words."""
    return "none" if math.isnan(estimate.effect) else f"{100 * estimate.effect:.0f} %"
