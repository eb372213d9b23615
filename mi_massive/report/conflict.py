"""The section on conflict: what the model follows when prompt and weights disagree."""

import math
from collections.abc import Sequence
from typing import Final

from mi_massive.conflict import ConflictResult
from mi_massive.conflict_scores import CONFLICT_READOUTS, DECIDING, ConflictCell, ConflictReadout
from mi_massive.report import text
from mi_massive.report.pictures import picture
from mi_massive.report.section import Section
from mi_massive.report.tables import Table
from mi_massive.scores import INTACT
from mi_massive.stats import Estimate
from mi_massive.viz.conflict import plot_conflict

READ_BY: Final[dict[ConflictReadout, str]] = {
    "next_token": "by the most probable token of all",
    "candidates": "by the most probable object of the relation",
    "two_answers": "by the more probable of the two answers",
}
_NONE: Final = "–"


def conflict_section(result: ConflictResult, *, title: str) -> Section:
    """The section; the published protocol has a table only where it was run."""
    tables = [known_table(result)]
    tables += [
        conflict_table(_pooled(result, readout), f"Every known conflict, {READ_BY[readout]}")
        for readout in CONFLICT_READOUTS
    ]
    tables += [
        conflict_table(
            [cell for cell in result.cells if (cell.relation, cell.style) == part],
            f"{part[0] or part[1]}, {READ_BY[DECIDING]}",
            folded=True,
        )
        for part in dict.fromkeys((c.relation, c.style) for c in result.cells)
        if part != (None, None)
    ]
    if result.legacy:
        tables.append(legacy_table(result))
    return Section(
        word="conflict",
        title=title,
        question=_question(result),
        pictures=(
            picture(
                "conflict",
                "Context or memory",
                "One row an arm, the intact model first. On the left every known conflict, cut by "
                "the answer that is given; on the right the same facts after a context that says "
                "nothing of them, with the interval of the share that is still given. A model "
                "falls back on its memory where the left bar turns from context to fact; where "
                "the right bar shrinks as well, there is less to fall back on.",
                plot_conflict(result),
            ),
        ),
        tables=tuple(tables),
        limits=_LIMITS,
    )


_LIMITS: Final = (
    "How the model decides, or where in it: that takes patching.",
    "That memory was used where the fact is given: an answer is named after the one that holds it, "
    "and a guess gives the fact in one of as many cases as the relation has objects.",
    "Knowledge of facts whose object is several tokens, or that the model gives only with help: "
    "these are left out and counted.",
    "What an arm costs closed-book compared with other facts: the intact model is right on every "
    "one of these by selection, so arms can only lose there.",
    "That relations and styles differ: each has few conflicts, and p is corrected over arms alone.",
)


def _question(result: ConflictResult) -> str:
    asked = sum(known.asked for known in result.known)
    leading = result.judged
    named = f" The verdicts are about the arm “{leading.name}”." if leading else ""
    return (
        "The prompt states one object, training stored another, and a cloze asks which. Does a "
        "model that loses its massive values follow the context, keep to its memory, or do "
        f"neither? Of {asked} facts asked, the intact model gives {result.n_known} without help: "
        "only these are conflicts. The same clozes after a neutral context of equal length show "
        f"whether there is memory left to fall back on.{named}"
    )


def known_table(result: ConflictResult) -> Table:
    """Facts of each relation: in the data, in single tokens, asked, known."""
    rows = tuple(
        (
            known.relation,
            str(known.counts.subjects),
            str(known.counts.kept),
            str(known.counts.not_one_token),
            str(known.counts.too_few_alternatives),
            str(known.counts.not_aligned),
            str(known.asked),
            str(known.n_known),
            _with_interval(known.known),
            text.null(known.known),
        )
        for known in result.known
    )
    return Table(
        caption=f"Facts that can be conflicts (known: {READ_BY[result.config.known]}, closed-book)",
        head=(
            "relation",
            "facts",
            "both answers in one token",
            "left out: more tokens",
            "left out: too few objects",
            "left out: prompts do not match",
            "asked",
            "known",
            "share known",
            "a guess",
        ),
        rows=rows,
    )


def conflict_table(cells: Sequence[ConflictCell], caption: str, *, folded: bool = False) -> Table:
    """Shares, flips and what is left closed-book, one row an arm."""
    levels = sorted({text.level(cell.keeps) for cell in cells})
    return Table(
        caption=f"{caption} (intervals at {', '.join(levels)}; change: McNemar’s exact test, p "
        "corrected over the arms)",
        head=(
            "arm",
            "follows the context",
            "keeps memory",
            "neither",
            "change of keeps memory",
            "p",
            "beyond the matched control",
            "p",
            "followers that go to memory",
            "followers that go to neither",
            "keepers that go to the context",
            "fact closed-book",
            "lost both",
            "context minus memory, nats",
            "n",
        ),
        rows=tuple(_row(cell) for cell in cells),
        folded=folded,
    )


def _row(cell: ConflictCell) -> tuple[str, ...]:
    intact = cell.arm == INTACT

    def compared(*shown: str) -> tuple[str, ...]:
        return (_NONE,) * len(shown) if intact else shown

    beyond = cell.beyond_control
    return (
        cell.arm,
        *(_with_interval(value) for value in (cell.follows, cell.keeps, cell.neither)),
        *compared(_with_interval(cell.keeps_change), text.p_value(cell.keeps_change.p_value)),
        *(
            (_with_interval(beyond), text.p_value(beyond.p_value))
            if cell.control
            else (_NONE, _NONE)
        ),
        *compared(_flips(cell.to_memory), _flips(cell.to_neither), _flips(cell.to_context)),
        *(_with_interval(value) for value in (cell.closed_book, cell.lost_both, cell.logit_diff)),
        text.counted(cell.keeps),
    )


def legacy_table(result: ConflictResult) -> Table:
    """The published protocol: yes/no questions after a sentence about something else."""
    return Table(
        caption="The published protocol, for comparison: yes/no questions on cities after one "
        "false sentence about another city; right is what the world says",
        head=("arm", "read by", "share right", "chance", "change", "p", "published grading", "n"),
        rows=tuple(
            (
                cell.arm,
                cell.readout,
                _with_interval(cell.score),
                text.number(cell.floor),
                _NONE if cell.arm == INTACT else _with_interval(cell.change),
                _NONE if cell.arm == INTACT else text.p_value(cell.change.p_value),
                _with_interval(cell.legacy_score) if cell.readout == "generation" else _NONE,
                text.counted(cell.score),
            )
            for cell in result.legacy
        ),
        folded=True,
    )


def _pooled(result: ConflictResult, readout: ConflictReadout) -> list[ConflictCell]:
    return [cell for cell in result.cells if cell.part == (None, None, readout)]


def _flips(value: Estimate) -> str:
    """A share of some of the examples, with how many these are."""
    return f"{_with_interval(value)} of {value.n}"


def _with_interval(value: Estimate) -> str:
    if math.isnan(value.effect):
        return text.UNDEFINED
    return f"{text.number(value.effect)} {text.interval(value)}"
