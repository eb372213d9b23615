"""A study is its parts, run on one capture; what it leaves out it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sample_patching import attribution_result, patched_patterns, patching_result
from tiny_models import FAMILIES, build_tokenizer, llama, save_model

from mi_massive import (
    BandsConfig,
    ConcentrationConfig,
    HookedModel,
    ReportResults,
    StudyConfig,
    SymmetryConfig,
    TokenizedPrompts,
    bands,
    capture_norms,
    concentration,
    load_model,
    run_study,
    scoreboard,
    symmetry,
    tokenize_prompts,
)

TEXTS = [" ".join(f"t{(7 * i + j * j) % 61}" for j in range(6 + i)) for i in range(5)]
NO_TASKS = "disruption: No intervention was run, so C4 and C5 are not judged."
CONFIG = StudyConfig(
    concentration=ConcentrationConfig(ratio=2.0),
    bands=BandsConfig(ratio=2.0),
    symmetry=SymmetryConfig(ratio=2.0),
    batch_size=2,
    n_pattern_heads=2,
)


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama().save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="control")
def fixture_control(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(FAMILIES["gpt2"].save(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module", name="results")
def fixture_results(model: HookedModel, control: HookedModel) -> ReportResults:
    return run_study(model, TEXTS, control=control, config=CONFIG)


def test_each_part_is_the_analysis_of_the_same_capture(
    results: ReportResults, model: HookedModel, control: HookedModel
) -> None:
    norms = capture_norms(model, TEXTS, batch_size=2)
    own = concentration(norms, config=CONFIG.concentration)
    beside = concentration(capture_norms(control, TEXTS, batch_size=2), config=CONFIG.concentration)
    banded = bands(norms, config=CONFIG.bands)
    symmetric = symmetry(norms, config=CONFIG.symmetry)
    assert results.bands is not None
    assert results.symmetry is not None
    assert results.control is not None
    assert torch.equal(results.concentration.q.massive, own.q.massive)
    assert torch.equal(results.control.q.norms, beside.q.norms)
    assert torch.equal(results.bands.k.energy_share, banded.k.energy_share)
    assert torch.equal(results.symmetry.q.n_clusters, symmetric.q.n_clusters)
    board = scoreboard(own, bands=banded, symmetry=symmetric, control=beside)
    assert repr(results.scoreboard.claims) == repr(board.claims)
    assert results.provenance.batch_size == 2


def test_the_first_prompt_is_shown_token_by_token(results: ReportResults) -> None:
    assert results.patterns is not None
    assert results.patterns.tokens == tuple(TEXTS[0].split())
    assert len(results.patterns.heads) == 2
    assert results.notes == (NO_TASKS,)


def test_options_of_the_capture_are_passed_on_to_both_models(
    model: HookedModel, control: HookedModel
) -> None:
    config = StudyConfig(batch_size=3, max_length=4, skip_first=True, n_pattern_heads=0)
    steps: list[int] = []
    results = run_study(model, TEXTS, control=control, config=config, on_progress=steps.append)
    norms = capture_norms(model, TEXTS, max_length=4, skip_first=True)
    assert results.control is not None
    assert steps == [3, 2, 3, 2]
    assert results.provenance.prompts_digest == norms.provenance.prompts_digest
    assert results.control.provenance.prompts_digest == norms.provenance.prompts_digest
    torch.testing.assert_close(results.concentration.k.norms, norms.k)


@pytest.fixture(scope="module", name="short_control")
def fixture_short_control(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A control that reads 8 tokens."""
    model = FAMILIES["gpt2"].build()
    model.config.n_positions = 8
    model.get_submodule("transformer").wpe.weight = torch.nn.Parameter(torch.randn(8, 64))
    return load_model(save_model(model, tmp_path_factory.mktemp("short")))


@pytest.mark.parametrize("tokenized", [False, True])
def test_prompts_beyond_the_context_of_the_control_alone_are_cut_and_that_is_said(
    tokenized: bool, model: HookedModel, short_control: HookedModel
) -> None:
    own = tokenize_prompts(build_tokenizer(), TEXTS) if tokenized else TEXTS  # 6 .. 10 tokens
    results = run_study(model, own, control=short_control, control_prompts=own, config=CONFIG)
    whole, cut = capture_norms(model, TEXTS), capture_norms(short_control, TEXTS, max_length=8)
    assert results.control is not None
    assert results.provenance.prompts_digest == whole.provenance.prompts_digest
    assert results.control.provenance.prompts_digest == cut.provenance.prompts_digest
    torch.testing.assert_close(results.control.q.norms, cut.q)
    assert results.notes == (
        NO_TASKS,
        f"control: 2 of 5 prompts were cut to 8 tokens, the context of {short_control.name}.",
    )


def test_prompts_that_max_length_cuts_for_both_models_need_no_note(
    model: HookedModel, short_control: HookedModel
) -> None:
    config = StudyConfig(max_length=8, n_pattern_heads=1)
    assert run_study(model, TEXTS, control=short_control, config=config).notes == (NO_TASKS,)


def test_what_is_left_out_is_said(control: HookedModel) -> None:
    results = run_study(control, TEXTS, config=StudyConfig(n_pattern_heads=0))
    assert (results.bands, results.symmetry, results.control, results.patterns) == (None,) * 4
    sections = [note.split(":")[0] for note in results.notes]
    assert sections == ["bands", "symmetry", "control", "patterns", "disruption"]
    assert f"{control.name} does not rotate its queries and keys" in results.notes[0]
    assert "it was not asked for" in results.notes[3]
    undecided = {claim.id: claim.verdict for claim in results.scoreboard.claims}
    assert undecided["C8a"] == undecided["C3"] == "inconclusive"


def test_what_was_patched_before_and_further_notes_are_passed_on(control: HookedModel) -> None:
    patched, estimates = patching_result(model=control.name), attribution_result(model=control.name)
    shown = patched_patterns(model=control.name)
    results = run_study(
        control,
        TEXTS,
        patching=[patched],
        attributions=[estimates],
        patched_patterns=shown,
        notes=["patching: One pair."],
        config=StudyConfig(n_pattern_heads=0),
    )
    assert (results.patching, results.attributions) == ((patched,), (estimates,))
    assert results.patched_patterns is shown
    assert results.notes[-2:] == (NO_TASKS, "patching: One pair.")


def test_a_checkpoint_without_a_head_has_no_patterns(tmp_path: Path) -> None:
    results = run_study(load_model(FAMILIES["bert_bare"].save(tmp_path)), TEXTS)
    assert results.patterns is None
    assert results.notes[-2].startswith(
        "patterns: Left out, because the checkpoint has no language"
    )


def test_token_ids_need_texts_for_the_control(model: HookedModel, control: HookedModel) -> None:
    tokenized = tokenize_prompts(build_tokenizer(), TEXTS)
    with pytest.raises(ValueError, match=r"control_prompts must be given when prompts are token"):
        run_study(model, tokenized, control=control, config=CONFIG)
    results = run_study(model, tokenized, control=control, control_prompts=TEXTS, config=CONFIG)
    assert results.control is not None
    assert results.control.provenance.n_prompts == 5
    assert results.patterns is not None
    assert results.patterns.tokens == tuple(TEXTS[0].split())


def test_patterns_show_the_ids_of_a_chat_template_not_its_text_again(model: HookedModel) -> None:
    # The text of a rendered template, tokenized again, would open with a second <s>.
    prompts = TokenizedPrompts(input_ids=((62, 1, 2),), texts=("<s> t1 t2",), n_truncated=0)
    results = run_study(model, prompts, config=CONFIG)
    assert results.patterns is not None
    assert results.patterns.tokens == ("<s>", "t1", "t2")


def test_a_control_that_rotates_is_refused_before_anything_runs(model: HookedModel) -> None:
    def forbidden(count: int) -> None:
        raise AssertionError("a model ran")

    with pytest.raises(
        ValueError, match=r"control must be a model without rotary .* which rotates"
    ):
        run_study(model, TEXTS, control=model, on_progress=forbidden)


def test_no_prompts_are_refused(model: HookedModel) -> None:
    empty: Any = []
    with pytest.raises(ValueError, match="prompts must not be empty"):
        run_study(model, empty)
