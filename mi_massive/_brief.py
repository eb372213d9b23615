"""Representations that fit a screen: a result may hold thousands of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, cast

from torch import Tensor

_LONGEST: Final = 100
"""Characters of a field's value; a longer one is counted or cut."""


class Brief:
    """Base of dataclasses with `repr=False`: shows what is short, counts what is long."""

    __slots__ = ()

    def __repr__(self) -> str:
        own: Any = self
        shown = [f"{f.name}={_short(getattr(self, f.name))}" for f in fields(own) if f.repr]
        return f"{type(self).__name__}({', '.join(shown)})"


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"<tensor {tuple(value.shape)}>"
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    if isinstance(value, Mapping):
        return f"<{len(cast('Mapping[Any, Any]', value))} entries>"
    if isinstance(value, Sequence) and not isinstance(value, str):
        entries = cast("Sequence[object]", value)
        kinds = {type(entry).__name__ for entry in entries}
        return f"<{len(entries)} {kinds.pop() if len(kinds) == 1 else 'entries'}>"
    return f"{text[:_LONGEST]}..."
