"""Run a model on a task, intact or disrupted, and keep every answer with its grade.

Two read-outs: a greedy answer that the task grades, and the log-probability of each option, which
works on models too small to answer. Both run on the plain model, batched by length, so that an
intervention costs next to nothing. Scores of two conditions are compared on the same examples.

Does not show: why a score falls. Beside it belong a matched control, and what the same edit does to
neutral text (`mi_massive.attention_effects`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, cast

from jaxtyping import Bool
from torch import Tensor

from mi_massive._prompt_batches import Rows
from mi_massive.answers import Answer
from mi_massive.axes import Projection
from mi_massive.capture import provenance_of
from mi_massive.generation import generate
from mi_massive.interventions import Edits, Intervention, disrupt
from mi_massive.models.attention import has_visitors
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.records import Provenance
from mi_massive.scores import EvaluationConfig, TaskResult
from mi_massive.tasks.base import Example, Task
from mi_massive.token_scores import TokenScores, answer_and_score, score_continuations


def evaluate(
    model: HookedModel,
    task: Task,
    *,
    intervention: Intervention | None = None,
    norms: AttentionNorms | None = None,
    means: AttentionNorms | None = None,
    masks: Mapping[Projection, Bool[Tensor, "layer head d_head"]] | None = None,
    donor: Sequence[int] | None = None,
    limit: int | None = None,
    config: EvaluationConfig | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> TaskResult:
    """Ask a model every question of a task.

    Args:
        model: From `load_model`.
        task: From `load_task`.
        intervention: What is edited meanwhile; None leaves the model intact.
        norms: A capture that fixes the intervention's selection; see `disrupt`.
        means: A capture that the value `dataset_mean` is the mean of; see `disrupt`.
        masks: Dimensions of each projection, for the rule `mask`; see `disrupt`.
        donor: Token ids of the prompt that `resampled` takes entries from; see `disrupt`.
        limit: Only the first examples.
        config: Read-outs, chat template, batch size, length of answers.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        One answer an example, in order. Batch size changes nothing but rounding.

    Raises:
        ValueError: If the model has no tokenizer, a chat template is asked for and missing, the
            task has no options to read, or a prompt does not fit the context.
        RuntimeError: If the intervention edited nothing.
    """
    config = config or EvaluationConfig()
    task = task if limit is None else task.first(limit)
    prompts = ask(model, task, config)
    edited = (
        nullcontext()
        if intervention is None
        else disrupt(model, intervention, norms=norms, means=means, masks=masks, donor=donor)
    )
    settings = {} if intervention is None else intervention.settings()
    if has_visitors():  # opened by the caller: the result must not look like an intact model's
        settings["within_open_contexts"] = True
    with edited as edits:
        texts, log_probs = _read_out(model, task, prompts, config, on_progress)
    n_edits = edits.total if isinstance(edits, Edits) else 0
    return TaskResult(
        task=task.name,
        kind=task.kind,
        version=task.version,
        digest=task.digest,
        chance=task.chance,
        options_chance=task.options_chance,
        answers=tuple(
            _answer(task, example, text, scores)
            for example, text, scores in zip(task.examples, texts, log_probs, strict=True)
        ),
        n_edits=n_edits,
        config=config,
        provenance=provenance_of(
            model,
            prompts,
            batch_size=config.batch_size,
            settings=settings,
        ),
    )


class Counting(Protocol):
    """What a context that changes a model gives: how many entries it has changed so far."""

    @property
    def total(self) -> int:
        """Entries changed."""
        ...


def evaluate_within(
    model: HookedModel,
    task: Task,
    context: Callable[[], AbstractContextManager[Counting]],
    config: EvaluationConfig,
) -> TaskResult:
    """`evaluate` of a model that a context changes, with the number of entries that it changed."""
    with context() as done:
        result = evaluate(model, task, config=config)
    return replace(result, n_edits=done.total)


def with_tasks(provenance: Provenance, results: Sequence[TaskResult], *, seed: int) -> Provenance:
    """The provenance of a result's neutral text, with every task that was asked beside it.

    Settings gain `task NAME`: version of the task, number of examples, digest of these.
    """
    asked = {
        f"task {r.task}": f"version {r.version}, {len(r.answers)} examples, digest {r.digest}"
        for r in results
    }
    return replace(provenance, settings={**provenance.settings, **asked}, seed=seed)


def ask(model: HookedModel, task: Task, config: EvaluationConfig) -> TokenizedPrompts:
    """The questions of a task as token ids, plain or in the model's chat template.

    Raises:
        ValueError: If the model has no tokenizer, a chat template is asked for and missing, or a
            question is longer than the context.
    """
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.name} must exist to ask a task, got none")
    prompts = tokenize_prompts(
        cast(Any, model.tokenizer),
        [example.question if config.chat else example.prompt for example in task.examples],
        chat=config.chat,
    )
    context = model.geometry.training_context
    for example, ids in zip(task.examples, prompts.input_ids, strict=True):
        if context is not None and len(ids) > context:
            raise ValueError(
                f"every question of {task.name} must fit the context of {context} tokens of "
                f"{model.name}, got {len(ids)} tokens at {example.id!r}; shorten it or leave it out"
            )
    return prompts


def _read_out(
    model: HookedModel,
    task: Task,
    prompts: TokenizedPrompts,
    config: EvaluationConfig,
    on_progress: Callable[[int], None] | None,
) -> tuple[Sequence[str | None], Sequence[tuple[float, ...]]]:
    """Generated texts and log-probabilities of the options, of the read-outs that are asked for."""
    answers: Rows | None = None
    scores: list[list[TokenScores]] | None = None
    shared: dict[str, Any] = {"batch_size": config.batch_size, "on_progress": on_progress}
    in_words: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens or task.max_new_tokens,
        "stop": task.stop,
        **shared,
    }
    rows = prompts.input_ids
    if set(config.readouts) == {"generation", "options"}:
        options = _continuations(model, task, prompts, config)
        answers, scores = answer_and_score(model, rows, options, **in_words)
    elif "generation" in config.readouts:
        answers = generate(model, rows, **in_words)
    else:
        options = _continuations(model, task, prompts, config)
        scores = score_continuations(model, rows, options, **shared)
    decode = cast(Any, model.tokenizer).decode
    texts = (
        [None] * len(rows)
        if answers is None
        else [str(decode(ids, skip_special_tokens=True)) for ids in answers]
    )
    log_probs = (
        [()] * len(rows)
        if scores is None
        else [tuple(sum(one.log_probs) for one in own) for own in scores]
    )
    return texts, log_probs


def _continuations(
    model: HookedModel, task: Task, prompts: TokenizedPrompts, config: EvaluationConfig
) -> list[list[list[int]]]:
    """Token ids that each option adds to its question."""
    if not all(example.options for example in task.examples):
        raise ValueError(
            f"every example of {task.name} must have options for the read-out 'options', got some "
            "without; use the read-out 'generation'"
        )
    return [
        [_option_ids(model, text, ids, option, chat=config.chat) for option in example.options]
        for text, ids, example in zip(prompts.texts, prompts.input_ids, task.examples, strict=True)
    ]


def _option_ids(
    model: HookedModel, text: str, ids: tuple[int, ...], option: str, *, chat: bool
) -> list[int]:
    """Token ids that an option adds to a prompt; after a chat template it opens a line."""
    tokenizer = cast(Any, model.tokenizer)
    added = option.lstrip() if chat else option
    whole = tokenizer(text + added, add_special_tokens=not chat)["input_ids"]
    if tuple(whole[: len(ids)]) != ids or len(whole) == len(ids):
        raise ValueError(
            f"options must leave the tokens of their prompt as they are, got {option!r} after "
            f"{text[-20:]!r}; begin options with a space and end prompts without one"
        )
    return whole[len(ids) :]


def _answer(task: Task, example: Example, text: str | None, log_probs: tuple[float, ...]) -> Answer:
    grade = None if text is None else task.grade(text, example)
    legacy = None
    if text is not None and task.legacy_grade is not None:
        legacy = task.legacy_grade(text, example).correct
    return Answer(
        id=example.id,
        group=example.group,
        condition=example.condition,
        text=text,
        extracted=None if grade is None else grade.extracted,
        correct=None if grade is None else grade.correct,
        legacy_correct=legacy,
        log_probs=log_probs,
        gold=example.gold,
    )
