"""`mi-massive twins` on very small twins, and their way into a report."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import Run

from mi_massive import _terminal, load_result
from mi_massive._twins_command import read_twins
from mi_massive.twins import TwinProgress

SMALL = (
    *("--arms", "rope,none", "--seeds", 1, "--corpus", "mixture", "--steps", 4),
    *("--heads", 2, "--d-head", 8, "--context", 48, "--batch-size", 2),
)


def test_twins_are_trained_saved_and_taken_from_the_folder(run: Run, tmp_path: Path) -> None:
    saved = tmp_path / "twins.json"
    status, out, err = run("twins", *SMALL, "--cells", tmp_path / "cells", "--save", saved)
    assert (status, err) == (0, "")
    assert "Twins after 4 steps" in out
    assert "max/mean of rope at equal loss" in out
    assert "Share of right answers" in out
    (result,) = read_twins([saved])
    assert result.config.arms == ("rope", "none")
    runs = sorted((tmp_path / "cells").glob("*/run.json"))
    before = [path.stat().st_mtime_ns for path in runs]
    status, out, _ = run("twins", *SMALL, "--cells", tmp_path / "cells", "--json")
    assert [path.stat().st_mtime_ns for path in runs] == before
    numbers = json.loads(out)
    assert numbers["arms"]["rope"]["loss"]["effect"] == pytest.approx(
        load_result(saved).final_loss("rope").effect
    )
    ratio = load_result(saved).contrast("k", arm="rope", against="none").effect
    assert numbers["at_equal_loss"]["none"]["k"]["effect"] == pytest.approx(ratio)
    assert numbers["config"]["shape"]["d_head"] == 8
    assert {row["ability"] for row in numbers["abilities"]} == {"recall", "facts"}


def test_progress_counts_steps_reached_and_is_told_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twin that is taken up in its middle counts with the steps behind it."""
    clock = iter([0.0, 5.0, 11.0, 11.0, 30.0, 30.0])
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: next(clock))
    twin = TwinProgress(arm="rope", seed=1, step=60, loss=2.5, concentration={"q": 1.5})
    with _terminal.twins_progress(2, 100, quiet=False) as show:
        show(twin)
        show(dataclasses.replace(twin, step=61))
        show(dataclasses.replace(twin, seed=0, step=100))
    assert capsys.readouterr().err.splitlines() == [
        "30% of all steps; rope 1: step 61, loss 2.50, q 1.50",
        "80% of all steps; rope 0: step 100, loss 2.50, q 1.50",
    ]


def test_a_twin_that_diverges_is_named_and_fails_the_command(run: Run, tmp_path: Path) -> None:
    status, out, err = run("twins", *SMALL, "--cells", tmp_path, "--learning-rate", 1e33)
    assert status == 1
    assert "Twins after 4 steps" in out
    assert "rope, seed 0: the" in err
    assert "lower learning rate than 1e+33" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arms", "rope,sinus"), "arms must be of rope"),
        (("--corpus", "no-such-file.txt"), "corpus must be a readable text file"),
        (("--d-head", 12), "d_head must be a multiple of 8, got 12"),
        (("--device", "cuda:9"), "device must be on this machine"),
        (("--dtype", "int8"), "--dtype must be one of"),
        (("--save", "twins.txt"), "--save must"),
    ],
)
def test_bad_options_are_one_sentence(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    status, out, err = run("twins", *SMALL, "--cells", tmp_path, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in " ".join(err.split())
    assert err.count("\n") == 1


def test_a_report_takes_saved_twins_and_no_other_result(run: Run, tmp_path: Path) -> None:
    from sample_results import concentration_result

    from mi_massive import save_result

    other = save_result(concentration_result(), tmp_path / "other.json")
    status, _, err = run("report", "--out", tmp_path / "page", "--twins", other)
    assert status == 1
    assert "--twins must name a result of `mi-massive twins`, got a ConcentrationResult" in err
    status, _, err = run("report", "--out", tmp_path / "page", "--twins", tmp_path / "none.json")
    assert status == 1
    assert "none.json" in err
