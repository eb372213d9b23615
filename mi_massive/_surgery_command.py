"""`mi-massive surgery`: take the frequencies of RoPE apart in a trained model."""

import dataclasses
from typing import Annotated

import typer

from mi_massive import _completion as completion
from mi_massive import _options as opt
from mi_massive._disrupt_command import asked_tasks, own_tasks, task_names
from mi_massive._terminal import print_json, print_records, progress, signed
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.records import save_result
from mi_massive.scores import INTACT, EvaluationConfig

_TASKS = "passkey_128_6,pairs_closed_book,pairs_counterfactual"
_FEWEST_BANDS = 4
"""Of which a half can lose its rotation and still be more than one band."""


def surgery_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    tasks: Annotated[
        str,
        typer.Option(
            autocompletion=completion.complete_tasks,
            help="Tasks asked by options, with commas; a .jsonl file is a task of yours.",
        ),
    ] = _TASKS,
    limit: Annotated[
        int, typer.Option(min=3, help="Examples of each task, of which distances form three.")
    ] = 24,
    bands: Annotated[
        int, typer.Option(min=_FEWEST_BANDS, help="Bands of the rotary pairs, fast to slow.")
    ] = _FEWEST_BANDS,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the random pairs.")] = 1,
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
    """What each frequency band of RoPE does: rotations left out, content left out (C8)."""
    opt.require_savable(save)
    opt.require_cells(cells)
    names = task_names(tasks)
    own = own_tasks(names, limit)

    from mi_massive.position_shares import PositionSharesConfig
    from mi_massive.surgery import SurgeryConfig, run_surgery  # late: loads transformers
    from mi_massive.surgery_plans import surgery_arms

    arms = surgery_arms(n_bands=bands, n_seeds=seeds)
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    asked = asked_tasks(loaded, names, own, limit=limit)
    config = SurgeryConfig(
        shares=PositionSharesConfig(n_bands=bands),
        evaluation=EvaluationConfig(readouts=("options",), batch_size=batch_size),
    )
    with progress(len(arms) * len(asked), quiet=quiet, what="cells") as advance:
        result = run_surgery(loaded, arms, asked, config=config, cells=cells, on_progress=advance)
    effects = {arm: result.effects.of(arm) for arm in result.effects.arms}
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "bands": [dataclasses.asdict(band) for band in result.shares.bands],
                "fast_minus_slow": dataclasses.asdict(result.shares.fast_minus_slow),
                "effects": {
                    arm: {name: dataclasses.asdict(e) for name, e in found.items()}
                    for arm, found in effects.items()
                },
                "left_out": result.left_out,
                **{
                    name: [dataclasses.asdict(each) for each in getattr(result, name)]
                    for name in ("cells", "contrasts", "distances", "norms")
                },
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
    else:
        shares = [
            {
                "band": band.band,
                "wavelengths": f"{band.shortest:,.0f} to {band.longest:,.0f}",
                "position": signed(band.position_share),
                "by chance": f"{band.position_share.null:.2f}",
                "variance": f"{band.variance_share.effect:.2f}",
            }
            for band in result.shares.bands
        ]
        print_records("Share of the logits' variance that distance explains", shares)
        changes = {(cell.arm, cell.task): cell.change for cell in result.cells}
        rows = [
            {"arm": arm, "added nats": signed(found["added_cross_entropy"])}
            | {task.name: signed(changes[arm, task.name]) for task in asked}
            for arm, found in effects.items()
            if arm != INTACT
        ]
        print_records(f"{loaded.name}: change from the intact model", rows)
        if result.left_out:
            typer.echo(f"left out, as nothing is massive: {', '.join(result.left_out)}", err=True)
    if save is not None:
        save_result(result, save)
