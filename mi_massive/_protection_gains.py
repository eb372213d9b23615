"""Gains of protected channels from the arms' passages and answers, paired and corrected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from mi_massive.attention_effects import EffectsResult
from mi_massive.protection import Against, Measure, Measured, ProtectionGain
from mi_massive.quantization_arms import QuantizationArm
from mi_massive.scores import Readout, TaskResult
from mi_massive.stats import Estimate, estimate, holm, resamples_for_tests

Values = Float[np.ndarray, "unit"]
Read = Callable[[QuantizationArm], Values]
"""One value a passage or example; larger is better."""


def text_gains(
    arms: Sequence[QuantizationArm],
    effects: EffectsResult,
    extra_bits: Mapping[str, float],
    *,
    seed: int,
) -> list[ProtectionGain]:
    """Gains on neutral text: cross-entropy and attention."""
    index = {name: i for i, name in enumerate(effects.arms)}
    found: list[ProtectionGain] = []
    for measure in ("cross_entropy", "attention_kl"):
        kl = effects.attention_kl.mean(dim=-1)
        costs = (effects.cross_entropy if measure == "cross_entropy" else kl).double().numpy()

        def values(arm: QuantizationArm, costs: Any = costs) -> Values:
            return -costs[index[arm.name]]

        found += _gains(arms, values, measure, None, extra_bits, "passages", seed)
    return found


def task_gains(
    arms: Sequence[QuantizationArm],
    by_arm: Mapping[str, Sequence[TaskResult]],
    extra_bits: Mapping[str, float],
    *,
    readout: Readout,
    seed: int,
) -> list[ProtectionGain]:
    """Gains on each task: score, and log-probability where there are options."""
    found: list[ProtectionGain] = []
    for number, task in enumerate(next(iter(by_arm.values()), ())):

        def scores(arm: QuantizationArm, number: int = number) -> Values:
            return by_arm[arm.name][number].correct(readout).astype(np.float64)

        def margins(arm: QuantizationArm, number: int = number) -> Values:
            return np.array([a.logit_diff for a in by_arm[arm.name][number].answers])

        found += _gains(arms, scores, "score", task.task, extra_bits, "examples", seed)
        if readout == "options":
            found += _gains(arms, margins, "logit_diff", task.task, extra_bits, "examples", seed)
    return found


def _gains(
    arms: Sequence[QuantizationArm],
    values: Read,
    measure: Measure,
    task: str | None,
    extra_bits: Mapping[str, float],
    n_of: str,
    seed: int,
) -> list[ProtectionGain]:
    """Every gain in one measure, their p corrected together."""
    wanted = [(arm, *other) for arm in arms for other in _others(arm, arms)]
    n_resamples = resamples_for_tests(max(1, len(wanted)))
    found = [
        ProtectionGain(
            by=by,
            bits=arm.plan.bits,
            first_kept=arm.plan.keep_first and by != "first",
            against=against,
            measure=measure,
            task=task,
            gain=estimate(
                values(arm) - _mean(values, others),
                n_of=n_of,
                null=0.0,
                alternative="two-sided",
                n_resamples=n_resamples,
                seed=seed,
            ),
            extra_bits=extra_bits[arm.name] - extra_bits[others[0][0].name],
        )
        for arm, by, against, others in wanted
    ]
    corrected = holm(np.array([one.gain.p_value for one in found], dtype=np.float64))
    return [
        replace(one, gain=_corrected(one.gain, float(p)))
        for one, p in zip(found, corrected, strict=True)
    ]


Groups = list[list[QuantizationArm]]
"""Arms to set another against: their means by group, averaged."""


def _others(
    arm: QuantizationArm, arms: Sequence[QuantizationArm]
) -> list[tuple[Measured, Against, Groups]]:
    """What an arm is set against, and what that says."""

    def beside(plan: Any, *protected: str) -> list[QuantizationArm]:
        return [a for a in arms if a.plan == plan and a.protected in protected]

    found: list[tuple[Measured, Against, Groups]] = []
    plain = replace(arm.plan, hadamard=False)
    if arm.protected == "massive" and not arm.plan.hadamard:
        found.append(("massive", "nothing", [beside(plain, "none")]))
        groups: Groups = []
        for control in ("random", "same_band", "norm_matched"):
            own = beside(plain, control)
            if own:
                groups.append(own)
                found.append(("massive", control, [own]))
        if groups:
            found.append(("massive", "others", groups))
    if arm.protected == "none":
        if arm.plan.hadamard:
            found.append(("hadamard", "nothing", [beside(plain, "none")]))
        elif arm.plan.keep_first:
            without = replace(arm.plan, keep_first=False)
            found.append(("first", "nothing", [beside(without, "none")]))
    return found


def _mean(values: Read, groups: Groups) -> Values:
    means = [np.mean([values(arm) for arm in group], axis=0) for group in groups]
    return np.mean(means, axis=0)


def _corrected(gain: Estimate, p_value: float) -> Estimate:
    return replace(gain, p_value=p_value, test=f"{gain.test}; Holm")
