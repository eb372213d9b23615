"""The section on quantization: must massive channels of states and weights be protected?"""

from mi_massive.protection import ProtectionGain, StateQuantizationResult
from mi_massive.quantization_results import QuantizationResult
from mi_massive.report import text
from mi_massive.report.pictures import Picture, picture
from mi_massive.report.quantized import quantized_pictures, quantized_question, quantized_tables
from mi_massive.report.section import Section
from mi_massive.report.tables import Table
from mi_massive.scores import INTACT
from mi_massive.viz.quantization import plot_protection

_BY = {
    "massive": "massive channels kept",
    "first": "first token kept",
    "hadamard": "Hadamard rotation",
}
_AGAINST = {
    "nothing": "nothing kept",
    "random": "random channels kept",
    "same_band": "others of the same band",
    "norm_matched": "next channels in rank",
    "others": "mean of the others",
}


def quantization_section(
    states: StateQuantizationResult | None,
    copies: QuantizationResult | None = None,
    *,
    title: str,
) -> Section:
    """The section on quantized states, on quantized copies, or both."""
    parts = [part for part in (states, copies) if part is not None]
    weights_missing = copies is None
    return Section(
        word="quantization",
        title=title,
        question=" ".join(
            states_question(part)
            if isinstance(part, StateQuantizationResult)
            else quantized_question(part)
            for part in parts
        ),
        pictures=(
            *(() if states is None else _pictures(states)),
            *(() if copies is None else quantized_pictures(copies)),
        ),
        tables=(
            *(() if states is None else _tables(states)),
            *(() if copies is None else quantized_tables(copies)),
        ),
        limits=(
            "Anything about quantized weights, or that one quantizer is better than another."
            if weights_missing
            else "That a method wins because it protects massive channels: methods differ in more.",
            "That a massive channel is needed exactly: kept out of a shared scale it also lets the "
            "others be finer.",
            "Scores on small numbers of examples: read log-probabilities beside them.",
        ),
    )


def states_question(result: StateQuantizationResult) -> str:
    """What was stored in few bits, and what differs between arms."""
    plan = result.config.plan
    kept = " and ".join(f"{n:.2f} ({p})" for p, n in result.massive_per_head.items())
    return (
        f"{' and '.join(plan.projections)} are stored in few bits while everything else stays "
        f"as it is: {plan.statement}. Nothing but the protection differs between arms: the "
        f"massive channels of each head ({kept} on average) stay exact, or exactly as many "
        "others of the same head, or none, with the first token's entries exact or not."
    )


def _pictures(result: StateQuantizationResult) -> tuple[Picture, ...]:
    return (
        picture(
            "protection",
            "What protection saves, beside equally many other channels",
            "Fewer bits are further right. Massive channels matter where their line lies below "
            "those of as many others.",
            plot_protection(result),
        ),
    )


def _tables(result: StateQuantizationResult) -> tuple[Table, ...]:
    """Scores have a table where tasks were asked."""
    scores = (scores_table(result),) if result.cells else ()
    return (gains_table(result), arms_table(result), *scores)


def gains_table(result: StateQuantizationResult) -> Table:
    """What each protection saves of neutral text."""
    found = [gain for gain in result.gains if gain.measure == "cross_entropy"]
    return Table(
        caption=(
            "Nats a token of neutral text saved by a protection (95 % intervals over passages, p "
            "corrected over all gains in this measure)"
        ),
        head=(
            *("bits", "protection", "against", "first token", "nats saved", "p"),
            *("extra bits a value", "nats an extra bit"),
        ),
        rows=tuple(_gain_row(gain) for gain in found),
        folded=len(found) > 12,
    )


def _gain_row(gain: ProtectionGain) -> tuple[str, ...]:
    return (
        *(str(gain.bits), _BY[gain.by], _AGAINST[gain.against]),
        "exact in both" if gain.first_kept else "–" if gain.by == "first" else "quantized in both",
        *(text.with_interval(gain.gain), text.p_value(gain.gain.p_value)),
        *(text.number(gain.extra_bits), text.number(gain.per_bit) if gain.extra_bits else "–"),
    )


def arms_table(result: StateQuantizationResult) -> Table:
    """Neutral text, sink and errors of the states under each arm."""
    projections = result.errors.projections
    return Table(
        caption="Every arm: damage to neutral text, and relative errors of the stored states",
        head=(
            *("arm", "extra bits a value", "added nats", "first token's attention"),
            *(
                f"error of {p}, {part.replace('_', ' ')}"
                for p in projections
                for part in result.errors.of(result.arms[0].name, p)
            ),
        ),
        rows=tuple(
            (
                name,
                text.number(result.extra_bits[name]),
                text.with_interval(effects["added_cross_entropy"]),
                text.number(effects["sink_mass"].effect),
                *(
                    text.number(value.effect)
                    for p in projections
                    for value in result.errors.of(name, p).values()
                ),
            )
            for name in result.effects.arms
            if name != INTACT
            for effects in [result.effects.of(name)]
        ),
        folded=True,
    )


def scores_table(result: StateQuantizationResult) -> Table:
    """Tasks asked of quantized states."""
    return Table(
        caption="Tasks under quantized states (change from full precision, paired)",
        head=("arm", "task", "kind", "read by", "examples", "score", "change", "p", "logits"),
        rows=tuple(
            (
                *(cell.arm, cell.task, cell.kind, cell.readout, f"{cell.score.n:,}"),
                *(
                    text.with_interval(cell.score),
                    text.with_interval(cell.change),
                    text.p_value(cell.change.p_value),
                ),
                text.with_interval(cell.logit_diff),
            )
            for cell in result.cells
        ),
        folded=True,
    )
