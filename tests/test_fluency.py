"""Answers are scored with their prompt, by the intact model and by the arm that wrote them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_disruption import make_task
from tiny_models import llama

from mi_massive.arms import make_arms
from mi_massive.evaluation import evaluate
from mi_massive.fluency import FluencyResult, measure_fluency
from mi_massive.interventions import disrupt
from mi_massive.models import HookedModel, load_model
from mi_massive.presets import preset
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig
from mi_massive.tasks.base import Task
from mi_massive.text_measures import distinct_share, repetition_share

CONFIG = EvaluationConfig(max_new_tokens=6)


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama().save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="task")
def fixture_task(model: HookedModel) -> Task:
    return make_task(model, "reads", "contextual", n=5)


@pytest.fixture(scope="module", name="result")
def fixture_result(model: HookedModel, task: Task) -> FluencyResult:
    return measure_fluency(model, [task], make_arms(("paper",), ks=(3,)), config=CONFIG)


def slow_log_perplexity(model: HookedModel, prompt: str, text: str, *, edited: bool) -> float:
    """Prompt read alone, then its answer token by token on that cache."""
    encode = model.tokenizer
    ids = torch.tensor([encode(prompt)["input_ids"]])
    new = encode(text, add_special_tokens=False)["input_ids"]
    losses = []
    with torch.no_grad():
        if edited:
            with disrupt(model, preset("paper", k=3)):
                output = model.plain(input_ids=ids, use_cache=True)
        else:
            output = model.plain(input_ids=ids, use_cache=True)
        for token in new:
            losses.append(-float(output.logits[0, -1].log_softmax(dim=-1)[token]))
            output = model.plain(
                input_ids=torch.tensor([[token]]),
                past_key_values=output.past_key_values,
                use_cache=True,
            )
    return float(np.mean(losses))


def test_perplexities_are_those_of_reading_prompt_and_answer_token_by_token(
    model: HookedModel, task: Task, result: FluencyResult
) -> None:
    edit = preset("paper", k=3)
    texts = [
        [answer.text for answer in evaluate(model, task, intervention=arm, config=CONFIG).answers]
        for arm in (None, edit)
    ]
    for row, answers, edited in zip(result.rows, texts, (False, True), strict=True):
        prompts = [example.prompt for example in task.examples]
        by_intact = [
            slow_log_perplexity(model, p, t, edited=False)
            for p, t in zip(prompts, answers, strict=True)
        ]
        own = [
            slow_log_perplexity(model, p, t, edited=edited)
            for p, t in zip(prompts, answers, strict=True)
        ]
        assert row.log_perplexity.effect == pytest.approx(np.mean(by_intact), rel=1e-4)
        assert row.own_log_perplexity.effect == pytest.approx(np.mean(own), rel=1e-4)
        assert row.distinct_2.effect == pytest.approx(np.mean([distinct_share(t) for t in answers]))
        shares = [repetition_share(t) for t in answers]
        assert row.repetition.effect == pytest.approx(np.nanmean(shares))
        assert row.n_empty == 0


def test_the_intact_model_comes_first_and_scores_itself(result: FluencyResult) -> None:
    assert [row.arm for row in result.rows] == ["intact", "paper k=3"]
    intact, paper = result.rows
    assert intact.log_perplexity == intact.own_log_perplexity
    assert paper.log_perplexity.effect != paper.own_log_perplexity.effect
    # Greedy answers are the most probable ones to the model that gives them.
    assert paper.log_perplexity.effect > intact.log_perplexity.effect


def test_changes_are_paired_with_the_intact_models_answers(result: FluencyResult) -> None:
    intact, paper = result.rows
    assert paper.added_log_perplexity.effect == pytest.approx(
        paper.log_perplexity.effect - intact.log_perplexity.effect
    )
    assert paper.added_log_perplexity.n == paper.log_perplexity.n
    assert 0 < paper.added_log_perplexity.p_value <= 1
    assert paper.distinct_loss.effect == pytest.approx(
        intact.distinct_2.effect - paper.distinct_2.effect
    )
    assert intact.added_log_perplexity.effect == 0
    assert math.isnan(intact.added_log_perplexity.p_value)


def test_the_provenance_is_of_the_whole_run_not_of_its_last_arm(
    model: HookedModel, task: Task, result: FluencyResult
) -> None:
    other = make_task(model, "recalls", "parametric", n=3)
    both = measure_fluency(model, [task, other], make_arms(("paper",), ks=(3,)), config=CONFIG)
    assert both.provenance.n_prompts == 8
    assert list(both.provenance.settings) == ["task reads", "task recalls"]
    assert both.provenance.settings["task reads"] == (
        f"version {task.version}, 5 examples, digest {task.digest}"
    )
    assert both.provenance.prompts_digest != result.provenance.prompts_digest


def test_a_result_survives_saving(result: FluencyResult, tmp_path: Path) -> None:
    again = load_result(save_result(result, tmp_path / "fluency.json"))
    assert repr(again.rows) == repr(result.rows)
    assert list(again.to_frame()["arm"]) == ["intact", "paper k=3"]
