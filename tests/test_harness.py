"""The harness's tasks on our model: as its own model `hf` if intact, as `evaluate` if edited."""

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from conftest import Run
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_models import BOS_ID, FAMILIES

from mi_massive.arms import make_arms, match_arms
from mi_massive.evaluation import evaluate
from mi_massive.harness import DisruptedLM
from mi_massive.interventions import Intervention, Selection, Value, Where, disrupt
from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.presets import preset
from mi_massive.prompts import default_passages, tokenize_prompts
from mi_massive.scores import EvaluationConfig
from mi_massive.tasks import load_task
from mi_massive.tasks.base import Example, Grade, Task

QUESTIONS = ["t5 t9 t2 t40", "t17 t4", "t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11", "t30 t31 t32"]
OPTIONS = [(" t1", " t2"), (" t3 t4", " t5", " t6"), (" t7", " t8 t9 t10"), (" t1", " t0")]
PAIRS = [(q, option) for q, own in zip(QUESTIONS, OPTIONS, strict=True) for option in own]
TEXTS = ["t5 t9 t2 t40 t8", " ".join(f"t{(7 * i + i * i) % 61}" for i in range(40)), "t3 t4"]
N_HEADS = (4 + 2) * 2  # of queries and of keys, in two layers
STOP = {"until": ["t17"], "max_gen_toks": 7, "do_sample": False}


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["llama"].save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", name="model")
def fixture_model(folder: Path) -> HookedModel:
    return load_model(folder)


@pytest.fixture(name="printing")
def fixture_printing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what the harness's command does to logging: its stream is gone after the test."""
    logger = logging.getLogger("lm_eval")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", False)
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


def asked(kind: Any, rows: list[Any]) -> list[Instance]:
    """Requests as a task of the harness makes them."""
    return [Instance(kind, {}, row, i, ("words", i, 1)) for i, row in enumerate(rows)]


def hf(folder: Path, **options: Any) -> HFLM:
    """The harness's own model."""
    return HFLM(str(folder), device="cpu", dtype="float32", **options)


def log_likelihoods(lm: Any, pairs: list[tuple[str, str]] = PAIRS) -> list[tuple[float, bool]]:
    return lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)


def rolling(lm: Any, texts: list[str] = TEXTS) -> list[float]:
    return lm.loglikelihood_rolling(
        asked("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )


def answers(lm: Any, questions: list[str] = QUESTIONS) -> list[str]:
    rows = [(question, dict(STOP)) for question in questions]
    return lm.generate_until(asked("generate_until", rows), disable_tqdm=True)


def words_task() -> Task:
    """The same questions as a task of this package."""
    return Task(
        name="words",
        kind="contextual",
        version=1,
        summary="Words.",
        examples=tuple(
            Example(id=f"e{i}", prompt=q, question=q, answer="t1", options=own, gold=0)
            for i, (q, own) in enumerate(zip(QUESTIONS, OPTIONS, strict=True))
        ),
        grade=lambda text, example: Grade(correct=False, extracted=None),
        chance=0.0,
        max_new_tokens=7,
    )


# Intact: the numbers of the harness's own model.


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("options", [{}, {"max_length": 7}, {"add_bos_token": True}], ids=str)
def test_intact_log_likelihoods_are_those_of_hf(
    options: dict[str, Any], batch_size: int, folder: Path, model: HookedModel
) -> None:
    said = answers(hf(folder), QUESTIONS[:1])[0]
    pairs = [*PAIRS, (QUESTIONS[0], f" {said.split()[0]}"), ("", "t4 t5 t6"), ("", "<s> t4 t5")]
    expected = log_likelihoods(hf(folder, **options), pairs)
    found = log_likelihoods(DisruptedLM(model, batch_size=batch_size, **options), pairs)
    assert [n for n, _ in found] == pytest.approx([n for n, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert options or {greedy for _, greedy in found} == {True, False}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("max_length", [None, 9], ids=["one window", "windows"])
def test_intact_texts_are_read_as_by_hf(
    max_length: int | None, batch_size: int, folder: Path, model: HookedModel
) -> None:
    expected = rolling(hf(folder, max_length=max_length))
    ours = DisruptedLM(model, batch_size=batch_size, max_length=max_length)
    assert rolling(ours) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_intact_answers_are_those_of_hf(batch_size: int, folder: Path, model: HookedModel) -> None:
    expected = answers(hf(folder))
    assert answers(DisruptedLM(model, batch_size=batch_size)) == expected
    assert len(set(expected)) == len(QUESTIONS)


def test_the_tokenizer_of_a_loaded_model_stays_as_it_is(model: HookedModel) -> None:
    tokenizer: Any = model.tokenizer
    before = tokenizer.pad_token
    try:
        tokenizer.pad_token = None
        assert DisruptedLM(model).tokenizer.pad_token is not None
        assert tokenizer.pad_token is None
    finally:
        tokenizer.pad_token = before


# Edited: the numbers of `evaluate` and of `disrupt`.


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "name", ["paper", "random", "norm_matched", "sink_preserving", "authors_qwen2", "shuffled"]
)
def test_edited_options_and_answers_are_those_of_evaluate(
    name: str, batch_size: int, model: HookedModel
) -> None:
    lm = DisruptedLM(model, preset=name, k=2, batch_size=batch_size)
    found, texts = log_likelihoods(lm), answers(lm)
    expected = evaluate(
        model,
        words_task(),
        intervention=preset(name, k=2),
        config=EvaluationConfig(readouts=("generation", "options")),
    )
    by_option = [n for answer in expected.answers for n in answer.log_probs]
    assert [n for n, _ in found] == pytest.approx(by_option, abs=1e-4)
    assert texts == [str(answer.text).split("t17")[0] for answer in expected.answers]
    assert lm.n_edits == 2 * expected.n_edits > 0  # the harness reads a prompt for each read-out
    intact = log_likelihoods(DisruptedLM(model))
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, intact, strict=True)) > 1e-2


def test_exactly_the_prompts_are_edited_each_once(model: HookedModel) -> None:
    lm = DisruptedLM(model, preset="paper", k=3, batch_size=2)
    log_likelihoods(lm)
    n_tokens = sum(len(question.split()) for question in QUESTIONS)
    assert lm.n_edits == n_tokens * 3 * N_HEADS
    assert lm.get_model_info()["mi_massive"]["entries_edited"] == lm.n_edits


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_text_without_context_is_a_prompt_throughout(batch_size: int, model: HookedModel) -> None:
    lm = DisruptedLM(model, preset="paper", k=3, batch_size=batch_size)
    expected = []
    for text in TEXTS:
        ids = [BOS_ID, *(int(word[1:]) for word in text.split())]
        with torch.no_grad(), disrupt(model, preset("paper", k=3)):
            logits = model.plain(torch.tensor([ids[:-1]])).logits[0].log_softmax(dim=-1)
        expected.append(sum(float(logits[i, token]) for i, token in enumerate(ids[1:])))
    assert rolling(lm) == pytest.approx(expected, abs=1e-4)
    without = log_likelihoods(lm, [("", text) for text in TEXTS])
    assert [n for n, _ in without] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - rolling(DisruptedLM(model))[0]) > 1e-2


def test_an_edit_can_be_kept_to_some_layers_or_be_any_intervention(model: HookedModel) -> None:
    wanted = Intervention(selection=Selection(k=2), where=Where(layers=(1,)))
    expected = log_likelihoods(DisruptedLM(model, intervention=wanted))
    for layers in (1, [1], "1-1"):
        assert log_likelihoods(DisruptedLM(model, preset="paper", k=2, layers=layers)) == expected
    both = log_likelihoods(DisruptedLM(model, preset="paper", k=2, layers="0-1"))
    assert both == log_likelihoods(DisruptedLM(model, preset="paper", k=2)) != expected


def test_a_matched_control_is_matched_as_elsewhere(model: HookedModel) -> None:
    neutral = tokenize_prompts(model.tokenizer, default_passages()[:8], max_length=64)
    (expected,) = match_arms(model, make_arms(["effect_matched"], ks=[2]), neutral)
    lm = DisruptedLM(model, preset="effect_matched", k=2)
    assert lm.arm == expected
    assert expected.strength != 1.0
    assert lm.get_model_info()["mi_massive"]["value.strength"] == expected.strength


# What cannot be meant.

DECODE = Intervention(where=Where(positions="decode"))


def test_an_edit_that_does_not_happen_is_an_error(model: HookedModel) -> None:
    lm = DisruptedLM(model, intervention=DECODE)
    with pytest.raises(RuntimeError, match="an intervention must edit at least one entry"):
        log_likelihoods(lm, [(QUESTIONS[0], " t1")])  # nothing follows that would be read
    assert log_likelihoods(lm, [(QUESTIONS[0], " t1 t2")])
    assert lm.loglikelihood([]) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"preset": "nonsense"}, "preset must be one of paper, zero, .*, got 'nonsense'"),
        ({"preset": "massive", "k": 4}, "k must be left out for the preset 'massive', .* got 4"),
        ({"preset": "paper", "seed": 1}, "seed must be left out for the preset 'paper', .* got 1"),
        ({"preset": "paper", "k": 0}, "k must be a whole number of at least 1, got 0; try 4"),
        ({"preset": "paper", "k": 99}, r"k must be between 0 and 16 \(dimensions .* got 99"),
        ({"preset": "paper", "layers": "x"}, "layers must be a block such as 3, .* got 'x'"),
        ({"preset": "paper", "layers": 7}, r"layers must be among \[0, 1\], got 7"),
        (
            {"preset": "effect_matched", "layers": 1},
            "layers must be left out for the preset 'effect_matched', which is matched to paper",
        ),
        ({"k": 4}, "k must come with a preset, got 4 without; add preset=paper"),
        ({"preset": "paper", "intervention": DECODE}, "must come alone, got it with preset"),
        ({"k": 4, "intervention": DECODE}, "an intervention must come alone, got it with k"),
        (
            {"intervention": Intervention(value=Value(kind="dataset_mean"))},
            "must need nothing but the prompt .*, got 'dataset_mean', which needs a capture; use",
        ),
        (
            {"intervention": Intervention(value=Value(kind="resampled"))},
            "got 'resampled', which needs a donor prompt; use mi_massive.disrupt",
        ),
        (
            {"intervention": Intervention(selection=Selection(rule="mask"))},
            "got 'mask', which needs masks; use mi_massive.disrupt",
        ),
        ({"peft": "x"}, "model_args must be among pretrained, .*, got 'peft'; leave it out"),
        ({"batch_size": "auto"}, "batch_size must be a whole number .*, got 'auto'; try 8"),
        ({"max_length": "abc"}, "max_length must be a whole number of at least 1, got 'abc'"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, got 0; try 512"),
        ({"truncation": "maybe"}, "truncation must be true or false, got 'maybe'; correct it"),
        ({"dtype": "float32"}, "dtype must be left out with a loaded model, got 'float32'"),
        ({"pretrained": "folder", "dtype": "auto"}, "dtype must be one of float32, .* got 'auto'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_mean_nothing_are_refused(
    arguments: dict[str, Any], sentence: str, model: HookedModel
) -> None:
    with pytest.raises(ValueError, match=sentence):
        DisruptedLM(**{"pretrained": model, **arguments})


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("preset=paper", f"model_args must name a model, got none; add pretrained={DEFAULT_MODEL}"),
        ("pretrained=,k=1", "model_args must name a model, got none"),
        ("pretrained=7", "pretrained must be the name of a model .*, got 7; correct it"),
        ("pretrained=m,preset=paper,k=0", "k must be a whole number of at least 1, got 0; try 4"),
        ("pretrained=m,preset=paper,k=four", "k must be a whole number .* 1, got 'four'; try 4"),
        ("pretrained=m,preset=paper,k=2.5", r"k must be a whole number .* 1, got 2\.5; try 4"),
        ("pretrained=m,preset=random,seed=x", "seed must be a whole number .* 0, got 'x'; try 1"),
        ("pretrained=m,max_length=abc", "max_length must be a whole number .* 1, got 'abc'"),
        ("pretrained=m,prefix_token_id=x", "prefix_token_id must be a whole number .* 0, got 'x'"),
        ("pretrained=m,preset=paper,layers=true", "layers must be a block such as .*, got True"),
        ("pretrained=m,revision=1234567", "revision must be a text .*, got 1234567; correct it"),
        ("pretrained=m,trust_remote_code=maybe", "trust_remote_code must be true or false, got"),
        ("pretrained=m,intervention=x", "intervention must be an Intervention, .* got 'x'"),
        ("pretrained=m,batch_size=2", "batch_size must be given once, got 2 in .* and 1 beside"),
    ],
)
def test_what_the_harness_is_told_is_refused_before_a_model_is_loaded(
    told: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("mi_massive._harness_arguments.load_model", refuse)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        DisruptedLM.create_from_arg_string(told, {"batch_size": 1, "device": None})


def test_what_the_command_is_told_is_one_sentence(run: Run, printing: None) -> None:
    told = ("--tasks", "arc_easy", "--model_args", "pretrained=m,preset=paper,k=four")
    answer = run("lm-eval", "--model", "mi_massive", *told)
    assert answer.status == 1
    sentence = "error: k must be a whole number of at least 1, got 'four'; try 4"
    assert answer.err.splitlines()[-1] == sentence


def test_numbers_may_be_told_as_text(model: HookedModel) -> None:
    told = {"pretrained": model, "preset": "random", "k": "2", "seed": "3", "max_length": "9"}
    lm = DisruptedLM.create_from_arg_obj(told, {"batch_size": "4", "max_batch_size": None})
    assert lm.arm is not None
    assert (lm.arm.k, lm.arm.seed, lm.max_length, lm.batch_size) == (2, 3, 9, 4)


def test_a_model_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    encoder = str(FAMILIES["bert"].save(tmp_path))
    with pytest.raises(UnsupportedModelError, match="must be a decoder with a language-modelling"):
        DisruptedLM(encoder)


def test_a_continuation_that_cannot_be_read_is_refused(model: HookedModel) -> None:
    lm = DisruptedLM(model, max_length=3)
    message = "a continuation must fit the 3 tokens that the model can read, got 4; shorten it"
    with pytest.raises(ValueError, match=message):
        log_likelihoods(lm, [("t1", " t1 t2 t3 t4")])


def test_without_the_extra_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.delitem(sys.modules, "mi_massive.harness")
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(RuntimeError, match=r"pip install 'mi-massive\[lm-eval\]'"):
        importlib.import_module("mi_massive.harness")
    answer = run("lm-eval", "--tasks", "words")
    assert answer.status == 1
    assert answer.err.startswith("error: the extra 'lm-eval' must be installed to run tasks of")
    assert answer.err.count("\n") == 1


# Tasks, as files of the harness.


@pytest.fixture(name="tasks")
def fixture_tasks(tmp_path: Path) -> Path:
    """A folder with a multiple-choice, a generation and a perplexity task over one local file."""
    rows = [
        {"question": q, "options": list(own), "gold": i % 2}
        for i, (q, own) in enumerate(zip(QUESTIONS, OPTIONS, strict=True))
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
    }
    kinds: dict[str, dict[str, Any]] = {
        "words_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": "acc"}],
        },
        "words_answer": {
            "output_type": "generate_until",
            "doc_to_target": "{{options[gold]}}",
            "generation_kwargs": STOP,
            "metric_list": [{"metric": "exact_match"}],
        },
        "words_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, kind in kinds.items():  # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **kind}))
    return folder


def run_tasks(tasks: Path, folder: Path, *edits: str, **options: Any) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model="mi_massive",
        model_args=",".join([f"pretrained={folder}", *edits]),
        tasks=["words_choice", "words_answer", "words_text"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    assert found is not None
    return dict(found)


def test_the_harness_finds_the_model_by_name_and_keeps_the_edit_with_the_scores(
    tasks: Path, folder: Path, model: HookedModel
) -> None:
    found = run_tasks(tasks, folder, "preset=paper", "k=2", batch_size=3)
    told = found["config"]["mi_massive"]
    assert (told["arm"], told["where.positions"], told["device"]) == ("paper k=2", "prefill", "cpu")
    once = sum(len(question.split()) for question in QUESTIONS)
    # Options and answers read each question, the text has a first token before it and no last one.
    assert told["entries_edited"] == 3 * once * 2 * N_HEADS
    expected = evaluate(
        model,
        words_task(),
        intervention=preset("paper", k=2),
        config=EvaluationConfig(readouts=("options",)),
    )
    best = [max(range(len(a.log_probs)), key=a.log_probs.__getitem__) for a in expected.answers]
    right = sum(choice == i % 2 for i, choice in enumerate(best))
    assert found["results"]["words_choice"]["acc,none"] == right / len(QUESTIONS)
    intact = run_tasks(tasks, folder)
    assert intact["config"]["mi_massive"]["arm"] == "intact"
    assert intact["config"]["mi_massive"]["entries_edited"] == 0
    perplexity = [r["results"]["words_text"]["word_perplexity,none"] for r in (found, intact)]
    assert abs(perplexity[0] - perplexity[1]) > 0.1


def test_answers_of_another_edit_are_not_taken_from_a_cache(
    tasks: Path, folder: Path, tmp_path: Path
) -> None:
    cache = {"use_cache": str(tmp_path / "answers")}
    first = run_tasks(tasks, folder, "preset=paper", "k=2", **cache)
    again = run_tasks(tasks, folder, "preset=paper", "k=2", **cache)
    assert again["results"] == first["results"]
    assert again["config"]["mi_massive"]["entries_edited"] == 0  # all came from the cache
    for edits in ([], ["preset=paper", "k=3"]):
        with pytest.raises(ValueError, match="use_cache must name a file of answers of the same"):
            run_tasks(tasks, folder, *edits, **cache)


def test_the_command_line_is_that_of_the_harness(
    tasks: Path, folder: Path, tmp_path: Path, run: Run, printing: None
) -> None:
    answer = run(
        *("lm-eval", "--model", "mi_massive", "--tasks", "words_choice", "-b", 2),
        *("--model_args", f"pretrained={folder},preset=paper,k=2", "--include_path", tasks),
        *("--device", "cpu", "--output_path", tmp_path / "out"),
    )
    assert answer.status == 0
    assert "|   Tasks    |Version|" in answer.out
    assert "words_choice" in answer.out
    (saved,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(saved.read_text())["config"]["mi_massive"]["arm"] == "paper k=2"
    assert "--include_path" in run("lm-eval", "run", "--help").out


def test_the_default_model_agrees_with_evaluate() -> None:
    model = load_model(DEFAULT_MODEL)
    task = load_task("pairs_counterfactual").first(6)
    pairs = [(example.prompt, option) for example in task.examples for option in example.options]
    for name, k in ((None, None), ("paper", 4)):
        lm = DisruptedLM(model, preset=name, k=k, batch_size=4)
        expected = evaluate(
            model,
            task,
            intervention=lm.intervention,
            config=EvaluationConfig(readouts=("options",)),
        )
        by_option = [n for answer in expected.answers for n in answer.log_probs]
        assert [n for n, _ in log_likelihoods(lm, pairs)] == pytest.approx(by_option, abs=1e-3)
        assert lm.n_edits == expected.n_edits
