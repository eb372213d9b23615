"""Measured scores beside those that the paper printed for other models."""

import math
from collections.abc import Mapping
from typing import Final

from mi_massive.disruption import DisruptionResult
from mi_massive.published import SOURCE, PublishedScore, published_for
from mi_massive.report import text
from mi_massive.report.tables import Table
from mi_massive.scores import INTACT, Cell
from mi_massive.stats import Estimate

_NONE: Final = "–"


def published_table(result: DisruptionResult) -> Table | None:
    """Measured scores above those printed for other models; None if no task has any."""
    measured = {(c.arm, c.task): c for c in result.cells if c.readout == "generation"}
    rows: list[tuple[str, ...]] = []
    for task in dict.fromkeys(task for _, task in measured):
        printed = published_for(task)
        if printed:
            rows += _measured_rows(result, measured, task)
            rows += [_published_row(score) for score in printed]
    if not rows:
        return None
    return Table(
        caption=f"Measured here, and published for other models in {SOURCE} (in per cent, "
        "generated answers)",
        head=(
            "task",
            "model",
            "source",
            "intact",
            "non-massive disrupted",
            "massive disrupted",
            "edit",
        ),
        rows=tuple(rows),
        folded=True,
    )


def _measured_rows(
    result: DisruptionResult, measured: Mapping[tuple[str, str], Cell], task: str
) -> list[tuple[str, ...]]:
    """Our grading, and the published one where the task has it."""
    massive = result.judged
    smallest = [arm for arm in result.arms if arm.preset == "smallest"]
    smallest.sort(key=lambda arm: massive is not None and arm.k != massive.k)
    edits = [arm.name if arm else None for arm in (next(iter(smallest), None), massive)]
    found = [measured.get((name, task)) if name else None for name in (INTACT, *edits)]
    edited = " against ".join(name for name in reversed(edits) if name)
    model = result.provenance.model
    rows = [(task, model, "measured here", *(_per_cent(c and c.score) for c in found), edited)]
    if found[0] is not None and not math.isnan(found[0].legacy_score.effect):
        scores = (_per_cent(c and c.legacy_score) for c in found)
        rows.append((task, model, "measured here, published grading", *scores, edited))
    return rows


def _published_row(score: PublishedScore) -> tuple[str, ...]:
    printed = (score.intact, score.non_massive_disrupted, score.massive_disrupted)
    return (
        score.task,
        score.model,
        "published for another model",
        *(f"{round(100 * share, 2):g}" for share in printed),
        score.preset,
    )


def _per_cent(value: Estimate | None) -> str:
    if value is None:
        return _NONE
    if math.isnan(value.effect):
        return text.UNDEFINED
    shown = (f"{round(100 * end, 1):g}" for end in (value.effect, value.low, value.high))
    return "{} [{}, {}]".format(*shown)
