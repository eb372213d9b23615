"""The section on disruption: what tasks and neutral text lose under each arm."""

from mi_massive.disruption import DisruptionResult
from mi_massive.report.control_tables import control_tables
from mi_massive.report.disruption_tables import (
    READ_BY,
    disruption_tables,
    readouts,
    shown_arms,
)
from mi_massive.report.pictures import Picture, picture
from mi_massive.report.published import published_table
from mi_massive.report.section import Section
from mi_massive.scores import Readout
from mi_massive.viz.arms import defined
from mi_massive.viz.dose import plot_dose
from mi_massive.viz.sink import plot_sink
from mi_massive.viz.task_scores import plot_task_scores


def disruption_section(result: DisruptionResult, *, title: str) -> Section:
    """The section; a read-out that was not run has no picture and no table."""
    found = readouts(result)
    ks = sorted({arm.k for arm in result.arms})
    pictures = [_task_scores(result, readout) for readout in found]
    if len(ks) > 1:
        pictures += [_dose(result, readout) for readout in found]
    if found:
        pictures.append(_sink(result, max(found, key=lambda r: _told(result, r))))
    published = published_table(result)
    return Section(
        word="disruption",
        title=title,
        question=_question(result, ks),
        pictures=tuple(pictures),
        tables=(
            *disruption_tables(result),
            *control_tables(result),
            *([published] if published else []),
        ),
        limits=_LIMITS,
    )


_LIMITS = (
    "What larger models do. A small model is at chance on many of the published tasks, and a task "
    "at chance has nothing to lose: it says nothing for or against the claim.",
    "That two kinds of tasks differ where only their floors, formats or lengths do. Losses are "
    "shares of the score above chance, but yes/no questions, generated answers and long prompts "
    "break in different ways; the tasks named pairs and letters hold these equal.",
    "The use of context or of stored knowledge itself: a task’s kind is what it was made for.",
    "A causal reader. The dimensions of a prompt are chosen on the whole of it, as in the paper, "
    "so an early token is edited by what comes later.",
    "That an edit which moves less does less harm for a good reason: compare arms at equal change "
    "of the attention (effect_matched) and at equal damage to neutral text. The smallest "
    "dimensions, the only published control, are harmless almost by construction.",
    "The sink as a cause or as none: sink_preserving and sink_only take it apart only as far as "
    "the first token’s own rows go.",
    "Effects below the smallest change that so few examples could show. The neutral text is a "
    "handful of passages; its intervals are over these.",
)


def _question(result: DisruptionResult, ks: list[int]) -> str:
    leading = result.judged
    named = (
        f" The verdicts of the scoreboard are about the arm “{leading.name}”, the paper’s own edit."
        if leading
        else ""
    )
    dose = "k\u00a0=\u00a0" + ", ".join(map(str, ks))
    return (
        "Does a model that loses its massive values lose its use of the context more than its "
        "stored knowledge? In each arm some dimensions of every head’s queries and keys are "
        f"replaced while the prompt is read ({dose} of each head). Treatments edit the largest "
        "dimensions, controls edit others; the same examples are asked in every arm and of the "
        f"intact model.{named}"
    )


def _task_scores(result: DisruptionResult, readout: Readout) -> Picture:
    shown = [arm.name for arm in shown_arms(result)]
    left_out = len(result.arms) - len(shown)
    more = f" The other {left_out} arms are in the tables." if left_out else ""
    return picture(
        f"task-scores-{readout}",
        f"Every task, {READ_BY[readout]}",
        "One block a task, one row an arm in the order of the legend, the intact model first. A "
        "dot is the share of right answers, its bar the interval; several dots in a row are "
        "seeds. The dotted upright line is the score of a guesser. Where the intact model is not "
        f"above it (“at chance”) nothing can be lost.{more}",
        plot_task_scores(result, readout=readout, arms=shown),
    )


def _dose(result: DisruptionResult, readout: Readout) -> Picture:
    return picture(
        f"dose-{readout}",
        f"What more dimensions cost, {READ_BY[readout]}",
        "One line a preset. The first two panels show the share of the above-chance score that "
        "is lost, 0 nothing and 1 all, of all tasks together that were above chance before. "
        "The third shows the rise of the cross-entropy on neutral text: judge losses at equal "
        "damage. Bars are intervals, or the range over seeds. Points at one k stand a little "
        "apart.",
        plot_dose(result, readout=readout),
    )


def _told(result: DisruptionResult, readout: Readout) -> int:
    """Losses by kind that a read-out can tell, over all arms; of equals the first is taken."""
    own = [c for c in result.contrasts if c.readout == readout]
    return sum(defined(loss) for c in own for loss in (c.contextual_loss, c.parametric_loss))


def _sink(result: DisruptionResult, readout: Readout) -> Picture:
    return picture(
        "sink",
        "Is it the attention sink?",
        "One sign an arm, labelled with its k; the upright line is the intact model. If the loss "
        "of the sink did the damage, signs would rise from this line to the left and nowhere "
        "else. On the right, full signs are the losses of contextual tasks, hollow ones those of "
        f"parametric tasks of the same arm, {READ_BY[readout]}.",
        plot_sink(result, readout=readout),
    )
