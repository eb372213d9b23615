"""The section on twins: models that differ in their position encoding alone, as they train."""

import math

from mi_massive.report import text
from mi_massive.report.pictures import picture
from mi_massive.report.section import Section
from mi_massive.report.tables import Table
from mi_massive.stats import Estimate
from mi_massive.twin_arms import TWIN_ARMS, leading_rotation, rotating
from mi_massive.twin_curves import loss_difference, massive_over_steps
from mi_massive.twin_results import ABILITIES, TwinsResult
from mi_massive.viz.twins import plot_abilities, plot_emergence


def twins_section(result: TwinsResult, *, title: str, number: int = 1) -> Section:
    """The section; losses and abilities are there for twins trained on the mixture alone."""
    shape, config, corpus = result.config.shape, result.config, result.provenance.settings["corpus"]
    again = "" if number == 1 else f"-{number}"
    pictures = [
        picture(
            f"emergence{again}",
            "Massive values as they appear",
            "One line an encoding, the mean over seeds; the shade is its 95 % interval. Step 0, "
            "the random weights, stands at the left. An encoding that causes the concentration "
            "parts from the others in queries and keys, and not in values.",
            plot_emergence(result),
        ),
        picture(
            f"emergence-loss{again}",
            "The same at equal loss",
            "Learning goes from left to right. Encodings that learn at different speeds are "
            "compared at one place: what they have learned, not how long they took.",
            plot_emergence(result, over="loss"),
        ),
    ]
    tables = [arms_table(result), contrast_table(result)]
    if any(run.edits for run in result.runs):
        tables += [losses_table(result), abilities_table(result)]
        pictures.append(
            picture(
                f"abilities{again}",
                "What disruptions cost a trained twin",
                "Recall asks what the prompt says, facts what training stored, in one format; 1 is "
                "every answer right, the dotted line chance. Bars are intervals over seeds.",
                plot_abilities(result),
            )
        )
    stopped = "".join(f" {run}: {why}." for run, why in result.failures.items())
    return Section(
        word="twins",
        number=number,
        title=f"{title}: {corpus}, windows of {shape.context}",
        question=(
            f"Small models of {shape.n_layers} layers and {shape.n_heads} heads of {shape.d_head} "
            f"dimensions, the same weights at the start and the same {config.n_steps:,} batches of "
            f"{config.batch_size} windows of {shape.context} tokens "
            f"({corpus}), {config.n_seeds} seeds. They differ in "
            f"their position encoding alone, so what differs in the end is caused by it.{stopped}"
        ),
        pictures=tuple(pictures),
        tables=tuple(tables),
        limits=(
            "That large models come to their massive values in the same way: these are small.",
            "That the concentration is needed: what the others lose beside it stands in the table.",
            "More than a few seeds can: the intervals assume that seeds vary normally.",
        ),
    )


def arms_table(result: TwinsResult) -> Table:
    """Each encoding at the end of its training."""
    return Table(
        caption=(
            "Trained twins (mean and 95 % interval over seeds; max/mean is a geometric mean over "
            "heads and layers; massive: dimensions a head above 5 times its mean; half way: step "
            "of each seed at which q or k over v, or the sink, was half there, if it rose; sink "
            "after k: ratio of these steps, above 1 where k concentrates before the first token "
            "draws attention)"
        ),
        head=(
            *("encoding", "held-out loss", "q over v", "k over v", "massive: q", "massive: k"),
            "first token's attention",
            *(
                "half way: q",
                "half way: k",
                "half way: sink",
                "sink after k, times",
                "no full turn: q",
                "no full turn: k",
                "by chance",
            ),
            *("halves alike: q", "halves alike: k"),
        ),
        rows=tuple(_arm_row(result, arm) for arm in result.config.arms),
    )


def _arm_row(result: TwinsResult, arm: str) -> tuple[str, ...]:
    slow = [result.slow_share(arm, projection) for projection in ("q", "k")]
    return (
        TWIN_ARMS[arm].statement,
        text.with_interval(result.final_loss(arm)),
        text.with_interval(result.excess("q", arm=arm)),
        text.with_interval(result.excess("k", arm=arm)),
        *(text.with_interval(massive_over_steps(result, arm, p)[-1]) for p in ("q", "k")),
        text.with_interval(result.sink(arm)),
        _steps(result.halfway(arm, "q")),
        _steps(result.halfway(arm, "k")),
        _steps(result.halfway(arm, "sink")),
        text.with_interval(result.order(arm)),
        *(text.with_interval(share) for share in slow),
        text.null(slow[0]),
        *(text.with_interval(result.halves(arm, projection)) for projection in ("q", "k")),
    )


def contrast_table(result: TwinsResult) -> Table:
    """Every encoding with rotation over every one without, then RoPE over other rotations.

    All at equal loss. Without plain RoPE the first rotation takes its place.
    """
    arms = result.config.arms
    turning, leading = rotating(arms), leading_rotation(arms)
    pairs = [(arm, other) for arm in turning for other in arms if other not in turning]
    pairs += [(leading, other) for other in turning if leading and other != leading]
    return Table(
        caption=(
            "max/mean of one encoding over that of another, at the lowest loss that both reach; "
            "loss: of the trained twins, less that of the other, seed by seed, in nats"
        ),
        head=(
            *("encoding", "against", "q", "p", "k", "p", "v", "p", "q, layer 0", "k, layer 0"),
            "loss",
        ),
        rows=tuple(
            (
                TWIN_ARMS[arm].statement,
                TWIN_ARMS[other].statement,
                *(
                    shown
                    for projection in ("q", "k", "v")
                    for estimate in [result.contrast(projection, arm=arm, against=other)]
                    for shown in (text.with_interval(estimate), text.p_value(estimate.p_value))
                ),
                *(
                    text.with_interval(result.contrast(projection, arm=arm, against=other, layer=0))
                    for projection in ("q", "k")
                ),
                text.with_interval(loss_difference(result, arm, against=other)),
            )
            for arm, other in pairs
        ),
    )


def losses_table(result: TwinsResult) -> Table:
    """What disruptions take from recall and from facts, and how much more from recall."""
    conditions = [name for name in result.conditions if name != "intact"]
    return Table(
        caption=(
            "What disruptions take: lost share of right answers (difference and 95 % interval over "
            "seeds). Selectivity is the loss of recall minus that of facts; over random, minus the "
            "selectivity of as many random dimensions. p is not corrected for many tests"
        ),
        head=(
            *("encoding", "disruption", "recall lost", "facts lost", "selectivity", "p"),
            *("over random", "p", "over random, nats", "p"),
        ),
        rows=tuple(
            (
                TWIN_ARMS[arm].statement,
                name,
                *(text.with_interval(result.lost(arm, name, each)) for each in ABILITIES),
                *_tested(result.selectivity(arm, name)),
                *(
                    shown
                    for measure in (0, 1)
                    for shown in _over_random(result, arm, name, measure)
                ),
            )
            for arm in result.config.arms
            for name in conditions
        ),
        folded=True,
    )


def _over_random(result: TwinsResult, arm: str, name: str, measure: int) -> tuple[str, ...]:
    preset, _, dose = name.partition(" ")
    if preset == "random":
        return ("", "")
    control = f"random {dose}"
    return _tested(result.selectivity(arm, name, against=control, measure=measure))


def _tested(estimate: Estimate) -> tuple[str, ...]:
    return text.with_interval(estimate), text.p_value(estimate.p_value)


def abilities_table(result: TwinsResult) -> Table:
    """Recall and facts of each encoding under each disruption."""
    return Table(
        caption="Share of right answers, and mean log-probability of the right one in nats",
        head=("encoding", "disruption", "recall", "facts", "recall, nats", "facts, nats"),
        rows=tuple(
            (
                TWIN_ARMS[arm].statement,
                name,
                *(
                    text.with_interval(result.ability(arm, name, ability, measure))
                    for measure in (0, 1)
                    for ability in ("recall", "facts")
                ),
            )
            for arm in result.config.arms
            for name in result.conditions
        ),
        folded=True,
    )


def _steps(values: list[float]) -> str:
    if all(math.isnan(value) for value in values):
        return "did not rise"
    return ", ".join("none" if math.isnan(v) else text.number(round(v)) for v in values)
