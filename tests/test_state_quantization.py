"""The quantization factorial on a tiny model: arms, errors, gains, resumption, and refusals."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_surgery import make_task
from tiny_models import FAMILIES, llama, save_model

from mi_massive import (
    QuantizationPlan,
    StateQuantizationConfig,
    StateQuantizationResult,
    massive_mask,
    quantized_states,
    run_state_quantization,
)
from mi_massive.capture import capture_norms
from mi_massive.evaluation import evaluate
from mi_massive.models import HookedModel, load_model
from mi_massive.models.attention import AttentionInputs
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.quantization_arms import QuantizationArm, protected_channels
from mi_massive.quantizer import make_quantizer
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig
from mi_massive.state_errors import PARTS, measure_state_errors
from mi_massive.tasks.base import Task

QUICK = StateQuantizationConfig(
    bits=(8, 3),
    n_seeds=2,
    task_bits=(3,),
    evaluation=EvaluationConfig(readouts=("options",)),
    n_neutral=2,
    neutral_length=24,
    n_resamples=100,
)
CONTROLS = ("random", "same_band", "norm_matched")
IDS = [3, 30, 12, 7, 45, 8, 21, 5]


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A Llama with room for the default passages, and massive channels in some heads."""
    built = llama("roomy", max_position_embeddings=1024).build()
    with torch.no_grad():
        for layer in (0, 1):
            attention = built.get_submodule(f"model.layers.{layer}.self_attn")
            for name, head, dims in (
                ("q_proj", 2, (7, 15)),
                ("q_proj", 1, (3,)),
                ("k_proj", 1, (7,)),
            ):
                weight: Any = attention.get_submodule(name).weight
                for dim in dims:
                    weight[16 * head + dim] *= 100.0
    return load_model(save_model(built, tmp_path_factory.mktemp("roomy")))


@pytest.fixture(scope="module", name="norms")
def fixture_norms(model: HookedModel) -> AttentionNorms:
    return capture_norms(model, [IDS, IDS[::-1]])


@pytest.fixture(scope="module", name="tasks")
def fixture_tasks() -> list[Task]:
    memory = replace(make_task("plain", n=12), kind="parametric")
    return [make_task("hidden", n=12, hidden=True), memory]


@pytest.fixture(scope="module", name="cells")
def fixture_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module", name="result")
def fixture_result(model: HookedModel, tasks: list[Task], cells: Path) -> StateQuantizationResult:
    return run_state_quantization(model, tasks, config=QUICK, cells=cells)


class TestPassages:
    def test_those_of_the_package_are_the_default(
        self, model: HookedModel, result: StateQuantizationResult
    ) -> None:
        own = tokenize_prompts(model.tokenizer, default_passages())
        given = run_state_quantization(model, [], passages=own, config=QUICK)
        assert given.extra_bits == result.extra_bits
        assert torch.equal(given.effects.cross_entropy, result.effects.cross_entropy)
        bare = tokenize_prompts(None, [IDS, IDS[::-1]])
        other = run_state_quantization(model, [], passages=bare, config=QUICK)
        assert other.provenance.prompts_digest != result.provenance.prompts_digest

    def test_too_few_are_refused(self, model: HookedModel) -> None:
        one = tokenize_prompts(None, [IDS])
        expected = r"n_neutral must be at most the number of passages \(1\), got 2; give more"
        with pytest.raises(ValueError, match=expected):
            run_state_quantization(model, [], passages=one, config=QUICK)


class TestArms:
    def test_the_factorial(self) -> None:
        arms = [arm.name for arm in QUICK.arms() if arm.plan.bits == 3]
        kept = [
            *("none", "massive", "random", "random", "same_band", "same_band", "norm_matched"),
        ]
        assert [a.protected for a in QUICK.arms()[:7]] == kept
        assert len(arms) == 2 * 7 + 2 * 2
        assert arms[:3] == ["3 bits", "3 bits, massive kept", "3 bits, random kept seed=0"]
        assert arms[-1] == "3 bits, hadamard, massive kept, first kept"
        assert len({arm.name for arm in QUICK.arms()}) == 36

    @pytest.mark.parametrize("projection", ["q", "k"])
    @pytest.mark.parametrize("control", CONTROLS)
    @pytest.mark.parametrize("stage", ["attention", "unrotated"])
    def test_controls_have_as_many_channels_in_every_head_and_none_of_them_massive(
        self, projection: Any, control: Any, stage: Any, norms: AttentionNorms
    ) -> None:
        massive = protected_channels(norms, projection, "massive", stage=stage)
        others = protected_channels(norms, projection, control, stage=stage)
        assert torch.equal(massive.sum(dim=-1), others.sum(dim=-1))
        assert not (massive & others).any()
        assert set(massive.sum(dim=-1).flatten().tolist()) >= {0, 1}
        pooled = norms.sums(projection, stage).pooled_norms()
        assert torch.equal(massive, massive_mask(pooled))

    def test_norm_matched_follows_in_rank(self, norms: AttentionNorms) -> None:
        massive = protected_channels(norms, "q", "massive")
        others = protected_channels(norms, "q", "norm_matched")
        left = norms.q.masked_fill(massive, -1.0)
        assert bool((massive.sum(dim=-1) > 0).any())
        for layer, head in massive.any(dim=-1).nonzero().tolist():
            k = int(massive[layer, head].sum())
            assert set(left[layer, head].topk(k).indices.tolist()) == set(
                others[layer, head].nonzero().flatten().tolist()
            )

    def test_seeds_draw_other_channels(self, norms: AttentionNorms) -> None:
        first, second = (protected_channels(norms, "q", "random", seed=seed) for seed in (0, 1))
        assert not torch.equal(first, second)

    def test_nothing_protected_needs_no_mask(self, norms: AttentionNorms) -> None:
        assert QuantizationArm().masks(norms) == {}
        assert not protected_channels(norms, "q", "none").any()

    def test_extra_bits(self) -> None:
        masks: Any = {"q": torch.zeros(1, 2, 8, dtype=torch.bool)}
        masks["q"][0, 0, :2] = True
        plan = QuantizationPlan(bits=4)
        arm = QuantizationArm(plan=plan, protected="massive")
        assert arm.extra_bits(masks, n_tokens=10) == pytest.approx(12 * 2 / 16)
        first = QuantizationArm(plan=replace(plan, keep_first=True), protected="massive")
        expected = 12 * (2 / 16 + 14 / 16 / 10)
        assert first.extra_bits(masks, n_tokens=10) == pytest.approx(expected)
        assert QuantizationArm(plan=plan).extra_bits({}, n_tokens=10) == 0.0

    def test_bands_of_a_model_without_rotation(self, tmp_path: Path) -> None:
        gpt2 = load_model(FAMILIES["gpt2"].save(tmp_path))
        norms = capture_norms(gpt2, [IDS])
        arm = QuantizationArm(protected="same_band", ratio=1.2)
        with pytest.raises(ValueError, match="the rule 'same_band' must be asked of a layer that"):
            arm.masks(norms)

    def test_values_are_protected_at_their_only_stage(self, norms: AttentionNorms) -> None:
        plan = QuantizationPlan(projections=("k", "v"), stage="unrotated", granularity="channel")
        masks = QuantizationArm(plan=plan, protected="massive").masks(norms)
        assert set(masks) == {"k", "v"}
        assert torch.equal(masks["v"], massive_mask(norms.v))


class TestErrors:
    def test_they_equal_a_plain_definition(self, model: HookedModel, norms: AttentionNorms) -> None:
        prompts = tokenize_prompts(model.tokenizer, ["t3 t30 t12 t7 t45 t8"])
        plan = QuantizationPlan(bits=3)
        massive: Any = {p: protected_channels(norms, p, "massive") for p in ("q", "k")}
        errors = measure_state_errors(
            model, prompts, {"x": make_quantizer(model, plan, None)}, massive=massive
        )
        own: list[AttentionInputs] = []
        ids = torch.tensor([list(prompts.input_ids[0])])
        model.attention_inputs(ids, lambda seen: own.append(_copied(seen)))
        found: dict[str, list[float]] = {part: [] for part in PARTS}
        for layer, seen in enumerate(own):
            states = seen.key[0].double()
            low = states.amin(dim=-1, keepdim=True).clamp_max(0)
            step = (states.amax(dim=-1, keepdim=True).clamp_min(0) - low) / 7
            zero = (-4 - low / step).round()
            stored = ((states / step + zero).round().clamp(-4, 3) - zero) * step
            for head in range(2):
                moved, size = (stored - states)[head].square(), states[head].square()
                mask = massive["k"][layer, head]
                if mask.any():
                    ratio = moved[1:, mask].sum() / size[1:, mask].sum()
                    found["massive"].append(float(ratio.sqrt()))
                found["other"].append(
                    float((moved[1:, ~mask].sum() / size[1:, ~mask].sum()).sqrt())
                )
                found["first"].append(float((moved[0].sum() / size[0].sum()).sqrt()))
                found["later"].append(float((moved[1:].sum() / size[1:].sum()).sqrt()))
        assert found["massive"]
        for part, estimate in errors.of("x", "k").items():
            assert estimate.effect == pytest.approx(np.mean(found[part]), rel=1e-3)

    def test_what_is_protected_has_none(self, result: StateQuantizationResult) -> None:
        assert result.errors.of("3 bits, massive kept", "q")["massive"].effect == 0.0
        assert result.errors.of("3 bits, massive kept", "q")["other"].effect > 0.0
        assert result.errors.of("3 bits, first kept", "k")["first"].effect == 0.0
        assert result.errors.of("3 bits, first kept", "k")["later"].effect > 0.0

    def test_fewer_bits_have_larger_ones(self, result: StateQuantizationResult) -> None:
        for part in PARTS:
            errors = [result.errors.of(f"{bits} bits", "q")[part].effect for bits in (8, 3)]
            assert errors[0] < 0.1 * errors[1]

    def test_an_unknown_arm(self, result: StateQuantizationResult) -> None:
        with pytest.raises(ValueError, match=r"arm and projection must be one of .*, got 'x' and"):
            result.errors.of("x", "q")


def _copied(seen: AttentionInputs) -> AttentionInputs:
    return AttentionInputs(seen.block, *(x.clone() for x in (seen.query, seen.key, seen.value)))


class TestResult:
    def test_text_is_that_of_each_arm(
        self, model: HookedModel, result: StateQuantizationResult
    ) -> None:
        prompts = tokenize_prompts(model.tokenizer, default_passages()[:2], max_length=24)
        row = result.effects.arms.index("3 bits, hadamard")
        ids = torch.tensor([list(prompts.input_ids[1])])
        plan = QuantizationPlan(bits=3, hadamard=True)
        plain: Any = model.plain
        with quantized_states(model, plan), torch.no_grad():
            logits = plain(input_ids=ids, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
        assert float(result.effects.cross_entropy[row, 1]) == pytest.approx(float(loss), rel=1e-3)
        assert result.effects.arms == ("intact", *(arm.name for arm in result.arms))
        assert result.effects.cross_entropy.shape == (37, 2)
        assert result.effects.attention_kl.shape == (37, 2, 2)

    def test_cells_are_those_of_the_asked_arms(
        self, model: HookedModel, tasks: list[Task], result: StateQuantizationResult
    ) -> None:
        assert len(result.cells) == (1 + 18) * 2
        cell = next(c for c in result.cells if (c.arm, c.task) == ("3 bits", "plain"))
        with quantized_states(model, QuantizationPlan(bits=3)) as done:
            own = evaluate(model, tasks[1], config=QUICK.evaluation)
        assert cell.score.effect == own.score("options").effect
        assert cell.n_edits == done.total

    def test_a_gain_is_the_mean_of_the_others_minus_the_massive(
        self, result: StateQuantizationResult
    ) -> None:
        losses = dict(zip(result.effects.arms, result.effects.cross_entropy, strict=True))
        for first, tail in ((False, ""), (True, ", first kept")):
            own = losses[f"3 bits, massive kept{tail}"]
            random, band = (
                (
                    losses[f"3 bits, {c} kept seed=0{tail}"]
                    + losses[f"3 bits, {c} kept seed=1{tail}"]
                )
                / 2
                for c in ("random", "same_band")
            )
            rank = losses[f"3 bits, norm_matched kept{tail}"]
            for against, others in (
                ("nothing", losses[f"3 bits{tail}"]),
                ("random", random),
                ("same_band", band),
                ("norm_matched", rank),
                ("others", (random + band + rank) / 3),
            ):
                gain = result.gain(3, against=against, first_kept=first)  # type: ignore[arg-type]
                expected = float((others - own).mean())
                assert gain.gain.effect == pytest.approx(expected, abs=1e-5)
                assert gain.gain.n == 2
                assert (gain.extra_bits == 0) == (against != "nothing")

    def test_gains_of_the_first_token_and_of_the_rotation(
        self, result: StateQuantizationResult
    ) -> None:
        losses = dict(zip(result.effects.arms, result.effects.cross_entropy, strict=True))
        gain = result.gain(8, by="first", against="nothing")
        expected = float((losses["8 bits"] - losses["8 bits, first kept"]).mean())
        assert gain.gain.effect == pytest.approx(expected, abs=1e-5)
        assert gain.extra_bits == pytest.approx(8 / 24, rel=0.1)
        assert gain.per_bit == pytest.approx(gain.gain.effect / gain.extra_bits)
        turned = result.gain(8, by="hadamard", against="nothing", first_kept=True)
        expected = float(
            (losses["8 bits, first kept"] - losses["8 bits, hadamard, first kept"]).mean()
        )
        assert turned.gain.effect == pytest.approx(expected, abs=1e-5)
        assert math.isnan(turned.per_bit)

    def test_gains_on_tasks_pair_the_examples(
        self, model: HookedModel, tasks: list[Task], result: StateQuantizationResult
    ) -> None:
        margins: list[Any] = []
        for arm in result.arms:
            named = arm.name in ("3 bits", "3 bits, massive kept")
            if named:
                masks = arm.masks(
                    capture_norms(model, tokenize_prompts(model.tokenizer, default_passages()))
                )
                with quantized_states(model, arm.plan, protect=masks):
                    own = evaluate(model, tasks[0], config=QUICK.evaluation)
                margins.append(np.array([answer.logit_diff for answer in own.answers]))
        gain = result.gain(3, against="nothing", measure="logit_diff", task="hidden").gain
        assert gain.effect == pytest.approx(float((margins[1] - margins[0]).mean()), abs=1e-3)
        assert gain.n == 12
        assert {g.bits for g in result.gains if g.task is not None} == {3}

    def test_p_values_are_corrected_over_the_gains_of_a_measure(
        self, result: StateQuantizationResult
    ) -> None:
        text = [g for g in result.gains if g.measure == "cross_entropy"]
        assert len(text) == 2 * 13
        assert all(g.gain.test.endswith("Holm") for g in result.gains)
        assert all(g.gain.p_value == 1.0 for g in text)  # two passages show nothing

    def test_massive_channels_are_set_against_the_random_ones(
        self, result: StateQuantizationResult
    ) -> None:
        controls = {c.arm: c.control for c in result.contrasts if c.control is not None}
        assert controls == {
            "3 bits, massive kept": "3 bits, random kept (2 seeds)",
            "3 bits, massive kept, first kept": "3 bits, random kept, first kept (2 seeds)",
        }

    def test_it_is_saved_and_tabled(self, result: StateQuantizationResult, tmp_path: Path) -> None:
        loaded = load_result(save_result(result, tmp_path / "quantized.json"))
        assert loaded.arms == result.arms
        assert loaded.extra_bits == result.extra_bits
        assert repr(loaded.gains) == repr(result.gains)  # NaN is unequal to itself
        frame = loaded.to_frame()
        assert list(frame["arm"]) == ["intact", *(arm.name for arm in result.arms)]
        row = frame[frame["arm"] == "3 bits, massive kept"].iloc[0]
        assert (row["bits"], row["protected"], row["first_kept"]) == (3, "massive", False)
        assert row["error_q_massive"] == 0.0
        assert row["added_cross_entropy"] == pytest.approx(
            row["cross_entropy"] - frame["cross_entropy"].iloc[0], abs=1e-5
        )
        assert len(loaded.gains_frame()) == len(result.gains)
        assert len(loaded.scores_frame()) == len(result.cells)

    def test_a_resumed_run_runs_nothing_and_gives_the_same(
        self,
        model: HookedModel,
        tasks: list[Task],
        cells: Path,
        result: StateQuantizationResult,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: Any, **given: Any) -> Any:
            raise AssertionError("a kept cell was computed again")

        monkeypatch.setattr(type(model.plain), "forward", fail)
        pieces: list[int] = []
        again = run_state_quantization(
            model, tasks, config=QUICK, cells=cells, on_progress=pieces.append
        )
        assert sum(pieces) == 36 + 2 * 18
        assert repr(again.gains) == repr(result.gains)
        assert torch.equal(again.effects.cross_entropy, result.effects.cross_entropy)

    def test_text_alone(self, model: HookedModel, cells: Path) -> None:
        config = replace(QUICK, bits=(3,), controls=(), hadamard=False)
        result = run_state_quantization(model, [], config=config, cells=cells)
        assert (result.cells, result.contrasts) == ((), ())
        assert {(g.by, g.against) for g in result.gains} == {
            ("massive", "nothing"),
            ("first", "nothing"),
        }

    def test_an_unknown_gain(self, result: StateQuantizationResult) -> None:
        with pytest.raises(ValueError, match="a gain must be one of the result's gains, got"):
            result.gain(4)


class TestRefusals:
    def test_two_tasks_of_one_name(self, model: HookedModel, tasks: list[Task]) -> None:
        with pytest.raises(ValueError, match="tasks must have different names, got 'plain' twice"):
            run_state_quantization(model, [tasks[1], tasks[1]], config=QUICK)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"bits": ()}, "bits must not be empty; give at least one number"),
            ({"bits": (4, 4)}, r"bits must name each number once, got \(4, 4\)"),
            ({"task_bits": (5,)}, r"task_bits must be among bits \(8, 4, 3, 2\), got \(5,\)"),
            ({"ratio": 0.0}, "ratio must be finite and positive, got 0.0"),
            ({"n_seeds": 0}, r"n_seeds must be between 1 and 100 \(seeds\), got 0"),
            ({"n_neutral": 1}, r"n_neutral must be between 2 and 32 \(passages\), got 1"),
            ({"neutral_length": 4}, r"neutral_length must be between 8 and \d+ \(tokens\), got 4"),
            (
                {"plan": QuantizationPlan(keep_first=True)},
                "plan must leave keep_first and hadamard False, which the arms set, got True",
            ),
        ],
    )
    def test_senseless_configurations(self, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            StateQuantizationConfig(**given)
