"""Results kept on disk as soon as they are there, found again by everything they depend on.

A cell is one result, written whole and renamed, under a name that holds a hash of the model, of the
code that computes it (`_code`) and of every argument. A killed run leaves complete cells or none; a
damaged one is computed again.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from mi_massive._code import code_digest
from mi_massive.evaluation import evaluate
from mi_massive.interventions import Intervention
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.records import load_result, save_result
from mi_massive.scores import EvaluationConfig, TaskResult
from mi_massive.tasks.base import Task

T = TypeVar("T")

_SAMPLED: Final = 64
"""Entries of each parameter that tell weights apart, at least, where it has so many."""


def kept(
    folder: Path | None,
    label: str,
    model: HookedModel,
    arguments: Mapping[str, object],
    compute: Callable[[], T],
) -> T:
    """The result of `compute`, from the folder if it is there, else computed and stored.

    Args:
        folder: Where cells lie; None computes every time.
        label: Beginning of the file's name, for people.
        model: The model that `compute` runs.
        arguments: Everything else that the result depends on: plain data and dataclasses.
        compute: Gives a result that `save_result` takes.
    """
    if folder is None:
        return compute()
    path = (
        folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}-{_key(model, arguments, compute)}.json"
    )
    return kept_at(path, compute)


def kept_at(path: Path, compute: Callable[[], T]) -> T:
    """The result in that file if it can be read, else computed and stored there."""
    if path.exists():
        try:
            return cast(T, load_result(path))
        except (ValueError, FileNotFoundError):  # cut short by a full disk or edited by hand
            path.unlink()
    result = compute()
    save_result(result, path)
    # Read back, so that a resumed run and this one hold the same.
    return cast(T, load_result(path))


def kept_evaluation(
    folder: Path | None,
    arm: str,
    model: HookedModel,
    task: Task,
    *,
    intervention: Intervention | None,
    config: EvaluationConfig,
) -> TaskResult:
    """`evaluate` of one arm on one task, from the folder if it is there."""
    arguments = {"task": task_key(task), "edit": intervention, "config": config}
    compute = partial(evaluate, model, task, intervention=intervention, config=config)
    return kept(folder, f"{task.name}-{arm}", model, arguments, compute)


def task_key(task: Task) -> list[object]:
    """All of a task that its answers and their grades depend on."""
    graders = [_function_key(grade) for grade in (task.grade, task.legacy_grade) if grade]
    return [task.digest, task.kind, task.chance, task.max_new_tokens, list(task.stop), *graders]


def _function_key(function: Any) -> list[str]:
    """A grader by its name and its code: this package's by its modules, a user's by its own."""
    inner: Any = function.func if isinstance(function, partial) else function
    name = f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    bound = repr(function.args) + repr(function.keywords) if isinstance(function, partial) else ""
    if inner.__module__.partition(".")[0] == "mi_massive":
        return [name, bound, code_digest(inner.__module__)]
    code: Any = getattr(inner, "__code__", None)
    own = b"" if code is None else code.co_code + repr(code.co_consts).encode()
    return [name, bound, hashlib.sha256(own).hexdigest()]


def _key(model: HookedModel, arguments: Mapping[str, object], compute: Callable[[], object]) -> str:
    function = cast(Any, compute.func if isinstance(compute, partial) else compute)
    listed = {
        "model": [
            *(model.name, model.revision or _sampled_weights(model), model.weights_note),
            *(str(model.dtype), model.kernel),
        ],
        "code": code_digest(function.__module__),
        **arguments,
    }
    text = json.dumps(listed, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sampled_weights(model: HookedModel) -> str:
    """What stands for the revision of a folder or a model in memory, whose weights may change.

    Some entries of every parameter: training moves nearly all of them.
    """
    try:
        held: Any = model.plain
    except UnsupportedModelError:
        held = model.bridge
    digest = hashlib.sha256()
    for name, weight in held.named_parameters():
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED)][: 2 * _SAMPLED].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"$type": type(value).__qualname__, **dataclasses.asdict(cast(Any, value))}
    raise TypeError(f"arguments must be plain data or dataclasses, got {type(value).__name__}")
