"""`mi-massive conflict`: what a model follows when its prompt contradicts what it knows."""

import dataclasses
from typing import Annotated, Any

import typer

from mi_massive import _completion as completion
from mi_massive import _options as opt
from mi_massive._arm_options import chosen_arms, doses, split
from mi_massive._terminal import print_json, print_records, progress
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.records import save_result
from mi_massive.tasks._conflict_facts import load_relations

_LEGACY_EXAMPLES = 40


def conflict_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    preset: Annotated[
        str,
        typer.Option(
            autocompletion=completion.complete_presets,
            help="Arms, with commas; `mi-massive presets` lists them; '' for none: intact alone.",
        ),
    ] = "paper,effect_matched",
    k: Annotated[
        str | None,
        typer.Option(help="Dimensions of each head, with commas; default: each preset's own."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of arms that draw.")] = 1,
    layers: opt.Layers = None,
    relations: Annotated[
        str | None, typer.Option(help="Relations, with commas, such as city_country.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Facts asked in all, known or not.")
    ] = 140,
    seed: Annotated[int, typer.Option(help="Of styles, false objects and filler.")] = 0,
    legacy: Annotated[
        bool, typer.Option("--legacy", help="Also the published protocol, for comparison.")
    ] = False,
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
    """What a model follows when its prompt contradicts what it knows, under edits (C6)."""
    opt.require_savable(save)
    opt.require_cells(cells)
    wanted, ks = split(preset), None if k is None else doses(k)
    named = None if relations is None else _relations(relations)

    from mi_massive.conflict import ConflictConfig, run_conflict  # late: loads transformers
    from mi_massive.model_conflicts import load_conflicts

    given = {"--k": k, "--seeds": None if seeds == 1 else seeds, "--layers": layers}
    idle = next((option for option, value in given.items() if value is not None), None)
    if idle is not None and not wanted:
        raise ValueError(f"{idle} must come with --preset, got it for the intact model alone")
    arms = chosen_arms(wanted, ks, seeds, layers) if wanted else ()
    config = ConflictConfig(
        batch_size=batch_size, legacy_examples=_LEGACY_EXAMPLES if legacy else 0, seed=seed
    )
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)
    conflicts = load_conflicts(loaded, relations=named, limit=limit, seed=seed)
    total = (1 + len(arms)) * (2 if legacy else 1)
    with progress(total, quiet=quiet, what="conditions") as advance:
        result = run_conflict(
            loaded, conflicts, arms, config=config, cells=cells, on_progress=advance
        )
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "known": [dataclasses.asdict(known) for known in result.known],
                "cells": [dataclasses.asdict(cell) for cell in result.cells],
                "legacy": [dataclasses.asdict(cell) for cell in result.legacy],
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


def _relations(listed: str) -> list[str]:
    """Relations that an option names.

    Raises:
        ValueError: If there is none, or one that does not exist.
    """
    names, known = split(listed), load_relations()
    if not names:
        raise ValueError(
            f"--relations must name at least one of {', '.join(known)}, got {listed!r}; leave it "
            "out for all"
        )
    for name in names:
        if name not in known:
            raise ValueError(f"--relations must be among {', '.join(known)}, got {name!r}")
    return names


def _print(result: Any) -> None:
    """Known facts, then shares and flips in each read-out, then the published protocol."""
    known = [
        {
            "relation": entry.relation,
            "facts": entry.counts.subjects,
            "in single tokens": entry.counts.kept,
            "asked": entry.asked,
            "known": entry.n_known,
        }
        for entry in result.known
    ]
    print_records("Facts", known)
    for readout in dict.fromkeys(cell.readout for cell in result.cells):
        rows = [
            {
                "arm": cell.arm,
                "follows": _share(cell.follows),
                "keeps": _share(cell.keeps),
                "neither": _share(cell.neither),
                "p": "-" if cell.arm == "intact" else f"{cell.keeps_change.p_value:.2g}",
                "closed-book": _share(cell.closed_book),
                "logit diff": f"{cell.logit_diff.effect:+.2f}",
                "n": cell.keeps.n,
            }
            for cell in result.cells
            if cell.part == (None, None, readout)
        ]
        print_records(f"Conflicts by {readout}", rows)
        flips = [
            {
                "arm": cell.arm,
                "to memory": _share(cell.to_memory),
                "to neither": _share(cell.to_neither),
                "followers": cell.to_memory.n,
                "to context": _share(cell.to_context),
                "keepers": cell.to_context.n,
            }
            for cell in result.cells
            if cell.part == (None, None, readout) and cell.arm != "intact"
        ]
        if flips:
            print_records(f"Flips by {readout}, of those that followed and kept before", flips)
    if result.legacy:
        rows = [
            {"arm": cell.arm, "readout": cell.readout, "score": _share(cell.score)}
            for cell in result.legacy
        ]
        print_records("Published protocol", rows)


def _share(value: Any) -> str:
    return f"{value.effect:.2f} ({value.low:.2f} .. {value.high:.2f})"


def conflict_for_report(model: Any, n_facts: int, *, batch_size: int, quiet: bool) -> Any:
    """The conflicts of a report: the paper's edit and its matched control; None for no facts."""
    if not n_facts:
        return None
    from mi_massive.arms import make_arms
    from mi_massive.conflict import ConflictConfig, run_conflict
    from mi_massive.model_conflicts import load_conflicts

    arms = make_arms(("paper", "smallest", "effect_matched"))
    with progress(1 + len(arms), quiet=quiet, what="conflicts under edits") as advance:
        return run_conflict(
            model,
            load_conflicts(model, limit=n_facts),
            arms,
            config=ConflictConfig(batch_size=batch_size),
            on_progress=advance,
        )
