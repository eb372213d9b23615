"""The command line: arguments in, library calls, tables or JSON out."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mi_massive import _harness_command as harness
from mi_massive import _options as opt
from mi_massive._conflict_command import conflict_command
from mi_massive._disrupt_command import disrupt_command
from mi_massive._list_commands import models_command, presets_command, tasks_command
from mi_massive._patch_command import patch_command
from mi_massive._quantize_command import quantize_command
from mi_massive._report_command import report_command
from mi_massive._surgery_command import surgery_command
from mi_massive._sweep_command import sweep_app
from mi_massive._terminal import (
    one_sentence,
    print_json,
    print_records,
    print_result,
)
from mi_massive._twins_command import twins_command
from mi_massive.axes import PROJECTIONS
from mi_massive.bands import BandsConfig, bands
from mi_massive.concentration import ConcentrationConfig, concentration
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.records import package_versions, save_result
from mi_massive.symmetry import SymmetryConfig, symmetry

_CONCENTRATION, _BANDS, _SYMMETRY = ConcentrationConfig(), BandsConfig(), SymmetryConfig()
_INTERRUPTED = 130
"""Exit status after an interrupt, as typer gives it: 128 + SIGINT."""

app = typer.Typer(
    name="mi-massive",
    help="Measure concentrated massive values in attention queries and keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"mi-massive {package_versions()['mi-massive']}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = None,
) -> None:
    """Measure concentrated massive values in attention queries and keys."""


def main() -> None:
    """Run the command line; every expected failure is one sentence and a non-zero exit status."""
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            typer.echo("error: interrupted; nothing half-written was left behind", err=True)
        raise
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"error: {one_sentence(error)}", err=True)
        sys.exit(1)


app.command("report")(report_command)


@app.command("concentration")
def concentration_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    prompts: opt.Prompts = None,
    column: opt.Column = None,
    split: opt.Split = None,
    limit: opt.Limit = None,
    chat: opt.Chat = False,
    max_length: opt.MaxLength = None,
    skip_first: opt.SkipFirst = False,
    ratio: opt.Ratio = _CONCENTRATION.ratio,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """How many massive dimensions q, k and v have, where, and against which null (C1, C2, C9)."""
    config = ConcentrationConfig(ratio=ratio)
    opt.require_savable(save)
    capture = opt.CaptureOptions(
        opt.read_texts(prompts, column, split, limit), chat, max_length, skip_first, batch_size
    )
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    result = concentration(capture.norms(loaded, quiet=quiet), config=config)
    facts: dict[str, Any] = {
        f"massive_{p}": [int(n) for n in getattr(result, p).massive.sum(dim=(1, 2))]
        for p in PROJECTIONS
    }
    facts["first_layer"] = result.first_layer
    _finish(result, facts, save, as_json=as_json)


@app.command("bands")
def bands_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    prompts: opt.Prompts = None,
    column: opt.Column = None,
    split: opt.Split = None,
    limit: opt.Limit = None,
    chat: opt.Chat = False,
    max_length: opt.MaxLength = None,
    skip_first: opt.SkipFirst = False,
    ratio: opt.Ratio = _BANDS.ratio,
    n_bands: Annotated[
        int, typer.Option("--bands", min=1, help="Bands of the rotary pairs, fast to slow.")
    ] = _BANDS.n_bands,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Where energy and massive dimensions lie on the frequency axis of RoPE (C8)."""
    config = BandsConfig(ratio=ratio, n_bands=n_bands)
    opt.require_savable(save)
    capture = opt.CaptureOptions(
        opt.read_texts(prompts, column, split, limit), chat, max_length, skip_first, batch_size
    )
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    result = bands(capture.norms(loaded, quiet=quiet), config=config)
    facts = {
        f"band_energy_{p}": [
            round(float(x), 4) for x in getattr(result, p).band_energy.nanmean(dim=0)
        ]
        for p in PROJECTIONS
    }
    _finish(result, facts, save, as_json=as_json)


@app.command("symmetry")
def symmetry_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    prompts: opt.Prompts = None,
    column: opt.Column = None,
    split: opt.Split = None,
    limit: opt.Limit = None,
    chat: opt.Chat = False,
    max_length: opt.MaxLength = None,
    skip_first: opt.SkipFirst = False,
    ratio: opt.Ratio = _SYMMETRY.ratio,
    max_gap: Annotated[
        int, typer.Option(min=1, help="Massive dimensions at most this far apart are one cluster.")
    ] = _SYMMETRY.max_gap,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Whether massive dimensions come in two mirror clusters, one in each half of the head (C8)."""
    config = SymmetryConfig(ratio=ratio, max_gap=max_gap)
    opt.require_savable(save)
    capture = opt.CaptureOptions(
        opt.read_texts(prompts, column, split, limit), chat, max_length, skip_first, batch_size
    )
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    result = symmetry(capture.norms(loaded, quiet=quiet), config=config)
    _finish(result, {"layout": result.layout}, save, as_json=as_json)


app.command("disrupt")(disrupt_command)
app.command("conflict")(conflict_command)
app.command("patch")(patch_command)
app.command("surgery")(surgery_command)
app.command("quantize")(quantize_command)
app.command("twins")(twins_command)
app.command("lm-eval", help=harness.HELP, context_settings=harness.CONTEXT)(harness.harness_command)
app.add_typer(sweep_app, name="sweep")
app.command("tasks")(tasks_command)
app.command("presets")(presets_command)
app.command("models")(models_command)


@app.command()
def doctor(
    model: opt.Model = DEFAULT_MODEL,
    *,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Measure what can be trusted on a model; exit status 1 if a check deviates."""
    from mi_massive.doctor import diagnose

    opt.require_savable(save)

    result = diagnose(opt.load(model, device, dtype, revision, trust_remote_code, quiet))
    checks = [dataclasses.asdict(check) for check in result.checks]
    if as_json:
        print_json(
            {
                "model": result.provenance.model,
                "healthy": result.healthy,
                "checks": checks,
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
    else:
        columns = ("outcome", "question", "found", "consequence")
        rows = [{name: check[name] for name in columns} for check in checks]
        print_records(result.provenance.model, rows, below=("found", "consequence"))
    if save is not None:
        save_result(result, save)
    raise typer.Exit(0 if result.healthy else 1)


def _finish(result: Any, facts: dict[str, Any], save: Path | None, *, as_json: bool) -> None:
    print_result(result, facts, as_json=as_json)  # first: it is not lost if the disk is full
    if save is not None:
        save_result(result, save)
