"""Tables of the page: what each result says in numbers, also for readers without script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mi_massive.axes import PROJECTIONS
from mi_massive.bands import BandsResult
from mi_massive.concentration import ConcentrationResult
from mi_massive.patterns import PatternsResult
from mi_massive.records import Provenance
from mi_massive.report import text
from mi_massive.stats import Estimate
from mi_massive.symmetry import SymmetryResult
from mi_massive.viz.patterns import head_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of finished text under a caption."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    """True for a long table that the reader opens."""


def concentration_tables(result: ConcentrationResult) -> list[Table]:
    """Counts and largest values by projection, the estimates, and the curve over layers."""
    ratio = result.config.ratio
    counts: list[tuple[str, ...]] = []
    for name in PROJECTIONS:
        part = result.of(name)
        n_layers, n_heads, d_head = part.norms.shape
        counts.append(
            (
                name,
                f"{n_layers} × {n_heads} × {d_head}",
                f"{int(part.massive.sum()):,}",
                f"{int(part.massive.any(dim=-1).sum()):,} of {n_layers * n_heads:,}",
                text.number(float(part.max_over_mean.nan_to_num(0.0).max())),
                text.number(float(part.top_mean_over_rms.nanmedian())),
                f"{int(part.max_over_mean.isnan().sum()):,}",
            )
        )
    head = (
        "projection",
        "layers × heads × dimensions",
        f"massive dimensions (> {ratio:g} × head mean)",
        "heads with any",
        "largest max/mean of a head",
        "|mean| / rms over tokens of a head's largest dimension, median",
        "undefined heads",
    )
    named = tuple((name, result.of(name)) for name in PROJECTIONS)
    heads, layers = "agreement of the heads of a layer", "agreement of consecutive layers"
    rows: list[tuple[str, str, Estimate]] = [
        ("max/mean over that of v", "q", result.contrast_q),
        ("max/mean over that of v", "k", result.contrast_k),
        *((heads, name, part.head_overlap) for name, part in named),
        *((layers, name, part.layer_agreement) for name, part in named),
    ]
    return [
        Table(caption="Massive dimensions counted", head=head, rows=tuple(counts)),
        _estimates("Concentration and agreement", rows),
        _curve(result),
    ]


def control_table(result: ConcentrationResult) -> Table:
    """Counts of the control."""
    table = concentration_tables(result)[0]
    caption = f"Massive dimensions counted in {result.provenance.model}"
    return Table(caption=caption, head=table.head, rows=table.rows)


def bands_tables(result: BandsResult) -> list[Table]:
    """Estimates of the frequency analysis, and the wavelength on which the energy centres."""
    named = tuple(zip(PROJECTIONS, (result.q, result.k, result.v), strict=True))
    undone = (("q", result.q_unrotated), ("k", result.k_unrotated))
    low, massive_low = "energy in the slower half of the pairs", "massive dimensions in that half"
    rows: list[tuple[str, str, Estimate]] = [
        *((low, name, part.low_half_share) for name, part in named),
        *((low, f"{name}, turned back", part.low_half_share) for name, part in undone),
        *((massive_low, name, part.massive_low_half_share) for name, part in named),
        *(
            (massive_low, f"{name}, turned back", part.massive_low_half_share)
            for name, part in undone
        ),
        ("massive dimensions without a full turn in training", "q, k", result.partial_cycle),
        ("massive dimensions that do not rotate", "q, k", result.massive_unrotated_share),
        ("query head and key head peak in the same pair", "q, k", result.q_k_same_pair),
    ]
    return [_estimates("Where on the frequency axis", rows), _centres(result)]


def symmetry_tables(result: SymmetryResult) -> list[Table]:
    """Estimates of the symmetry analysis, and the clusters layer by layer."""
    named = tuple(zip(PROJECTIONS, (result.q, result.k, result.v), strict=True))
    undone = (("q", result.q_unrotated), ("k", result.k_unrotated))
    partners, smooth = "correlation of partners", "correlation of partners, smooth null"
    profiles, clusters = "correlation of a layer's half profiles", "heads with two mirror clusters"
    massive = "massive dimensions with a massive partner"
    rows: list[tuple[str, str, Estimate]] = [
        *((partners, name, part.partner_agreement) for name, part in named),
        *((partners, f"{name}, turned back", part.partner_agreement) for name, part in undone),
        *((smooth, name, part.smooth_null_agreement) for name, part in named),
        *((profiles, name, part.layer_agreement) for name, part in named),
        *((massive, name, part.massive_partner_share) for name, part in named),
        *((clusters, name, part.two_mirror_share) for name, part in named),
        ("phase between q and k, degrees", "q, k", result.phase_offset_magnitude),
        ("heads in which q leads k", "q, k", result.phase_lead_share),
    ]
    return [_estimates("How far the two halves agree", rows), _clusters(result)]


def patterns_table(result: PatternsResult) -> Table:
    """First token against the range over all others."""
    rows: list[tuple[str, ...]] = []
    for view in result.heads:
        rest = view.activations[1:]
        span = (
            f"{text.number(float(rest.min()))} to {text.number(float(rest.max()))}"
            if rest.numel()
            else text.UNDEFINED
        )
        sink = float(view.pattern[-1, 0])
        first = text.number(float(view.activations[0]))
        rows.append((head_name(view), first, span, text.number(sink)))
    return Table(
        caption="The first token against all others",
        head=(
            "head",
            "activation at the first token",
            "range over the other tokens",
            "attention of the last token to the first",
        ),
        rows=tuple(rows),
    )


def provenance_table(caption: str, source: Provenance) -> Table:
    """Everything that the numbers depend on."""
    rows = [
        ("model", source.model),
        ("revision", source.revision or "not stated"),
        ("weights", source.weights_note or "as published"),
        ("dtype", source.dtype),
        ("device", source.device),
        ("attention kernel", source.attention_kernel),
        ("batch size", str(source.batch_size)),
        ("prompts", str(source.n_prompts)),
        ("SHA-256 of the token ids", source.prompts_digest),
        ("seed of the capture", "none" if source.seed is None else str(source.seed)),
        *((name, str(value)) for name, value in sorted(source.settings.items())),
        *((f"version of {name}", version) for name, version in sorted(source.versions.items())),
        ("command", source.command),
    ]
    return Table(caption=caption, head=("what", "value"), rows=tuple(rows))


def config_table(configs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Settings of the analyses side by side, a dash where one has no such setting."""
    settings = dict.fromkeys(name for config in configs.values() for name in config)
    return Table(
        caption="Settings of the analyses",
        head=("setting", *configs),
        rows=tuple(
            (name, *(str(config.get(name, "–")) for config in configs.values()))
            for name in settings
        ),
    )


def _centres(result: BandsResult) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, part in zip(PROJECTIONS, (result.q, result.k, result.v), strict=True):
        wavelengths = 10 ** part.centre_of_mass.double()
        defined = f"{int((~wavelengths.isnan()).sum()):,} of {wavelengths.numel():,}"
        rows.append((name, text.number(_median(wavelengths)), defined))
    return Table(
        caption="Centre of mass of the energy (mean of log wavelength, weighted by energy)",
        head=("projection", "wavelength in tokens, median over heads", "heads"),
        rows=tuple(rows),
    )


def _clusters(result: SymmetryResult) -> Table:
    named = tuple(zip(PROJECTIONS, (result.q, result.k, result.v), strict=True))
    rows: list[tuple[str, ...]] = []
    for at, block in enumerate(result.layers):
        cells = [str(block)]
        for _, part in named:
            distances = part.separation[at]
            two = int((~distances.isnan()).sum())
            cells.append(f"{two} of {len(distances)}")
            cells.append(text.number(_median(distances)) if two else "–")
        rows.append(tuple(cells))
    columns = (
        (f"{name}: heads with two clusters", f"{name}: their distance in dimensions, median")
        for name, _ in named
    )
    return Table(
        caption="Heads with two clusters, layer by layer",
        head=("layer", *(column for pair in columns for column in pair)),
        rows=tuple(rows),
        folded=True,
    )


def _median(values: Float[Tensor, "..."]) -> float:
    """Median of the defined values; NaN if there are none."""
    return float(values.flatten().double().nanquantile(0.5))


def _estimates(caption: str, rows: Sequence[tuple[str, str, Estimate]]) -> Table:
    levels = sorted({text.level(estimate) for _, _, estimate in rows})
    return Table(
        caption=f"{caption} (intervals at {', '.join(levels)})",
        head=("quantity", "in", "effect", "interval", "null", "p", "n", "interval and test"),
        rows=tuple(
            (
                quantity,
                where,
                text.number(estimate.effect),
                text.interval(estimate),
                text.null(estimate),
                text.p_value(estimate.p_value),
                text.counted(estimate),
                estimate.test,
            )
            for quantity, where, estimate in rows
        ),
    )


def _curve(result: ConcentrationResult) -> Table:
    rows: list[tuple[str, ...]] = []
    for at, block in enumerate(result.layers):
        cells = [str(block)]
        for name in PROJECTIONS:
            part = result.of(name)
            mean, low, high = (
                text.number(float(values[at]))
                for values in (part.curve, part.curve_low, part.curve_high)
            )
            cells.append(f"{mean} [{low}, {high}]")
        cells.append(text.p_value(float(result.layer_tests[at])))
        rows.append(tuple(cells))
    return Table(
        caption="Massive dimensions per head, layer by layer",
        head=("layer", "q", "k", "v", "p, q and k against v"),
        rows=tuple(rows),
        folded=True,
    )
