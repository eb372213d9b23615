"""What `import mi_massive` gives: every name, documented, checked when called, loaded when used."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from builders import build_norms
from jaxtyping import TypeCheckError

import mi_massive
from mi_massive import Estimate, LayerGeometry, StudyConfig

NAMES = mi_massive.__all__
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(mi_massive, name))]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(mi_massive, name))]
KEYWORD_ONLY_AFTER_DATA = {  # positional arguments: the data, then keywords alone
    "attribute": ["model", "pairs"],
    "bands": ["norms"],
    "build_report": ["results", "path"],
    "capture_norms": ["model", "prompts"],
    "capture_patched_patterns": ["model", "pair"],
    "capture_patterns": ["model", "prompt", "norms"],
    "capture_position_shares": ["model", "prompts"],
    "compare": ["before", "after"],
    "concentration": ["norms"],
    "compare_quantized": ["model", "tasks"],
    "conflict_pairs": ["conflicts"],
    "default_passages": [],
    "diagnose": ["model"],
    "disrupt": ["model", "intervention"],
    "disruption_hooks": ["model", "intervention"],
    "evaluate": ["model", "task"],
    "held_out_prompts": ["config"],
    "known_conflicts": ["model", "conflicts"],
    "load_conflicts": ["model"],
    "load_model": ["name_or_path"],
    "load_own_task": ["path"],
    "load_result": ["path"],
    "load_task": ["name"],
    "load_tasks": ["model", "names"],
    "load_twin": ["config", "arm", "seed"],
    "make_arms": ["presets"],
    "massive_mask": ["norms"],
    "match_effect": ["model", "prompts", "control"],
    "measure_effects": ["model", "prompts", "arms"],
    "measure_families": ["models", "prompts"],
    "operate": ["model", "surgery"],
    "patch": ["model", "pairs"],
    "preset": ["name"],
    "quantized_states": ["model", "plan"],
    "quantize": ["model"],
    "read_prompts": ["source"],
    "run_battery": ["model"],
    "run_conflict": ["model", "conflicts", "arms"],
    "run_disruption": ["model", "tasks", "arms"],
    "run_state_quantization": ["model", "tasks"],
    "run_study": ["model", "prompts"],
    "run_surgery": ["model", "arms", "tasks"],
    "save_result": ["result", "path"],
    "scoreboard": ["concentration"],
    "surgery_arms": [],
    "symmetry": ["norms"],
    "tokenize_prompts": ["tokenizer", "prompts"],
    "train_twins": ["config"],
    "top_k_mask": ["norms"],
}


def test_every_name_is_a_function_or_a_class():
    assert sorted(NAMES) == NAMES
    assert sorted([*FUNCTIONS, *CLASSES]) == NAMES
    assert dir(mi_massive) == NAMES


def test_the_names_kept_stable_are_there():
    stable = {"load_model", "capture_norms", "massive_mask", "top_k_mask", "concentration"}
    assert stable | {"bands", "symmetry", "build_report", "disrupt", "evaluate"} <= set(NAMES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mi_massive' has no attribute 'nonsense'"):
        _ = mi_massive.nonsense


def test_public_names_are_never_modules_whatever_was_imported():
    for found in pkgutil.walk_packages(mi_massive.__path__, "mi_massive."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in NAMES:
        assert not isinstance(getattr(mi_massive, name), ModuleType), name


def test_modules_that_share_a_functions_name_can_still_be_imported_from():
    from mi_massive.bands import BandsConfig
    from mi_massive.concentration import massive_mask
    from mi_massive.symmetry import SymmetryConfig

    assert BandsConfig is mi_massive.BandsConfig
    assert massive_mask is mi_massive.massive_mask
    assert SymmetryConfig is mi_massive.SymmetryConfig


def test_importing_the_package_is_light_and_keeps_functions_over_modules():
    script = (
        "import sys, mi_massive\n"
        "import mi_massive.concentration, mi_massive.bands, mi_massive.symmetry\n"
        "names = 'concentration', 'bands', 'symmetry'\n"
        "assert all(callable(getattr(mi_massive, name)) for name in names)\n"
        "heavy = ('transformers', 'transformer_lens', 'datasets', 'plotly', 'circuitsvis', "
        "'pandas', 'scipy', 'statsmodels', 'ray', 'typer')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- docstrings


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_docstring_tells_what_a_user_must_know(name: str):
    function = getattr(mi_massive, name)
    documented = inspect.getdoc(function) or ""
    assert re.match(r"[A-Z].*\.$", documented.splitlines()[0])
    source = inspect.getsource(inspect.unwrap(function))
    parameters = list(inspect.signature(function).parameters)
    missing = [p for p in parameters if not re.search(rf"^    {p}: \S", documented, re.MULTILINE)]
    if len(parameters) > 1:
        assert "\nArgs:\n" in documented
        assert missing == []
    if re.search(r"^ +raise |require_\w+\(", source, re.MULTILINE):
        assert "\nRaises:\n" in documented
    for annotation in (r"Float\[", r"Bool\[", r"Tensor"):  # said by the signature, not again
        assert not re.search(rf"^    \w+ \({annotation}", documented, re.MULTILINE)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_a_docstring(name: str):
    documented = getattr(mi_massive, name).__doc__ or ""
    assert re.match(r"\S.*\.$", documented.splitlines()[0])
    assert not documented.startswith(f"{name}(")  # what a dataclass makes up without one


def test_every_module_says_what_it_is_for():
    for found in pkgutil.walk_packages(mi_massive.__path__, "mi_massive."):
        if not found.name.endswith("__main__"):
            documented = importlib.import_module(found.name).__doc__ or ""
            assert documented.strip(), found.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_everything_after_the_data_is_keyword_only(name: str):
    parameters = inspect.signature(getattr(mi_massive, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == KEYWORD_ONLY_AFTER_DATA[name]


@pytest.mark.parametrize("name", CLASSES)
def test_results_and_configs_are_frozen_and_keyword_only(name: str):
    kind = getattr(mi_massive, name)
    if not dataclasses.is_dataclass(kind):
        assert name in ("HookedModel", "UnsupportedModelError")
        return
    parameters: Any = kind.__dataclass_params__
    assert parameters.frozen
    kinds = {p.kind for p in inspect.signature(kind).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


# --- types and shapes are checked for users too

ONES = torch.ones(2, 3, 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mi_massive.massive_mask([[[1.0]]]),
        lambda: mi_massive.massive_mask(torch.ones(3, 8)),
        lambda: mi_massive.massive_mask(torch.ones(2, 3, 8, dtype=torch.long)),
        lambda: mi_massive.massive_mask(ONES, ratio="5"),
        lambda: mi_massive.top_k_mask(ONES, k=1.5),
        lambda: mi_massive.top_k_mask(ONES[0]),
        lambda: mi_massive.concentration(ONES),
        lambda: mi_massive.bands(ONES),
        lambda: mi_massive.symmetry(ONES),
        lambda: mi_massive.capture_norms("smollm2-135m-instruct", ["x"]),
        lambda: mi_massive.capture_patterns(None, "x", ONES),
        lambda: mi_massive.diagnose("smollm2-135m-instruct"),
        lambda: mi_massive.run_study("smollm2-135m-instruct", ["x"]),
        lambda: mi_massive.load_model(3),
        lambda: mi_massive.load_model("smollm2-135m-instruct", dtype="float32"),
        lambda: mi_massive.load_result(3),
        lambda: mi_massive.read_prompts(["x"]),
        lambda: mi_massive.tokenize_prompts(None, [1.5]),
        lambda: mi_massive.scoreboard(None),
        lambda: mi_massive.build_report(None, "x"),
        lambda: StudyConfig(batch_size="8"),
        lambda: Estimate(effect="1", low=0.0, high=2.0, n=3, n_of="heads", test="none"),
        lambda: LayerGeometry(block=0, n_heads=1.5, n_key_value_heads=1, d_head=8, rotary=None),
    ],
)
def test_a_wrong_type_or_shape_is_refused(call: Callable[[], object]):
    with pytest.raises(TypeCheckError):
        call()


def test_an_integer_is_a_good_ratio():
    assert not mi_massive.massive_mask(ONES, ratio=5).any()


def test_axes_of_one_result_must_agree():
    states = torch.randn(2, 4, 2, 3, 8)
    norms = build_norms(states, states, states)
    with pytest.raises(TypeCheckError):
        dataclasses.replace(norms.q_sums, total=norms.q_sums.total[..., :4])
