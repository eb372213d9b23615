"""`mi-massive disrupt`: tasks and neutral text under chosen edits."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mi_massive import _completion as completion
from mi_massive import _options as opt
from mi_massive._arm_options import chosen_arms, doses, split
from mi_massive._cost_tables import print_costs
from mi_massive._terminal import columns_of, print_json, print_records, progress
from mi_massive.answer_files import AnswerFile, require_answers
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.records import save_result
from mi_massive.scores import INTACT, EvaluationConfig
from mi_massive.tasks import TASKS, Task, load_own_task

if TYPE_CHECKING:  # these load transformers, which the help does not need
    from mi_massive.disruption import DisruptionResult
    from mi_massive.models import HookedModel

_READOUTS = "generation,options"
OWN = ".jsonl"
"""Ending of a file that is a task of the user's own."""


def disrupt_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    preset: Annotated[
        str,
        typer.Option(
            autocompletion=completion.complete_presets,
            help="Arms, with commas; `mi-massive presets` lists them.",
        ),
    ] = "paper,random",
    k: Annotated[
        str | None,
        typer.Option(help="Dimensions of each head, with commas; default: each preset's own."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of arms that draw.")] = 1,
    layers: opt.Layers = None,
    tasks: Annotated[
        str,
        typer.Option(
            autocompletion=completion.complete_tasks,
            help="Tasks, with commas; `pairs` means all pairs_*, a .jsonl file is a task of yours.",
        ),
    ] = "pairs",
    data: Annotated[
        Path | None, typer.Option(help="Rows of a task of the hub, or a folder of TASK.jsonl.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task.")] = None,
    readout: Annotated[
        str, typer.Option(help="generation, options, or both with a comma.")
    ] = _READOUTS,
    cells: opt.Cells = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="A .jsonl file for every answer in words, written as they come."),
    ] = None,
    chat: opt.Chat = False,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """What losing chosen dimensions costs on tasks and on neutral text (C4, C5)."""
    opt.require_savable(save)
    opt.require_cells(cells)
    _require_lines(answers)
    names, ks = task_names(tasks), None if k is None else doses(k)
    _require_use(data, names)
    own = own_tasks(names, limit)
    asking = EvaluationConfig(readouts=_readouts(readout), chat=chat, batch_size=batch_size)

    from mi_massive.disruption import DisruptionConfig, run_disruption  # late: loads transformers

    arms = chosen_arms(split(preset), ks, seeds, layers)
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    asked = asked_tasks(loaded, names, own, limit=limit, data=data, chat=chat)
    with progress((1 + len(arms)) * len(asked), quiet=quiet, what="cells") as advance:
        result = run_disruption(
            loaded,
            asked,
            arms,
            config=DisruptionConfig(evaluation=asking),
            cells=cells,
            on_progress=advance,
            on_result=None if answers is None else AnswerFile(answers, asked),
        )
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "cells": [dataclasses.asdict(cell) for cell in result.cells],
                "contrasts": [dataclasses.asdict(c) for c in result.contrasts],
                "comparisons": [dataclasses.asdict(c) for c in result.comparisons],
                "seed_spreads": [dataclasses.asdict(s) for s in result.seed_spreads],
                "strengths": result.effects.strengths,
                "effects": {
                    arm: {name: dataclasses.asdict(e) for name, e in result.effects.of(arm).items()}
                    for arm in result.effects.arms
                },
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
    else:
        _print(result)
    if save is not None:
        save_result(result, save)


def battery_for_report(
    model: "HookedModel", n_examples: int, *, batch_size: int, quiet: bool
) -> "DisruptionResult | None":
    """The report's small experiment; None on a model that has no answers.

    Raises:
        ValueError: If it cannot be run on this model, with the option that leaves it out.
    """
    from mi_massive.battery import n_cells, run_battery

    if not (model.is_causal and model.has_head):
        return None
    with progress(n_cells(), quiet=quiet, what="tasks under edits") as advance:
        try:
            return run_battery(
                model, n_examples=n_examples, batch_size=batch_size, on_progress=advance
            )
        except ValueError as error:
            raise ValueError(f"{error}; or report without tasks: --examples 0") from error


def _print(result: Any) -> None:
    """Scores, what each arm does to neutral text, and what it costs by kind of task."""
    for readout in dict.fromkeys(cell.readout for cell in result.cells):
        rows = [
            {
                "arm": cell.arm,
                "task": cell.task,
                "score": f"{cell.score.effect:.3f}",
                "interval": f"{cell.score.low:.2f} .. {cell.score.high:.2f}",
                "n": cell.score.n,
                "chance": f"{cell.floor:.2f}",
                "above_chance": f"{cell.above_chance:.2f}",
                "p_of_change": "-" if cell.arm == INTACT else f"{cell.change.p_value:.2g}",
            }
            | ({"no_answer": f"{cell.failed_extraction:.2f}"} if readout == "generation" else {})
            for cell in result.cells
            if cell.readout == readout
        ]
        print_records(f"Scores by {readout}", rows)
    effects = [
        {"arm": arm, "measure": name, **columns_of(estimate)}
        for arm in result.effects.arms
        for name, estimate in result.effects.of(arm).items()
    ]
    print_records("Neutral text", effects)
    print_costs(result.contrasts, result.comparisons)


def task_names(listed: str) -> list[str]:
    """Names of tasks; one that several begin with, such as `pairs`, stands for all of them."""
    names: list[str] = []
    for part in split(listed):
        family = [name for name in TASKS if name.startswith(f"{part}_")]
        if part not in TASKS and not part.endswith(OWN) and not family:
            raise ValueError(
                f"--tasks must be among {', '.join(TASKS)} or a .jsonl file, got {part!r}"
            )
        names += [part] if part in TASKS or part.endswith(OWN) else family
    if not names:
        raise ValueError(f"--tasks must name at least one of {', '.join(TASKS)}, got {listed!r}")
    return list(dict.fromkeys(names))


def _require_use(data: Path | None, names: list[str]) -> None:
    """Refuse rows that no task would read."""
    takers = [name for name, source in TASKS.items() if source.hub is not None]
    if data is not None and not set(takers) & set(names):
        raise ValueError(
            f"--data must stand in for one of the tasks {', '.join(takers)}, got {data} for "
            f"{', '.join(names)}; leave it out, or name a file of your own in --tasks"
        )


def _require_lines(answers: Path | None) -> None:
    """Refuse a file of answers that could not be written."""
    if answers is None:
        return
    if answers.suffix != OWN or answers.is_dir():
        raise ValueError(f"--answers must be a file that ends in {OWN}, got {answers}")
    opt.require_writable("--answers", answers)
    require_answers(answers)


def own_tasks(names: Sequence[str], limit: int | None) -> dict[str, Task]:
    """Tasks of the user's own among `names`: read before any model is loaded."""
    own = {name: load_own_task(Path(name)) for name in names if name.endswith(OWN)}
    return own if limit is None else {name: task.first(limit) for name, task in own.items()}


def asked_tasks(
    model: "HookedModel",
    names: Sequence[str],
    own: Mapping[str, Task],
    *,
    limit: int | None,
    data: Path | None = None,
    chat: bool = False,
) -> list[Task]:
    """The tasks by these names, in their order."""
    from mi_massive.battery import load_tasks

    return [
        own.get(name) or load_tasks(model, [name], data=data, limit=limit, chat=chat)[0]
        for name in names
    ]


def _readouts(listed: str) -> Any:
    parts = split(listed)
    if not parts or not set(parts) <= set(split(_READOUTS)):
        raise ValueError(f"--readout must be among {_READOUTS}, got {listed!r}")
    return tuple(dict.fromkeys(parts))
