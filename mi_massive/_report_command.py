"""`mi-massive report`: measure a model and write a page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mi_massive import _options as opt
from mi_massive._conflict_command import conflict_for_report
from mi_massive._disrupt_command import battery_for_report
from mi_massive._patch_command import patching_for_report
from mi_massive._terminal import print_claims, progress
from mi_massive._twins_command import read_twins
from mi_massive.bands import BandsConfig
from mi_massive.concentration import ConcentrationConfig
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.records import load_result
from mi_massive.symmetry import SymmetryConfig

_RATIO = ConcentrationConfig().ratio


def report_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    control: Annotated[
        str, typer.Option(help="Model without RoPE to compare with; 'none' for no control.")
    ] = "all-minilm-l6-v2",
    examples: Annotated[
        int,
        typer.Option(min=0, help="Examples of each task under each edit (C4, C5); 0: no tasks."),
    ] = 12,
    conflicts: Annotated[
        int, typer.Option(min=0, help="Facts to contradict under each edit (C6); 0: none.")
    ] = 0,
    patching: Annotated[
        int, typer.Option(min=0, help="Known facts to contradict and patch; 0: no patching.")
    ] = 0,
    quantization: Annotated[
        list[Path] | None,
        typer.Option(
            help="Saved result on this model (C7): `mi-massive quantize` or quantized states."
        ),
    ] = None,
    surgery: Annotated[
        Path | None,
        typer.Option(help="Saved result of `mi-massive surgery` on this model, to show as well."),
    ] = None,
    twins: Annotated[
        list[Path] | None, typer.Option(help="Saved result of `mi-massive twins` to show as well.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a report of another model in the folder.")
    ] = False,
    prompts: opt.Prompts = None,
    column: opt.Column = "text",
    split: opt.Split = "train",
    limit: opt.Limit = None,
    chat: opt.Chat = False,
    max_length: opt.MaxLength = None,
    skip_first: opt.SkipFirst = False,
    ratio: opt.Ratio = _RATIO,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Measure a model and write a page on its massive values."""
    from mi_massive.report import build_report
    from mi_massive.report.folder import require_replaceable

    configs = (
        ConcentrationConfig(ratio=ratio),
        BandsConfig(ratio=ratio),
        SymmetryConfig(ratio=ratio),
    )
    if examples == 1:  # refused here: before the models are loaded
        raise ValueError("--examples must be 0 or at least 2, got 1; one has no interval")
    require_replaceable(out.resolve(), model=opt.model_name(model), overwrite=overwrite)
    opt.require_writable("--out", out)
    named = opt.model_name(model)
    taken_apart = _saved("--surgery", surgery, ("SurgeryResult",), named)
    in_few_bits = _quantization(quantization or [], named)
    trained = read_twins(twins or [])
    capture = opt.CaptureOptions(
        opt.read_texts(prompts, column, split, limit), chat, max_length, skip_first, batch_size
    )
    subject = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    own = capture.tokenize(subject, chat=chat)
    other = None if control == "none" else opt.load(control, device, dtype, None, False, quiet)
    # A model without RoPE seldom has a chat template: it reads the plain texts. Those beyond its
    # context are cut by run_study, which says so in the report.
    others = None if other is None else capture.tokenize(other, chat=False, fitting=False)

    from mi_massive.study import StudyConfig, run_study  # late: its imports follow models'

    # These two first: they can find that the model allows no conflict, before the long battery.
    conflict = conflict_for_report(subject, conflicts, batch_size=batch_size, quiet=quiet)
    patched = patching_for_report(subject, patching, batch_size=batch_size, quiet=quiet)
    disruption = battery_for_report(subject, examples, batch_size=batch_size, quiet=quiet)
    config = StudyConfig(
        concentration=configs[0],
        bands=configs[1],
        symmetry=configs[2],
        batch_size=batch_size,
        skip_first=skip_first,
    )
    with progress(len(own) + (0 if others is None else len(others)), quiet=quiet) as advance:
        results = run_study(
            subject,
            own,
            control=other,
            control_prompts=others,
            disruption=disruption,
            conflict=conflict,
            **in_few_bits,
            surgery=taken_apart,
            twins=trained,
            **patched,
            config=config,
            on_progress=advance,
        )
    page = build_report(results, out, overwrite=overwrite)
    if as_json:
        typer.echo((page.parent / "summary.json").read_text(encoding="utf-8"), nl=False)
        return
    if not quiet:
        print_claims(results.scoreboard.claims)
    typer.echo(f"report: {page}")


def _quantization(paths: list[Path], model: str) -> dict[str, Any]:
    """The results behind `--quantization`, as `run_study` takes them.

    Raises:
        ValueError: If two files hold results of one kind (see also `_saved`).
    """
    words = {"StateQuantizationResult": "quantization", "QuantizationResult": "quantized"}
    found: dict[str, Any] = {}
    for path in paths:
        result = _saved("--quantization", path, tuple(words), model)
        word = words[type(result).__name__]
        if word in found:
            raise ValueError(
                f"--quantization must name at most one {type(result).__name__}, got two: {path}"
            )
        found[word] = result
    return found


def _saved(option: str, path: Path | None, kinds: tuple[str, ...], model: str) -> Any:
    """A saved result of the model to report on; None for no path.

    Raises:
        ValueError: If the file holds another result, or that of another model.
        FileNotFoundError: If it is missing.
    """
    if path is None:
        return None
    result: Any = load_result(path)
    if type(result).__name__ not in kinds:
        raise ValueError(
            f"{option} must name a saved {' or '.join(kinds)}, got a {type(result).__name__}: "
            f"{path}"
        )
    if result.provenance.model != model:
        raise ValueError(
            f"{option} must be of the model {model}, got one of {result.provenance.model}: {path}"
        )
    return result
