"""The section on patching: which layers, heads, bands and pairs carry the answer."""

from collections.abc import Sequence

from mi_massive.patch_results import (
    AttributionResult,
    PatchedPatternsResult,
    PatchingResult,
)
from mi_massive.report import text
from mi_massive.report.pictures import Picture, picture
from mi_massive.report.section import Section
from mi_massive.report.tables import Table
from mi_massive.stats import Estimate
from mi_massive.viz.patching import plot_massive_patching, plot_patching
from mi_massive.viz.patterns import json_for_html, patched_patterns_data

_SHOWN = 12
"""Cells of a table: the largest."""


def patching_section(
    results: Sequence[PatchingResult],
    *,
    title: str,
    attributions: Sequence[AttributionResult] = (),
    patterns: PatchedPatternsResult | None = None,
) -> Section:
    """The section; a result of single pairs has a table and no picture."""
    pictures = [_picture(result, at) for at, result in enumerate(results) if _drawn(result)]
    tables = [_counts(results)] if results else []
    tables += [_largest(result) for result in results]
    for attribution in attributions:
        tables += [_agreement(attribution), _top(attribution)]
    tokens = None if patterns is None else json_for_html(patched_patterns_data(patterns))
    return Section(
        word="patching",
        title=title,
        question=_QUESTION,
        pictures=tuple(pictures),
        tables=tuple(tables),
        tokens=tokens,
        tokens_reading="" if patterns is None else _VIEW.format(site=patterns.site),
        limits=_LIMITS,
    )


_QUESTION = (
    "A clean prompt calls for one answer, a corrupted one of the same length for another. Which "
    "parts of the model carry the difference? A part’s activation in one run is replaced by that "
    "of the other run; “recovered” is the share of the difference between the two answers’ logits "
    "that this moves: 0 none, 1 all of it. Denoising puts clean activations into the corrupted "
    "run, noising corrupted ones into the clean run. The placebo does the same with activations "
    "of an unrelated prompt."
)

_VIEW = (
    "The attention of one head on one pair in three runs: the clean one, the corrupted one, and "
    "the corrupted one with the head’s own {site} of the clean run. A row is the token that looks, "
    "a column the token that is looked at. If the head looks elsewhere because of its {site}, the "
    "third pattern is like the first. One pair is an illustration."
)

_LIMITS = (
    "A circuit: shares of parts need not add up to 1, and a part that another one backs up shows "
    "nothing alone.",
    "The attention sink as such. Where both prompts begin alike, the first token’s activations are "
    "the same in both runs, and patching them changes nothing by construction.",
    "That a part is about this prompt where its placebo is as large: then any other activations "
    "would do.",
    "Effects too small for so few pairs. Tests are corrected over all cells of a result.",
    "Exact effects where it says estimated: a gradient sees only the first step.",
)


def _drawn(result: PatchingResult) -> bool:
    return result.granularity != "pair"


def _name(result: PatchingResult | AttributionResult) -> str:
    granularity = result.granularity if isinstance(result, PatchingResult) else "pair"
    return f"{result.site} by {granularity}, {result.direction}"


def _picture(result: PatchingResult, at: int) -> Picture:
    if result.granularity == "massive":
        return picture(
            f"patching-{at}",
            f"Massive pairs against as many others: {result.site}, {result.direction}",
            "One panel a position group, one bar a choice of as many pairs in every head. "
            "Diamonds are placebos. Massive pairs that carry the answer have a longer bar than "
            "every control and than their own placebo.",
            plot_massive_patching(result),
        )
    group = str(result.labels["group"][0])
    shown = "" if result.granularity == "layer" else f" Positions: {group}."
    return picture(
        f"patching-{at}",
        f"What each cell recovers: {_name(result)}",
        "Orange recovers the answer, blue moves away from it. A dot marks an effect that is "
        "neither zero nor that of its placebo, corrected over all cells. What is as strong for the "
        f"placebo says nothing about the prompt.{shown}",
        plot_patching(result),
    )


def _counts(results: Sequence[PatchingResult]) -> Table:
    return Table(
        caption="What was patched",
        head=(
            "patch",
            "layers",
            "pairs",
            "left out: nothing to recover",
            "cells",
            "significant cells",
        ),
        rows=tuple(
            (
                _name(result),
                "all at once" if result.config.joint else "one at a time",
                f"{result.n:,}",
                f"{result.n_left_out:,}",
                f"{result.recovered.numel():,}",
                f"{int(result.significant.sum()):,}",
            )
            for result in results
        ),
    )


def _largest(result: PatchingResult) -> Table:
    rows: list[tuple[str, ...]] = []
    for values in result.largest(_SHOWN):
        low, high = text.number(float(values["low"])), text.number(float(values["high"]))
        rows.append(
            (
                *(str(values[axis]) for axis in result.axes),
                text.number(float(values["recovered"])),
                f"[{low}, {high}]",
                text.number(float(values["placebo"])),
                text.p_value(float(values["p_values"])),
                "yes" if values["significant"] else "no",
            )
        )
    return Table(
        caption=f"The largest cells: {_name(result)}",
        head=(*result.axes, "recovered", "interval", "placebo", "corrected p", "significant"),
        rows=tuple(rows),
        folded=True,
    )


def _agreement(result: AttributionResult) -> Table:
    def row(name: str, value: Estimate) -> tuple[str, ...]:
        return (name, text.number(value.effect), text.interval(value), text.counted(value))

    return Table(
        caption=f"Gradient estimates against exact patches: {_name(result)}",
        head=("correlation", "value", "interval", "cells"),
        rows=(
            row("Pearson, random cells", result.pearson),
            row("Spearman, random cells", result.spearman),
            row("Pearson, top cells", result.pearson_top),
        ),
    )


def _top(result: AttributionResult) -> Table:
    rows: list[tuple[str, ...]] = []
    for at, place in enumerate(result.top):
        entries = zip(result.axes, place, strict=True)
        low, high = (text.number(float(ends[at])) for ends in (result.top_low, result.top_high))
        rows.append(
            (
                *(str(result.labels[axis][index]) for axis, index in entries),
                text.number(float(result.estimated[place])),
                text.number(float(result.top_exact[at])),
                f"[{low}, {high}]",
                text.number(float(result.top_placebo[at])),
            )
        )
    return Table(
        caption=f"Pairs with the largest estimates, patched exactly: {_name(result)}",
        head=(*result.axes, "estimated", "recovered", "interval", "placebo"),
        rows=tuple(rows),
        folded=True,
    )
