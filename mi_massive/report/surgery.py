"""The section on frequency surgery: what each band of the rotation is for in this model."""

from mi_massive.report import text
from mi_massive.report.pictures import picture
from mi_massive.report.section import Section
from mi_massive.report.tables import Table
from mi_massive.scores import INTACT
from mi_massive.surgery import SurgeryResult
from mi_massive.viz.surgery import plot_position_shares, plot_surgery


def surgery_section(result: SurgeryResult, *, title: str) -> Section:
    """The section; the curve over bands is there where arms treat single bands."""
    pictures = [
        picture(
            "position-shares",
            "Places or content, band by band",
            "Fast pairs are on the left. Where the solid line is high, heads compare places with "
            "this band whatever the tokens are; near the floor they compare tokens wherever they "
            "are. A band matters only with its part in the variance of the logits.",
            plot_position_shares(result.shares),
        )
    ]
    if any(arm.kind != "other" for arm in result.arms):
        pictures.append(
            picture(
                "bands-treated",
                "Each band without its position, its content, or both",
                "One point a band, treated alone. A band that is not rotated keeps what tokens are "
                "and loses where they stand; with its mean before the rotation in place it is the "
                "other way round. Read a task beside the damage to neutral text in the first "
                "panel.",
                plot_surgery(result),
            )
        )
    return Section(
        word="surgery",
        title=title,
        question=(
            "The rotation of the running model is changed band by band, from fast to slow: left "
            "out, slowed down, shifted; or queries and keys of a band are replaced by their means. "
            f"Tasks of {_counts(result)} examples are asked under each of {len(result.arms)} such "
            "arms, beside neutral text." + _left_out(result)
        ),
        pictures=tuple(pictures),
        tables=(norms_table(result), arms_table(result), distance_table(result)),
        limits=(
            "What training without a band would give: the weights know nothing of the surgery.",
            "What a band does for an ability by itself: compare arms at equal damage to neutral "
            "text.",
            "Anything beyond the lengths asked: a slow pair hardly turns in a short prompt.",
        ),
    )


def arms_table(result: SurgeryResult) -> Table:
    """Neutral text, sink and every task under each arm."""
    asked = list(dict.fromkeys((cell.task, cell.readout) for cell in result.cells))
    changes = {(cell.arm, cell.task, cell.readout): cell.change for cell in result.cells}
    return Table(
        caption=(
            "Every arm: added nats a token of neutral text, attention on the first token, and "
            "change of each task's score (95 % intervals; corrected over all cells)"
        ),
        head=(
            *("arm", "added nats", "p", "first token"),
            *(f"{task} ({readout})" for task, readout in asked),
        ),
        rows=tuple(
            (
                name,
                text.with_interval(effects["added_cross_entropy"]),
                text.p_value(effects["added_cross_entropy"].p_value),
                text.number(effects["sink_mass"].effect),
                *(text.with_interval(changes[name, task, readout]) for task, readout in asked),
            )
            for name in result.effects.arms
            if name != INTACT
            for effects in [result.effects.of(name)]
        ),
        folded=True,
    )


def norms_table(result: SurgeryResult) -> Table:
    """What is massive before the rotation, and what after it."""
    return Table(
        caption=(
            "Does the rotation make massive values? The same queries and keys with the rotation "
            "undone and as they enter the attention; v is not rotated"
        ),
        head=(
            *("projection", "massive per head, before", "after", "change", "p"),
            *("max/mean, before", "after", "ratio", "p", "massive in a pair massive before"),
        ),
        rows=tuple(
            (
                row.projection,
                *(text.with_interval(value) for value in (row.massive_before, row.massive_after)),
                *(text.with_interval(row.massive_change), text.p_value(row.massive_change.p_value)),
                *(text.with_interval(value) for value in (row.peak_before, row.peak_after)),
                *(text.with_interval(row.peak_ratio), text.p_value(row.peak_ratio.p_value)),
                text.with_interval(row.same_pair),
            )
            for row in result.norms
        ),
    )


def distance_table(result: SurgeryResult) -> Table:
    """Answers hidden in the prompt, by how far away they stand."""
    return Table(
        caption="Answers hidden in the prompt, by their distance from its end",
        head=("arm", "task", "tokens away", "examples", "score", "change", "p", "logits", "change"),
        rows=tuple(
            (
                *(cell.arm, f"{cell.task} ({cell.readout})", f"{cell.nearest} to {cell.farthest}"),
                *(f"{cell.score.n:,}", text.with_interval(cell.score)),
                *(text.with_interval(cell.change), text.p_value(cell.change.p_value)),
                *(text.with_interval(cell.logit_diff), text.with_interval(cell.logit_change)),
            )
            for cell in result.distances
        ),
        folded=True,
    )


def _left_out(result: SurgeryResult) -> str:
    if not result.left_out:
        return ""
    return f" Nothing is massive where these would act: {', '.join(result.left_out)}."


def _counts(result: SurgeryResult) -> str:
    counts = dict.fromkeys(cell.score.n for cell in result.cells if cell.arm == INTACT)
    return " and ".join(str(n) for n in sorted(counts))
