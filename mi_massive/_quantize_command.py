"""`mi-massive quantize`: quantized copies of a model beside full precision."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mi_massive import _completion as completion
from mi_massive import _options as opt
from mi_massive._disrupt_command import asked_tasks, own_tasks, task_names
from mi_massive._terminal import print_json, print_records, progress, signed
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.quantization_schemes import (
    METHODS,
    WITH_ACTIVATIONS,
    QuantizationScheme,
    make_schemes,
)
from mi_massive.records import save_result
from mi_massive.scores import EvaluationConfig

_TASKS = "passkey_128_6,pairs_open_book,pairs_closed_book"
_GROUP, _WINDOWS, _WINDOW_LENGTH = 64, 8, 256


def quantize_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    method: Annotated[
        str, typer.Option(help=f"Methods, with commas: {', '.join(METHODS)}.")
    ] = "rtn",
    bits: Annotated[
        int | None,
        typer.Option(help="Bits of a weight; default: 4, and 8 with activations (smoothquant)."),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(help=f"Inputs that share a scale, unless activations do; default: {_GROUP}."),
    ] = None,
    activation_bits: Annotated[
        int | None, typer.Option(help="8: round each token's activations too (rtn, smoothquant).")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text file, JSONL, JSON, CSV, Parquet file or data set that methods look at; "
            "default: the second half of this package's passages."
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column of --calibration in a table or data set; default: text."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of --calibration in a data set; default: train.")
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help=f"Windows of calibration text; default: {_WINDOWS}."),
    ] = None,
    window_length: Annotated[
        int | None, typer.Option(min=2, help=f"Tokens of a window; default: {_WINDOW_LENGTH}.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the calibration windows.")] = 1,
    tasks: Annotated[
        str,
        typer.Option(
            autocompletion=completion.complete_tasks,
            help="Tasks asked by options, with commas; a .jsonl file is a task of yours.",
        ),
    ] = _TASKS,
    limit: Annotated[int, typer.Option(min=2, help="Examples of each task.")] = 24,
    cells: opt.Cells = None,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """What rounded weights cost, beside full precision: text, states, tasks (C7)."""
    opt.require_savable(save)
    opt.require_cells(cells)
    methods = [name.strip() for name in method.split(",")]
    schemes = _schemes(
        methods,
        bits,
        activation_bits,
        group=group or _GROUP,
        seeds=range(seeds),
        n_calibration=windows or _WINDOWS,
        calibration_length=window_length or _WINDOW_LENGTH,
    )
    _require_use(
        schemes,
        {"--group": group},
        {
            "--calibration": calibration,
            "--windows": windows,
            "--window-length": window_length,
            "--seeds": None if seeds == 1 else seeds,
        },
    )
    looked_at = opt.read_texts(calibration, column, split, None, option="--calibration")
    texts = None if calibration is None else looked_at
    names = task_names(tasks)
    own = own_tasks(names, limit)

    # late: loads transformers
    from mi_massive.quantization import QuantizationConfig, compare_quantized

    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    asked = asked_tasks(loaded, names, own, limit=limit)
    config = QuantizationConfig(
        schemes=schemes,
        evaluation=EvaluationConfig(readouts=("options",), batch_size=batch_size),
    )
    n_pieces = (1 + len(schemes)) * (1 + len(asked)) + len(schemes)
    with progress(n_pieces, quiet=quiet, what="pieces") as advance:
        result = compare_quantized(
            loaded, asked, config=config, calibration=texts, cells=cells, on_progress=advance
        )
    damage = {scheme.name: result.damage(scheme.name) for scheme in schemes}
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "bits_per_weight": result.bits_per_weight,
                "added_cross_entropy": {n: dataclasses.asdict(e) for n, e in damage.items()},
                "masks": [dataclasses.asdict(change) for change in result.masks],
                "cells": [dataclasses.asdict(cell) for cell in result.cells],
                "methods": [dataclasses.asdict(one) for one in result.methods],
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
    else:
        changes = {(cell.arm, cell.task): cell.change for cell in result.cells}
        rows: list[dict[str, Any]] = [
            {
                "scheme": name,
                "bits a weight": f"{result.bits_per_weight[name]:.2f}",
                "added nats": signed(added),
            }
            | {task.name: signed(changes[name, task.name]) for task in asked}
            for name, added in damage.items()
        ]
        print_records(f"{loaded.name}: change from full precision", rows)
    if save is not None:
        save_result(result, save)


def _schemes(
    methods: Sequence[str], bits: int | None, activation_bits: int | None, **drawn: Any
) -> tuple[QuantizationScheme, ...]:
    """Schemes in the order of the methods; beside smoothquant all that can round activations do."""
    paired = "smoothquant" in methods and activation_bits is None
    if paired and bits not in (None, 8):
        raise ValueError(
            f"--bits must be 8 with smoothquant, got {bits}; leave it out, or leave smoothquant out"
        )
    made: tuple[QuantizationScheme, ...] = ()
    for method in methods:
        rounded = 8 if paired and method in WITH_ACTIVATIONS else activation_bits
        own = bits or (4 if rounded is None else 8)
        made += make_schemes([method], bits=own, activation_bits=rounded, **drawn)
    return made


def _require_use(
    schemes: Sequence[QuantizationScheme],
    grouped: Mapping[str, object],
    drawn: Mapping[str, object],
) -> None:
    """Refuse options of groups that no scheme has, and of calibration that none looks at."""
    for named, used, why in (
        (grouped, any(s.group is not None for s in schemes), "have a scale for each output"),
        (drawn, any(s.n_calibration for s in schemes), "look at no text"),
    ):
        given = [option for option, value in named.items() if value is not None]
        if given and not used:
            methods = ", ".join(dict.fromkeys(s.method for s in schemes))
            raise ValueError(
                f"{given[0]} must be left out for methods that {why}, got it for {methods}"
            )
