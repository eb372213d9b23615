"""`mi-massive sweep`: run a grid, say how far it is, show its table."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import typer
from typer.core import TyperGroup

from mi_massive import _options as opt
from mi_massive._cost_tables import print_costs
from mi_massive._terminal import LINE_EVERY, print_json, print_records

if TYPE_CHECKING:  # these load transformers, which the help does not need
    from mi_massive.sweep import Engine, SweepProgress, SweepStatus

EngineName = Literal["local", "inline", "ray", "slurm"]
_SURE: Final = 0.05


class _GridFirst(TyperGroup):
    """`sweep GRID.yaml` is `sweep run GRID.yaml`: what is no command's name belongs to `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = typer.Typer(
    cls=_GridFirst,
    help="""A grid of models, arms, tasks and seeds: run, resumed after any kill, shown as a table.

    `mi-massive sweep GRID --out DIR` is short for `mi-massive sweep run GRID --out DIR`.
    """,
    no_args_is_help=True,
)
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder or fsspec URL of the sweep.")]


@sweep_app.command("run")
def run_command(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="YAML file; see experiments/grids.")],
    *,
    out: Annotated[str, typer.Option(help="Folder or fsspec URL for the results.")],
    engine: Annotated[
        EngineName, typer.Option(help="local: processes; inline: this process; ray; slurm.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers; default: one for each GPU, else one.")
    ] = None,
    gpus_per_worker: Annotated[
        int | None,
        typer.Option(min=1, help="More than one: a model spread over them (--device auto)."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Parameter of submitit, KEY=VALUE, such as slurm_partition=gpu."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Compute failed cells again.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Replace the folder's grid; cells of both stay.")
    ] = False,
    device: opt.Device = opt.DEVICE,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Compute every cell that the folder does not hold; exit status 1 if some failed."""
    from mi_massive.sweep import read_grid, run_sweep

    wanted = read_grid(grid)
    chosen = _engine(engine, out, device, workers, gpus_per_worker, address, slurm or [])
    status = run_sweep(
        wanted,
        out,
        engine=chosen,
        retry_failed=retry_failed,
        extend=extend,
        on_progress=None if quiet else _Lines(),
    )
    _print_status(status, as_json=as_json)
    raise typer.Exit(1 if status.failures else 0)


@sweep_app.command("status")
def status_command(folder: Folder, *, as_json: opt.AsJson = False) -> None:
    """How many cells are done, failed and waiting; reads the folder alone."""
    from mi_massive.sweep import sweep_status

    _print_status(sweep_status(folder), as_json=as_json)


@sweep_app.command("table")
def table_command(
    folder: Folder,
    *,
    scores: Annotated[
        bool, typer.Option("--scores", help="Scores alone: about twice as fast.")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Scores of every arm on every task, and what the arms cost, from the cells that are there.

    A * marks changes that are significant (p < .05, Holm).
    """
    from mi_massive.sweep import load_sweep

    result = load_sweep(folder, costs=not scores)
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    for table in result.tables:
        for readout in dict.fromkeys(cell.readout for cell in table.cells):
            cells = [cell for cell in table.cells if cell.readout == readout]
            tasks = dict.fromkeys(cell.task for cell in cells)
            rows: dict[str, dict[str, str]] = {}
            for cell in cells:
                row = rows.setdefault(cell.arm, {"arm": cell.arm, **dict.fromkeys(tasks, "-")})
                mark = "*" if cell.change.p_value < _SURE else ""
                row[cell.task] = f"{cell.score.effect:.3f}{mark}"
            print_records(f"{table.model} ({table.dtype}), {readout}", list(rows.values()))
        if table.contrasts:
            of = f"{table.model} ({table.dtype}): "
            print_costs(table.contrasts, table.comparisons, of=of)
        if table.incomplete:
            typer.echo(
                f"{table.model} ({table.dtype}): no losses of {', '.join(table.incomplete)}; "
                "cells of theirs, of their controls or of the intact model wait or have failed"
            )
    typer.echo(f"{result.waiting} cells are waiting, {len(result.failures)} failed")


def _engine(
    name: EngineName,
    out: str,
    device: str,
    workers: int | None,
    gpus_per_worker: int | None,
    address: str | None,
    slurm: list[str],
) -> "Engine":
    from mi_massive.sweep import InlineEngine, ProcessEngine, RayEngine, SlurmEngine
    from mi_massive.sweep.slurm import Cluster, read_parameter

    for option, given, owner in (("--address", address, "ray"), ("--slurm", slurm, "slurm")):
        if given and name != owner:
            raise ValueError(f"{option} must go with --engine {owner}, got --engine {name}")
    if name == "inline":
        for option, given in (("--workers", workers), ("--gpus-per-worker", gpus_per_worker)):
            if given is not None:
                raise ValueError(
                    f"{option} must be left out for --engine inline, got {given}; that engine is "
                    "this process, --engine local starts others"
                )
        return InlineEngine(device=device)
    gpus = 1 if gpus_per_worker is None else gpus_per_worker
    if name == "local":
        return ProcessEngine(device=device, workers=workers, gpus_per_worker=gpus)
    n = 1 if workers is None else workers
    if name == "ray":
        return RayEngine(address=address, device=device, workers=n, gpus_per_worker=gpus)
    texts = dict(_parameter(one) for one in slurm)
    cluster: Any = texts.pop("cluster", "slurm")
    if cluster not in get_args(Cluster):
        raise ValueError(
            f"--slurm cluster must be one of {', '.join(get_args(Cluster))}, got {cluster!r}"
        )
    if "://" in out:
        raise ValueError(f"--out must be a folder for --engine slurm, got {out}; jobs log there")
    return SlurmEngine(
        logs=str(Path(out).absolute() / "logs"),
        device=device,
        workers=n,
        gpus_per_worker=gpus,
        options={key: read_parameter(key, text) for key, text in texts.items()},
        cluster=cluster,
    )


def _parameter(given: str) -> tuple[str, str]:
    name, found, value = given.partition("=")
    if not (name and found):
        raise ValueError(f"--slurm must be KEY=VALUE, got {given!r}")
    return name, value


class _Lines:
    """A line of progress on the error stream every few seconds, and at the end."""

    def __init__(self) -> None:
        self._last = -LINE_EVERY
        self._over = False

    def __call__(self, now: "SweepProgress") -> None:
        over = now.done + now.failed == now.total
        if self._over or (time.monotonic() - self._last < LINE_EVERY and not over):
            return
        self._last, self._over = time.monotonic(), over
        left = "unknown" if now.seconds_left is None else f"{now.seconds_left / 60:.1f} min"
        print_line = f"{now.done}/{now.total} cells, {now.failed} failed, "
        print_line += f"{now.per_minute:.1f} a minute, {left} left"
        typer.echo(print_line, file=sys.stderr)


def _print_status(status: "SweepStatus", *, as_json: bool) -> None:
    counts = {name: getattr(status, name) for name in ("total", "done", "started", "waiting")}
    counts["failed"] = len(status.failures)
    if as_json:
        print_json({**counts, "failures": [dataclasses.asdict(f) for f in status.failures]})
        return
    print_records("Cells", [counts])
    rows = [{n: getattr(f, n) for n in ("model", "arm", "task", "error")} for f in status.failures]
    if rows:
        print_records("Failed", rows, below=("error",))
