"""What a capture costs beside the plain forward pass and beside other ways to get the same norms.

Times are taken in turn within one run (A B C, A B C, ...), so that a machine whose speed drifts
slows all of them alike; ratios are formed within a round. Peak memory is that of a fresh
process each.
Does not show the speed of another machine: quote ratios.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive.capture import capture_norms, provenance_of
from mi_massive.models.base import HookedModel
from mi_massive.models.load import load_model
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import tokenize_prompts
from mi_massive.records import Provenance
from mi_massive.stats import Estimate, estimate

PLAIN: Final = "plain forward"
BODY: Final = "plain body"
WAYS: Final = (PLAIN, BODY, "capture", "capture by hooks", "run_with_cache")
"""What is timed: transformers' forward pass with logits and its body without, our capture, the same
capture through the bridge's hook points, and TransformerLens' cache of all activations, reduced."""

_ALONE: Final = (
    "import sys; from mi_massive import load_model; from mi_massive.speed import print_peak; "
    "print_peak(*sys.argv[1:])"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpeedResult:
    """Times and peak memory of the ways to get norms of queries, keys and values."""

    ways: tuple[str, ...]
    seconds: Float[Tensor, "round way"] = field(repr=False)
    """Wall time of each way in each round."""
    ratios: tuple[Estimate, ...]
    """Median over rounds of each way's time divided by that of the plain forward pass."""
    ratios_to_body: tuple[Estimate, ...]
    """The same, divided by the time of the body alone: a capture computes no logits either."""
    n_tokens: int
    """Tokens of the timed prompt, batch 1."""
    peak_mb: dict[str, float]
    """Largest resident memory of a fresh process, in MiB."""
    n_tokens_peak: int
    """Tokens of the prompt whose peak memory was taken."""
    n_threads: int
    provenance: Provenance


def measure_speed(
    name: str, *, n_tokens: int = 1024, n_rounds: int = 9, n_tokens_peak: int = 8192
) -> SpeedResult:
    """Time every way of `WAYS` on one prompt of `n_tokens` tokens, and take peak memory.

    Args:
        name: Model, as for `load_model`.
        n_tokens: Tokens of the timed prompt.
        n_rounds: Rounds after one that is not counted.
        n_tokens_peak: Tokens of the prompt for peak memory; 0 leaves memory out.
    """
    model = load_model(name)
    ids = token_ids(n_tokens)
    ways = _ways(model, ids)
    seconds = torch.tensor(in_turn(ways, n_rounds))
    return SpeedResult(
        ways=WAYS,
        seconds=seconds,
        ratios=_ratios(seconds, PLAIN),
        ratios_to_body=_ratios(seconds, BODY),
        n_tokens=n_tokens,
        peak_mb={way: _peak_mb(name, way, n_tokens_peak) for way in WAYS[:3] if n_tokens_peak},
        n_tokens_peak=n_tokens_peak,
        n_threads=torch.get_num_threads(),
        provenance=provenance_of(model, tokenize_prompts(None, ids), batch_size=1),
    )


def _ratios(seconds: Float[Tensor, "round way"], to: str) -> tuple[Estimate, ...]:
    ratios = (seconds / seconds[:, WAYS.index(to), None]).double().numpy()
    return tuple(estimate(ratio, n_of="rounds", statistic="median") for ratio in ratios.T)


def token_ids(n_tokens: int) -> list[list[int]]:
    """One prompt of seeded random token ids below 1000, which every vocabulary holds."""
    return [[int(token) for token in np.random.default_rng(0).integers(100, 1000, n_tokens)]]


def _ways(model: HookedModel, ids: list[list[int]]) -> Mapping[str, Callable[[], object]]:
    input_ids = torch.tensor(ids)
    plain: Any = model.plain
    wrapped = HookedModel.wrap(model.bridge)

    def cache() -> object:
        _, stored = model.bridge.run_with_cache(input_ids)
        blocks = range(len(model.bridge.blocks))
        names = ("hook_rot_q", "hook_rot_k", "hook_v")
        return [stored[f"blocks.{b}.attn.{n}"].square().sum(dim=1) for b in blocks for n in names]

    functions = (
        lambda: plain(input_ids=input_ids, use_cache=False),
        lambda: plain.base_model(input_ids=input_ids, use_cache=False),
        lambda: capture_norms(model, ids),
        lambda: capture_norms(wrapped, ids),
        cache,
    )
    return dict(zip(WAYS, functions, strict=True))


@torch.no_grad()
def in_turn(ways: Mapping[str, Callable[[], object]], n_rounds: int) -> list[list[float]]:
    """Seconds of each way in each round, the ways one after the other; one round more goes first.

    Args:
        ways: What is timed, by name.
        n_rounds: Rounds that are counted.

    Returns:
        `[round][way]`.
    """
    rounds: list[list[float]] = []
    for _ in range(n_rounds + 1):
        row: list[float] = []
        for run in ways.values():
            start = time.perf_counter()
            run()
            row.append(time.perf_counter() - start)
        rounds.append(row)
    return rounds[1:]


def _peak_mb(name: str, way: str, n_tokens: int) -> float:
    """Peak memory of a fresh process that loads the model and goes one way once."""
    command = [sys.executable, "-c", _ALONE, name, way, str(n_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def print_peak(name: str, way: str, n_tokens: str) -> None:
    """What the fresh process does."""
    _run_alone(name, way, int(n_tokens))
    sys.stdout.write(f"{_own_peak_mb():.1f}\n")


@torch.no_grad()
def _run_alone(name: str, way: str, n_tokens: int) -> AttentionNorms | object:
    model = load_model(name)
    plain: Any = model.plain
    ids = token_ids(n_tokens)
    if way == "capture":
        return capture_norms(model, ids)
    runner = plain if way == PLAIN else plain.base_model
    return runner(input_ids=torch.tensor(ids), use_cache=False)


def _own_peak_mb() -> float:
    """Peak memory of this process, in MiB.

    On Linux from /proc: `ru_maxrss` survives exec, so a child of a large process starts with the
    parent's peak (measured: every way had the parent's 5194 MiB).
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak is not None:
            return int(peak[1]) / 1024
    import resource  # not there on Windows

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
