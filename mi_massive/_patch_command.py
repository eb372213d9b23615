"""`mi-massive patch`: what each cell of a site recovers of the context's answer."""

import dataclasses
from typing import Annotated, Any, cast

import typer

from mi_massive import _options as opt
from mi_massive._arm_options import split
from mi_massive._patch_report import known_pairs
from mi_massive._patch_units import require_fitting, require_granularity, require_site
from mi_massive._terminal import print_json, print_records, progress, waiting
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.patch_results import AttributionResult, Direction, PatchingConfig, PatchingResult
from mi_massive.records import save_result

_CONFIG = PatchingConfig()
_DIRECTIONS = ("denoising", "noising")
_GROUPS = ("first", "subject", "object", "query_subject", "last", "all", "later")
"""Those of a conflict's pair, and those that every pair has."""
_N_SAMPLE = 64
"""Random cells against which estimates are checked."""
_LEAST_CHECKED = 3
"""Of which a correlation can be given."""


def patch_command(
    model: opt.Model = DEFAULT_MODEL,
    *,
    site: Annotated[
        str, typer.Option(help="q, k, v, rot_q, rot_k, pattern, z or resid_pre.")
    ] = "z",
    granularity: Annotated[
        str, typer.Option(help="layer, head, band, pair or massive (against matched others).")
    ] = "head",
    direction: Annotated[
        str, typer.Option(help="denoising (clean into corrupted) or noising.")
    ] = "denoising",
    groups: Annotated[
        str,
        typer.Option(help=f"Positions, with commas: {', '.join(_GROUPS)}."),
    ] = "last",
    corrupted: Annotated[
        str, typer.Option(help="The other context: consistent (states the fact) or neutral.")
    ] = "consistent",
    limit: Annotated[
        int, typer.Option(min=1, help="Conflicts to patch: facts that the model knows closed-book.")
    ] = 24,
    k: Annotated[
        int | None,
        typer.Option(min=1, help=f"Of massive: pairs of each head; {_CONFIG.k} if left out."),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Patch all layers at once instead of one at a time.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Of pairs: estimate each of every head by gradients, patch the largest exactly.",
        ),
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, help="Cells in the table, the largest first; --json has all.")
    ] = 20,
    cells: opt.Cells = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows of a forward pass: pairs times stacked cells.")
    ] = _CONFIG.batch_size,
    device: opt.Device = opt.DEVICE,
    dtype: opt.Dtype = opt.DTYPE,
    revision: opt.Revision = None,
    trust_remote_code: opt.Trust = False,
    save: opt.Save = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Which layers, heads, bands or pairs carry a context's answer (C6)."""
    opt.require_savable(save)
    opt.require_cells(cells)
    for option, value, allowed in (
        ("direction", direction, _DIRECTIONS),
        ("corrupted", corrupted, ("consistent", "neutral")),
    ):
        if value not in allowed:
            raise ValueError(f"--{option} must be one of {', '.join(allowed)}, got {value!r}")
    require_fitting(require_site(site), require_granularity(granularity))
    if estimate:
        _require_estimable(granularity, joint, top)
    if k is not None and granularity != "massive":
        raise ValueError(f"--k must come with --granularity massive, got {granularity}")
    config = PatchingConfig(k=k or _CONFIG.k, joint=joint, batch_size=batch_size)
    names = _groups(groups)
    loaded = opt.load(model, device, dtype, revision, trust_remote_code, quiet)

    from mi_massive._patch_setup import patched_layers  # late, as all that loads transformers
    from mi_massive.attribution import attribute, require_gradients
    from mi_massive.patching import patch

    n_layers = 1 if joint else len(patched_layers(loaded, site=require_site(site)))
    if estimate:
        require_gradients(loaded)
    with waiting("asking facts closed-book", quiet=quiet):
        pairs, n_asked = known_pairs(loaded, limit, corrupted=corrupted)
    if not pairs:
        raise ValueError(
            f"{loaded.name} must know a fact closed-book for its conflict to be patched, got none "
            f"of {n_asked}; ask another model"
        )
    shared: dict[str, Any] = {
        "site": site,
        "direction": cast(Direction, direction),
        "groups": names,
        "config": config,
    }
    if estimate:
        steps = top + _N_SAMPLE
        with progress(steps, quiet=quiet, what="cells") as advance:
            result = attribute(
                loaded,
                pairs,
                n_top=top,
                n_sample=_N_SAMPLE,
                cells=cells,
                on_progress=advance,
                **shared,
            )
        told, rows = _told_estimates(result)
    else:
        with progress(n_layers, quiet=quiet, what="layers") as advance:
            result = patch(
                loaded, pairs, granularity=granularity, cells=cells, on_progress=advance, **shared
            )
        told, rows = _told_patches(result, top, every=as_json)
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "site": result.site,
                "direction": result.direction,
                "n_left_out": result.n_left_out,
                **told,
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
    else:
        title = f"{loaded.name}: {told['n']} pairs, {result.n_left_out} without a difference"
        print_records(title, rows)
        if estimate:
            shown = ", ".join(
                f"{name} {entry['effect']:.2f} ({entry['low']:.2f} .. {entry['high']:.2f})"
                for name, entry in told["correlations"].items()
            )
            typer.echo(f"estimates against exact patches: {shown}")
    if save is not None:
        save_result(result, save)


def _groups(listed: str) -> list[str]:
    """Position groups that an option names."""
    names = split(listed)
    if not names:
        raise ValueError(f"--groups must name at least one group, got {listed!r}")
    for name in names:
        if name not in _GROUPS:
            raise ValueError(f"--groups must be among {', '.join(_GROUPS)}, got {name!r}")
    return names


def _require_estimable(granularity: str, joint: bool, top: int) -> None:
    """Refuse what gradients do not estimate."""
    if granularity != "pair":
        raise ValueError(f"--estimate must come with --granularity pair, got {granularity}")
    if joint:
        raise ValueError("--estimate must come without --joint: it takes each layer by itself")
    if top < _LEAST_CHECKED:
        raise ValueError(
            f"--top must be at least {_LEAST_CHECKED} cells with --estimate, got {top}"
        )


def _told_patches(
    result: PatchingResult, top: int, *, every: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is printed of patches: as JSON, with every cell, and as rows."""
    largest = result.largest(result.recovered.numel() if every else top)
    told = {
        "granularity": result.granularity,
        "n": result.n,
        "n_cells": result.recovered.numel(),
        "n_significant": int(result.significant.sum()),
        "cells": largest,
    }
    return told, [_row(cell) for cell in largest]


def _told_estimates(result: AttributionResult) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is printed of estimates: as JSON, and as rows."""
    found: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for at, place in enumerate(result.top):
        cell = {a: result.labels[a][i] for a, i in zip(result.axes, place, strict=True)}
        estimated, exact, low, high, placebo = (
            float(values)
            for values in (
                result.estimated[place],
                *(result.top_exact[at], result.top_low[at], result.top_high[at]),
                result.top_placebo[at],
            )
        )
        numbers = {"estimated": estimated, "recovered": exact, "placebo": placebo}
        found.append(cell | numbers | {"low": low, "high": high})
        shown = {name: f"{value:+.3f}" for name, value in numbers.items()}
        rows.append(cell | shown | {"interval": f"{low:+.3f} .. {high:+.3f}"})
    names = ("pearson", "spearman", "pearson_top")
    told = {
        "granularity": "pair",
        "n": result.n_examples,
        "n_cells": result.estimated.numel(),
        "correlations": {name: dataclasses.asdict(getattr(result, name)) for name in names},
        "cells": found,
    }
    return told, rows


def _row(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell as it is printed: its place, value, interval, placebo and corrected p."""
    numbers = ("recovered", "low", "high", "p_values", "placebo", "beyond_placebo", "significant")
    return {
        **{axis: entry for axis, entry in cell.items() if axis not in numbers},
        "recovered": f"{cell['recovered']:+.3f}",
        "interval": f"{cell['low']:+.2f} .. {cell['high']:+.2f}",
        "placebo": f"{cell['placebo']:+.3f}",
        "p": f"{cell['p_values']:.2g}",
        "significant": "yes" if cell["significant"] else "no",
    }
