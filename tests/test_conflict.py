"""Conflicts asked of a model: what a plain pass gives, who knows what, and what is kept on disk."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import llama

from mi_massive import conflict as conflict_module
from mi_massive._conflict_answers import ask_conflicts, reading
from mi_massive.arms import make_arms
from mi_massive.conflict import ConflictConfig, ConflictResult, run_conflict
from mi_massive.conflict_scores import CONFLICT_READOUTS, conflict_cells
from mi_massive.interventions import disrupt
from mi_massive.models import HookedModel, load_model
from mi_massive.next_tokens import NextToken, next_tokens
from mi_massive.presets import preset
from mi_massive.records import load_result, save_result
from mi_massive.scores import INTACT
from mi_massive.tasks.conflicts import Conflict, ConflictSet, RelationCount

CANDIDATES = {"even": tuple(range(10, 16)), "odd": tuple(range(20, 25))}
STYLES = ("assertive", "quoted", "according_to_text", "fictional")
QUICK = ConflictConfig(n_neutral=2, neutral_length=24, n_resamples=200)
ARMS = ("paper", "random")


def scores(model: HookedModel, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities after one prompt alone, by the plain model."""
    with torch.no_grad():
        return model.plain(torch.tensor([ids])).logits[0, -1].float().log_softmax(dim=-1)


def make_set(model: HookedModel, *, n: int = 16, known: bool = True) -> ConflictSet:
    """Random words; the fact is what the model says after the neutral context, but every 4th."""
    rng = np.random.default_rng(0)
    conflicts: list[Conflict] = []
    for i in range(n):
        relation = ("even", "odd")[i % 2]
        tokens = CANDIDATES[relation]
        shared = tuple(int(t) for t in rng.integers(30, 60, 3))
        size = 3 + i % 3
        neutral = (*(int(t) for t in rng.integers(30, 60, size)), *shared)
        told = scores(model, neutral)
        ranked = sorted(tokens, key=lambda t: float(told[t]), reverse=True)
        fact = ranked[0] if known and i % 4 else ranked[-1]
        stated = ranked[1] if fact == ranked[0] else ranked[2]
        start = tuple(int(t) for t in rng.integers(30, 60, size - 1))
        conflicts.append(
            Conflict(
                id=f"{relation}/{i}",
                relation=relation,
                subject=str(i),
                style=STYLES[i % 4],
                fact=f"t{fact}",
                counterfactual=f"t{stated}",
                context="",
                neutral_context="",
                cloze="",
                conflicting=(*start, stated, *shared),
                consistent=(*start, fact, *shared),
                neutral=neutral,
                unrelated=neutral,
                context_answer=stated,
                parametric_answer=fact,
                groups={"first": (0,), "object": (size - 1,), "last": (size + 2,)},
            )
        )
    counts = tuple(
        RelationCount(
            relation=name,
            subjects=9,
            kept=8,
            not_one_token=1,
            too_few_alternatives=0,
            not_aligned=0,
        )
        for name in CANDIDATES
    )
    return ConflictSet(conflicts=tuple(conflicts), candidates=CANDIDATES, counts=counts)


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama().save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="conflicts")
def fixture_conflicts(model: HookedModel) -> ConflictSet:
    return make_set(model)


@pytest.fixture(scope="module", name="result")
def fixture_result(model: HookedModel, conflicts: ConflictSet) -> ConflictResult:
    return run_conflict(model, conflicts, make_arms(ARMS, ks=(2,)), config=QUICK)


# --- next tokens and readings


def test_next_tokens_are_those_of_a_plain_pass_in_any_batch(
    model: HookedModel, conflicts: ConflictSet
) -> None:
    prompts = [c.conflicting for c in conflicts.conflicts]
    asked = [CANDIDATES[c.relation] for c in conflicts.conflicts]
    for batch_size in (1, 5, 64):
        found = next_tokens(model, prompts, asked, batch_size=batch_size)
        for ids, tokens, read in zip(prompts, asked, found, strict=True):
            expected = scores(model, ids)
            assert read.top == int(expected.argmax())
            assert read.log_probs == pytest.approx(expected[list(tokens)].tolist(), abs=1e-4)


def test_next_tokens_refuses_what_does_not_fit(model: HookedModel) -> None:
    with pytest.raises(ValueError, match=r"asked must hold one entry a prompt \(2\), got 1"):
        next_tokens(model, [(1, 2), (3,)], [(1,)])
    with pytest.raises(ValueError, match="prompts must not be empty"):
        next_tokens(model, [], [])


@pytest.mark.parametrize("edit", [None, preset("paper", k=2)], ids=["intact", "paper"])
def test_readings_match_a_slow_definition_prompt_by_prompt(
    model: HookedModel, conflicts: ConflictSet, edit: Any
) -> None:
    found = ask_conflicts(model, conflicts.conflicts, CANDIDATES, edit, batch_size=4)
    for c, answer in zip(conflicts.conflicts, found.answers, strict=True):
        for ids, read in ((c.conflicting, answer.conflict), (c.neutral, answer.closed_book)):
            if edit is None:
                told = scores(model, ids)
            else:
                with disrupt(model, edit):
                    told = scores(model, ids)
            names = {c.context_answer: "context", c.parametric_answer: "memory"}
            best = max(CANDIDATES[c.relation], key=lambda t: float(told[t]))
            difference = float(told[c.context_answer] - told[c.parametric_answer])
            assert read.said == {
                "next_token": names.get(int(told.argmax()), "neither"),
                "candidates": names.get(best, "neither"),
                "two_answers": "context" if difference > 0 else "memory",
            }
            assert read.logit_diff == pytest.approx(difference, abs=1e-4)
    assert (found.n_edits > 0) == (edit is not None)


def test_a_tie_and_nan_are_neither(conflicts: ConflictSet) -> None:
    c = conflicts.conflicts[0]
    tokens = CANDIDATES[c.relation]
    tied = NextToken(top=0, log_probs=(-1.0,) * len(tokens))
    assert set(reading(c, tokens, tied).said.values()) == {"neither"}
    broken = reading(c, tokens, NextToken(top=c.parametric_answer, log_probs=(math.nan,) * 6))
    assert broken.said == dict.fromkeys(CONFLICT_READOUTS, "neither")
    assert math.isnan(broken.logit_diff)


# --- the experiment


def test_only_what_the_model_says_closed_book_is_a_conflict(result: ConflictResult) -> None:
    assert [(k.relation, k.asked, k.n_known) for k in result.known] == [
        ("even", 8, 4),  # every fourth fact was planted as the last choice
        ("odd", 8, 8),
    ]
    assert result.n_known == 12
    assert result.known[0].known.null == pytest.approx(1 / 6)
    assert result.cell(INTACT).closed_book.effect == 1.0
    assert {c.follows.n for c in result.cells if c.part[:2] == (None, None)} == {12}


def test_cells_are_those_of_the_known_conflicts_asked_on_their_own(
    model: HookedModel, conflicts: ConflictSet, result: ConflictResult
) -> None:
    known = [c for i, c in enumerate(conflicts.conflicts) if i % 4]
    edits = {
        INTACT: None,
        "paper k=2": preset("paper", k=2),
        "random k=2 seed=0": preset("random", k=2),
    }
    alone = {n: ask_conflicts(model, known, CANDIDATES, e, batch_size=8) for n, e in edits.items()}
    intact = alone.pop(INTACT)
    expected = conflict_cells(intact, alone, controls={}, n_resamples=QUICK.n_resamples)
    assert len(result.cells) == len(expected)
    for cell, other in zip(result.cells, expected, strict=True):
        assert (cell.arm, cell.part, cell.control) == (other.arm, other.part, other.control)
        for name in ("follows", "keeps", "neither", "closed_book", "lost_both", "keeps_change"):
            assert repr(getattr(cell, name)) == repr(getattr(other, name))
        # Other batches, other rounding.
        assert cell.logit_diff.effect == pytest.approx(other.logit_diff.effect, abs=1e-4)


def test_batch_size_changes_no_share(
    model: HookedModel, conflicts: ConflictSet, result: ConflictResult
) -> None:
    other = run_conflict(
        model, conflicts, make_arms(ARMS, ks=(2,)), config=replace(QUICK, batch_size=1)
    )
    for cell, again in zip(result.cells, other.cells, strict=True):
        for name in ("follows", "keeps", "neither", "closed_book", "keeps_change", "to_memory"):
            assert repr(getattr(cell, name)) == repr(getattr(again, name))


def test_a_stricter_rule_of_known_leaves_fewer(
    model: HookedModel, conflicts: ConflictSet, result: ConflictResult
) -> None:
    strict = run_conflict(model, conflicts, (), config=replace(QUICK, known="next_token"))
    lax = run_conflict(model, conflicts, (), config=replace(QUICK, known="two_answers"))
    said = [int(scores(model, c.neutral).argmax()) for c in conflicts.conflicts]
    expected = sum(s == c.parametric_answer for s, c in zip(said, conflicts.conflicts, strict=True))
    assert strict.n_known == expected
    assert strict.n_known <= result.n_known <= lax.n_known


def test_a_model_that_knows_nothing_gives_counts_and_nan(
    model: HookedModel, tmp_path: Path
) -> None:
    ignorant = make_set(model, known=False)
    result = run_conflict(model, ignorant, make_arms(("paper",), ks=(2,)), config=QUICK)
    assert result.n_known == 0
    assert [k.known.effect for k in result.known] == [0.0, 0.0]
    cell = result.cell("paper k=2")
    for name in ("follows", "keeps", "neither", "keeps_change", "to_memory", "closed_book"):
        assert math.isnan(getattr(cell, name).effect)
    again = load_result(save_result(result, tmp_path / "none.json"))
    assert repr(again.cells) == repr(result.cells)


def test_the_matched_control_and_the_judged_arm(model: HookedModel, conflicts: ConflictSet) -> None:
    arms = make_arms(("smallest", "paper", "effect_matched"), ks=(1, 2))
    arms = tuple(a for a in arms if a.name != "effect_matched k=1 seed=0")
    result = run_conflict(model, conflicts, arms, config=QUICK)
    assert result.judged is not None
    assert result.judged.name == "paper k=2"
    cell = result.cell("paper k=2")
    assert cell.control == "effect_matched k=2 seed=0"
    other = result.cell(cell.control)
    assert cell.beyond_control.effect == pytest.approx(cell.keeps.effect - other.keeps.effect)
    assert result.arms[-1].strength != 1.0
    assert replace(result, arms=arms[:2]).judged is None


def test_a_result_survives_saving_and_has_a_row_a_cell(
    result: ConflictResult, tmp_path: Path
) -> None:
    again = load_result(save_result(result, tmp_path / "conflict.json"))
    assert repr(again.cells) == repr(result.cells)
    assert repr(again.known) == repr(result.known)
    frame = again.to_frame()
    assert len(frame) == len(result.cells)
    row = frame[(frame.arm == "paper k=2") & (frame.readout == "candidates")].iloc[0]
    cell = result.cell("paper k=2")
    assert (row.keeps, row.keeps_low, row.keeps_n) == (cell.keeps.effect, cell.keeps.low, 12)


def test_finished_conditions_are_taken_from_the_folder_and_damaged_ones_made_again(
    model: HookedModel, conflicts: ConflictSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = make_arms(("paper",), ks=(2,))
    first = run_conflict(model, conflicts, arms, config=QUICK, cells=tmp_path)
    asked: list[int] = []

    @functools.wraps(ask_conflicts)  # kept results are named by the module that computes them
    def counted(model: HookedModel, some: Any, *rest: Any, **options: Any) -> Any:
        asked.append(len(some))
        return ask_conflicts(model, some, *rest, **options)

    monkeypatch.setattr(conflict_module, "ask_conflicts", counted)
    again = run_conflict(model, conflicts, arms, config=QUICK, cells=tmp_path)
    assert asked == []
    assert repr(again.cells) == repr(first.cells)
    (damaged,) = tmp_path.glob("conflict-paper*.json")
    damaged.write_text(damaged.read_text()[:100])
    third = run_conflict(model, conflicts, arms, config=QUICK, cells=tmp_path)
    assert asked == [12]
    assert repr(third.cells) == repr(first.cells)


def test_progress_counts_the_conditions(model: HookedModel, conflicts: ConflictSet) -> None:
    done: list[int] = []
    arms = make_arms(("paper", "random"), ks=(2,))
    result = run_conflict(model, conflicts, arms, config=QUICK, on_progress=done.append)
    assert done == [1, 1, 1]
    assert result.legacy == ()


def test_bad_arguments_are_refused(model: HookedModel, conflicts: ConflictSet) -> None:
    twice = replace(conflicts, conflicts=conflicts.conflicts[:1] * 2)
    with pytest.raises(ValueError, match=r"conflicts must ask each subject once, got '0' again at"):
        run_conflict(model, twice, ())
    with pytest.raises(ValueError, match="conflicts must not be empty; take them from"):
        run_conflict(model, replace(conflicts, conflicts=()), ())
    with pytest.raises(ValueError, match="arms must have different names, got one twice"):
        run_conflict(model, conflicts, [*make_arms(("paper",)), *make_arms(("paper",))])
    with pytest.raises(ValueError, match="legacy_examples must be between 0 and 220"):
        ConflictConfig(legacy_examples=-1)
    with pytest.raises(ValueError, match="n_resamples must be between 1 and"):
        ConflictConfig(n_resamples=0)


def test_an_unknown_cell_is_refused(result: ConflictResult) -> None:
    with pytest.raises(ValueError, match="arm must be one of intact, paper k=2, random"):
        result.cell("paper k=3")
