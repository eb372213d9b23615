"""`mi-massive patch` on a tiny model, through the command line."""

import json
from pathlib import Path

import pytest
from conftest import Run
from patch_models import random_pairs
from test_tasks_conflicts import Words
from tiny_models import llama

from mi_massive import _patch_setup, load_model, load_result, model_conflicts
from mi_massive._patch_command import _GROUPS
from mi_massive.models import load
from mi_massive.patch_results import AttributionResult, PatchingResult
from mi_massive.tasks import conflicts


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama().save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(name="planted")
def fixture_planted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that a vocabulary of 64 words can say."""
    pairs = random_pairs(load_model(folder))
    made = conflicts.ConflictSet(conflicts=(), candidates={}, counts=())
    monkeypatch.setattr(model_conflicts, "load_conflicts", lambda model: made)
    monkeypatch.setattr(conflicts, "conflict_pairs", lambda found, corrupted: pairs)


@pytest.mark.usefixtures("planted")
def test_cells_are_printed_saved_and_kept(run: Run, folder: Path, tmp_path: Path) -> None:
    saved, cells = tmp_path / "result.json", tmp_path / "cells"
    options = (folder, "--site", "v", "--groups", "object,last", "--top", 3, "--cells", cells)
    status, out, _ = run("patch", *options, "--quiet", "--json", "--save", saved)
    assert status == 0
    told = json.loads(out)
    result = load_result(saved)
    assert isinstance(result, PatchingResult)
    assert (told["site"], told["granularity"], told["n_cells"]) == ("v", "head", 8)
    assert told["n"] + told["n_left_out"] == 3
    sizes = [abs(cell["recovered"]) for cell in told["cells"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(float(result.recovered.abs().max()))
    assert len(list(cells.glob("patch-v-head-*.json"))) == 2
    status, text, _ = run("patch", *options, "--quiet")
    assert status == 0
    assert "kv head" in text


@pytest.mark.usefixtures("planted")
def test_estimates_are_printed_with_their_check_and_saved(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "result.json"
    options = (folder, "--site", "rot_k", "--granularity", "pair", "--groups", "object", "--top", 4)
    status, out, _ = run("patch", *options, "--estimate", "--quiet", "--json", "--save", saved)
    assert status == 0
    told = json.loads(out)
    result = load_result(saved)
    assert isinstance(result, AttributionResult)
    assert (told["n"], told["n_cells"]) == (result.n_examples, result.estimated.numel())
    assert [cell["recovered"] for cell in told["cells"]] == pytest.approx(result.top_exact.tolist())
    assert told["cells"][0]["estimated"] == pytest.approx(
        float(max(result.estimated.flatten(), key=abs))
    )
    assert told["correlations"]["pearson"]["effect"] == pytest.approx(result.pearson.effect)
    status, text, _ = run("patch", *options, "--estimate", "--quiet")
    assert status == 0
    assert "estimates against exact patches: pearson" in text


@pytest.mark.usefixtures("planted")
def test_exact_patches_of_estimates_are_kept_and_taken_from_the_folder(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (folder, "--site", "rot_q", "--granularity", "pair", "--estimate", "--top", 4)
    options += ("--cells", tmp_path, "--quiet", "--json")
    status, first, _ = run("patch", *options)
    assert status == 0
    # The sample and the largest cells of each layer that has any.
    assert len(list(tmp_path.glob("attribute-rot_q-*.json"))) in (3, 4)

    def refuse(*args: object) -> None:
        raise AssertionError("a finished layer was patched again")

    monkeypatch.setattr(_patch_setup, "_patch_batches", refuse)
    status, again, _ = run("patch", *options)
    assert status == 0
    assert json.loads(again)["cells"] == json.loads(first)["cells"]


def test_the_groups_that_are_offered_are_those_of_a_conflict() -> None:
    made = conflicts.make_conflicts(Words(), relations=["athlete_sport"], limit=1)
    (pair,) = conflicts.conflict_pairs(made.conflicts)
    assert {*pair.groups, "all", "later"} == set(_GROUPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--estimate",), "error: --estimate must come with --granularity pair, got head"),
        (
            ("--estimate", "--granularity", "pair", "--site", "rot_q", "--top", "2"),
            "error: --top must be at least 3 cells with --estimate, got 2",
        ),
        (
            ("--site", "mlp"),
            "error: site must be one of q, k, v, rot_q, rot_k, pattern, z, resid_p",
        ),
        (("--granularity", "token"), "error: granularity must be one of layer, head, band, pair,"),
        (
            ("--direction", "both"),
            "error: --direction must be one of denoising, noising, got 'both'",
        ),
        (("--corrupted", "no"), "error: --corrupted must be one of consistent, neutral, got 'no'"),
        (("--groups", ","), "error: --groups must name at least one group, got ','"),
        (
            ("--groups", "last,nonsense"),
            "error: --groups must be among first, subject, object, query_subject, last, all, later",
        ),
        (
            ("--site", "v", "--granularity", "pair"),
            "error: granularity must be possible at the site, got 'pair' at 'v'; pair is there for",
        ),
        (("--k", "3"), "error: --k must come with --granularity massive, got head"),
        (
            ("--site", "rot_q", "--granularity", "pair", "--estimate", "--joint"),
            "error: --estimate must come without --joint",
        ),
    ],
)
def test_bad_options_are_one_sentence_before_a_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(load, "load_model", refuse)
    status, _, err = run("patch", "any", *arguments, "--quiet")
    assert status == 1
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_model_that_knows_no_fact_is_refused_and_not_given_zeros(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = conflicts.ConflictSet(conflicts=(), candidates={}, counts=())
    monkeypatch.setattr(model_conflicts, "load_conflicts", lambda model: made)
    saved = tmp_path / "result.json"
    status, out, err = run("patch", folder, "--quiet", "--save", saved)
    assert (status, out) == (1, "")
    assert "must know a fact closed-book for its conflict to be patched, got none of 0" in err
    assert err.count("\n") == 1
    assert not saved.exists()
