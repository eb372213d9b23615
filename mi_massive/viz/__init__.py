"""Figures: `plot_*` turn results into Plotly figures, `view_patterns` into a CircuitsVis view.

Reads results only: no model is run and no statistic computed here. What is undefined or outside a
colour range is marked and counted, never clipped unseen.
"""

from mi_massive.viz.conflict import plot_conflict
from mi_massive.viz.curve import plot_curve
from mi_massive.viz.dose import plot_dose
from mi_massive.viz.halves import plot_halves
from mi_massive.viz.heads import plot_heads
from mi_massive.viz.layers import plot_layers
from mi_massive.viz.patching import plot_massive_patching, plot_patching
from mi_massive.viz.patterns import view_patched_patterns, view_patterns
from mi_massive.viz.quantization import plot_protection
from mi_massive.viz.quantized import plot_quantized
from mi_massive.viz.save import find_browser, save_figure
from mi_massive.viz.sink import plot_sink
from mi_massive.viz.surgery import plot_position_shares, plot_surgery
from mi_massive.viz.task_scores import plot_task_scores
from mi_massive.viz.twins import plot_abilities, plot_emergence
from mi_massive.viz.wavelengths import plot_wavelengths

__all__ = [
    "find_browser",
    "plot_abilities",
    "plot_conflict",
    "plot_curve",
    "plot_dose",
    "plot_emergence",
    "plot_halves",
    "plot_heads",
    "plot_layers",
    "plot_massive_patching",
    "plot_patching",
    "plot_position_shares",
    "plot_protection",
    "plot_quantized",
    "plot_sink",
    "plot_surgery",
    "plot_task_scores",
    "plot_wavelengths",
    "save_figure",
    "view_patched_patterns",
    "view_patterns",
]
