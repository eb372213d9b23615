"""The three choices that make an intervention: which dimensions, what replaces them, and where."""

import re
from dataclasses import asdict, dataclass, field
from typing import Literal, cast

from mi_massive._replacements import PREFILL_ONLY, Value
from mi_massive._selections import Selection
from mi_massive.axes import PROJECTIONS, Projection
from mi_massive.norms import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Which tensors, layers and tokens an intervention touches."""

    projections: tuple[Projection, ...] = ("q", "k")
    stage: Stage = "attention"
    """`attention`: as they enter the attention, rotated; `unrotated`: with the rotation undone for
    the edit. Norms are taken at the same stage."""
    layers: tuple[int, ...] | None = None
    """Block indices; None for every layer with attention."""
    positions: Literal["prefill", "decode", "both"] = "prefill"
    """The prompt's tokens, the generated ones, or both. What generated tokens get is chosen and
    computed on the prompt."""
    rows: Literal["all", "after_first", "first"] = "all"
    """`after_first` leaves the row of the first token, where most models keep their attention sink,
    as it is; `first` edits it alone. Selection and value are taken from all tokens either way."""
    cache: Literal["edited", "clean", "edited_global"] = "edited"
    """Whether later tokens see the edited keys and values: always, never, or only in layers without
    a sliding window."""

    def __post_init__(self) -> None:
        """Refuse places that hold nothing to edit."""
        if not self.projections or len(set(self.projections)) != len(self.projections):
            raise ValueError(
                f"projections must name each of {', '.join(PROJECTIONS)} at most once and at least "
                f"one, got {self.projections}"
            )
        if self.layers is not None and not self.layers:
            raise ValueError("layers must name at least one block, got none; None means all")
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers must name each block at most once, got {self.layers}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One edit: which dimensions, what replaces them, where."""

    selection: Selection = field(default_factory=Selection)
    value: Value = field(default_factory=Value)
    where: Where = field(default_factory=Where)

    def __post_init__(self) -> None:
        """Refuse choices that do not go together."""
        if self.value.kind in PREFILL_ONLY and self.where.positions != "prefill":
            raise ValueError(
                f"positions must be 'prefill' for the value {self.value.kind!r}, got "
                f"{self.where.positions!r}; a generated token has no such counterpart"
            )
        if self.value.kind == "joint_mean" and self.selection.rule == "across_heads":
            raise ValueError("value must not be 'joint_mean' for the rule 'across_heads'; use zero")
        if self.where.stage == "unrotated" and self.where.projections == ("v",):
            raise ValueError("stage must be 'attention' for values, which are never rotated")

    def settings(self) -> dict[str, str | int | float | bool | None]:
        """Every choice under its name, such as `selection.rule`, as a provenance holds it."""
        return {
            f"{part}.{name}": ",".join(map(str, cast("tuple[object, ...]", value)))
            if isinstance(value, tuple)
            else value
            for part, choices in asdict(self).items()
            for name, value in choices.items()
        }


def blocks_of(listed: str) -> tuple[int, ...]:
    """Block indices that a text names: a block, a range with both ends, or several with commas.

    Raises:
        ValueError: If a part is neither.
    """
    blocks: list[int] = []
    for part in listed.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (0, -1) if ends is None else (int(ends[1]), int(ends[2] or ends[1]))
        if first > last:
            raise ValueError(
                "layers must be a block such as 3, a range such as 3-9 or several with commas, "
                f"got {listed!r}"
            )
        blocks += range(first, last + 1)
    return tuple(blocks)
