"""What the section on quantization shows of quantized copies: a picture and tables."""

from collections.abc import Sequence
from typing import Final

from mi_massive.published import QUANTIZED_SOURCE
from mi_massive.quantization_results import QuantizationResult
from mi_massive.quantization_schemes import method_names
from mi_massive.report import text
from mi_massive.report.pictures import Picture, picture
from mi_massive.report.tables import Table
from mi_massive.viz.quantized import plot_quantized

_AGAINST: Final = {
    "nothing": "nothing kept",
    "random": "random rows",
    "same_band": "rows of the same band",
    "norm_matched": "next rows in rank",
    "others": "mean of the others",
}


def quantized_question(result: QuantizationResult) -> str:
    """What was rounded, and how, in a paragraph."""
    levels = list(dict.fromkeys(scheme.level for scheme in result.schemes))
    methods = list(dict.fromkeys(scheme.method for scheme in result.schemes))
    before = result.provenance.weights_note
    note = f" The base weights themselves: {before}." if before else ""
    return (
        f"The weights of all linear layers but the head are rounded by {', '.join(methods)} "
        f"({', '.join(levels)}), every method from the same model and calibration texts, beside "
        f"full precision on the same passages and examples.{note}"
    )


def quantized_pictures(result: QuantizationResult) -> tuple[Picture, ...]:
    """Scores relative to full precision; none without tasks."""
    if not result.cells:
        return ()
    readout = result.config.evaluation.readouts[0]
    return (
        picture(
            "quantized",
            "What quantized weights keep, task by task",
            "The dashed line is full precision. Methods that protect massive values are purple "
            "(AWQ) and green (SmoothQuant); bars at the right are printed for other models in "
            f"{QUANTIZED_SOURCE}, where SmoothQuant never quantized and no bar shows full "
            "precision.",
            plot_quantized(result, readout=readout),
        ),
    )


def quantized_tables(result: QuantizationResult) -> tuple[Table, ...]:
    """Schemes, methods at equal bits, scores, and rows kept exact, where there are any."""
    made = [schemes_table(result)]
    if result.methods:
        made.append(methods_table(result))
    if result.rows is not None:
        made.append(rows_table(result))
    if result.cells:
        made.append(copies_table(result))
    return tuple(made)


def schemes_table(result: QuantizationResult) -> Table:
    """Storage, damage, masks and errors of every scheme."""
    masks = {(change.arm, change.projection): change for change in result.masks}
    named = result.errors.projections
    return Table(
        caption=(
            "Quantized copies: nats a token added to neutral text (95 % intervals over passages), "
            "massive channels that moved within a head, appeared and vanished, and relative errors "
            "of rotated states"
        ),
        head=(
            *("scheme", "bits a weight", "added nats", "p"),
            *(f"{p}: massive channels, moved / appeared / vanished" for p in named),
            *(
                f"error of {p}, {part}"
                for p in named
                for part in result.errors.of(result.schemes[0].name, p)
            ),
        ),
        rows=tuple(
            (
                *(name, text.number(result.bits_per_weight[name])),
                *(text.with_interval(damage), text.p_value(damage.p_value)),
                *(
                    f"{m.n_before:,}: {m.moved} / {m.appeared} / {m.vanished}"
                    for m in (masks[name, p] for p in named)
                ),
                *(
                    text.number(value.effect)
                    for p in named
                    for value in result.errors.of(name, p).values()
                ),
            )
            for name in (scheme.name for scheme in result.schemes)
            for damage in [result.damage(name)]
        ),
    )


def _methods(groups: Sequence[Sequence[str]]) -> str:
    return ", ".join(method_names(groups))


def methods_table(result: QuantizationResult) -> Table:
    """What methods without protection lose beyond those with it."""
    return Table(
        caption=(
            "Share of the above-chance score that methods without protection lose beyond those "
            "that protect, at equal bits (95 % intervals over examples)"
        ),
        head=("bits", "without", "with", "read by", "contextual", "parametric", "difference", "p"),
        rows=tuple(
            (
                m.level,
                *map(_methods, (m.first, m.second)),
                m.readout,
                *map(text.with_interval, (m.contextual, m.parametric, m.contrast)),
                text.p_value(m.contrast.p_value),
            )
            for m in result.methods
        ),
    )


def rows_table(result: QuantizationResult) -> Table:
    """What rows that write massive channels save of rounded W_Q and W_K."""
    gains = () if result.rows is None else result.rows.gains
    found = [gain for gain in gains if gain.measure == "cross_entropy"]
    return Table(
        caption=(
            "Only W_Q and W_K are rounded to nearest: nats a token saved by keeping the rows that "
            "write massive channels (95 % intervals over passages, p corrected over all gains)"
        ),
        head=("bits", "against", "nats saved", "p", "extra bits a weight", "nats an extra bit"),
        rows=tuple(
            (
                str(gain.bits),
                _AGAINST.get(gain.against, gain.against),
                *(text.with_interval(gain.gain), text.p_value(gain.gain.p_value)),
                text.number(gain.extra_bits),
                text.number(gain.per_bit) if gain.extra_bits else "–",
            )
            for gain in found
        ),
    )


def copies_table(result: QuantizationResult) -> Table:
    """Tasks asked of quantized copies."""
    return Table(
        caption="Tasks asked of quantized copies (change from full precision, paired)",
        head=("scheme", "task", "kind", "read by", "examples", "score", "change", "p", "logits"),
        rows=tuple(
            (
                *(cell.arm, cell.task, cell.kind, cell.readout, f"{cell.score.n:,}"),
                *(text.with_interval(cell.score), text.with_interval(cell.change)),
                *(text.p_value(cell.change.p_value), text.with_interval(cell.logit_diff)),
            )
            for cell in result.cells
        ),
        folded=True,
    )
