"""Quantized copies beside full precision: measures, resumption, claims, section, command."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from sample_results import concentration_result
from test_report import bare
from test_surgery import make_task
from tiny_models import llama, save_model

from mi_massive import (
    HookedModel,
    QuantizationConfig,
    QuantizationResult,
    UnsupportedModelError,
    compare_quantized,
    evaluate,
    load_model,
    quantize,
    viz,
)
from mi_massive._method_claims import method_findings
from mi_massive._quantize_command import _schemes
from mi_massive.claims import scoreboard
from mi_massive.concentration import ConcentrationResult, massive_mask
from mi_massive.contrasts import group_contrast
from mi_massive.models import compression, oneshot
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.quantization_results import mask_change
from mi_massive.quantization_schemes import make_schemes
from mi_massive.records import load_result, save_result
from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.report.quantization import quantization_section
from mi_massive.scores import Answer, EvaluationConfig, TaskResult
from mi_massive.tasks.base import Task
from mi_massive.weight_protection import WeightProtectionConfig

DRAWN: dict[str, Any] = {"n_calibration": 4, "calibration_length": 16}
SCHEMES = make_schemes(("rtn", "gptq", "awq"), bits=3, group=16, seeds=(0, 1), **DRAWN)
SCHEMES += make_schemes(("rtn", "smoothquant"), bits=8, activation_bits=8, **DRAWN)
TEXTS = [" ".join(f"t{(7 * i + 3 * j * j + i * j) % 61}" for j in range(24)) for i in range(8)]
QUICK = QuantizationConfig(
    schemes=SCHEMES,
    rows=WeightProtectionConfig(bits=(2,), group=16, n_seeds=1, ratio=2.5),
    ratio=2.5,
    evaluation=EvaluationConfig(readouts=("options",)),
    n_neutral=3,
    neutral_length=24,
    n_resamples=100,
)


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A Llama with massive channels."""
    built = llama("roomy", max_position_embeddings=1024).build()
    with torch.no_grad():
        for name, row in (("q_proj", 16 + 3), ("k_proj", 5)):
            weight: Any = built.get_submodule(f"model.layers.1.self_attn.{name}").weight
            weight[row] *= 100.0
    return load_model(save_model(built, tmp_path_factory.mktemp("roomy")))


@pytest.fixture(scope="module", name="tasks")
def fixture_tasks() -> list[Task]:
    memory = replace(make_task("plain", n=12), kind="parametric")
    return [make_task("hidden", n=12, hidden=True), memory]


@pytest.fixture(scope="module", name="folders")
def fixture_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("cells", "cache")}


@pytest.fixture(scope="module", name="result")
def fixture_result(
    model: HookedModel, tasks: list[Task], folders: dict[str, Path]
) -> QuantizationResult:
    return compare_quantized(model, tasks, config=QUICK, calibration=TEXTS, **folders)


@pytest.fixture(scope="module", name="observed")
def fixture_observed(result: QuantizationResult) -> ConcentrationResult:
    made = concentration_result(model=result.provenance.model)
    source = replace(made.provenance, revision=result.provenance.revision)
    return replace(made, provenance=source)


class TestResult:
    def test_every_scheme_is_measured_as_the_model_that_quantize_gives(
        self, model: HookedModel, tasks: list[Task], result: QuantizationResult, folders: Any
    ) -> None:
        held = quantize(
            model,
            method="gptq",
            bits=3,
            group=16,
            calibration=TEXTS,
            seed=1,
            cache=folders["cache"],
            **DRAWN,
        )
        neutral = tokenize_prompts(model.tokenizer, default_passages()[:3], max_length=24)
        ids = torch.tensor([list(neutral.input_ids[1])])
        losses = []
        for one in (model, held):
            with torch.no_grad():
                logits: Any = one.plain(input_ids=ids).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]))
        added = result.added("gptq w3 g16 seed=1")
        assert float(added[1]) == pytest.approx(float(losses[1] - losses[0]), abs=1e-4)
        assert result.damage("gptq w3 g16 seed=1").effect == pytest.approx(float(added.mean()))
        own = evaluate(held, tasks[0], config=QUICK.evaluation).score("options")
        cell = next(c for c in result.cells if (c.arm, c.task) == ("gptq w3 g16 seed=1", "hidden"))
        assert cell.score.effect == own.effect
        assert result.bits_per_weight["gptq w3 g16 seed=1"] == 3 + (16 + 3) / 16

    def test_full_precision_stands_beside_every_scheme(self, result: QuantizationResult) -> None:
        names = [scheme.name for scheme in SCHEMES]
        assert len(names) == 7
        assert list(dict.fromkeys(cell.arm for cell in result.cells)) == ["intact", *names]
        assert result.cross_entropy.shape == (8, 3)
        assert result.errors.arms == tuple(names)
        assert [c.change.effect for c in result.cells if c.arm == "intact"] == [0.0, 0.0]

    def test_fewer_bits_move_states_further(self, result: QuantizationResult) -> None:
        for projection in ("q", "k"):
            three, eight = (
                result.errors.of(name, projection)["later"].effect
                for name in ("rtn w3 g16", "rtn w8a8")
            )
            assert three > 3 * eight > 0

    def test_masks_are_those_of_both_models_on_the_neutral_text(
        self, result: QuantizationResult
    ) -> None:
        changes = [c for c in result.masks if c.arm == "rtn w8a8"]
        assert [c.projection for c in changes] == ["q", "k"]
        for change in changes:
            assert change.n_before > 0
            assert change.n_after == change.n_before + change.appeared - change.vanished
            assert change.massive_norm == pytest.approx(1.0, abs=0.1)

    def test_a_second_run_computes_nothing(
        self,
        model: HookedModel,
        tasks: list[Task],
        result: QuantizationResult,
        folders: dict[str, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(*arguments: Any, **keywords: Any) -> None:
            raise AssertionError("nothing is to be computed again")

        monkeypatch.setattr(compression, "run_oneshot", refuse)
        before = {path.name for path in folders["cells"].iterdir()}
        told: list[int] = []
        again = compare_quantized(
            model, tasks, config=QUICK, calibration=TEXTS, **folders, on_progress=told.append
        )
        assert {path.name for path in folders["cells"].iterdir()} == before
        assert torch.equal(again.cross_entropy, result.cross_entropy)
        assert sum(told) == 8 * 3 + 7 + 5

    def test_it_survives_saving(self, result: QuantizationResult, tmp_path: Path) -> None:
        back = load_result(save_result(result, tmp_path / "result.json"))
        assert isinstance(back, QuantizationResult)
        assert back.schemes == result.schemes
        assert torch.equal(back.cross_entropy, result.cross_entropy)
        assert back.rows is not None
        frame = back.to_frame()
        assert list(frame["name"]) == [scheme.name for scheme in SCHEMES]
        assert len(back.scores_frame()) == len(result.cells)

    def test_methods_are_grouped_by_level_and_protection(self, result: QuantizationResult) -> None:
        levels = {m.level: (m.first, m.second) for m in result.methods}
        assert levels == {
            "w3 g16": (
                (("rtn w3 g16",), ("gptq w3 g16 seed=0", "gptq w3 g16 seed=1")),
                (("awq w3 g16 seed=0", "awq w3 g16 seed=1"),),
            ),
            "w8a8": ((("rtn w8a8",),), (("smoothquant w8a8 seed=0",),)),
        }

    def test_an_unknown_scheme(self, result: QuantizationResult) -> None:
        with pytest.raises(ValueError, match=r"name must be one of rtn w3 g16, .*, got 'x'"):
            result.damage("x")


def test_mask_changes_are_counted_head_by_head() -> None:
    before = torch.ones(1, 3, 6)
    before[0, :, 0] = 12.0
    after = before.clone()
    after[0, 0, [0, 3]] = torch.tensor([1.0, 12.0])  # moved
    after[0, 1, 0] = 1.0  # vanished
    before[0, 2, 0] = 1.0  # appeared
    masks = (massive_mask(before, ratio=3.0), massive_mask(after, ratio=3.0))
    change = mask_change("x", "q", before, after, masks)
    assert (change.n_before, change.n_after) == (2, 2)
    assert (change.moved, change.appeared, change.vanished) == (1, 1, 1)
    assert change.massive_norm == pytest.approx(1 / 12)


def answers(task: str, kind: Any, right: int, n: int = 20) -> TaskResult:
    """A task with two options, the first `right` examples of which are right."""
    from sample_results import provenance

    made = tuple(
        Answer(
            id=str(i),
            group="",
            condition="",
            text=None,
            extracted=None,
            correct=None,
            legacy_correct=None,
            log_probs=(0.0, -1.0) if i < right else (-1.0, 0.0),
            gold=0,
        )
        for i in range(n)
    )
    return TaskResult(
        task=task,
        kind=kind,
        version=1,
        digest=task,
        chance=0.0,
        options_chance=0.5,
        answers=made,
        n_edits=0,
        config=EvaluationConfig(readouts=("options",)),
        provenance=provenance(),
    )


def both(contextual: int, parametric: int) -> list[TaskResult]:
    return [answers("c", "contextual", contextual), answers("p", "parametric", parametric)]


def test_a_group_contrast_averages_members_within_parts() -> None:
    intact = both(20, 20)
    arms = {"a": both(10, 20), "b": both(20, 20), "c": both(15, 20), "d": both(20, 15)}
    found = group_contrast(
        intact, arms, level="l", first=[["a", "b"], ["c"]], second=[["d"]], readout="options"
    )
    assert found.contextual.effect == pytest.approx(((1 + 0) / 2 + 0.5) / 2)
    assert found.parametric.effect == pytest.approx(-0.5)
    assert found.contrast.effect == pytest.approx(1.0)
    assert (found.contextual.n, found.contrast.n) == (20, 40)
    assert found.contrast.low < 1.0 < found.contrast.high
    nothing = group_contrast(
        both(10, 10), arms, level="l", first=[["a"]], second=[["d"]], readout="options"
    )
    assert math.isnan(nothing.contrast.effect)
    assert nothing.contrast.n == 0


class TestClaims:
    def planted(
        self, result: QuantizationResult, *, damage: float, right: int = 20
    ) -> QuantizationResult:
        """Every scheme costs so many nats; others than AWQ lose so much of the contextual task."""
        from mi_massive.scores import cells_of

        loss = result.cross_entropy[:1].repeat(1 + len(SCHEMES), 1)
        loss[1:] += damage
        intact = both(20, 20)
        arms = {s.name: both(20 if s.protects else right, 20) for s in SCHEMES}
        methods = tuple(
            group_contrast(
                intact, arms, level=m.level, first=m.first, second=m.second, readout="options"
            )
            for m in result.methods
        )
        return replace(
            result, cross_entropy=loss, cells=cells_of(intact, arms), methods=methods, rows=None
        )

    def test_what_the_others_lose_decides(
        self, result: QuantizationResult, observed: ConcentrationResult
    ) -> None:
        planted = self.planted(result, damage=0.5, right=12)
        ((id_c, estimates, reading),) = method_findings(planted, observed)
        assert id_c == "C7c"
        assert [e.effect for e in estimates] == [pytest.approx(0.8)] * 2
        assert "rtn and gptq lose +80%" in reading

    def test_where_no_method_hurts_nothing_is_decided(
        self, result: QuantizationResult, observed: ConcentrationResult
    ) -> None:
        planted = self.planted(result, damage=0.05, right=12)
        ((_, estimates, reading),) = method_findings(planted, observed)
        assert estimates == []
        assert "At w3 g16 no method costs 0.1 nats" in reading

    def test_where_every_method_ruins_the_model_nothing_is_decided(
        self, result: QuantizationResult, observed: ConcentrationResult
    ) -> None:
        planted = self.planted(result, damage=3.0, right=10)
        ruined = tuple(replace(cell, score=replace(cell.score, low=0.4)) for cell in planted.cells)
        found = method_findings(replace(planted, cells=ruined), observed)
        assert found[0][1] == []
        assert "every method ruins the contextual tasks" in found[0][2]

    def test_rows_are_judged_by_what_massive_ones_save(
        self, result: QuantizationResult, observed: ConcentrationResult
    ) -> None:
        rows = result.rows
        assert rows is not None
        loss = rows.effects.cross_entropy[:1].repeat(len(rows.effects.arms), 1)
        for i, arm in enumerate(rows.arms, start=1):
            loss[i] += 0.3 if arm.protected == "massive" else 0.9 if arm.protected != "none" else 1
        planted = replace(rows, effects=replace(rows.effects, cross_entropy=loss))
        found = {
            claim: (estimates, reading)
            for claim, estimates, reading in method_findings(
                replace(result, rows=planted), observed
            )
        }
        estimates, reading = found["C7d"]
        assert [e.effect for e in estimates] == [pytest.approx(0.6, rel=1e-4)]
        assert "save 60.0% at 2 bits" in reading

    def test_the_record_decides_both_against_the_paper(self) -> None:
        records = Path(__file__).parents[1] / "experiments/records"
        name = "smollm2-135m-instruct"
        record = load_result(records / f"quantization_{name}.json")
        assert {s.method for s in record.schemes} == {"rtn", "gptq", "awq", "smoothquant"}
        made = concentration_result(model=name)
        source = replace(made.provenance, revision=record.provenance.revision)
        board = scoreboard(replace(made, provenance=source), quantized=record)
        claims = {claim.id: claim for claim in board.claims}
        by_level = {m.level: m.contrast for m in record.methods}
        assert claims["C7c"].verdict == claims["C7d"].verdict == "not supported"
        assert claims["C7c"].estimate.effect == by_level["w4 g64"].effect
        assert "At w8a8 no method costs 0.1 nats" in claims["C7c"].reading

    def test_another_model_is_refused(self, result: QuantizationResult) -> None:
        with pytest.raises(ValueError, match="quantized must come from the model 'other'"):
            method_findings(result, concentration_result(model="other"))


class TestPage:
    def test_the_figure_shows_scores_over_those_of_full_precision(
        self, result: QuantizationResult
    ) -> None:
        figure = viz.plot_quantized(result)
        lines = {trace.name: trace for trace in figure.data}
        cells = {(c.arm, c.task): c for c in result.cells}
        full = cells["intact", "hidden"].score.effect
        seeds = [cells[f"gptq w3 g16 seed={i}", "hidden"].score.effect / full for i in (0, 1)]
        assert lines["gptq w3 g16 (2 seeds)"].y[0] == pytest.approx(np.mean(seeds), rel=1e-3)
        assert list(lines["awq"].y) == [0.966, 0.976, 0.992]
        with pytest.raises(ValueError, match="readout must be one that a task was asked in"):
            viz.plot_quantized(result, readout="generation")

    def test_the_section_holds_schemes_methods_rows_and_scores(
        self, result: QuantizationResult
    ) -> None:
        section = quantization_section(None, result, title="t")
        schemes, methods, rows, scores = section.tables
        assert [row[0] for row in schemes.rows] == [scheme.name for scheme in SCHEMES]
        assert [row[:3] for row in methods.rows] == [
            ("w3 g16", "rtn, gptq", "awq"),
            ("w8a8", "rtn", "smoothquant"),
        ]
        assert [row[1] for row in rows.rows][-1] == "mean of the others"
        assert len(scores.rows) == len(result.cells)
        results = bare(model=result.provenance.model, quantized=result)
        assert 'id="figure-quantized"' in render_page(results)
        assert len(frames(results)["quantized"]) == len(SCHEMES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schemes": ()}, "schemes must not be empty"),
        ({"schemes": SCHEMES[:1] * 2}, "schemes must differ in name, got 'rtn w3 g16' twice"),
        ({"n_neutral": 1}, "n_neutral must be between 2 and 31"),
        ({"neutral_length": 4}, "neutral_length must be between 8"),
        ({"ratio": 0.0}, "ratio must be finite and positive"),
    ],
)
def test_senseless_comparisons_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **change)


def test_tasks_must_fit(model: HookedModel, tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match="tasks must have different names, got 'plain' twice"):
        compare_quantized(model, [tasks[1], tasks[1]], config=QUICK)
    with pytest.raises(ValueError, match="row_tasks must be among the tasks plain, got 'x'"):
        compare_quantized(model, tasks[1:], config=replace(QUICK, row_tasks=("x",)))


def test_a_quantized_model_is_not_compared(model: HookedModel, folders: dict[str, Path]) -> None:
    held = quantize(model, method="rtn", bits=3, group=16, cache=folders["cache"])
    config = replace(QUICK, schemes=SCHEMES[:1], rows=None)
    with pytest.raises(UnsupportedModelError, match="must have weights of full precision"):
        compare_quantized(held, [], config=config, cache=folders["cache"])


def test_the_command_prints_saves_and_feeds_a_report(
    run: Run, model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MI_MASSIVE_CACHE", str(tmp_path / "cache"))
    task = tmp_path / "words.jsonl"
    rows = [
        {"prompt": f"t{i} t7", "options": ["t5", "t6"], "answer": "t5", "kind": "contextual"}
        for i in range(10, 16)
    ]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    saved = tmp_path / "saved.json"
    folder = model.name
    options = ("quantize", folder, "--group", 16, "--tasks", task, "--limit", 4, "--quiet")
    status, out, err = run(*options, "--json", "--save", saved)
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["bits_per_weight"] == {"rtn w4 g16": 5.25}
    assert isinstance(load_result(saved), QuantizationResult)
    status, out, _ = run(*options)
    assert status == 0
    assert "rtn w4 g16" in out
    status, _, err = run("report", "other", "--out", tmp_path / "r", "--quantization", saved)
    assert status == 1
    assert "--quantization must be of the model" in " ".join(err.split())
    twice = ("--quantization", saved, "--quantization", saved)
    status, _, err = run("report", folder, "--out", tmp_path / "r", *twice)
    assert status == 1
    assert "must name at most one QuantizationResult" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "int4"), "method must be one of rtn, gptq, awq, smoothquant, got 'int4'"),
        (("--group", "7"), "group must divide the 64 inputs of"),
        (("--bits", "9"), "bits must be between 2 and 8"),
        (("--tasks", "poems"), "--tasks must be among"),
        (("--save", "x.txt"), "--save must end in .json"),
        (("--windows", "4"), "--windows must be left out for methods that look at no text, got it"),
        (("--seeds", "2"), "--seeds must be left out for methods that look at no text, got it for"),
        (
            ("--calibration", "x.txt"),
            "--calibration must be left out for methods that look at no text, got it for rtn",
        ),
        (("--column", "text"), "--column must come with --calibration, got 'text' without"),
        (
            ("--method", "smoothquant", "--group", "16"),
            "--group must be left out for methods that have a scale for each output, got it for",
        ),
        (("--method", "smoothquant", "--bits", "4"), "--bits must be 8 with smoothquant, got 4"),
    ],
)
def test_bad_options_are_one_sentence(
    run: Run, model: HookedModel, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    task = tmp_path / "words.jsonl"
    task.write_text(
        '{"prompt": "t1", "options": ["t5", "t6"], "answer": "t5", "kind": "contextual"}\n' * 2
    )
    given = arguments if "--tasks" in arguments else (*arguments, "--tasks", str(task))
    status, out, err = run("quantize", model.name, *given, "--quiet")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in " ".join(err.split())
    assert err.count("\n") == 1


def test_methods_beside_smoothquant_keep_bits_that_they_can() -> None:
    made = _schemes(["awq", "rtn", "smoothquant"], None, None, group=16)
    names = [scheme.name for scheme in made]
    assert names == ["awq w4 g16 seed=0", "rtn w8a8", "smoothquant w8a8 seed=0"]
    alone = _schemes(["awq", "rtn"], 3, None, group=16)
    assert [scheme.name for scheme in alone] == ["awq w3 g16 seed=0", "rtn w3 g16"]


@pytest.mark.parametrize(
    ("changes", "calibration", "words"),
    [
        ({"group": 7}, TEXTS, "group must divide"),
        ({"group": 16}, ["t1"], "calibration must fill at least one window"),
    ],
)
def test_what_cannot_be_rounded_is_refused_before_anything_is_asked(
    model: HookedModel,
    tasks: list[Task],
    tmp_path: Path,
    changes: dict[str, Any],
    calibration: list[str],
    words: str,
) -> None:
    schemes = make_schemes(("rtn", "gptq"), bits=4, **DRAWN, **changes)
    config = replace(QUICK, schemes=schemes)
    with pytest.raises(ValueError, match=words):
        compare_quantized(model, tasks, config=config, calibration=calibration, cells=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_said_before_anything_is_asked(
    model: HookedModel, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oneshot, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'mi-massive\[quantize\]'"):
        compare_quantized(model, tasks, config=QUICK, calibration=TEXTS, cells=tmp_path)
    assert list(tmp_path.iterdir()) == []
