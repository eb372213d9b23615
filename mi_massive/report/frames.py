"""Results -> the report's Parquet tables: unrounded, one file a name, the results' own views."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from mi_massive.axes import PROJECTIONS
from mi_massive.concentration import ConcentrationResult
from mi_massive.patch_results import AttributionResult, PatchingResult
from mi_massive.report.results import ReportResults
from mi_massive.report.text import printable


def frames(results: ReportResults) -> dict[str, Any]:
    """Every table that these results fill, under its name in `TABLES`."""
    made = {name: table(results) for name, table in TABLES.items()}
    return {name: frame for name, frame in made.items() if frame is not None}


def _dimensions(result: ConcentrationResult) -> Any:
    """One row a projection, layer (block index), head and dimension: its norm, and if massive."""
    import pandas as pd

    parts: list[Any] = []
    for projection in PROJECTIONS:
        part = result.of(projection)
        layer, head, dimension = np.indices(part.norms.shape)
        columns = {
            "projection": projection,
            "layer": np.asarray(result.layers)[layer.ravel()],
            "head": head.ravel(),
            "dimension": dimension.ravel(),
            "norm": part.norms.flatten().numpy(),
            "massive": part.massive.flatten().numpy(),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _controls(results: ReportResults) -> Any:
    """Treatments beside controls, task by task."""
    if results.disruption is None or not results.disruption.comparisons:
        return None
    return results.disruption.comparisons_frame()


def _patterns(results: ReportResults) -> Any:
    if results.patterns is None:
        return None
    frame = results.patterns.to_frame()
    return frame.assign(token=frame["token"].map(printable))


def _cells(patches: Sequence[PatchingResult | AttributionResult]) -> Any:
    """One row a cell of every patch; axes that a patch does not have are empty."""
    import pandas as pd

    frames: list[Any] = []
    for result in patches:
        frame: Any = result.to_frame().astype(dict.fromkeys(result.axes, "string"))
        granularity = result.granularity if isinstance(result, PatchingResult) else "pair"
        frames.append(
            frame.assign(site=result.site, granularity=granularity, direction=result.direction)
        )
    return pd.concat(frames, ignore_index=True) if frames else None


def _twins(results: ReportResults) -> Any:
    """One row a measured step of a twin."""
    import pandas as pd

    frames = [result.to_frame() for result in results.twins]
    return pd.concat(frames, ignore_index=True) if frames else None


def _abilities(results: ReportResults) -> Any:
    """What disruptions leave of the abilities of trained twins; none for corpora of text."""
    import pandas as pd

    frames = [
        result.abilities_frame().assign(
            corpus=result.provenance.settings["corpus"], context=result.config.shape.context
        )
        for result in results.twins
        if result.conditions
    ]
    return pd.concat(frames, ignore_index=True) if frames else None


TABLES: Final[dict[str, Callable[[ReportResults], Any]]] = {
    "scoreboard": lambda results: results.scoreboard.to_frame(),
    "concentration": lambda results: results.concentration.to_frame(),
    "concentration_layers": lambda results: results.concentration.layer_frame(),
    "dimensions": lambda results: _dimensions(results.concentration),
    "control": lambda results: results.control and results.control.to_frame(),
    "control_layers": lambda results: results.control and results.control.layer_frame(),
    "bands": lambda results: results.bands and results.bands.to_frame(),
    "symmetry": lambda results: results.symmetry and results.symmetry.to_frame(),
    "symmetry_phases": lambda results: results.symmetry and results.symmetry.phase_frame(),
    "patterns": _patterns,
    "disruption": lambda results: results.disruption and results.disruption.to_frame(),
    "conflict": lambda results: results.conflict and results.conflict.to_frame(),
    "disruption_controls": _controls,
    "disruption_effects": lambda results: results.disruption and results.disruption.effects_frame(),
    "patching": lambda results: _cells(results.patching),
    "attribution": lambda results: _cells(results.attributions),
    "quantization": lambda results: results.quantization and results.quantization.to_frame(),
    "protection": lambda results: results.quantization and results.quantization.gains_frame(),
    "quantized": lambda results: results.quantized and results.quantized.to_frame(),
    "quantized_scores": lambda results: results.quantized and results.quantized.scores_frame(),
    "surgery": lambda results: results.surgery and results.surgery.to_frame(),
    "twins": _twins,
    "twin_abilities": _abilities,
}
"""How each table is made, None where the results lack it. A report writes and owns these names and
no other Parquet file."""
