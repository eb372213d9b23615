"""Two prompts that differ in what they say, token by token aligned, and the answers they pull to.

What activation patching compares: activations of one run put into the other only mean something if
each position plays the same part in both. Pure: token ids and positions, no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPair:
    """A clean and a corrupted prompt of one length, and the two answers between which they decide.

    The measure is `logit[answer] - logit[other]` at the last position: high in the clean run, low
    in the corrupted one.
    """

    id: str
    clean: tuple[int, ...] = field(repr=False)
    """Token ids; for a conflict the context that contradicts what training stored."""
    corrupted: tuple[int, ...] = field(repr=False)
    """Token ids, as many; a neutral context, or one that agrees with what training stored."""
    answer: int
    """Token that the clean prompt calls for (the context's answer)."""
    other: int
    """Token that the corrupted prompt calls for (the parametric answer)."""
    groups: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Positions by the part they play in both: `first`, `subject`, `object`, `last`, ..."""
    placebo: tuple[int, ...] | None = field(default=None, repr=False)
    """Token ids, as many, of an unrelated prompt: what patching any other activations does."""

    def __post_init__(self) -> None:
        """Refuse prompts that are not aligned, answers that are one, and positions outside."""
        for name in ("corrupted", "placebo"):
            ids: tuple[int, ...] | None = getattr(self, name)
            if ids is not None and len(ids) != len(self.clean):
                raise ValueError(
                    f"{name} must have as many tokens as clean ({len(self.clean)}) at {self.id!r}, "
                    f"got {len(ids)}: {_difference(self.clean, ids)}; align the two texts"
                )
        if self.answer == self.other:
            raise ValueError(
                f"answer and other must be different tokens at {self.id!r}, got {self.answer} twice"
            )
        for name, positions in self.groups.items():
            outside = [p for p in positions if not 0 <= p < len(self.clean)]
            if outside or not positions:
                raise ValueError(
                    f"groups[{name!r}] must hold positions between 0 and {len(self.clean) - 1} at "
                    f"{self.id!r}, got {outside or 'none'}; count tokens from 0"
                )


def _difference(clean: tuple[int, ...], other: tuple[int, ...]) -> str:
    """Where two rows of token ids part, and what they hold from there to where they meet again."""
    start = next((i for i, (a, b) in enumerate(zip(clean, other, strict=False)) if a != b), None)
    if start is None:
        start = min(len(clean), len(other))
    end = 0
    shorter = min(len(clean), len(other)) - start
    while end < shorter and clean[-1 - end] == other[-1 - end]:
        end += 1
    clean_part, other_part = clean[start : len(clean) - end], other[start : len(other) - end]
    return f"from token {start} on {list(clean_part)} against {list(other_part)}"
