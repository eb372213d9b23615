"""C6: which estimates of a conflict experiment decide it, and what they say in words."""

from typing import Final

import numpy as np

from mi_massive._disruption_claims import Finding, beside_control, disruption_findings
from mi_massive._verdicts import require_same_model
from mi_massive.arms import Arm
from mi_massive.concentration import ConcentrationResult
from mi_massive.conflict import ConflictResult
from mi_massive.conflict_scores import ConflictCell
from mi_massive.controls import behind_label
from mi_massive.disruption import DisruptionResult
from mi_massive.fluency import FluencyResult
from mi_massive.scores import INTACT

_FEWEST: Final = 10
"""Conflicts that follow the context before the edit: fewer could hardly show a fall-back."""


def edit_findings(
    observed: ConcentrationResult,
    disruption: DisruptionResult | None,
    conflict: ConflictResult | None,
    fluency: FluencyResult | None = None,
) -> list[Finding]:
    """What the experiments with edits say about C4, C5 and C6; one that was not run says nothing.

    Raises:
        ValueError: If one comes from another model than `observed`, or fluency comes without
            disruption.
    """
    found: list[Finding] = []
    if fluency is not None and disruption is None:
        raise ValueError("fluency must come with disruption, whose judged arm it is read at")
    if disruption is not None:
        require_same_model("disruption", disruption.provenance, observed.provenance)
        if fluency is not None:
            require_same_model("fluency", fluency.provenance, observed.provenance)
        found += disruption_findings(disruption, fluency)
    if conflict is not None:
        require_same_model("conflict", conflict.provenance, observed.provenance)
        found += conflict_findings(conflict)
    return found


def conflict_findings(result: ConflictResult) -> tuple[Finding, ...]:
    """What the preset `paper` shows about C6, at the first k that has a matched control.

    Memory must be kept more often under conflict, over all known conflicts: a model that only
    stops following the context has not fallen back on anything.
    """
    arm = result.judged
    if arm is None:
        missing = "No arm of the preset 'paper' was run."
        return tuple((claim, [], missing) for claim in ("C6a", "C6b"))
    intact, cell = result.cell(INTACT), result.cell(arm.name)
    followers = cell.to_memory.n
    if followers < _FEWEST:
        asked = sum(known.asked for known in result.known)
        few = (
            f"The model knows {result.n_known} of {asked} asked facts closed-book and follows the "
            f"context against {followers} of them; under {_FEWEST} show no fall-back."
        )
        return tuple((claim, [], few) for claim in ("C6a", "C6b"))
    return (
        ("C6a", [cell.keeps_change], _fallback(arm, intact, cell, result)),
        ("C6b", [cell.beyond_control] if cell.control else [], _beyond(arm, cell, result)),
    )


def _fallback(arm: Arm, intact: ConflictCell, cell: ConflictCell, result: ConflictResult) -> str:
    others = "; ".join(
        f"{other.name} {result.cell(other.name).keeps_change.effect:+.0%}"
        for other in result.arms
        if other.name != arm.name
    )
    return (
        f"Of {result.n_known} known facts that the prompt contradicts, the intact model keeps to "
        f"memory in {intact.keeps.effect:.0%} and follows the context in "
        f"{intact.follows.effect:.0%}; {arm.name} in {cell.keeps.effect:.0%} and "
        f"{cell.follows.effect:.0%}, neither in {cell.neither.effect:.0%}. Of the "
        f"{cell.to_memory.n} that followed the context, {cell.to_memory.effect:.0%} go to memory "
        f"and {cell.to_neither.effect:.0%} to neither; closed-book {cell.closed_book.effect:.0%} "
        f"of the facts are left. Change of the share that keeps memory under other arms: "
        f"{others or 'none'}."
    )


def _beyond(arm: Arm, cell: ConflictCell, result: ConflictResult) -> str:
    if cell.control is None:
        return f"No control was matched to {arm.name} in how far the attention moves."
    names = behind_label(cell.control, result.effects.arms)
    keeps, follows, closed_book = (
        float(np.mean([getattr(result.cell(name), share).effect for name in names]))
        for share in ("keeps", "follows", "closed_book")
    )
    return (
        f"{beside_control(arm.name, cell.control, result.effects)} Under the control {keeps:.0%} "
        f"keep memory, {follows:.0%} follow the context and closed-book {closed_book:.0%} of the "
        "facts are left."
    )
