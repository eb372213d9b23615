"""Tables of the disruption experiment: the arms, losses, neutral text, scores."""

import math
from collections.abc import Sequence
from typing import Final

from mi_massive.arms import Arm
from mi_massive.contrasts import ArmContrast
from mi_massive.controls import behind_label
from mi_massive.disruption import DisruptionResult
from mi_massive.report import text
from mi_massive.report.tables import Table
from mi_massive.scores import INTACT, Cell, Readout
from mi_massive.seed_spreads import Spread
from mi_massive.stats import Estimate

READ_BY: Final[dict[Readout, str]] = {
    "generation": "by generated answers",
    "options": "by the most probable option",
}
_NONE: Final = "–"
_EVERY: Final = ", every arm"


def readouts(result: DisruptionResult) -> tuple[Readout, ...]:
    """The read-outs that some task has, in the order of the run."""
    return tuple(dict.fromkeys(cell.readout for cell in result.cells))


def shown_arms(result: DisruptionResult) -> tuple[Arm, ...]:
    """Arms at the leading arm's k, and those of presets that were not run at it."""
    leading = result.judged or next(iter(result.arms), None)
    at_k = {arm.preset for arm in result.arms if leading is not None and arm.k == leading.k}
    return tuple(
        arm
        for arm in result.arms
        if arm.preset not in at_k or (leading is not None and arm.k == leading.k)
    )


def disruption_tables(result: DisruptionResult) -> list[Table]:
    """What the pictures show open, everything else folded."""
    shown = [arm.name for arm in shown_arms(result)]
    every = [arm.name for arm in result.arms]
    made = [
        presets_table(result),
        counted_table(result),
        *(contrast_table(result, shown, readout) for readout in readouts(result)),
        *([seeds_table(result)] if result.seed_spreads else []),
        effects_table(result, shown),
    ]
    if len(every) > len(shown):
        made += [contrast_table(result, every, readout) for readout in readouts(result)]
        made.append(effects_table(result, every))
    made += [score_table(result, readout) for readout in readouts(result)]
    return made


def presets_table(result: DisruptionResult) -> Table:
    """What each preset edits, in words."""
    presets = {arm.preset: arm for arm in result.arms}
    return Table(
        caption="The arms",
        head=("preset", "role", "k", "what is replaced"),
        rows=tuple(
            (
                name,
                arm.role,
                ", ".join(str(k) for k in sorted({a.k for a in result.arms if a.preset == name})),
                arm.summary,
            )
            for name, arm in presets.items()
        ),
    )


def counted_table(result: DisruptionResult) -> Table:
    """Tasks that the losses are means of: those that the intact model does above chance."""
    first = {contrast.readout: contrast for contrast in reversed(result.contrasts)}
    return Table(
        caption="Tasks above chance before any edit: the losses are means over these",
        head=("read", "contextual", "parametric"),
        rows=tuple(
            (
                READ_BY[readout],
                ", ".join(first[readout].contextual_tasks) or "none",
                ", ".join(first[readout].parametric_tasks) or "none",
            )
            for readout in readouts(result)
            if readout in first
        ),
    )


def contrast_table(result: DisruptionResult, arms: Sequence[str], readout: Readout) -> Table:
    """Losses of both kinds of tasks, their difference, and the difference beyond the control."""
    contrasts = [c for c in result.contrasts if c.arm in arms and c.readout == readout]
    rows = tuple(
        (
            contrast.arm,
            _with_interval(contrast.contextual_loss),
            _with_interval(contrast.parametric_loss),
            _with_interval(contrast.contrast),
            text.p_value(contrast.contrast.p_value),
            contrast.control or _NONE,
            *_beyond(contrast, result),
            text.counted(contrast.contrast),
        )
        for contrast in contrasts
    )
    return Table(
        caption=f"Share of the above-chance score lost, {READ_BY[readout]}{_which(result, arms)} "
        f"({_levels([c.contrast for c in contrasts])}; p not corrected for the number of arms)",
        head=(
            "arm",
            "contextual tasks",
            "parametric tasks",
            "contextual minus parametric",
            "p",
            "control",
            "beyond the control’s difference",
            "p",
            "cross-entropy of neutral text minus the control’s, nats",
            "n",
        ),
        rows=rows,
        folded=_folded(result, arms),
    )


def _beyond(contrast: ArmContrast, result: DisruptionResult) -> tuple[str, str, str]:
    """What goes beyond the matched control, and how equal the two are in general damage."""
    if contrast.control is None:
        return _NONE, _NONE, _NONE
    controls = behind_label(contrast.control, result.effects.arms)
    return (
        _with_interval(contrast.beyond_control),
        text.p_value(contrast.beyond_control.p_value),
        _with_interval(result.effects.added_beyond(contrast.arm, controls)),
    )


def seeds_table(result: DisruptionResult) -> Table:
    """Controls over their seeds beside the treatment: how many draws cost as much as it does."""
    rows = tuple(
        (
            spread.control,
            spread.treatment,
            READ_BY[spread.readout],
            *(
                cell
                for of in (spread.contextual_loss, spread.parametric_loss, spread.contrast)
                for cell in (_drawn(of), text.number(of.treated), text.p_value(of.p_value))
            ),
            f"{spread.n_seeds} seeds",
        )
        for spread in result.seed_spreads
    )
    return Table(
        caption="Controls over their seeds: median [least, most] of the draws beside the treatment "
        "(p: share of draws that cost at least as much, one-sided, itself counted in)",
        head=(
            *("control", "treatment", "read"),
            *("contextual tasks", "treatment’s", "p"),
            *("parametric tasks", "treatment’s", "p"),
            *("contextual minus parametric", "treatment’s", "p"),
            "n",
        ),
        rows=rows,
    )


def _drawn(spread: Spread) -> str:
    if math.isnan(spread.median):
        return text.UNDEFINED
    ends = (text.number(min(spread.drawn)), text.number(max(spread.drawn)))
    return f"{text.number(spread.median)} [{ends[0]}, {ends[1]}]"


def effects_table(result: DisruptionResult, arms: Sequence[str]) -> Table:
    """What each arm does to attention and cross-entropy on neutral text; the intact model first."""
    measured = {name: result.effects.of(name) for name in (INTACT, *arms)}
    rows = tuple(
        (
            name,
            text.number(result.effects.strengths[name]) if name != INTACT else _NONE,
            _with_interval(of["sink_mass"]),
            _with_interval(of["attention_kl"]) if name != INTACT else _NONE,
            _with_interval(of["cross_entropy"]),
            _with_interval(of["added_cross_entropy"]) if name != INTACT else _NONE,
            text.p_value(of["added_cross_entropy"].p_value) if name != INTACT else _NONE,
            text.counted(of["cross_entropy"]),
        )
        for name, of in measured.items()
    )
    return Table(
        caption=f"Neutral text{_which(result, arms)} "
        f"({_levels([of['cross_entropy'] for of in measured.values()])}, over prompts)",
        head=(
            "arm",
            "strength",
            "attention on the first token",
            "change of the attention, KL in nats",
            "cross-entropy, nats a token",
            "added cross-entropy",
            "p",
            "n",
        ),
        rows=rows,
        folded=_folded(result, arms),
    )


def score_table(result: DisruptionResult, readout: Readout) -> Table:
    """Every task under every arm in one read-out, task by task."""
    cells = [cell for cell in result.cells if cell.readout == readout]
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    cells.sort(key=lambda cell: tasks.index(cell.task))  # stable: the order of the arms stays
    generated = readout == "generation"
    own = (
        ("no answer found", "score, published grading", "different 2-grams", "repeated 4-grams")
        if generated
        else ("right option minus the best other, nats",)
    )
    tests = "; ".join(sorted({cell.change.test for cell in cells if cell.arm != INTACT}))
    return Table(
        caption=f"Scores {READ_BY[readout]} ({_levels([cell.score for cell in cells])}; change: "
        f"{tests}, p corrected over all arms, tasks and read-outs; above chance: 0 is a guess, 1 "
        "perfect)",
        head=(
            "task",
            "arm",
            "share right",
            "chance",
            "above chance",
            "change",
            "p",
            "lost share",
            "smallest detectable change",
            *own,
            "kind",
            "n",
        ),
        rows=tuple(_score_row(cell, generated=generated) for cell in cells),
        folded=True,
    )


def _score_row(cell: Cell, *, generated: bool) -> tuple[str, ...]:
    intact = cell.arm == INTACT
    own = (
        (
            text.number(cell.failed_extraction),
            _NONE if math.isnan(cell.legacy_score.effect) else _with_interval(cell.legacy_score),
            _with_interval(cell.distinct_2),
            _with_interval(cell.repetition),
        )
        if generated
        else (_with_interval(cell.logit_diff),)
    )
    stuck = math.isnan(cell.lost_share)
    return (
        cell.task,
        cell.arm,
        _with_interval(cell.score),
        text.number(cell.floor),
        text.number(cell.above_chance),
        _NONE if intact else _with_interval(cell.change),
        _NONE if intact else text.p_value(cell.change.p_value),
        "at chance before" if stuck else _NONE if intact else text.number(cell.lost_share),
        _NONE if intact else text.number(cell.smallest_difference),
        *own,
        cell.kind,
        text.counted(cell.score),
    )


def _with_interval(value: Estimate) -> str:
    if math.isnan(value.effect):
        return text.UNDEFINED
    return f"{text.number(value.effect)} {text.interval(value)}"


def _levels(values: Sequence[Estimate]) -> str:
    levels = sorted({text.level(value) for value in values})
    return f"intervals at {', '.join(levels) or 'no level'}"


def _folded(result: DisruptionResult, arms: Sequence[str]) -> bool:
    """True for the long form of a table whose leading arms stand open above it."""
    return _which(result, arms) == _EVERY


def _which(result: DisruptionResult, arms: Sequence[str]) -> str:
    """What the caption adds; nothing where the pictures show all there is."""
    return _EVERY if len(arms) > len(shown_arms(result)) else ""
