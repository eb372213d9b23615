"""Measure, break, patch, explain and re-test massive values in attention queries and keys.

In models with rotary position embeddings (RoPE) a few dimensions of the queries and keys, the same
ones in neighbouring heads, have norms many times their head's mean; values have none (Jin et al.,
ICML 2025, arXiv:2502.01563).

=============== =============================================================================
models          load_model, HookedModel: hook points, rotary geometry; quantize: rounded weights
capture         capture_norms: prompts -> AttentionNorms, from which all else is computed
concentration   massive dimensions and statistics without a threshold (C1, C2, C9)
bands           where they lie on the frequency axis of RoPE (C8)
symmetry        partners, mirror clusters and phases (C8)
interventions   disrupt: edit chosen dimensions of q, k, v while a model runs; presets by name
tasks           load_task: what a model is asked, and how answers are graded
evaluation      evaluate: a model on a task, intact or disrupted
disruption      run_disruption: tasks and neutral text under each arm (C4, C5)
conflict        run_conflict: the prompt against what training stored, under each arm (C6)
patching        patch: which layers, heads, bands and massive pairs carry the answer (C6)
twins           train_twins: small models that differ in their position encoding (C3, C8, C9)
families        measure_families: one row a model, with and without RoPE (C3)
attribution     attribute: gradient estimates for single rotary pairs, checked exactly
position_shares position against content in the logits of heads, by frequency band
surgery         operate: change the rotation; run_surgery: its frequencies taken apart (C8)
quantization    compare_quantized: rounded weights; run_state_quantization: states in few bits (C7)
claims          scoreboard: verdicts with effect, interval, n and test
patterns        attention patterns and massive activations on one prompt
study, doctor   run_study: all of it for one model; diagnose: what can be trusted on it
report, viz     pages and figures from results; records: provenance, saving and loading
=============== =============================================================================

Every function and dataclass of the package checks its types and shapes when called (beartype,
jaxtyping).
"""

import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

# Before the hook: while one of our modules is being executed, jaxtyping renames the bytecode cache
# of all that is imported meanwhile, and torch would be compiled a second time.
import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
from jaxtyping import install_import_hook

install_import_hook(
    "mi_massive", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

from mi_massive._preload import TransformersFirst  # noqa: E402

sys.meta_path.insert(0, TransformersFirst())

# Functions named like their modules are bound here, over them; those modules are pure and light.
from mi_massive.bands import BandsConfig, BandsResult, bands  # noqa: E402
from mi_massive.concentration import (  # noqa: E402
    ConcentrationConfig,
    ConcentrationResult,
    concentration,
    massive_mask,
    top_k_mask,
)
from mi_massive.symmetry import SymmetryConfig, SymmetryResult, symmetry  # noqa: E402

if TYPE_CHECKING:
    from mi_massive._replacements import Value
    from mi_massive._selections import Selection
    from mi_massive.arms import Arm, make_arms
    from mi_massive.attention_effects import measure_effects
    from mi_massive.attribution import attribute
    from mi_massive.battery import load_tasks, run_battery
    from mi_massive.capture import capture_norms
    from mi_massive.claims import Claim, ScoreboardResult, scoreboard
    from mi_massive.conflict import ConflictConfig, ConflictResult, run_conflict
    from mi_massive.disruption import DisruptionConfig, DisruptionResult, run_disruption
    from mi_massive.doctor import DoctorResult, diagnose
    from mi_massive.effect_matching import match_effect
    from mi_massive.evaluation import evaluate
    from mi_massive.families import FamiliesResult, measure_families
    from mi_massive.interventions import Intervention, Where, disrupt, disruption_hooks
    from mi_massive.model_conflicts import known_conflicts, load_conflicts
    from mi_massive.models import HookedModel, UnsupportedModelError, load_model, quantize
    from mi_massive.norms import AttentionNorms
    from mi_massive.operation import Surgery, operate
    from mi_massive.pair_choices import PairChoice
    from mi_massive.patch_results import (
        AttributionResult,
        PatchedPatternsResult,
        PatchingConfig,
        PatchingResult,
    )
    from mi_massive.patched_patterns import capture_patched_patterns
    from mi_massive.patching import patch
    from mi_massive.pattern_capture import capture_patterns
    from mi_massive.patterns import PatternsResult
    from mi_massive.position_shares import PositionSharesConfig, PositionSharesResult
    from mi_massive.presets import preset
    from mi_massive.prompt_pairs import PromptPair
    from mi_massive.prompts import (
        TokenizedPrompts,
        default_passages,
        read_prompts,
        tokenize_prompts,
    )
    from mi_massive.protection import StateQuantizationConfig, StateQuantizationResult
    from mi_massive.quantization import QuantizationConfig, QuantizationResult, compare_quantized
    from mi_massive.quantization_plans import QuantizationPlan
    from mi_massive.quantizer import quantized_states
    from mi_massive.records import Provenance, load_result, save_result
    from mi_massive.report import ReportResults, build_report
    from mi_massive.rope import LayerGeometry, ModelGeometry, RotaryGeometry
    from mi_massive.scores import EvaluationConfig, TaskResult, compare
    from mi_massive.share_capture import capture_position_shares
    from mi_massive.state_quantization import run_state_quantization
    from mi_massive.stats import Estimate
    from mi_massive.study import StudyConfig, run_study
    from mi_massive.surgery import SurgeryConfig, SurgeryResult, run_surgery
    from mi_massive.surgery_plans import SurgeryArm, surgery_arms
    from mi_massive.tasks import Task, load_own_task, load_task
    from mi_massive.tasks.conflicts import ConflictSet, conflict_pairs
    from mi_massive.twin_arms import TwinShape
    from mi_massive.twin_results import TwinsResult
    from mi_massive.twin_runs import TwinRun, TwinsConfig
    from mi_massive.twins import held_out_prompts, load_twin, train_twins

# Loaded at first use, so that `import mi_massive` stays quick and loads no plotting library. None
# of these is named like a module: importing that module would put it in the function's place.
_NAMES = {
    "arms": ("Arm", "make_arms"),
    "attention_effects": ("measure_effects",),
    "attribution": ("attribute",),
    "battery": ("load_tasks", "run_battery"),
    "capture": ("capture_norms",),
    "claims": ("Claim", "ScoreboardResult", "scoreboard"),
    "conflict": ("ConflictConfig", "ConflictResult", "run_conflict"),
    "disruption": ("DisruptionConfig", "DisruptionResult", "run_disruption"),
    "doctor": ("DoctorResult", "diagnose"),
    "effect_matching": ("match_effect",),
    "evaluation": ("evaluate",),
    "families": ("FamiliesResult", "measure_families"),
    "interventions": ("Intervention", "Selection", "Value", "Where", "disrupt", "disruption_hooks"),
    "model_conflicts": ("known_conflicts", "load_conflicts"),
    "models": ("HookedModel", "UnsupportedModelError", "load_model", "quantize"),
    "norms": ("AttentionNorms",),
    "operation": ("Surgery", "operate"),
    "pair_choices": ("PairChoice",),
    "patch_results": (
        *("AttributionResult", "PatchedPatternsResult", "PatchingConfig", "PatchingResult"),
    ),
    "patched_patterns": ("capture_patched_patterns",),
    "patching": ("patch",),
    "pattern_capture": ("capture_patterns",),
    "patterns": ("PatternsResult",),
    "position_shares": ("PositionSharesConfig", "PositionSharesResult"),
    "presets": ("preset",),
    "prompt_pairs": ("PromptPair",),
    "prompts": ("TokenizedPrompts", "default_passages", "read_prompts", "tokenize_prompts"),
    "protection": ("StateQuantizationConfig", "StateQuantizationResult"),
    "quantization": ("QuantizationConfig", "QuantizationResult", "compare_quantized"),
    "quantization_plans": ("QuantizationPlan",),
    "quantizer": ("quantized_states",),
    "records": ("Provenance", "load_result", "save_result"),
    "report": ("ReportResults", "build_report"),
    "rope": ("LayerGeometry", "ModelGeometry", "RotaryGeometry"),
    "scores": ("EvaluationConfig", "TaskResult", "compare"),
    "share_capture": ("capture_position_shares",),
    "state_quantization": ("run_state_quantization",),
    "stats": ("Estimate",),
    "study": ("StudyConfig", "run_study"),
    "surgery": ("SurgeryConfig", "SurgeryResult", "run_surgery"),
    "surgery_plans": ("SurgeryArm", "surgery_arms"),
    "tasks": ("Task", "load_own_task", "load_task"),
    "tasks.conflicts": ("ConflictSet", "conflict_pairs"),
    "twin_arms": ("TwinShape",),
    "twin_results": ("TwinsResult",),
    "twin_runs": ("TwinRun", "TwinsConfig"),
    "twins": ("held_out_prompts", "load_twin", "train_twins"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "Arm",
    "AttentionNorms",
    "AttributionResult",
    "BandsConfig",
    "BandsResult",
    "Claim",
    "ConcentrationConfig",
    "ConcentrationResult",
    "ConflictConfig",
    "ConflictResult",
    "ConflictSet",
    "DisruptionConfig",
    "DisruptionResult",
    "DoctorResult",
    "Estimate",
    "EvaluationConfig",
    "FamiliesResult",
    "HookedModel",
    "Intervention",
    "LayerGeometry",
    "ModelGeometry",
    "PairChoice",
    "PatchedPatternsResult",
    "PatchingConfig",
    "PatchingResult",
    "PatternsResult",
    "PositionSharesConfig",
    "PositionSharesResult",
    "PromptPair",
    "Provenance",
    "QuantizationConfig",
    "QuantizationPlan",
    "QuantizationResult",
    "ReportResults",
    "RotaryGeometry",
    "ScoreboardResult",
    "Selection",
    "StateQuantizationConfig",
    "StateQuantizationResult",
    "StudyConfig",
    "Surgery",
    "SurgeryArm",
    "SurgeryConfig",
    "SurgeryResult",
    "SymmetryConfig",
    "SymmetryResult",
    "Task",
    "TaskResult",
    "TokenizedPrompts",
    "TwinRun",
    "TwinShape",
    "TwinsConfig",
    "TwinsResult",
    "UnsupportedModelError",
    "Value",
    "Where",
    "attribute",
    "bands",
    "build_report",
    "capture_norms",
    "capture_patched_patterns",
    "capture_patterns",
    "capture_position_shares",
    "compare",
    "compare_quantized",
    "concentration",
    "conflict_pairs",
    "default_passages",
    "diagnose",
    "disrupt",
    "disruption_hooks",
    "evaluate",
    "held_out_prompts",
    "known_conflicts",
    "load_conflicts",
    "load_model",
    "load_own_task",
    "load_result",
    "load_task",
    "load_tasks",
    "load_twin",
    "make_arms",
    "massive_mask",
    "match_effect",
    "measure_effects",
    "measure_families",
    "operate",
    "patch",
    "preset",
    "quantize",
    "quantized_states",
    "read_prompts",
    "run_battery",
    "run_conflict",
    "run_disruption",
    "run_state_quantization",
    "run_study",
    "run_surgery",
    "save_result",
    "scoreboard",
    "surgery_arms",
    "symmetry",
    "tokenize_prompts",
    "top_k_mask",
    "train_twins",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # from git tags, when installed
        return importlib.metadata.version("mi-massive")
    if name not in _HOME:
        raise AttributeError(f"module 'mi_massive' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mi_massive.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
