"""What results show of themselves fits a screen, and says what is in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_massive
from mi_massive import load_result
from mi_massive._brief import Brief

RECORDS = sorted((Path(__file__).parent.parent / "experiments" / "records").glob("*.json"))
LONGEST = 2000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Shown(Brief):
    name: str
    norms: Tensor
    words: tuple[str, ...] = ("a", "b")
    settings: Mapping[str, int]
    mixed: list[Any]


def held(value: Any) -> Iterator[Any]:
    """Every result and every public class in a result, itself included."""
    if is_dataclass(value):
        name = type(value).__name__
        if name in mi_massive.__all__ or name.endswith(("Result", "Errors")):
            yield value
        for field in fields(value):
            yield from held(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from held(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from held(entry)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_results_in_a_record_show_themselves_in_few_characters(record: Path) -> None:
    long = {type(one).__name__: len(repr(one)) for one in held(load_result(record))}
    assert {name: n for name, n in long.items() if n > LONGEST} == {}


def test_a_record_shows_what_it_is_of() -> None:
    record = next(path for path in RECORDS if path.stem == "table1_smollm2-135m-instruct")
    shown = repr(load_result(record))
    assert shown.startswith("DisruptionResult(arms=<8 Arm>, cells=<")
    assert "provenance=Provenance(model='smollm2-135m-instruct'" in shown


def test_what_is_short_is_shown_and_what_is_long_is_counted() -> None:
    short = Shown(name="x", norms=torch.zeros(2, 3), settings={"a": 1}, mixed=[1])
    assert repr(short) == (
        "Shown(name='x', norms=<tensor (2, 3)>, words=('a', 'b'), settings={'a': 1}, mixed=[1])"
    )
    long = Shown(
        name="x" * 500,
        norms=torch.zeros(4096),
        words=("word",) * 300,
        settings={str(n): n for n in range(70)},
        mixed=["x", 1] * 200,
    )
    assert repr(long) == (
        f"Shown(name='{99 * 'x'}..., norms=<tensor (4096,)>, words=<300 str>, "
        "settings=<70 entries>, mixed=<400 entries>)"
    )
