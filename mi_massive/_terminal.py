"""Progress, tables and JSON of the command line."""

import dataclasses
import errno
import json
import math
import os
import re
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mi_massive.stats import Estimate

_output: Final = Console()
_messages: Final = Console(stderr=True)

LINE_EVERY: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""
_ROUNDING: Final = 1e-12
"""Printed as 0: what is left of a zero after sums of float64."""

_FULL: Final = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_IN_OPTIONS: Final = (
    (r"\bmax_length=(\d+)", r"--max-length \1"),
    (r"\bpass skip_first=False", "leave out --skip-first"),
    (r"\bpass chat=False", "leave out --chat"),
    (r"\boverwrite=True", "--overwrite"),
    (r"\bextend=True", "--extend"),
    (r"\btrust_remote_code=True", "--trust-remote-code"),
    (r"\bdtype (float32|bfloat16)", r"--dtype \1"),
)
"""Remedies of the library, and how the command line says them."""


_GAP: Final = "  "
_STYLES: Final = {
    ("verdict", "supported"): "green",
    ("verdict", "not supported"): "red",
    ("verdict", "inconclusive"): "yellow",
    ("outcome", "ok"): "green",
    ("outcome", "deviates"): "bold red",
    ("outcome", "does not apply"): "dim",
    ("state", "in the cache"): "green",
    ("role", "treatment"): "bold",
    ("kind", "contextual"): "blue",
    ("kind", "parametric"): "magenta",
    ("significant", "yes"): "bold",
    ("significant", "no"): "dim",
    ("arm", "intact"): "dim",
}
"""Of cells, by their column; a terminal without colours, a pipe and NO_COLOR show plain text."""


@contextmanager
def waiting(message: str, *, quiet: bool) -> Generator[None, None, None]:
    """Show a message on the error stream meanwhile; silent when quiet or not on a terminal."""
    if quiet or not _messages.is_terminal:
        yield
        return
    with _messages.status(message):
        yield


@contextmanager
def progress(
    total: int, *, quiet: bool, what: str = "prompts"
) -> Generator[Callable[[int], None], None, None]:
    """A progress bar on the error stream; silent with --quiet and when it is no terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=_messages, transient=True, disable=quiet or not _messages.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        yield advance


@contextmanager
def twins_progress(
    n_twins: int, n_steps: int, *, quiet: bool
) -> Generator[Callable[[Any], None], None, None]:
    """A bar over the steps of all twins, with the last measured loss and concentration.

    What is no terminal gets a line every few seconds instead.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    reached: dict[tuple[str, int], int] = {}
    last = time.monotonic()
    with Progress(
        *columns, console=_messages, transient=True, disable=quiet or not _messages.is_terminal
    ) as bar:
        task = bar.add_task("twins", total=n_twins * n_steps)

        def show(twin: Any) -> None:
            nonlocal last
            reached[twin.arm, twin.seed] = twin.step  # a twin that is taken up begins in its middle
            done = sum(reached.values())
            ratios = " ".join(f"{name} {value:.2f}" for name, value in twin.concentration.items())
            words = f"{twin.arm} {twin.seed}: step {twin.step}, loss {twin.loss:.2f}, {ratios}"
            bar.update(task, completed=done, description=words)
            if not (quiet or _messages.is_terminal) and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                typer.echo(f"{done / (n_twins * n_steps):.0%} of all steps; {words}", err=True)

        yield show


def print_result(result: Any, facts: dict[str, Any], *, as_json: bool) -> None:
    """Print every estimate of a result, and some facts about it."""
    estimates = dict(_estimates(result, ""))
    if as_json:
        print_json(
            {
                "model": result.provenance.model,
                **facts,
                "estimates": {name: dataclasses.asdict(e) for name, e in estimates.items()},
                "provenance": dataclasses.asdict(result.provenance),
            }
        )
        return
    print_records(result.provenance.model, list(_grouped(estimates)))
    for name, value in facts.items():
        _write(f"{name}: {value}")


def print_claims(claims: Sequence[Any]) -> None:
    """Print the scoreboard."""
    print_records(
        "Claims",
        [
            {
                "claim": claim.id,
                "verdict": claim.verdict,
                **columns_of(claim.estimate),
                "statement": claim.statement,
            }
            for claim in claims
        ],
        below=("statement",),
    )


def _grouped(estimates: dict[str, Estimate]) -> Iterator[dict[str, str]]:
    """Rows of estimates, those of a part (q, k, v, ...) indented under its name."""
    part = ""
    for name, e in estimates.items():
        own, _, short = name.rpartition(".")
        row = {"quantity": short, **columns_of(e), "null": _number(e.null), "p": _number(e.p_value)}
        if own and own != part:
            yield dict.fromkeys(row, "") | {"quantity": own}
        part = own
        yield row | {"quantity": f"  {short}" if own else short}


def columns_of(e: Estimate) -> dict[str, str]:
    """Effect, interval and n as cells of a table."""
    return {
        "effect": _number(e.effect),
        "interval": f"{_number(e.low)} .. {_number(e.high)}",
        "n": f"{e.n} {e.n_of}",
    }


def _estimates(value: Any, prefix: str) -> Iterator[tuple[str, Estimate]]:
    for field in dataclasses.fields(value):
        child = getattr(value, field.name)
        if isinstance(child, Estimate):
            yield f"{prefix}{field.name}", child
        elif dataclasses.is_dataclass(child):
            yield from _estimates(child, f"{prefix}{field.name}.")


def _number(value: float) -> str:
    """Three digits or decimals, so that a table fits a terminal; `--json` has them all."""
    if math.isnan(value):
        return "-"
    size = abs(value)
    if size < _ROUNDING:
        return "0"
    if size >= 1:
        return f"{value:.3g}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if size >= 5.5e-4 else f"{value:.0e}"


def print_json(document: dict[str, Any]) -> None:
    """Print a document as JSON; unknown numbers become null."""
    typer.echo(json.dumps(_without_nan(document), indent=1))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: unknown numbers become null."""
    if isinstance(value, dict):
        return {name: _without_nan(child) for name, child in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_without_nan(child) for child in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_records(
    title: str, records: Sequence[dict[str, Any]], *, below: Sequence[str] = ()
) -> None:
    """Print one line a record, in aligned columns; long texts, named in `below`, stand under it.

    On a terminal those texts are wrapped to its width, elsewhere they stay on one line each.
    """
    names = [name for name in records[0] if name not in below]
    rows = [[str(record[name]) for name in names] for record in records]
    header = [name.replace("_", " ") for name in names]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    _write(title, style="bold")
    _write(_line(header, widths), style="dim")
    for record, row in zip(records, rows, strict=True):
        _output.print(_styled(names, row, widths), soft_wrap=True)
        for name in below:
            text = str(record[name])
            lines = textwrap.wrap(text, _output.width - 6) if _output.is_terminal else [text]
            for line in lines:
                _write(f"    {line}")
    _write("")


def _styled(names: Sequence[str], cells: Sequence[str], widths: Sequence[int]) -> Text:
    """A line whose telling words stand out where the terminal has colours; the same text."""
    line = Text(_line(cells, widths))
    start = 0
    for name, cell, width in zip(names, cells, widths, strict=True):
        line.stylize(_STYLES.get((name, cell), ""), start, start + len(cell))
        start += width + len(_GAP)
    return line


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return _GAP.join(padded).rstrip()


def _write(text: str, *, style: str | None = None) -> None:
    """Print a line as it is: no markup (a name may hold brackets), no wrapping."""
    _output.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def one_sentence(error: Exception) -> str:
    """An error as one line for the command line, its remedies in the words of the options."""
    if isinstance(error, OSError) and error.strerror:
        place = f" at {error.filename}" if error.filename else ""
        text = f"{error.strerror}{place}"
        if any(full in error.strerror for full in _FULL):
            text = f"the disk must have room, got {text!r}; free some space or choose another place"
    else:
        text = str(error) or type(error).__name__
    text = " ".join(text.split())
    for pattern, option in _IN_OPTIONS:
        text = re.sub(pattern, option, text)
    return text


def signed(value: Any) -> str:
    """An estimate of a difference with its interval."""
    return f"{value.effect:+.2f} ({value.low:+.2f} .. {value.high:+.2f})"
