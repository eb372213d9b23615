"""What a capture costs beside the plain forward pass and beside other ways to get the same norms.

Times are taken in turn within one run (A B C, A B C, ...), so that a machine whose speed drifts
slows all of them alike; ratios are formed within a round. Peak memory is that of a fresh process
each on a CPU, and what torch allocates on a GPU.
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

from mi_massive._brief import Brief
from mi_massive._checks import require_in_range
from mi_massive._columns import seconds_frame
from mi_massive.capture import capture_norms, provenance_of
from mi_massive.models.base import HookedModel
from mi_massive.models.load import load_model
from mi_massive.prompts import tokenize_prompts
from mi_massive.records import Provenance
from mi_massive.stats import Estimate, estimate

PLAIN: Final = "plain forward"
BODY: Final = "plain body"
CAPTURE: Final = "capture"
WAYS: Final = (PLAIN, BODY, CAPTURE, "capture by hooks", "run_with_cache")
"""What is timed: transformers' forward pass with logits and its body without, our capture, the same
capture through the bridge's hook points, and TransformerLens' cache of all activations, reduced."""

_ALONE: Final = (
    "import sys; from mi_massive import load_model; from mi_massive.speed import print_peak; "
    "print_peak(*sys.argv[1:])"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class SpeedResult(Brief):
    """Times of the ways to get norms of queries, keys and values."""

    ways: tuple[str, ...]
    seconds: Float[Tensor, "round way"] = field(repr=False)
    """Wall time of each way in each round."""
    ratios: tuple[Estimate, ...]
    """Median over rounds of each way's time divided by that of the plain forward pass."""
    ratios_to_body: tuple[Estimate, ...]
    """The same, divided by the time of the body alone: a capture computes no logits either."""
    ratios_to_capture: tuple[Estimate, ...]
    """The same, divided by the time of the capture: above 1 where the capture is faster."""
    n_prompts: int
    """Prompts of the one batch that is timed."""
    n_tokens: int
    """Tokens of each timed prompt."""
    n_threads: int
    provenance: Provenance

    def to_frame(self) -> Any:
        """Times as a data frame (pandas), one row a way and round."""
        return seconds_frame(self.ways, self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemoryResult:
    """Peak memory of the plain forward pass, of its body and of a capture, on one long prompt."""

    ways: tuple[str, ...]
    peak_mb: tuple[float, ...]
    """On a CPU the largest resident memory of a fresh process, weights included; on a GPU the
    largest memory that torch allocated there. MiB."""
    n_tokens: int
    provenance: Provenance

    def to_frame(self) -> Any:
        """Peaks as a data frame (pandas), one row a way."""
        import pandas as pd

        return pd.DataFrame({"way": self.ways, "peak_mb": self.peak_mb})


def measure_speed(
    model: HookedModel,
    *,
    n_prompts: int = 1,
    n_tokens: int = 1024,
    n_rounds: int = 9,
    others: Mapping[str, Callable[[], object]] | None = None,
) -> SpeedResult:
    """Time every way of `WAYS` on one batch.

    Args:
        model: From `load_model`.
        n_prompts: Prompts of the batch.
        n_tokens: Tokens of each.
        n_rounds: Rounds after one that is not counted.
        others: Further ways by name, that do the same on `token_ids(n_tokens, n_prompts)`.

    Raises:
        ValueError: If another way has the name of one of `WAYS`.
    """
    taken = sorted(set(others or {}) & set(WAYS))
    if taken:
        raise ValueError(f"others must have names of their own, got {', '.join(taken)}")
    ids = token_ids(n_tokens, n_prompts)
    ways = {**_ways(model, ids), **(others or {})}
    seconds = torch.tensor(in_turn(ways, n_rounds))
    return SpeedResult(
        ways=tuple(ways),
        seconds=seconds,
        ratios=_ratios(seconds, PLAIN),
        ratios_to_body=_ratios(seconds, BODY),
        ratios_to_capture=_ratios(seconds, CAPTURE),
        n_prompts=n_prompts,
        n_tokens=n_tokens,
        n_threads=torch.get_num_threads(),
        provenance=provenance_of(model, tokenize_prompts(None, ids), batch_size=n_prompts),
    )


def measure_peak_memory(
    model: HookedModel, *, n_tokens: int = 8192, source: str | Path | None = None
) -> PeakMemoryResult:
    """Peak memory of the first three of `WAYS` on one prompt.

    Args:
        model: From `load_model`.
        n_tokens: Tokens of the prompt.
        source: What a fresh process a way loads on a CPU, as for `load_model`; the model's name
            without it.

    Raises:
        ValueError: If the prompt would exceed the model's context.
    """
    context = model.geometry.training_context
    longest = 1 << 30 if context is None else context
    require_in_range("n_tokens", n_tokens, low=1, high=longest, unit="tokens")
    loaded, ways = str(source or model.name), WAYS[:3]
    return PeakMemoryResult(
        ways=ways,
        peak_mb=tuple(_peak_mb(model, loaded, way, n_tokens) for way in ways),
        n_tokens=n_tokens,
        provenance=provenance_of(model, tokenize_prompts(None, token_ids(n_tokens)), batch_size=1),
    )


def _ratios(seconds: Float[Tensor, "round way"], to: str) -> tuple[Estimate, ...]:
    ratios = (seconds / seconds[:, WAYS.index(to), None]).double().numpy()
    return tuple(estimate(ratio, n_of="rounds", statistic="median") for ratio in ratios.T)


def token_ids(n_tokens: int, n_prompts: int = 1) -> list[list[int]]:
    """Prompts of seeded random token ids below 1000, which every vocabulary holds."""
    return np.random.default_rng(0).integers(100, 1000, (n_prompts, n_tokens)).tolist()


def _ways(model: HookedModel, ids: list[list[int]]) -> dict[str, Callable[[], object]]:
    input_ids = torch.tensor(ids, device=model.device)
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
        lambda: capture_norms(model, ids, batch_size=len(ids)),
        lambda: capture_norms(wrapped, ids, batch_size=len(ids)),
        cache,
    )
    return dict(zip(WAYS, functions, strict=True))


@torch.no_grad()
def in_turn(
    ways: Mapping[str, Callable[[], object]], n_rounds: int, *, warm_up: bool = True
) -> list[list[float]]:
    """Seconds of each way in each round, the ways one after the other.

    Args:
        ways: What is timed, by name. What one puts on a GPU is waited for.
        n_rounds: Rounds that are counted.
        warm_up: Whether one round more goes first.

    Returns:
        `[round][way]`.
    """
    rounds: list[list[float]] = []
    for _ in range(n_rounds + int(warm_up)):
        row: list[float] = []
        for run in ways.values():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            row.append(time.perf_counter() - start)
        rounds.append(row)
    return rounds[-n_rounds:]


def _peak_mb(model: HookedModel, source: str, way: str, n_tokens: int) -> float:
    """Peak memory of one way that is gone once; on a CPU of a fresh process, which loads the model.

    Memory of a process hardly shrinks, so a way could hide below the peak of another.
    """
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        _run_alone(model, way, n_tokens)
        return torch.cuda.max_memory_allocated(model.device) / 1024**2
    dtype = str(model.dtype).removeprefix("torch.")
    command = [sys.executable, "-c", _ALONE, source, dtype, way, str(n_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def print_peak(name: str, dtype: str, way: str, n_tokens: str) -> None:
    """What the fresh process does."""
    _run_alone(load_model(name, dtype=getattr(torch, dtype)), way, int(n_tokens))
    sys.stdout.write(f"{_own_peak_mb():.1f}\n")


@torch.no_grad()
def _run_alone(model: HookedModel, way: str, n_tokens: int) -> None:
    plain: Any = model.plain
    ids = token_ids(n_tokens)
    if way == CAPTURE:
        capture_norms(model, ids)
        return
    runner = plain if way == PLAIN else plain.base_model
    runner(input_ids=torch.tensor(ids, device=model.device), use_cache=False)


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
