"""The observational study of one model: capture, analyses, control and verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mi_massive.bands import BandsConfig, bands
from mi_massive.capture import capture_norms
from mi_massive.claims import scoreboard
from mi_massive.concentration import ConcentrationConfig, ConcentrationResult, concentration
from mi_massive.conflict import ConflictResult
from mi_massive.disruption import DisruptionResult
from mi_massive.fluency import FluencyResult
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms
from mi_massive.patch_results import AttributionResult, PatchedPatternsResult, PatchingResult
from mi_massive.pattern_capture import capture_patterns
from mi_massive.patterns import PatternsResult
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.protection import StateQuantizationResult
from mi_massive.quantization_results import QuantizationResult
from mi_massive.report.results import ReportResults
from mi_massive.surgery import SurgeryResult
from mi_massive.symmetry import SymmetryConfig, symmetry
from mi_massive.twin_results import TwinsResult


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What a study measures, and how."""

    concentration: ConcentrationConfig = field(default_factory=ConcentrationConfig)
    bands: BandsConfig = field(default_factory=BandsConfig)
    symmetry: SymmetryConfig = field(default_factory=SymmetryConfig)
    batch_size: int = 8
    max_length: int | None = None
    skip_first: bool = False
    n_pattern_heads: int = 6
    """Heads of the token-level view, at most one a layer; 0 leaves it out."""


def run_study(
    model: HookedModel,
    prompts: TokenizedPrompts | Sequence[str],
    *,
    control: HookedModel | None = None,
    control_prompts: TokenizedPrompts | Sequence[str] | None = None,
    disruption: DisruptionResult | None = None,
    conflict: ConflictResult | None = None,
    fluency: FluencyResult | None = None,
    patching: Sequence[PatchingResult] = (),
    attributions: Sequence[AttributionResult] = (),
    patched_patterns: PatchedPatternsResult | None = None,
    quantization: StateQuantizationResult | None = None,
    quantized: QuantizationResult | None = None,
    surgery: SurgeryResult | None = None,
    twins: Sequence[TwinsResult] = (),
    notes: Sequence[str] = (),
    config: StudyConfig | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ReportResults:
    """Measure a model's massive values and judge the paper's claims on it.

    Args:
        model: The model to judge.
        prompts: Texts, or what `tokenize_prompts` returns (for a chat template).
        control: A model without rotary position embeddings, for claim C3.
        control_prompts: The same texts for the control where `prompts` are token ids of the
            model's own tokenizer. Cut to the control's context where they are longer; a note of
            the results says so.
        disruption: Of the same model, from `run_battery` or `run_disruption`, for C4 and C5.
        conflict: Of the same model, from `run_conflict`, for C6.
        fluency: Of the same model, from `measure_fluency`, to judge C5b.
        patching: Of the same model, from `patch`, for the report's section.
        attributions: Of the same model, from `attribute`, for the same section.
        patched_patterns: Of the same model, from `capture_patched_patterns`, for the same section.
        quantization: Of the same model, from `run_state_quantization`, for C7 and its section.
        quantized: Of the same model, from `compare_quantized`, for C7 and the same section.
        surgery: Of the same model, from `run_surgery`, for its section.
        twins: From `train_twins`; the first judges C3b and C9b, all judge C8e and have a section.
        notes: Sentences for the reader beside the study's own, see `ReportResults.notes`.
        config: Defaults throughout if left out.
        on_progress: Called with the number of prompts finished since the last call, of the model
            and then the control.

    Returns:
        Everything that `build_report` needs.

    Raises:
        ValueError: If the control rotates its queries and keys, the prompts do not fit a model, or
            they are token ids and `control_prompts` is missing.
    """
    config = config or StudyConfig()
    _require_control(control, prompts, control_prompts)
    norms = _capture(model, prompts, config, on_progress)
    concentrated = concentration(norms, config=config.concentration)
    rotates = norms.geometry.rotates
    banded = bands(norms, config=config.bands) if rotates else None
    symmetric = symmetry(norms, config=config.symmetry) if rotates else None
    said = _notes(model, control, disruption, config)
    controlled: ConcentrationResult | None = None
    if control is not None:
        others, cut = _fit(control, prompts if control_prompts is None else control_prompts, config)
        controlled = concentration(
            _capture(control, others, config, on_progress), config=config.concentration
        )
        said += cut
    patterns: PatternsResult | None = None
    if config.n_pattern_heads and model.has_head:
        tokenized = isinstance(prompts, TokenizedPrompts)
        first = prompts.input_ids[0] if tokenized else prompts[0]
        patterns = capture_patterns(model, first, norms, n_heads=config.n_pattern_heads)
    return ReportResults(
        scoreboard=scoreboard(
            concentrated,
            bands=banded,
            symmetry=symmetric,
            control=controlled,
            disruption=disruption,
            conflict=conflict,
            fluency=fluency,
            quantization=quantization,
            quantized=quantized,
            twins=twins,
        ),
        concentration=concentrated,
        bands=banded,
        symmetry=symmetric,
        patterns=patterns,
        control=controlled,
        disruption=disruption,
        conflict=conflict,
        patching=tuple(patching),
        attributions=tuple(attributions),
        patched_patterns=patched_patterns,
        quantization=quantization,
        quantized=quantized,
        surgery=surgery,
        twins=tuple(twins),
        notes=(*said, *notes),
    )


def _require_control(
    control: HookedModel | None,
    prompts: TokenizedPrompts | Sequence[str],
    control_prompts: TokenizedPrompts | Sequence[str] | None,
) -> None:
    if control is None:
        return
    if control.geometry.rotates:
        raise ValueError(
            f"control must be a model without rotary position embeddings, "
            f"got {control.name}, which rotates"
        )
    if isinstance(prompts, TokenizedPrompts) and control_prompts is None:
        raise ValueError(
            "control_prompts must be given when prompts are token ids, which mean other words to "
            "the control, got None; pass the texts"
        )


def _fit(
    control: HookedModel, prompts: TokenizedPrompts | Sequence[str], config: StudyConfig
) -> tuple[TokenizedPrompts, tuple[str, ...]]:
    """The control's prompts, cut to its own context, and a note if that cut any.

    The model is judged on its own prompts, which may be longer than the control can read.
    """
    if not isinstance(prompts, TokenizedPrompts):
        prompts = tokenize_prompts(control.tokenizer, prompts, max_length=config.max_length)
    context = control.geometry.training_context
    wanted = [ids[: config.max_length] for ids in prompts.input_ids]
    rows = tuple(ids[:context] for ids in wanted)
    n_cut = sum(len(row) < len(ids) for row, ids in zip(rows, wanted, strict=True))
    if not n_cut:
        return prompts, ()
    fitting = replace(prompts, input_ids=rows, n_truncated=max(n_cut, prompts.n_truncated))
    return fitting, (
        f"control: {n_cut} of {len(rows)} prompts were cut to {context} tokens, the context of "
        f"{control.name}.",
    )


def _capture(
    model: HookedModel,
    prompts: TokenizedPrompts | Sequence[str],
    config: StudyConfig,
    on_progress: Callable[[int], None] | None,
) -> AttentionNorms:
    return capture_norms(
        model,
        prompts,
        batch_size=config.batch_size,
        max_length=config.max_length,
        skip_first=config.skip_first,
        on_progress=on_progress,
    )


def _notes(
    model: HookedModel,
    control: HookedModel | None,
    disruption: DisruptionResult | None,
    config: StudyConfig,
) -> tuple[str, ...]:
    """Why a part of the study is missing, each note under the word of its section."""
    notes: list[str] = []
    if not model.geometry.rotates:
        notes += [
            f"{section}: {model.name} does not rotate its queries and keys, "
            "so there is no frequency to place them on."
            for section in ("bands", "symmetry")
        ]
    if control is None:
        notes.append(
            "control: No model without rotary position embeddings was measured beside this one."
        )
    if not config.n_pattern_heads:
        notes.append("patterns: Left out, because it was not asked for.")
    elif not model.has_head:
        notes.append("patterns: Left out, because the checkpoint has no language-modelling head.")
    if disruption is None:
        notes.append("disruption: No intervention was run, so C4 and C5 are not judged.")
    return tuple(notes)
