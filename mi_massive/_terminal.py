"""Progress, tables and JSON of the command line."""

import dataclasses
import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mi_massive.stats import Estimate

_output: Final = Console()
_messages: Final = Console(stderr=True)


@contextmanager
def waiting(message: str, *, quiet: bool) -> Generator[None, None, None]:
    """Show a message on the error stream meanwhile; silent when quiet or not on a terminal."""
    if quiet or not _messages.is_terminal:
        yield
        return
    with _messages.status(message):
        yield


@contextmanager
def progress(total: int, *, quiet: bool) -> Generator[Callable[[int], None], None, None]:
    """A progress bar on the error stream; silent with --quiet and when it is no terminal."""
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=_messages, transient=True, disable=quiet or not _messages.is_terminal
    ) as bar:
        task = bar.add_task("prompts", total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        yield advance


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
    rows = [
        {
            "quantity": name,
            "effect": _number(e.effect),
            "interval": f"{_number(e.low)} .. {_number(e.high)}",
            "null": _number(e.null),
            "p": _number(e.p_value),
            "n": f"{e.n} {e.n_of}",
        }
        for name, e in estimates.items()
    ]
    print_records(result.provenance.model, rows)
    for name, value in facts.items():
        _output.print(f"{name}: {value}", highlight=False)


def print_claims(claims: Sequence[Any]) -> None:
    """Print the scoreboard."""
    rows = [
        {
            "claim": claim.id,
            "statement": claim.statement,
            "verdict": claim.verdict,
            "effect": _number(claim.estimate.effect),
            "interval": f"{_number(claim.estimate.low)} .. {_number(claim.estimate.high)}",
            "n": f"{claim.estimate.n} {claim.estimate.n_of}",
        }
        for claim in claims
    ]
    print_records("Claims", rows)


def _estimates(value: Any, prefix: str) -> Iterator[tuple[str, Estimate]]:
    for field in dataclasses.fields(value):
        child = getattr(value, field.name)
        if isinstance(child, Estimate):
            yield f"{prefix}{field.name}", child
        elif dataclasses.is_dataclass(child):
            yield from _estimates(child, f"{prefix}{field.name}.")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


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


def print_records(title: str, records: Sequence[dict[str, Any]]) -> None:
    """Print a table, one row a record."""
    table = Table(*[name.replace("_", " ") for name in records[0]], title=title)
    for record in records:
        table.add_row(*[str(value) for value in record.values()])
    _output.print(table)
