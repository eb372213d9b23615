"""The whole experiment on a tiny model: every arm, its pairs, resumption, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, llama, save_model

from mi_massive import SurgeryArm, SurgeryConfig, SurgeryResult, run_surgery, surgery_arms
from mi_massive.attention_effects import measure_contexts
from mi_massive.capture import capture_norms
from mi_massive.evaluation import evaluate
from mi_massive.models import HookedModel, load_model
from mi_massive.models.attention import AttentionInputs
from mi_massive.operation import Surgery, operate
from mi_massive.pair_choices import PairChoice
from mi_massive.position_shares import PositionSharesConfig
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig
from mi_massive.surgery_plans import MeanEdit
from mi_massive.tasks.base import Example, Grade, Task

QUICK = SurgeryConfig(
    evaluation=EvaluationConfig(readouts=("options",)),
    generated=("hidden",),
    shares=PositionSharesConfig(n_bands=4, window=8, n_permutations=20, n_resamples=50),
    n_neutral=2,
    neutral_length=24,
    share_length=24,
    n_distances=2,
    n_resamples=100,
)
ONE_BAND = PairChoice(bands=(0,), n_bands=4)


def make_task(name: str, *, n: int = 6, hidden: bool = False) -> Task:
    """Random words; a hidden task says where its answer stands."""
    rng = np.random.default_rng(len(name))
    examples = []
    for i in range(n):
        words = [f"t{w}" for w in rng.integers(10, 50, 8)]
        words.insert(i, "t5")
        prompt = " ".join(words)
        examples.append(
            Example(
                id=str(i),
                prompt=prompt,
                question=prompt,
                answer="t5",
                options=(" t5", " t6"),
                gold=0,
                facts={"position": str(i)} if hidden else {},
            )
        )
    return Task(
        name=name,
        kind="contextual",
        version=1,
        summary="Continue.",
        examples=tuple(examples),
        grade=lambda text, example: Grade(correct="t5" in text, extracted=text or None),
        chance=0.0,
        max_new_tokens=3,
    )


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A Llama with room for the default passages, one dimension of it massive."""
    family = llama("roomy", max_position_embeddings=1024)
    built = family.build()
    with torch.no_grad():
        for layer in (0, 1):
            attention = built.get_submodule(f"model.layers.{layer}.self_attn")
            for name, head in (("q_proj", 2), ("k_proj", 1)):
                weight: Any = attention.get_submodule(name).weight
                weight[16 * head + 7] *= 100.0
    return load_model(save_model(built, tmp_path_factory.mktemp("roomy")))


@pytest.fixture(scope="module", name="tasks")
def fixture_tasks() -> list[Task]:
    return [make_task("hidden", hidden=True), make_task("plain")]


@pytest.fixture(scope="module", name="cells")
def fixture_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module", name="result")
def fixture_result(model: HookedModel, tasks: list[Task], cells: Path) -> SurgeryResult:
    return run_surgery(model, surgery_arms(n_bands=4), tasks, config=QUICK, cells=cells)


class TestArms:
    def test_every_band_is_removed_disrupted_and_emptied_in_turn(self) -> None:
        arms = surgery_arms(n_bands=4, n_seeds=3)
        for kind in ("removed", "disrupted", "content removed"):
            own = [arm for arm in arms if arm.kind == kind]
            assert [arm.pairs.bands for arm in own] == [(0,), (1,), (2,), (3,)]
            assert [arm.name for arm in own] == [f"band {i} {kind}" for i in range(4)]
        others = [arm.name for arm in arms if arm.kind == "other"]
        assert others == [
            "no rotation",
            "faster half removed",
            "faster half removed, massive kept",
            "slower half removed",
            "slower half removed, massive kept",
            "massive removed",
            *(f"random removed seed={seed}" for seed in range(3)),
            *("theta x 2", "theta x 0.5", "positions x 2", "positions x 0.5", "shift"),
        ]

    def test_the_cut_divides_the_bands_and_spares_the_massive_pairs(self) -> None:
        by_name = {arm.name: arm.pairs for arm in surgery_arms(n_bands=8)}
        assert by_name["faster half removed"].bands == (0, 1, 2, 3)
        assert by_name["slower half removed, massive kept"].bands == (4, 5, 6, 7)
        assert by_name["slower half removed, massive kept"].among == "not_massive"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "must have either a surgery or an edit, got neither in 'x'"),
            ({"surgery": Surgery(), "edit": MeanEdit()}, "a surgery or an edit, got both in 'x'"),
        ],
    )
    def test_an_arm_does_one_thing(self, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SurgeryArm(name="x", **given)

    def test_removing_content_keeps_position_and_the_other_way_round(
        self, model: HookedModel
    ) -> None:
        """In layer 0: the norm of a band's queries varies with the token or does not."""
        norms = capture_norms(model, [[3, 4, 5]])
        ids = torch.tensor([[3, 30, 12, 7, 45, 8]])
        seen: dict[str, torch.Tensor] = {}

        def note(name: str) -> Any:
            def keep(inputs: AttentionInputs) -> None:
                seen.setdefault(name, inputs.query[0].clone())  # of layer 0, which comes first

            return keep

        arms = {arm.kind: arm for arm in surgery_arms(n_bands=4) if arm.pairs == ONE_BAND}
        for kind, arm in arms.items():
            with arm.context(model, norms)():
                model.attention_inputs(ids, note(kind))
        dims = [0, 1, 8, 9]  # the two fastest pairs
        held = seen["content removed"][:, :, dims].unflatten(-1, (2, 2)).square().sum(dim=-2)
        assert float((held - held[:, :1]).abs().max()) < 1e-4 * float(held.max())
        turning = seen["content removed"][..., 0]
        assert float((turning - turning[:, :1]).abs().max()) > 0.1
        flat = seen["disrupted"][..., dims]
        assert float((flat - flat[:, :1]).abs().max()) < 1e-5
        model.attention_inputs(ids, note("intact"))
        before = seen["intact"][..., dims].unflatten(-1, (2, 2)).square().sum(dim=-2)
        after = seen["removed"][..., dims].unflatten(-1, (2, 2)).square().sum(dim=-2)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


class TestResult:
    def test_cells_are_the_scores_of_each_arm_against_the_intact_model(
        self, model: HookedModel, tasks: list[Task], result: SurgeryResult
    ) -> None:
        assert len(result.cells) == (1 + len(result.arms)) * 2
        config = EvaluationConfig(readouts=("options",))
        intact = evaluate(model, tasks[1], config=config)
        with operate(model, Surgery(pairs=ONE_BAND)) as operation:
            cut = evaluate(model, tasks[1], config=config)
        cell = result.cell("band 0 removed", "plain", "options")
        assert cell.score.effect == cut.score("options").effect
        expected = cut.correct("options").mean() - intact.correct("options").mean()
        assert cell.change.effect == pytest.approx(float(expected))
        assert cell.logit_diff.effect == pytest.approx(cut.logit_diff().effect)
        assert cell.n_edits == operation.total

    def test_a_shift_changes_no_answer(self, result: SurgeryResult) -> None:
        shift = result.cell("shift", "plain", "options")
        intact = result.cell("intact", "plain", "options")
        assert shift.logit_diff.effect == pytest.approx(intact.logit_diff.effect, abs=1e-4)
        effects = result.effects.of("shift")
        assert effects["added_cross_entropy"].effect == pytest.approx(0.0, abs=1e-4)
        assert effects["attention_kl"].effect == pytest.approx(0.0, abs=1e-5)
        assert result.effects.of("no rotation")["attention_kl"].effect > 1e-3

    def test_arms_without_a_massive_pair_are_left_out_and_named(
        self, tasks: list[Task], tmp_path: Path
    ) -> None:
        flat = load_model(save_model(llama("flat", max_position_embeddings=1024).build(), tmp_path))
        by_name = {arm.name: arm for arm in surgery_arms(n_bands=4, n_seeds=1)}
        ran = ["shift", "slower half removed, massive kept"]
        idle = ["massive removed", "random removed seed=0"]
        chosen = [by_name[name] for name in (*idle, *ran)]
        finished: list[int] = []
        found = run_surgery(flat, chosen, tasks[1:], config=QUICK, on_progress=finished.append)
        assert found.left_out == tuple(idle)
        assert [arm.name for arm in found.arms] == ran
        assert {cell.arm for cell in found.cells} == {"intact", *ran}
        assert sum(finished) == 2
        with pytest.raises(ValueError, match="arms must not be empty; nothing is massive here"):
            run_surgery(flat, chosen[:2], tasks[1:], config=QUICK)

    def test_nothing_is_left_out_where_something_is_massive(self, result: SurgeryResult) -> None:
        assert result.left_out == ()

    def test_neutral_text_is_measured_inside_each_context(
        self, model: HookedModel, result: SurgeryResult
    ) -> None:
        prompts = tokenize_prompts(model.tokenizer, default_passages()[:2], max_length=24)
        alone = measure_contexts(model, prompts, {"x": lambda: operate(model, Surgery())})
        at = result.effects.arms.index("no rotation")
        assert torch.allclose(result.effects.cross_entropy[at], alone.cross_entropy[1])

    def test_hidden_answers_are_read_by_distance_others_not(self, result: SurgeryResult) -> None:
        assert {cell.task for cell in result.distances} == {"hidden"}
        intact = [cell for cell in result.distances if cell.arm == "intact"]
        assert [(cell.nearest, cell.farthest) for cell in intact] == [(3, 5), (6, 8)]
        assert {cell.readout for cell in intact} == {"generation"}

    def test_random_pairs_are_the_control_of_the_massive_ones(self, result: SurgeryResult) -> None:
        controls = {c.arm: c.control for c in result.contrasts}
        assert controls["massive removed"] == "random removed (2 seeds)"
        assert {a for a, c in controls.items() if c is not None} == {"massive removed"}

    def test_norms_and_shares_are_those_of_the_intact_model(self, result: SurgeryResult) -> None:
        assert [row.projection for row in result.norms] == ["q", "k", "v"]
        assert result.norms[0].massive_after.n == 32
        assert len(result.shares.bands) == 4

    def test_it_is_saved_and_tabled(self, result: SurgeryResult, tmp_path: Path) -> None:
        loaded = load_result(save_result(result, tmp_path / "surgery.json"))
        assert loaded.arms == result.arms
        assert repr(loaded.distances) == repr(result.distances)  # NaN is unequal to itself
        frame = result.to_frame()
        assert len(frame) == len(result.cells)
        row = frame[(frame["arm"] == "theta x 2") & (frame["task"] == "plain")].iloc[0]
        assert row["score"] == result.cell("theta x 2", "plain", "options").score.effect

    def test_a_resumed_run_runs_nothing_and_gives_the_same(
        self,
        model: HookedModel,
        tasks: list[Task],
        cells: Path,
        result: SurgeryResult,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: Any, **given: Any) -> Any:
            raise AssertionError("a kept cell was computed again")

        monkeypatch.setattr(type(model.plain), "forward", fail)
        again = run_surgery(model, surgery_arms(n_bands=4), tasks, config=QUICK, cells=cells)
        assert again.arms == result.arms
        assert [c.score for c in again.cells] == [c.score for c in result.cells]
        assert torch.equal(again.shares.share, result.shares.share)


class TestRefusals:
    def test_arms_of_one_name_or_called_intact(self, model: HookedModel, tasks: list[Task]) -> None:
        arm = SurgeryArm(name="x", surgery=Surgery())
        with pytest.raises(ValueError, match="arms must have different names and none may be call"):
            run_surgery(model, [arm, arm], tasks, config=QUICK)
        with pytest.raises(ValueError, match="none may be called 'intact'"):
            run_surgery(model, [SurgeryArm(name="intact", surgery=Surgery())], tasks, config=QUICK)

    def test_no_task_and_no_arm(self, model: HookedModel, tasks: list[Task]) -> None:
        with pytest.raises(ValueError, match="tasks must not be empty; load at least one"):
            run_surgery(model, surgery_arms(), [], config=QUICK)
        with pytest.raises(ValueError, match="arms must not be empty; take those of surgery_arms"):
            run_surgery(model, [], tasks, config=QUICK)

    def test_an_unknown_cell(self, result: SurgeryResult) -> None:
        message = r"must be one of the arms on one of hidden \(generation\), plain \(options\), got"
        with pytest.raises(ValueError, match=message):
            result.cell("intact", "plain", "generation")

    def test_a_model_without_rotation(self, tmp_path: Path, tasks: list[Task]) -> None:
        gpt2 = load_model(FAMILIES["gpt2"].save(tmp_path))
        message = "must rotate its queries and keys to have its frequencies taken apart, got a mod"
        with pytest.raises(ValueError, match=message):
            run_surgery(gpt2, surgery_arms(n_bands=4), tasks, config=QUICK)

    def test_senseless_configurations(self) -> None:
        with pytest.raises(
            ValueError, match=r"n_bands must be between 4 and 65536 \(bands\), got 3"
        ):
            surgery_arms(n_bands=3)
        with pytest.raises(ValueError, match=r"n_neutral must be between 2 and 32 \(passages\)"):
            SurgeryConfig(n_neutral=1)
