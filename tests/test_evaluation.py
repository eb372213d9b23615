"""A hand-made task on a tiny model, against the untouched transformers model example by example."""

import copy
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_models import FAMILIES, PAD_ID
from tokenizers import pre_tokenizers, processors

from mi_massive.capture import capture_norms
from mi_massive.evaluation import evaluate
from mi_massive.interventions import Intervention, Selection, Value, Where, disrupt
from mi_massive.models import HookedModel, load_model
from mi_massive.prompts import tokenize_prompts
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig, TaskResult, compare
from mi_massive.tasks.base import Example, Grade, Task

QUESTIONS = ["t5 t9 t2 t40", "t17", "t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11", "t30 t31 t32", "t8 t8 t8"]
OPTIONS = [(" t1", " t2"), (" t3 t4", " t5", " t6"), (" t7", " t8 t9 t10"), (" t1", " t0"), ()]
GOLD = [1, 2, 1, 1, None]
N_NEW = 6
BOTH = EvaluationConfig(readouts=("generation", "options"))
EDIT = Intervention(selection=Selection(k=2))


@pytest.fixture(scope="module", name="loaded")
def fixture_loaded(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(FAMILIES["llama"].save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(name="model")
def fixture_model(loaded: HookedModel, monkeypatch: pytest.MonkeyPatch) -> HookedModel:
    """A model whose tokenizer a test may change."""
    monkeypatch.setattr(loaded, "tokenizer", copy.deepcopy(loaded.tokenizer))
    return loaded


@functools.cache
def untouched() -> Any:
    """The transformers model itself."""
    return FAMILIES["llama"].build()


def ids_of(text: str) -> list[int]:
    return [{"<s>": PAD_ID - 1}.get(word) or int(word[1:]) for word in text.split()]


def plain_text(prompt: str, n: int = N_NEW) -> str:
    """Greedy answer, as words; special tokens are no text."""
    ids = torch.tensor([ids_of(prompt)])
    mask = torch.ones_like(ids)
    output = untouched().generate(
        ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=PAD_ID
    )
    new = output[0, ids.shape[1] :].tolist()
    new = new[: new.index(PAD_ID - 1)] if PAD_ID - 1 in new else new
    return " ".join(f"t{token}" for token in new if token < PAD_ID - 2)


def plain_log_prob(prompt: str, option: str) -> float:
    """Of all tokens of an option, added up."""
    return sum_log_probs(ids_of(prompt), ids_of(option))


@torch.no_grad()
def sum_log_probs(before: list[int], after: list[int]) -> float:
    logits = untouched()(torch.tensor([before + after])).logits[0].double().log_softmax(dim=-1)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(float(logits[place, token]) for place, token in zip(places, after, strict=True))


def grade_first(text: str, example: Example) -> Grade:
    """The first word is the answer; words from t50 on are none."""
    first = next(iter(text.split()), "t50")
    found = None if int(first[1:]) >= 50 else first
    return Grade(correct=found == example.answer, extracted=found)


def grade_anywhere(text: str, example: Example) -> Grade:
    found = example.answer if example.answer in text.split() else None
    return Grade(correct=found is not None, extracted=found)


def words_task(n: int = len(QUESTIONS), **changes: Any) -> Task:
    """Every second answer is what the model says first, the others are what it says last."""
    examples = []
    for number in range(n):
        words = plain_text(QUESTIONS[number]).split()
        examples.append(
            Example(
                id=f"e{number}",
                prompt=QUESTIONS[number],
                question=f"{QUESTIONS[number]} t33",
                answer=words[0] if number % 2 == 0 else words[-1],
                options=OPTIONS[number],
                gold=GOLD[number],
                condition="open_book" if number % 2 else "closed_book",
                group=f"g{number // 2}",
            )
        )
    fields: dict[str, Any] = {
        "name": "words",
        "kind": "contextual",
        "version": 3,
        "summary": "Words.",
        "examples": tuple(examples),
        "grade": grade_first,
        "chance": 0.1,
        "max_new_tokens": N_NEW,
    }
    return Task(**(fields | changes))


def with_options(**changes: Any) -> Task:
    return words_task(4, **changes)


def assert_same_answers(actual: TaskResult, expected: TaskResult, tolerance: float = 1e-4) -> None:
    assert len(actual.answers) == len(expected.answers)
    for one, other in zip(actual.answers, expected.answers, strict=True):
        for name in ("id", "text", "extracted", "correct", "legacy_correct", "gold"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.log_probs == pytest.approx(other.log_probs, abs=tolerance)


# What a model says.


def test_answers_stand_in_order_with_their_texts_and_grades(model: HookedModel) -> None:
    task = words_task()
    result = evaluate(model, task)
    assert [answer.text for answer in result.answers] == [plain_text(q) for q in QUESTIONS]
    for answer, example in zip(result.answers, task.examples, strict=True):
        assert (answer.id, answer.group) == (example.id, example.group)
        assert (answer.condition, answer.gold) == (example.condition, example.gold)
        assert answer.text is not None
        first = answer.text.split()[0]
        assert answer.extracted == (None if int(first[1:]) >= 50 else first)
        assert answer.correct is (answer.extracted == example.answer)
        assert answer.legacy_correct is None
        assert answer.log_probs == ()
        assert answer.chooses_gold is None
    right = [answer.correct for answer in result.answers]
    assert len(set(right)) == 2
    assert result.score("generation").effect == sum(map(bool, right)) / len(QUESTIONS)
    missing = sum(answer.extracted is None for answer in result.answers)
    assert missing > 0
    assert result.failed_extraction == missing / len(QUESTIONS)
    assert (result.task, result.kind, result.version) == ("words", "contextual", 3)
    assert result.digest == task.digest
    assert result.n_edits == 0


def test_both_gradings_of_a_text_are_kept_apart(model: HookedModel) -> None:
    result = evaluate(model, words_task(legacy_grade=grade_anywhere))
    ours = [answer.correct for answer in result.answers]
    assert [answer.legacy_correct for answer in result.answers] == [True] * len(QUESTIONS)
    assert ours != [True] * len(QUESTIONS)
    assert result.legacy_score().effect == 1.0


def test_options_are_scored_by_all_their_tokens_after_the_prompt(model: HookedModel) -> None:
    task = with_options()
    result = evaluate(model, task, config=EvaluationConfig(readouts=("options",)))
    chosen = []
    for answer, example in zip(result.answers, task.examples, strict=True):
        expected = [plain_log_prob(example.prompt, option) for option in example.options]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)
        assert example.gold is not None
        others = [value for n, value in enumerate(expected) if n != example.gold]
        lead = expected[example.gold] - max(others)
        assert answer.logit_diff == pytest.approx(lead, abs=1e-4)
        assert answer.chooses_gold is (lead > 0)
        assert answer.text is answer.correct is answer.extracted is answer.legacy_correct is None
        chosen.append(lead > 0)
    assert len(set(chosen)) == 2
    assert result.score("options").effect == sum(chosen) / 4
    assert math.isnan(result.failed_extraction)


def test_the_floors_are_those_of_the_task(model: HookedModel) -> None:
    result = evaluate(model, with_options(chance=0.2), config=BOTH)
    assert result.floor("generation") == 0.2
    assert result.floor("options") == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_changes_nothing(batch_size: int, model: HookedModel) -> None:
    task = with_options()
    whole = evaluate(model, task, config=BOTH)
    config = EvaluationConfig(readouts=BOTH.readouts, batch_size=batch_size)
    assert_same_answers(evaluate(model, task, config=config), whole)
    edited = [evaluate(model, task, config=c, intervention=EDIT) for c in (config, BOTH)]
    assert_same_answers(*edited)
    assert edited[0].n_edits == edited[1].n_edits


def test_both_read_outs_together_are_what_each_is_alone(model: HookedModel) -> None:
    task = with_options()
    both = evaluate(model, task, config=BOTH)
    for readout in ("generation", "options"):
        alone = evaluate(model, task, config=EvaluationConfig(readouts=(readout,)))
        assert alone.correct(readout).tolist() == both.correct(readout).tolist()


def test_a_limit_asks_the_first_examples_only(model: HookedModel) -> None:
    task = words_task()
    result = evaluate(model, task, limit=2)
    assert [answer.id for answer in result.answers] == ["e0", "e1"]
    assert result.digest == task.first(2).digest != task.digest
    assert len(evaluate(model, task, limit=99).answers) == len(QUESTIONS)
    with pytest.raises(ValueError, match="n must be finite and positive, got 0"):
        evaluate(model, task, limit=0)


def test_an_answer_is_as_long_as_asked_for(model: HookedModel) -> None:
    config = EvaluationConfig(max_new_tokens=2)
    texts = [answer.text for answer in evaluate(model, words_task(), config=config).answers]
    assert texts == [plain_text(question, 2) for question in QUESTIONS]


def test_progress_counts_every_prompt_once(model: HookedModel) -> None:
    steps: list[int] = []
    config = EvaluationConfig(readouts=BOTH.readouts, batch_size=3)
    evaluate(model, with_options(), config=config, on_progress=steps.append)
    assert steps == [3, 1]


def test_provenance_names_the_prompts_and_the_batch(model: HookedModel) -> None:
    config = EvaluationConfig(batch_size=3)
    provenance = evaluate(model, words_task(), config=config).provenance
    assert provenance.prompts_digest == tokenize_prompts(model.tokenizer, QUESTIONS).digest
    assert (provenance.batch_size, provenance.n_prompts) == (3, len(QUESTIONS))
    assert provenance.model == model.name
    assert provenance.settings == {}


def test_provenance_tells_the_intervention(model: HookedModel) -> None:
    where = Where(layers=(0, 1), rows="after_first")
    edit = Intervention(selection=Selection(k=2), value=Value(strength=1.5), where=where)
    settings = evaluate(model, words_task(), intervention=edit).provenance.settings
    expected = {
        "selection.rule": "largest",
        "selection.k": 2,
        "value.kind": "mean",
        "value.strength": 1.5,
        "where.projections": "q,k",
        "where.layers": "0,1",
        "where.rows": "after_first",
    }
    assert {name: settings[name] for name in expected} == expected


def test_a_result_is_the_same_after_saving_and_loading(model: HookedModel, tmp_path: Path) -> None:
    result = evaluate(model, with_options(legacy_grade=grade_anywhere), config=BOTH)
    assert load_result(save_result(result, tmp_path / "words.json")) == result


# A chat template.


def chatting(model: HookedModel) -> None:
    """Questions stand between a first token and t60; the answer opens a line."""
    tokenizer: Any = model.tokenizer
    tokenizer.chat_template = (
        "{% for message in messages %}<s> t59 {{ message['content'] }}{% endfor %} t60 "
    )


def test_in_a_chat_the_question_is_asked_in_the_models_template(model: HookedModel) -> None:
    chatting(model)
    task = with_options()
    config = EvaluationConfig(readouts=BOTH.readouts, chat=True)
    result = evaluate(model, task, config=config)
    for answer, example in zip(result.answers, task.examples, strict=True):
        asked = f"<s> t59 {example.question} t60"
        assert answer.text == plain_text(asked)
        expected = [plain_log_prob(asked, option) for option in example.options]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)
    assert result.config.chat


def test_an_option_opens_the_line_after_a_template_that_writes_all_tokens_itself(
    model: HookedModel,
) -> None:
    """Where a space is a token and the tokenizer opens every plain text with a first token."""
    chatting(model)
    space, first = 61, PAD_ID - 1
    backend = cast(Any, model.tokenizer).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", first)]
    )
    example = Example(
        id="e", prompt="t5 t9", question="t7", answer="t1", options=(" t1", " t3 t4"), gold=0
    )
    task = words_task(examples=(example,))
    for chat, prompt, options in (
        (False, [first, 5, space, 9], [[space, 1], [space, 3, space, 4]]),
        (True, [first, space, 59, space, 7, space, 60, space], [[1], [3, space, 4]]),
    ):
        config = EvaluationConfig(readouts=("options",), chat=chat)
        answer = evaluate(model, task, config=config).answers[0]
        expected = [sum_log_probs(prompt, option) for option in options]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)


def test_a_chat_without_a_template_is_refused(model: HookedModel) -> None:
    message = "chat must be False for a tokenizer without a chat template, got True"
    with pytest.raises(ValueError, match=message):
        evaluate(model, words_task(), config=EvaluationConfig(chat=True))


# Under an intervention.


def entries(task: Task, k: int) -> int:
    """k dimensions of 4 query and 2 key heads in 2 layers, at every token of every prompt."""
    return 2 * (4 + 2) * k * sum(len(ids_of(e.prompt)) for e in task.examples)


@pytest.mark.parametrize("readouts", [("generation",), ("options",), ("generation", "options")])
def test_read_outs_share_one_reading_and_its_edits(
    readouts: Sequence[Any], model: HookedModel
) -> None:
    task, config = with_options(), EvaluationConfig(readouts=tuple(readouts))
    intact = evaluate(model, task, config=config)
    edited = evaluate(model, task, config=config, intervention=EDIT)
    assert intact.n_edits == 0
    assert edited.n_edits == entries(task, 2)
    assert edited.digest == intact.digest
    assert edited.answers != intact.answers


def test_answers_under_an_intervention_are_those_inside_disrupt(model: HookedModel) -> None:
    task = with_options()
    got = evaluate(model, task, config=BOTH, intervention=EDIT)
    with disrupt(model, EDIT):
        expected = evaluate(model, task, config=BOTH)
    assert_same_answers(got, expected)
    assert_same_answers(
        evaluate(model, task, config=BOTH), evaluate(model, task, config=BOTH), tolerance=0.0
    )


def test_a_capture_fixes_what_an_intervention_selects(model: HookedModel) -> None:
    task = with_options()
    norms = capture_norms(model, [[50, 51, 52], [53, 54]])
    got = evaluate(model, task, config=BOTH, intervention=EDIT, norms=norms)
    with disrupt(model, EDIT, norms=norms):
        expected = evaluate(model, task, config=BOTH)
    assert_same_answers(got, expected)
    by_prompt = evaluate(model, task, config=BOTH, intervention=EDIT)
    assert got.answers != by_prompt.answers


def test_an_intervention_that_edits_nothing_is_refused(model: HookedModel) -> None:
    with pytest.raises(RuntimeError, match="an intervention must edit at least one entry of"):
        evaluate(
            model,
            words_task(),
            intervention=Intervention(selection=Selection(rule="massive", ratio=1e6)),
        )


def test_a_selection_of_nothing_leaves_every_answer_and_counts_nothing(model: HookedModel) -> None:
    task = with_options()
    none = Intervention(selection=Selection(k=0))
    edited = evaluate(model, task, config=BOTH, intervention=none)
    assert edited.n_edits == 0
    assert_same_answers(edited, evaluate(model, task, config=BOTH), tolerance=1e-6)


def test_two_conditions_of_one_task_compare(model: HookedModel) -> None:
    task = with_options()
    before = evaluate(model, task, config=BOTH)
    after = evaluate(model, task, config=BOTH, intervention=EDIT)
    got = compare(before, after, readout="options")
    changes = after.correct("options").astype(int) - before.correct("options").astype(int)
    assert got.difference.effect == changes.mean()
    message = r"got words [0-9a-f]{8} and words [0-9a-f]{8}; evaluate one task in both conditions"
    with pytest.raises(ValueError, match=message):
        compare(before, evaluate(model, task, config=BOTH, limit=2), readout="options")


# Refusals.


def test_an_option_that_changes_the_tokens_of_its_prompt_is_refused(model: HookedModel) -> None:
    """Without a leading space the prompt's last word would be another word."""
    task = with_options()
    changed = [*task.examples]
    changed[1] = Example(
        id="glued", prompt="t17", question="t17", answer="t1", options=(" t1", "t2"), gold=0
    )
    message = (
        r"options must leave the tokens of their prompt as they are, got 't2' after 't17'; begin "
        r"options with a space and end prompts without one"
    )
    config = EvaluationConfig(readouts=("options",))
    with pytest.raises(ValueError, match=message):
        evaluate(model, with_options(examples=tuple(changed)), config=config)


def test_options_are_not_read_from_examples_without(model: HookedModel) -> None:
    message = (
        "every example of words must have options for the read-out 'options', got some without; "
        "use the read-out 'generation'"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(model, words_task(), config=BOTH)


def test_a_model_without_a_tokenizer_cannot_be_asked(model: HookedModel) -> None:
    model.tokenizer = None
    with pytest.raises(ValueError, match=r"the tokenizer of .* must exist to ask a task, got none"):
        evaluate(model, words_task())


def test_a_question_that_does_not_fit_the_context_is_refused(model: HookedModel) -> None:
    long = Example(id="long", prompt=" ".join(["t1"] * 125), question="t1", answer="t1")
    message = r"prompts\[0\] with 6 new tokens must fit the model's context of 128 tokens, got 125"
    with pytest.raises(ValueError, match=message):
        evaluate(model, words_task(examples=(long,)))
    assert len(evaluate(model, words_task(examples=(long,), max_new_tokens=3)).answers) == 1


def test_a_question_longer_than_the_context_is_named_with_what_can_be_done(
    model: HookedModel,
) -> None:
    long = Example(id="far", prompt=" ".join(["t1"] * 129), question="t1", answer="t2")
    message = (
        r"every question of .* must fit the context of 128 tokens of .*, got 129 tokens at 'far'; "
        "shorten it or leave it out"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(model, words_task(examples=(long,)))


def test_a_given_mask_and_a_donor_reach_the_edit(model: HookedModel) -> None:
    task = words_task()
    norms = capture_norms(model, QUESTIONS)
    largest = {
        name: torch.zeros_like(getattr(norms, name))
        .scatter(-1, getattr(norms, name).topk(2).indices, 1.0)
        .bool()
        for name in ("q", "k")
    }
    fixed = evaluate(model, task, intervention=EDIT, norms=norms)
    masked = Intervention(selection=Selection(rule="mask"))
    given = evaluate(model, task, intervention=masked, masks=largest)
    assert [a.text for a in given.answers] == [a.text for a in fixed.answers]
    assert given.n_edits == fixed.n_edits
    resampled = Intervention(selection=Selection(k=2), value=Value(kind="resampled"))
    assert evaluate(model, task, intervention=resampled, donor=ids_of("t3 " * 12)).n_edits > 0


def test_a_result_inside_a_context_says_so(model: HookedModel) -> None:
    alone = evaluate(model, words_task())
    with disrupt(model, EDIT):
        inside = evaluate(model, words_task())
    assert inside.provenance.settings == {"within_open_contexts": True}
    assert alone.provenance.settings == {}
