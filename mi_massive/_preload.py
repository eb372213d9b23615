"""Import transformers before the modules of this package that need it, and from outside of them.

While one of our modules is being executed, the type checks' import hook gives the bytecode of all
that is imported meanwhile another name, so that transformers would be compiled anew in every
process, for seconds. A finder that finds nothing itself is asked before a module is executed.
"""

import importlib
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Final

_PACKAGE: Final = __name__.partition(".")[0]
_PARTS: Final = ("modeling_utils", "models.auto.modeling_auto", "models.auto.tokenization_auto")
"""Of transformers, which bring most of the rest."""
NEED_TRANSFORMERS: Final = frozenset(
    """
    _arm_costs _cells _conflict_answers _conflict_claims _disruption_claims _disruptor
    _harness_arguments _method_claims _patch_runs _patch_setup _prompt_batches
    _protection_gains _quantization_claims _sources _twin_claims _twin_folders
    _twin_training arms attention_effects attribution battery capture claims
    command_speed conflict control_comparisons disruption doctor effect_matching
    evaluation families fluency generation generation_speed harness interventions
    model_conflicts models.attention models.base models.compression models.engines
    models.library_patching models.load models.oneshot models.passes models.resume
    models.shapes models.sites models.twins next_tokens operation patch_battery
    patch_speed patched_patterns patching pattern_capture protection quantization
    quantization_results quantizer report report.conflict report.control_tables
    report.disruption report.disruption_tables report.folder report.frames report.page
    report.patching report.published report.quantization report.quantized report.results
    report.section report.sections report.summary report.surgery report.tables
    report.twins seed_spreads share_capture speed state_errors state_quantization study
    surgery surgery_plans sweep sweep.base sweep.checks sweep.grid sweep.inline
    sweep.plan sweep.processes sweep.ray sweep.reading sweep.run sweep.slurm
    sweep.status sweep.table sweep.worker token_scores twins viz viz.arms viz.conflict
    viz.dose viz.quantization viz.quantized viz.sink viz.surgery viz.task_scores
    weight_protection weight_rows
    """.split()  # noqa: SIM905
)
"""Modules of this package that import it, directly or not."""


class TransformersFirst(MetaPathFinder):
    """Imports transformers as soon as a module that needs it is looked for."""

    def __init__(self) -> None:
        self._waits = True

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> None:
        """None, always; others find the module."""
        package, _, module = fullname.partition(".")
        if self._waits and package == _PACKAGE and module in NEED_TRANSFORMERS:
            self._waits = False  # and stays in the list of finders, which is being gone through
            for part in _PARTS:
                importlib.import_module(f"transformers.{part}")
