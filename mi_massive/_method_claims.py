"""C7 on weights: methods at equal bits, and rows of W_Q and W_K kept exact."""

from collections.abc import Sequence

from mi_massive._disruption_claims import Finding
from mi_massive._quantization_claims import DAMAGED, damage_of, saved_share
from mi_massive._verdicts import require_same_model
from mi_massive.concentration import ConcentrationResult
from mi_massive.contrasts import GroupContrast
from mi_massive.quantization_results import QuantizationResult
from mi_massive.quantization_schemes import method_names
from mi_massive.scores import INTACT
from mi_massive.stats import Estimate
from mi_massive.weight_protection import WeightProtectionResult


def method_findings(
    result: QuantizationResult | None, observed: ConcentrationResult
) -> list[Finding]:
    """What quantized copies say; nothing measured says nothing.

    C7c must hold at every level of bits that decides: where some method costs neutral text at least
    `DAMAGED`, and some method leaves a contextual task above chance. C7d must hold at every number
    of bits at which rounding all rows costs as much.

    Raises:
        ValueError: If the result comes from another model than `observed`.
    """
    if result is None:
        return []
    require_same_model("quantized", result.provenance, observed.provenance)
    found = [("C7c", *_methods(result))]
    return found if result.rows is None else [*found, ("C7d", *_rows(result, result.rows))]


def _methods(result: QuantizationResult) -> tuple[list[Estimate], str]:
    costs = "; ".join(
        f"{scheme.name} {result.damage(scheme.name).effect:.3f}" for scheme in result.schemes
    )
    said = [f"Quantized weights add nats a token to neutral text: {costs}."]
    deciding: list[GroupContrast] = []
    for one in result.methods:
        harmed, alive = _harmed(result, one), _alive(result, one)
        if harmed and alive:
            deciding.append(one)
            said.append(
                f"At {one.level} {_listed(one.first)} lose {one.contextual.effect:+.0%} of the "
                f"above-chance score of contextual tasks and {one.parametric.effect:+.0%} of that "
                f"of parametric ones beyond {_listed(one.second)}, by {one.readout}."
            )
        elif not harmed:
            said.append(f"At {one.level} no method costs {DAMAGED:g} nats: nothing is decided.")
        else:
            said.append(f"At {one.level} every method ruins the contextual tasks.")
    if not result.methods:
        said.append("No level has methods of both kinds and tasks.")
    return [one.contrast for one in deciding], " ".join(said)


def _harmed(result: QuantizationResult, level: GroupContrast) -> bool:
    """True if some method at this level costs neutral text enough."""
    return any(result.damage(name).effect >= DAMAGED for name in _names(level))


def _alive(result: QuantizationResult, level: GroupContrast) -> bool:
    """True if some method at this level leaves a contextual task above chance."""
    return any(
        cell.score.low > cell.floor
        for cell in result.cells
        if cell.arm != INTACT
        and cell.arm in _names(level)
        and cell.task in level.contextual_tasks
        and cell.readout == level.readout
    )


def _names(level: GroupContrast) -> list[str]:
    return [name for part in (*level.first, *level.second) for name in part]


def _listed(groups: Sequence[Sequence[str]]) -> str:
    return " and ".join(method_names(groups))


def _rows(result: QuantizationResult, rows: WeightProtectionResult) -> tuple[list[Estimate], str]:
    bare = [arm for arm in rows.arms if arm.protected == "none"]
    costs = {arm.plan.bits: float(damage_of(rows.effects, arm).mean()) for arm in bare}
    saved = {
        arm.plan.bits: saved_share(
            rows.arms,
            rows.effects,
            arm,
            controls=rows.config.controls,
            tested=rows.gain(arm.plan.bits).gain,
            n_resamples=result.config.n_resamples,
            seed=result.config.seed,
        )
        for arm in bare
        if costs[arm.plan.bits] >= DAMAGED and rows.config.controls
    }
    said = (
        "Rounding W_Q and W_K alone adds nats a token: "
        f"{', '.join(f'{cost:.3f} at {bits} bits' for bits, cost in costs.items())}."
    )
    if not saved:
        return [], f"{said} No number of bits costs {DAMAGED:g} nats, so nothing can be saved."
    counts = " and ".join(f"{n:.2f} ({p})" for p, n in rows.massive_per_head.items())
    shares = ", ".join(f"{share.effect:.1%} at {bits} bits" for bits, share in saved.items())
    return list(saved.values()), (
        f"{said} The rows that write massive channels, {counts} of a head, save {shares} of it "
        "beyond what equally many other rows do."
    )
