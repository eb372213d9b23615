"""C7: what the factorial of quantized states says about protecting massive channels."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from mi_massive._disruption_claims import Finding
from mi_massive._patch_statistics import ratios_of_means
from mi_massive._verdicts import require_same_model
from mi_massive.attention_effects import EffectsResult
from mi_massive.concentration import ConcentrationResult
from mi_massive.protection import StateQuantizationResult
from mi_massive.quantization_arms import Control, QuantizationArm
from mi_massive.scores import INTACT
from mi_massive.stats import Estimate

DAMAGED: Final = 0.1
"""Nats a token that unprotected states must cost for a number of bits to decide anything."""


def quantization_findings(
    result: StateQuantizationResult | None, observed: ConcentrationResult
) -> list[Finding]:
    """What protection saves, and what quantization costs; nothing measured says nothing.

    C7a must hold at every number of bits that costs neutral text at least `DAMAGED`; C7b is judged
    at the bits at which tasks were asked.

    Raises:
        ValueError: If the result comes from another model than `observed`.
    """
    if result is None:
        return []
    require_same_model("quantization", result.provenance, observed.provenance)
    plain = [arm for arm in result.arms if not arm.plan.keep_first and not arm.plan.hadamard]
    bare = [arm for arm in plain if arm.protected == "none"]
    harmful = [arm for arm in bare if damage_of(result.effects, arm).mean() >= DAMAGED]
    saved = [
        found for arm in harmful for found in [_saved(result, arm, plain)] if found is not None
    ]
    return [
        ("C7a", saved, _said(result, bare, harmful, saved)),
        ("C7b", *_contextual(result, bare)),
    ]


def _saved(
    result: StateQuantizationResult, bare: QuantizationArm, plain: list[QuantizationArm]
) -> Estimate | None:
    """Share of the damage saved beyond equally many others; None without such arms."""
    if not any(arm.protected == "massive" and arm.plan == bare.plan for arm in plain):
        return None
    if not result.config.controls:
        return None
    return saved_share(
        plain,
        result.effects,
        bare,
        controls=result.config.controls,
        tested=result.gain(bare.plan.bits).gain,
        n_resamples=result.config.n_resamples,
        seed=result.config.seed,
    )


def saved_share(
    arms: Sequence[QuantizationArm],
    effects: EffectsResult,
    bare: QuantizationArm,
    *,
    controls: Sequence[Control],
    tested: Estimate,
    n_resamples: int,
    seed: int,
) -> Estimate:
    """Share of the damage of `bare` that massive ones kept save beyond equally many others.

    Args:
        arms: With nothing, massive ones and controls kept, at the plan of `bare`.
        effects: Their cross-entropy.
        bare: The arm with nothing kept.
        controls: Kinds of others; each counts once, however many seeds it has.
        tested: The gain in nats, whose test this one carries.
        n_resamples: Of the bootstrap over passages.
        seed: Of the bootstrap.
    """
    same = [arm for arm in arms if arm.plan == bare.plan]
    massive = next(arm for arm in same if arm.protected == "massive")
    groups = [[arm for arm in same if arm.protected == c] for c in controls]
    means = [np.mean([damage_of(effects, a) for a in group], axis=0) for group in groups]
    gain = np.mean(means, axis=0) - damage_of(effects, massive)
    found = ratios_of_means(
        gain[None], damage_of(effects, bare), level=0.95, n_resamples=n_resamples, seed=seed
    )
    return Estimate(
        effect=float(found.ratio[0]),
        low=float(found.low[0]),
        high=float(found.high[0]),
        n=len(gain),
        n_of="passages",
        test=tested.test.replace("(BCa)", "(percentile, of a ratio of means)"),
        p_value=tested.p_value,
        null=0.0,
    )


def damage_of(effects: EffectsResult, arm: QuantizationArm) -> Float[np.ndarray, "passage"]:
    """Nats a token that an arm adds to each passage."""
    loss = effects.cross_entropy.double().numpy()
    return loss[effects.arms.index(arm.name)] - loss[effects.arms.index(INTACT)]


def _said(
    result: StateQuantizationResult,
    bare: list[QuantizationArm],
    harmful: list[QuantizationArm],
    saved: list[Estimate],
) -> str:
    states = " and ".join(result.config.plan.projections)
    costs = ", ".join(
        f"{damage_of(result.effects, arm).mean():.3f} at {arm.plan.bits} bits" for arm in bare
    )
    found = (
        f"Quantized {states} add nats a token to neutral text: {costs}, with nothing kept exact."
    )
    if not harmful:
        return f"{found} No number of bits costs {DAMAGED:g} nats, so nothing can be saved."
    if not saved:
        return f"{found} No other channels were kept exact for comparison."
    shares = ", ".join(
        f"{one.effect:.0%} at {arm.plan.bits} bits" for arm, one in zip(harmful, saved, strict=True)
    )
    return (
        f"{found} The massive channels, {_counts(result)} of a head, save {shares} of it beyond "
        "what equally many random, same-band and next-ranked channels do."
    )


def _counts(result: StateQuantizationResult) -> str:
    return " and ".join(f"{n:.2f} ({p})" for p, n in result.massive_per_head.items())


def _contextual(
    result: StateQuantizationResult, bare: list[QuantizationArm]
) -> tuple[list[Estimate], str]:
    asked = {arm.name: arm.plan.bits for arm in bare if result.config.asks(arm)}
    found = [c for c in result.contrasts if c.arm in asked]
    if not found:
        return [], "No task was asked of quantized states."
    parts = "; ".join(
        f"{asked[c.arm]} bits {100 * c.contextual_loss.effect:.0f}% and "
        f"{100 * c.parametric_loss.effect:.0f}% by {c.readout}"
        for c in found
    )
    return (
        [c.contrast for c in found],
        f"Unprotected quantization costs of the above-chance score of contextual and parametric "
        f"tasks: {parts}.",
    )
