"""Arms that options name: presets, doses, seeds and blocks, before any model is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mi_massive._choices import blocks_of

if TYPE_CHECKING:  # it loads transformers, which the help does not need
    from mi_massive.arms import Arm


def split(listed: str) -> list[str]:
    """Parts of an option's value between commas."""
    return [part.strip() for part in listed.split(",") if part.strip()]


def doses(listed: str) -> list[int]:
    """Numbers of dimensions, from an option's value.

    Raises:
        ValueError: If there is none, or one is none of at least 1: no dimension is no edit.
    """
    parts = split(listed)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"--k must be whole numbers of at least 1 with commas, got {listed!r}; try 4"
        )
    return [int(part) for part in parts]


def chosen_arms(
    presets: Sequence[str], ks: Sequence[int] | None, seeds: int, layers: str | None
) -> "tuple[Arm, ...]":
    """The arms that options ask for.

    Raises:
        ValueError: If there are none, or an option would change none of them.
    """
    from mi_massive.arms import make_arms  # late, as all that loads transformers
    from mi_massive.presets import PRESETS

    where = None if layers is None else blocks_of(layers)
    arms = make_arms(presets, ks=ks, n_seeds=seeds, layers=where)
    if seeds > 1 and not any(PRESETS[arm.preset].seeded for arm in arms):
        raise ValueError(
            f"--seeds must be left out for presets that draw nothing, got {seeds} for "
            f"{', '.join(presets)}; add one that draws, such as random"
        )
    return arms
