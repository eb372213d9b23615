"""Shares and flips are those that one counts by hand, example by example."""

import math
from functools import partial

import numpy as np
import pytest
import sample_results

from mi_massive import conflict_scores
from mi_massive.conflict_scores import (
    CONFLICT_READOUTS,
    DECIDING,
    ConflictAnswer,
    ConflictAnswers,
    ConflictCell,
    Reading,
    Said,
)
from mi_massive.proportions import mcnemar_p_value
from mi_massive.scores import INTACT
from mi_massive.stats import holm

conflict_cells = partial(conflict_scores.conflict_cells, n_resamples=200)
KINDS: tuple[Said, ...] = ("context", "memory", "neither")


def answers(
    given: list[Said], recalled: list[Said] | None = None, diffs: list[float] | None = None
) -> ConflictAnswers:
    recalled = ["memory"] * len(given) if recalled is None else recalled
    diffs = [0.0] * len(given) if diffs is None else diffs

    def reading(what: Said, diff: float) -> Reading:
        return Reading(said=dict.fromkeys(CONFLICT_READOUTS, what), logit_diff=diff)

    return ConflictAnswers(
        answers=tuple(
            ConflictAnswer(
                id=str(i),
                relation=f"relation{i % 2}",
                style=f"style{i % 3}",
                conflict=reading(g, d),
                closed_book=reading(r, 0.0),
            )
            for i, (g, r, d) in enumerate(zip(given, recalled, diffs, strict=True))
        ),
        n_edits=0,
        provenance=sample_results.provenance(),
    )


def drawn(n: int, seed: int) -> list[Said]:
    return [KINDS[i] for i in np.random.default_rng(seed).integers(0, 3, n)]


def only(cells: tuple[ConflictCell, ...], arm: str, part: tuple = (None, None, DECIDING)):
    (found,) = (cell for cell in cells if cell.arm == arm and cell.part == part)
    return found


def test_shares_and_flips_match_a_count_by_hand() -> None:
    n = 40
    before, after, recalled = drawn(n, 1), drawn(n, 2), drawn(n, 3)
    cells = conflict_cells(answers(before), {"edit": answers(after, recalled)}, controls={})
    cell = only(cells, "edit")

    def share(test, among=range(n)) -> tuple[float, int]:
        among = list(among)
        return sum(test(i) for i in among) / len(among), len(among)

    followers = [i for i in range(n) if before[i] == "context"]
    keepers = [i for i in range(n) if before[i] == "memory"]
    expected = {
        "follows": share(lambda i: after[i] == "context"),
        "keeps": share(lambda i: after[i] == "memory"),
        "neither": share(lambda i: after[i] == "neither"),
        "to_memory": share(lambda i: after[i] == "memory", followers),
        "to_neither": share(lambda i: after[i] == "neither", followers),
        "to_context": share(lambda i: after[i] == "context", keepers),
        "closed_book": share(lambda i: recalled[i] == "memory"),
        "lost_both": share(lambda i: after[i] == "neither" and recalled[i] != "memory"),
    }
    for name, (effect, count) in expected.items():
        found = getattr(cell, name)
        assert (found.effect, found.n) == (pytest.approx(effect), count), name
        assert found.low <= found.effect <= found.high
    gained = sum(a == "memory" != b for b, a in zip(before, after, strict=True))
    lost = sum(b == "memory" != a for b, a in zip(before, after, strict=True))
    assert cell.keeps_change.effect == pytest.approx((gained - lost) / n)


def test_a_planted_fall_back_is_found_whole_and_surely() -> None:
    n = 24
    before: list[Said] = ["context"] * 20 + ["memory"] * 4
    cells = conflict_cells(answers(before), {"edit": answers(["memory"] * n)}, controls={})
    cell = only(cells, "edit")
    assert (cell.to_memory.effect, cell.to_memory.n) == (1.0, 20)
    assert (cell.keeps_change.effect, cell.follows_change.effect) == (20 / 24, -20 / 24)
    assert cell.keeps_change.low > 0.5
    assert cell.keeps_change.p_value == pytest.approx(2 * 0.5**20)
    assert cell.closed_book.effect == 1.0
    assert cell.lost_both.effect == 0.0


def test_a_destroyed_model_is_told_from_one_that_falls_back() -> None:
    n = 20
    before: list[Said] = ["context"] * n
    cells = conflict_cells(
        answers(before),
        {"destroyed": answers(["neither"] * n, ["neither"] * n), "back": answers(["memory"] * n)},
        controls={},
    )
    destroyed, back = only(cells, "destroyed"), only(cells, "back")
    assert (destroyed.follows.effect, back.follows.effect) == (0.0, 0.0)
    assert (destroyed.keeps_change.effect, back.keeps_change.effect) == (0.0, 1.0)
    assert (destroyed.lost_both.effect, back.lost_both.effect) == (1.0, 0.0)
    assert (destroyed.closed_book.effect, back.closed_book.effect) == (0.0, 1.0)


def test_p_values_are_corrected_over_the_arms_of_a_part() -> None:
    before = drawn(30, 1)
    arms = {f"arm{seed}": drawn(30, seed) for seed in (2, 3, 4)}
    made = conflict_cells(
        answers(before), {name: answers(given) for name, given in arms.items()}, controls={}
    )
    kept = {name: np.array(given) == "memory" for name, given in arms.items()}
    raw = [mcnemar_p_value(np.array(before) == "memory", after) for after in kept.values()]
    found = [only(made, name).keeps_change.p_value for name in arms]
    assert found == pytest.approx(holm(np.array(raw)).tolist())
    assert math.isnan(only(made, INTACT).keeps_change.p_value)


def test_beyond_the_control_is_the_paired_difference_of_the_shares_that_keep_memory() -> None:
    before, treated, matched = drawn(30, 1), drawn(30, 2), drawn(30, 3)
    made = conflict_cells(
        answers(before),
        {"treatment": answers(treated), "matched": answers(matched)},
        controls={"treatment": ("matched",)},
    )
    cell = only(made, "treatment")
    assert cell.control == "matched"
    assert cell.beyond_control.effect == pytest.approx(
        cell.keeps.effect - only(made, "matched").keeps.effect
    )
    kept = [np.array(given) == "memory" for given in (matched, treated)]
    assert cell.beyond_control.p_value == mcnemar_p_value(*kept)
    assert only(made, "matched").control is None
    assert math.isnan(only(made, "matched").beyond_control.effect)


def test_beyond_several_seeds_is_the_paired_difference_to_their_mean() -> None:
    before, treated = drawn(30, 1), drawn(30, 2)
    seeds = {f"matched seed={seed}": drawn(30, 3 + seed) for seed in range(3)}
    made = conflict_cells(
        answers(before),
        {"treatment": answers(treated), **{name: answers(s) for name, s in seeds.items()}},
        controls={"treatment": tuple(seeds)},
    )
    cell = only(made, "treatment")
    assert cell.control == "matched (3 seeds)"
    kept = np.mean([only(made, name).keeps.effect for name in seeds])
    assert cell.beyond_control.effect == pytest.approx(cell.keeps.effect - kept)
    assert cell.beyond_control.n == 30
    assert cell.beyond_control.test.endswith("sign-flip permutation (two-sided)")
    assert 0 < cell.beyond_control.p_value <= 1


def test_relations_and_styles_hold_their_own_examples() -> None:
    before, after = drawn(36, 1), drawn(36, 2)
    cells = conflict_cells(answers(before), {"edit": answers(after)}, controls={})
    parts = [cell.part for cell in cells if cell.arm == "edit"]
    assert parts == [
        *((None, None, readout) for readout in CONFLICT_READOUTS),
        *((f"relation{i}", None, DECIDING) for i in range(2)),
        *((None, f"style{i}", DECIDING) for i in range(3)),
    ]
    for i in range(3):
        own = [after[j] for j in range(36) if j % 3 == i]
        cell = only(cells, "edit", (None, f"style{i}", DECIDING))
        assert (cell.follows.n, cell.follows.effect) == (12, own.count("context") / 12)


def test_logit_differences_are_means_and_their_change_is_paired() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=20), rng.normal(size=20) - 1
    cells = conflict_cells(
        answers(drawn(20, 1), diffs=first.tolist()),
        {"edit": answers(drawn(20, 2), diffs=second.tolist())},
        controls={},
    )
    cell = only(cells, "edit")
    assert cell.logit_diff.effect == pytest.approx(second.mean())
    assert cell.logit_diff_change.effect == pytest.approx((second - first).mean())
    assert cell.logit_diff_change.n == 20


def test_a_model_without_any_known_fact_has_nothing_but_nan() -> None:
    cells = conflict_cells(answers([]), {"edit": answers([])}, controls={})
    assert {cell.part for cell in cells} == {(None, None, r) for r in CONFLICT_READOUTS}
    for cell in cells:
        for name in ("follows", "keeps", "neither", "keeps_change", "to_memory", "logit_diff"):
            value = getattr(cell, name)
            assert math.isnan(value.effect)
            assert math.isnan(value.low)
            assert value.n == 0


def test_an_arm_on_other_conflicts_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"by_arm\['edit'\] must answer the same conflicts .* \(3\), got 2; run"
    ):
        conflict_cells(answers(["context"] * 3), {"edit": answers(["context"] * 2)}, controls={})
