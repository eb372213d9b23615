"""The architecture as a table, and the proof that the package keeps to it.

Imports go downwards only. A name below is a module or a package (a family: `models` stands for
every file in `models/`). Within a layer modules may import each other, but never in a circle.
A module that is not in the table fails: give it its place here first.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

from mi_massive._preload import NEED_TRANSFORMERS

LAYERS: dict[int, tuple[str, ...]] = {
    # Words, checks, numbers, records: know no model and no rotary embedding.
    0: (
        *("axes", "_checks", "_columns", "_logs", "_code", "_cores", "stats", "small_samples"),
        *("proportions", "records", "published", "_preload", "_brief"),
    ),
    # Pure: tensors or texts in, tensors or results out.
    1: (
        *("rope", "norms", "concentration", "bands", "symmetry"),
        # Parts of the analyses above.
        *("_agreement", "_head_statistics", "_pairs", "_band_tests"),
        *("_clusters", "_partner_tests", "_phase_offsets", "_concentration_tests"),
        *("prompts", "_prompt_sources", "prompt_pairs"),
        # Pairs of a surgery, parts of logits by band, norms before and after the rotation.
        *("pair_choices", "_band_logits", "rotation_norms", "position_shares"),
        # Sums of a capture; what a token-level view holds.
        *("_reductions", "patterns"),
        # What an intervention chooses and writes; what a text repeats.
        *("_selections", "_replacements", "text_measures"),
        # Values stored in few bits, and back.
        *("_fake_quant", "quantization_plans"),
        # What twins differ in and are trained on.
        *("twin_arms", "_twin_corpora"),
        # How weights are rounded.
        "quantization_schemes",
        # What a patch replaces, tests and gives.
        *("patch_results", "_patch_units", "_patch_statistics"),
    ),
    # Touch a model: the only importers of transformer_lens and transformers.
    2: (
        *("models", "capture", "pattern_capture"),
        *("generation", "token_scores", "next_tokens", "_prompt_batches"),
        *("interventions", "_choices", "_disruptor", "_sources", "presets", "attention_effects"),
        "effect_matching",
        *("_patch_runs", "operation", "share_capture", "quantizer", "state_errors", "weight_rows"),
    ),
    # A task knows no model; evaluation joins the two.
    3: (
        "tasks",
        *("answers", "scores", "_score_frames"),
        "controls",
        "answer_files",
        "evaluation",
        "conflict_scores",
        "known_facts",
        "distances",
    ),
    # Analyses that run models through the layers below.
    4: (
        *("doctor", "arms", "contrasts", "control_comparisons", "seed_spreads", "disruption"),
        *("battery", "fluency", "_cells", "_arm_costs"),
        *("conflict", "model_conflicts", "patching", "_patch_setup", "patch_battery"),
        *("attribution", "patched_patterns"),
        *("twins", "twin_runs", "twin_results", "twin_curves", "_twin_training"),
        "_twin_folders",
        *("patch_speed", "quantization", "sweep", "speed", "generation_speed"),
        "command_speed",
        *("surgery", "surgery_plans", "harness", "_harness_arguments"),
        *("state_quantization", "quantization_arms", "protection", "_protection_gains"),
        *("quantization_results", "weight_protection"),
        *("claims", "_verdicts", "_disruption_claims", "_conflict_claims", "_conflict_answers"),
        *("_twin_claims", "_quantization_claims", "_method_claims", "families", "family_rows"),
    ),
    # Read results; never run a model.
    5: ("viz", "report"),
    # Argument parsing, and the package's public names.
    6: (
        "study",
        "cli",
        "_conflict_command",
        "_disrupt_command",
        "_cost_tables",
        "_harness_command",
        "_patch_command",
        "_patch_report",
        "_quantize_command",
        "_surgery_command",
        "_sweep_command",
        "_twins_command",
        "_report_command",
        "_saved_results",
        "_list_commands",
        *("_options", "_arm_options", "_completion"),
        "_terminal",
        "__main__",
        "__init__",
    ),
}

# Third-party packages that only these modules may import. An entry is a layer or a module.
ONLY_IN: dict[str, set[int | str]] = {
    "transformer_lens": {2},
    "transformers": {2},
    "llmcompressor": {"models"},
    "compressed_tensors": {"models"},
    "lm_eval": {"harness"},
    "plotly": {"viz", "report"},
    "circuitsvis": {"viz", "report"},
    "typer": {6},
    "ray": {"sweep"},
    "submitit": {"sweep"},
}

# Views and reports read results alone, so the layer that runs models is closed to them.
NEVER = {5: {2}}

# `import mi_massive` must load none of these.
HEAVY = ("plotly", "ray", "submitit", "datasets")

# Tests of the whole; every other tests/test_X.py is the test of a module X, of a member of a
# family (test_models_hub.py or test_hub.py for models/hub.py), or of what its members share
# (test_models_sources.py: a family's name, then the subject).
TESTS_OF_THE_WHOLE = {
    *("layering", "public_api", "experiments", "hooked_transformer", "gpu", "docs"),
    "release",  # the changelog and the citation
    "study_default",  # what is claimed about the built-in models, measured on them
}

MAX_LINES = 300

_SPEC = find_spec("mi_massive")
assert _SPEC is not None
assert _SPEC.submodule_search_locations is not None
PACKAGE = Path(next(iter(_SPEC.submodule_search_locations)))
TESTS = Path(__file__).parent
EXPERIMENTS = TESTS.parent / "experiments"

LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}


def read_package() -> dict[str, str]:
    """Source of each module under its dotted name; a package under the name of its folder."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("mi_massive", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def needing(modules: Mapping[str, str], *libraries: str) -> set[str]:
    """Modules that import one of the libraries when they are imported, directly or not."""
    imported = {name: set(at_import(ast.parse(source).body)) for name, source in modules.items()}
    found: set[str] = set()
    while True:
        more = {
            name
            for name, names in imported.items()
            if name not in found
            and (names & found or any(n.partition(".")[0] in libraries for n in names))
        }
        if not more:
            return found
        found |= more


def at_import(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names imported where a module is executed: not in functions, nor for type checkers alone."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            yield from () if checked else at_import(node.body)
            yield from at_import(getattr(node, "orelse", []))


def unit_of(module: str) -> str:
    """`mi_massive.models.hub` belongs to `models`; the package itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(module: str, source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Full names of everything that `source` imports, wherever the statement stands."""
    is_package = any(other.startswith(f"{module}.") for other in modules)
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from mi_massive import axes` imports the module, not a name of the package.
                full = f"{base}.{alias.name}"
                yield full if full in modules else base


def own_imports(module: str, modules: Mapping[str, str]) -> set[str]:
    """Modules of this package that `module` imports."""
    found = imports(module, modules[module], modules)
    return {name for name in found if name.split(".")[0] == "mi_massive"} - {module}


def upward_imports(modules: Mapping[str, str]) -> list[str]:
    """Imports from a higher layer, or against NEVER."""
    found = []
    for module in modules:
        layer = LAYER_OF.get(unit_of(module))
        for target in own_imports(module, modules):
            below = LAYER_OF.get(unit_of(target))
            if layer is None or below is None:
                continue  # not in the table, which another test reports
            if below > layer or below in NEVER.get(layer, ()):
                found.append(f"{module} (layer {layer}) imports {target} (layer {below})")
    return sorted(found)


def import_cycle(modules: Mapping[str, str]) -> list[str]:
    """One circle of imports, if there is any."""
    graph = {module: own_imports(module, modules) for module in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def misplaced_imports(modules: Mapping[str, str]) -> list[str]:
    """Third-party packages imported where ONLY_IN does not allow them."""
    found = []
    for module, source in modules.items():
        unit = unit_of(module)
        for target in imports(module, source, modules):
            allowed = ONLY_IN.get(target.split(".")[0])
            if allowed is not None and unit not in allowed and LAYER_OF.get(unit) not in allowed:
                found.append(f"{module} imports {target}")
    return sorted(found)


def private_imports(module: str, source: str, modules: Mapping[str, str]) -> list[str]:
    """What a script imports from the package beyond its public modules and names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            hidden = any(part.startswith("_") for part in rest)
            # mi_massive.viz.base is a part of the family; mi_massive.viz is its public face.
            inner = name.rpartition(".")[0].count(".") > 1 or (name in modules and len(rest) > 1)
            if first == "mi_massive" and (hidden or inner):
                found.append(f"{module} imports {name}")
    return found


# --- the package keeps to the table


def test_every_module_has_its_place_in_the_table():
    assert sorted({unit_of(module) for module in read_package()} - set(LAYER_OF)) == []


def test_no_name_stands_in_two_layers():
    assert len(LAYER_OF) == sum(len(units) for units in LAYERS.values())


def test_imports_go_downwards_only():
    assert upward_imports(read_package()) == []


def test_modules_that_load_transformers_are_listed():
    assert sorted(needing(read_package(), "transformers", "transformer_lens")) == sorted(
        f"mi_massive.{name}" for name in NEED_TRANSFORMERS
    )


@pytest.mark.parametrize("module", ["sweep", "viz", "harness", "evaluation"])
def test_transformers_is_not_compiled_anew(module):
    """Imported from within a module of ours, its bytecode would have another name."""
    script = (
        f"import sys, mi_massive.{module}; "
        "loaded = [m for n, m in sys.modules.items() if n.startswith('transformers.mod')]; "
        "print([m.__spec__.cached for m in loaded if m.__spec__ is not None])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "modeling_utils" in run.stdout
    assert "jaxtyping" not in run.stdout


def test_modules_do_not_import_each_other_in_a_circle():
    assert import_cycle(read_package()) == []


def test_libraries_are_imported_only_where_they_belong():
    assert misplaced_imports(read_package()) == []


def test_no_module_is_longer_than_300_lines():
    lines = {module: source.count("\n") for module, source in read_package().items()}
    assert {module: n for module, n in lines.items() if n > MAX_LINES} == {}


def test_every_test_file_is_named_after_a_module():
    names = {module.removeprefix("mi_massive.").lstrip("_") for module in read_package()}
    allowed = TESTS_OF_THE_WHOLE | {name.replace(".", "_") for name in names}
    allowed |= {name.rpartition(".")[2].lstrip("_") for name in names}
    families = tuple(f"{path.parent.name}_" for path in PACKAGE.glob("*/__init__.py"))
    found = {path.stem.removeprefix("test_") for path in TESTS.rglob("test_*.py")}
    assert sorted(name for name in found - allowed if not name.startswith(families)) == []


def test_experiments_use_the_public_api_alone():
    modules = read_package()
    found = []
    for path in sorted(EXPERIMENTS.glob("*.py")):
        found += private_imports(path.name, path.read_text(encoding="utf-8"), modules)
    assert found == []


def test_importing_the_package_loads_no_plotting_no_ray_and_no_datasets():
    script = f"import sys, mi_massive; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- the checks find what is planted


@pytest.mark.parametrize(
    "line",
    [
        "import mi_massive.capture",
        "from mi_massive.capture import capture_norms",
        "from mi_massive import capture",
        "from .capture import capture_norms",
        "from . import capture",
        "def f():\n    from mi_massive.capture import capture_norms",
    ],
)
def test_a_planted_upward_import_is_found(line):
    modules = {"mi_massive": "", "mi_massive.capture": "", "mi_massive.rope": line}
    expected = ["mi_massive.rope (layer 1) imports mi_massive.capture (layer 2)"]
    assert upward_imports(modules) == expected


def test_the_report_may_not_import_a_model_although_it_lies_below():
    modules = {"mi_massive.models": "", "mi_massive.report": "from mi_massive import models"}
    modules |= {"mi_massive.claims": "", "mi_massive.viz": "import mi_massive.claims"}
    expected = ["mi_massive.report (layer 5) imports mi_massive.models (layer 2)"]
    assert upward_imports(modules) == expected


def test_relative_imports_inside_a_family_stay_in_the_family():
    modules = {
        "mi_massive.models": "from .hub import load",
        "mi_massive.models.hub": "from ..axes import Layout\nfrom . import sites",
        "mi_massive.models.sites": "",
        "mi_massive.axes": "",
    }
    assert own_imports("mi_massive.models", modules) == {"mi_massive.models.hub"}
    assert own_imports("mi_massive.models.hub", modules) == {
        "mi_massive.axes",
        "mi_massive.models.sites",
    }
    assert upward_imports(modules) == []


def test_a_planted_circle_is_found():
    modules = {
        "mi_massive.rope": "from mi_massive.bands import x",
        "mi_massive.bands": "from mi_massive.norms import x",
        "mi_massive.norms": "from mi_massive.rope import x",
    }
    assert set(import_cycle(modules)) == set(modules)


def test_a_planted_transformers_import_outside_layer_2_is_found():
    line = "from transformers.utils import logging"
    modules = {"mi_massive.rope": line, "mi_massive.models.hub": line}
    assert misplaced_imports(modules) == ["mi_massive.rope imports transformers.utils"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from mi_massive import load_model", False),
        ("from mi_massive.concentration import massive_mask", False),
        ("import mi_massive.viz", False),
        ("from mi_massive.viz import plot_heads", False),
        ("from mi_massive import _checks", True),
        ("from mi_massive._checks import require_positive", True),
        ("from mi_massive.rope import _angles", True),
        ("from mi_massive.viz.heads import plot_heads", True),
        ("from mi_massive.viz import heads", True),
        ("import mi_massive.viz.heads", True),
        ("from pathlib import _PosixFlavour", False),
    ],
)
def test_a_planted_private_import_in_an_experiment_is_found(line, found):
    modules = {"mi_massive": "", "mi_massive.viz": "", "mi_massive.viz.heads": ""}
    assert bool(private_imports("script.py", line, modules)) == found
