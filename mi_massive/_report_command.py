"""`mi-massive report`: measure a model and write a page."""

from pathlib import Path
from typing import Annotated

import typer

from mi_massive import _options as opt
from mi_massive._conflict_command import conflict_for_report
from mi_massive._disrupt_command import battery_for_report
from mi_massive._patch_report import patching_for_report, view_for_report
from mi_massive._saved_results import SavedResults, require_one_source
from mi_massive._terminal import print_claims, progress
from mi_massive._twins_command import read_twins
from mi_massive.bands import BandsConfig
from mi_massive.concentration import ConcentrationConfig
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.symmetry import SymmetryConfig

_RATIO = ConcentrationConfig().ratio
_EXAMPLES = 10


def report_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    control: Annotated[
        str, typer.Option(help="Model without RoPE to compare with; 'none' for no control.")
    ] = "all-minilm-l6-v2",
    examples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Examples of each task under each edit (C4, C5); 0: no tasks; default: "
            f"{_EXAMPLES}, with --disruption 0.",
        ),
    ] = None,
    disruption: Annotated[
        Path | None,
        typer.Option(
            help="Saved result of `mi-massive disrupt` on this model (C4, C5), to show instead."
        ),
    ] = None,
    conflicts: Annotated[
        int, typer.Option(min=0, help="Facts to contradict under each edit (C6); 0: none.")
    ] = 0,
    conflict: Annotated[
        Path | None,
        typer.Option(help="Saved result of `mi-massive conflict` on this model (C6), to show."),
    ] = None,
    fluency: Annotated[
        Path | None,
        typer.Option(help="Saved perplexity and diversity of answers on this model, to judge C5b."),
    ] = None,
    patching: Annotated[
        int, typer.Option(min=0, help="Known facts to contradict and patch; 0: no patching.")
    ] = 0,
    patched: Annotated[
        list[Path] | None,
        typer.Option(help="Saved result of `mi-massive patch` on this model, to show."),
    ] = None,
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
        list[Path] | None,
        typer.Option(
            help="Saved result of `mi-massive twins` to show as well; of several the first judges "
            "C3b and C9b, all judge C8e."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a report of another model in the folder.")
    ] = False,
    prompts: opt.Prompts = None,
    column: opt.Column = None,
    split: opt.Split = None,
    limit: opt.Limit = None,
    chat: opt.Chat = False,
    max_length: opt.MaxLength = None,
    skip_first: opt.SkipFirst = False,
    ratio: opt.Ratio = _RATIO,
    batch_size: opt.BatchSize = 16,
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
    require_one_source("--examples", examples or 0, "--disruption", disruption)
    if examples is None:
        examples = _EXAMPLES if disruption is None else 0
    if fluency is not None and not (examples or disruption):
        raise ValueError(
            "--fluency must come with --examples or --disruption, under whose edits C5b is judged"
        )
    require_one_source("--conflicts", conflicts, "--conflict", conflict)
    require_one_source("--patching", patching, "--patched", patched)
    saved = SavedResults(named)
    disrupted = saved.one("--disruption", disruption, ("DisruptionResult",))
    contradicted = saved.one("--conflict", conflict, ("ConflictResult",))
    written = saved.one("--fluency", fluency, ("FluencyResult",))
    exchanged = saved.patches(patched or [])
    taken_apart = saved.one("--surgery", surgery, ("SurgeryResult",))
    in_few_bits = saved.quantization(quantization or [])
    trained = read_twins(twins or [])
    capture = opt.CaptureOptions(
        opt.read_texts(prompts, column, split, limit), chat, max_length, skip_first, batch_size
    )
    subject = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    saved.require_weights(subject)
    own = capture.tokenize(subject, chat=chat)
    other = None if control == "none" else opt.load(control, device, dtype, None, False, quiet)
    # A model without RoPE seldom has a chat template: it reads the plain texts. Those beyond its
    # context are cut by run_study, which says so in the report.
    others = None if other is None else capture.tokenize(other, chat=False, fitting=False)

    from mi_massive.study import StudyConfig, run_study  # late: its imports follow models'

    # These two first: they can find that the model allows no conflict, before the long battery.
    if conflicts:
        contradicted = conflict_for_report(subject, conflicts, batch_size=batch_size, quiet=quiet)
    if patching:
        exchanged = patching_for_report(subject, patching, batch_size=batch_size, quiet=quiet)
    elif patched:
        exchanged |= view_for_report(subject, exchanged["patching"], quiet=quiet)
    if examples:
        disrupted = battery_for_report(subject, examples, batch_size=batch_size, quiet=quiet)
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
            disruption=disrupted,
            conflict=contradicted,
            fluency=written,
            **in_few_bits,
            surgery=taken_apart,
            twins=trained,
            **exchanged,
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
