"""The control of an arm: one other arm, or every seed of one that draws its dimensions.

One random draw can cost nothing or as much as a treatment, so what goes beyond a control is
measured against the mean over its seeds.

Does not show: how far the draws lie apart; `mi_massive.seed_spreads` does.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

Controls = Mapping[str, tuple[str, ...]]
"""By the name of an arm the names of its controls, where it has any."""

_SEED: Final = re.compile(r" seed=\d+")


def control_label(names: Sequence[str]) -> str | None:
    """The name of the one control; of several seeds what they share, with their number."""
    if len(names) < 2:
        return names[0] if names else None
    shared = dict.fromkeys(_SEED.sub("", name) for name in names)
    return f"{', '.join(shared)} ({len(names)} seeds)"


def behind_label(label: str | None, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that a label stands for: the inverse of `control_label`."""
    if label is None or label in names:
        return () if label is None else (label,)
    return tuple(name for name in names if label.startswith(f"{_SEED.sub('', name)} ("))
