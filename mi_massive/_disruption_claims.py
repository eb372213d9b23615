"""C4 and C5: which estimates of a disruption experiment decide them, and what they say in words."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mi_massive._verdicts import UNDEFINED
from mi_massive.arms import Arm
from mi_massive.attention_effects import EffectsResult
from mi_massive.contrasts import ArmContrast
from mi_massive.controls import behind_label
from mi_massive.disruption import DisruptionResult
from mi_massive.fluency import FluencyResult
from mi_massive.scores import INTACT, Readout
from mi_massive.seed_spreads import Spread
from mi_massive.stats import Estimate

Finding = tuple[str, list[Estimate], str]
"""Claim, the estimates that must all pass, and the reading."""


def disruption_findings(
    result: DisruptionResult, fluency: FluencyResult | None = None
) -> tuple[Finding, ...]:
    """What the preset `paper` shows about C4 and C5, at the first k that has a matched control."""
    arm = result.judged
    if arm is None:
        missing = "No arm of the preset 'paper' was run."
        return tuple((claim, [], missing) for claim in ("C4a", "C4b", "C5a", "C5b"))
    shown = [c for c in result.contrasts if c.arm == arm.name and not _nan(c.contrast)]
    return (
        ("C4a", [c.contrast for c in shown], _losses(arm, shown, result)),
        ("C4b", [c.beyond_control for c in shown], _beyond(arm, shown, result)),
        ("C5a", [_perplexity_ratio(result, arm.name)], _damage(arm, result)),
        ("C5b", *(_diversity(arm, result) if fluency is None else _varied(arm, fluency))),
    )


def _losses(arm: Arm, shown: Sequence[ArmContrast], result: DisruptionResult) -> str:
    if not shown:
        return (
            f"Under {arm.name} no read-out has both a contextual and a parametric task above "
            "chance before the edit: nothing can be lost."
        )
    lost = {(c.task, c.readout): c.lost_share for c in result.cells if c.arm == arm.name}

    def each(tasks: Sequence[str], readout: Readout) -> str:
        return ", ".join(f"{task} {lost[task, readout]:.0%}" for task in tasks)

    parts = [
        f"by {c.readout} {c.contextual_loss.effect:.0%} of the above-chance score of contextual "
        f"tasks ({each(c.contextual_tasks, c.readout)}) and {c.parametric_loss.effect:.0%} of that "
        f"of parametric ones ({each(c.parametric_tasks, c.readout)})"
        for c in shown
    ]
    return f"{arm.name} costs {'; '.join(parts)}.{_others(shown, result)}"


def _others(shown: Sequence[ArmContrast], result: DisruptionResult) -> str:
    """The same losses of every other arm in the first read-out, controls over all their seeds."""
    first = shown[0]
    spreads = [s for s in result.seed_spreads if s.readout == first.readout]
    alone = [a.name for a in result.arms if a.condition not in {s.control for s in spreads}]
    others = [
        f"{c.arm} {c.contextual_loss.effect:.0%} and {c.parametric_loss.effect:.0%}"
        for c in result.contrasts
        if c.readout == first.readout and c.arm != first.arm and c.arm in alone
    ]
    others += [
        f"{s.control} over {s.n_seeds} seeds {_range(s.contextual_loss)} and "
        f"{_range(s.parametric_loss)}"
        for s in spreads
    ]
    return f" Other arms by {first.readout}: {'; '.join(others)}." if others else ""


def _range(spread: Spread) -> str:
    return f"{min(spread.drawn):.0%} to {max(spread.drawn):.0%} (median {spread.median:.0%})"


def _beyond(arm: Arm, shown: Sequence[ArmContrast], result: DisruptionResult) -> str:
    label = next((c.control for c in shown if c.control is not None), None)
    if label is None:
        return f"No control was matched to {arm.name} in how far the attention moves."
    return (
        f"{beside_control(arm.name, label, result.effects)} The difference of their contrasts is "
        "given."
    )


def beside_control(arm: str, label: str, effects: EffectsResult) -> str:
    """How equal an arm and its matched control are in what they do to neutral text."""
    controls = behind_label(label, effects.arms)
    moved = [float(np.mean([effects.of(c)["attention_kl"].effect for c in controls]))]
    moved.append(effects.of(arm)["attention_kl"].effect)
    strengths = sorted(effects.strengths[control] for control in controls)
    strength = " to ".join(f"{s:.3g}" for s in dict.fromkeys((strengths[0], strengths[-1])))
    beyond = effects.added_beyond(arm, controls)
    return (
        f"{label} at strength {strength} moves the attention by {moved[0]:.2f} nats, {arm} by "
        f"{moved[1]:.2f}; {arm} adds {beyond.effect:+.2f} [{beyond.low:+.2f}, {beyond.high:+.2f}] "
        f"nats a token more to {beyond.n} neutral texts than the control."
    )


def _perplexity_ratio(result: DisruptionResult, arm: str) -> Estimate:
    added = result.effects.of(arm)["added_cross_entropy"]
    if _nan(added):
        return UNDEFINED
    ends = {name: math.exp(getattr(added, name)) for name in ("effect", "low", "high", "null")}
    return dataclasses.replace(added, **ends)


def _damage(arm: Arm, result: DisruptionResult) -> str:
    ratios = {a.name: _perplexity_ratio(result, a.name).effect for a in result.arms}
    sink = result.effects.of(arm.name)["sink_mass"].effect
    intact = result.effects.of("intact")["sink_mass"].effect
    listed = "; ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != arm.name)
    return (
        f"Perplexity of neutral text times {ratios[arm.name]:.2f} under {arm.name}, whose sink "
        f"holds {sink:.2f} of the attention ({intact:.2f} intact). Other arms: {listed or 'none'}."
    )


def _diversity(arm: Arm, result: DisruptionResult) -> tuple[list[Estimate], str]:
    cells = [
        c
        for c in result.cells
        if c.arm == arm.name and c.readout == "generation" and not _nan(c.distinct_loss)
    ]
    if not cells:
        return [], "No answers long enough to repeat anything were generated."
    longest = max(cells, key=lambda c: c.distinct_loss.n)
    before = next(
        c
        for c in result.cells
        if (c.arm, c.task, c.readout) == (INTACT, longest.task, "generation")
    )
    return (
        [longest.distinct_loss],
        f"Different 2-grams per 2-gram in the answers to {longest.task}: "
        f"{longest.distinct_2.effect:.2f} under {arm.name} ({longest.distinct_2.n} answers of two "
        f"words or more), {before.distinct_2.effect:.2f} intact ({before.distinct_2.n}); the "
        f"difference is over the {longest.distinct_loss.n} that are so in both.",
    )


def _varied(arm: Arm, fluency: FluencyResult) -> tuple[list[Estimate], str]:
    """Diversity of long answers, beside what every other arm leaves of it."""
    rows = {(row.arm, row.task): row for row in fluency.rows}
    tasks = [row.task for row in fluency.rows if row.arm == arm.name]
    if not tasks:
        return [], f"No answers were measured for their diversity under {arm.name}."
    others = [a.name for a in fluency.arms if a.name != arm.name]

    def each(name: str) -> str:
        return ", ".join(f"{task} {rows[name, task].distinct_2.effect:.2f}" for task in tasks)

    return (
        [rows[arm.name, task].distinct_loss for task in tasks],
        f"Different 2-grams per 2-gram in the answers to {each(arm.name)} under {arm.name}; "
        f"intact {each(INTACT)}; " + "; ".join(f"{name} {each(name)}" for name in others) + ".",
    )


def _nan(estimate: Estimate) -> bool:
    return math.isnan(estimate.effect) or math.isnan(estimate.low)
