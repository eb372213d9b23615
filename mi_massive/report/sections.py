"""What the page says about each analysis: the question, the figures, the tables and the limits."""

from dataclasses import replace

from mi_massive.bands import BandsResult
from mi_massive.concentration import ConcentrationResult
from mi_massive.patterns import PatternsResult
from mi_massive.report import tables
from mi_massive.report.conflict import conflict_section
from mi_massive.report.disruption import disruption_section
from mi_massive.report.patching import patching_section
from mi_massive.report.pictures import Picture, picture
from mi_massive.report.quantization import quantization_section
from mi_massive.report.results import ReportResults
from mi_massive.report.section import Section
from mi_massive.report.surgery import surgery_section
from mi_massive.report.twins import twins_section
from mi_massive.symmetry import SymmetryResult
from mi_massive.viz.curve import plot_curve
from mi_massive.viz.halves import plot_halves
from mi_massive.viz.heads import plot_heads
from mi_massive.viz.layers import plot_layers
from mi_massive.viz.patterns import json_for_html, patterns_data
from mi_massive.viz.wavelengths import plot_wavelengths


def sections(results: ReportResults) -> list[Section]:
    """Every section in the order of the page; one without a result says so.

    Disruption, conflict and patching are experiments of their own: a report without one is silent
    unless a note speaks of it.
    """
    made = [
        _concentration(results.concentration, results.control),
        _control(results.control, results.concentration) if results.control else _absent("control"),
        _bands(results.bands) if results.bands else _absent("bands"),
        _symmetry(results.symmetry, results) if results.symmetry else _absent("symmetry"),
        _patterns(results.patterns) if results.patterns else _absent("patterns"),
    ]
    if results.disruption:
        made.append(disruption_section(results.disruption, title=_TITLES["disruption"]))
    elif _notes("disruption", results):
        made.append(_absent("disruption"))
    if results.conflict:
        made.append(conflict_section(results.conflict, title=_TITLES["conflict"]))
    elif _notes("conflict", results):
        made.append(_absent("conflict"))
    if results.patching or results.attributions or results.patched_patterns:
        made.append(
            patching_section(
                results.patching,
                title=_TITLES["patching"],
                attributions=results.attributions,
                patterns=results.patched_patterns,
            )
        )
    elif _notes("patching", results):
        made.append(_absent("patching"))
    if results.quantization or results.quantized:
        both = (results.quantization, results.quantized)
        made.append(quantization_section(*both, title=_TITLES["quantization"]))
    if results.surgery:
        made.append(surgery_section(results.surgery, title=_TITLES["surgery"]))
    made += [
        twins_section(twins, title=_TITLES["twins"], number=number)
        for number, twins in enumerate(results.twins, start=1)
    ]
    return [replace(section, notes=_notes(section.word, results)) for section in made]


def general_notes(results: ReportResults) -> list[str]:
    """Notes that belong to no section."""
    return [note for note in results.notes if _note_word(note) is None]


_TITLES = {
    "concentration": "Where are the massive dimensions?",
    "control": "A model without rotary position embeddings",
    "bands": "Which rotary frequencies hold the energy?",
    "symmetry": "Do the two halves of a head mirror each other?",
    "patterns": "The massive dimension, token by token",
    "disruption": "What does the model lose with its massive values?",
    "conflict": "When prompt and memory disagree, which does the model follow?",
    "patching": "Which parts carry the answer?",
    "quantization": "Must massive values be protected?",
    "surgery": "What is each rotary frequency for?",
    "twins": "Does RoPE cause it? Twins that differ in nothing else",
}


def _concentration(result: ConcentrationResult, control: ConcentrationResult | None) -> Section:
    ratio = result.config.ratio
    color_max = _color_max(result)
    return Section(
        word="concentration",
        title=_TITLES["concentration"],
        question=(
            "The norm of a head dimension is taken over all token positions of all prompts, after "
            "the rotation where the layer rotates. A dimension is massive where its norm is more "
            f"than {ratio:g} times the mean norm of its head. Values go through the same "
            "computation: they are the built-in negative control."
        ),
        pictures=(
            picture(
                "heads",
                "Every head of one layer",
                "One row a head, one column a dimension. Bright columns that run through several "
                "heads are dimensions the heads share; a dotted cell is massive. One colour range, "
                "up to twice the threshold, serves all layers and panels; cells beyond it are "
                "purple with a triangle. Move the slider to change the layer.",
                plot_heads(
                    result, layer=result.layers[len(result.layers) // 2], color_max=color_max
                ),
            ),
            picture(
                "layers",
                "All layers at once",
                "One row a layer, from the input at the top to the output at the bottom; each cell "
                "is the largest value among the heads of the layer.",
                plot_layers(result, color_max=color_max),
            ),
            picture(
                "curve",
                "From the first layer to the last",
                "The line is the number of massive dimensions per head, the band its interval over "
                "prompts. The control without rotary position embeddings, where there is one, has "
                "the same vertical scale.",
                plot_curve(result, control=control),
            ),
        ),
        tables=tuple(tables.concentration_tables(result)),
        limits=(
            "What the dimensions do: nothing was disturbed here.",
            "Anything about single tokens: a norm sums over positions, and the first token often "
            "behaves unlike all others.",
            "A property of the threshold alone: read max/mean beside the counts.",
        ),
    )


def _control(result: ConcentrationResult, model: ConcentrationResult) -> Section:
    return Section(
        word="control",
        title=_TITLES["control"],
        question=(
            f"The same computation on {result.provenance.model}, whose positions are not "
            "rotary. If rotation is behind massive values, this model should have none."
        ),
        pictures=(
            picture(
                "control-layers",
                "All layers of the control",
                "As above, in the same colour range: a control without massive values stays dark.",
                plot_layers(result, color_max=_color_max(model)),
            ),
        ),
        tables=(tables.control_table(result),),
        limits=(
            "A cause: the two models differ in more than their position encoding (data, size, "
            "training objective, direction of attention).",
            "That no other model without rotary position embeddings has massive values.",
        ),
    )


def _bands(result: BandsResult) -> Section:
    left_out = result.skipped_layers
    skipped = (
        f" Layers without rotation are left out: {', '.join(map(str, left_out))}."
        if left_out
        else ""
    )
    return Section(
        word="bands",
        title=_TITLES["bands"],
        question=(
            "A rotary layer turns pairs of dimensions, each pair at its own frequency. This "
            "section asks at which wavelengths, in tokens per full turn, the norm of queries and "
            "keys lies, and how that relates to the context the model was trained on." + skipped
        ),
        pictures=(
            picture(
                "wavelengths",
                "Energy over wavelength",
                "Fast pairs are on the left, slow pairs on the right. The thick line is the mean "
                "over layers and heads; the level line is the share that every pair would have if "
                "none stood out. A pair to the right of the upright line never made a full turn "
                "within the training context.",
                plot_wavelengths(result),
            ),
        ),
        tables=tuple(tables.bands_tables(result)),
        limits=(
            "That rotary position embeddings cause the concentration: that is a claim about "
            "training, and needs models that differ in nothing else.",
            "What a frequency is used for.",
        ),
    )


def _symmetry(result: SymmetryResult, results: ReportResults) -> Section:
    layout = {
        "half_split": "dimension p of the first half turns with dimension p of the second half",
        "interleaved": "neighbouring dimensions turn together",
    }[result.layout]
    pairs = _n_pairs(results)
    pictures = () if pairs is None else (_halves(result, results.concentration, pairs),)
    return Section(
        word="symmetry",
        title=_TITLES["symmetry"],
        question=(
            f"In this model {layout}. If massive values belong to rotary pairs, a dimension should "
            "be large where its partner is, and a head should show two clusters that mirror each "
            "other. The table compares this with partners permuted in all layers alike, and with a "
            "null that shifts one half against the other and so keeps its smooth profile."
        ),
        pictures=pictures,
        tables=tuple(tables.symmetry_tables(result)),
        limits=(
            "A cause: the rotation itself mixes the two members of a pair over positions and so "
            "makes their norms alike, also where nothing was learned.",
            "Clusters that the threshold cuts in two or joins.",
        ),
    )


def _patterns(result: PatternsResult) -> Section:
    return Section(
        word="patterns",
        title=_TITLES["patterns"],
        question=(
            "One prompt, a few heads. Each strip shows the value of the head's largest dimension "
            "at every token, blue for positive and orange for negative; the attention pattern "
            "below shows where the same head looks, row by row."
        ),
        tables=(tables.patterns_table(result),),
        tokens=json_for_html(patterns_data(result)),
        limits=(
            "Anything general: these are a few heads on one prompt, chosen for their size.",
            "That the dimension makes the pattern: both come from the same head, nothing was "
            "changed.",
        ),
    )


def _halves(symmetry: SymmetryResult, concentration: ConcentrationResult, pairs: int) -> Picture:
    return picture(
        "halves",
        "The two halves laid over each other",
        "The coloured line is the mean over heads of the first members of the rotary pairs, the "
        "dashed line that of their partners; thin lines are single heads. Two mirrored clusters "
        "show as lines that peak together. Values have no reason to: they are the control.",
        plot_halves(symmetry, concentration, n_pairs=pairs),
    )


def _n_pairs(results: ReportResults) -> int | None:
    """Rotary pairs of a head, where all layers have the same number; None where they do not."""
    if results.bands is None or bool(results.bands.wavelengths.isnan().any()):
        return None
    return results.bands.wavelengths.shape[1]


def _color_max(result: ConcentrationResult) -> float:
    """Twice the threshold: a few heads far beyond it must not darken all others."""
    return 2 * result.config.ratio


def _absent(word: str) -> Section:
    return Section(
        word=word,
        title=_TITLES[word],
        question="",
        limits=(),
        absent=True,
    )


def _notes(word: str, results: ReportResults) -> tuple[str, ...]:
    return tuple(
        note.partition(":")[2].strip() for note in results.notes if _note_word(note) == word
    )


def _note_word(note: str) -> str | None:
    word = note.partition(":")[0].strip().lower()
    return word if word in _TITLES else None
