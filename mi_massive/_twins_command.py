"""`mi-massive twins`: train small models that differ in their position encoding alone."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from mi_massive import _completion as completion
from mi_massive import _options as opt
from mi_massive._arm_options import split
from mi_massive._terminal import print_json, print_records, twins_progress
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.presets import DEFAULT_K
from mi_massive.records import load_result, save_result
from mi_massive.stats import Estimate
from mi_massive.twin_arms import TWIN_ARMS, TwinShape, leading_rotation

_ARMS = "rope,partial_25,learned,none"


def twins_command(
    *,
    cells: Annotated[
        Path,
        typer.Option(help="Folder of checkpoints and finished twins; a killed run goes on there."),
    ] = Path("twins"),
    arms: Annotated[
        str,
        typer.Option(
            autocompletion=completion.complete_arms,
            help=f"Encodings, with commas, of {', '.join(TWIN_ARMS)}.",
        ),
    ] = _ARMS,
    seeds: Annotated[int, typer.Option(min=1, help="Twins of each encoding.")] = 3,
    corpus: Annotated[
        str,
        typer.Option(
            help="stdlib (Python's own sources), mixture (recall, and facts that need positions), "
            "mixture_unordered (facts that need none), or a text file."
        ),
    ] = "stdlib",
    steps: Annotated[int, typer.Option(min=1, help="Batches of a training.")] = 1000,
    layers: Annotated[int, typer.Option(min=1, help="Layers of a twin.")] = 2,
    heads: Annotated[int, typer.Option(min=1, help="Heads of a layer.")] = 4,
    d_head: Annotated[int, typer.Option(min=8, help="Dimensions of a head.")] = 32,
    context: Annotated[int, typer.Option(min=8, help="Tokens of a window.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows of a batch.")] = 16,
    learning_rate: Annotated[
        float, typer.Option(min=0.0, help="Peak of the warm-up; lower it where a twin diverges.")
    ] = 3e-3,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Twins that train at once; left out: the cores, one on a GPU."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to train: cpu, cuda, cuda:1, mps.")
    ] = opt.DEVICE,
    dtype: Annotated[
        str,
        typer.Option(help="Of the arithmetic: float32 or bfloat16; weights stay in float32."),
    ] = opt.DTYPE,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train twins that differ in their position encoding alone (C3, C8, C9).

    Exit status 1 if one of them diverged.
    """
    opt.require_savable(save)
    opt.require_cells(cells)

    from mi_massive.twins import TwinsConfig, train_twins  # late: loads transformers

    config = TwinsConfig(
        arms=tuple(split(arms)),
        n_seeds=seeds,
        corpus=corpus,
        shape=TwinShape(n_layers=layers, n_heads=heads, d_head=d_head, context=context),
        n_steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    with twins_progress(len(config.arms) * seeds, steps, quiet=quiet) as show:
        result = train_twins(
            config,
            folder=cells,
            device=device,
            dtype=opt.torch_dtype(dtype),
            n_workers=workers,
            on_progress=show,
        )
    if as_json:
        print_json(
            {
                "config": dataclasses.asdict(config),
                "arms": {arm: _numbers(result, arm) for arm in config.arms},
                "at_equal_loss": {
                    other: {p: dataclasses.asdict(ratio) for p, ratio in ratios.items()}
                    for other, ratios in _at_equal_loss(result).items()
                },
                "abilities": result.abilities_frame().to_dict("records")
                if result.conditions
                else [],
                "failures": result.failures,
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
    else:
        rows = [{"arm": arm} | _row(result, arm) for arm in config.arms]
        print_records(f"Twins after {steps} steps", rows)
        ratios = _at_equal_loss(result)
        if ratios:
            against = [
                {"over": other} | {p: _shown(ratio) for p, ratio in of.items()}
                for other, of in ratios.items()
            ]
            print_records(f"max/mean of {_leading(result)} at equal loss", against)
        scores = _abilities(result)
        if scores:
            print_records("Share of right answers", scores)
        for run, why in result.failures.items():
            typer.echo(f"{run}: {why}", err=True)
    if save is not None:
        save_result(result, save)
    if result.failures:
        raise typer.Exit(1)


def read_twins(paths: list[Path]) -> list[Any]:
    """Saved sets of twins, for a report.

    Raises:
        ValueError: If a file holds another result.
        FileNotFoundError: If it is missing.
    """
    from mi_massive.twin_results import TwinsResult

    found: list[Any] = []
    for path in paths:
        result = load_result(path)
        if not isinstance(result, TwinsResult):
            raise ValueError(
                f"--twins must name a result of `mi-massive twins`, got a "
                f"{type(result).__name__} in {path}"
            )
        found.append(result)
    return found


def _numbers(result: Any, arm: str) -> dict[str, Any]:
    return {
        "loss": dataclasses.asdict(result.final_loss(arm)),
        "q_over_v": dataclasses.asdict(result.excess("q", arm=arm)),
        "k_over_v": dataclasses.asdict(result.excess("k", arm=arm)),
        "sink": dataclasses.asdict(result.sink(arm)),
        **{f"massive_{p}": dataclasses.asdict(_massive(result, arm, p)) for p in PROJECTIONS},
        **{f"halfway_{what}": result.halfway(arm, what) for what in ("q", "k", "sink")},
        "sink_after_k": dataclasses.asdict(result.order(arm)),
    }


def _massive(result: Any, arm: str, projection: Projection) -> Estimate:
    """Massive dimensions a head of the trained twins."""
    from mi_massive.twin_curves import massive_over_steps

    return massive_over_steps(result, arm, projection)[-1]


def _leading(result: Any) -> str:
    """The arm that others are set against: plain RoPE or another rotation, else the first."""
    arms: tuple[str, ...] = result.config.arms
    return leading_rotation(arms) or arms[0]


def _at_equal_loss(result: Any) -> dict[str, dict[str, Any]]:
    """Concentration of the leading arm over that of each other one, by projection."""
    leading = _leading(result)
    others = [arm for arm in result.config.arms if arm != leading]
    return {
        other: {p: result.contrast(p, arm=leading, against=other) for p in PROJECTIONS}
        for other in others
    }


def _abilities(result: Any) -> list[dict[str, str]]:
    """Recall and facts of the intact twins and at one dose; the rest is in JSON."""
    dose = f" k={DEFAULT_K}"
    shown = [c for c in result.conditions if c == "intact" or c.endswith(dose)]
    return [
        {"arm": arm, "condition": condition}
        | {name: _shown(result.ability(arm, condition, name)) for name in ("recall", "facts")}
        for arm in result.config.arms
        for condition in shown
    ]


def _row(result: Any, arm: str) -> dict[str, str]:
    named = {
        "loss": result.final_loss(arm),
        "q over v": result.excess("q", arm=arm),
        "k over v": result.excess("k", arm=arm),
        "massive q": _massive(result, arm, "q"),
        "massive k": _massive(result, arm, "k"),
        "first token": result.sink(arm),
    }
    return {name: _shown(estimate) for name, estimate in named.items()}


def _shown(value: Any) -> str:
    if math.isnan(value.effect):
        return "-"
    if math.isnan(value.low):
        return f"{value.effect:.2f}"
    return f"{value.effect:.2f} ({value.low:.2f} .. {value.high:.2f})"
