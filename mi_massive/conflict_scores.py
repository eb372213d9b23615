"""What a model did on conflicts, and what changed between two conditions, example by example.

Three read-outs of the same next token, because each alone can mislead:

- `next_token`: the most probable token of the whole vocabulary. Exact, but a model that says `the`
  before every name follows nothing and keeps nothing.
- `candidates`: the most probable of all single-token objects of the relation. A guess is right by
  one in as many, so a model that an edit has destroyed gives neither answer. Decides the claims.
- `two_answers`: the more probable of context answer and fact. Blind to a model that knows nothing
  any more: it is then right in half of the cases, and that looks like memory.

Does not show: that an answer comes from the context or from memory. It is named after the one that
holds it; the closed-book score beside it says whether there is any memory left to fall back on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from mi_massive.controls import Controls, control_label
from mi_massive.proportions import mcnemar_p_value, proportion
from mi_massive.records import Provenance
from mi_massive.scores import INTACT
from mi_massive.stats import Estimate, estimate, holm

ConflictReadout = Literal["next_token", "candidates", "two_answers"]
CONFLICT_READOUTS: Final[tuple[ConflictReadout, ...]] = ("next_token", "candidates", "two_answers")

DECIDING: Final[ConflictReadout] = "candidates"
"""The read-out of the claims, and of relations and styles apart."""

Said = Literal["context", "memory", "neither"]
"""Which answer was given: the one that the context states, the fact, or another one."""

Flags = Bool[np.ndarray, "example"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What follows one prompt."""

    said: dict[str, Said] = field(hash=False)
    """By read-out."""
    logit_diff: float
    """Log-probability of the context's answer minus that of the fact, in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictAnswer:
    """One subject, asked after a conflicting and after a neutral context."""

    id: str
    relation: str
    style: str
    conflict: Reading
    closed_book: Reading
    """After the neutral context, where only memory can give the fact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictAnswers:
    """Every answer of a model in one condition."""

    answers: tuple[ConflictAnswer, ...] = field(repr=False)
    n_edits: int
    """Entries that the intervention edited; 0 without one."""
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictCell:
    """One arm on the known conflicts, or on those of one relation or style, in one read-out.

    Changes are paired with the intact model, example by example: interval by bootstrap over
    examples, p by McNemar's exact test, Holm-corrected over the arms of the same part and read-out.
    """

    arm: str
    relation: str | None
    """None: all."""
    style: str | None
    """None: all."""
    readout: ConflictReadout
    follows: Estimate
    """Share that gives the context's answer."""
    keeps: Estimate
    """Share that gives the fact, against the context."""
    neither: Estimate
    """Share that gives another answer."""
    follows_change: Estimate
    keeps_change: Estimate
    """Flips to memory minus flips away from it, as a share of all examples."""
    to_memory: Estimate
    """Of the examples that followed the context when intact, the share that now gives the fact."""
    to_neither: Estimate
    """Of the same examples, the share that now gives another answer."""
    to_context: Estimate
    """Of the examples that kept memory when intact, the share that now follows the context."""
    closed_book: Estimate
    """Share that gives the fact after a neutral context."""
    lost_both: Estimate
    """Share that gives neither answer under conflict and not the fact closed-book."""
    logit_diff: Estimate
    """Context answer minus fact in nats, under conflict, mean over examples."""
    logit_diff_change: Estimate
    """Paired with the intact model; sign-flip test, corrected as the other changes."""
    control: str | None
    """What was matched to this arm: an arm, a condition with the number of its seeds, or None."""
    beyond_control: Estimate
    """`keeps_change` minus that of the control, mean over its seeds, paired; NaN without one."""

    @property
    def part(self) -> tuple[str | None, str | None, ConflictReadout]:
        """Examples and read-out: what the cells of different arms share."""
        return self.relation, self.style, self.readout


def said(answers: ConflictAnswers, readout: ConflictReadout, *, closed_book: bool) -> list[Said]:
    """What was given, example by example."""
    readings = [a.closed_book if closed_book else a.conflict for a in answers.answers]
    return [reading.said[readout] for reading in readings]


def conflict_cells(
    intact: ConflictAnswers,
    by_arm: Mapping[str, ConflictAnswers],
    *,
    controls: Controls,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[ConflictCell, ...]:
    """Cells of the intact model and of every arm: all conflicts, each relation, each style.

    Args:
        intact: Of the known conflicts.
        by_arm: Of the same conflicts in the same order, by the name of the arm.
        controls: The matched control of an arm, where it has one: every seed of it.
        n_resamples: Of the bootstrap, and of the test of the logit difference.
        seed: Of both.

    Returns:
        All conflicts first, in every read-out; then relations and styles, read among the
        candidates. Within each the intact model first, then the arms. Without any conflict
        everything is NaN.

    Raises:
        ValueError: If an arm did not answer the same conflicts.
    """
    ids = [answer.id for answer in intact.answers]
    for name, answers in by_arm.items():
        if [answer.id for answer in answers.answers] != ids:
            raise ValueError(
                f"by_arm[{name!r}] must answer the same conflicts in the same order as the intact "
                f"model ({len(ids)}), got {len(answers.answers)}; run them on one list"
            )
    relations = dict.fromkeys(answer.relation for answer in intact.answers)
    styles = dict.fromkeys(answer.style for answer in intact.answers)
    parts = [(None, None), *((r, None) for r in relations), *((None, s) for s in styles)]
    averages = partial(estimate, n_of="examples", n_resamples=n_resamples, seed=seed)
    every = {INTACT: intact, **by_arm}
    cells: list[ConflictCell] = []
    for relation, style in parts:
        chosen = np.array(
            [relation in (None, a.relation) and style in (None, a.style) for a in intact.answers],
            dtype=bool,
        )
        differences = _differences(every, chosen, averages)
        whole = relation is None and style is None
        for readout in CONFLICT_READOUTS if whole else (DECIDING,):
            conditions = {
                name: _Condition(answers, readout, chosen) for name, answers in every.items()
            }
            made = [
                ConflictCell(
                    arm=name,
                    relation=relation,
                    style=style,
                    readout=readout,
                    **_shares(conditions[INTACT], after, averages),
                    **differences[name],
                    **_against(conditions, name, controls.get(name, ()), averages),
                )
                for name, after in conditions.items()
            ]
            cells += _corrected(made)
    return tuple(cells)


_Average = Callable[..., Estimate]
"""Mean over examples with its interval."""


class _Condition:
    """What one arm said on the chosen examples, as arrays."""

    def __init__(self, answers: ConflictAnswers, readout: ConflictReadout, chosen: Flags) -> None:
        given = np.array(said(answers, readout, closed_book=False), dtype=str)[chosen]
        recalled = np.array(said(answers, readout, closed_book=True), dtype=str)[chosen]
        self.follows: Flags = given == "context"
        self.keeps: Flags = given == "memory"
        self.neither: Flags = given == "neither"
        self.recalls: Flags = recalled == "memory"


def _shares(before: _Condition, after: _Condition, averages: _Average) -> dict[str, Any]:
    return {
        "follows": proportion(after.follows),
        "keeps": proportion(after.keeps),
        "neither": proportion(after.neither),
        "follows_change": _change(before.follows, after.follows, averages),
        "keeps_change": _change(before.keeps, after.keeps, averages),
        "to_memory": proportion(after.keeps[before.follows]),
        "to_neither": proportion(after.neither[before.follows]),
        "to_context": proportion(after.follows[before.keeps]),
        "closed_book": proportion(after.recalls),
        "lost_both": proportion(after.neither & ~after.recalls),
    }


def _differences(
    every: Mapping[str, ConflictAnswers], chosen: Flags, averages: _Average
) -> dict[str, dict[str, Any]]:
    """Logit differences of each arm and their change, which are the same in every read-out."""
    diffs: dict[str, Float[np.ndarray, "example"]] = {
        name: np.array([a.conflict.logit_diff for a in answers.answers], dtype=np.float64)[chosen]
        for name, answers in every.items()
    }
    return {
        name: {
            "logit_diff": averages(own),
            "logit_diff_change": averages(own - diffs[INTACT], null=0.0, alternative="two-sided"),
        }
        for name, own in diffs.items()
    }


def _against(
    conditions: Mapping[str, _Condition],
    name: str,
    controls: Sequence[str],
    averages: _Average,
) -> dict[str, Any]:
    """The share that keeps memory, against the matched control, or the mean over its seeds."""
    own, others = conditions[name].keeps, [conditions[control].keeps for control in controls]
    if not others:
        beyond = _UNDEFINED
    elif len(others) == 1:
        beyond = _change(others[0], own, averages)
    else:
        differences = own - np.mean(others, axis=0)
        beyond = averages(differences, null=0.0, alternative="two-sided")
    return {"control": control_label(controls), "beyond_control": beyond}


_UNDEFINED: Final = Estimate(
    effect=math.nan, low=math.nan, high=math.nan, n=0, n_of="examples", test="no control"
)


def _change(before: Flags, after: Flags, averages: _Average) -> Estimate:
    """Share after minus share before, on the same examples."""
    return replace(
        averages(after.astype(np.float64) - before.astype(np.float64)),
        test="paired bootstrap over examples; McNemar exact",
        p_value=mcnemar_p_value(before, after),
        null=0.0,
    )


_CHANGES: Final = ("follows_change", "keeps_change", "logit_diff_change")


def _corrected(cells: list[ConflictCell]) -> list[ConflictCell]:
    """The p of each change corrected over the arms; the intact model is compared with nothing."""
    corrected: list[dict[str, Any]] = [{} for _ in cells]
    for name in _CHANGES:
        changes: list[Estimate] = [getattr(cell, name) for cell in cells]
        tested = np.array(
            [
                math.nan if cell.arm == INTACT else change.p_value
                for cell, change in zip(cells, changes, strict=True)
            ]
        )
        for fields, change, p in zip(corrected, changes, holm(tested), strict=True):
            fields[name] = replace(change, p_value=float(p))
    return [replace(cell, **fields) for cell, fields in zip(cells, corrected, strict=True)]
