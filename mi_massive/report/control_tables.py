"""The table of a treatment beside the intact model and every control, task by task."""

from mi_massive.disruption import DisruptionResult
from mi_massive.report import text
from mi_massive.report.disruption_tables import READ_BY, readouts
from mi_massive.report.tables import Table
from mi_massive.scores import INTACT, Readout


def control_tables(result: DisruptionResult) -> list[Table]:
    """One table a read-out for the arm that claims are about; none where nothing was compared."""
    made = [control_table(result, readout) for readout in readouts(result)]
    return [table for table in made if table.rows]


def control_table(result: DisruptionResult, readout: Readout) -> Table:
    """What the judged arm costs each task more than each control."""
    leading = result.judged
    shown = [
        one
        for one in result.comparisons
        if leading is not None and one.arm == leading.name and one.readout == readout
    ]
    rows = tuple(
        (
            one.task,
            one.control if one.n_seeds == 1 else f"{one.control} ({one.n_seeds} seeds)",
            text.with_interval(one.score),
            text.p_value(one.score.p_value),
            *(
                (text.with_interval(one.logit_diff), text.p_value(one.logit_diff.p_value))
                if readout == "options"
                else ()
            ),
            text.counted(one.score),
        )
        for one in sorted(shown, key=lambda one: one.control != INTACT)
    )
    return Table(
        caption=f"What {leading.name if leading else 'no arm'} costs each task more than the "
        f"intact model and than each control, {READ_BY[readout]} (positive: more; paired over "
        "examples, sign flips, p Holm-corrected over this table’s tasks and controls)",
        head=(
            *("task", "beside", "share of right answers", "p"),
            *(("logit difference, nats", "p") if readout == "options" else ()),
            "n",
        ),
        rows=rows,
        folded=True,
    )
