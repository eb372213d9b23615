"""Perplexity, diversity and repetition of the answers that a model gives under each arm (C5).

Answers whether a disrupted model still writes like the intact one. Each answer is scored with its
prompt, by the intact model and by the disrupted one: a loop is improbable to the first and may be
highly probable to the second. Costs one generation and two scorings a task and arm.

Does not show: whether an answer is right. A degenerate loop can have a low perplexity.

Source: Jin et al. 2025, arXiv:2502.01563, figure 3. Differs: they score answers without their
prompt, by the disrupted model alone.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from mi_massive._brief import Brief
from mi_massive._cells import kept_evaluation
from mi_massive._checks import require_not_empty
from mi_massive._columns import estimate_columns
from mi_massive.arms import Arm
from mi_massive.capture import provenance_of
from mi_massive.evaluation import ask, with_tasks
from mi_massive.interventions import Intervention, disrupt
from mi_massive.models.base import HookedModel
from mi_massive.prompts import TokenizedPrompts
from mi_massive.records import Provenance
from mi_massive.scores import INTACT, EvaluationConfig, TaskResult
from mi_massive.stats import Estimate, estimate, holm
from mi_massive.tasks.base import Task
from mi_massive.text_measures import distinct_share, repetition_share
from mi_massive.token_scores import score_continuations


@dataclass(frozen=True, kw_only=True, slots=True)
class Fluency:
    """The answers of one arm to one task."""

    arm: str
    task: str
    log_perplexity: Estimate
    """Mean negative log-probability of an answer's tokens under the intact model, in nats, mean
    over answers."""
    own_log_perplexity: Estimate
    """The same under the arm itself, with the prompt edited."""
    distinct_2: Estimate
    """Different 2-grams over all 2-grams of an answer, mean over answers."""
    repetition: Estimate
    """Share of an answer's 4-grams that occur more than once, mean over answers."""
    n_empty: int
    """Answers without a token, which nothing can be said of."""
    added_log_perplexity: Estimate
    """`log_perplexity` minus that of the intact model's answers to the same questions; paired,
    sign-flip test, p Holm-corrected over arms and tasks."""
    distinct_loss: Estimate
    """How much less varied than the intact model's the answers are; as above."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class FluencyResult(Brief):
    """Every arm on every task, the intact model first."""

    rows: tuple[Fluency, ...]
    arms: tuple[Arm, ...]
    config: EvaluationConfig
    provenance: Provenance

    def to_frame(self) -> Any:
        """Means as a data frame, one row an arm and task."""
        import pandas as pd

        measures = ("log_perplexity", "own_log_perplexity", "distinct_2", "repetition")
        changes = ("added_log_perplexity", "distinct_loss")
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            columns: dict[str, Any] = {"arm": row.arm, "task": row.task}
            columns |= {name: getattr(row, name).effect for name in measures}
            for name in changes:
                columns |= estimate_columns(name, getattr(row, name))
            rows.append({**columns, "n": row.log_perplexity.n, "n_empty": row.n_empty})
        return pd.DataFrame(rows)


def measure_fluency(
    model: HookedModel,
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    *,
    config: EvaluationConfig | None = None,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> FluencyResult:
    """Let the model answer under every arm, and score the answers.

    Args:
        model: From `load_model`.
        tasks: From `load_task`; their questions are what is written about.
        arms: From `make_arms` (matched ones through `match_arms`).
        config: Length of answers, batch size, chat template.
        cells: Folder that keeps the answers; see `run_disruption`.
        on_progress: Called with the number of (arm, task) pairs finished since the last call.
    """
    config = replace(config or EvaluationConfig(), readouts=("generation",))
    require_not_empty("tasks", tasks, remedy="load at least one with load_task")
    measured: list[_Measured] = []
    intact: list[TaskResult] = []
    edits: dict[str, Intervention | None] = {INTACT: None, **{a.name: a.intervention for a in arms}}
    for name, edit in edits.items():
        for task in tasks:
            result = kept_evaluation(cells, name, model, task, intervention=edit, config=config)
            measured.append(_measured(model, task, result, name, edit))
            intact += [result] if edit is None else []
            if on_progress is not None:
                on_progress(1)
    return FluencyResult(
        rows=_rows(measured),
        arms=tuple(arms),
        config=config,
        provenance=_provenance(model, tasks, intact, config),
    )


def _provenance(
    model: HookedModel,
    tasks: Sequence[Task],
    intact: Sequence[TaskResult],
    config: EvaluationConfig,
) -> Provenance:
    """Of the questions of all tasks together; what the arms edit stands in `arms`."""
    asked = [ask(model, task, config) for task in tasks]
    prompts = TokenizedPrompts(
        input_ids=tuple(ids for each in asked for ids in each.input_ids),
        texts=tuple(text for each in asked for text in each.texts),
        n_truncated=0,
    )
    of_prompts = provenance_of(model, prompts, batch_size=config.batch_size)
    return with_tasks(of_prompts, intact, seed=0)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Every answer of one arm to one task; NaN for an answer without a token."""

    arm: str
    task: str
    log_perplexity: Float[np.ndarray, "answer"]
    own_log_perplexity: Float[np.ndarray, "answer"]
    distinct_2: Float[np.ndarray, "answer"]
    repetition: Float[np.ndarray, "answer"]
    n_empty: int


def _rows(measured: Sequence[_Measured]) -> tuple[Fluency, ...]:
    """Means of every arm and task, and their changes from the intact model, corrected together."""
    intact = {one.task: one for one in measured if one.arm == INTACT}
    added = [_change(m.log_perplexity - intact[m.task].log_perplexity, m.arm) for m in measured]
    lost = [_change(intact[m.task].distinct_2 - m.distinct_2, m.arm) for m in measured]
    return tuple(
        Fluency(
            arm=one.arm,
            task=one.task,
            log_perplexity=_over_answers(one.log_perplexity),
            own_log_perplexity=_over_answers(one.own_log_perplexity),
            distinct_2=_over_answers(one.distinct_2),
            repetition=_over_answers(one.repetition),
            n_empty=one.n_empty,
            added_log_perplexity=more,
            distinct_loss=less,
        )
        for one, more, less in zip(measured, _corrected(added), _corrected(lost), strict=True)
    )


def _change(differences: Float[np.ndarray, "answer"], arm: str) -> Estimate:
    null = math.nan if arm == INTACT else 0.0
    return estimate(differences, n_of="answers", null=null, alternative="two-sided")


def _corrected(changes: Sequence[Estimate]) -> list[Estimate]:
    p_values = holm(np.array([change.p_value for change in changes], dtype=np.float64))
    return [replace(c, p_value=float(p)) for c, p in zip(changes, p_values, strict=True)]


def _measured(
    model: HookedModel, task: Task, result: TaskResult, arm: str, edit: Intervention | None
) -> _Measured:
    texts = [cast(str, answer.text) for answer in result.answers]
    ids = [_ids(model, text) for text in texts]
    prompts = ask(model, task, result.config).input_ids
    written = [i for i, own in enumerate(ids) if own]

    def log_perplexity(by: Intervention | None) -> Float[np.ndarray, "answer"]:
        values = np.full(len(texts), np.nan)
        if not written:
            return values
        with nullcontext() if by is None else disrupt(model, by):
            scores = score_continuations(
                model,
                [prompts[i] for i in written],
                [[ids[i]] for i in written],
                batch_size=result.config.batch_size,
            )
        values[written] = [-float(np.mean(own.log_probs)) for (own,) in scores]
        return values

    intact = log_perplexity(None)
    return _Measured(
        arm=arm,
        task=task.name,
        log_perplexity=intact,
        own_log_perplexity=intact if edit is None else log_perplexity(edit),
        distinct_2=np.array([distinct_share(text) for text in texts], dtype=np.float64),
        repetition=np.array([repetition_share(text) for text in texts], dtype=np.float64),
        n_empty=len(texts) - len(written),
    )


def _ids(model: HookedModel, text: str) -> list[int]:
    encoded = cast(Any, model.tokenizer)(text, add_special_tokens=False)
    return cast("list[int]", encoded["input_ids"])


def _over_answers(values: Float[np.ndarray, "answer"]) -> Estimate:
    return estimate(values.astype(np.float64), n_of="answers", null=math.nan)
