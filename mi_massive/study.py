"""The observational study of one model: capture, analyses, control and verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mi_massive.bands import BandsConfig, BandsResult, bands
from mi_massive.capture import capture_norms
from mi_massive.capture_patterns import capture_patterns
from mi_massive.claims import scoreboard
from mi_massive.concentration import ConcentrationConfig, ConcentrationResult, concentration
from mi_massive.models.base import HookedModel
from mi_massive.patterns import PatternsResult
from mi_massive.prompts import TokenizedPrompts
from mi_massive.report.results import ReportResults
from mi_massive.symmetry import SymmetryConfig, SymmetryResult, symmetry


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
    """Heads of the token-level view; 0 leaves it out."""


def run_study(
    model: HookedModel,
    prompts: TokenizedPrompts | Sequence[str],
    *,
    control: HookedModel | None = None,
    control_prompts: TokenizedPrompts | Sequence[str] | None = None,
    config: StudyConfig | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ReportResults:
    """Measure a model's massive values and judge the paper's observational claims on it.

    Args:
        model: The model to judge.
        prompts: Texts, or what `tokenize_prompts` returns.
        control: A model without rotary position embeddings, for claim C3.
        control_prompts: The same texts for the control where `prompts` are token ids of the
            model's own tokenizer.
        config: Defaults throughout if left out.
        on_progress: Called with the number of prompts finished since the last call, of the model
            and then the control.

    Returns:
        Everything that `build_report` needs.

    Raises:
        ValueError: If the control rotates its queries and keys, or the prompts do not fit a model.
    """
    config = config or StudyConfig()
    if control is not None and control.geometry.rotates:
        raise ValueError(
            f"control must be a model without rotary position embeddings, "
            f"got {control.name}, which rotates"
        )
    notes: list[str] = []
    norms = capture_norms(
        model,
        prompts,
        batch_size=config.batch_size,
        max_length=config.max_length,
        skip_first=config.skip_first,
        on_progress=on_progress,
    )
    concentrated = concentration(norms, config=config.concentration)
    banded: BandsResult | None = None
    symmetric: SymmetryResult | None = None
    if norms.geometry.rotates:
        banded = bands(norms, config=config.bands)
        symmetric = symmetry(norms, config=config.symmetry)
    else:
        notes += [
            f"{section}: {model.name} does not rotate its queries and keys, "
            "so there is no frequency to place them on."
            for section in ("bands", "symmetry")
        ]
    controlled: ConcentrationResult | None = None
    if control is None:
        notes.append(
            "control: No model without rotary position embeddings was measured beside this one."
        )
    else:
        control_norms = capture_norms(
            control,
            prompts if control_prompts is None else control_prompts,
            batch_size=config.batch_size,
            max_length=config.max_length,
            skip_first=config.skip_first,
            on_progress=on_progress,
        )
        controlled = concentration(control_norms, config=config.concentration)
    patterns: PatternsResult | None = None
    if config.n_pattern_heads and model.has_head:
        text = prompts.texts[0] if isinstance(prompts, TokenizedPrompts) else prompts[0]
        n_heads = min(config.n_pattern_heads, len(norms.layers))
        patterns = capture_patterns(model, text, norms, n_heads=n_heads)
    else:
        notes.append(
            "patterns: Left out, because "
            + (
                "it was not asked for."
                if model.has_head
                else "the checkpoint has no language-modelling head."
            )
        )
    return ReportResults(
        scoreboard=scoreboard(concentrated, bands=banded, symmetry=symmetric, control=controlled),
        concentration=concentrated,
        bands=banded,
        symmetry=symmetric,
        patterns=patterns,
        control=controlled,
        notes=tuple(notes),
    )
