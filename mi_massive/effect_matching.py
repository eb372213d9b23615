"""The strength at which a control moves the attention as far as a treatment does.

Answers what an edit costs that changes as much and elsewhere. Costs two passes over the neutral
text for each strength that is tried. Does not show that the two are alike in anything but the mean
KL of the attention: how far they lie apart in damage to the text belongs beside it.
"""

import math

from mi_massive._checks import require_in_range, require_positive
from mi_massive.attention_effects import measure_effects
from mi_massive.interventions import Intervention
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms
from mi_massive.presets import with_strength
from mi_massive.prompts import TokenizedPrompts


def match_effect(
    model: HookedModel,
    prompts: TokenizedPrompts,
    control: Intervention,
    *,
    attention_kl: float,
    norms: AttentionNorms | None = None,
    strengths: tuple[float, float] = (0.0, 64.0),
    tolerance: float = 0.02,
    max_steps: int = 20,
) -> Intervention:
    """Set a control's strength so that it moves the attention as far as a treatment does.

    The KL grows with the strength, first with its square: the search follows the chord between two
    strengths on logarithmic axes, where that is a straight line, and halves in between.

    Args:
        model: From `load_model`.
        prompts: Neutral texts on which the KL is measured, the same for both.
        control: The edit whose strength is set.
        attention_kl: KL of the treatment, in nats, from `measure_effects`.
        norms: See `disrupt`.
        strengths: Where to search.
        tolerance: Relative difference of the KL at which the search ends.
        max_steps: Steps at most, once the aim is bracketed.

    Returns:
        The control at the strength found.

    Raises:
        ValueError: If the largest strength does not move the attention so far, or the search ends
            outside the tolerance.
    """
    require_positive("attention_kl", attention_kl)
    require_in_range("max_steps", max_steps, low=1, high=100, unit="steps")

    def moves(strength: float) -> float:
        result = measure_effects(
            model, prompts, {"control": with_strength(control, strength)}, norms=norms
        )
        return float(result.attention_kl[1].mean())

    low, high = strengths
    strength = min(max(1.0, low), high)
    reached, below = moves(strength), 0.0
    while reached < attention_kl and strength < high:
        low, below, strength = strength, reached, min(2 * strength, high)
        reached = moves(strength)
    if reached < attention_kl * (1 - tolerance):
        raise ValueError(
            f"the control must be able to move the attention by {attention_kl:.3g} nats, got "
            f"{reached:.3g} at strength {strength:g}; edit more dimensions"
        )
    high, above = strength, reached
    for step in range(max_steps):
        if math.isclose(reached, attention_kl, rel_tol=tolerance):
            break
        # Halving now and then: a chord alone can creep along a curve that bends one way.
        halve = step % 3 == 2
        strength = (low + high) / 2 if halve else _chord(low, high, below, above, attention_kl)
        reached = moves(strength)
        if reached < attention_kl:
            low, below = strength, reached
        else:
            high, above = strength, reached
    if not math.isclose(reached, attention_kl, rel_tol=tolerance):
        raise ValueError(
            f"max_steps must suffice to move the attention by {attention_kl:.3g} nats, got "
            f"{reached:.3g} at strength {strength:g} after {max_steps}; allow more steps or a "
            "larger tolerance"
        )
    return with_strength(control, strength)


def _chord(low: float, high: float, below: float, above: float, aim: float) -> float:
    """Strength between two at which a power law through their effects reaches `aim`."""
    if low <= 0 or below <= 0:
        return max(low, high * math.sqrt(aim / above))
    return low * (high / low) ** (math.log(aim / below) / math.log(above / below))
