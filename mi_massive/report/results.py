"""What a report is built from."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from mi_massive._brief import Brief
from mi_massive.bands import BandsResult
from mi_massive.claims import ScoreboardResult
from mi_massive.concentration import ConcentrationResult
from mi_massive.conflict import ConflictResult
from mi_massive.disruption import DisruptionResult
from mi_massive.patch_results import (
    AttributionResult,
    PatchedPatternsResult,
    PatchingResult,
)
from mi_massive.patterns import PatternsResult
from mi_massive.protection import StateQuantizationResult
from mi_massive.quantization_results import QuantizationResult
from mi_massive.records import Provenance
from mi_massive.surgery import SurgeryResult
from mi_massive.symmetry import SymmetryResult
from mi_massive.twin_results import TwinsResult


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ReportResults(Brief):
    """The results of one model, and of its control, that a report shows."""

    scoreboard: ScoreboardResult
    concentration: ConcentrationResult
    bands: BandsResult | None
    """None for a model without rotary position embeddings."""
    symmetry: SymmetryResult | None
    patterns: PatternsResult | None
    control: ConcentrationResult | None
    """Concentration of a model without rotary position embeddings."""
    notes: tuple[str, ...]
    """Sentences for the reader, such as why a part was left out. A note that opens with a section's
    word and a colon ("bands: ...", also concentration, control, symmetry, patterns, disruption,
    conflict, patching, quantization, surgery, twins) stands in that section, any other at the top
    of the page."""
    disruption: DisruptionResult | None = None
    """The experiment with tasks; a report without it has no such section."""
    conflict: ConflictResult | None = None
    """The experiment with conflicts; a report without it has no such section."""
    patching: tuple[PatchingResult, ...] = ()
    """Patches, each with a picture; a report without them has no such section."""
    attributions: tuple[AttributionResult, ...] = ()
    """Gradient estimates of single pairs, shown in the same section."""
    patched_patterns: PatchedPatternsResult | None = None
    """Attention of the heads that matter, shown in the same section."""
    quantization: StateQuantizationResult | None = None
    """Quantized states with channels kept exact; a report without it has no such section."""
    quantized: QuantizationResult | None = None
    """Quantized copies of the model, shown in the same section."""
    surgery: SurgeryResult | None = None
    """Frequencies of the rotation taken apart; a report without it has no such section."""
    twins: tuple[TwinsResult, ...] = ()
    """Small models trained for the purpose, one set a corpus; none have no section."""

    def __post_init__(self) -> None:
        own = (
            *(self.scoreboard, self.bands, self.symmetry, self.patterns),
            *(self.disruption, self.conflict),
            *(*self.patching, *self.attributions, self.patched_patterns),
            *(self.quantization, self.quantized, self.surgery),
        )
        model = self.provenance.model
        for result in own:
            if result is not None and result.provenance.model != model:
                raise ValueError(
                    f"results must be of one model, got {model!r} and "
                    f"{result.provenance.model!r}; only control may be of another"
                )

    @property
    def provenance(self) -> Provenance:
        """Where the measurements of the model come from."""
        return self.concentration.provenance

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Settings of each analysis that was run, under its word: thresholds, resamples, seed."""
        analyses = {
            "concentration": self.concentration,
            "control": self.control,
            "bands": self.bands,
            "symmetry": self.symmetry,
            "disruption": self.disruption,
            "conflict": self.conflict,
            "patching": self.patching[0] if self.patching else None,
        }
        return {
            word: _flat(asdict(result.config))
            for word, result in analyses.items()
            if result is not None
        }


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of a nested config among them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= cast("dict[str, Any]", value) if isinstance(value, dict) else {name: value}
    return flat
