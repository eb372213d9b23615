"""`mi-massive conflict` on a tiny model with a token for every word of two relations."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from sample_conflict import conflict_result
from sample_patching import patching_result
from tiny_models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mi_massive import load_result, save_result
from mi_massive._conflict_command import _print
from mi_massive.models import load
from mi_massive.tasks._conflict_facts import load_relations
from mi_massive.tasks._filler import FILLER
from mi_massive.tasks.facts import load_facts
from mi_massive.tasks.legacy_conflict import legacy_conflict

RELATIONS = ("country_language", "athlete_sport")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Each word with the space before it is one token, as frequent words are in real ones."""
    texts = [*FILLER, *(example.prompt for example in legacy_conflict(limit=220).examples)]
    for name in RELATIONS:
        relation = load_relations()[name]
        for fact in relation.facts:
            cloze = relation.cloze.format(subject=fact.subject)
            texts += [f"{cloze} {fact.object}", " Yes No"]
            texts += [
                f"{context.format(subject=fact.subject, object=fact.object)}\n{cloze}"
                for context in relation.contexts.values()
            ]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    words = ["<unk>", "<s>", "abcdef", *sorted(pieces - {"abcdef"})]  # transformers asks for it
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<s>", pad_token="<s>"
    )


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    family, tokenizer = llama(), word_tokenizer()
    config = copy.deepcopy(family.config)
    config.vocab_size = len(tokenizer)
    replace(family, config=config).build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_conflicts_are_asked_saved_and_taken_from_the_cells(
    run: Run, model: Path, tmp_path: Path
) -> None:
    saved, cells = tmp_path / "result.json", tmp_path / "cells"
    options = ["--relations", ",".join(RELATIONS), "--limit", 60, "--preset", "paper,random"]
    options += ["--k", 2, "--cells", cells]
    status, out, err = run("conflict", model, *options, "--save", saved, "--json")
    assert (status, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    known = {entry["relation"]: entry for entry in document["known"]}
    assert set(known) == set(RELATIONS)
    assert {entry["asked"] for entry in known.values()} == {30}
    # A token a word: facts of several words drop out.
    several = sum(" " in fact.answer for fact in load_facts("sports"))
    assert known["athlete_sport"]["counts"]["not_one_token"] == several > 0
    arms = ["intact", "paper k=2", "random k=2 seed=0"]
    assert list(dict.fromkeys(cell["arm"] for cell in document["cells"])) == arms
    assert list(document["effects"]) == arms
    assert document["effects"]["intact"]["attention_kl"]["effect"] == 0
    result = load_result(saved)
    n_known = sum(entry.n_known for entry in result.known)
    assert result.cell("paper k=2").keeps.n == n_known
    assert len(list(cells.glob("conflict-*.json"))) == 3
    text = run("conflict", model, *options)[1]
    for word in ("Facts", "athlete_sport", "Conflicts by candidates", "closed-book"):
        assert word in text
    assert "Published protocol" not in text
    assert len(list(cells.glob("conflict-*.json"))) == 3


def test_flips_are_printed_of_those_that_followed_and_of_those_that_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _print(conflict_result())
    _, _, flips = capsys.readouterr().out.partition("Flips by candidates")
    lines = [re.split(r"  +", line) for line in flips.splitlines()[1:4]]
    assert lines[0] == ["arm", "to memory", "to neither", "followers", "to context", "keepers"]
    # 10 followed the context before, and 2 kept to memory.
    rows = {arm: [cell.partition(" ")[0] for cell in cells] for arm, *cells in lines[1:]}
    assert rows == {
        "paper k=4": ["1.00", "0.00", "10", "0.00", "2"],
        "random k=4 seed=0": ["0.00", "1.00", "10", "0.00", "2"],
    }


def test_the_published_protocol_is_asked_on_demand_in_the_batches_asked_for(
    run: Run, model: Path, tmp_path: Path
) -> None:
    options = ["--relations", "athlete_sport", "--limit", 8, "--preset", "", "--legacy", "--json"]
    options += ["--batch-size", 5, "--cells", tmp_path]
    status, out, _ = run("conflict", model, *options)
    assert status == 0
    (kept,) = tmp_path.glob("legacy_conflict-intact-*.json")
    assert load_result(kept).config.batch_size == 5
    legacy = json.loads(out)["legacy"]
    assert [(c["arm"], c["readout"], c["score"]["n"]) for c in legacy] == [
        ("intact", "generation", 40),
        ("intact", "options", 40),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--relations", "moons"], "--relations must be among country_capital, "),
        (["--relations", ""], "--relations must name at least one of country_capital, "),
        (["--k", "many"], "--k must be whole numbers of at least 1 with commas, got 'many'"),
        (["--k", "4,0"], "--k must be whole numbers of at least 1 with commas, got '4,0'; try 4"),
        (["--preset", "", "--k", "4"], "--k must come with --preset, got it for the intact model"),
        (["--preset", "", "--layers", "3"], "--layers must come with --preset, got it for the"),
        (["--preset", "paper", "--seeds", "2"], "--seeds must be left out for presets that draw"),
        (["--preset", "nonsense"], "preset must be one of paper, "),
        (["--save", "result.txt"], "--save must end in .json, got result.txt"),
    ],
)
def test_bad_options_are_one_sentence_before_a_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(load, "load_model", refuse)
    status, out, err = run("conflict", "any", *options)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_report_shows_saved_conflicts_and_patches_with_a_view_of_the_heads(
    run: Run, model: Path, tmp_path: Path
) -> None:
    asked, patched, pairs = (tmp_path / f"{name}.json" for name in ("asked", "patched", "pairs"))
    options = ("--relations", ",".join(RELATIONS), "--limit", 60, "--preset", "paper", "--k", 2)
    assert run("conflict", model, *options, "--save", asked, "--quiet").status == 0
    assert run("patch", model, "--limit", 2, "--save", patched, "--quiet").status == 0
    estimate = ("--site", "rot_q", "--granularity", "pair", "--estimate", "--top", 3)
    assert run("patch", model, *estimate, "--limit", 2, "--save", pairs, "--quiet").status == 0
    texts, out = tmp_path / "texts.txt", tmp_path / "page"
    texts.write_text("\n\n".join(FILLER[:4]))
    saved = ("--conflict", asked, "--patched", patched, "--patched", pairs)
    common = ("--control", "none", "--examples", 0, "--prompts", texts, "--out", out)
    status, told, err = run("report", model, *saved, *common, "--json")
    assert (status, err) == (0, "")
    verdicts = {claim["id"] for claim in json.loads(told)["claims"]}
    assert {"C6a", "C6b"} <= verdicts
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in (
        "When prompt and memory disagree, which does the model follow?",
        "What each cell recovers: z by head, denoising",
        "Gradient estimates against exact patches: rot_q by pair, denoising",
        "The attention was recorded for this page, on one conflict that the model knows.",
        "The attention of one head on one pair in three runs",
    ):
        assert words in page


def test_a_report_takes_saved_conflicts_and_patches_of_its_model_and_no_other(
    run: Run, tmp_path: Path
) -> None:
    saved = {
        "of conflicts": save_result(conflict_result(), tmp_path / "conflict.json"),
        "of patches": save_result(patching_result(), tmp_path / "patching.json"),
        "foreign": save_result(conflict_result("another"), tmp_path / "foreign.json"),
    }
    for options, words in (
        (("--conflict", saved["of patches"]), "must name a saved ConflictResult, got a Patching"),
        (("--conflict", saved["foreign"]), "must be of the model smollm2-135m-instruct, got one"),
        (("--patched", saved["of conflicts"]), "a saved PatchingResult or AttributionResult, got"),
        (("--patched", tmp_path / "none.json"), "none.json"),
        (
            ("--conflict", saved["of conflicts"], "--conflicts", 4),
            "--conflicts must not come with --conflict, got both; measure the part or show what",
        ),
        (
            ("--patched", saved["of patches"], "--patching", 4),
            "--patching must not come with --patched, got both; measure the part or show what is",
        ),
    ):
        status, out, err = run("report", "--out", tmp_path / "page", *options)
        assert (status, out) == (1, "")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "page").exists()
