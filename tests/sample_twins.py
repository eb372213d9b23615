"""Twins made up by hand, with curves that tests know."""

import math
from typing import Any

import torch
from sample_results import provenance
from torch import Tensor

from mi_massive.twin_arms import TwinShape
from mi_massive.twin_results import TwinsResult
from mi_massive.twin_runs import TwinRun, TwinsConfig

SHAPE = TwinShape(n_layers=2, n_heads=2, d_head=8, context=64)
CONFIG = TwinsConfig(arms=("rope", "none"), n_seeds=3, shape=SHAPE, n_steps=80, n_measured=3)
STEPS = CONFIG.steps  # 0, 20, 40, 80
EDITS = ("intact", "paper k=1", "random k=1 seed=0", "random k=1 seed=1")
# Share of right answers and log-probability of recall, then of facts, under each.
EDITED = [
    [[1.0, -0.1], [1.0, -0.2]],
    [[0.25, -3.0], [0.75, -1.0]],
    [[0.75, -0.5], [1.0, -0.25]],
    [[0.5, -0.7], [0.75, -0.35]],
]


def norms(ratios: list[float]) -> Tensor:
    """Norms whose max/mean is that of each step, largest in dimension 2 of the head."""
    shape = (len(ratios), 2, 2, 8)
    found = torch.ones(shape)
    for step, ratio in enumerate(ratios):
        # peak / ((7 + peak) / 8) = ratio
        found[step, :, :, 2] = 7 * ratio / (8 - ratio)
    return found


def twin_run(arm: str = "rope", seed: int = 0, **changes: Any) -> TwinRun:
    """A RoPE twin that grows to 4 in q and k, or one without that stays at 1.25."""
    rotates = arm != "none"
    ratios = [1.25, 1.25, 2.5, 4.0] if rotates else [1.25] * 4
    wave = 2 * math.pi * 100 ** (torch.arange(4) / 4)
    fields: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "loss": torch.tensor([5.0, 3.0, 2.0, 1.0] if rotates else [5.0, 4.0, 3.0, 2.0]),
        "q": norms(ratios),
        "k": norms(ratios),
        "v": norms([1.25] * 4),
        "sink": torch.tensor([[0.0], [0.0], [0.25], [0.5]]).expand(-1, 2).clone(),
        "abilities": torch.full((4, 2), math.nan),
        "wavelengths": torch.cat([wave, wave]) if rotates else torch.full((8,), math.inf),
        "partners": torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]),
        "edits": EDITS,
        "edited": torch.tensor(EDITED),
        "failure": None,
    }
    return TwinRun(**{**fields, **changes})


def twins_result(*, edits: bool = True, **changes: Any) -> TwinsResult:
    own: dict[str, Any] = {} if edits else {"edits": (), "edited": torch.zeros(0, 2, 2)}
    runs = tuple(twin_run(arm, seed, **own) for arm in CONFIG.arms for seed in range(3))
    source = provenance("2 twins, 3 seeds each")
    source.settings["corpus"] = "stdlib"
    fields: dict[str, Any] = {
        "runs": runs,
        "steps": STEPS,
        "config": CONFIG,
        "corpus_digest": "ab" * 32,
        "provenance": source,
    }
    return TwinsResult(**{**fields, **changes})
